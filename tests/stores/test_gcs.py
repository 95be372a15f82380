"""The Google Cloud Storage store where the contract does not look: preconditions of large uploads, lost answers,
damaged bytes, credentials, and what the user is told."""

from __future__ import annotations

import contextlib
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import google.auth.compute_engine._metadata as metadata
import pytest
from google.auth.credentials import Credentials

from artifactsync import errors
from artifactsync.stores import RetryPolicy, create_once, gcs_session, open_store
from artifactsync.stores.gcs import GcsStore
from artifactsync.testing import StoreContract
from artifactsync.testing.store_contract import PatternBody
from tests.fault_proxy import Answer, BlackHole, FaultProxy, FlipDownload, FlipUpload, LoseAnswer, ResetUpload, Truncate
from tests.stores.honest_gcs import HonestGcs

LARGE_BYTES = 17 * 2**20 + 1


class TestDocumentedSemantics(StoreContract):
    """The whole contract on our own honest fake, large creates included."""

    @pytest.fixture(params=[True, False], ids=["checked-at-start", "checked-at-end"])
    def store(self, request):
        with HonestGcs("bucket", checks_at_start=request.param) as server:
            store = GcsStore("bucket", storage_options={"endpoint_url": server.endpoint_url})
            yield store
            store.close()


@pytest.fixture
def server():
    with HonestGcs("bucket") as server:
        yield server


@pytest.fixture
def proxy(server):
    proxy = FaultProxy(server.endpoint_url)
    yield proxy
    proxy.close()


@pytest.fixture
def store(proxy):
    store = GcsStore("bucket", storage_options={"endpoint_url": proxy.url})
    yield store
    store.close()


BODIES = [PatternBody(1000, seed=1), PatternBody(LARGE_BYTES, seed=2)]
both_sizes = pytest.mark.parametrize("body", BODIES, ids=["small", "large"])


class TestLargeUploads:
    def test_they_go_in_two_requests_of_one_session(self, store, proxy):
        store.put("a", BODIES[1])
        chunks = proxy.seen(method="PUT", contains="upload_id")
        assert [r.body_bytes for r in chunks] == [LARGE_BYTES - 1, 1]

    @pytest.mark.parametrize("size_bytes", [8 * 2**20 + 1, 16 * 2**20, 16 * 2**20 + 1, 17 * 2**20, 17 * 2**20 - 1])
    def test_of_any_length(self, store, server, size_bytes):
        store.put("a", PatternBody(size_bytes, seed=3))
        assert server.objects["a"][0] == PatternBody(size_bytes, seed=3).read()

    def test_one_winner_of_a_race(self, store, server):
        server.checks_at_start = False  # all get their session: the end decides

        def race(seed):
            try:
                store.put_if_absent("race", PatternBody(LARGE_BYTES, seed=seed))
            except errors.AlreadyExistsError:
                return None
            return seed

        with ThreadPoolExecutor(4) as pool:
            winners = [seed for seed in pool.map(race, range(4)) if seed is not None]
        assert len(winners) == 1
        assert server.objects["race"][0] == PatternBody(LARGE_BYTES, seed=winners[0]).read()

    def test_up_to_16_mib_go_with_one(self, store, server, proxy):
        body = PatternBody(9 * 2**20, seed=4)
        proxy.add(ResetUpload(3 * 2**20), method="PUT", contains="upload_id", times=1)
        store.put("a", body)
        assert server.objects["a"][0] == body.read()
        assert [r.body_bytes for r in proxy.seen(method="PUT", contains="upload_id")][1:] == [0, 6 * 2**20]

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_broken_one_goes_on_from_what_the_service_has(self, store, server, proxy, times):
        proxy.add(ResetUpload(3 * 2**20 + 7), method="PUT", contains="upload_id", times=1)
        proxy.add(ResetUpload(2**20), method="PUT", contains="upload_id", skip=2, times=times - 1)
        store.put("a", BODIES[1])
        assert server.objects["a"][0] == BODIES[1].read()
        assert len(proxy.seen(method="POST")) == 1
        *_, rest, last = [r.body_bytes for r in proxy.seen(method="PUT", contains="upload_id")]
        assert (rest, last) == (LARGE_BYTES - 1 - (3 * 2**20 + (times - 1) * 2**20), 1)

    def test_a_lost_last_answer_of_a_put_is_asked_for_again(self, store, server, proxy):
        proxy.add(LoseAnswer(), method="PUT", contains="upload_id", skip=1, times=1)
        store.put("a", BODIES[1])
        assert server.objects["a"][0] == BODIES[1].read()
        assert len(server.objects) == len(server.sessions) == 1

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_a_service_that_fails_is_asked_what_it_has(self, store, server, proxy, status):
        proxy.add(Answer(status), method="PUT", contains="upload_id", times=2)
        store.put("a", BODIES[1])
        assert server.objects["a"][0] == BODIES[1].read()
        assert len(proxy.seen(method="POST")) == 1

    @pytest.mark.parametrize("status", [404, 410])
    def test_a_session_that_is_gone_is_begun_anew(self, store, server, proxy, status):
        proxy.add(Answer(status), method="PUT", contains="upload_id", times=1)
        with pytest.raises(errors.TransientStoreError):
            store.put("a", BODIES[1])
        store.put("a", BODIES[1])
        assert server.objects["a"][0] == BODIES[1].read()

    def test_a_service_that_takes_nothing_is_given_up(self, store, server, proxy, monkeypatch):
        monkeypatch.setattr("artifactsync.stores.gcs_upload._PATIENCE_S", 0.5)
        monkeypatch.setattr("artifactsync.stores.gcs_upload._PAUSES_S", (0.01, 0.01))
        proxy.add(Answer(308), method="PUT", contains="upload_id")
        with pytest.raises(errors.TransientStoreError):
            store.put("a", BODIES[1])
        assert server.objects == {}

    def test_a_body_that_changes_under_the_upload_becomes_no_object(self, store, server):
        with pytest.raises(errors.FileChangedError):
            store.put("a", Cut(BODIES[1]))
        assert server.objects == {}


class Cut:
    """A body that finds out at its end that its file changed."""

    def __init__(self, body):
        self.size_bytes, self._body = body.size_bytes, body

    def chunks(self, chunk_bytes):
        *most, _ = self._body.chunks(chunk_bytes)
        yield from most
        raise errors.FileChangedError("it changed")


class TestCreateOnly:
    @both_sizes
    def test_a_lost_answer_is_unknown_and_nothing_is_sent_again(self, store, server, proxy, body):
        store.list_folders()
        proxy.forget()
        skip = 2 if body is BODIES[1] else 0
        proxy.add(LoseAnswer(), contains="upload", skip=skip)
        with pytest.raises(errors.UnknownOutcomeError):
            store.put_if_absent("a", body)
        assert server.objects["a"][0] == body.read()
        assert len(proxy.seen(contains="upload")) == skip + 1

    @both_sizes
    @pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
    def test_a_failing_server_is_unknown(self, store, proxy, body, status):
        proxy.add(Answer(status, retry_after_s=1), method="POST")
        with pytest.raises(errors.UnknownOutcomeError):
            store.put_if_absent("a", body)
        assert len(proxy.seen(method="POST")) == 1

    def test_too_many_requests_was_surely_not_applied(self, store, proxy):
        proxy.add(Answer(429, retry_after_s=3))
        with pytest.raises(errors.TransientStoreError) as caught:
            store.put_if_absent("a", b"1")
        assert caught.value.retry_after_s == 3.0

    def test_create_once_reads_back(self, store, server, proxy):
        proxy.add(LoseAnswer(), contains="upload", times=1)
        create_once(store, "record", b"ours", sleep=lambda _: None)
        assert server.objects["record"][0] == b"ours"

    @pytest.mark.parametrize("size_bytes", [1000, LARGE_BYTES])
    def test_the_condition_is_in_the_request(self, store, proxy, size_bytes):
        store.put_if_absent("a", PatternBody(size_bytes))
        assert [("ifGenerationMatch=0" in r.query) for r in proxy.seen(method="POST")] == [True]
        proxy.forget()
        store.put("a", PatternBody(size_bytes))
        assert [("ifGenerationMatch" in r.query) for r in proxy.seen(method="POST")] == [False]


class TestDamage:
    @both_sizes
    @pytest.mark.parametrize("put", ["put", "put_if_absent"])
    def test_the_server_refuses_damaged_bytes(self, store, server, proxy, body, put):
        is_large = body is BODIES[1]
        proxy.add(FlipUpload(700), method="PUT" if is_large else "POST", times=1)
        with pytest.raises(errors.TransientStoreError, match="damaged on their way"):
            getattr(store, put)("a", body)
        assert server.objects == {}

    def test_a_damaged_download_is_found_out(self, store, proxy):
        store.put("a", bytes(5000))
        proxy.add(FlipDownload(100), method="GET")
        with pytest.raises(errors.TransientStoreError, match="damaged on their way"):
            store.get("a")

    def test_a_download_that_was_damaged_once_is_asked_for_again(self, store, proxy):
        store.put("a", bytes(5000))
        proxy.add(FlipDownload(100), method="GET", times=1)
        assert store.get("a") == bytes(5000)

    @pytest.mark.parametrize("end", [None, 4000])
    def test_a_download_that_breaks_off(self, store, proxy, end):
        store.put("a", bytes(5000))
        proxy.add(Truncate(100), method="GET")
        with pytest.raises(errors.TransientStoreError):
            store.get("a", end=end)


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (401, errors.CredentialsError),
            (403, errors.PermissionDeniedError),
            (408, errors.TransientStoreError),
            (409, errors.TransientStoreError),
            (429, errors.TransientStoreError),
            (500, errors.TransientStoreError),
            (503, errors.TransientStoreError),
            (418, errors.StoreError),
        ],
    )
    def test_statuses(self, store, proxy, status, expected):
        calls = {
            "get": lambda: store.get("a"),
            "head": lambda: store.head("a"),
            "put": lambda: store.put("a", b"1"),
            "list": lambda: list(store.list()),
            "list_folders": store.list_folders,
            "delete": lambda: store.delete(["a"]),
            "copy": lambda: store.copy("a", "b"),
        }
        proxy.add(Answer(status, retry_after_s=2))
        for name, call in calls.items():
            with pytest.raises(errors.ArtifactSyncError) as caught:
                call()
            assert type(caught.value) is expected, name
            assert caught.value.url.startswith("gs://bucket"), name
            if expected is errors.TransientStoreError and status != 408:
                assert caught.value.retry_after_s == 2.0, name

    def test_a_rate_limit_that_says_403(self, store, proxy):
        proxy.add(Answer(403, body=b'{"error":{"code":403,"message":"rateLimitExceeded"}}'))
        with pytest.raises(errors.TransientStoreError):
            store.head("a")

    @pytest.mark.parametrize(
        ("key", "range_"), [("a", {}), ("a", {"start": 1, "end": 3}), ("a", {"start": 9}), ("b", {})]
    )
    def test_a_read_is_one_request_also_of_what_is_not_there(self, store, proxy, key, range_):
        store.put("a", b"12345")
        store.get("a")  # so that the bucket is known
        before = len(proxy.seen())
        with contextlib.suppress(errors.ObjectNotFoundError):
            assert store.get(key, **range_) == b"12345"[range_.get("start", 0) : range_.get("end")]
        assert len(proxy.seen()) == before + 1

    def test_an_upload_session_is_a_secret(self, store, proxy):
        for fault in (Answer(503), LoseAnswer(), Answer(418)):
            proxy.heal()
            proxy.add(fault, method="PUT")
            with pytest.raises(errors.ArtifactSyncError) as caught:
                store.put_if_absent("a", BODIES[1])
            told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            assert "upload_id=secret" not in told
            assert proxy.seen(contains="upload_id=secret")


class TestBuckets:
    @pytest.mark.parametrize("which", ["fake-gcs-server", "honest"])
    def test_a_missing_bucket_is_told_from_a_missing_object(self, which, server, request):
        cloud = request.getfixturevalue("gcs") if which == "fake-gcs-server" else None
        name = cloud.missing_bucket().removeprefix("gs://") if cloud else "no-such-bucket"
        options = {"endpoint_url": cloud.endpoint_url if cloud else server.endpoint_url}
        store = GcsStore(name, storage_options=options)
        calls = {
            "get": lambda: store.get("a"),
            "head": lambda: store.head("a"),
            "put": lambda: store.put("a", b"1"),
            "large put": lambda: store.put("a", BODIES[1]),
            "put_if_absent": lambda: store.put_if_absent("a", b"1"),
            "list": lambda: list(store.list()),
            "list_folders": store.list_folders,
            "delete": lambda: store.delete(["a"]),
            "copy": lambda: store.copy("a", "b"),
        }
        for call_name, call in calls.items():
            with pytest.raises(errors.BucketNotFoundError, match="does not exist") as caught:
                call()
            assert caught.value.url == f"gs://{name}", call_name
            assert caught.value.hint
        store.close()


class TestUnreachable:
    def test_a_closed_port(self):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        store = GcsStore("bucket", storage_options={"endpoint_url": f"http://127.0.0.1:{port}"})
        for call in (
            lambda: store.head("a"),
            lambda: store.put_if_absent("a", b"1"),
            lambda: list(store.list()),
            lambda: store.put("a", BODIES[1]),
        ):
            with pytest.raises(errors.RemoteUnreachableError, match="Connection refused"):
                call()
        store.close()

    def test_an_endpoint_that_accepts_and_says_nothing(self, proxy, monkeypatch):
        monkeypatch.setattr("artifactsync.stores.gcs_session.FIRST_TIMEOUT_S", (0.2, 0.2))
        proxy.add(BlackHole())
        policy = RetryPolicy(unanswered_deadline_s=1.0)
        store = open_store("gs://bucket/prefix", {"endpoint_url": proxy.url}, retry=policy)
        began = time.monotonic()
        with pytest.raises(errors.RemoteUnreachableError, match="never answered"):
            store.head("a")
        assert time.monotonic() - began < 8
        store.close()

    def test_the_first_wait_leaves_room_within_15_s(self):
        assert max(sum(gcs_session.FIRST_TIMEOUT_S), RetryPolicy().unanswered_deadline_s + 4.0) < 15


class TestOptions:
    def test_opening_sends_nothing(self, proxy):
        GcsStore("bucket", storage_options={"endpoint_url": proxy.url}).close()
        assert proxy.seen() == []

    @pytest.mark.parametrize("with_scheme", [True, False])
    def test_emulator_host(self, server, monkeypatch, with_scheme):
        host = server.endpoint_url if with_scheme else server.endpoint_url.removeprefix("http://")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        store = open_store("gs://bucket/prefix")
        store.put("a", b"1")
        assert list(server.objects) == ["prefix/a"]
        store.close()

    @pytest.mark.parametrize(
        "options", [{"endpont_url": "x"}, {"endpoint_url": "ftp://x"}, {"endpoint_url": "http://"}]
    )
    def test_wrong_options(self, options):
        with pytest.raises(errors.ConfigurationError) as caught:
            open_store("gs://bucket", options)
        assert caught.value.hint

    def test_the_project_that_pays(self, server, proxy):
        store = GcsStore("bucket", storage_options={"endpoint_url": proxy.url, "user_project": "me"})
        store.put("a", b"1")
        assert "userProject=me" in proxy.seen()[0].query
        store.close()

    def test_no_token_over_plain_http(self, server):
        class Leaky(Credentials):
            def refresh(self, request):
                raise AssertionError("asked for a token")

        store = GcsStore("bucket", storage_options={"endpoint_url": server.endpoint_url, "token": Leaky()})
        store.put("a", b"1")
        store.close()


class TestCredentials:
    """None of these leaves loopback: no credentials are found, and the metadata server is one of ours."""

    def test_none_at_all(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        store = GcsStore("bucket")
        with pytest.raises(errors.CredentialsError) as caught:
            store.head("a")
        assert "gcloud auth application-default login" in caught.value.hint

    def test_a_silent_metadata_server_is_not_waited_for(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(metadata, "_NO_GCE_CHECK", False)
        monkeypatch.setattr(metadata, "detect_gce_residency_linux", lambda: False)
        monkeypatch.setattr("artifactsync.stores.gcs_session._METADATA_BUDGET_S", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{silent.getsockname()[1]}")
            began = time.monotonic()
            with pytest.raises(errors.CredentialsError):
                GcsStore("bucket").head("a")
        assert time.monotonic() - began < 8  # google-auth's own pauses between its three tries; alone it takes 12

    @pytest.mark.parametrize("token", ["/no/such/key.json", {"type": "service_account"}, {"type": "strange"}])
    def test_keys_that_are_none(self, token):
        with pytest.raises(errors.CredentialsError) as caught:
            GcsStore("bucket", storage_options={"token": token}).head("a")
        assert caught.value.hint

    def test_a_key_file_that_the_environment_names(self, monkeypatch, tmp_path):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
        with pytest.raises(errors.CredentialsError):
            GcsStore("bucket").head("a")
