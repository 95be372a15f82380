"""Clocks that are wrong by ten years, or jump, change nothing: time informs, it never decides.

Each process of a run has a wall clock of its own that is right, ten years fast, ten years slow, or jumps between all
of them at every look. ``time`` and ``datetime`` are replaced before artifactsync is imported; the remote keeps the
right time. What the run comes to is compared with what it comes to when every clock is right. Not here: S3 that checks
the time of signatures refuses every request of such a machine, which is told in one line (``RequestTimeTooSkewed``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
    import datetime, hashlib, itertools, json, os, random, sys, time
    from pathlib import Path

    task = json.loads(sys.argv[1])
    YEARS_S = 10 * 365.25 * 86400
    chance, real, real_ns = random.Random(1), time.time, time.time_ns
    shifts_s = {"right": [0], "fast": [YEARS_S], "slow": [-YEARS_S], "jumping": [0, YEARS_S, -YEARS_S]}[task["clock"]]
    time.time = lambda: real() + chance.choice(shifts_s)
    time.time_ns = lambda: real_ns() + int(chance.choice(shifts_s) * 1e9)

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls):
            raise AssertionError("naive times are not used")

    datetime.datetime = Shifted

    from artifactsync import Run
    from artifactsync.journal.retention import RetentionPolicy

    place = {"remote": task["remote"], "storage_options": task["storage_options"], "local_root": task["root"]}

    def train(attempt, end):
        run = Run("exp7", **place)
        assert run.attempt == attempt, run.attempt
        latest = run.latest()
        first = latest.step + 1 if latest else 1
        log = run.local_dir / "logs-rank0.txt"
        for step in range(first, first + 4):
            file = run.local_dir / f"checkpoints/{step}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"%d " % step * 1000)
            run.save_files([file], step=step, metrics={"loss": 1 / step}).result(60)
            with log.open("ab") as lines:
                lines.write(b"attempt %d step %d\\n" % (attempt, step))
            run.push(log, growing=True).result(60)
        if end == "killed":
            os._exit(9)
        run.close(state=end)

    def look():
        run = Run("exp7", read_only=True, **place)
        pruned = run.prune(RetentionPolicy(keep_last=3, keep_every=5))
        out = Path(task["root"]) / "pulled"
        report = run.pull(out)
        records = [
            json.loads(run.fs.cat_file(path)) for path in sorted(run.fs.find(".artifactsync/journal"))
        ]
        own = {"write_id", "writer", "prev_sha256", "self_sha256", "time"}
        for record in records:
            repeated = record.get("latest_commit") or {}
            repeated.pop("time", None)
            for body in (record["body"], repeated.get("body") or {}):
                body.pop("owner", None)  # a writer
                body.pop("timing", None)  # how long it took
        return {
            "records": [{k: v for k, v in record.items() if k not in own} for record in records],
            "times": len({record["time"][:3] for record in records}),
            "checkpoints": [[c.name, c.step, c.attempt] for c in run.checkpoints()],
            "latest": run.latest().step,
            "best": run.best("loss").step,
            "kept": list(pruned.kept),
            "retired": list(pruned.retired),
            "deleted": pruned.deleted_keys,
            "checkpoint": report.checkpoint,
            "files": {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
                      for p in sorted(out.rglob("*")) if p.is_file()},
            "artifacts": [[a.path, a.size] for a in run.artifacts()],
            "verified": run.verify(deep=True).ok,
            "state": [run.status().state, run.status().alive, run.status().durable_step],
            # Intents but ours are removed behind their commits, if there is time.
            "keys": sorted(
                key for key in run.fs.find("")
                if "heartbeat" not in key and ("intents/" not in key or key.endswith("000001-000009.json"))
            ),
        }

    if task["do"] == "look":
        print(json.dumps(look()))
    else:
        train(*task["do"])
"""

LIVES = ([1, "killed"], [2, "preempted"], [3, "completed"])


def live(place: dict[str, Any], root: Path, clocks: tuple[str, ...]) -> dict[str, Any]:
    """Three attempts and a look, each with a clock of its own; what came out."""
    program, printed = textwrap.dedent(PROGRAM), ""
    for do, clock in zip([*LIVES, "look"], clocks, strict=True):
        task = {"clock": clock, "do": do, "root": str(root), "storage_options": None, **place}
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(task)],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},  # google warns by date that this Python is too old
        )
        assert done.returncode == (9 if do == LIVES[0] else 0), done.stderr
        printed = done.stdout
    outcome: dict[str, Any] = json.loads(printed)
    return outcome


def leave_orphans(remote: Path) -> None:
    """What a dead attempt left: one object two days old, one from this moment."""
    intents = remote / "exp7/.artifactsync/intents"
    intents.mkdir(parents=True)
    for name in ("old.pt", "new.pt"):
        (remote / "exp7" / name).write_bytes(b"x" * 10)
    (intents / "000001-000009.json").write_text(json.dumps({"keys": ["old.pt", "new.pt"]}))
    now = (remote / "exp7/new.pt").stat().st_mtime
    os.utime(remote / "exp7/old.pt", (now - 2 * 86400, now - 2 * 86400))


def outcome_on_a_disk(folder: Path, clocks: tuple[str, ...]) -> dict[str, Any]:
    leave_orphans(folder / "remote")
    return live({"remote": str(folder / "remote")}, folder / "runs", clocks)


def same(expected: dict[str, Any], outcome: dict[str, Any]) -> None:
    assert outcome["times"] >= expected["times"] == 1
    for name in expected.keys() - {"records", "times"}:
        assert outcome[name] == expected[name], name
    for one, other in zip(outcome["records"], expected["records"], strict=True):
        assert one == other


RIGHT = ("right",) * 4


def test_clocks_that_are_years_apart_change_nothing(tmp_path: Path) -> None:
    expected = outcome_on_a_disk(tmp_path / "right", RIGHT)
    assert expected["latest"] == 12
    assert expected["state"] == ["completed", False, 12]
    assert expected["verified"]
    assert [step for _, step, _ in expected["checkpoints"]] == [5, 10, 11, 12]
    assert "new.pt" in expected["keys"]
    assert "old.pt" not in expected["keys"]
    outcome = outcome_on_a_disk(tmp_path / "wrong", ("fast", "slow", "jumping", "fast"))
    assert outcome["times"] > 1  # the clocks were wrong indeed
    same(expected, outcome)


@pytest.mark.crash
def test_every_mixture_of_clocks_changes_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    mixtures = [
        ("fast", "fast", "fast", "fast"),
        ("slow", "slow", "slow", "slow"),
        ("jumping", "jumping", "jumping", "jumping"),
        ("fast", "slow", "right", "slow"),
        ("slow", "fast", "slow", "fast"),
        ("right", "jumping", "slow", "jumping"),
    ]
    expected = outcome_on_a_disk(tmp_path / "right", RIGHT)
    for number, clocks in enumerate(mixtures):
        same(expected, outcome_on_a_disk(tmp_path / f"disk-{number}", clocks))
    for kind in ("moto_s3", "gcs"):  # a strict S3 refuses what such a clock signed
        cloud = request.getfixturevalue(kind)
        runs = [
            live(
                {"remote": cloud.fresh_url(), "storage_options": cloud.storage_options},
                tmp_path / f"{kind}-{number}",
                clocks,
            )
            for number, clocks in enumerate([RIGHT, *mixtures[2:4]])
        ]
        for outcome in runs[1:]:
            same(runs[0], outcome)
    print(
        f"clocks wrong by 10 years or jumping: {len(mixtures)} mixtures on a disk, "
        "2 on S3 (moto), 2 on GCS: 0 differences"
    )
