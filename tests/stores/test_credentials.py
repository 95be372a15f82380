from __future__ import annotations

import datetime as dt
import json
import sys
import textwrap

import pytest

from artifactsync.errors import ArtifactSyncError, ConfigurationError, CredentialsError
from artifactsync.stores import BytesBody, open_store
from artifactsync.stores.credentials import SessionCredentials, read_s3_settings
from artifactsync.stores.object import PART_BYTES

_KEYS = {"key": "option-key", "secret": "option-secret"}


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """Write the AWS tools' files: ``aws(config=..., credentials=...)``."""

    def write(*, config="", credentials=""):
        for name, variable, text in (
            ("config", "AWS_CONFIG_FILE", config),
            ("credentials", "AWS_SHARED_CREDENTIALS_FILE", credentials),
        ):
            (tmp_path / name).write_text(textwrap.dedent(text))
            monkeypatch.setenv(variable, str(tmp_path / name))

    return write


def answer(options=None, url="s3://b"):
    settings = read_s3_settings(options or {})
    return settings, SessionCredentials(settings.session, url=url)()


def test_explicit_options_win_and_are_not_mixed_with_a_token_from_elsewhere(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    _, keys = answer(_KEYS)
    assert (keys["access_key_id"], keys["secret_access_key"], keys["token"]) == ("option-key", "option-secret", None)
    _, keys = answer()
    assert (keys["access_key_id"], keys["token"]) == ("env-key", "env-token")


@pytest.mark.parametrize(
    "options",
    [
        {"key": "k", "secret": "s", "token": "t"},
        {"access_key_id": "k", "secret_access_key": "s", "session_token": "t"},
        {"aws_access_key_id": "k", "aws_secret_access_key": "s", "aws_session_token": "t"},
        {"client_kwargs": {"aws_access_key_id": "k", "aws_secret_access_key": "s", "aws_session_token": "t"}},
    ],
)
def test_the_names_of_s3fs_obstore_and_boto3(options):
    _, keys = answer(options)
    assert (keys["access_key_id"], keys["secret_access_key"], keys["token"]) == ("k", "s", "t")
    assert keys["expires_at"] is None


def test_profiles(aws, monkeypatch):
    aws(
        config="""
            [profile team]
            region = eu-west-3
            services = here
            [services here]
            s3 =
              endpoint_url = https://s3.team.example
            [profile other]
            region = ap-south-1
            endpoint_url = https://other.example
            """,
        credentials="""
            [team]
            aws_access_key_id = team-key
            aws_secret_access_key = team-secret
            [other]
            aws_access_key_id = other-key
            aws_secret_access_key = other-secret
            """,
    )
    settings, keys = answer({"profile": "team"})
    assert (settings.region, settings.endpoint_url) == ("eu-west-3", "https://s3.team.example")
    assert keys["access_key_id"] == "team-key"
    monkeypatch.setenv("AWS_PROFILE", "other")
    settings, keys = answer()
    assert (settings.region, settings.endpoint_url) == ("ap-south-1", "https://other.example")
    assert keys["access_key_id"] == "other-key"


def test_the_order_of_endpoints(monkeypatch):
    assert answer(_KEYS)[0].endpoint_url is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general.example")
    assert answer(_KEYS)[0].endpoint_url == "https://general.example"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    assert answer(_KEYS)[0].endpoint_url == "https://s3.example"
    for option in ({"endpoint_url": "https://o.example"}, {"client_kwargs": {"endpoint_url": "https://o.example"}}):
        assert answer({**_KEYS, **option})[0].endpoint_url == "https://o.example"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert answer(_KEYS)[0].endpoint_url is None


def test_an_endpoint_option_wins_over_the_environment_in_the_request_too(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    store = open_store(s3.fresh_url(), s3.storage_options)
    store.put("a", b"1")
    assert [info.key for info in store.list()] == ["a"]


def test_the_order_of_regions(monkeypatch):
    assert answer(_KEYS)[0].region == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert answer(_KEYS)[0].region == "eu-north-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert answer(_KEYS)[0].region == "eu-west-1"
    assert answer({**_KEYS, "region": "sa-east-1"})[0].region == "sa-east-1"


def test_plain_http_only_where_it_was_written():
    assert not answer(_KEYS)[0].is_http
    assert not answer({**_KEYS, "endpoint_url": "https://x.example"})[0].is_http
    assert answer({**_KEYS, "endpoint_url": "http://127.0.0.1:9000"})[0].is_http


def test_no_repr_shows_a_secret():
    settings, _ = answer(_KEYS)
    store = open_store("s3://b", {**_KEYS, "token": "option-token"})
    for shown in (
        repr(settings),
        repr(store),
        repr(store.store),
        repr(SessionCredentials(settings.session, url="s3://b")),
    ):
        assert "option-secret" not in shown
        assert "option-token" not in shown


@pytest.fixture
def process_profile(aws, tmp_path):
    """A profile whose keys come from a program that counts its calls, as SSO and role tools do."""

    def write(key, secret, *, lifetime_s):
        program = tmp_path / "program.py"
        program.write_text(
            textwrap.dedent(f"""
            import datetime as dt, json, pathlib
            calls = pathlib.Path({str(tmp_path / "calls")!r})
            with calls.open("a") as file:
                file.write("x")
            until = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds={lifetime_s})
            print(json.dumps({{"Version": 1, "AccessKeyId": {key!r}, "SecretAccessKey": {secret!r},
                              "Expiration": until.isoformat()}}))
            """)
        )
        aws(config=f"[profile tool]\ncredential_process = {sys.executable} {program}\n")
        return tmp_path / "calls"

    return write


def test_expiring_keys_say_when_they_expire(process_profile):
    calls = process_profile("k", "s", lifetime_s=3600)
    _, keys = answer({"profile": "tool"})
    left = keys["expires_at"] - dt.datetime.now(dt.timezone.utc)
    assert dt.timedelta(minutes=55) < left <= dt.timedelta(hours=1)
    assert calls.read_text() == "x"


def test_keys_that_expire_in_mid_upload_are_renewed_without_starting_again(process_profile, s3, fault_proxy):
    options = s3.storage_options
    calls = process_profile(options.pop("key"), options.pop("secret"), lifetime_s=30)  # always about to expire
    line = fault_proxy(s3)
    options.update(endpoint_url=line.storage_options["endpoint_url"], profile="tool")
    store = open_store(line.fresh_url(), options)
    data = bytes(range(256)) * (3 * PART_BYTES // 256 + 1)
    store.put("big", BytesBody(data))
    assert len(calls.read_text()) > 1
    parts = [request.query.split("&")[0] for request in line.proxy.seen(method="PUT", contains="partNumber=")]
    assert sorted(parts) == ["partNumber=1", "partNumber=2", "partNumber=3", "partNumber=4"]
    assert store.get("big") == data


def test_a_failing_credential_program_is_a_credentials_error(aws, tmp_path):
    aws(config=f"[profile tool]\ncredential_process = {sys.executable} -c 'raise SystemExit(3)'\n")
    with pytest.raises(CredentialsError) as caught:
        open_store("s3://b", {"profile": "tool", "endpoint_url": "http://127.0.0.1:1"}).head("k")
    assert caught.value.exit_code == 6


def test_an_expired_sso_login_says_how_to_log_in(aws):
    aws(
        config="""
            [profile sso]
            sso_start_url = https://example.awsapps.com/start
            sso_region = us-east-1
            sso_account_id = 123456789012
            sso_role_name = Role
            """
    )
    with pytest.raises(CredentialsError) as caught:
        open_store("s3://b", {"profile": "sso", "endpoint_url": "http://127.0.0.1:1"}).head("k")
    assert "aws sso login" in caught.value.hint


@pytest.mark.parametrize("wrong", ["key", "secret"])
@pytest.mark.parametrize("operation", ["head", "get", "put", "put_if_absent", "list", "delete"])
def test_wrong_keys_are_credentials_errors_in_every_operation(s3, wrong, operation):
    store = open_store(s3.fresh_url(), {**s3.storage_options, wrong: "wrong-word"})
    calls = {
        "put": lambda: store.put("k", b"1"),
        "put_if_absent": lambda: store.put_if_absent("k", b"1"),
        "list": lambda: list(store.list()),
        "delete": lambda: store.delete(["k"]),
    }
    with pytest.raises(CredentialsError) as caught:
        calls.get(operation, lambda: getattr(store, operation)("k"))()
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "wrong-word" not in str(chain) or wrong == "key"  # the key id is no secret
        chain = chain.__cause__


def test_azure_reads_its_environment(az, monkeypatch):
    for name, value in az.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(az.fresh_url())
    store.put("a", b"1")
    assert store.get("a") == b"1"


def test_wrong_azure_keys(az):
    options = {**az.storage_options, "account_key": "d3Jvbmcta2V5"}
    with pytest.raises(CredentialsError) as caught:
        open_store(az.fresh_url(), options).head("k")
    assert "AZURE_" in caught.value.hint
    assert "d3Jvbmcta2V5" not in str(caught.value.__cause__)


def test_unreadable_azure_keys_do_not_show():
    with pytest.raises(ArtifactSyncError) as caught:
        open_store("az://c", {"account_name": "a", "account_key": "not base64!"}).head("k")
    assert "not base64!" not in f"{caught.value} {caught.value.__cause__}"


def test_settings_take_a_certificate_file_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        open_store("s3://b", _KEYS)


def test_options_can_be_read_from_json(s3):
    options = json.loads(json.dumps(s3.storage_options))
    open_store(s3.fresh_url(), options).put("a", b"1")
