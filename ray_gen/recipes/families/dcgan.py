"""DCGAN (Radford et al. 2016) at its best: a discriminator without BatchNorm, with R1 and
DiffAugment. Measured on 6,174 emoji at 32 pixels with width 32, in 20 minutes of one CPU thread
(some 400,000 images, 3 seeds): KID 2.2 to 2.6 in features of a classifier of these images; sngan,
stylegan2-ada and r3gan 6.0 to 17. In 60 minutes (1,141,000 images), in features of another such
classifier: 1.6 from 860,000 images on (jobs/studies/small32_best.yaml). networks.generator.width
and networks.discriminator.width scale it."""

from __future__ import annotations

from ray_gen.recipes.families.facts import Because, Facts, Tree, amount, diff_augment

IMAGES = 2_000_000


def batch(side: float) -> int:
    """64 at any size. Published: 128."""
    del side
    return 64


def experiment(facts: Facts) -> Tree:
    """For images of any size that halves down to 4 to 7 pixels."""
    adam = {"kind": "adam", "learning_rate": 2.0e-4, "betas": [0.5, 0.999]}
    return {
        "networks": {
            "generator": {
                "kind": "dcgan",
                "width": Because(64, "Published: 128, for images of 64 pixels."),
            },
            "discriminator": {
                "kind": "dcgan",
                "width": 64,
                "batch_norm": Because(
                    False, "R1 penalises each image; with BatchNorm logits depend on others."
                ),
            },
        },
        "objective": {
            "kind": "gan",
            "conditional": facts.conditional,
            "latent_size": Because(100, "As published."),
            "loss": "non_saturating",
            "r1_weight": Because(
                round(0.5 * 4.0**facts.doublings, 4),
                "γ: 0.5 at 32 pixels, four times as much at each doubling, as StyleGAN3's guide "
                "advises. Emoji at 32 pixels, 4 minutes: KID 7.4 and 8.9 on two machines, with 0.1 "
                "9.0 on the first of them.",
            ),
            "augment": diff_augment(
                facts,
                "DiffAugment helps with up to some ten thousand images and hurts a little with "
                "many more (Zhao et al. 2020). [] turns it off.",
            ),
        },
        "optimizers": {
            "discriminator": adam,
            "generator": Because(adam, "As published: rate 2e-4 and β1 0.5 for both."),
        },
        "training": {
            **amount(facts, "The paper trained for some epochs of 3 million bedrooms."),
            "ema_half_life_images": Because(
                round(facts.batch * 312.5), "StyleGAN2's rule: 10,000 images for a batch of 32."
            ),
        },
    }
