"""Why a remote refuses: each cause has its own line, hint, kind and exit code, on the command line and in ``Run``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync.errors import ArtifactSyncError
from artifactsync.run import Run
from artifactsync.stores import open_store
from tests.cli.conftest import Remote, make_run, tree_of
from tests.cli.many_commands import ManyCommands
from tests.fault_proxy import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.cli.conftest import Done
    from tests.line_faults import Request


def xml(code: str, message: str, **more: str) -> bytes:
    """A refusal in the words of S3."""
    elements = {"Code": code, "Message": message, **more}
    return f"<Error>{''.join(f'<{name}>{text}</{name}>' for name, text in elements.items())}</Error>".encode()


def told(message: str) -> bytes:
    """A refusal in the words of Google."""
    return json.dumps({"error": {"message": message}}).encode()


_ENDPOINT = "artifactsync-tests.s3.eu-west-3.amazonaws.com"
CAUSES: dict[tuple[str, str], tuple[Answer, int, str, str, str]] = {
    ("s3", "right not granted"): (
        Answer(403, body=xml("AccessDenied", "Access Denied")), 6, "permission", "no permission", "policy",
    ),
    ("s3", "wrong region"): (
        Answer(400, body=xml("AuthorizationHeaderMalformed", "it is malformed", Region="eu-central-1")),
        2, "configuration", "is in region eu-central-1", "AWS_REGION=eu-central-1",
    ),
    ("s3", "moved permanently"): (
        Answer(301, body=xml("PermanentRedirect", "use the endpoint", Endpoint=_ENDPOINT)),
        2, "configuration", "is in region eu-west-3", "AWS_REGION=eu-west-3",
    ),
    ("s3", "busy for too long"): (
        Answer(503, retry_after_s=100, body=xml("SlowDown", "Reduce your request rate")),
        1, "transient", "503 ", "asks to wait 100 s",
    ),
    ("s3", "clock"): (
        Answer(403, body=xml("RequestTimeTooSkewed", "the difference is too large")),
        2, "configuration", "clock of this machine is wrong", "NTP",
    ),
    ("s3", "expired token"): (
        Answer(400, body=xml("ExpiredToken", "The provided token has expired.")),
        6, "credentials", "have expired", "aws sso login",
    ),
    ("gcs", "right not granted"): (
        Answer(403, body=told("x does not have storage.objects.list access")), 6, "permission", "403", "role",
    ),
    ("gcs", "expired token"): (Answer(401, body=told("Invalid Credentials")), 6, "credentials", "401", "gcloud auth"),
    ("gcs", "busy for too long"): (
        Answer(503, retry_after_s=100, body=told("backend")), 1, "transient", "503", "try again",
    ),
}  # fmt: skip
COMMANDS = (["ls"], ["pull", "run", "--json"], ["push", "run", "file.txt"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyCommands]:
    folder = tmp_path_factory.mktemp("here")
    (folder / "file.txt").write_text("x")
    with ManyCommands(folder, {**os.environ, "HOME": str(folder)}) as commands:
        yield commands
    assert tree_of(folder) == {"file.txt"}


@pytest.fixture(scope="module", params=["s3", "gcs"])
def run_at(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, str]:
    """A finished run on each cloud: the cloud's name, the cloud, the remote."""
    cloud = request.getfixturevalue(request.param)
    url = cloud.fresh_url()
    root = tmp_path_factory.mktemp("trainer")
    make_run(Remote(url, cloud.storage_options, {}), "run", local_root=root, steps=(10,))
    return request.param, cloud, url


def shown(done: Done, typed: Sequence[str]) -> tuple[str, str, str]:
    """The message, the hint and the kind (empty for people) of a command that failed as it should."""
    assert "Traceback" not in done.err + done.out, done
    if "--json" in typed:
        assert done.err == "", done
        error = done.json["error"]
        assert error.keys() == {"kind", "message", "hint", "url"}
        return error["message"], error["hint"], error["kind"]
    assert done.out == "", done
    line, hint = done.err.splitlines()
    assert line.startswith("error: ")
    assert hint.startswith("hint: ")
    return line, hint, ""


def test_each_cause_says_what_it_is(
    run_at: tuple[str, Any, str], many: ManyCommands, fault_proxy: Callable[..., Any], tmp_path: Path
) -> None:
    name, cloud, url = run_at
    typed, expected, lines = [], [], {}
    for (where, cause), (answer, code, kind, words, hint) in CAUSES.items():
        if where == name:
            line = lines[cause] = fault_proxy(cloud)
            line.proxy.add(answer)
            environ = {**line.environment, "ARTIFACTSYNC_REMOTE": url}
            typed += [(command, environ) for command in COMMANDS]
            expected += [(code, kind, words, hint)] * len(COMMANDS)
    for (command, _), (code, kind, words, hint), done in zip(typed, expected, many(typed), strict=True):
        message, advice, word = shown(done, command)
        assert (done.code, word or kind) == (code, kind), (command, done)
        assert words in message, (command, done)
        assert hint in advice, (command, done)
        assert "://artifactsync-tests" in message, done

    for cause, line in lines.items():
        _, code, kind, words, hint = CAUSES[name, cause]
        with pytest.raises(ArtifactSyncError) as caught:
            Run("run", remote=url, storage_options=line.storage_options, local_root=tmp_path)
        assert (caught.value.exit_code, caught.value.kind) == (code, kind), cause
        assert words in caught.value.message
        assert hint in caught.value.hint


def test_what_is_not_there_and_wrong_keys(run_at: tuple[str, Any, str], many: ManyCommands, tmp_path: Path) -> None:
    name, cloud, url = run_at
    gone = cloud.fresh_url()
    make_run(Remote(gone, cloud.storage_options, {}), "run", local_root=tmp_path, steps=(10,))
    store = open_store(gone, cloud.storage_options)
    store.delete(["run/checkpoints/ep1-ba10-rank0.pt"])
    cases: list[tuple[list[str], dict[str, str], int, str, str]] = [
        (["ls"], {"ARTIFACTSYNC_REMOTE": cloud.missing_bucket()}, 2, "bucket-not-found", "artifactsync-no-such-bucket"),
        (
            ["status", "run", "--json"],
            {"ARTIFACTSYNC_REMOTE": cloud.missing_bucket()},
            2,
            "bucket-not-found",
            "no-such-bucket",
        ),
        (["status", "rum", "--json"], {}, 3, "run-not-found", "rum"),
        (["pull", "run", "--checkpoint", "ep9", "--json"], {}, 3, "checkpoint-not-found", "ep9"),
        (["pull", "run", "--json"], {"ARTIFACTSYNC_REMOTE": gone}, 4, "missing", "ep1-ba10"),
    ]
    if name == "s3":
        cases += [
            (["ls"], {"AWS_SECRET_ACCESS_KEY": "hunter2"}, 6, "credentials", "SignatureDoesNotMatch"),
            (["status", "run", "--json"], {"AWS_ACCESS_KEY_ID": "nobody"}, 6, "credentials", "InvalidAccessKeyId"),
        ]
    typed = [(command, {**cloud.environment, "ARTIFACTSYNC_REMOTE": url, **environ}) for command, environ, *_ in cases]
    for (command, _, code, kind, words), done in zip(cases, many(typed), strict=True):
        message, hint, word = shown(done, command)
        assert (done.code, word or kind) == (code, kind), (command, done)
        assert words in message, done
        assert len(hint) > len("hint: "), done
        assert "hunter2" not in done.err + done.out
    (verified,) = many([(["verify", "run", "--json"], {**cloud.environment, "ARTIFACTSYNC_REMOTE": gone})])
    assert (verified.code, verified.json["ok"]) == (4, False)


def test_a_right_that_only_some_requests_lack(
    many: ManyCommands, s3: Any, gcs: Any, fault_proxy: Callable[..., Any], tmp_path: Path
) -> None:
    """Who may read and not write pulls and is told when pushing; credentials that end in the middle are told too."""
    typed, expected = [], []
    for cloud, refusals in (
        (s3, (CAUSES["s3", "right not granted"], CAUSES["s3", "expired token"])),
        (gcs, (CAUSES["gcs", "right not granted"],)),
    ):
        url = cloud.fresh_url()
        make_run(Remote(url, cloud.storage_options, {}), "run", local_root=tmp_path / cloud.server.scheme, steps=(10,))
        for answer, code, kind, words, _ in refusals:
            line = fault_proxy(cloud)
            line.proxy.add(answer, when=is_write_of_file)
            environ = {**line.environment, "ARTIFACTSYNC_REMOTE": url}
            typed += [(["push", "run", "file.txt", "--json"], environ), (["verify", "run", "--json"], environ)]
            expected += [(code, kind, words), (0, "", "")]
    for (command, _), (code, kind, words), done in zip(typed, expected, many(typed), strict=True):
        assert done.code == code, (command, done)
        if code:
            error = done.json["error"]
            assert error["kind"] == kind, done
            assert words in error["message"], done
            assert error["hint"], done


def is_write_of_file(request: Request) -> bool:
    """Whether it writes the file that is pushed, or anything on Google's side."""
    return (request.method == "PUT" and "file.txt" in request.path) or request.path.startswith("/upload")
