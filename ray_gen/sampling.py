"""Samples of a model as pure functions of (seed, purpose, number): latents, the noise of networks,
and the images made from both. Each purpose has its own random numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ray_gen.core import Networks, Noise, Noises, Objective, declared
from ray_gen.noise import Key, drawn, key_of


def latent_key(seed: int, purpose: str, name: str) -> Key:
    """The key of a latent. The latent z has the key of the purpose itself: most models have only
    z."""
    return key_of(seed, purpose) if name == "z" else key_of(seed, purpose, name)


def latents_of(
    latents: Mapping[str, Noise], seed: int, purpose: str, numbers: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The latents of the samples with these numbers: by name, (N, *shape) each.

    numbers: int64 (N,), on the device.
    """
    return drawn(latents, lambda name: latent_key(seed, purpose, name), numbers, dtype)


def noise_for(
    noises: Noises,
    networks: Networks,
    seed: int,
    purpose: str,
    numbers: Tensor,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The noise of the networks, in their present mode, for the samples with these numbers."""
    specs = declared(noises, networks)
    return drawn(specs, lambda name: key_of(seed, purpose, "noise", name), numbers, dtype)


@torch.no_grad()
def sampled(
    objective: Objective,
    networks: Networks,
    seed: int,
    purpose: str,
    numbers: Tensor,
    labels: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The samples with these numbers, drawn from the model's prior: images_NCHW in [0, 1].

    numbers: int64 (N,), on the device; labels: int64 (N,) or None.
    """
    latents = latents_of(objective.latents, seed, purpose, numbers, dtype)
    noise = noise_for(objective.sampling_noise, networks, seed, purpose, numbers, dtype)
    return objective.sample(networks, latents, labels, noise)
