from __future__ import annotations

import http.client
import json
import logging
import os
import queue
import socket
import threading
import time
from pathlib import Path

import pytest

from artifactsync.batch import job_env, watch_for_notice
from artifactsync.batch.metadata_server import MetadataServer, MetadataUnavailableError
from artifactsync.batch.notice import NoticeWatch
from artifactsync.batch.notice_sources import (
    AzureScheduledEvents,
    GcePreempted,
    Notice,
    SpotInstanceAction,
    notice_source,
)
from artifactsync.errors import ConfigurationError
from tests.batch.metadata_servers import EC2, Azure, ComputeEngine


def _action(in_s=120.0, action="terminate"):
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_s))
    return json.dumps({"action": action, "time": when})


def _status(server, method, path, **headers):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_the_stand_ins_refuse_what_the_clouds_refuse():
    with EC2() as ec2, ComputeEngine() as gce, Azure() as azure:
        assert _status(ec2, "GET", "/latest/meta-data/spot/instance-action") == 401  # version 1
        assert _status(ec2, "PUT", "/latest/api/token") == 400
        assert _status(gce, "GET", "/computeMetadata/v1/instance/preempted") == 403
        assert _status(azure, "GET", "/metadata/scheduledevents?api-version=2020-07-01") == 400
        assert _status(azure, "GET", "/metadata/scheduledevents", Metadata="true") == 400


def test_ec2_says_it_two_minutes_ahead():
    with EC2() as server:
        source = SpotInstanceAction(server.url)
        assert source.ask() is None
        server.action = _action()
        notice = source.ask()
        assert notice.reason == "EC2 will terminate this spot instance"
        assert 115 < notice.ends_at_unix_s - time.time() <= 120
    assert [line.split()[0] for line in server.requests] == ["PUT", "GET", "GET"]  # one token for both


def test_ec2_gets_a_new_token_when_the_old_one_has_expired():
    with EC2() as server:
        source = SpotInstanceAction(server.url)
        assert source.ask() is None
        server.tokens = frozenset()
        server.action = _action(action="stop")
        assert source.ask().reason == "EC2 will stop this spot instance"
    assert [line.split()[-1] for line in server.requests] == ["200", "404", "401", "200", "200"]


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"action":"stop"}', '{"action":"stop","time":"soon"}', "<html>"])
def test_an_answer_that_makes_no_sense_is_no_notice(said):
    with EC2() as server:
        server.action = said
        assert SpotInstanceAction(server.url).ask() is None


def test_compute_engine_answers_the_moment_it_changes():
    told = queue.Queue()
    with ComputeEngine() as server:
        with NoticeWatch(GcePreempted(server.url), lambda *notice: told.put(notice)):
            server.wait_for(lambda requests: "waiting" in requests)
            changed_at = time.monotonic()
            server.change(preempted=True)
            reason, grace_s = told.get(timeout=20)
            assert time.monotonic() - changed_at < 5
        assert reason == "Compute Engine preempts this instance"
        assert 25 < grace_s <= 30


def test_something_else_at_that_address_is_not_compute_engine():
    with EC2() as server, pytest.raises(MetadataUnavailableError):
        GcePreempted(server.url).ask()


def test_a_change_between_two_questions_is_not_missed():
    with ComputeEngine() as server:
        source = GcePreempted(server.url)
        assert source.ask() is None
        server.change(preempted=True)
        assert source.ask() is not None  # at once, as the ETag is another


def test_azure_events_of_this_machine_that_end_it():
    with Azure() as server:
        source = AzureScheduledEvents(server.url)
        assert source.ask() is None
        for harmless in (
            Azure.event(resources=["vm-b"]),
            Azure.event("Freeze"),
            Azure.event(status="Completed"),
            {"EventType": "Preempt"},
        ):
            server.events = (harmless,)
            assert source.ask() is None, harmless
        server.events = (Azure.event("Reboot", in_s=900), Azure.event(in_s=30))
        notice = source.ask()
        assert notice.reason == "Azure announces Preempt"
        assert 25 < notice.ends_at_unix_s - time.time() <= 30
        server.events = (Azure.event("Terminate", in_s=0, status="Started"),)
        assert 25 < source.ask().ends_at_unix_s - time.time() <= 30


class _Announced:
    """A source with a fixed notice."""

    cloud, interval_s = "aws", 0.01

    def __init__(self, ends_at_unix_s):
        self.notice, self.asked = Notice(reason="it goes", ends_at_unix_s=ends_at_unix_s), 0

    def ask(self):
        self.asked += 1
        return self.notice

    def close(self):
        pass


def test_an_event_far_ahead_is_told_in_time_and_not_before():
    told = queue.Queue()
    with NoticeWatch(_Announced(time.time() + 3), lambda *notice: told.put(notice), lead_s=2) as watch:
        assert told.empty()
        reason, grace_s = told.get(timeout=20)
        watch._thread.join(20)
        assert not watch.is_watching
    assert (reason, told.empty()) == ("it goes", True)
    assert 0.5 < grace_s <= 2


def test_it_is_told_once_and_what_the_callback_raises_stays_there(caplog):
    calls = []

    def fail(reason, grace_s):
        calls.append(reason)
        raise RuntimeError("of the user's")

    with caplog.at_level(logging.WARNING), NoticeWatch(_Announced(time.time()), fail) as watch:
        watch._thread.join(20)
    assert calls == ["it goes"]
    assert "the callback for a preemption notice failed" in caplog.text


def test_the_callback_may_close_the_watch():
    closed, watches = threading.Event(), queue.Queue()

    def close(reason, grace_s):
        watches.get(timeout=20).close()
        closed.set()

    watch = NoticeWatch(_Announced(time.time()), close)
    watches.put(watch)
    assert closed.wait(20)


def test_closing_breaks_off_what_waits_and_nothing_is_told_after_it():
    told = queue.Queue()
    with ComputeEngine() as server:
        watch = NoticeWatch(GcePreempted(server.url), lambda *notice: told.put(notice))
        server.wait_for(lambda requests: "waiting" in requests)
        began = time.monotonic()
        watch.close()
        watch.close()
        assert time.monotonic() - began < 1.5  # of 60 that it would have waited
        assert not watch.is_watching
        server.change(preempted=True)
    assert told.empty()


def test_a_server_that_is_not_there_or_silent_does_no_harm(caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent, caplog.at_level(logging.WARNING):
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(MetadataUnavailableError):
            SpotInstanceAction(address).ask()
        assert time.monotonic() - began < 5
        with NoticeWatch(SpotInstanceAction(address), pytest.fail) as watch:
            silent.accept()[0].close()  # it was asked
            assert watch.is_watching
    with pytest.raises(MetadataUnavailableError):
        SpotInstanceAction(address).ask()
    assert not caplog.records


@pytest.mark.parametrize("body", ["", "\x00\x01", "a\r\nInjected: yes"])
def test_a_strange_token_is_never_sent(body):
    class Strange(EC2):
        def respond(self, method, path, query, headers):
            return (200, {}, body) if method == "PUT" else super().respond(method, path, query, headers)

    with Strange() as server, pytest.raises(MetadataUnavailableError):
        SpotInstanceAction(server.url).ask()
    assert [line.split()[0] for line in server.requests] == ["PUT"]


def test_a_proxy_is_never_asked(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with EC2() as server:
        assert SpotInstanceAction(server.url).ask() is None


@pytest.mark.parametrize("address", ["https://x", "ftp://x", "http://", "http://x:y", "http://x:99999", ""])
def test_an_address_that_is_none(address):
    with pytest.raises(ConfigurationError, match="no address of a metadata server"):
        MetadataServer(address)


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", EC2),
        ("GCE_METADATA_HOST", ComputeEngine),
        ("ARTIFACTSYNC_AZURE_METADATA_ENDPOINT", Azure),
    ],
)
def test_from_the_environment_to_the_callback(variable, kind, tmp_path):
    told = queue.Queue()
    with kind() as server:
        server.action, server.preempted, server.events = _action(60), True, (Azure.event(in_s=60),)
        address = server.url.removeprefix("http://") if kind is ComputeEngine else server.url
        job = job_env({variable: address}, dmi_folder=tmp_path)
        with watch_for_notice(job, lambda *notice: told.put(notice)):
            _reason, grace_s = told.get(timeout=20)
    assert 20 < grace_s <= 60


def test_on_a_machine_of_nobodys_there_is_no_thread(tmp_path):
    before = threading.active_count()
    with watch_for_notice(job_env({}, dmi_folder=tmp_path), pytest.fail) as watch:
        assert not watch.is_watching
        assert threading.active_count() == before
    assert notice_source("") is None


def test_it_costs_nothing_noticeable():
    """CPU time of this process while it watches, at EC2's own interval."""
    with EC2() as server, NoticeWatch(SpotInstanceAction(server.url), pytest.fail) as watch:
        server.wait_for(lambda requests: len(requests) >= 2)
        thread = f"/proc/self/task/{watch._thread.native_id}/stat"
        fields = Path(thread).read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        assert watch.is_watching
    assert ticks / os.sysconf("SC_CLK_TCK") < 0.2  # for the first question and its imports; the next is 5 s away
