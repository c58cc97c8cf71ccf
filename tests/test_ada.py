"""ADA: each transform against its definition, their order, and how often they happen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ray_gen.augment.ada import COLOURS, GEOMETRY, NOISE, TRANSFORMS, Ada
from ray_gen.augment.corruptions import bands
from ray_gen.core import ImageShape
from tests.test_warp import places, wave

ONE = torch.tensor(1.0, dtype=torch.float64)
UNIFORM = (
    *("flip", "flip_coin", "rotate_90", "turns", "shift", "shift_x", "shift_y", "scale"),
    *("rotate", "angle", "stretch", "rotate_again", "angle_again", "fractional_shift"),
    *("brightness", "contrast", "luma_flip", "luma_coin", "hue", "hue_angle", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise", "cutout", "cutout_x", "cutout_y"),
)
NORMAL = (
    *("scale", "stretch", "shift_x", "shift_y", "brightness", "contrast", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise"),
)


def pipe(*names: str, shape: ImageShape = (3, 8, 8), opacity: bool = False) -> Ada:
    return Ada(shape, dict.fromkeys(names, 1.0), opacity=opacity).double()


def drawn(module: Ada, count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand if spec.distribution == "uniform" else torch.randn)(
            count, *spec.shape, generator=generator, dtype=torch.float64
        )
        for name, spec in module.noise.items()
    }


def images(count: int, *shape: int, seed: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, *shape, generator=generator, dtype=torch.float64) - 1


def numbers(noise: dict[str, Tensor], image: int) -> tuple[dict[str, float], dict[str, float]]:
    uniform = dict(zip(UNIFORM, noise["uniform"][image].tolist(), strict=True))
    return uniform, dict(zip(NORMAL, noise["normal"][image].tolist(), strict=True))


def turn(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


def diagonal(x: float, y: float) -> Tensor:
    return torch.diag(torch.tensor([x, y, 1.0], dtype=torch.float64))


def by(x: float, y: float) -> Tensor:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = torch.tensor([x, y], dtype=torch.float64)
    return matrix


def forward_maps(u: dict[str, float], n: dict[str, float], width: int, height: int):
    """From a place in the image to its place in the result, for each transform, in their order."""
    scale, stretch = 2 ** (0.2 * n["scale"]), 2 ** (0.2 * n["stretch"])
    pixels = [
        round((2 * u[f"shift_{axis}"] - 1) * 0.125 * side)
        for axis, side in (("x", width), ("y", height))
    ]
    return {
        "flip": diagonal(-1 if u["flip_coin"] < 0.5 else 1, 1),
        "rotate_90": turn(-math.floor(4 * u["turns"]) * math.pi / 2),
        "shift": by(*pixels),
        "scale": diagonal(scale, scale),
        "rotate": turn(-(2 * u["angle"] - 1) * math.pi),
        "stretch": diagonal(stretch, 1 / stretch),
        "rotate_again": turn(-(2 * u["angle_again"] - 1) * math.pi),
        "fractional_shift": by(0.125 * n["shift_x"] * width, 0.125 * n["shift_y"] * height),
    }  # fmt: skip


@pytest.mark.parametrize("names", [*((name,) for name in GEOMETRY), GEOMETRY])
def test_geometry_is_the_product_of_its_transforms(names: tuple[str, ...]) -> None:
    """In their order, against a function that is known everywhere."""
    width, height, count = 40, 32, 6
    x, y = places(width, height)
    module = pipe(*names, shape=(1, height, width))
    noise = drawn(module, count, seed=3)
    found = module(wave(x, y, width, height).expand(count, 1, -1, -1), ONE, noise)
    used = {*names, *(("rotate_again",) if "rotate" in names else ())}
    for image in range(count):
        whole = torch.eye(3, dtype=torch.float64)
        for name, one in forward_maps(*numbers(noise, image), width, height).items():
            whole = one @ whole if name in used else whole
        (a, b, c), (d, e, f) = torch.linalg.inv(whole)[:2].tolist()
        expected = wave(a * x + b * y + c, d * x + e * y + f, width, height)
        assert float((found[image, 0] - expected).abs().max()) < 0.02


LUMA = torch.full((4,), 3**-0.5, dtype=torch.float64) * torch.tensor([1, 1, 1, 0])


def diagonals(value: float) -> Tensor:
    return torch.diag(torch.tensor([value, value, value, 1.0], dtype=torch.float64))


def colour_maps(u: dict[str, float], n: dict[str, float]) -> dict[str, Tensor]:
    """4 x 4 matrices of colours (r, g, b, 1), as the paper writes them, in their order."""
    one, along = torch.eye(4, dtype=torch.float64), torch.outer(LUMA, LUMA)
    brightness = one.clone()
    brightness[:3, 3] = 0.2 * n["brightness"]
    contrast = diagonals(2 ** (0.5 * n["contrast"]))
    angle, (v0, v1, v2) = (2 * u["hue_angle"] - 1) * math.pi, LUMA[:3].tolist()
    cross = torch.tensor([[0, -v2, v1], [v2, 0, -v0], [-v1, v0, 0]], dtype=torch.float64)
    hue = one.clone()  # Rodrigues
    hue[:3, :3] += math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    saturation = 2 ** n["saturation"]
    return {
        "brightness": brightness,
        "contrast": contrast,
        "luma_flip": one - 2 * along if u["luma_coin"] < 0.5 else one,
        "hue": hue,
        "saturation": along + (one - along) * saturation,
    }


@pytest.mark.parametrize("names", [*((name,) for name in COLOURS), COLOURS])
def test_colour_is_the_product_of_its_matrices(names: tuple[str, ...]) -> None:
    module = pipe(*names)
    noise, x = drawn(module, 8), images(8, 3, 8, 8)
    found = module(x, ONE, noise)
    for image in range(8):
        whole = torch.eye(4, dtype=torch.float64)
        for name, one in colour_maps(*numbers(noise, image)).items():
            whole = one @ whole if name in names else whole
        whole[3] = torch.tensor([0, 0, 0, 1])  # saturation scales the last row, too
        expected = torch.einsum("ij,jyx->iyx", whole[:3, :3], x[image]) + whole[:3, 3, None, None]
        torch.testing.assert_close(found[image], expected, rtol=0, atol=1e-12)


def test_grey_images_change_as_grey_colours_do() -> None:
    """(x, x, x) stays grey: brightness, contrast and luma flip; hue and saturation change
    nothing."""
    grey, colour = pipe(*COLOURS, shape=(1, 8, 8)), pipe(*COLOURS)
    noise, x = drawn(colour, 8), images(8, 1, 8, 8)
    expected = colour(x.expand(-1, 3, -1, -1), ONE, noise)
    torch.testing.assert_close(grey(x, ONE, noise), expected[:, :1], rtol=0, atol=1e-12)
    without = pipe("hue", "saturation", shape=(1, 8, 8))
    torch.testing.assert_close(without(x, ONE, noise), x, rtol=0, atol=1e-12)


def test_bands_of_any_number_keep_their_mean_when_saturation_changes() -> None:
    module = pipe("saturation", "hue", shape=(5, 8, 8))
    noise, x = drawn(module, 4), images(4, 5, 8, 8)
    found = module(x, ONE, noise)
    torch.testing.assert_close(found.mean(1), x.mean(1), rtol=0, atol=1e-12)
    factor = (noise["normal"][:, NORMAL.index("saturation")]).exp2()[:, None, None, None]
    torch.testing.assert_close(
        found - found.mean(1, True), factor * (x - x.mean(1, True)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("channels", [2, 4])
def test_opacity_moves_with_the_image_and_keeps_its_values(channels: int) -> None:
    shape = (channels, 8, 8)
    module = pipe(*TRANSFORMS, shape=shape, opacity=True)
    noise, x = drawn(module, 6), images(6, *shape)
    found = module(x, ONE, noise)
    moved = pipe(*GEOMETRY, "cutout", shape=shape)(x, ONE, noise)
    torch.testing.assert_close(found[:, -1], moved[:, -1], rtol=0, atol=1e-12)
    assert float((found[:, :-1] - moved[:, :-1]).abs().amax((1, 2, 3)).min()) > 0.01


def test_bands_split_frequencies() -> None:
    split = bands(64)
    torch.testing.assert_close(split.sum(0), torch.eye(64, dtype=torch.float64))
    place = torch.arange(64, dtype=torch.float64)
    for band, share in enumerate((0.03, 0.19, 0.36, 0.9)):  # of the highest frequency
        wave = torch.cos(math.pi * round(share * 63) / 63 * place)
        kept = split @ wave @ wave / (wave @ wave)  # (4,)
        assert int(kept.argmax()) == band
        assert float(kept[band]) > 0.7


def test_filter_scales_bands_and_keeps_the_power_of_natural_images() -> None:
    module = pipe("filter", shape=(2, 16, 16))
    noise, x = drawn(module, 5), images(5, 2, 16, 16)
    found, split = module(x, ONE, noise), bands(16)
    power = [10 / 13, 1 / 13, 1 / 13, 1 / 13]
    for image in range(5):
        _, n = numbers(noise, image)
        gains = [1.0] * 4
        for band in range(4):
            this = [2 ** n[f"band_{band}"] if other == band else 1.0 for other in range(4)]
            norm = sum(p * t * t for p, t in zip(power, this, strict=True)) ** 0.5
            gains = [g * t / norm for g, t in zip(gains, this, strict=True)]
        line = torch.einsum("b,bij->ij", torch.tensor(gains, dtype=torch.float64), split)
        torch.testing.assert_close(found[image], line @ x[image] @ line.T)


def test_noise_has_a_standard_deviation_of_its_own_in_each_image() -> None:
    module = pipe("noise", shape=(3, 32, 32))
    noise = drawn(module, 8)
    added = module(torch.zeros(8, 3, 32, 32, dtype=torch.float64), ONE, noise)
    expected = NOISE * noise["normal"][:, NORMAL.index("noise")].abs()
    torch.testing.assert_close(added.std((1, 2, 3)), expected, rtol=0.06, atol=0)


def test_cutout_leaves_a_hole_of_half_the_sides() -> None:
    module = pipe("cutout", shape=(2, 8, 12))
    noise = drawn(module, 300)
    hole = module(torch.ones(300, 2, 8, 12, dtype=torch.float64), ONE, noise) == 0
    assert torch.equal(hole[:, 0], hole[:, 1])
    rows, columns = hole[:, 0].any(2).sum(1), hole[:, 0].any(1).sum(1)
    assert torch.equal(hole[:, 0].sum((1, 2)), rows * columns)  # a rectangle
    assert (int(rows.max()), int(columns.max())) == (4, 6)
    assert (int(rows.min()), int(columns.min())) == (2, 3)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_happens_with_probability_p_times_its_multiplier(name: str) -> None:
    """Over 10,000 draws. Flips happen to half of the chosen images, quarter turns to three in four;
    a shift may be by 0 pixels."""
    count, p, multiplier = 10_000, 0.6, 0.5
    module = Ada((3, 8, 8), {name: multiplier}).double()
    noise = drawn(module, count)
    x = images(1, 3, 8, 8).expand(count, -1, -1, -1)
    found = module(x, p * ONE, noise)
    moved = (found - x).abs().amax((1, 2, 3)) > 1e-9
    chance = p * multiplier
    still = {"flip": 1 / 2, "luma_flip": 1 / 2, "rotate_90": 1 / 4, "shift": 1 / 4}  # ±1 pixel
    expected = chance * (1 - still.get(name, 0))
    if name == "filter":
        expected = 1 - (1 - chance) ** 4  # a chance for each band
    assert float(moved.double().mean()) == pytest.approx(expected, abs=4 * (0.25 / count) ** 0.5)


def test_at_p_0_images_stay_and_transforms_are_independent() -> None:
    module = pipe(*TRANSFORMS)
    noise, x = drawn(module, 8), images(8, 3, 8, 8)
    torch.testing.assert_close(module(x, 0 * ONE, noise), x, rtol=0, atol=1e-13)
    assert torch.equal(Ada((3, 8, 8), {}).double()(x, ONE, noise), x)
    single = {key: value.float() for key, value in noise.items()}
    found = pipe(*TRANSFORMS).float()(x.float(), torch.zeros(()), single)
    assert float((found - x).abs().max()) < 2e-6
    # Leaving one out does not move what others draw.
    colour = module(x, ONE, noise)
    assert colour.shape == x.shape
    part = pipe("hue")(x, ONE, noise)
    torch.testing.assert_close(pipe("hue", "flip")(x, ONE, noise).sum(3), part.sum(3))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 6, 10), (2, 9, 4), (6, 12, 12)])
def test_any_sides_and_channels(shape: tuple[int, int, int]) -> None:
    module = pipe(*TRANSFORMS, shape=shape)
    found = module(images(4, *shape), 0.8 * ONE, drawn(module, 4))
    assert found.shape == (4, *shape)
    assert bool(found.isfinite().all())


def test_gradients_pass_through_all_transforms() -> None:
    module = pipe(*TRANSFORMS, shape=(3, 4, 5))
    noise = drawn(module, 2)
    x = images(2, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, ONE, noise), (x,))
    assert torch.autograd.gradgradcheck(lambda x: module(x, ONE, noise), (x,))


def test_an_image_does_not_depend_on_the_others() -> None:
    module = pipe(*TRANSFORMS)
    noise, x = drawn(module, 8), images(8, 3, 8, 8)
    part = module(x[3:5], 0.5 * ONE, {name: of[3:5] for name, of in noise.items()})
    torch.testing.assert_close(part, module(x, 0.5 * ONE, noise)[3:5], rtol=0, atol=1e-13)


def test_a_transform_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no such transform: flipp"):
        Ada((3, 8, 8), {"flipp": 1.0})
