"""The tests that every Store passes: subclass ``StoreContract`` and give it a ``store``.

::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self):
            store = MyStore("my://bucket/folder")
            yield store
            store.close()

Owns: what ``stores.protocol.Store`` promises, as tests. Does not own: the store's life, its servers, faults.

Invariant: every test works below a folder of its own and removes it, so one store may serve many tests, also a real
bucket. What a store cannot do is a class attribute here, and then the suite checks that it says so.
"""

from __future__ import annotations

import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    FileChangedError,
    ObjectNotFoundError,
    UnfencedStoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from artifactsync.stores.protocol import Store

_MIB = 2**20


@dataclass(frozen=True)
class PatternBody:
    """A body of ``size_bytes`` reproducible bytes that notes how it is read.

    With ``changes_at_bytes`` it raises ``FileChangedError`` instead of giving the byte of that number; with its size
    given, after the last byte.
    """

    size_bytes: int
    seed: int = 0
    changes_at_bytes: int | None = None
    asked_chunk_bytes: list[int] = field(default_factory=list)

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the pattern in pieces."""
        self.asked_chunk_bytes.append(chunk_bytes)
        whole = self.read()
        for start in range(0, self.size_bytes, chunk_bytes):
            end = min(start + chunk_bytes, self.size_bytes)
            if self.changes_at_bytes is not None and end > self.changes_at_bytes:
                break
            yield whole[start:end]
        if self.changes_at_bytes is not None:
            raise FileChangedError("the file changed while it was read", url="file:///pattern")

    def read(self) -> bytes:
        """Return all bytes: no two blocks of 4 KiB are the same, so swapped parts show."""
        fill = b"\xff\x00\r\n" * 1020
        blocks = (b"%07d.%07d|" % (self.seed, n) + fill for n in range(self.size_bytes // 4096 + 1))
        return b"".join(blocks)[: self.size_bytes]


class StoreContract:
    """What every Store does. Subclass it with a ``store`` fixture; see the module's docstring."""

    has_put_if_absent: ClassVar[bool] = True
    """False: the store cannot create atomically; then it must refuse with ``UnfencedStoreError``."""
    has_nested_keys: ClassVar[bool] = True
    """False: no object can have others below it (``a`` and ``a/b``), as in a file system; it must refuse then."""
    large_bytes: ClassVar[int] = 9 * _MIB + 1
    """Size of a body that needs several parts."""
    create_once_bytes: ClassVar[int] = 9 * _MIB + 1
    """Size of the largest body that ``put_if_absent`` is tried with."""
    many_keys: ClassVar[int] = 1_001
    """How many objects the long listing has; more than a page of the store, where that is quick."""
    racers: ClassVar[int] = 8
    """Threads that race to create one key."""
    max_chunk_bytes: ClassVar[int] = 64 * _MIB
    """The largest piece of a body the store may ask for at once."""
    secrets: ClassVar[tuple[str, ...]] = ()
    """Words that must never appear in an error, its causes, the URL or the repr."""
    refused_keys: ClassVar[frozenset[str]] = frozenset()
    """Names in ``awkward_keys`` that the store refuses (it must refuse, not fold)."""
    awkward_keys: ClassVar[Mapping[str, str]] = {
        "space": "two  words/and more",
        "unicode": "ünï/çødé/\u6a21\u578b-\U0001f600",
        "percent": "100%/a%20b%2Fc",
        "plus": "a+b/c++",
        "hash": "a#b/#1",
        "tilde": "~home/a~b",
        "question": "a?b=c/d",
        "ampersand": "a&b;c=d/e,f",
        "quotes": 'it\'s/"quoted"',
        "brackets": "[a]/{b}/(c)/<d>",
        "star": "a*b/!c/$d/@e/^f/|g`h",
        "colon": "s3:/a:b",
        "dots": "a..b/.hidden/...c",
        "dashes": "-rf/--/_",
        "equals": "epoch=1/metric=0.5",
        "long": "/".join(["deep" * 50] * 4),
    }
    """Legal keys that careless code breaks on."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Leave out the tests of what the class says it cannot do; they are replaced by a test that it refuses."""
        super().__init_subclass__(**kwargs)
        unfit = "test_create_once_" if not cls.has_put_if_absent else "test_refuses_to_create_"
        for name in dir(cls):
            if name.startswith(unfit):
                setattr(cls, name, None)

    @pytest.fixture
    def folder(self, store: Store) -> Iterator[str]:
        """A fresh folder (ends in ``/``), emptied at the end."""
        folder = f"contract-{uuid.uuid4().hex[:12]}/"
        yield folder
        store.delete([info.key for info in store.list(folder)])

    # -- round trips ------------------------------------------------------------------------------------------------

    def test_small_objects_come_back(self, store: Store, folder: str) -> None:
        """A put is read back by get, head and list alike."""
        for size_bytes in (0, 1, 4097):
            data, key = PatternBody(size_bytes).read(), f"{folder}{size_bytes}"
            put = store.put(key, data)
            assert (put.key, put.size_bytes) == (key, size_bytes)
            assert store.get(key) == data
            assert store.head(key).size_bytes == size_bytes
            assert [(i.key, i.size_bytes) for i in store.list(key)] == [(key, size_bytes)]

    def test_large_body_comes_back(self, store: Store, folder: str) -> None:
        """A body of several parts arrives whole and in order, and is asked for in bounded pieces."""
        body = PatternBody(self.large_bytes, seed=1)
        assert store.put(folder + "large", body).size_bytes == self.large_bytes
        assert store.get(folder + "large") == body.read()
        assert store.head(folder + "large").size_bytes == self.large_bytes
        assert body.asked_chunk_bytes
        assert all(0 < n <= self.max_chunk_bytes for n in body.asked_chunk_bytes)

    def test_body_of_no_bytes(self, store: Store, folder: str) -> None:
        """A body that yields nothing makes an empty object."""
        store.put(folder + "empty", PatternBody(0))
        assert store.get(folder + "empty") == b""

    def test_head_agrees_with_list(self, store: Store, folder: str) -> None:
        """Both tell the same size and time, the time with its zone."""
        store.put(folder + "a", b"12345")
        head, (listed,) = store.head(folder + "a"), store.list(folder)
        assert (head.key, head.size_bytes) == (listed.key, listed.size_bytes)
        for info in (head, listed):
            assert info.modified_at is None or info.modified_at.tzinfo is not None

    def test_awkward_keys(self, store: Store, folder: str) -> None:
        """Every legal key comes back as it was, from get, head, list, copy and delete."""
        for name, awkward in self.awkward_keys.items():
            key, data = folder + awkward, name.encode()
            if name in self.refused_keys:
                with pytest.raises(ArtifactSyncError):
                    store.put(key, data)
                continue
            assert store.put(key, data).key == key, name
            assert store.get(key) == data, name
            assert store.head(key).key == key, name
            assert [i.key for i in store.list(key)] == [key], name
            assert store.copy(key, key + ".copy").key == key + ".copy", name
            assert store.get(key + ".copy") == data, name
            store.delete([key + ".copy"])
        fine = {folder + key for name, key in self.awkward_keys.items() if name not in self.refused_keys}
        assert {i.key for i in store.list(folder)} == fine
        store.delete(fine)
        assert list(store.list(folder)) == []

    def test_odd_keys_are_kept_or_refused(self, store: Store, folder: str) -> None:
        """A key that some systems fold is stored as it is, or refused: never another key."""
        for part in ("a//b", "a/./b", "a/../b", "../b"):
            key = f"{folder}x/{part}"
            try:
                store.put(key, b"odd")
            except ArtifactSyncError:
                assert list(store.list(folder)) == [], part
            else:
                assert [i.key for i in store.list(folder)] == [key], part
                assert store.get(key) == b"odd", part
                store.delete([key])

    def test_objects_below_objects(self, store: Store, folder: str) -> None:
        """An object may have others below it; or the second of the two is refused and the first stays."""
        store.put(folder + "a", b"above")
        if self.has_nested_keys:
            store.put(folder + "a/b", b"below")
            assert store.get(folder + "a") == b"above"
            store.delete([folder + "a"])
            assert store.get(folder + "a/b") == b"below"
        else:
            with pytest.raises(ArtifactSyncError):
                store.put(folder + "a/b", b"below")
            store.put(folder + "c/d", b"below")
            with pytest.raises(ArtifactSyncError):
                store.put(folder + "c", b"above")
            assert sorted(i.key for i in store.list(folder)) == [folder + "a", folder + "c/d"]

    def test_put_replaces(self, store: Store, folder: str) -> None:
        """A second put wins, also when it is shorter."""
        store.put(folder + "a", b"first and longer")
        store.put(folder + "a", b"second")
        assert store.get(folder + "a") == b"second"
        assert store.head(folder + "a").size_bytes == len(b"second")

    # -- ranges -----------------------------------------------------------------------------------------------------

    def test_ranges(self, store: Store, folder: str) -> None:
        """Ranges are cut at the end of the object."""
        data = b"0123456789"
        store.put(folder + "digits", data)
        for start, end in ((0, 1), (3, 7), (3, None), (9, 10), (0, 10), (8, 99), (10, None), (10, 12), (50, 60)):
            assert store.get(folder + "digits", start=start, end=end) == data[start:end], (start, end)

    def test_empty_range(self, store: Store, folder: str) -> None:
        """An empty range of an object that exists is no bytes."""
        store.put(folder + "digits", b"0123456789")
        for at in (0, 4, 10):
            assert store.get(folder + "digits", start=at, end=at) == b"", at

    def test_range_of_an_empty_object(self, store: Store, folder: str) -> None:
        """Nothing can be read from nothing, without an error."""
        store.put(folder + "empty", b"")
        assert store.get(folder + "empty", start=0, end=5) == b""
        assert store.get(folder + "empty", start=3) == b""

    def test_range_across_parts(self, store: Store, folder: str) -> None:
        """A range over the seams of a large object is exact."""
        body = PatternBody(self.large_bytes, seed=2)
        store.put(folder + "large", body)
        start, end = self.large_bytes // 2 - 1000, self.large_bytes - 1
        assert store.get(folder + "large", start=start, end=end) == body.read()[start:end]

    # -- what is not there ------------------------------------------------------------------------------------------

    def test_missing_objects(self, store: Store, folder: str) -> None:
        """Reading a key that is not there names it, also beside keys that begin or go on like it."""
        store.put(folder + "there/and/deeper", b"x")
        key = folder + "there/and"
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: store.get(key),
            "range": lambda: store.get(key, start=1, end=2),
            "empty range": lambda: store.get(key, start=1, end=1),
            "head": lambda: store.head(key),
            "copy": lambda: store.copy(key, folder + "target"),
        }
        for name, call in calls.items():
            with pytest.raises(ObjectNotFoundError) as caught:
                call()
            self.check_error(store, caught.value, key, name)
        assert [i.key for i in store.list(folder)] == [folder + "there/and/deeper"]

    # -- listing ----------------------------------------------------------------------------------------------------

    def test_list_is_a_plain_prefix(self, store: Store, folder: str) -> None:
        """A prefix cuts names anywhere, folders or not."""
        keys = [folder + k for k in ("a-b", "a/1", "a/2/3", "ab", "b/a")] + [folder + "a"] * self.has_nested_keys
        for key in keys:
            store.put(key, b"x")
        for prefix in ("", "a", "a/", "a/2", "a/2/3", "a/2/3/", "ab", "b", "c", "A"):
            expected = sorted(k for k in keys if k.startswith(folder + prefix))
            listed = [i.key for i in store.list(folder + prefix)]
            assert sorted(listed) == expected, prefix
            if getattr(store, "ordered_listing", False):  # only then RetryStore goes on after the last key
                assert listed == expected, prefix

    def test_list_starts_after(self, store: Store, folder: str) -> None:
        """``start_after`` is exclusive, and need not exist."""
        keys = [folder + k for k in ("a-b", "a/1", "a/2/3", "ab", "b/a")] + [folder + "a"] * self.has_nested_keys
        for key in keys:
            store.put(key, b"x")
        for after in ("", "0", "a", "a-", "a/1", "a/1/9", "ab", "b/a", "z"):
            expected = sorted(k for k in keys if k > folder + after)
            assert sorted(i.key for i in store.list(folder, start_after=folder + after)) == expected, after

    def test_list_of_nothing(self, store: Store, folder: str) -> None:
        """No keys is an empty listing, and no error."""
        assert list(store.list(folder)) == []
        assert list(store.list(folder + "nothing", start_after=folder + "a")) == []
        assert list(store.list_folders(folder)) == []

    def test_list_of_many(self, store: Store, folder: str) -> None:
        """A listing goes on over its pages, each key once; reading only its beginning is fine."""
        keys = [f"{folder}{n:05d}" for n in range(self.many_keys)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        listed = [i.key for i in store.list(folder)]
        assert sorted(listed) == keys
        assert len(list(islice(store.list(folder), 3))) == min(3, len(keys))
        middle = keys[len(keys) // 2]
        assert sorted(i.key for i in store.list(folder, start_after=middle)) == [k for k in keys if k > middle]
        store.delete(keys[1:])
        assert [i.key for i in store.list(folder)] == keys[:1]

    def test_list_shows_every_change_at_once(self, store: Store, folder: str) -> None:
        """No cache stands between a change and the next listing, head or get."""
        assert list(store.list(folder)) == []
        with pytest.raises(ObjectNotFoundError):
            store.head(folder + "a")
        store.put(folder + "a", b"1")
        assert [i.key for i in store.list(folder)] == [folder + "a"]
        store.put(folder + "a", b"22")
        assert [i.size_bytes for i in store.list(folder)] == [2]
        assert store.head(folder + "a").size_bytes == 2  # noqa: PLR2004
        store.delete([folder + "a"])
        assert list(store.list(folder)) == []
        with pytest.raises(ObjectNotFoundError):
            store.get(folder + "a")

    def test_list_folders(self, store: Store, folder: str) -> None:
        """The direct sub-folders alone, by name, each once."""
        for key in ("f", "a/1", "a/2", "b/c/d", "b-2/x", "e é/x"):
            store.put(folder + key, b"x")
        assert sorted(store.list_folders(folder)) == ["a", "b", "b-2", "e é"]
        assert sorted(store.list_folders(folder + "b/")) == ["c"]
        assert list(store.list_folders(folder + "a/")) == []
        assert folder.rstrip("/") in store.list_folders("")

    # -- delete and copy --------------------------------------------------------------------------------------------

    def test_delete(self, store: Store, folder: str) -> None:
        """Exactly the keys go; one that is not there is no error; nothing at all is none either."""
        for key in ("a-", "a/b", "ab"):
            store.put(folder + key, b"x")
        store.delete([folder + "a-", folder + "a", folder + "never/was"])
        assert sorted(i.key for i in store.list(folder)) == [folder + "a/b", folder + "ab"]
        store.delete([folder + "a-"])
        store.delete([])
        store.delete(key for key in (folder + "a/b", folder + "ab"))
        assert list(store.list(folder)) == []

    def test_copy(self, store: Store, folder: str) -> None:
        """A copy replaces its target and leaves its source."""
        store.put(folder + "source", b"new")
        store.put(folder + "target", b"old and longer")
        info = store.copy(folder + "source", folder + "target")
        assert (info.key, info.size_bytes) == (folder + "target", 3)
        assert store.get(folder + "target") == store.get(folder + "source") == b"new"

    # -- put_if_absent ----------------------------------------------------------------------------------------------

    def test_create_once_then_never_again(self, store: Store, folder: str) -> None:
        """The second create fails and changes nothing, also where the first was empty."""
        for first in (b"", b"first"):
            key = f"{folder}once{len(first)}"
            assert store.put_if_absent(key, first).size_bytes == len(first)
            with pytest.raises(AlreadyExistsError) as caught:
                store.put_if_absent(key, b"second")
            self.check_error(store, caught.value, key)
            assert store.get(key) == first

    def test_create_once_gives_way_to_a_put(self, store: Store, folder: str) -> None:
        """It is the key that counts, however it came to be, and a deleted key is free again."""
        store.put(folder + "once", b"put")
        with pytest.raises(AlreadyExistsError):
            store.put_if_absent(folder + "once", PatternBody(10))
        store.delete([folder + "once"])
        store.put_if_absent(folder + "once", PatternBody(10))
        assert store.get(folder + "once") == PatternBody(10).read()

    def test_create_once_of_a_large_body(self, store: Store, folder: str) -> None:
        """The same holds for a body of several parts."""
        body = PatternBody(self.create_once_bytes, seed=3)
        store.put_if_absent(folder + "once", body)
        with pytest.raises(AlreadyExistsError):
            store.put_if_absent(folder + "once", PatternBody(self.create_once_bytes, seed=4))
        assert store.get(folder + "once") == body.read()

    def test_create_once_has_one_winner(self, store: Store, folder: str) -> None:
        """Of many writers at the same moment exactly one wins, and its bytes are what is stored."""
        barrier = threading.Barrier(self.racers)

        def race(number: int) -> int | ArtifactSyncError:
            body = PatternBody(5_000, seed=number)
            barrier.wait(60)
            try:
                store.put_if_absent(folder + "race", body)
            except AlreadyExistsError as error:
                return error
            return number

        with ThreadPoolExecutor(self.racers) as pool:
            outcomes = list(pool.map(race, range(self.racers)))
        winners = [o for o in outcomes if isinstance(o, int)]
        assert len(winners) == 1
        assert store.get(folder + "race") == PatternBody(5_000, seed=winners[0]).read()

    def test_create_once_breaks_off_when_the_file_changes(self, store: Store, folder: str) -> None:
        """A body that fails in the middle, or at its very end, creates nothing, and the key stays free."""
        for size_bytes in (100, self.large_bytes):
            for at_bytes in (size_bytes // 2, size_bytes):
                with pytest.raises(FileChangedError):
                    store.put_if_absent(folder + "once", PatternBody(size_bytes, changes_at_bytes=at_bytes))
                assert list(store.list(folder)) == []
        store.put_if_absent(folder + "once", b"free")

    def test_refuses_to_create_what_it_cannot_guard(self, store: Store, folder: str) -> None:
        """A store without an atomic create says so, and writes nothing."""
        with pytest.raises(UnfencedStoreError) as caught:
            store.put_if_absent(folder + "once", b"x")
        self.check_error(store, caught.value, folder + "once")
        assert list(store.list(folder)) == []

    # -- whole or not at all ----------------------------------------------------------------------------------------

    def test_put_breaks_off_when_the_file_changes(self, store: Store, folder: str) -> None:
        """A body that fails in the middle leaves no object, and the error keeps its type."""
        for size_bytes in (100, self.large_bytes):
            with pytest.raises(FileChangedError):
                store.put(folder + "new", PatternBody(size_bytes, changes_at_bytes=size_bytes // 2))
            assert list(store.list(folder)) == []
            assert list(store.list_folders(folder)) == []

    def test_put_reads_the_body_to_its_end(self, store: Store, folder: str) -> None:
        """A file found changed after its last byte was read is not published either."""
        for size_bytes in (0, 100, self.large_bytes):
            with pytest.raises(FileChangedError):
                store.put(folder + "new", PatternBody(size_bytes, changes_at_bytes=size_bytes))
            assert list(store.list(folder)) == []

    def test_replacing_breaks_off_when_the_file_changes(self, store: Store, folder: str) -> None:
        """A body that fails in the middle leaves the object it would have replaced."""
        store.put(folder + "old", b"old")
        with pytest.raises(FileChangedError):
            store.put(folder + "old", PatternBody(self.large_bytes, changes_at_bytes=self.large_bytes - 1))
        assert store.get(folder + "old") == b"old"
        assert [i.key for i in store.list(folder)] == [folder + "old"]

    def test_readers_see_whole_objects(self, store: Store, folder: str) -> None:
        """While a key is replaced over and over, every read is one of the versions, whole."""
        versions = [bytes([65 + n]) * (1000 + n) for n in range(8)]
        store.put(folder + "a", versions[0])
        done = threading.Event()
        torn: list[bytes] = []

        def read() -> None:
            while not done.is_set():
                data = store.get(folder + "a")
                if data not in versions:
                    torn.append(data[:80])

        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read)
            try:
                for data in versions * 2:
                    store.put(folder + "a", data)
            finally:
                done.set()
            reader.result()
        assert not torn
        assert store.get(folder + "a") == versions[-1]

    def test_puts_beside_each_other(self, store: Store, folder: str) -> None:
        """Different keys written at once do not mix."""
        sizes = {f"{folder}{n}": 70_000 + n for n in range(12)}
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda key: store.put(key, PatternBody(sizes[key], seed=sizes[key])), sizes))
        assert {i.key: i.size_bytes for i in store.list(folder)} == sizes
        for key, size_bytes in sizes.items():
            assert store.get(key) == PatternBody(size_bytes, seed=size_bytes).read()

    # -- the store itself -------------------------------------------------------------------------------------------

    def test_url_and_repr_hold_no_secret(self, store: Store) -> None:
        """The URL names a place, and neither it nor the repr gives anything away."""
        assert "://" in store.url
        for secret in self.secrets:
            assert secret not in store.url + repr(store)

    def test_close_twice(self, store: Store) -> None:
        """Closing is idempotent."""
        store.close()
        store.close()

    def check_error(self, store: Store, error: ArtifactSyncError, key: str, call: str = "") -> None:
        """An error says where it was, and nothing secret, nor do the errors that caused it."""
        assert error.url is not None, f"the error has no url {call}"
        assert error.url.startswith(store.url.rstrip("/")), call
        assert error.url.endswith(key), call
        told = "".join(traceback.format_exception(error)) + repr(error) + error.hint + error.url
        assert [s for s in self.secrets if s in told] == [], call


__all__ = ["PatternBody", "StoreContract"]
