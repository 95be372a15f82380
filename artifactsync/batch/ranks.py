"""Which process of how many this is, as torchrun, Open MPI or Slurm told it.

Owns: reading their environment variables. Does not own: talking to the other ranks (``checkpoint``), or signals.

Invariant: all five numbers come from one launcher and fit together, or nothing is returned. Of nested launchers the
innermost counts: torchrun started by ``srun`` once per node, ``mpirun`` within a Slurm job.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The place of one process among those that train together."""

    rank: int = 0
    """This process's number among all, from 0."""
    world_size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """This process's number on its node, from 0."""
    local_world_size: int = 1
    """Number of processes on this node."""
    node_rank: int = 0
    """This node's number, from 0."""


@dataclass(frozen=True, kw_only=True)
class _Launcher:
    """The variables of one launcher; an empty name where it has none."""

    rank: str
    world_size: str
    local_rank: str
    local_world_size: str = ""
    tasks_per_node: str = ""
    node_rank: tuple[str, ...] = ()


# As torch 2.15's torchrun sets them. It has no NODE_RANK; Composer's and Lightning's launchers do.
_TORCH = _Launcher(
    rank="RANK",
    world_size="WORLD_SIZE",
    local_rank="LOCAL_RANK",
    local_world_size="LOCAL_WORLD_SIZE",
    node_rank=("GROUP_RANK", "NODE_RANK"),
)
# Source (2026-11-21): https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html
# OMPI_COMM_WORLD_NODE_RANK is no number of a node: it numbers the processes on a node, across all jobs.
_OPEN_MPI = _Launcher(
    rank="OMPI_COMM_WORLD_RANK",
    world_size="OMPI_COMM_WORLD_SIZE",
    local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
    local_world_size="OMPI_COMM_WORLD_LOCAL_SIZE",
)
# As srun of Slurm 22.05 sets them. The step's size, not SLURM_NTASKS: a batch script, which is a single process, has
# SLURM_PROCID=0 and SLURM_NTASKS too.
_SLURM = _Launcher(
    rank="SLURM_PROCID",
    world_size="SLURM_STEP_NUM_TASKS",
    local_rank="SLURM_LOCALID",
    tasks_per_node="SLURM_STEP_TASKS_PER_NODE",
    node_rank=("SLURM_NODEID",),
)


def placement(environ: Mapping[str, str] = os.environ) -> Placement:
    """Return this process's place: from torchrun's variables, else Open MPI's, else those of a Slurm step.

    Args:
        environ: Environment variables; an empty one counts as not set. With none of them this is the only process.

    Raises:
        ConfigurationError: a variable is no number, or they contradict each other.
    """
    if _get(environ, _TORCH.rank) is not None or _number(environ, _TORCH.world_size, 1) > 1:
        return _read(environ, _TORCH)
    for launcher in (_OPEN_MPI, _SLURM):
        if _is_present(environ, launcher):
            return _read(environ, launcher)
    return Placement()


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's number among all, from 0. Raises as :func:`placement`."""
    return placement(environ).rank


def world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Number of processes. Raises as :func:`placement`."""
    return placement(environ).world_size


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's number on its node, from 0. Raises as :func:`placement`."""
    return placement(environ).local_rank


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Number of processes on this node. Raises as :func:`placement`."""
    return placement(environ).local_world_size


def node_rank(environ: Mapping[str, str] = os.environ) -> int:
    """This node's number, from 0. Raises as :func:`placement`."""
    return placement(environ).node_rank


def _read(environ: Mapping[str, str], launcher: _Launcher) -> Placement:
    for name, other in ((launcher.rank, launcher.world_size), (launcher.world_size, launcher.rank)):
        if _get(environ, name) is None:
            raise ConfigurationError(
                f"{other} is set to {_get(environ, other)}, but {name} is not set",
                hint=f"set both, as torchrun does, or unset {other}",
            )
    own_rank, size = _number(environ, launcher.rank, 0), _number(environ, launcher.world_size, 1)
    _check_below(launcher.rank, own_rank, launcher.world_size, size)
    local = launcher
    if _get(environ, launcher.local_rank) is None:
        # RANK and WORLD_SIZE copied by hand from the scheduler's variables, as in many a job script.
        local = next((other for other in (_OPEN_MPI, _SLURM) if _same(environ, launcher, other)), launcher)
    node = next((_number(environ, name, 0) for name in local.node_rank if _get(environ, name) is not None), None)
    local_size = _local_size(environ, local, node or 0)
    own_local_rank = _number(environ, local.local_rank, 0)
    _check_below(local.local_rank, own_local_rank, local.local_world_size or local.tasks_per_node, local_size)
    return Placement(
        rank=own_rank,
        world_size=size,
        local_rank=own_local_rank,
        local_world_size=local_size,
        node_rank=own_rank // local_size if node is None else node,
    )


def _local_size(environ: Mapping[str, str], launcher: _Launcher, node: int) -> int:
    """Processes on node number ``node``; where nothing says it, one more than the highest rank known there."""
    counts = _get(environ, launcher.tasks_per_node)
    if counts is not None:
        return _tasks_on(node, launcher.tasks_per_node, counts)
    at_least = _number(environ, launcher.local_rank, 0) + 1
    return max(1, _number(environ, launcher.local_world_size, at_least))


def _tasks_on(node: int, name: str, counts: str) -> int:
    """Read Slurm's ``2(x3),1``: three nodes with two tasks each, then one node with one."""
    first = 0
    for part in counts.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part.strip())
        if match is None:
            raise ConfigurationError(f"{name} is {counts!r}, which is no list of tasks per node", hint=f"unset {name}")
        first += int(match[2] or 1)
        if node < first:
            return max(1, int(match[1]))
    raise ConfigurationError(f"{name} is {counts!r}, which has no node {node}", hint=f"unset {name}")


def _same(environ: Mapping[str, str], one: _Launcher, other: _Launcher) -> bool:
    """Whether both launchers speak of the same processes."""
    return _is_present(environ, other) and all(
        _get(environ, mine) == _get(environ, theirs)
        for mine, theirs in ((one.rank, other.rank), (one.world_size, other.world_size))
    )


def _is_present(environ: Mapping[str, str], launcher: _Launcher) -> bool:
    return all(_get(environ, name) is not None for name in (launcher.rank, launcher.world_size))


def _check_below(name: str, value: int, limit_name: str, limit: int) -> None:
    if value >= limit:
        raise ConfigurationError(
            f"{name} is {value}, but {limit_name} is {limit}", hint="the numbers start at 0; check the launcher"
        )


def _get(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name, "").strip() or None


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = _get(environ, name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigurationError(f"{name} is {text!r}, which is no number", hint=f"set {name} to a whole number from 0")
    return int(text)
