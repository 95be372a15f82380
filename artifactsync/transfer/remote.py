"""The store that a queue uploads to, opened on first use.

Owns: ``Remote``. Does not own: the store, which is its maker's to close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from artifactsync.stores.ahead import can_begin

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.stores.protocol import Store


class Remote:
    """A store, or what opens it.

    Args:
        store: The store; or what opens it, on a worker thread, and gives the same one to all who ask.
    """

    def __init__(self, store: Store | Callable[[], Store]) -> None:
        self._open = store if callable(store) else None
        self._opened = None if callable(store) else store

    def store(self) -> Store:
        """The store; the first call may take as long as opening it does."""
        if self._opened is None:
            assert self._open is not None
            self._opened = self._open()
        return self._opened

    @property
    def can_begin(self) -> bool:
        """Whether it is open, and its requests can be begun before other answers were read (``stores.ahead``)."""
        return self._opened is not None and can_begin(self._opened)

    @property
    def url(self) -> str:
        """Its URL without a slash at the end, for messages; in words while it is not open."""
        return "the remote" if self._opened is None else self._opened.url.rstrip("/")
