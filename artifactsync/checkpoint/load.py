"""Reading a checkpoint file and putting its contents back into live objects.

Owns: ``load_file`` and ``restore``. Does not own: which checkpoint is read (``resume``).

Invariant: nothing is unpickled outside ``torch.load(weights_only=True)``, and ``restore`` changes the caller's
objects in place: parameters that an optimizer holds stay the same tensors.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.checkpoint.frozen import NAMES, is_frozen_name, join
from artifactsync.checkpoint.safetensors_file import SUFFIX, load_safetensors
from artifactsync.errors import ConfigurationError, DamagedError, ObjectNotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable


def load_file(
    path: str | os.PathLike[str] | Path,
    *,
    map_location: Any = "cpu",
    beside: Callable[[str], Path] | None = None,
) -> Any:
    """Load a checkpoint file, memory-mapped: a ``.safetensors`` file, or one that ``torch.save`` wrote as a zip file.

    If weights that did not change were kept apart (``frozen``), their file is looked for beside it, and both are
    joined.

    Args:
        path: The file. It must not be changed in place while the loaded tensors live; replacing or deleting it is
            fine.
        map_location: As ``torch.load`` takes it.
        beside: Brings a file that lies beside it, by its name; None looks in its folder.

    Raises:
        DamagedError: the bytes are not a whole checkpoint.
        ConfigurationError: the file holds objects that ``torch.load(weights_only=True)`` refuses.
        ObjectNotFoundError: no such file.
    """
    loaded = load_plain(path, map_location)
    names = names_beside(loaded, str(path))
    folder = Path(path).parent
    parts = [load_plain(beside(each) if beside else folder / each, map_location) for each in names]
    return join(loaded, parts) if parts else loaded


def names_beside(loaded: Any, name: str) -> list[str]:
    """The names of the files beside one, in which weights are that did not change.

    Args:
        loaded: What is in the file.
        name: The file, for messages.

    Raises:
        DamagedError: they are no such names.
    """
    names = loaded.get(NAMES) if type(loaded) is dict else None
    if names is None:
        return []
    if not (isinstance(names, list) and names and all(isinstance(n, str) and is_frozen_name(n) for n in names)):
        raise _damaged(name, ValueError(f"{names!r} are no names of files"))
    return names


def load_plain(path: str | os.PathLike[str], map_location: Any) -> Any:
    """Load one file alone; arguments and errors as for :func:`load_file`."""
    name = str(path)
    if name.endswith(SUFFIX):
        return load_safetensors(path, map_location=map_location)
    try:
        return torch.load(name, weights_only=True, mmap=True, map_location=map_location)
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"there is no file at {name}", hint="check the path", url=name) from error
    except pickle.UnpicklingError as error:
        refused = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        if not refused:
            raise _damaged(name, error) from error
        raise ConfigurationError(
            f"the checkpoint file {name} holds objects that are not loaded from a file: {refused.strip()}",
            hint="save tensors, numbers and strings only, or allow the class by torch.serialization.add_safe_globals",
            url=name,
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        if "CUDA" in str(error) and "map_location" in str(error):
            raise ConfigurationError(
                f"the checkpoint file {name} was asked onto a device that is not here: {error}",
                hint='pass map_location="cpu"',
                url=name,
            ) from error
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DamagedError:
    first = (str(error).splitlines() or [""])[0]
    return DamagedError(
        f"the checkpoint file {name} cannot be read: {first[:200]}", hint="use an older checkpoint", url=name
    )


def restore(target: Any, saved: Any, *, strict: bool = True, path: str = "state") -> Any:
    """Put ``saved`` into ``target``, in place, and return what stands in its place.

    Objects with ``load_state_dict`` are given theirs; tensors are copied into; dicts and lists are updated; numbers,
    strings and the like are replaced, where their container can change. What is in ``saved`` alone is added to dicts.

    Args:
        target: The live state, of the form that was saved.
        saved: What ``load_file`` gave.
        strict: Whether everything in ``target`` must be in ``saved`` (and for modules: the keys must be the same).
        path: Where this is in the whole, for messages.

    Raises:
        ConfigurationError: the two do not fit.
    """
    if callable(getattr(target, "load_state_dict", None)):
        _load_state_dict(target, saved, strict=strict, path=path)
        return target
    if isinstance(target, torch.Tensor) and isinstance(saved, torch.Tensor):
        return _restore_tensor(target, saved, path)
    if isinstance(target, dict) and isinstance(saved, dict):
        return _restore_dict(target, saved, strict, path)
    if isinstance(target, (list, tuple)) and isinstance(saved, (list, tuple)):
        return _restore_sequence(target, saved, strict, path)
    if _is_live(target):
        raise _misfit(path, f"the checkpoint has a {type(saved).__name__} for a {type(target).__name__}")
    return saved


def _restore_tensor(target: torch.Tensor, saved: torch.Tensor, path: str) -> torch.Tensor:
    if target.shape != saved.shape:
        raise _misfit(path, f"the saved tensor has shape {tuple(saved.shape)}, not {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(saved)
    return target


def _restore_dict(target: dict[Any, Any], saved: dict[Any, Any], strict: bool, path: str) -> dict[Any, Any]:
    missing = [key for key in target if key not in saved]
    if missing and strict:
        raise _misfit(path, f"the checkpoint has no {missing[0]!r}")
    for key, value in saved.items():
        is_known = key in target
        target[key] = restore(target[key], value, strict=strict, path=f"{path}[{key!r}]") if is_known else value
    return target


def _restore_sequence(
    target: list[Any] | tuple[Any, ...], saved: list[Any] | tuple[Any, ...], strict: bool, path: str
) -> list[Any] | tuple[Any, ...]:
    if len(target) == len(saved):
        both = enumerate(zip(target, saved, strict=True))
        items = [restore(old, new, strict=strict, path=f"{path}[{index}]") for index, (old, new) in both]
    elif isinstance(target, tuple) or any(_is_live(item) for item in target):
        raise _misfit(path, f"the checkpoint has {len(saved)} entries, not {len(target)}")
    else:
        items = list(saved)
    if isinstance(target, tuple):
        return tuple(items)
    target[:] = items
    return target


def _load_state_dict(target: Any, saved: Any, *, strict: bool, path: str) -> None:
    try:
        if isinstance(target, torch.nn.Module):
            target.load_state_dict(saved, strict=strict)
        else:
            target.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _misfit(path, f"{type(target).__name__} refused its state: {error}") from error


def _is_live(value: Any) -> bool:
    """Whether ``value`` must be loaded in place rather than be replaced."""
    return isinstance(value, (torch.Tensor, dict)) or callable(getattr(value, "load_state_dict", None))


def _misfit(path: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the checkpoint does not fit {path}: {what}",
        hint="build the same objects that were saved, or pass strict=False",
    )
