"""The two streams of a command: results on stdout, messages and progress on stderr.

Owns: who gets colours, the one JSON document, a reader that went away. Does not own: what is shown.

Invariant: with ``--json`` nothing but one JSON document is written to stdout.
"""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from artifactsync.cli.failures import OutputClosedError
from artifactsync.cli.tables import plain_table, rich_table
from artifactsync.cli.terminal import columns, display_width, is_rich, printable
from artifactsync.errors import DiskFullError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from artifactsync.cli.failures import Failure
    from artifactsync.cli.tables import Column

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_COLOURS = {"error": "31", "hint": "2", "warning": "33", "good": "32", "title": "1"}  # ANSI codes


class Screen:
    """Where a command writes."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.is_quiet = is_quiet

    def text(self, text: str, style: str = "") -> None:
        """Write lines of a result to stdout. The caller has made them printable."""
        _write(sys.stdout, self.styled(text, style) + "\n")

    def styled(self, text: str, style: str) -> str:
        """The text as :meth:`text` writes it."""
        return _styled(text, style, sys.stdout)

    def table(self, columns_: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Write a table to stdout."""
        self.text(self.table_text(columns_, rows))

    def table_text(self, columns_: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
        """The table as :meth:`table` writes it."""
        if not is_rich(sys.stdout):
            return plain_table(columns_, rows)
        from rich.console import Console

        console = Console(highlight=False, markup=False, emoji=False, width=columns())
        with console.capture() as captured:
            console.print(rich_table(columns_, rows, columns()))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def frame(self, lines: Sequence[str], last: Sequence[str]) -> None:
        """Put the lines in the place of those before on a terminal; anywhere else write them below, after a blank.

        What does not fit is left out before the ``last`` ones: a screen that scrolls cannot be drawn over.
        """
        if not is_rich(sys.stdout):
            self.text("\n".join([*lines, "", *last, ""]))
            return
        size = shutil.get_terminal_size()

        def height(line: str) -> int:
            return max(1, -(-display_width(_ESCAPE.sub("", line)) // size.columns))

        room, shown = size.lines - 2 - sum(map(height, last)), list[str]()  # a blank, and the cursor's line
        for line in lines:
            room -= height(line)
            if room < 0:
                break
            shown.append(line)
        # From the corner, each line and then the rest wiped: no flicker, and nothing to set back at the end.
        _write(sys.stdout, "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in [*shown, "", *last]) + "\x1b[J")

    def json(self, document: Any) -> None:
        """Write the JSON document to stdout."""
        _write(sys.stdout, json.dumps(plain(document), indent=2, allow_nan=False) + "\n")

    def note(self, text: str) -> None:
        """Write a message to stderr, unless ``--quiet``."""
        if not self.is_quiet:
            _write(sys.stderr, printable(text) + "\n")

    def warn(self, text: str) -> None:
        """Write a warning to stderr, even with ``--quiet``."""
        _write(sys.stderr, _styled("warning: ", "warning", sys.stderr) + printable(text) + "\n")

    def failure(self, failure: Failure, *, is_json: bool) -> None:
        """Show why the command failed."""
        if is_json:
            try:
                self.json(failure.document())
            except DiskFullError:  # the disk that stdout goes to: stderr may be a terminal
                pass
            else:
                return
        for line in failure.lines():
            word, colon, rest = line.partition(": ")
            style = "hint" if word == "hint" else "error"
            _write(sys.stderr, _styled(word + colon, style, sys.stderr) + rest + "\n")


def plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses as objects, times as ISO 8601 in UTC, numbers that are none as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _styled(text: str, style: str, stream: TextIO) -> str:
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if style and text and is_rich(stream) else text


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError as error:
        raise OutputClosedError from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DiskFullError(
            f"no space left for what goes to {stream.name.strip('<>')}", hint="free some space, or write it elsewhere"
        ) from error
