"""Any classifier of torchvision, by name. Its features are the inputs of its last linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.backbones import classifier
from ray_gen.evaluation.extractors import WEIGHTS, Features
from ray_gen.pixels import unit

_FIELD = "evaluation.features.backbone"


class TorchvisionClassifier:
    """A classifier of `torchvision.models`: see `backbones.classifier`.

    The whole image, not a crop, is resized to the size of the weights' training images, and
    normalised as they were. Raises Refused.
    """

    channels = 3

    def __init__(self, *, backbone: str, weights: str | None = None, device: torch.device) -> None:
        found = classifier(backbone, weights, field=_FIELD, weights_field=WEIGHTS)
        self._network, self._size, self._mode = found.network.to(device), found.size, found.mode
        last = found.last_layer
        last.register_forward_hook(self._remember)
        self._seen: tuple[Tensor, Tensor] | None = None
        self._mean = torch.tensor(found.mean, device=device)[:, None, None]
        self._std = torch.tensor(found.std, device=device)[:, None, None]
        self.name = (
            f"torchvision {backbone} {found.source}, {last.in_features} features before its logits"
        )
        self.resizing = f"{self._size}x{self._size}, {self._mode}, antialiased"
        self.digest = found.digest

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 3, H, W) to vectors (N, D) and logits (N, K), float32."""
        return Features(*self._both(unit(images)))

    def vectors_of(self, images: Tensor) -> Tensor:
        """Floats (N, 3, H, W) in [0, 1] to vectors (N, D), float32; gradients flow through it."""
        return self._both(images.float())[0]

    def _both(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and logits of images in [0, 1]."""
        size = (self._size, self._size)
        if values.shape[2:] != size:
            values = F.interpolate(values, size, mode=self._mode, antialias=True).clamp(0, 1)
        self._network((values - self._mean) / self._std)
        assert self._seen is not None
        found = self._seen
        self._seen = None
        return found

    def _remember(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = inputs[0], output
