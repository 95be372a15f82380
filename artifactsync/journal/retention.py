"""Which checkpoints of a run are kept.

Owns: the policy, and the choice. Does not own: deleting (``retire``).

Invariant: the choice is a pure function of the catalogue and the policy; the checkpoint that a resume takes is always
kept, so nothing is given up before a newer commit is durable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from artifactsync.journal.catalogue import Catalogue, Checkpoint


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """What to keep. A checkpoint that any of the rules wants stays; the newest always stays.

    Raises:
        ConfigurationError: no rule is given, or one makes no sense.
    """

    keep_last: int | None = None
    """So many of the newest."""
    keep_every: int | None = None
    """One of every so many steps: of each span ``(k-1)·n < step ≤ k·n`` the last, so ``n=1000`` keeps those at 1000,
    2000, 3000 … where there are such, and else the last before."""
    keep_best: int | None = None
    """So many with the best values of ``metric``."""
    metric: str | None = None
    """What decides ``keep_best``."""
    mode: Literal["min", "max"] = "min"
    """Whether its smallest or greatest values are best."""

    def __post_init__(self) -> None:
        rules = {"keep_last": self.keep_last, "keep_every": self.keep_every, "keep_best": self.keep_best}
        if all(value is None for value in rules.values()):
            raise ConfigurationError(
                "the policy says nothing of what to keep", hint="give keep_last, keep_every or keep_best"
            )
        for name, value in rules.items():
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}", hint="it counts from 1; the newest is always kept")
        if (self.keep_best is None) != (self.metric is None):
            raise ConfigurationError("keep_best and metric go together", hint="keep_best=3, metric='val_loss'")
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"mode {self.mode!r} is neither 'min' nor 'max'")


@dataclass(frozen=True, kw_only=True)
class RetentionPlan:
    """What a policy means for a run as it is now."""

    kept: tuple[Checkpoint, ...]
    """In order of commit."""
    retired: tuple[Checkpoint, ...]
    """In order of commit."""
    keys: frozenset[str]
    """Keys that only the retired ones reference."""


def plan_retention(catalogue: Catalogue, policy: RetentionPolicy) -> RetentionPlan:
    """Choose.

    Raises:
        ConfigurationError: ``keep_best`` by a metric that no checkpoint has: surely a misspelling.
    """
    wanted = {checkpoint.seq for checkpoint in _wanted(catalogue, policy)}
    kept = tuple(c for c in catalogue.checkpoints if c.seq in wanted)
    retired = tuple(c for c in catalogue.checkpoints if c.seq not in wanted)
    return RetentionPlan(kept=kept, retired=retired, keys=_keys(retired) - _keys(kept))


def would_keep(catalogue: Catalogue, policy: RetentionPolicy, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint would stay if it were committed now; True where the policy cannot tell."""
    try:
        return checkpoint in plan_retention(catalogue.with_commit(checkpoint), policy).kept
    except ConfigurationError:
        return True


def _wanted(catalogue: Catalogue, policy: RetentionPolicy) -> Iterator[Checkpoint]:
    newest_first = catalogue.newest_first()
    yield from newest_first[: policy.keep_last or 1]
    if policy.keep_every is not None:
        spans: dict[int, Checkpoint] = {}
        for checkpoint in newest_first:
            span = -(-checkpoint.step // policy.keep_every)
            last = spans.setdefault(span, checkpoint)
            if checkpoint.step > last.step:
                spans[span] = checkpoint
        yield from spans.values()
    if policy.keep_best is not None and newest_first:
        metric = policy.metric or ""
        having = [c for c in newest_first if not math.isnan(c.metrics.get(metric, math.nan))]
        if not having:
            known = sorted({name for checkpoint in newest_first for name in checkpoint.metrics})
            raise ConfigurationError(
                f"no checkpoint has the metric {metric!r}", hint=f"known metrics: {', '.join(known) or 'none'}"
            )
        sign = 1 if policy.mode == "min" else -1
        yield from sorted(having, key=lambda c: sign * c.metrics[metric])[: policy.keep_best]  # stable: newest first


def _keys(checkpoints: tuple[Checkpoint, ...]) -> frozenset[str]:
    return frozenset(file.key for checkpoint in checkpoints for file in checkpoint.files)
