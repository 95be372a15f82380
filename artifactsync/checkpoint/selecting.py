"""A part of a state, by the names that lead to it.

Owns: what a pattern means. Does not own: reading a part of a file (``pt_part``).

Invariant: a pattern that matches nothing is an error: a mistyped name would else leave live objects as they are.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


def patterns_of(only: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The patterns of an argument; None takes everything.

    Raises:
        ConfigurationError: they are no patterns.
    """
    if only is None:
        return None
    patterns = (only,) if isinstance(only, str) else tuple(only)
    if not patterns or not all(isinstance(each, str) and each for each in patterns):
        raise ConfigurationError(
            f"only is {only!r}", hint="names of what was saved, as only='model' or only=('model/encoder.*', 'step')"
        )
    return patterns


def select(state: Any, patterns: Sequence[str], *, strict: bool = True) -> dict[Any, Any]:
    """What the patterns take of a state, in dicts of the same kind; nothing is copied.

    Args:
        state: Nested dicts; lists and tuples in them are taken as a whole.
        patterns: Shell patterns of the keys that lead to an entry, joined by ``/``: ``model`` takes all that is below,
            ``model/encoder.*`` a part of it.
        strict: Whether each pattern must match something.

    Raises:
        ConfigurationError: a pattern matches nothing, or the state is no dict.
    """
    if not isinstance(state, dict):
        raise ConfigurationError(
            f"the checkpoint holds a {type(state).__name__}, of which there are no names to choose from",
            hint="resume without only=",
        )
    found: set[str] = set()
    taken = _select(state, patterns, "", found)
    if strict:
        _refuse_strangers(patterns, found, state)
    return taken


def check_found(state: dict[Any, Any], patterns: Sequence[str]) -> None:
    """Do nothing if each pattern matches something in ``state``.

    Raises:
        ConfigurationError: one does not.
    """
    found: set[str] = set()
    _select(state, patterns, "", found)
    _refuse_strangers(patterns, found, state)


def _refuse_strangers(patterns: Sequence[str], found: set[str], state: dict[Any, Any]) -> None:
    if missing := [pattern for pattern in patterns if pattern not in found]:
        raise ConfigurationError(
            f"only: {missing[0]!r} matches nothing in the checkpoint",
            hint="name what was saved; here are " + (", ".join(sorted(map(str, state))) or "none of these"),
        )


def _select(state: dict[Any, Any], patterns: Sequence[str], above: str, found: set[str]) -> dict[Any, Any]:
    taken = type(state)()
    for key, value in state.items():
        path = f"{above}{key}"
        hits = {pattern for pattern in patterns if fnmatch.fnmatchcase(path, pattern)}
        found |= hits
        if hits:
            taken[key] = value
            if isinstance(value, dict):  # another pattern may be for something below
                _select(value, patterns, f"{path}/", found)
        elif isinstance(value, dict) and (below := _select(value, patterns, f"{path}/", found)):
            taken[key] = below
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:  # module versions, which load_state_dict needs
        taken._metadata = metadata  # type: ignore[attr-defined]  # noqa: SLF001  (torch's own contract)
    return taken
