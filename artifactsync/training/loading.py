"""What a trainer begins with: the newest checkpoint of its run, or a file, or nothing.

Owns: the order of these, and putting what was read into the state, also onto another number of ranks. Does not own:
reading (``checkpoint``, ``load_path``), or what is left out of a file (``load_selection``).

Invariant: what is resumed is resumed as a whole; only a file given by path is loaded in part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.checkpoint.resume import resume_state
from artifactsync.errors import ConfigurationError
from artifactsync.naming.layout import HOUSE_FOLDER
from artifactsync.training.load_path import read_checkpoint
from artifactsync.training.load_selection import without_ignored

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.run import Run
    from artifactsync.training.ranks import Ranks
    from artifactsync.training.state import State


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What is to be loaded."""

    autoresume: bool
    """Continue the run if it has a checkpoint."""
    path: str | os.PathLike[str] | None
    """Else this checkpoint file."""
    weights_only: bool
    """Of the file, the model alone."""
    strict: bool
    """Whether the model's keys must be those of the checkpoint."""
    ignored: Sequence[str] | Callable[[dict[str, Any]], object] | None
    """What of the file is left alone."""
    storage_options: Mapping[str, Any] | None
    """For the file's remote."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was loaded."""

    resumed_at: int | None = None
    """The batch that the run goes on from; None if it begins."""
    saved: dict[str, Any] | None = None
    """The state whose random numbers are to be set when the first epoch begins."""


def load(loading: Loading, state: State, run: Run | LocalRun, ranks: Ranks) -> Loaded:
    """Load what there is into ``state``.

    Raises:
        ArtifactSyncError: it cannot be read, or does not fit.
    """
    loaded = _resumed(run, state, ranks, strict=loading.strict) if loading.autoresume else None
    if loaded is not None:
        return loaded
    if loading.path is None:
        return Loaded()
    if str(loading.path).endswith(".safetensors") and not loading.weights_only:
        raise ConfigurationError(
            f"{loading.path} holds weights alone, and no state of training", hint="pass load_weights_only=True"
        )
    # What is ignored may be anything of the file, and is named by what is there.
    is_model_alone = loading.weights_only and loading.ignored is None
    saved = read_checkpoint(
        str(loading.path),
        run_name=state.run_name,
        storage_options=loading.storage_options,
        map_location="cpu",
        folder=run.local_dir / HOUSE_FOLDER / "loaded",
        only=("model",) if is_model_alone else None,
    )
    saved = without_ignored(saved, loading.ignored, state)
    if loading.weights_only:
        state.load_model(saved, strict=loading.strict)
        return Loaded()
    state.load_state_dict({**saved, "loggers": {}}, strict=loading.strict)
    return Loaded(saved=saved)


def _resumed(run: Run | LocalRun, state: State, ranks: Ranks, *, strict: bool) -> Loaded | None:
    """Continue the run, if it has a checkpoint."""
    resumed = resume_state(
        run,
        map_location="cpu",
        strict=strict,
        live={"model": state.model, "optimizers": state.optimizers},
        per_rank=("rng",) if ranks.is_first else ("rng", "loggers"),
    )
    if resumed is None:
        return None
    saved, is_whole = resumed.state, "rng" in resumed.state
    if is_whole:
        state.load_state_dict(saved, strict=strict)
    else:  # another number of ranks saved it
        state.load_state_dict({**saved, "train_dataloader": None}, strict=strict)
        from artifactsync.checkpoint.resume_together import reseed  # noqa: PLC0415  (torch.distributed takes long)

        reseed(state.run_name, state.timestamp.batch, ranks.place.rank, ranks.place.world_size)
        if state.train_dataloader is not None:
            state.train_dataloader.load_position(
                saved["train_dataloader"], state.timestamp.sample_in_epoch, world_size=ranks.place.world_size
            )
    if ranks.sampler is not None:
        ranks.sampler.seed = state.seed or 0
    return Loaded(resumed_at=state.timestamp.batch, saved=saved if is_whole else None)
