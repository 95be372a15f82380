"""Part records: what each rank contributes to one checkpoint that rank 0 commits.

Every rank uploads its own files, then writes one create-once record that names them with size and sha256, below
``<run>/.artifactsync/parts/``. Rank 0 gathers the records of all ranks, asks the store for every file, and commits.
Nothing but the store is between the ranks: no collective runs inside I/O, so a rank that dies hangs nobody.

Owns: the records and the gathering. Does not own: the uploads (``transfer``), the commit (``attempt``).

Invariant: a commit is made only from one record of every rank, all of this attempt and this gathering, and only after
the store confirmed each file. A rank that fails or never arrives ends the gathering with an error that names it, and
the previous checkpoint stays the newest.
"""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    DamagedError,
    MissingBytesError,
    NotDurableError,
    ObjectNotFoundError,
    WaitTimeoutError,
)
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.untrusted_json import read_json
from artifactsync.naming.layout import check_relative
from artifactsync.stores.create_once import create_once

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.journal.publication import Label
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.clock import Clock

FORMAT = 1
"""Version of the part records."""

_FIRST_LOOK_S = 0.05
_SLOWEST_LOOK_S = 2.0
_THREADS = 16
_NAMED_RANKS = 8  # in a message
_SHOWN_CHARS = 500


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """One checkpoint that several ranks write together. Equal on every rank; rank 0 makes it and tells the others."""

    attempt: int
    """Number of the attempt."""
    claim_id: str
    """``write_id`` of its claim: an attempt of the same number in another lineage is another one."""
    number: int
    """Which gathering of the attempt: 1, 2, 3 …; every rank counts its saves."""
    name: str
    """Name of the checkpoint."""
    step: int
    """Optimizer steps done."""
    world_size: int
    """How many ranks contribute."""

    def prefix(self, layout: RunLayout) -> str:
        """Prefix of the part records' keys."""
        return f"{layout.parts}{self.attempt:06d}-{self.number:06d}-{quote(self.name, safe='')[:100]}/"

    def key(self, layout: RunLayout, rank: int) -> str:
        """Key of one rank's part record."""
        return f"{self.prefix(layout)}{rank:06d}.json"


def announce_part(store: Store, layout: RunLayout, gathering: Gathering, *, rank: int, keys: Sequence[str]) -> str:
    """Say which keys a rank is about to write, so that readers do not take them for artifacts before the commit.

    Args:
        store: The remote.
        layout: The run's keys.
        gathering: Which checkpoint.
        rank: Who.
        keys: Keys below the remote.

    Returns:
        Key of the intent; it is deleted after the commit.
    """
    intent = layout.part_intent(gathering.attempt, gathering.number, rank)
    store.put(intent, json.dumps({"keys": [key.partition("/")[2] for key in keys]}).encode())
    return intent


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank delivered."""

    files: tuple[CheckpointFile, ...]
    """Its files."""
    detail: Any = None
    """What else it says to rank 0; from the remote, so hostile."""


def deliver_part(
    store: Store,
    layout: RunLayout,
    gathering: Gathering,
    *,
    rank: int,
    files: Sequence[CheckpointFile],
    detail: Any = None,
) -> None:
    """Say that a rank's files are durable. Called once by each rank, after its uploads.

    Args:
        store: The remote.
        layout: The run's keys.
        gathering: Which checkpoint.
        rank: Who.
        files: What it wrote.
        detail: Something more for rank 0, as JSON.

    Raises:
        AlreadyExistsError: this rank has delivered something else already: two processes have one rank.
    """
    _write(
        store,
        layout,
        gathering,
        rank,
        {"files": [{**file.__dict__, "key": file.key.partition("/")[2]} for file in files], "detail": detail},
    )


def deliver_failure(store: Store, layout: RunLayout, gathering: Gathering, *, rank: int, reason: str) -> None:
    """Say that a rank has failed, so that rank 0 need not wait until the time is up."""
    _write(store, layout, gathering, rank, {"failure": reason})


def tell_outcome(store: Store, layout: RunLayout, gathering: Gathering, *, reason: str) -> None:
    """Rank 0: say that nothing will be committed, so that the other ranks need not wait until their time is up."""
    with contextlib.suppress(ArtifactSyncError):
        store.put(gathering.key(layout, 0), (json.dumps({"failure": reason}) + "\n").encode())


def read_outcome(store: Store, layout: RunLayout, gathering: Gathering) -> str | None:
    """Why rank 0 committed nothing, if it has said so."""
    try:
        return str(read_json(store.get(gathering.key(layout, 0)))["failure"])[:_SHOWN_CHARS]
    except (ObjectNotFoundError, ValueError, KeyError, TypeError):
        return None


def gather_parts(
    store: Store,
    layout: RunLayout,
    gathering: Gathering,
    *,
    ranks: Sequence[int] | None = None,
    timeout_s: float,
    attempt: Attempt | None = None,
    clock: Clock = time,
) -> list[CheckpointFile]:
    """Wait for the part of every rank, and return all their files, sorted by path; see ``gather``.

    Raises:
        ArtifactSyncError: as ``gather``.
    """
    parts = gather(store, layout, gathering, ranks=ranks, timeout_s=timeout_s, attempt=attempt, clock=clock)
    return merged({rank: part.files for rank, part in parts.items()}, store.url)


def gather(
    store: Store,
    layout: RunLayout,
    gathering: Gathering,
    *,
    ranks: Sequence[int] | None = None,
    timeout_s: float,
    attempt: Attempt | None = None,
    clock: Clock = time,
) -> dict[int, Part]:
    """Wait for the part of every rank.

    Args:
        store: The remote.
        layout: The run's keys.
        gathering: Which checkpoint.
        ranks: Whose parts; all but rank 0's if None, which needs none: it commits.
        timeout_s: Seconds to wait, on this process's monotonic clock.
        attempt: Asked between looks whether it still owns the run.
        clock: The ``time`` module, or a ``FakeClock``.

    Raises:
        WaitTimeoutError: not all have arrived in time; names the ranks.
        NotDurableError: a rank says that it failed.
        DamagedError: a part is malformed, or of another gathering, or two ranks have the same path.
        RunFencedError: the attempt has lost the run.
    """
    waited_for = set(range(1, gathering.world_size) if ranks is None else ranks)
    parts: dict[int, Part] = {}
    give_up_at = clock.monotonic() + timeout_s
    pause_s = _FIRST_LOOK_S
    while True:
        for rank in sorted(_arrived(store, layout, gathering) & (waited_for - parts.keys())):
            parts[rank] = _read(store, layout, gathering, rank)
        if attempt is not None:
            attempt.check()
        if not waited_for - parts.keys():
            return parts
        left_s = give_up_at - clock.monotonic()
        if left_s <= 0:
            raise _too_late(gathering, waited_for - parts.keys(), timeout_s, url=f"{store.url}/{layout.run_name}")
        clock.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, _SLOWEST_LOOK_S)


def commit_parts(
    store: Store,
    layout: RunLayout,
    gathering: Gathering,
    *,
    attempt: Attempt,
    label: Label,
    own: Sequence[CheckpointFile],
    timeout_s: float,
    clock: Clock = time,
) -> Checkpoint:
    """Rank 0: gather the other ranks' files, have the store confirm every one, and commit all as one checkpoint.

    Args:
        store: The remote.
        layout: The run's keys.
        gathering: Which checkpoint.
        attempt: The attempt that this process holds.
        label: What the checkpoint is called.
        own: Rank 0's files, durable already.
        timeout_s: Seconds to wait for the other ranks.
        clock: The ``time`` module, or a ``FakeClock``.

    Raises:
        ConfigurationError: the gathering is of another attempt.
        MissingBytesError: a file that a rank named is not there, or has another size; nothing became visible.
        ArtifactSyncError: as ``gather_parts``; nothing became visible.
    """
    if gathering.attempt != attempt.number or gathering.claim_id != attempt.claim_id:
        raise ConfigurationError(
            f"checkpoint {gathering.name!r} was begun in attempt {gathering.attempt}, and this is {attempt.number}",
            hint="begin every save with a Gathering of the open run",
        )
    others = gather_parts(store, layout, gathering, timeout_s=timeout_s, attempt=attempt, clock=clock)
    files = merged({0: own, 1: others}, store.url)
    confirm(store, files)
    checkpoint = attempt.commit(
        name=label.name, step=label.step, epoch=label.epoch, batch=label.batch, metrics=label.metrics, files=files
    )
    clean_up(store, layout, gathering)
    return checkpoint


def _write(store: Store, layout: RunLayout, gathering: Gathering, rank: int, what: dict[str, Any]) -> None:
    if not 0 <= rank < gathering.world_size:
        raise ConfigurationError(f"rank {rank} is not below the world size {gathering.world_size}")
    record = {"format": FORMAT, "rank": rank, **gathering.__dict__, **what}
    key = gathering.key(layout, rank)
    try:
        create_once(store, key, (json.dumps(record, sort_keys=True) + "\n").encode())
    except AlreadyExistsError as error:
        raise AlreadyExistsError(
            f"rank {rank} has delivered another part of checkpoint {gathering.name!r} already",
            hint="give each process a rank of its own, and count the saves",
            url=error.url,
        ) from error


def _arrived(store: Store, layout: RunLayout, gathering: Gathering) -> set[int]:
    prefix = gathering.prefix(layout)
    names = (info.key[len(prefix) :].removesuffix(".json") for info in store.list(prefix))
    return {int(name) for name in names if name.isascii() and name.isdigit()}


def _read(store: Store, layout: RunLayout, gathering: Gathering, rank: int) -> Part:
    """Read one rank's part, whose contents may be hostile."""
    key = gathering.key(layout, rank)
    url = f"{store.url}/{key}"
    try:
        record = read_json(store.get(key))
        expected = {"format": FORMAT, "rank": rank, **gathering.__dict__}
        strange = [name for name, value in expected.items() if record[name] != value]
        if strange:
            raise DamagedError(
                f"rank {rank}'s part of checkpoint {gathering.name!r} is of another save: {strange[0]} is "
                f"{record[strange[0]]!r} instead of {expected[strange[0]]!r}",
                hint="every rank must save the same checkpoints in the same order",
                url=url,
            )
        if "failure" in record:
            raise NotDurableError(
                f"rank {rank} could not write its part of checkpoint {gathering.name!r}: {record['failure']}",
                hint="the previous checkpoint is still the newest",
                url=url,
            )
        files = tuple(
            CheckpointFile(
                path=check_relative(file["path"]),
                key=layout.root + check_relative(file["key"]),
                size=int(file["size"]),
                sha256=str(file["sha256"]),
            )
            for file in record["files"]
        )
        return Part(files=files, detail=record.get("detail"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"rank {rank}'s part record is malformed ({error})", url=url) from error


def merged(parts: Mapping[int, Sequence[CheckpointFile]], url: str) -> list[CheckpointFile]:
    """The files of all ranks, sorted by path.

    Raises:
        DamagedError: two ranks have the same path.
    """
    files = [file for rank in sorted(parts) for file in parts[rank]]
    paths = [file.path for file in files]
    if twice := {path for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else set():
        raise DamagedError(
            f"two ranks have a file {min(twice)!r} in one checkpoint", hint="put {rank} into the file's name", url=url
        )
    return sorted(files, key=lambda file: file.path)


def _too_late(gathering: Gathering, missing: set[int], timeout_s: float, *, url: str) -> WaitTimeoutError:
    named = ", ".join(str(rank) for rank in sorted(missing)[:_NAMED_RANKS])
    more = f" and {len(missing) - _NAMED_RANKS} more" if len(missing) > _NAMED_RANKS else ""
    return WaitTimeoutError(
        f"rank {named}{more} of {gathering.world_size} did not deliver its part of checkpoint {gathering.name!r} "
        f"within {timeout_s:g} s",
        hint="see that rank's log; the previous checkpoint is still the newest",
        url=url,
    )


def confirm(store: Store, files: Sequence[CheckpointFile]) -> None:
    """Ask the store for the size of every file.

    Raises:
        MissingBytesError: one is not there, or has another size.
    """

    def check(file: CheckpointFile) -> None:
        url = f"{store.url}/{file.key}"
        try:
            size = store.head(file.key).size_bytes
        except ObjectNotFoundError as error:
            raise MissingBytesError(f"{file.key} was delivered, and is not there", url=url) from error
        if size != file.size:
            raise MissingBytesError(f"{file.key} has {size} bytes on the remote instead of {file.size}", url=url)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="artifactsync-verify") as pool:
        list(pool.map(check, files))


def clean_up(store: Store, layout: RunLayout, gathering: Gathering) -> None:
    """Delete what only this gathering needed. Failing is harmless: it is small, and hides committed keys alone."""
    with contextlib.suppress(ArtifactSyncError):
        ranks = range(gathering.world_size)
        store.delete([gathering.key(layout, rank) for rank in ranks])
        store.delete([layout.part_intent(gathering.attempt, gathering.number, rank) for rank in ranks])
