"""What the distances of features have in common: which images they see, and in which form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.pixels import over

FIELD = "objective.reconstruction_distance"
"""The setting that a distance has if nobody says another one."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels in [0, 1], as torchvision has them."""


def ssim_instead(field: str) -> str:
    """The end of a message that asks for weights: the distance that needs none. Empty outside
    objectives."""
    section, name, *_ = field.split(".")
    return f", or {section}.{name} to ssim, which needs none" if section == "objective" else ""


class FeatureDistance(nn.Module):
    """A distance of what a network that was trained on RGB images sees of two images.

    Grey images are repeated to RGB. Opacity is put on white. Other channels are refused.
    """

    least_side: int = 1
    """Pixels of the smallest side that the network can see."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        channels: int,
        opacity: bool,
        field: str,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """name: of the network, for messages. field: the setting of the distance. mean, std: of
        RGB in [0, 1], which the network takes as 0 and 1. Raises Refused."""
        super().__init__()
        if channels - opacity not in (1, 3):
            raise Refused(
                f"{field}.kind: {name} sees grey or RGB images, with or without opacity, but these "
                f"have {channels} channels; set {field}.kind to l1 or ssim, or to run, with a run "
                "of such images"
            )
        self._name, self._opacity, self._field = name, opacity, field
        self.description = f"{name} (not loaded)"
        self.register_buffer("mean", as_maps(mean), persistent=False)
        self.register_buffer("std", as_maps(std), persistent=False)

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] twice to (N,). Gradients reach only the second. Raises Refused
        for images that are too small."""
        if min(images.shape[2:]) < self.least_side:
            raise Refused(
                f"{self._field}.kind: {self._name} needs images of at least {self.least_side} "
                f"pixels, but gets {images.shape[2]} x {images.shape[3]}; set {self._field}.kind "
                "to l1 or ssim, or use larger images (data.image_size)"
            )
        with torch.no_grad():
            wanted = self.features(self._seen(images))
        found = self.features(self._seen(again))
        return self.apart(wanted, found)

    @abstractmethod
    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Standardised RGB (N, 3, H, W) to the features of some layers, (N, ...) each."""

    @abstractmethod
    def apart(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        """The features of two sets of images to their distances (N,)."""

    def _seen(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] to standardised RGB (N, 3, H, W)."""
        images = 0.5 * (images + 1.0)
        colours = over(images, 1.0) if self._opacity else images
        return (colours.expand(-1, 3, -1, -1) - self.mean) / self.std


def unit_vectors(features: Tensor, axis: int) -> Tensor:
    """Vectors along an axis scaled to length 1, at least in float32. ε = 1e-8 stands inside the
    root and keeps the gradient finite where all features are 0."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features * (features.square().sum(axis, keepdim=True) + 1e-8).rsqrt()


def as_maps(values: Sequence[float]) -> Tensor:
    """A value for each channel, (C, 1, 1)."""
    return torch.tensor(values)[:, None, None]
