"""The store contract, on every store and every adapter, against real servers on loopback."""

from __future__ import annotations

import uuid
import zlib

import pytest
import servers
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from artifactsync.stores import LimitStore, PrefixStore, RetryPolicy, RetryStore, open_store
from artifactsync.stores.generic import GenericStore
from artifactsync.stores.local import LocalStore
from artifactsync.testing import FakeClock, Fault, FaultyStore, StoreContract
from artifactsync.testing.fault_plan import OPERATIONS
from tests.testing.dict_store import DictStore


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self):
        return open_store(f"memory://{uuid.uuid4().hex}")


class TestLocal(StoreContract):
    has_nested_keys = False

    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "remote")


class CloudContract(StoreContract):
    """A store that ``open_store`` makes of a cloud's URL and options."""

    @pytest.fixture
    def store(self, cloud):
        store = open_store(cloud.fresh_url(), cloud.storage_options)
        yield store
        store.close()


class TestSeaweedFS(CloudContract):
    secrets = (servers.SECRET,)

    @pytest.fixture
    def cloud(self, s3):
        return s3


class TestMoto(CloudContract):
    many_keys = 101  # it is slow

    @pytest.fixture
    def cloud(self, moto_s3):
        return moto_s3


class TestLocalStack(CloudContract):
    many_keys = 101  # it is slow

    @pytest.fixture
    def cloud(self, localstack_s3):
        return localstack_s3


class TestAzurite(CloudContract):
    secrets = (servers.AZURE_KEY,)
    many_keys = 101  # it is slow

    @pytest.fixture
    def cloud(self, az):
        return az


class TestGcs(CloudContract):
    """fake-gcs-server. It forgets preconditions of resumable uploads (> 8 MiB); test_gcs has what it cannot show."""

    create_once_bytes = 8 * 2**20

    @pytest.fixture
    def cloud(self, gcs):
        return gcs


class TestPrefix(StoreContract):
    @pytest.fixture
    def store(self):
        return PrefixStore(DictStore(), "deep/er")


class TestRetry(StoreContract):
    @pytest.fixture
    def store(self):
        return RetryStore(DictStore())


class TestLimit(StoreContract):
    @pytest.fixture
    def store(self):
        return LimitStore(DictStore(), bytes_per_s=1e9, max_concurrency=2)


class TestFaulty(StoreContract):
    """With no faults, it is the store below."""

    @pytest.fixture
    def store(self):
        return FaultyStore(DictStore())


class TestRetryOverFaults(StoreContract):
    """With 30 % of the idempotent calls failing, before or after they were applied, nobody notices."""

    @pytest.fixture
    def store(self, request):
        idempotent = set(OPERATIONS) - {"put_if_absent"}  # never sent again: create_once reads back
        faults = [
            Fault(kind="transient", operations=idempotent, probability=0.15, retry_after_s=0.5),
            Fault(kind="lost-response", operations=idempotent, probability=0.15),
        ]
        clock = FakeClock()
        faulty = FaultyStore(DictStore(), faults, seed=zlib.crc32(request.node.name.encode()))
        policy = RetryPolicy(max_attempts=50, deadline_s=1e6)
        yield RetryStore(faulty, policy, sleep=clock.sleep, clock=clock.monotonic)
        if faulty.calls.total() > 50:
            assert faulty.faults_hit


class TestEverythingStacked(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return PrefixStore(RetryStore(LimitStore(FaultyStore(LocalStore(tmp_path)), bytes_per_s=1e9)), "a/b")

    has_nested_keys = False


class TestGenericLocal(StoreContract):
    has_nested_keys = False

    @pytest.fixture
    def store(self, tmp_path):
        return GenericStore(LocalFileSystem(), str(tmp_path / "remote"))


class TestGenericMemory(StoreContract):
    has_put_if_absent = False  # MemoryFileSystem looks first and writes then
    has_nested_keys = False

    @pytest.fixture
    def store(self):
        return GenericStore(MemoryFileSystem(global_store=False, skip_instance_cache=True), "/remote")


class TestGenericDir(StoreContract):
    has_nested_keys = False

    @pytest.fixture
    def store(self, tmp_path):
        return GenericStore(DirFileSystem(str(tmp_path), LocalFileSystem()), "remote")


class TestGenericS3fs(StoreContract):
    many_keys = 101  # it is slow
    secrets = (servers.SECRET,)

    @pytest.fixture
    def store(self, s3):
        options = s3.storage_options
        options["client_kwargs"] = {"region_name": options.pop("region")}
        return GenericStore(s3.fresh_url(), storage_options=options)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs sends up to 5 MiB that way
class TestGenericGcsfs(StoreContract):
    many_keys = 101  # it is slow
    create_once_bytes = 4 * 2**20

    @pytest.fixture
    def store(self, gcs):
        return GenericStore(gcs.fresh_url(), storage_options=gcs.storage_options)
