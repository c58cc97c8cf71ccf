"""A latent autoencoder for laptops: few convolutions, maps of a quarter of the side, and SSIM in
place of a perceptual network. 16 minutes of one CPU thread, 107,000 images of emoji at 64 pixels,
without a discriminator: PSNR 28.1, SSIM 0.91 of held-out images; with one in the second half 26.3
and 0.86, with sharper textures (jobs/studies/latents64.yaml). In a short run set
objective.adversarial_weight=0. networks.encoder.width and networks.decoder.width scale it."""

from __future__ import annotations

from functools import partial

from ray_gen.networks.sizes import multiple_problem
from ray_gen.recipes.families import latent
from ray_gen.recipes.families.facts import Because, Facts, Tree

__all__ = ["IMAGES", "batch", "experiment", "size_problem"]

IMAGES = 200_000


def batch(side: float) -> int:
    """32 at any size."""
    del side
    return 32


size_problem = partial(multiple_problem, multiple=4)
"""Sides are multiples of 4."""


def experiment(facts: Facts) -> Tree:
    """For images whose sides are multiples of 4."""
    objective = {
        "latent_channels": 4,
        "downsampling": 4,
        "bottleneck": {
            "kind": "kl",
            "weight": Because(1.0e-6, "Larger than published: smoother latents for a small GAN."),
        },
        "perceptual": {"kind": "ssim"},
    }
    network = {"kind": "conv", "width": 32}
    networks = {"encoder": network, "decoder": network}
    rate = Because(5.0e-4, "Small networks.")
    return latent.experiment(facts, networks, objective, rate=rate, patch_width=16)
