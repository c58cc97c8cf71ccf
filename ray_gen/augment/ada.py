"""The transforms of adaptive discriminator augmentation (Karras et al. 2020, "Training generative
adversarial networks with limited data", appendix B), in their order and with their strengths.

Each image gets each transform with probability p times a multiplier. Everything random is declared
noise. Geometry is one warp, colour is one matrix product. Images are in [-1, 1].

Two things differ from the paper. The resampling filters are symmetric (see `warp.py`). Beyond an
image its mirror image goes on without end: the paper's code pads as far as the farthest image of a
batch needs, which would couple images and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_gen.augment.corruptions import banded, bands, cut
from ray_gen.augment.warp import Warp
from ray_gen.core import ImageShape, Noise

GEOMETRY = (
    *("flip", "rotate_90", "shift", "scale"),
    *("rotate", "stretch", "fractional_shift"),
)
COLOURS = ("brightness", "contrast", "luma_flip", "hue", "saturation")
CORRUPTIONS = ("filter", "noise", "cutout")
TRANSFORMS = (*GEOMETRY, *COLOURS, *CORRUPTIONS)

SHIFT = 0.125
"""Largest shift by whole pixels, and standard deviation of the other shift, in sides."""
LOG2_SCALE = 0.2
"""Standard deviation of log2 of the scale, and of the stretch."""
BRIGHTNESS = 0.2
LOG2_CONTRAST = 0.5
LOG2_SATURATION = 1.0
LOG2_BAND = 1.0
NOISE = 0.1
"""Standard deviations, as LOG2_SCALE. That of the noise is itself |N(0, 0.1²)|."""

_UNIFORM = (
    *("flip", "flip_coin", "rotate_90", "turns", "shift", "shift_x", "shift_y", "scale"),
    *("rotate", "angle", "stretch", "rotate_again", "angle_again", "fractional_shift"),
    *("brightness", "contrast", "luma_flip", "luma_coin", "hue", "hue_angle", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise", "cutout", "cutout_x", "cutout_y"),
)
_NORMAL = (
    *("scale", "stretch", "shift_x", "shift_y", "brightness", "contrast", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise"),
)
"""What the random numbers of an image are for. They do not depend on the multipliers."""


class Ada(nn.Module):
    """The transforms whose multipliers are not 0. Built in float64, like `Warp`."""

    bands_of_rows: Tensor
    bands_of_columns: Tensor

    def __init__(
        self, image_shape: ImageShape, multipliers: Mapping[str, float], *, opacity: bool = False
    ) -> None:
        """multipliers: of TRANSFORMS, by name; a missing one is 0. opacity: whether the last
        channel is opacity: it is moved and cut, but its values stay."""
        super().__init__()
        unknown = multipliers.keys() - set(TRANSFORMS)
        if unknown:
            raise ValueError(f"no such transform: {', '.join(sorted(unknown))}")
        self._multipliers = {name: multipliers.get(name, 0.0) for name in TRANSFORMS}
        channels, height, width = image_shape
        self._sides = (width, height)
        self._colours = channels - 1 if opacity and channels > 1 else channels
        self.warp = Warp(height, width) if self._uses(GEOMETRY) else None
        if self._uses(("filter",)):
            self.register_buffer("bands_of_rows", bands(height), persistent=False)
            self.register_buffer("bands_of_columns", bands(width), persistent=False)
        self.noise = {
            "uniform": Noise((len(_UNIFORM),), "uniform"),
            "normal": Noise((len(_NORMAL),)),
        }
        if self._uses(("noise",)):
            self.noise["pixels"] = Noise((self._colours, height, width))

    def _uses(self, names: tuple[str, ...]) -> bool:
        return any(self._multipliers[name] for name in names)

    def forward(self, images: Tensor, p: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """images: (N, C, H, W), p: 0-dimensional, noise: as declared. Returns (N, C, H, W) in the
        type of the noise."""
        draws = _Draws(noise, p, self._multipliers)
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(p.dtype)
            if self.warp is not None:
                images = self.warp(images, self._maps(draws))
            colours, opacity = images[:, : self._colours], images[:, self._colours :]
            colours = self._coloured(colours, draws)
            if self._uses(("filter",)):
                gains = _band_gains(draws)
                colours = banded(colours, gains, self.bands_of_rows, self.bands_of_columns)
            if self._uses(("noise",)):
                sigma = draws.where("noise", NOISE * draws.normal("noise").abs(), 0.0)
                colours = colours + sigma[:, None, None, None] * noise["pixels"]
            images = torch.cat([colours, opacity], dim=1) if opacity.shape[1] else colours
            if self._uses(("cutout",)):
                centre = draws.uniform("cutout_x"), draws.uniform("cutout_y")
                images = cut(images, draws.on("cutout"), *centre)
        return images

    def _maps(self, draws: _Draws) -> Tensor:
        """From a place in the result to a place in the image, (N, 2, 3), in pixels from the
        centre: undoes the transforms from the last to the first."""
        width, height = self._sides
        # Blits: mirror, quarter turns, whole pixels.
        mirrors = draws.where("flip", (draws.uniform("flip_coin") < 0.5) * -2.0 + 1.0, 1.0)
        turns = draws.where("rotate_90", (draws.uniform("turns") * 4.0).floor(), 0.0)
        quarter = turns * (math.pi / 2)
        cos, sin = quarter.cos().round(), quarter.sin().round()
        blit = _matrix(mirrors * cos, -mirrors * sin, sin, cos)
        blit_shift = _vector(
            *(
                draws.where("shift", ((2.0 * draws.uniform(of) - 1.0) * SHIFT * side).round(), 0.0)
                for of, side in (("shift_x", width), ("shift_y", height))
            )
        )
        # The rest. p of each rotation is such that one of the two happens with probability p.
        scale = draws.exp2("scale", LOG2_SCALE)
        stretch = draws.exp2("stretch", LOG2_SCALE)
        before = draws.rotation("rotate", "angle") / scale[:, None, None]
        after = draws.rotation("rotate_again", "angle_again")
        linear = before @ (_vector(1.0 / stretch, stretch) * after)
        shift = _vector(
            *(
                draws.where("fractional_shift", draws.normal(of) * (SHIFT * side), 0.0)
                for of, side in (("shift_x", width), ("shift_y", height))
            )
        )
        # q = blit (linear (r - shift) - blit_shift)
        whole = blit @ linear
        return torch.cat([whole, -(whole @ shift) - blit @ blit_shift], dim=2)

    def _coloured(self, images: Tensor, draws: _Draws) -> Tensor:
        """Changes of brightness, contrast, luma, hue and saturation: one affine map of the colours
        of an image.

        The luma axis is v = (1, …, 1) / √K in any number K of channels. Colours are split into
        their part along v, which contrast and luma flip scale, and the rest, which contrast and
        saturation scale and hue turns about v. Only three channels have hues.
        """
        if not self._uses(COLOURS):
            return images
        count = self._colours
        contrast = draws.exp2("contrast", LOG2_CONTRAST)
        flips = draws.where("luma_flip", (draws.uniform("luma_coin") < 0.5) * -2.0 + 1.0, 1.0)
        saturation = draws.exp2("saturation", LOG2_SATURATION)
        luma = torch.full((count, count), 1.0 / count, dtype=images.dtype, device=images.device)
        chroma = torch.eye(count, dtype=images.dtype, device=images.device) - luma
        turned = chroma[None]
        if count == 3 and self._uses(("hue",)):
            angle = draws.where("hue", (2.0 * draws.uniform("hue_angle") - 1.0) * math.pi, 0.0)
            angle = angle[:, None, None]
            about = chroma.roll(1, 0) - chroma.roll(-1, 0)  # v × colour, times √3
            turned = angle.cos() * chroma + angle.sin() * (about / math.sqrt(3.0))
        grey, colour = (contrast * flips)[:, None, None], (contrast * saturation)[:, None, None]
        matrix = grey * luma + colour * turned  # (N, K, K)
        brightness = draws.where("brightness", BRIGHTNESS * draws.normal("brightness"), 0.0)
        added = (contrast * flips * brightness)[:, None, None]
        return (matrix @ images.flatten(2) + added).view_as(images)


class _Draws:
    """The random numbers of some images, and which transforms happen to which."""

    def __init__(
        self, noise: Mapping[str, Tensor], p: Tensor, multipliers: Mapping[str, float]
    ) -> None:
        self._uniform = dict(zip(_UNIFORM, noise["uniform"].unbind(1), strict=True))
        self._normal = dict(zip(_NORMAL, noise["normal"].unbind(1), strict=True))
        self._p = p
        self._multipliers = multipliers

    def uniform(self, name: str) -> Tensor:
        """U[0, 1): (N,)"""
        return self._uniform[name]

    def normal(self, name: str) -> Tensor:
        """N(0, 1): (N,)"""
        return self._normal[name]

    def chance(self, name: str) -> Tensor:
        """The probability of a transform: 0-dimensional."""
        return self._p * self._multipliers[name]

    def on(self, name: str) -> Tensor:
        """Whether a transform happens: bool (N,)"""
        return self._uniform[name] < self.chance(name)

    def where(self, name: str, then: Tensor, otherwise: float) -> Tensor:
        """`then` where a transform happens: (N,)"""
        return torch.where(self.on(name), then, otherwise)

    def exp2(self, name: str, sigma: float) -> Tensor:
        """A factor 2^(σ N(0, 1)) where a transform happens, else 1: (N,)"""
        return self.where(name, (sigma * self._normal[name]).exp2(), 1.0)

    def rotation(self, gate: str, angle: str) -> Tensor:
        """A rotation by any angle with probability 1 - √(1 - p), else the identity: (N, 2, 2)"""
        chance = 1.0 - (1.0 - self.chance("rotate").clamp(max=1.0)).sqrt()
        turn = (2.0 * self._uniform[angle] - 1.0) * math.pi
        turn = torch.where(self._uniform[gate] < chance, turn, 0.0)
        cos, sin = turn.cos(), turn.sin()
        return _matrix(cos, -sin, sin, cos)


def _band_gains(draws: _Draws) -> Tensor:
    """A gain of each of four frequency bands, (N, 4). A changed band changes the others such that
    the power of an image with a 1/f spectrum stays."""
    gains = torch.ones_like(draws.normal("noise"))[:, None].expand(-1, 4)
    for band, power in enumerate((10 / 13, 1 / 13, 1 / 13, 1 / 13)):
        name = f"band_{band}"
        on = draws.uniform(name) < draws.chance("filter")
        gain = torch.where(on, (LOG2_BAND * draws.normal(name)).exp2(), 1.0)
        whole = (1.0 + power * (gain.square() - 1.0)).rsqrt()
        this = torch.arange(4, device=gain.device) == band
        gains = gains * whole[:, None] * torch.where(this, gain[:, None], 1.0)
    return gains


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """((a, b), (c, d)): (N,) each to (N, 2, 2)."""
    return torch.stack([a, b, c, d], dim=1).unflatten(1, (2, 2))


def _vector(x: Tensor, y: Tensor) -> Tensor:
    """(N,) each to (N, 2, 1)."""
    return torch.stack([x, y], dim=1)[:, :, None]
