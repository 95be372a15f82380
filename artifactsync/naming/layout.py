"""The only builder of object keys and of the local folders that mirror them.

Owns: where each thing of a run lives below ``<remote>/<run_name>/`` (CONTRACT §3). Does not own: run names
(``run_name``), templates (``template``), or what is in the objects (``journal``).

Invariant: every key of ours that is not an artifact lies below ``<run_name>/.artifactsync/``, and a key that came
from the remote becomes a local path through :func:`safe_local_path` alone.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from artifactsync.errors import UnsafeKeyError

HOUSE_FOLDER = ".artifactsync"
"""The folder of a run that holds everything which is not an artifact, on the remote and locally."""

SEQ_DIGITS = 20
"""Digits of a journal record's number: wide enough for any int64, so that key order is number order."""

_GENERATION = re.compile(r"([0-9]{6,18})-([0-9]{6,18})")
_WINDOWS_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$")
_WINDOWS_SIGNS = frozenset('<>:"|?*')  # and "x:y" would be a stream of the file x
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode categories: control, format, surrogate, separators
_MAX_PART_BYTES = 255  # NAME_MAX of ext4, xfs, apfs and ntfs alike
_MAX_PATH_BYTES = 1024
"""The longest key of S3, Google Cloud Storage and Azure. What is a thousand folders deep can hardly be removed again.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html, read 2026-11-22."""


@dataclass(frozen=True)
class RunLayout:
    """The keys of one run. All keys are relative to the remote's root."""

    run_name: str
    """A valid run name."""

    @property
    def root(self) -> str:
        """``<run_name>/``: the prefix of everything of the run."""
        return f"{self.run_name}/"

    @property
    def house(self) -> str:
        """``<run_name>/.artifactsync/``: the prefix of everything that is no artifact."""
        return f"{self.run_name}/{HOUSE_FOLDER}/"

    @property
    def journal(self) -> str:
        """The prefix of the journal's records."""
        return f"{self.house}journal/"

    def record(self, seq: int) -> str:
        """Key of the journal record ``seq`` (1, 2, 3 …)."""
        return f"{self.journal}{seq:0{SEQ_DIGITS}d}.json"

    @property
    def index(self) -> str:
        """The prefix of the packs of records by which a long journal is read in few requests."""
        return f"{self.house}index/"

    @property
    def head(self) -> str:
        """Key of the advisory pointer to a recent record."""
        return f"{self.house}head.json"

    @property
    def heartbeat(self) -> str:
        """Key of the advisory sign of life of the run's writer."""
        return f"{self.house}heartbeat.json"

    def intent(self, attempt: int, number: int) -> str:
        """Key of the advisory list of data keys that a checkpoint not yet committed is about to use."""
        return f"{self.intents}{attempt:06d}-{number:06d}.json"

    def part_intent(self, attempt: int, number: int, rank: int) -> str:
        """Key of the intent of one rank for the ``number``-th checkpoint that several ranks write together."""
        return f"{self.intents}{attempt:06d}-{number:06d}-r{rank:06d}.json"

    @property
    def parts(self) -> str:
        """The prefix of the records by which ranks tell rank 0 what they have written."""
        return f"{self.house}parts/"

    @property
    def copy_marker(self) -> str:
        """Key of the intent of a copy that is arriving; no attempt has number 0."""
        return self.intent(0, 1)

    @property
    def intents(self) -> str:
        """The prefix of all intents."""
        return f"{self.house}intents/"

    def pin(self, token: str) -> str:
        """Key of a reader's request not to delete the checkpoint that it is reading."""
        return f"{self.pins}{token}.json"

    @property
    def pins(self) -> str:
        """The prefix of all pins."""
        return f"{self.house}pins/"

    @property
    def probes(self) -> str:
        """The prefix of scratch objects."""
        return f"{self.house}probe/"

    @property
    def tails(self) -> str:
        """The prefix of the segments of logs that are still growing."""
        return f"{self.house}tails/"

    def tail(self, path: str, generation: tuple[int, int], name: str) -> str:
        """Key of one segment of the growing file at ``path`` (or of its seal), in a generation of an attempt.

        Args:
            path: Below the run's folder.
            generation: The attempt, and which of its append-only histories of the file.
            name: What the segment is, as ``transfer.tail`` words it; without ``/``.
        """
        attempt, number = generation
        return f"{self.tails}{check_relative(path)}/{attempt:06d}-{number:06d}/{name}"

    def tail_of(self, key: str) -> tuple[str, tuple[int, int], str] | None:
        """The inverse of :meth:`tail`: path (hostile input), generation, name; None for any other key."""
        if not key.startswith(self.tails):
            return None
        above, _, name = key[len(self.tails) :].rpartition("/")
        path, _, generation = above.rpartition("/")
        found = _GENERATION.fullmatch(generation)
        return (path, (int(found[1]), int(found[2])), name) if found and path else None

    def probe(self, token: str) -> str:
        """Key of a scratch object for probing the store."""
        return f"{self.probes}{token}"

    def artifact(self, path: str) -> str:
        """Key of the artifact at ``path`` below the run's folder.

        Raises:
            UnsafeKeyError: the path leaves the run's folder or lies in the house folder.
        """
        return self.root + check_relative(path)

    def path_of(self, key: str) -> str | None:
        """The path below the run's folder of an artifact's key; None for keys of the house and of other runs."""
        if not key.startswith(self.root) or f"{key}/".startswith(self.house):
            return None
        return key[len(self.root) :] or None


def sibling(path: str, attempt: int, number: int = 0) -> str:
    """The path of attempt ``attempt``'s own version of ``path``: ``ep1-rank0.pt`` → ``ep1-rank0.a2.pt``.

    ``number`` > 0 tells later versions of the same attempt apart: ``ep1-rank0.a2-1.pt``.
    """
    pure = PurePosixPath(path)
    mark = f".a{attempt}" if number == 0 else f".a{attempt}-{number}"
    return str(pure.with_name(pure.stem + mark + pure.suffix))


def check_relative(path: str) -> str:
    """Return ``path`` if it is a plain relative path with ``/`` that stays where it is put.

    Raises:
        UnsafeKeyError: empty, absolute, with ``..``, ``.``, empty parts, backslashes, drives, control characters,
            too long, or within the house folder.
    """
    reason = _why_unsafe(path)
    if reason:
        raise UnsafeKeyError(
            f"the key {path[:_MAX_PATH_BYTES]!r} {reason}",
            hint="use a relative path such as checkpoints/model.pt, without '..'",
        )
    return path


def is_safe(path: str) -> bool:
    """Whether :func:`check_relative` would let ``path`` through."""
    return not _why_unsafe(path)


def safe_local_path(destination: Path, path: str) -> Path:
    """The local path for the remote ``path`` (hostile input) below ``destination``.

    Nothing is touched on disk; the caller must still refuse symlinks when it opens the path.

    Raises:
        UnsafeKeyError: the path would leave ``destination``, or cannot be a file name here.
    """
    return destination.joinpath(*check_relative(path).split("/"))


def fold_case(path: str) -> str:
    """A key under which two paths are equal if some common file system would take them for one file."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _why_unsafe(path: str) -> str:
    """Say why ``path`` is refused, or nothing if it is fine."""
    parts = path.split("/")
    if fold_case(parts[0]) == HOUSE_FOLDER:  # case folded: some file systems would take .ArtifactSync/ for it
        return f"lies in {HOUSE_FOLDER}/, which belongs to the journal"
    for is_bad, reason in (
        (not path, "is empty"),
        (path.startswith("/"), "is absolute"),
        ("\\" in path, "has a backslash, which some systems read as a folder separator"),
        (re.match(r"^[A-Za-z]:", path), "begins with a drive letter"),
        (
            not path.isprintable() and any(unicodedata.category(c) in _INVISIBLE for c in path),
            "has control or invisible characters",
        ),
    ):
        if is_bad:
            return reason
    if len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES:
        return f"is longer than {_MAX_PATH_BYTES} bytes"
    return next((reason for part in parts if (reason := _why_unsafe_part(part))), "")


def _why_unsafe_part(part: str) -> str:
    if part == "":
        return "has an empty part"
    if part in {".", ".."}:
        return f"has a {part!r} part"
    if len(part.encode("utf-8", "surrogatepass")) > _MAX_PART_BYTES:
        return "has a part longer than 255 bytes"
    if os.name == "nt" and (_WINDOWS_RESERVED.match(part) or part.endswith((".", " ")) or set(part) & _WINDOWS_SIGNS):
        return f"has the part {part!r}, which is no file name on Windows"
    return ""
