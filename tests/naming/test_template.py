from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from artifactsync.errors import RunNameError, TemplateError
from artifactsync.naming import PLACEHOLDERS, format_name, render_path

RUN = "1657932618-infrared-ferret"
VALUES = {
    "rank": 3,
    "local_rank": 1,
    "world_size": 16,
    "local_world_size": 2,
    "node_rank": 1,
    "epoch": 2,
    "batch": 1234,
    "batch_in_epoch": 34,
    "sample": 39488,
    "sample_in_epoch": 1088,
    "token": 0,
    "token_in_epoch": 0,
    "total_wct": 61.25,
    "epoch_wct": 12.5,
    "batch_wct": 0.125,
    "attempt": 2,
    "remote_file_name": "logs/a b.txt",
}


def test_the_placeholders_are_those_of_the_contract():
    assert list(PLACEHOLDERS) == ["run_name", *VALUES]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{run_name}/checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt", f"{RUN}/checkpoints/ep2-ba1234-rank3.pt"),
        ("{run_name}/checkpoints/latest-rank{rank}.pt", f"{RUN}/checkpoints/latest-rank3.pt"),
        ("{run_name}/logs-rank{rank}.txt", f"{RUN}/logs-rank3.txt"),
        ("tensorboard_logs/{run_name}", f"tensorboard_logs/{RUN}"),
        ("{run_name}/torch_traces/rank{rank}.{batch}.pt.trace.json", f"{RUN}/torch_traces/rank3.1234.pt.trace.json"),
        ("{run_name}/{remote_file_name}", f"{RUN}/logs/a b.txt"),
        ("plain", "plain"),
        ("", ""),
        ("{batch:06d}", "001234"),
        ("{batch:6d}|", "  1234|"),
        ("{batch:,}", "1,234"),
        ("{batch:x}", "4d2"),
        ("{batch:}", "1234"),
        ("{batch:-<8}", "1234----"),
        ("{batch:0255d}", "1234".zfill(255)),
        ("{rank:03}-of-{world_size:03}", "003-of-016"),
        ("{total_wct}", "61.25"),
        ("{total_wct:.1f}s", "61.2s"),
        ("{total_wct:.0f}", "61"),
        ("{epoch_wct:08.2f}", "00012.50"),
        ("{batch_wct:.0%}", "12%"),
        ("{run_name:>30}", f"    {RUN}"),
        ("{run_name:.10}", RUN[:10]),
        ("{{batch}}", "{batch}"),
        ("{{{batch}}}", "{1234}"),
        ("}}{{", "}{"),
        ("{node_rank}{local_rank}{local_world_size}{attempt}", "1122"),
        ("{sample}.{sample_in_epoch}.{token}.{token_in_epoch}.{batch_in_epoch}", "39488.1088.0.0.34"),
    ],
)
def test_golden(template, text):
    assert format_name(template, run_name=RUN, **VALUES) == text
    assert template.format(run_name=RUN, **VALUES) == text  # and str.format agrees


@pytest.mark.parametrize(
    ("template", "says", "hint"),
    [
        ("{bach}", "has the unknown placeholder {bach}", "did you mean {batch}? known: {run_name}, {rank}, "),
        ("{Run_Name}", "has the unknown placeholder {Run_Name}", "did you mean {run_name}?"),
        ("{ batch }", "has the unknown placeholder { batch }", "did you mean {batch}?"),
        ("{__import__}", "has the unknown placeholder {__import__}", "known: {run_name}, "),
        ("{e\x1b]2J\n}", "has the unknown placeholder {e\\x1b]2J\\n}", "known: {run_name}, "),
        ("{run_name.__class__}", "has {run_name.__class__}, but attributes and items are never", "use {run_name}"),
        ("{rank[0]}", "has {rank[0]}, but attributes and items are never looked up", "use {rank}"),
        ("{batch.real:d}", "attributes and items are never looked up", "use {batch}"),
        ("{run_name[}", "is malformed", "{{"),
        ("{run_name!r}", "converts {run_name} with '!', which is not allowed", "use {run_name}"),
        ("{batch!s:>5}", "converts {batch} with '!'", "use {batch}"),
        ("{batch:{rank}}", "the format of {batch} in '{batch:{rank}}' has braces", "fixed width"),
        ("{batch:{rank:{epoch}}}", "has braces", "fixed width"),
        ("{}", "has a placeholder without a name", "known: {run_name}, "),
        ("{0}", "has a placeholder without a name", "known: {run_name}, "),
        ("{:d}", "has a placeholder without a name", "known: {run_name}, "),
        ("{batch", "is malformed: expected '}' before end of string", "{{"),
        ("batch}", "is malformed: Single '}' encountered", "{{"),
        ("{", "is malformed: Single '{' encountered", "{{"),
        ("{batch!}", "is malformed", "{{"),
        ("{batch:y}", "the format 'y' of {batch} in '{batch:y}' does not fit its value", "{batch:06d}"),
        ("{batch:s}", "does not fit its value", "{batch:06d}"),
        ("{total_wct:d}", "does not fit its value", "{total_wct:.1f}"),
        ("{run_name:d}", "does not fit its value", "{batch:06d}"),
        ("{sample:c}", "does not fit its value", "{batch:06d}"),
        ("{batch:>>>}", "the format '>>>' of {batch} in '{batch:>>>}' is not valid", "{batch:06d}"),
        ("{batch:%Y-%m}", "is not valid", "{batch:06d}"),
        ("{batch:256d}", "is wider than 255 characters", "{batch:06d}"),
        ("{batch:999999999d}", "is wider than 255 characters", "{batch:06d}"),
        ("{batch:0999999999999999999999d}", "is wider than 255 characters", "{batch:06d}"),
        ("{batch:*>999999999}", "is wider than 255 characters", "{batch:06d}"),
        ("{total_wct:.999999999f}", "is wider than 255 characters", "{batch:06d}"),
        ("{total_wct:9.256f}", "is wider than 255 characters", "{batch:06d}"),
        ("{batch:٩٩٩٩٩٩٩٩d}", "is wider than 255 characters", "{batch:06d}"),
        ("{run_name}/../other", "gives '" + RUN + "/../other', which leaves the run's folder", "'..'"),
        ("{run_name:s}/a/../../b", "which leaves the run's folder", "'..'"),
        ("{run_name}/..\\other", "which leaves the run's folder", "'..'"),
    ],
)
def test_what_is_refused(template, says, hint):
    values = VALUES | {"sample": 2**40}  # too large for {sample:c}
    with pytest.raises(TemplateError) as caught:
        format_name(template, run_name=RUN, **values)
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.message.isprintable()


def test_an_unknown_placeholder_lists_all_known_ones():
    with pytest.raises(TemplateError) as caught:
        format_name("{nope}", run_name=RUN)
    assert all(f"{{{name}}}" in caught.value.hint for name in PLACEHOLDERS)


@pytest.mark.parametrize("values", [{}, {"epoch": None}])
def test_a_known_placeholder_without_a_value_says_so(values):
    with pytest.raises(TemplateError) as caught:
        format_name("{run_name}/{epoch}", run_name=RUN, **values)
    assert caught.value.message == "the placeholder {epoch} of the template '{run_name}/{epoch}' has no value here"
    assert "epochs done" in caught.value.hint


def test_a_value_for_no_placeholder_is_an_error():
    with pytest.raises(TemplateError, match="no placeholder 'epok'") as caught:
        format_name("x", run_name=RUN, epok=1)
    assert "did you mean {epoch}?" in caught.value.hint


@pytest.mark.parametrize("run_name", ["", "a/b", "..", "a\n"])
def test_the_run_name_is_checked(run_name):
    with pytest.raises(RunNameError):
        format_name("{run_name}", run_name=run_name)


def test_a_long_bad_template_is_cut_in_the_message():
    with pytest.raises(TemplateError) as caught:
        format_name("x" * 100_000 + "{nope}", run_name=RUN)
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("template", [None, 3, Path("x")])
def test_a_template_is_a_string(template):
    with pytest.raises(TemplateError, match="must be a string"):
        format_name(template, run_name=RUN)


def test_a_timedelta_is_seconds():
    assert format_name("{total_wct:.1f}", run_name=RUN, total_wct=timedelta(minutes=2, milliseconds=500)) == "120.5"


class Sly:
    """Its own __format__ must never run: a value is a number, a string or refused."""

    def __format__(self, spec):
        raise AssertionError

    __str__ = __repr__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("value", [Sly(), object(), [1], b"1", 1j])
def test_a_value_is_a_number_or_a_string(value):
    with pytest.raises(TemplateError, match="does not fit its value"):
        format_name("{batch}", run_name=RUN, batch=value)


def test_numbers_of_other_kinds_become_plain_ones():
    class Steps:
        def __index__(self):
            return 7

        __format__ = Sly.__format__

    class Seconds:
        def __float__(self):
            return 1.5

        __format__ = Sly.__format__

    assert format_name("{batch:03d}-{total_wct:.2f}", run_name=RUN, batch=Steps(), total_wct=Seconds()) == "007-1.50"


def test_local_paths_may_be_anywhere():
    assert format_name("/data/{run_name}/x", run_name=RUN) == f"/data/{RUN}/x"
    assert format_name("../{run_name}", run_name=RUN) == f"../{RUN}"
    assert format_name("{run_name}/a..b", run_name=RUN) == f"{RUN}/a..b"


# Braces and names of placeholders are frequent, so that a good part of these is nearly right.
_pieces = st.sampled_from(
    ["{", "}", "{{", "}}", ":", "!", ".", "[0]", "06d", ".1f", ">9", "x", "/", "..", "{run_name}/", *PLACEHOLDERS]
    + [f"{{{name}}}" for name in PLACEHOLDERS]
)
_templates = st.lists(_pieces | st.text(max_size=3), max_size=8).map("".join)


@given(_templates)
@example("{batch:c}")
def test_any_template_gives_what_str_format_gives_or_a_template_error(template):
    try:
        text = format_name(template, run_name=RUN, **VALUES)
    except TemplateError as error:
        complaint = error
    else:
        assert text == template.format(run_name=RUN, **VALUES)
        assert len(text) < 300 * (len(template) + 1)
        return
    assert complaint.message.isprintable()
    assert complaint.hint


@given(st.sampled_from(sorted(VALUES)), st.integers(0, 10**9), st.sampled_from("dxXobn"), st.integers(0, 255))
def test_every_integer_format_is_str_formats(name, value, kind, width):
    template = f"a{{{name}:0{width}{kind}}}b"
    assert format_name(template, run_name=RUN, **{name: value}) == template.format(**{name: value})


def test_refusing_a_hostile_width_is_quick():
    started = time.perf_counter()
    for template in ("{batch:999999999d}" * 100, "{batch:" + "9" * 100_000 + "d}", "{batch:" + ">" * 100_000 + "}"):
        with pytest.raises(TemplateError):
            format_name(template, run_name=RUN, batch=1)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("{run_name}/checkpoints/ep{epoch}.pt", "r/checkpoints/ep2.pt"),
        ("{run_name}", "r"),
        ("{remote_file_name}", "logs/a b.txt"),
        ("tensorboard_logs/{run_name}", "tensorboard_logs/r"),
        ("{run_name}/Zürich/日本.txt", "r/Zürich/日本.txt"),
    ],
)
def test_render_path(template, path):
    assert render_path(template, run_name="r", **VALUES) == path


@pytest.mark.parametrize(
    ("template", "values", "says"),
    [
        ("/{run_name}/x", {}, "is absolute"),
        ("{run_name:.0}/x", {}, "is absolute"),
        ("{run_name}/", {}, "has an empty part"),
        ("{run_name}//x", {}, "has an empty part"),
        ("", {}, "is empty"),
        ("{run_name}/../x", {}, "leaves the run's folder"),
        ("../{run_name}", {}, "has a '..' part"),
        ("./{run_name}", {}, "has a '.' part"),
        ("{run_name}/./x", {}, "has a '.' part"),
        ("C:{run_name}", {}, "begins with a drive letter"),
        ("a\\{run_name}", {}, "has a backslash"),
        ("{run_name}/a\nb", {}, "has control or invisible characters"),
        ("{run_name}/.artifactsync/journal/x", {}, "belongs to the journal"),
        ("{run_name}/.ArtifactSync/x", {}, "belongs to the journal"),
        (".artifactsync/x", {}, "belongs to the journal"),
        ("{run_name}/{batch:c}", {"batch": 0}, "has control or invisible characters"),
        ("{run_name}/{batch:/>3}", {"batch": 1}, "has an empty part"),
        ("{remote_file_name}", {"remote_file_name": "../../etc/passwd"}, "has a '..' part"),
        ("{remote_file_name}", {"remote_file_name": "/etc/passwd"}, "is absolute"),
        ("{remote_file_name}", {"remote_file_name": "r/../../x"}, "leaves the run's folder"),
        ("{remote_file_name}", {"remote_file_name": "other/.artifactsync/journal/x"}, "belongs to the journal"),
        ("{run_name}/{remote_file_name}", {"remote_file_name": "../other/x"}, "leaves the run's folder"),
        ("{run_name}/{remote_file_name}", {"remote_file_name": "a\x00b"}, "has control or invisible characters"),
        ("{run_name}/" + "x" * 256, {}, "has a part longer than 255 bytes"),
    ],
)
def test_render_path_refuses(template, values, says):
    with pytest.raises(TemplateError) as caught:
        render_path(template, run_name="r", **values)
    assert says in caught.value.message
    assert caught.value.hint
    assert caught.value.message.isprintable()


@given(_templates, st.text(max_size=12) | st.lists(_pieces, max_size=5).map("".join))
def test_a_rendered_path_never_leaves_the_folder_it_is_put_in(template, remote_file_name):
    values = VALUES | {"remote_file_name": remote_file_name}
    try:
        path = render_path(template, run_name="r", **values)
    except TemplateError:
        return
    root = Path("somewhere").absolute()
    resolved = Path(str(root / path).replace("/./", "/"))
    assert root in resolved.parents
    assert ".." not in resolved.parts
    if template.startswith("{run_name}/"):
        assert root / "r" in resolved.parents
