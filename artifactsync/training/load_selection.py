"""What of a checkpoint is left alone: ``load_ignore_keys``.

Owns: the patterns. Does not own: loading (``state``).

Invariant: what is ignored keeps the value that it has now; a pattern that matches nothing is an error, as the mistyped
name of a layer would else be loaded after all.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from artifactsync.training.state import State

_PARTS = ("schedulers", "optimizers", "scaler", "rng", "train_dataloader", "timestamp", "eval_metrics")
_NOTHING: dict[str, Any] = {"scaler": None, "train_dataloader": None}


def without_ignored(
    saved: dict[str, Any], ignored: Sequence[str] | Callable[[dict[str, Any]], object] | None, state: State
) -> dict[str, Any]:
    """The checkpoint with the present values in place of what is ignored.

    Args:
        saved: What was loaded.
        ignored: Shell patterns such as ``model/head.*``, ``optimizers`` or ``callbacks/Ema-0``, as Composer has them (a
            leading ``state/`` may be there); or a function that changes ``saved`` in place.
        state: What is now.

    Raises:
        ConfigurationError: a pattern matches nothing.
    """
    if ignored is None:
        return saved
    kept = {name: dict(part) if isinstance(part, dict) else part for name, part in saved.items()}
    if callable(ignored):
        ignored(kept)
        return kept
    for pattern in [ignored] if isinstance(ignored, str) else ignored:
        if not _ignore(kept, pattern.removeprefix("state/"), state):
            raise ConfigurationError(
                f"load_ignore_keys: {pattern!r} matches nothing in the checkpoint",
                hint="for example model/head.*, optimizers or callbacks/*; its parts are " + ", ".join(sorted(kept)),
            )
    return kept


def _ignore(kept: dict[str, Any], pattern: str, state: State) -> bool:
    """Put present values in place; says whether anything matched."""
    part, _, below = pattern.partition("/")
    hits = [name for name in ("model", "callbacks", *_PARTS) if name in kept and fnmatch.fnmatchcase(name, part)]
    found = False
    for name in hits:
        if name in ("model", "callbacks"):
            keys = [key for key in kept[name] if fnmatch.fnmatchcase(str(key), below or "*")]
            now = state.model.state_dict() if name == "model" else {}
            for key in keys:
                del kept[name][key]
            kept[name].update({k: v for k, v in now.items() if fnmatch.fnmatchcase(k, below or "*")})
            found |= bool(keys)
        elif not below:
            kept[name] = _present(name, state)
            found = True
    return found


def _present(name: str, state: State) -> Any:
    return _NOTHING[name] if name in _NOTHING else state.state_dict()[name]
