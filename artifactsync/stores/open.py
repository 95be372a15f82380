"""From a URL to a store: the registry of schemes and the stack of adapters.

Owns: which implementation serves which URL, and in which order the adapters lie on it:
``PrefixStore(RetryStore(LimitStore(implementation)))``. Does not own: credentials (``credentials``).

Invariant: opening sends nothing and creates nothing; a wrong URL fails here, with the hint, before any request.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError, MissingPackageError, redact
from artifactsync.stores.encryption import refuse_encryption
from artifactsync.stores.limit import LimitStore
from artifactsync.stores.local import LocalStore
from artifactsync.stores.origin import describe
from artifactsync.stores.prefix import PrefixStore
from artifactsync.stores.retry import RetryPolicy, RetryStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.stores.protocol import Store

_S3 = frozenset({"s3", "s3a"})
_GCS = frozenset({"gs", "gcs"})
_AZURE = frozenset({"az", "abfs", "abfss", "adl", "azure"})


def open_store(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    retry: RetryPolicy | None = None,
    bandwidth_limit_bytes_per_s: float | None = None,
) -> Store:
    """Open the remote at ``url``. No request is sent.

    Args:
        url: A plain path, ``file://``, ``memory://``, ``s3://``, ``gs://``, ``az://`` or any other fsspec URL.
        storage_options: What fsspec's file system of that scheme takes (``key``, ``secret``, ``endpoint_url``,
            ``profile``, ``anon`` …); see ``stores.credentials`` for what each cloud understands.
        retry: How patient; the default suits a command that a user waits for.
        bandwidth_limit_bytes_per_s: Bytes of data per second, up and down together; None: no limit.

    Raises:
        ConfigurationError: the URL or an option is wrong.
        MissingPackageError: the scheme needs a package that is not installed.
        CredentialsError: the cloud's tools find no credentials here.
    """
    text = os.fspath(url)
    options = dict(storage_options or {})
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "file", text
    scheme = scheme.lower()
    store, prefix = _open(text, scheme, rest, options)
    origin = describe(str(store.root) if isinstance(store, LocalStore) else text, scheme, options, retry)
    if bandwidth_limit_bytes_per_s is not None:
        store = LimitStore(store, bytes_per_s=bandwidth_limit_bytes_per_s)
    retrying = RetryStore(store, retry)
    opened = PrefixStore(retrying, prefix) if prefix else retrying
    if bandwidth_limit_bytes_per_s is None:  # the limit is one for all that this process sends
        opened.origin = origin
    return opened


def _open(text: str, scheme: str, rest: str, options: dict[str, Any]) -> tuple[Store, str]:
    """Return the implementation and the prefix within it."""
    if scheme not in _S3 | _AZURE | _GCS:  # these know what they support; of the others none encrypts as it is asked
        refuse_encryption(options, redact(text))
    if scheme in {"file", "local"}:
        return LocalStore(_local_path(text, rest)), ""
    try:
        if scheme == "memory":
            from artifactsync.stores.memory import memory_store  # noqa: PLC0415 loads obstore

            name, prefix = _split(text, rest, needs_name=False)
            return memory_store(name), prefix
        if scheme in _S3:
            from artifactsync.stores.s3 import s3_store  # noqa: PLC0415 loads obstore and boto3

            name, prefix = _split(text, rest)
            return s3_store(name, options), prefix
        if scheme in _AZURE:
            from artifactsync.stores.azure import azure_store  # noqa: PLC0415 loads obstore

            name, prefix = _split(text, rest, names_account=True)
            return azure_store(name, options), prefix
        if scheme in _GCS:
            from artifactsync.stores.gcs import GcsStore  # noqa: PLC0415 loads google-cloud-storage

            name, prefix = _split(text, rest)
            return GcsStore(name, storage_options=options), prefix
    except ImportError as error:
        raise _missing(text, scheme, error) from error
    from artifactsync.stores.generic import GenericStore  # noqa: PLC0415 loads the scheme's fsspec file system

    return GenericStore(text, storage_options=options), ""


def _missing(text: str, scheme: str, error: ImportError) -> MissingPackageError:
    extra = "gcs" if scheme in _GCS else "azure" if scheme in _AZURE else "s3"
    return MissingPackageError(
        f"{text} needs the Python package {error.name or error}",
        hint=f"pip install 'artifactsync[{extra}]'",
        url=text,
    )


def _local_path(text: str, rest: str) -> str:
    """The path of a ``file://`` URL or of a plain path."""
    if rest == "":
        raise ConfigurationError("the remote is empty", hint="name a folder, or a URL such as s3://bucket/prefix")
    if "\0" in rest:
        raise ConfigurationError("the remote's path has a NUL character", hint="remove it", url=text)
    if rest == text:
        first, colon, after = text.partition(":")
        if colon and first.lower() in _S3 | _GCS | _AZURE | {"file", "memory"}:  # a slash is missing
            raise ConfigurationError(
                f"{redact(text)} is no URL: {first}: wants two slashes",
                hint=f"write {first}://{redact(after.lstrip('/'))}, or ./{redact(text)} for a folder of that name",
            )
        return rest
    host, slash, path = rest.partition("/")
    shown = rest.rpartition("@")[2]
    if host not in {"", "localhost"} or not slash:
        raise ConfigurationError(
            f"{text} names the host {shown.partition('/')[0]!r}, but file:// reaches only this machine",
            hint=f"write file:///{shown} for an absolute path, or {shown} alone for one relative to this folder",
            url=text,
        )
    return "/" + path


def _split(text: str, rest: str, *, needs_name: bool = True, names_account: bool = False) -> tuple[str, str]:
    """Split bucket (or container, with ``@`` and the account behind it) and prefix."""
    name, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if needs_name and not name:
        raise ConfigurationError(f"{text} names no bucket", hint="write scheme://bucket/prefix", url=text)
    # No bucket has a colon in its name: what looks like one is a key with its secret, which may have slashes in it.
    query = "?" + rest.partition("?")[2]
    if ":" in name or ("@" in name and not names_account) or redact(query) != query:
        raise ConfigurationError(
            f"{redact(text.partition('?')[0])} holds credentials, which are not read from URLs",
            hint="use the environment, a profile or storage_options",
        )
    parts = prefix.split("/") if prefix else []
    if any(part in {"", ".", ".."} for part in parts):
        raise ConfigurationError(
            f"the prefix {prefix!r} has an empty, '.' or '..' part", hint="write scheme://bucket/plain/prefix", url=text
        )
    return name, prefix
