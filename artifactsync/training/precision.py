"""Numbers of what width the model computes with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from artifactsync.errors import ConfigurationError

_NOTHING = nullcontext()
_AUTOCAST = {"fp32": None, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}


class Precision:
    """``fp32``, ``amp_bf16`` or ``amp_fp16`` on one type of device.

    Args:
        name: One of the three; None is ``fp32``.
        device: Where the model computes.

    Raises:
        ConfigurationError: another name.
    """

    def __init__(self, name: str | None, device: torch.device) -> None:
        self.name = name or "fp32"
        if self.name not in _AUTOCAST:
            raise ConfigurationError(f"precision {name!r} is not known", hint=f"one of {', '.join(_AUTOCAST)}")
        self._dtype = _AUTOCAST[self.name]
        self._device_type = device.type
        self.scaler: Any = None
        """Keeps small gradients from vanishing in fp16; None otherwise."""
        if self._dtype is torch.float16:
            self.scaler = torch.amp.GradScaler(device.type)

    def context(self) -> AbstractContextManager[Any]:
        """Surrounds the forward pass and the loss."""
        if self._dtype is None:
            return _NOTHING
        return torch.autocast(self._device_type, dtype=self._dtype)
