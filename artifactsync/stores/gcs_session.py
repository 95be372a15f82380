"""The connection to Google Cloud Storage: endpoint, credentials, and a client whose every wait has an end.

Owns: which credentials are used, and how long one request may take. Does not own: what is sent (``gcs``), what errors
mean (``gcs_errors``).

Invariant: no token is ever sent over plain http, and with an emulator nothing asks Google's metadata server.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import google.auth
import google.auth.credentials
import google.auth.exceptions
import google.auth.transport.requests
import google.oauth2.credentials
import google.oauth2.service_account
import requests.adapters
from google.cloud import storage

from artifactsync.errors import ConfigurationError, CredentialsError
from artifactsync.stores.encryption import check_gcs_key

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST_TIMEOUT_S = (4.0, 10.0)
"""How long a connection may take to come up, and how long an endpoint that never answered yet may stay silent: it is
more likely wrong than slow, and a user waits in front of it. With ``RetryStore`` on top still within 15 s."""
TIMEOUT_S = (4.0, 60.0)
"""The same for an endpoint that has answered before; a chunk of an upload is answered well before."""

_POOL_SIZE = 64  # connections kept; more threads than that wait for nothing, they open their own
_METADATA_BUDGET_S = 3.0  # for finding out whether this is a Google machine; one answers in milliseconds
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_OPTIONS = frozenset({"project", "token", "endpoint_url", "anon", "requester_pays", "user_project", "kms_key_name"})
_HINT = (
    "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS to a key file, "
    "or pass storage_options={'token': 'anon'} for a public bucket"
)


def endpoint_of(options: Mapping[str, Any]) -> str | None:
    """The endpoint that the options or ``STORAGE_EMULATOR_HOST`` name, with its scheme; None: Google's own."""
    endpoint = options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
    if not endpoint:
        return None
    endpoint = str(endpoint)
    return (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")  # Go's clients take it without


def check_options(options: Mapping[str, Any], url: str) -> None:
    """Refuse what would be ignored.

    Raises:
        ConfigurationError: an unknown option, an endpoint that is no URL, a key's name that is none.
    """
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"unknown storage option{'s' if len(unknown) > 1 else ''} for {url}: {', '.join(unknown)}",
            hint=f"known ones: {', '.join(sorted(_OPTIONS))}",
            url=url,
        )
    check_gcs_key(options.get("kms_key_name"), url)
    endpoint = endpoint_of(options)
    if endpoint and (urlsplit(endpoint).scheme not in {"http", "https"} or not urlsplit(endpoint).hostname):
        raise ConfigurationError(
            f"the endpoint {endpoint!r} is no http(s) URL", hint="write http://127.0.0.1:4443", url=url
        )


def connect(options: Mapping[str, Any], url: str) -> storage.Client:
    """Make a client. Sends nothing but, where no other credentials are found, a look for the metadata server.

    Raises:
        CredentialsError: no credentials were found, or the ones given are no good.
    """
    endpoint = endpoint_of(options)
    credentials = _credentials(options, endpoint, url)
    # One refresh after a 401; none where there is no token, or the answer would be dropped unread.
    refreshes = 0 if isinstance(credentials, google.auth.credentials.AnonymousCredentials) else 1
    session = google.auth.transport.requests.AuthorizedSession(credentials, max_refresh_attempts=refreshes)
    adapter = requests.adapters.HTTPAdapter(pool_connections=_POOL_SIZE, pool_maxsize=_POOL_SIZE)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    client = storage.Client(
        project=options.get("project") or os.environ.get("GOOGLE_CLOUD_PROJECT") or None,
        credentials=credentials,
        client_options={"api_endpoint": endpoint} if endpoint else None,
        _http=session,
    )
    # Where OpenTelemetry is installed, a thread of the client's own would ask for the bucket's metadata: a permission
    # that nobody needs, and a connection that nobody closes.
    client._bucket_metadata_cache = None  # noqa: SLF001 its public switch is an environment variable
    return client


def _credentials(options: Mapping[str, Any], endpoint: str | None, url: str) -> google.auth.credentials.Credentials:
    token = options.get("token")
    if endpoint and endpoint.startswith("http://"):
        return google.auth.credentials.AnonymousCredentials()
    if options.get("anon") or token == "anon":  # noqa: S105 - gcsfs's word for no token
        return google.auth.credentials.AnonymousCredentials()
    if isinstance(token, google.auth.credentials.Credentials):
        return token
    try:
        if token in (None, "google_default", "cloud"):
            credentials, _ = google.auth.default(scopes=[_SCOPE], request=_BoundedRequest())
            return credentials
        return _from_token(token, url)
    except google.auth.exceptions.GoogleAuthError as error:
        raise CredentialsError(f"no Google credentials for {url}", hint=_HINT, url=url) from error
    except (OSError, ValueError) as error:
        raise CredentialsError(f"the Google credentials given for {url} cannot be read", hint=_HINT, url=url) from error


def _from_token(token: Any, url: str) -> google.auth.credentials.Credentials:
    """Credentials from a key (a dict, or the path of its JSON file), as gcsfs takes them."""
    if isinstance(token, str | os.PathLike):
        import json  # noqa: PLC0415
        from pathlib import Path  # noqa: PLC0415

        token = json.loads(Path(token).expanduser().read_text(encoding="utf-8"))
    kind = token.get("type") if isinstance(token, dict) else None
    credentials: google.auth.credentials.Credentials
    if kind == "service_account":
        credentials = google.oauth2.service_account.Credentials.from_service_account_info(token, scopes=[_SCOPE])
    elif kind == "authorized_user":
        credentials = google.oauth2.credentials.Credentials.from_authorized_user_info(token, scopes=[_SCOPE])
    else:
        raise CredentialsError(
            f"the token given for {url} is neither a service account's nor a user's key",
            hint="for other kinds set GOOGLE_APPLICATION_CREDENTIALS to the file",
            url=url,
        )
    return credentials


class _BoundedRequest(google.auth.transport.requests.Request):
    """A request whose tries together take no longer than the budget: google-auth alone would look for 12 s."""

    def __init__(self) -> None:
        super().__init__()
        self._ends_at = time.monotonic() + _METADATA_BUDGET_S

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise google.auth.exceptions.TransportError("no metadata server answers")
        bounded_s = min(timeout or left_s, left_s)
        return super().__call__(url, method, body, headers, bounded_s, **kwargs)  # type: ignore[no-untyped-call]  # theirs
