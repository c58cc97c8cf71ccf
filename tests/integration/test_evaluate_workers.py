"""`ray-gen evaluate --workers` as a user sees it: it shows its progress, and Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import ray_gen
from ray_gen.training.sources import open_data
from tests.helpers import PATIENCE_SECONDS, gan, started, wait_until
from tests.integration.conftest import CORES
from tests.runs import saved

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SLOW = "tests.integration.broken:Slow"
BATCHES = 125
"""Of 16 images, for each of two workers. They take longer than any of the tests waits."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    this = gan("training.images=48")
    folder = tmp_path_factory.mktemp("runs") / "a" / "checkpoint_000000000048"
    return saved(this, open_data(this), folder)


def test_the_command_shows_its_progress_and_ctrl_c_ends_it(run: Path, apart) -> None:
    command = [sys.executable, "-m", "ray_gen", "evaluate", str(run), "--workers", "2"]
    process = started(
        [*command, "--metrics", "fid", "--features", f"custom:{SLOW}", "--batch-size", "16"],
        env=apart,
        start_new_session=True,  # a group of processes, as a terminal starts one
    )
    try:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line.strip())
            if said[-1] == "reference images":
                break
        took = "a: checkpoint of 48 images, EMA"
        assert said == [took, "starting 2 workers", "reference images"]
        os.killpg(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 130 and rest.strip() == "stopped"
    finally:
        process.kill()


def test_ctrl_c_also_ends_the_workers_of_a_cluster_that_goes_on(cluster, run: Path) -> None:
    import ray

    seen: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, what: str) -> None:
        seen.append((done, total, what))
        if done >= 32 and what == "reference images":
            raise KeyboardInterrupt

    asked = {"metrics": ["fid"], "features": {"kind": "custom", "target": SLOW}, "batch_size": 16}
    with pytest.raises(KeyboardInterrupt):
        ray_gen.evaluate(run, workers=2, progress=progress, **asked)
    wait_until(lambda: ray.available_resources().get("CPU") == CORES, "the workers' end")
    assert {told[1:] for told in seen} == {
        (1, "starting 2 workers"),
        (BATCHES * 16, "reference images"),  # the first worker's
    }
