"""FastGAN (Liu et al. 2021): for some hundred to some thousand images, from 64 pixels. The
discriminator also reconstructs the images that it sees. Published with a perceptual distance of
VGG16; here the distance is L1 of pixels unless objective.reconstruction_distance says otherwise,
because VGG16 needs weights that others have trained. Unmeasured here. networks.generator.width and
networks.discriminator.width scale it."""

from __future__ import annotations

from ray_gen.recipes.families.facts import Because, Facts, Tree, amount, diff_augment

IMAGES = 400_000


def batch(side: float) -> int:
    """8, as published."""
    del side
    return 8


def experiment(facts: Facts) -> Tree:
    """Numbers of the published code."""
    adam = {"kind": "adam", "learning_rate": 2.0e-4, "betas": [0.5, 0.999]}
    return {
        "networks": {
            "generator": {"kind": "fastgan", "width": Because(64, "As published.")},
            "discriminator": {"kind": "fastgan", "width": 64},
        },
        "objective": {
            "kind": "gan",
            "conditional": facts.conditional,
            "latent_size": Because(256, "As published."),
            "loss": "hinge",
            "hinge_margin": Because([0.8, 1.0], "As published: drawn anew for each image."),
            "reconstruction_weight": Because(
                8.0, "As published, where the loss is a sum over 8 images."
            ),
            "augment": diff_augment(facts, "As published: DiffAugment."),
        },
        "optimizers": {
            "discriminator": adam,
            "generator": Because(adam, "As published."),
        },
        "training": {
            **amount(
                facts,
                "Published: 50,000 steps of 8 images. Look for copies of training images: longer "
                "training of few images gives more of them.",
            ),
            "ema_half_life_images": Because(
                facts.half_life(0.999), "As published: a decay of 0.999 at each step."
            ),
        },
    }
