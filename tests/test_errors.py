from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import re
import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync import errors
from artifactsync.errors import ArtifactSyncError, ConfigurationError, TransientStoreError, redact, redact_url

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, ArtifactSyncError) and cls.__module__ == errors.__name__
]
# The exit codes of the command line, as scripts rely on them.
EXIT_CODES = {1, 2, 3, 4, 5, 6, 7}


def drawn_tree() -> dict[str, tuple[str | None, str | None, int | None, str | None]]:
    """Read the tree in the module's docstring: name → (parent, kind, exit code, built-in base)."""
    tree: dict[str, tuple[str | None, str | None, int | None, str | None]] = {"ArtifactSyncError": (None,) * 4}
    path = ["ArtifactSyncError"]
    line_of_tree = re.compile(
        r"^    (?P<branch>[│ ]*[├└]── )(?P<name>\w+)\s+(?P<kind>[a-z-]+)\s+(?P<exit>\d)(?:\s+(?P<base>[A-Z]\w+))?"
    )
    for line in (errors.__doc__ or "").splitlines():
        match = line_of_tree.match(line)
        if match is None:
            continue
        depth = len(match["branch"]) // 4
        del path[depth:]
        tree[match["name"]] = (path[-1], match["kind"], int(match["exit"]), match["base"])
        path.append(match["name"])
    return tree


def test_the_drawing_has_every_class_and_no_other():
    assert set(drawn_tree()) == {cls.__name__ for cls in CLASSES}
    assert len(CLASSES) > 25  # the drawing was read at all


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_drawing_is_true(cls):
    parent, kind, exit_code, base = drawn_tree()[cls.__name__]
    if cls is ArtifactSyncError:
        assert (cls.kind, cls.exit_code, cls.__bases__) == ("unexpected", 1, (Exception,))
        return
    assert cls.__bases__[0].__name__ == parent
    assert (cls.kind, cls.exit_code) == (kind, exit_code)
    assert [other.__name__ for other in cls.__bases__[1:]] == ([base] if base else [])
    assert cls.__doc__


def test_kinds_are_words_of_their_own():
    kinds = [cls.kind for cls in CLASSES]
    assert len(set(kinds)) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind) for kind in kinds)
    assert {cls.exit_code for cls in CLASSES} <= EXIT_CODES


def make(cls: type[ArtifactSyncError]) -> ArtifactSyncError:
    return cls("the bucket is not there", hint="make it", url="s3://me:secret@bucket/key?X-Amz-Signature=abc")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_carries_message_hint_and_url(cls):
    error = make(cls)
    assert str(error) == error.message == "the bucket is not there"
    assert error.hint == "make it"
    assert error.url == "s3://***@bucket/key?X-Amz-Signature=***"
    assert isinstance(error, Exception)
    assert cls("only a message").hint == ""
    assert cls("only a message").url is None


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(cls, protocol):
    error = make(cls)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert (str(again), again.message, again.hint, again.url) == (str(error), error.message, error.hint, error.url)
    assert again.args == error.args
    assert str(copy.copy(error)) == str(copy.deepcopy(error)) == str(error)


def test_retry_after_survives_pickling():
    assert pickle.loads(pickle.dumps(TransientStoreError("busy", retry_after_s=2.5))).retry_after_s == 2.5


def raise_in_child(cls: type[ArtifactSyncError]) -> None:
    raise make(cls)


@pytest.mark.parametrize("cls", [errors.RunFencedError, errors.DiskFullError, errors.RemoteUnreachableError])
def test_errors_cross_a_process_border(cls):
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(cls, match="the bucket is not there") as caught,
    ):
        pool.apply(raise_in_child, (cls,))
    assert caught.value.hint == "make it"


def test_an_os_error_of_ours_shows_its_message():
    # OSError's own __str__ would show errno and strerror.
    assert str(errors.DiskFullError("no space left for a.pt")) == "no space left for a.pt"
    assert str(errors.ObjectNotFoundError("no such key")) == "no such key"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("s3://AKIA:wJalr@bucket/key", "s3://***@bucket/key"),
        ("put to https://u:p@host:9000/b failed", "put to https://***@host:9000/b failed"),
        ("https://h/k?X-Amz-Signature=abc&x=1", "https://h/k?X-Amz-Signature=***&x=1"),
        ("https://h/k?x=1&X-Amz-Credential=AKIA/2026&y=2", "https://h/k?x=1&X-Amz-Credential=***&y=2"),
        ("https://h/k?X-Amz-Security-Token=abc", "https://h/k?X-Amz-Security-Token=***"),
        (
            "https://storage.googleapis.com/b/k?X-Goog-Signature=00ff",
            "https://storage.googleapis.com/b/k?X-Goog-Signature=***",
        ),
        (
            "https://a.blob.core.windows.net/c/k?sv=2021&sig=q%2Fw%3D",
            "https://a.blob.core.windows.net/c/k?sv=2021&sig=***",
        ),
        ('error at "https://h/k?sig=abc" again', 'error at "https://h/k?sig=***" again'),
        ("two: s3://a:b@c/d and gs://e:f@g/h", "two: s3://***@c/d and gs://***@g/h"),
        ("s3://bucket/mail@example.pt", "s3://bucket/mail@example.pt"),
        ("http://host:9000/bucket/mail@example.pt", "http://host:9000/bucket/mail@example.pt"),
        ("s3://AKIA:wJ/al+r/x@bucket/key", "s3://***@bucket/key"),
        ("s3://AKIA:wJ@al@bucket/key", "s3://***@bucket/key"),
    ],
)
def test_secrets_are_redacted(text, expected):
    assert redact(text) == expected
    error = ArtifactSyncError(text, hint=text)
    assert (error.message, error.hint, str(error), error.args) == (expected, expected, expected, (expected,))
    assert expected in repr(error).replace("\\'", "'") or '"' in text


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("/plain/path", "/plain/path"),
        ("plain@path", "plain@path"),
        ("file:///plain/path", "file:///plain/path"),
        ("s3://key:secret@bucket/prefix", "s3://***@bucket/prefix"),
        ("s3://key:se@cret@bucket/prefix", "s3://***@bucket/prefix"),
        ("https://host/k?sig=abc", "https://host/k?sig=***"),
        ("memory://x", "memory://x"),
        ("memory://x[1]", "memory://x[1]"),  # urlsplit refuses it
    ],
)
def test_urls_are_redacted(url, expected):
    assert redact_url(url) == expected
    assert ArtifactSyncError("x", url=url).url == expected


_word = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789+=%-_.~", min_size=8, max_size=40)
_secret = st.text("abcxyzABCXYZ0123456789+/=", min_size=8, max_size=40).filter(  # as AWS makes them
    lambda secret: not secret.split("/")[0].isdigit()
)


@given(_word, _word | _secret, st.sampled_from(["s3", "gs", "https", "az", "sftp"]))
def test_no_user_info_survives_anywhere_in_an_error(user, secret, scheme):
    text = f"cannot reach {scheme}://{user}:{secret}@bucket/prefix: refused"
    error = ArtifactSyncError(
        text, hint=f"is {scheme}://{user}:{secret}@bucket right?", url=f"{scheme}://{user}:{secret}@b/k"
    )
    shown = f"{error!s} {error!r} {error.hint} {error.url} {vars(error)}"
    assert f":{secret}" not in shown
    assert f"//{user}" not in shown


@given(
    _word, st.sampled_from(["X-Amz-Signature", "x-amz-security-token", "sig", "X-Goog-Signature", "token", "password"])
)
def test_no_signature_survives_anywhere_in_an_error(secret, name):
    url = f"https://host/key?a=1&{name}={secret}&b=2"
    error = ArtifactSyncError(f"GET {url} gave 403", hint=url, url=url)
    assert f"={secret}" not in f"{error!s} {error!r} {error.hint} {error.url} {vars(error)}"


def test_a_traceback_shows_the_hint():
    shown = "".join(traceback.format_exception(ConfigurationError("no remote", hint="set ARTIFACTSYNC_REMOTE")))
    assert ("hint: set ARTIFACTSYNC_REMOTE" in shown) == (sys.version_info >= (3, 11))
