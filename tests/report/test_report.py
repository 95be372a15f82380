"""The page of real runs in a folder remote, read as a browser's parser reads it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from artifactsync import RetentionPolicy, Run
from artifactsync.errors import RunNotFoundError
from artifactsync.report import build_report

_ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "span", "div", "dl", "dt", "dd", "table",
    "thead", "tbody", "tr", "th", "td", "svg", "polyline", "line", "circle", "rect", "text",
}  # fmt: skip
_HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'\u202e</title></style>&amp;"


class Page(HTMLParser):
    """All tags and attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], []
        self.open = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(source):
    """The page, which must be harmless whatever is in it."""
    page = Page(source)
    assert page.open == []
    assert page.tags <= _ALLOWED
    assert {name for name, _ in page.attributes} & {"src", "href", "style", "onload", "onerror", "xlink:href"} == set()
    assert "url(" not in source
    assert "\u202e" not in source
    assert len(source.encode()) < 1_000_000
    return page


def _run(tmp_path, **more):
    return Run("r", remote=tmp_path / "remote", local_root=tmp_path / "local", **more)


def _read(tmp_path):
    return Run("r", remote=tmp_path / "remote", read_only=True)


def _save(run, step, **more):
    file = run.local_dir / f"c{step}.bin"
    file.write_bytes(b"%d" % step)
    return run.save_files([file], step=step, **more)


def _write_metrics(run, lines):
    file = run.local_dir / "metrics-rank0.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.push(file, growing=True)
    run.wait()


def test_attempts_checkpoints_and_what_is_no_more(tmp_path):
    with _run(tmp_path, retention=RetentionPolicy(keep_last=1)) as run:
        for step in (1, 2):
            _save(run, step, metrics={"loss": 1 / step}).result()
    with _run(tmp_path) as run:
        _save(run, 3, metrics={"loss": 0.1})
    before = sorted(path for path in (tmp_path / "remote").rglob("*"))
    report = build_report(_read(tmp_path))
    assert sorted(path for path in (tmp_path / "remote").rglob("*")) == before  # it read only
    page = checked(report.html)
    assert (report.checkpoints, report.attempts, report.metrics) == (3, 2, 1)
    text = " ".join(page.text)
    assert "ep0-ba2, step 2" in text  # where the second attempt went on
    assert "2 of 3" in text  # one is retired
    assert text.count("completed") >= 3
    assert "loss" in text


def test_hostile_names_and_values_stay_text(tmp_path):
    with _run(tmp_path) as run:
        _save(run, 1, name=_HOSTILE.replace("\u202e", ""), metrics={_HOSTILE: float("nan"), "b": float("inf")})
        _write_metrics(run, [{"step": 1, "metrics": {_HOSTILE: 1.0, _HOSTILE + "2": "nan"}}, {"step": 2, "metrics": 3}])
        source = build_report(_read(tmp_path)).html
    page = checked(source)
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert "not finite" in "".join(page.text)


def test_a_live_run_with_nothing_yet(tmp_path):
    with _run(tmp_path):
        page = checked(build_report(_read(tmp_path)).html)
    text = " ".join(page.text)
    assert "running" in text
    assert "None were mirrored yet" in text
    assert "None is committed yet" in text


def test_a_live_run_whose_log_is_growing(tmp_path):
    with _run(tmp_path) as run:
        _write_metrics(run, [{"step": step, "metrics": {"loss": step}} for step in range(10)])
        with (run.local_dir / "metrics-rank0.jsonl").open("a") as file:
            file.writelines(json.dumps({"step": step, "metrics": {"loss": step}}) + "\n" for step in range(10, 20))
        run.push(run.local_dir / "metrics-rank0.jsonl", growing=True)
        run.wait()
        assert build_report(_read(tmp_path)).points == 20


def test_a_hundred_thousand_points_and_a_thousand_names_make_a_small_page(tmp_path):
    with _run(tmp_path) as run:
        lines = [{"step": step, "metrics": {"loss": step % 97, "lr": 1e-9 * step}} for step in range(50_000)]
        lines.append({"step": 1, "metrics": {"name" * 50 + str(n): n for n in range(1000)}})
        _write_metrics(run, lines)
    report = build_report(_read(tmp_path))
    checked(report.html)
    assert report.points >= 100_000
    assert report.metrics == 500


def test_a_folder_without_a_journal_is_shown_and_none_is_an_error(tmp_path):
    (tmp_path / "remote" / "r").mkdir(parents=True)
    (tmp_path / "remote" / "r" / "logs-rank0.txt").write_text('[metric][batch=3]: {"loss": 0.5}\nfree text\n')
    report = build_report(_read(tmp_path))
    checked(report.html)
    assert (report.metrics, report.points) == (1, 1)
    with pytest.raises(RunNotFoundError):
        build_report(Run("none", remote=tmp_path / "remote", read_only=True))
