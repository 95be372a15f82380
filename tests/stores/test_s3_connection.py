from __future__ import annotations

import pytest

from artifactsync.stores.credentials import read_s3_settings
from artifactsync.stores.s3_connection import open_s3_lanes


@pytest.mark.parametrize(
    ("endpoint_url", "is_unsigned"),
    [
        ("https://s3.example.com", True),
        ("http://s3.example.com", False),
        ("http://10.0.0.7:9000", False),
        ("http://localhost.example.com:9000", False),
        ("http://127.0.0.1.example.com:9000", False),
        ("http://127.0.0.1:9000", True),
        ("http://127.8.9.1:9000", True),
        ("http://[::1]:9000", True),
        ("http://localhost:9000", True),
    ],
)
def test_bodies_go_unsigned_only_where_nobody_is_between(endpoint_url: str, is_unsigned: bool) -> None:
    settings = read_s3_settings({"endpoint_url": endpoint_url, "key": "k", "secret": "s"}, environ={})
    lanes = open_s3_lanes("bucket", settings, None)
    for lane in (lanes.ask, lanes.create, lanes.write, lanes.read):
        assert bool(lane.config.get("unsigned_payload")) is is_unsigned
        assert lane.config["checksum_algorithm"] == "crc64nvme"
