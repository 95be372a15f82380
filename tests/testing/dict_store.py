"""The plainest store there can be: what the contract and the faults are tested with."""

from __future__ import annotations

import threading
from datetime import datetime, timezone

from artifactsync.errors import AlreadyExistsError, ObjectNotFoundError
from artifactsync.stores.protocol import BytesBody, ObjectInfo


class DictStore:
    """Objects in a dict. Correct; the broken ones derive from it."""

    url = "dict://root"
    ordered_listing = True

    def __init__(self):
        self.objects = {}
        self.lock = threading.RLock()

    def get(self, key, *, start=0, end=None):
        with self.lock:
            self.head(key)
            return self.objects[key][start:end]

    def put(self, key, body):
        data = b"".join((BytesBody(body) if isinstance(body, bytes) else body).chunks(2**20))
        with self.lock:
            self.objects[key] = data
            return self.head(key)

    def put_if_absent(self, key, body):
        data = b"".join((BytesBody(body) if isinstance(body, bytes) else body).chunks(2**20))
        with self.lock:
            if key in self.objects:
                raise AlreadyExistsError(f"{key} exists", url=f"{self.url}/{key}")
            self.objects[key] = data
            return self.head(key)

    def head(self, key):
        with self.lock:
            if key not in self.objects:
                raise ObjectNotFoundError(f"no object {key}", url=f"{self.url}/{key}")
            now = datetime.now(timezone.utc)
            return ObjectInfo(key=key, size_bytes=len(self.objects[key]), modified_at=now)

    def list(self, prefix="", *, start_after=""):
        with self.lock:
            infos = [self.head(k) for k in sorted(self.objects) if k.startswith(prefix) and k > start_after]
        return iter(infos)

    def list_folders(self, prefix=""):
        with self.lock:
            rest = [k[len(prefix) :] for k in self.objects if k.startswith(prefix)]
        return sorted({r.split("/")[0] for r in rest if "/" in r})

    def delete(self, keys):
        with self.lock:
            for key in keys:
                self.objects.pop(key, None)

    def copy(self, source, target):
        with self.lock:
            return self.put(target, self.get(source))

    def close(self):
        pass
