"""Which objects of a folder that another program laid out are checkpoints, by their names.

Owns: the names that Composer, Lightning, Hugging Face and ``torch.distributed.checkpoint`` give, and what is missing in
one that was cut off. Does not own: reading the objects, or records (``adoption``).

Invariant: a pure function of names and sizes; what is not surely a whole checkpoint is named with the reason, and never
taken for one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError
from artifactsync.naming.layout import is_safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FOLDERS = (
    re.compile(r"checkpoint-(?P<step>\d+)"),  # Hugging Face
    re.compile(r"ep(?P<epoch>\d+)-ba(?P<step>\d+)"),  # Composer, sharded
    re.compile(r"(?:global_?)?(?:step|iter)[-_=]?(?P<step>\d+)"),  # DCP as torchtitan, Megatron and DeepSpeed name it
)
_FILES = (
    re.compile(r"(?P<name>ep(?P<epoch>\d+)-ba(?P<step>\d+))-rank(?P<rank>\d+)\.pt"),  # Composer
    re.compile(r"(?P<name>.*?epoch=(?P<epoch>\d+)-step=(?P<step>\d+).*)\.ckpt"),  # Lightning
    re.compile(r"(?P<name>.*?(?:step|iter)[-_=]?(?P<step>\d+).*)\.(?:pt|pth|ckpt|bin|safetensors|tar)"),
)
_METRIC = re.compile(r"(?<![\w.])([A-Za-z_][\w/.]*)=(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?=-|$)")
_OF = re.compile(r"(.*-)(\d+)(-of-)(\d+)(\..*)")
_ADVISORY = (".symlink",)


@dataclass(kw_only=True)
class Found:
    """Objects that together look like one checkpoint."""

    name: str
    """What it will be called."""
    step: int
    """Optimizer steps done, as the name says."""
    epoch: int
    """Epochs done; 0 where the name does not say."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics that the name gives."""
    paths: list[str] = field(default_factory=list)
    """Its files, below the run's folder."""
    missing: str = ""
    """Why it is no whole checkpoint; empty if it is."""
    ranks: set[int] = field(default_factory=set)
    """Ranks that have a file in it, where each writes one."""


def find_checkpoints(paths: Iterable[str], pattern: str | None = None) -> list[Found]:
    """Group paths into checkpoints, in order of their steps.

    Args:
        paths: Of objects, below the run's folder.
        pattern: A regular expression for names that are not known here, with a group ``step`` and perhaps ``epoch`` and
            ``name``. It is searched in each path; files for which it finds the same are one checkpoint.

    Raises:
        ConfigurationError: the pattern cannot be used.
    """
    groups: dict[tuple[str, str], Found] = {}
    custom = _compiled(pattern) if pattern is not None else None
    for path in sorted(paths):
        if not is_safe(path) or path.endswith(_ADVISORY):
            continue
        found = _by_pattern(path, custom) if custom is not None else _by_name(path)
        if found is None:
            continue
        place, checkpoint = found
        known = groups.setdefault((place, checkpoint.name), checkpoint)
        known.paths.append(path)
        known.ranks |= checkpoint.ranks
    _tell_apart(groups)
    most = defaultdict[str, int](int)
    for (place, _), checkpoint in groups.items():
        most[place] = max(most[place], len(checkpoint.ranks))
    for (place, _), checkpoint in groups.items():
        checkpoint.missing = _what_is_missing(checkpoint, most[place])
    return sorted(groups.values(), key=lambda each: (each.step, each.name))


def _by_name(path: str) -> tuple[str, Found] | None:
    parts = path.split("/")
    for depth, part in enumerate(parts[:-1]):
        for shape in _FOLDERS:
            match = shape.fullmatch(part)
            if match:
                return "/".join(parts[:depth]), _found(part, match)
    for shape in _FILES:
        match = shape.fullmatch(parts[-1])
        if match:
            found = _found(match["name"], match)
            if "rank" in match.groupdict():
                found.ranks = {int(match["rank"])}
            return "/".join(parts[:-1]), found
    return None


def _by_pattern(path: str, pattern: re.Pattern[str]) -> tuple[str, Found] | None:
    match = pattern.search(path)
    if match is None:
        return None
    given = match.groupdict()
    name = given.get("name") or f"step-{int(match['step'])}"
    return "", _found(name, match)


def _found(name: str, match: re.Match[str]) -> Found:
    given = match.groupdict()
    metrics = {key: float(value) for key, value in _METRIC.findall(name) if key not in {"epoch", "step"}}
    return Found(name=name, step=int(match["step"]), epoch=int(given.get("epoch") or 0), metrics=metrics)


def _tell_apart(groups: Mapping[tuple[str, str], Found]) -> None:
    """Put the folder before names that are not the only ones of their kind."""
    counts = defaultdict[str, int](int)
    for found in groups.values():
        counts[found.name] += 1
    for (place, _), found in groups.items():
        if counts[found.name] > 1 and place:
            found.name = f"{place}/{found.name}"


def _what_is_missing(found: Found, most_ranks: int) -> str:
    names = {path.rpartition("/")[2] for path in found.paths}
    if found.ranks and len(found.ranks) < most_ranks:
        absent = sorted(set(range(most_ranks)) - found.ranks)
        return f"files of {len(absent)} of {most_ranks} ranks are missing"
    if any(name.endswith(".distcp") for name in names) and ".metadata" not in names:
        return "the shards have no .metadata, which is written last"
    if re.search(r"(^|/)checkpoint-\d+$", found.name) and "trainer_state.json" not in names:
        return "there is no trainer_state.json, which is written last"
    for name in sorted(names):
        match = _OF.fullmatch(name)
        if match:
            begin, number, of, total, end = match.groups()
            wanted = {f"{begin}{n:0{len(number)}d}{of}{total}{end}" for n in range(1, int(total) + 1)}
            if int(total) <= len(names) + 1000 and (absent_files := sorted(wanted - names)):
                return f"{absent_files[0]} is missing"
    return ""


def _compiled(pattern: str) -> re.Pattern[str]:
    hint = r"for example --pattern 'model-(?P<step>\d+)\.pt'"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"the pattern {pattern!r} is no regular expression: {error}", hint=hint) from error
    if "step" not in compiled.groupindex:
        raise ConfigurationError(f"the pattern {pattern!r} has no group called step", hint=hint)
    return compiled
