"""``python -m artifactsync``: the same as the ``artifactsync`` command."""

from __future__ import annotations

from artifactsync.cli import main

if __name__ == "__main__":
    main()
