from __future__ import annotations

import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from artifactsync.errors import UnsafeKeyError
from artifactsync.naming import RunLayout, check_relative, fold_case, layout, safe_local_path, sibling

LAYOUT = RunLayout("1657932618-infrared-ferret")
ROOT = "1657932618-infrared-ferret/"

# Paths that are nearly right: the parts that matter, joined in any way.
_parts = st.sampled_from(
    ["a", "..", ".", "", "/", "\\", "\x00", "C:", ".artifactsync", "ü", "\u202e", "x" * 256, "a.pt"]
)
paths = st.lists(_parts | st.text(max_size=4), max_size=6).flatmap(
    lambda parts: st.sampled_from(["/", ""]).map(lambda joint: joint.join(parts))
)


def test_every_key_of_a_run():
    # The names on the remote are a format: runs written by one version are read by the next.
    house = ROOT + ".artifactsync/"
    assert LAYOUT.root == ROOT
    assert LAYOUT.house == house
    assert LAYOUT.journal == house + "journal/"
    assert LAYOUT.record(0) == house + "journal/00000000000000000000.json"
    assert LAYOUT.record(2**63 - 1) == house + "journal/09223372036854775807.json"
    assert LAYOUT.head == house + "head.json"
    assert LAYOUT.heartbeat == house + "heartbeat.json"
    assert LAYOUT.intents == house + "intents/"
    assert LAYOUT.intent(2, 7) == house + "intents/000002-000007.json"
    assert LAYOUT.probe("abc") == house + "probe/abc"
    assert LAYOUT.artifact("checkpoints/ep1-ba100-rank0.pt") == ROOT + "checkpoints/ep1-ba100-rank0.pt"


@given(st.lists(st.integers(0, 2**63 - 1), min_size=2))
def test_key_order_is_record_order(seqs):
    assert sorted(map(LAYOUT.record, seqs)) == [LAYOUT.record(seq) for seq in sorted(seqs)]


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (ROOT + "logs-rank0.txt", "logs-rank0.txt"),
        (ROOT + "checkpoints/a.pt", "checkpoints/a.pt"),
        (ROOT + "a/.artifactsync/b", "a/.artifactsync/b"),
        (ROOT + ".artifactsync-notes", ".artifactsync-notes"),
        (ROOT + ".artifactsync/head.json", None),
        (ROOT + ".artifactsync", None),
        (ROOT, None),
        (ROOT[:-1], None),
        ("1657932618-infrared-ferret2/x", None),
        ("other/x", None),
    ],
)
def test_the_path_of_a_key(key, path):
    assert LAYOUT.path_of(key) == path


@given(paths)
def test_a_path_becomes_a_key_and_back(path):
    try:
        key = LAYOUT.artifact(path)
    except UnsafeKeyError:
        return
    assert LAYOUT.path_of(key) == path


@pytest.mark.parametrize(
    ("path", "attempt", "number", "expected"),
    [
        ("checkpoints/ep1-rank0.pt", 2, 0, "checkpoints/ep1-rank0.a2.pt"),
        ("checkpoints/ep1-rank0.pt", 2, 1, "checkpoints/ep1-rank0.a2-1.pt"),
        ("checkpoints/ep1-rank0.pt", 13, 0, "checkpoints/ep1-rank0.a13.pt"),
        ("model", 3, 0, "model.a3"),
        ("a.b/model", 3, 0, "a.b/model.a3"),
        ("x.tar.gz", 2, 0, "x.tar.a2.gz"),
        (".metadata", 2, 0, ".metadata.a2"),
        ("deep/er/.metadata", 2, 4, "deep/er/.metadata.a2-4"),
    ],
)
def test_siblings(path, attempt, number, expected):
    assert sibling(path, attempt, number) == expected


@given(paths, st.integers(2, 99), st.integers(0, 99), st.integers(2, 99), st.integers(0, 99))
def test_a_sibling_is_another_file_of_the_same_folder(path, attempt, number, other_attempt, other_number):
    try:
        check_relative(path)
    except UnsafeKeyError:
        return
    one = sibling(path, attempt, number)
    assert one != path
    assert one.rpartition("/")[0] == path.rpartition("/")[0]
    assert (one == sibling(path, other_attempt, other_number)) == ((attempt, number) == (other_attempt, other_number))


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a.pt",
        "a/b/c.pt",
        "...",
        "a..b",
        "..a",
        "ü/日本.txt",
        "a b",
        "x" * 255,
        "a/" * 511 + "bc",
        "a/.artifactsync/x",
        ".hidden",
        "CON",
    ],
)
def test_plain_relative_paths(path):
    assert check_relative(path) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "is empty"),
        ("/etc/passwd", "is absolute"),
        ("//host/share", "is absolute"),
        ("..", "has a '..' part"),
        ("a/../b", "has a '..' part"),
        ("a/..", "has a '..' part"),
        (".", "has a '.' part"),
        ("a/./b", "has a '.' part"),
        ("a//b", "has an empty part"),
        ("a/", "has an empty part"),
        ("a\\b", "has a backslash"),
        ("..\\..\\x", "has a backslash"),
        ("C:x", "begins with a drive letter"),
        ("c:/x", "begins with a drive letter"),
        ("a\x00b", "has control or invisible characters"),
        ("a\nb", "has control or invisible characters"),
        ("a\x1b[2Jb", "has control or invisible characters"),
        ("a\x7f", "has control or invisible characters"),
        ("a\x85", "has control or invisible characters"),
        ("gnp\u202etxt", "has control or invisible characters"),
        (".artifact\u200bsync/x", "has control or invisible characters"),
        ("\ufeffa", "has control or invisible characters"),
        ("a\u2028b", "has control or invisible characters"),
        ("\udcff", "has control or invisible characters"),
        ("x" * 256, "has a part longer than 255 bytes"),
        ("ok/" + "ü" * 128, "has a part longer than 255 bytes"),
        ("a/" * 512 + "b", "is longer than 1024 bytes"),
        (".artifactsync", "lies in .artifactsync/"),
        (".artifactsync/journal/x", "lies in .artifactsync/"),
        (".ArtifactSync/journal/x", "lies in .artifactsync/"),
        (".artifact\u017fync/x", "lies in .artifactsync/"),  # a long s, which case folding makes an s
    ],
)
def test_unsafe_paths(path, why):
    with pytest.raises(UnsafeKeyError) as caught:
        check_relative(path)
    assert why in caught.value.message
    assert caught.value.message.isprintable()
    with pytest.raises(UnsafeKeyError):
        safe_local_path(Path("destination"), path)
    with pytest.raises(UnsafeKeyError):
        LAYOUT.artifact(path)


@pytest.mark.parametrize(
    "path", ["CON", "a/nul.txt", "com1", "LPT9.log", "a.", "a /b", "xx:y", "a/b:stream", "a?b", "a|b"]
)
def test_windows_file_names_where_there_is_windows(path, monkeypatch):
    assert check_relative(path) == path
    monkeypatch.setattr(layout, "os", SimpleNamespace(name="nt"))
    with pytest.raises(UnsafeKeyError, match="no file name on Windows"):
        check_relative(path)


@given(paths)
@example("../x")
@example("a/../../x")
@example("/x")
def test_a_safe_path_stays_in_its_destination(path):
    destination = Path("somewhere").absolute()
    try:
        local = safe_local_path(destination, path)
    except UnsafeKeyError as error:
        complaint = error
    else:
        assert destination in local.parents
        assert not {"..", "", "."} & set(local.parts)
        assert local.relative_to(destination).as_posix() == path
        return
    assert complaint.hint
    assert complaint.message.isprintable()


def test_paths_that_some_file_systems_take_for_one():
    decomposed = unicodedata.normalize("NFD", "Ünï.pt")
    assert fold_case("ünÏ.PT") == fold_case(decomposed)
    assert fold_case("Straße") == fold_case("STRASSE")
    assert fold_case("a.pt") != fold_case("b.pt")


@given(st.text(max_size=8))
def test_folding_twice_changes_nothing(path):
    assert fold_case(fold_case(path)) == fold_case(path)
    assert fold_case(path) == fold_case(unicodedata.normalize("NFD", path))
