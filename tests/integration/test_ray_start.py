"""A cluster as users start it, with `ray start` and a token: with it a job runs, without it nothing
does; and what a machine's notice does to a run. Takes minutes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ray_gen.launch.ray_private import hears_notices
from tests.helpers import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
RAY = Path(sys.executable).with_name("ray")

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[dict[str, str], int, int]]:
    """The environment of a user who has the token, and the ports of GCS and dashboard."""
    # A short path: it holds sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as home:
        yield from _started(Path(home))


def _started(home: Path) -> Iterator[tuple[dict[str, str], int, int]]:
    gcs, dashboard = free_port(), free_port()
    given = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    given |= {"HOME": str(home), "RAY_TMPDIR": str(home)}
    given |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=given, check=True)
    (home / ".ray" / "auth_token").chmod(0o600)
    start = [RAY, "start", "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1"]
    options = [f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    more = [f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=2"]
    subprocess.run([*start, *options, *more], env=given, check=True)
    try:
        yield given, gcs, dashboard
    finally:
        ours = list(_with_home(str(home)))
        for process in [*(c for p in ours for c in _children(p)), *ours]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _with_home(home: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == home:
                yield process


def _children(process: psutil.Process) -> list[psutil.Process]:
    """Ray's processes rename themselves, and their environment is gone with the old name."""
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def submitted(given: dict[str, str], dashboard: int, storage: Path, *words: str):
    command = ["jobs/train.py", "vae-mnist5k", "training.images=2000", *words]
    return subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", sys.executable, *command,
         "--storage", str(storage), "--name", "a"],
        cwd=ROOT,
        env={**given, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
        capture_output=True,
        text=True,
    )  # fmt: skip


def test_with_the_token_a_job_trains(cluster, tmp_path: Path) -> None:
    given, _, dashboard = cluster
    job = submitted(given, dashboard, tmp_path)
    assert job.returncode == 0, job.stdout + job.stderr
    assert list((tmp_path / "a").glob("checkpoint_*/manifest.json"))


def test_a_job_that_is_refused_says_so_by_its_exit_code(cluster, tmp_path: Path) -> None:
    given, _, dashboard = cluster
    job = submitted(given, dashboard, tmp_path, "training.imags=3")
    assert job.returncode == 1
    assert "did you mean training.images?" in job.stdout


def test_without_the_token_nothing_runs(cluster, tmp_path: Path) -> None:
    given, gcs, dashboard = cluster
    stranger = {**given, "HOME": str(tmp_path)}
    del stranger["RAY_AUTH_MODE"]  # with it, ray refuses on this side and never asks the cluster
    job = submitted(stranger, dashboard, tmp_path)
    assert job.returncode == 1
    assert "AuthenticationError" in job.stderr, job.stderr
    driver = subprocess.run(
        [sys.executable, "-m", "ray_gen", "train", "vae-mnist5k", "--storage", str(tmp_path)],
        env={**stranger, "RAY_ADDRESS": f"127.0.0.1:{gcs}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert driver.returncode != 0
    assert "uthenticat" in driver.stderr, driver.stderr
    assert not list(tmp_path.glob("*/checkpoint_*"))


def test_the_dashboard_is_on_the_loopback_alone(cluster) -> None:
    _, _, dashboard = cluster

    def addresses() -> set[str]:
        return {
            connection.laddr.ip
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == dashboard
        }

    wait_until(addresses, "the dashboard")
    assert addresses() == {"127.0.0.1"}


def test_a_machine_that_goes_has_its_training_save(cluster, tmp_path: Path) -> None:
    """The last test: nothing more begins on the node."""
    if not hears_notices():
        pytest.skip("before 2.58 Ray tells workers nothing of it")
    given, gcs, _ = cluster
    told = {**given, "RAY_ADDRESS": f"127.0.0.1:{gcs}", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    train = [sys.executable, "-m", "ray_gen", "train", "vae-mnist5k", "workers.count=1"]
    options = ["training.images=50000000", "training.checkpoint_every_images=50000000"]
    with subprocess.Popen(
        [*train, *options, "--storage", str(tmp_path), "--name", "a"], env=told, cwd=ROOT
    ) as driver:
        try:
            wait_until((tmp_path / "a" / "progress.json").exists, "the training")
            notice = [sys.executable, "-m", "ray_gen.launch.notice", "--now", "40"]
            with subprocess.Popen(notice, env={**told, "RAY_ADDRESS": ""}, cwd=ROOT) as telling:
                manifests = "checkpoint_*/manifest.json"
                wait_until(lambda: any((tmp_path / "a").glob(manifests)), "the checkpoint")
                assert telling.poll() is None, "the notice must wait while the training saves"
                telling.kill()
        finally:
            driver.kill()
