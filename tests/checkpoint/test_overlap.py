"""Copies that go on while training does: whole, or said not to be."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from contextlib import suppress

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel

from artifactsync import Run
from artifactsync.checkpoint import copying
from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import write_snapshot
from artifactsync.errors import ConfigurationError


def _bytes(value):
    """A tree with every tensor as its bytes."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.detach().contiguous().view(-1).view(torch.uint8).tolist())
    if hasattr(value, "state_dict"):
        return _bytes(value.state_dict())
    if isinstance(value, dict):
        return {key: _bytes(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bytes(item) for item in value]
    return value


class _Net(torch.nn.Module):
    """Tied weights, batch norm, an embedding, a buffer that is a view of nothing else."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.inner = torch.nn.Linear(8, 8)
        self.out = torch.nn.Linear(8, 20, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, tokens):
        self.seen += 1
        return self.out(torch.relu(self.inner(self.norm(self.embedding(tokens)))))


def _forward_backward(net):
    tokens = torch.randint(0, 20, (16,))
    torch.nn.functional.cross_entropy(net(tokens), tokens).backward()


def _trained(make_optimizer):
    torch.manual_seed(0)
    net = _Net()
    optimizer = make_optimizer(net.parameters())
    _forward_backward(net)
    optimizer.step()
    return net, optimizer


_OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "for loop": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False, amsgrad=True),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), foreach=False),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=2),
}


@pytest.fixture
def no_copier(monkeypatch):
    """Nobody copies until a step or ``wait`` asks for it."""
    monkeypatch.setattr(copying, "MAX_COPIERS", 1)


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_the_step_waits_and_what_a_forward_changes_is_copied_at_once(name, tmp_path, no_copier):
    torch.manual_seed(0)
    net = _Net()
    optimizer = _OPTIMIZERS[name](net.parameters())

    def closure():
        optimizer.zero_grad()
        tokens = torch.arange(16)
        loss = torch.nn.functional.cross_entropy(net(tokens), tokens)
        loss.backward()
        return loss

    optimizer.step(closure)
    buffers = SnapshotBuffers()
    state = {"net": net, "optimizer": optimizer}
    for _ in range(3):
        expected = _bytes(state)
        snapshot = take_snapshot(state, buffers, overlap=[optimizer])
        assert snapshot.is_overlapped
        for _ in range(2):  # gradient accumulation
            _forward_backward(net)
        optimizer.step(closure)
        optimizer.zero_grad()
        file = write_snapshot(snapshot, tmp_path / "x.pt").path
        snapshot.confirm()
        assert _bytes(load_file(file)) == expected
        assert _bytes(state) != expected
    assert not _global_optimizer_pre_hooks


def test_nothing_is_copied_before_the_step_that_need_not_be(no_copier):
    net, optimizer = _trained(_OPTIMIZERS["fused"])
    buffers = SnapshotBuffers()
    take_snapshot({"net": net, "optimizer": optimizer}, buffers)
    with torch.no_grad():
        net.inner.weight.fill_(3.0)
        net.norm.running_mean.fill_(3.0)
    snapshot = take_snapshot({"net": net, "optimizer": optimizer}, buffers, overlap=[optimizer])
    assert snapshot.state["net"]["norm.running_mean"].tolist() == [3.0] * 8
    assert not (snapshot.state["net"]["inner.weight"] == 3.0).any()
    snapshot.wait()
    assert (snapshot.state["net"]["inner.weight"] == 3.0).all()
    snapshot.confirm()


def test_each_optimizer_waits_for_its_own_and_a_stranger_for_all(no_copier):
    one, two = torch.nn.Parameter(torch.zeros(8)), torch.nn.Parameter(torch.zeros(8))
    first, second = (torch.optim.SGD([p], lr=1.0) for p in (one, two))
    stranger = torch.optim.SGD([two], lr=1.0)
    for parameter in (one, two):
        parameter.grad = torch.ones(8)
    buffers = SnapshotBuffers()
    for stepping, copied in ((first, [True, False]), (second, [False, True]), (stranger, [True, True])):
        with torch.no_grad():
            one.fill_(5.0)
            two.fill_(5.0)
        snapshot = take_snapshot({"one": one, "two": two}, buffers, overlap=[first, second])
        for shell in snapshot.state.values():
            shell.zero_()  # what is not copied yet
        stepping.step()
        assert [bool((shell == 5.0).all()) for shell in snapshot.state.values()] == copied
        snapshot.wait()
        snapshot.confirm()
        assert snapshot.state["one"].tolist() == snapshot.state["two"].tolist() == [5.0] * 8


def test_an_average_of_the_model_is_no_optimizers_and_copied_at_once(tmp_path, no_copier):
    net, optimizer = _trained(_OPTIMIZERS["foreach"])
    average = AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(net)
    state = {"net": net, "average": average, "optimizer": optimizer}
    expected = _bytes(state)
    snapshot = take_snapshot(state, SnapshotBuffers(), overlap=[optimizer])
    average.update_parameters(net)
    average.module.inner.weight.data.zero_()
    _forward_backward(net)
    optimizer.step()
    average.update_parameters(net)
    snapshot.wait()
    snapshot.confirm()
    assert _bytes(snapshot.state) == expected


def test_memory_that_is_partly_somebody_elses_is_copied_at_once(no_copier):
    flat = torch.arange(32, dtype=torch.float32)
    parameter = torch.nn.Parameter(flat[:16])
    columns = torch.arange(32, dtype=torch.float32).reshape(16, 2)
    gaps = torch.nn.Parameter(columns[:, 0])  # what lies between its elements is not its own
    optimizer = torch.optim.SGD([parameter, gaps], lr=1.0)
    snapshot = take_snapshot(
        {"flat": flat, "parameter": parameter, "columns": columns}, SnapshotBuffers(), overlap=[optimizer]
    )
    assert not snapshot.is_overlapped
    flat.zero_()
    columns.zero_()
    assert snapshot.state["flat"].tolist() == list(range(32))
    assert snapshot.state["columns"].flatten().tolist() == list(range(32))


def test_parameters_that_are_views_of_one_storage_are_overlapped_together(no_copier):
    flat = torch.arange(32, dtype=torch.float32)
    parameters = [torch.nn.Parameter(flat[:16]), torch.nn.Parameter(flat[16:])]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    snapshot = take_snapshot({"flat": flat, "parts": parameters}, SnapshotBuffers(), overlap=[optimizer])
    assert snapshot.is_overlapped
    for parameter in parameters:
        parameter.grad = torch.ones(16)
    optimizer.step()
    snapshot.wait()
    snapshot.confirm()
    assert snapshot.state["flat"].tolist() == list(range(32))
    assert snapshot.state["flat"].untyped_storage()._cdata == snapshot.state["parts"][1].untyped_storage()._cdata


_OUTSIDE = {
    "in place": lambda net: net.inner.weight.detach().mul_(2),
    "no_grad": lambda net: torch.no_grad()(net.inner.weight.mul_)(2),
    "foreach": lambda net: torch.no_grad()(torch._foreach_mul_)([net.inner.weight, net.inner.bias], 2.0),
    "load_state_dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "init": lambda net: torch.nn.init.zeros_(net.embedding.weight),
    "one element": lambda net: torch.no_grad()(net.inner.weight.__setitem__)((0, 0), 9.0),
    "a view": lambda net: net.inner.weight.detach()[2:3].zero_(),
    "swap": lambda net: net.inner.weight.detach().copy_(torch.zeros(8, 8)),
}


@pytest.mark.parametrize("how", _OUTSIDE)
@pytest.mark.parametrize("when", ["before the copy", "after the copy"])
def test_what_changes_outside_of_a_step_is_noticed_or_harmless(how, when, no_copier):
    net, optimizer = _trained(_OPTIMIZERS["foreach"])
    buffers = SnapshotBuffers()
    state = {"net": net, "optimizer": optimizer}
    expected = _bytes(state)
    snapshot = take_snapshot(state, buffers, overlap=[optimizer])
    if when == "after the copy":
        snapshot.settle()
    _OUTSIDE[how](net)
    if when == "after the copy":
        snapshot.wait()
        snapshot.confirm()
        assert _bytes(snapshot.state) == expected
        return
    with pytest.raises(ConfigurationError, match=r"\['net'\]\['(inner|embedding|out|norm)\.(weight|bias)'\].*outside"):
        snapshot.wait()
    with pytest.raises(ConfigurationError, match="mixture"):
        snapshot.confirm()
    expected = _bytes(state)
    again = take_snapshot(state, buffers, overlap=[optimizer])
    assert not again.is_overlapped  # from now on nothing is left to chance
    _OUTSIDE[how](net)
    assert _bytes(again.state) == expected
    assert not _global_optimizer_pre_hooks


def test_an_operation_that_counts_after_the_copy_is_noticed_by_the_step(no_copier):
    """torch counts a change when it has been made: the copy may end before the operation that tore it does."""
    net, optimizer = _trained(_OPTIMIZERS["sgd"])
    snapshot = take_snapshot({"net": net}, SnapshotBuffers(), overlap=[optimizer])
    with suppress(ConfigurationError):
        snapshot.wait()  # nothing to see yet
    net.inner.weight.detach().mul_(2)  # as if it had begun before
    optimizer.step()
    with pytest.raises(ConfigurationError, match="mixture"):
        snapshot.confirm()


def test_without_the_guard_the_checkpoint_would_be_wrong(monkeypatch, no_copier):
    """What the tests above would miss if nothing looked at the counters."""
    monkeypatch.setattr("artifactsync.checkpoint.overlap.Overlap._look", lambda self, group: None)
    net, optimizer = _trained(_OPTIMIZERS["sgd"])
    expected = _bytes({"net": net})
    snapshot = take_snapshot({"net": net}, SnapshotBuffers(), overlap=[optimizer])
    net.inner.weight.detach().mul_(2)
    snapshot.wait()
    snapshot.confirm()
    assert _bytes(snapshot.state) != expected


def test_an_optimizer_that_loads_its_state_meanwhile_leaves_the_copied_one_alone(no_copier):
    net, optimizer = _trained(_OPTIMIZERS["foreach"])
    state = {"optimizer": optimizer}
    expected, other = _bytes(state), copy.deepcopy(optimizer.state_dict())
    for kept in other["state"].values():
        kept["exp_avg"].zero_()
    snapshot = take_snapshot(state, SnapshotBuffers(), overlap=[optimizer])
    optimizer.load_state_dict(other)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 0.5})
    _forward_backward(net)
    optimizer.step()
    snapshot.wait()
    snapshot.confirm()
    assert _bytes(snapshot.state) == expected


def test_parameters_that_come_to_be_elsewhere_are_found(no_copier):
    net, optimizer = _trained(_OPTIMIZERS["foreach"])
    buffers, state = SnapshotBuffers(), {"net": net, "optimizer": optimizer}
    for change in (
        lambda: setattr(net.inner.weight, "data", net.inner.weight.data * 2),
        lambda: (net.to(torch.bfloat16), optimizer.state.clear()),
        lambda: optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]}),
        lambda: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    ):
        change()
        expected = _bytes(state)
        snapshot = take_snapshot(state, buffers, overlap=[optimizer])
        assert snapshot.is_overlapped
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        snapshot.wait()
        snapshot.confirm()
        assert _bytes(snapshot.state) == expected


def test_a_compiled_step_waits_too(no_copier):
    parameter = torch.nn.Parameter(torch.zeros(64))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
    step = torch.compile(optimizer.step, backend="eager")
    parameter.grad = torch.ones(64)
    buffers = SnapshotBuffers()
    for _ in range(3):
        expected = _bytes(parameter)
        snapshot = take_snapshot({"p": parameter}, buffers, overlap=[optimizer])
        step()
        snapshot.wait()
        snapshot.confirm()
        assert _bytes(snapshot.state["p"]) == expected
        assert _bytes(parameter) != expected


def test_a_dropped_snapshot_holds_nobody_up(no_copier):
    net, optimizer = _trained(_OPTIMIZERS["sgd"])
    buffers = SnapshotBuffers()
    snapshot = take_snapshot({"net": net}, buffers, overlap=[optimizer])
    snapshot.drop()
    optimizer.step()
    assert snapshot.waited_s == 0.0
    assert not _global_optimizer_pre_hooks
    with pytest.raises(RuntimeError, match="dropped"):
        snapshot.wait()
    expected = _bytes(net)
    fresh = take_snapshot({"net": net}, buffers, overlap=[optimizer])
    fresh.wait()
    fresh.confirm()
    assert _bytes(fresh.state["net"]) == expected


def test_a_confirmed_snapshot_keeps_nothing_of_the_state_alive():
    parameters, died = [torch.nn.Parameter(torch.zeros(1000))], threading.Event()
    weakref.finalize(parameters[0], died.set)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    buffers = SnapshotBuffers()
    snapshot = take_snapshot({"p": parameters}, buffers, overlap=[optimizer])
    snapshot.wait()
    snapshot.confirm()
    del optimizer
    parameters.clear()
    gc.collect()
    assert died.is_set()


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(ConfigurationError, match="Linear"):
        take_snapshot({}, SnapshotBuffers(), overlap=[torch.nn.Linear(1, 1)])


def test_through_a_run_under_a_hostile_loop(tmp_path):
    """Every checkpoint of a run whose tensors change at once is the state at its step."""
    net, optimizer = _trained(_OPTIMIZERS["foreach"])
    big = torch.nn.Parameter(torch.zeros(3_000_000))  # in several pieces
    optimizer.add_param_group({"params": [big]})
    state = {"net": net, "optimizer": optimizer, "big": big, "note": {"n": 0}}
    expected, pending = [], []
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "a") as run:
        run.prepare(state)
        for step in range(6):
            small = _bytes({"net": net, "optimizer": optimizer.state_dict()["state"][0]})
            expected.append((step, float(big.detach()[0]), small))
            pending.append(run.save(state, step=step, overlap=optimizer))
            state["note"]["n"] += 1
            _forward_backward(net)
            big.grad = torch.ones_like(big)
            optimizer.step()
            optimizer.zero_grad()
        run.wait(60)
        for (step, value, small), each in zip(expected, pending, strict=True):
            (file,) = run.ensure_local(each.result(60)).values()
            loaded = load_file(file)
            assert loaded["note"]["n"] == step
            assert loaded["big"].min() == loaded["big"].max() == value
            assert _bytes({"net": loaded["net"], "optimizer": loaded["optimizer"]["state"][0]}) == small


def test_a_torn_checkpoint_is_an_error_of_its_own_and_not_the_next_ones(tmp_path, monkeypatch):
    net, optimizer = _trained(_OPTIMIZERS["sgd"])
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "a") as run:
        may_copy, real = threading.Event(), copying.Copy._copy

        def slow(self, group, piece):
            if group:
                may_copy.wait(30)
            real(self, group, piece)

        monkeypatch.setattr(copying.Copy, "_copy", slow)
        torn = run.save({"net": net}, step=1, overlap=[optimizer])
        net.inner.weight.detach().mul_(2)
        may_copy.set()
        with pytest.raises(ConfigurationError, match="mixture") as caught:
            torn.result(30)
        assert "wait_copied" in caught.value.hint
        expected = _bytes(net)
        whole = run.save({"net": net}, step=2, overlap=[optimizer]).result(30)
        run.wait_copied()
        net.inner.weight.detach().mul_(2)
        assert _bytes(load_file(next(iter(run.ensure_local(whole).values())))["net"]) == expected
        assert [c.step for c in run.checkpoints()] == [2]
        assert not list(run.local_dir.rglob("*ba1*"))
        with suppress(Exception):
            run.wait(30)
