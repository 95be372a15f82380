"""Names and pickles made to do harm: nothing is written outside the destination, nothing raw reaches a terminal."""

from __future__ import annotations

import json
import os
import pickle
import re
import time
import warnings
from pathlib import Path

import pytest
import torch

from artifactsync.cli.terminal import printable
from artifactsync.errors import ArtifactSyncError, ConfigurationError, DamagedError, RunNameError, UnsafeKeyError
from artifactsync.journal.record import seal
from artifactsync.journal.runs import list_runs
from artifactsync.naming import validate_run_name
from artifactsync.naming.layout import safe_local_path
from artifactsync.run import Run
from tests.cli.conftest import Command, artifactsync, program  # noqa: F401 fixtures
from tests.crash.hostile_names import generated, named
from tests.stores.test_object import boto, where
from tests.testing.dict_store import DictStore

_BATCH = 250


class Field:
    """A destination in the middle of files that must stay as they are, with links planted in it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "outside" / "deep").mkdir(parents=True)
        (folder / "outside" / "sentinel").write_text("as it was")
        self.goal = folder / "destination"

    def plant(self):
        self.goal.mkdir(exist_ok=True)
        (self.goal / "planted").symlink_to(self.folder / "outside", target_is_directory=True)
        (self.goal / "planted-file").symlink_to(self.folder / "outside" / "sentinel")
        (self.goal / "dangling").symlink_to(self.folder / "outside" / "made")

    def outside(self):
        found = {}
        for top, folders, files in os.walk(self.folder):
            if Path(top) == self.folder and "destination" in folders:
                folders.remove("destination")
            for name in (*folders, *files):
                path = Path(top) / name
                found[str(path)] = path.read_bytes() if path.is_file() else None
        return found


def commit_good(store, folder):
    (folder / "good.pt").write_bytes(b"good bytes")
    with Run("r", remote=store, local_root=folder / "runs") as run:
        run.save_files({"checkpoints/good.pt": folder / "good.pt"}, step=1).result(20)


def pulled(run, goal, paths):
    """Bring these; where one of them makes the pull fail, each half for itself, so that it does not save the others."""
    literal = tuple("".join(f"[{char}]" if char in "*?[" else char for char in path) for path in paths)
    try:
        report = run.pull(goal, checkpoint="none", include=literal or ("",))
    except ArtifactSyncError as error:
        shown = printable(f"{error.message} {error.hint}")
    else:
        return report.files, len(report.refused)
    assert shown.isprintable()
    if len(paths) <= 1:
        return 0, 1
    middle = len(paths) // 2
    halves = [pulled(run, goal, half) for half in (paths[:middle], paths[middle:])]
    return tuple(map(sum, zip(*halves, strict=True)))


def refusal_of(outlet, error):
    """The error of that kind, if the outlet raised it; else None."""
    try:
        outlet()
    except error as refusal:
        return refusal
    return None


def assault(names, base, tmp_path):
    """Pull, list, verify a run with these keys in it; returns how many files came, and how many were refused."""
    store = DictStore()
    store.objects.update(base)
    journal_key = "r/.artifactsync/"
    for name in names:
        key = f"r/{name}"
        if key not in store.objects and not key.startswith(journal_key):
            store.objects[key] = b"harm"
    field = Field(tmp_path)
    field.plant()
    before = field.outside()
    run = Run("r", remote=store, read_only=True, local_root=tmp_path / "unused")
    artifacts = run.artifacts()
    for artifact in artifacts:
        assert printable(artifact.path).isprintable()
    came, refused = pulled(run, field.goal, [artifact.path for artifact in artifacts])
    assert run.pull(field.folder / "destination" / "whole", only="checkpoints").checkpoint == "ep0-ba1"
    assert run.verify(deep=True).ok
    assert [s.run_name for s in list_runs(store)] == ["r"]
    assert field.outside() == before
    for path in field.goal.rglob("*"):
        assert path.resolve().is_relative_to(field.goal.resolve()) or path.name in (
            "planted",
            "planted-file",
            "dangling",
        )
    return came, refused


@pytest.fixture
def base(tmp_path):
    store = DictStore()
    commit_good(store, tmp_path)
    return dict(store.objects)


def test_there_are_enough_names():
    assert len(named()) >= 300
    assert len({what for what, _ in named()}) >= 295


def test_named_keys_stay_inside(base, tmp_path):
    names = [name for _, name in named()]
    names += [f"planted/{name}" for name in names[::3]]
    came, refused = assault(names, base, tmp_path / "field")
    assert came > 20
    assert refused > 100


def generated_in_batches(count, base, tmp_path, *, seed):
    began_s, came, refused = time.monotonic(), 0, 0
    names = generated(count, seed=seed)
    for start in range(0, count, _BATCH):
        two = assault(names[start : start + _BATCH], base, tmp_path / f"field{start}")
        came, refused = came + two[0], refused + two[1]
    for name in names:
        assert printable(name).isprintable()
        refusal = refusal_of(lambda name=name: safe_local_path(tmp_path, name), UnsafeKeyError)
        assert refusal is None or printable(refusal.message).isprintable()
    print(
        f"\nhostile names: {len(named())} named, {count} generated; {came} came as files, {refused} refused, 0 writes "
        f"outside the destination, 0 raw control bytes; {time.monotonic() - began_s:.0f} s"
    )


def test_generated_keys_stay_inside(base, tmp_path):
    generated_in_batches(500, base, tmp_path, seed=1)


@pytest.mark.crash
def test_twenty_thousand_generated_keys_stay_inside(base, tmp_path):
    generated_in_batches(20_000, base, tmp_path, seed=2)


@pytest.mark.parametrize("field", ["path", "key"])
def test_a_record_with_a_hostile_path_or_key_is_damage(base, tmp_path, field):
    """Committed files are not left out quietly: the journal itself is hostile."""
    record = max(key for key in base if "/journal/" in key and b'"kind": "commit"' in base[key])
    accepted = 0
    for number, (what, name) in enumerate(named()):
        store = DictStore()
        store.objects.update(base)
        fields = json.loads(base[record])
        fields["body"]["files"][0][field] = name
        store.objects[record] = seal(fields)
        for later in [key for key in base if "/journal/" in key and key > record]:
            del store.objects[later]  # their prev_sha256 would tell already
        outside = Field(tmp_path / f"f{number}")
        before = outside.outside()
        run = Run("r", remote=store, read_only=True, local_root=tmp_path / "unused")
        refusal = refusal_of(lambda run=run, goal=outside.goal: run.pull(goal), DamagedError)
        assert refusal is None or printable(str(refusal)).isprintable()
        accepted += refusal is None
        assert outside.outside() == before, what
    assert accepted < 120 if field == "path" else accepted == 0


def test_hostile_run_names_are_refused(tmp_path):
    store, accepted = DictStore(), []
    for _, name in [*named(), *((f"g{n}", name) for n, name in enumerate(generated(300, seed=3)))]:
        refusal = refusal_of(lambda name=name: validate_run_name(name), RunNameError)
        if refusal is None:
            accepted.append(name)
            continue
        assert printable(f"{refusal.message} {refusal.hint}").isprintable()
        with pytest.raises(ConfigurationError):
            Run(name or "/", remote=store, local_root=tmp_path / "runs")
    assert all(name.isascii() and name[0].isalnum() and "/" not in name and ".." not in name for name in accepted)
    assert not (tmp_path / "runs").exists()
    assert not store.objects


_COMMANDS = (
    ["ls"],
    ["ls", "r"],
    ["pull", "r", "there"],
    ["pull", "r", "here", "--include", "checkpoints/*"],
    ["status", "r"],
    ["verify", "r"],
    ["ls", "\x1b[31mx"],
    ["pull", "r", "--checkpoint", "\x1b]0;t\x07"],
    ["push", "r", "there\x1b[2J"],
)


def test_nothing_raw_reaches_the_terminal(moto_s3, artifactsync, tmp_path):  # noqa: F811 the fixture
    check_terminal(moto_s3, artifactsync, tmp_path, commands=(["ls", "r"],), every=4)


@pytest.mark.crash
def test_nothing_raw_reaches_the_terminal_whatever_the_command(moto_s3, artifactsync, tmp_path):  # noqa: F811
    count = check_terminal(moto_s3, artifactsync, tmp_path, commands=_COMMANDS, every=1)
    print(f"\nhostile names on a terminal: {count} through {len(_COMMANDS)} commands, 3 ways each: 0 raw control bytes")


def check_terminal(moto_s3, artifactsync, tmp_path, *, commands, every):  # noqa: F811 the fixture
    url = moto_s3.fresh_url()
    client = boto(moto_s3)
    with Run("r", remote=url, storage_options=moto_s3.storage_options, local_root=tmp_path / "runs") as run:
        (tmp_path / "good.pt").write_bytes(b"good")
        run.save_files({"checkpoints/good.pt": tmp_path / "good.pt"}, step=1).result(20)
    put = 0
    for _, name in named()[::every]:
        if 0 < len(name.encode("utf-8", "surrogatepass")) < 900 and not name.startswith((".artifactsync", "\0")):
            try:
                client.put_object(**where(url, f"r/{name}"), Body=b"x")
                client.put_object(**where(url, f"{name}/.artifactsync/journal/{1:020}.json"), Body=b"x")
            except Exception:  # noqa: BLE001 what this server cannot hold, it cannot send
                continue
            put += 1
    assert put > 200 // every
    artifactsync.environ.update({**moto_s3.environment, "ARTIFACTSYNC_REMOTE": url})
    for arguments in commands:
        text = artifactsync.on_terminal(*arguments, code=None)
        assert not raw_of(text), (arguments, raw_of(text))
        done = artifactsync(*arguments, code=None)
        assert not raw_of(done.out), arguments
        assert not raw_of(done.err), arguments
        as_json = artifactsync(*arguments, "--json", code=None)
        json.loads(as_json.out)
        assert not raw_of(as_json.out), arguments
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside <= {"runs", "good.pt", "here"}, outside
    return put


def raw_of(text):
    """What of the output is neither plain text nor a colour or cursor movement that this program itself writes."""
    plain = re.sub(r"\x1b\[(?:[0-9;]*m|\?25[lh]|[0-9]*A|2?K|[0-9]*G)", "", text)
    bad = [char for char in plain if char not in "\n\r" and not char.isprintable()]
    harm = ["\x1b[31mred", "\x1b[2J", "\x1b[8m", "\x1b]"]
    return bad + [escape for escape in harm if escape in text]


class _Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_pickles_never_run(tmp_path):
    mark = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(_Touch(mark)))  # it does run, where somebody loads it
    assert mark.exists()
    mark.unlink()
    torch.save({"model": _Touch(mark)}, tmp_path / "zip.pt")
    harm = {
        "checkpoints/ep0-ba1-rank0.pt": (tmp_path / "zip.pt").read_bytes(),
        "checkpoints/ep0-ba1/.metadata": pickle.dumps(_Touch(mark)),
        "checkpoints/legacy.pt": pickle.dumps(_Touch(mark), protocol=2),
    }
    for name, harmful in harm.items():
        store = DictStore()
        local = tmp_path / name.replace("/", "-")
        local.write_bytes(harmful)
        with Run("r", remote=store, local_root=tmp_path / "runs") as run:
            run.save_files({name: local}, step=1).result(20)
            run.push(local, "loose.pt")
            run.wait(20)
        with Run("r", remote=store, read_only=True, local_root=tmp_path / "elsewhere") as reader:
            reader.pull(tmp_path / "pulled" / local.name)
            assert reader.verify(deep=True).ok
            assert reader.artifacts()
            list_runs(store)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one kind is refused, the other passed over as damaged, with a warning
                with pytest.raises(ArtifactSyncError):
                    reader.resume()
        assert not mark.exists(), name
