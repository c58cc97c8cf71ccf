"""A run on s3:// by real Ray, and TensorBoard beside it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import ray_gen
from ray_gen.cli import main
from ray_gen.experiment import Experiment
from ray_gen.launch.worker import reports
from ray_gen.runs.checkpoints import BEST, checkpoint_name, checkpoints, commit
from ray_gen.runs.writer import METRICS_FILE
from ray_gen.storage import Folder
from ray_gen.training.sources import class_names, open_data
from tests.helpers import PATIENCE_SECONDS, started, wait_until
from tests.s3 import S3, SECRET

SHORT = (
    "training.report_every_images=5000",
    "training.checkpoint_every_images=5000",
    "checkpoints.best={metric: elbo, mode: max}",
    "checkpoints.keep=2",
    "networks.encoder.hidden_sizes=[32]",
    "networks.decoder.hidden_sizes=[32]",
    "workers.cpus=1",
)


def recipe(*overrides: str) -> Experiment:
    return ray_gen.recipe("vae-mnist5k", *SHORT, *overrides)


@pytest.mark.ray
def test_a_run_lives_on_s3(s3: S3, cluster: Path, capfd) -> None:
    """It is begun without Ray, goes on, is sampled and measured; the secret is nowhere. Its name
    has letters that a URI cannot have."""
    uri = s3.new_bucket()
    run = Folder(uri) / "runs" / "ä 猫"
    begun = recipe("training.images=10000")
    store = open_data(begun)
    begun = begun.resolved(store.image_shape, class_names(store), store.digest)
    for report, saved in reports(begun, run, torch.device("cpu")):
        commit(saved, run, checkpoint_name(report.images))
    ended = ray_gen.train(
        recipe("training.images=20000"), storage=f"{uri}/runs", name="ä 猫", show=True
    )
    assert (ended.location, ended.stop) == (run.location, "all images seen")
    lines = [json.loads(line) for line in run.read_text(METRICS_FILE).splitlines()]
    assert [line["images"] // 5000 for line in lines] == [1, 2, 3, 4]
    assert len(checkpoints(run)) == 2
    assert not [name for name in run.names() if name.startswith(".check") or name == "writer.json"]

    for of in (run, run / BEST, checkpoints(run)[1]):
        assert ray_gen.load(of.location).sample(4, seed=0).shape == (4, 1, 28, 28)
    asked = {"metrics": ["sliced_wasserstein"], "count": 100}
    (score,) = ray_gen.evaluate(run.location, **asked)
    assert score.value > 0

    with run.fetched() as folder:
        files = [file for file in folder.rglob("*") if file.is_file()]
        names = {file.name for file in files}
        assert names >= {"experiment.yaml", "environment.json", METRICS_FILE}
        of_ray = [file for file in cluster.rglob("*") if file.is_file()]
        assert of_ray
        for file in (*files, *of_ray):
            with contextlib.suppress(FileNotFoundError):  # Ray's processes come and go
                assert SECRET.encode() not in file.read_bytes(), file
    told = capfd.readouterr()
    assert run.location in told.out
    assert SECRET not in told.out + told.err


def asked(url: str) -> dict:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def scalars(port: int, run: str) -> list[float]:
    """What TensorBoard knows of loss/a of a run. Empty before it has read the run."""
    url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?tag=loss%2Fa&run={run}"
    try:
        return [value for _, _, value in asked(url)]
    except OSError:
        return []


WATCHED = [
    pytest.param("disk", signal.SIGINT, marks=pytest.mark.slow),
    ("s3", signal.SIGTERM),
]


@pytest.mark.parametrize(("where", "number"), WATCHED)
def test_tensorboard_shows_what_comes_to_a_run(
    s3: S3, tmp_path: Path, where: str, number: int
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    location = str(tmp_path / "runs") if where == "disk" else s3.new_bucket() + "/runs"
    events = SummaryWriter(str(tmp_path / "local"))

    def write(value: float) -> None:
        events.add_scalar("loss/a", value, int(value))
        events.flush()
        (Folder(location) / "one").put(tmp_path / "local", "tensorboard")

    write(1.0)
    command = [sys.executable, "-m", "ray_gen", "tensorboard", location, "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    server = started([*command, "--every", "0.5"], env=environment, start_new_session=True)
    assert server.stdout is not None and server.stderr is not None
    try:
        port = next(
            int(found[1])
            for line in server.stderr
            if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line))
        )
        expected = [1.0]
        for value in (2.0, 3.0):
            wait_until(lambda: scalars(port, "one") == expected, str(expected))
            write(value)
            expected.append(value)
        server.send_signal(number)
        assert server.wait(PATIENCE_SECONDS) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):  # no process is left
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()
    with pytest.raises(OSError):
        asked(f"http://127.0.0.1:{port}/data/runs")
    assert not list(tmp_path.glob("ray_gen-*"))


def test_tensorboard_tells_what_it_cannot_show(s3: S3, tmp_path: Path) -> None:
    for location in (s3.new_bucket() + "/nothing", str(tmp_path / "nothing")):
        ended = CliRunner().invoke(main, ["tensorboard", location])
        assert ended.exit_code == 2
        assert f"error: {location}: there is no such folder" in ended.stderr


def test_tensorboard_on_a_port_that_is_taken_ends(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "ray_gen", "tensorboard", str(tmp_path), "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "failed: TensorBoard ended" in ended.stderr and port in ended.stderr
