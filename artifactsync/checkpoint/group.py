"""Words between ranks through the key-value store of torch's process group, which needs no collective.

Owns: ``GroupChannel`` and what is built on it: choosing together, and going ahead together. Does not own: what is said.

Invariant: a rank that dies is waited for until the limit and then named; no other rank hangs because of it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import timedelta
from typing import Any

import torch.distributed
from torch.distributed import distributed_c10d

from artifactsync.errors import WaitTimeoutError

_openings: Counter[str] = Counter()


class GroupChannel:
    """A topic space of one opening of one run; the n-th opening of a run on one rank meets the n-th on the others.

    Args:
        run_name: The run.
    """

    def __init__(self, run_name: str) -> None:
        _openings[run_name] += 1
        # Started again by torchrun, ranks find the words of the dead ones in the same store: not in their own corner.
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"artifactsync/{start}/{run_name}/{_openings[run_name]}"
        self._store: Any = distributed_c10d._get_default_store()  # noqa: SLF001  (there is no public name for it)
        self._rounds: Counter[str] = Counter()
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def tell(self, topic: str, word: str) -> None:
        """Say something that any rank may ask for."""
        self._store.set(f"{self._prefix}/{topic}", word)

    def ask(self, topic: str, timeout_s: float) -> str:
        """What was told.

        Raises:
            WaitTimeoutError: nothing was, in so many seconds; or the rank that keeps the store is gone.
        """
        key = f"{self._prefix}/{topic}"
        try:
            self._store.wait([key], timedelta(seconds=timeout_s))
            return str(self._store.get(key).decode())
        except (RuntimeError, ValueError) as error:  # torch's DistStoreError is a RuntimeError
            raise WaitTimeoutError(
                f"no other rank said anything of {topic} within {timeout_s:g} s", hint="see the other ranks' logs"
            ) from error

    def choose(self, topic: str, choice: Any, *, timeout_s: float) -> Any:
        """Rank 0's choice, on every rank. Each rank calls it as often as the others.

        Raises:
            WaitTimeoutError: rank 0 did not choose in time.
        """
        self._rounds[topic] += 1
        place = f"{topic}/{self._rounds[topic]}"
        if self.rank == 0:
            self.tell(place, json.dumps(choice))
        return json.loads(self.ask(place, timeout_s))

    def collect(self, topic: str, word: str, *, timeout_s: float) -> list[str]:
        """What every rank says, by rank. Each rank calls it as often as the others.

        Raises:
            WaitTimeoutError: a rank said nothing in time; it is named.
        """
        self._rounds[topic] += 1
        place = f"{topic}/{self._rounds[topic]}"
        self.tell(f"{place}/{self.rank}", word)
        said = []
        for rank in range(self.world_size):
            try:
                said.append(self.ask(f"{place}/{rank}", timeout_s))
            except WaitTimeoutError as error:  # noqa: PERF203  (each rank is waited for)
                raise WaitTimeoutError(
                    f"rank {rank} of {self.world_size} did not get through {topic} within {timeout_s:g} s",
                    hint=f"see the log of rank {rank}",
                ) from error
        return said
