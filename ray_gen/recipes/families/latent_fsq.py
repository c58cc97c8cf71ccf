"""A tokenizer without a codebook: finite scalar quantisation (Mentzer et al. 2024), with maps of an
eighth of the side. The paper finds nearly all codes in use without remedies. Unmeasured here.
networks.encoder.width and networks.decoder.width scale it."""

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
        "downsampling": 8,
        "bottleneck": {
            "kind": "fsq",
            "levels": Because([8, 8, 8, 5, 5, 5], "64,000 codes, by the table of the paper."),
        },
        "perceptual": {"kind": "lpips"},
    }
    networks = latent.of_rombach([1, 2, 4, 4])
    return latent.experiment(facts, networks, objective, rate=latent.published_rate(facts))
