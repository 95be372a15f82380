"""A strict reader of Chrome's trace-event format: what Perfetto and chrome://tracing would stumble over is an error.

The rules are those of "Trace Event Format" for the phases X, i, C, M, B, E, and of what torch adds to them:
flows (s, t, f) and asynchronous spans (b, e, n). Perfetto's own importer is a program that its Python package downloads
when it is first used, so it is not asked here.
"""

from __future__ import annotations

import json
import math

_KNOWN = set("XiCMsftbenBE")
_TOLERANCE_US = 1.0


def checked_trace(path):
    """The events of a trace, after they were found to be what the format says."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert set(document) >= {"traceEvents"}
    assert document.get("displayTimeUnit", "ms") in {"ms", "ns"}
    for event in document["traceEvents"]:
        _check(event)
    _check_pairs(document["traceEvents"])
    return document["traceEvents"]


def _check(event):
    assert event["ph"] in _KNOWN, event
    assert isinstance(event["name"], str), event
    assert isinstance(event["pid"], (int, str)), event
    assert isinstance(event.get("args", {}), dict), event
    if event["ph"] == "M":
        assert event["name"] in {
            "process_name", "process_sort_index", "process_labels", "thread_name", "thread_sort_index"
        }, event  # fmt: skip
        return
    assert isinstance(event["ts"], (int, float)), event
    assert math.isfinite(event["ts"]), event
    assert event["ts"] >= 0, event
    if event["ph"] == "X":
        assert math.isfinite(event["dur"]), event
        assert event["dur"] >= 0, event
        assert isinstance(event["tid"], (int, str)), event
    elif event["ph"] in "stfben":
        assert isinstance(event["id"], (int, str)), event
        assert isinstance(event["cat"], str), event
    elif event["ph"] == "C":
        assert event["args"], event
        assert all(isinstance(value, (int, float)) for value in event["args"].values()), event
    elif event["ph"] == "i":
        assert event.get("s", "t") in {"g", "p", "t"}, event


def _check_pairs(events):
    """What begins ends: B and E of a thread, b and e of an id; a flow that ends has begun."""
    opened = {}
    for event in sorted((e for e in events if e["ph"] in "BEbe"), key=lambda e: e["ts"]):
        place = event.get("id", event.get("tid")), event["pid"], event["ph"].lower() == event["ph"]
        opened[place] = opened.get(place, 0) + (1 if event["ph"] in "Bb" else -1)
        assert opened[place] >= 0, event
    assert not any(opened.values()), opened
    begun = {(event["cat"], event["id"]) for event in events if event["ph"] == "s"}
    assert {(event["cat"], event["id"]) for event in events if event["ph"] == "f"} <= begun


def check_nesting(events):
    """Spans of one thread lie within each other or apart: else they would be drawn over each other."""
    threads = {}
    for event in events:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for spans in threads.values():
        stack = []
        for span in sorted(spans, key=lambda e: (e["ts"], -e["dur"])):
            end = span["ts"] + span["dur"]
            while stack and stack[-1] <= span["ts"] + _TOLERANCE_US:
                stack.pop()
            assert not stack or end <= stack[-1] + _TOLERANCE_US, span
            stack.append(end)
