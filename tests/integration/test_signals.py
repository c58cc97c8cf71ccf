"""Signals to all processes of a command, as `timeout`, Slurm and systemd send them, with a Ray that
the command itself starts. In a working directory whose files have the names of modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_gen.launch.processes import Process, children_of, start_of, with_descendants
from tests.data.pictures import noise, write
from tests.helpers import PATIENCE_SECONDS, started, wait_until

pytestmark = pytest.mark.ray

RAY_GEN = Path(sys.executable).with_name("ray-gen")  # `python -m` puts the working directory first
NETWORK = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, signature, *, size):
        super().__init__()
        channels, height, width = signature.image_shape
        self.layer = nn.Linear(channels * height * width, signature.vector_size)

    def forward(self, images, labels=None):
        return self.layer(images.flatten(1))
"""


def hiding(folder: Path) -> Path:
    """A new folder with files that would hide modules from a process that looks there first."""
    (folder / "ray_gen").mkdir(parents=True)
    for name in ("torch.py", "numpy.py", "safetensors.py", "ray_gen/__init__.py"):
        (folder / name).write_text("raise ImportError('a file of the user')")
    return folder


class Command:
    """`ray-gen train` in a folder of its own, all its processes, and what it has said."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        here = hiding(folder / "here")
        (here / "mine.py").write_text(NETWORK)
        self.run = folder / "runs" / "a"
        self.said: list[str] = []
        self._process = started(
            [
                *(str(RAY_GEN), "train", "vae-mnist5k", "workers.count=2", "workers.cpus=1"),
                "networks.encoder={kind: custom, target: 'mine:Mine', options: {size: 1}}",
                *("training.images=100000000", "training.report_every_images=5000"),
                *("training.checkpoint_every_images=10000", "--name", "a"),
                *("--storage", str(folder / "runs")),
            ],
            env=environment,
            cwd=here,
            start_new_session=True,
            stderr=subprocess.STDOUT,
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.strip())

    @property
    def processes(self) -> set[Process]:
        """The command itself and all that it has started."""
        pid = self._process.pid
        return with_descendants([Process(pid, start_of(pid) or "")])

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        wait_until(lambda: condition() or self._process.poll() is not None, what)
        assert self._process.poll() is None, self.said

    def ends(self) -> int:
        """Its exit code."""
        code = self._process.wait(PATIENCE_SECONDS)
        self._reading.join(PATIENCE_SECONDS)
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def command(tmp_path: Path, apart: dict[str, str]):
    one = Command(tmp_path, apart)
    yield one
    one.kill()


def to_all(command: Command, number: int) -> set[Process]:
    """Sends a signal to every process of a command."""
    processes = command.processes
    for process in processes:
        os.kill(process.pid, number)
    return processes


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("reading data", signal.SIGTERM),
        pytest.param("starting Ray", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("reading data", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("starting Ray", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_before_training_all_ends_and_nothing_is_promised(
    command: Command, stage: str, number: int
) -> None:
    if stage == "starting Ray":  # in its middle
        command.wait_for(lambda: len(command.processes) > 4, "Ray's first processes")
    command.wait_for(lambda: any(line.startswith(stage) for line in command.said), stage)
    processes = to_all(command, number)
    assert command.ends() == 128 + number
    assert command.said[-1] == "stopped: training had not begun; nothing was saved"
    assert "saving" not in "".join(command.said)
    assert not any(process.lives for process in processes)
    assert not command.run.exists()


def is_training(command: Command) -> bool:
    return (command.run / "progress.json").exists()


def is_starting(command: Command) -> bool:
    return "starting 2 workers" in command.said


def has_a_controller(command: Command) -> bool:
    """Ray Train is starting the workers."""
    return any(process.name.startswith("ray::Train") for process in command.processes)


def has_saved(command: Command) -> bool:
    return any(command.run.glob("checkpoint_*/manifest.json"))


@pytest.mark.slow  # tests/launch/test_alone.py has the same without Ray
@pytest.mark.parametrize("stage", [has_a_controller, is_training, has_saved])
def test_a_signal_to_all_processes_saves(command: Command, stage) -> None:
    command.wait_for(lambda: stage(command), "the stage")
    processes = to_all(command, signal.SIGTERM)
    assert command.ends() == 130
    assert any("asked to stop" in line for line in command.said)
    words = ("saving and stopping", "images", "resume:", "look:", "sample:")
    after = command.said[command.said.index("starting 2 workers") + 1 :]
    assert all(any(word in line for word in words) for line in after), "words of Ray"
    assert has_saved(command)
    assert not any(process.lives for process in processes)


def test_no_process_outlives_a_command_that_is_killed(command: Command) -> None:
    command.wait_for(lambda: is_starting(command), "a whole Ray")
    processes = command.processes
    assert len(processes) > 8
    began = time.monotonic()
    (own,) = {one for one in children_of(os.getpid()) if one in processes}
    own.kill()
    assert command.ends() == -signal.SIGKILL
    wait_until(lambda: not any(one.lives for one in processes), "the end of all")
    assert time.monotonic() - began < 30.0, "Ray's agents wait a minute"


def test_an_interrupted_conversion_says_so_at_once(tmp_path: Path, apart: dict[str, str]) -> None:
    folder = tmp_path / "set"
    first = write(folder / "0.png", noise(1200, 1200, 3))
    for number in range(1, 400):
        (folder / f"{number}.png").hardlink_to(first)
    process = started(
        [
            *(str(RAY_GEN), "data", "convert", str(folder), str(tmp_path / "to")),
            *("data.image_size=64", "--shard-images", "100"),
        ],
        env=apart,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != "images":
            assert process.poll() is None, line
        processes = with_descendants([Process(process.pid, start_of(process.pid) or "")])
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        assert process.stdout.readline().strip() == "stopping"
        assert time.monotonic() - asked < 2
        assert process.wait(PATIENCE_SECONDS) == 130
        assert time.monotonic() - asked < 2
        assert "run the same command again" in process.stdout.read()
        wait_until(lambda: not any(one.lives for one in processes), "all processes to end")
        assert not (tmp_path / "to" / "writer.json").exists()
    finally:
        process.kill()


HEARS = """
import os, signal
from ray_gen.launch.cluster import connected

signal.signal(signal.SIGTERM, lambda number, frame: print("heard", flush=True))
with connected():
    pass
os.kill(os.getpid(), signal.SIGTERM)
print("goes on")
"""


def test_sigterm_is_heard_after_the_end_of_ray(apart: dict[str, str]) -> None:
    """`ray.shutdown` gives SIGTERM its default action: a search then died before its report."""
    ended = subprocess.run(
        [sys.executable, "-c", HEARS], env=apart, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split("\n") == ["heard", "goes on", ""]
