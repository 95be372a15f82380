"""Azure Blob Storage through obstore.

Owns: options and environment in adlfs's and obstore's names. Does not own: the finding of credentials: obstore reads
``AZURE_*`` (account key, SAS, client secret, workload identity, managed identity, Azure CLI) by itself.

Limits: a key that obstore cannot hold (an empty or ``..`` part, control characters), put there by another tool, makes
a listing of its prefix fail with ``UnsafeKeyError``: there is no second client for Azure here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from artifactsync.errors import ConfigurationError
from artifactsync.stores.object import ObjectStore, open_lanes

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES = {
    "account_name": "account_name",
    "account_key": "account_key",
    "sas_token": "sas_key",
    "sas_key": "sas_key",
    "tenant_id": "tenant_id",
    "client_id": "client_id",
    "client_secret": "client_secret",
    "credential_type": "credential_type",
    "federated_token_file": "federated_token_file",
    "use_azure_cli": "use_azure_cli",
    "use_emulator": "use_emulator",
    "endpoint_url": "endpoint",
    "endpoint": "endpoint",
    "account_host": "account_host",
    "anon": "skip_signature",
    "skip_signature": "skip_signature",
    "token": "token",
    "connection_string": "connection_string",
}
_ACCOUNT_VARIABLES = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_ENDPOINT_VARIABLES = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")


def azure_store(
    container: str, storage_options: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ
) -> ObjectStore:
    """Open a container, written as ``container`` or ``container@account.dfs.core.windows.net``.

    Raises:
        ConfigurationError: an unknown option, or no account.
    """
    from obstore.exceptions import BaseError  # noqa: PLC0415 loads the cloud library
    from obstore.store import AzureStore  # noqa: PLC0415

    container, _, host = container.partition("@")
    url = f"az://{container}"
    config = _config(storage_options, host, environ, url)
    endpoint = str(config.get("endpoint", ""))
    is_http = endpoint.startswith("http://") or bool(config.get("use_emulator"))

    def open_one(client_options: Any, retry_config: Any) -> Any:
        try:
            return AzureStore(
                container, config=cast("Any", config), client_options=client_options, retry_config=retry_config
            )
        except (ValueError, BaseError) as error:
            raise ConfigurationError(
                f"the settings for {url} are wrong: {type(error).__name__}",
                hint="check AZURE_* and storage_options",
                url=url,
            ) from None  # the text may hold the key

    lanes = open_lanes(open_one, {"allow_http": is_http})
    return ObjectStore(lanes, url)


def _config(storage_options: Mapping[str, Any], host: str, environ: Mapping[str, str], url: str) -> dict[str, Any]:
    """Return obstore's configuration."""
    unknown = sorted(set(storage_options) - set(_NAMES))
    if unknown:
        known = ", ".join(sorted(set(_NAMES)))
        raise ConfigurationError(f"storage_options for {url} has unknown {', '.join(unknown)}", hint=f"known: {known}")
    config = {_NAMES[name]: value for name, value in storage_options.items() if value is not None}
    text = config.pop("connection_string", None) or environ.get("AZURE_STORAGE_CONNECTION_STRING")
    if text:
        config = {**_connection(str(text)), **config}
    if account_host := config.pop("account_host", None):
        config.setdefault("endpoint", f"https://{account_host}")
    if host:
        config.setdefault("account_name", host.partition(".")[0])
    for name, variables in (("account_name", _ACCOUNT_VARIABLES), ("endpoint", _ENDPOINT_VARIABLES)):
        found = next((environ[variable] for variable in variables if environ.get(variable)), None)
        if found:
            config.setdefault(name, found)
    if "account_name" not in config and not config.get("use_emulator"):
        raise ConfigurationError(
            f"{url} needs a storage account",
            hint="set AZURE_STORAGE_ACCOUNT_NAME, or storage_options account_name",
            url=url,
        )
    return config


def _connection(text: str) -> dict[str, Any]:
    """Read an Azure connection string."""
    pairs = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    names = {
        "AccountName": "account_name",
        "AccountKey": "account_key",
        "BlobEndpoint": "endpoint",
        "SharedAccessSignature": "sas_key",
    }
    return {names[name]: value for name, value in pairs.items() if name in names}
