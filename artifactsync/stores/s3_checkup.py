"""What a checkup asks of S3 alone: region, uploads in parts, the rule that cleans up after them.

Owns: these findings. Does not own: what is tried on any store (``checkup``).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError, ObjectNotFoundError, PermissionDeniedError
from artifactsync.stores.checkup import Finding, failed

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_RULE_HINT = (
    "add one with AbortIncompleteMultipartUpload after 7 days (aws s3api put-bucket-lifecycle-configuration)"
)


def examine_s3(store: Any, prefix: str) -> Iterator[Finding]:
    """Look at a bucket. ``store`` is an ``S3ObjectStore``; scratch keys begin with ``prefix``."""
    yield _region(store)
    yield _multipart(store, f"{prefix}parts")
    yield _lifecycle(store)


def _region(store: Any) -> Finding:
    configured = store._settings.region  # noqa: SLF001 - of this room
    try:
        with store._boto_errors(""):  # noqa: SLF001
            answer = store._boto().head_bucket(Bucket=store._bucket)  # noqa: SLF001
    except ArtifactSyncError as error:
        return failed("region", error)
    actual = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", "")
    if actual and actual != configured:
        return Finding(
            check="region",
            verdict="warn",
            message=f"the bucket is in {actual}, and requests are signed for {configured}",
            hint=f"set AWS_REGION={actual}",
        )
    return Finding(check="region", verdict="ok", message=actual or f"{configured} (the service does not say its own)")


def _multipart(store: Any, key: str) -> Finding:
    """Send one upload in parts, and give another one up."""
    client, where = store._boto(), {"Bucket": store._bucket, "Key": key}  # noqa: SLF001
    encryption = store._settings.encryption_arguments  # noqa: SLF001
    try:
        with store._boto_errors(key):  # noqa: SLF001
            upload = {**where, "UploadId": client.create_multipart_upload(**where, **encryption)["UploadId"]}
            part = client.upload_part(**upload, PartNumber=1, Body=b"artifactsync doctor\n")
            parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        with store._boto_errors(key):  # noqa: SLF001
            given_up = {**where, "UploadId": client.create_multipart_upload(**where, **encryption)["UploadId"]}
            client.abort_multipart_upload(**given_up)
    except ArtifactSyncError as error:
        return failed("multipart", error)
    finally:
        with contextlib.suppress(ArtifactSyncError):
            store.delete([key])
    return Finding(check="multipart", verdict="ok", message="large files may be sent in parts, and given up")


def _lifecycle(store: Any) -> Finding:
    """Whether the bucket itself gives unfinished uploads up."""
    try:
        with store._boto_errors(""):  # noqa: SLF001
            answer = store._boto().get_bucket_lifecycle_configuration(Bucket=store._bucket)  # noqa: SLF001
    except PermissionDeniedError:
        return Finding(check="lifecycle", verdict="warn", message="these credentials may not see lifecycle rules")
    except ObjectNotFoundError:
        answer = {}
    except ArtifactSyncError as error:
        if "NoSuchLifecycle" not in error.message:
            return Finding(
                check="lifecycle", verdict="warn", message=error.message, hint=_NO_RULE_HINT, kind=error.kind
            )
        answer = {}
    rules = [rule for rule in answer.get("Rules", ()) if rule.get("Status") == "Enabled"]
    if any("AbortIncompleteMultipartUpload" in rule for rule in rules):
        return Finding(check="lifecycle", verdict="ok", message="the bucket gives unfinished uploads up by itself")
    return Finding(
        check="lifecycle",
        verdict="warn",
        message="no lifecycle rule gives unfinished uploads up",
        hint=_NO_RULE_HINT,
    )
