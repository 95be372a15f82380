"""A process that has a courier, for tests that kill the one or the other: prints the courier's pid, and waits."""

from __future__ import annotations

import os
import sys
import time

from artifactsync.stores import open_store
from artifactsync.transfer.courier import begin_courier, the_courier

if __name__ == "__main__":
    store = open_store(sys.argv[1], {"key": "k", "secret": "only-in-memory"} if sys.argv[1].startswith("s3") else None)
    thread = begin_courier(store)
    assert thread is not None
    thread.join()
    if "fork" in sys.argv:
        child = os.fork()
        if child == 0:
            time.sleep(60)
        print(child, flush=True)
    print(the_courier().pid, flush=True)
    time.sleep(60)
