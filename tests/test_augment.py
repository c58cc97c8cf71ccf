"""DiffAugment: what each transform does to pixels, and that gradients pass through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ray_gen.augment import augment, augment_noise

NAMES = ("color", "translation", "cutout")


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def images(count: int = 16, channels: int = 3, height: int = 16, width: int = 24) -> Tensor:
    """In (0.1, 1). No pixel is 0; a 0 comes from outside the image."""
    return 0.1 + 0.9 * rand(count, channels, height, width)


def noise(names=NAMES, count: int = 16, seed: int = 1) -> dict[str, Tensor]:
    return {
        name: rand(count, *spec.shape, seed=seed + position)
        for position, (name, spec) in enumerate(augment_noise(names).items())
    }


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """An image (C, H, W) moved by whole pixels, pixel by pixel."""
    moved = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                moved[:, y, x] = image[:, y - down, x - right]
    return moved


def holes(result: Tensor) -> Tensor:
    """Which pixels (N, H, W) are 0 in all channels."""
    return (result == 0).all(1)


def test_what_is_drawn_is_uniform_on_the_unit_interval() -> None:
    for spec in augment_noise(NAMES).values():
        assert (spec.distribution, spec.low, spec.high) == ("uniform", 0.0, 1.0)
    assert augment_noise(()) == {}


@pytest.mark.parametrize("channels", [2, 4])
def test_colour_changes_no_opacity(channels: int) -> None:
    """Colours change as those of images without opacity."""
    x = images(channels=channels)
    found = augment(x, ["color"], noise(), opacity=True)
    assert torch.equal(found[:, -1:], x[:, -1:])
    assert torch.equal(found[:, :-1], augment(x[:, :-1], ["color"], noise()))
    of_bands = augment(x, ["color"], noise())
    assert not torch.equal(of_bands[:, -1:], x[:, -1:])


def test_no_transform_is_no_change() -> None:
    x = images()
    assert augment(x, (), {}) is x


def test_the_middle_of_each_range_leaves_images() -> None:
    x, middle = images(), torch.full((16, 3), 0.5, dtype=torch.float64)
    torch.testing.assert_close(augment(x, ["color"], {"augment_color": middle}), x)
    half = {"augment_translation": middle[:, :2]}
    assert torch.equal(augment(x, ["translation"], half), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_changes_brightness_saturation_and_contrast(channels: int) -> None:
    x, drawn = images(channels=channels), noise(["color"])
    found = augment(x, ["color"], drawn)
    for index in range(len(x)):
        brightness, saturation, contrast = drawn["augment_color"][index].tolist()
        expected = x[index] + brightness - 0.5
        grey = expected.mean(0)
        expected = grey + 2 * saturation * (expected - grey)
        expected = expected.mean() + (contrast + 0.5) * (expected - expected.mean())
        torch.testing.assert_close(found[index], expected)


def test_translation_moves_by_whole_pixels_and_fills_with_zeros() -> None:
    x, drawn = images(), noise(["translation"])
    found = augment(x, ["translation"], drawn)
    for index in range(len(x)):
        moves = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if torch.equal(found[index], shifted(x[index], down, right))
        ]
        assert len(moves) == 1


def test_translations_reach_an_eighth_of_each_side_with_equal_chances() -> None:
    x = images(4000, 1)
    found = augment(x, ["translation"], noise(["translation"], 4000))
    empty_rows = (found == 0).all(3).sum(2)[:, 0]
    empty_columns = (found == 0).all(2).sum(2)[:, 0]
    assert empty_rows.unique().tolist() == [0, 1, 2]
    assert empty_columns.unique().tolist() == [0, 1, 2, 3]
    still = float(((empty_rows == 0) & (empty_columns == 0)).double().mean())
    assert still == pytest.approx(1 / 35, abs=5 * (1 / 35 / 4000) ** 0.5)


def test_the_ends_of_the_unit_interval_stay_inside_the_reach() -> None:
    x = images(2)
    ends = torch.tensor([[0.0, 0.0], [1 - 2.0**-24, 1 - 2.0**-24]], dtype=torch.float64)
    found = augment(x, ["translation"], {"augment_translation": ends})
    moved = {
        (sign * 2, sign * 3)
        for index in range(2)
        for sign in (1, -1)
        if torch.equal(found[index], shifted(x[index], sign * 2, sign * 3))
    }
    assert moved == {(2, 3), (-2, -3)}


def test_cutout_sets_one_rectangle_of_half_the_sides_to_zero() -> None:
    x, drawn = images(200), noise(["cutout"], 200)
    found = augment(x, ["cutout"], drawn)
    hole = holes(found)
    assert torch.equal(found, torch.where(hole[:, None], torch.zeros_like(x), x))
    for one in hole:
        rows, columns = one.any(1).nonzero().flatten(), one.any(0).nonzero().flatten()
        assert int(one.sum()) == len(rows) * len(columns)  # a rectangle
        assert len(rows) == int(rows[-1] - rows[0]) + 1
        assert len(columns) == int(columns[-1] - columns[0]) + 1
        assert 4 <= len(rows) <= 8
        assert 6 <= len(columns) <= 12
    whole = hole.any(2).sum(1).eq(8) & hole.any(1).sum(1).eq(12)
    assert bool(whole.any())
    assert bool((~whole).any())  # its centre may lie at an edge


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [NAMES])
def test_gradients_pass_through(names) -> None:
    x = images(2, height=4, width=4).requires_grad_()
    drawn = noise(names, 2)
    assert torch.autograd.gradcheck(lambda x: augment(x, names, drawn), (x,))


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [NAMES])
def test_equal_noise_is_an_equal_transform_of_other_images(names) -> None:
    """An affine map given the noise: T(a) - T(b) does not depend on where a and b are."""
    drawn, a, b = noise(names), images(), images().flip(3)
    offset = 0.25
    apart = augment(a, names, drawn) - augment(b, names, drawn)
    linear = augment(a - b + offset, names, drawn) - augment(
        torch.full_like(a, offset), names, drawn
    )
    torch.testing.assert_close(apart, linear)
    moving = [name for name in names if name != "color"]
    assert torch.equal(holes(augment(a, moving, drawn)), holes(augment(b, moving, drawn)))


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [NAMES])
def test_each_image_has_a_transform_of_its_own(names) -> None:
    x = images(1).expand(16, -1, -1, -1)
    found = augment(x, names, noise(names))
    assert len({tuple(image.flatten().tolist()) for image in found}) > 10
    alone = augment(x[3:5], names, {name: drawn[3:5] for name, drawn in noise(names).items()})
    torch.testing.assert_close(alone, found[3:5])


def test_transforms_are_applied_in_their_order() -> None:
    x, drawn = images(), noise()
    one_by_one = x
    for name in ("cutout", "color"):
        one_by_one = augment(one_by_one, [name], drawn)
    assert torch.equal(augment(x, ["cutout", "color"], drawn), one_by_one)
    assert not torch.equal(augment(x, ["color", "cutout"], drawn), one_by_one)
