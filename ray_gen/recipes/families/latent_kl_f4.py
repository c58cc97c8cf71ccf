"""The KL autoencoder of Rombach et al. 2022 with maps of a quarter of the side and 3 channels: the
closest to pixels. Published rFID on ImageNet at 256 pixels 0.27, PSNR 27.5. Unmeasured here.
networks.encoder.width and networks.decoder.width scale it."""

from __future__ import annotations

from functools import partial

from ray_gen.networks.sizes import multiple_problem
from ray_gen.recipes.families import latent
from ray_gen.recipes.families.facts import Because, Facts, Tree
from ray_gen.recipes.families.latent import IMAGES, batch

__all__ = ["IMAGES", "batch", "experiment", "size_problem"]


size_problem = partial(multiple_problem, multiple=4)
"""Sides are multiples of 4."""


def experiment(facts: Facts) -> Tree:
    """For images whose sides are multiples of 4."""
    objective = {
        "latent_channels": 3,
        "downsampling": 4,
        "bottleneck": {
            "kind": "kl",
            "weight": Because(6.25e-8, "Published: 1e-6 in sums over pixels and latents, for RGB."),
        },
        "perceptual": {"kind": "lpips"},
    }
    networks = latent.of_rombach([1, 2, 4])
    return latent.experiment(facts, networks, objective, rate=latent.published_rate(facts))
