"""Behind ``save``: the snapshot in flight, its way to this disk, and what a save does that comes too early.

Owns: when buffers are free again, back-pressure, and which files a checkpoint is made of. Does not own: the copy
(``snapshot``), the bytes (``image``, ``frozen``), the file (``write``), or publication (``run``).

Invariant: of one run, one snapshot is in memory at a time. It is written on a thread of its own, apart from
publication, so an outage of the remote delays commits and never the next save; its upload begins with its first bytes.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.batch import rank
from artifactsync.checkpoint.frozen import NAMES, FrozenWatch, divide, frozen_name
from artifactsync.checkpoint.image import FileImage, Image
from artifactsync.checkpoint.safetensors_file import SafetensorsImage, check_flat
from artifactsync.checkpoint.snapshot import Snapshot, SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import FileWriting, WrittenFile, point_latest
from artifactsync.errors import ConfigurationError
from artifactsync.journal.pending import SupersededError
from artifactsync.run import LocalFile
from artifactsync.transfer.cores import keep_off_training
from artifactsync.transfer.courier import the_courier
from artifactsync.transfer.failures import release_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch.optim import Optimizer

    from artifactsync.run import PendingCheckpoint

BackPressure = Literal["wait", "skip", "newest"]
"""What a save does while the snapshot before it is still on its way to this disk.

``wait``: it waits for that, so that every checkpoint is published. ``skip``: it copies nothing and returns at once; its
pending checkpoint says that it was skipped. ``newest``: the one before is given up, unless that one itself took the
place of another (so that a loop which saves without a break gets some through); its pending checkpoint says so.
"""
POLICIES: tuple[BackPressure, ...] = ("wait", "skip", "newest")


class SkippedError(SupersededError):
    """A checkpoint was left out because of the run's back-pressure policy; no failure."""


@dataclass(kw_only=True)
class Flight:
    """One snapshot on its way to the disk."""

    local: Path
    """The file."""
    path: str
    """The same below the run's folder."""
    name: str
    """What the checkpoint is called."""
    record: Callable[[Sequence[LocalFile]], None]
    """Told of the files once they are whole."""
    is_safetensors: bool = False
    """Whether the file is of that format, and not of torch's own."""
    splits: bool = True
    """Whether weights that do not change may go to a file of their own."""
    has_replaced: bool = False
    """Whether another was given up for it."""
    files: Future[list[LocalFile]] = field(default_factory=Future)
    """The checkpoint's files, as soon as an upload can begin."""
    landed: Future[None] = field(default_factory=Future)
    """Settled when the snapshot's memory is free."""
    reason: SkippedError | None = None
    """Why it was given up."""
    writing: FileWriting | None = None
    pending: PendingCheckpoint | None = None

    def give_up(self) -> None:
        """Land as soon as possible: a newer one goes first."""
        self.reason = SkippedError(
            f"checkpoint {self.name!r} was given up for a newer one before its file was whole",
            hint='save less often, or with backpressure="wait"',
        )
        if self.writing is not None:
            self.writing.give_up(self.reason)

    def check(self) -> None:
        """Do nothing unless it was given up.

        Raises:
            SkippedError: it was.
        """
        if self.reason is not None:
            raise self.reason


class StateSaver:
    """The buffers of one run, and the snapshot in flight."""

    def __init__(self) -> None:
        self._buffers = SnapshotBuffers()
        self._lock = threading.Lock()
        self._flight: Flight | None = None
        self._snapshot: Snapshot | None = None
        self._watch = FrozenWatch()
        self._last_sha256 = ""
        self._frozen: dict[str, LocalFile] = {}

    def save(
        self,
        state: Any,
        flight: Flight,
        link: Path,
        submit: Callable[[Flight], PendingCheckpoint],
        *,
        policy: BackPressure = "wait",
        overlap: Sequence[Optimizer] = (),
    ) -> PendingCheckpoint | None:
        """Take a snapshot, and write and publish it behind.

        Args:
            state: What to save.
            flight: Where to.
            link: The advisory symlink to the newest file.
            submit: Enqueues the publication.
            policy: What to do if one is in flight.
            overlap: Optimizers whose tensors are copied during the next forward and backward.

        Returns:
            None if it was skipped.

        Raises:
            ConfigurationError: the state cannot be saved, or there is no such policy.
        """
        if policy not in POLICIES:
            raise ConfigurationError(
                f"there is no back-pressure policy {policy!r}", hint=f"one of {', '.join(POLICIES)}"
            )
        with self._lock:
            before = self._flight
            if before is not None and not before.landed.done():
                if policy == "skip":
                    return None
                if policy == "newest" and not before.has_replaced:
                    before.give_up()
                    flight.has_replaced = True
                with the_courier().hurried():
                    wait([before.landed])  # its error, if any, is in its own pending checkpoint
            self._flight = None
            snapshot = self._snapshot = take_snapshot(state, self._buffers, overlap=overlap)
            try:
                if flight.is_safetensors:
                    check_flat(snapshot.state)
                pending = flight.pending = submit(flight)
            except BaseException as error:
                snapshot.drop()
                flight.files.set_exception(error)  # should publication have taken it, it must not wait for a file
                raise
            self._flight = flight
        # Not a daemon: an interpreter that ends waits until the file is whole.
        thread = threading.Thread(target=self._land, args=(snapshot, flight, link), name="artifactsync-write")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or the system has no thread left
            self._land(snapshot, flight, link)
        return pending

    def wait(self) -> None:
        """Wait until the snapshot in flight is on this disk, or failed to be."""
        flight = self._flight
        if flight is not None:
            with the_courier().hurried():
                wait([flight.landed])

    def prepare(self, state: Any) -> None:
        """Have the memory for snapshots of ``state``, touched, before the first one needs it.

        Raises:
            ConfigurationError: the state cannot be saved.
        """
        with self._lock:
            self.wait()
            self._buffers.prepare(state)

    def settle(self) -> None:
        """Hold the caller until all of the last state is copied, so that it may change anything."""
        if (snapshot := self._snapshot) is not None:
            snapshot.settle()

    def _land(self, snapshot: Snapshot, flight: Flight, link: Path) -> None:
        try:
            keep_off_training()
            snapshot.wait()
            self._write(snapshot, flight, link)
        except BaseException as error:  # noqa: BLE001  (the pending checkpoint carries it)
            release_frames(error)
            if not flight.files.done():
                flight.files.set_exception(error)
        finally:
            flight.writing = None
            flight.record = _nothing  # it knows the run, which must not live as long as what is kept for it
            with suppress(Exception):  # a device that fails: nobody wants the copy any more
                snapshot.drop()
            flight.landed.set_result(None)

    def _write(self, snapshot: Snapshot, flight: Flight, link: Path) -> None:
        state = snapshot.state
        image: Image = SafetensorsImage(state) if flight.is_safetensors else FileImage(state)
        groups = self._watch.look(state, image)
        flight.check()
        beside: list[LocalFile] = []
        is_twin = self._watch.is_unchanged and image.sha256() == self._last_sha256
        if groups and flight.splits and not is_twin and not flight.is_safetensors:
            main, parts = divide(state, groups)
            beside = [self._keep(part, flight) for part in parts]
            image = FileImage({**main, NAMES: [file.local.name for file in beside]})

        def when_whole(written: WrittenFile) -> None:
            if flight.pending is not None:
                flight.pending.timing.written()
            own = LocalFile(path=flight.path, local=written.path, size_bytes=written.size_bytes, sha256=written.sha256)
            flight.record([own, *beside])
            point_latest(link, written.path)
            self._last_sha256 = written.sha256

        writing = flight.writing = FileWriting(image, flight.local, hashes_beside=not is_twin)
        if flight.reason is not None:
            writing.give_up(flight.reason)
        source = writing.source
        own = LocalFile(path=flight.path, local=flight.local, size_bytes=image.size_bytes, writing=source)
        if is_twin:  # it is not sent, if the first one was: its hash comes first
            written = writing.run(when_whole, confirm=snapshot.confirm)
            own = LocalFile(path=flight.path, local=flight.local, size_bytes=image.size_bytes, sha256=written.sha256)
            flight.files.set_result([own, *beside])
        else:
            flight.files.set_result([own, *beside])
            writing.run(when_whole, confirm=snapshot.confirm)

    def _keep(self, part: dict[Any, Any], flight: Flight) -> LocalFile:
        """Have a file of unchanged weights on this disk, written once."""
        image = FileImage(part)
        sha256 = image.sha256()
        local = flight.local.with_name(frozen_name(rank(), sha256))
        known = self._frozen.get(str(local))
        if known is None or not _is_there(known):
            writing = FileWriting(image, local)
            try:
                writing.run()
            finally:
                writing.source.close()
            folder = flight.path.rpartition("/")[0]
            path = f"{folder}/{local.name}" if folder else local.name
            known = LocalFile(path=path, local=local, size_bytes=image.size_bytes, sha256=sha256)
            self._frozen = {str(local): known, **dict(list(self._frozen.items())[:7])}
        return known


def _nothing(_: Sequence[LocalFile]) -> None:
    """Told of the files of a flight that has landed."""


def _is_there(file: LocalFile) -> bool:
    with suppress(OSError):
        return file.local.stat().st_size == file.size_bytes
    return False
