"""A convolutional encoder and decoder for VAEs: strided convolutions, and linear layers to and from
the latent, a vector. There is no normalisation: a likelihood does not need it."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ray_gen.core import Signature
from ray_gen.networks.blocks import blocks_of, ends_of, with_features
from ray_gen.networks.labels import LabelPlane, LabelVector
from ray_gen.networks.sizes import halvings


class ConvEncoder(nn.Module):
    """images (N, C, H, W) -> (N, vector_size). Channels double when the side halves."""

    def __init__(
        self, signature: Signature, *, width: int, label_size: int, blocks: int = 0
    ) -> None:
        super().__init__()
        # Here a label is an additional plane of the image, and there are no residual blocks.
        del label_size, blocks
        steps, end = halvings(signature.input)
        self.label = LabelPlane(signature)
        channels = [signature.input[0] + self.label.added]
        channels += [width * 2**n for n in range(steps)]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * math.prod(end), signature.output_shape[0])

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each convolution, and the linear layer."""
        return [*blocks_of(self.layers), self.head]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: (N, C, H, W); labels: see `Signature`."""
        return self.head(torch.flatten(self.layers(self.label(images, labels)), 1))

    def features(
        self, images: Tensor, labels: Tensor | None = None, *, layer: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ray_gen.core.Featured`: after the activation of a convolution."""
        maps = self.label(images, labels)
        maps, found = with_features(self.layers, ends_of(self.layers), maps, layer)
        return self.head(torch.flatten(maps, 1)), found


class ConvDecoder(nn.Module):
    """z (N, vector_size) -> (N, C, H, W): the encoder mirrored."""

    def __init__(
        self, signature: Signature, *, width: int, label_size: int, blocks: int = 0
    ) -> None:
        super().__init__()
        del blocks  # of the networks of maps
        steps, start = halvings(signature.output_shape)
        self.label = LabelVector(signature, label_size)
        channels = [width * 2**n for n in reversed(range(steps))]
        self._start = (channels[0], *start)
        self.head = nn.Linear(signature.input[0] + self.label.added, math.prod(self._start))
        layers: list[nn.Module] = [nn.ReLU(inplace=True)]
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU(inplace=True)]
        layers.append(nn.ConvTranspose2d(channels[-1], signature.output_shape[0], 4, 2, 1))
        if signature.activation == "tanh":
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each convolution, and the linear layer."""
        return [*blocks_of(self.layers[1:])[::-1], self.head]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (N, vector_size); labels: see `Signature`."""
        return self.layers(self.head(self.label(z, labels)).view(-1, *self._start))
