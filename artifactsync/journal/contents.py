"""What lies in a run's folder besides committed checkpoints: its artifacts.

Owns: which objects are artifacts. Does not own: checkpoints (``catalogue``).

Invariant: the bytes of a checkpoint that is not committed, or was retired, are never shown as artifacts. A log that is
still growing is shown once, at its plain path, with the length of what can be read of it (``tails``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ObjectNotFoundError
from artifactsync.journal.tails import GrowingLog, growing_logs, wholes_of_later_attempts
from artifactsync.journal.untrusted_json import read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from artifactsync.journal.catalogue import Catalogue
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import ObjectInfo, Store
    from artifactsync.transfer.tail import Segment

_ADVISORY_SUFFIX = ".symlink"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file of the run that belongs to no checkpoint: a log, a trace, a picture, a file put there by hand."""

    path: str
    """Path below the run's folder. Hostile input."""
    key: str
    """Key below the remote."""
    size: int
    """Length in bytes."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync ls RUN --json``."""
        return dict(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """One listing of a run's folder, sorted by what the objects are."""

    artifacts: tuple[Artifact, ...]
    """In key order."""
    bytes: int
    """Length of all objects that are no house-keeping, committed or not."""
    is_empty: bool
    """Whether nothing at all lies in the folder: no such run."""
    logs: Mapping[str, GrowingLog] = field(default_factory=dict)
    """Artifacts that are no object yet, by key: read them through ``tails.LogStore``."""


def read_contents(
    store: Store, layout: RunLayout, catalogue: Catalogue, *, damaged: Collection[Segment] = ()
) -> Contents:
    """List a run's folder and tell artifacts from everything else.

    Args:
        store: The remote.
        layout: The run's keys.
        catalogue: The run's journal.
        damaged: Segments of growing logs that are known to be damaged.
    """
    objects = list(store.list(layout.root))
    hidden = catalogue.keys | announced_keys(store, layout, objects) | wholes_of_later_attempts(layout, objects)
    logs = {key: log for key, log in growing_logs(layout, objects, damaged=damaged).items() if key not in hidden}
    sizes = {info.key: info.size_bytes for info in objects} | {key: log.size_bytes for key, log in logs.items()}
    visible = [(path, key) for key in sorted(sizes) if (path := layout.path_of(key)) is not None]
    artifacts = tuple(
        Artifact(path=path, key=key, size=sizes[key])
        for path, key in visible
        if key not in hidden and not path.endswith(_ADVISORY_SUFFIX)
    )
    return Contents(artifacts=artifacts, bytes=sum(sizes[key] for _, key in visible), is_empty=not objects, logs=logs)


def announced_keys(store: Store, layout: RunLayout, objects: Iterable[ObjectInfo]) -> set[str]:
    """Keys that checkpoints in flight, or given up, have announced."""
    keys: set[str] = set()
    for info in objects:
        if not info.key.startswith(layout.intents):
            continue
        try:
            announced = read_json(store.get(info.key))["keys"]
            keys.update(layout.root + key for key in announced if isinstance(key, str))
        except (ObjectNotFoundError, ValueError, KeyError, TypeError):
            continue
    return keys
