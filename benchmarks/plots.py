"""Pictures of the figures in ``benchmarks/results/``; ``python -m benchmarks.plots`` draws those that are there.

Owns: one PNG beside a JSON file. Does not own: figures. Without matplotlib it says so and draws nothing.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.report import RESULTS

_OURS, _THEIRS = "#1f6fb2", "#b9c0c7"


def draw_transfers() -> None:
    """Seconds of each contender: a row for each line and direction, a column for each kind of files."""
    figures, pyplot = _figures("transfers"), _pyplot()
    if figures is None or pyplot is None:
        return
    rows = [
        (f"{place}, {direction}", cases)
        for place, directions in figures["results"].items()
        for direction, cases in directions.items()
    ]
    columns = max(len(cases) for _, cases in rows)
    picture, axes = pyplot.subplots(len(rows), columns, figsize=(4.2 * columns, 2.3 * len(rows)), squeeze=False)
    for (title, cases), line in zip(rows, axes, strict=True):
        for axis, (case, taken) in zip(line, cases.items(), strict=False):
            names = sorted(taken, key=lambda name: -taken[name]["wall_s"]["median"])
            _bars(axis, [(name, taken[name]["wall_s"]) for name in names])
            axis.set_title(f"{title}: {case}, s", fontsize=9)
    _save(picture, "transfers")


def draw_shaped_link() -> None:
    """Share of the line."""
    figures, pyplot = _figures("shaped_link"), _pyplot()
    if figures is None or pyplot is None:
        return
    shares = figures["share"]
    picture, axes = pyplot.subplots(1, len(shares), figsize=(3.6 * len(shares), 2.2), squeeze=False)
    for axis, (line, taken) in zip(axes[0], shares.items(), strict=True):
        _bars(axis, list(reversed(taken.items())))
        axis.axvline(figures["bar"], color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(0, 1)
        axis.set_title(f"{line}, share", fontsize=9)
    _save(picture, "shaped_link")


def draw_stall() -> None:
    """What one save stops, and what it takes from training in all."""
    figures, pyplot = _figures("stall"), _pyplot()
    if figures is None or pyplot is None:
        return
    picture, axes = pyplot.subplots(1, 2, figsize=(11, 2.6))
    for axis, key, title in (
        (axes[0], "stall_s", "training stops, s"),
        (axes[1], "lost_s", "training loses in all, s"),
    ):
        _bars(axis, sorted(figures[key].items(), key=lambda item: -item[1]["median"]))
        axis.set_title(f"one save of {figures['state_bytes'] / 1e9:.2f} GB: {title}", fontsize=9)
    axes[0].set_xscale("log")
    _save(picture, "stall")


def draw_uploader_cost() -> None:
    """What an upload takes from the training beside it."""
    figures, pyplot = _figures("uploader_cost"), _pyplot()
    if figures is None or pyplot is None:
        return
    rounds = figures["raw"]["quiet"]
    picture, axes = pyplot.subplots(1, 2, figsize=(9, 2.6))
    for axis, key, title in (
        (axes[0], "blocked_ms_per_gib", "training stood still, ms per GiB"),
        (axes[1], "p99_ratio", "99th percentile of a step ÷ without an upload"),
    ):
        taken = {name: sorted(each[key] for each in values) for name, values in rounds.items() if values}
        spreads = {
            name: {"median": values[len(values) // 2], "min": values[0], "max": values[-1]}
            for name, values in taken.items()
        }
        _bars(axis, sorted(spreads.items(), key=lambda item: -item[1]["median"]))
        axis.set_title(title, fontsize=9)
    _save(picture, "uploader_cost")


def _bars(axis: Any, bars: list[tuple[str, dict[str, Any]]]) -> None:
    """Horizontal bars of medians, with whiskers from the least to the most."""
    medians = [spread["median"] for _, spread in bars]
    below = [spread["median"] - spread["min"] for _, spread in bars]
    above = [spread["max"] - spread["median"] for _, spread in bars]
    is_ours = [name.startswith(("artifactsync", "polite", "normal")) for name, _ in bars]
    colours = [_OURS if ours else _THEIRS for ours in is_ours]
    axis.barh([name for name, _ in bars], medians, color=colours, xerr=[below, above], error_kw={"elinewidth": 0.8})
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _figures(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        print(f"missing: no picture is drawn: {error}")
        return None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(picture: Any, name: str) -> None:
    picture.tight_layout()
    picture.savefig(RESULTS / f"{name}.png", dpi=110)


if __name__ == "__main__":
    draw_transfers()
    draw_shaped_link()
    draw_stall()
    draw_uploader_cost()
