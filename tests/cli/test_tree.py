from __future__ import annotations

from artifactsync.cli.tree import draw_tree

SIZES = {"logs-rank0.txt": 2048, "checkpoints/ep1-ba2-rank0.pt": 3 * 1024**2, "checkpoints/a/b.bin": 1}


def test_the_tree_is_drawn_with_sizes() -> None:
    assert draw_tree("digits/", SIZES) == (
        "digits/\n"
        "├── checkpoints/\n"
        "│   ├── a/\n"
        "│   │   └── b.bin                1 B\n"
        "│   └── ep1-ba2-rank0.pt     3.0 MiB\n"
        "└── logs-rank0.txt           2.0 KiB"
    )


def test_ascii_where_the_terminal_has_no_lines() -> None:
    assert draw_tree("digits/", SIZES, is_ascii=True).isascii()


def test_a_long_tree_says_what_it_leaves_out() -> None:
    sizes = {f"f{number:04d}": 1 for number in range(1000)}
    lines = draw_tree("run/", sizes, max_lines=10).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "… and 992 more files"
    assert len(draw_tree("run/", sizes).splitlines()) == 1001


def test_a_file_and_a_folder_of_one_name_are_both_shown() -> None:
    assert draw_tree("r/", {"a": 1, "a/b": 2}).count("a") == 2


def test_hostile_names_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in draw_tree("\x1bx", {"\x1b[2J/\x1b]0;t\x07": 1})


def test_a_long_name_does_not_drive_the_sizes_of_others_off_the_screen() -> None:
    long = "n" * 60
    lines = draw_tree("run/", {long: 5, **SIZES}, max_width=40).splitlines()
    assert [line for line in lines if long in line] == [f"└── {long}         5 B"]
    others = [line for line in lines[1:] if long not in line]
    assert max(map(len, others)) == len("│   └── ep1-ba2-rank0.pt     3.0 MiB") <= 40
