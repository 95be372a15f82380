"""What an interrupted download has left, as its record says and its bytes confirm.

Owns: ``Held`` and the lines of a record. Does not own: the files (``partial``).

A record has a line for the object, then, in any order, ``[part, CRC32]`` of single parts and ``["sha256", n, hex]`` of
the first ``n`` parts together.

Invariant: a part counts only if a checksum still fits, whatever the lines are.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, kw_only=True)
class Held:
    """The parts that are there. False if there is none."""

    leading: int = 0
    """So many at the beginning, without a gap."""
    digest: Any = field(default_factory=sha256)
    """A ``hashlib`` object that has hashed those."""
    others: Mapping[int, int] = field(default_factory=dict)
    """The numbers of more parts, with their CRC32s."""

    def __bool__(self) -> bool:
        return bool(self.leading or self.others)

    def lines(self) -> str:
        """The lines of a record that say all this."""
        leading = prefix_line(self.leading, self.digest.hexdigest()) if self.leading else ""
        return leading + "".join(part_line(part, crc) for part, crc in self.others.items())


def part_line(part: int, crc: int) -> str:
    """The line that says: ``part`` is whole and has this CRC32."""
    return f"[{part}, {crc}]\n"


def prefix_line(parts: int, sha256_hex: str) -> str:
    """The line that says: the first ``parts`` are whole and have, together, this sha256."""
    return f'["sha256", {parts}, "{sha256_hex}"]\n'


def read_held(lines: Iterable[str], read: Callable[[int], bytes], *, count: int) -> Held:
    """What is there.

    Args:
        lines: Of a record, without that of the object. Hostile input.
        read: Gives the bytes of a part.
        count: Of the parts of the object.
    """
    crcs: dict[int, int] = {}
    prefixes: dict[int, str] = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            words = json.loads(line)
            if words[0] == "sha256" and 0 < int(words[1]) <= count:
                prefixes[int(words[1])] = words[2]
            elif 0 <= int(words[0]) < count:
                crcs[int(words[0])] = int(words[1])
    digest, leading, confirmed = sha256(), 0, sha256()
    for part in range(max(prefixes, default=0)):
        digest.update(read(part))
        if part + 1 in prefixes:
            if prefixes[part + 1] != digest.hexdigest():
                break
            leading, confirmed = part + 1, digest.copy()
    others = {part: crc for part, crc in sorted(crcs.items()) if part >= leading and zlib.crc32(read(part)) == crc}
    return Held(leading=leading, digest=confirmed, others=others)
