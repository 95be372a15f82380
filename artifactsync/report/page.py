"""The page: its frame, its style sheet, its tables.

Owns: HTML and CSS. Does not own: drawings (``charts``), or what is said (``build``).

Invariant: no script, no address of anything outside; the page forbids both to the browser besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from artifactsync.report.text import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#1a1d21;--faint:#5d6670;--grid:#d9dde2;
--curve:#1f6feb;--good:#1a7f37;--bad:#c62828;--warn:#9a6700;--gone:#8b949e}
@media (prefers-color-scheme:dark){:root{--paper:#0f1216;--card:#181c22;--ink:#e8eaed;--faint:#9aa4af;--grid:#2c333b;
--curve:#6cb0ff;--good:#56d364;--bad:#ff7b72;--warn:#e3b341;--gone:#6e7681}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1200px;background:var(--paper);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:22px;margin:4px 0;overflow-wrap:anywhere}h2{font-size:17px;margin:28px 0 10px}
h3{font-size:13px;font-weight:600;margin:0 0 2px;overflow-wrap:anywhere}
p{margin:4px 0}.faint,.note{color:var(--faint);font-size:13px;overflow-wrap:anywhere}
.state{font-weight:600}.state.completed,.state.running{color:var(--good)}.state.failed{color:var(--bad)}
.state.preempted,.state.unknown{color:var(--warn)}
.totals{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:8px;margin:14px 0;padding:0}
.totals div{background:var(--card);border-radius:8px;padding:8px 10px}
.totals dt{color:var(--faint);font-size:12px}.totals dd{margin:0;font-size:17px;font-variant-numeric:tabular-nums}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:12px}
.card{background:var(--card);border-radius:8px;padding:10px 10px 6px;min-width:0}
svg{display:block;width:100%;max-width:520px;height:auto}
.tick{font-size:10px;fill:var(--faint);font-variant-numeric:tabular-nums}.end{text-anchor:end}
.grid{stroke:var(--grid);stroke-width:1}.resume{stroke:var(--warn);stroke-width:1;stroke-dasharray:3 3}
.broken{stroke:var(--bad);stroke-width:1.5}
.curve{fill:none;stroke:var(--curve);stroke-width:1.5;stroke-linejoin:round}.point{fill:var(--curve)}
.bar{fill:var(--grid)}.bar.failed{fill:var(--bad);opacity:.45}.bar.preempted{fill:var(--warn);opacity:.45}
.saved{stroke:var(--good);stroke-width:2}.gone{stroke:var(--gone);stroke-width:1.5}
.wide{overflow-x:auto;margin-top:12px}table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--faint);font-weight:500}th:first-child,td:first-child{text-align:left}
td.text,th.text{text-align:left}tr.gone td{color:var(--gone)}
"""
"""The style sheet, of ``ui`` too."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, body: Sequence[str]) -> str:
    """The whole document.

    Args:
        title: Plain text.
        body: Parts that are markup already.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escaped(title)}</title>",
            f"<style>{STYLE}</style></head><body>",
            *body,
            "</body></html>",
            "",
        ]
    )


def totals(figures: Sequence[tuple[str, str]]) -> str:
    """A row of figures with their names."""
    cells = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in figures)
    return f'<dl class="totals">{cells}</dl>'


def card(title: str, drawing: str, note: str) -> str:
    """A drawing (markup) with its title and a note (plain text)."""
    return f'<div class="card"><h3>{escaped(title)}</h3>{drawing}<p class="note">{escaped(note, at_most=300)}</p></div>'


def cards(made: Sequence[str]) -> str:
    """Cards beside each other, or below each other on a phone."""
    return f'<div class="cards">{"".join(made)}</div>'


def table(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], *, texts: frozenset[int]) -> str:
    """A table of plain texts.

    Args:
        columns: Their titles.
        rows: The cells, and the row's class in the style sheet.
        texts: Numbers of the columns that are aligned to the left.
    """

    def cell(tag: str, index: int, text: str) -> str:
        return f"<{tag}{' class=text' if index in texts else ''}>{escaped(text, at_most=300)}</{tag}>"

    head = "".join(cell("th", index, title) for index, title in enumerate(columns))
    lines = (
        f"<tr{f' class={kind}' if kind else ''}>{''.join(cell('td', i, text) for i, text in enumerate(cells))}</tr>"
        for cells, kind in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
