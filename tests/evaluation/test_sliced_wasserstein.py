"""Sliced Wasserstein distance against scipy's filters and one-dimensional distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from ray_gen.distributed import World
from ray_gen.evaluation import patches as module
from ray_gen.evaluation.patches import (
    PATCHES,
    Pictures,
    laplacian,
    scales_of,
    sliced_wasserstein,
)
from ray_gen.evaluation.progress import silent
from tests.evaluation.helpers import pictures


def seen(images: torch.Tensor, count: int | None = None, batch: int = 50) -> Pictures:
    count = len(images) if count is None else count
    kept = Pictures(tuple(images.shape[1:]), len(images), count, range(len(images)))
    for start in range(0, len(images), batch):
        kept.see(start, images[start : start + batch])
    return kept


def distance(first: torch.Tensor, second: torch.Tensor, seed: int = 0) -> dict[str, float]:
    count = min(len(first), len(second))
    return sliced_wasserstein(seen(first, count), seen(second, count), seed, World(), silent)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28), (3, 40, 24), (1, 35, 33)])
def test_a_set_has_no_distance_from_itself(shape: tuple[int, int, int]) -> None:
    images = pictures(40, 1, shape)
    assert set(distance(images, images).values()) == {0.0}


def test_it_grows_with_noise_and_is_symmetric() -> None:
    images = pictures(60, 1)
    noise = torch.randn(images.shape)
    found: list[float] = []
    for strength in (0, 30, 90):
        noisy = (images.flip(0) + strength * noise).clamp(0, 255).to(torch.uint8)
        found.append(distance(noisy, images)["16x16"])
    assert found == sorted(found) and found[2] > 3 * found[0]
    assert distance(images, noisy)["16x16"] == pytest.approx(found[2])


def test_scales_are_those_of_karras_et_al() -> None:
    assert scales_of((3, 64, 64)) == [(64, 64), (32, 32), (16, 16)]
    assert scales_of((1, 28, 28)) == [(28, 28)]


@settings(max_examples=10)
@given(side=st.sampled_from([16, 20, 32]), seed=st.integers(0, 100))
def test_the_pyramid_is_opencvs(side: int, seed: int) -> None:
    """OpenCV's pyrDown and pyrUp, written with scipy as in ProGAN's code."""
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 255
    row = np.array([1, 4, 6, 4, 1]) / 16
    blur = (row[:, None] * row)[None, None]
    fine = images.double().numpy()
    coarse = ndimage.convolve(fine, blur, mode="mirror")[:, :, ::2, ::2]
    spread = np.zeros_like(fine)
    spread[:, :, ::2, ::2] = coarse
    expected = fine - ndimage.convolve(spread, blur * 4, mode="mirror")
    assert np.allclose(laplacian(images, 0, 2).numpy(), expected, atol=1e-3)
    assert np.allclose(laplacian(images, 1, 2).numpy(), coarse, atol=1e-3)


def test_each_direction_is_scipys_wasserstein_distance() -> None:
    first, second = pictures(30, 1), pictures(30, 4)
    found = distance(first, second)["16x16"]
    sets = [seen(images).patches(0, 0, World()) for images in (first, second)]
    directions = module._directions(sets[0].shape[1], 0, 0, torch.device("cpu"))
    assert torch.allclose(directions.norm(dim=0), torch.ones(512))
    projected = [(patches @ directions).numpy() for patches in sets]
    each = [stats.wasserstein_distance(projected[0][:, i], projected[1][:, i]) for i in range(512)]
    assert found == pytest.approx(1e3 * np.mean(each), rel=1e-4)


def test_patches_are_patches_of_the_image_and_normalised_by_channel() -> None:
    images = pictures(20, 1, (3, 16, 16))
    kept = seen(images)
    patches = kept.patches(0, 0, World()).view(20, PATCHES, 3, 49)
    assert torch.allclose(patches.mean((0, 1, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(patches.square().mean((0, 1, 3)), torch.ones(3), atol=1e-4)
    windows = images[7].float().unfold(1, 7, 1).unfold(2, 7, 1)[1].reshape(-1, 49)
    windows = (windows - windows.mean(1, keepdim=True)) / windows.std(1, keepdim=True)
    one = patches[7, 3, 1]
    one = (one - one.mean()) / one.std()
    assert (windows - one).abs().amax(1).min() < 1e-4


def test_batches_change_no_value() -> None:
    images = pictures(70, 1)
    assert torch.equal(
        seen(images, batch=7).patches(0, 0, World()), seen(images, batch=64).patches(0, 0, World())
    )


def test_images_of_one_colour_have_patches_of_zero() -> None:
    flat = torch.full((10, 1, 16, 16), 200, dtype=torch.uint8)
    assert not seen(flat).patches(0, 0, World()).any()


def test_more_images_than_in_the_paper_are_thinned_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "IMAGES", 16)
    kept = seen(pictures(100, 1))
    assert kept.count == 16
    assert len(kept.patches(0, 0, World())) == 16 * PATCHES
