"""The code blocks of README and docs, as they stand there.

A block is run unless the line above it says `<!-- not run: REASON -->`. A Python block with a title is a file that the
blocks behind it use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?$')
_NOT_RUN = re.compile(r"^<!-- not run: (?P<reason>.+) -->$")


@dataclass(frozen=True)
class Block:
    """A block of a page; ``not_run`` is the reason why, or empty."""

    page: str
    line: int
    language: str
    title: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every Markdown page of the repository that users read, as a path below its root."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "localstack").glob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Raise ``ValueError`` for a fence that Markdown programs read differently."""
    found: list[Block] = []
    lines = text_of(page).splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("```"):
            continue
        if start is not None:
            match = _FENCE.match(lines[start - 1])
            above = _NOT_RUN.match(lines[start - 2])
            text = "".join(f"{inner}\n" for inner in lines[start : number - 1])
            reason = above["reason"] if above else ""
            found.append(Block(page, start, match["language"], match["title"] or "", text, reason))
            start = None
        elif not _FENCE.match(line):
            raise ValueError(f"{page}:{number}: write the fence as ```language or ```language title=…")
        else:
            start = number
    return found


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]
