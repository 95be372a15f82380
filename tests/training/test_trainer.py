"""The trainer on a few of scikit-learn's digits, in this process."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from artifactsync import Callback, CheckpointSaver, Event, RemoteUploaderDownloader, RetentionPolicy, Run, Trainer
from artifactsync.errors import ConfigurationError, NotDurableError, ObjectNotFoundError, RunNameError
from artifactsync.training.batch import split
from tests.training.digits import Digits, accuracy

_COUNT = 48


def _trainer(tmp_path, *, host="a", batch_size=12, model=None, **more):
    torch.manual_seed(0)
    net = model or nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = {
        "optimizers": torch.optim.SGD(net.parameters(), lr=0.1),
        "loss_fn": nn.CrossEntropyLoss(),
        "run_name": "r",
        "remote": tmp_path / "remote",
        "local_root": tmp_path / host,
        "max_duration": "2ep",
        "progress_bar": False,
        "device": "cpu",
        "seed": 5,
        **more,
    }
    if net is not model and settings["loss_fn"] is None:
        del settings["loss_fn"]
    return Trainer(net, DataLoader(Digits(_COUNT, moved=False), batch_size=batch_size, shuffle=True), **settings)


def _weights(trainer):
    return [p.detach().clone() for p in trainer.state.model.parameters()]


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def run_event(self, event, state, logger):
        self.events.append(event.value)


def test_the_events_come_in_order(tmp_path):
    recorder = Recorder()
    data = DataLoader(Digits(12, moved=False), batch_size=12)
    with _trainer(
        tmp_path, batch_size=48, max_duration="1ep", eval_dataloader=data, callbacks=recorder, save_folder=None
    ) as trainer:
        trainer.fit()
    batch = [
        "before_dataloader", "after_dataloader", "batch_start", "before_forward", "after_forward", "before_loss",
        "after_loss", "before_backward", "after_backward", "batch_end", "batch_checkpoint",
    ]  # fmt: skip
    evaluation = ["eval_start", "eval_batch_end", "eval_end"]
    assert recorder.events == [
        *["init", "after_load", "fit_start", "epoch_start"],
        *batch,
        *["before_dataloader", "epoch_end", *evaluation, "epoch_checkpoint", "fit_end"],
    ]
    assert {event.value for event in Event} == set(recorder.events)


def test_accumulation_gives_the_gradients_of_the_whole_batch(tmp_path):
    with _trainer(tmp_path, run_name="w", save_folder=None) as whole:
        whole.fit()
    with _trainer(tmp_path, run_name="p", save_folder=None, device_train_microbatch_size=5) as parts:
        parts.fit()
    for one, other in zip(_weights(whole), _weights(parts), strict=True):
        torch.testing.assert_close(one, other)


def test_it_trains_as_a_bare_loop_does(tmp_path):
    with _trainer(tmp_path, max_duration="3ep", save_folder=None) as trainer:
        trainer.fit()
    order = []
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    data = Digits(_COUNT, moved=False)
    with _trainer(tmp_path, run_name="order", max_duration="3ep", save_folder=None, callbacks=_Order(order)) as again:
        again.fit()
    for images, labels in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(bare(images), labels).backward()
        optimizer.step()
    assert sorted(float(x.sum()) for images, _ in order[:4] for x in images) == sorted(
        float(x.sum()) for x in data.images
    )
    for one, other in zip(_weights(trainer), bare.parameters(), strict=True):
        assert torch.equal(one, other)


class _Order(Callback):
    def __init__(self, order):
        self.order = order

    def batch_start(self, state, logger):
        self.order.append(state.batch)


def test_composer_style_models_and_several_optimizers(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 16), nn.Linear(16, 10)

        def forward(self, batch):
            return self.two(self.one(batch[0].flatten(1)).relu())

        def loss(self, outputs, batch):
            return {"ce": nn.functional.cross_entropy(outputs, batch[1]), "l2": 1e-3 * self.two.weight.square().sum()}

    model = Model()
    optimizers = [torch.optim.SGD(model.one.parameters(), lr=0.1), torch.optim.Adam(model.two.parameters())]
    with _trainer(tmp_path, model=model, loss_fn=None, optimizers=optimizers, autoresume=True) as trainer:
        trainer.fit()
    expected = _weights(trainer)
    fresh = Model()
    optimizers = [torch.optim.SGD(fresh.one.parameters(), lr=0.1), torch.optim.Adam(fresh.two.parameters())]
    with _trainer(tmp_path, host="b", model=fresh, loss_fn=None, optimizers=optimizers, autoresume=True) as again:
        assert all(torch.equal(a, b) for a, b in zip(_weights(again), expected, strict=True))
        assert again.state.timestamp.epoch == 2


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
def test_mixed_precision_trains_and_resumes(tmp_path, precision):
    data = DataLoader(Digits(_COUNT, moved=False), batch_size=12)
    more = {"precision": precision, "clip_grad_norm": 1.0, "eval_metrics": {"accuracy": accuracy}, "autoresume": True}
    with _trainer(tmp_path, max_duration="20ep", save_interval="20ep", eval_dataloader=data, **more) as trainer:
        trainer.fit()
        assert trainer.eval()["metrics/eval/accuracy"] > 0.8
    with _trainer(tmp_path, host="b", **more) as again:
        assert all(torch.equal(a, b) for a, b in zip(_weights(trainer), _weights(again), strict=True))


@pytest.mark.parametrize(
    ("duration", "interval", "batches", "names"),
    [
        ("6ba", "3ba", 6, ["ep0-ba3", "ep1-ba6"]),
        ("8ba", "3ba", 8, ["ep0-ba3", "ep1-ba6", "ep2-ba8"]),
        ("60sp", "3ba", 5, ["ep0-ba3", "ep1-ba5"]),
        ("2ep", "3ba", 8, ["ep0-ba3", "ep1-ba6", "ep2-ba8"]),
        ("2ep", "4ba", 8, ["ep0-ba4", "ep2-ba8"]),  # the end is saved once
        ("8ba", "8ba", 8, ["ep2-ba8"]),
        ("2ep", "0.5dur", 8, ["ep0-ba4", "ep2-ba8"]),
        ("2ep", "0.25dur", 8, ["ep0-ba2", "ep0-ba4", "ep1-ba6", "ep2-ba8"]),
        ("2ep", "1ep", 8, ["ep1-ba4", "ep2-ba8"]),
    ],
)
def test_durations_and_intervals(tmp_path, duration, interval, batches, names):
    with _trainer(tmp_path, max_duration=duration, save_interval=interval) as trainer:
        trainer.fit()
    assert trainer.state.timestamp.batch == batches
    assert [c.name for c in Run("r", remote=tmp_path / "remote", read_only=True).checkpoints()] == names


def test_a_duration_in_tokens_that_would_never_end_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="counts tokens"), _trainer(tmp_path, max_duration="100tok") as trainer:
        trainer.fit()


def test_fit_goes_on_where_the_last_one_ended(tmp_path):
    with _trainer(tmp_path, max_duration="11ba", save_folder=None) as straight:
        straight.fit()
    with _trainer(tmp_path, run_name="parts", max_duration=None, save_folder=None) as parts:
        for duration in ("2ba", "7ba", "2ba"):
            parts.fit(duration)
        assert parts.state.timestamp.batch == 11
    assert all(torch.equal(a, b) for a, b in zip(_weights(straight), _weights(parts), strict=True))


def test_a_run_is_not_repeated_by_accident(tmp_path):
    with _trainer(tmp_path) as trainer:
        trainer.fit()
    with pytest.raises(ConfigurationError, match="has checkpoints already") as caught:
        _trainer(tmp_path, host="b")
    assert "autoresume=True" in caught.value.hint
    assert Run("r", remote=tmp_path / "remote", read_only=True).attempt == 1
    with _trainer(tmp_path, host="b", save_overwrite=True, max_duration="1ep") as again:
        again.fit()
    assert Run("r", remote=tmp_path / "remote", read_only=True).latest().name == "ep1-ba4"


def test_local_files_are_kept_as_asked(tmp_path):
    with _trainer(tmp_path, max_duration="5ep", save_num_checkpoints_to_keep=2) as trainer:
        trainer.fit()
    local = sorted(path.name for path in (tmp_path / "a" / "r" / "checkpoints").iterdir())
    assert local == ["ep4-ba16-rank0.pt", "ep5-ba20-rank0.pt", "latest-rank0.pt"]
    assert len(Run("r", remote=tmp_path / "remote", read_only=True).checkpoints()) == 5


def test_the_remote_keeps_what_the_policy_keeps(tmp_path):
    policy = RetentionPolicy(keep_last=1, keep_every=8)
    with _trainer(tmp_path, max_duration="5ep", save_retention=policy) as trainer:
        trainer.fit()
    run = Run("r", remote=tmp_path / "remote", read_only=True)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [8, 16, 20]
    on_remote = sorted(path.name for path in (tmp_path / "remote" / "r" / "checkpoints").glob("*.pt"))
    assert on_remote == ["ep2-ba8-rank0.pt", "ep4-ba16-rank0.pt", "ep5-ba20-rank0.pt"]
    assert len(list((tmp_path / "a" / "r" / "checkpoints").glob("ep*.pt"))) == 5
    assert run.verify(deep=True).ok


def test_without_a_remote_it_saves_and_resumes_locally(tmp_path):
    with _trainer(tmp_path, remote=None, max_duration="1ep", autoresume=True) as trainer:
        trainer.fit()
    with _trainer(tmp_path, remote=None, max_duration="2ep", autoresume=True) as again:
        assert again.state.timestamp.batch == 4
        again.fit()
    assert (tmp_path / "a" / "r" / "checkpoints" / "latest-rank0.pt").resolve().name == "ep2-ba8-rank0.pt"
    with pytest.raises(ConfigurationError, match="already"):
        _trainer(tmp_path, remote=None)


def test_an_uploader_among_the_loggers_gives_remote_and_takes_the_name(tmp_path):
    uploader = RemoteUploaderDownloader(str(tmp_path / "remote"))
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with _trainer(tmp_path, remote=None, loggers=[uploader]) as trainer:
        uploader.upload_file("{run_name}/note.txt", note)
        trainer.fit()
    assert (tmp_path / "remote" / "r" / "note.txt").read_text() == "hello"
    assert (tmp_path / "remote" / "r" / "checkpoints" / "ep2-ba8-rank0.pt").is_file()


@pytest.mark.parametrize("where", ["local", "remote"])
def test_load_path(tmp_path, where):
    with _trainer(tmp_path) as trainer:
        trainer.fit()
    folder = (tmp_path / "a") if where == "local" else f"file://{tmp_path}/remote"
    path = f"{folder}/r/checkpoints/ep2-ba8-rank0.pt"
    with _trainer(tmp_path, run_name="tuned", load_path=path, max_duration="3ep") as tuned:
        assert all(torch.equal(a, b) for a, b in zip(_weights(trainer), _weights(tuned), strict=True))
        assert tuned.state.timestamp.epoch == 2
        tuned.fit()
        assert tuned.state.timestamp.batch == 12
    with _trainer(tmp_path, run_name="weights", load_path=path, load_weights_only=True) as weights:
        assert weights.state.timestamp.batch == 0
    with pytest.raises(ObjectNotFoundError):
        _trainer(tmp_path, run_name="none", load_path=f"{folder}/r/checkpoints/none.pt")


def test_an_outage_at_the_end_is_told_and_training_was_not_stopped(tmp_path, s3, fault_proxy):
    cloud = fault_proxy(s3)

    class Cut(Callback):
        def batch_end(self, state, logger):
            cloud.proxy.cut()

    options = {"remote": s3.fresh_url(), "storage_options": cloud.storage_options, "upload_timeout_s": 0.5}
    trainer = _trainer(tmp_path, callbacks=Cut(), max_duration="3ep", **options)
    with pytest.raises(NotDurableError, match="not durable"):
        trainer.fit()
    assert trainer.state.timestamp.epoch == 3
    assert trainer.run.status().local_step == 12
    assert trainer.run.status().durable_step is None
    cloud.proxy.heal()
    trainer._upload_timeout_s = None
    trainer.close()
    assert [
        c.step
        for c in Run("r", remote=options["remote"], read_only=True, storage_options=s3.storage_options).checkpoints()
    ] == [4, 8, 12]


def test_an_error_in_training_marks_the_run_failed_and_keeps_what_was_saved(tmp_path):
    class Trouble(Callback):
        def batch_start(self, state, logger):
            if state.timestamp.batch == 6:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), _trainer(tmp_path, callbacks=Trouble()) as trainer:
        trainer.fit()
    run = Run("r", remote=tmp_path / "remote", read_only=True)
    assert run.status().state == "failed"
    assert run.latest().name == "ep1-ba4"


def test_a_saver_of_ones_own_takes_the_place_of_ours(tmp_path):
    saver = CheckpointSaver(
        "{run_name}/kept", "b{batch:04d}.pt", save_interval=lambda state, event: state.timestamp.batch == 5
    )
    with _trainer(tmp_path, callbacks=[saver]) as trainer:
        trainer.fit()
    assert [file.path for c in trainer.state.callbacks[0].saved for file in c.result().files] == ["kept/b0005.pt"]


def test_mistakes_are_told_at_once(tmp_path):
    for wrong, said in (
        ({"max_duration": "2 fortnights"}, "fortnights"),
        ({"save_interval": "0ba"}, "not positive"),
        ({"save_filename": "{nope}.pt"}, "nope"),
        ({"save_folder": "{run_name}/../x"}, "leaves the run"),
        ({"precision": "fp4"}, "fp4"),
        ({"loss_fn": None}, "no loss"),
        ({"device_train_microbatch_size": 0}, "microbatch"),
        ({"loggers": [object()]}, "no logger"),
        ({"save_num_checkpoints_to_keep": -2}, "-2"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            _trainer(tmp_path, **wrong)
    with pytest.raises(RunNameError):
        _trainer(tmp_path, run_name="no/slash")
    assert not (tmp_path / "remote").exists()  # nothing was claimed


def test_batches_of_any_structure_are_split():
    batch = {"x": torch.arange(5), "names": list("abcde"), "pair": (torch.ones(5, 2), 3), "scalar": torch.tensor(1)}
    parts = split(batch, 5, 2)
    assert [count for _, count in parts] == [2, 2, 1]
    assert [part["names"] for part, _ in parts] == [["a", "b"], ["c", "d"], ["e"]]
    assert torch.cat([part["x"] for part, _ in parts]).tolist() == [0, 1, 2, 3, 4]
    assert parts[0][0]["pair"][0].shape == (2, 2)
    assert parts[2][0]["scalar"] == 1
