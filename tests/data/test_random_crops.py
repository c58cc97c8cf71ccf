"""Random windows of images that are larger than the networks see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ray_gen
from ray_gen.data.feed import windows
from ray_gen.data.store import middle
from ray_gen.experiment import ExperimentError
from ray_gen.training.sources import open_source
from tests.data.pictures import noise, write


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16])
def test_a_window_lies_where_its_place_says(dtype: torch.dtype) -> None:
    images = torch.arange(3 * 6 * 7 * 2).view(3, 6, 7, 2).to(dtype)
    places = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.4]])
    found = windows(images, (4, 5), places)
    assert found.dtype == dtype
    assert torch.equal(found[0], images[0, :4, :5])
    assert torch.equal(found[1], images[1, 2:, 2:])
    assert torch.equal(found[2], images[2, 1:5, 1:6])


def test_all_windows_are_equally_likely() -> None:
    images = torch.arange(9).view(1, 3, 3, 1).to(torch.uint8).expand(90_000, -1, -1, -1)
    places = torch.rand(90_000, 2, generator=torch.Generator().manual_seed(0))
    counts = windows(images.contiguous(), (2, 2), places)[:, 0, 0, 0].bincount()
    assert counts.tolist() == pytest.approx([22_500, 22_500, 0, 22_500, 22_500], abs=500)


def test_splits_hold_the_middle_and_training_windows(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / "set" / f"{index}.png", noise(12, 12, 3, index))
    experiment = ray_gen.recipe(
        "vae-mnist5k",
        f"data=folder:{tmp_path / 'set'}",
        "data.image_size=8",
        "data.random_crop_from=12",
        "data.held_out_fraction=0",
        "checkpoints.best=null",
    )
    store = open_source(experiment.data)
    assert store.image_shape == (3, 8, 8)
    assert store.uncropped is not None and store.uncropped.shape == (4, 12, 12, 3)
    assert torch.equal(store.train.images_NHWC, store.uncropped[:, 2:10, 2:10])
    assert torch.equal(middle(store.uncropped, (8, 8)), store.train.images_NHWC)


def test_a_size_that_leaves_no_room_is_refused() -> None:
    for size in ("8", "6", "[8, 8]"):
        with pytest.raises(ExperimentError, match=r"data\.random_crop_from: .* is not larger"):
            ray_gen.recipe(
                "vae-mnist5k", "data=folder:x", "data.image_size=8", f"data.random_crop_from={size}"
            )
    with pytest.raises(ExperimentError, match=r"data\.image_size: is required"):
        ray_gen.recipe("vae-mnist5k", "data=folder:x", "data.random_crop_from=8")
