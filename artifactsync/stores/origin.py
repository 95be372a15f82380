"""Where a store came from, in words that another process can open it with.

Owns: ``Origin`` and ``origin_of``. Does not own: opening (``open``).

Invariant: an origin names the very same place, seen with the same rights and the same patience. A store that cannot be
described so (one in memory, one that is limited together with others, one whose options are objects) has none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from artifactsync.stores.prefix import PrefixStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.stores.protocol import Store
    from artifactsync.stores.retry import RetryPolicy

_PORTABLE_SCHEMES = frozenset({"file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "azure"})
_READ_PREFIXES = (
    "AWS_", "AZURE_", "BOTO", "CLOUDSDK_", "GCE_", "GCLOUD_", "GOOGLE_", "IDENTITY_", "MSI_", "S3_", "SSL_CERT_",
    "STORAGE_EMULATOR_",
)  # fmt: skip
_READ = frozenset(
    {"HOME", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
)


@dataclass(frozen=True)
class Origin:
    """What ``open_store`` was called with, what it found in the environment, and the folder below it."""

    url: str
    options: Mapping[str, Any] = field(repr=False)  # secrets
    environment: Mapping[str, str] = field(repr=False)
    """Those variables that the clouds' libraries read, as they were then."""
    retry: RetryPolicy | None
    prefix: str = ""
    """Without slashes at its ends."""

    def key(self) -> tuple[object, ...]:
        """Equal for equal origins; to look one up by."""
        plain = (repr(sorted(mapping.items(), key=repr)) for mapping in (self.options, self.environment))
        return self.url, *plain, self.retry, self.prefix

    def restore_environment(self) -> None:
        """Give this process's environment the variables that the clouds' libraries had then, and no others."""
        for name in set(_read_environment()) - set(self.environment):
            del os.environ[name]
        os.environ.update(self.environment)


def describe(url: str, scheme: str, options: Mapping[str, Any], retry: RetryPolicy | None) -> Origin | None:
    """Return the origin of a store that is being opened; None if another process could not open the same one.

    Args:
        url: As it was given; of a local folder its absolute path.
        scheme: Its scheme, in lower case.
        options: Those of ``open_store``.
        retry: That of ``open_store``.
    """
    is_portable = scheme in _PORTABLE_SCHEMES and _is_plain(options)
    return Origin(url, dict(options), _read_environment(), retry) if is_portable else None


def origin_of(store: Store) -> Origin | None:
    """Return where a store came from; None if no other process could open the same one."""
    origin: Origin | None = getattr(store, "origin", None)
    if origin is not None or not isinstance(store, PrefixStore):
        return origin
    below = origin_of(store.store)
    if below is None:
        return None
    prefix = "/".join(part for part in (below.prefix, store.prefix.strip("/")) if part)
    return replace(below, prefix=prefix)


def _read_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _READ or name.upper().startswith(_READ_PREFIXES)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))
