"""WGAN-GP (Gulrajani et al. 2017): residual networks, a critic without normalisation, the
Wasserstein loss with a gradient penalty, 5 critic steps. With labels: conditional BatchNorm and an
auxiliary classifier. Published FID: CIFAR-10 22.3 (README of mimicry). Unmeasured here. A family to
compare with: sngan has the same networks and better numbers. networks.generator.width and
networks.discriminator.width scale it."""

from __future__ import annotations

from typing import Any

from ray_gen.recipes.families.facts import Because, Facts, Tree, amount, falling_adam

IMAGES = 5_000_000


def batch(side: float) -> int:
    """64, as published."""
    del side
    return 64


def experiment(facts: Facts) -> Tree:
    """Numbers of the paper's code for CIFAR-10."""
    generator: dict[str, Any] = {"kind": "resnet", "width": Because(64, "As mimicry's.")}
    critic: dict[str, Any] = {
        "kind": "resnet",
        "width": 64,
        "pooling": Because("mean", "As published. BatchNorm would couple the penalties."),
    }
    objective: dict[str, Any] = {
        "kind": "gan",
        "conditional": facts.conditional,
        "latent_size": Because(128, "As published."),
        "loss": "wasserstein",
        "gradient_penalty_weight": Because(10.0, "As published: λ."),
        "discriminator_steps": Because(5, "As published. Each step takes new images."),
    }
    if facts.conditional:
        generator["labels"] = "conditional_batch_norm"
        critic["labels"] = "none"
        objective["classifier_weight"] = Because(1.0, "As published, and 0.1 for the generator.")
        objective["generator_classifier_weight"] = 0.1
    return {
        "networks": {"generator": generator, "discriminator": critic},
        "objective": objective,
        "optimizers": falling_adam(facts, 2.0e-4, [0.0, 0.9]),
        "training": {
            **amount(facts, "Published: 100,000 generator steps, here 32,000,000 images."),
            "ema_half_life_images": Because(
                min(round(facts.batch * 312.5) * 5, facts.share(0.1)),
                "WGAN-GP has no average. This is StyleGAN2's rule, in generator steps.",
            ),
        },
    }
