"""A tokenizer with a learned codebook: VQGAN (Esser et al. 2021) with maps of an eighth of the side
and the codebook of Rombach et al. 2022. Published rFID on ImageNet at 256 pixels 1.14. Unmeasured
here. networks.encoder.width and networks.decoder.width scale it."""

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
            "kind": "vq",
            "codes": Because(16_384, "As published; few images use few codes: 1,024 then."),
        },
        "perceptual": {"kind": "lpips"},
    }
    attends = [facts.height // 8]  # as published: maps of 32 pixels at 256
    networks = latent.of_rombach([1, 2, 2, 4], attends)
    return latent.experiment(facts, networks, objective, rate=latent.published_rate(facts))
