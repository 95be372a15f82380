"""A training that saves a large state again and again, for tests that kill it, or the process that sends for it.

Every value of the state is the step, so that any mixture of two shows. Prints the step of each commit that it was
told of, and the pid of the process beside it.
"""

from __future__ import annotations

import json
import sys
import threading

import torch

from artifactsync import Run
from artifactsync.transfer.courier import the_courier

TENSORS, LENGTH = 6, 800_000


def state_of(step: int) -> dict[str, torch.Tensor]:
    return {str(number): torch.full((LENGTH,), float(step)) for number in range(TENSORS)}


def main(remote: str, options: str, folder: str) -> None:
    run = Run("large", remote=remote, storage_options=json.loads(options), local_root=folder, takeover=True)
    state = state_of(0)
    first = 0
    if run.latest() is not None:
        resumed = run.resume(state)
        first = resumed.step
        assert all(bool((tensor == float(first)).all()) for tensor in state.values()), "a mixture was restored"
    print(f"resumed {first}", flush=True)
    run.prepare(state)
    while the_courier().pid is None:
        threading.Event().wait(0.01)
    print(f"courier {the_courier().pid}", flush=True)
    for step in range(first + 1, first + 1000):
        for tensor in state.values():
            tensor.fill_(float(step))
        pending = run.save(state, step=step)
        for tensor in state.values():
            tensor.fill_(-1.0)  # what is saved may be changed at once
        threading.Thread(target=_tell, args=(pending, step), daemon=True).start()


def _tell(pending, step: int) -> None:
    pending.result()
    print(f"committed {step}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
