"""``Trainer``: a training loop small enough to read in one sitting, exact enough to be interrupted anywhere.

Owns: the order of things: load, epochs, batches, events, logs, checkpoints, the end. Does not own: what a step does
(``step``), where data comes from (``dataloader``), what is loaded first (``loading``), what is saved (``state``), how
it becomes durable (``run``), or how the end is gone about (``ending``).

Invariant: a run that was killed and resumed any number of times ends with the same bytes as one that never was.
"""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.batch import StopSignal, placement
from artifactsync.checkpoint.rng import seed_all
from artifactsync.errors import ConfigurationError
from artifactsync.loggers.logger import Logger, LoggerDestination
from artifactsync.loggers.metrics_file import MetricsFile
from artifactsync.loggers.run_context import context_of_run
from artifactsync.training.batch import count_samples, count_tokens, to_device
from artifactsync.training.callback import Callback, CallbackTable
from artifactsync.training.callbacks import CheckpointSaver, ProgressBar
from artifactsync.training.dataloader import ResumableLoader
from artifactsync.training.ending import Ending
from artifactsync.training.evaluation import evaluate
from artifactsync.training.event import Event
from artifactsync.training.loading import Loading, load
from artifactsync.training.model import TrainableModel
from artifactsync.training.precision import Precision
from artifactsync.training.ranks import Ranks
from artifactsync.training.run_access import agreed_run_name, open_run
from artifactsync.training.schedule import schedule_of
from artifactsync.training.state import State
from artifactsync.training.step import TrainStep
from artifactsync.training.time import Time, TimeUnit
from artifactsync.transfer.remote_uploader_downloader import RemoteUploaderDownloader

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from artifactsync.run import RetentionPolicy
    from artifactsync.training.profiler import Profiler

_NO_BATCH = object()


class Trainer:
    """Trains a model, and keeps its checkpoints and logs under a run name on a remote.

    Args:
        model: In Composer's style (``forward(batch)`` and ``loss(outputs, batch)``), or any module with ``loss_fn``.
        train_dataloader: A ``DataLoader``, or any iterable of batches.
        eval_dataloader: Data for ``eval``.
        optimizers: One or several; SGD with learning rate 0.1 if None.
        schedulers: One or several of torch's learning rate schedulers.
        max_duration: When training ends: ``"2ep"``, ``"1000ba"``, ``"30min"`` …; a number counts epochs.
        run_name: Else ``ARTIFACTSYNC_RUN_NAME``, ``RUN_NAME``, or a generated one.
        remote: Root URI under which runs live; else that of a ``RemoteUploaderDownloader`` among the loggers, else
            ``ARTIFACTSYNC_REMOTE``, else checkpoints stay local.
        local_root: Local folder of all runs, ``runs`` unless set.
        storage_options: What fsspec's file system for the remote takes.
        loss_fn: ``loss_fn(outputs, targets)``, for batches ``(inputs, targets)``.
        eval_metrics: Functions of ``(outputs, batch)`` that give the mean of a number over a batch, or torchmetrics'.
        eval_interval: How often to evaluate: a time, or ``function(state, event) -> bool``.
        save_folder: Template of the folder of checkpoints; None saves none.
        save_filename: Template of a checkpoint's file.
        save_interval: How often to save: a time, or ``function(state, event) -> bool``.
        save_num_checkpoints_to_keep: Local files kept; -1 keeps all.
        save_overlap: Copy parameters and optimizer states during the next forward and backward (``CheckpointSaver``).
        save_retention: Which checkpoints are kept on the remote, applied behind the training loop after each commit;
            None keeps all.
        save_overwrite: Start a run anew that has checkpoints (theirs stay: a later attempt's win).
        save_on_stop: On SIGTERM, on Slurm SIGUSR1 and its like too, and on EC2's, Google's or Azure's notice that the
            machine is taken away: finish the running batch, save, make it durable within the notice and
            ``ARTIFACTSYNC_GRACE_S``, note that the run was preempted, and end by the signal. Of several ranks it is
            enough that one is told: all save after the same batch, which is the next one. A handler of your own is left
            in place instead.
        autoresume: Continue the run of this name if it has a checkpoint, anywhere.
        load_path: Start from this checkpoint file, local or remote, if there is nothing to resume.
        load_weights_only: Take only the model from ``load_path``.
        load_strict: Whether the model's keys must be those of the checkpoint.
        load_ignore_keys: What of ``load_path`` is left alone: patterns such as ``model/head.*`` or ``optimizers``, or a
            function that changes the loaded dict.
        loggers: Where metrics go; ``RemoteUploaderDownloader`` may be among them.
        callbacks: Your code at the moments of training. A ``CheckpointSaver`` among them takes the place of ours.
        seed: Seeds Python, NumPy and torch; None draws one.
        precision: ``fp32`` (None), ``amp_bf16`` or ``amp_fp16``.
        device: ``cpu``, ``cuda``, ``mps`` …; None takes an accelerator if there is one.
        device_train_microbatch_size: Samples at a time; the gradients of a batch are accumulated.
        step_schedulers_every_batch: Step the schedulers after each batch instead of each epoch.
        clip_grad_norm: Largest norm of all gradients together.
        metrics_file: Write metrics to ``{run_name}/metrics-rank0.jsonl`` too, which ``artifactsync report`` draws.
        profiler: Traces batches that its schedule chooses.
        progress_bar: Show one, on a terminal.
        upload_timeout_s: Seconds that the end of ``fit`` waits for uploads; None waits as long as they take.
        run_options: More arguments of ``Run``: ``takeover``, ``bandwidth_limit`` …

    Raises:
        ConfigurationError: arguments that make no sense together, or a run that would be repeated by accident.
        ArtifactSyncError: the remote cannot be used.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        train_dataloader: Iterable[Any] | None = None,
        eval_dataloader: Iterable[Any] | None = None,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        schedulers: Any = None,
        max_duration: Time | str | int | None = "2ep",
        *,
        run_name: str | None = None,
        remote: str | os.PathLike[str] | None = None,
        local_root: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
        eval_metrics: Mapping[str, Any] | None = None,
        eval_interval: Any = "1ep",
        save_folder: str | None = "{run_name}/checkpoints",
        save_filename: str = "ep{epoch}-ba{batch}-rank{rank}.pt",
        save_interval: Any = "1ep",
        save_num_checkpoints_to_keep: int = -1,
        save_overlap: bool = False,
        save_retention: RetentionPolicy | None = None,
        save_overwrite: bool = False,
        save_on_stop: bool = True,
        autoresume: bool = False,
        load_path: str | os.PathLike[str] | None = None,
        load_weights_only: bool = False,
        load_strict: bool = True,
        load_ignore_keys: Sequence[str] | Callable[[dict[str, Any]], object] | None = None,
        loggers: Any = (),
        callbacks: Callback | Sequence[Callback] = (),
        seed: int | None = None,
        precision: str | None = None,
        device: str | torch.device | None = None,
        device_train_microbatch_size: int | None = None,
        step_schedulers_every_batch: bool = False,
        clip_grad_norm: float | None = None,
        metrics_file: bool = True,
        profiler: Profiler | None = None,
        progress_bar: bool = True,
        upload_timeout_s: float | None = None,
        run_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._stop = StopSignal() if save_on_stop else None
        self._eval_dataloader, self._eval_metrics = eval_dataloader, dict(eval_metrics or {})
        self._eval_schedule = schedule_of(eval_interval)
        self._steps_schedulers_every_batch = step_schedulers_every_batch
        self._upload_timeout_s = upload_timeout_s
        trainable = TrainableModel(model, loss_fn)
        where = torch.device(device) if device is not None else _best_device()
        self._ranks = Ranks(where)
        self._precision = Precision(precision, where)
        if device_train_microbatch_size is not None and device_train_microbatch_size < 1:
            raise ConfigurationError(
                f"device_train_microbatch_size is {device_train_microbatch_size}", hint="it counts samples, from 1"
            )
        uploaders = [each for each in _listed(loggers) if isinstance(each, RemoteUploaderDownloader)]
        destinations = [each for each in _listed(loggers) if not isinstance(each, RemoteUploaderDownloader)]
        for each in destinations:
            if not isinstance(each, LoggerDestination):
                raise ConfigurationError(
                    f"{type(each).__name__} is no logger", hint="derive it from artifactsync.loggers.LoggerDestination"
                )
        if metrics_file and placement().rank == 0 and not any(isinstance(each, MetricsFile) for each in destinations):
            destinations.append(MetricsFile())
        self._model = trainable
        model.to(where)
        trainable.called = self._ranks.wrap(model)
        own = [*([profiler] if profiler is not None else []), *_listed(callbacks)]
        if save_folder is not None and not any(isinstance(callback, CheckpointSaver) for callback in own):
            own.append(
                CheckpointSaver(
                    save_folder,
                    save_filename,
                    save_interval=save_interval,
                    num_checkpoints_to_keep=save_num_checkpoints_to_keep,
                    overlap=save_overlap,
                )
            )
        if progress_bar and self._ranks.is_first:
            own.append(ProgressBar())
        duration = None if max_duration is None else Time.of(max_duration)
        given_optimizers = _listed(optimizers) if optimizers is not None else [_default_optimizer(model)]
        drawn = seed if seed is not None else int(torch.empty((), dtype=torch.int64).random_(2**31).item())
        seed = self._ranks.agreed(drawn)
        train_dataloader = self._ranks.share(train_dataloader, seed)
        loader = None if train_dataloader is None else ResumableLoader(train_dataloader)
        name = agreed_run_name(run_name, uploaders)
        self.run = open_run(
            name,
            remote=remote,
            local_root=local_root,
            storage_options=storage_options,
            uploaders=uploaders,
            may_continue=autoresume or save_overwrite,
            options={"retention": save_retention, **(run_options or {})},
        )
        """The run: its checkpoints, its remote, its status. Local only if there is no remote."""
        self.logger = Logger(destinations)
        """Where metrics go."""
        self.state = State(
            run_name=name,
            model=model,
            optimizers=given_optimizers,
            schedulers=_listed(schedulers),
            device=where,
            max_duration=duration,
            train_dataloader=loader,
            run=self.run,
            seed=seed,
            scaler=self._precision.scaler,
            callbacks=own,
            logger=self.logger,
            profiler=profiler,
        )
        """All that training is now."""
        self._callbacks = CallbackTable(own, self.state, self.logger)
        self._step = TrainStep(
            self.state,
            trainable,
            self._precision,
            self._callbacks,
            microbatch_size=device_train_microbatch_size,
            clip_norm=clip_grad_norm,
            ranks=self._ranks,
        )
        self._batches: Iterator[Any] | None = None  # of the running epoch
        self._loaded: dict[str, Any] | None = None  # whose random state is still to be set
        self._ending = Ending(self.run, uploaders, self._callbacks, self.logger, self._ranks)
        loading = Loading(
            autoresume=autoresume,
            path=load_path,
            weights_only=load_weights_only,
            strict=load_strict,
            ignored=load_ignore_keys,
            storage_options=storage_options,
        )
        try:
            self._begin(loading)
        except BaseException:
            self._ending.abandon()
            raise

    # -- before training ------------------------------------------------------------------------------------------

    def _begin(self, loading: Loading) -> None:
        """Seed, load what is to be loaded, and open the logs."""
        state = self.state
        seed_all((state.seed or 0) + self._ranks.place.rank)
        self.logger.open(context_of_run(self.run))
        self._callbacks.run(Event.INIT)
        loaded = load(loading, state, self.run, self._ranks)
        self._loaded, resumed_at = loaded.saved, loaded.resumed_at
        self.logger.start(resumed_at=resumed_at)
        self.logger.step = state.timestamp.batch
        if resumed_at is None:
            settings = {"seed": state.seed, "max_duration": str(state.max_duration), "precision": self._precision.name}
            self.logger.log_hyperparameters(settings)
        self._callbacks.run(Event.AFTER_LOAD)

    # -- training -------------------------------------------------------------------------------------------------

    def fit(self, duration: Time | str | int | None = None) -> None:
        """Train until ``max_duration``, and wait until everything is durable.

        Args:
            duration: Train for so much more time instead.

        Raises:
            ConfigurationError: nothing to train on, or no duration.
            NotDurableError: training is done, but something could not be made durable.
            RunFencedError: another process took the run over.
        """
        state = self.state
        if duration is not None:
            state.extend(Time.of(duration))
        if state.train_dataloader is None or state.max_duration is None:
            missing = "train_dataloader" if state.train_dataloader is None else "max_duration"
            raise ConfigurationError(f"there is no {missing}", hint=f"pass {missing} to the Trainer")
        if state.max_duration.unit is TimeUnit.DURATION:
            raise ConfigurationError("max_duration cannot be a part of itself", hint='for example "2ep" or "1000ba"')
        try:
            self._eval_schedule.start(state)
            self._callbacks.run(Event.FIT_START)
            with nullcontext() if self._stop is None else self._stop:
                while not state.is_done:
                    self._fit_epoch(state.train_dataloader)
            self._callbacks.run(Event.FIT_END)
            self.logger.flush()
        except BaseException:
            self._ending.fail(self._stop)
            raise
        self.run.wait(self._upload_timeout_s)

    def _fit_epoch(self, loader: ResumableLoader) -> None:
        state, run_event = self.state, self._callbacks.run
        if self._batches is None:
            self._batches = self._start_epoch(loader)
        state.model.train()
        if state.timestamp.batch_in_epoch == 0:
            run_event(Event.EPOCH_START)
        before = time.perf_counter()
        while True:
            run_event(Event.BEFORE_DATALOADER)
            state.batch = next(self._batches, _NO_BATCH)
            if state.batch is _NO_BATCH:
                break
            run_event(Event.AFTER_DATALOADER)
            samples, tokens = count_samples(state.batch), count_tokens(state.batch)
            if not tokens and state.max_duration and state.max_duration.unit is TimeUnit.TOKEN:
                raise ConfigurationError(
                    "max_duration counts tokens, but a batch has none: it would never end",
                    hint="give batches with input_ids, or a max_duration in batches, samples or epochs",
                )
            state.batch = to_device(state.batch, state.device)
            run_event(Event.BATCH_START)
            count = self._ranks.counting(samples, tokens, self._stop)
            self._step.run(samples)
            now = time.perf_counter()
            samples, tokens, duration_s = count(now - before)
            state.timestamp = state.timestamp.to_next_batch(samples=samples, tokens=tokens, duration_s=duration_s)
            before = now
            self._end_batch()
            if self._stop is not None and self._ranks.must_stop(self._stop) and not state.is_done:
                self._ending.stop(self._stop, state)
            if state.is_done and not state.is_epoch_over:
                return  # the next fit goes on in the middle of this epoch
        self._batches = state.batch = None
        if state.timestamp.batch_in_epoch == 0:
            raise ConfigurationError("the train_dataloader gave no batches", hint="check its dataset and drop_last")
        self._end_epoch(loader)

    def _start_epoch(self, loader: ResumableLoader) -> Iterator[Any]:
        """Begin the next epoch, or go on in the one that was resumed."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self.state.restore_rng(loaded)
        batches = loader.start_epoch(self.state.timestamp.epoch)
        if loaded is not None and self.state.timestamp.batch_in_epoch:
            self.state.restore_rng(loaded)
        return batches

    def _end_batch(self) -> None:
        state, run_event = self.state, self._callbacks.run
        if self._steps_schedulers_every_batch:
            for scheduler in state.schedulers:
                scheduler.step()
        self.logger.step = state.timestamp.batch
        self.logger.log_metrics({"loss/train/total": state.loss})
        run_event(Event.BATCH_END)
        self._eval_if_due(Event.BATCH_END)
        run_event(Event.BATCH_CHECKPOINT)

    def _end_epoch(self, loader: ResumableLoader) -> None:
        state, run_event = self.state, self._callbacks.run
        loader.end_epoch()
        if not self._steps_schedulers_every_batch:
            for scheduler in state.schedulers:
                scheduler.step()
        state.timestamp = state.timestamp.to_next_epoch()
        run_event(Event.EPOCH_END)
        self._eval_if_due(Event.EPOCH_END)
        run_event(Event.EPOCH_CHECKPOINT)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def eval(self, eval_dataloader: Iterable[Any] | None = None) -> dict[str, float]:
        """Evaluate the model, and log the results.

        Args:
            eval_dataloader: The data; that of the trainer if None.

        Returns:
            ``loss/eval/total`` and ``metrics/eval/<name>``: means over all samples.

        Raises:
            ConfigurationError: there is no data.
        """
        data = self._eval_dataloader if eval_dataloader is None else eval_dataloader
        if data is None:
            raise ConfigurationError("there is no eval_dataloader", hint="pass one here or to the Trainer")
        self._ranks.share_buffers()
        data = self._ranks.share_evaluation(data, is_sharded=self.state.is_sharded)
        results = evaluate(
            self.state,
            self._model,
            data,
            precision=self._precision,
            callbacks=self._callbacks,
            metrics=self._eval_metrics,
            total=self._ranks.total,
        )
        self.logger.log_metrics(results, self.state.timestamp.batch)
        return results

    def _eval_if_due(self, event: Event) -> None:
        if self._eval_dataloader is not None and self._eval_schedule.is_due(self.state, event):
            self.eval()

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Make everything durable, write down that the run is completed, and release what is held. Idempotent.

        Raises:
            NotDurableError: something could not be made durable.
        """
        self._batches = None  # ends its workers
        self._ending.complete(self._upload_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
        else:
            self._ending.abandon()


def _listed(value: Any) -> list[Any]:
    """One or several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        if placement().world_size > 1:
            torch.cuda.set_device(placement().local_rank % torch.cuda.device_count())
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _default_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    warnings.warn("no optimizers were given: SGD with learning rate 0.1 is used", UserWarning, stacklevel=3)
    return torch.optim.SGD(model.parameters(), lr=0.1)
