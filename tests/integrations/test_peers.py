"""What docs/index.md says of others without a figure, tried: it is wrong on the day on which this fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash

AWS = Path(sys.executable).with_name("aws")
LIGHTNING = """
from tests.integrations.programs import *
from tests.integrations.programs import _data
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import fsspec
fsspec.config.conf["s3"] = {
    "key": os.environ["AWS_ACCESS_KEY_ID"],
    "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
    "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
}
trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
                     enable_model_summary=False, callbacks=[ModelCheckpoint(dirpath="DIRPATH", save_top_k=-1)])
trainer.fit(Digits(), DataLoader(_data(), batch_size=8))
"""


def _keys(cloud, url):
    command = [AWS, "s3", "ls", "--recursive", f"{url}/"]
    listed = subprocess.run(
        command, env={**os.environ, **cloud.environment}, capture_output=True, text=True, check=True
    )
    return {line.split()[-1].rpartition("/")[2]: int(line.split()[-2]) for line in listed.stdout.splitlines()}


def test_two_jobs_with_lightning_write_side_by_side_and_an_outage_ends_training(warm, tmp_path, s3, fault_proxy):
    url = s3.fresh_url()
    program = LIGHTNING.replace("DIRPATH", url)
    for _ in range(2):
        warm(program, cwd=tmp_path, env=s3.environment)
    names = ("epoch=0-step=4", "epoch=1-step=8")
    assert _keys(s3, url).keys() == {f"{name}{version}.ckpt" for name in names for version in ("", "-v1")}
    behind = fault_proxy(s3)
    behind.proxy.close()  # nobody listens there any more
    done = warm(program, cwd=tmp_path, env=behind.environment, code=1)
    assert "EndpointConnectionError" in done.output


def test_aws_s3_sync_takes_half_a_file_and_the_files_of_another_job(tmp_path, s3):
    url, environment = s3.fresh_url(), {**os.environ, **s3.environment}

    def sync(folder, **more):
        command = [AWS, "s3", "sync", folder, url]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=False)

    for number in (1, 2):
        (tmp_path / f"job{number}").mkdir()
    with (tmp_path / "job1" / "model.pt").open("wb") as file:
        file.write(b"x" * 500)
        file.flush()
        assert sync(tmp_path / "job1").returncode == 0  # while the other half is still to come
        assert _keys(s3, url) == {"model.pt": 500}
        file.write(b"x" * 500)
    (tmp_path / "job2" / "model.pt").write_bytes(b"y" * 600)
    for number in (1, 2):
        assert sync(tmp_path / f"job{number}").returncode == 0
    assert _keys(s3, url) == {"model.pt": 600}
    done = sync(tmp_path / "job1", AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    assert done.returncode == 1
    assert "Could not connect to the endpoint" in done.stderr
