"""Another rank's view of the attempt that rank 0 claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import RunFencedError
from artifactsync.journal.log import read_catalogue
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.together import Membership

if TYPE_CHECKING:
    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.log import JournalLog


def _commit(attempt: Attempt, *steps: int) -> None:
    for step in steps:
        attempt.commit(name=f"ep0-ba{step}", step=step, epoch=0, batch=step, metrics={}, files=[])


def _begin(log: JournalLog) -> Attempt:
    return begin_attempt(log.store, log, takeover=True, allow_unfenced=False)


def test_what_is_followed_is_kept_and_the_journal_is_read_once(log, monkeypatch):
    attempt = _begin(log)
    _commit(attempt, 1, 2)
    member = Membership(log, number=attempt.number, claim_id=attempt.claim_id, claim_seq=attempt.claim_seq)
    assert member.catalogue == read_catalogue(log)
    _commit(attempt, 3)
    assert [record.body["step"] for record in member.follow()] == [1, 2, 3]  # two of them were read with the journal
    _commit(attempt, 4)
    attempt.finish("completed")
    member.follow()
    expected = read_catalogue(log)
    monkeypatch.setattr(log, "read_catalogue", lambda: pytest.fail("the journal was read again"))
    assert member.catalogue == expected
    assert (member.durable_step, member.catalogue.finished) == (4, "completed")


def test_one_that_was_taken_over_keeps_what_it_knew(log):
    attempt = _begin(log)
    _commit(attempt, 1)
    member = Membership(log, number=attempt.number, claim_id=attempt.claim_id, claim_seq=attempt.claim_seq)
    known = member.catalogue
    _commit(_begin(log), 2)
    member.follow()
    with pytest.raises(RunFencedError):
        member.follow()
    assert member.catalogue == known
