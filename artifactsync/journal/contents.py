"""What lies in a run's folder besides committed checkpoints: its artifacts.

Owns: which objects are artifacts. Does not own: checkpoints (``catalogue``).

Invariant: the bytes of a checkpoint that is not committed, or was retired, are never shown as artifacts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from artifactsync.journal.catalogue import Catalogue
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import ObjectInfo, Store

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


def read_contents(store: Store, layout: RunLayout, catalogue: Catalogue) -> Contents:
    """List a run's folder and tell artifacts from everything else."""
    objects = list(store.list(layout.root))
    hidden = catalogue.keys | _announced(store, layout, objects)
    visible = [(path, info) for info in objects if (path := layout.path_of(info.key)) is not None]
    artifacts = tuple(
        Artifact(path=path, key=info.key, size=info.size_bytes)
        for path, info in sorted(visible, key=lambda pair: pair[1].key)
        if info.key not in hidden and not path.endswith(_ADVISORY_SUFFIX)
    )
    return Contents(artifacts=artifacts, bytes=sum(info.size_bytes for _, info in visible), is_empty=not objects)


def _announced(store: Store, layout: RunLayout, objects: Iterable[ObjectInfo]) -> set[str]:
    """Keys that checkpoints in flight, or given up, have announced."""
    keys: set[str] = set()
    for info in objects:
        if not info.key.startswith(layout.intents):
            continue
        try:
            announced = json.loads(store.get(info.key))["keys"]
        except (ObjectNotFoundError, ValueError, KeyError, TypeError):
            continue
        keys.update(layout.root + key for key in announced if isinstance(key, str))
    return keys
