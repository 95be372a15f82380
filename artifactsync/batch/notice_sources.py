"""How each cloud says that it is about to take a machine away.

Owns: the three protocols: EC2's spot instance action (IMDSv2), Compute Engine's ``preempted``, Azure's scheduled
events. Does not own: when they are asked, and who is told (``notice``).

Invariant: a source either gives a :class:`Notice`, or None for "not now", or raises
``MetadataUnavailableError``; an answer that it does not understand is "not now".
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from artifactsync.batch.metadata_server import Answer, MetadataServer, MetadataUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

_OK, _UNAUTHORIZED = 200, 401


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What a cloud has announced."""

    reason: str
    """In words, for people: ``EC2 will terminate this spot instance``."""
    ends_at_unix_s: float
    """When the machine goes, as Unix time."""


class NoticeSource(Protocol):
    """One cloud's way of announcing."""

    cloud: str
    """``aws``, ``gcp`` or ``azure``."""
    interval_s: float
    """Seconds between two questions."""

    def ask(self) -> Notice | None:
        """Return what is announced now; may wait, where the server can.

        Raises:
            MetadataUnavailableError: the server does not answer.
        """

    def close(self) -> None:
        """Break off the waiting ``ask``. Idempotent, from any thread."""


class SpotInstanceAction:
    """EC2: ``/latest/meta-data/spot/instance-action``, with a session token (IMDSv2).

    Source (2026-11-22): https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html: 404
    as long as there is none, two minutes' warning, to be looked at every 5 seconds; and
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html: a PUT gives a token
    for at most 21,600 s, 401 says that it has expired.
    """

    cloud = "aws"
    interval_s = 5.0
    _TOKEN_TTL_S = 21_600

    def __init__(self, address: str = "http://169.254.169.254") -> None:
        self._server = MetadataServer(address)
        self._token = ""

    def ask(self) -> Notice | None:
        """Return the instance action, if there is one."""
        answer = self._get() if self._token else None
        if answer is None or answer.status == _UNAUTHORIZED:
            self._token = self._fetch_token()
            answer = self._get()
        if answer.status != _OK:
            return None
        said = _object(answer.body)
        action, ends = said.get("action"), _iso_time(said.get("time"))
        if not isinstance(action, str) or ends is None:
            return None
        return Notice(reason=f"EC2 will {action} this spot instance", ends_at_unix_s=ends)

    def close(self) -> None:
        """Break off what waits."""
        self._server.close()

    def _get(self) -> Answer:
        headers = {"X-aws-ec2-metadata-token": self._token}
        return self._server.ask("GET", "/latest/meta-data/spot/instance-action", headers)

    def _fetch_token(self) -> str:
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(self._TOKEN_TTL_S)}
        answer = self._server.ask("PUT", "/latest/api/token", ttl)
        token = answer.body.strip()
        if answer.status != _OK or not token or not token.isprintable():
            raise MetadataUnavailableError(f"no token: HTTP {answer.status}")
        return token


class GcePreempted:
    """Compute Engine: ``instance/preempted``, which answers as soon as it changes.

    Source (2026-11-22): https://cloud.google.com/compute/docs/instances/create-use-preemptible: ``TRUE`` when it was
    preempted, up to 30 s to shut down; https://cloud.google.com/compute/docs/metadata/querying-metadata:
    ``wait_for_change``, ``last_etag`` against changes missed between two questions, ``timeout_sec``, and the
    ``Metadata-Flavor`` header in both directions.
    """

    cloud = "gcp"
    interval_s = 0.0
    grace_s = 30.0
    """What Compute Engine gives at most after its notice, in seconds."""
    _WAIT_S = 60
    _FLAVOR = ("metadata-flavor", "Google")

    def __init__(self, address: str = "http://169.254.169.254") -> None:
        self._server = MetadataServer(address)
        self._etag = ""

    def ask(self) -> Notice | None:
        """Return whether it was preempted: at once the first time, later when that changes or a minute is over."""
        path = "/computeMetadata/v1/instance/preempted"
        if self._etag:
            path += f"?wait_for_change=true&timeout_sec={self._WAIT_S}&last_etag={self._etag}"
        answer = self._server.ask("GET", path, {"Metadata-Flavor": "Google"}, timeout_s=self._WAIT_S + 15.0)
        name, value = self._FLAVOR
        if answer.status != _OK or answer.headers.get(name) != value:
            raise MetadataUnavailableError(f"HTTP {answer.status}, and no answer of Compute Engine's")
        etag = answer.headers.get("etag", "")
        if not etag.isalnum():
            raise MetadataUnavailableError("an answer without an ETag")
        self._etag = etag
        if answer.body.strip().upper() != "TRUE":
            return None
        return Notice(reason="Compute Engine preempts this instance", ends_at_unix_s=time.time() + self.grace_s)

    def close(self) -> None:
        """Break off what waits."""
        self._server.close()


class AzureScheduledEvents:
    """Azure: ``/metadata/scheduledevents``, whose events name the machines that they concern.

    Source (2026-11-22): https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events: header
    ``Metadata: true``, at least 30 s before ``Preempt``, 5 to 15 minutes before the others; an empty ``NotBefore``
    means that it has begun; the first question of a machine's life may take two minutes, as it switches events on.
    """

    cloud = "azure"
    interval_s = 5.0
    grace_s = 30.0
    """What is left of an event without a time, in seconds."""
    _ENDS = frozenset({"Preempt", "Terminate", "Reboot", "Redeploy"})  # not Freeze: it pauses for seconds
    _FIRST_ANSWER_S = 120.0

    def __init__(self, address: str = "http://169.254.169.254") -> None:
        self._server = MetadataServer(address)
        self._name = ""

    def ask(self) -> Notice | None:
        """Return the first event that ends this machine."""
        self._name = self._name or self._text("/metadata/instance/compute/name?api-version=2021-02-01&format=text")
        events = _object(self._text("/metadata/scheduledevents?api-version=2020-07-01")).get("Events")
        found = [self._notice(event) for event in events if isinstance(event, dict)] if isinstance(events, list) else []
        return min(filter(None, found), key=lambda notice: notice.ends_at_unix_s, default=None)

    def close(self) -> None:
        """Break off what waits."""
        self._server.close()

    def _text(self, path: str) -> str:
        answer = self._server.ask("GET", path, {"Metadata": "true"}, timeout_s=self._FIRST_ANSWER_S)
        if answer.status != _OK:
            raise MetadataUnavailableError(f"HTTP {answer.status}")
        return answer.body.strip()

    def _notice(self, event: dict[str, Any]) -> Notice | None:
        kind, machines = event.get("EventType"), event.get("Resources")
        if kind not in self._ENDS or event.get("EventStatus") not in {"Scheduled", "Started"}:
            return None
        if not isinstance(machines, list) or self._name not in machines:
            return None  # of another machine of the same scale set
        return Notice(reason=f"Azure announces {kind}", ends_at_unix_s=self._ends_at(event.get("NotBefore")))

    def _ends_at(self, text: Any) -> float:
        from email.utils import parsedate_to_datetime  # noqa: PLC0415  (slow to import, and most never need it)

        try:
            return parsedate_to_datetime(text).timestamp()
        except (TypeError, ValueError):
            return time.time() + self.grace_s


def notice_source(cloud: str, environ: Mapping[str, str] = os.environ) -> NoticeSource | None:
    """Return the source of a cloud, at the address that the environment gives; None for no cloud.

    Raises:
        ConfigurationError: the address is none.
    """
    default = "http://169.254.169.254"
    if cloud == "aws":
        return SpotInstanceAction(environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "").strip() or default)
    if cloud == "gcp":
        return GcePreempted(environ.get("GCE_METADATA_HOST", "").strip() or default)
    if cloud == "azure":
        return AzureScheduledEvents(environ.get("ARTIFACTSYNC_AZURE_METADATA_ENDPOINT", "").strip() or default)
    return None


def _object(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _iso_time(text: Any) -> float | None:
    """Unix time of ``2017-09-18T08:22:00Z``."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except (TypeError, ValueError):
        return None
