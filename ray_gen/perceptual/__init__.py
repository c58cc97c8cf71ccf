"""Distances of reconstructions from their images: of pixels, and of what a trained network sees.

A distance is a module without parameters. It is called with two sets of images (N, C, H, W) in
[-1, 1] and returns one value for each pair, (N,). Gradients reach only the second. The trained
network is no part of a checkpoint: its tensors are buffers that are not kept, and `load`
(`core.Pretrained`) reads them. `description` says which network it is, and the digest of its
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ray_gen.perceptual.classifier import TorchvisionDistance
from ray_gen.perceptual.convolutional import LpipsDistance, Vgg16Distance
from ray_gen.perceptual.dino import DinoDistance
from ray_gen.perceptual.features import FIELD
from ray_gen.perceptual.l1 import L1Distance
from ray_gen.perceptual.own import OwnDistance
from ray_gen.perceptual.ssim import SsimDistance

__all__ = [
    "DinoDistance",
    "L1Distance",
    "LpipsDistance",
    "OwnDistance",
    "SsimDistance",
    "TorchvisionDistance",
    "Vgg16Distance",
    "distance_of",
]

_OF_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": Vgg16Distance,
    "lpips": LpipsDistance,
    "torchvision": TorchvisionDistance,
    "dino": DinoDistance,
}


def distance_of(
    kind: str, *, channels: int, opacity: bool, field: str = FIELD, **options: Any
) -> nn.Module:
    """A distance by its name in the settings (`experiment/distances.py`). channels: of the images;
    opacity: whether the last one is opacity. field: the setting, for messages. options: fields of
    the settings, and `make` for a kind whose class lies elsewhere (see `training.build`). Raises
    Refused."""
    if kind == "l1":
        return L1Distance()
    if kind == "ssim":
        return SsimDistance()
    if kind in _OF_NETWORKS:
        build = _OF_NETWORKS[kind]
        return build(channels=channels, opacity=opacity, field=field, **options)
    return OwnDistance(options["make"], options.get("target", kind), field)
