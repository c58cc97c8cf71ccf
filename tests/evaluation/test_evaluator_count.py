"""How many images an evaluation during a run takes, if nobody says so."""

from __future__ import annotations

import pytest

from ray_gen.evaluation.evaluator import fitting
from ray_gen.experiment.evaluation import Evaluation
from tests.helpers import random_store


@pytest.mark.parametrize(
    ("every", "given", "expected"),
    [
        (100_000, None, 3_000),  # all that the reference has
        (8_000, None, 2_000),  # a quarter of the training between two
        (100, None, 1_000),  # not fewer: the scores would be noise
        (100_000, 64, 64),  # what a user says
        (None, None, None),  # not during a run
    ],
)
def test_an_evaluation_fits_the_training_between_two(
    every: int | None, given: int | None, expected: int | None
) -> None:
    settings = Evaluation(every_images=every, count=given)
    assert fitting(settings, random_store(2, 3_000, 10)).count == expected


def test_a_run_without_held_out_images_is_left_to_its_refusal() -> None:
    settings = Evaluation(every_images=1_000, reference="held_out")
    assert fitting(settings, random_store(2, 30, 0)).count is None
