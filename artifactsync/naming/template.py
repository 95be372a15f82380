"""Path templates: ``{run_name}/checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt`` and the like.

Owns: which placeholders there are, and how a template becomes text. Does not own: what the values are (the caller
knows), run names (``run_name``), or keys that are not templates (``layout``).

Invariant: a template is data, never code. Only the placeholders listed here are replaced, by numbers and strings; no
attribute, index or conversion is ever evaluated, and no template can ask for an unbounded amount of text.
"""

from __future__ import annotations

import contextlib
import operator
import re
import string
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, SupportsFloat

from artifactsync.errors import TemplateError, UnsafeKeyError
from artifactsync.naming.layout import HOUSE_FOLDER, check_relative, fold_case
from artifactsync.naming.run_name import validate_run_name

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACEHOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "run_name": "the run's name",
        "rank": "this process's number among all, from 0",
        "local_rank": "this process's number on its node, from 0",
        "world_size": "number of processes",
        "local_world_size": "number of processes on this node",
        "node_rank": "this node's number, from 0",
        "epoch": "epochs done",
        "batch": "batches done",
        "batch_in_epoch": "batches done in this epoch",
        "sample": "samples done",
        "sample_in_epoch": "samples done in this epoch",
        "token": "tokens done",
        "token_in_epoch": "tokens done in this epoch",
        "total_wct": "training time so far, in seconds",
        "epoch_wct": "training time of this epoch, in seconds",
        "batch_wct": "training time of this batch, in seconds",
        "attempt": "the attempt's number, from 1",
        "remote_file_name": "the remote file name (uploads only)",
    }
)
"""Every placeholder, with its meaning. The order is the order in which messages list them."""

MAX_FIELD_CHARS = 255
"""Widest width or precision of a format spec: NAME_MAX of the common file systems."""

# Python's format specification mini-language: docs.python.org/3/library/string.html#format-specification-mini-language
_SPEC = re.compile(r"(?s)(?:.?[<>=^])?[-+ ]?z?#?0?(?P<width>\d*)[,_]?(?:\.(?P<precision>\d+))?[a-zA-Z%]?")
_SPEC_HINT = "for example {batch:06d} or {total_wct:.1f}"
_SHOWN_CHARS = 200  # of a bad template in a message
_MAX_DIGITS = 4  # more digits than that are too many, before any int() of them


def format_name(template: str, *, run_name: str, **placeholders: object) -> str:
    """Fill a template's placeholders, strictly.

    As ``str.format`` with ``{name}``, ``{name:spec}``, ``{{`` and ``}}``, and nothing else of it.

    Args:
        template: The template.
        run_name: A valid run name.
        **placeholders: Values of other placeholders (see :data:`PLACEHOLDERS`): numbers or strings; times are seconds
            or a ``timedelta``. None means that the value is not known here.

    Returns:
        The text. A template that begins with ``{run_name}/`` gives a path below the run's folder.

    Raises:
        TemplateError: an unknown placeholder, one without a value, a malformed template or format spec, or a path
            that climbs out of the run's folder with ``..``.
        RunNameError: the run name is not valid.
    """
    values = {**placeholders, "run_name": validate_run_name(run_name)}
    for name in placeholders:
        if name not in PLACEHOLDERS:
            raise TemplateError(f"there is no placeholder {_quoted(name)} to give a value for", hint=_known(name))
    text = "".join(
        literal if name is None else literal + _fill(template, name, spec, values)
        for literal, name, spec in _parse(template)
    )
    if text.startswith(f"{run_name}/") and ".." in re.split(r"[/\\]", text):
        raise TemplateError(
            f"the template {_quoted(template)} gives {_quoted(text)}, which leaves the run's folder",
            hint="leave out the '..' part",
        )
    return text


def render_path(template: str, *, run_name: str, **placeholders: object) -> str:
    """Fill a template that names a path or key: as :func:`format_name`, and the result is a plain relative path.

    Raises:
        TemplateError: also when the result is empty or absolute, has ``..`` or empty parts, control characters or
            backslashes, or lies in the journal's own folder.
        RunNameError: the run name is not valid.
    """
    text = format_name(template, run_name=run_name, **placeholders)
    try:
        check_relative(text)
    except UnsafeKeyError as error:
        raise TemplateError(
            f"the template {_quoted(template)} gives a path that cannot be: {error}", hint=error.hint
        ) from error
    if any(fold_case(part) == HOUSE_FOLDER for part in text.split("/")):
        raise TemplateError(
            f"the template {_quoted(template)} gives {_quoted(text)}, but {HOUSE_FOLDER}/ belongs to the journal",
            hint="choose another folder",
        )
    return text


def _parse(template: str) -> list[tuple[str, str | None, str]]:
    """Split a template into (literal, placeholder or None, format spec)."""
    if not isinstance(template, str):
        raise TemplateError(f"a template must be a string, not {type(template).__name__}")
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise TemplateError(
            f"the template {_quoted(template)} is malformed: {error}", hint="write {{ and }} for literal braces"
        ) from error
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if name not in PLACEHOLDERS:
            raise _unknown(template, name)
        if conversion is not None:
            raise TemplateError(
                f"the template {_quoted(template)} converts {{{name}}} with '!', which is not allowed",
                hint=f"use {{{name}}}, with a format spec after ':' where needed",
            )
        if spec and ("{" in spec or "}" in spec):
            raise TemplateError(f"the format of {{{name}}} in {_quoted(template)} has braces", hint="use a fixed width")
    return [(literal, name, spec or "") for literal, name, spec, _ in parsed]


def _unknown(template: str, name: str) -> TemplateError:
    if not name or name.isdigit():
        return TemplateError(f"the template {_quoted(template)} has a placeholder without a name", hint=_known(name))
    shown = "{" + _quoted(name)[1:-1] + "}"
    stem = re.split(r"[.\[]", name, maxsplit=1)[0]
    if stem in PLACEHOLDERS:
        return TemplateError(
            f"the template {_quoted(template)} has {shown}, but attributes and items are never looked up",
            hint=f"use {{{stem}}}",
        )
    return TemplateError(f"the template {_quoted(template)} has the unknown placeholder {shown}", hint=_known(name))


def _known(name: str) -> str:
    """List the known placeholders, the nearest to ``name`` first."""
    from difflib import get_close_matches  # noqa: PLC0415  (only on the way to an error)

    near = get_close_matches(name.strip().lower(), PLACEHOLDERS, n=1, cutoff=0.5)
    listed = "known: " + ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
    return f"did you mean {{{near[0]}}}? {listed}" if near else listed


def _fill(template: str, name: str, spec: str, values: Mapping[str, object]) -> str:
    """Format one placeholder."""
    value = values.get(name)
    if value is None:
        raise TemplateError(
            f"the placeholder {{{name}}} of the template {_quoted(template)} has no value here",
            hint=f"{{{name}}} is {PLACEHOLDERS[name]}; leave it out, or give it",
        )
    match = _SPEC.fullmatch(spec)
    what = f"the format {_quoted(spec)} of {{{name}}} in {_quoted(template)}"
    if match is None:
        raise TemplateError(f"{what} is not valid", hint=_SPEC_HINT)
    for digits in (match["width"], match["precision"] or ""):
        if len(digits) > _MAX_DIGITS or int(digits or 0) > MAX_FIELD_CHARS:
            raise TemplateError(f"{what} is wider than {MAX_FIELD_CHARS} characters", hint=_SPEC_HINT)
    try:
        return format(_plain(value), spec)
    except (ValueError, TypeError, OverflowError) as error:
        raise TemplateError(f"{what} does not fit its value: {error}", hint=_SPEC_HINT) from error


def _quoted(text: str) -> str:
    """``text`` for a message: one line, no control characters, not too long."""
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")


def _plain(value: object) -> str | int | float:
    """``value`` as a plain string or number, so that no object's own ``__format__`` runs."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    with contextlib.suppress(TypeError):  # a float tensor has __index__ too, and raises
        return operator.index(value)  # type: ignore[arg-type]  # that is the question asked
    if isinstance(value, SupportsFloat):
        return float(value)
    raise TypeError(f"a {type(value).__name__} is neither a number nor a string")
