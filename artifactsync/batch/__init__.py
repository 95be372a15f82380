"""What the world tells the process: its job, its rank among others, its grace period, and that its machine will go."""

from __future__ import annotations

from artifactsync.batch.grace import grace_s, parse_grace_s
from artifactsync.batch.job_env import JobEnv, job_env
from artifactsync.batch.notice import NoticeWatch, watch_for_notice
from artifactsync.batch.ranks import (
    Placement,
    local_rank,
    local_world_size,
    node_rank,
    placement,
    rank,
    world_size,
)
from artifactsync.batch.stop_signal import StopSignal

__all__ = [
    "JobEnv",
    "NoticeWatch",
    "Placement",
    "StopSignal",
    "grace_s",
    "job_env",
    "local_rank",
    "local_world_size",
    "node_rank",
    "parse_grace_s",
    "placement",
    "rank",
    "watch_for_notice",
    "world_size",
]
