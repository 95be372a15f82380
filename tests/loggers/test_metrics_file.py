from __future__ import annotations

import json

from artifactsync.loggers import LogContext, MetricsFile


def _opened(folder, **more):
    log = MetricsFile(**more)
    log.open(LogContext(run_name="r", local_dir=folder, attempt=1, placeholders={"rank": 0}))
    return log


def _strict(line):
    def refuse(word):
        raise AssertionError(word)

    return json.loads(line, parse_constant=refuse)


def test_every_line_is_strict_json(tmp_path):
    log = _opened(tmp_path)
    log.start(resumed_at=None)
    log.log_hyperparameters({"lr": 0.1, "path": tmp_path})
    log.log_metrics({"loss": 0.5, "bad\nname": float("nan"), "up": float("inf")}, 1)
    log.log_metrics({"loss": float("-inf")}, 2)
    log.close()
    lines = [_strict(line) for line in (tmp_path / "metrics-rank0.jsonl").read_text().splitlines()]
    assert lines == [
        {"hyperparameters": {"lr": 0.1, "path": str(tmp_path)}},
        {"step": 1, "metrics": {"loss": 0.5, "bad\nname": "nan", "up": "inf"}},
        {"step": 2, "metrics": {"loss": "-inf"}},
    ]


def test_a_resumed_run_continues_it_without_gap_or_repeat(tmp_path):
    log = _opened(tmp_path)
    log.start(resumed_at=None)
    log.log_metrics({"loss": 1.0}, 1)
    saved = log.state_dict()
    log.log_metrics({"loss": 9.0}, 2)
    log.close()
    again = _opened(tmp_path)
    again.load_state_dict(saved)
    again.start(resumed_at=1)
    again.log_metrics({"loss": 2.0}, 2)
    again.close()
    lines = [_strict(line) for line in (tmp_path / "metrics-rank0.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "metrics": {"loss": 1.0}},
        {"attempt": 1, "resumed_at": 1},
        {"step": 2, "metrics": {"loss": 2.0}},
    ]
