"""A small honest fake of Google Cloud Storage's JSON API: what is documented, and what fake-gcs-server lacks.

It is no Google server, and a test on it shows only that our client is right about the documentation. It enforces
``ifGenerationMatch`` on resumable uploads when they end (and, unless told otherwise, when they start), checks CRC32C,
keeps only whole multiples of 256 KiB of a broken chunk, answers a chunk sent again, knows a finished session, says
which KMS key an object was written with, asks for tokens if it is told to, and words its 404s as Google does.

Sources, read 2026-11: https://cloud.google.com/storage/docs/json_api/v1/objects,
https://cloud.google.com/storage/docs/performing-resumable-uploads,
https://cloud.google.com/storage/docs/request-preconditions, and for the moment of the check
https://github.com/googleapis/google-cloud-java/issues/201.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

QUANTUM_BYTES = 256 * 1024


def crc32c(data):
    return base64.b64encode(google_crc32c.value(bytes(data)).to_bytes(4, "big")).decode()


class RefusedError(Exception):
    """An answer other than success."""

    def __init__(self, status, message):
        self.status = status
        self.message = message


@dataclass
class Session:
    """A resumable upload."""

    name: str
    if_generation: str | None
    kms_key: str | None
    data: bytearray = field(default_factory=bytearray)
    finished: dict | None = None


class HonestGcs(ThreadingHTTPServer):
    """The fake. One bucket, in memory; ``with HonestGcs("bucket") as server: server.endpoint_url``."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, bucket, *, checks_at_start=True, encrypts=True):
        self.bucket = bucket
        self.checks_at_start = checks_at_start
        self.encrypts = encrypts
        self.tokens = None  # those that are good now; None: all are
        self.kms_keys = {}  # of objects
        self.objects = {}  # name: (bytes, generation)
        self.sessions = {}
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint_url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def check_bucket(self, name):
        if name != self.bucket:
            raise RefusedError(404, "The specified bucket does not exist.")

    def resource(self, name):
        if name not in self.objects:
            raise RefusedError(404, f"No such object: {self.bucket}/{name}")
        data, generation = self.objects[name]
        kms_key = self.kms_keys.get(name)
        return {
            **({"kmsKeyName": f"{kms_key}/cryptoKeyVersions/1"} if kms_key and self.encrypts else {}),
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "generation": str(generation),
            "size": str(len(data)),
            "crc32c": crc32c(data),
            "etag": f"e{generation}",
            "updated": "2026-11-21T12:00:00.000Z",
        }

    def check(self, name, if_generation):
        found = self.objects[name][1] if name in self.objects else 0
        if if_generation is not None and int(if_generation) != found:
            raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")

    def publish(self, name, data, if_generation, expected_crc32c, kms_key):
        if expected_crc32c not in {None, crc32c(data)}:
            raise RefusedError(
                400, f"Provided CRC32C {expected_crc32c} doesn't match calculated CRC32C {crc32c(data)}."
            )
        with self.lock:
            self.check(name, if_generation)
            self.objects[name] = (bytes(data), next(self.numbers))
            self.kms_keys[name] = kms_key
            return self.resource(name)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body: two would wait 40 ms for each other

    def log_message(self, *args):
        pass

    def do_any(self):
        self.parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(self.parts.query, keep_blank_values=True).items()}
        wanted = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(wanted)
        if len(self.body) < wanted:  # the line broke: a session keeps what came of the chunk
            if "upload_id" in self.query:
                self.keep_part(self.server.sessions[self.query["upload_id"]])
            self.close_connection = True
            return
        try:
            self.check_token()
            self.server.check_bucket(re.match(r"(?:/upload|/download)?/storage/v1/b/([^/]+)/o", self.parts.path)[1])
            if self.parts.path.startswith("/upload/"):
                self.upload()
            else:
                self.plain()
        except RefusedError as error:
            told = {"error": {"code": error.status, "message": error.message, "errors": []}}
            self.answer(error.status, json.dumps(told).encode())

    def check_token(self):
        good = self.server.tokens
        if good is not None and self.headers.get("Authorization", "").removeprefix("Bearer ") not in good:
            raise RefusedError(401, "Invalid Credentials")

    do_GET = do_POST = do_PUT = do_DELETE = do_any  # noqa: N815 the names that http.server calls

    def answer(self, status, data=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def upload(self):
        if self.command == "PUT":
            self.put_chunk(self.server.sessions[self.query["upload_id"]])
        elif self.query["uploadType"] == "multipart":
            kind = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(kind + self.body)
            about, media = message.iter_parts()
            told = json.loads(about.get_payload(decode=True))
            boundary = message.get_boundary().encode()
            data = self.body.split(b"--" + boundary, 2)[2].split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--" + boundary)[0]
            del media
            name, condition, kms_key = told["name"], self.query.get("ifGenerationMatch"), self.query.get("kmsKeyName")
            found = self.server.publish(name, data, condition, told.get("crc32c"), kms_key)
            self.answer(200, json.dumps(found).encode())
        else:
            name = json.loads(self.body)["name"]
            session = Session(name, self.query.get("ifGenerationMatch"), self.query.get("kmsKeyName"))
            if self.server.checks_at_start:
                self.server.check(name, session.if_generation)
            number = f"secret-{next(self.server.numbers)}"
            self.server.sessions[number] = session
            place = f"http://{self.headers['Host']}{self.parts.path}?uploadType=resumable&upload_id={number}"
            self.answer(200, headers={"Location": place})

    def put_chunk(self, session):
        if session.finished is not None:
            self.answer(200, json.dumps(session.finished).encode())
            return
        start, end, total = re.match(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"]).groups()
        if start is not None:
            if int(start) > len(session.data):
                raise RefusedError(503, "a gap")
            assert int(end) - int(start) + 1 == len(self.body)
            session.data[int(start) :] = self.body
        if total != "*" and len(session.data) == int(total):
            sent = dict(part.split("=", 1) for part in self.headers.get("x-goog-hash", "").split(",") if part)
            found = self.server.publish(
                session.name, session.data, session.if_generation, sent.get("crc32c"), session.kms_key
            )
            session.finished = found
            self.answer(200, json.dumps(found).encode())
            return
        del session.data[len(session.data) // QUANTUM_BYTES * QUANTUM_BYTES :]
        self.answer(308, headers={"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {})

    def keep_part(self, session):
        start = int(re.match(r"bytes (\d+)", self.headers["Content-Range"])[1])
        session.data[start:] = self.body
        del session.data[len(session.data) // QUANTUM_BYTES * QUANTUM_BYTES :]

    def plain(self):
        server = self.server
        name = unquote(self.parts.path.split("/o/", 1)[1]) if "/o/" in self.parts.path else None
        if self.command == "GET" and name is None:
            self.list()
        elif self.command == "GET" and self.query.get("alt") == "media":
            self.media(name)
        elif self.command == "GET":
            self.answer(200, json.dumps(server.resource(name)).encode())
        elif self.command == "DELETE":
            with server.lock:
                server.resource(name)
                del server.objects[name]
            self.answer(204)
        else:
            source, target = self.parts.path.split("/o/", 1)[1].split(f"/rewriteTo/b/{server.bucket}/o/")
            server.resource(unquote(source))
            kms_key = self.query.get("destinationKmsKeyName")
            found = server.publish(unquote(target), server.objects[unquote(source)][0], None, None, kms_key)
            size = found["size"]
            told = {"done": True, "resource": found, "totalBytesRewritten": size, "objectSize": size}
            self.answer(200, json.dumps(told).encode())

    def media(self, name):
        resource = self.server.resource(name)
        data = self.server.objects[name][0]
        headers = {"X-Goog-Hash": f"crc32c={resource['crc32c']}", "X-Goog-Generation": resource["generation"]}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.answer(200, data, headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start >= len(data):
            raise RefusedError(416, "The requested range cannot be satisfied.")
        self.answer(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def list(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        first = max(self.query.get("startOffset", ""), self.query.get("pageToken", ""))
        with self.server.lock:
            names = sorted(n for n in self.server.objects if n.startswith(prefix) and n >= first)
            page = names[: min(1000, int(self.query.get("maxResults", 1000)))]
            folders, items = set(), []
            for name in page:
                inside, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
                if delimiter and slash:
                    folders.add(prefix + inside + slash)
                else:
                    items.append(self.server.resource(name))
        told = {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}
        if len(names) > len(page):
            told["nextPageToken"] = names[len(page)]
        self.answer(200, json.dumps(told).encode())
