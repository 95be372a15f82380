"""A command from its start to the last byte of its run on the remote.

Owns: the order of things: claim, restore, start, watch, stop, drain, end. Does not own: any of them.

Invariants: the command is never started without the run being ours; it has ended before the last look; the process ends
within its grace, whatever the remote does.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from artifactsync.batch.notice import watch_for_notice
from artifactsync.batch.supervised import SUPERVISED_VARIABLE
from artifactsync.errors import ArtifactSyncError, RunOwnedError
from artifactsync.supervisor.baseline import read_baseline, write_baseline
from artifactsync.supervisor.checkpoints import Checkpoints
from artifactsync.supervisor.child import Child
from artifactsync.supervisor.deadline import Deadline
from artifactsync.supervisor.links import WaysOut
from artifactsync.supervisor.mirror import Mirror
from artifactsync.supervisor.modesty import Modesty
from artifactsync.supervisor.output import Output
from artifactsync.supervisor.restore import Restored, restore, set_torn_aside
from artifactsync.supervisor.stash import Stash
from artifactsync.supervisor.tree import Tree
from artifactsync.supervisor.units import FILE_SUFFIXES, Rules
from artifactsync.supervisor.verdict import NOT_DURABLE_EXIT_CODE, Outcome, words
from artifactsync.supervisor.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from artifactsync.journal.attempt import FinishState
    from artifactsync.run import Run
    from artifactsync.supervisor.settings import Settings
    from artifactsync.supervisor.tree import Seen

HOUSE = Path(".artifactsync")
"""Our folder in the working folder; no file in it is ever mirrored."""

FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""Signals that the command gets too, and after which this process has not long to live."""

_DRAIN_LOOK_S = 0.1
_TELL_AFTER_S = 3.0
_TELL_OF_LINKS_S = 60.0


def supervise(run: Run, settings: Settings, *, tell: Callable[[str], None]) -> Outcome:
    """Run the command to its end, and its run to durability.

    Args:
        run: Open for writing (for reading where ``is_owner`` is False); it is closed.
        settings: What to run.
        tell: Says a line to the user.

    Raises:
        RunFencedError: another process took the run over; the command was ended.
        ArtifactSyncError: the working folder cannot be restored; the command was not started.
    """
    try:
        return _Supervision(run, settings, tell).run_to_end()
    except BaseException:
        with contextlib.suppress(ArtifactSyncError):
            run.end(1.0, state="failed")
        raise


class _Supervision:
    def __init__(self, run: Run, settings: Settings, tell: Callable[[str], None]) -> None:
        self._run, self._settings, self._tell = run, settings, tell
        self._house = settings.work_dir / HOUSE / "run" / run.name
        self._tree = Tree(settings.work_dir, settings.watched, exclude=settings.exclude, remote=run.remote)
        self._rules = Rules(settings.checkpoint_patterns)
        self._log_path = f"logs-rank{settings.rank}.txt"
        self._notices: list[tuple[int, str, float | None]] = []
        self._deadline = Deadline(settings.grace_s, usual_grace_s=settings.usual_grace_s)
        self._modesty = Modesty()
        self._ways_out = WaysOut(self._tree, FILE_SUFFIXES, tell)
        self._wake_fd, self._waker_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._waker_fd, False)

    def run_to_end(self) -> Outcome:
        before, restored = self._prepare()
        stash = Stash(self._house / "sending", self._run.attempt if self._settings.is_owner else None)
        self._checkpoints = Checkpoints(
            self._run, self._tree, self._rules, stash, settle_s=self._settings.settle_s, restored=restored.checkpoint
        )
        self._mirror = Mirror(self._run, self._tree, settle_s=self._settings.settle_s, is_owner=self._settings.is_owner)
        there = self._tree.look()
        self._nameless_before = self._tree.nameless
        self._checkpoints.adopt(restored.files, there)
        self._mirror.adopt({path: there[path] for path in restored.logs if path in there}, time.monotonic())
        watch = Watch(
            self._run,
            self._tree,
            self._rules,
            self._checkpoints,
            self._mirror,
            is_owner=self._settings.is_owner,
            before=before,
            period_s=self._settings.settle_s,
            on_lost=self._wake,
        )
        with self._handling_signals(), self._watching_for_notice():
            output = Output(self._tree.local(self._log_path), tell=self._tell)
            child = Child(self._settings.command, self._environ(restored))
            output.carry(child.stdout_fd, self._settings.output_fd)
            output.carry(child.stderr_fd, 2)
            watch.start()
            self._modesty.lower()
            try:
                self._attend(child, watch)
            finally:
                self._modesty.raise_again()
                child.end()
                output.finish()
                watch.stop()
            if child.error is not None:
                self._tell(f"{self._settings.command[0]}: {os.strerror(child.error)}")
            assert child.exit_code is not None, "it has ended"
            try:
                return self._drain(watch, child.exit_code)
            finally:
                watch.close()
                stash.close()

    def _prepare(self) -> tuple[Mapping[str, Seen], Restored]:
        """Restore; say which files were there before the run first began here."""
        known = read_baseline(self._house / "before.json")
        before = self._tree.look() if known is None else known
        if known is None:
            write_baseline(self._house / "before.json", before)
        if not self._settings.is_owner:
            return before, Restored()
        if self._run.attempt > 1:
            own = {path: seen for path, seen in self._tree.look().items() if before.get(path) != seen}
            aside = self._house / "displaced" / f"torn-{self._run.attempt}"
            set_torn_aside(self._rules.units(own), self._rules, self._tree, aside=aside, tell=self._tell)
        restored = restore(self._run, self._tree, stage=self._house / "restoring", tell=self._tell)
        if restored.checkpoint is not None:
            kept = f"; {len(restored.kept)} newer files here were kept" if restored.kept else ""
            self._tell(
                f"run {self._run.name}, attempt {self._run.attempt}: restored checkpoint {restored.checkpoint.name} "
                f"(step {restored.checkpoint.step:,}) in {restored.seconds:.1f} s{kept}"
            )
        else:
            self._tell(f"run {self._run.name}, attempt {self._run.attempt}")
        return before, restored

    def _environ(self, restored: Restored) -> dict[str, str]:
        environ = dict(os.environ)
        environ["RUN_NAME"] = environ["ARTIFACTSYNC_RUN_NAME"] = self._run.name
        environ["ARTIFACTSYNC_ATTEMPT"] = str(self._run.attempt)
        environ[SUPERVISED_VARIABLE] = "1"
        environ.setdefault("PYTHONUNBUFFERED", "1")  # into a pipe Python would hold its output back
        for name in ("ARTIFACTSYNC_RESUME_FROM", "ARTIFACTSYNC_RESUME_STEP"):
            environ.pop(name, None)
        if restored.checkpoint is not None:
            stem = restored.checkpoint.name.partition("@")[0]
            there = self._tree.look()
            units = self._rules.units({f.path: there[f.path] for f in restored.checkpoint.files if f.path in there})
            newest = next((unit for unit in units if unit.name == stem), None)
            if newest is not None:
                environ["ARTIFACTSYNC_RESUME_FROM"] = str(self._tree.local(newest.path))
                environ["ARTIFACTSYNC_RESUME_STEP"] = str(restored.checkpoint.step)
        return environ

    def _attend(self, child: Child, watch: Watch) -> None:
        """Until the command has ended: pass signals on, and end it in time."""
        while True:
            pause_s = min(self._deadline.next_s(), _TELL_OF_LINKS_S)
            ready, _, _ = select.select([child.status_fd, self._wake_fd], [], [], pause_s)
            if child.status_fd in ready and child.listen():
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_fd, 4096)
            while self._notices:
                number, reason, grace_s = self._notices.pop(0)
                if self._deadline.notice(reason, grace_s):
                    self._modesty.raise_again()
                    watch.hurry()
                child.pass_on(number)
            if self._checkpoints.lost_run is not None:
                self._tell(f"{self._checkpoints.lost_run}; the command is ended")
                child.kill()
            self._ways_out.tell_of_new()
            newest = self._checkpoints.last
            self._deadline.reserve(newest.size_bytes if newest else 0, watch.bytes_per_s)
            if self._deadline.is_child_late():
                self._tell("the command has not ended by itself, and is killed while there is time for its checkpoint")
                child.kill()

    def _drain(self, watch: Watch, code: int) -> Outcome:
        """Make everything durable that there is time for, and write down how it ended."""
        if self._checkpoints.lost_run is not None:
            raise self._checkpoints.lost_run
        began, has_told, is_given_up = time.monotonic(), False, False
        while True:
            watch.look(is_dead=True, is_over=code == 0)
            if watch.is_idle or is_given_up:
                break
            if not has_told and time.monotonic() - began > _TELL_AFTER_S:
                has_told = True
                self._tell(f"waiting for {self._waiting()} (Ctrl-C gives up)")
            select.select([self._wake_fd], [], [], min(_DRAIN_LOOK_S, self._deadline.next_s()))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_fd, 4096)
            while self._notices:
                number, reason, grace_s = self._notices.pop(0)
                if number == signal.SIGINT:
                    is_given_up = True
                elif self._deadline.notice(reason, grace_s):
                    watch.hurry()
            is_given_up = is_given_up or self._deadline.is_over()
        return self._end(code, is_all=watch.is_idle)

    def _end(self, code: int, *, is_all: bool) -> Outcome:
        self._ways_out.tell_of_new()
        problem = ""
        state: FinishState = "preempted" if self._deadline.reason else "completed" if code == 0 else "failed"
        try:
            if is_all and not self._deadline.reason:
                with contextlib.suppress(ArtifactSyncError):  # what failed on the way was made good, or is told below
                    self._run.wait()
                self._run.close(state=state)
            else:
                self._run.end(self._deadline.end_s(), state=state)
        except RunOwnedError:
            raise
        except ArtifactSyncError as error:
            problem = f" ({error})"
        # No commit begins any more; one that was on its way is known by now, or is called not durable.
        for path in sorted(nameless := self._tree.nameless - self._nameless_before)[:3]:
            self._tell(f"{path!r} can be no file of a run by this name, and is NOT sent: rename it, or --exclude it")
        missing, files = self._checkpoints.missing(), self._mirror.pending_files + len(nameless)
        durable = self._checkpoints.newest
        line = words(durable, missing, missing_files=files, mirrored_files=self._mirror.durable_files) + problem
        return Outcome(
            run_name=self._run.name,
            attempt=self._run.attempt,
            exit_code=NOT_DURABLE_EXIT_CODE if missing or files else code,
            command_exit_code=code,
            state=state,
            durable=durable.name if durable else None,
            durable_step=durable.step if durable else None,
            missing=tuple(unit.path for unit in missing),
            missing_files=files,
            line=f"{self._deadline.reason}: {line}" if self._deadline.reason else line,
        )

    def _waiting(self) -> str:
        status = self._run.status()
        return f"{status.pending_files} file(s), {status.pending_bytes:,} bytes"

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker_fd, b"w")

    @contextlib.contextmanager
    def _watching_for_notice(self) -> Iterator[None]:
        def note(reason: str, left_s: float) -> None:
            self._notices.append((signal.SIGTERM, reason, left_s))
            self._wake()

        if self._settings.job is None:
            yield
            return
        with watch_for_notice(self._settings.job, note):
            yield

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        def note(number: int, _frame: FrameType | None) -> None:
            # Whoever types Ctrl-C has no deadline, unless he gave one.
            endless = number == signal.SIGINT and self._settings.grace_s is None
            self._notices.append((number, signal.Signals(number).name, math.inf if endless else None))
            self._wake()

        before = {}
        for name in FORWARDED:
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, for one
                before[number] = signal.signal(number, note)
        signal.set_wakeup_fd(-1)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
