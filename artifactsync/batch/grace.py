"""How long a process may live on after it was told to stop, if anybody said so.

Owns: the value of ``ARTIFACTSYNC_GRACE_S`` and of ``--grace``. Does not own: signals, or what is done in that time.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

GRACE_VARIABLE = "ARTIFACTSYNC_GRACE_S"
"""The environment variable with the seconds between the stop signal and the kill."""

MAX_GRACE_S = 7 * 24 * 3600.0
"""Longest grace accepted, in seconds; more is a slip, such as milliseconds."""

_DECIMAL = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


def grace_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return ``ARTIFACTSYNC_GRACE_S``; None where it is not set or empty, so that nothing is cut short unasked.

    Raises:
        ConfigurationError: the variable is set to something that is no number of seconds.
    """
    text = environ.get(GRACE_VARIABLE, "").strip()
    return parse_grace_s(text, source=GRACE_VARIABLE) if text else None


def parse_grace_s(text: str, *, source: str) -> float:
    """Read a number of seconds.

    Args:
        text: A decimal number, such as ``120`` or ``7.5``; 0 means that there is no time at all.
        source: Where it was written, for the message: a variable or an option.

    Raises:
        ConfigurationError: it is no decimal number, or more than :data:`MAX_GRACE_S`.
    """
    number = text.strip()
    if not _DECIMAL.fullmatch(number):
        raise ConfigurationError(
            f"{source} is {text!r}, which is no number of seconds", hint=f"for example {source}=120"
        )
    seconds = float(number)
    if not math.isfinite(seconds) or seconds > MAX_GRACE_S:
        raise ConfigurationError(f"{source} is {text!r}, more than a week", hint="give it in seconds")
    return seconds
