"""Image sizes: which work, with which start map, and what is said of the others."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch

from ray_gen.core import ImageToVector, VectorToImage
from ray_gen.experiment.networks import ConvNetwork, DcganNetwork
from ray_gen.networks.conv import ConvDecoder, ConvEncoder
from ray_gen.networks.dcgan import DcganDiscriminator, DcganGenerator
from ray_gen.networks.sizes import Size, halvings, size_problem

DCGAN: dict[str, Any] = {"width": 8, "label_size": 3, "batch_norm": True, "spectral_norm": False}
CONV = {"width": 8, "label_size": 3}


@pytest.mark.parametrize(
    ("size", "start"),
    [
        ((8, 8), (1, (4, 4))),
        ((28, 28), (2, (7, 7))),
        ((32, 32), (3, (4, 4))),
        ((48, 48), (3, (6, 6))),
        ((256, 256), (6, (4, 4))),
        ((64, 32), (3, (8, 4))),
        ((96, 160), (4, (6, 10))),
    ],
)
def test_the_shorter_side_starts_with_4_to_7_pixels(size: Size, start: tuple[int, Size]) -> None:
    assert size_problem(*size) is None
    assert halvings((3, *size)) == start


def test_every_start_map_makes_a_size_that_works() -> None:
    for height, width, steps in itertools.product(range(4, 8), range(4, 30), range(1, 6)):
        for size in ((height << steps, width << steps), (width << steps, height << steps)):
            expected = (steps, tuple(side >> steps for side in size))
            assert halvings((1, *size)) == expected


def test_100_x_100_is_refused_with_the_nearest_that_work() -> None:
    with pytest.raises(ValueError, match=r"multiples of 16 .* is 100 x 100; .*: 96 x 96 or 112 x"):
        halvings((3, 100, 100))


def test_the_sizes_that_an_error_names_work_and_none_is_nearer() -> None:
    for size in itertools.product(range(1, 75, 3), range(1, 150, 7)):
        problem = size_problem(*size)
        if problem is None:
            continue
        _, _, named = problem.partition("the nearest that work: ")
        near = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) x (\d+)", named)]
        assert near
        for works in near:
            assert size_problem(*works) is None
        nearer = distance(size, near[0]) - 1
        for height in range(max(1, size[0] - nearer), size[0] + nearer + 1):
            left = nearer - abs(height - size[0])
            for width in range(max(1, size[1] - left), size[1] + left + 1):
                kept = height == width or size[0] != size[1]  # a square for a square
                assert not kept or size_problem(height, width) is not None


def distance(size: tuple[int, ...], other: tuple[int, ...]) -> int:
    return abs(size[0] - other[0]) + abs(size[1] - other[1])


@pytest.mark.parametrize("size", [(12, 12), (56, 56), (16, 40), (96, 64)])
def test_networks_have_maps_of_any_ratio(size: Size) -> None:
    image, vector = VectorToImage(7, (2, *size), output="tanh"), ImageToVector((2, *size), 3)
    for to_image, to_vector in (
        (DcganGenerator(image, **DCGAN), DcganDiscriminator(vector, **DCGAN)),
        (ConvDecoder(image, **CONV), ConvEncoder(vector, **CONV)),
    ):
        images = to_image(torch.randn(2, 7))
        assert images.shape == (2, 2, *size)
        assert bool((images.std(0) > 0).all())
        assert to_vector(images).shape == (2, 3)


@pytest.mark.parametrize("size", [(4, 4), (30, 30), (100, 96), (1, 1)])
def test_settings_and_networks_refuse_the_same_sizes(size: Size) -> None:
    image, vector = VectorToImage(7, (1, *size)), ImageToVector((1, *size), 1)
    refused = re.escape(str(size_problem(*size)))
    for build in (
        lambda: DcganGenerator(image, **DCGAN),
        lambda: DcganDiscriminator(vector, **DCGAN),
        lambda: ConvDecoder(image, **CONV),
        lambda: ConvEncoder(vector, **CONV),
    ):
        with pytest.raises(ValueError, match=refused):
            build()
    for settings in (ConvNetwork(), DcganNetwork()):
        assert settings.size_problem(*size) == size_problem(*size)
