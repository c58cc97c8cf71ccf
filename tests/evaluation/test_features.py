"""KID, Inception Score, precision, recall, density and coverage against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances
from torch import Tensor

from ray_gen.evaluation.metrics import density_coverage as density_coverage_module
from ray_gen.evaluation.metrics.density_coverage import density_coverage
from ray_gen.evaluation.metrics.inception_score import inception_score
from ray_gen.evaluation.metrics.kid import kernel_distance
from ray_gen.evaluation.metrics.precision_recall import precision_recall


def vectors(count: int, seed: int, size: int = 8, shift: float = 0.0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def kernel(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    return (first @ second.T / first.shape[1] + 1) ** 3


def test_kid_is_the_unbiased_estimator_of_its_paper() -> None:
    """One subset that holds all images, in float64."""
    first, second = vectors(60, 1), vectors(60, 2, shift=0.4)
    value, spread = kernel_distance(first, second, subsets=1, subset_size=60, seed=0)
    x, y = first.double().numpy(), second.double().numpy()
    same = [k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y))]
    expected = sum(same) / (60 * 59) - 2 * kernel(x, y).mean()
    assert value == pytest.approx(expected, rel=1e-4)
    assert spread == 0


def test_kid_of_equal_distributions_is_near_zero_and_depends_on_its_seed() -> None:
    first, second = vectors(500, 1), vectors(500, 2)
    value, spread = kernel_distance(first, second, subsets=20, subset_size=100, seed=0)
    assert abs(value) < spread
    again = kernel_distance(first, second, subsets=20, subset_size=100, seed=0)
    other = kernel_distance(first, second, subsets=20, subset_size=100, seed=2**40 + 1)
    assert (value, spread) == again != other


def test_inception_score_counts_classes_if_they_are_sure_and_equally_frequent() -> None:
    classes = torch.arange(1000) % 5
    logits = 50.0 * torch.nn.functional.one_hot(classes, 7).float()
    assert inception_score(logits, seed=0, splits=1)[0] == pytest.approx(5.0, rel=1e-6)
    assert inception_score(torch.zeros(100, 7), seed=0)[0] == pytest.approx(1.0, rel=1e-6)


def balls(first: Tensor, second: Tensor, neighbours: int) -> tuple[NDArray[np.bool_], ...]:
    """Which of `second` lie in the balls of `first`, closed and open: (N, M), by brute force."""
    x, y = first.double().numpy(), second.double().numpy()
    radius = np.sort(pairwise_distances(x), axis=1)[:, neighbours][:, None]
    apart = pairwise_distances(x, y)
    return apart <= radius, apart < radius


@settings(max_examples=25)
@given(
    generated=st.integers(8, 80),
    reference=st.integers(8, 80),
    neighbours=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_precision_recall_density_and_coverage_by_brute_force(
    generated: int, reference: int, neighbours: int, seed: int
) -> None:
    fake, real = vectors(generated, seed), vectors(reference, seed + 1, shift=0.7)
    precision, recall = precision_recall(fake, real, neighbours=neighbours)
    assert precision == pytest.approx(balls(real, fake, neighbours)[0].any(0).mean())
    assert recall == pytest.approx(balls(fake, real, neighbours)[0].any(0).mean())
    density, coverage = density_coverage(fake, real, neighbours=neighbours)
    inside = balls(real, fake, neighbours)[1]
    assert density == pytest.approx(inside.sum() / (neighbours * generated))
    assert coverage == pytest.approx(inside.any(1).mean())


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = vectors(90, 1), vectors(130, 2)
    whole = density_coverage(fake, real, neighbours=5)
    monkeypatch.setattr(density_coverage_module, "ROWS", 32)
    assert density_coverage(fake, real, neighbours=5) == whole


def test_a_set_against_itself_is_precise_and_covered() -> None:
    real = vectors(300, 1)
    assert precision_recall(real, real.flip(0), neighbours=3) == (1.0, 1.0)
    density, coverage = density_coverage(real, real, neighbours=5)
    assert density == pytest.approx(1.0, abs=0.01)
    assert coverage == 1.0


def test_dropped_modes_lower_recall_and_coverage_but_not_precision() -> None:
    real = torch.cat([vectors(200, 1), vectors(200, 2, shift=20.0)])
    fake = vectors(200, 3)
    precision, recall = precision_recall(fake, real, neighbours=3)
    _, coverage = density_coverage(fake, real, neighbours=5)
    assert precision > 0.8 and recall < 0.55 and coverage < 0.55
    assert precision_recall(real, fake, neighbours=3)[0] == pytest.approx(recall)


def test_equal_distributions_have_the_expectations_of_naeem_et_al() -> None:
    densities, coverages = zip(
        *(
            density_coverage(vectors(400, seed), vectors(400, 1000 + seed), neighbours=5)
            for seed in range(20)
        ),
        strict=True,
    )
    assert np.mean(densities) == pytest.approx(1.0, abs=0.02)
    exact = 1 - np.prod([(400 - i) / (800 - i) for i in range(1, 6)])
    assert np.mean(coverages) == pytest.approx(exact, abs=0.01)
