"""Distances of reconstructions from their images: of pixels, and of what a trained network sees.

A distance is a module without parameters. It is called with two sets of images (N, C, H, W) in
[-1, 1] and returns one value for each pair, (N,). Gradients reach only the second. The trained
network is no part of a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.pixels import over
from ray_gen.weights import digest_of, downloaded, misfit, read_weights

_FIELD = "objective.reconstruction_distance"
_WEIGHTS = f"{_FIELD}.weights"


def distance_of(kind: str, *, channels: int, opacity: bool, **options: Any) -> nn.Module:
    """A distance by its name in the settings. channels: of the images; opacity: whether the last
    one is opacity. Raises Refused."""
    if kind == "l1":
        return L1Distance()
    return Vgg16Distance(channels=channels, opacity=opacity, **options)


class L1Distance(nn.Module):
    """mean |x - y| over channels and pixels."""

    description = "l1, the mean absolute difference of pixels"

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N,)."""
        return (images.detach() - again).abs().flatten(1).mean(1)


class Vgg16Distance(nn.Module):
    """Σ_l mean_hw ‖f̂_l(x) - f̂_l(y)‖², with f̂ = f / √(‖f‖² + ε): the features f_l at each position
    of five layers l of VGG16 (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3), scaled to length 1.

    Zhang et al. 2018 (LPIPS), eq. 1, with all channel weights w_l equal to 1. Weights are those of
    torchvision, trained on ImageNet.
    """

    url = "https://download.pytorch.org/models/vgg16-397923af.pth"
    least_side = 16
    """Pixels. Four poolings leave at least one."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, channels: int, opacity: bool, weights: str | None = None, digest: str | None = None
    ) -> None:
        """weights: a file with the network's state dict; the layers after its features may be
        missing. None: downloaded on first use (528 MB). digest: of the features, as `description`
        says it; other weights are refused. Raises Refused."""
        super().__init__()
        if channels - opacity not in (1, 3):
            raise Refused(
                f"{_FIELD}.kind: vgg16 sees grey or RGB images, with or without opacity, but these "
                f"have {channels} channels; set {_FIELD}.kind to l1"
            )
        self._opacity = opacity
        self._weights, self._digest = weights, digest
        self.description = "vgg16 (not loaded)"
        self.register_buffer("mean", _as_maps(0.485, 0.456, 0.406), persistent=False)
        self.register_buffer("std", _as_maps(0.229, 0.224, 0.225), persistent=False)

    def load(self) -> None:
        """Read the network's weights. Sampling from a run does not need them, so building an
        objective does not read them. Raises Refused."""
        path = Path(self._weights).expanduser() if self._weights else downloaded(self.url, _WEIGHTS)
        tensors = read_weights(path, _WEIGHTS)
        wanted = {name: tensors.get(name) for layer in _LAYERS for name in layer.names}
        for layer in _LAYERS:
            for name, shape in zip(layer.names, layer.shapes, strict=True):
                found = wanted[name]
                if found is None or tuple(found.shape) != shape:
                    told = "is missing" if found is None else f"has shape {tuple(found.shape)}"
                    raise misfit(ValueError(f"{name} {told}"), "torchvision's vgg16", _WEIGHTS)
        features = {name: tensor for name, tensor in wanted.items() if tensor is not None}
        digest = digest_of(features)
        if self._digest not in (None, digest):
            raise Refused(
                f"{_FIELD}.digest: the features in {path} have the digest {digest}, and not "
                f"{self._digest}; give the file that the run began with"
            )
        for layer in _LAYERS:
            for name, part in zip(layer.names, ("weight", "bias"), strict=True):
                of_layer = features[name].float()
                self.register_buffer(f"{layer.name}_{part}", of_layer, persistent=False)
        self.description = f"vgg16, its features have the digest {digest}"

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N,). Sides are at least 16 pixels."""
        if min(images.shape[2:]) < self.least_side:
            raise Refused(
                f"{_FIELD}.kind: vgg16 needs images of at least {self.least_side} pixels, but gets "
                f"{images.shape[2]} x {images.shape[3]}; set {_FIELD}.kind to l1, or use larger "
                "images (data.image_size)"
            )
        with torch.no_grad():
            wanted = self._features(images)
        each = zip(wanted, self._features(again), strict=True)
        found = [(one - other).square().sum(1).mean((1, 2)) for one, other in each]
        return torch.stack(found).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Unit vectors at each position, (N, D, h, w) for each of the five layers."""
        maps = (self._as_rgb(0.5 * (images + 1.0)) - self.mean) / self.std
        found: list[Tensor] = []
        for layer in _LAYERS:
            if layer.pools:
                maps = F.max_pool2d(maps, 2)
            weight, bias = (getattr(self, f"{layer.name}_{part}") for part in ("weight", "bias"))
            maps = F.relu(F.conv2d(maps, weight, bias, padding=1))
            if layer.is_feature:
                found.append(_unit_vectors(maps))
        return found

    def _as_rgb(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to (N, 3, H, W): opacity on white, grey three times."""
        colours = over(images, 1.0) if self._opacity else images
        return colours.expand(-1, 3, -1, -1)


class _Layer:
    """A convolution of VGG16, with the names of its tensors in torchvision's state dict."""

    def __init__(self, number: int, inputs: int, outputs: int, pools: bool, last: bool) -> None:
        self.name = f"conv_{number}"
        self.names = (f"features.{number}.weight", f"features.{number}.bias")
        self.shapes = ((outputs, inputs, 3, 3), (outputs,))
        self.pools = pools
        """Whether there is a pooling before it."""
        self.is_feature = last


def _layers() -> list[_Layer]:
    """Blocks of 2, 2, 3, 3 and 3 convolutions with 64 to 512 channels (Simonyan and Zisserman 2015,
    configuration D). torchvision also numbers ReLUs and poolings."""
    found: list[_Layer] = []
    number, inputs = 0, 3
    for block, (count, outputs) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        for place in range(count):
            pools = block > 0 and place == 0
            found.append(_Layer(number, inputs, outputs, pools, last=place == count - 1))
            number, inputs = number + 2, outputs
        number += 1
    return found


_LAYERS = _layers()


def _unit_vectors(maps: Tensor) -> Tensor:
    """Each (N, D, H, W) vector over D scaled to length 1, at least in float32. The root's ε keeps
    the gradient finite where all features are 0."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return maps * (maps.square().sum(1, keepdim=True) + 1e-8).rsqrt()


def _as_maps(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None]
