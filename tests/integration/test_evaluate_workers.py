"""`ray-gen evaluate --workers` as a user sees it: how far it is, and that Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ray_gen
from ray_gen.training.sources import open_data
from tests.helpers import gan
from tests.runs import saved

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

SLOW = "tests.evaluators.custom_extractors:Slow"
PROMPTLY = 20.0
"""Seconds. Measured: 4; Ray Train's own way took up to 65."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    this = gan("training.images=48")
    folder = tmp_path_factory.mktemp("runs") / "a" / "checkpoint_000000000048"
    return saved(this, open_data(this), folder)


@pytest.mark.slow  # where other work holds the cores, Ray's own end was seen to take 66 s
def test_the_command_tells_how_far_it_is_and_ends_when_it_is_told_to(run: Path) -> None:
    command = [sys.executable, "-m", "ray_gen", "evaluate", str(run), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--metrics", "fid", "--features", f"custom:{SLOW}"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of processes, as a terminal starts one
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    try:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line.strip())
            if said[-1] == "reference images":
                break
        assert said == ["starting 2 workers", "reference images"]
        os.killpg(process.pid, signal.SIGINT)
        begun = time.monotonic()
        _, rest = process.communicate(timeout=100)
        assert time.monotonic() - begun < PROMPTLY
        assert process.returncode == 1 and rest.strip() == "Aborted!"
    finally:
        process.kill()


def test_the_workers_of_a_cluster_that_goes_on_end_too(run: Path) -> None:
    import ray

    seen: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, what: str) -> None:
        seen.append((done, total, what))
        if done >= 128 and what == "reference images":
            raise KeyboardInterrupt

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        features = {"kind": "custom", "target": SLOW}
        with pytest.raises(KeyboardInterrupt):
            ray_gen.evaluate(run, workers=2, progress=progress, metrics=["fid"], features=features)
        begun = time.monotonic()
        while ray.available_resources().get("CPU", 0) < 2:
            assert time.monotonic() - begun < PROMPTLY
            time.sleep(0.5)
    finally:
        ray.shutdown()
    assert {told[1:] for told in seen} == {
        (1, "starting 2 workers"),
        (32 * 64, "reference images"),  # the first worker's, of 63 batches
    }
