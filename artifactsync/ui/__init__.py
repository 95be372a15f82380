"""A remote as a local web page: its runs, and each run's durability, metrics, checkpoints and files.

Owns: the pages, who may see them, and the server on loopback. Does not own: what a run is (``run``, ``journal``), its
drawings and tables (``report``), or the command (``cli``).

Invariant: it needs the rights to list and to get, and sends nothing else; nothing that came from the remote reaches a
page unescaped; nobody but the holder of the printed address sees anything.
"""

from __future__ import annotations

from artifactsync.ui.server import Options, serve

__all__ = ["Options", "serve"]
