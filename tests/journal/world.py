"""A small world of trainers, pruners and pullers of one run, stepped store call by store call.

Each actor runs the real code of the journal in a thread that stands still before every call to the store until it is
told to go on, so an interleaving is a list of choices and can be repeated. What moves bytes is replaced by plain gets
and puts; thread pools by loops; waiting by a clock that only moves when somebody waits.

``World.check`` looks at the objects themselves, not through the code under test.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import random
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from artifactsync.errors import (
    DamagedError,
    MissingBytesError,
    ObjectNotFoundError,
    RunFencedError,
    UnknownOutcomeError,
)
from artifactsync.journal import advice, pins, publication, restore, retire
from artifactsync.journal import index as index_module
from artifactsync.journal import log as log_module
from artifactsync.journal.attempt import claim
from artifactsync.journal.log import JournalLog
from artifactsync.journal.publication import Label, LocalFile, Publisher
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.journal.timing import SaveTiming
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores.retry import RetryPolicy
from artifactsync.testing import FaultyStore
from tests.testing.dict_store import DictStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

RUN = "demo"
HOUSE = f"{RUN}/.artifactsync/"
JOURNAL = f"{HOUSE}journal/"
ELSEWHERE = replace(WriterIdentity.of_this_process(), host="elsewhere", pid_space="another-machine")
QUICK = RetryPolicy(max_attempts=8, deadline_s=60.0, base_delay_s=1e-6, max_delay_s=1e-6)
HANGS_S = 20.0


class Violation(AssertionError):  # noqa: N818 - it is one
    """The protocol was broken."""


class Killed(BaseException):
    """Ends an actor where it stands."""


@dataclass(frozen=True)
class Commit:
    """A checkpoint as the journal's own bytes say."""

    seq: int
    attempt: int
    step: int
    name: str
    files: tuple[tuple[str, str, str], ...]  # path, key, sha256


class Objects(DictStore):
    """The bucket: refuses what the protocol never does."""

    def __init__(self) -> None:
        super().__init__()
        self.ever_put: set[str] = set()

    def put(self, key: str, body: Any) -> Any:
        if key.startswith(JOURNAL):
            raise Violation(f"record {key} was overwritten")
        if not key.startswith(HOUSE) and not key.endswith(".symlink"):
            if key in self.ever_put:
                raise Violation(f"key {key} was written twice")
            self.ever_put.add(key)
        return super().put(key, body)

    def delete(self, keys: Any) -> None:
        keys = list(keys)
        if any(key.startswith(JOURNAL) for key in keys):
            raise Violation(f"records were deleted: {keys}")
        super().delete(keys)


class Actor:
    """A process that runs ``body`` with a store of its own, one call at a time."""

    def __init__(self, world: World, kind: str, body: Callable[[Actor], Any]) -> None:
        self.world, self.kind = world, kind
        self.store = FaultyStore(world.objects, on_call=self._before, on_answer=self._after)
        self.log = JournalLog(self.store, RUN, policy=QUICK)
        self.is_over = self.is_killed = False
        self.guarded: Sequence[Any] = ()
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._fault = ""
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, args=(body,), daemon=True)
        self._thread.start()
        self._await_stop()

    def step(self, fault: str = "") -> None:
        """Let one call happen. ``fault``: ``lost`` (applied, no answer) or ``dropped`` (neither), for creates."""
        if not self.is_over:
            self._fault = fault
            self._go.release()
            self._await_stop()

    def kill(self) -> None:
        """End it before its next call."""
        if not self.is_over:
            self.is_killed = True
            self.guarded = ()
            self._go.release()
            self._await_stop()

    def pause(self) -> None:
        """Stand still until the next step."""
        if self.is_killed:
            raise Killed
        self._stopped.release()
        self._go.acquire()
        if self.is_killed:
            raise Killed

    def _await_stop(self) -> None:
        if not self._stopped.acquire(timeout=HANGS_S):
            raise Violation(f"{self.kind} hangs")
        if self.error is not None and not isinstance(self.error, Killed):
            raise self.error

    def _before(self, call: Any) -> None:
        self.pause()
        if call.operation == "put_if_absent" and self._fault == "dropped":
            raise UnknownOutcomeError("dropped", url="dict://")

    def _after(self, call: Any) -> None:
        if call.operation == "put_if_absent" and self._fault == "lost":
            raise UnknownOutcomeError("lost", url="dict://")

    def _live(self, body: Callable[[Actor], Any]) -> None:
        self.world.current.actor = self
        try:
            self.outcome = body(self)
        except BaseException as error:  # noqa: BLE001 - judged by the scheduler's thread
            self.error = error
        self.is_over = True
        self.guarded = ()
        self._stopped.release()


class World:
    """One run, its bucket, and whoever is at work there. Use within ``patched(world)``."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.actors: list[Actor] = []
        self.current = threading.local()
        self.clock_s = 0.0
        self.pulls = 0
        self.expected: dict[str, dict[str, bytes]] = {}
        self._names = itertools.count(1)
        self._records: dict[str, bytes] = {}
        self._live: dict[int, Commit] = {}
        self._attempt = 0
        self._latest = (0, 0, 0)

    # -- actors -------------------------------------------------------------------------------------------------

    def start_trainer(self, blobs: Sequence[int], *, keep_last: int | None = None) -> None:
        """A process that takes the run over, and saves so many checkpoints of two files each."""

        def live(actor: Actor) -> None:
            attempt = claim(actor.log, writer=ELSEWHERE, takeover=True)
            publisher = Publisher(attempt, log=actor.log, queue=Queue(actor.store), store=actor.store)  # type: ignore[arg-type]
            try:
                for number, blob in enumerate(blobs, start=1):
                    self._save(publisher, number * 10, blob)
                    if keep_last:
                        policy = RetentionPolicy(keep_last=keep_last)
                        retire.prune(
                            actor.store, actor.log, policy, attempt=attempt, is_patient=False, orphans_age_s=None
                        )
            except (RunFencedError, MissingBytesError):  # the latter: a prune cleaned up after an attempt that is over
                if not self._journal_has_claim_after(attempt.number):
                    raise Violation(f"attempt {attempt.number} failed though nobody took over") from None

        self.actors.append(Actor(self, "trainer", live))

    def _save(self, publisher: Publisher, step: int, blob: int) -> None:
        name = f"save{next(self._names)}"
        contents = {f"c/ba{step}.pt": b"big %d" % blob, "c/shared.pt": b"shared %d" % (blob % 2)}
        self.expected[name] = contents
        files = [
            LocalFile(path=path, local=Path(data.decode()), size_bytes=len(data), sha256=_sha256(data))
            for path, data in contents.items()
        ]
        label = Label(name=name, step=step, epoch=0, batch=step, metrics={})
        for _ in range(3):  # as a user does whose save failed
            with contextlib.suppress(UnknownOutcomeError):
                publisher._publish(lambda: files, label, SaveTiming(), None, publication._SoFar())
                return

    def start_pruner(self, *, keep_last: int, orphans: bool) -> None:
        """A maintenance process."""

        def live(actor: Actor) -> None:
            policy = RetentionPolicy(keep_last=keep_last)
            retire.prune(actor.store, actor.log, policy, orphans_age_s=0.0 if orphans else None)

        self.actors.append(Actor(self, "pruner", live))

    def start_puller(self) -> None:
        """A process that brings the newest checkpoint."""

        def live(actor: Actor) -> None:
            here: dict[str, bytes] = {}
            report = restore.pull(
                actor.store,
                RUN,
                here,  # type: ignore[arg-type] # pull_files of this world takes it
                selection=restore.Selection(),
                catalogue=actor.log.read_catalogue(),
                artifacts=(),
                log=actor.log,
            )
            if report.checkpoint is not None:
                self.pulls += 1
                if here != self.expected[report.checkpoint]:
                    raise Violation(f"the pull of {report.checkpoint} brought {here}")
                if report.fallback_from:
                    raise Violation(f"{report.fallback_from} was taken for damaged")

        self.actors.append(Actor(self, "puller", live))

    # -- the parts of the real world that are replaced --------------------------------------------------------

    def pull_files(self, store: Any, items: Sequence[Any], destination: dict[str, bytes], **_: Any) -> Any:
        """Fetch file after file. While it does, every file is guarded by the pin."""
        if not items:
            return SimpleNamespace(skipped_files=0)
        actor = self.current.actor
        actor.guarded = items
        try:
            for item in items:
                try:
                    data = store.get(item.key)
                except ObjectNotFoundError as error:
                    raise MissingBytesError(f"{item.key} is not there") from error
                if _sha256(data) != item.sha256:
                    raise DamagedError(f"{item.key} has other bytes")
                destination[item.path] = data
        finally:
            actor.guarded = ()
        return SimpleNamespace(skipped_files=0)

    def sleep(self, seconds: float) -> None:
        """Time passes for whoever waits; the pins of those who live are refreshed meanwhile."""
        self.current.actor.pause()
        self.clock_s += seconds
        is_pulled = any(actor.kind == "puller" and not actor.is_over for actor in self.actors)
        for key in [key for key in self.objects.objects if key.startswith(f"{HOUSE}pins/")]:
            pin = json.loads(self.objects.objects[key])
            if is_pulled and pin["writer"]["token"] in self.living_tokens():
                pin["count"] += 1
                self.objects.objects[key] = json.dumps(pin).encode()

    def identity(self) -> WriterIdentity:
        """Who the calling actor is: on another machine than everybody else."""
        return replace(ELSEWHERE, token=str(id(self.current.actor)))

    def living_tokens(self) -> set[str]:
        """Tokens of the actors that live."""
        return {str(id(actor)) for actor in self.actors if not actor.is_over and not actor.is_killed}

    # -- what must be true ------------------------------------------------------------------------------------

    def check(self) -> None:
        """The invariants of the protocol, from the objects themselves."""
        there = self.objects.objects
        records = {key: there[key] for key in there if key.startswith(JOURNAL)}
        if records != self._records:
            self._read_new(records)
        for commit in self._live.values():
            for _, key, sha256 in commit.files:
                self._check_whole(key, sha256, f"live checkpoint {commit.name} (record {commit.seq})")
        for actor in self.actors:
            for item in actor.guarded:
                self._check_whole(item.key, item.sha256, "a file that is pinned and being pulled")

    def _check_whole(self, key: str, sha256: str, what: str) -> None:
        data = self.objects.objects.get(key)
        if data is None:
            raise Violation(f"{what}: {key} is gone")
        if _sha256(data) != sha256:
            raise Violation(f"{what}: {key} has changed")

    def _read_new(self, records: dict[str, bytes]) -> None:
        for key, data in self._records.items():
            if records.get(key) != data:
                raise Violation(f"record {key} has changed")
        for seq, key in enumerate(sorted(records), start=1):
            if int(key[len(JOURNAL) : -len(".json")]) != seq:
                raise Violation(f"the journal has a hole before {key}")
            if key not in self._records:
                self._read_one(json.loads(records[key]))
        self._records = records
        latest = max(((c.attempt, c.step, c.seq) for c in self._live.values()), default=(0, 0, 0))
        if latest < self._latest:
            raise Violation(f"the newest checkpoint went back from {self._latest} to {latest}")
        self._latest = latest

    def _read_one(self, record: dict[str, Any]) -> None:
        kind, attempt, body = record["kind"], record["attempt"], record["body"]
        if kind == "claim":
            if attempt != self._attempt + 1:
                raise Violation(f"claim of attempt {attempt} after attempt {self._attempt}")
            self._attempt = attempt
        elif attempt != self._attempt:
            raise Violation(f"a {kind} of attempt {attempt} in the time of attempt {self._attempt}")
        if kind == "commit":
            files = tuple((f["path"], f"{RUN}/{f['key']}", f["sha256"]) for f in body["files"])
            if any(commit.name == body["name"] for commit in self._live.values()):
                raise Violation(f"{body['name']} was committed twice")
            self._live[record["seq"]] = Commit(record["seq"], attempt, body["step"], body["name"], files)
        if kind == "retire":
            for seq in body["commits"]:
                del self._live[seq]

    def spoil_index(self, choice: int) -> None:
        """Change one pack of the index behind everybody's back: no outcome may depend on it."""
        keys = sorted(key for key in self.objects.objects if key.startswith(f"{HOUSE}index/"))
        if not keys:
            return
        key, other = keys[choice % len(keys)], keys[choice // 7 % len(keys)]
        data = self.objects.objects[key]
        lines = data.splitlines(keepends=True)
        spoilt = (b"", data[:-1], self.objects.objects[other], b"".join(lines[:-1] + lines[:1]), b"[" * 9_000, None)
        if (bytes_ := spoilt[choice % len(spoilt)]) is None:
            del self.objects.objects[key]
        else:
            self.objects.objects[key] = bytes_

    def _journal_has_claim_after(self, number: int) -> bool:
        return any(
            json.loads(data)["attempt"] > number
            for key, data in self.objects.objects.items()
            if key.startswith(JOURNAL)
        )

    # -- the end ----------------------------------------------------------------------------------------------

    def run_to_end(self) -> None:
        """Let everybody finish, one call each in turn."""
        while any(not actor.is_over for actor in self.actors):
            for actor in self.actors:
                actor.step()
                self.check()

    def close(self) -> None:
        """End every thread."""
        for actor in self.actors:
            with contextlib.suppress(BaseException):
                actor.kill()


class Queue:
    """Uploads at once, in the caller's thread."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def submit(self, key: str, local: Path, **_: Any) -> Any:
        data = str(local).encode()
        self._store.put(key, data)
        sent = SimpleNamespace(size_bytes=len(data), sha256=_sha256(data))
        return SimpleNamespace(result=lambda _timeout: sent)


class _InOneThread:
    """A ``ThreadPoolExecutor`` that does one thing after the other."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[..., Any], *items: Any) -> Iterator[Any]:
        return map(function, *items)


class _AtOnce:
    """A ``SerialWorker`` that does what it is given in the caller's thread."""

    def __init__(self, _name: str) -> None:
        pass

    def submit(self, call: Callable[[], None]) -> None:
        call()


@contextlib.contextmanager
def patched(world: World) -> Iterator[World]:
    """The world's own threads, clock and transfers in the journal's modules."""
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, owner.__dict__[name])
            setattr(owner, name, value)

        put(log_module, "ThreadPoolExecutor", _InOneThread)
        put(index_module, "ThreadPoolExecutor", _InOneThread)
        put(index_module, "BASE", 2)  # so that packs are an input of every actor
        put(index_module, "FAN", 2)
        put(publication, "ThreadPoolExecutor", _InOneThread)
        put(publication, "Line", lambda _name: SimpleNamespace(is_overtaken=lambda: False))
        put(advice, "SerialWorker", _AtOnce)
        put(restore, "pull_files", world.pull_files)
        put(pins.PinKeeper, "_refresh_until_stopped", lambda *_: None)
        put(WriterIdentity, "of_this_process", classmethod(lambda _: world.identity()))
        watch = functools.partial(pins.living_pins, monotonic_s=lambda: world.clock_s, sleep=world.sleep)
        put(retire, "living_pins", watch)
        try:
            yield world
        finally:
            world.close()


def wander(seed: int, *, calls: int = 60, sabotage: Callable[[], object] = lambda: None) -> World:
    """A random interleaving; raises at the first violation. ``sabotage`` is called before it begins."""
    draw = random.Random(seed)
    with patched(World()) as world:
        sabotage()
        for _ in range(calls):
            act(world, draw)
            world.check()
        world.run_to_end()
    return world


def act(world: World, draw: random.Random) -> None:
    """One random step of the world."""
    living = [actor for actor in world.actors if not actor.is_over]
    dice = draw.random()
    if len(living) < 2 or (dice < 0.04 and len(living) < 5):
        which = draw.random()
        if which < 0.45 or not world.actors:
            keep_last = draw.choice([None, None, 1])
            world.start_trainer([draw.randrange(3) for _ in range(draw.randint(1, 4))], keep_last=keep_last)
        elif which < 0.75:
            world.start_pruner(keep_last=draw.randint(1, 2), orphans=draw.random() < 0.5)
        else:
            world.start_puller()
        return
    if draw.random() < 0.1:
        world.spoil_index(draw.randrange(1000))
    actor = draw.choice(living)
    if dice > 0.985:
        actor.kill()
        return
    for _ in range(draw.choice([1, 1, 2, 4, 12, 30])):
        actor.step(draw.choice(["", "", "", "", "lost", "dropped"]))
        world.check()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
