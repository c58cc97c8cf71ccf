"""The KL autoencoder of Rombach et al. 2022 with maps of an eighth of the side and 4 channels: that
of Stable Diffusion. Published rFID on ImageNet at 256 pixels 0.90, PSNR 24.2. Its quality is
unmeasured here. Without a discriminator, at 64 pixels, width 32 and a batch of 16, one thread of a
Xeon trains 12 images/s with 1.7 GiB; diffusers' own module in a plain loop 10, with 1.9 GiB
(jobs/benchmark.py --only latent). networks.encoder.width and networks.decoder.width scale it."""

from __future__ import annotations

from functools import partial

from ray_gen.networks.sizes import multiple_problem
from ray_gen.recipes.families import latent
from ray_gen.recipes.families.facts import Because, Facts, Tree
from ray_gen.recipes.families.latent import IMAGES, batch

__all__ = ["IMAGES", "batch", "experiment", "size_problem"]


size_problem = partial(multiple_problem, multiple=8)
"""Sides are multiples of 8."""


def experiment(facts: Facts) -> Tree:
    """For images whose sides are multiples of 8."""
    objective = {
        "latent_channels": 4,
        "downsampling": 8,
        "bottleneck": {
            "kind": "kl",
            "weight": Because(2.08e-8, "Published: 1e-6 in sums over pixels and latents, for RGB."),
        },
        "perceptual": {"kind": "lpips"},
    }
    networks = latent.of_rombach([1, 2, 4, 4])
    return latent.experiment(facts, networks, objective, rate=latent.published_rate(facts))
