"""``Profiler``: turns the events of training into traces of the batches that a schedule chooses.

Owns: which event begins and ends which span, and what is mirrored. Does not own: files (``json_trace``,
``torch_trace``) and samples (``system_metrics``).

Invariant: a trace that cannot be written or mirrored warns, and never ends training.
"""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.batch import placement
from artifactsync.errors import ArtifactSyncError, ConfigurationError
from artifactsync.training.callback import Callback
from artifactsync.training.event import Event
from artifactsync.training.profiler.json_trace import JSONTraceHandler
from artifactsync.training.profiler.profiler_schedule import ProfilerAction, cyclic_schedule
from artifactsync.training.profiler.system_metrics import SystemMetrics
from artifactsync.training.profiler.torch_trace import TorchTrace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from artifactsync.loggers.logger import Logger
    from artifactsync.run import Pushed
    from artifactsync.training.profiler.kept_traces import KeptTraces
    from artifactsync.training.state import State

_BEGINS = {
    Event.BEFORE_DATALOADER: "dataloader",
    Event.BATCH_START: "batch",
    Event.BEFORE_FORWARD: "forward",
    Event.BEFORE_LOSS: "loss",
    Event.BEFORE_BACKWARD: "backward",
    Event.EVAL_START: "eval",
}
_ENDS = {
    Event.AFTER_DATALOADER: "dataloader",
    Event.BATCH_END: "batch",
    Event.AFTER_FORWARD: "forward",
    Event.AFTER_LOSS: "loss",
    Event.AFTER_BACKWARD: "backward",
    Event.EVAL_END: "eval",
}
_IS_LAST = (Event.EPOCH_START, Event.FIT_END)
_RECORDED = (ProfilerAction.ACTIVE, ProfilerAction.ACTIVE_AND_SAVE)


class Profiler(Callback):
    """Traces chosen batches to ``{run_name}/traces/…`` and ``{run_name}/torch_traces/…``; give it to the Trainer.

    Args:
        schedule: Function of the state that says what is done with the batch about to begin.
        trace_handlers: Where spans and counters go; one ``JSONTraceHandler`` unless given.
        sys_prof_cpu: Record the load of the CPUs and of a GPU. Needs psutil, as do the next three.
        sys_prof_memory: Record memory in use.
        sys_prof_disk: Record bytes read and written.
        sys_prof_net: Record bytes received and sent.
        sys_prof_stats_thread_interval_seconds: Seconds between two samples of these.
        torch_prof: Record with ``torch.profiler`` too.
        torch_prof_folder: Template of the folder of its traces.
        torch_prof_filename: Template of a trace in it; a name that ends in ``.gz`` is compressed.
        torch_prof_num_traces_to_keep: Newest of them that stay on this disk once they are durable; -1 keeps all.
        torch_prof_record_shapes: Record the shapes of operators' inputs.
        torch_prof_profile_memory: Record allocations.
        torch_prof_with_stack: Record where in the source operators were called.
        torch_prof_with_flops: Estimate operations.

    Raises:
        ConfigurationError: a template or an interval makes no sense.
        MissingPackageError: psutil is not installed.
    """

    def __init__(
        self,
        schedule: Callable[[State], ProfilerAction] | None = None,
        trace_handlers: JSONTraceHandler | Sequence[JSONTraceHandler] | None = None,
        *,
        sys_prof_cpu: bool = True,
        sys_prof_memory: bool = False,
        sys_prof_disk: bool = False,
        sys_prof_net: bool = False,
        sys_prof_stats_thread_interval_seconds: float = 0.5,
        torch_prof: bool = True,
        torch_prof_folder: str = "{run_name}/torch_traces",
        torch_prof_filename: str = "rank{rank}.{batch}.pt.trace.json",
        torch_prof_num_traces_to_keep: int = -1,
        torch_prof_record_shapes: bool = False,
        torch_prof_profile_memory: bool = True,
        torch_prof_with_stack: bool = False,
        torch_prof_with_flops: bool = False,
    ) -> None:
        if sys_prof_stats_thread_interval_seconds <= 0:
            raise ConfigurationError(
                f"the sampling interval is {sys_prof_stats_thread_interval_seconds} s", hint="for example 0.5"
            )
        self.schedule = schedule or cyclic_schedule()
        given = JSONTraceHandler() if trace_handlers is None else trace_handlers
        self.trace_handlers = [given] if isinstance(given, JSONTraceHandler) else list(given)
        self._system = SystemMetrics(
            self._count,
            cpu=sys_prof_cpu,
            memory=sys_prof_memory,
            disk=sys_prof_disk,
            net=sys_prof_net,
            interval_s=sys_prof_stats_thread_interval_seconds,
        )
        self._torch = (
            TorchTrace(
                torch_prof_folder,
                torch_prof_filename,
                {
                    "record_shapes": torch_prof_record_shapes,
                    "profile_memory": torch_prof_profile_memory,
                    "with_stack": torch_prof_with_stack,
                    "with_flops": torch_prof_with_flops,
                },
                num_traces_to_keep=torch_prof_num_traces_to_keep,
            )
            if torch_prof
            else None
        )
        self._action = ProfilerAction.SKIP
        self._begun: dict[str, float] = {}
        self._hooks: list[Any] = []
        self._values: dict[str, Any] = {}
        self._has_recorded = self._has_batch = False
        self._epoch = (0, 0.0)  # that is recorded, and since when

    @property
    def is_recording(self) -> bool:
        """Whether the running batch is recorded."""
        return self._action in _RECORDED

    @contextmanager
    def marker(self, name: str) -> Iterator[None]:
        """A span of your own around a part of a batch; costs nothing worth speaking of in batches not recorded."""
        if not self.is_recording:
            yield
            return
        began = time.perf_counter()
        try:
            yield
        finally:
            self._span(name, began)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:  # noqa: ARG002  (as for every callback)
        """Begin and end spans; change what is done between batches."""
        if event is Event.BEFORE_DATALOADER:
            self._next_batch(state)
        elif event in _IS_LAST:
            self._finish_cycle(state)
        elif event is Event.INIT:
            self._open(state)
        if not self.is_recording:
            return
        self._has_batch |= event is Event.BATCH_START
        if event in _BEGINS:
            self._begun[_BEGINS[event]] = time.perf_counter()
        elif event in _ENDS:
            name = _ENDS[event]
            began = self._begun.pop(name, None)
            if began is not None:
                at = state.timestamp
                about = {"epoch": at.epoch, "batch": at.batch, "batch_in_epoch": at.batch_in_epoch}
                self._span(name, began, **(about if name == "batch" else {}))
        elif event is Event.EPOCH_END:
            for handler in self.trace_handlers:
                handler.instant("end of epoch", epoch=state.timestamp.epoch)

    def close(self, state: State, logger: Logger) -> None:  # noqa: ARG002  (as for every callback)
        """Write what is recorded, also after an error."""
        self._finish_cycle(state)
        for kept in (*(handler.kept for handler in self.trace_handlers), *([self._torch.kept] if self._torch else [])):
            kept.remove_surplus()

    def _open(self, state: State) -> None:
        if state.run is None:
            raise ConfigurationError("a profiler needs a run", hint="give it to a Trainer")
        self._values = {"run_name": state.run_name, **placement().__dict__, "attempt": state.run.attempt}
        for handler in self.trace_handlers:
            for path in handler.open(state.run.local_dir, self._values):
                self._mirror(state, path)
        if self._torch is not None and state.run.attempt > 1:
            for path in self._torch.left(state.run.local_dir, {**self._values, **state.timestamp.placeholders()}):
                self._mirror(state, path)

    def _next_batch(self, state: State) -> None:
        """The batch before is over, with all that was done after it; say what is done with the next."""
        was, last = self._action, self._action is ProfilerAction.ACTIVE_AND_SAVE
        if was in _RECORDED:
            for handler in self.trace_handlers:
                handler.batch_is_over()
        if last:
            self._finish_cycle(state)
        self._action = self.schedule(state)
        if self._action is ProfilerAction.SKIP:
            if was is not ProfilerAction.SKIP and not last:
                self._finish_cycle(state)
            return
        if self._action is ProfilerAction.WARMUP:
            if self._torch is not None:
                self._torch.prepare()
        elif not self._has_recorded:
            self._begin_recording(state)
        self._system.start()

    def _begin_recording(self, state: State) -> None:
        self._has_recorded = True
        self._epoch = (state.timestamp.epoch, time.perf_counter())
        for handler in self.trace_handlers:
            handler.forget()  # counters of the warm-up
        for number, optimizer in enumerate(state.optimizers):
            name = "optimizer" if len(state.optimizers) == 1 else f"optimizer {number}"
            self._hooks.append(optimizer.register_step_pre_hook(lambda *_, n=name: self._mark(n)))
            self._hooks.append(optimizer.register_step_post_hook(lambda *_, n=name: self._end(n)))
        if self._torch is not None:
            self._torch.start()

    def _finish_cycle(self, state: State) -> None:
        """End recording, and write and mirror what was recorded."""
        had_recorded = self._has_recorded and self._has_batch  # an epoch may be over when a cycle has just begun
        self._has_recorded = self._has_batch = False
        self._action = ProfilerAction.SKIP
        self._begun.clear()
        self._system.stop()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        placeholders = state.timestamp.placeholders()
        if had_recorded:
            self._span(f"epoch {self._epoch[0]}", self._epoch[1])
        else:
            for handler in self.trace_handlers:
                handler.forget()
            if self._torch is not None:
                self._torch.stop()
            return
        for handler in self.trace_handlers:
            self._keep(state, handler.kept, lambda handler=handler: handler.write(placeholders))  # type: ignore[misc]  # bound now
        torch_trace = self._torch
        if torch_trace is not None and state.run is not None:
            folder, values = state.run.local_dir, {**self._values, **placeholders}
            self._keep(state, torch_trace.kept, lambda: torch_trace.write(folder, values))

    def _keep(self, state: State, kept: KeptTraces, write: Callable[[], Path | None]) -> None:
        try:
            path = write()
        except ArtifactSyncError as error:
            warnings.warn(f"a trace was not written: {error}", RuntimeWarning, stacklevel=2)
            return
        if path is not None and (is_mirrored := self._mirror(state, path)) is not False:
            kept.add(path, is_mirrored)

    @staticmethod
    def _mirror(state: State, path: Path) -> Pushed | Literal[False] | None:
        """What is now on its way; None where there is no remote, False where it cannot go."""
        try:
            return None if state.run is None else state.run.push(path)
        except ArtifactSyncError as error:
            warnings.warn(f"the trace {path} is not mirrored: {error}", RuntimeWarning, stacklevel=2)
            return False

    def _mark(self, name: str) -> None:
        self._begun[name] = time.perf_counter()

    def _end(self, name: str) -> None:
        if (began := self._begun.pop(name, None)) is not None:
            self._span(name, began)

    def _span(self, name: str, began: float, **about: Any) -> None:
        ended = time.perf_counter()
        for handler in self.trace_handlers:
            handler.span(name, began, ended, **about)

    def _count(self, name: str, values: Mapping[str, float]) -> None:
        for handler in self.trace_handlers:
            handler.counters(name, values)
