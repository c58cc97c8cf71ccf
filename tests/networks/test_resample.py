"""Up and down by 2 against the convolution with [1, 3, 3, 1] written out pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ray_gen.networks.resample import Downsample, Upsample

TAPS = [1 / 8, 3 / 8, 3 / 8, 1 / 8]


def images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def filtered(x: Tensor) -> Tensor:
    """y[i, j] = Σ f[k] f[l] x[i + k, j + l], for all windows inside x."""
    height, width = x.shape[2] - 3, x.shape[3] - 3
    windows = [
        TAPS[k] * TAPS[i] * x[:, :, k : k + height, i : i + width]
        for k in range(4)
        for i in range(4)
    ]
    return torch.stack(windows).sum(0)


def downsampled(x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    padded = x.new_zeros(n, c, height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = x
    return filtered(padded)[:, :, ::2, ::2]


def upsampled(x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    spread = x.new_zeros(n, c, 2 * height + 3, 2 * width + 3)  # two zeros before, one after
    spread[:, :, 2:-1:2, 2:-1:2] = x
    return 4 * filtered(spread)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_up_and_down_are_the_filter(layout: torch.memory_format) -> None:
    x = images(2, 3, 6, 10).to(memory_format=layout)
    for module, reference in ((Downsample(), downsampled), (Upsample(), upsampled)):
        for given in (x, x.clone().requires_grad_()):
            found = module.double()(given)
            torch.testing.assert_close(found, reference(x))
            assert found.is_contiguous(memory_format=layout)


def test_up_is_4_times_the_adjoint_of_down() -> None:
    x, y = images(2, 3, 4, 6), images(2, 3, 8, 12, seed=1)
    up, down = Upsample().double(), Downsample().double()
    torch.testing.assert_close((up(x) * y).sum(), 4 * (x * down(y)).sum())


def test_up_keeps_a_constant_inside() -> None:
    ones = Upsample()(torch.ones(1, 1, 5, 5))
    assert bool((ones[:, :, 1:-1, 1:-1] == 1).all())
    assert bool((Downsample()(torch.ones(1, 1, 8, 8))[:, :, 1:-1, 1:-1] == 1).all())


@pytest.mark.parametrize("module", [Downsample, Upsample])
def test_their_derivatives_are_exact(module: type) -> None:
    x = images(1, 2, 4, 4).requires_grad_()
    resample = module().double()
    assert torch.autograd.gradcheck(resample, x)
    # A square, so that the second derivative is not 0.
    assert torch.autograd.gradgradcheck(lambda x: resample(x).square(), x)


@pytest.mark.parametrize("module", [Downsample, Upsample])
def test_under_autocast_they_keep_the_type(module: type) -> None:
    x = images(1, 2, 4, 4).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = module()(x)
        (slope,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    assert found.dtype == slope.dtype == torch.float32
    assert module()(x.bfloat16()).dtype == torch.bfloat16
    slope.square().sum().backward()
    assert x.grad is not None
