"""One upload to S3 in parts by boto3, for what obstore cannot do: a condition on its end, an encryption context.

Owns: the parts of this one upload, some of them at a time, and its abortion. Does not own: what errors mean
(``object_errors``), which uploads go this way (``s3``).
"""

from __future__ import annotations

import contextlib
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from artifactsync.errors import UnknownOutcomeError
from artifactsync.stores.object import exact_chunks, part_size_bytes
from artifactsync.stores.protocol import Body, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

_PARTS_AT_A_TIME = 4  # the latency of one is another's sending; so many are in memory


def upload_in_parts(
    client: Any,
    where: Mapping[str, str],
    body: Body,
    *,
    errors: Callable[..., AbstractContextManager[None]],
    encryption: Mapping[str, Any],
    is_create: bool,
) -> ObjectInfo:
    """Upload in parts.

    Args:
        client: Of boto3.
        where: Bucket and Key.
        body: What is sent.
        errors: Goes around each use of the client.
        encryption: Further arguments of the upload's beginning.
        is_create: The completion fails if the key exists.
    """
    key = where["Key"]
    with errors(key):
        upload = {**where, "UploadId": client.create_multipart_upload(**where, **encryption)["UploadId"]}
    condition = {"IfNoneMatch": "*"} if is_create else {}
    try:
        with errors(key):
            parts = _send_parts(client, upload, body)
        with errors(key, is_create=is_create):
            done = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
    except UnknownOutcomeError:
        raise  # it may be complete: nothing is cleaned up
    except BaseException:
        with contextlib.suppress(Exception):  # what broke the upload is the error to show
            client.abort_multipart_upload(**upload)
        raise
    return ObjectInfo(key=key, size_bytes=body.size_bytes, etag=done.get("ETag"))


def _send_parts(client: Any, upload: Mapping[str, str], body: Body) -> list[dict[str, Any]]:
    """Send all parts; when it returns or raises, none is on its way any more."""

    def send(number: int, chunk: bytes) -> dict[str, Any]:
        sent = client.upload_part(**upload, PartNumber=number, Body=io.BytesIO(chunk))
        return {"PartNumber": number, "ETag": sent["ETag"]}

    parts: list[dict[str, Any]] = []
    under_way: deque[Future[dict[str, Any]]] = deque()
    with ThreadPoolExecutor(_PARTS_AT_A_TIME, "artifactsync-parts") as threads:
        for number, chunk in enumerate(exact_chunks(body, part_size_bytes(body.size_bytes)), start=1):
            if len(under_way) == _PARTS_AT_A_TIME:
                parts.append(under_way.popleft().result())
            try:
                under_way.append(threads.submit(send, number, chunk))
            except RuntimeError:  # the interpreter is ending and starts no more threads
                parts += [each.result() for each in under_way]
                under_way.clear()
                parts.append(send(number, chunk))
        parts += [each.result() for each in under_way]
    return parts
