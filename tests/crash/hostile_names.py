"""Names that somebody may have put on a remote, or typed, to do harm: each with a word for what it is."""

from __future__ import annotations

import random

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
_INVISIBLE = [
    0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x180E, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2028, 0x2029,
    0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2060, 0x2061, 0x2066, 0x2067, 0x2068, 0x2069, 0x206F, 0x2800, 0x3164,
    0xFE0F, 0xFEFF, 0xFFA0, 0xFFF9, 0xFFFD, 0xFFFE, 0xE000, 0xE0001, 0xE0020, 0xE007F, 0x1D173, 0x10FFFF,
]  # fmt: skip
_WINDOWS = ["CON", "PRN", "AUX", "NUL", "COM1", "COM9", "LPT1", "con.txt", "nul.tar.gz", "CONIN$", "aux.pt"]
_TRAVERSALS = [
    "..", "../x", "../../x", "a/../x", "a/../../x", "./x", "a/./x", "a/.", "a/..", "/x", "//x", "///x", "a//x", "a/",
    "/",
    "..\\x", "a\\..\\x", "\\x", "\\\\server\\share", "//server/share", "C:\\x", "C:/x", "c:x", "C:", "\\\\?\\C:\\x",
    "\\\\.\\PhysicalDrive0", "file:///etc/passwd", "/etc/passwd", "/dev/null", "/proc/self/mem", "~/x", "~root/x",
    "$HOME/x", "%2e%2e/x", "..%2fx", "%2e%2e%2fx", "..%c0%afx", "..;/x", ". ./x", "... /x", ".../x", "....//x", ".. /x",
    "..\u2215x", "\uff0e\uff0e/x", "\u2024\u2024/x", "\u2025/x", "a/b/../../../x", "x/..", ".", "...", "-", "--", "-rf",
    "--yes", "-", "{run_name}/x", "{run_name.__class__}", "{0}", "%s%n", "$(touch x)", "`touch x`", "; rm -rf x",
    "| cat", "&& x", "> x", "*", "?", "[a]", "a*b", '"x"', "'x'", "x\ty", "x:stream", "x.", "x ", " x", "x|y", "<x>",
]  # fmt: skip
_HOUSE = [
    ".artifactsync", ".artifactsync/x", ".artifactsync/journal/00000000000000000001.json", ".ArtifactSync/x",
    ".ARTIFACTSYNC/head.json", "./.artifactsync/x", ".artifact\u017fync/x", "a/.artifactsync/x", ".artifactsync\\x",
    ".artifactsync-case-1", ".x.part", "x.symlink", "latest-rank0.pt", "checkpoints/latest-rank0.pt.symlink",
]  # fmt: skip
_ESCAPES = [
    "\x1b[2J", "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://x\x07link", "\x1b[1A\x1b[2K", "\x1bc", "\x1b[?1049h",
    "\x1b]52;c;eA==\x07", "\x1bP$q\x1b\\", "\x9b31m", "\x9d0;t\x9c", "\x1b[6n", "\x1b[10000b", "\x1b(0", "a\rb", "a\bb",
    "a\x0bb", "a\x0cb", "[bold]x[/bold]", "[link=http://x]y[/link]", "[/]", "\x1b[8mhidden", "a\nfake line", "a\r\nb",
]  # fmt: skip
_LONG = [
    "n" * 255,
    "n" * 256,
    "n" * 1024,
    "a/" * 511 + "b",
    "d/" * 100 + "f",
    "\u00e9" * 127,
    "\u00e9" * 128,
    "\U0001f600" * 255,
]
_TWINS = [
    "Readme",
    "README",
    "readme",
    "stra\u00dfe",
    "strasse",
    "STRASSE",
    "caf\u00e9",
    "cafe\u0301",
    "\u212a",
    "k",
    "K",
    "\ufb01",
    "fi",
    "\u0130",
    "i\u0307",
]


def named() -> list[tuple[str, str]]:
    """At least 300 of them, as (what it is, the name)."""
    found = [(f"control {code:#04x} {where}", text) for code in _CONTROLS for where, text in (
        ("within", f"a{chr(code)}b"), ("first", f"{chr(code)}b"), ("last", f"a{chr(code)}"))]  # fmt: skip
    found += [(f"invisible {code:#06x}", f"a{chr(code)}b.pt") for code in _INVISIBLE]
    found += [(f"Windows {name}", name) for name in _WINDOWS] + [
        (f"Windows folder {name}", f"{name}/x") for name in _WINDOWS
    ]
    found += [(f"path {text!r}", text) for text in _TRAVERSALS] + [(f"house {text!r}", text) for text in _HOUSE]
    found += [(f"escape {text!r}", f"{text}z") for text in _ESCAPES]
    found += [(f"long {len(text)}", text) for text in _LONG] + [(f"twin {text!a}", f"twins/{text}") for text in _TWINS]
    found += [("empty", ""), ("NUL", "a\0b"), ("file and folder", "both"), ("file and folder below", "both/x")]
    return found


def generated(count: int, *, seed: int) -> list[str]:
    """Random ones of harmful pieces and of anything."""
    chance = random.Random(seed)
    pieces = [text for _, text in named() if len(text) < 40] + ["/", "//", "../", "x", "ab", ".pt", "\\", ":"]

    def one() -> str:
        kind = chance.random()
        if kind < 0.6:
            return "".join(chance.choice(pieces) for _ in range(chance.randint(1, 5)))
        if kind < 0.9:
            return "".join(
                chr(chance.choice([chance.randrange(0x250), chance.randrange(0xD800)]))
                for _ in range(chance.randint(1, 20))
            )
        return "/".join(
            chance.choice(["..", ".", "", "a", "\x1b[1m", "n" * chance.randint(1, 300)])
            for _ in range(chance.randint(1, 8))
        )

    return [one() for _ in range(count)]
