"""The rights to list and to get are enough: a SeaweedFS that refuses everything else to these credentials."""

from __future__ import annotations

import json

import boto3
import pytest
import servers
from botocore.exceptions import ClientError

from artifactsync.stores import open_store
from tests.ui.conftest import serving, train


class WithReader(servers.SeaweedFS):
    """Besides the one who may do everything there is one who may list and get."""

    def command(self):
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, key, secret, actions in (
                ("admin", servers.KEY, servers.SECRET, ["Admin"]),
                ("reader", "reader", "reader-secret", ["Read:bucket", "List:bucket"]),
            )
        ]
        (self.folder / "identities.json").write_text(json.dumps({"identities": identities}))
        return [*super().command(), f"-s3.config={self.folder / 'identities.json'}"]


def test_who_may_only_list_and_get_sees_every_page(tmp_path):
    with WithReader() as server:
        server.make_bucket("bucket")
        train("s3://bucket/runs", tmp_path, storage_options=server.storage_options)
        options = server.storage_options | {"key": "reader", "secret": "reader-secret"}
        client = boto3.client(
            "s3", endpoint_url=server.endpoint_url, aws_access_key_id="reader", aws_secret_access_key="reader-secret",
            region_name="us-east-1",
        )  # fmt: skip
        for forbidden in (client.put_object, client.delete_object):
            with pytest.raises(ClientError, match="AccessDenied"):
                forbidden(Bucket="bucket", Key="runs/r/x")
        before = [found["Key"] for found in client.list_objects_v2(Bucket="bucket")["Contents"]]
        store = open_store("s3://bucket/runs", options)
        with serving(store) as visitor:
            assert "1 run" in visitor.get("/").page.text
            row = json.loads(visitor.get("/summaries?run=r").text)["runs"]["r"]
            assert (row["state"], row["texts"]["last_step"]) == ("completed", "2")
            answer = visitor.get("/runs/r")
            assert 'class="trouble"' not in answer.text
            assert "artifactsync --remote s3://bucket/runs pull r" in answer.page.text
            assert "from logs-rank0.txt" in answer.page.text
            for form in ({}, {"deep": "1"}):
                assert "Verified: 2 files, 1.95 KiB" in visitor.verified("r", **form)
        store.close()
        assert [found["Key"] for found in client.list_objects_v2(Bucket="bucket")["Contents"]] == before
        stranger = open_store("s3://bucket/runs", options | {"secret": "wrong"})
        with serving(stranger) as visitor:
            for place in ("/", "/runs/r"):
                answer = visitor.get(place)
                assert answer.status == 502
                assert "wrong" not in answer.text
                assert 'class="hint"' in answer.text
        stranger.close()
