"""The distance under a Gaussian kernel, against scikit-learn's kernel and a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import normalize

from ray_gen.distributed import World
from ray_gen.evaluation.metrics import mmd_rbf as module
from ray_gen.evaluation.metrics.mmd_rbf import mmd_rbf
from tests.evaluation.helpers import Made, Tiny, by_name, measured, pictures


def sets(first: int, second: int, size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(first, size, generator=generator)
    return x, torch.randn(second, size, generator=generator).mul(0.3).add(0.5)


@pytest.mark.parametrize("rows", [2048, 3])
def test_the_distance_is_that_of_scikit_learns_kernel(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    x, y = sets(13, 8)
    a, b = (normalize(t.double().numpy()) for t in (x, y))
    gamma = 1 / (2 * 10**2)
    inside = rbf_kernel(a, gamma=gamma).mean() + rbf_kernel(b, gamma=gamma).mean()
    expected = 1000 * (inside - 2 * rbf_kernel(a, b, gamma=gamma).mean())
    assert mmd_rbf(x, y) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.1 and np.isfinite(expected)


def test_opposite_points_are_farthest_apart() -> None:
    """k(x, -x) = exp(-2² / 2σ²) with σ = 10, so MMD² is 2 (1 - exp(-1/50))."""
    x = torch.ones(4, 3)
    assert mmd_rbf(x, -x) == pytest.approx(2000 * (1 - math.exp(-1 / 50)), rel=1e-9)


def test_only_directions_matter_not_lengths() -> None:
    x, y = sets(10, 10)
    assert mmd_rbf(x, x) == pytest.approx(0, abs=1e-9)
    assert mmd_rbf(5 * x, y) == pytest.approx(mmd_rbf(x, y), rel=1e-6)


def test_the_protocol_holds_kernel_unit_and_extractor() -> None:
    images = Made(pictures(40, 1)), Made(pictures(30, 2))
    score = by_name(measured(["mmd_rbf"], *images, extractor=Tiny(), world=World()))["mmd_rbf"]
    assert score.value > 0 and score.spread is None
    assert score.protocol["kernel"].startswith("Gaussian, sigma 10")
    assert score.protocol["unit"] == "10^-3"
    assert score.protocol["extractor"] == "tiny"
