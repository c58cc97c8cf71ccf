"""Schedules are functions of the images seen, with horizons of their own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gen.experiment.optimizers import LearningRateSchedule
from ray_gen.training.schedule import ema_decay, learning_rate_factor

kinds = st.sampled_from(["constant", "linear", "cosine"])


def test_warm_up_grows_linearly_from_zero() -> None:
    schedule = LearningRateSchedule(warmup_images=200)
    factors = [learning_rate_factor(schedule, images) for images in (0, 50, 100, 200, 10_000)]
    assert factors == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_linear_falls_to_its_final_fraction_and_stays() -> None:
    schedule = LearningRateSchedule(
        kind="linear", warmup_images=100, horizon_images=300, final_fraction=0.2
    )
    factors = [learning_rate_factor(schedule, images) for images in (100, 200, 300, 301, 10**9)]
    assert factors == pytest.approx([1.0, 0.6, 0.2, 0.2, 0.2])


def test_cosine_falls_along_half_a_cosine() -> None:
    schedule = LearningRateSchedule(
        kind="cosine", warmup_images=100, horizon_images=500, final_fraction=0.1
    )
    for images in range(100, 600, 25):
        progress = min(1.0, (images - 100) / 400)
        expected = 0.1 + 0.9 * math.cos(math.pi / 2 * progress) ** 2
        assert learning_rate_factor(schedule, images) == pytest.approx(expected)


def test_constant_without_warm_up_is_one() -> None:
    assert {learning_rate_factor(LearningRateSchedule(), images) for images in (0, 1, 10**9)} == {
        1.0
    }


@given(kinds, st.integers(0, 500), st.integers(1, 500), st.floats(0, 1), st.integers(0, 2000))
def test_factors_lie_between_zero_and_one_and_are_continuous(
    kind, warmup, length, final, images
) -> None:
    schedule = LearningRateSchedule(
        kind=kind, warmup_images=warmup, horizon_images=warmup + length, final_fraction=final
    )
    here, there = (learning_rate_factor(schedule, n) for n in (images, images + 1))
    assert 0.0 <= here <= 1.0
    steepest = max(1 / max(1, warmup), math.pi / 2 / length)
    assert abs(there - here) <= steepest + 1e-12


@given(st.integers(1, 10**6), st.floats(1, 1e6), st.integers(1, 8))
def test_a_constant_half_life_does_not_depend_on_how_often_it_is_applied(
    since, half_life, parts
) -> None:
    once = ema_decay(10**9, since, half_life, 0.0)
    often = ema_decay(10**9, since / parts, half_life, 0.0) ** parts
    assert often == pytest.approx(once, rel=1e-9, abs=1e-300)


def test_after_a_half_life_half_of_the_old_average_is_left() -> None:
    assert ema_decay(10**9, 500, 500, 0.0) == 0.5
    assert ema_decay(10**9, 1000, 500, 0.0) == 0.25


def test_the_ramp_bounds_the_half_life_by_a_share_of_the_images_seen() -> None:
    assert ema_decay(1000, 50, 1e6, 0.05) == 0.5  # half-life 50
    assert ema_decay(10**9, 50, 100, 0.05) == ema_decay(10**9, 50, 100, 0.0)
    assert ema_decay(0, 8, 100, 0.05) == 0.0  # nothing of the untrained start is kept
