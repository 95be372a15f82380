"""Canaries: secrets in URLs, options and the environment never come out again.

Every log record of every library at DEBUG level, every error raised with its whole traceback, every repr, report,
record and line of the command line is searched for them, plain, quoted and in base64.
"""

from __future__ import annotations

import base64
import logging
import os
import pickle
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from artifactsync import RemoteUploaderDownloader, Run, list_runs
from artifactsync.stores import open_store
from artifactsync.stores.retry import RetryPolicy
from artifactsync.transfer.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PLAIN = "c4n4ryPlain9f3a7d"
NASTY = "c4n4ry/n@sty:9f3a+7d=="
QUOTED = quote(NASTY, safe="")
CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens there
# The characters of base64 that the word alone decides, whatever stands before and behind it.
IN_BASE64 = (
    base64.b64encode(b"\0" * shift + b"c4n4ry")[-(-shift * 8 // 6) : (shift + 6) * 8 // 6].decode()
    for shift in range(3)
)
MARKS = ("c4n4ry", *IN_BASE64)
IMPATIENT = RetryPolicy(max_attempts=1, deadline_s=1.0)


class Everything(logging.Handler):
    """All that is logged anywhere, as a formatter prints it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, logging.Formatter("%(message)s").format(record)))


@pytest.fixture
def heard() -> Iterator[Everything]:
    handler, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


class Told:
    """What came out, by where."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.errors = 0

    def add(self, where: str, what: object) -> None:
        self.texts.append((where, what if isinstance(what, str) else repr(what)))

    def attempt(self, where: str, call: Callable[[], Any]) -> Any:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - whatever comes out is searched
            self.errors += 1
            self.add(where, "".join(traceback.format_exception(error)))
            cause: BaseException | None = error
            while cause is not None:
                self.add(f"{where}: {type(cause).__name__}", f"{cause} {cause!r} {cause.args} {cause.__dict__}")
                cause = cause.__cause__ or cause.__context__
            self.add(where, pickle.dumps(error).decode("latin-1"))
            return None
        self.add(where, result)
        return result

    def hits(self) -> list[str]:
        return [f"{where}: {text[:300]}" for where, text in self.texts if any(mark in text for mark in MARKS)]


def layers(store: Any) -> Iterator[Any]:
    seen = set()
    while store is not None and id(store) not in seen:
        seen.add(id(store))
        yield store
        store = getattr(store, "store", None) or getattr(store, "_store", None)


def exercise(told: Told, url: str, options: Mapping[str, Any], folder: Path) -> None:
    """Do everything that can be done with a remote."""
    store = told.attempt("open_store", lambda: open_store(url, options, retry=IMPATIENT))
    if store is None:
        return
    for layer in layers(store):
        told.add("repr of a store", f"{layer!r} {layer.url}")
    told.attempt("put", lambda: store.put("k", b"x"))
    told.attempt("put_if_absent", lambda: store.put_if_absent("k", b"x"))
    told.attempt("get", lambda: store.get("nothing"))
    told.attempt("head", lambda: store.head("nothing"))
    told.attempt("list", lambda: list(store.list("a")))
    told.attempt("list_folders", store.list_folders)
    told.attempt("copy", lambda: store.copy("k", "l"))
    told.attempt("delete", lambda: store.delete(["k"]))
    told.attempt("Run", lambda: Run("exp7", remote=store, local_root=folder))
    run = told.attempt("Run to read", lambda: Run("exp7", remote=store, local_root=folder, read_only=True))
    for name in ("status", "checkpoints", "verify", "artifacts", "latest", "contents"):
        told.attempt(name, getattr(run, name))
    told.attempt("pull", lambda: run.pull(folder / "out"))
    told.add("Run", f"{run!r} {run.remote}")
    (folder / "f").write_bytes(b"x")
    uploader = RemoteUploaderDownloader(
        url, run_name="exp7", storage_options=dict(options), patience=Patience(deadline_s=0, unanswered_deadline_s=0)
    )
    told.attempt("upload", lambda: uploader.upload_file("f", folder / "f").result(30))
    told.add("uploader", f"{uploader!r} {uploader.status()!r} {getattr(uploader, 'remote', '')}")
    told.attempt("close", lambda: uploader.close(1))
    store.close()


AZURE_STRING = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey={NASTY};BlobEndpoint={CLOSED}/a"
SERVICE_ACCOUNT = {
    "type": "service_account",
    "client_email": "a@b.iam.gserviceaccount.com",
    "private_key": f"-----BEGIN PRIVATE KEY-----\n{PLAIN}\n-----END PRIVATE KEY-----\n",
    "token_uri": f"{CLOSED}/token",
    "private_key_id": PLAIN,
}
S3_KEYS = {"key": "AKIA", "secret": NASTY, "token": PLAIN}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "s3: keys in the URL": (f"s3://AKIA:{QUOTED}@bucket/x", {}),
    "s3: nasty keys in the URL": (f"s3://AKIA:{NASTY}@bucket/x", {}),
    "s3: a word before @": (f"s3://{PLAIN}@bucket/x", {**S3_KEYS, "endpoint_url": CLOSED}),
    "s3: a query": (f"s3://bucket/x?X-Amz-Signature={PLAIN}&secret={PLAIN}", {**S3_KEYS, "endpoint_url": CLOSED}),
    "s3: options": ("s3://bucket/x", {**S3_KEYS, "endpoint_url": CLOSED}),
    "s3: one of two": ("s3://bucket/x", {"secret": NASTY}),
    "s3: an endpoint with a user": ("s3://bucket/x", {**S3_KEYS, "endpoint_url": f"http://user:{QUOTED}@127.0.0.1:9"}),
    "s3: an endpoint without scheme": ("s3://bucket/x", {**S3_KEYS, "endpoint_url": f"user:{PLAIN}@127.0.0.1:9"}),
    "s3: nested": ("s3://bucket/x", {"client_kwargs": {"endpoint_url": f"http://u:{PLAIN}@127.0.0.1:9"}, **S3_KEYS}),
    "s3: an unknown option": ("s3://bucket/x", {"pasword": PLAIN}),
    "s3: a wrong type": ("s3://bucket/x", {"client_kwargs": PLAIN}),
    "gs: a service account": ("gs://bucket/x", {"token": SERVICE_ACCOUNT, "endpoint_url": CLOSED}),
    "gs: a token of text": ("gs://bucket/x", {"token": PLAIN, "endpoint_url": CLOSED}),
    "gs: keys in the URL": (f"gs://u:{PLAIN}@bucket/x", {"token": "anon", "endpoint_url": CLOSED}),
    "az: an account key": ("az://box/x", {"account_name": "a", "account_key": NASTY, "endpoint_url": CLOSED}),
    "az: a good key": (
        "az://box/x",
        {"account_name": "a", "account_key": base64.b64encode(NASTY.encode()).decode(), "endpoint_url": CLOSED},
    ),
    "az: a SAS token": ("az://box/x", {"account_name": "a", "sas_token": f"sv=1&sig={QUOTED}", "endpoint_url": CLOSED}),
    "az: a SAS in the endpoint": ("az://box/x", {"account_name": "a", "endpoint_url": f"{CLOSED}/a?sig={PLAIN}"}),
    "az: a connection string": ("az://box/x", {"connection_string": AZURE_STRING}),
    "az: a client secret": (
        "az://box/x",
        {"account_name": "a", "tenant_id": "t", "client_id": "c", "client_secret": PLAIN, "endpoint_url": CLOSED},
    ),
    "ftp: a URL": (f"ftp://user:{PLAIN}@127.0.0.1:9/x", {}),
    "ftp: a nasty URL": (f"ftp://user:{QUOTED}@127.0.0.1:9/x", {}),
    "ftp: options": ("ftp://127.0.0.1:9/x", {"username": "u", "password": NASTY}),
    "http: a URL": (f"http://user:{PLAIN}@127.0.0.1:9/x?token={PLAIN}", {}),
    "http: a header": ("http://127.0.0.1:9/x", {"client_kwargs": {"headers": {"Authorization": PLAIN}}}),
    "no such scheme": (f"nonsense://user:{PLAIN}@host/x", {"password": PLAIN}),
    "file: a host": (f"file://user:{PLAIN}@host/x", {}),
}


SLOW = {"http: a URL", "http: a header", "gs: a service account"}  # they try again before they give up
CHOICE = [pytest.param(case, marks=[pytest.mark.crash] * (case in SLOW)) for case in CASES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CHOICE)
def test_no_secret_comes_out(case: str, heard: Everything, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, options = CASES[case]
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, PLAIN)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    told = Told()
    exercise(told, url, options, tmp_path)
    assert told.errors
    assert not told.hits()
    assert not leaks(heard)
    print(f"canaries, {case}: {told.errors} errors, {len(told.texts)} texts, {len(heard.lines)} log lines: 0 hits")


def leaks(heard: Everything) -> list[str]:
    return [f"{name}: {line[:300]}" for name, line in heard.lines if any(mark in line for mark in MARKS)]


def test_the_search_finds_what_it_looks_for() -> None:
    for text in (PLAIN, NASTY, base64.b64encode(f"user:{PLAIN}".encode()).decode(), quote(NASTY)):
        told = Told()
        told.attempt("x", lambda text=text: open(f"/nowhere/{text.replace('/', '_')}"))  # noqa: PTH123, SIM115
        assert told.hits() or any(mark in text for mark in MARKS), text


@pytest.mark.filterwarnings("ignore")
def test_no_secret_is_on_the_remote_nor_on_the_screen(
    s3: Any, heard: Everything, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole life with the right secret, and the command line with a wrong one."""
    secret = s3.storage_options["secret"]
    url, told = s3.fresh_url(), Told()
    monkeypatch.setenv("ARTIFACTSYNC_TEST_PASSWORD", PLAIN)
    with Run("exp7", remote=url, storage_options=s3.storage_options, local_root=tmp_path / "runs") as run:
        for step in (1, 2):
            (run.local_dir / f"{step}.pt").write_bytes(b"x" * 100)
            run.save_files([run.local_dir / f"{step}.pt"], step=step, metrics={"loss": 1}).result(60)
        (run.local_dir / "log.txt").write_text("a line\n")
        run.push(run.local_dir / "log.txt", growing=True).result(60)
        told.add("run", f"{run!r} {run.status()!r} {run.status().to_json()} {run.contents()!r} {run.catalogue()!r}")
    store = open_store(url, s3.storage_options)
    for info in store.list():
        told.add(info.key, info.key + store.get(info.key).decode("latin-1"))
    told.add("runs", list_runs(url, s3.storage_options))
    report = Run("exp7", remote=url, storage_options=s3.storage_options, local_root=tmp_path, read_only=True)
    told.add("pull", f"{report.pull(tmp_path / 'out').to_json()} {report.verify(deep=True).to_json()}")
    assert len(told.texts) > 8
    assert [where for where, text in told.texts if secret in text] == []
    assert [f"{name}: {line[:200]}" for name, line in heard.lines if secret in line] == []

    wrong = {"AWS_SECRET_ACCESS_KEY": PLAIN, "AWS_SESSION_TOKEN": NASTY, "AWS_ACCESS_KEY_ID": s3.storage_options["key"]}
    environment = {**os.environ, **wrong, "AWS_ENDPOINT_URL": s3.endpoint_url, "AWS_REGION": "us-east-1"}
    for arguments in (["ls"], ["--json", "pull", "exp7", "x"]):
        told.add(" ".join(arguments), screen(["--remote", url, *arguments], tmp_path, environment))
    told.add("credentials in the URL", screen(["--remote", f"s3://AKIA:{NASTY}@bucket/x", "ls"], tmp_path, environment))
    assert not told.hits()
    assert not leaks(heard)


def screen(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run the command, which fails, and return all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "artifactsync", *arguments],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in {2, 6}, done.stderr
    return done.stdout + done.stderr
