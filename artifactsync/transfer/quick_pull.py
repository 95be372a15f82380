"""The small files of a pull: asked for on one thread, many at a time, each visible when it is whole and verified.

Owns: ``QuickPull``. Does not own: the window of requests (``ahead``), a file that does not come as it should (``pull``
fetches it in the usual way, which knows patience and says what is wrong), the temporary file (``partial``).

Invariants: as those of ``downloader``. What was pulled is durable when ``run`` returns: each file before it gets its
name, the names together at the end.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError
from artifactsync.stores.ahead import AHEAD_BYTES, NotYetError, begin_get, can_begin
from artifactsync.stores.retry import RetryPolicy
from artifactsync.transfer.ahead import work_ahead
from artifactsync.transfer.asking import Wanted
from artifactsync.transfer.partial import PartialFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.downloader import Downloader
    from artifactsync.transfer.folder import Folder
    from artifactsync.transfer.pull import PullItem

_SLOW_S = 0.0005  # a disk that takes longer than this to make a file durable is given several at a time
_SLOW_IN_A_ROW = 4  # of them
_AT_A_TIME = 8
_MOST_PUBLISHING = 64
_MOST_FOLDERS = 32  # held open


def is_quick(store: Store, item: PullItem) -> bool:
    """Whether an object is one request, small, and its length known."""
    return item.size_bytes is not None and item.size_bytes < AHEAD_BYTES and can_begin(store)


def _nothing() -> None:
    """What ends an item that is at its end."""


class QuickPull:
    """Brings small objects to files below one folder.

    Args:
        store: Where from; ``is_quick`` of it.
        root: The folder.
        downloader: Knows what is there already, and counts progress.
        usual: Brings one file in the usual way; says its length, and whether it was here already.
        overwrite: Whether other files at those paths are replaced.
    """

    def __init__(
        self,
        store: Store,
        root: Folder,
        downloader: Downloader,
        usual: Callable[[PullItem], tuple[int, bool]],
        *,
        overwrite: bool,
    ) -> None:
        self._store, self._root, self._downloader, self._overwrite = store, root, downloader, overwrite
        self._usual = usual
        self._threads: ThreadPoolExecutor | None = None
        self._folders: dict[tuple[str, ...], Folder] = {}
        self._publishing: deque[Future[None]] = deque()
        self._slow_in_a_row = 0
        self._left: list[tuple[PullItem, float]] = []
        self._is_stopped = False
        self._failure: BaseException | None = None
        self.bytes = self.files = self.skipped_files = 0
        """What is here now, and how many of the files were here before."""
        self.left: list[tuple[PullItem, float]] = []
        """What has to be fetched in the usual way, and after how many seconds from ``run``'s end at the earliest."""

    def run(self, items: Iterable[PullItem]) -> None:
        """Bring them here, but for what is ``left``.

        Raises:
            ArtifactSyncError: a file cannot be written. The others are stopped.
        """
        try:
            work_ahead(self._while_all_is_well(items), self._begin)
        finally:
            self._close_folders()
            if self._threads is not None:
                self._threads.shutdown()
        if self._failure is not None:
            raise self._failure
        now_s = time.monotonic()
        self.left = [(item, max(0.0, at_s - now_s)) for item, at_s in self._left]

    def stop_if_failed(self, other: Future[Any]) -> None:
        """Begin nothing more if another part of the pull has failed."""
        self._is_stopped = self._is_stopped or (not other.cancelled() and other.exception() is not None)

    def _while_all_is_well(self, items: Iterable[PullItem]) -> Iterator[PullItem]:
        for item in items:
            if self._is_stopped or self._failure is not None:
                return
            yield item

    def _begin(self, item: PullItem, is_alone: bool) -> Callable[[], object] | None:
        wanted = Wanted(key=item.key, size_bytes=item.size_bytes, sha256=item.sha256)
        assert item.size_bytes is not None
        try:
            there = self._downloader.find_there(wanted, *self._place(item), overwrite=self._overwrite)
            if there is not None:
                self._downloader.progress(there.size_bytes)
                return partial(self._count, item, is_new=False)
            data = begin_get(self._store, item.key, start=0, end=item.size_bytes + 1)
        except ArtifactSyncError as error:
            return partial(self._leave, item, error)
        if data is not None:
            return partial(self._end, item, data)
        if not is_alone:
            return None
        self._fetch(item)  # there is no connection yet, or all answers are late
        return _nothing

    def _end(self, item: PullItem, answer: Callable[[], bytes]) -> None:
        try:
            data = answer()
        except NotYetError:
            raise
        except ArtifactSyncError as error:
            self._leave(item, error)
            return
        except Exception:  # noqa: BLE001 - the usual way says what it is
            self._leave(item, None)
            return
        if len(data) != item.size_bytes or item.sha256 not in (None, hashlib.sha256(data).hexdigest()):
            self._leave(item, None)
            return
        try:
            self._keep(item, data)
        except BaseException as error:  # noqa: BLE001 - raised by run
            self._failure = self._failure or error

    def _fetch(self, item: PullItem) -> None:
        try:
            _, was_there = self._usual(item)
        except BaseException as error:  # noqa: BLE001 - as above
            self._failure = self._failure or error
        else:
            self._count(item, is_new=not was_there)

    def _keep(self, item: PullItem, data: bytes) -> None:
        folder, name = self._place(item)
        file = PartialFile(folder, name, f"{self._store.url}/{item.key}")
        try:
            file.reset()
            file.write(data, 0)
        except BaseException:
            file.discard()
            file.close()
            raise
        if self._slow_in_a_row >= _SLOW_IN_A_ROW:
            self._threads = self._threads or ThreadPoolExecutor(_AT_A_TIME, "artifactsync-durable")
            self._publishing.append(self._threads.submit(self._publish, file))
            if len(self._publishing) > _MOST_PUBLISHING:
                self._publishing.popleft().result()
        else:
            began_s = time.monotonic()
            self._publish(file)
            self._slow_in_a_row = self._slow_in_a_row + 1 if time.monotonic() - began_s > _SLOW_S else 0
        self._downloader.progress(len(data))
        self._count(item, is_new=True)

    def _publish(self, file: PartialFile) -> None:
        try:
            file.publish(overwrite=self._overwrite, syncs_folder=False)
        finally:
            file.discard()
            file.close()

    def _leave(self, item: PullItem, error: ArtifactSyncError | None) -> None:
        pause_s = 0.0
        if error is not None:
            policy = RetryPolicy()
            pause_s = policy.pause_s(1, error)
            if pause_s > policy.deadline_s:  # nobody waits as long as the service wants to be left alone
                self._failure = self._failure or error
                return
        self._left.append((item, time.monotonic() + pause_s))

    def _count(self, item: PullItem, *, is_new: bool) -> None:
        self.files += 1
        self.bytes += item.size_bytes or 0
        self.skipped_files += not is_new

    def _place(self, item: PullItem) -> tuple[Folder, str]:
        """The open folder of a file, and its name there."""
        *above, name = item.path.split("/")
        parts = tuple(above)
        folder = self._folders.get(parts)
        if folder is None:
            if len(self._folders) >= _MOST_FOLDERS:
                self._close_folders()
            folder = self._folders[parts] = self._root.descend(parts)
        return folder, name

    def _close_folders(self) -> None:
        """Let every file get its name, and make the names durable."""
        while self._publishing:
            self._failure = self._publishing.popleft().exception() or self._failure
        while self._folders:
            with self._folders.popitem()[1] as folder:
                folder.sync()
