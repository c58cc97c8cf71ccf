"""FastGAN (Liu et al. 2021), for few images at 256 to 1,024 pixels: a light generator whose small
maps scale the channels of its large ones, and a discriminator that also reconstructs what it sees.

A start map that is doubled n times is a map of *stage* n: 4 x 4 pixels are stage 0, 256 x 256 are
stage 6. A stage has the same channels whatever the size of the images. So smaller images have the
first stages of the published networks, and the parts that have a place there: from 64 pixels
excitations, from 32 the branch for the small image, from 16 a reconstructed quadrant.

The discriminator also judges the small image: here means of the large one's pixels. The published
generator makes its small image itself, from a map of stage 5; but then a sample would be two
images. Which is better is unmeasured.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import Noise, Signature
from ray_gen.networks.from_vector import FromVector, initialise
from ray_gen.networks.labels import LabelVector
from ray_gen.networks.sizes import halvings
from ray_gen.networks.spectral_norm import with_spectral_norm

_TOP = 6
"""Stage of the largest map of the discriminator: its stem brings larger images down to it."""
_SMALL = 5
"""Stage of the small image and of reconstructions, if the image is larger than it."""


def _generated(width: int, stage: int) -> int:
    """Channels of the generator at a stage: 16, 8, 4, 2, 2, 1, ½, ¼, ⅛ times the width."""
    multiple = 2.0 ** (4 - stage) if stage < 4 else 2.0 ** (5 - stage)
    return max(1, round(width * multiple))


def _judged(width: int, stage: int) -> int:
    """Channels of the discriminator: from stage 1 on 8, 4, 2, 1, ½, ¼, ⅛ times the width."""
    return max(1, round(width * 2.0 ** (4 - stage)))


def _norm(channels: int, batch_norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if batch_norm else []


def _gated(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
    """3 x 3 convolution, BatchNorm, gated linear unit."""
    convolution = nn.Conv2d(inputs, 2 * outputs, 3, padding=1, bias=False)
    return [convolution, *_norm(2 * outputs, batch_norm), nn.GLU(1)]


def _doubled(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 2H, 2W): each pixel four times."""
    return F.interpolate(maps, scale_factor=2, mode="nearest")


class _Up(nn.Sequential):
    """Doubles the size: (N, inputs, H, W) to (N, outputs, 2H, 2W)."""

    def __init__(self, inputs: int, outputs: int, batch_norm: bool) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"), *_gated(inputs, outputs, batch_norm)
        )


class _NoisyUp(nn.Module):
    """Doubles the size with two convolutions, after each of which noise is added, of a learned
    strength that begins at 0."""

    def __init__(self, inputs: int, outputs: int, batch_norm: bool) -> None:
        super().__init__()
        first, *rest = _gated(inputs, outputs, batch_norm)
        second, *last = _gated(outputs, outputs, batch_norm)
        self.first, self.after_first = first, nn.Sequential(*rest)
        self.second, self.after_second = second, nn.Sequential(*last)
        self.strengths = nn.Parameter(torch.zeros(2))

    def forward(self, maps: Tensor, noise: Tensor) -> Tensor:
        """maps: (N, inputs, H, W); noise: (N, 2, 2H, 2W), one plane for each convolution."""
        noise = (self.strengths[:, None, None] * noise).to(maps.dtype)
        maps = self.after_first(self.first(_doubled(maps)) + noise[:, :1])
        return self.after_second(self.second(maps) + noise[:, 1:])


class _Excitation(nn.Module):
    """Factors in (0, 1) for the channels of a large map, from a small map: the skip-layer
    excitation of Liu et al. 2021, section 3.1."""

    def __init__(self, inputs: int, outputs: int, stage: int, start: tuple[int, int]) -> None:
        """stage: of the small map. start: size of the start map."""
        super().__init__()
        self._pooled = 2**stage
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, start, bias=False),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, small: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, 1, 1)."""
        return self.layers(F.avg_pool2d(small, self._pooled))


class FastGanGenerator(nn.Module):
    """z (N, vector_size) -> images (N, C, H, W), with tanh if the signature asks for it.

    Every second stage takes noise. Maps of stages 0 to 3 scale the channels of the maps four stages
    above. At 256 pixels and width 64: 1024 x 4², 512 x 8², 256 x 16², 128 x 32², 128 x 64²,
    64 x 128², 32 x 256².
    """

    def __init__(
        self,
        signature: Signature,
        *,
        width: int,
        batch_norm: bool,
        label_size: int,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        steps, start = halvings(signature.output_shape)
        self.label = LabelVector(signature, label_size)
        channels = [_generated(width, stage) for stage in range(steps + 1)]
        inputs = signature.input[0] + self.label.added
        self.start = nn.Sequential(
            FromVector(inputs, 2 * channels[0], start, bias=False),
            *_norm(2 * channels[0], batch_norm),
            nn.GLU(1),
        )
        self.ups = nn.ModuleList(
            (_NoisyUp if stage % 2 else _Up)(channels[stage - 1], channels[stage], batch_norm)
            for stage in range(1, steps + 1)
        )
        self.excitations = nn.ModuleList(
            _Excitation(channels[stage], channels[stage + 4], stage, start)
            for stage in range(min(4, steps - 3))
        )
        self.to_image = nn.Conv2d(channels[-1], signature.output_shape[0], 3, padding=1, bias=False)
        self._tanh = signature.activation == "tanh"
        self.noise: Mapping[str, Noise] = {
            f"stage_{stage}": Noise((2, start[0] << stage, start[1] << stage))
            for stage in range(1, steps + 1, 2)
        }
        initialise(self)
        if spectral_norm:
            with_spectral_norm(self)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each stage, with the excitation of its map."""
        blocks = [nn.ModuleList([self.start]), *(nn.ModuleList([up]) for up in self.ups)]
        for stage, excitation in enumerate(self.excitations, 4):
            blocks[stage].append(excitation)
        blocks[-1].append(self.to_image)
        return [*reversed(blocks)]

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, noise: Mapping[str, Tensor]
    ) -> Tensor:
        """z: (N, vector_size); labels: see `Signature`; noise: N(0, 1), as `noise` says."""
        maps = [self.start(self.label(z, labels)[:, :, None, None])]
        for stage, up in enumerate(self.ups, 1):
            more = (noise[f"stage_{stage}"],) if stage % 2 else ()
            found = up(maps[-1], *more)
            if 0 <= stage - 4 < len(self.excitations):
                found = found * self.excitations[stage - 4](maps[stage - 4])
            maps.append(found)
        images = self.to_image(maps[-1])
        return torch.tanh(images) if self._tanh else images


class _Down(nn.Sequential):
    """Halves the size: 4 x 4 convolution with stride 2, BatchNorm, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, batch_norm: bool) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False),
            *_norm(outputs, batch_norm),
            nn.LeakyReLU(0.2, inplace=True),
        )


class _TwoWaysDown(nn.Module):
    """Halves the size in two ways and takes their mean: two convolutions, and a mean over pixels
    with one."""

    def __init__(self, inputs: int, outputs: int, batch_norm: bool) -> None:
        super().__init__()
        self.long = nn.Sequential(
            *_Down(inputs, outputs, batch_norm),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            *_norm(outputs, batch_norm),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.short = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            *_norm(outputs, batch_norm),
            nn.LeakyReLU(0.2, inplace=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/2, W/2)."""
        return 0.5 * (self.long(maps) + self.short(maps))


class _Decoder(nn.Sequential):
    """A map of stage 1 to an image of a given stage, in (-1, 1)."""

    def __init__(
        self, inputs: int, channels: int, stage: int, width: int, batch_norm: bool
    ) -> None:
        """channels: of the image. width: of the discriminator; a decoder has half the generator's
        channels."""
        layers: list[nn.Module] = []
        for of in range(2, stage + 1):
            outputs = max(1, _generated(width, of) // 2)
            layers += [_Up(inputs, outputs, batch_norm)]
            inputs = outputs
        super().__init__(*layers, nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.Tanh())


class FastGanDiscriminator(nn.Module):
    """images (N, C, H, W) -> logits (N, 2, h, w), of places in the image and in the small image: 5
    x 5 each for square images of 2^n pixels. If the signature asks for one vector: their mean.

    Maps of stages 4 to 6 scale the channels of the maps three stages below. At 256 pixels and width
    64: 16 x 256², 32 x 128², 64 x 64², 128 x 32², 256 x 16², 512 x 8². Labels enter before the last
    layers, as constant planes.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        width: int,
        batch_norm: bool,
        label_size: int,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        steps, start = halvings(signature.input)
        channels, (outputs,) = signature.input[0], signature.output_shape
        self._several = signature.several_logits
        self.label = LabelVector(signature, label_size)
        top = min(steps, _TOP)
        self.stem = _stem(channels, steps, width, batch_norm)
        self.downs = nn.ModuleList(
            _TwoWaysDown(_judged(width, stage + 1), _judged(width, stage), batch_norm)
            for stage in range(top - 1, 0, -1)
        )
        self.excitations = nn.ModuleList(
            _Excitation(_judged(width, stage), _judged(width, stage - 3), stage, start)
            for stage in range(top, 3, -1)
        )
        small = max(1, min(_SMALL, steps - 1))
        self._to_small = 2 ** (steps - small)
        self.decoders = nn.ModuleDict()
        self.noise: Mapping[str, Noise] = {}
        if signature.reconstructs:
            self.decoders["whole"] = _Decoder(_judged(width, 1), channels, small, width, batch_norm)
            if steps >= 2:
                self.decoders["quadrant"] = _Decoder(
                    _judged(width, 2), channels, small, width, batch_norm
                )
                self.noise = {"quadrant": Noise((2,), "uniform")}
        self.small: nn.Module | None = None
        if small >= 2:
            last = _judged(width, 2)
            if signature.reconstructs:
                self.decoders["small"] = _Decoder(last, channels, small, width, batch_norm)
            self.small = _small_branch(channels, small, width, batch_norm)
            self.small_head = nn.Conv2d(last + self.label.added, outputs, 4, bias=False)
        last = _judged(width, 0)
        self.head = nn.Sequential(
            nn.Conv2d(_judged(width, 1) + self.label.added, last, 1, bias=False),
            *_norm(last, batch_norm),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(last, outputs, 4, bias=False),
        )
        initialise(self)
        if spectral_norm:
            with_spectral_norm(self)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each stage of the large image, with the excitation of its
        map. The branch for the small image is in none."""
        blocks = [nn.ModuleList([self.stem]), *(nn.ModuleList([down]) for down in self.downs)]
        for number, excitation in enumerate(self.excitations, 3):
            blocks[number].append(excitation)
        return [*blocks]

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """images: (N, C, H, W); labels: see `Signature`; noise: of `reconstructed`, not used."""
        small = F.avg_pool2d(images, self._to_small)
        return self._logits(self._maps(images)[-1], self._of_small(small), labels)

    def reconstructed(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The logits, and from the same pass pairs of an image and its reconstruction, (N, C, h, w)
        in (-1, 1) each: the small image from the last map and from its own branch, and one quadrant
        of the image, which `noise` chooses for each image, from the same quadrant of the map before
        the last."""
        small = F.avg_pool2d(images, self._to_small)
        maps, of_small = self._maps(images), self._of_small(small)
        pairs = [(small, self.decoders["whole"](maps[-1]))]
        if of_small is not None:
            pairs.append((small, self.decoders["small"](of_small)))
        if noise:
            part = _quadrant(images, noise["quadrant"])
            part = F.avg_pool2d(part, self._to_small // 2)
            again = self.decoders["quadrant"](_quadrant(maps[-2], noise["quadrant"]))
            pairs.append((part, again))
        return self._logits(maps[-1], of_small, labels), pairs

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The map of each stage, from the largest to stage 1."""
        maps = [self.stem(images)]
        for number, down in enumerate(self.downs):
            found = down(maps[-1])
            if number >= 2:
                found = found * self.excitations[number - 2](maps[number - 2])
            maps.append(found)
        return maps

    def _of_small(self, small: Tensor) -> Tensor | None:
        """The map of the branch for the small image, at stage 1."""
        return None if self.small is None else self.small(small)

    def _logits(self, large: Tensor, small: Tensor | None, labels: Tensor | None) -> Tensor:
        label = self.label(large.new_empty(len(large), 0), labels)
        found = [self.head(_with_planes(large, label))]
        if small is not None:
            found.append(self.small_head(_with_planes(small, label)))
        if self._several:
            return torch.cat(found, 1)
        return torch.stack([logits.mean((2, 3)) for logits in found]).mean(0)


def _stem(channels: int, steps: int, width: int, batch_norm: bool) -> nn.Sequential:
    """The first layers: to the channels of the first map and, of larger images, to its size."""
    if steps <= _TOP:
        first = nn.Conv2d(channels, _judged(width, steps), 3, padding=1, bias=False)
        return nn.Sequential(first, nn.LeakyReLU(0.2, inplace=True))
    layers = [*_Down(channels, _judged(width, steps - 1), batch_norm=False)]
    for stage in range(steps - 2, _TOP - 1, -1):
        layers += _Down(_judged(width, stage + 1), _judged(width, stage), batch_norm)
    return nn.Sequential(*layers)


def _small_branch(channels: int, stage: int, width: int, batch_norm: bool) -> nn.Sequential:
    """An image of a stage to a map of stage 1. It has half the channels of the large branch."""
    layers = [*_Down(channels, _judged(width, stage), batch_norm=False)]
    for of in range(stage - 1, 1, -1):
        layers += _Down(_judged(width, of + 1), _judged(width, of), batch_norm)
    return nn.Sequential(*layers)


def _with_planes(maps: Tensor, vectors: Tensor) -> Tensor:
    """(N, C, H, W) and (N, D) to (N, C + D, H, W). Without vectors the maps themselves."""
    if not vectors.shape[1]:
        return maps
    planes = vectors[:, :, None, None].expand(-1, -1, *maps.shape[2:])
    return torch.cat([maps, planes.to(maps.dtype)], 1)


def _quadrant(maps: Tensor, where: Tensor) -> Tensor:
    """A quarter of each map, (N, C, H/2, W/2). where: (N, 2) in [0, 1): from ½ on, the lower and
    the right half."""
    lower, right = (where >= 0.5)[:, :, None, None, None].unbind(1)
    top, bottom = maps.chunk(2, 2)
    left_half, right_half = torch.where(lower, bottom, top).chunk(2, 3)
    return torch.where(right, right_half, left_half)
