"""The warp of ADA: what it does to functions that are known everywhere, its adjoint, its bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ray_gen.augment.warp import Warp, doubling, halving, scattered_exactly

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def maps(*rows: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def any_maps(count: int) -> Tensor:
    """Maps that rotate, stretch, mirror and leave the image."""
    return maps(IDENTITY) + 2.0 * (rand(count, 2, 3, seed=5) - 0.5)


def wave(x: Tensor, y: Tensor, width: int, height: int) -> Tensor:
    """A smooth function that is its own mirror image at the centres of the outermost pixels. x, y:
    in pixels from the centre."""
    across, down = x / (width - 1) + 0.5, y / (height - 1) + 0.5  # 0 and 1 there
    return (2 * math.pi * across).cos() * (math.pi * down).cos() + (3 * math.pi * down).cos()


def places(width: int, height: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    return x[None, :].expand(height, -1), y[:, None].expand(-1, width)


def test_doubling_and_halving_is_the_identity() -> None:
    for size in (2, 3, 8, 13):
        line = torch.eye(size, dtype=torch.float64)
        doubled = doubling(size) @ line  # (2 size - 1, size)
        margin = 4
        place = torch.arange(-margin, 2 * size - 1 + margin)
        period = 2 * (2 * size - 2)
        inside = torch.minimum(place % period, period - place % period)
        torch.testing.assert_close(halving(size) @ doubled[inside], line, rtol=0, atol=1e-14)
        ones = torch.ones(size, dtype=torch.float64)
        torch.testing.assert_close(doubling(size) @ ones, torch.ones_like(doubled[:, 0]))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20), (9, 5)])
def test_whole_pixels_mirrors_and_turns_are_exact(height: int, width: int) -> None:
    """Up to rounding, also of what comes from beyond the image."""
    images = rand(1, 2, height, width)
    warp = Warp(height, width)
    wide = torch.cat([images.flip(3)[..., :-1], images, images.flip(3)[..., 1:]], dim=3)
    tall = torch.cat([images.flip(2)[:, :, :-1], images, images.flip(2)[:, :, 1:]], dim=2)
    expected = {
        IDENTITY: images,
        ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)): images.flip(3),
        ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)): images.flip(2),
        ((1.0, 0.0, 3.0), (0.0, 1.0, 0.0)): wide[..., width + 2 : 2 * width + 2],
        ((1.0, 0.0, 0.0), (0.0, 1.0, -2.0)): tall[:, :, height - 3 : 2 * height - 3],
    }
    if height == width:
        expected[((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))] = images.rot90(-1, (2, 3))
    for rows, wanted in expected.items():
        torch.testing.assert_close(warp(images, maps(rows)), wanted, rtol=0, atol=1e-13)
    single = warp.float()(images.float(), maps(IDENTITY).float())
    assert float((single - images).abs().max()) < 1e-6


def test_what_is_done_can_be_undone() -> None:
    images, warp = rand(1, 1, 8, 8), Warp(8, 8)
    again = images
    for _ in range(4):
        again = warp(again, maps(((0.0, -1.0, 0.0), (1.0, 0.0, 0.0))))
    torch.testing.assert_close(again, images, rtol=0, atol=1e-12)
    there = warp(images, maps(((1.0, 0.0, 2.0), (0.0, 1.0, 1.0))))
    back = warp(there, maps(((1.0, 0.0, -2.0), (0.0, 1.0, -1.0))))
    torch.testing.assert_close(back[..., 1:, 2:], images[..., 1:, 2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 33)])
def test_a_smooth_image_is_sampled_at_the_mapped_places(height: int, width: int) -> None:
    """Against the function itself, inside and far outside the image."""
    x, y = places(width, height)
    images = wave(x, y, width, height).expand(12, 1, -1, -1)
    found = Warp(height, width)(images, any_maps(12))
    for one, ((a, b, c), (d, e, f)) in zip(found, any_maps(12).tolist(), strict=True):
        expected = wave(a * x + b * y + c, d * x + e * y + f, width, height)
        assert float((one[0] - expected).abs().max()) < 0.03  # of 2


def test_gradients_of_any_order_pass_through() -> None:
    warp, images = Warp(4, 5), rand(3, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: warp(x, any_maps(3)), (images,))
    assert torch.autograd.gradgradcheck(lambda x: warp(x, any_maps(3)), (images,))

    def slopes(x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(warp(x, any_maps(3)).pow(3).sum(), x, create_graph=True)
        return slope.square().sum()

    assert torch.autograd.gradcheck(slopes, (images,))


def test_the_gradient_is_the_adjoint() -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩"""
    warp, x, y = Warp(9, 7), rand(4, 3, 9, 7).requires_grad_(), rand(4, 3, 9, 7, seed=1)
    out = warp(x, any_maps(4))
    (adjoint,) = torch.autograd.grad(out, x, y)
    assert float((out * y).sum().detach()) == pytest.approx(
        float((x * adjoint).sum().detach()), rel=1e-12
    )


def samples_and_places() -> tuple[Tensor, Tensor]:
    return rand(3, 2, 15, 17) - 0.5, 4 * rand(3, 15, 17, 2, seed=1) - 2


def test_sums_of_whole_numbers_are_the_adjoint_of_torchs_own_samples() -> None:
    samples, where = samples_and_places()
    images = torch.zeros(3, 2, 9, 7, dtype=torch.float64, requires_grad=True)
    own = torch.nn.functional.grid_sample(
        images, where, "bilinear", "reflection", align_corners=True
    )
    (expected,) = torch.autograd.grad(own, images, samples)
    found = scattered_exactly(samples, where, 9, 7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    single = scattered_exactly(samples.float(), where.float(), 9, 7)
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-5)


def test_sums_of_whole_numbers_do_not_depend_on_their_order() -> None:
    samples, where = (values.float() for values in samples_and_places())
    mixed = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    found = scattered_exactly(samples[..., mixed], where[:, :, mixed], 9, 7)
    assert torch.equal(found, scattered_exactly(samples, where, 9, 7))
    alone = scattered_exactly(samples[1:2], where[1:2], 9, 7)
    assert torch.equal(found[1:2], alone)  # and of each image alone


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stays_none(bad: float) -> None:
    samples, where = samples_and_places()
    samples[1, 0, 3, 3] = bad
    found = scattered_exactly(samples, where, 9, 7)
    assert not bool(found[1, 0].isfinite().all())
    assert bool(found[[0, 2]].isfinite().all())
    assert bool((scattered_exactly(torch.zeros_like(samples), where, 9, 7) == 0).all())


def test_torch_finds_its_rules_for_operators_kept() -> None:
    """Schemas, fakes and gradients, also of a recorded program."""
    samples, where = samples_and_places()
    pixels = rand(3, 2, 9, 7).requires_grad_()
    torch.library.opcheck(torch.ops.ray_gen.sample.default, (pixels, where))
    given = (samples.requires_grad_(), where, 9, 7)
    torch.library.opcheck(torch.ops.ray_gen.scatter.default, given)
