"""Numbers that change with the images seen: their values, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.schedules import AnySchedule, CountSteps, number
from tests.helpers import gan, vae

WAY = "start: 2.0, end: 0.5, from_images: 100, until_images: 300"
schedules = TypeAdapter(AnySchedule)


def schedule(kind: str, **fields: float):
    return schedules.validate_python({"kind": kind, **fields})


@given(st.floats(0, 1))
def test_ways_are_their_equations_and_rest_at_both_ends(share: float) -> None:
    ends = {"start": 2.0, "end": 0.5, "from_images": 100, "until_images": 300}
    linear, cosine = schedule("linear", **ends), schedule("cosine", **ends)
    images = 100 + 200 * share
    assert linear.at(images) == pytest.approx(2.0 - 1.5 * share)
    expected = 0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * share))  # SGDR, equation 5
    assert cosine.at(images) == pytest.approx(expected)
    for way in (linear, cosine):
        assert way.at(0) == way.at(100) == 2.0
        assert way.at(300) == way.at(10**12) == 0.5


def test_steps_change_at_their_images() -> None:
    steps = schedule("steps", values=[[0, 1.0], [100, 0.1], [200, 0.01]])
    assert [steps.at(i) for i in (0, 99, 100, 199, 200, 1e9)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert schedule("constant", value=3.0).at(17) == 3.0
    counts = CountSteps.model_validate({"values": [[0, 5], [100, 1]]})
    assert [counts.at(i) for i in (0, 99, 100)] == [5, 5, 1]


EVERYWHERE = [
    ("vae", "objective.beta", WAY),
    ("vae", "optimizers.autoencoder.learning_rate", WAY),
    ("vae", "optimizers.autoencoder.clip_norm", WAY),
    ("vae", "training.ema_half_life_images", WAY),
    ("vae", "training.ema_ramp", "start: 0.5, end: 0.05, until_images: 300"),
    ("gan", "objective.r1_weight", WAY),
    ("gan", "objective.label_smoothing", "start: 0.2, end: 0.0, until_images: 300"),
]


@pytest.mark.parametrize(("family", "path", "way"), EVERYWHERE)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_every_live_number_may_be_a_schedule_and_survives_yaml(
    family: str, path: str, way: str, kind: str
) -> None:
    make = {"vae": vae, "gan": gan}[family]
    this = make(f"{path}={{kind: {kind}, {way}}}")
    assert Experiment.from_yaml(this.to_yaml()) == this
    assert this.value_at(path)["kind"] == kind
    assert make(f"{path}={{kind: {kind}, {way}}}", f"{path}=0.25").value_at(path) == 0.25
    other = make(f"{path}={{kind: {kind}, {way}}}", f"{path}.end=0.125")
    assert other.value_at(f"{path}.end") == 0.125


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("objective.beta={kind: linear}", "objective.beta.start: is required"),
        ("objective.beta={kind: liner, start: 1}", "objective.beta.kind: .* did you mean linear"),
        ("objective.beta={start: 1, end: 2}", "objective.beta.kind: is required"),
        (
            "objective.beta={kind: linear, start: 1, end: 2, until_images: 9, form_images: 3}",
            "objective.beta.form_images: there is no such field",
        ),
        (
            "objective.beta={kind: linear, start: 1, end: -2, until_images: 9}",
            "objective.beta: the schedule reaches -2, .* greater than or equal to 0",
        ),
        (
            "objective.beta={kind: linear, start: 0, end: 1, from_images: 9, until_images: 9}",
            "objective.beta.until_images: 9 .*from_images 9",
        ),
        ("objective.beta={kind: steps, values: [[5, 1.0]]}", "beta.values: the first .* at 0"),
        (
            "objective.beta={kind: steps, values: [[0, 1.0], [0, 2.0]]}",
            "beta.values: image counts .*0 follows 0",
        ),
        ("objective.beta=large", "objective.beta: input should be a valid number.*'large'"),
        ("objective.beta=cosine", r"objective.beta: a schedule is written \{kind: cosine, start"),
        (
            "objective.latent_size={kind: linear, start: 1, end: 2, until_images: 9}",
            "objective.latent_size: takes no schedule",
        ),
        (
            "optimizers.autoencoder.betas=[{kind: constant, value: 0.5}, 0.9]",
            "betas.0: takes no schedule",
        ),
        (
            "optimizers.autoencoder.betas=[0.9, {kind: linear, start: 0.9, end: 1, "
            "until_images: 9}]",
            "betas.1: the schedule reaches 1, which should be less than 1",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_its_path(assignment: str, said: str) -> None:
    with pytest.raises(ExperimentError, match=said) as refused:
        vae(assignment)
    assert len(refused.value.problems) == 1


def test_an_option_of_a_class_may_be_a_number_or_a_schedule() -> None:
    assert number(2) == 2.0
    assert number({"kind": "linear", "start": 0, "end": 1, "until_images": 10}).at(5) == 0.5
    for wrong in (float("nan"), True, None):
        with pytest.raises(ValueError, match="a schedule: "):
            number(wrong)
    with pytest.raises(ValueError, match="kind: 'liner' "):
        number({"kind": "liner"})


def test_a_learning_rate_may_begin_and_end_at_0() -> None:
    path = "optimizers.autoencoder.learning_rate"
    this = vae(f"{path}={{kind: cosine, start: 1e-3, end: 0, until_images: 9}}")
    assert this.value_at(path)["end"] == 0.0
    with pytest.raises(ExperimentError, match=f"{path}: .*greater than 0"):
        vae(f"{path}=0")
    with pytest.raises(ExperimentError, match=f"{path}: the schedule reaches -1"):
        vae(f"{path}={{kind: cosine, start: 1e-3, end: -1, until_images: 9}}")


def test_a_count_takes_steps_alone() -> None:
    path = "objective.discriminator_steps"
    assert gan(f"{path}={{kind: steps, values: [[0, 5], [48, 1]]}}").value_at(path)["kind"]
    with pytest.raises(ExperimentError, match=f"{path}.kind: .*must be steps"):
        gan(f"{path}={{kind: linear, start: 1, end: 5, until_images: 9}}")
    with pytest.raises(ExperimentError, match=f"{path}: the schedule reaches 0"):
        gan(f"{path}={{kind: steps, values: [[0, 5], [48, 0]]}}")
    with pytest.raises(ExperimentError, match=f"{path}: .*valid integer"):
        gan(f"{path}=1.5")
