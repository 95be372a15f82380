"""A run as one small page for people: metrics curves, a timeline of checkpoints, totals.

Owns: what the page says and how it looks. Does not own: where it is written (``cli``), or anything of the run itself.

Invariant: it is made from the mirrored logs and the journal with read-only rights; nothing that came from the remote
reaches the page unescaped, and the page needs no script and no network.
"""

from __future__ import annotations

from artifactsync.report.build import Report, build_report

__all__ = ["Report", "build_report"]
