from __future__ import annotations

import subprocess
import sys

import pytest

from artifactsync.errors import ConfigurationError, CredentialsError, RemoteUnreachableError
from artifactsync.stores import open_store
from artifactsync.testing import FakeClock


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "FILE://{}", "file://localhost{}"])
def test_forms_of_a_local_remote(tmp_path, form):
    store = open_store(form.format(tmp_path / "a b#c%20d"))
    store.put("k", b"1")
    assert (tmp_path / "a b#c%20d" / "k").read_bytes() == b"1"
    assert store.url == f"file://{tmp_path}/a b#c%20d"


def test_a_path_object_and_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("here").put("k", b"1")
    open_store(tmp_path / "there").put("k", b"2")
    assert (tmp_path / "here" / "k").read_bytes() == b"1"
    assert (tmp_path / "there" / "k").read_bytes() == b"2"


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    open_store("~/remote").put("k", b"1")
    assert (tmp_path / "remote" / "k").read_bytes() == b"1"


def test_memory_is_one_place_for_each_name():
    open_store("memory://open-a/p").put("k", b"1")
    assert open_store("memory://open-a/p").get("k") == b"1"
    assert [info.key for info in open_store("memory://open-a").list()] == ["p/k"]
    assert list(open_store("memory://open-b").list()) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "empty"),
        ("file://", "empty"),
        ("file://tmp/x", "names the host 'tmp'"),
        ("s3:/bucket/prefix", "wants two slashes"),
        ("gs:bucket", "wants two slashes"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("az://", "names no bucket"),
        ("s3://bucket/a//b", "empty, '.' or '..' part"),
        ("s3://bucket/../other", "empty, '.' or '..' part"),
        ("memory://x/./y", "empty, '.' or '..' part"),
        ("a\0b", "NUL"),
        ("no-such-scheme://x", "no-such-scheme"),
    ],
)
def test_wrong_urls_are_refused_before_any_request(url, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_store(url)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("s3://b", {"keyy": "x"}, "unknown keyy"),
        ("s3://b", {"key": "x"}, "only one of key and secret"),
        ("s3://b", {"key": "k", "secret": "s", "verify": False}, "always verified"),
        ("s3://b", {"key": "k", "secret": "s", "endpoint_url": "localhost:9000"}, "no http"),
        ("s3://b", {"key": "k", "secret": "s", "verify": "/no/such/file.pem"}, "cannot be read"),
        ("s3://b", {"profile": "nobody"}, "nobody"),
        ("az://c", {}, "storage account"),
        ("az://c", {"account_name": "a", "acount_key": "x"}, "unknown acount_key"),
    ],
)
def test_wrong_options_are_refused_before_any_request(url, options, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_store(url, options)
    assert caught.value.hint


def test_no_credentials_is_said_at_once():
    with pytest.raises(CredentialsError, match="no AWS credentials") as caught:
        open_store("s3://bucket")
    assert caught.value.exit_code == 6
    assert "AWS_PROFILE" in caught.value.hint


@pytest.mark.parametrize("scheme", ["s3", "az", "gs", "memory", "no-such-scheme"])
def test_no_secret_of_a_url_is_repeated(scheme):
    with pytest.raises(ConfigurationError) as caught:
        open_store(f"{scheme}://user:hunter2@host/p")
    shown = f"{caught.value} {caught.value.hint} {caught.value.url}"
    assert "hunter2" not in shown


def test_opening_a_local_store_loads_no_cloud_library():
    code = (
        "import sys; from artifactsync.stores import open_store; open_store('x');"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'boto3', 'botocore', 'obstore', 'google', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("endpoint_url", ["http://127.0.0.1:1", "http://no-such-host.invalid", "https://127.0.0.1:1"])
@pytest.mark.parametrize("operation", ["head", "list", "get", "put"])
def test_a_wrong_endpoint_is_unreachable_within_fifteen_seconds(endpoint_url, operation):
    store = open_store("s3://bucket/p", {"key": "k", "secret": "s", "endpoint_url": endpoint_url})
    clock = FakeClock()
    retrying = store.store
    retrying._sleep, retrying._clock = clock.sleep, clock.monotonic  # the pauses alone; the requests are real
    calls = {
        "head": lambda: store.head("k"),
        "list": lambda: list(store.list()),
        "get": lambda: store.get("k"),
        "put": lambda: store.put("k", b"x"),
    }
    with pytest.raises(RemoteUnreachableError) as caught:
        calls[operation]()
    assert caught.value.exit_code == 2
    assert "AWS_ENDPOINT_URL" in caught.value.hint
    assert sum(clock.sleeps_s) <= 8
