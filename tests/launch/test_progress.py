"""What a run tells of itself while it goes on, and the line that it becomes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_gen.distributed import World
from ray_gen.launch.progress import LOG_SECONDS, ProgressLine, read_progress
from ray_gen.runs.writer import PROGRESS, Pace, RunWriter
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import Report
from ray_gen.training.state import State
from tests.helpers import vae


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.time", lambda: clock.now)
    return clock


def test_the_pace_is_of_training_alone(clock: Clock) -> None:
    pace = Pace()
    assert pace.rate is None
    for images in range(0, 1001, 100):  # 100 images a second
        pace.trained(images)
        clock.passes(1.0)
    assert pace.rate == pytest.approx(100)
    pace.interrupted()
    clock.passes(500.0)
    pace.trained(1100)
    clock.passes(1.0)
    pace.trained(1200)
    assert pace.rate == pytest.approx(100)


def test_the_pace_forgets_what_was_slow_at_first(clock: Clock) -> None:
    pace = Pace()
    pace.trained(0)
    clock.passes(60.0)  # compiling
    pace.trained(100)
    slow = pace.rate
    for images in range(200, 5000, 100):
        clock.passes(1.0)
        pace.trained(images)
    assert slow < 2
    assert pace.rate == pytest.approx(100)


@pytest.fixture
def writer(store_8, tmp_path: Path) -> Iterator[RunWriter]:
    this = vae()
    objective = build_objective(this)
    state = State.build(this, objective, World())
    writer = RunWriter(Folder(str(tmp_path)), this, objective, store_8, state)
    yield writer
    writer.close()


def test_a_run_tells_what_it_is_doing(writer: RunWriter, clock: Clock, tmp_path: Path) -> None:
    def told() -> dict[str, Any]:
        found = read_progress(Folder(str(tmp_path)), PROGRESS)
        assert found is not None
        return found

    for images in (24, 48, 72):
        writer.progress(images, {"loss/kl": 1.0})
        clock.passes(2.0)
    expected = {"doing": "training", "images": 72, "rate": 12.0, "metrics": {"loss/kl": 1.0}}
    assert told() == expected
    with writer.evaluating(72):
        assert told() == expected | {"doing": "evaluating"}
        clock.passes(100.0)
    writer.report(Report(3, 72, {"loss/kl": 2.0}, save=True, evaluate=True))
    assert told()["doing"] == "training"
    assert told()["metrics"]["loss/kl"] == 2.0
    for images in (96, 120):
        clock.passes(2.0)
        writer.progress(images, {"loss/kl": 2.0})
    assert told()["rate"] == 12.0


def progress(images: int, doing: str = "training", rate: float | None = 50.0) -> dict[str, Any]:
    metrics = {"loss/kl": 1.0, "speed/images_per_second": 40.0}
    return json.loads(
        json.dumps({"doing": doing, "images": images, "rate": rate, "metrics": metrics})
    )


def test_the_line_says_how_long_it_takes_at_the_pace_of_training(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressLine(1000, show=True) as line:
        for told in (
            progress(0, rate=None),
            progress(500),
            progress(500, "evaluating"),
            progress(900, rate=None),
            progress(1008),  # whole batches
        ):
            line.trained(told)
            clock.passes(LOG_SECONDS + 1)
            line.trained(told)
            line.trained(told)
    said = capsys.readouterr().err.splitlines()
    beginnings = [text.split("  ")[0] for text in said]
    assert beginnings == ["25 s left", "10 s left", "evaluating", "2 s left", "0 s left"]
    assert said[1] == "10 s left  500/1,000 images  50/s  kl 1"
    assert all(text.count("500/1,000") <= 1 for text in said)


def test_an_evaluation_is_told_of_though_it_begins_just_after_a_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressLine(1000, show=True) as line:
        line.trained(progress(100))
        clock.passes(LOG_SECONDS)
        line.trained(progress(200))
        clock.passes(1.0)
        for _ in range(int(5 * LOG_SECONDS)):
            line.trained(progress(200, "evaluating"))
            clock.passes(0.5)
    said = capsys.readouterr().err.splitlines()
    assert [text.split("  ")[0] for text in said] == ["16 s left", "evaluating"]


def test_workers_that_begin_again_and_what_they_passed_over_are_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressLine(1000, show=True) as line:
        line.trained(progress(400))
        for images in (200, 300):
            line.trained(progress(images) | {"passed_over": ["checkpoint_400: is damaged"]})
        line.say_once("checkpoint_400: is damaged")
    told = capsys.readouterr().err
    assert told.count("the workers were started again, at 200 images") == 1
    assert told.count("checkpoint_400: is damaged") == 1


def test_a_failure_that_the_objective_sees_is_a_warning_told_once(
    writer: RunWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "D has won since 10 images"
    with ProgressLine(1000, show=True) as line:
        for step, failure in enumerate((None, why, why), start=1):
            writer.report(Report(step, 24 * step, {"loss/kl": 2.0}, save=False, failure=failure))
            found = read_progress(Folder(str(tmp_path)), PROGRESS)
            assert found is not None and found.get("failure") == failure
            line.trained(found)
    assert capsys.readouterr().err.splitlines().count(f"warning: {why}") == 1
