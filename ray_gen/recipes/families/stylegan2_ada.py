"""StyleGAN2 with adaptive discriminator augmentation (Karras et al. 2020): for some hundred to
30,000 images. Up to 32 pixels the published configuration "cifar", else "auto" of one GPU.
Published FID: FFHQ at 256 with 1,000 images 21.3; CIFAR-10 with labels 2.42. It needs more than
little time (jobs/studies/small32_best.yaml): with a channel_base of 512 and γ 0.1, 20 minutes of
one CPU thread give a KID of 7.4 on emoji at 32 pixels, textures without shapes; dcgan 2.2 to 2.6.
150 images of one category, one seed (jobs/studies/few32.yaml): KID 6.1 after 14 minutes from
scratch, 3.7 after 11 from a model of the other categories (training.start_from).
networks.generator.channel_base and networks.discriminator.channel_base scale it."""

from __future__ import annotations

from typing import Any

from ray_gen.recipes.families.facts import Because, Facts, Tree, ada, amount

IMAGES = 5_000_000


def batch(side: float) -> int:
    """As published for one GPU: 64 up to 32 pixels, else 4096 / side, from 4 to 32. The published
    sides are powers of two; for others it is the next smaller multiple of 4, for the deviation."""
    return 64 if side <= 32 else max(4, min(32, int(4096 / side) // 4 * 4))


def experiment(facts: Facts) -> Tree:
    """Numbers of the published configurations."""
    small = facts.side <= 32
    most = 32 if small else 4
    deviation = max(n for n in range(1, most + 1) if facts.batch % n == 0)
    groups = range(deviation, max(deviation, 16) + 1, deviation)
    group = max(n for n in groups if facts.batch % n == 0)
    base = {"channel_base": 32_768 if small or facts.side >= 512 else 16_384}
    gamma = 0.01 if small else float(f"{0.0002 * facts.side**2 / facts.batch:.3g}")
    adam = {
        "kind": "adam",
        "learning_rate": 0.002 if facts.side >= 1024 else 0.0025,
        "betas": [0.0, 0.99],
    }
    generator: dict[str, Any] = {
        "kind": "stylegan2",
        "channel_base": Because(base["channel_base"], "As published."),
        "channel_max": 512,
        "mapping_layers": Because(2, "As published with ADA."),
        "mixing": 0.0 if small else 0.9,
    }
    objective: dict[str, Any] = {
        "kind": "gan",
        "conditional": facts.conditional,
        "latent_size": Because(512, "As published."),
        "loss": "non_saturating",
        "r1_weight": Because(
            gamma,
            "γ, as published for CIFAR-10."
            if small
            else "γ: 0.0002 · pixels / batch, as published. Then try 1/4 and 4 times as much.",
        ),
        "r1_every": Because(16, "As published: lazy."),
        "augment": ada(
            facts,
            ada_images=Because(
                min(500_000, facts.share(0.1)),
                "As published: 500,000; less in a short run, for p to arrive. With over 100,000 "
                "images set objective.augment=[] (StyleGAN3's guide).",
            ),
        ),
    }
    if not small:
        objective["path_length_weight"] = Because(2.0, "As published, at every 4th step.")
    half_life = 500_000 if small else round(facts.batch * 312.5)
    return {
        "networks": {
            "generator": generator,
            "discriminator": {
                "kind": "stylegan2",
                **base,
                "channel_max": 512,
                "residual": not small,
                "deviation_group": Because(
                    deviation, f"Published: {most}. It must divide the batch."
                ),
            },
        },
        "objective": objective,
        "optimizers": {
            "discriminator": adam,
            "generator": Because(
                adam,
                "As published. A lazy penalty is one more loss of a step here, so the rate needs "
                "no correction for it.",
            ),
        },
        "training": {
            **amount(facts, "Published: 25,000,000; 5,000,000 is reasonable (its README)."),
            "group_size": Because(group, "A multiple of deviation_group."),
            "ema_half_life_images": Because(
                half_life,
                "As published for CIFAR-10."
                if small
                else "As published: 10,000 images for a batch of 32.",
            ),
        },
    }
