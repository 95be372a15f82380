"""Every checkpoint and log of a training run, in your own bucket under its run name."""

from __future__ import annotations

from artifactsync._version import __version__

__all__ = ["__version__"]
