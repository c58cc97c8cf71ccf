"""What the families of latent autoencoders have in common."""

from __future__ import annotations

from typing import Any

from ray_gen.recipes.families.facts import Because, Facts, Tree, amount

IMAGES = 2_000_000


def batch(side: float) -> int:
    """16 up to 128 pixels, then fewer: what one GPU holds. Published: 4 to 12 on each of 8 GPUs at
    256 pixels."""
    return max(4, min(16, round(16 * (128.0 / side) ** 2)))


def published(multipliers: list[int]) -> dict[str, Any]:
    """Encoder and decoder of Rombach et al. 2022. multipliers: of each level."""
    network = {"kind": "autoencoder_kl", "width": 128, "multipliers": multipliers}
    return {
        "encoder": Because(network, "As published: 128 channels, two residual blocks a level."),
        "decoder": network,
    }


def experiment(
    facts: Facts, networks: Tree, objective: Tree, *, rate: Any, patch_width: int = 64
) -> Tree:
    """A latent autoencoder. networks: encoder and decoder. objective: what is special to it. rate:
    learning rate of both phases. patch_width: of the discriminator."""
    trains, heard = facts.share(1 / 2), facts.share(0.55)
    adam = {"kind": "adam", "learning_rate": rate, "betas": [0.5, 0.9]}
    patches = 3 if min(facts.height, facts.width) >= 64 else 1
    return {
        "networks": {
            **networks,
            "discriminator": {
                "kind": "patch",
                "width": patch_width,
                "layers": Because(patches, "PatchGAN; below 64 pixels three leave no patches."),
            },
        },
        "objective": {
            "kind": "latent_autoencoder",
            **objective,
            "adversarial_weight": Because(
                0.1, "A fixed weight cannot grow without bound, as an adaptive one can."
            ),
            "discriminator_start_images": Because(
                trains, "Half of the run: first the autoencoder learns what pixels can teach."
            ),
            "start_images": Because(heard, "Later: an untrained discriminator only harms."),
        },
        "optimizers": {"autoencoder": Because(adam, "β as published."), "discriminator": adam},
        "training": {
            **amount(facts, "Published: some million images of OpenImages."),
            "ema_half_life_images": Because(
                round(facts.batch * 693), "A decay of 0.999 at each step: that of later tokenizers."
            ),
        },
    }


def published_rate(facts: Facts) -> Because:
    """4.5e-6 for each image of the batch (Rombach et al. 2022), at most 1e-4."""
    rate = float(f"{min(1.0e-4, 4.5e-6 * facts.batch):.3g}")
    return Because(rate, "Published: 4.5e-6 for each image of the batch; here at most 1e-4.")
