from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from artifactsync.stores.checkup import clock_finding, examine
from artifactsync.stores.open import open_store
from artifactsync.testing import Fault, FaultyStore
from tests.fault_proxy import Answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Command, Remote

EVERYWHERE = {"list", "put", "get", "delete", "put-if-absent", "clock", "leftovers"}


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["verdict"] for check in document["checks"]}


def test_each_kind_of_remote_is_fit(artifactsync: Command, remote: Remote) -> None:
    document = artifactsync("doctor", "--json").json
    found = verdicts(document)
    assert found.keys() >= EVERYWHERE
    assert "fail" not in found.values()
    assert document["ok"]
    with_more = {"file": {"fsync", "hard-links", "space"}, "s3": {"region", "multipart", "lifecycle"}, "gs": set()}
    assert found.keys() - EVERYWHERE == with_more[remote.url.partition("://")[0]]
    store = open_store(remote.url, dict(remote.storage_options))
    assert list(store.list()) == []
    assert artifactsync("doctor").out.startswith("ok    list ")


def test_wrong_credentials_are_6_and_a_missing_bucket_is_2(artifactsync: Command, s3: Any) -> None:
    environ = {**s3.environment, "ARTIFACTSYNC_REMOTE": s3.fresh_url()}
    done = artifactsync("doctor", env={**environ, "AWS_SECRET_ACCESS_KEY": "wrong"}, code=6)
    assert done.out.startswith("fail  list ")
    assert "do: " in done.out
    missing = artifactsync("doctor", "--json", env={**environ, "ARTIFACTSYNC_REMOTE": s3.missing_bucket()}, code=2)
    assert missing.json["checks"][0]["kind"] == "bucket-not-found"


@pytest.mark.parametrize(("method", "check"), [("PUT", "put"), ("DELETE", "delete")])
def test_a_right_that_is_missing_is_named(
    artifactsync: Command, s3: Any, fault_proxy: Callable[..., Any], method: str, check: str
) -> None:
    line = fault_proxy(s3)
    line.proxy.add(Answer(403), when=lambda r: r.method == method or (method == "DELETE" and r.method == "POST"))
    environ = {**line.environment, "ARTIFACTSYNC_REMOTE": line.fresh_url()}
    document = artifactsync("doctor", "--json", env=environ, code=6).json
    assert verdicts(document)[check] == "fail"
    assert verdicts(document)["list"] == "ok"


def test_a_store_without_conditional_writes(tmp_path: Path) -> None:
    class Broken(FaultyStore):
        def put_if_absent(self, key: str, body: Any) -> Any:
            return self.put(key, body)

    found = {f.check: f for f in examine(Broken(open_store(tmp_path)))}
    assert (found["put-if-absent"].verdict, found["put-if-absent"].exit_code) == ("fail", 2)


def test_each_permission_by_itself(tmp_path: Path) -> None:
    for operation in ("list", "put", "get", "delete"):
        faulty = FaultyStore(open_store(tmp_path), [Fault(kind="permission", operations=(operation,))])
        found = {f.check: f for f in examine(faulty)}
        assert (found[operation].verdict, found[operation].exit_code) == ("fail", 6)


def test_a_wrong_clock(tmp_path: Path) -> None:
    import time  # noqa: PLC0415

    found = {f.check: f for f in examine(open_store(tmp_path), now=lambda: time.time() + 3600)}
    assert found["clock"].verdict == "warn"
    assert "3,600 s ahead" in found["clock"].message
    assert clock_finding(-299).verdict == "ok"
    assert clock_finding(-301).verdict == "warn"
