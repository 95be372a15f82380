"""How durable a run is right now: the gauge that a writer shows and a heartbeat carries.

Invariant: ``durable_step`` comes from a commit record alone; everything else is informative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.journal.heartbeat import read_heartbeat
from artifactsync.journal.record import GREATEST
from artifactsync.journal.runs import state_of, step_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.journal.log import JournalLog
    from artifactsync.stores.protocol import Store


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run at one moment."""

    run_name: str
    """Its name."""
    attempt: int
    """Number of the newest attempt; 0 if nobody ever claimed the run."""
    state: str
    """``running``, ``completed``, ``preempted``, ``failed`` or ``unknown``."""
    alive: bool
    """Whether its writer seems to live."""
    durable_step: int | None
    """Step of the newest committed checkpoint."""
    local_step: int | None
    """Step of the newest checkpoint that the writer took, durable or not; None if it does not say."""
    pending_files: int
    """Files that wait or are on their way."""
    pending_bytes: int
    """Their bytes."""
    bytes_per_s: float
    """Recent upload rate."""
    eta_s: float | None
    """Seconds until nothing is pending, at that rate."""
    last_error: str | None = None
    """The trouble that uploads have right now, if any."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync status --json``."""
        return dict(self.__dict__)


def read_status(store: Store, log: JournalLog) -> RunStatus:
    """The status of a run as an observer sees it: from the newest record and the heartbeat. Five requests at most."""
    head = log.find_head()
    beat = read_heartbeat(store, log.layout)
    beat_at = store.head(log.layout.heartbeat).modified_at if beat else None
    attempt = head.record.attempt if head else 0
    gauge: Mapping[str, Any] = beat.gauge if beat and beat.attempt == attempt else {}
    state = state_of(head, beat_at=beat_at)
    is_over = state != "running"
    durable_step = step_of(head.record.totals) if head else None
    local_step = _number(gauge.get("local_step"))  # of the last heartbeat, which may be older than the last commit
    return RunStatus(
        run_name=log.layout.run_name,
        attempt=attempt,
        state=state,
        alive=state == "running",
        durable_step=durable_step,
        local_step=local_step if local_step is None else max(local_step, durable_step or 0),
        pending_files=int(_number(gauge.get("pending_files")) or 0),
        pending_bytes=int(_number(gauge.get("pending_bytes")) or 0),
        bytes_per_s=0.0 if is_over else float(_number(gauge.get("bytes_per_s")) or 0.0),
        eta_s=None if is_over else _number(gauge.get("eta_s")),
        last_error=str(gauge["last_error"]) if gauge.get("last_error") else None,
    )


def _number(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and -GREATEST <= value <= GREATEST else None  # neither infinite nor NaN
