"""AWS settings and credentials, found where the AWS tools find them.

Owns: region, endpoint and keys from ``storage_options``, the environment, profiles, SSO, roles, containers and
instances (boto3 does the finding), and their renewal while an upload runs. Does not own: requests to S3 (``s3``).

Invariants: an explicit option wins over the environment, and explicit keys are never mixed with a token from
elsewhere; plain http is used only for an endpoint that the user wrote with ``http://``; no repr shows a secret.
"""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError, ConfigurationError, CredentialsError
from artifactsync.stores.encryption import S3_KEYWORDS, S3_NAMES, S3Encryption, read_s3_encryption, refuse_encryption
from artifactsync.stores.foreign_logs import BOTOCORE, hide_secrets
from artifactsync.stores.object_errors import from_botocore

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_REGION = "us-east-1"
_RENEW_EVERY = dt.timedelta(minutes=5)  # static keys that a tool rotates in its file are not seen; refreshable ones are

_NAMES = {
    "key": "key",
    "access_key_id": "key",
    "aws_access_key_id": "key",
    "secret": "secret",
    "secret_access_key": "secret",
    "aws_secret_access_key": "secret",
    "token": "token",
    "session_token": "token",
    "aws_session_token": "token",
    "profile": "profile",
    "profile_name": "profile",
    "endpoint_url": "endpoint_url",
    "endpoint": "endpoint_url",
    "region": "region",
    "region_name": "region",
    "anon": "anon",
    "skip_signature": "anon",
    "addressing_style": "addressing_style",
    "verify": "verify",
    "checksum_algorithm": "checksum_algorithm",
}
"""What ``storage_options`` may hold for S3 (s3fs's and obstore's names), and what it means."""
_IGNORED = frozenset(
    {
        "asynchronous",
        "cache_regions",
        "default_block_size",
        "default_cache_type",
        "default_fill_cache",
        "fixed_upload_size",
        "loop",
        "max_concurrency",
        "session",
        "skip_instance_cache",
        "use_listings_cache",
        "use_ssl",
        "version_aware",
    }
)
"""Options of s3fs that tune s3fs itself."""


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """Where and as whom to talk to S3."""

    region: str = DEFAULT_REGION
    """AWS region."""
    endpoint_url: str | None = None
    """The service's URL; None: AWS itself."""
    anon: bool = False
    """Requests are not signed."""
    addressing_style: str = "auto"
    """``path``, ``virtual``, or ``auto``: virtual on AWS, path elsewhere."""
    ca_bundle: str | None = None
    """File with further certificate authorities."""
    checksum_algorithm: str = "crc64nvme"
    """What each upload carries for the service to verify; empty: nothing."""
    encryption: S3Encryption | None = None
    """What every write asks for; None: the bucket's default counts."""
    session: Any = field(default=None, repr=False)
    """The boto3 session with the credentials."""

    @property
    def encryption_arguments(self) -> dict[str, Any]:
        """The encryption in boto3's words; a fresh dict."""
        return self.encryption.arguments if self.encryption else {}

    @property
    def is_http(self) -> bool:
        """Whether the user asked for plain http."""
        return (self.endpoint_url or "").lower().startswith("http://")


def read_s3_settings(storage_options: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> S3Settings:
    """Work out the settings. No request is sent, except for credentials by boto3 where a role or SSO needs one.

    Raises:
        ConfigurationError: an unknown or wrong option, or an unknown profile.
    """
    options = _flat_options(storage_options)
    encryption = read_s3_encryption(storage_options, environ)
    hide_secrets(BOTOCORE)
    try:
        import boto3  # noqa: PLC0415 loads the cloud library
        import botocore.exceptions  # noqa: PLC0415
    except ImportError as error:
        raise _missing_package(error) from error

    if bool(options.get("key")) != bool(options.get("secret")):
        raise ConfigurationError("storage_options has only one of key and secret", hint="give both, or neither")
    try:
        session = boto3.Session(
            aws_access_key_id=options.get("key"),
            aws_secret_access_key=options.get("secret"),
            aws_session_token=options.get("token") if options.get("key") else None,
            region_name=options.get("region") or environ.get("AWS_REGION"),
            profile_name=options.get("profile"),
        )
        region = session.region_name or DEFAULT_REGION
        endpoint_url = options.get("endpoint_url") or _configured_endpoint(session, environ)
    except botocore.exceptions.BotoCoreError as error:
        raise from_botocore(error, url="s3://") from error
    _check_endpoint(endpoint_url)
    return S3Settings(
        region=region,
        endpoint_url=endpoint_url or None,
        anon=bool(options.get("anon", False)),
        addressing_style=options.get("addressing_style", "auto"),
        ca_bundle=_ca_bundle(options.get("verify"), environ),
        checksum_algorithm=options.get("checksum_algorithm", "crc64nvme") or "",
        encryption=encryption,
        session=session,
    )


class SessionCredentials:
    """obstore's credential provider over a boto3 session: called again whenever the last answer runs out.

    Args:
        session: The boto3 session.
        url: The remote, for messages.

    Raises:
        CredentialsError: the session has none.
    """

    def __init__(self, session: Any, *, url: str) -> None:
        self._url = url
        self.failure: ArtifactSyncError | None = None
        """Why the last call failed: obstore passes on no more than its text."""
        try:
            self._credentials = session.get_credentials()
        except Exception as error:
            raise self._failure(error) from error
        if self._credentials is None:
            raise CredentialsError(
                f"no AWS credentials found for {url}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run 'aws sso login'; "
                "for a public bucket storage_options={'anon': True}",
                url=url,
            )

    def __call__(self) -> dict[str, Any]:
        """Return keys that are valid now, renewed if they were about to run out."""
        self.failure = None
        try:
            frozen = self._credentials.get_frozen_credentials()
        except Exception as error:
            self.failure = self._failure(error)
            raise self.failure from error
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": self._expires_at(),
        }

    def _expires_at(self) -> dt.datetime | None:
        """When to ask again: obstore does so five minutes before; None (never) for keys that do not expire."""
        expiry: dt.datetime | None = getattr(self._credentials, "_expiry_time", None)
        if expiry is None and hasattr(self._credentials, "refresh_needed"):
            return dt.datetime.now(dt.timezone.utc) + _RENEW_EVERY
        return expiry.astimezone(dt.timezone.utc) if expiry else None  # obstore takes no other zone

    def _failure(self, error: Exception) -> ArtifactSyncError:
        return error if isinstance(error, ArtifactSyncError) else from_botocore(error, url=self._url)


def _flat_options(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under our names; what is nested in s3fs is lifted out."""
    nested: dict[str, Any] = dict(storage_options)
    flat = dict(nested.pop("client_kwargs", None) or {})
    core_config = nested.pop("config_kwargs", None) or {}
    s3_config = core_config.get("s3") or {}
    refuse_encryption(core_config, "config_kwargs for s3")
    flat.update({name: value for name, value in s3_config.items() if name == "addressing_style"})
    flat.update(nested)
    encryption = S3_NAMES | {S3_KEYWORDS}
    refuse_encryption(flat, "storage_options for s3", allowed=encryption)
    unknown = sorted(set(flat) - set(_NAMES) - _IGNORED - encryption)
    if unknown:
        known = ", ".join(sorted({*_NAMES.values(), "client_kwargs", "config_kwargs", S3_KEYWORDS}))
        raise ConfigurationError(f"storage_options for s3 has unknown {', '.join(unknown)}", hint=f"known: {known}")
    return {_NAMES[name]: value for name, value in flat.items() if name in _NAMES and value is not None}


def _configured_endpoint(session: Any, environ: Mapping[str, str]) -> str | None:
    """The endpoint from the environment or the profile, as the AWS tools choose it.

    Source: https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html (2026-11-01).
    """
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if environ.get(name):
            return environ[name]
    core = session._session  # noqa: SLF001 boto3 has no public way to its profile's settings
    profile = core.get_scoped_config()
    services = core.full_config.get("services", {}).get(profile.get("services", ""), {})
    endpoint: str | None = services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")
    return endpoint


def _check_endpoint(endpoint_url: str | None) -> None:
    if endpoint_url and not endpoint_url.lower().startswith(("http://", "https://")):
        raise ConfigurationError(
            f"the endpoint {endpoint_url.rpartition('@')[2]!r} is no http:// or https:// URL",
            hint=f"write https://{endpoint_url.rpartition('@')[2]}",
        )
    if endpoint_url and "@" in endpoint_url.partition("?")[0]:
        raise ConfigurationError(
            f"the endpoint {endpoint_url} holds credentials, which are not read from URLs",
            hint="use the environment, a profile, or key and secret in storage_options",
        )


def _ca_bundle(verify: Any, environ: Mapping[str, str]) -> str | None:
    if verify is False:
        raise ConfigurationError(
            "TLS certificates are always verified; verify=False is not supported",
            hint="set AWS_CA_BUNDLE to your certificate authority's file",
        )
    path = verify if isinstance(verify, (str, os.PathLike)) else environ.get("AWS_CA_BUNDLE")
    return os.fspath(path) if path else None


def _missing_package(error: ImportError) -> ArtifactSyncError:
    from artifactsync.errors import MissingPackageError  # noqa: PLC0415

    return MissingPackageError(f"s3:// needs the Python package {error.name}", hint="pip install 'artifactsync[s3]'")
