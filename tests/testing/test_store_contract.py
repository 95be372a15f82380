"""The contract passes a right store, and each broken one fails at least the tests that are there for its fault."""

from __future__ import annotations

import contextlib
import time

import pytest

from artifactsync.errors import AlreadyExistsError, FileChangedError, ObjectNotFoundError, UnfencedStoreError
from artifactsync.stores.protocol import BytesBody, ObjectInfo
from artifactsync.testing import StoreContract
from tests.testing.dict_store import DictStore


class TestDictStore(StoreContract):
    @pytest.fixture
    def store(self):
        return DictStore()


class UnfencedStore(DictStore):
    def put_if_absent(self, key, body):
        raise UnfencedStoreError("dict://root cannot create atomically", url=f"{self.url}/{key}")


class TestUnfencedStore(StoreContract):
    has_put_if_absent = False

    @pytest.fixture
    def store(self):
        return UnfencedStore()

    def test_the_refusal_replaces_the_other_tests(self):
        assert callable(self.test_refuses_to_create_what_it_cannot_guard)
        assert self.test_create_once_has_one_winner is None
        assert TestDictStore.test_refuses_to_create_what_it_cannot_guard is None
        assert callable(TestDictStore.test_create_once_has_one_winner)


class OverwritesOnCreate(DictStore):
    """As `rclone serve s3`: the condition is ignored."""

    def put_if_absent(self, key, body):
        return self.put(key, body)


class ChecksThenWrites(DictStore):
    """As fsspec's mode="create": a look, a moment, a write."""

    def put_if_absent(self, key, body):
        if key in self.objects:
            raise AlreadyExistsError("exists", url=f"{self.url}/{key}")
        time.sleep(0.01)
        return self.put(key, body)


class LetsEmptyBeReplaced(DictStore):
    def put_if_absent(self, key, body):
        if self.objects.get(key) == b"":
            del self.objects[key]
        return super().put_if_absent(key, body)


class KeepsHalfOfABrokenBody(DictStore):
    def put(self, key, body):
        self.objects[key] = b""
        with contextlib.suppress(FileChangedError):
            for chunk in (BytesBody(body) if isinstance(body, bytes) else body).chunks(1000):
                self.objects[key] += chunk
        return self.head(key)


class ListsFolders(DictStore):
    """As a file system: a prefix must end at a slash."""

    def list(self, prefix="", *, start_after=""):
        folder = prefix.rstrip("/")
        return (i for i in super().list("", start_after=start_after) if f"{i.key}/".startswith(f"{folder}/"))


class StopsAtAThousand(DictStore):
    def list(self, prefix="", *, start_after=""):
        return iter(list(super().list(prefix, start_after=start_after))[:1000])


class IncludesTheStart(DictStore):
    def list(self, prefix="", *, start_after=""):
        return (i for i in super().list(prefix) if i.key >= start_after)


class FoldsSlashes(DictStore):
    """As obstore: `a//b` becomes `a/b`."""

    def put(self, key, body):
        return super().put(key.replace("//", "/"), body)


class DecodesPercent(DictStore):
    def put(self, key, body):
        return super().put(key.replace("%20", " "), body)


class RaisesItsOwnErrors(DictStore):
    def head(self, key):
        try:
            return super().head(key)
        except ObjectNotFoundError:
            raise FileNotFoundError(key) from None


class NamesNoUrl(DictStore):
    def head(self, key):
        if key not in self.objects:
            raise ObjectNotFoundError(f"no object {key}")
        return super().head(key)


class RejectsRangesBeyondTheEnd(DictStore):
    def get(self, key, *, start=0, end=None):
        if start >= len(super().get(key)):
            raise ObjectNotFoundError("416", url=f"{self.url}/{key}")
        return super().get(key, start=start, end=end)


class CachesListings(DictStore):
    def list(self, prefix="", *, start_after=""):
        cached = self.__dict__.setdefault("cached", {})
        if (prefix, start_after) not in cached:
            cached[prefix, start_after] = list(super().list(prefix, start_after=start_after))
        return iter(cached[prefix, start_after])


class MindsMissingKeys(DictStore):
    def delete(self, keys):
        for key in keys:
            self.head(key)
            super().delete([key])


class WritesInPlace(DictStore):
    """As open(path, "wb"): a reader may see a part."""

    def put(self, key, body):
        self.objects[key] = b""
        for chunk in (BytesBody(body) if isinstance(body, bytes) else body).chunks(100):
            self.objects[key] += chunk
            time.sleep(0.0005)
        return self.head(key)


class ReadsTheBodyAtOnce(DictStore):
    def put(self, key, body):
        data = body if isinstance(body, bytes) else b"".join(body.chunks(2**40))
        return super().put(key, data)


class HasNaiveTimes(DictStore):
    def head(self, key):
        info = super().head(key)
        return ObjectInfo(key=key, size_bytes=info.size_bytes, modified_at=info.modified_at.replace(tzinfo=None))


BROKEN = {
    OverwritesOnCreate: {
        "test_create_once_then_never_again",
        "test_create_once_gives_way_to_a_put",
        "test_create_once_of_a_large_body",
        "test_create_once_has_one_winner",
    },
    ChecksThenWrites: {"test_create_once_has_one_winner"},
    LetsEmptyBeReplaced: {"test_create_once_then_never_again"},
    KeepsHalfOfABrokenBody: {
        "test_put_breaks_off_when_the_file_changes",
        "test_replacing_breaks_off_when_the_file_changes",
    },
    ListsFolders: {"test_list_is_a_plain_prefix"},
    StopsAtAThousand: {"test_list_of_many"},
    IncludesTheStart: {"test_list_starts_after", "test_list_of_many"},
    FoldsSlashes: {"test_odd_keys_are_kept_or_refused"},
    DecodesPercent: {"test_awkward_keys"},
    RaisesItsOwnErrors: {"test_missing_objects", "test_list_shows_every_change_at_once"},
    NamesNoUrl: {"test_missing_objects"},
    RejectsRangesBeyondTheEnd: {"test_ranges", "test_empty_range", "test_range_of_an_empty_object"},
    CachesListings: {"test_list_shows_every_change_at_once"},
    MindsMissingKeys: {"test_delete"},
    WritesInPlace: {"test_readers_see_whole_objects"},
    ReadsTheBodyAtOnce: {"test_large_body_comes_back"},
    HasNaiveTimes: {"test_head_agrees_with_list"},
}


@pytest.fixture(scope="module")
def found(request):
    """Which tests each broken store failed; one run of pytest for all."""

    class Outcomes:
        def __init__(self):
            self.failed = {broken.__name__: set() for broken in BROKEN}

        def pytest_runtest_logreport(self, report):
            if report.failed:
                _, broken, test = report.nodeid.split("::")
                self.failed[broken.removeprefix("Test")].add(test)

    outcomes = Outcomes()
    folder = request.getfixturevalue("tmp_path_factory").mktemp("broken")
    lines = ["import pytest", "from artifactsync.testing import StoreContract", f"import {__name__} as stores"]
    for broken in BROKEN:
        name = broken.__name__
        lines += [
            f"class Test{name}(StoreContract):",
            "    large_bytes = create_once_bytes = 20_001",
            "    @pytest.fixture",
            "    def store(self):",
            f"        return stores.{name}()",
        ]
    (folder / "test_broken.py").write_text("\n".join(lines))
    (folder / "pytest.ini").write_text("[pytest]\n")
    pytest.main(["-q", "-p", "no:cacheprovider", str(folder)], plugins=[outcomes])
    return outcomes.failed


@pytest.mark.parametrize("broken", BROKEN, ids=lambda c: c.__name__)
def test_a_broken_store_is_found_out(broken, found):
    assert found[broken.__name__] >= BROKEN[broken]
