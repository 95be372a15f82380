"""Damage on the remote: every flipped bit, cut and swap is found, and nothing else is accused."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter

import pytest

import artifactsync
from artifactsync.errors import DamagedError, NewerFormatError
from artifactsync.stores import open_store

_SIZE_BYTES = 3000
_PER_CHECKPOINT = 4
KINDS = ("flip", "cut", "swap", "grow", "empty", "gone")


class Ground:
    """A run with two checkpoints on a remote, and what its files must be."""

    def __init__(self, url, options, folder):
        self.store = open_store(url, options)
        self.url, self.options, self.folder = url, options, folder
        chance = random.Random(7)
        with artifactsync.Run("r", remote=url, storage_options=options, local_root=folder / "runs") as run:
            for step in (1, 2):
                files = {f"checkpoints/s{step}-{n}.pt": folder / f"s{step}-{n}.pt" for n in range(_PER_CHECKPOINT)}
                for path in files.values():
                    path.write_bytes(chance.randbytes(_SIZE_BYTES))
                run.save_files(files, step=step, name=f"s{step}").result(60)
        self.reader = artifactsync.Run("r", remote=self.store, local_root=folder / "runs", read_only=True)
        self.old, self.new = self.reader.checkpoints()
        self.bytes = {f.key: self.store.get(f.key) for c in (self.old, self.new) for f in c.files}

    def damage(self, kind, chance):
        """Change one file, or swap two, on the remote; return the keys."""
        key = chance.choice(sorted(self.bytes))
        data = bytearray(self.bytes[key])
        if kind == "gone":
            self.store.delete([key])
            return {key}
        if kind == "swap":
            other = chance.choice(sorted(self.bytes.keys() - {key}))
            self.store.put(key, self.bytes[other])
            self.store.put(other, self.bytes[key])
            return {key, other}
        if kind == "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[chance.randrange(1, len(data)) :]
        elif kind == "grow":
            data += b"\0"
        else:
            data.clear()
        self.store.put(key, bytes(data))
        return {key}

    def heal(self, keys):
        for key in keys:
            self.store.put(key, self.bytes[key])

    def check(self, damaged, caplog):
        """Both readers find exactly this, and say so."""
        report = self.reader.verify(deep=True)
        assert {*report.damaged, *report.missing} == damaged
        hit = [any(f.key in damaged for f in c.files) for c in (self.old, self.new)]
        goal = self.folder / "pulled"
        shutil.rmtree(goal, ignore_errors=True)  # a file that is here already and right would not be fetched
        if all(hit):
            with pytest.raises(DamagedError):
                self.reader.pull(goal)
            return
        pulled = self.reader.pull(goal)
        expected = self.old if hit[1] else self.new
        assert (pulled.checkpoint, pulled.fallback_from) == (expected.name, self.new.name if hit[1] else None)
        for file in expected.files:
            assert (goal / file.path).read_bytes() == self.bytes[file.key]
        if hit[0]:
            with pytest.raises(DamagedError):
                self.reader.pull(goal, checkpoint=self.old.name)


def attack(ground, count, caplog, *, seed, where):
    chance, began_s, kinds = random.Random(seed), time.monotonic(), Counter()
    assert ground.reader.verify(deep=True).ok
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        keys = ground.damage(kind, chance)
        ground.check(keys, caplog)
        ground.heal(keys)
        kinds[kind] += 1
    assert ground.reader.verify(deep=True).ok
    print(
        f"\ndamage, {where}: {count} files damaged ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}), "
        f"all found by verify --deep and by pull, 0 false alarms; {time.monotonic() - began_s:.0f} s"
    )


@pytest.fixture
def ground(request, tmp_path):
    if request.param == "local":
        return Ground(str(tmp_path / "remote"), None, tmp_path)
    cloud = request.getfixturevalue(request.param)
    return Ground(cloud.fresh_url(), cloud.storage_options, tmp_path)


SERVERS = ["local", "s3", "gcs"]


@pytest.mark.parametrize("ground", SERVERS, indirect=True)
def test_damage_is_found(ground, caplog, request):
    attack(ground, 12, caplog, seed=1, where=request.node.callspec.params["ground"])


@pytest.mark.crash
@pytest.mark.parametrize("ground", SERVERS, indirect=True)
def test_a_thousand_damages_are_found(ground, caplog, request):
    attack(ground, 1000, caplog, seed=2, where=request.node.callspec.params["ground"])


# -- the journal and its companions ------------------------------------------------------------------------------------

NONSENSE = {
    "empty": b"",
    "zeros": bytes(100),
    "no UTF-8": b"\xff\xfe\xfa",
    "cut JSON": b'{"seq": 1',
    "a list": b"[1]",
    "a word": b'"word"',
    "null": b"null",
    "nested too deep": b"[" * 200_000,
    "a number too long": b'{"seq": ' + b"9" * 5000 + b', "format": 1, "keys": [' + b"9" * 5000 + b"]}",
    "wrong types": b'{"seq": [], "keys": 7, "count": "x", "attempt": {}, "interval_s": "NaN", "format": "1"}',
    "numbers from beyond": b'{"seq": -1, "keys": [null], "count": 1e999, "attempt": -5, "interval_s": NaN}',
    "format 2": b'{"format": 2}',
    "lone surrogate": b'{"format": 1, "keys": ["\\ud800"], "seq": "\\ud800"}',
}


def readers(ground):
    run = ground.reader
    goal = ground.folder / "goal"
    return {
        "checkpoints": run.checkpoints,
        "latest": run.latest,
        "artifacts": run.artifacts,
        "verify": run.verify,
        "status": run.status,
        "list_runs": lambda: artifactsync.run.list_runs(ground.url, ground.options),
        "pull": lambda: run.pull(goal),
    }


def advisory_keys(ground):
    house = "r/.artifactsync/"
    return {
        f"{house}head.json",
        f"{house}heartbeat.json",
        f"{house}intents/000001-000009.json",
        f"{house}intents/000000-000001.json",
        f"{house}pins/abc.json",
        "r/checkpoints/latest-rank0.pt.symlink",
    }


@pytest.mark.parametrize("ground", SERVERS, indirect=True)
def test_nonsense_in_what_only_advises_is_ignored(ground):
    for key in sorted(advisory_keys(ground)):
        for name, data in NONSENSE.items():
            ground.store.put(key, data)
            names = [c.name for c in ground.reader.checkpoints()]
            assert names == ["s1", "s2"], (key, name)
            latest = ground.reader.latest()
            assert latest is not None
            assert latest.name == "s2", (key, name)
            if ground.url.startswith(("s3", "gs")) and name not in ("nested too deep", "wrong types"):
                continue  # the code above the store is the same
            assert not ground.reader.artifacts(), (key, name)
            assert ground.reader.verify().ok
            assert ground.reader.status().durable_step == 2, (key, name)
            assert artifactsync.run.list_runs(ground.url, ground.options)[0].checkpoints == 2, (key, name)
        ground.store.delete([key])


@pytest.mark.parametrize("ground", ["local"], indirect=True)
def test_nonsense_in_a_record_is_a_clear_error(ground):
    for seq in range(1, 5):
        key = f"r/.artifactsync/journal/{seq:020}.json"
        good = ground.store.get(key)
        for name, data in NONSENSE.items():
            ground.store.put(key, data)
            for reader, read in readers(ground).items():
                error = failure_of(read)
                if error is None:  # one that reads the newest records alone need not see it
                    assert reader in ("list_runs", "status") or (reader == "latest" and seq < 4), (seq, name, reader)
                else:
                    assert isinstance(error, (DamagedError, NewerFormatError)), (seq, name, reader, error)
                    assert error.url
        ground.store.put(key, good)
    assert ground.reader.verify(deep=True).ok


def failure_of(read):
    try:
        read()
    except Exception as error:  # noqa: BLE001 which one is what is tested
        return error
    return None


def flip_records(ground, count, *, seed):
    """Flip a bit of a record, the newest one too; every reader of the journal must see it."""
    chance = random.Random(seed)
    for _ in range(count):
        key = f"r/.artifactsync/journal/{chance.randrange(1, 5):020}.json"
        good = ground.store.get(key)
        bad = bytearray(good)
        at = chance.randrange(len(bad))
        bad[at] ^= 1 << chance.randrange(8)
        ground.store.put(key, bytes(bad))
        assert isinstance(failure_of(ground.reader.checkpoints), (DamagedError, NewerFormatError)), (key, at)
        ground.store.put(key, good)
    assert ground.reader.verify(deep=True).ok


@pytest.mark.parametrize("ground", ["local"], indirect=True)
def test_flipped_bits_in_records_are_found(ground):
    flip_records(ground, 150, seed=1)


@pytest.mark.crash
@pytest.mark.parametrize("ground", ["local"], indirect=True)
def test_many_flipped_bits_in_records_are_found(ground):
    flip_records(ground, 2000, seed=2)
    print("\ndamage, records: 2000 bits flipped, 2000 found")
