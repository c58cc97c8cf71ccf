"""What a trial's process does: it judges where it is time, takes over weights, and never raises for
what a trial's own settings do to it."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Failed
from ray_gen.experiment import Experiment
from ray_gen.launch.cluster import Share
from ray_gen.launch.search import trial as module
from ray_gen.launch.search.trial import DONOR, Shared, TrialProcess, adopt
from ray_gen.runs.checkpoints import checkpoint_name, checkpoints
from ray_gen.runs.manifest import EMA, EXPERIMENT, FORMAT, MANIFEST, NETWORKS, OPTIMIZERS
from ray_gen.runs.writer import SPREAD, STOP
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.meter import NonFiniteError
from ray_gen.training.state import State
from tests.helpers import largest_difference, trained, vae, weights

BATCH = 24
RATE = "optimizers.autoencoder.learning_rate"
BETA = "objective.beta"


# Taking over another trial's weights.


def trial_run(search: Path, name: str, **values: float) -> Folder:
    """The run folder of a new trial."""
    run = Folder(str(search / "trials" / name))
    this = vae().with_values({path.replace("__", "."): value for path, value in values.items()})
    run.write_text(EXPERIMENT, this.to_yaml())
    return run


def experiment_of(run: Folder) -> Experiment:
    return Experiment.from_yaml(run.read_text(EXPERIMENT))


def train_to(run: Folder, store: Store, *steps: int) -> State:
    """Train a run from where it stands, with a checkpoint after so many steps each time."""
    for step in steps:
        this = experiment_of(run)
        short = this.with_fields(training__images=step * BATCH)
        state = State.build(short, build_objective(short), World())
        found = checkpoints(run)
        if found:
            state.load(found[0].path)
        state, _ = trained(short, store, state=state)
        folder = run.path / checkpoint_name(step * BATCH)
        folder.mkdir()
        state.save(folder, this)
    return state


def taken(run: Folder, search: Path) -> Path:
    """A copy of the newest checkpoint, as Tune holds it."""
    newest = checkpoints(run)[0]
    copy = search / "tune" / f"{run.name}-{newest.name}"
    return copy if copy.exists() else Path(shutil.copytree(newest.path, copy))


def lineage_of(run: Folder) -> list[tuple[int, str | None, Mapping[str, Any]]]:
    return [(c.images, c.source, c.values) for c in experiment_of(run).lineage]


def snapshot(run: Folder) -> dict[str, bytes]:
    return {
        str(file.relative_to(run.path)): file.read_bytes()
        for file in run.path.rglob("*")
        if file.is_file()
    }


def test_a_trial_goes_on_with_anothers_weights_and_writes_it_down(store_8, tmp_path: Path) -> None:
    donor, ours = trial_run(tmp_path, "a"), trial_run(tmp_path, "b", objective__beta=3.0)
    train_to(donor, store_8, 4)
    train_to(ours, store_8, 2, 4, 6)
    values = {BETA: 2.0, RATE: 1e-3}
    adopt(ours, taken(donor, tmp_path), "a", values)

    names = [folder.name for folder in checkpoints(ours)]
    assert names == [
        checkpoint_name(4 * BATCH),
        checkpoint_name(2 * BATCH),
    ]  # its later one is gone
    assert lineage_of(ours) == [(4 * BATCH, "a", {BETA: 2.0})]  # what did not change is not told
    assert experiment_of(ours).objective.beta == 1.0  # as the donor began
    newest = checkpoints(ours)[0]
    assert Experiment.from_yaml(newest.read_text(EXPERIMENT)) == experiment_of(ours)
    assert lineage_of(donor) == []

    whole, _ = trained(experiment_of(ours).with_fields(training__images=9 * BATCH), store_8)
    assert largest_difference(weights(train_to(ours, store_8, 9)), weights(whole)) == 0


def test_taking_over_twice_changes_nothing_more(store_8, tmp_path: Path) -> None:
    """Tune restores a process that died from what it last took over."""
    donor, ours = trial_run(tmp_path, "a"), trial_run(tmp_path, "b")
    train_to(donor, store_8, 4)
    train_to(ours, store_8, 4)
    held, values = taken(donor, tmp_path), {BETA: 2.0}
    adopt(ours, held, "a", values)
    before = snapshot(ours)
    adopt(ours, held, "a", values)
    assert snapshot(ours) == before
    train_to(ours, store_8, 6)
    before = snapshot(ours)
    adopt(ours, held, "a", values)
    assert snapshot(ours) == before  # it had begun to go on, and goes on from there


def test_the_same_checkpoint_can_be_taken_over_again_with_other_values(
    store_8, tmp_path: Path
) -> None:
    """This happens if the donor trains more slowly than this trial, which does worse with the
    donor's weights."""
    donor, ours = trial_run(tmp_path, "a"), trial_run(tmp_path, "b")
    train_to(donor, store_8, 4)
    train_to(ours, store_8, 4)
    held = taken(donor, tmp_path)
    adopt(ours, held, "a", {BETA: 2.0})
    train_to(ours, store_8, 6)
    adopt(ours, held, "a", {BETA: 3.0})
    assert lineage_of(ours) == [(4 * BATCH, "a", {BETA: 3.0})]
    assert [folder.name for folder in checkpoints(ours)] == [checkpoint_name(4 * BATCH)]


def test_a_lineage_is_taken_over_with_the_weights(store_8, tmp_path: Path) -> None:
    first, second, third = (trial_run(tmp_path, name) for name in "abc")
    train_to(first, store_8, 2)
    train_to(second, store_8, 3)
    train_to(third, store_8, 7)
    adopt(second, taken(first, tmp_path), "a", {BETA: 2.0, RATE: 0.01})
    train_to(second, store_8, 5)
    adopt(third, taken(second, tmp_path), "b", {BETA: 4.0, RATE: 0.01})
    assert lineage_of(third) == [
        (2 * BATCH, "a", {BETA: 2.0, RATE: 0.01}),
        (5 * BATCH, "b", {BETA: 4.0}),
    ]
    whole, _ = trained(experiment_of(third).with_fields(training__images=9 * BATCH), store_8)
    assert largest_difference(weights(train_to(third, store_8, 9)), weights(whole)) == 0


def test_two_take_overs_at_the_same_point_are_one_change(store_8, tmp_path: Path) -> None:
    first, second, third = (trial_run(tmp_path, name) for name in "abc")
    train_to(first, store_8, 4)
    for run in (second, third):
        train_to(run, store_8, 4)
    adopt(second, taken(first, tmp_path), "a", {BETA: 2.0, RATE: 0.01})
    adopt(third, taken(second, tmp_path), "b", {BETA: 4.0, RATE: 0.01})
    assert lineage_of(third) == [(4 * BATCH, "b", {BETA: 4.0, RATE: 0.01})]
    whole, _ = trained(experiment_of(third).with_fields(training__images=6 * BATCH), store_8)
    assert largest_difference(weights(train_to(third, store_8, 6)), weights(whole)) == 0


# Judging.


@pytest.fixture
def search(tmp_path: Path) -> Shared:
    this = vae().with_fields(training__group_size="auto")
    share = Share(1, 0.0, 1)
    return Shared(str(tmp_path), this.to_yaml(), "elbo", 4 * BATCH, share, ())


class Process(TrialProcess):
    """A trial's process, in this one and without Ray."""

    trial_name = "trial_000"  # type: ignore[assignment]

    def __init__(self, search: Shared, name: str, values: Mapping[str, Any]) -> None:
        self.trial_name = name
        self.config = {"trial": {"name": "of the donor", "values": values}}
        self.setup(self.config, search)


def process(search: Shared, name: str = "trial_000", **values: Any) -> Process:
    return Process(search, name, {p.replace("__", "."): value for p, value in values.items()})


def results(made: TrialProcess) -> list[dict[str, Any]]:
    """Those of a trial until it is done, without its seconds."""
    found: list[dict[str, Any]] = []
    while not (found and found[-1].get("done")):
        found.append(made.step())
    return [{key: value for key, value in r.items() if key != "seconds"} for r in found]


def reporting(monkeypatch, *told: tuple[int, dict[str, float]] | Exception, stop: str = "end"):
    """Replaces training: trials report these (steps, metrics) in turn, or raise."""
    seen: list[Experiment] = []

    def train(experiment: Experiment, run: Folder, search: Shared) -> Iterator[Any]:
        seen.append(experiment)
        for number, what in enumerate(told):
            if isinstance(what, Exception):
                raise what
            steps, metrics = what
            last = number == len(told) - 1
            yield {"images": steps * BATCH, **metrics}, stop if last else None

    monkeypatch.setattr(module, "in_this_process", train)
    return seen


def elbo(value: float) -> dict[str, float]:
    return {"held_out/elbo": value, SPREAD: 1.0}


def test_a_trial_is_judged_where_it_is_time(search: Shared, monkeypatch) -> None:
    reporting(
        monkeypatch,
        (2, elbo(1)),  # too early
        (4, elbo(2)),
        (6, elbo(3)),  # already
        (8, {"loss/kl": 1.0}),  # without a score
        (9, elbo(4)),
        (12, elbo(5)),
        (13, elbo(6)),
        stop="all images seen",
    )
    assert results(process(search)) == [
        {"images": 4 * BATCH, "score": 2},
        {"images": 9 * BATCH, "score": 4},
        {"images": 12 * BATCH, "score": 5},
        {"images": 13 * BATCH, "score": 6, "done": True, "stop": "all images seen"},
    ]


def test_a_trial_that_goes_on_is_not_judged_sooner(
    search: Shared, store_8, tmp_path: Path, monkeypatch
) -> None:
    run = trial_run(tmp_path, "trial_000")
    train_to(run, store_8, 4)
    reporting(monkeypatch, (5, elbo(1)), (8, elbo(2)), (9, elbo(3)))
    assert [result["images"] for result in results(process(search))] == [8 * BATCH, 9 * BATCH]


def test_an_end_without_a_score_is_an_end(search: Shared, monkeypatch) -> None:
    reporting(monkeypatch, (3, {}), stop="asked to stop")
    assert results(process(search)) == [
        {"images": 3 * BATCH, "done": True, "stop": "asked to stop"}
    ]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (NonFiniteError("loss/kl is not a finite number since step 7"), "loss/kl is not a finite"),
        (Failed("first line\nsecond line"), "first line (trial_000/error.txt)"),
        ((8, elbo(math.nan)), "elbo is not a finite number at 192 images"),
        ((8, elbo(-math.inf)), "elbo is not a finite number at 192 images"),
    ],
)
def test_what_goes_wrong_is_the_last_result(
    search: Shared, tmp_path: Path, monkeypatch, told: Any, said: str
) -> None:
    reporting(monkeypatch, (4, elbo(2)), told, (12, elbo(3)))
    first, last = results(process(search))
    assert first == {"images": 4 * BATCH, "score": 2}
    assert said in last.pop("failed")
    assert last == {**first, "done": True}
    error = tmp_path / "trials/trial_000/error.txt"
    assert error.exists() == ("error.txt" in said)


def test_samples_that_are_alike_twice_in_a_row_end_a_trial(search: Shared, monkeypatch) -> None:
    alike = {"held_out/elbo": 1.0, SPREAD: 0.001}
    reporting(
        monkeypatch, (4, alike), (8, elbo(1)), (12, alike), (14, alike), (16, alike), (20, elbo(1))
    )
    found = results(process(search))
    assert [result["images"] // BATCH for result in found] == [4, 8, 12, 12]
    assert "samples are all alike after 384 images" in found[-1]["failed"]


def test_a_value_that_only_another_value_forbids_fails_its_trial(search: Shared) -> None:
    this = process(search, objective__latent_size="large")
    (last,) = results(this)
    assert "objective.latent_size" in last["failed"]


def test_a_new_trial_has_its_values_and_a_group_size_of_its_own(
    search: Shared, tmp_path: Path, monkeypatch
) -> None:
    seen = reporting(monkeypatch, (4, elbo(2)))
    results(process(search, objective__beta=2.0, training__global_batch_size=28))
    (experiment,) = seen
    assert (experiment.objective.beta, experiment.training.group_size) == (2.0, 14)
    assert experiment_of(Folder(str(tmp_path / "trials/trial_000"))) == experiment


def test_a_trial_that_goes_on_is_what_its_newest_checkpoint_says(
    search: Shared, store_8, tmp_path: Path, monkeypatch
) -> None:
    """Its process may die between a take-over and the note of it in the run folder."""
    donor, run = trial_run(tmp_path, "a"), trial_run(tmp_path, "trial_000", objective__beta=3.0)
    train_to(donor, store_8, 4)
    before = run.read_text(EXPERIMENT)
    adopt(run, taken(donor, tmp_path), "a", {BETA: 2.0})
    expected = run.read_text(EXPERIMENT)
    run.write_text(EXPERIMENT, before)
    seen = reporting(monkeypatch, (8, elbo(2)))
    results(process(search, objective__beta=3.0))
    assert seen == [Experiment.from_yaml(expected)]
    assert run.read_text(EXPERIMENT) == expected


def test_where_the_search_is_to_end_no_trial_begins(
    search: Shared, tmp_path: Path, monkeypatch
) -> None:
    seen = reporting(monkeypatch, (4, elbo(2)))
    (tmp_path / STOP).touch()
    assert results(process(search)) == [{"images": 0, "done": True, "stop": "asked to stop"}]
    assert not seen
    assert not list((tmp_path / "trials").rglob(EXPERIMENT))


def test_a_process_trains_one_trial_after_the_other(search: Shared, monkeypatch) -> None:
    ended: list[str] = []

    def train(experiment: Experiment, run: Folder, search: Shared) -> Iterator[Any]:
        try:
            for steps in (4, 8):
                yield {"images": steps * BATCH, **elbo(1)}, None
        finally:
            assert (run.path / "writer.json").exists()  # still its own while it ends
            ended.append(run.name)

    monkeypatch.setattr(module, "in_this_process", train)
    this = process(search, "first")
    assert this.step()["images"] == 4 * BATCH
    assert this.step()["images"] == 8 * BATCH
    this.reset_config({})
    assert ended == ["first"]
    this.trial_name = "second"
    assert this.step()["images"] == 4 * BATCH
    this.cleanup()
    assert ended == ["first", "second"]


def test_a_checkpoint_says_whose_it_is_and_ones_own_is_left_alone(
    search: Shared, store_8, tmp_path: Path
) -> None:
    ours, theirs = trial_run(tmp_path, "trial_000"), trial_run(tmp_path, "trial_001")
    train_to(ours, store_8, 4)
    train_to(theirs, store_8, 2)
    held = tmp_path / "held"
    held.mkdir()
    process(search, "trial_000").save_checkpoint(str(held))
    assert json.loads((held / DONOR).read_text()) == {"trial": "trial_000"}
    before = snapshot(ours), snapshot(theirs)
    process(search, "trial_000", objective__beta=2.0).load_checkpoint(str(held))
    assert (snapshot(ours), snapshot(theirs)) == before
    process(search, "trial_001", objective__beta=2.0).load_checkpoint(str(held))
    assert lineage_of(theirs) == [(4 * BATCH, "trial_000", {BETA: 2.0})]
    assert snapshot(ours) == before[0]


# Several workers.


NO_FILE = {"bytes": 0, "sha256": ""}


class Trainer:
    """Replaces Ray Train: writes lines and checkpoints of a run as a worker does."""

    def __init__(self, run: Folder, ends: Any, steps: tuple[int, ...]) -> None:
        self._run, self._ends, self._steps = run, ends, steps

    def fit(self) -> Any:
        for step in self._steps:
            line = {"images": step * BATCH, **elbo(step)}
            with (self._run.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            folder = self._run / checkpoint_name(step * BATCH)
            folder.write_text(EXPERIMENT, self._run.read_text(EXPERIMENT))
            files = dict.fromkeys((NETWORKS, EMA, OPTIMIZERS, EXPERIMENT), NO_FILE)
            facts = {"images": step * BATCH, "metrics": elbo(step), "step": step, "settled": {}}
            manifest = {"format": FORMAT, "files": files, **facts}
            (folder.path / "manifest.part").write_text(json.dumps(manifest))
            (folder.path / "manifest.part").rename(folder.path / MANIFEST)
        if isinstance(self._ends, Exception):
            raise self._ends
        return SimpleNamespace(return_value=self._ends)


@pytest.mark.parametrize(
    ("ends", "last"),
    [
        ({"stop": "all images seen"}, {"score": 20, "stop": "all images seen"}),
        ({"failed": "it diverged"}, {"score": 12, "failed": "it diverged"}),
        (Failed("a worker raised"), {"score": 12, "failed": "a worker raised"}),
    ],
)
def test_the_reports_of_several_workers_are_judged_once_each(
    search: Shared, tmp_path: Path, monkeypatch, ends: Any, last: dict[str, Any]
) -> None:
    steps = (4, 8, 12, 20) if "stop" in last else (4, 8, 12)
    two = Shared(str(tmp_path), search.experiment, "elbo", 4 * BATCH, Share(2, 0.0, 1), ())
    monkeypatch.setattr(module, "trainer_of", lambda e, run, *_: Trainer(run, ends, steps))
    quick = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None)
    monkeypatch.setattr(module, "time", quick)
    *judged, end = results(process(two))
    assert [(result["images"] // BATCH, result["score"]) for result in judged] == [
        *((4, 4), (8, 8), (12, 12))
    ]
    assert end == {"images": last["score"] * BATCH, "done": True, **last}


def test_a_line_counts_once_its_checkpoint_is_there(
    search: Shared, tmp_path: Path, monkeypatch
) -> None:
    """Population based training takes the checkpoint of what was judged."""
    told, looked = threading.Event(), threading.Event()
    looks: list[float] = []

    class Slow(Trainer):
        def fit(self) -> Any:
            line = {"images": 4 * BATCH, **elbo(4)}
            self._run.write_text("metrics.jsonl", json.dumps(line) + "\n")
            told.set()
            looked.wait(10)
            return super().fit()

    def sleep(seconds: float) -> None:
        told.wait(10)
        looks.append(seconds)
        if len(looks) == 3:
            looked.set()

    two = Shared(str(tmp_path), search.experiment, "elbo", 4 * BATCH, Share(2, 0.0, 1), ())
    ends = {"stop": "all images seen"}
    monkeypatch.setattr(module, "trainer_of", lambda e, run, *_: Slow(run, ends, (4, 20)))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    assert [result["images"] // BATCH for result in results(process(two))] == [4, 20]
    assert len(looks) >= 3
