"""What is done to batches of any structure: to a device, in parts, counted.

Invariant: a batch is tensors in nested dicts, lists and tuples; whatever else is in it is passed along as it is.
"""

from __future__ import annotations

from typing import Any

import torch

from artifactsync.errors import ConfigurationError


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on ``device``; copies from pinned memory do not block."""
    if isinstance(batch, torch.Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(part, device) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(part, device) for part in batch)
    move = getattr(batch, "to", None)
    return move(device) if callable(move) else batch


def count_samples(batch: Any) -> int:
    """Samples of a batch: the length of the first dimension of its first tensor that has one.

    Raises:
        ConfigurationError: there is no such tensor.
    """
    samples = _first_length(batch)
    if samples is not None:
        return samples
    raise ConfigurationError(
        f"cannot tell how many samples a batch of type {type(batch).__name__} has",
        hint="give batches of tensors whose first dimension counts samples",
    )


def count_tokens(batch: Any) -> int:
    """Tokens of a batch: the elements of ``batch["input_ids"]``, 0 where there is none."""
    ids = batch.get("input_ids") if isinstance(batch, dict) else getattr(batch, "input_ids", None)
    return int(ids.numel()) if isinstance(ids, torch.Tensor) else 0


def split(batch: Any, samples: int, microbatch_size: int | None) -> list[tuple[Any, int]]:
    """Parts of at most ``microbatch_size`` samples, each with its number of samples."""
    if microbatch_size is None or microbatch_size >= samples:
        return [(batch, samples)]
    starts = range(0, samples, microbatch_size)
    ends = [min(start + microbatch_size, samples) for start in starts]
    return [(_part(batch, samples, start, end), end - start) for start, end in zip(starts, ends, strict=True)]


def _part(batch: Any, samples: int, start: int, end: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[start:end] if batch.ndim and batch.shape[0] == samples else batch
    if isinstance(batch, dict):
        return {name: _part(part, samples, start, end) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_part(part, samples, start, end) for part in batch))
    if isinstance(batch, (list, tuple)):
        if batch and len(batch) == samples and not any(isinstance(item, (torch.Tensor, dict)) for item in batch):
            return batch[start:end]  # one entry a sample: texts, identifiers
        return type(batch)(_part(part, samples, start, end) for part in batch)
    return batch


def _first_length(batch: Any) -> int | None:
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim else None
    if isinstance(batch, (list, tuple, dict)):
        for part in batch.values() if isinstance(batch, dict) else batch:
            samples = _first_length(part)
            if samples is not None:
                return samples
    return None
