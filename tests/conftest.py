"""The servers that the tests talk to, and the wall between the tests and the user's own clouds.

A fixture starts its server when a first test asks for it, and one server serves the whole session: ask for a
``fresh_url()`` and touch nothing outside it. A server that cannot be started fails the test, it skips nothing.

| fixture         | server          | good for                                                        |
| --------------- | --------------- | --------------------------------------------------------------- |
| `s3`            | SeaweedFS       | S3 with credentials, conditional puts and checksums enforced    |
| `moto_s3`       | moto            | S3 that takes any key                                           |
| `localstack_s3` | LocalStack      | a second opinion on S3; installs itself on first use            |
| `gcs`           | fake-gcs-server | Google Cloud Storage                                            |
| `az`            | Azurite         | Azure Blob; installs itself from npm on first use               |
| `fault_proxy`   | ours            | a factory: `fault_proxy(s3)` is `s3` behind a line that fails   |
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "localstack"))  # not a package: it would shadow PyPI's localstack

import servers

from tests.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Nothing of these reaches a test or a process it starts: the user's clouds, settings, a job we may be running in.
_FOREIGN_PREFIXES = (
    "ARTIFACTSYNC_",
    "AWS_",
    "AZURE_",
    "CLOUDSDK_",
    "GOOGLE_",
    "RCLONE_",
    "SLURM_",
    "STORAGE_EMULATOR_",
)
_FOREIGN = (
    "COLUMNS",  # GNU readline, which pytest imports, sets it for the workers
    "LINES",
    "BOTO_CONFIG",
    "GCLOUD_PROJECT",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "RANK",
    "RUN_NAME",
    "WORLD_SIZE",
)
_NUMBERS = itertools.count(1)
_INSTALLING_FIXTURES = {"az", "localstack_s3"}
_INSTALL_TIMEOUT_S = 600


class Cloud:
    """A server as the tests see it."""

    def __init__(self, server: servers.Server, *, proxy: FaultProxy | None = None) -> None:
        self.server = server
        self._proxy = proxy
        self._shared_bucket = ""

    @property
    def proxy(self) -> FaultProxy:
        """The line that fails, of one made by ``fault_proxy``."""
        assert self._proxy is not None, "only what fault_proxy() returned has a proxy"
        return self._proxy

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        return self._through_proxy(self.server.endpoint_url)

    @property
    def storage_options(self) -> dict[str, str]:
        """What ``open_store`` needs beside the URL; a fresh dict."""
        return {name: self._through_proxy(value) for name, value in self.server.storage_options.items()}

    @property
    def environment(self) -> dict[str, str]:
        """What a user would export; for ``env={**os.environ, **s3.environment}``."""
        return {name: self._through_proxy(value) for name, value in self.server.environment.items()}

    def fresh_url(self) -> str:
        """Return the URL of an empty prefix that nobody else uses, in a bucket that exists.

        The bucket is shared by the session, as a bucket's first put costs 0.2 s.
        """
        self.server.check()
        if not self._shared_bucket:
            self._shared_bucket = self.server.make_bucket("artifactsync-tests")
        return f"{self._shared_bucket}/t{next(_NUMBERS)}"

    def fresh_bucket(self) -> str:
        """Return the URL of a new empty bucket, for tests of the bucket itself."""
        self.server.check()
        return self.server.make_bucket(f"artifactsync-b{next(_NUMBERS)}")

    def missing_bucket(self) -> str:
        """Return the URL of a bucket that does not exist."""
        return f"{self.server.scheme}://artifactsync-no-such-bucket-{next(_NUMBERS)}"

    def _through_proxy(self, text: str) -> str:
        return text.replace(self.server.origin, self._proxy.url) if self._proxy else text


def pytest_configure(config: pytest.Config) -> None:
    """Take the user's clouds out of the environment before any test module is imported."""
    # Started in the background by a shell, we would ignore Ctrl-C, and so would every process that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise under nohup
    empty = Path(tempfile.mkdtemp(prefix="artifactsync-empty-"))
    config.add_cleanup(lambda: shutil.rmtree(empty, ignore_errors=True))
    for name in list(os.environ):
        if name.startswith(_FOREIGN_PREFIXES) or name in _FOREIGN:
            del os.environ[name]
    for name in ("aws-config", "aws-credentials", "rclone.conf"):
        (empty / name).touch()
    os.environ.update(
        ARTIFACTSYNC_NOTICE="off",  # the machine that runs the tests may be a cloud's
        AWS_CONFIG_FILE=str(empty / "aws-config"),
        AWS_SHARED_CREDENTIALS_FILE=str(empty / "aws-credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        CLOUDSDK_CONFIG=str(empty),
        NO_GCE_CHECK="true",
        NO_PROXY=",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost"])),
        RCLONE_CONFIG=str(empty / "rclone.conf"),
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # read at import; fake-gcs-server lacks what it asks for
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give time for the install on first use to the tests that may need one."""
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()  # for getfixturevalue(name)
        asked = {*getattr(item, "fixturenames", ()), *(name for name in parameters if isinstance(name, str))}
        if _INSTALLING_FIXTURES & asked and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_INSTALL_TIMEOUT_S))


@pytest.fixture(scope="session")
def s3() -> Iterator[Cloud]:
    with servers.SeaweedFS() as server:
        yield Cloud(server)


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[Cloud]:
    with servers.Moto() as server:
        yield Cloud(server)


@pytest.fixture(scope="session")
def localstack_s3() -> Iterator[Cloud]:
    with servers.LocalStack() as server:
        yield Cloud(server)


@pytest.fixture(scope="session")
def gcs() -> Iterator[Cloud]:
    with servers.FakeGCS() as server:
        yield Cloud(server)


@pytest.fixture(scope="session")
def az() -> Iterator[Cloud]:
    with servers.Azurite() as server:
        yield Cloud(server)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., Cloud]]:
    """A factory: ``fault_proxy(s3, seed=1)`` returns the same cloud behind its own ``.proxy``."""
    with contextlib.ExitStack() as proxies:

        def put_before(cloud: Cloud, *, seed: int = 0) -> Cloud:
            proxy = FaultProxy(cloud.server.origin, seed=seed)
            proxies.callback(proxy.close)
            return Cloud(cloud.server, proxy=proxy)

        yield put_before
