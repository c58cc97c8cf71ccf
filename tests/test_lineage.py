"""A run whose settings change on its way is the run that was stopped there and gone on with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ray_gen.distributed import World
from ray_gen.experiment import Experiment, ExperimentError, differences
from ray_gen.experiment.objectives import GanObjective
from ray_gen.runs.manifest import Manifest
from ray_gen.training.build import build_objective
from ray_gen.training.loop import Control, train
from ray_gen.training.state import State, copy_of
from tests.helpers import (
    STYLEGAN2,
    gan,
    largest_difference,
    relative_difference,
    trained,
    trained_by_workers,
    vae,
    weights,
)

BATCH = 24
CASES = {
    "vae": (
        lambda *o: vae("objective.beta_warmup_images=300", *o),
        {"objective.beta": 4.0, "optimizers.autoencoder.learning_rate": 0.01},
    ),
    "adamw-vae": (
        lambda *o: vae("optimizers.autoencoder.kind=adamw", *o, kind="conv"),
        {
            "optimizers.autoencoder.weight_decay": 0.5,
            "optimizers.autoencoder.clip_norm": 0.01,
        },
    ),
    "gan": (
        lambda *o: gan("networks.discriminator.batch_norm=true", *o, kind="dcgan"),
        {"objective.discriminator_steps": 3, "objective.r1_weight": 1.0, "objective.r1_every": 2},
    ),
    "gan-backwards": (
        lambda *o: gan(
            "objective.discriminator_steps=3",
            "objective.r1_weight=1",
            "optimizers.discriminator.clip_norm=0.1",
            *o,
        ),
        {
            "objective.discriminator_steps": 1,
            "objective.r1_weight": 0.0,
            "objective.label_smoothing": 0.1,
            "optimizers.discriminator.clip_norm": None,
        },
    ),
}


def lineage(*changes: tuple[int, dict]) -> str:
    """An assignment of these changes, each at an image count."""
    import json

    given = [{"images": images, "values": values} for images, values in changes]
    return f"lineage={json.dumps(given)}"


def saved_after(this: Experiment, steps: int, store, folder: Path) -> Path:
    """The checkpoint of a run that was asked to stop after so many steps."""
    objective = build_objective(this)
    state = State.build(this, objective, World())

    def control(images: int) -> Control:
        return Control.SAVE_AND_STOP if images >= BATCH * steps else Control.GO_ON

    *_, last = train(this, objective, state, store, World(), control)
    assert last.step == steps
    folder.mkdir()
    state.save(folder, this)
    return folder


def gone_on(this: Experiment, checkpoint: Path, store) -> State:
    """The end of a run that goes on from a checkpoint."""
    state = State.build(this, build_objective(this), World())
    state.load(checkpoint)
    return trained(this, store, state=state)[0]


def same(ours: State, theirs: State) -> bool:
    """Whether networks, averages and moments are the same bits."""
    moments, expected = ours.moments(), theirs.moments()
    return largest_difference(weights(ours), weights(theirs)) == 0 and all(
        torch.equal(moments[name], expected[name]) for name in expected
    )


@pytest.fixture(autouse=True)
def _a_control_step_after_every_step(monkeypatch) -> None:
    monkeypatch.setattr("ray_gen.training.loop.CONTROL_SECONDS", 0.0)


@pytest.mark.parametrize("name", CASES)
def test_a_lineage_repeats_a_run_that_went_on_with_other_values(
    store_8, tmp_path: Path, name: str
) -> None:
    make, values = CASES[name]
    checkpoint = saved_after(make(), 7, store_8, tmp_path / "7")
    expected = gone_on(make().with_values(values), checkpoint, store_8)
    unchanged, _ = trained(make(), store_8)
    assert largest_difference(weights(expected), weights(unchanged)) > 0

    assert same(trained(make(lineage((7 * BATCH, values))), store_8)[0], expected)
    # A change in the middle of a step takes effect before the next step.
    assert same(trained(make(lineage((6 * BATCH + 1, values))), store_8)[0], expected)


@pytest.mark.parametrize("steps", [3, 7, 8, 13])
@pytest.mark.parametrize("name", ["vae", "gan"])
def test_a_run_with_a_lineage_is_resumed_before_at_and_after_its_changes(
    store_8, tmp_path: Path, name: str, steps: int
) -> None:
    make, values = CASES[name]
    first = dict(list(values.items())[:1])
    this = make(lineage((7 * BATCH, values), (12 * BATCH, {**first, next(iter(first)): 1})))
    whole, _ = trained(this, store_8)
    checkpoint = saved_after(this, steps, store_8, tmp_path / "checkpoint")
    assert same(gone_on(this, checkpoint, store_8), whole)


NEEDS_PARTS = {
    "objective.lecam_weight": (lambda *o: gan(*o, kind="dcgan"), 0.3),
    "objective.path_length_weight": (lambda *o: gan(*STYLEGAN2, *o), 2.0),
    "objective.reconstruction_weight": (
        lambda *o: gan(
            "networks.generator.width=1", "networks.discriminator.width=1", *o, kind="fastgan"
        ),
        8.0,
    ),
}
"""Weights whose losses need parts of the model."""


@pytest.mark.parametrize("weight", NEEDS_PARTS)
def test_a_weight_cannot_leave_0_if_the_model_lacks_a_part(weight: str) -> None:
    make, value = NEEDS_PARTS[weight]
    with pytest.raises(ExperimentError) as refused:
        make(lineage((7 * BATCH, {"objective.r1_weight": 1.0}), (9 * BATCH, {weight: value})))
    (problem,) = refused.value.problems
    assert problem.startswith(f"lineage.1.values.{weight}: cannot leave 0 during a run")
    (remedy,) = re.findall(r"\S+={kind: steps.*}", problem)
    make(remedy.replace("VALUE", str(value)))


@pytest.mark.parametrize("weight", NEEDS_PARTS)
def test_a_weight_goes_to_0_and_back(store_8, tmp_path: Path, weight: str) -> None:
    make, value = NEEDS_PARTS[weight]
    changes = (4 * BATCH, {weight: 0.0}), (6 * BATCH, {weight: value})
    this = make(f"{weight}={value}", f"training.images={8 * BATCH}", lineage(*changes))
    whole, _ = trained(this, store_8)
    assert same(gone_on(this, saved_after(this, 5, store_8, tmp_path / "5"), store_8), whole)


def test_other_weights_of_a_gan_leave_0(store_8) -> None:
    others = {
        f"objective.{name}": 1.0
        for name, field in GanObjective.model_fields.items()
        if name.endswith("_weight")
        and (field.json_schema_extra or {}).get("live")
        and f"objective.{name}" not in NEEDS_PARTS
    }
    assert {"objective.consistency_weight", "objective.gradient_penalty_weight"} < others.keys()
    more = "networks.discriminator.batch_norm=false", f"training.images={5 * BATCH}"
    this = gan(*more, lineage((3 * BATCH, others)), kind="dcgan")
    _, reports = trained(this, store_8)
    assert {"loss/fake_consistency", "loss/gradient_penalty"} < reports[-1].metrics.keys()


def test_what_is_reported_follows_the_change(store_8) -> None:
    make, values = CASES["gan"]
    _, reports = trained(make(lineage((10 * BATCH, values))), store_8)
    before, after = reports
    assert (before.step, after.step) == (10, 20)
    assert after.metrics.keys() - before.metrics.keys() == {"loss/r1"}
    assert after.metrics["loss/r1"] > 0


def test_what_is_reported_over_a_change_is_the_mean_of_both_parts(store_8) -> None:
    """With β = 1 the term reports no tag for the plain KL; the reports are every 10 steps."""
    this = vae(lineage((4 * BATCH, {"objective.beta": 2.0})))
    _, (first, _) = trained(this, store_8)
    _, single = trained(this.with_fields(training__report_every_images=BATCH), store_8)
    for tag, steps in (("loss/reconstruction", range(10)), ("latent/kl", range(4, 10))):
        mean = sum(single[step].metrics[tag] for step in steps) / len(steps)
        assert first.metrics[tag] == pytest.approx(mean)


def test_two_workers_train_a_lineage_as_one_does(store_8, tmp_path: Path) -> None:
    make, values = CASES["gan"]
    this = make("training.precision=fp64", lineage((7 * BATCH, values)))
    one, _ = trained(this, store_8)
    (two,) = trained_by_workers(2, [this], store_8, tmp_path)
    assert relative_difference(two, weights(one)) < 1e-9


def test_the_equilibrium_is_that_of_the_present_settings(store_8) -> None:
    """Smoothed labels move it from ½ to 0.1, and D(x) is still near ½."""
    given = (
        f"training.stop_at_equilibrium={{tolerance: 0.2, window_images: {BATCH * 8}}}",
        f"training.report_every_images={BATCH * 3}",
    )

    def stopped(*more: str) -> int:
        this = gan(*given, *more)
        objective = build_objective(this)
        state = State.build(this, objective, World())
        state.settled |= {"real_left": 1, "fake_left": 1}
        *_, last = train(this, objective, state, store_8, World())
        return last.step

    assert stopped() == 12
    assert stopped("objective.label_smoothing=0.8") > 12
    assert stopped(lineage((BATCH, {"objective.label_smoothing": 0.8}))) > 12


# Stages.


def test_without_a_lineage_there_is_one_stage() -> None:
    this = vae()
    assert this.stages() == [(0, this)]


def test_stages_add_up_and_begin_at_whole_steps() -> None:
    this = vae(
        lineage(
            (1, {"objective.beta": 2.0}),
            (BATCH * 3, {"optimizers.autoencoder.learning_rate": 0.1}),
            (BATCH * 3 + 1, {"objective.beta": 3.0}),
        )
    )
    assert [
        (step, stage.value_at("objective.beta"), stage.optimizers["autoencoder"].learning_rate)
        for step, stage in this.stages()
    ] == [(0, 1.0, 1e-3), (1, 2.0, 1e-3), (3, 2.0, 0.1), (4, 3.0, 0.1)]


def test_of_two_changes_in_one_step_both_count(store_8) -> None:
    together = {"objective.beta": 3.0, "optimizers.autoencoder.learning_rate": 0.01}
    apart = lineage(
        (50, {"objective.beta": 2.0, "optimizers.autoencoder.learning_rate": 0.01}),
        (60, {"objective.beta": 3.0}),
    )
    one, _ = trained(vae(lineage((72, together))), store_8)
    assert same(trained(vae(apart), store_8)[0], one)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            lineage((48, {"objective.beta": 2.0}), (48, {"objective.beta": 3.0})),
            "lineage.1.images: 48 is not larger than 48",
        ),
        (
            lineage((96, {"objective.beta": 2.0}), (48, {"objective.beta": 3.0})),
            "lineage.1.images: 48 is not larger than 96",
        ),
        (lineage((0, {"objective.beta": 2.0})), "lineage.0.images"),
        (
            lineage((48, {"objective.latent_size": 8})),
            "lineage.0.values.objective.latent_size: cannot change during a run",
        ),
        (
            lineage((48, {"optimizers.autoencoder.eps": 1e-6})),
            "lineage.0.values.optimizers.autoencoder.eps: cannot change",
        ),
        (
            lineage((48, {"training.images": 4800})),
            "lineage.0.values.training.images: cannot change",
        ),
        (lineage((48, {"objective.bta": 2.0})), "did you mean objective.beta?"),
        (lineage((48, {"objective.beta": -2.0})), "lineage.0.values: objective.beta: "),
        (lineage((48, {"objective.beta": "large"})), "lineage.0.values: objective.beta: "),
        (
            lineage((48, {}), (96, {"optimizers.autoencoder.learning_rate": 0.0})),
            "lineage.1.values: optimizers.autoencoder.learning_rate: ",
        ),
        ("lineage=[{images: 48}]", "lineage.0.values: is required"),
        (
            "lineage=[{images: 48, values: {}, sourse: x}]",
            "lineage.0.sourse: there is no such field; did you mean lineage.0.source?",
        ),
    ],
)
def test_a_lineage_that_cannot_be_is_refused(given: str, said: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(said)):
        vae(given)


def test_values_that_only_another_field_forbids_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"lineage\.0\.values: objective: label_smoothing"):
        gan("objective.loss=hinge", lineage((48, {"objective.label_smoothing": 0.1})))


def test_a_lineage_is_the_identity_of_a_run() -> None:
    plain, changed = vae(), vae(lineage((48, {"objective.beta": 2.0})))
    (difference,) = differences(plain, changed)
    assert difference.startswith("lineage: () here")
    other = vae(lineage((48, {"objective.beta": 3.0})))
    assert len(list(differences(changed, other))) == 1
    assert list(differences(changed, Experiment.from_yaml(changed.to_yaml()))) == []


# A checkpoint as another run's.


def test_a_copied_checkpoint_is_another_experiments(store_8, tmp_path: Path) -> None:
    make, values = CASES["vae"]
    checkpoint = saved_after(make(), 7, store_8, tmp_path / "7")
    expected = gone_on(make().with_values(values), checkpoint, store_8)
    other = make(lineage((7 * BATCH, values)))
    copied = tmp_path / "copy"
    copied.mkdir()
    copy_of(checkpoint, copied, other)
    assert Experiment.from_yaml((copied / "experiment.yaml").read_text()) == other
    ours, theirs = Manifest.checked(copied), Manifest.checked(checkpoint)
    assert ours.files["experiment.yaml"] != theirs.files["experiment.yaml"]
    assert replace(ours, files=theirs.files) == theirs
    assert same(gone_on(other, copied, store_8), expected)
