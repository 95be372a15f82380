"""Templates to text.

Owns: the one Jinja environment. Does not own: the templates' words, nor ``report``'s markup, which is escaped there.

Invariant: every value of every template passes :func:`_shown` and then Jinja's own escaping, but for markup of ours.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from artifactsync.report.text import number, seconds, size, visible

_MAX_CHARS = 2000


def _shown(value: Any) -> Any:
    """A value without characters that hide or turn text; markup of ours stays as it is."""
    return value if isinstance(value, Markup) else visible(value, at_most=_MAX_CHARS)


def make_environment(**common: Any) -> Environment:
    """The environment of all pages.

    Args:
        **common: What every template may show.
    """
    made = Environment(
        loader=PackageLoader("artifactsync.ui"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(common)
    made.filters.update(size=size, seconds=seconds, number=number)
    return made
