"""What crashes left in a run's folder: found by what the journal says, and by age.

Owns: which objects are orphans. Does not own: bytes of retired checkpoints (``retire``).

Invariant: an orphan was announced by an attempt that is over and named by no commit, so no later record can name it;
or it is a house file that nobody reads. Ages are the server's modified times against the server's own clock.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from artifactsync.errors import ObjectNotFoundError
from artifactsync.journal.untrusted_json import read_json
from artifactsync.stores.unfinished import UnfinishedUpload, abort_unfinished, list_unfinished

if TYPE_CHECKING:
    from artifactsync.journal.catalogue import Catalogue
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import ObjectInfo, Store

MIN_AGE_S = 24 * 3600.0
"""A process that was stopped may wake and go on with its upload; after a day it surely has noticed that it is over."""

_HOUSE_AGE_S = 3600.0  # a pin is refreshed every few seconds, and a probe lives as long: whatever was asked for


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """What may be removed."""

    objects: tuple[ObjectInfo, ...] = ()
    """Whole objects that belong to nothing."""
    uploads: tuple[UnfinishedUpload, ...] = ()
    """Uploads that were never ended."""


def find_leftovers(store: Store, layout: RunLayout, catalogue: Catalogue, *, min_age_s: float) -> Leftovers:
    """Find what crashes left.

    Args:
        store: The remote.
        layout: The run's keys.
        catalogue: The run's journal.
        min_age_s: Nothing younger, in seconds.
    """
    now = _server_now(store, layout)
    if now is None:  # the store does not say when its objects were written: nothing is known to be old
        return Leftovers()
    oldest = now - timedelta(seconds=min_age_s)
    unheeded = now - timedelta(seconds=max(min_age_s, _HOUSE_AGE_S))
    objects = {info.key: info for info in store.list(layout.root)}
    house = (layout.probes, layout.pins)
    orphaned = {key for key, info in objects.items() if key.startswith(house) and _is_old(info, unheeded)}
    # What ranks told rank 0 of an attempt that is over is read by nobody.
    orphaned |= {key for key in objects if _is_of_the_past(key, layout.parts, catalogue)}
    for intent in (key for key in objects if _is_of_the_past(key, layout.intents, catalogue)):
        announced = _announced(store, layout, intent)
        orphaned |= {key for key in announced if key not in catalogue.keys and key in objects}
        # The intent goes on hiding its keys from those who list artifacts until they are gone.
        if all(key in catalogue.keys or key not in objects for key in announced):
            orphaned.add(intent)
    return Leftovers(
        objects=tuple(info for key in sorted(orphaned) if _is_old(info := objects[key], oldest)),
        uploads=tuple(upload for upload in list_unfinished(store, layout.root) if upload.started_at <= oldest),
    )


def remove_leftovers(store: Store, leftovers: Leftovers) -> None:
    """Remove them."""
    if leftovers.objects:
        store.delete([info.key for info in leftovers.objects])
    for upload in leftovers.uploads:
        abort_unfinished(store, upload)


def _server_now(store: Store, layout: RunLayout) -> datetime | None:
    """The server's clock, as the modified time of an object written just now."""
    key = layout.probe(uuid.uuid4().hex)
    store.put(key, b"what time is it?")
    try:
        return store.head(key).modified_at
    finally:
        store.delete([key])


def _is_old(info: ObjectInfo, oldest: datetime) -> bool:
    return info.modified_at is not None and info.modified_at <= oldest


def _is_of_the_past(key: str, folder: str, catalogue: Catalogue) -> bool:
    """Whether ``key`` lies in ``folder`` below the number of an attempt that can commit nothing more."""
    number = key[len(folder) :].partition("-")[0] if key.startswith(folder) else ""
    if not (number.isascii() and number.isdigit()):
        return False
    return int(number) < catalogue.attempt or bool(catalogue.finished)


def _announced(store: Store, layout: RunLayout, intent: str) -> set[str]:
    """The artifact keys that an intent lists; hostile input: only keys within the run, outside the house, count."""
    try:
        keys = read_json(store.get(intent))["keys"]
        return {key for each in keys if isinstance(each, str) and layout.path_of(key := layout.root + each)}
    except (ObjectNotFoundError, ValueError, KeyError, TypeError):
        return set()
