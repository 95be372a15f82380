"""``Run.fs`` with paths and names made to do harm: nothing outside the run's folder is seen, changed or removed."""

from __future__ import annotations

import pytest

from artifactsync.errors import ArtifactSyncError, UnsafeKeyError
from artifactsync.run import Run
from artifactsync.stores import open_store
from tests.crash.hostile_names import named
from tests.testing.dict_store import DictStore

_TRAVERSALS = [
    "..",
    "../other/secret",
    "/../other/secret",
    "../run2/secret",
    "../run/../other/secret",
    "checkpoints/../../other/secret",
    "./../other/secret",
    "artifactsync-store://../other/secret",
    "a//b",
    ".",
]
_STRANGE = [
    "//server/share",
    "file:///etc/passwd",
    "a\0b",
    "/etc/passwd",
    "C:\\x",
    "\\\\server\\share",
    "..\\other\\secret",
    "%2e%2e/other/secret",
    "..%2fother%2fsecret",
    "~root/x",
    "$HOME/x",
    "-rf",
    "con",
    "a\nb",
    "a\r\nx-amz-acl: public-read",
    "\x1b[2J",
    "\u202egpj.exe",
    "\ud800",
    "n" * 1024,
    "d/" * 511 + "f",
    "*",
    "[a",
]
_NEIGHBOURS = {"other/secret": b"secret", "run2/secret": b"secret", "secret": b"secret"}


def every_call(fs, path, here):
    """All that a caller may do with a path, each by itself."""
    source = here / "source"
    return {
        "info": lambda: fs.info(path),
        "exists": lambda: fs.exists(path),
        "isdir": lambda: fs.isdir(path),
        "ls": lambda: fs.ls(path),
        "find": lambda: fs.find(path),
        "find-deep": lambda: fs.find(path, maxdepth=3, withdirs=True),
        "walk": lambda: list(fs.walk(path)),
        "glob": lambda: fs.glob(f"{path}/*"),
        "du": lambda: fs.du(path),
        "modified": lambda: fs.modified(path),
        "cat": lambda: fs.cat_file(path),
        "cat-many": lambda: fs.cat([path]),
        "tail": lambda: fs.tail(path),
        "read": lambda: fs.open(path).read(),
        "get": lambda: fs.get(path, f"{here}/destination/", recursive=True),
        "get-file": lambda: fs.get_file(path, here / "destination" / "one"),
        "append": lambda: fs.open(path, "ab").close(),
        "write": lambda: fs.open(path, "wb").close(),
        "create": lambda: fs.pipe_file(path, b"harm", mode="create"),
        "pipe": lambda: fs.pipe_file(path, b"harm"),
        "put": lambda: fs.put_file(source, path),
        "put-many": lambda: fs.put(str(source), path),
        "touch": lambda: fs.touch(path),
        "copy-from": lambda: fs.cp_file(path, "copied"),
        "copy-to": lambda: fs.cp_file("good", path),
        "move": lambda: fs.mv(path, "moved"),
        "rm-file": lambda: fs.rm_file(path),
        "rm": lambda: fs.rm(path, recursive=True),
    }


def told(call):
    """Everything that a call tells its caller, as text; what it refuses, it may refuse in no other way than these."""
    try:
        return True, ascii(call())
    except (ArtifactSyncError, OSError, UnicodeEncodeError) as error:
        return False, ascii(str(error))


@pytest.fixture(params=["dict", "local", "s3", "gcs"])
def root(request, tmp_path):
    if request.param == "dict":
        return DictStore()
    if request.param == "local":
        return open_store(tmp_path / "remote")
    cloud = request.getfixturevalue(request.param)
    return open_store(cloud.fresh_url(), cloud.storage_options)


def test_a_path_stays_in_its_run(root, tmp_path):
    for key, data in _NEIGHBOURS.items():
        root.put(key, data)
    here = tmp_path / "here"
    (here / "destination").mkdir(parents=True)
    (here / "source").write_bytes(b"harm")
    fs = Run("run", remote=root, read_only=True, local_root=here).fs
    is_near = isinstance(root, DictStore) or root.url.startswith("/") or root.url.startswith("file")
    for path in [*_TRAVERSALS, *(_STRANGE if is_near else _STRANGE[:6])]:
        fs.pipe_file("good", b"good")
        for what, call in every_call(fs, path, here).items():
            is_done, text = told(call)
            assert "secret" not in text or "secret" in path, (what, path, text)
            assert "'secret'" not in text, (what, path)
            assert not (is_done and path in _TRAVERSALS and what != "exists"), (what, path)
    assert {i.key: root.get(i.key) for i in root.list() if not i.key.startswith("run/")} == _NEIGHBOURS
    assert not any(i.key.startswith("run/..") and "%" not in i.key and "\\" not in i.key for i in root.list())
    assert {path.name for path in here.iterdir()} == {"destination", "source"}
    for path in here.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


@pytest.mark.parametrize("path", [p for p in _TRAVERSALS if p != "."])
def test_a_path_that_leads_elsewhere_is_refused_by_name(path):
    fs = Run("run", remote=DictStore(), read_only=True).fs
    with pytest.raises(UnsafeKeyError) as caught:
        fs.cat_file(path)
    assert caught.value.hint


def test_hostile_names_on_the_remote(tmp_path):
    store = DictStore()
    names = [name for _, name in named()]
    for number, name in enumerate(names):
        store.objects[f"run/{name}"] = b"%d" % number
    store.objects["neighbour/file"] = b"secret"
    fs = Run("run", remote=store, read_only=True, local_root=tmp_path / "unused").fs

    found = fs.find("")
    assert 100 < len(found) < len(set(names))
    assert set(found) <= set(names)
    for path in found:
        assert fs.cat_file(path) == store.objects[f"run/{path}"]
        assert fs.info(path)["name"] == path
    below = set()
    for top, folders, files in fs.walk(""):
        assert not {"", ".", ".."} & {*folders, *files}
        below.update(f"{top}/{name}".lstrip("/") for name in files)
    assert below == set(found)

    destination = tmp_path / "field" / "destination"
    destination.mkdir(parents=True)
    # Some are too long for a file, and the name of one file is the folder of another.
    came = sum(
        told(lambda p=path: fs.get(p.replace("[", "[[]"), f"{destination}/", recursive=True))[0] for path in found
    )
    assert came > 20
    assert [p.name for p in destination.parent.iterdir()] == ["destination"]

    for path in found:
        fs.rm_file(path)  # rm() takes patterns
    assert fs.find("") == []
    assert store.objects["neighbour/file"] == b"secret"


def test_links_below_a_local_remote(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    remote = tmp_path / "remote" / "run"
    (remote / "checkpoints").mkdir(parents=True)
    (remote / "good").write_text("good")
    (remote / "checkpoints" / "folder").symlink_to(outside, target_is_directory=True)
    (remote / "checkpoints" / "file").symlink_to(outside / "secret")
    (remote / "checkpoints" / "dangling").symlink_to(outside / "made")
    here = tmp_path / "here"
    (here / "destination").mkdir(parents=True)
    (here / "source").write_bytes(b"harm")

    fs = Run("run", remote=str(tmp_path / "remote"), read_only=True, local_root=here).fs
    assert fs.find("") == ["good"]
    fs.get("", f"{here}/destination/", recursive=True)
    for path in ("file", "dangling", "folder/secret", "folder/made", "folder"):
        for what, call in every_call(fs, f"checkpoints/{path}", here).items():
            is_done, text = told(call)
            assert not is_done or "secret" not in text, (what, path)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    for path in here.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
