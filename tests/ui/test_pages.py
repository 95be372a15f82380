"""What the pages say of real runs, and that they only read."""

from __future__ import annotations

import json
import re
import threading

import pytest

from artifactsync import Run
from artifactsync.errors import RemoteUnreachableError
from artifactsync.journal.runs import list_runs
from artifactsync.stores import open_store
from artifactsync.stores.retry import RetryPolicy
from artifactsync.testing import Fault, FaultyStore
from artifactsync.ui import listing
from tests.ui.conftest import serving, train


def rows(visitor, *names):
    answer = visitor.get("/summaries?" + "&".join(f"run={name}" for name in names))
    assert answer.status == 200
    return json.loads(answer.text)


def test_the_list_and_a_row_say_what_ls_says(store, tmp_path):
    train(store, tmp_path, "1795100420-quiet-mole")
    train(store, tmp_path, "1795299363-flexible-ringtail", steps=(10, 20, 1000))
    store.asked.clear()
    with serving(store) as visitor:
        page = visitor.get("/").page
        assert "2 runs" in page.text
        assert page.text.index("flexible-ringtail") < page.text.index("quiet-mole")  # the newest name first
        names = [value for name, value in page.attributes if name == "data-run"]
        found = rows(visitor, *names)["runs"]
        for run in list_runs(store):
            row = found[run.run_name]
            assert row["state"] == row["texts"]["state"] == run.state == "completed"
            assert row["numbers"]["last_step"] == run.last_step
            assert (row["numbers"]["checkpoints"], row["numbers"]["bytes"]) == (run.checkpoints, run.bytes)
        assert found["1795299363-flexible-ringtail"]["texts"]["last_step"] == "1,000"
        assert "1 run of 2 with MOLE in the name" in visitor.get("/?q=MOLE").page.text
        assert "None of 2 runs has <x> in its name" in visitor.get("/?q=%3Cx%3E").page.text
    assert not store.asked.keys() & {"put", "delete"}


def test_a_runs_page(store, tmp_path):
    train(store, tmp_path, "r", steps=(1, 2))
    train(store, tmp_path, "r", steps=(3,))
    before = dict(store.objects)
    store.asked.clear()
    with serving(store) as visitor:
        answer = visitor.get("/runs/r")
        text = answer.page.text
    assert answer.status == 200
    for words in (
        "completed, attempt 2. Durable up to step 3.",
        "artifactsync --remote dict://root pull r",
        "artifactsync --remote dict://root pull r --only logs",
        "ep0-ba2, step 2",  # where the second attempt went on
        "accuracy",  # a metric of the mirrored log
        "from logs-rank0.txt",
        "logs-rank0.txt 37 B",
        "durable step 3 checkpoints 3",
    ):
        assert words in text, words
    assert answer.text.count("<svg") >= 3
    assert text.index("Metrics") < text.index("Attempts and checkpoints") < text.index("Other files")
    assert store.objects == before
    assert not store.asked.keys() - {"get", "head", "list", "list_folders"}


def test_a_command_that_a_shell_takes_as_it_is(tmp_path):
    train(tmp_path / "my runs; rm -rf $HOME", tmp_path / "local")
    with serving(open_store(tmp_path / "my runs; rm -rf $HOME")) as visitor:
        assert f"--remote 'file://{tmp_path}/my runs; rm -rf $HOME' pull r" in visitor.get("/runs/r").page.text


def test_a_live_run_says_what_is_not_durable_yet(store, tmp_path):
    with Run("r", remote=store, local_root=tmp_path) as run, serving(store) as visitor:
        text = visitor.get("/runs/r").page.text
        assert "running, alive, attempt 1. No checkpoint is durable yet." in text
        assert "None were mirrored yet" in text
        run.local_dir.joinpath("c.bin").write_bytes(b"c")
        run.save_files([run.local_dir / "c.bin"], step=7).result(30)
        beat = {"local_step": 9, "pending_files": 2, "pending_bytes": 2048, "bytes_per_s": 1024.0, "eta_s": 2.0}
        put_heartbeat(store, beat | {"last_error": "403 <b>"})
        text = visitor.get("/runs/r").page.text
        assert "Durable up to step 7; the writer has taken a checkpoint at step 9." in text
        assert "2 files wait for upload, 2 KiB, at 1 KiB/s, done in about 2 s." in text
        assert "Its uploads have trouble: 403 <b>" in text
        put_heartbeat(store, {"local_step": "9", "pending_files": 1e999, "eta_s": float("nan"), "bytes_per_s": []})
        assert "Durable up to step 7. Bring it here" in visitor.get("/runs/r").page.text


def put_heartbeat(store, gauge):
    key = "r/.artifactsync/heartbeat.json"
    while key not in store.objects:
        threading.Event().wait(0.01)
    beat = json.loads(store.objects[key])
    store.put(key, json.dumps(beat | {"gauge": gauge}).encode())


def test_of_a_thousand_runs_the_list_asks_for_names_alone(store, tmp_path):
    train(store, tmp_path, "first", steps=(5,))
    one = {key.partition("/")[2]: data for key, data in store.objects.items()}
    for number in range(1200):
        store.objects |= {f"run-{number:04}/{key}": data for key, data in one.items()}
    del store.objects["run-0003/.artifactsync/journal/00000000000000000002.json"]
    with serving(store) as visitor:
        store.asked.clear()
        text = visitor.get("/").page.text
        assert store.asked == {"list_folders": 1}
        assert "1,201 runs; the greatest 1,000 names are shown" in text
        assert text.count("run-") == listing.MAX_ROWS
        names = [f"run-{number:04}" for number in range(60)]
        found = rows(visitor, *names, "none")["runs"]
        assert list(found) == names[:50]  # no more at once
        assert {row["numbers"]["last_step"] for name, row in found.items() if name != "run-0003"} == {5}
        assert rows(visitor, "none") == {"runs": {"none": None}}
        assert store.asked["get"] + store.asked["list"] <= 51 * 4


def test_no_runs_and_no_such_run(store):
    with serving(store) as visitor:
        assert "No runs here yet" in visitor.get("/").page.text
        answer = visitor.get("/runs/none")
        assert answer.status == 404
        assert "none" in answer.page.text
        assert "Traceback" not in answer.text


def test_a_verification_finds_what_is_wrong_and_can_be_asked_for_again(store, tmp_path):
    train(store, tmp_path, steps=(1, 2, 3))
    with serving(store) as visitor:
        assert "not checked since this page was started" in visitor.get("/runs/r/verify").page.text
        assert "Verified: 3 files, 2.93 KiB, sizes compared" in visitor.verified("r")
        store.objects["r/c1.bin"] = b"X" * 1000
        del store.objects["r/c2.bin"]
        assert "1 missing, 0 damaged" in visitor.verified("r")
        text = visitor.verified("r", deep="1")
        assert "1 missing, 1 damaged: 3 files" in text
        assert "Missing r/c2.bin Damaged r/c1.bin" in text
        assert "1 missing, 1 damaged" in visitor.get("/runs/r").page.text  # the newest check, on the run's own page
        form = {"form_token": visitor.form_token("r")}
        assert visitor.post("/runs/none/verify", form).status == 303
        while 'http-equiv="refresh"' in (answer := visitor.get("/runs/none/verify")).text:
            pass
        assert "none" in answer.page.text


def test_a_verification_holds_up_no_page_and_runs_once(store, tmp_path):
    train(store, tmp_path)
    with serving(store) as visitor:
        form = {"form_token": visitor.form_token("r")}
        gate = store.hold("head", "r/c")
        assert visitor.post("/runs/r/verify", form).status == 303
        assert store.arrived.wait(30)
        while store.held["head"] < 2:  # its two files
            threading.Event().wait(0.01)
        for _ in range(3):
            assert visitor.post("/runs/r/verify", form).status == 303  # it is at it already
        assert visitor.get("/").status == 200
        page = visitor.get("/runs/r/verify")
        assert "Comparing sizes" in page.page.text
        assert 'http-equiv="refresh"' in page.text
        assert store.held["head"] == 2
        gate.set()
        assert "Verified" in visitor.verified("r")


def test_a_verification_says_how_far_it_is(store, tmp_path):
    train(store, tmp_path)
    with serving(store) as visitor:
        assert json.loads(visitor.get("/runs/r/verify/progress").text) == {"is_running": False}
        form = {"form_token": visitor.form_token("r"), "deep": "1"}
        gate = store.hold("get", "r/c2")
        assert visitor.post("/runs/r/verify", form).status == 303
        while (told := json.loads(visitor.get("/runs/r/verify/progress").text))["done_bytes"] < 1000:
            assert told["is_running"]
        assert (told["done_bytes"], told["total_bytes"]) == (1000, 2000)
        assert re.fullmatch(r"1000 B of 1.95 KiB in 2 files, for \S+ m?s now(, about \S+ m?s left)?", told["words"])
        page = visitor.get("/runs/r/verify")
        assert 'max="2000" value="1000"' in page.text
        assert "1000 B of 1.95 KiB in 2 files" in page.page.text
        gate.set()
        assert "every byte read" in visitor.verified("r", deep="1")
        told = json.loads(visitor.get("/runs/r/verify/progress").text)
        assert (told["is_running"], told["done_bytes"]) == (False, 2000)


def test_the_list_can_be_asked_for_anew(store, tmp_path):
    with serving(store) as visitor:
        assert json.loads(visitor.get("/names").text)["names"] == []
        for name in ("one", "two", "three"):
            train(store, tmp_path, name, steps=(1,))
        told = json.loads(visitor.get("/names").text)
        assert (told["names"], told["matching"], told["total"]) == (["two", "three", "one"], 3, 3)
        told = json.loads(visitor.get("/names?q=T").text)
        assert (told["names"], told["matching"], told["total"]) == (["two", "three"], 2, 3)
        store.list_folders = _no_answer
        told = json.loads(visitor.get("/names").text)
        assert told == {"error": "no answer look at the network"}


def _no_answer(*_):
    raise RemoteUnreachableError("no answer", hint="look at the network")


def test_a_slow_remote_is_said_and_holds_up_no_other_page(store, tmp_path):
    train(store, tmp_path)
    with serving(store, first_answer_s=0.01) as visitor:
        gate = store.hold("list_folders")
        slow = visitor.ask("GET", "/")
        beginning = b""
        while b"Waiting for" not in beginning:  # it begins before the remote has answered
            beginning += slow.read1(4096)
        assert slow.status == 200
        assert b"<bdi>dict://root</bdi>" in beginning
        assert b"</html>" not in beginning
        assert visitor.get("/runs/r").status == 200
        gate.set()
        assert b"1 run" in slow.read()


def test_a_remote_that_is_down_is_said_with_what_to_do(s3):
    options = {**s3.storage_options, "endpoint_url": "http://127.0.0.1:9"}
    store = open_store("s3://bucket/runs", options, retry=RetryPolicy(max_attempts=1))
    with serving(store) as visitor:
        for place in ("/", "/runs/r"):
            answer = visitor.get(place)
            assert answer.status == 502
            assert "127.0.0.1:9" in answer.page.text
            assert "Traceback" not in answer.text
            assert answer.text.count('class="trouble"') == 1
            assert answer.page.text.count("endpoint") >= 1  # the hint
        told = rows(visitor, "r")
        assert told["runs"] == {}
        assert "127.0.0.1:9" in told["error"]


NEEDED = {"/": {"list_folders"}, "/runs/r": {"get", "head", "list"}}


@pytest.mark.parametrize("operation", ["get", "head", "list", "list_folders"])
@pytest.mark.parametrize("kind", ["permission", "transient"])
def test_whatever_fails_the_page_says_why(store, tmp_path, operation, kind):
    train(store, tmp_path)
    with serving(FaultyStore(store, [Fault(kind=kind, operations=(operation,), times=10_000)])) as visitor:
        for place in ("/", "/runs/r"):
            answer = visitor.get(place)
            assert answer.status in {200, 502}
            assert ('class="trouble"' in answer.text) == (operation in NEEDED[place])
            assert "unexpected" not in answer.page.text
            assert "Traceback" not in answer.text


def test_the_remote_is_given_up_after_a_while(store, monkeypatch):
    monkeypatch.setattr("artifactsync.ui.remote.ANSWER_S", 0.2)
    with serving(store) as visitor:
        gate = store.hold("list_folders")
        try:
            answer = visitor.get("/")
        finally:
            gate.set()
        assert answer.status == 502
        assert "no answer from dict://root in 0 s load the page again" in answer.page.text


def test_an_unexpected_error_is_one_line(store, monkeypatch):
    def fail(*_):
        raise ValueError("<script> s3://key:secret@bucket")

    monkeypatch.setattr(store, "list_folders", fail)
    with serving(store) as visitor:
        answer = visitor.get("/")
        assert answer.status == 500
        assert "unexpected error: ValueError: <script>" in answer.page.text
        assert "secret" not in answer.text
        assert "ARTIFACTSYNC_DEBUG=1" in answer.text
