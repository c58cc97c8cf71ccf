"""Fully connected networks for images of any shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ray_gen.core import ImageToVector, VectorToImage
from ray_gen.networks.labels import LabelVector
from ray_gen.networks.spectral_norm import with_spectral_norm

_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2, inplace=True),
    "tanh": nn.Tanh,
}


def _layers(sizes: Sequence[int], activation: str, initial_weights: str) -> nn.Sequential:
    """Linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        if initial_weights == "glorot":
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class MlpEncoder(nn.Module):
    """images (N, C, H, W) -> (N, vector_size); the label's vector joins the pixels."""

    def __init__(
        self,
        signature: ImageToVector,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        initial_weights: str,
        label_size: int,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        pixels = math.prod(signature.image_shape)
        self.label = LabelVector(signature.label_count, label_size)
        sizes = [pixels + self.label.added, *hidden_sizes, signature.vector_size]
        self.layers = _layers(sizes, activation, initial_weights)
        if spectral_norm:
            with_spectral_norm(self.layers)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: (N, C, H, W); labels: int64 (N,) or None."""
        return self.layers(self.label(images.flatten(1), labels))


class MlpDecoder(nn.Module):
    """z (N, vector_size) -> (N, C, H, W); the label's vector joins z."""

    def __init__(
        self,
        signature: VectorToImage,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        initial_weights: str,
        label_size: int,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        self._image_shape = signature.image_shape
        self._tanh = signature.output == "tanh"
        self.label = LabelVector(signature.label_count, label_size)
        inputs = signature.vector_size + self.label.added
        sizes = [inputs, *hidden_sizes, math.prod(self._image_shape)]
        self.layers = _layers(sizes, activation, initial_weights)
        if spectral_norm:
            with_spectral_norm(self.layers)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (N, vector_size); labels: int64 (N,) or None."""
        images = self.layers(self.label(z, labels)).view(-1, *self._image_shape)
        return torch.tanh(images) if self._tanh else images
