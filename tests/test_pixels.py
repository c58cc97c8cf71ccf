"""Pixels of 8 and 16 bits and maps: levels, [0, 1], and the range of an objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ray_gen.data import Split, feed
from ray_gen.data.feed import FeedSettings, Stored, fits_device
from ray_gen.pixels import (
    PixelFormat,
    as_in_files,
    channels_in_words,
    levels_of,
    over,
    quantised,
    selected,
    stretched,
    to_range,
    unit,
    unstretched,
)

CPU = torch.device("cpu")
ALL = {8: torch.arange(256).to(torch.uint8), 16: torch.arange(65_536).to(torch.uint16)}
"""Every level, by bits."""


def as_16_bits(levels: Tensor) -> Tensor:
    """uint8 to uint16 of the same brightness: 255 · 257 = 65,535."""
    return (levels.int() * 257).to(torch.uint16)


def random_levels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_8_bits_give_the_same_floats_as_ever(dtype: torch.dtype) -> None:
    images = random_levels(3, 4, 5, 3)
    floats = images.permute(0, 3, 1, 2).to(dtype)
    assert torch.equal(to_range(images, (0.0, 1.0), dtype), floats * (1.0 / 255.0))
    assert torch.equal(to_range(images, (-1.0, 1.0), dtype), floats * (2.0 / 255.0) + -1.0)
    assert torch.equal(unit(images, dtype), images.to(dtype) / 255)
    values = torch.rand(100)
    assert torch.equal(quantised(values), (values * 255.0).round().to(torch.uint8))


@pytest.mark.parametrize("image_range", [(0.0, 1.0), (-1.0, 1.0), (-0.5, 2.0)])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_ends_of_the_levels_are_the_ends_of_the_range(
    bits: int, image_range: tuple[float, float]
) -> None:
    ends = ALL[bits][[0, -1]].reshape(1, 1, 2, 1)
    found = to_range(ends, image_range).flatten()
    torch.testing.assert_close(found, torch.tensor(image_range), atol=1e-6, rtol=0)
    again = stretched(unit(ends), image_range).flatten()
    torch.testing.assert_close(again, torch.tensor(image_range), atol=1e-6, rtol=0)


def test_16_bits_are_as_bright_as_8() -> None:
    images = random_levels(3, 4, 5, 4)
    for image_range in ((0.0, 1.0), (-1.0, 1.0)):
        torch.testing.assert_close(
            to_range(as_16_bits(images), image_range), to_range(images, image_range)
        )


@pytest.mark.parametrize("image_range", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_level_survives_the_way_to_a_network_and_back(
    bits: int, image_range: tuple[float, float]
) -> None:
    levels = ALL[bits].reshape(1, 1, -1, 1)
    images = unstretched(to_range(levels, image_range), image_range)
    assert torch.equal(quantised(images, bits).flatten(), ALL[bits])
    assert torch.equal(quantised(unit(ALL[bits]), bits), ALL[bits])


@pytest.mark.parametrize("bits", [8, 16])
def test_values_outside_are_clamped(bits: int) -> None:
    images = torch.tensor([-0.5, 0.0, 1.0, 7.0])
    assert torch.equal(quantised(images, bits), ALL[bits][[0, 0, -1, -1]])


def test_files_may_have_the_values_of_the_data() -> None:
    """12 bits in files of 16. Opacity has all values."""
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3).expand(1, 4, 1, 3)
    found = as_in_files(images, PixelFormat(16, (95, 4095), opacity=True)).int()
    assert found[0, :, 0].tolist() == [*[[95, 2095, 4095]] * 3, [0, 32_768, 65_535]]
    bands = as_in_files(images, PixelFormat(16, (95, 4095))).int()
    assert bands[0, :, 0].tolist() == [[95, 2095, 4095]] * 4
    assert torch.equal(as_in_files(images, PixelFormat(16)), quantised(images, 16))
    assert torch.equal(as_in_files(images, PixelFormat()), quantised(images))


def test_maps_keep_their_values() -> None:
    maps = torch.randn(3, 4, 5, 6).half() * 10
    found = to_range(maps, (-1.0, 1.0))
    assert found.dtype == torch.float32 and torch.equal(found, maps.permute(0, 3, 1, 2).float())
    assert torch.equal(unit(maps), maps.float())
    assert levels_of(torch.float16) is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16])
def test_what_a_network_gets_is_channels_last(dtype: torch.dtype) -> None:
    images = random_levels(3, 4, 5, 4).to(dtype)
    assert to_range(images, (0.0, 1.0)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16])
def test_images_are_selected_by_their_numbers(dtype: torch.dtype) -> None:
    images = random_levels(9, 4, 5, 3).to(dtype)
    numbers = torch.tensor([7, 0, 7])
    found = selected(images, numbers)
    assert found.dtype == dtype
    assert np.array_equal(found.numpy(), images.numpy()[[7, 0, 7]])
    turned = selected(images.permute(0, 3, 1, 2), numbers)
    assert np.array_equal(turned.numpy(), images.numpy()[[7, 0, 7]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("channels", [2, 4])
def test_on_white_is_what_pillow_makes(channels: int) -> None:
    levels = random_levels(1, channels, 20, 30)
    found = quantised(over(unit(levels), 1.0))[0].permute(1, 2, 0).numpy()
    shape = levels[0].permute(1, 2, 0).numpy()
    image = Image.fromarray(shape).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    expected = np.asarray(white)[:, :, : channels - 1]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_on_a_backdrop() -> None:
    colour, opacity, backdrop = 0.2, torch.tensor([0.0, 0.25, 1.0]), 0.6
    images = torch.stack([torch.full((3,), colour), opacity]).reshape(1, 2, 1, 3)
    expected = torch.tensor([0.6, 0.25 * 0.2 + 0.75 * 0.6, 0.2])
    torch.testing.assert_close(over(images, backdrop).flatten(), expected)


def test_channels_have_names() -> None:
    names = [channels_in_words(count, opacity=False) for count in (1, 2, 3, 4, 5)]
    assert names == ["grey", "2 channels", "RGB", "4 channels", "5 channels"]
    names = [channels_in_words(count, opacity=True) for count in (2, 4, 5)]
    assert names == ["grey with opacity", "RGBA", "4 channels with opacity"]
    assert channels_in_words(1, opacity=False, bits=16) == "grey, 16 bits"


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16])
def test_a_step_reads_its_images_whatever_their_type(dtype: torch.dtype, on_device: bool) -> None:
    images = random_levels(10, 4, 5, 4).to(dtype)
    split = Split(images, torch.arange(10))
    settings = FeedSettings(0, 4, range(0, 4), (0.0, 1.0), flip=False, dtype=torch.float32)
    stored = Stored(images, split.labels, settings, CPU, on_device=on_device)
    for found, labels in stored.batches(0, 5):
        assert labels is not None and found.dtype == dtype
        assert np.array_equal(found.numpy(), images.numpy()[labels.numpy()])


def test_what_fits_a_device_is_counted_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_levels(4, 4, 4, 4)
    monkeypatch.setattr(feed.os, "sysconf", lambda name: 32)  # 1024 bytes of memory
    assert fits_device(images, CPU)
    assert not fits_device(images.to(torch.uint16), CPU)
