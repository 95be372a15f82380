from __future__ import annotations

from rich.console import Console

from artifactsync.cli.tables import Column, plain_table, rich_table

COLUMNS = (Column(title="run", folds=True), Column(title="last step", is_number=True), Column(title="age"))


def test_plain_rows_are_aligned_and_never_cut() -> None:
    long = "r" * 128
    lines = plain_table(COLUMNS, [["東京", "12", "3 min ago"], [long, "1,234,567", "-"]]).splitlines()
    assert lines[0] == f"RUN{' ' * 125}  LAST STEP  AGE"
    assert lines[1] == f"東京{' ' * 124}         12  3 min ago"
    assert lines[2] == f"{long}  1,234,567  -"


def test_hostile_cells_stay_in_their_line() -> None:
    text = plain_table(COLUMNS, [["a\x1b[31m\nb", "1", "x\u202e"]])
    assert text.splitlines()[1] == "a\\x1b[31m\\x0ab          1  x\\u202e"


def test_rich_cells_are_never_markup() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(rich_table(COLUMNS, [["[bold]x[/bold]", "1", ":smile:"]]))
    assert "[bold]x[/bold]" in captured.get()
    assert ":smile:" in captured.get()
