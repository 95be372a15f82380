from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync.batch import (
    Placement,
    local_rank,
    local_world_size,
    node_rank,
    placement,
    rank,
    world_size,
)
from artifactsync.errors import ConfigurationError

# As torch 2.15's torchrun set them: second of two processes on the second of two nodes.
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_RANK": "3",
    "ROLE_WORLD_SIZE": "4",
}
# As Slurm 22.05 set them, for `sbatch -n 2`: in the batch script, and in the second task of an srun in it.
SLURM_BATCH_SCRIPT = {
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2",
}
SLURM_TASK = SLURM_BATCH_SCRIPT | {
    "SLURM_LOCALID": "1",
    "SLURM_PROCID": "1",
    "SLURM_STEPID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
# As Open MPI 5's documentation says. NODE_RANK there is a rank on the node, not of it.
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
}
SRUN_OF_TWO_NODES = {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def place(*numbers):
    fields = ("rank", "world_size", "local_rank", "local_world_size", "node_rank")
    return Placement(**dict(zip(fields, numbers, strict=True)))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, place(0, 1, 0, 1, 0)),
        ({"RANK": "", "WORLD_SIZE": ""}, place(0, 1, 0, 1, 0)),
        ({"WORLD_SIZE": "1"}, place(0, 1, 0, 1, 0)),
        (TORCHRUN, place(3, 4, 1, 2, 1)),
        (SLURM_BATCH_SCRIPT, place(0, 1, 0, 1, 0)),
        (SLURM_TASK, place(1, 2, 1, 2, 0)),
        (OPEN_MPI, place(5, 8, 1, 4, 1)),
        (SRUN_OF_TWO_NODES, place(1, 2, 0, 1, 1)),
        # The innermost launcher counts.
        (TORCHRUN | SRUN_OF_TWO_NODES, place(3, 4, 1, 2, 1)),
        (OPEN_MPI | SRUN_OF_TWO_NODES, place(5, 8, 1, 4, 1)),
        (TORCHRUN | OPEN_MPI, place(3, 4, 1, 2, 1)),
        # A Composer launcher says NODE_RANK.
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "NODE_RANK": "1"},
            place(5, 8, 1, 4, 1),
        ),
        # RANK and WORLD_SIZE copied from the scheduler's by a job script: the rest is the scheduler's.
        (SLURM_TASK | {"RANK": "1", "WORLD_SIZE": "2"}, place(1, 2, 1, 2, 0)),
        (OPEN_MPI | {"RANK": "5", "WORLD_SIZE": "8"}, place(5, 8, 1, 4, 1)),
        # ... but not when they speak of other processes.
        (SLURM_TASK | {"RANK": "2", "WORLD_SIZE": "4"}, place(2, 4, 0, 1, 2)),
        # Only what a script needs for init_process_group: one process per node is assumed.
        ({"RANK": "2", "WORLD_SIZE": "4"}, place(2, 4, 0, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, place(3, 4, 1, 2, 1)),
        # Slurm's compressed counts.
        (
            {
                "SLURM_PROCID": "6",
                "SLURM_LOCALID": "0",
                "SLURM_NODEID": "3",
                "SLURM_STEP_NUM_TASKS": "7",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
            },
            place(6, 7, 0, 1, 3),
        ),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "2",
                "SLURM_STEP_NUM_TASKS": "7",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
            },
            place(5, 7, 1, 2, 2),
        ),
        ({"RANK": " 1 ", "WORLD_SIZE": "2\n"}, place(1, 2, 0, 1, 1)),
    ],
)
def test_placement(environ, expected):
    assert placement(environ) == expected
    assert rank(environ) == expected.rank
    assert world_size(environ) == expected.world_size
    assert local_rank(environ) == expected.local_rank
    assert local_world_size(environ) == expected.local_world_size
    assert node_rank(environ) == expected.node_rank


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is set to 4, but RANK is not set"),
        ({"RANK": "1"}, "RANK is set to 1, but WORLD_SIZE is not set"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x', which is no number"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which is no number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', which is no number"),
        ({"RANK": "1.0", "WORLD_SIZE": "2"}, "RANK is '1.0'"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, "which is no number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0, but WORLD_SIZE is 0"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "x"}, "OMPI_COMM_WORLD_LOCAL_SIZE is 'x'"),
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "2(3)"}, "SLURM_STEP_TASKS_PER_NODE is '2(3)'"),
        (SLURM_TASK | {"SLURM_NODEID": "1"}, "SLURM_STEP_TASKS_PER_NODE is '2', which has no node 1"),
    ],
)
def test_what_makes_no_sense_is_said(environ, says):
    with pytest.raises(ConfigurationError) as caught:
        placement(environ)
    assert says in caught.value.message
    assert caught.value.hint


_names = st.sampled_from(sorted({*TORCHRUN, *SLURM_TASK, *OPEN_MPI, "NODE_RANK"}))
_values = st.integers(0, 4).map(str) | st.sampled_from(["", "x", "2(x2)", "1,2"])


@given(st.dictionaries(_names, _values, max_size=12))
def test_any_environment_gives_numbers_that_fit_or_one_clear_error(environ):
    try:
        found = placement(environ)
    except ConfigurationError:
        return
    assert 0 <= found.rank < found.world_size
    assert 0 <= found.local_rank < found.local_world_size
    assert found.node_rank >= 0


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    for name in (*TORCHRUN, *OPEN_MPI, *SLURM_TASK):
        monkeypatch.delenv(name, raising=False)
    assert placement() == Placement()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rank() == 1


def test_under_a_real_torchrun(tmp_path):
    program = tmp_path / "place.py"
    program.write_text(
        "import dataclasses, json, pathlib\n"
        "from artifactsync.batch import placement\n"
        "place = dataclasses.asdict(placement())\n"
        f"pathlib.Path({str(tmp_path)!r}, str(place['rank'])).write_text(json.dumps(place))\n"
    )
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    subprocess.run(command, check=True, env=environ, timeout=100, capture_output=True)
    assert [Placement(**json.loads((tmp_path / name).read_text())) for name in "01"] == [
        place(0, 2, 0, 2, 0),
        place(1, 2, 1, 2, 0),
    ]
