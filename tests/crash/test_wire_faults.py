"""Thousands of operations over a line that fails a third of all requests: nothing is lost, nobody is pestered.

Each worker has a line of its own, so that the record of the line says, request by request, what was asked again and
when. The long form is ``make crash``.
"""

from __future__ import annotations

import bisect
import hashlib
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from artifactsync.errors import AlreadyExistsError, ObjectNotFoundError
from artifactsync.stores import BytesBody, RetryPolicy, create_once, open_store
from artifactsync.stores.object import PART_BYTES
from artifactsync.stores.object_errors import THROTTLED_PAUSE_S
from tests.fault_proxy import Answer, LoseAnswer, ResetDownload, ResetUpload, Truncate

_PATIENT = RetryPolicy(max_attempts=1000, deadline_s=300, base_delay_s=0.01, max_delay_s=0.1, unanswered_deadline_s=300)
_WORKERS = 12


def spoil(line):
    """20 % 5xx and 429, half of them with a wish, 5 % resets, 5 % truncated answers, 5 % lost answers."""
    for status, wish_s, share in (
        (500, None, 0.05),
        (502, None, 0.05),
        (503, 1, 0.04),
        (429, 1, 0.04),
        (503, 2, 0.01),
        (429, 3, 0.01),
    ):
        line.add(Answer(status, retry_after_s=wish_s), probability=share)
    line.add(ResetUpload(0), probability=0.025)
    line.add(ResetDownload(0), probability=0.025)
    line.add(Truncate(3), probability=0.05)
    line.add(LoseAnswer(), probability=0.05)


class Worker:
    """Does operations in its own folder, and knows what must be there."""

    def __init__(self, line, number, *, seed):
        self.line = line
        self.url = line.fresh_url()
        self.store = open_store(self.url, line.storage_options, retry=_PATIENT)
        self.chance = random.Random(seed * 1000 + number)
        self.model = {}
        self.done = Counter()
        self.next_key = 0
        self.ended_at_s = []
        spoil(line.proxy)

    def fresh_key(self):
        self.next_key += 1
        return f"folder{self.next_key % 3}/file{self.next_key}"

    def data(self):
        return self.chance.randbytes(self.chance.choice([0, 1, 10, 1000, 20_000, 200_000]))

    def work(self, count):
        while sum(self.done.values()) < count:
            names = ["put", "overwrite", "create", "create_again", "get", "range", "head", "list", "delete", "copy"]
            name = self.chance.choice(names if self.model else ["put", "create"])
            getattr(self, f"do_{name}")(self.chance.choice(sorted(self.model)) if self.model else "")
            self.done[name] += 1
            self.ended_at_s.append(time.monotonic())

    def do_put(self, _):
        key, data = self.fresh_key(), self.data()
        self.store.put(key, data)
        self.model[key] = data

    def do_overwrite(self, key):
        data = self.data()
        self.store.put(key, data)
        self.model[key] = data

    def do_create(self, _):
        key, data = self.fresh_key(), self.data() + self.chance.randbytes(16)
        create_once(self.store, key, data, policy=_PATIENT)
        self.model[key] = data

    def do_create_again(self, key):
        with pytest.raises(AlreadyExistsError):
            create_once(self.store, key, self.chance.randbytes(16), policy=_PATIENT)

    def do_get(self, key):
        assert self.store.get(key) == self.model[key]

    def do_range(self, key):
        size = len(self.model[key])
        start, end = sorted(self.chance.randrange(size + 2) for _ in range(2))
        assert self.store.get(key, start=start, end=end) == self.model[key][start:end]

    def do_head(self, key):
        assert self.store.head(key).size_bytes == len(self.model[key])

    def do_list(self, _):
        assert {i.key: i.size_bytes for i in self.store.list()} == {k: len(d) for k, d in self.model.items()}

    def do_delete(self, key):
        self.store.delete([key])
        del self.model[key]
        with pytest.raises(ObjectNotFoundError):
            self.store.head(key)

    def do_copy(self, key):
        target = self.fresh_key()
        self.store.copy(key, target)
        self.model[target] = self.model[key]

    def check(self):
        """Everything is there, byte by byte; returns (wishes, wishes not kept, faults)."""
        self.line.proxy.heal()
        there = {info.key: hashlib.sha256(self.store.get(info.key)).hexdigest() for info in self.store.list()}
        assert there == {key: hashlib.sha256(data).hexdigest() for key, data in self.model.items()}
        return wishes_of(self.line.proxy, self.ended_at_s)


def wishes_of(proxy, ended_at_s):
    """How many answers asked for a pause, how many of these were followed too early, how many requests failed.

    A retry is the same request again within the same operation: a create that is refused with a wish, and whose key
    turns out to hold other bytes, has ended, and the overwriting of that key which comes next is another request.
    """
    requests = proxy.seen()
    wishes = early = 0
    waiting = {}
    for request in requests:
        what = (bisect.bisect(ended_at_s, request.at_s), request.method, request.path, request.query)
        not_before_s = waiting.pop(what, None)
        if not_before_s is not None and request.at_s < not_before_s:
            early += 1
        asked_s = [f.retry_after_s for f in request.faults if isinstance(f, Answer) and f.retry_after_s]
        first = next((f for f in request.faults if isinstance(f, Answer)), None)
        if asked_s and first is not None and first.retry_after_s and request.status == first.status:
            wishes += 1
            waiting[what] = request.at_s + first.retry_after_s
    return wishes, early, sum(bool(request.faults) for request in requests), len(requests)


def storm(cloud, fault_proxy, count, *, seed, crew=_WORKERS):
    began_s = time.monotonic()
    workers = [Worker(fault_proxy(cloud, seed=seed * 100 + n), n, seed=seed) for n in range(crew)]
    with ThreadPoolExecutor(crew) as threads:
        list(threads.map(lambda worker: worker.work(-(-count // crew)), workers))
        found = list(threads.map(lambda worker: worker.check(), workers))
    for worker in workers:
        worker.store.close()
    wishes, early, faulty, requests = (sum(column) for column in zip(*found, strict=True))
    operations = sum(sum(worker.done.values()) for worker in workers)
    files = sum(len(worker.model) for worker in workers)
    print(
        f"\nwire faults, {cloud.server.scheme}: {operations} operations, {requests} requests, {faulty} of them failed; "
        f"{files} files identical at the end; Retry-After given {wishes} times, {early} not honoured; "
        f"{time.monotonic() - began_s:.0f} s"
    )
    assert wishes > count // 50
    assert early == 0
    assert operations >= count


@pytest.mark.parametrize("server", ["s3", "gcs"])
def test_a_storm(server, request, fault_proxy):
    storm(request.getfixturevalue(server), fault_proxy, 120, seed=1)


@pytest.mark.crash
@pytest.mark.parametrize("server", ["s3", "gcs"])
def test_a_long_storm(server, request, fault_proxy):
    storm(request.getfixturevalue(server), fault_proxy, 10_000, seed=2, crew=40)


def test_a_refused_part_waits_the_longest_usual_wish(s3, fault_proxy):
    line = fault_proxy(s3)
    store = open_store(line.fresh_url(), line.storage_options)
    line.proxy.add(Answer(503, retry_after_s=3), contains="partNumber=2", times=1)
    data = random.Random(0).randbytes(PART_BYTES + 100)
    store.put("large", BytesBody(data))
    first, second = line.proxy.seen(contains="partNumber=2")
    assert second.at_s - first.at_s >= THROTTLED_PAUSE_S > 3
    assert store.get("large") == data


def test_the_wish_is_kept_for_a_create_whose_answer_says_nothing(s3, fault_proxy):
    line = fault_proxy(s3)
    store = open_store(line.fresh_url(), line.storage_options)
    line.proxy.add(Answer(503, retry_after_s=2), method="PUT", times=1)
    create_once(store, "record", b"bytes of ours")
    first, second = line.proxy.seen(method="PUT")
    assert second.at_s - first.at_s >= 2
