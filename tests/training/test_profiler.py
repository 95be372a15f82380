"""The profiler on a few digits: what is in the traces, where they go, and what a kill leaves."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import types
from concurrent.futures import Future

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from artifactsync import Callback, Run, Trainer
from artifactsync.errors import ConfigurationError, RemoteUnreachableError, TemplateError
from artifactsync.run import Pushed
from artifactsync.training.callback import CallbackTable
from artifactsync.training.profiler import JSONTraceHandler, Profiler, ProfilerAction, cyclic_schedule
from artifactsync.training.profiler.kept_traces import KeptTraces
from tests.training.digits import Digits
from tests.training.trace_format import check_nesting, checked_trace


def _trainer(tmp_path, **more):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = {
        "optimizers": torch.optim.SGD(net.parameters(), lr=0.1),
        "loss_fn": nn.CrossEntropyLoss(),
        "run_name": "r",
        "remote": tmp_path / "remote",
        "local_root": tmp_path / "local",
        "max_duration": "1ep",
        "progress_bar": False,
        "device": "cpu",
        "seed": 5,
        **more,
    }
    return Trainer(net, DataLoader(Digits(96, moved=False), batch_size=8), **settings)


def _at(batch_in_epoch):
    return types.SimpleNamespace(timestamp=types.SimpleNamespace(batch_in_epoch=batch_in_epoch))


def test_the_schedule():
    schedule = cyclic_schedule(skip_first=1, wait=1, warmup=1, active=2, repeat=2)
    word = {"skip": "-", "warmup": "w", "active": "a", "active_and_save": "S"}
    assert "".join(word[schedule(_at(n)).value] for n in range(12)) == "--waS-waS---"
    assert "".join(word[cyclic_schedule(active=1, repeat=0)(_at(n)).value] for n in range(6)) == "wSwSwS"
    for wrong in ({"active": 0}, {"wait": -1}):
        with pytest.raises(ConfigurationError, match="makes no sense"):
            cyclic_schedule(**wrong)


def test_spans_counters_and_torchs_own_trace_are_mirrored(tmp_path):
    profiler = Profiler(
        cyclic_schedule(skip_first=1, wait=0, warmup=1, active=2, repeat=2),
        sys_prof_memory=True,
        sys_prof_disk=True,
        sys_prof_net=True,
        sys_prof_stats_thread_interval_seconds=0.001,
    )

    class Own(Callback):
        def batch_end(self, state, logger):
            with state.profiler.marker("my part"):
                pass

    with _trainer(
        tmp_path, profiler=profiler, save_interval="1ba", callbacks=Own(), device_train_microbatch_size=4
    ) as t:
        t.fit()
    files = sorted((tmp_path / "remote" / "r" / "traces").iterdir())
    assert [file.name for file in files] == ["ep0-ba4-rank0.json", "ep0-ba7-rank0.json"]
    for file in files:
        events = checked_trace(file)
        check_nesting(events)
        spans = [event["name"] for event in events if event["ph"] == "X"]
        assert {name: spans.count(name) for name in sorted(set(spans))} == {
            "backward": 4, "batch": 2, "checkpoint": 2, "dataloader": 2, "epoch 0": 1, "forward": 4, "loss": 4,
            "my part": 2, "optimizer": 2,
        }  # fmt: skip
        counters = {event["name"] for event in events if event["ph"] == "C"}
        assert counters >= {"cpu, %", "memory, bytes"}
    traces = sorted((tmp_path / "remote" / "r" / "torch_traces").iterdir())
    assert [trace.name for trace in traces] == ["rank0.4.pt.trace.json", "rank0.7.pt.trace.json"]
    for trace in traces:
        assert any("addmm" in event["name"] or "linear" in event["name"] for event in checked_trace(trace))
    assert Run("r", remote=tmp_path / "remote", read_only=True).verify(deep=True).ok


def test_what_is_recorded_when_an_error_ends_training_is_kept(tmp_path):
    class Trouble(Callback):
        def batch_start(self, state, logger):
            if state.timestamp.batch == 5:
                raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        _trainer(tmp_path, profiler=Profiler(cyclic_schedule(warmup=0, active=100)), callbacks=Trouble()) as trainer,
    ):
        trainer.fit()
    events = checked_trace(tmp_path / "remote" / "r" / "traces" / "ep0-ba5-rank0.json")
    assert sum(event["name"] == "batch" for event in events) == 5


def test_batches_that_were_recorded_survive_a_kill(tmp_path):
    program = (
        "import sys, os, signal, pathlib\n"
        "from tests.training.test_profiler import _trainer, Callback, Profiler, cyclic_schedule\n"
        "class Kill(Callback):\n"
        "    def batch_start(self, state, logger):\n"
        "        if state.timestamp.batch == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "_trainer(pathlib.Path(sys.argv[1]), autoresume=True, callbacks=Kill(),\n"
        "         profiler=Profiler(cyclic_schedule(warmup=0, active=4, repeat=0))).fit()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL
    whole = tmp_path / "local" / "r" / "traces" / "ep0-ba4-rank0.json"
    assert sum(event["name"] == "batch" for event in checked_trace(whole)) == 4
    with _trainer(tmp_path, autoresume=True, profiler=Profiler(lambda state: ProfilerAction.SKIP)):
        pass  # what was on its way when the process died is on this disk, and is mirrored
    (recovered,) = (tmp_path / "remote" / "r" / "traces").glob("recovered-rank0-*.json")
    assert sum(event["name"] == "batch" for event in checked_trace(recovered)) == 2
    assert [file.name for file in (tmp_path / "local" / "r" / "traces").glob(".*")] == []
    assert (tmp_path / "remote" / "r" / "traces" / whole.name).read_bytes() == whole.read_bytes()
    assert (tmp_path / "remote" / "r" / "torch_traces" / "rank0.4.pt.trace.json").is_file()


def test_batches_that_are_skipped_leave_nothing(tmp_path):
    with _trainer(tmp_path, profiler=Profiler(lambda state: ProfilerAction.SKIP), save_folder=None) as trainer:
        trainer.fit()
        assert not trainer.state.optimizers[0]._optimizer_step_pre_hooks
    assert not (tmp_path / "remote" / "r" / "traces").exists()


def test_without_a_profiler_nobody_is_called(tmp_path):
    with _trainer(tmp_path, save_folder=None) as trainer:
        table = trainer._callbacks
        assert isinstance(table, CallbackTable)
        assert all(not wanted for wanted in table._wanted.values())
    code = "import sys, artifactsync.training; sys.exit('artifactsync.training.profiler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0


def test_old_traces_leave_the_disk_once_they_are_durable(tmp_path):
    class Wait(Callback):
        def batch_end(self, state, logger):
            state.run.wait()

    profiler = Profiler(
        cyclic_schedule(warmup=0, active=2, repeat=0),
        JSONTraceHandler(num_traces_to_keep=2),
        torch_prof_num_traces_to_keep=1,
    )
    with _trainer(tmp_path, profiler=profiler, callbacks=Wait()) as trainer:
        trainer.fit()
    for folder, kept in (("traces", 2), ("torch_traces", 1)):
        mirrored = sorted((tmp_path / "remote" / "r" / folder).iterdir())
        assert len(mirrored) == 6
        left = sorted((tmp_path / "local" / "r" / folder).iterdir())
        assert len(left) == kept
        assert {file.name for file in left} <= {file.name for file in mirrored}
        newest = sorted(mirrored, key=lambda file: int(re.search(r"ba(\d+)|\.(\d+)\.", file.name)[0].strip("ba.")))
        assert {file.name for file in left} == {file.name for file in newest[-kept:]}


def test_a_trace_that_is_not_durable_stays_on_the_disk(tmp_path):
    kept = KeptTraces(0)
    file = tmp_path / "trace.json"
    file.write_text("{}")
    outcome = Future()
    upload = types.SimpleNamespace(done=outcome.done, result=outcome.result)
    kept.add(file, Pushed([upload]))
    assert file.exists()
    outcome.set_exception(RemoteUnreachableError("no route"))
    kept.remove_surplus()
    assert file.exists()


def test_a_full_disk_warns_and_training_goes_on(tmp_path):
    (tmp_path / "local" / "r").mkdir(parents=True)
    (tmp_path / "local" / "r" / "traces").write_text("a file where a folder must be")
    with (
        pytest.warns(RuntimeWarning, match="a trace was not written"),
        _trainer(tmp_path, profiler=Profiler(torch_prof=False), save_folder=None) as trainer,
    ):
        trainer.fit()
    assert trainer.state.timestamp.batch == 12


def test_mistakes_are_told_at_once():
    with pytest.raises(TemplateError):
        JSONTraceHandler("{run_name}/../x")
    with pytest.raises(TemplateError):
        Profiler(torch_prof_folder="{nope}")
    with pytest.raises(ConfigurationError, match="num_traces_to_keep is -2"):
        JSONTraceHandler(num_traces_to_keep=-2)
    with pytest.raises(ConfigurationError, match="interval"):
        Profiler(sys_prof_stats_thread_interval_seconds=0)
