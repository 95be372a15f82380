"""How obstore and boto3 are connected to one S3 bucket, both alike.

Owns: addressing, TLS, timeouts, checksums. Does not own: which credentials (``credentials``), requests (``s3``).

Invariant: plain http only where the user wrote it; bodies go unsigned only where nobody is between: over TLS, and over
plain http to this very machine. Checksums (CRC64NVME) go with them all the same.
"""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from artifactsync.errors import ConfigurationError
from artifactsync.stores.foreign_logs import BOTOCORE, hide_secrets
from artifactsync.stores.object import CONNECT_TIMEOUT_S, SHORT_TIMEOUT_S, Lanes, open_lanes

if TYPE_CHECKING:
    from artifactsync.stores.credentials import S3Settings, SessionCredentials

_CONNECTIONS = 32  # kept: eight uploads of four parts


def open_s3_lanes(bucket: str, settings: S3Settings, credentials: SessionCredentials | None) -> Lanes:
    """Open obstore on the bucket.

    Raises:
        ConfigurationError: the certificate file cannot be read.
    """
    from obstore.store import S3Store  # noqa: PLC0415 loads the cloud library

    config: dict[str, Any] = {"region": settings.region}
    if settings.endpoint_url:
        config["endpoint"] = config["aws_endpoint_url_s3"] = settings.endpoint_url.rstrip("/")
    if settings.checksum_algorithm:
        config["checksum_algorithm"] = settings.checksum_algorithm
    if not settings.is_http or _is_this_machine(settings.endpoint_url):
        config["unsigned_payload"] = True
    if settings.anon:
        config["skip_signature"] = True
    if settings.encryption:
        config.update(settings.encryption.obstore_config)
    config["virtual_hosted_style_request"] = is_virtual(bucket, settings)
    client: dict[str, Any] = {"allow_http": settings.is_http}
    if settings.ca_bundle:
        client["root_certificate"] = _read_certificates(settings.ca_bundle)

    def open_one(client_options: Any, retry_config: Any) -> Any:
        return S3Store(
            bucket,
            config=cast("Any", config),
            client_options=client_options,
            retry_config=retry_config,
            credential_provider=cast("Any", credentials),
        )

    return open_lanes(open_one, client)


def _is_this_machine(endpoint_url: str | None) -> bool:
    """Whether the endpoint is a server, or somebody's relay, on the loopback interface."""
    host = urlsplit(endpoint_url or "").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_virtual(bucket: str, settings: S3Settings) -> bool:
    """Whether the bucket goes into the host name. A dot in it would break the certificate's wildcard."""
    if settings.addressing_style == "auto":
        return settings.endpoint_url is None and "." not in bucket
    return settings.addressing_style == "virtual"


def _read_certificates(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the certificate file {path} cannot be read: {error.strerror}", hint="check AWS_CA_BUNDLE or verify"
        ) from error


def open_boto_client(settings: S3Settings) -> Any:
    """Make a boto3 client that sends each request once and stays where it is told to go."""
    from botocore import UNSIGNED  # noqa: PLC0415 loads the cloud library
    from botocore.config import Config  # noqa: PLC0415

    hide_secrets(BOTOCORE)
    style = settings.addressing_style
    if style == "auto" and settings.endpoint_url:
        style = "path"
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=SHORT_TIMEOUT_S,
        max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": style},
        request_checksum_calculation="when_required",  # newer defaults break some services
        response_checksum_validation="when_required",
        signature_version=UNSIGNED if settings.anon else None,
    )
    client = settings.session.client(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.endpoint_url,
        verify=settings.ca_bundle,
        config=config,
    )
    client.meta.events.register("before-call.s3", _stay_in_region)
    return client


def _stay_in_region(params: dict[str, Any], **_: Any) -> None:
    """Keep botocore from following a bucket to its region: obstore would not follow, and then only half would work.

    It also does so without end where a service answers everything with a redirect.
    """
    params.get("context", {}).get("s3_redirect", {})["redirected"] = True
