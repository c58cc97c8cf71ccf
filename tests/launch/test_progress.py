"""What a run tells of itself while it goes on, and the line that it becomes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Failed, Interrupted, Refused
from ray_gen.launch.claim import Claim
from ray_gen.launch.progress import LOG_SECONDS, ProgressLine, read_progress, scores
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.runs.pace import Pace
from ray_gen.runs.progress import PROGRESS
from ray_gen.runs.progress import read_progress as progress_of
from ray_gen.runs.writer import RunWriter
from ray_gen.storage import Folder, StorageError
from ray_gen.training.build import build_objective
from ray_gen.training.loop import ASKED, Control, Report, train
from ray_gen.training.meter import Meter, NonFiniteError
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


def estimates(clock: Clock, total: int, every: int | None) -> Iterator[tuple[int, float, float]]:
    """(images, estimate, truth) at each second of a run of 500 images a second, in which reports
    take 1 s, evaluations 12 s and the first step 20 s, while others slow it down at times."""
    pace = Pace(total, every)
    told: list[tuple[int, float | None, float]] = []
    clock.passes(20.0)
    images = 0
    while images < total:
        pace.trained(images)
        told.append((images, pace.left(images), clock.now))
        slow = 1.5 if int(clock.now) % 7 < 2 else 1.0
        clock.passes(slow)
        images += 500
        if every is not None and images % every == 0:
            pace.evaluates()
            clock.passes(12.0)
            pace.evaluated()
        if images % 5_000 == 0:
            pace.interrupted()
            clock.passes(1.0)
    end = clock.now
    for seen, left, now in told:
        if left is not None:
            yield seen, left, end - now


@pytest.mark.parametrize("every", [None, 10_000, 3_000, 40_000])
def test_the_time_left_counts_all_that_interrupts_training(clock: Clock, every: int | None) -> None:
    found = list(estimates(clock, 200_000, every))
    assert found[0][0] <= 2_000  # soon
    for images, left, truth in found:
        if images > max(20_000, every or 0):  # a tenth, and the first evaluation has ended
            assert left == pytest.approx(truth, rel=0.3, abs=15)
    _, first, truth = found[0]
    assert truth / 4 < first < truth * 1.5


def test_evaluations_that_the_time_left_does_not_count_are_told(clock: Clock) -> None:
    pace = Pace(10_000, 3_000)
    pace.trained(0)
    clock.passes(4.0)
    pace.trained(1_000)
    assert (pace.left(1_000), pace.unknown_evaluations(1_000)) == (pytest.approx(36.0), 4)
    pace.evaluates()
    assert pace.evaluation_left is None
    clock.passes(10.0)
    pace.evaluated()
    assert (pace.left(3_000), pace.unknown_evaluations(3_000)) == (pytest.approx(58.0), 0)
    pace.evaluates()
    clock.passes(4.0)
    assert pace.evaluation_left == pytest.approx(6.0)


def test_a_last_step_with_an_evaluation_has_one() -> None:
    for total, every, batch, expected in (
        (300_032, 100_000, 128, 3),  # 300,000 lies in the last step
        (300_000, 100_000, 100, 3),
        (320_000, 100_000, 100, 4),
    ):
        assert Pace(total, every, batch).unknown_evaluations(0) == expected


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
        assert (found.pop("state"), found.pop("why"), found.pop("of")) == ("training", None, 480)
        assert found.pop("time") == clock.now - since
        found.pop("seconds_left")
        return found

    since = 2.0
    for images in (24, 48, 72):
        writer.progress(images, {"loss/kl": 1.0})
        clock.passes(2.0)
    expected = {"doing": "training", "images": 72, "rate": 12.0, "metrics": {"loss/kl": 1.0}}
    assert told() == expected
    since = 0.0
    with writer.evaluating(72):
        assert told() == expected | {"doing": "evaluating"}
        for done in (50, 100):
            clock.passes(2.0)
            writer.evaluated_so_far(done, 200, "generated images")
        part = {"what": "generated images", "done": 100, "of": 200, "seconds_left": 4.0}
        assert told() == expected | {"doing": "evaluating", "part": part}
        clock.passes(96.0)
    writer.report(Report(3, 72, {"loss/kl": 2.0}, save=True, evaluate=True))
    assert told()["doing"] == "training"
    assert told()["metrics"]["loss/kl"] == 2.0
    for images in (96, 120):
        clock.passes(2.0)
        writer.progress(images, {"loss/kl": 2.0})
    assert told()["rate"] == 12.0


def test_losses_are_shown_before_the_first_report(store_8, tmp_path: Path) -> None:
    """Values of the last updates, which the report still counts."""
    this = vae("training.report_every_images=240")
    objective = build_objective(this)
    meter = Meter(this.training.global_batch_size, World())
    state = State.build(this, objective, World())
    seen: list[dict[str, float]] = []

    def control(images: int) -> Control:
        seen.append(meter.latest())
        return Control.GO_ON

    run = train(this, objective, state, store_8, World(), control, meter=meter)
    report = next(run)
    plain = State.build(this, objective, World())
    assert (
        next(train(this, objective, plain, store_8, World())).metrics["loss/kl"]
        == (report.metrics["loss/kl"])
    )
    tags = {tag for tag in report.metrics if tag.startswith("loss/")}
    assert tags
    assert tags <= seen[0].keys()
    one = vae("training.report_every_images=24")
    first = next(train(one, objective, State.build(one, objective, World()), store_8, World()))
    assert seen[0]["loss/kl"] == pytest.approx(first.metrics["loss/kl"])


def ended(run: Path) -> tuple[str, str | None, int]:
    """The state of a run, why, and its images, as its file says."""
    found = progress_of(Folder(str(run)))
    assert found is not None
    assert found["time"] == pytest.approx(time.time(), abs=60)
    return found["state"], found["why"], found["images"]


def trained(
    run: Path, store: Store, *, after: BaseException | None = None, stop: bool = False
) -> None:
    """Writes a run of 480 images, to its end, until it is asked to stop at 240, or until this error
    after the report at 240."""
    run.mkdir(exist_ok=True)
    this = vae()
    objective = build_objective(this)
    state = State.build(this, objective, World())
    writer = RunWriter(Folder(str(run)), this, objective, store, state)
    try:
        for report in train(this, objective, state, store, World()):
            asked = ASKED if stop and report.images == 240 else report.stop
            writer.report(replace(report, stop=asked))
            if asked == ASKED:
                break
            if after is not None:
                raise after
    finally:
        writer.close()


def test_a_run_says_how_it_ended(store_8, tmp_path: Path) -> None:
    trained(tmp_path / "a", store_8)
    assert ended(tmp_path / "a") == ("ended", "all images seen", 480)
    trained(tmp_path / "b", store_8, stop=True)
    assert ended(tmp_path / "b") == ("stopped", "asked to stop", 240)


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (NonFiniteError("a weight is not a finite number\nmore", 3), "failed", "a weight is not a"),
        (StorageError("s3://b does not answer"), "failed", "s3://b does not answer"),
        (MemoryError(), "failed", "MemoryError"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (GeneratorExit(), "stopped", "its search stopped it early"),
    ],
)
def test_a_run_that_an_error_ends_says_so(
    store_8, tmp_path: Path, error: BaseException, state: str, why: str
) -> None:
    with pytest.raises(type(error)):
        trained(tmp_path, store_8, after=error)
    found, told, images = ended(tmp_path)
    assert (found, images) == (state, 240)
    assert told is not None
    assert told.startswith(why)
    assert "\n" not in told


def claimed(run: Path, error: BaseException, *, trains: str | None = None) -> None:
    """Claims a run, lets it train if `trains` says what its file then says, and fails."""
    run.mkdir(exist_ok=True)
    with pytest.raises(type(error)), Claim(Folder(str(run))):
        (run / EXPERIMENT).touch()
        if trains is not None:
            told = {"state": trains, "why": None, "images": 24, "time": time.time()}
            (run / PROGRESS).write_text(json.dumps(told))
        raise error


def test_the_driver_says_what_the_workers_could_not(tmp_path: Path) -> None:
    """A worker that is killed writes nothing."""
    claimed(tmp_path / "a", Failed("a worker was killed"), trains="training")
    assert ended(tmp_path / "a") == ("failed", "a worker was killed", 24)
    claimed(tmp_path / "b", Failed("a worker died before its first step"))
    assert ended(tmp_path / "b") == ("failed", "a worker died before its first step", 0)
    claimed(tmp_path / "c", Interrupted())
    assert ended(tmp_path / "c") == ("stopped", "interrupted", 0)


def test_a_refusal_does_not_change_how_a_run_has_ended(tmp_path: Path) -> None:
    claimed(tmp_path / "a", Failed("late"), trains="ended")
    assert ended(tmp_path / "a") == ("ended", None, 24)
    for told in (
        {"doing": "training", "images": 24, "rate": 1.0, "metrics": {}},  # of version 0.1
        {"state": "training", "time": time.time() - 10},  # of a process that was killed
    ):
        (tmp_path / "a" / PROGRESS).write_text(json.dumps(told))
        claimed(tmp_path / "a", Refused("of another experiment"))
        assert json.loads((tmp_path / "a" / PROGRESS).read_text()) == told
    claimed(tmp_path / "new", Refused("data: there is no such folder"))
    assert not (tmp_path / "new" / PROGRESS).exists()


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


def test_an_evaluation_has_its_own_progress_and_time(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {"what": "generated images", "done": 1200, "of": 2000, "seconds_left": 12.0}
    told = progress(500, "evaluating") | {"part": part, "seconds_left": 700.0}
    early = progress(100) | {"seconds_left": 300.0, "evaluations_left": 9}
    with ProgressLine(1000, show=True) as line:
        for one in (early, told, progress(900) | {"seconds_left": 11_100.0}):
            line.trained(one)
            clock.passes(LOG_SECONDS + 1)
            line.trained(one)
    assert capsys.readouterr().err.splitlines() == [
        "5 min left and 9 evaluations  100/1,000 images  50/s  kl 1",
        "evaluating  12 s left  generated images 1,200/2,000  at 500 images",
        "3 h 5 min left  900/1,000 images  50/s  kl 1",
    ]


def test_the_end_of_a_run_names_its_scores() -> None:
    told = {
        "discriminator/real": 0.7,
        "discriminator/fake": 0.3,
        "held_out/elbo": -114.8,
        "evaluation/kid": 0.01,
    }
    others = {"loss/generator": 1.0, "evaluation/kid_spread": 0.002, "samples/spread": 1.0}
    assert scores(told | others | {"speed/images_per_second": 9.0, "memory/peak_GiB": 1.0}) == told


SENTENCE = "set objective.augment=[color,translation] for ~/[/images] of :cat:"


def test_a_sentence_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(1000, show=True) as line:
        line.say(SENTENCE)
        line.stage(SENTENCE)
    assert capsys.readouterr().err.splitlines() == [SENTENCE, SENTENCE]


def test_a_reader_that_is_gone_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as gone:
        monkeypatch.setattr("sys.stderr", gone)
        with ProgressLine(1000, show=True) as line:
            line.say(SENTENCE)
            line.say(SENTENCE)
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_a_terminal_shows_a_sentence_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with ProgressLine(1000, show=True) as line:
        line.stage(SENTENCE)
        line.say("then")
    assert SENTENCE in capsys.readouterr().err


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


def test_a_notebook_shows_one_line_that_changes() -> None:
    """In a real kernel, without widgets. Its stderr is no terminal."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    begin = """
from ray_gen.launch.progress import ProgressLine, watched
line = ProgressLine(1000, show=watched()).__enter__()
line.stage("starting")
line.trained({"images": 250, "doing": "training", "rate": 10.0, "metrics": {"loss/kl": 2.0}})
"""
    cells = [nbformat.v4.new_code_cell(text) for text in (begin, "line.say('told')")]
    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=300).execute()
    (shown,) = cells[0].outputs
    assert shown.data["text/plain"].split("  ") == [
        *("training", "━━━╌╌╌╌╌╌╌╌╌", "0:01:15", "250/1,000 images", "10/s", "kl 2"),
    ]
    assert [output.data["text/plain"] for output in cells[1].outputs] == ["told\n"]
