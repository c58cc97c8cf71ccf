"""What objectives that make images of latents have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ray_gen.core import Networks, NoiseOf, Noises, Objective, Posterior

OF_NETWORKS: Noises = {"encoding": NoiseOf("encoder"), "decoding": NoiseOf("decoder")}
"""Noise of encoder and decoder, in training and in an evaluation. Most networks have none."""


class Clamping(Objective):
    """Samples are what `unclamped` makes, in [0, 1] (`ray_gen.core.Clamps`)."""

    def unclamped(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """See `ray_gen.core.Clamps`."""
        raise NotImplementedError

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """What `unclamped` makes, in [0, 1]."""
        return self.unclamped(networks, latents, labels, noise).clamp(0.0, 1.0)


class Decoding(Clamping):
    """Has an encoder to one latent, "z": reconstructions are samples at its code
    (`ray_gen.core.Reconstructs`)."""

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Posterior]:
        """See `ray_gen.core.Encodes`."""
        raise NotImplementedError

    def reconstruct(
        self,
        networks: Networks,
        images: Tensor,
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """The sample at the code of each image: z itself, or the mean of q(z|x)."""
        z = self.encode(networks, images, labels)["z"].mean
        return self.sample(networks, {"z": z}, labels, noise)


def gaussian_posterior(
    networks: Networks, images: Tensor, labels: Tensor | None, **noise: Any
) -> tuple[Tensor, Tensor]:
    """μ and log σ² of q(z|x), each (N, latent_size): the two halves of what the encoder gives."""
    encoded = networks["encoder"](images, labels, **noise).to(images.dtype)
    mean, log_variance = encoded.chunk(2, dim=1)
    return mean, log_variance
