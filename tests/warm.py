"""The one fork server of a test process: children that begin with everything imported, torch too.

Importing torch or a cloud's library costs more than most of these children do. Python has one fork server for a
process, and what it imports is what was asked for before its first child: hence one list for all tests.
"""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

_PRELOADED = (
    "pytest",  # what a child imports as its __main__
    "tests.crash.victim",
    "artifactsync.stores.s3",
    "artifactsync.stores.gcs",
    "artifactsync.stores.memory",
    "boto3",
    "google.cloud.storage",
    "obstore.store",
    "fsspec",
    "tests.training.digits",
    "tests.distributed.plain_loop",
    "tests.distributed.ddp_digits",
    "tests.distributed.files_loop",
    "tests.distributed.fsdp_digits",
    "artifactsync.checkpoint.together",
    "artifactsync.checkpoint.resume_together",
    "torch.distributed.fsdp",
    "tests.examples.programs",
)


def warm_context() -> ForkServerContext:
    """The context whose processes are forked from that server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context
