"""Names, metrics, hosts and records made to do harm: on a page they are text, and damage is said."""

from __future__ import annotations

import json

import pytest

from artifactsync import Run
from artifactsync.journal.record import seal
from tests.crash.hostile_names import generated, named
from tests.ui.conftest import Page, serving, train

_MARKUP = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</title><script>x</script>",
    "</textarea><script>",
    "<!--",
    "-->",
    "<![CDATA[",
    "javascript:alert(1)",
    "{{ 7*7 }}",
    "{% raw %}",
    "${7*7}",
    "&lt;script&gt;",
    "&#60;script&#62;",
    "\u202e<b>",
    'x" onmouseover="alert(1)',
    "<base href=//evil>",
    "<style>*{}</style>",
    "<meta http-equiv=refresh content=0;url=//evil>",
    "\ufeff<x>",
    "\u2028<x>",
    "a\u200bb",
    "\x00<x>",
    "\x1b[31m<x>",
]


def hostile():
    return [*_MARKUP, *(name for _, name in named()), *generated(200, seed=7)]


def put(store, key, data=b"x"):
    store.objects[key] = data


def test_hostile_keys_are_text(store, tmp_path):
    train(store, tmp_path)
    for name in hostile():
        if not name.startswith(".artifactsync"):
            put(store, f"r/{name}")
        put(store, f"{name}/.artifactsync/journal/{1:020}.json")
        put(store, f"{name}/x")
    with serving(store) as visitor:
        answer = visitor.get("/runs/r")
        assert answer.status == 200
        assert "<script>alert(1)</script>" in answer.page.text
        assert 'class="trouble"' not in answer.text
        answer = visitor.get("/")
        names = [value for name, value in answer.page.attributes if name == "data-run"]
        assert all(name.isascii() and name[0].isalnum() for name in names)
        for start in range(0, len(names), 40):
            told = visitor.get("/summaries?" + "&".join(f"run={name}" for name in names[start : start + 40])).text
            assert told.isprintable()
            assert all(row is None or row["texts"]["last_step"] for row in json.loads(told)["runs"].values())
        for name in names:
            assert visitor.get(f"/runs/{name}").page.text


def test_hostile_searches_are_text(store, tmp_path):
    train(store, tmp_path)
    with serving(store) as visitor:
        for name in [*_MARKUP, "a" * 5000, "r" * 201]:
            answer = visitor.get("/?q=" + "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass")))
            assert answer.status == 200
            assert answer.page.text


def test_hostile_metrics_and_checkpoint_names_are_text(store, tmp_path):
    names = hostile()
    with Run("r", remote=store, local_root=tmp_path) as run:
        file = run.local_dir / "c.bin"
        file.write_bytes(b"c")
        for step, name in enumerate(_MARKUP):
            if name.isprintable():
                run.save_files([file], step=step + 1, name=name, metrics={name: 1.0}).result(30)
        lines = [{"step": step, "metrics": {name: 1.0, name + "\u202e": "nan"}} for step, name in enumerate(names)]
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1e999, "metrics": {"x": 1}}\n[[[[\n'
        (run.local_dir / "metrics-rank0.jsonl").write_text(text)
        run.push(run.local_dir / "metrics-rank0.jsonl")
        run.wait(30)
    with serving(store) as visitor:
        answer = visitor.get("/runs/r")
        assert answer.status == 200
        assert "{{ 7*7 }}" in answer.page.text
        assert 'class="trouble"' not in answer.text
        assert "Verified" in visitor.verified("r")


_VALUES = [*_MARKUP[::5], "", None, True, -1, 10**400, 1e308, [], {}, ["<b>"], {"<b>": "<b>"}, "9" * 5000]


_FIELDS = (
    "writer.host time totals.last_step totals.checkpoints totals.bytes body.name body.step body.metrics body.timing "
    "body.state body.files attempt"
)


@pytest.mark.parametrize("field", _FIELDS.split())
def test_a_record_that_says_anything_at_all(store, tmp_path, field):
    """Sealed by somebody who may write to the bucket: either it is shown as text, or it is damage and said to be."""
    train(store, tmp_path, steps=(1,))
    good = dict(store.objects)
    records = sorted(key for key in good if "/journal/" in key)
    with serving(store) as visitor:
        for value in _VALUES:
            last = records[0] if field == "writer.host" else records[-1] if field == "body.state" else records[1]
            store.objects = {key: data for key, data in good.items() if "/index/" not in key and "head.json" not in key}
            for key in records[records.index(last) + 1 :]:
                del store.objects[key]
            record = json.loads(good[last])
            place = record
            *path, name = field.split(".")
            for part in path:
                place = place[part]
            place[name] = value
            store.objects[last] = seal(record)
            answer = visitor.get("/runs/r")
            assert answer.status in {200, 502}, value
            text = answer.page.text
            assert "unexpected" not in text, value
            row = json.loads(visitor.get("/summaries?run=r").text)
            assert row["runs"]["r"]["state"] in {"completed", "preempted", "failed", "running", "unknown"}
            assert str(row).isprintable()
            assert "<b>" not in answer.text


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": 99}', b"null", b"<script>alert(1)</script>"]
)
def test_damage_is_said_and_hides_no_other_run(store, tmp_path, data):
    train(store, tmp_path, "r")
    train(store, tmp_path, "good")
    records = [key for key in store.objects if key.startswith("r/.artifactsync/") and key.endswith(".json")]
    with serving(store) as visitor:
        for key in records:
            put(store, key, data)
            answer = visitor.get("/runs/r")
            assert "unexpected" not in answer.page.text
        answer = visitor.get("/runs/r")
        assert 'class="trouble"' in answer.text
        assert "alert(1)" not in answer.text
        told = json.loads(visitor.get("/summaries?run=r&run=good").text)["runs"]
        assert (told["r"]["state"], told["good"]["state"]) == ("unknown", "completed")
        assert 'role="alert"' in visitor.get("/runs/r").text
        assert "Traceback" not in visitor.get("/runs/r/verify").text


def test_the_reader_of_these_tests_sees_harm():
    for harm in (
        "<p>a\u202eb</p>",
        "<p onclick=x></p>",
        '<a href="javascript:x">x</a>',
        "<b></b>",
        "<script>x</script>",
    ):
        with pytest.raises(AssertionError):
            Page(harm)
