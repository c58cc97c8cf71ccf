"""Runs without Ray: a process of this machine trains, and the driver starts it again if it dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import ray_gen
from ray_gen.distributed import World
from ray_gen.errors import Failed, Refused
from ray_gen.experiment import Experiment
from ray_gen.launch.place import cores, why_ray
from ray_gen.launch.processes import Process, children_of, start_of, with_descendants
from ray_gen.runs.checkpoints import checkpoints
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train as loop
from ray_gen.training.sources import open_data
from ray_gen.training.state import State
from tests.data.pictures import write_classes
from tests.helpers import largest_difference, some_of, vae, wait_until, weights

SHORT = ("training.images=480", "training.checkpoint_every_images=240")
LONG = ("training.images=24000000", "training.checkpoint_every_images=24000", "checkpoints.keep=2")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # so that no cluster is found
    return write_classes(tmp_path / "images", {"a": 20, "b": 20})


def given(images: Path, *overrides: str) -> Experiment:
    return Experiment.from_yaml(
        vae().to_yaml(), [f"data=folder:{images}", "workers.cpus=1", *overrides]
    )


def workers() -> list[Process]:
    """The processes that train for this one."""
    named = []
    for process in children_of(os.getpid()):
        with suppress(OSError):  # it has just ended
            if b"ray_gen.launch.alone" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                named.append(process)
    return named


def final(run: Path, experiment: Experiment) -> State:
    state = State.build(experiment, build_objective(experiment), World())
    state.load(checkpoints(Folder(str(run)))[0].path)
    return state


def test_it_trains_what_the_loop_trains_bit_for_bit_and_imports_no_ray(
    images: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, ray_gen\n"
        f"run = ray_gen.train(ray_gen.recipe({str(tmp_path / 'e.yaml')!r}), name='a', "
        f"storage={str(tmp_path)!r})\n"
        "assert 'ray' not in sys.modules\n"
        "print(run.images, run.stop)"
    )
    (tmp_path / "e.yaml").write_text(given(images, *SHORT).to_yaml())
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "480 all images seen", ended
    run = tmp_path / "a"
    assert {"experiment.yaml", "environment.json", "metrics.jsonl"} <= {
        p.name for p in run.iterdir()
    }
    assert not {"writer.json", "stop"} & {p.name for p in run.iterdir()}
    this = Experiment.from_yaml((run / "experiment.yaml").read_text())
    ours = State.build(this, build_objective(this), World())
    for _ in loop(this, build_objective(this), ours, open_data(this), World()):
        pass
    assert largest_difference(weights(ours), weights(final(run, this))) == 0


def has_checkpoints(run: Folder, count: int) -> bool:
    return len(checkpoints(run)) >= count


def is_replaced(dead: Process) -> bool:
    return bool({*workers()} - {dead})


def test_a_killed_process_changes_nothing(images: Path, tmp_path: Path) -> None:
    experiment = given(images, "training.images=24000", "training.checkpoint_every_images=2400")
    undisturbed = ray_gen.train(experiment, storage=str(tmp_path), name="a", local=True)
    killed: list[int] = []

    def kill() -> None:
        run = Folder(str(tmp_path / "b"))
        for saved in (1, 2):
            wait_until(partial(has_checkpoints, run, saved), "a checkpoint")
            (one,) = workers()
            one.kill()
            killed.append(one.pid)
            wait_until(partial(is_replaced, one), "a new process")

    thread = threading.Thread(target=kill)
    thread.start()
    run = ray_gen.train(experiment, storage=str(tmp_path), name="b", local=True)
    thread.join()
    assert len(killed) == 2 and run.images == undisturbed.images
    this = Experiment.from_yaml((tmp_path / "b" / "experiment.yaml").read_text())
    before, after = (weights(final(tmp_path / name, this)) for name in "ab")
    assert largest_difference(before, after) == 0
    assert not workers()


@pytest.mark.slow  # it is replaced as one that trains, which is tested above
def test_a_process_that_is_killed_while_it_starts_is_replaced(images: Path, tmp_path: Path) -> None:
    experiment = given(images, *SHORT)

    def kill() -> None:
        wait_until(lambda: bool(workers()), "the process")
        workers()[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    run = ray_gen.train(experiment, storage=str(tmp_path), name="a", local=True)
    thread.join()
    assert run.images == 480


def test_a_process_that_dies_too_often_ends_the_run(images: Path, tmp_path: Path) -> None:
    experiment = given(images, *LONG, "workers.max_restarts=0")

    def kill() -> None:
        wait_until(lambda: (tmp_path / "a" / "progress.json").exists(), "the first step")
        workers()[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(Failed, match=r"more often than workers\.max_restarts allows: .*SIGKILL\)$"):
        ray_gen.train(experiment, storage=str(tmp_path), name="a")
    thread.join()


COMMAND = [sys.executable, "-m", "ray_gen", "train"]


def command(images: Path, tmp_path: Path, *overrides: str) -> subprocess.Popen[str]:
    (tmp_path / "e.yaml").write_text(given(images, *overrides).to_yaml())
    return subprocess.Popen(
        [*COMMAND, str(tmp_path / "e.yaml"), "--storage", str(tmp_path), "--name", "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def of(driver: subprocess.Popen[str]) -> set[Process]:
    """The processes that a driver started."""
    started = start_of(driver.pid)
    assert started is not None
    mine = Process(driver.pid, started)
    return with_descendants({mine}) - {mine}


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_whole_group_saves_first(
    images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    driver = command(images, tmp_path, *LONG)
    wait_until(lambda: (tmp_path / "a" / "progress.json").exists(), "the first step")
    started = of(driver)
    os.killpg(driver.pid, number)
    told, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, told
    assert "saving and stopping" in told and "asked to stop" in told
    assert f"  resume: ray-gen resume {tmp_path}" in told
    assert len(checkpoints(Folder(str(tmp_path / "a")))) > 0
    assert not [process for process in started if process.lives]


def test_nothing_is_left_of_a_driver_that_is_killed(images: Path, tmp_path: Path) -> None:
    driver = command(images, tmp_path, *LONG)
    wait_until(lambda: (tmp_path / "a" / "progress.json").exists(), "the first step")
    started = of(driver)
    assert started
    driver.kill()
    wait_until(lambda: not any(process.lives for process in started), "the end of all")
    driver.communicate()


MINE = """
import os
import sys
import threading
from ray_gen.networks.mlp import Mlp

HOW = [os.environ["HOW"]] if "ray_gen.launch.alone" in sys.orig_argv else []  # not in the driver


class Mine(Mlp):
    def forward(self, inputs, *more):
        how = HOW.pop() if HOW and self.training else None
        if how == "prints":
            print("seen by", os.getpid())
        if how == "waits":
            threading.Thread(target=threading.Event().wait).start()
        if how == "breaks":
            raise RuntimeError("broken on purpose")
        return super().forward(inputs, *more)
"""


@pytest.mark.parametrize("how", some_of(("prints", "breaks", "waits"), "prints", "breaks"))
def test_what_a_users_class_prints_or_raises_is_told_and_its_threads_hold_up_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("HOW", how)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "mine.py").write_text(MINE)
    mine = (
        "networks.encoder={kind: custom, target: 'mine:Mine', options: {hidden_sizes: [8], "
        "activation: relu, initial_weights: glorot, label_size: 0, spectral_norm: false}}"
    )
    driver = command(images, tmp_path, *SHORT, mine)
    told, _ = driver.communicate(timeout=120)
    if how == "prints":
        found = re.search(r"^seen by (\d+)$", told, re.MULTILINE)
        assert found is not None and int(found[1]) != driver.pid, told
        assert driver.returncode == 0, told
    elif how == "waits":
        assert driver.returncode == 0, told
    else:
        assert driver.returncode == 1, told
        assert "RuntimeError: broken on purpose" in told and "mine.py" in told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["workers.count=2"], r"^--local: workers\.count=2 needs Ray"),
        (["workers.count={min: 1, max: 2}"], "^--local: an elastic number of workers"),
        (
            ["evaluation.every_images=240", "evaluation.placement=beside"],
            r"^--local: evaluation\.placement=beside",
        ),
        (["workers.gpu=true"], r"workers\.gpu: true, and torch sees no GPU"),
        ([f"workers.cpus={cores() + 1}"], rf"workers\.cpus: {cores() + 1}, and this machine has"),
    ],
)
def test_what_one_process_cannot_do_is_refused(
    images: Path, tmp_path: Path, overrides: list[str], told: str
) -> None:
    with pytest.raises(Refused, match=told):
        ray_gen.train(given(images, *overrides), storage=str(tmp_path), name="a", local=True)
    assert not (tmp_path / "a").exists()


def test_ray_is_used_only_where_it_is_needed_asked_for_or_there(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = given(images)
    assert why_ray(one, None) is None
    assert why_ray(one, False) == "--ray"
    assert why_ray(given(images, "workers.count=2"), None) == "workers.count=2"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert why_ray(one, None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert why_ray(one, None) == "RAY_ADDRESS=10.0.0.1:6379"
    assert why_ray(one, True) is None
