"""Structural similarity at several scales, against its definition window by window."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.perceptual import SsimDistance
from ray_gen.perceptual.ssim import WEIGHTS, multiscale_similarity, scales_of, window_for


def pairs(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """RGB pictures in [0, 1], and the same with noise."""
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(count, 3, height // 4, width // 4, generator=generator, dtype=torch.float64)
    images = F.interpolate(small, (height, width), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    return images, (images + 0.1 * noise).clamp(0, 1)


def by_hand(x: np.ndarray, y: np.ndarray, window: int) -> tuple[float, float]:
    """Mean of l · cs and mean of cs over channels (C, H, W) and windows inside."""
    distance = np.arange(window) - window // 2
    weights = np.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    a, b = (np.lib.stride_tricks.sliding_window_view(z, (window, window), (1, 2)) for z in (x, y))

    def mean(z: np.ndarray) -> np.ndarray:
        return (weights * z).sum((-2, -1))

    m, n = mean(a)[..., None, None], mean(b)[..., None, None]
    s, t, both = mean((a - m) ** 2), mean((b - n) ** 2), mean((a - m) * (b - n))
    m, n = m[..., 0, 0], n[..., 0, 0]
    contrast = (2 * both + 9e-4) / (s + t + 9e-4)
    luminance = (2 * m * n + 1e-4) / (m**2 + n**2 + 1e-4)
    return float((luminance * contrast).mean()), float(contrast.mean())


def halved(x: np.ndarray) -> np.ndarray:
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


@pytest.mark.parametrize("size", [(16, 30), (33, 40), (70, 64), (128, 133)])
def test_each_scale_is_that_of_its_definition(size: tuple[int, int]) -> None:
    ours, theirs = pairs(2, *size)
    weights, found = scales_of(*size), multiscale_similarity(ours, theirs)
    for one, x, y in zip(found.tolist(), ours.numpy(), theirs.numpy(), strict=True):
        expected = 1.0
        for number, weight in enumerate(weights):
            similarity, contrast = by_hand(x, y, 11)
            expected *= (similarity if number == len(weights) - 1 else contrast) ** weight
            x, y = halved(x), halved(y)
        assert one == pytest.approx(expected, rel=1e-10) and 0.1 < one < 0.99


def test_the_scales_that_fit_share_the_published_weights() -> None:
    counts = {side: len(scales_of(side, 300)) for side in (4, 16, 31, 32, 63, 64, 128, 255, 256)}
    assert counts == {4: 1, 16: 1, 31: 1, 32: 2, 63: 2, 64: 3, 128: 4, 255: 4, 256: 5}
    assert len(scales_of(4096, 4096)) == 5
    for side in (8, 32, 64, 128, 256):
        found = scales_of(side, side)
        assert sum(found) == pytest.approx(1)
        assert found[0] / found[-1] == pytest.approx(WEIGHTS[0] / WEIGHTS[len(found) - 1])


def test_windows_of_small_images_shrink() -> None:
    assert [window_for(side, 40) for side in (1, 2, 3, 4, 8, 10, 11, 12, 40)] == [
        *(1, 1, 3, 3, 7, 9, 11, 11, 11)
    ]
    ours, theirs = pairs(1, 8, 12)
    expected, _ = by_hand(ours[0].numpy(), theirs[0].numpy(), 7)
    assert float(multiscale_similarity(ours, theirs)) == pytest.approx(expected, rel=1e-10)


def test_the_distance_is_zero_for_equal_images_and_its_gradient_is_finite() -> None:
    x, y = (2 * images.float() - 1 for images in pairs(2, 64, 64))
    negative = (-x).requires_grad_()
    original = x.clone().requires_grad_()
    found = SsimDistance()(original, negative)
    assert found.shape == (2,) and bool((found > 0.9).all()) and bool((found <= 2).all())
    found.sum().backward()
    assert original.grad is None and negative.grad is not None
    assert bool(negative.grad.isfinite().all())
    torch.testing.assert_close(SsimDistance()(x, x), torch.zeros(2), atol=1e-5, rtol=0)
    flat = torch.zeros_like(x, requires_grad=True)
    SsimDistance()(x, flat).sum().backward()
    assert bool(flat.grad.isfinite().all()) and float(flat.grad.abs().max()) > 1e-6
    assert bool((SsimDistance()(x, y) < found.detach()).all())


def test_gradients_are_those_of_differences_below_the_least_factor_too() -> None:
    x, y = (2 * images - 1 for images in pairs(1, 32, 32))
    for again in (y, -0.05 * x):
        again = again.clone().requires_grad_()
        SsimDistance()(x, again).sum().backward()
        assert float(again.grad.abs().max()) > 1e-9
        way = torch.randn(again.shape, generator=torch.Generator().manual_seed(4)).double()
        with torch.no_grad():
            ahead, behind = (SsimDistance()(x, again + step * way) for step in (1e-6, -1e-6))
        slope = (ahead - behind) / 2e-6
        torch.testing.assert_close((again.grad * way).sum(), slope[0], rtol=1e-4, atol=1e-9)


def test_float32_is_near_float64_and_autocast_changes_nothing() -> None:
    ours, theirs = pairs(2, 64, 64)
    exact, found = (
        multiscale_similarity(a, b) for a, b in ((ours, theirs), (ours.float(), theirs.float()))
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(multiscale_similarity(ours.float(), theirs.float()), found)


@pytest.mark.slow  # its import takes 16 s on two busy cores
def test_it_is_torchmetrics_similarity_at_each_scale() -> None:
    """torchmetrics leaves the borders out of contrasts, as we do, but not out of the similarity."""
    image = pytest.importorskip("torchmetrics.functional.image")
    similarity = partial(
        image.structural_similarity_index_measure, data_range=1.0, reduction="none"
    )
    ours, theirs = pairs(2, 128, 128)
    expected = torch.ones(2, dtype=torch.float64)
    x, y, weights = ours, theirs, scales_of(128, 128)
    assert len(weights) == 4
    for weight in weights[:-1]:
        expected *= similarity(y, x, return_contrast_sensitivity=True)[1] ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    at_coarsest = similarity(y, x, return_full_image=True)[1][..., 5:-5, 5:-5]
    expected *= at_coarsest.flatten(1).mean(1) ** weights[-1]
    torch.testing.assert_close(multiscale_similarity(ours, theirs), expected, rtol=1e-6, atol=0)
