"""Live objects as shards: what of a state is sharded, the plan that the ranks make together, and the way back.

The form is that of ``torch.distributed.checkpoint.state_dict``: parameters and optimizer state by the parameters'
names, so that they go back onto any number of ranks, and into a plain model.

Owns: that form, planning and loading. Does not own: files (``shards``), or which rank does what (``together``).

Invariant: planning is the only moment at which ranks wait for each other, and it is over before a byte is written.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from artifactsync.errors import ArtifactSyncError, ConfigurationError, NotDurableError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import ReadItem, SavePlan

    from artifactsync.checkpoint.shards import ShardReader, ShardWriter

_PLAN_LIMIT = timedelta(seconds=300)


def is_sharded(value: Any) -> bool:
    """Whether a module, an optimizer, or a container of them and of tensors has a tensor that is spread over ranks."""
    if isinstance(value, torch.Tensor):
        return isinstance(value, DTensor)
    if isinstance(value, torch.nn.Module):
        return any(isinstance(parameter, DTensor) for parameter in value.parameters())
    if isinstance(value, torch.optim.Optimizer):
        return any(isinstance(p, DTensor) for group in value.param_groups for p in group["params"])
    if isinstance(value, Mapping):
        return any(is_sharded(each) for each in value.values())
    return isinstance(value, (list, tuple)) and any(is_sharded(each) for each in value)


def split_sharded(state: Any) -> tuple[dict[str, Any], Any]:
    """The entries of a state that are sharded, and the rest.

    Raises:
        ConfigurationError: something sharded lies where no name leads to.
    """
    if not isinstance(state, Mapping):
        if is_sharded(state):
            raise ConfigurationError(
                f"sharded tensors in a {type(state).__name__}", hint='save a dict: {"model": model, …}'
            )
        return {}, state
    sharded = {key: value for key, value in state.items() if is_sharded(value)}
    return sharded, {key: value for key, value in state.items() if key not in sharded}


def portable(entries: Mapping[str, Any], *, is_for_saving: bool) -> dict[str, Any]:
    """The entries as dicts of tensors and numbers, by names that mean the same on any number of ranks.

    Args:
        entries: Live objects, or containers of them.
        is_for_saving: An optimizer that has not stepped yet is left without a state; else one is made, to load into.
    """
    modules = list(_modules_in(entries))
    return {key: _portable(value, modules, is_for_saving) for key, value in entries.items()}


def _portable(value: Any, modules: list[torch.nn.Module], is_for_saving: bool) -> Any:
    if isinstance(value, torch.nn.Module):
        return get_model_state_dict(value)
    if isinstance(value, torch.optim.Optimizer):
        is_fresh = not value.state
        found = get_optimizer_state_dict(_owner_of(value, modules), value)
        if is_fresh and is_for_saving:
            value.state.clear()
            found["state"] = {}
        return found
    if isinstance(value, Mapping):
        return {str(key): _portable(each, modules, is_for_saving) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(number): _portable(each, modules, is_for_saving) for number, each in enumerate(value)}
    return value


def put_back(entries: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Load what ``portable`` gave, filled, into the live objects."""
    modules = list(_modules_in(entries))
    for key, value in entries.items():
        _put_back(value, loaded[key], modules)


def _put_back(value: Any, loaded: Any, modules: list[torch.nn.Module]) -> None:
    if isinstance(value, torch.nn.Module):
        set_model_state_dict(value, loaded)
    elif isinstance(value, torch.optim.Optimizer):
        if loaded["state"]:
            set_optimizer_state_dict(_owner_of(value, modules), value, loaded)
        else:
            value.state.clear()
    elif isinstance(value, dict):
        for key, each in value.items():
            _put_back(each, loaded[str(key)], modules)
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            _put_back(each, loaded[str(number)], modules)


def _modules_in(value: Any) -> list[torch.nn.Module]:
    if isinstance(value, torch.nn.Module):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [module for part in parts for module in _modules_in(part)]


def _owner_of(optimizer: torch.optim.Optimizer, modules: list[torch.nn.Module]) -> torch.nn.Module:
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for module in modules:
        if wanted <= {id(parameter) for parameter in module.parameters()}:
            return module
    raise ConfigurationError(
        f"the state has a {type(optimizer).__name__}, but not the module whose parameters it steps",
        hint='save both: {"model": model, "optimizer": optimizer}',
    )


class PlannedShards:
    """What this rank writes of one checkpoint, by the plan that all ranks made.

    Args:
        plan: This rank's part.
        tensors: A copy of each tensor, by its place in the plan; the rest as bytes.
    """

    def __init__(self, plan: SavePlan, tensors: Mapping[str, torch.Tensor], blobs: Mapping[str, Any]) -> None:
        self.plan = plan
        self._data = {**tensors, **blobs}
        self._places = {id(item): str(number) for number, item in enumerate(plan.items)}

    def resolve_data(self, item: Any) -> Any:
        """What a ``StorageWriter`` asks its planner for."""
        return self._data[self._places[id(item)]]


@dataclass
class Planner:
    """Makes the plan of each checkpoint, and keeps it while nothing changes on any rank."""

    _digests: list[str] = field(default_factory=list)
    _kept: tuple[Any, bytes] | None = None
    _group: Any = None

    def plan(self, state: dict[str, Any], writer: ShardWriter) -> tuple[SavePlan, Any, dict[str, Any]]:
        """Plan together with the other ranks, each of which calls this too.

        Args:
            state: What ``portable`` gave.
            writer: Who will write.

        Returns:
            This rank's plan, the metadata (pickled; for rank 0), and the data of each item of the plan.

        Raises:
            NotDurableError: the ranks could not agree; nothing is saved.
        """
        if self._group is None:
            self._group = distributed.new_group(backend="gloo", timeout=_PLAN_LIMIT)
        try:
            return self._plan(state, writer)
        except ArtifactSyncError:
            raise
        except RuntimeError as error:  # a rank is gone, or did not come in time
            raise NotDurableError(
                f"the ranks could not plan the checkpoint together: {str(error).splitlines()[0]}",
                hint="see the other ranks' logs; the previous checkpoint is still the newest",
            ) from error

    def _plan(self, state: dict[str, Any], writer: ShardWriter) -> tuple[SavePlan, Any, dict[str, Any]]:
        is_first = distributed.get_rank() == 0
        planner = DefaultSavePlanner()
        planner.set_up_planner(state, None, is_first)
        local = writer.prepare_local_plan(planner.create_local_plan())
        digests: list[str] = [""] * distributed.get_world_size()
        distributed.all_gather_object(digests, hashlib.sha256(pickle.dumps(local)).hexdigest(), group=self._group)
        if self._kept is None or digests != self._digests:
            self._kept = self._negotiate(planner, local, writer, is_first)
            self._digests = digests
        plan, metadata = self._kept
        return plan, metadata, {str(n): planner.resolve_data(item) for n, item in enumerate(plan.items)}

    def _negotiate(self, planner: Any, local: SavePlan, writer: ShardWriter, is_first: bool) -> tuple[Any, bytes]:
        size = distributed.get_world_size()
        plans: list[Any] | None = [None] * size if is_first else None
        distributed.gather_object(local, plans, dst=0, group=self._group)
        answers: list[Any] = [None] * size
        if plans is not None:
            try:
                together, metadata = planner.create_global_plan(plans)
                pickled = pickle.dumps(metadata)
                answers = [(plan, b"") for plan in writer.prepare_global_plan(together)]
                answers[0] = (answers[0][0], pickled)
            except Exception as error:  # noqa: BLE001  (the others wait for an answer)
                answers = [f"{type(error).__name__}: {error}"] * size
        answer: list[Any] = [None]
        distributed.scatter_object_list(answer, answers, src=0, group=self._group)
        if isinstance(answer[0], str):
            raise ConfigurationError(
                f"the state cannot be saved in shards: {answer[0]}",
                hint="give every rank a state of the same form; DTensors of one mesh",
            )
        plan, metadata = answer[0]
        return planner.finish_plan(plan), metadata


def are_bytes(plan: SavePlan, place: str) -> bool:
    """Whether an item of the plan is bytes, not a tensor."""
    return plan.items[int(place)].type is WriteItemType.BYTE_IO


class _SafeBytes:
    """What is no tensor is loaded without running anything."""

    def load_bytes(self: Any, read_item: ReadItem, value: Any) -> None:
        """As DCP's, but ``weights_only``."""
        loaded = torch.load(value, weights_only=True)
        from torch.distributed.checkpoint._traverse import set_element  # noqa: PLC0415  (torch's own helper)

        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)


class _LoadPlanner(_SafeBytes, DefaultLoadPlanner):
    pass


class _WholePlanner(_SafeBytes, _EmptyStateDictLoadPlanner):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own lack of hints


def load_shards(reader: ShardReader, targets: dict[str, Any] | None, *, strict: bool = True) -> dict[str, Any]:
    """Fill ``targets``, each rank by itself; or load everything whole, as plain tensors, if None.

    Args:
        reader: Where the shards are.
        targets: What ``portable`` gave for the live objects.
        strict: Whether everything in ``targets`` must be in the shards.

    Raises:
        DamagedError: the shards cannot be read.
        ConfigurationError: they do not fit ``targets``.
    """
    metadata = reader.read_metadata()
    planner: Any = _WholePlanner() if targets is None else _LoadPlanner(allow_partial_load=not strict)
    state = {} if targets is None else targets
    _leave_out_fresh_optimizers(state, metadata.state_dict_metadata)
    try:
        planner.set_up_planner(state, metadata, True)
        reader.set_up_storage_reader(metadata)
        plan = planner.finish_plan(planner.create_global_plan([planner.create_local_plan()])[0])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"the sharded checkpoint does not fit: {str(error)[:300]}",
            hint="build the same objects that were saved, or pass strict=False",
        ) from error
    reader.read_data(plan, planner)
    return state


def _leave_out_fresh_optimizers(state: Any, saved: Mapping[str, Any], path: str = "") -> None:
    """An optimizer that had not stepped when it was saved has no state to load."""
    if not isinstance(state, dict):
        return
    if isinstance(state.get("param_groups"), list) and isinstance(state.get("state"), dict):
        if not any(name.startswith(f"{path}state.") for name in saved):
            state["state"] = {}
        return
    for key, value in state.items():
        _leave_out_fresh_optimizers(value, saved, f"{path}{key}.")
