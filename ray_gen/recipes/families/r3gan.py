"""R3GAN (Huang et al. 2024): the relativistic loss with R1 and R2 at every step, residual networks
without normalisation, everything scheduled over one horizon. Published FID, with batches of 256 to
512 on 8 GPUs: CIFAR-10 1.96, FFHQ 1.95 at 64 and 2.75 at 256. Not for little time
(jobs/studies/small32_best.yaml): with width 16, one block and a batch of 32, 20 minutes of one CPU
thread, 92,000 images, give a KID of 17 on emoji at 32 pixels, blobs; its discriminator wins early.
With a constant γ, in features of another such classifier: 14 with 0.5, 10 with 2. dcgan: 2.2 to
2.6. In latents γ follows the side of the maps and is small: a constant 2 gave a KID of 13 in place
of 17 (jobs/studies/latent_gan64.yaml). networks.generator.width and networks.discriminator.width
scale it."""

from __future__ import annotations

import itertools
import math
from typing import Any

from ray_gen.recipes.families.facts import Because, Facts, Tree, ada, amount

IMAGES = 5_000_000
_GAMMA = ((32.0, 0.05), (64.0, 2.0), (256.0, 150.0))
"""Published: side in pixels, and γ of R1 and R2 at the start (CIFAR-10, FFHQ, FFHQ)."""


def batch(side: float) -> int:
    """64: what one GPU holds. Published: 256 to 512 on 8 GPUs."""
    del side
    return 64


def gamma(side: float) -> float:
    """The published γ, between them and above them along straight lines of the logarithms."""
    lines = list(itertools.pairwise(_GAMMA))
    (low, at_low), (high, at_high) = next((line for line in lines if side <= line[1][0]), lines[-1])
    share = max(0.0, math.log(side / low) / math.log(high / low))
    return float(f"{at_low * (at_high / at_low) ** share:.3g}")


def experiment(facts: Facts) -> Tree:
    """Numbers of the paper's configurations: CIFAR-10's below 64 pixels, else FFHQ's."""
    small = min(facts.height, facts.width) < 64
    horizon = facts.share(0.8)
    penalty = gamma(facts.side)

    def along(start: float, end: float) -> dict[str, Any]:
        return {"kind": "cosine", "start": start, "end": end, "until_images": horizon}

    adam = {
        "kind": "adam",
        "learning_rate": 2.0e-4,
        "betas": [0.0, along(0.9, 0.99)],
        "schedule": {"kind": "cosine", "horizon_images": horizon, "final_fraction": 0.25},
    }
    width = Because(768, "As published at 32 to 256 pixels. Each stage above 32 pixels halves it.")
    precision = {"bf16_from": 32} if facts.side >= 256 else {}  # as published; else 8, the default
    half_life = facts.share(0.8 * (0.25 if small else 0.025))
    colours = dict.fromkeys(("brightness", "contrast", "luma_flip", "hue", "saturation"), 0.5)
    return {
        "networks": {
            "generator": {"kind": "r3gan", "width": width, **precision},
            "discriminator": {"kind": "r3gan", "width": 768, **precision},
        },
        "objective": {
            "kind": "gan",
            "conditional": facts.conditional,
            "latent_size": Because(64, "As published."),
            "loss": "relativistic",
            "r1_weight": Because(
                along(penalty, penalty / 10),
                "γ, along a cosine to a tenth. Published: 0.05 at 32 pixels (CIFAR-10), 2 at 64 "
                "and 150 at 256 (FFHQ); between them, a line of the logarithms. It depends on the "
                "data: try 1/5 and 5 times as much.",
            ),
            "r2_weight": along(penalty, penalty / 10),
            "augment": ada(
                facts,
                p=Because(
                    along(0.0, 0.55 if small else 0.3),
                    "Scheduled, not adaptive. Published ends: 0.55 for CIFAR-10, 0.3 for FFHQ.",
                ),
                **colours,
                cutout=1.0,
            ),
        },
        "optimizers": {
            "discriminator": adam,
            "generator": Because(
                adam, "As published: 2e-4 falls to 5e-5, β2 goes from 0.9 to 0.99. For any batch."
            ),
        },
        "training": {
            **amount(facts, "The schedules end after 0.8 of it (published: after 20,000,000)."),
            "ema_half_life_images": Because(
                along(1.0, half_life),
                "From 0 to a share of the horizon. Published: 0.25 for CIFAR-10, 0.025 for FFHQ.",
            ),
            "ema_ramp": 0.0,
        },
    }
