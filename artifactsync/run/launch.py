"""How the ranks of one launch come to one attempt: rank 0 claims the run, the others learn of it.

Where torch's process group is there, its key-value store carries the word (``checkpoint.group`` plugs in). Else the
claim record itself does: it names the launch, and the others look for it in the journal.

Owns: what is told, and how long it is waited for. Does not own: the claim (``journal.attempt``).

Invariant: nobody waits without a limit, and whoever gives up names the rank that it waited for.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from artifactsync import errors
from artifactsync.batch import Placement, placement
from artifactsync.errors import ArtifactSyncError, ConfigurationError, WaitTimeoutError
from artifactsync.journal.record import Kind
from artifactsync.journal.together import Membership
from artifactsync.run.torch_backed import process_group

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.log import JournalLog

JOIN_TIMEOUT_S = 300.0
"""How long ranks wait for each other when the run is opened: imports on a cold network disk take minutes."""

_LOOK_S = 0.2
_LAUNCH_VARIABLES = (  # what is equal on all ranks of one launch, and different in the next
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
    ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    ("PMIX_NAMESPACE",),
    ("OMPI_MCA_ess_base_jobid",),
)


class Channel(Protocol):
    """Words between the ranks of one launch, without a collective."""

    def tell(self, topic: str, word: str) -> None:
        """Say something that any rank may ask for, any number of times."""

    def ask(self, topic: str, timeout_s: float) -> str:
        """What was told.

        Raises:
            WaitTimeoutError: nothing was, in so many seconds.
        """

    def choose(self, topic: str, choice: Any, *, timeout_s: float) -> Any:
        """Rank 0's choice, on every rank.

        Raises:
            WaitTimeoutError: rank 0 did not choose in time.
        """

    def collect(self, topic: str, word: str, *, timeout_s: float) -> list[str]:
        """What every rank says.

        Raises:
            WaitTimeoutError: a rank said nothing in time; it is named.
        """


def launch_id(environ: Mapping[str, str] = os.environ) -> str:
    """A word that all ranks of this launch have, and no other launch; empty if the launcher gives none."""
    if own := environ.get("ARTIFACTSYNC_LAUNCH_ID"):
        return _hashed(own)
    for names in _LAUNCH_VARIABLES:
        if environ.get(names[0], "none") != "none":  # torchrun without a rendezvous id calls every launch "none"
            return _hashed("\n".join(environ.get(name, "") for name in names))
    return ""


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]  # names of hosts and jobs are nobody else's business


class Launch:
    """The ranks that open one run together.

    Args:
        run_name: The run.
        place: Which rank this is.
    """

    def __init__(self, run_name: str, place: Placement) -> None:
        self.place = place
        self.channel: Channel | None = process_group(run_name)
        """Set where torch's process group is there."""
        self._run_name = run_name

    @property
    def claim_word(self) -> str:
        """What the claim record shall say, so that the others find it; empty where they are told otherwise.

        Raises:
            ConfigurationError: there is no way to tell them.
        """
        if self.channel is not None:
            return ""
        found = launch_id()
        if not found:
            raise ConfigurationError(
                f"this is one of {self.place.world_size} processes, and nothing tells their launch from others",
                hint="call torch.distributed.init_process_group() first, or start with torchrun --standalone or "
                "--rdzv-id, or set ARTIFACTSYNC_LAUNCH_ID to a new word for each launch; should this process alone "
                "save: Run(…, ranks='one')",
            )
        return found

    def tell_claim(self, attempt: Attempt) -> None:
        """Rank 0: let the others join, and wait until all have.

        Raises:
            WaitTimeoutError: a rank did not open the run; it is named.
        """
        if self.channel is None:
            return
        claim = {"number": attempt.number, "claim_id": attempt.claim_id, "claim_seq": attempt.claim_seq}
        self.channel.tell("claim", json.dumps(claim))
        give_up_at = time.monotonic() + JOIN_TIMEOUT_S
        for rank in range(1, self.place.world_size):
            try:
                self.channel.ask(f"joined/{rank}", max(1.0, give_up_at - time.monotonic()))
            except WaitTimeoutError as error:  # noqa: PERF203  (each rank is waited for)
                raise WaitTimeoutError(
                    f"rank {rank} of {self.place.world_size} did not open run {self._run_name!r} within "
                    f"{JOIN_TIMEOUT_S:g} s",
                    hint="open the Run on every rank; should this process alone save: Run(…, ranks='one')",
                ) from error

    def tell_failure(self, error: BaseException) -> None:
        """Rank 0: the run could not be opened; the others shall not wait."""
        if self.channel is None:
            return
        kind = error.kind if isinstance(error, ArtifactSyncError) else "unexpected"
        hint = error.hint if isinstance(error, ArtifactSyncError) else ""
        self.channel.tell("claim", json.dumps({"failure": str(error), "kind": kind, "hint": hint}))

    def join(self, log: JournalLog) -> Membership:
        """A rank above 0: learn which attempt rank 0 has claimed.

        Raises:
            WaitTimeoutError: rank 0 did not open the run in time.
            ArtifactSyncError: what rank 0 met.
        """
        claim = self._find_claim(log) if self.channel is None else self._asked(self.channel)
        if "failure" in claim:
            kind = _kinds().get(claim.get("kind", ""), ArtifactSyncError)
            raise kind(f"rank 0: {claim['failure']}", hint=str(claim.get("hint", "")))
        if self.channel is not None:
            self.channel.tell(f"joined/{self.place.rank}", "yes")
        return Membership(log, number=claim["number"], claim_id=claim["claim_id"], claim_seq=claim["claim_seq"])

    def _asked(self, channel: Channel) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads(channel.ask("claim", JOIN_TIMEOUT_S))
        except WaitTimeoutError as error:
            raise self._no_rank_0() from error
        return told

    def _find_claim(self, log: JournalLog) -> dict[str, Any]:
        """The newest claim in the journal, once it is that of this launch."""
        word, give_up_at = self.claim_word, time.monotonic() + JOIN_TIMEOUT_S
        while True:
            slot = log.find_head()
            while slot is not None and slot.record.kind is not Kind.CLAIM and slot.record.seq > 1:
                slot = log.read(slot.record.seq - 1)
            if slot is not None and slot.record.kind is Kind.CLAIM and slot.record.body.get("launch") == word:
                record = slot.record
                return {"number": record.attempt, "claim_id": record.write_id, "claim_seq": record.seq}
            if time.monotonic() >= give_up_at:
                raise self._no_rank_0()
            time.sleep(_LOOK_S)

    def _no_rank_0(self) -> WaitTimeoutError:
        return WaitTimeoutError(
            f"rank 0 did not open run {self._run_name!r} within {JOIN_TIMEOUT_S:g} s",
            hint="open the Run on every rank, and see rank 0's log",
        )


def launch_of(run_name: str, ranks: str) -> Launch | None:
    """The launch that this process belongs to; None if it saves alone.

    Raises:
        ConfigurationError: ``ranks`` is neither ``all`` nor ``one``.
    """
    if ranks not in {"all", "one"}:
        raise ConfigurationError(f"ranks is {ranks!r}", hint="'all' (every rank opens the run) or 'one'")
    place = placement()
    return Launch(run_name, place) if ranks == "all" and place.world_size > 1 else None


def _kinds() -> dict[str, type[ArtifactSyncError]]:
    every = (value for value in vars(errors).values() if isinstance(value, type))
    return {kind.kind: kind for kind in every if issubclass(kind, ArtifactSyncError)}
