"""Credentials that end in the middle of a large file: renewed, and what was sent or brought is not begun again."""

from __future__ import annotations

import sys
import textwrap
import threading

import google.auth.credentials
import pytest

from artifactsync.run import Run
from artifactsync.stores import gcs_session, open_store
from artifactsync.stores.object import PART_BYTES
from artifactsync.testing import FaultyStore
from tests.fault_proxy import Answer, FaultProxy
from tests.stores.honest_gcs import HonestGcs

_PARTS = 4
_DATA = bytes(range(256)) * (_PARTS * PART_BYTES // 256)


@pytest.fixture
def short_keys(tmp_path, monkeypatch):
    """A profile whose keys come from a program and are always about to end; returns the file with a letter per call."""

    def write(key, secret):
        program = tmp_path / "program.py"
        program.write_text(
            textwrap.dedent(f"""
            import datetime as dt, json
            open({str(tmp_path / "calls")!r}, "a").write("x")
            until = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=30)
            print(json.dumps({{"Version": 1, "AccessKeyId": {key!r}, "SecretAccessKey": {secret!r},
                              "Expiration": until.isoformat()}}))
            """)
        )
        config = tmp_path / "config"
        config.write_text(f"[profile tool]\ncredential_process = {sys.executable} -S {program}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        return tmp_path / "calls"

    return write


def test_s3_keys_are_renewed_within_a_file(short_keys, s3, fault_proxy, tmp_path):
    options = s3.storage_options
    calls = short_keys(options.pop("key"), options.pop("secret"))
    line = fault_proxy(s3)
    options.update(endpoint_url=line.storage_options["endpoint_url"], profile="tool")
    url = line.fresh_url()
    with Run("r", remote=url, storage_options=options, local_root=tmp_path / "runs") as run:
        (run.local_dir / "large.pt").write_bytes(_DATA)
        before = len(calls.read_text())
        run.save_files([run.local_dir / "large.pt"], step=1).result(60)
        assert len(calls.read_text()) > before  # renewed while it was sent
        begins = line.proxy.seen(method="POST", when=lambda r: r.query.startswith("uploads"))
        parts = [request.query.split("&")[0] for request in line.proxy.seen(method="PUT", contains="partNumber=")]
        assert len(begins) == 1
        assert sorted(parts) == [f"partNumber={number}" for number in range(1, _PARTS + 1)]

        line.proxy.forget()
        before = len(calls.read_text())
        run.pull(tmp_path / "back")
        assert len(calls.read_text()) > before
        assert_read_once(line.proxy.seen(method="GET", contains="large.pt"))
    assert (tmp_path / "back" / "large.pt").read_bytes() == _DATA


def assert_read_once(requests):
    """No byte was asked for twice; the first byte alone may be."""
    assert requests
    ranges = [tuple(map(int, r.headers["range"].removeprefix("bytes=").split("-"))) for r in requests]
    long = sorted(one for one in ranges if one != (0, 0))
    assert [start for start, _ in long] == [0, *(end + 1 for _, end in long[:-1])]
    assert long[-1][1] == len(_DATA)  # one more, to see that there is none


class Tokens(google.auth.credentials.Credentials):
    """Tokens that the server takes until it forgets them; each renewal gives the next one."""

    def __init__(self, server):
        super().__init__()
        self.server = server
        server.tokens = set()
        self.renewals = 0
        self.lock = threading.Lock()

    def refresh(self, request):
        with self.lock:
            self.renewals += 1
            self.token = f"token-{self.renewals}"
            self.server.tokens = {*(self.server.tokens or ()), self.token}


def test_google_tokens_are_renewed_within_a_file(monkeypatch, tmp_path):
    with HonestGcs("bucket") as server:
        proxy = FaultProxy(server.endpoint_url)
        tokens = Tokens(server)
        monkeypatch.setattr(gcs_session, "_credentials", lambda *_: tokens)  # plain http never gets a token otherwise
        # The tokens are of this process alone: no other one could open such a store, and send large files to it.
        store = FaultyStore(open_store("gs://bucket", {"endpoint_url": proxy.url}))

        def revoke(request):
            """The last bytes, and the second range, find their token revoked. The proxy itself does no harm."""
            if "upload_id" in request.query or ("alt=media" in request.query and "large.pt" in request.path):
                revoked.append(request)
                if len(revoked) == 2:
                    server.tokens = set()
            return False

        with Run("r", remote=store, local_root=tmp_path / "runs") as run:
            (run.local_dir / "large.pt").write_bytes(_DATA)
            revoked: list[object] = []
            proxy.add(Answer(500), when=revoke)
            before = tokens.renewals
            run.save_files([run.local_dir / "large.pt"], step=1).result(60)
            assert tokens.renewals > before
            begins = proxy.seen(method="POST", contains="uploadType=resumable")
            chunks = [r for r in proxy.seen(method="PUT", contains="upload_id=") if r.server_status in {200, 308}]
            assert len([r for r in begins if r.server_status == 200]) == 1
            assert sum(r.body_bytes for r in chunks) == len(_DATA)
            refused = [r for r in proxy.seen(method="PUT", contains="upload_id=") if r.server_status == 401]
            assert refused

            proxy.forget()
            revoked.clear()
            before = tokens.renewals
            run.pull(tmp_path / "back")
            assert tokens.renewals > before
            reads = [r for r in proxy.seen(method="GET", contains="alt=media") if "large.pt" in r.path]
            assert [r for r in reads if r.server_status == 401]
            assert_read_once([r for r in reads if r.server_status in {200, 206}])
        proxy.close()
    assert (tmp_path / "back" / "large.pt").read_bytes() == _DATA
