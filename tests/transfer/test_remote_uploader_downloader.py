from __future__ import annotations

import subprocess
import sys

import pytest

from artifactsync import RemoteUploaderDownloader
from artifactsync.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    ConfigurationError,
    ObjectNotFoundError,
    RunNameError,
    TemplateError,
    UploadError,
)
from artifactsync.stores import open_store
from artifactsync.testing import Fault, FaultyStore
from tests.line_faults import Answer, LoseAnswer, ResetUpload

from .conftest import DEADLINE_S


@pytest.fixture
def path(make_file):
    return make_file("model.pt", 2000)


def _keys(store):
    return [info.key for info in store.list()]


@pytest.mark.parametrize(
    ("file_path_format", "name", "key"),
    [
        ("{remote_file_name}", "{run_name}/ckpt/ep{epoch}-rank{rank}.pt", "r1/ckpt/ep3-rank0.pt"),
        ("{remote_file_name}", "plain/name.pt", "plain/name.pt"),
        ("backups/{remote_file_name}", "{run_name}/a", "backups/r1/a"),
        ("{run_name}/{rank:03d}/{remote_file_name}.bak", "a{{b}}", "r1/000/a{b}.bak"),
    ],
)
def test_a_name_becomes_the_same_key_in_both_directions(store, path, tmp_path, file_path_format, name, key):
    with RemoteUploaderDownloader(store, run_name="r1", file_path_format_string=file_path_format) as remote:
        assert remote.upload_file(name, path, epoch=3).result(DEADLINE_S).key == key
        assert _keys(store) == [key]
        there = remote.download_file(name, tmp_path / "back", epoch=3)
    assert there == tmp_path / "back"
    assert there.read_bytes() == path.read_bytes()


def test_ranks_come_from_the_environment(store, path, monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with RemoteUploaderDownloader(store, run_name="r") as remote:
        remote.upload_file("{run_name}/{rank}-of-{world_size}", path)
    assert _keys(store) == ["r/5-of-8"]


@pytest.mark.parametrize("file_path_format", ["{remote_file_name}", "x/{remote_file_name}.bak"])
def test_listing_gives_names_that_download_takes(store, path, tmp_path, file_path_format):
    store.put("other/file", b"")
    store.put("x/other", b"")
    with RemoteUploaderDownloader(store, run_name="r", file_path_format_string=file_path_format) as remote:
        for name in ("{run_name}/b", "{run_name}/a/c", "q"):
            remote.upload_file(name, path)
        remote.wait(DEADLINE_S)
        assert remote.list_remote_files("{run_name}/") == ["r/a/c", "r/b"]
        assert remote.list_remote_files("{run_name}/a") == ["r/a/c"]
        assert {"q", "r/a/c", "r/b"} <= set(remote.list_remote_files())
        assert remote.list_remote_files("no") == []
        for name in remote.list_remote_files("r/"):
            assert remote.download_file(name, tmp_path / name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "/abs",
        "{run_name}/../other",
        "../x",
        "a//b",
        "",
        ".artifactsync/x",
        "{run_name}/.artifactsync/journal/0.json",
        "{no}",
    ],
)
def test_a_name_that_is_no_plain_path_is_refused(store, path, tmp_path, name):
    with RemoteUploaderDownloader(store, run_name="r") as remote:
        with pytest.raises(TemplateError):
            remote.upload_file(name, path)
        with pytest.raises(TemplateError):
            remote.download_file(name, tmp_path / "x")
    assert _keys(store) == []


def test_a_file_name_format_without_the_name_is_refused(store):
    for bad in ("fixed", "{remote_file_name}{remote_file_name}", "{run_name}/{nonsense}/{remote_file_name}"):
        with pytest.raises(TemplateError):
            RemoteUploaderDownloader(store, file_path_format_string=bad)


def test_the_run_name_is_settled_once(store, monkeypatch):
    monkeypatch.setenv("RUN_NAME", "from-environment")
    assert RemoteUploaderDownloader(store).run_name == "from-environment"
    bound = RemoteUploaderDownloader(store)
    bound.bind_run_name("trainers")
    bound.bind_run_name("late")
    assert bound.run_name == "trainers"
    given = RemoteUploaderDownloader(store, run_name="mine")
    given.bind_run_name("trainers")
    assert given.run_name == "mine"
    with pytest.raises(RunNameError):
        RemoteUploaderDownloader(store, run_name="no good")


@pytest.mark.parametrize("remote", ["", "s3://", "gs:///", "nonsense://bucket/x"])
def test_a_remote_that_cannot_be_is_refused_at_once(remote):
    with pytest.raises(ConfigurationError):
        RemoteUploaderDownloader(remote)


def test_making_one_touches_neither_network_nor_cloud_libraries():
    program = """if True:
    import socket, sys
    def refuse(*_): raise AssertionError("the network")
    socket.socket.connect = socket.getaddrinfo = refuse
    from artifactsync import RemoteUploaderDownloader
    for remote in ("s3://b/x", "gs://b/x", "az://b/x", "http://127.0.0.1:1/x"):
        print(RemoteUploaderDownloader(remote, run_name="r").status().pending_files)
    print([name for name in ("boto3", "obstore", "google.cloud.storage", "torch", "rich") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n" * 4 + "[]\n", "")


def test_secrets_in_the_url_are_not_shown():
    assert "hunter2" not in repr(RemoteUploaderDownloader("ftp://me:hunter2@host/x", run_name="r"))


def test_without_overwrite_what_is_there_stays(store, path, make_file):
    store.put("k", b"theirs")
    remote = RemoteUploaderDownloader(store, run_name="r")
    remote.upload_file("k", path)
    with pytest.raises(AlreadyExistsError, match="k exists already"):
        remote.close(DEADLINE_S)
    assert store.get("k") == b"theirs"
    with RemoteUploaderDownloader(store, run_name="r") as other:
        other.upload_file("k", path, overwrite=True)
    assert store.get("k") == path.read_bytes()


def test_a_failure_is_raised_when_the_block_ends(store, path):
    faulty = FaultyStore(store, [Fault(kind="permission")])
    with (
        pytest.raises(UploadError, match=r"upload of r/x failed after 1 attempt"),
        RemoteUploaderDownloader(faulty, run_name="r") as remote,
    ):
        remote.upload_file("{run_name}/x", path)


def test_an_exception_in_the_block_is_not_masked(store, path):
    faulty = FaultyStore(store, [Fault(kind="permission", keys="bad")])
    with pytest.raises(KeyError), RemoteUploaderDownloader(faulty, run_name="r") as remote:  # noqa: PT012
        remote.upload_file("bad", path)
        remote.upload_file("good", path)
        raise KeyError
    assert _keys(store) == ["good"]


def test_a_store_that_was_given_stays_open(store, path):
    RemoteUploaderDownloader(store, run_name="r").close()
    store.put("k", b"open")


def test_a_progress_bar_is_drawn_on_terminals_only(store, path, tmp_path, capfd):
    with RemoteUploaderDownloader(store, run_name="r") as remote:
        remote.upload_file("k", path).result(DEADLINE_S)
        remote.download_file("k", tmp_path / "back", progress_bar=True)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_the_older_name_still_works():
    import artifactsync  # noqa: PLC0415 - the name itself is under test

    with pytest.warns(DeprecationWarning, match="RemoteUploaderDownloader"):
        remote = artifactsync.ObjectStoreLogger("memory://older", run_name="r")
    assert isinstance(remote, RemoteUploaderDownloader)


@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_there_and_back_on_real_servers(request, cloud, make_file, tmp_path):
    server = request.getfixturevalue(cloud)
    url = server.fresh_url()
    big, small = make_file("big", 12_000_000), make_file("small", 10)
    with RemoteUploaderDownloader(url, run_name="r", storage_options=server.storage_options) as remote:
        remote.upload_file("{run_name}/big", big)
        remote.upload_file("{run_name}/small", small)
        remote.wait(60)
        assert remote.list_remote_files("{run_name}/") == ["r/big", "r/small"]
        for path in (big, small):
            back = remote.download_file(f"{{run_name}}/{path.name}", tmp_path / "back" / path.name)
            assert back.read_bytes() == path.read_bytes()
        with pytest.raises(ObjectNotFoundError):
            remote.download_file("{run_name}/no", tmp_path / "no")
        again = remote.upload_file("{run_name}/small", big)
        assert isinstance(again.exception(60), AlreadyExistsError)


def test_a_bucket_that_does_not_exist_is_named(s3, path):
    remote = RemoteUploaderDownloader(s3.missing_bucket(), run_name="r", storage_options=s3.storage_options)
    upload = remote.upload_file("x", path)
    with pytest.raises(UploadError, match="upload of x failed after 1 attempt") as caught:
        remote.close(DEADLINE_S)
    assert isinstance(caught.value.__cause__, BucketNotFoundError)
    assert upload.attempts == 1


def test_an_endpoint_where_nobody_listens_is_named_soon(path):
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"}
    remote = RemoteUploaderDownloader("s3://bucket", run_name="r", storage_options=options)
    remote.upload_file("x", path)
    with pytest.raises(UploadError, match=r"upload of x failed after \d+ attempt.*cannot be reached"):
        remote.close(15)


def test_100_uploads_over_a_line_that_fails_are_all_durable(s3, fault_proxy, make_file):
    cloud = fault_proxy(s3, seed=5)
    url = cloud.fresh_url()
    rules = [
        cloud.proxy.add(Answer(503), probability=0.15),
        cloud.proxy.add(ResetUpload(after_bytes=500), method="PUT", probability=0.1),
        cloud.proxy.add(LoseAnswer(), method="PUT", probability=0.1),
    ]
    paths = [make_file(f"f{n}", 1000 + n) for n in range(100)]
    with RemoteUploaderDownloader(url, run_name="r", storage_options=cloud.storage_options) as remote:
        for path in paths:
            remote.upload_file(f"{{run_name}}/{path.name}", path)
        remote.wait(60)
        assert remote.status().last_error is None
    assert sum(rule.hits for rule in rules) > 30
    store = open_store(url, s3.storage_options)
    assert {info.key: store.get(info.key) for info in store.list()} == {f"r/{p.name}": p.read_bytes() for p in paths}
