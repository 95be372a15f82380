"""What each tool's own reader says of a run: its name there, and every (step, metric) that it shows, in order."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

LOSS = "loss/train/total"


def tensorboard(log_dir):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer  # noqa: PLC0415

    multiplexer = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(str(log_dir))
    multiplexer.Reload()
    (name,) = multiplexer.Runs()
    accumulator = multiplexer.GetAccumulator(name)
    return name, {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def wandb(folder):
    """W&B's records, of all parts in the order in which `wandb sync` takes them."""
    from artifactsync.loggers.wandb_file import read_history, read_records  # noqa: PLC0415

    names, curves = set(), {}
    for path in sorted(Path(folder).glob("*run-*/run-*.wandb")):
        if path.parent.is_symlink():
            continue
        for record in read_records(path):
            if record.WhichOneof("record_type") == "run":
                names.add((record.run.display_name, record.run.run_id, record.run.project))
        for step, row in read_history(path):
            for name, value in row.items():
                curves.setdefault(name, []).append((step, value))
    ((name, _, _),) = names
    return name, curves


def comet(folder):
    """Comet's messages, of all archives in the order in which `comet upload` takes them."""
    names, keys, curves, strategies = set(), set(), {}, []
    for path in sorted(Path(folder).glob("*.zip"), key=lambda path: ("-a" in path.name, path.name)):
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read("experiment.json"))
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        keys.add(meta["offline_id"])
        strategies.append(meta["resume_strategy"])
        for message in messages:
            payload = message["payload"]
            if message["type"] == "metric_msg":
                metric = payload["metric"]
                curves.setdefault(metric["metricName"], []).append((metric["step"], metric["metricValue"]))
            elif message["type"] == "log_other" and payload.get("key") == "Name":
                names.add(payload["value"])
    assert len(keys) == 1
    assert strategies == ["create", *["get"] * (len(strategies) - 1)]
    (name,) = names
    return name, curves


def mlflow(database, run_name="my-run"):
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"attributes.run_name = '{run_name}'")
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return run.info.run_name, {name: [(p.step, p.value) for p in points] for name, points in history.items()}


def text(path):
    curves = {}
    for line in Path(path).read_text().splitlines():
        if line.startswith("[metric]"):
            step = int(line.partition("=")[2].partition("]")[0])
            for name, value in json.loads(line.partition(": ")[2]).items():
                curves.setdefault(name, []).append((step, value))
    return None, curves


def ends(folder):
    """How W&B, Comet and MLflow show that it ended."""
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    from artifactsync.loggers.wandb_file import read_records  # noqa: PLC0415

    folder = Path(folder)
    (file,) = (path for path in folder.glob("wandb/*run-*/run-*.wandb") if not path.parent.is_symlink())
    records = {record.WhichOneof("record_type"): record for record in read_records(file)}
    (archive,) = folder.glob("comet/*.zip")
    meta = json.loads(zipfile.ZipFile(archive).read("experiment.json"))
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return {
        "wandb": (records["exit"].exit.exit_code, "preempting" in records),
        "comet": (meta["customer_error_reported"], meta["customer_error_message"]),
        "mlflow": run.info.status,
    }


def everything(folder):
    """All that a pulled run shows."""
    return {**unfinished(folder), "comet": comet(Path(folder) / "comet")}


def unfinished(folder):
    """Likewise, without Comet's archives, which the next attempt or the end makes."""
    folder = Path(folder)
    return {
        "tensorboard": tensorboard(folder / "tensorboard"),
        "wandb": wandb(folder / "wandb"),
        "mlflow": mlflow(folder / "mlflow" / "mlflow.db"),
        "file": text(folder / "logs-rank0.txt"),
    }


if __name__ == "__main__":
    # In a process of its own: the tools' packages warn of their own dependencies, and this project's tests do not let
    # warnings pass.
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](sys.argv[2])) + "\n")
