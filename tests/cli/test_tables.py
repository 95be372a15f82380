from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console

from artifactsync.cli.tables import Column, plain_table, rich_table

COLUMNS = (Column(title="run", folds=True), Column(title="last st\u00adep", is_number=True), Column(title="age"))


def on_terminal(rows: list[list[str]], width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(rich_table(COLUMNS, rows, width))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert max(map(cell_len, lines)) <= width
    return lines


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
    text = "\n".join(on_terminal([["[bold]x[/bold]", "1", ":smile:"]], 80))
    assert "[bold]x[/bold]" in text
    assert ":smile:" in text


def test_a_heading_is_broken_before_a_name_is() -> None:
    row = ["1657932618-infrared-ferret", "12", "3 min ago"]
    assert on_terminal([row], 80)[0] == "run                         last step  age"
    assert on_terminal([row], 46) == [
        "                            last",
        "                             st-",
        "run                           ep  age",
        "─" * 43,
        "1657932618-infrared-ferret    12  3 min ago",
    ]


def test_then_a_long_name_is_folded_and_nothing_is_cut() -> None:
    lines = on_terminal([["n" * 50, "12", "3 min ago"], ["short", "1", "-"]], 46)
    assert [line.count("n") for line in lines if line.startswith("nn")] == [29 + 1, 21]
    assert lines[-1].split() == ["short", "1", "-"]


def test_and_where_nothing_could_be_read_each_row_is_a_paragraph() -> None:
    rows = [["1657932618-infrared-ferret", "12", "3 min ago"], ["東京" * 10, "1,234,567", "-"]]
    assert on_terminal(rows, 30) == [
        "1657932618-infrared-ferret",
        "  last step 12, age 3 min ago",
        "東京" * 7 + "東",
        "京" + "東京" * 2,
        "  last step 1,234,567",
    ]
