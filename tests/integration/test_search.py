"""Searches with real Ray Tune: what is found is a run like any other, and a search survives."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import started, wait_until
from tests.integration.test_ray import final, same

pytestmark = pytest.mark.ray

SMALL = (
    "training.images=18000",
    "training.report_every_images=2000",
    "networks.encoder.hidden_sizes=[32]",
    "networks.decoder.hidden_sizes=[32]",
)


def recipe(*overrides: str):
    from ray_gen.recipes import recipe

    return recipe("vae-mnist5k", *SMALL, *overrides)


def space(**ranges: str) -> str:
    inner = ", ".join(f"{path.replace('__', '.')}: {values}" for path, values in ranges.items())
    return f"search.space={{{inner}}}"


RATE = "{loguniform: [1.0e-4, 1.0e-2]}"


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("searches")


def trained_here(experiment_file: Path, run: Path) -> dict:
    """The last checkpoint of an experiment that is trained in this process, without Ray."""
    from ray_gen.experiment import Experiment
    from ray_gen.launch.worker import prepare, reports
    from ray_gen.runs.checkpoints import checkpoint_name
    from ray_gen.storage import Folder

    experiment = Experiment.from_yaml(experiment_file.read_text())
    prepare([], experiment.workers.cpus)
    run.mkdir()
    for report, saved in reports(experiment, Folder(str(run)), torch.device("cpu")):
        if saved is not None:
            shutil.move(saved, run / checkpoint_name(report.images))
    return final(run)


def test_every_trial_is_a_run_and_the_best_one_can_be_trained_again(
    cluster, storage: Path, tmp_path: Path
) -> None:
    import ray_gen

    found = ray_gen.search(
        recipe(
            space(
                optimizers__autoencoder__learning_rate=RATE,
                objective__latent_size="{choice: [2, 8, 32]}",
            ),
            "search.trials=5",
        ),
        storage=str(storage),
        name="whole",
    )
    folder = storage / "whole"
    assert len(found.trials) == 5
    assert {trial.state for trial in found.trials} <= {"done", "stopped"}
    assert found.best is not None and found.best.state == "done"
    rows = list(csv.DictReader((folder / "search.csv").open()))
    assert [row["trial"] for row in rows] == [trial.name for trial in found.trials]
    assert float(max(rows, key=lambda row: float(row["elbo"]))["elbo"]) == found.best.score
    for trial in found.trials:
        samples = ray_gen.load(folder / "trials" / trial.name).sample(2, seed=0)
        assert samples.shape == (2, 1, 28, 28)
    assert all(trial.name in (folder / "report.html").read_text() for trial in found.trials)
    assert not (folder / ".tune").exists()

    ours = final(Path(found.best_run))
    assert same(ours, trained_here(folder / "best.yaml", tmp_path / "again"))

    again = ray_gen.search(
        ray_gen.recipe(str(folder / "search.yaml")), storage=str(storage), name="whole"
    )
    assert [trial.score for trial in again.trials] == [trial.score for trial in found.trials]
    other = recipe(space(objective__latent_size="{choice: [2]}"), "training.global_batch_size=64")
    with pytest.raises(ray_gen.ExperimentError, match=r"training\.global_batch_size"):
        ray_gen.search(other, storage=str(storage), name="whole")


@pytest.mark.slow
def test_what_fails_does_not_end_the_search(cluster, storage: Path) -> None:
    import ray_gen

    fragile = "{kind: custom, target: 'tests.integration.fragile:Fragile', options: {end: never}}"
    found = ray_gen.search(
        recipe(
            f"networks.encoder={fragile}",
            "training.images=3600",  # 29 steps, judged every 400 images
            space(
                networks__encoder__options__end="{choice: [nan, raise, kill, kill at once, never]}"
            ),
            "search.algorithm=grid",
        ),
        storage=str(storage),
        name="fragile",
    )
    states = {trial.values["networks.encoder.options.end"]: trial for trial in found.trials}
    assert {end: trial.state for end, trial in states.items()} == {
        "nan": "failed",
        "raise": "failed",
        "kill": "done",  # it comes further each time
        "kill at once": "failed",
        "never": "done",
    }
    assert "is not a finite number" in str(states["nan"].reason)
    assert "this network breaks at step 20" in str(states["raise"].reason)
    assert "its process died" in str(states["kill at once"].reason)
    assert same(*(final(storage / "fragile/trials" / states[e].name) for e in ("kill", "never")))


@pytest.mark.slow
def test_population_based_training_can_be_repeated(cluster, storage: Path, tmp_path: Path) -> None:
    import ray_gen
    from ray_gen.experiment import Experiment

    found = ray_gen.search(
        recipe(
            space(
                optimizers__autoencoder__learning_rate="{loguniform: [1.0e-5, 1.0e-2]}",
                objective__beta="{uniform: [0.5, 2.0]}",
            ),
            *("search.trials=4", "search.scheduler=pbt", "search.quantile=0.5"),
        ),
        storage=str(storage),
        name="population",
    )
    assert {trial.state for trial in found.trials} == {"done"}
    runs = [storage / "population" / "trials" / trial.name for trial in found.trials]
    lineages = {
        run: Experiment.from_yaml((run / "experiment.yaml").read_text()).lineage for run in runs
    }
    longest = max(runs, key=lambda run: len(lineages[run]))
    assert lineages[longest], "no trial took over another's weights"
    assert lineages[longest][-1].source in {trial.name for trial in found.trials}
    assert same(final(longest), trained_here(longest / "experiment.yaml", tmp_path / "again"))


@pytest.mark.slow
def test_a_trial_of_two_workers_goes_on(cluster, storage: Path) -> None:
    import ray_gen

    asked = recipe(
        space(optimizers__autoencoder__learning_rate=RATE),
        *("search.trials=1", "search.workers.count=2", "search.scheduler=none"),
    )
    found = ray_gen.search(asked, storage=str(storage), name="two")
    assert [trial.state for trial in found.trials] == ["done"]
    assert len(found.trials[0].history) == 9
    run = Path(found.best_run)
    assert json.loads((run / "environment.json").read_text())["workers"] == 2

    # As if all had died before the last checkpoint, which Ray Train's own snapshot lists.
    before = final(run)
    shutil.rmtree(sorted(run.glob("checkpoint_0*"))[-1])
    records = storage / "two" / "trials.json"
    (trial,) = json.loads(records.read_text())
    records.write_text(
        json.dumps([{**trial, "state": "running", "history": trial["history"][:-1]}])
    )
    again = ray_gen.search(asked, storage=str(storage), name="two")
    assert [(t.state, t.reason) for t in again.trials] == [("done", None)]
    assert again.trials[0].history == found.trials[0].history
    assert same(final(run), before)


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on(cluster, apart, tmp_path: Path) -> None:
    """It begins with a Ray of its own, which dies too, and goes on with another."""
    import ray_gen

    given = [
        *SMALL[1:],
        "training.images=36000",
        space(optimizers__autoencoder__learning_rate=RATE),
        *("search.trials=4", "search.algorithm=random", "search.scheduler=none"),
    ]
    command = [sys.executable, "-m", "ray_gen", "search", "vae-mnist5k", *given]
    records = tmp_path / "killed" / "trials.json"

    def trials() -> dict[str, dict]:
        try:
            return {trial["name"]: trial for trial in json.loads(records.read_text())}
        except (OSError, ValueError):
            return {}

    def is_half_done() -> bool:
        """A trial is done and another runs, or the search has ended."""
        known = trials().values()
        running = [t for t in known if t["state"] == "running" and t["images"] > 0]
        half = bool(running) and any(t["state"] == "done" for t in known)
        return half or first.poll() is not None

    first = started([*command, "--storage", str(tmp_path), "--name", "killed"], env=apart)
    wait_until(is_half_done, "a trial's end")
    first.kill()
    _, errors = first.communicate()
    before = trials()
    done = [name for name, trial in before.items() if trial["state"] == "done"]
    assert done, errors
    assert len(done) < 4

    found = ray_gen.search(
        ray_gen.recipe("vae-mnist5k", *given), storage=str(tmp_path), name="killed"
    )
    assert found.exit_code == 0
    after = trials()
    assert {trial["state"] for trial in after.values()} == {"done"}
    for name, trial in before.items():
        assert after[name]["values"] == trial["values"]
        known = [tuple(point) for point in trial["history"]]
        assert [tuple(point) for point in after[name]["history"]][: len(known)] == known
    for name in done:  # not touched again
        assert after[name] == before[name]
