"""A small encoder from an image to a map and its decoder, for latents that are maps: strided
convolutions, and residual blocks at the smallest map, as in VQ-VAE (van den Oord et al. 2017,
section 4.1). There is no normalisation.

VQ-VAE has as many channels at every size, and its decoder ends with a transposed convolution. Here
channels double when the sides halve, and the decoder ends with a 3 x 3 convolution.
"""

from __future__ import annotations

import itertools
import math

import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import Signature
from ray_gen.networks.blocks import blocks_of
from ray_gen.networks.labels import LabelPlane
from ray_gen.networks.measured import MeasuredConv2d
from ray_gen.networks.sizes import halvings_between


class _Residual(nn.Module):
    """x + W₂ ReLU(W₁ ReLU(x)) with a 3 x 3 and a 1 x 1 convolution: (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))


def _residuals(channels: int, count: int) -> list[nn.Module]:
    return [*(_Residual(channels) for _ in range(count)), nn.ReLU(inplace=True)]


class ConvMapEncoder(nn.Module):
    """images (N, C, H, W) -> maps (N, c, h, w), with H = 2^n h and W = 2^n w."""

    def __init__(self, signature: Signature, *, width: int, label_size: int, blocks: int) -> None:
        super().__init__()
        del label_size  # here a label is an additional plane of the image
        steps = halvings_between(signature.input, signature.output_shape)
        self.label = LabelPlane(signature)
        channels = [signature.input[0] + self.label.added]
        channels += [width * 2**n for n in range(steps)]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU(inplace=True)]
        del layers[-1]  # a residual block begins with one
        layers += _residuals(channels[-1], blocks)
        layers.append(nn.Conv2d(channels[-1], signature.output_shape[0], 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each convolution, the last strided one with the residual
        blocks."""
        return blocks_of(self.layers)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: (N, C, H, W); labels: see `Signature`."""
        return self.layers(self.label(images, labels))


class ConvMapDecoder(nn.Module):
    """z (N, c, h, w) -> images (N, C, H, W): the encoder mirrored."""

    def __init__(self, signature: Signature, *, width: int, label_size: int, blocks: int) -> None:
        super().__init__()
        del label_size
        steps = halvings_between(signature.output_shape, signature.input)
        self.label = LabelPlane(signature)
        channels = [*(width * 2**n for n in reversed(range(steps))), width]
        layers: list[nn.Module] = [
            nn.Conv2d(signature.input[0] + self.label.added, channels[0], 3, padding=1),
            *_residuals(channels[0], blocks),
        ]
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.last = MeasuredConv2d(width, signature.output_shape[0], 3)
        self._tanh = signature.activation == "tanh"

    def adaptive_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """See `ray_gen.core.Balances`."""
        return self.last.adaptive_weight(reconstruction, adversarial)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each convolution, the first one with the residual blocks."""
        return [self.last, *reversed(blocks_of(self.layers))]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (N, c, h, w); labels: see `Signature`."""
        images = self.last(self.layers(self.label(z, labels)))
        return images.tanh() if self._tanh else images


def encoder_or_decoder(
    signature: Signature, *, width: int, label_size: int, blocks: int
) -> ConvMapEncoder | ConvMapDecoder:
    """The one that the signature asks for: an encoder makes maps smaller. Raises ValueError if the
    sides are not halved or doubled alike."""
    encodes = math.prod(signature.output_shape[1:]) < math.prod(signature.input[1:])
    kind = ConvMapEncoder if encodes else ConvMapDecoder
    return kind(signature, width=width, label_size=label_size, blocks=blocks)
