"""Reconstruction errors against their definitions, written out, and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_gen.evaluation.likelihood.reconstruction import mean_squared_error
from ray_gen.perceptual.ssim import structural_similarity


def pairs(count: int, channels: int, height: int = 17, width: int = 14) -> tuple[Tensor, Tensor]:
    """Pictures, and the same pictures with noise. The noise grows from picture to picture."""
    images = torch.rand(count, channels, height // 3, width // 3, dtype=torch.float64)
    images = torch.nn.functional.interpolate(images, (height, width), mode="bilinear")
    spread = torch.linspace(0, 0.5, count)[:, None, None, None]
    return images, (images + spread * torch.randn_like(images)).clamp(0, 1)


def similarity_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """One channel, window by window, in float64."""
    distance = np.arange(11) - 5
    weights = np.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (x, y))
            m, n = (weights * a).sum(), (weights * b).sum()
            s, t = (weights * (a - m) ** 2).sum(), (weights * (b - n) ** 2).sum()
            both = (weights * (a - m) * (b - n)).sum()
            found.append(
                (2 * m * n + 1e-4) * (2 * both + 9e-4) / ((m**2 + n**2 + 1e-4) * (s + t + 9e-4))
            )
    return float(np.mean(found))


@pytest.mark.parametrize("channels", [1, 3])
def test_similarity_is_that_of_its_definition(channels: int) -> None:
    ours, theirs = pairs(4, channels)
    expected = [
        np.mean([similarity_by_hand(a, b) for a, b in zip(x, y, strict=True)])
        for x, y in zip(ours.double().numpy(), theirs.double().numpy(), strict=True)
    ]
    found = structural_similarity(ours, theirs)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    assert float(found[0]) == pytest.approx(1.0, abs=1e-12)
    assert bool((found.diff() < 0).all())  # more noise, less similarity
    torch.testing.assert_close(structural_similarity(theirs, ours), found)


def test_similarity_of_a_negative_is_negative() -> None:
    ours, _ = pairs(3, 1)
    assert bool((structural_similarity(ours, 1 - ours) < 0.2).all())
    checkered = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    checkered = checkered.float()[None, None]
    assert float(structural_similarity(checkered, 1 - checkered)) < -0.9


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="10 x 28 are smaller than its window, 11 x 11"):
        structural_similarity(torch.rand(1, 1, 10, 28), torch.rand(1, 1, 10, 28))


def test_squared_error_is_a_mean_over_pixels_of_each_image() -> None:
    ours, theirs = pairs(5, 3)
    expected = [np.mean((x.numpy() - y.numpy()) ** 2) for x, y in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(mean_squared_error(ours, theirs).numpy(), expected, rtol=1e-5)


@pytest.mark.slow  # its import takes 16 s on two busy cores
@pytest.mark.parametrize("channels", [1, 3])
def test_similarity_is_that_of_torchmetrics_inside_the_image(channels: int) -> None:
    """torchmetrics also averages over reflected borders. The paper's windows lie inside."""
    image = pytest.importorskip("torchmetrics.functional.image")
    ours, theirs = pairs(6, channels, 28, 32)
    _, similarity = image.structural_similarity_index_measure(
        ours.double(), theirs.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    expected = similarity[..., 5:-5, 5:-5].flatten(1).mean(1)
    torch.testing.assert_close(structural_similarity(ours, theirs), expected, rtol=1e-6, atol=1e-7)
