"""A run on s3:// by real Ray, and TensorBoard beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_gen.runs.checkpoints import BEST, checkpoints
from ray_gen.runs.writer import METRICS
from ray_gen.storage import Folder
from tests.s3 import S3, SECRET

SHORT = (
    "training.report_every_images=5000",
    "training.checkpoint_every_images=5000",
    "checkpoints.best={metric: elbo, mode: max}",
    "checkpoints.keep=2",
)


@pytest.fixture
def ray_folder(s3: S3) -> Iterator[Path]:
    """A Ray that knows the server by its environment, and where it writes of itself."""
    import ray

    import ray_gen.launch  # noqa: F401  (its settings come before Ray starts)

    # Paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
        ray.init(address="local", _temp_dir=folder, **options)
        yield Path(folder)
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_run_lives_on_s3(s3: S3, ray_folder: Path, capfd) -> None:
    """It is trained, goes on, is sampled and measured; the secret is nowhere."""
    import ray_gen

    uri = s3.new_bucket()
    run = Folder(uri) / "runs" / "a"
    for images in (10_000, 20_000):
        recipe = ray_gen.recipe("vae-mnist5k", *SHORT, f"training.images={images}")
        ended = ray_gen.train(recipe, storage=f"{uri}/runs", name="a", show=True)
        assert (ended.location, ended.stop) == (run.location, "all images seen")
    lines = [json.loads(line) for line in run.read_text(METRICS).splitlines()]
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
        assert names >= {"experiment.yaml", "environment.json", METRICS}
        files += [file for file in ray_folder.rglob("*") if file.is_file()]
        assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    told = capfd.readouterr()
    assert run.location in told.out
    assert SECRET not in told.out + told.err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def asked(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def scalars(port: int, run: str) -> list[float]:
    """What TensorBoard knows of loss/a of a run."""
    url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?tag=loss%2Fa&run={run}"
    return [value for _, _, value in asked(url)]


@pytest.mark.parametrize("where", ["disk", "s3"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    port = free_port()
    command = [sys.executable, "-m", "ray_gen", "tensorboard", location, "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--every", "0.5"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if re.search(rf"http://127\.0\.0\.1:{port}", line):
                break
        expected = [1.0]
        for value in (2.0, 3.0):
            deadline = time.monotonic() + 60
            while True:
                try:
                    found = scalars(port, "one%2Ftensorboard")
                except OSError:  # not read yet
                    found = []
                if found == expected:
                    break
                assert time.monotonic() < deadline, (found, expected)
                time.sleep(0.5)
            write(value)
            expected.append(value)
        server.send_signal(number)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    with pytest.raises(OSError):
        asked(f"http://127.0.0.1:{port}/data/runs")
    assert not list(tmp_path.glob("ray_gen-*"))


def test_tensorboard_tells_what_it_cannot_show(s3: S3, tmp_path: Path) -> None:
    for location in (s3.new_bucket() + "/nothing", str(tmp_path / "nothing")):
        command = [sys.executable, "-m", "ray_gen", "tensorboard", location]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert f"error: {location}: there is no such folder" in ended.stderr


def test_tensorboard_on_a_port_that_is_taken_ends(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "ray_gen", "tensorboard", str(tmp_path), "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "failed: TensorBoard ended" in ended.stderr and port in ended.stderr
