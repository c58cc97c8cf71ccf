"""FID against closed forms and torch-fidelity's formula, and its digits in hard cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_gen.evaluation.metrics.fid import bias_warning, frechet_distance
from ray_gen.evaluation.moments import Moments


def gaussian(mean: Tensor, covariance: Tensor) -> Moments:
    """The Moments that many vectors with exactly this mean and covariance would give."""
    moments = Moments(len(mean), mean.device)
    moments.count = 1001
    moments.mean, moments.scatter = mean.double(), covariance.double() * 1000
    return moments


def vectors(count: int, size: int, seed: int, stretch: float = 1.0) -> Tensor:
    """Correlated vectors of full rank, float64 (count, size)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    drawn = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return stretch * (drawn @ mix / size**0.5) + torch.rand(size, generator=generator).double()


@given(
    size=st.integers(1, 12),
    apart=st.floats(-3, 3),
    first=st.floats(0.1, 3),
    second=st.floats(0.1, 3),
    seed=st.integers(0, 100),
)
def test_two_gaussians_with_commuting_covariances(
    size: int, apart: float, first: float, second: float, seed: int
) -> None:
    """The distance is ‖μ − ν‖² + Σ (σ − γ)² if both covariances are diagonal in the same axes."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    deviations = 0.5 + torch.rand(2, size, generator=generator, dtype=torch.float64)
    deviations *= torch.tensor([first, second])[:, None]
    covariances = [axes @ (d**2).diag() @ axes.T for d in deviations]
    means = torch.zeros(2, size, dtype=torch.float64)
    means[1] += apart
    expected = size * apart**2 + (deviations[0] - deviations[1]).square().sum().item()
    found = frechet_distance(gaussian(means[0], covariances[0]), gaussian(means[1], covariances[1]))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=20)
@given(size=st.integers(2, 48), seed=st.integers(0, 1000))
def test_full_rank_features_give_torch_fidelitys_value(size: int, seed: int) -> None:
    from torch_fidelity import metric_fid

    first, second = vectors(300, size, seed), vectors(400, size, seed + 1, stretch=1.3)
    theirs = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(first),
        metric_fid.fid_features_to_statistics(second),
        False,
    )["frechet_inception_distance"]
    assert frechet_distance(Moments.of(first), Moments.of(second)) == pytest.approx(
        theirs, rel=1e-6
    )


def test_fewer_images_than_features_lose_no_digits() -> None:
    """Features in 20 of 300 dimensions have the same distance as in those 20 dimensions alone."""
    first, second = vectors(60, 20, 1), vectors(60, 20, 2)
    exact = frechet_distance(Moments.of(first), Moments.of(second))
    axes = torch.linalg.qr(torch.randn(300, 20, dtype=torch.float64)).Q.T
    found = frechet_distance(Moments.of(first @ axes), Moments.of(second @ axes))
    assert found == pytest.approx(exact, rel=1e-9)


@given(count=st.integers(3, 200), size=st.integers(1, 64), seed=st.integers(0, 100))
def test_a_set_has_no_distance_from_itself(count: int, size: int, seed: int) -> None:
    drawn = vectors(count, size, seed)
    moments = Moments.of(drawn)
    backwards = Moments.of(drawn.flip(0))
    scale = moments.covariance.trace().item()
    assert 0 <= frechet_distance(moments, backwards) <= 1e-7 * scale


def test_the_distance_is_symmetric_and_the_same_after_rotation() -> None:
    first, second = vectors(200, 24, 1), vectors(200, 24, 2)
    axes = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    value = frechet_distance(Moments.of(first), Moments.of(second))
    for a, b in ((second, first), (first @ axes, second @ axes), (first + 7, second + 7)):
        assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(value, rel=1e-9)
    doubled = frechet_distance(Moments.of(2 * first), Moments.of(2 * second))
    assert doubled == pytest.approx(4 * value, rel=1e-9)


@given(
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 1e3, 1e6]),
)
def test_moments_do_not_depend_on_batches_or_on_an_offset(cuts: list[int], offset: float) -> None:
    """With an offset of 1e6, raw sums of squares would leave few digits of a variance of 1: their
    rounding errors are 1e12 · 1e-16 · 200."""
    drawn = vectors(sum(cuts), 7, 3) + offset
    moments = Moments(7, torch.device("cpu"))
    for part in drawn.split(cuts):
        moments.add(part)
    exact = drawn - offset
    assert moments.count == len(drawn)
    assert torch.allclose(moments.mean, drawn.mean(0), rtol=1e-12)
    if len(drawn) > 1:
        covariance = exact.T.cov() if len(drawn) > 1 else None
        assert torch.allclose(moments.covariance, covariance, rtol=1e-6, atol=1e-8)


def test_few_images_give_a_warning_of_the_bias() -> None:
    assert bias_warning(10_000, 50_000) is None
    text = bias_warning(4096, 50_000)
    assert text is not None and "4096 generated" in text and "compare only equal counts" in text
