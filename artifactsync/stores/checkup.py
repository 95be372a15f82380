"""Is a remote fit for runs: one finding for each thing that must work, or that costs money unnoticed.

Owns: what is tried on any store, and the words. Does not own: what only S3 has (``s3_checkup``), nor how a finding is
shown (``cli``).

Invariant: every scratch object is below one scratch prefix and is deleted again if that is allowed; nothing else is
written or changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import ArtifactSyncError, ObjectNotFoundError
from artifactsync.stores.local import LocalStore
from artifactsync.stores.probe import probe
from artifactsync.stores.unfinished import list_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from artifactsync.stores.protocol import Store

Verdict = Literal["ok", "warn", "fail"]

MAX_SKEW_S = 300.0
"""AWS refuses requests whose clock is 15 minutes off; a third of that is time to act. In seconds.
Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (RequestTimeTooSkewed), read 2026-11."""

_LOW_SPACE_BYTES = 10 * 1024**3
_OLD_UPLOAD = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a checkup."""

    check: str
    """What was looked at: a stable word."""
    verdict: Verdict
    """``ok``, ``warn`` (works, but…) or ``fail`` (runs cannot be kept here)."""
    message: str
    """What was found."""
    hint: str = ""
    """What to do."""
    kind: str | None = None
    """The kind of the error behind a failure."""
    exit_code: int = 0
    """What the command returns for it; 0 unless it failed."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync doctor --json``."""
        return {name: getattr(self, name) for name in ("check", "verdict", "message", "hint", "kind")}


def examine(store: Store, *, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Try everything that a run needs of a remote. A failure that makes the rest pointless ends it.

    Args:
        store: The remote.
        now: Seconds since 1970 by the local clock.
    """
    prefix = f".artifactsync-doctor/{uuid.uuid4().hex}/"
    key = f"{prefix}probe"
    reach = _try("list", lambda: f"{len(list(store.list(prefix)))} objects at the scratch prefix", store)
    yield _worded(reach, ok="can be reached, and may be listed")
    if reach.verdict == "fail":
        return
    put = _try("put", lambda: store.put(key, b"artifactsync doctor\n"), store)
    yield _worded(put, ok="objects may be written")
    if put.verdict == "ok":
        yield _worded(_try("get", lambda: store.get(key), store), ok="objects may be read")
        yield _clock(store, key, now)
        yield _put_if_absent(store, f"{prefix}create")
    inner, root = _innermost(store)
    if isinstance(inner, LocalStore) and put.verdict != "ok":
        return  # nothing there that deleting, or a hard link, could be tried with
    yield _worded(_try("delete", lambda: store.delete([key]), store), ok="objects may be deleted (prune, rm)")
    if isinstance(inner, LocalStore):
        yield from _local(inner)
    elif store.url.startswith("s3://"):
        from artifactsync.stores.s3_checkup import examine_s3  # noqa: PLC0415 loads boto3

        yield from examine_s3(inner, root + prefix)
    yield _leftovers(store)


def _innermost(store: Store) -> tuple[Any, str]:
    """The store below all adapters, and the prefix that they add to keys."""
    inner, root = store, ""
    while (below := getattr(inner, "store", None) or getattr(inner, "_store", None)) is not None:
        root = getattr(inner, "prefix", "") + root
        inner = below
    return inner, root


def failed(check: str, error: ArtifactSyncError) -> Finding:
    """The finding for a check that ended with an error."""
    return Finding(
        check=check,
        verdict="fail",
        message=error.message,
        hint=error.hint,
        kind=error.kind,
        exit_code=error.exit_code or 1,
    )


def _try(check: str, call: Callable[[], object], store: Store) -> Finding:
    try:
        call()
    except ArtifactSyncError as error:
        return failed(check, error)
    return Finding(check=check, verdict="ok", message=store.url)


def _worded(finding: Finding, *, ok: str) -> Finding:
    return Finding(check=finding.check, verdict="ok", message=ok) if finding.verdict == "ok" else finding


def _put_if_absent(store: Store, key: str) -> Finding:
    try:
        capabilities = probe(store, key)
    except ArtifactSyncError as error:
        return failed("put-if-absent", error)
    if capabilities.put_if_absent:
        return Finding(check="put-if-absent", verdict="ok", message="two writers of one run are told apart")
    return Finding(
        check="put-if-absent",
        verdict="fail",
        message=capabilities.reason,
        hint="use a store with conditional writes, or allow_unfenced=True and one process at a time",
        kind="unfenced-store",
        exit_code=2,
    )


def _clock(store: Store, key: str, now: Callable[[], float]) -> Finding:
    """Compare the local clock with the server's, as the modified time of an object written just now."""
    before = now()
    try:
        store.put(key, b"what time is it?")
        server = store.head(key).modified_at
    except (ArtifactSyncError, ObjectNotFoundError) as error:
        return failed("clock", error)
    if server is None:
        return Finding(check="clock", verdict="warn", message="the store does not say when an object was written")
    middle = datetime.fromtimestamp((before + now()) / 2, tz=timezone.utc)
    return clock_finding((middle - server).total_seconds())


def clock_finding(skew_s: float) -> Finding:
    """What a difference between the local clock and the server's means. Positive: the local one is ahead."""
    words = f"the local clock is {abs(skew_s):,.0f} s {'ahead of' if skew_s > 0 else 'behind'} the server's"
    if abs(skew_s) <= MAX_SKEW_S:
        return Finding(check="clock", verdict="ok", message=words)
    return Finding(
        check="clock",
        verdict="warn",
        message=words,
        hint="set the clock (chronyc makestep, timedatectl set-ntp true): clouds refuse requests from 15 minutes on",
    )


def _leftovers(store: Store) -> Finding:
    try:
        uploads = list_unfinished(store)
    except ArtifactSyncError as error:
        return Finding(check="leftovers", verdict="warn", message=error.message, hint=error.hint, kind=error.kind)
    now = datetime.now(timezone.utc)
    old = [upload for upload in uploads if now - upload.started_at > _OLD_UPLOAD]
    if not old:
        return Finding(
            check="leftovers",
            verdict="ok",
            message=f"no upload older than a day is unfinished ({len(uploads)} younger)",
        )
    return Finding(
        check="leftovers",
        verdict="warn",
        message=f"{len(old)} uploads older than a day were never finished: paid for, and in no listing",
        hint="`artifactsync prune RUN` gives up those of a run; a lifecycle rule gives up all",
    )


def _local(store: LocalStore) -> Iterator[Finding]:
    """What a folder needs: durable writes, hard links, space."""
    root = store.root
    probe_file, link = (root / f".artifactsync-doctor-{uuid.uuid4().hex}{end}" for end in ("", "-link"))
    try:
        with probe_file.open("wb") as file:
            file.write(b"doctor")
            os.fsync(file.fileno())
        yield Finding(check="fsync", verdict="ok", message="writes can be made durable")
        os.link(probe_file, link)
        yield Finding(check="hard-links", verdict="ok", message="hard links can be made")
    except OSError as error:
        yield Finding(
            check="fsync" if not probe_file.exists() else "hard-links",
            verdict="fail",
            message=f"{root}: {error.strerror}",
            hint="use a file system with fsync and hard links (ext4, xfs, apfs, nfs)",
            kind="unfenced-store",
            exit_code=2,
        )
    finally:
        for left in (probe_file, link):
            with contextlib.suppress(OSError):
                left.unlink()
    free = shutil.disk_usage(root).free
    yield Finding(
        check="space",
        verdict="ok" if free >= _LOW_SPACE_BYTES else "warn",
        message=f"{free / 1024**3:,.1f} GiB are free",
        hint="" if free >= _LOW_SPACE_BYTES else "free some space, or prune old checkpoints",
    )
