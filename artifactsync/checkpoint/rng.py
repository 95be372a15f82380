"""The random state of this process: Python, NumPy, PyTorch and its CUDA or MPS devices.

Owns: reading and setting it as plain tensors and numbers. Does not own: generators that belong to a sampler or a
dataloader (``training.dataloader``), or the random state of worker processes.

Invariant: ``set_rng_state(get_rng_state())`` changes nothing, and what ``get_rng_state`` gives can be saved.
"""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMPY_KIND = "MT19937"


def get_rng_state() -> dict[str, Any]:
    """The state of every global generator that this process has used."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "torch": torch.get_rng_state(),
    }
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.get_state()
        if kind != _NUMPY_KIND:
            raise ConfigurationError(
                f"NumPy's global generator is a {kind}, whose state cannot be saved here",
                hint="leave numpy.random's own generator in place, and save yours beside it",
            )
        state["numpy"] = {
            "keys": torch.from_numpy(keys.astype("int64")),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own lack of hints
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Set what ``get_rng_state`` gave. Devices that are not here are passed over."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    if "numpy" in state:
        import numpy as np  # noqa: PLC0415  (only where the saved run used it)

        saved = state["numpy"]
        keys = saved["keys"].cpu().numpy().astype("uint32")
        np.random.set_state((_NUMPY_KIND, keys, saved["position"], saved["has_gauss"], saved["cached"]))  # noqa: NPY002  (the global generator is what user code shares)
    if "cuda" in state and torch.cuda.is_available():
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


def seed_all(seed: int) -> None:
    """Seed every global generator: Python's, NumPy's and PyTorch's on all devices."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        import numpy as np  # noqa: PLC0415

        np.random.seed(seed % 2**32)  # noqa: NPY002  (as above)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put every global generator back at the end, whatever was drawn inside."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


class RngState:
    """The global generators as an object that can be saved and resumed: ``run.save({..., "rng": RngState()})``."""

    def state_dict(self) -> dict[str, Any]:
        """The state now."""
        return get_rng_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the generators."""
        set_rng_state(state)
