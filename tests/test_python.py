"""ray_gen in Python: names, dicts and files for experiments, runs by name, reprs of one line."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import pydoc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ray_gen
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.objectives import VaeObjective
from ray_gen.launch import alone
from ray_gen.launch.claim import Claim
from ray_gen.recipes import as_experiment
from ray_gen.runs.checkpoints import checkpoint_name
from ray_gen.storage import Folder
from tests.data.pictures import write_classes
from tests.helpers import vae
from tests.launch.test_driver import Here

LENGTH = "training.images"


@pytest.mark.parametrize(
    "changes",
    [
        {LENGTH: 1000, "objective.latent_size": 7},
        {"training": {"images": 1000}, "objective": {"latent_size": 7}},
        [f"{LENGTH}=1000", "objective.latent_size=7"],
        [f"{LENGTH}=9", {LENGTH: 1000}, "objective.latent_size=7"],  # in their order
    ],
)
def test_changes_have_equal_meaning_in_all_forms(changes: Any) -> None:
    expected = ray_gen.recipe("vae-mnist5k", f"{LENGTH}=1000", "objective.latent_size=7")
    assert as_experiment("vae-mnist5k", changes) == expected
    assert as_experiment(ray_gen.recipe("vae-mnist5k"), changes) == expected
    assert ray_gen.recipe(
        "vae-mnist5k", *([changes] if isinstance(changes, dict) else changes)
    ) == (expected)


def test_one_assignment_may_stand_alone(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(vae().to_yaml())
    assert as_experiment(file, f"{LENGTH}=48") == vae(f"{LENGTH}=48")


def test_a_mapping_keeps_the_fields_that_it_does_not_name_unless_it_names_a_kind() -> None:
    network = {"kind": "conv", "width": 8}
    changed = vae().changed(
        {
            "networks": {"encoder": network},
            "optimizers.autoencoder": {"learning_rate": 0.5},
            "objective": {"beta": {"kind": "linear", "start": 0, "end": 1, "until_images": 90}},
            "data": {"flip": True},
        }
    )
    assert changed == vae(
        "networks.encoder={kind: conv, width: 8}",
        "optimizers.autoencoder.learning_rate=0.5",
        "objective.beta={kind: linear, start: 0, end: 1, until_images: 90}",
        "data.flip=true",
    )


def test_a_range_of_a_search_is_one_value() -> None:
    rate = "optimizers.autoencoder.learning_rate"
    before = vae(f"search.space.{rate}={{loguniform: [1e-5, 1e-3]}}")
    after = before.changed({"search": {"space": {rate: {"uniform": [0.1, 0.2]}}, "trials": 3}})
    assert after == vae(f"search={{space: {{{rate}: {{uniform: [0.1, 0.2]}}}}, trials: 3}}")


def test_values_of_python_are_plain(tmp_path: Path) -> None:
    """Paths, tuples, and settings."""
    given = {"data": tmp_path, "data.image_size": (8, 8), "objective": VaeObjective(latent_size=4)}
    assert ray_gen.recipe("vae-mnist5k", given) == ray_gen.recipe(
        *("vae-mnist5k", f"data={tmp_path}", "data.image_size=[8, 8]"),
        "objective={kind: vae, latent_size: 4}",
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.imags": 1}, "training.imags: .*did you mean training.images"),
        ({"training": {"imags": 1}}, "training.imags: .*did you mean training.images"),
        (["training.images"], "is not of the form path=value"),
    ],
)
def test_a_wrong_change_names_its_dotted_path(changes: Any, told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        ray_gen.train("vae-mnist5k", changes)


def test_a_list_among_the_changes_of_a_recipe_is_refused_with_the_remedy() -> None:
    told = r"changes: \['seed=1'\] is neither .*; `recipe` takes each change as an argument of its"
    wrong: Any = ["seed=1"]
    for name in ("vae-mnist5k", "dcgan"):
        with pytest.raises(TypeError, match=told):
            ray_gen.recipe(name, wrong)


def test_what_is_no_experiment_is_refused_with_the_remedy() -> None:
    for given in (3, None, ["vae-mnist5k"]):
        with pytest.raises(TypeError, match=r"give the name of a recipe, a file, or what"):
            ray_gen.train(given)  # type: ignore
        with pytest.raises(TypeError, match=r"give the name of a recipe, a file, or what"):
            ray_gen.search(given)  # type: ignore
    with pytest.raises(ExperimentError, match="did you mean vae-mnist5k"):
        ray_gen.train("vae-mnst5k")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> ray_gen.Run:
    """The run "digits" of the storage, trained here."""
    monkeypatch.setattr(alone, "WorkerProcess", Here)
    monkeypatch.setenv("RAY_GEN_STORAGE", str(tmp_path / "runs"))
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    images = write_classes(tmp_path / "images", {"a": 20, "b": 20})
    file = tmp_path / "my.yaml"
    file.write_text(vae().to_yaml())
    found = ray_gen.train(file, {"data": f"folder:{images}"}, name="digits", local=True)
    assert capfd.readouterr() == ("", "")  # nobody looks
    return found


def test_a_run_by_name_is_the_run_that_train_returned(run: ray_gen.Run) -> None:
    there = ray_gen.Run("digits")
    for this in (run, there):
        assert (this.name, this.state, this.images, this.stop) == (
            *("digits", "ended", 480),
            "all images seen",
        )
        assert (this.failure, this.exit_code) == (None, 0)
        assert "\n" not in repr(this)
    assert there.location == run.location == str(Path(run))
    assert repr(there).startswith("Run(digits: ended, 480 of 480 images, ")
    last = {tag: value for tag, value in run.metrics.items() if tag != "time"}
    assert there.metrics == pytest.approx(last)
    assert there.experiment == run.experiment
    assert run.experiment.training.images == 480
    assert run.load().sample(2, seed=0).equal(ray_gen.load("digits").sample(2, seed=0))


def test_load_of_a_run_takes_what_load_takes() -> None:
    _, *ours = inspect.signature(ray_gen.Run.load).parameters.values()
    _, *theirs = inspect.signature(ray_gen.load).parameters.values()
    assert ours == theirs


def test_history_is_the_reports(run: ray_gen.Run) -> None:
    history = run.history()
    assert history.index.name == "images"
    assert [*history.index] == [240, 480]
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        row = history.loc[line.pop("images")]
        assert "step" not in history and dict(row) == pytest.approx(
            {tag: value for tag, value in line.items() if tag != "step"}
        )


def test_history_of_a_run_that_was_killed_and_measured_beside(run: ray_gen.Run) -> None:
    """It repeats a report, ends in half a line, and has scores in files of their own."""
    file = Path(run) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[-1], lines[0][:20]]))
    scores = {"scores": [{"name": "fid", "value": 3.0, "spread": None, "protocol": {}}]}
    for images in (240, 360):
        evaluation = Path(run) / "evaluations" / f"images_{images:012d}.json"
        evaluation.parent.mkdir(exist_ok=True)
        evaluation.write_text(json.dumps({**scores, "without": []}))
    history = run.history()
    assert [*history.index] == [240, 360, 480]
    assert [*history["evaluation/fid"].dropna().index] == [240, 360]


def test_plot_shows_losses_and_scores_over_images(run: ray_gen.Run) -> None:
    figure = run.plot()
    history = run.history()
    drawn = {trace.name: ([*trace.x], [*trace.y]) for trace in figure.data}
    of_machines = {"time", "speed/images_per_second", "memory/peak_GiB"}
    assert drawn.keys() == {*history} - of_machines
    assert {"loss/kl", "held_out/elbo"} <= drawn.keys()
    assert all(drawn[tag] == ([240, 480], [*history[tag]]) for tag in drawn)


def test_a_run_that_trains_now_says_so(run: ray_gen.Run) -> None:
    there = ray_gen.Run("digits")
    with Claim(Folder(str(Path(run)))):
        assert there.state == "training"
    assert there.state == "ended"


def test_a_run_without_reports_is_empty(run: ray_gen.Run) -> None:
    (Path(run) / "metrics.jsonl").unlink()
    there = ray_gen.Run("digits")
    assert there.history().empty
    assert there.metrics == {}
    with pytest.raises(Refused, match="has no report yet"):
        there.plot()


def test_what_is_no_run_is_refused(run: ray_gen.Run) -> None:
    folder = Path(run)
    for given, told in (
        ("digit", "did you mean digits"),
        (folder / checkpoint_name(480), f"is a checkpoint.*; name {folder}$"),
        (folder.parent, "is not the folder of a run"),
    ):
        with pytest.raises(Refused, match=told):
            ray_gen.Run(given)


def test_public_names_say_what_they_are() -> None:
    for name in ray_gen.__all__:
        assert getattr(ray_gen, name).__doc__, name
    assert {"Run", "Refused", "Failed", "train", "search", "evaluate"} <= {*ray_gen.__all__}


@pytest.mark.parametrize(
    "name",
    [
        "Pipeline",
        "Run",
        "check",
        "ema",
        "evaluate",
        "export",
        "load",
        "recipe",
        "resume",
        "search",
        "train",
    ],
)
def test_help_has_an_example_of_each_that_python_reads(name: str) -> None:
    text = inspect.getdoc(getattr(ray_gen, name)) or ""
    example = "\n".join(re.findall(r"(?m)^    (.+)$", text))
    ast.parse(example)
    assert re.search(rf"\b(ray_gen\.{name}|pipeline)\b", example)


def test_help_of_the_package_shows_the_public_names() -> None:
    text = pydoc.render_doc(ray_gen, renderer=pydoc.plaintext)
    assert all(re.search(rf"\b{name}\(|\b{name}\b", text) for name in ray_gen.__all__)


def one_line(given: Sequence[object]) -> None:
    for this in given:
        assert "\n" not in repr(this)
        assert len(repr(this)) <= 160, repr(this)


def test_reprs_have_one_line(run: ray_gen.Run) -> None:
    found = run.load()
    scores = ray_gen.evaluate(run, metrics=["sliced_wasserstein"], count=10)
    one_line([run, ray_gen.Run("digits"), found, run.experiment, scores, Folder(str(run))])
    assert repr(run.experiment).startswith("Experiment(")
    assert "sliced_wasserstein" in repr(scores)
    assert isinstance(run.experiment, Experiment)


@pytest.mark.parametrize("room", ["ray_gen", "ray_gen.launch"])
def test_no_file_of_a_room_has_the_name_of_what_the_room_gives(room: str) -> None:
    """Its import would take the place of a function."""
    module = importlib.import_module(room)
    files = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not files & set(module.__all__)
