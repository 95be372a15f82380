"""Signed requests without a cloud library: just enough of S3 and Azure Blob to make a bucket.

Owns: Signature Version 4 and Azure's Shared Key for requests without a body. Does not own: servers, or
anything a user's program needs: that goes through the clouds' own libraries.

Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html and
https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key (November 2026).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import urllib.error
import urllib.request
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S = 20.0
_AZURE_VERSION = "2021-12-02"


def send(method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> int:
    """Send one request straight to the server, past any proxy, and return the answer's status.

    Raises:
        OSError: The server cannot be reached.
    """
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))  # noqa: S310 - http
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def sign_s3(method: str, url: str, *, key: str, secret: str, region: str) -> dict[str, str]:
    """Return the headers of an S3 request that has neither a body nor a query."""
    parts = urlsplit(url)
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    signed = {"host": parts.netloc, "x-amz-content-sha256": empty, "x-amz-date": moment}
    names = ";".join(signed)
    canonical = "\n".join(
        [method, parts.path or "/", "", *(f"{name}:{value}" for name, value in signed.items()), "", names, empty]
    )
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signing_key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        signing_key = _hmac(signing_key, part)
    signature = _hmac(signing_key, text).hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {"X-Amz-Date": moment, "X-Amz-Content-Sha256": empty, "Authorization": authorization}


def sign_azure_container(url: str, *, account: str, key: str) -> dict[str, str]:
    """Return the headers of a ``PUT <container>?restype=container``."""
    date = datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    resource = f"/{account}{urlsplit(url).path}\nrestype:container"
    text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{_AZURE_VERSION}\n{resource}"
    signature = base64.b64encode(_hmac(base64.b64decode(key), text)).decode()
    authorization = f"SharedKey {account}:{signature}"
    return {"x-ms-date": date, "x-ms-version": _AZURE_VERSION, "Authorization": authorization, "Content-Length": "0"}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
