"""``Trainer``: a training loop small enough to read in one sitting, exact enough to be interrupted anywhere.

Owns: what users call, and the order: load, train, evaluate, end. Does not own: the loop itself (``loop``), what a step
does (``step``), where data comes from (``dataloader``), what is loaded first (``loading``), what is saved (``state``),
how it becomes durable (``run``), or how the end is gone about (``ending``).

Invariant: a run that was killed and resumed any number of times ends with the same bytes as one that never was.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.batch import StopSignal
from artifactsync.checkpoint.rng import seed_all
from artifactsync.errors import ConfigurationError
from artifactsync.loggers.logger import Logger
from artifactsync.loggers.run_context import context_of_run
from artifactsync.training.callback import Callback, CallbackTable
from artifactsync.training.callbacks import CheckpointSaver, ProgressBar
from artifactsync.training.dataloader import ResumableLoader
from artifactsync.training.ending import Ending
from artifactsync.training.evaluation import evaluate
from artifactsync.training.event import Event
from artifactsync.training.loading import Loading, load
from artifactsync.training.loop import Loop
from artifactsync.training.model import TrainableModel
from artifactsync.training.parts import best_device, default_optimizer, listed, loggers_of
from artifactsync.training.precision import Precision
from artifactsync.training.ranks import Ranks
from artifactsync.training.run_access import agreed_run_name, open_run
from artifactsync.training.schedule import schedule_of
from artifactsync.training.state import State
from artifactsync.training.step import TrainStep
from artifactsync.training.time import Time, TimeUnit

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Self

    from artifactsync.run import RetentionPolicy
    from artifactsync.training.profiler import Profiler


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
        self._upload_timeout_s = upload_timeout_s
        trainable = TrainableModel(model, loss_fn)
        where = torch.device(device) if device is not None else best_device()
        self._ranks = Ranks(where)
        self._precision = Precision(precision, where)
        if device_train_microbatch_size is not None and device_train_microbatch_size < 1:
            raise ConfigurationError(
                f"device_train_microbatch_size is {device_train_microbatch_size}", hint="it counts samples, from 1"
            )
        uploaders, destinations = loggers_of(loggers, metrics_file=metrics_file)
        self._model = trainable
        model.to(where)
        trainable.called = self._ranks.wrap(model)
        own = [*listed(profiler), *listed(callbacks)]
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
        given_optimizers = listed(optimizers) if optimizers is not None else [default_optimizer(model)]
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
            schedulers=listed(schedulers),
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
        step = TrainStep(
            self.state,
            trainable,
            self._precision,
            self._callbacks,
            microbatch_size=device_train_microbatch_size,
            clip_norm=clip_grad_norm,
            ranks=self._ranks,
        )
        self._ending = Ending(self.run, uploaders, self._callbacks, self.logger, self._ranks)
        self._loop = Loop(
            self.state,
            step,
            self._callbacks,
            self._ranks,
            self._ending,
            stop=self._stop,
            evaluate_if_due=self._eval_if_due,
            steps_schedulers_every_batch=step_schedulers_every_batch,
        )
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
        self._loop.go_on_from(loaded.saved)
        self.logger.start(resumed_at=loaded.resumed_at)
        self.logger.step = state.timestamp.batch
        if loaded.resumed_at is None:
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
                    self._loop.run_epoch(state.train_dataloader)
            self._callbacks.run(Event.FIT_END)
            self.logger.flush()
        except BaseException:
            self._ending.fail(self._stop)
            raise
        self.run.wait(self._upload_timeout_s)

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
        self._loop.close()
        self._ending.complete(self._upload_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
        else:
            self._ending.abandon()
