"""The five servers that stand in for the clouds, each a child process on loopback, none in Docker.

Owns: how each is started, asked whether it is ready, given a bucket, and what a user must export to use it.
Does not own: starting and ending (``server``), programs (``programs``), the laptop cloud (``cloud``).

=============  ===========================================  ================================================
class          stands for                                   not like the real one in
=============  ===========================================  ================================================
SeaweedFS      S3: credentials, conditional puts, checksums  ignores a wrong x-amz-content-sha256; refuses ``..``
LocalStack     S3                                           credentials are not checked
Moto           S3, in-memory                                neither credentials nor checksums are checked
FakeGCS        Google Cloud Storage                         preconditions only on uploads up to 8 MiB
Azurite        Azure Blob Storage                           nothing that matters here
=============  ===========================================  ================================================
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import TYPE_CHECKING

import programs
from child_process import HOST, ServerError, free_ports
from server import Server
from signing import send, sign_azure_container, sign_s3

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Azurite", "FakeGCS", "LocalStack", "Moto", "SeaweedFS", "Server", "ServerError"]

REGION = "us-east-1"
KEY = "laptop"
SECRET = "laptop-secret"  # noqa: S105 - of a server on loopback that holds test data
PROJECT = "laptop"
# Azurite knows this account alone; the key is public.
# Source: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite (November 2026).
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_OK = 200


class _S3Server(Server):
    scheme = "s3"

    @property
    def storage_options(self) -> dict[str, str]:
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint_url, "region": REGION}

    @classmethod
    def environment_at(cls, endpoint_url: str) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": endpoint_url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,  # boto3 reads this one, other SDKs the one above
        }

    def make_bucket(self, name: str) -> str:
        url = f"{self.endpoint_url}/{name}"
        status = send("PUT", url, sign_s3("PUT", url, key=KEY, secret=SECRET, region=REGION))
        self._expect(status, f"making the bucket {name}")
        return f"s3://{name}"


class SeaweedFS(_S3Server):
    """SeaweedFS in one process: the reference for S3, as it checks credentials, conditions and checksums."""

    def _choose_ports(self, port: int | None) -> None:
        self._master, self._volume, self._filer, self._admin, s3 = free_ports(5, offset=10_000)
        self.port = port or s3
        self._s3_grpc = s3 + 10_000

    def command(self) -> list[str]:
        """See ``Server``. Each service listens on loopback, telemetry is off, and no default port is left."""
        flags = {
            "dir": self.folder,
            "ip": HOST,
            "ip.bind": HOST,
            "master.port": self._master,
            "master.telemetry": "false",
            "volume.port": self._volume,
            "volume.max": 1_000,  # each bucket takes at least one; the default depends on the free disk space
            "volume.preStopSeconds": 0,  # nobody else has to learn that it stops
            "filer.port": self._filer,
            "s3.port": self.port,
            "s3.port.grpc": self._s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",  # a missing bucket is missing, as on AWS
            "webdav": "false",
            "admin.ui": "false",
            "admin.port": self._admin,  # not 0: it waits two minutes for its admin server, then gives up and ends
            "admin.port.grpc": self._admin + 10_000,
        }
        return [programs.seaweedfs(), "mini", *(f"-{name}={value}" for name, value in flags.items())]

    def is_ready(self) -> bool:
        """See ``Server``."""
        url = f"{self.endpoint_url}/"
        return send("GET", url, sign_s3("GET", url, key=KEY, secret=SECRET, region=REGION)) == _OK

    def _process_environment(self) -> Mapping[str, str]:
        return {**super()._process_environment(), "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


class LocalStack(_S3Server):
    """LocalStack's S3 in host mode: its runtime as a Python process, without Docker, account or token."""

    ready_timeout_s = 60.0

    def command(self) -> list[str]:
        """See ``Server``. Installs LocalStack on first use."""
        return [programs.localstack(), "-m", "localstack.runtime.main"]

    def is_ready(self) -> bool:
        """See ``Server``."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.endpoint_url}/_localstack/health", timeout=5) as answer:
            return bool(json.load(answer).get("services", {}).get("s3") == "running")

    def _process_environment(self) -> Mapping[str, str]:
        return {
            **super()._process_environment(),
            "SERVICES": "s3",
            "EAGER_SERVICE_LOADING": "1",
            "GATEWAY_SERVER": "hypercorn",  # the default one ignores the host and listens on 0.0.0.0
            "GATEWAY_LISTEN": f"{HOST}:{self.port}",
            "DNS_ADDRESS": "0",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "HOME": str(self.folder),  # it caches its list of plugins there
            "FILESYSTEM_ROOT": str(self.folder),
        }


class Moto(_S3Server):
    """moto's S3: the forgiving one. It takes any key, also those that other servers refuse."""

    def command(self) -> list[str]:
        """See ``Server``."""
        return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]

    def is_ready(self) -> bool:
        """See ``Server``."""
        return send("GET", f"{self.endpoint_url}/moto-api/data.json") == _OK


class FakeGCS(Server):
    """fake-gcs-server: the JSON API of Google Cloud Storage. In memory, unless a folder is given."""

    scheme = "gs"

    @property
    def storage_options(self) -> dict[str, str]:
        """See ``Server``."""
        return {"endpoint_url": self.endpoint_url, "project": PROJECT, "token": "anon"}

    @classmethod
    def environment_at(cls, endpoint_url: str) -> dict[str, str]:
        """See ``Server``."""
        return {
            "STORAGE_EMULATOR_HOST": endpoint_url,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs asks for what the server lacks: 40 s a call
        }

    def command(self) -> list[str]:
        """See ``Server``."""
        where = ["-scheme", "http", "-host", HOST, "-port", str(self.port), "-external-url", self.endpoint_url]
        kept = ["-backend", "filesystem", "-filesystem-root", str(self.folder / "buckets")]
        return [programs.fake_gcs(), *where, *(["-backend", "memory"] if self._temporary else kept), "-log-level=warn"]

    def is_ready(self) -> bool:
        """See ``Server``."""
        return send("GET", f"{self.endpoint_url}/storage/v1/b?project={PROJECT}") == _OK

    def make_bucket(self, name: str) -> str:
        """See ``Server``."""
        url = f"{self.endpoint_url}/storage/v1/b?project={PROJECT}"
        body = json.dumps({"name": name}).encode()
        self._expect(send("POST", url, {"Content-Type": "application/json"}, body), f"making the bucket {name}")
        return f"gs://{name}"


class Azurite(Server):
    """Azurite's Blob service, Microsoft's own emulator."""

    scheme = "az"

    @property
    def endpoint_url(self) -> str:
        """The server's URL with the account in its path, as Azurite has it."""
        return f"{self.origin}/{AZURE_ACCOUNT}"

    @property
    def storage_options(self) -> dict[str, str]:
        """See ``Server``."""
        return {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY, "endpoint_url": self.endpoint_url}

    @classmethod
    def environment_at(cls, endpoint_url: str) -> dict[str, str]:
        """See ``Server``."""
        account = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint_url,
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={endpoint_url};"
            ),
        }

    def command(self) -> list[str]:
        """See ``Server``. Installs Azurite on first use."""
        quiet = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        where = ["--location", str(self.folder), "--blobHost", HOST, "--blobPort", str(self.port)]
        return [*programs.azurite(), *quiet, *where]

    def is_ready(self) -> bool:
        """See ``Server``. Any answer will do: without a signature it is a refusal."""
        return send("GET", f"{self.endpoint_url}?comp=list") > 0

    def make_bucket(self, name: str) -> str:
        """See ``Server``."""
        url = f"{self.endpoint_url}/{name}?restype=container"
        status = send("PUT", url, sign_azure_container(url, account=AZURE_ACCOUNT, key=AZURE_KEY))
        self._expect(status, f"making the container {name}")
        return f"az://{name}"
