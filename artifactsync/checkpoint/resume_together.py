"""Resuming by several ranks at once, or by one what several have saved.

Owns: which checkpoint all ranks take, and which of its files are this rank's. Does not own: what is in shards
(``sharding``), fetching (``run``), or how ranks agree (``group``).

Invariant: all ranks resume one checkpoint, or none does.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.checkpoint.frozen import is_frozen_name
from artifactsync.checkpoint.load import load_file, restore
from artifactsync.checkpoint.load_part import load_only
from artifactsync.checkpoint.resume import Resumed
from artifactsync.checkpoint.rng import RngState, seed_all
from artifactsync.checkpoint.selecting import check_found, select
from artifactsync.checkpoint.shard_metadata import NAME
from artifactsync.checkpoint.sharding import is_sharded, load_shards, portable, put_back
from artifactsync.checkpoint.shards import ShardReader
from artifactsync.errors import CheckpointNotFoundError, ConfigurationError, DamagedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from artifactsync.run import Checkpoint, Run

_RANK_FILE = re.compile(r"(.*?)-?rank([0-9]+)\.pt")
_READ_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Loaded:
    """One checkpoint, as this rank takes it."""

    run_name: str
    checkpoint: Checkpoint
    state: Any
    """The plain part: rank 0's, with what this rank has for itself."""
    sharded: frozenset[str]
    """Names of the entries that were loaded into the live objects given."""
    saved_by: int
    """How many ranks saved it."""
    left_out: frozenset[str] = frozenset()
    """Names of entries that ranks had for themselves, and that fit nobody in another number of ranks."""
    place: tuple[int, int] = (0, 1)
    """This rank, and of how many."""

    def restore(self, state: Any, *, strict: bool) -> None:
        """Put the plain part into the live objects."""
        _restore(state, self, strict=strict)

    def resumed(self, passed_over: tuple[str, ...]) -> Resumed:
        """As the caller of a resume sees it."""
        return Resumed(
            checkpoint=self.checkpoint,
            state=self.state,
            saved_by=self.saved_by,
            loaded=self.sharded,
            passed_over=passed_over,
        )


def resume_together(
    run: Run,
    state: Any = None,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    live: Mapping[str, Any] | None = None,
    per_rank: Collection[str] = (),
    patterns: Sequence[str] | None = None,
) -> Resumed | None:
    """Load the newest whole checkpoint; every rank calls it, and all of them take the same one.

    Args:
        run: A run that this rank opened together with the others.
        state: Objects to load in place; None only reads.
        map_location: As ``torch.load`` takes it, for the plain part.
        strict: Whether everything in ``state`` must be in the checkpoint.
        live: The objects that shards are loaded into, by name; those of ``state`` if None.
        per_rank: As for ``save_together``.
        patterns: What is loaded, as for ``selecting.select``; None is everything.

    Raises:
        DamagedError: no checkpoint is whole.
        ConfigurationError: it does not fit ``state``.
    """
    channel = None if run.launch is None else run.launch.channel
    candidates = _candidates(run)
    passed_over: list[str] = []
    damage: DamagedError | None = None
    while True:
        choice = candidates[0].seq if candidates else 0
        if channel is not None:
            choice = channel.choose("resume", choice, timeout_s=_READ_LIMIT_S)
        checkpoint = next((each for each in candidates if each.seq == choice), None)
        if checkpoint is None:
            if damage is not None:
                raise damage
            return None
        trouble = ""
        try:
            loaded = load_checkpoint(
                run, checkpoint, state if live is None else live, map_location=map_location, strict=strict,
                per_rank=per_rank, patterns=patterns,
            )  # fmt: skip
        except DamagedError as error:
            damage, trouble = error, str(error)
        said = [trouble]
        if channel is not None:
            said = channel.collect("reading the checkpoint", trouble, timeout_s=_READ_LIMIT_S)
        if not any(said):
            break
        damage = damage or DamagedError(next(filter(None, said)), hint="another rank could not read it")
        warnings.warn(
            f"checkpoint {checkpoint.name!r} of run {run.name!r} is damaged and was passed over: "
            f"{next(filter(None, said))}",
            RuntimeWarning,
            stacklevel=3,
        )
        if channel is None:
            raise damage  # the other ranks cannot know of it
        passed_over.append(checkpoint.name)
        candidates = [each for each in candidates if each.seq != choice]
    if state is not None:
        loaded.restore(state, strict=strict)
    return loaded.resumed(tuple(passed_over))


def _candidates(run: Run) -> list[Checkpoint]:
    """Newest first; without a channel only what was committed before the claim, which all ranks see alike."""
    found = run.checkpoints()
    launch, attempt = run.launch, run._attempt  # noqa: SLF001  (the claim is the ranks' common ground)
    if launch is not None and launch.channel is None and attempt is not None:
        found = [each for each in found if each.seq < attempt.claim_seq]
    return sorted(found, key=lambda c: (c.attempt, c.step, c.seq), reverse=True)


def load_checkpoint(
    run: Run,
    checkpoint: Checkpoint,
    live: Mapping[str, Any] | None = None,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    per_rank: Collection[str] = (),
    patterns: Sequence[str] | None = None,
) -> Loaded:
    """Load what is this rank's of a checkpoint, whoever saved it.

    With ``patterns``, only their part of the plain files comes, and of the shards those whole files that hold some of
    it.

    Raises:
        DamagedError: bytes are not those that were committed.
        CheckpointNotFoundError: it is no checkpoint of a training state.
    """
    place = None if run.launch is None else run.launch.place
    rank, size = (0, 1) if place is None else (place.rank, place.world_size)
    ranks = {int(found[2]): f.path for f in checkpoint.files if (found := _RANK_FILE.fullmatch(f.path))}
    if 0 not in ranks:
        raise CheckpointNotFoundError(
            f"checkpoint {checkpoint.name!r} has no file of rank 0", hint="use Run.pull, and load it yourself"
        )
    wanted = [ranks[0]] + ([ranks[rank]] if rank and rank in ranks else [])
    if patterns is None:
        beside = [file.path for file in checkpoint.files if is_frozen_name(file.path.rpartition("/")[2])]
        local = run.ensure_local(checkpoint, paths=wanted + beside)
        read = [load_file(local[path], map_location=map_location) for path in wanted]
    else:
        readers = {ranks[0]: 1 if place is None else place.local_world_size}
        read = [
            load_only(
                run, checkpoint, path, patterns, map_location=map_location, strict=False, readers=readers.get(path, 1)
            )
            for path in wanted
        ]
    saved, own = read[0], read[1] if len(read) > 1 else {}
    left_out: frozenset[str] = frozenset()
    if isinstance(saved, dict):
        saved = {**saved, **own}
        if len(ranks) != size:  # what ranks had for themselves fits nobody now
            left_out = frozenset(per_rank) | {
                key for key, value in (live.items() if isinstance(live, dict) else ()) if isinstance(value, RngState)
            }
            saved = {key: value for key, value in saved.items() if key not in left_out}
    sharded = _load_shards(run, checkpoint, saved, live, strict=strict, patterns=patterns)
    return Loaded(run.name, checkpoint, saved, sharded, len(ranks), left_out, (rank, size))


def _load_shards(
    run: Run,
    checkpoint: Checkpoint,
    saved: Any,
    live: Mapping[str, Any] | None,
    *,
    strict: bool,
    patterns: Sequence[str] | None,
) -> frozenset[str]:
    metadata = next((file.path for file in checkpoint.files if file.path.endswith(f"/{NAME}")), None)
    if metadata is None:
        if patterns is not None:
            check_found(saved, patterns)
        return frozenset()
    folder = metadata.removesuffix(f"/{NAME}")
    run.ensure_local(checkpoint, paths=[metadata])
    shards = {file.path.removeprefix(f"{folder}/"): file for file in checkpoint.files if file.path.endswith(".distcp")}

    def ensure(names: set[str]) -> None:
        run.ensure_local(checkpoint, paths=[shards[name].path for name in names])

    reader = ShardReader(
        run.local_dir.joinpath(*folder.split("/")),
        ensure=ensure,
        sizes={name: file.size for name, file in shards.items()},
    )
    names = {str(path[0]) for path in (reader.read_metadata().planner_data or {}).values()}
    if patterns is not None:
        check_found({**saved, **dict.fromkeys(names)}, patterns)
        names = set(select(dict.fromkeys(names), patterns, strict=False))
    if live is None:
        spread = load_shards(reader, None)
        saved.update(spread if patterns is None else {name: spread[name] for name in names})
        return frozenset()
    objects = {name: live[name] for name in names if name in live}
    if strict and (missing := names - objects.keys()):
        raise ConfigurationError(
            f"the checkpoint has shards of {min(missing)!r}, and nothing of that name to load them into",
            hint="give the same objects that were saved, or pass strict=False",
        )
    put_back(objects, load_shards(reader, portable(objects, is_for_saving=False), strict=strict))
    return frozenset(objects)


def _restore(state: Any, loaded: Loaded, *, strict: bool) -> None:
    if not isinstance(state, dict):
        restore(state, loaded.state, strict=strict)
        return
    plain = {key: value for key, value in state.items() if key not in loaded.sharded}
    if any(is_sharded(value) for value in plain.values()):
        raise ConfigurationError(
            "the checkpoint was saved whole, and this state is sharded",
            hint="load it into the model before it is sharded, or into an unsharded one",
        )
    rest = {key: value for key, value in plain.items() if key not in loaded.left_out}
    restore(rest, loaded.state, strict=strict)
    state.update(rest)
    if any(isinstance(plain.get(key), RngState) for key in loaded.left_out):
        reseed(loaded.run_name, loaded.checkpoint.step, *loaded.place)


def reseed(run_name: str, step: int, rank: int, world_size: int) -> None:
    """Random state for a rank of another number of ranks than saved: reproducible, and different on every rank."""
    seed_all(int(hashlib.sha256(f"{run_name}/{step}/{rank}/{world_size}".encode()).hexdigest()[:8], 16))
