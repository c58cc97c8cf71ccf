"""DCGAN (Radford et al. 2016, section 3 and figure 1): strided and fractionally strided
convolutions, BatchNorm except at the generator's output and the discriminator's input, ReLU and
tanh, LeakyReLU 0.2, weights from N(0, 0.02²)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_gen.core import Signature
from ray_gen.networks.blocks import blocks_of, ends_of, with_features
from ray_gen.networks.from_vector import FromVector, initialise
from ray_gen.networks.labels import (
    ConditionalBatchNorm,
    LabelPlane,
    LabelVector,
    Projection,
    code_size,
    label_code,
    without_labels,
)
from ray_gen.networks.sizes import halvings
from ray_gen.networks.spectral_norm import with_spectral_norm


def _norm(channels: int, batch_norm: bool, condition_size: int = 0) -> list[nn.Module]:
    if condition_size and batch_norm:
        return [ConditionalBatchNorm(channels, condition_size)]
    return [nn.BatchNorm2d(channels)] if batch_norm else []


def _takes_no_labels(layer: nn.Module) -> bool:
    return not isinstance(layer, ConditionalBatchNorm)


class DcganGenerator(nn.Module):
    """z (N, vector_size) -> images (N, C, H, W), with tanh if the signature asks for it.

    At 64 pixels and width 64: 512 x 4², 256 x 8², 128 x 16², 64 x 32², C x 64².
    """

    def __init__(
        self,
        signature: Signature,
        *,
        width: int,
        batch_norm: bool,
        label_size: int,
        spectral_norm: bool,
        labels: str = "concatenated",
    ) -> None:
        super().__init__()
        steps, start = halvings(signature.output_shape)
        in_norms = labels == "conditional_batch_norm"
        self._signature = signature
        self._condition_size = code_size(signature) if in_norms else 0
        self.label = LabelVector(without_labels(signature) if in_norms else signature, label_size)
        channels = width * 2 ** (steps - 1)
        inputs = signature.input[0] + self.label.added
        bias = not batch_norm  # the paper's networks have no bias
        layers: list[nn.Module] = [
            FromVector(inputs, channels, start, bias=bias),
            *_norm(channels, batch_norm, self._condition_size),
            nn.ReLU(inplace=True),
        ]
        for _ in range(steps - 1):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=bias),
                *_norm(channels // 2, batch_norm, self._condition_size),
                nn.ReLU(inplace=True),
            ]
            channels //= 2
        layers.append(nn.ConvTranspose2d(channels, signature.output_shape[0], 4, 2, 1, bias=bias))
        if signature.activation == "tanh":
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)
        initialise(self.layers)
        if spectral_norm:
            for layer in self.layers:  # conditional gains and biases are tables of values
                if not isinstance(layer, ConditionalBatchNorm):
                    with_spectral_norm(layer)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: a block is a convolution and what follows it, but no
        BatchNorm that takes labels."""
        blocks = blocks_of(self.layers)[::-1]
        return [nn.Sequential(*filter(_takes_no_labels, block.children())) for block in blocks]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (N, vector_size); labels: see `Signature`."""
        x = self.label(z, labels)[:, :, None, None]
        if not self._condition_size:
            return self.layers(x)
        code = label_code(labels, self._signature, z)  # (N, code_size)
        for layer in self.layers:
            x = layer(x, code) if isinstance(layer, ConditionalBatchNorm) else layer(x)
        return x


class DcganDiscriminator(nn.Module):
    """images (N, C, H, W) -> (N, vector_size): one logit, or the output of an encoder. Of several
    outputs each has a last layer of its own.

    At 64 pixels and width 64: 64 x 32², 128 x 16², 256 x 8², 512 x 4², vector_size.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        width: int,
        batch_norm: bool,
        label_size: int,
        spectral_norm: bool,
        labels: str = "concatenated",
    ) -> None:
        super().__init__()
        del label_size  # here a label is an additional plane of the image
        steps, end = halvings(signature.input)
        in_image = labels == "concatenated"
        self.label = LabelPlane(signature if in_image else without_labels(signature))
        outputs = signature.outputs
        named = outputs if isinstance(outputs, Mapping) else {"output": outputs}
        self._several = isinstance(outputs, Mapping)
        (self._first, first_shape), *more = named.items()
        inputs = signature.input[0] + self.label.added
        bias = not batch_norm
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, width, 4, 2, 1, bias=bias),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        channels = width
        for _ in range(steps - 1):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, 2, 1, bias=bias),
                *_norm(2 * channels, batch_norm),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels *= 2
        projects = labels == "projection" and code_size(signature) > 0
        self.projection = Projection(signature, channels) if projects else None
        layers.append(nn.Conv2d(channels, first_shape[0], end, bias=bias))
        self.layers = nn.Sequential(*layers)
        self._ends = ends_of(self.layers)[:-1]
        self.more = nn.ModuleDict(
            {name: nn.Conv2d(channels, size, end, bias=bias) for name, (size,) in more}
        )
        initialise(self)
        if spectral_norm:
            with_spectral_norm(self)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: a block is a convolution and what follows it."""
        return blocks_of(self.layers)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """images: (N, C, H, W); labels: see `Signature`."""
        maps = self.label(images, labels)
        if self.projection is None and not self._several:
            return torch.flatten(self.layers(maps), 1)
        for layer in self.layers[:-1]:
            maps = layer(maps)
        return self._outputs(maps, labels)

    def features(
        self, images: Tensor, labels: Tensor | None = None, *, layer: int | None = None
    ) -> tuple[Tensor | dict[str, Tensor], Tensor]:
        """See `ray_gen.core.Featured`: after the activation of a convolution."""
        maps = self.label(images, labels)
        maps, found = with_features(self.layers[:-1], self._ends, maps, layer)
        return self._outputs(maps, labels), found

    def _outputs(self, maps: Tensor, labels: Tensor | None) -> Tensor | dict[str, Tensor]:
        """maps: (N, F, h, w), before the last layer."""
        first = torch.flatten(self.layers[-1](maps), 1)
        if self.projection is not None:
            first = first + self.projection(maps.sum((2, 3)), labels)
        if not self._several:
            return first
        more = {name: torch.flatten(layer(maps), 1) for name, layer in self.more.items()}
        return {self._first: first, **more}
