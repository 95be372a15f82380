"""Small metadata servers that keep to the clouds' documented protocols: what is asked wrongly is refused as they do.

Sources (2026-11-22): as in artifactsync/batch/notice_sources.py. They are honest stand-ins, not the clouds' own.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class MetadataStandIn:
    """One server on a free loopback port; ``requests`` lists what was asked, as "METHOD path status"."""

    def __init__(self):
        self.changed = threading.Condition()
        self.requests = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                stand_in._answer(self, "GET")

            def do_PUT(self):
                stand_in._answer(self, "PUT")

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def change(self, **attributes):
        with self.changed:
            for name, value in attributes.items():
                setattr(self, name, value)
            self.changed.notify_all()

    def wait_for(self, condition, timeout_s=20):
        """Until the requests so far fulfil a condition."""
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.requests), timeout_s), self.requests

    def _answer(self, handler, method):
        parts = urlsplit(handler.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        status, headers, body = self.respond(method, parts.path, query, handler.headers)
        with self.changed:  # before the answer, so that the order is that of the asking
            self.requests.append(f"{method} {parts.path} {status}")
            self.changed.notify_all()
        try:
            handler.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body.encode())
        except OSError:
            pass  # the client has gone


class EC2(MetadataStandIn):
    """IMDSv2: without a valid token 401; a PUT for one needs a TTL from 1 to 21,600 s and no X-Forwarded-For."""

    action = None
    tokens = frozenset()

    def respond(self, method, path, query, headers):
        if method == "PUT":
            return self._respond_with_token(path, headers)
        if headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, {}, "Unauthorized"
        if path != "/latest/meta-data/spot/instance-action" or self.action is None:
            return 404, {}, "Not Found"
        return 200, {"Content-Type": "text/plain"}, self.action

    def _respond_with_token(self, path, headers):
        ttl = headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if path != "/latest/api/token":
            return 405, {}, ""
        if "X-Forwarded-For" in headers:
            return 403, {}, ""
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return 400, {}, ""
        token = f"AQAEA{time.monotonic_ns()}=="
        self.tokens |= {token}
        return 200, {"X-aws-ec2-metadata-token-ttl-seconds": ttl, "Content-Type": "text/plain"}, token


class ComputeEngine(MetadataStandIn):
    """403 without Metadata-Flavor; wait_for_change waits until the value's ETag is another, or timeout_sec is over."""

    preempted = False

    def respond(self, method, path, query, headers):
        flavor = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM", "Content-Type": "application/text"}
        if headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in headers:
            return 403, flavor, "Forbidden"
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, flavor, "Not Found"
        with self.changed:
            if query.get("wait_for_change") == "true":
                self.requests.append("waiting")
                self.changed.notify_all()
                known = query.get("last_etag", self._etag())
                self.changed.wait_for(lambda: self._etag() != known, float(query.get("timeout_sec", "30")))
            return 200, {**flavor, "ETag": self._etag()}, "TRUE" if self.preempted else "FALSE"

    def _etag(self):
        return "c5b3d1a09e7f4421" if self.preempted else "0a1b2c3d4e5f6071"


class Azure(MetadataStandIn):
    """400 without "Metadata: true" or with a proxy's header, and without an api-version."""

    name = "vm-a"
    events = ()

    def respond(self, method, path, query, headers):
        if headers.get("Metadata") != "true" or "X-Forwarded-For" in headers or "api-version" not in query:
            return 400, {}, json.dumps({"error": "Bad request"})
        if path == "/metadata/instance/compute/name" and query.get("format") == "text":
            return 200, {"Content-Type": "text/plain"}, self.name
        if path == "/metadata/scheduledevents":
            document = {"DocumentIncarnation": 1 + len(self.events), "Events": list(self.events)}
            return 200, {"Content-Type": "application/json"}, json.dumps(document)
        return 404, {}, ""

    @staticmethod
    def event(kind="Preempt", *, resources=("vm-a",), in_s=30.0, status="Scheduled"):
        """One event, in the form of the documentation."""
        not_before = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + in_s)) if in_s else ""
        return {
            "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": list(resources),
            "EventStatus": status,
            "NotBefore": not_before,
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
