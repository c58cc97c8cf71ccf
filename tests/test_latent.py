"""Ways through latent space keep what they promise, whatever the latents."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.errors import Refused
from ray_gen.pipeline import latent

NORMAL = Noise((1,))
UNIFORM = Noise((1,), "uniform", -1.0, 1.0)

numbers = st.floats(-100.0, 100.0, width=32)
sizes = st.integers(1, 6)


def latents(draw: st.DrawFn, count: int, size: int) -> Tensor:
    return torch.tensor([[draw(numbers) for _ in range(size)] for _ in range(count)])


@given(st.data(), sizes, st.integers(2, 9), st.booleans())
def test_a_way_begins_and_ends_exactly_at_its_ends(data, size: int, steps: int, bent: bool) -> None:
    a, b = latents(data.draw, 2, size), latents(data.draw, 2, size)
    way = latent.interpolated(a, b, steps, spherical=bent)
    assert way.shape == (2, steps, size)
    assert torch.equal(way[:, 0], a)
    assert torch.equal(way[:, -1], b)


@given(st.integers(0, 1000), st.integers(2, 20), st.floats(0.1, 10.0))
def test_norms_on_a_great_circle_lie_between_those_of_its_ends(
    seed: int, size: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 1, size, generator=generator)
    norms = latent.interpolated(a, scale * b, 9, spherical=True).norm(dim=2)[0]
    expected = torch.linspace(float(a.norm()), scale * float(b.norm()), 9)
    torch.testing.assert_close(norms, expected, rtol=1e-4, atol=1e-4)


def test_between_equal_norms_a_way_is_whites_slerp() -> None:
    """sin((1 - t) θ) / sin θ a + sin(t θ) / sin θ b."""
    a, b = torch.randn(2, 1, 8, dtype=torch.float64)
    b = b / b.norm() * a.norm()
    theta = float((a * b).sum() / a.norm() ** 2)
    theta = math.acos(theta)
    for way, t in zip(
        latent.interpolated(a, b, 5, spherical=True)[0], (0.0, 0.25, 0.5, 0.75, 1.0), strict=True
    ):
        expected = (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)
        torch.testing.assert_close(way, expected[0])


@pytest.mark.parametrize("b", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
def test_where_there_is_no_one_great_circle_a_way_is_straight(b: list[float]) -> None:
    a, last = torch.tensor([[1.0, 0.0]]), torch.tensor([b])
    way = latent.interpolated(a, last, 5, spherical=True)
    torch.testing.assert_close(way, latent.interpolated(a, last, 5, spherical=False))
    assert bool(way.isfinite().all())


def test_the_middle_of_a_straight_way_between_normals_is_too_short() -> None:
    """What slerp is for: in many dimensions |z| is near √D, and √(D / 2) at the middle."""
    a, b = torch.randn(2, 100, 512)
    straight, bent = (
        latent.interpolated(a, b, 3, spherical=bent)[:, 1].norm(dim=1) for bent in (False, True)
    )
    assert float(straight.max()) < 18.5 < 21.0 < float(bent.min())


@given(st.lists(st.floats(-6.0, 6.0, width=32), min_size=1), st.floats(0.01, 20.0))
def test_truncation_bounds_numbers_and_keeps_their_order_and_sign(
    values: list[float], truncation: float
) -> None:
    for prior in (NORMAL, UNIFORM):
        z = torch.tensor(sorted(values))
        z = z.clamp(-1.0, 1.0) if prior is UNIFORM else z
        cut = latent.truncated(z, prior, truncation)
        assert bool((cut.abs() <= truncation * (1 + 1e-6)).all())
        assert bool((cut.abs() <= z.abs() * (1 + 1e-6) + 1e-12).all())
        assert bool((cut.diff() >= 0).all())
        assert bool((cut * z >= 0).all())


@given(st.floats(-5.0, 5.0), st.floats(0.05, 6.0))
def test_a_truncated_number_has_the_same_place_in_its_own_distribution(
    number: float, truncation: float
) -> None:
    """The inverse distribution function of the same uniform number, by math.erf."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    cut = float(latent.truncated(torch.tensor(number, dtype=torch.float64), NORMAL, truncation))
    place = (below(cut) - below(-truncation)) / (below(truncation) - below(-truncation))
    assert place == pytest.approx(below(number), abs=1e-9)


@given(st.floats(-5.0, 5.0), st.floats(0.1, 6.0), st.floats(1e-4, 0.1))
def test_a_number_moves_no_faster_than_the_truncation(
    number: float, truncation: float, more: float
) -> None:
    z = torch.tensor(number, dtype=torch.float64)
    for prior in (NORMAL, UNIFORM):
        here, there = (latent.truncated(z, prior, t) for t in (truncation, truncation + more))
        assert float((there - here).abs()) <= more * max(1.0, abs(number)) + 1e-9


def test_without_truncation_nothing_changes() -> None:
    z = torch.randn(1000)
    assert latent.truncated(z, NORMAL, None) is z
    assert torch.equal(latent.truncated(z, NORMAL, math.inf), z)
    torch.testing.assert_close(latent.truncated(z, NORMAL, 12.0), z)
    z = torch.rand(1000) * 2 - 1
    assert torch.equal(latent.truncated(z, UNIFORM, 1.0), z)
    torch.testing.assert_close(latent.truncated(z, UNIFORM, 0.5), z / 2)
    lopsided = Noise((1,), "uniform", 2.0, 4.0)
    cut = latent.truncated(torch.tensor([2.0, 3.0, 4.0]), lopsided, 0.5)
    assert cut.tolist() == [2.5, 3.0, 3.5]


@given(st.data(), sizes)
def test_adding_and_taking_the_same_group_leaves_the_rest(data, size: int) -> None:
    a, b = latents(data.draw, 3, size), latents(data.draw, 1, size)
    # Equal up to float64 rounding of the sum.
    torch.testing.assert_close(latent.combined([a, b], [a]), b, rtol=1e-6, atol=1e-12)


def test_a_combination_is_of_means() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0]])
    assert latent.combined([a], [b]).tolist() == [[-8.0, -17.0]]
    assert latent.combined([], [b]).tolist() == [[-10.0, -20.0]]


@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 5.0))
def test_a_traverse_has_the_base_in_its_middle_and_moves_one_number(
    data, size: int, half: int, extent: float
) -> None:
    base = latents(data.draw, 1, size)
    way = latent.traversed(base, range(size), extent, 2 * half + 1)
    assert way.shape == (size, 2 * half + 1, size)
    for dimension in range(size):
        row = way[dimension]
        assert torch.equal(row[half], base[0])
        others = [other for other in range(size) if other != dimension]
        assert torch.equal(row[:, others], base[:, others].expand(len(row), -1))
        moved = row[[0, -1], dimension] - base[0, dimension]
        torch.testing.assert_close(moved, torch.tensor([-extent, extent]), rtol=0, atol=1e-4)


def test_latents_of_any_shape_are_taken() -> None:
    a, b = torch.randn(2, 3, 4, 2, 2)
    assert latent.interpolated(a, b, 5, spherical=True).shape == (3, 5, 4, 2, 2)
    assert latent.combined([a], [b]).shape == (1, 4, 2, 2)
    assert latent.traversed(a[:1], [15], 1.0, 3).shape == (1, 3, 4, 2, 2)
    around = latent.neighbourhood(a[:1], seed=1)
    assert around.shape == (9, 4, 2, 2)
    assert torch.equal(around[4], a[0])
    assert 0.2 < float((around - a[:1]).abs().max()) <= 0.25


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    z = torch.zeros(1, 3)
    for steps in (1, 0, -2):
        with pytest.raises(Refused, match=f"steps: {steps} cannot hold both ends"):
            latent.interpolated(z, z, steps, spherical=True)
        with pytest.raises(Refused, match=f"steps: {steps} cannot hold both ends"):
            latent.traversed(z, [0], 1.0, steps)
    for dimension in (3, -1):
        with pytest.raises(Refused, match=f"dimension: {dimension} .* 0 to 2"):
            latent.traversed(z, [dimension], 1.0, 3)
    for truncation in (0.0, -1.0, math.nan):
        with pytest.raises(Refused, match=r"truncation: .* is not positive"):
            latent.truncated(z, NORMAL, truncation)
    with pytest.raises(Refused, match="extent: nan is not finite"):
        latent.traversed(z, [0], math.nan, 3)
    with pytest.raises(Refused, match="no group of latents"):
        latent.combined([], [])
