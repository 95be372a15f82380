from __future__ import annotations

import random
import re
import string
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from artifactsync.errors import ConfigurationError, RunNameError
from artifactsync.naming import generate_run_name, resolve_run_name, validate_run_name
from artifactsync.naming.run_name import MAX_RUN_NAME_CHARS

ALLOWED = string.ascii_letters + string.digits + "._-"


def is_valid(name: str) -> bool:
    """The rule of the contract, written a second time and in another way."""
    return (
        1 <= len(name) <= 128
        and all(c in ALLOWED for c in name)
        and name[0] in string.ascii_letters + string.digits
        and ".." not in name
    )


def test_a_generated_name_is_the_time_and_two_words():
    before = int(time.time())
    name = generate_run_name()
    seconds, words = name.split("-", 1)
    assert before <= int(seconds) <= int(time.time())
    assert re.fullmatch(r"[a-z]+-[a-z]+", words)
    assert validate_run_name(name) == name


def test_names_drawn_in_one_second_differ():
    assert len({generate_run_name() for _ in range(200)}) > 190  # of 370,170 pairs: one clash would be a surprise


def test_drawing_leaves_the_seeded_random_state_alone_and_does_not_follow_it():
    # In a fresh interpreter: importing coolname for the first time draws from the global random module.
    program = (
        "import random; random.seed(0); want = random.getstate()\n"
        "from artifactsync.naming import generate_run_name\n"
        "names = [generate_run_name() for _ in range(3)]\n"
        "assert random.getstate() == want, 'the random state moved'\n"
        "print(*(name.split('-', 1)[1] for name in names))"
    )
    outputs = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in "ab"}
    assert len(outputs) == 2


def test_a_users_own_coolname_stays_as_it_is():
    program = (
        "import random, coolname\n"
        "from artifactsync.naming import generate_run_name\n"
        "random.seed(0); alone = coolname.generate_slug()\n"
        "random.seed(0); generate_run_name(); beside = coolname.generate_slug()\n"
        "assert alone == beside"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_many_threads_may_draw_their_first_name_at_once():
    program = (
        "import threading\n"
        "from artifactsync.naming import generate_run_name\n"
        "names = []\n"
        "threads = [threading.Thread(target=lambda: names.append(generate_run_name())) for _ in range(16)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert len(names) == 16"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "name", ["a", "0", "A.b_c-d", "1657932618-infrared-ferret", "a.", "a-", "x" * MAX_RUN_NAME_CHARS, "CON", "a.b.c"]
)
def test_valid_names(name):
    assert validate_run_name(name) == name


@pytest.mark.parametrize(
    ("name", "says", "proposes"),
    [
        ("", "the run name '' is empty", "my-run"),
        ("a b", "has ' '; only letters, digits, '.', '_' and '-' (ASCII) are allowed", "a-b"),
        ("a/b", "has '/'", "a-b"),
        ("../up", "has '/'", "up"),
        ("..", "has '..', which means the parent folder", "my-run"),
        ("a..b", "has '..', which means the parent folder", "a.b"),
        (".hidden", "starts with '.'; it must start with a letter or digit", "hidden"),
        ("-rf", "starts with '-'", "rf"),
        ("_x", "starts with '_'", "x"),
        ("run\n", r"'run\n' has '\n'", "run"),
        ("x\x00y", r"has '\x00'", "x-y"),
        ("\x1b[2Jx", r"'\x1b[2Jx' has '\x1b' '['", "2Jx"),
        ("a\u202eb", r"has '\u202e'", "a-b"),
        ("Zürich", "has 'ü'", "Zurich"),
        ("日本", "has '日' '本'", "my-run"),
        ("a!b?c:d;e,f", "has '!' '?' ':' ';' ',';", "a-b-c-d-e-f"),
        ("(){}[]", "has '(' ')' '{' '}' '[' …;", "my-run"),
        ("x" * 129, "has 129 characters; at most 128 are allowed", "x" * 128),
        ("x" * 127 + ".y", "has 129 characters", "x" * 127),
        ("s3://bucket/run", "'s3://…' is a URL", "my-run"),
        (None, "is a NoneType, not a string", "my-run"),
        (7, "is a int, not a string", "my-run"),
    ],
)
def test_an_invalid_name_says_why_and_proposes_a_valid_one(name, says, proposes):
    with pytest.raises(RunNameError) as caught:
        validate_run_name(name)
    assert says in caught.value.message
    assert repr(proposes) in caught.value.hint
    assert is_valid(proposes)
    assert caught.value.exit_code == 2


def test_a_remote_given_as_the_run_name_shows_no_secret():
    with pytest.raises(RunNameError) as caught:
        validate_run_name("s3://AKIAKEY:se/cr/et@bucket/prefix")
    assert "AKIA" not in caught.value.message + caught.value.hint
    assert "cr" not in caught.value.message.replace("://…", "")
    assert "as the remote" in caught.value.hint


@given(st.text(max_size=140) | st.text(ALLOWED, max_size=140))
@example("a\n")
@example("٣")
@example("\ud800")
@example("{run_name}")
def test_exactly_the_names_of_the_contract_are_valid(name):
    if is_valid(name):
        assert validate_run_name(name) == name
        return
    with pytest.raises(RunNameError) as caught:
        validate_run_name(name)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
    assert is_valid(re.findall(r"'([^']*)'", caught.value.hint)[-1])


def test_the_order_is_argument_own_variable_common_variable_generated():
    environ = {"ARTIFACTSYNC_RUN_NAME": "own", "RUN_NAME": "common"}
    assert resolve_run_name("argument", environ=environ) == "argument"
    assert resolve_run_name(environ=environ) == "own"
    assert resolve_run_name(environ={"RUN_NAME": "common"}) == "common"
    assert re.fullmatch(r"\d+-[a-z]+-[a-z]+", resolve_run_name(environ={}))


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv("ARTIFACTSYNC_RUN_NAME", "from-the-environment")
    assert resolve_run_name() == "from-the-environment"


def test_an_empty_variable_counts_as_not_given_and_an_empty_argument_is_an_error():
    assert resolve_run_name(environ={"ARTIFACTSYNC_RUN_NAME": "", "RUN_NAME": "common"}) == "common"
    assert resolve_run_name(environ={"ARTIFACTSYNC_RUN_NAME": "", "RUN_NAME": ""})
    with pytest.raises(RunNameError, match="is empty"):
        resolve_run_name("", environ={"RUN_NAME": "common"})


@pytest.mark.parametrize("environ", [{"ARTIFACTSYNC_RUN_NAME": "a/b"}, {"RUN_NAME": "a/b"}])
def test_names_from_the_environment_are_checked(environ):
    with pytest.raises(RunNameError, match="'a/b' has '/'"):
        resolve_run_name(environ=environ)


@pytest.mark.parametrize("environ", [{"WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "8"}, {"OMPI_COMM_WORLD_SIZE": "3"}])
def test_many_processes_cannot_each_draw_their_own_name(environ):
    with pytest.raises(ConfigurationError, match="several processes") as caught:
        resolve_run_name(environ=environ)
    assert "ARTIFACTSYNC_RUN_NAME" in caught.value.hint
    assert resolve_run_name(environ={**environ, "RUN_NAME": "shared"}) == "shared"
    assert resolve_run_name("given", environ=environ) == "given"


@pytest.mark.parametrize("size", ["", "0", "1", " 1 "])
def test_one_process_draws_its_own_name(size):
    assert resolve_run_name(environ={"WORLD_SIZE": size})


def test_every_rank_ends_with_rank_0s_name():
    """Four ranks as threads, each with another idea of the name, and a broadcast that waits for all of them."""
    ranks, names, barrier, box = 4, {}, threading.Barrier(4, timeout=20), []

    def agree_as(rank):
        def agree(choice):
            if rank == 0:
                box.append(choice)
            barrier.wait()
            return box[0]

        return agree

    def resolve(rank):
        environ = {"WORLD_SIZE": "4"} | ({"RUN_NAME": f"rank-{rank}"} if rank == 2 else {})
        names[rank] = resolve_run_name(environ=environ, agree=agree_as(rank))

    threads = [threading.Thread(target=resolve, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names) == {0, 1, 2, 3}
    assert set(names.values()) == {box[0]}


@pytest.mark.parametrize("given", ["", "a/b", "fine"])
def test_a_bad_name_is_refused_only_after_the_broadcast(given):
    # A rank that raised before it had broadcast would leave the others waiting for ever.
    asked = []
    with pytest.raises(RunNameError, match="'x y' has ' '"):
        resolve_run_name(given, environ={}, agree=lambda choice: asked.append(choice) or "x y")
    assert asked == [given]


def test_the_random_module_is_not_left_patched():
    state = random.getstate()
    generate_run_name()
    assert random.getstate() == state
