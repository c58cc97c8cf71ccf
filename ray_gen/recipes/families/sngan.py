"""SNGAN (Miyato et al. 2018): residual networks, spectral norm in the discriminator, hinge loss, 5
discriminator steps. With labels: conditional BatchNorm and projection (Miyato and Koyama 2018).
Published FID: CIFAR-10 16.8, 10.8 with labels; CelebA 5.7 at 64, 12.9 at 128 (README of mimicry,
one GPU). Measured on few images and little time (jobs/studies/small32_best.yaml): with width 16,
objective.discriminator_steps=1 and objective.augment=[color, translation], 20 minutes of one CPU
thread give a KID of 6.0 on emoji at 32 pixels; dcgan 2.2 to 2.6. With augmentation, one step was
better than five (12.8 against 17.4 after 4 minutes). networks.generator.width and
networks.discriminator.width scale it."""

from __future__ import annotations

from typing import Any

from ray_gen.recipes.families.facts import Because, Facts, Tree, amount, falling_adam

IMAGES = 5_000_000


def batch(side: float) -> int:
    """64, as in mimicry at every size."""
    del side
    return 64


def experiment(facts: Facts) -> Tree:
    """Numbers of mimicry."""
    large = min(facts.height, facts.width) >= 128
    steps = 2 if large else 5
    generator: dict[str, Any] = {"kind": "resnet", "width": Because(64, "As published.")}
    discriminator: dict[str, Any] = {"kind": "resnet", "width": 64, "spectral_norm": True}
    if facts.conditional:
        generator["labels"] = "conditional_batch_norm"
        discriminator["labels"] = "projection"
    return {
        "networks": {"generator": generator, "discriminator": discriminator},
        "objective": {
            "kind": "gan",
            "conditional": facts.conditional,
            "latent_size": Because(128, "As published."),
            "loss": "hinge",
            "discriminator_steps": Because(
                steps, "As in mimicry: 5 below 128 pixels, else 2. Each step takes new images."
            ),
        },
        "optimizers": falling_adam(facts, 2.0e-4, [0.0, 0.9]),
        "training": {
            **amount(
                facts, f"mimicry: 100,000 generator steps, here {6_400_000 * steps:,} images."
            ),
            "ema_half_life_images": Because(
                min(round(facts.batch * 312.5) * steps, facts.share(0.1)),
                "SNGAN has no average. This is StyleGAN2's rule, in generator steps.",
            ),
        },
    }
