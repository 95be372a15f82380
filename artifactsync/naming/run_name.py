"""Run names: drawing one, checking one, and finding the one a process was given.

Owns: what a valid run name is and where it comes from. Does not own: how ranks talk to each other (the caller passes
``agree``), templates (``template``), or keys (``layout``).

Invariant: a name that leaves this module is valid, and drawing one neither reads nor moves the global ``random``
state, so a training script that seeds it stays reproducible and still gets a new name every time.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError, RunNameError, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_RUN_NAME_CHARS = 128
"""Longest run name, in characters (all ASCII, so also in bytes): leaves room below every store's key limit."""

RUN_NAME_VARIABLES = ("ARTIFACTSYNC_RUN_NAME", "RUN_NAME")
"""Environment variables that name the run, the first that is not empty wins."""

_VALID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FALLBACK_PROPOSAL = "my-run"
_SHOWN_CHARS = 80  # of a bad name in a message: enough to know it again
_SHOWN_BAD_CHARS = 5
_WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # innermost launcher first

_generator: Any = None
_generator_lock = threading.Lock()


def generate_run_name() -> str:
    """Draw a new run name: ``<unix seconds>-<two words>``, e.g. ``1657932618-infrared-ferret``.

    Names sort by the time they were drawn. The words come from the operating system's randomness, so neither a
    seeded ``random`` module nor a fork gives the same name twice, and the caller's random state stays as it was.

    Returns:
        A valid run name.
    """
    slug: str = _slug_generator().generate_slug(2)
    return validate_run_name(f"{int(time.time())}-{slug}")


def validate_run_name(name: str) -> str:
    """Return ``name`` if it is a valid run name.

    A valid name has 1 to 128 letters, digits, ``.``, ``_`` and ``-`` (ASCII), starts with a letter or digit and has
    no ``..``, so that it is one part of a path, in any store, on any system.

    Raises:
        RunNameError: it is not valid; the message says why and the hint proposes a valid name.
    """
    reason = _why_invalid(name)
    if reason:
        raise RunNameError(f"the run name {_shown(name)} {reason}", hint=_hint(name))
    return name


def resolve_run_name(
    run_name: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    agree: Callable[[str], str] | None = None,
) -> str:
    """Find this process's run name: argument, ``ARTIFACTSYNC_RUN_NAME``, ``RUN_NAME``, else a generated one.

    Args:
        run_name: The name the caller was given. An empty string is an error; None means not given.
        environ: Environment variables; an empty one counts as not given.
        agree: Given each rank's own choice, returns rank 0's on every rank (a broadcast). It is called exactly once
            on every rank and before anything is checked, so a bad name stops all ranks with the same error and leaves
            none waiting for the others.

    Returns:
        A valid run name, the same on every rank.

    Raises:
        RunNameError: the chosen name is not valid.
        ConfigurationError: several processes, no name given, and no ``agree`` to share a generated one.
    """
    if run_name is None:
        run_name = next((environ[name] for name in RUN_NAME_VARIABLES if environ.get(name)), None)
    if run_name is None and agree is None and _is_one_of_many(environ):
        raise ConfigurationError(
            "several processes train together, and no run name was given that they could all use",
            hint=f"set {RUN_NAME_VARIABLES[0]} to the same name for all of them, or pass run_name=",
        )
    choice = generate_run_name() if run_name is None else run_name
    return validate_run_name(choice if agree is None else agree(choice))


def _slug_generator() -> Any:
    """Our own coolname generator, made on first use.

    Importing coolname and building a generator both draw from the global ``random`` module; its state is put back.
    """
    global _generator  # noqa: PLW0603  (a cache of one, under a lock)
    with _generator_lock:
        if _generator is None:
            state = random.getstate()
            try:
                import coolname  # noqa: PLC0415  (importing it reads its word lists: 10 ms)
                from coolname.loader import load_config  # noqa: PLC0415

                config = load_config(str(Path(coolname.__file__).parent / "data"))
                config["all"]["__nocheck"] = True  # as coolname's own default generator: its lists need no trial draws
                _generator = coolname.RandomGenerator(config, random.SystemRandom())
            finally:
                random.setstate(state)
    return _generator


def _is_one_of_many(environ: Mapping[str, str]) -> bool:
    size = next((environ[name] for name in _WORLD_SIZE_VARIABLES if environ.get(name)), "1")
    return size.strip() not in {"0", "1"}


def _why_invalid(name: object) -> str:
    """Say why ``name`` is no run name, or nothing if it is one."""
    return _why_text_invalid(name) if isinstance(name, str) else f"is a {type(name).__name__}, not a string"


@lru_cache(maxsize=64)  # asked for every file of a run
def _why_text_invalid(name: str) -> str:
    bad = list(dict.fromkeys(re.findall(r"[^A-Za-z0-9._-]", name)))
    shown = " ".join(map(repr, bad[:_SHOWN_BAD_CHARS])) + (" …" if len(bad) > _SHOWN_BAD_CHARS else "")
    for is_bad, reason in (
        (not name, "is empty"),
        (_looks_like_url(name), "is a URL"),
        (bad, f"has {shown}; only letters, digits, '.', '_' and '-' (ASCII) are allowed"),
        (len(name) > MAX_RUN_NAME_CHARS, f"has {len(name)} characters; at most {MAX_RUN_NAME_CHARS} are allowed"),
        (".." in name, "has '..', which means the parent folder"),
        (not _VALID.fullmatch(name), f"starts with {name[:1]!r}; it must start with a letter or digit"),
    ):
        if is_bad:
            return reason
    return ""


def _looks_like_url(name: str) -> bool:
    """A remote given as the run name by mistake; what follows ``://`` may hold a secret."""
    return "://" in name


def _shown(name: object) -> str:
    """``name`` for a message: one line, no control characters, no secrets, not too long."""
    text = name if isinstance(name, str) else repr(name)
    if _looks_like_url(text):
        return repr(text.split("://", 1)[0][-_SHOWN_CHARS:] + "://…")
    text = redact(text)
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")


def _hint(name: object) -> str:
    proposal = _proposal(name)
    if isinstance(name, str) and _looks_like_url(name):
        return f"give the URL as the remote, and a run name such as {proposal!r}"
    return f"try {proposal!r} instead"


def _proposal(name: object) -> str:
    """A valid name that looks like ``name``."""
    if not isinstance(name, str) or _looks_like_url(name):
        return _FALLBACK_PROPOSAL
    text = unicodedata.normalize("NFKD", redact(name))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    text = re.sub(r"\.{2,}", ".", text)
    text = re.sub(r"^[^A-Za-z0-9]+", "", text)[:MAX_RUN_NAME_CHARS].rstrip("-._")
    return text or _FALLBACK_PROPOSAL
