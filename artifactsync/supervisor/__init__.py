"""``artifactsync run``: any training command, with a run name, restored, mirrored and published while it runs.

Knows no torch: what a framework writes is known by its names and its bytes.
"""

from __future__ import annotations

from artifactsync.supervisor.settings import Settings
from artifactsync.supervisor.supervise import supervise
from artifactsync.supervisor.verdict import Outcome

__all__ = ["Outcome", "Settings", "supervise"]
