"""What the world tells the process: its rank among others, and how long it may live after a stop signal."""

from __future__ import annotations

from artifactsync.batch.grace import grace_s, parse_grace_s
from artifactsync.batch.ranks import (
    Placement,
    local_rank,
    local_world_size,
    node_rank,
    placement,
    rank,
    world_size,
)

__all__ = [
    "Placement",
    "grace_s",
    "local_rank",
    "local_world_size",
    "node_rank",
    "parse_grace_s",
    "placement",
    "rank",
    "world_size",
]
