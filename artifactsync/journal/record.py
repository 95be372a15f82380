"""One journal record: its fields, its bytes, and how bytes from a remote become a record again.

Owns: the format. Does not own: where records lie (``naming.layout``), how they are appended (``log``), what they
mean together (``catalogue``).

Invariant: ``Record.decode(record.encode()) == record``; bytes that are not a record of a known format raise, they
are never guessed at. Unknown fields are ignored, so that later versions may add some.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from artifactsync.errors import DamagedError, NewerFormatError
from artifactsync.journal.untrusted_json import read_json

FORMAT = 1
"""Version of the record format that this code writes, and the newest that it reads."""

GREATEST = 1 << 63
"""Of the numbers that a record or a heartbeat tells, which may be hostile: more is no number of anything here."""


class Kind(str, Enum):
    """What a record says."""

    CLAIM = "claim"
    """A new attempt begins; every earlier attempt is fenced off from this record on."""
    COMMIT = "commit"
    """A checkpoint became visible."""
    RETIRE = "retire"
    """Checkpoints and keys that are about to be deleted."""
    FINISH = "finish"
    """The attempt ended: completed, preempted or failed."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One numbered, create-once record of a run's journal."""

    seq: int
    """Number of the record: 1, 2, 3 …, dense."""
    attempt: int
    """The attempt that wrote it."""
    kind: Kind
    """What it says."""
    write_id: str
    """A fresh random word for each record: tells one's own write from another's when an answer was lost."""
    writer: dict[str, Any]
    """Who wrote it (``WriterIdentity.to_json``)."""
    prev_sha256: str | None
    """sha256 of the bytes of record ``seq - 1``; None for the first."""
    previous_commit: int | None
    """``seq`` of the newest commit before this record, so that a reader of the head needs one more request."""
    totals: dict[str, Any]
    """What the journal adds up to with this record: ``checkpoints``, ``bytes``, ``latest`` (``seq`` of the commit
    that a resume takes) and ``last_step``, so that the head alone answers ``ls`` and ``resume``."""
    time: str
    """Wall-clock time of the writer, ISO 8601 with zone. Informs, never decides."""
    body: dict[str, Any] = field(default_factory=dict)
    """What the kind needs: see ``docs/design/002-journal.md``."""
    format: int = FORMAT
    """Format version."""
    latest_commit: dict[str, Any] | None = None
    """``seq``, ``attempt``, ``time`` and ``body`` of the commit that ``totals.latest`` names, if it is another record,
    and was at hand: so the newest record alone answers a resume. Left out of the bytes where it is None."""

    def encode(self) -> bytes:
        """The record's bytes: one JSON object, sorted keys, UTF-8, newline at the end, and sealed."""
        fields = {**self.__dict__, "kind": self.kind.value}
        return seal({name: value for name, value in fields.items() if name != "latest_commit" or value is not None})

    @classmethod
    def decode(cls, data: bytes, *, url: str) -> Record:
        """Read a record from bytes that came from a remote.

        Raises:
            NewerFormatError: written by a newer artifactsync.
            DamagedError: not a record.
        """
        try:
            fields = read_json(data)
            number = fields["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError("a journal record cannot be read", hint=_HINT_DAMAGED, url=url) from error
        if not isinstance(number, int) or number > FORMAT:
            raise NewerFormatError(
                f"the run's journal has format {number!r}; this artifactsync reads up to {FORMAT}",
                hint="pip install --upgrade artifactsync",
                url=url,
            )
        if not is_sealed(data, fields):
            raise DamagedError("a journal record has other bytes than were written", hint=_HINT_DAMAGED, url=url)
        try:
            known = {name: fields[name] for name in cls.__dataclass_fields__ if name != "latest_commit"}
            known["latest_commit"] = fields.get("latest_commit")
            record = cls(**{**known, "kind": Kind(known["kind"])})
            record._check_types()
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"a journal record is malformed ({error})", hint=_HINT_DAMAGED, url=url) from error
        return record

    def _check_types(self) -> None:
        for name, kind in (
            ("seq", int),
            ("attempt", int),
            ("write_id", str),
            ("writer", dict),
            ("totals", dict),
            ("body", dict),
            ("time", str),
        ):
            if not isinstance(getattr(self, name), kind) or isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is no {kind.__name__}")
        if not (self.latest_commit is None or isinstance(self.latest_commit, dict)):
            raise TypeError("latest_commit is no dict")
        if not (self.previous_commit is None or isinstance(self.previous_commit, int)):
            raise TypeError("previous_commit is no int")


_HINT_DAMAGED = "the object was changed by something other than artifactsync; restore it from a backup of the bucket"


def seal(fields: dict[str, Any]) -> bytes:
    """The bytes of a record with these fields.

    Among them is ``self_sha256``: the sha256 of the very same bytes with 64 zeros in its place. So a record shows by
    itself that it is whole, the newest one too, of which no other record has the hash.
    """
    text = json.dumps({**fields, "self_sha256": _UNSEALED}, sort_keys=True, allow_nan=False, ensure_ascii=False)
    blank = f"{text}\n".encode()
    return blank.replace(_seal_field(_UNSEALED), _seal_field(hashlib.sha256(blank).hexdigest()))


def is_sealed(data: bytes, fields: dict[str, Any]) -> bool:
    """Whether ``data``, which was read as ``fields``, is what :func:`seal` made, to the last bit."""
    found = fields.get("self_sha256")
    if not isinstance(found, str) or data.count(_seal_field(found)) != 1:
        return False
    blank = data.replace(_seal_field(found), _seal_field(_UNSEALED))
    return hashlib.sha256(blank).hexdigest() == found


_UNSEALED = "0" * 64


def _seal_field(sha256: str) -> bytes:
    # A text within the record that looks like this has its quotation marks escaped, and so is never taken for it.
    return f'"self_sha256": "{sha256}"'.encode(errors="surrogatepass")


def encode_metrics(metrics: dict[str, float]) -> dict[str, float | str]:
    """Metrics as JSON values: JSON has no NaN and no infinity, so these become words."""
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}


def decode_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The inverse of :func:`encode_metrics`."""
    return {str(name): float(value) for name, value in metrics.items()}
