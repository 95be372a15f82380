from __future__ import annotations

import io
import json
import sys

import pytest
import torch

from artifactsync import ConsoleLogger, FileLogger, Run
from artifactsync.errors import ConfigurationError, DestinationError, TemplateError
from artifactsync.loggers.logger import LogContext, Logger, LoggerDestination


class Memory(LoggerDestination):
    def __init__(self):
        self.seen = []

    def log_metrics(self, metrics, step):
        self.seen.append((step, dict(metrics)))


def _context(folder, **more):
    return LogContext(run_name="r", local_dir=folder / "r", placeholders={"rank": 0}, **more)


def _file_logger(folder, *, state=None, resumed_at=None, fetch=None, **more):
    log = FileLogger(**more)
    log.open(_context(folder, **({"fetch": fetch} if fetch else {})))
    if state is not None:
        log.load_state_dict(state)
    log.start(resumed_at=resumed_at)
    return log


def test_tensors_are_read_late_and_in_order():
    memory = Memory()
    logger = Logger([memory])
    loss = torch.tensor(1.5, requires_grad=True)
    logger.step = 4
    logger.log_metrics({"loss": loss, "half": torch.tensor([0.5], dtype=torch.float16), "plain": 2})
    logger.log_metrics({"eval": torch.tensor(3)}, step=5)
    assert memory.seen == []
    logger.deliver()
    assert memory.seen == [(4, {"loss": 1.5, "half": 0.5, "plain": 2.0}), (5, {"eval": 3.0})]
    for step in range(64):
        logger.log_metrics({"x": step}, step=step)
    assert len(memory.seen) == 66


def test_lines_that_any_tool_can_read(tmp_path):
    log = _file_logger(tmp_path, buffer_size=2)
    log.log_hyperparameters({"lr": 0.1})
    log.log_metrics({"loss": 0.25}, 1)
    log.log_metrics({"loss": 0.125}, 2)
    assert (tmp_path / "r" / "logs-rank0.txt").read_text() == (
        '[hyperparameter]: {"lr": 0.1}\n[metric][batch=1]: {"loss": 0.25}\n'
    )
    log.close()
    last = (tmp_path / "r" / "logs-rank0.txt").read_text().splitlines()[-1]
    assert json.loads(last.partition(": ")[2]) == {"loss": 0.125}


def test_a_resume_cuts_what_came_after_the_checkpoint(tmp_path):
    log = _file_logger(tmp_path)
    log.log_metrics({"loss": 1.0}, 1)
    state = log.state_dict()
    log.log_metrics({"loss": 2.0}, 2)
    log.close()
    again = _file_logger(tmp_path, state=state, resumed_at=1)
    again.log_metrics({"loss": 3.0}, 2)
    second_state = again.state_dict()
    again.close()
    lines = (tmp_path / "r" / "logs-rank0.txt").read_text().splitlines()
    assert lines == [
        '[metric][batch=1]: {"loss": 1.0}',
        "[run][batch=1]: attempt 1 continues here",
        '[metric][batch=2]: {"loss": 3.0}',
    ]
    assert second_state["size_bytes"] == (tmp_path / "r" / "logs-rank0.txt").stat().st_size


def test_on_another_machine_the_mirrored_log_is_brought_back(tmp_path):
    log = _file_logger(tmp_path / "a")
    log.log_metrics({"loss": 1.0}, 1)
    state = log.state_dict()
    log.close()
    whole = (tmp_path / "a" / "r" / "logs-rank0.txt").read_bytes()
    stale = tmp_path / "b" / "r" / "logs-rank0.txt"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x" * 500)  # of another history

    def fetch(path, local, size_bytes, sha256):
        assert (path, size_bytes, sha256) == ("logs-rank0.txt", state["size_bytes"], state["sha256"])
        local.write_bytes(whole + b"later\n")
        return True

    _file_logger(tmp_path / "b", state=state, resumed_at=1, fetch=fetch).close()
    assert stale.read_bytes() == whole + b"[run][batch=1]: attempt 1 continues here\n"
    _file_logger(tmp_path / "c", state=state, resumed_at=1, fetch=lambda *_: False).close()
    assert "could not be brought back" in (tmp_path / "c" / "r" / "logs-rank0.txt").read_text()


def test_a_run_started_anew_has_a_new_log(tmp_path):
    _file_logger(tmp_path).close()
    (tmp_path / "r" / "logs-rank0.txt").write_text("old\n")
    _file_logger(tmp_path).close()
    assert (tmp_path / "r" / "logs-rank0.txt").read_text() == ""


def test_stdout_and_stderr_are_captured_and_given_back(tmp_path, capsys):
    before = sys.stdout, sys.stderr
    log = _file_logger(tmp_path, capture_stdout=True, capture_stderr=True)
    print("one\ntwo")
    print("trouble", file=sys.stderr)
    log.close()
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / "r" / "logs-rank0.txt").read_text() == "[stdout]: one\n[stdout]: two\n[stderr]: trouble\n"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("one\ntwo\n", "trouble\n")


def test_mirrored_below_the_run(tmp_path):
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "local") as run:
        log = FileLogger()
        log.open(
            LogContext(
                run_name="r",
                local_dir=run.local_dir,
                placeholders={"rank": 3},
                mirror=lambda path, remote_path, growing=True: run.push(path, remote_path, growing=growing),
            )
        )
        log.start(resumed_at=None)
        log.log_metrics({"loss": 1.0}, 1)
        (pushed,) = log.flush()
        pushed.result(30)
        assert [(a.path, a.size) for a in run.artifacts()] == [("logs-rank3.txt", 33)]
        log.close()
    assert run.fs.cat_file("logs-rank3.txt") == b'[metric][batch=1]: {"loss": 1.0}\n'


def test_mistakes(tmp_path):
    with pytest.raises(TemplateError):
        FileLogger("{run_name}/{user}.txt")
    with pytest.raises(ConfigurationError):
        FileLogger(flush_interval=0)
    with pytest.raises(ConfigurationError):
        FileLogger(buffer_size=0)
    with pytest.raises(ConfigurationError):
        ConsoleLogger(0)
    (tmp_path / "r").write_text("a file")
    with pytest.raises(DestinationError, match="cannot write the log"):
        _file_logger(tmp_path)


def test_console(tmp_path):
    stream = io.StringIO()
    console = ConsoleLogger(2, stream=stream)
    console.open(_context(tmp_path, attempt=3))
    console.start(resumed_at=7)
    for step in (8, 9):
        console.log_metrics({"loss/train/total": 0.123456}, step)
    console.log_metrics({"loss/eval/total": 1.0}, 9)
    assert stream.getvalue().splitlines() == [
        "run r, attempt 3",
        "continuing after batch 7",
        "[ba 8] loss/train/total 0.1235",
        "[ba 9] loss/eval/total 1",
    ]
