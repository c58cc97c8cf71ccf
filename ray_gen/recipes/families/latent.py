"""What the families of latent autoencoders have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_gen.recipes.families.facts import Because, Facts, Tree, amount, values_of

IMAGES = 2_000_000


def batch(side: float) -> int:
    """16 up to 128 pixels, then fewer, for the memory of one GPU (unmeasured). Published: 4 to 12
    on a GPU at 256 pixels."""
    return max(4, min(16, round(16 * (128.0 / side) ** 2)))


def of_rombach(multipliers: list[int], attention: Sequence[int] = ()) -> dict[str, Any]:
    """Encoder and decoder of Rombach et al. 2022. multipliers: of each level. attention: heights of
    maps that have it, beside the smallest."""
    network: dict[str, Any] = {
        "kind": "autoencoder_kl",
        "width": Because(128, "Rombach et al. 2022, with two residual blocks a level."),
        "multipliers": multipliers,
    }
    if attention:
        network["attention"] = list(attention)
    return {"encoder": network, "decoder": values_of(network)}


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
                "layers": Because(
                    patches, "PatchGAN: 3; below 64 pixels they leave 5 x 5 patches at most."
                ),
            },
        },
        "objective": {
            "kind": "latent_autoencoder",
            **objective,
            "adversarial_weight": Because(
                0.1, "Fixed. An adaptive weight can grow to 10,000 times its number."
            ),
            "discriminator_start_images": Because(
                trains, "Half of the run: first the autoencoder learns what pixels can teach."
            ),
            "start_images": Because(heard, "Later: an untrained discriminator only harms."),
        },
        "optimizers": {
            "autoencoder": Because(adam, "β of Rombach et al. 2022."),
            "discriminator": adam,
        },
        "training": {
            **amount(facts, "Rombach et al. 2022: some million images of OpenImages."),
            "ema_half_life_images": Because(
                facts.half_life(0.999), "A decay of 0.999 at each step: that of later tokenizers."
            ),
        },
    }


def published_rate(facts: Facts) -> Because:
    """4.5e-6 for each image of the batch (Rombach et al. 2022), at most 1e-4."""
    rate = float(f"{min(1.0e-4, 4.5e-6 * facts.batch):.3g}")
    return Because(
        rate, "Rombach et al. 2022: 4.5e-6 for each image of the batch; here at most 1e-4."
    )
