from __future__ import annotations

import datetime as dt
import time
from typing import Any
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from artifactsync.stores.s3_signature import sign

MOMENT = dt.datetime(2026, 11, 21, 23, 59, 58, tzinfo=dt.timezone.utc)
HASH = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(
    key=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30),
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE"]),
    more=st.dictionaries(
        st.sampled_from(["Range", "If-None-Match", "x-amz-checksum-sha256", "x-amz-copy-source"]),
        st.text("abcXYZ019 =*-/+%", min_size=1, max_size=20),
    ),
    token=st.none() | st.text("abc+/=", min_size=1, max_size=20),
    region=st.sampled_from(["us-east-1", "eu-central-1"]),
    host=st.sampled_from(["bucket.s3.us-east-1.amazonaws.com", "127.0.0.1:9000", "[::1]:9000"]),
)
def test_it_is_botocores_signature(
    key: str, method: str, more: dict[str, str], token: str | None, region: str, host: str
) -> None:
    path = "/bucket/" + quote(key, safe="/~")
    theirs = _botocores(method, f"http://{host}{path}", more, token, region)
    keys = {"access_key_id": "AKID", "secret_access_key": "se/cret+", "token": token}
    ours = sign(
        method, path, {"Host": host, **more}, keys=keys, region=region, body_sha256=HASH, at=MOMENT.utctimetuple()
    )
    assert ours["Authorization"] == theirs["Authorization"]
    assert ours.get("X-Amz-Security-Token") == theirs.get("X-Amz-Security-Token")
    assert ours["X-Amz-Date"] == theirs["X-Amz-Date"]


def _botocores(method: str, url: str, more: dict[str, str], token: str | None, region: str) -> Any:
    request = AWSRequest(method=method, url=url, headers=more)
    signer = botocore.auth.S3SigV4Auth(ReadOnlyCredentials("AKID", "se/cret+", token), "s3", region)
    signer.payload = lambda _: HASH
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: MOMENT.replace(tzinfo=None))
        signer.add_auth(request)
    return request.headers


def test_the_time_is_now_unless_given() -> None:
    signed = sign("GET", "/", {"Host": "h"}, keys={"access_key_id": "a", "secret_access_key": "b"}, region="r",
                  body_sha256=HASH)  # fmt: skip
    at = dt.datetime.strptime(signed["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.timezone.utc)
    assert abs(at.timestamp() - time.time()) < 60
