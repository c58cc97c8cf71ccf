"""A run goes on by its own experiment. Ray is not started: `driver.train` is replaced where it
would be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ray_gen
from ray_gen.cli import main
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.launch import driver
from ray_gen.launch.driver import goes_on_from
from ray_gen.launch.run import Ended, Run
from ray_gen.runs.checkpoints import checkpoint_name, checkpoints
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import largest_difference, trained, vae, weights

BATCH = 24
RATE = "optimizers.autoencoder.learning_rate"
BETA = "objective.beta"


def train_to(run: Path, this: Experiment, store: Store, step: int) -> State:
    """Train a run from its newest checkpoint, and save one after so many steps."""
    run.mkdir(exist_ok=True)
    short = this.with_fields(training__images=step * BATCH)
    state = State.build(short, build_objective(short), World())
    found = checkpoints(Folder(str(run)))
    if found:
        state.load(found[0].path)
    state, _ = trained(short, store, state=state)
    folder = run / checkpoint_name(step * BATCH)
    folder.mkdir()
    state.save(folder, this)
    (run / EXPERIMENT).write_text(this.to_yaml())
    return state


@pytest.fixture
def run(tmp_path: Path, store_8: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run "a" of the storage, after 8 of its 20 steps."""
    monkeypatch.setenv("RAY_GEN_STORAGE", str(tmp_path))
    train_to(tmp_path / "a", vae(), store_8, 8)
    return tmp_path / "a"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, str]]:
    """What `driver.train` was called for: experiments and run folders."""
    asked: list[tuple[Experiment, str]] = []

    def train(this: Experiment, *, storage: str, name: str, **_: Any) -> Run:
        manifest = goes_on_from(
            Folder(storage) / name, this, print
        )  # refuses what Ray would not do
        asked.append((this, f"{storage}/{name}"))
        return Run(f"{storage}/{name}", Ended(manifest.images if manifest else 0, "tried", {}))

    monkeypatch.setattr(driver, "train", train)
    return asked


Changes = Mapping[str, Any] | Sequence[str]


@pytest.mark.parametrize("changes", [{"training.images": 720}, ["training.images=720"]])
def test_a_run_goes_on_by_its_name_alone_and_trains_longer(
    run: Path, asked: list[tuple[Experiment, str]], changes: Changes
) -> None:
    ended = ray_gen.resume("a")
    assert (ended.location, ended.images) == (str(run), 8 * BATCH)
    ray_gen.resume(str(run), changes)
    assert asked == [(vae(), str(run)), (vae("training.images=720"), str(run))]


def test_where_it_goes_on_is_said(
    run: Path, asked: list[tuple[Experiment, str]], tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, ["resume", "a", "training.images=720"], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "a: going on from 192 images, to 720\n")
    done = CliRunner().invoke(main, ["resume", "a", "training.images=192"])
    assert done.stderr == (
        "a: has seen all its 192 images; to train longer: ray-gen resume a training.images=384\n"
    )
    moved = shutil.copytree(run, tmp_path / "other runs" / "a")
    done = CliRunner().invoke(main, ["resume", str(moved), "training.images=192"])
    assert done.stderr.endswith(f"ray-gen resume '{moved}' training.images=384\n")
    (run / checkpoint_name(192) / "manifest.json").unlink()
    done = CliRunner().invoke(main, ["resume", "a"])
    assert done.stderr == "a: nothing was saved yet; beginning anew\n"


def test_free_fields_come_from_the_file_that_the_last_start_wrote(
    run: Path, asked: list[tuple[Experiment, str]]
) -> None:
    """A run may end before the first checkpoint with new fields. What identifies it does not come
    from that file: people may edit it."""
    (run / EXPERIMENT).write_text(vae("training.images=960").to_yaml())
    ray_gen.resume("a")
    for text in (vae("training.images=960", "seed=3").to_yaml(), "damaged: [", None):
        if text is None:
            (run / EXPERIMENT).unlink()
        else:
            (run / EXPERIMENT).write_text(text)
        ray_gen.resume("a")
    assert [this.training.images for this, _ in asked] == [960, 480, 480, 480]
    assert [this.seed for this, _ in asked] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["seed=3"], "seed: 3 here, 0 there"),
        (["training.global_batch_size=48"], "training.global_batch_size: 48 here, 24 there"),
        ({"objective.latent_size": 6, "objective.beta": 2.0}, "latent_size: 6 here, 5 there"),
        (["training.imags=3"], "training.imags: there is no such field; did you mean"),
        (["images"], "'images' is not of the form path=value"),
    ],
)
def test_a_field_that_identifies_the_run_cannot_change(
    run: Path, asked: list[tuple[Experiment, str]], changes: Changes, told: str
) -> None:
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(Refused, match=re.escape(told)):
        ray_gen.resume("a", changes)
    assert not asked
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files


def test_a_live_field_changes_where_the_run_stands_and_the_run_stays_a_function_of_its_experiment(
    run: Path, store_8: Store, asked: list[tuple[Experiment, str]]
) -> None:
    ray_gen.resume("a", {RATE: 5e-4, "checkpoints.keep": 3})
    ray_gen.resume("a", {BETA: 0.5})  # not trained since: one change
    train_to(run, asked[-1][0], store_8, 12)
    ray_gen.resume("a", [f"{BETA}=0.5", f"{RATE}=1e-4"])  # β is 0.5 already
    this, _ = asked[-1]
    assert [(change.images, dict(change.values)) for change in this.lineage] == [
        (8 * BATCH, {RATE: 5e-4, BETA: 0.5}),
        (12 * BATCH, {RATE: 1e-4}),
    ]
    assert this.checkpoints.keep == 3
    assert this.value_at(RATE) == vae().value_at(RATE)
    went_on = train_to(run, this, store_8, 20)
    whole, _ = trained(this, store_8)
    assert largest_difference(weights(went_on), weights(whole)) == 0
    unchanged, _ = trained(vae(), store_8)
    assert largest_difference(weights(unchanged), weights(whole)) > 0
    ray_gen.resume("a")
    assert asked[-1][0] == this


def test_the_recipe_of_a_run_that_has_changed_since_is_refused_with_the_remedy(
    run: Path, store_8: Store, asked: list[tuple[Experiment, str]]
) -> None:
    ray_gen.resume("a", {RATE: 5e-4})
    train_to(run, asked[-1][0], store_8, 12)
    ray_gen.resume("a", {BETA: 0.5})
    train_to(run, asked[-1][0], store_8, 16)
    told = f"has changed {RATE} and {BETA} since it began; `ray-gen resume {run}` goes on with it"
    with pytest.raises(Refused, match=re.escape(told)):
        goes_on_from(Folder(str(run)), vae(), print)
    with pytest.raises(Refused, match="seed: 1 here, 0 there"):
        goes_on_from(Folder(str(run)), vae("seed=1"), print)


def test_a_live_field_does_not_change_from_a_damaged_checkpoint(
    run: Path, asked: list[tuple[Experiment, str]]
) -> None:
    file = run / checkpoint_name(192) / "networks.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match="is damaged"):
        ray_gen.resume("a", {BETA: 0.5})
    assert not asked


def test_what_is_no_run_is_refused_with_the_remedy(
    run: Path, asked: list[tuple[Experiment, str]]
) -> None:
    (run.parent / "s").mkdir()
    (run.parent / "s" / "search.yaml").touch()
    (run.parent / "other").mkdir()
    for given, told in (
        ("b", "no run 'b': it is neither a path here nor in"),
        ("/no/run", "/no/run: there is no such run"),
        ("s", "is a search; it goes on by `ray-gen search`"),
        ("other", "is not the folder of a run"),
        (f"a/{checkpoint_name(192)}", f"is a checkpoint, and .* name {run}$"),
    ):
        with pytest.raises(Refused, match=told):
            ray_gen.resume(given)
    assert not asked


def test_a_run_that_has_ended_is_answered_without_ray(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real `train`, which reads the data."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    file = run / checkpoint_name(192) / "manifest.json"
    before = json.loads(file.read_text())
    ended = ray_gen.resume("a", {"training.images": 192})
    assert (ended.images, ended.stop) == (192, "had seen all images before")
    assert json.loads(file.read_text()) == before
