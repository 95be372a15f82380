"""Training time: amounts of it in any unit, and where training stands.

Owns: ``TimeUnit``, ``Time`` and ``Timestamp``. Does not own: what is done when (``callbacks``, ``trainer``).

Invariant: all three are immutable values, and a timestamp only moves forward. The notation is Composer's: ``2ep``,
``100ba``, ``5000sp``, ``1e6tok``, ``0.5dur``, ``30min``.
"""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from artifactsync.errors import ConfigurationError


class TimeUnit(str, enum.Enum):
    """What training time is counted in."""

    EPOCH = "ep"
    BATCH = "ba"
    SAMPLE = "sp"
    TOKEN = "tok"  # noqa: S105  (a unit)
    DURATION = "dur"
    """The part of ``max_duration`` that is done, from 0 to 1."""
    SECOND = "sec"
    """Wall-clock seconds of training, over all attempts."""


_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hr": 3600.0, "d": 86400.0, "day": 86400.0}
_UNITS = {unit.value: unit for unit in TimeUnit if unit is not TimeUnit.SECOND}
_NOTATION = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s*([a-zA-Z]+)\s*")
_HINT = 'write for example "2ep", "100ba", "5000sp", "1e6tok", "0.5dur", "30min" or "2h"'


@dataclass(frozen=True)
class Time:
    """An amount of training time.

    Args:
        value: How much: whole for epochs, batches, samples and tokens; any number else.
        unit: Of what; a ``TimeUnit`` or its text.

    Raises:
        ConfigurationError: negative, not finite, or no whole number of what cannot be split.
    """

    value: float
    unit: TimeUnit

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", TimeUnit(self.unit))
        if not math.isfinite(self.value) or self.value < 0:
            raise ConfigurationError(f"a training time cannot be {self.value}", hint=_HINT)
        if self.unit not in (TimeUnit.DURATION, TimeUnit.SECOND):
            if self.value != int(self.value):
                raise ConfigurationError(f"{self.value:g}{self.unit.value} is not a whole number", hint=_HINT)
            object.__setattr__(self, "value", int(self.value))

    @classmethod
    def of(cls, value: Time | str | float | timedelta, unit: TimeUnit = TimeUnit.EPOCH) -> Time:
        """Read a time in any form in which users give it; a bare number counts ``unit``.

        Raises:
            ConfigurationError: it is no training time.
        """
        if isinstance(value, Time):
            return value
        if isinstance(value, timedelta):
            return cls(value.total_seconds(), TimeUnit.SECOND)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls(value, unit)
        if isinstance(value, str):
            return cls.from_string(value)
        raise ConfigurationError(f"{value!r} is no training time", hint=_HINT)

    @classmethod
    def from_string(cls, text: str) -> Time:
        """Read ``"2ep"`` and the like; hours, minutes and seconds may be combined as in ``"1h30min"``.

        Raises:
            ConfigurationError: the text is no training time.
        """
        parts = _NOTATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == re.sub(r"\s", "", text):
            units = [unit.lower() for _, unit in parts]
            numbers = [float(number.replace("_", "")) for number, _ in parts]
            if all(unit in _SECONDS for unit in units):
                return cls(sum(n * _SECONDS[u] for n, u in zip(numbers, units, strict=True)), TimeUnit.SECOND)
            if len(parts) == 1 and units[0] in _UNITS:
                return cls(numbers[0], _UNITS[units[0]])
        raise ConfigurationError(f"{text!r} is no training time", hint=_HINT)

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit.value}" if isinstance(self.value, float) else f"{self.value}{self.unit.value}"


@dataclass(frozen=True, kw_only=True)
class Timestamp:
    """Where training stands: what is done, over all attempts of the run."""

    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches done (optimizer steps)."""
    batch_in_epoch: int = 0
    """Batches done of the running epoch."""
    sample: int = 0
    """Samples done."""
    sample_in_epoch: int = 0
    """Samples done of the running epoch."""
    token: int = 0
    """Tokens done."""
    token_in_epoch: int = 0
    """Tokens done of the running epoch."""
    total_wct: float = 0.0
    """Seconds of training."""
    epoch_wct: float = 0.0
    """Seconds of training in the running epoch."""
    batch_wct: float = 0.0
    """Seconds that the last batch took."""

    def get(self, unit: TimeUnit | str) -> Time:
        """The time done, in ``unit`` (``dur`` is known to ``State`` alone)."""
        unit = TimeUnit(unit)
        return Time(self.count(unit), unit)

    def count(self, unit: TimeUnit) -> float:
        """The number of ``get``, without the object."""
        return float(self.total_wct) if unit is TimeUnit.SECOND else int(getattr(self, _FIELDS[unit]))

    def to_next_batch(self, *, samples: int = 0, tokens: int = 0, duration_s: float = 0.0) -> Timestamp:
        """The timestamp after one more batch of so many samples and tokens, which took ``duration_s``."""
        after = object.__new__(Timestamp)  # __init__ of what is frozen takes 5 µs, and there is one for every step
        after.__dict__.update(
            epoch=self.epoch,
            batch=self.batch + 1,
            batch_in_epoch=self.batch_in_epoch + 1,
            sample=self.sample + samples,
            sample_in_epoch=self.sample_in_epoch + samples,
            token=self.token + tokens,
            token_in_epoch=self.token_in_epoch + tokens,
            total_wct=self.total_wct + duration_s,
            epoch_wct=self.epoch_wct + duration_s,
            batch_wct=duration_s,
        )
        return after

    def to_next_epoch(self) -> Timestamp:
        """The timestamp after the end of the running epoch."""
        return replace(self, epoch=self.epoch + 1, batch_in_epoch=0, sample_in_epoch=0, token_in_epoch=0, epoch_wct=0.0)

    def placeholders(self) -> dict[str, Any]:
        """The values of the placeholders that templates may use."""
        return dict(self.__dict__)

    def state_dict(self) -> dict[str, Any]:
        """All fields as numbers."""
        return dict(self.__dict__)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Timestamp:
        """A timestamp from its fields; those of a newer version that are not known here are left out."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__ if name in state})


_FIELDS = {TimeUnit.EPOCH: "epoch", TimeUnit.BATCH: "batch", TimeUnit.SAMPLE: "sample", TimeUnit.TOKEN: "token"}
