"""`objective.bottleneck`: what the settings say of channels, weights and modules."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from ray_gen.bottlenecks.kinds import quantiser_of
from ray_gen.bottlenecks.quantiser import Quantiser
from ray_gen.experiment.bottlenecks import Bottleneck, KlBottleneck
from ray_gen.recipes import recipe

LEVELS = [8, 5, 5, 5]


def bottleneck(**given: Any) -> Any:
    return TypeAdapter(Bottleneck).validate_python(given)


def test_the_weight_of_a_sum_is_ldms_for_its_latents() -> None:
    """1e-6 (Rombach et al. 2022) for f = 8 and 4 channels, at any size of images."""
    kl = KlBottleneck(weight=1e-6 * 4 / (3 * 8**2))
    for side in (64, 256):
        latents, images = (4, side // 8, side // 8), (3, side, side)
        assert math.isclose(kl.summed_weight(latents, images), 1e-6)
    schedule = {"kind": "linear", "start": 1.0, "end": 2.0, "until_images": 9}
    assert bottleneck(kind="kl", weight=schedule).summed_weight((1, 2, 2), (1, 4, 4)) == 4.0


def test_both_conventions_are_told() -> None:
    this = recipe("latent-kl-f4", "data=folder:/x", "data.image_size=64", "data.channels=3")
    told = this.objective.told((3, 64, 64), 480)["latents"]
    assert told.startswith("768 numbers, 3 x 16 x 16; bottleneck.weight is 1e-06 beside sums")
    tokens = recipe("latent-fsq", "data=folder:/x", "data.image_size=64")
    assert tokens.objective.told((3, 64, 64), 480)["latents"] == (
        "384 numbers, 6 x 8 x 8; at each of 64 places one of 64,000 codes, whose 6 numbers fsq "
        "decides"
    )


def test_the_loss_of_an_element_is_the_loss_of_sums_for_every_pixel() -> None:
    """mean error + weight · KL / N_z = (Σ error + w KL) / (C H W)."""
    error, kl, latents, images = 123.4, 5678.9, (4, 3, 5), (3, 24, 40)
    one = KlBottleneck(weight=0.01)
    n_z, pixels = math.prod(latents), math.prod(images)
    summed = error + one.summed_weight(latents, images) * kl
    assert math.isclose(error / pixels + one.weight * kl / n_z, summed / pixels)


@pytest.mark.parametrize(
    ("given", "encoder", "decoder"),
    [
        ({"kind": "kl"}, 8, 4),
        ({"kind": "vq"}, 4, 4),
        ({"kind": "fsq", "levels": LEVELS}, 4, 4),
        ({"kind": "fsq", "codes": 256}, 3, 3),
        ({"kind": "lfq", "bits": 7}, 7, 7),
    ],
)
def test_channels_of_the_encoder_and_of_the_decoder(given, encoder: int, decoder: int) -> None:
    assert bottleneck(**given).channels(4) == (encoder, decoder)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"kind": "vq", "codes": 12}, 12),
        ({"kind": "fsq", "codes": 256}, 240),
        ({"kind": "fsq", "levels": LEVELS}, 1000),
        ({"kind": "lfq", "bits": 5}, 32),
    ],
)
def test_settings_make_a_module_with_a_weight_for_each_of_its_losses(given, count: int) -> None:
    settings = bottleneck(**given)
    channels, _ = settings.channels(6)
    module = quantiser_of(channels=channels, positions=(4, 4), **settings.arguments())
    assert isinstance(module, Quantiser)
    assert (module.code_count, module.channels) == (count, channels)
    assert settings.weights().keys() == set(module.loss_names)


def test_every_kind_that_ships_is_tested_here() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(Bottleneck)[0])}
    assert kinds == {"kl", "vq", "fsq", "lfq"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "fsq"}, r"set either codes, as 1024, or levels, as \[8, 5, 5, 5\]"),
        ({"kind": "fsq", "codes": 256, "levels": LEVELS}, "set either codes"),
        ({"kind": "fsq", "codes": 1000}, "no levels for 1000 codes; take 256, 512"),
        ({"kind": "fsq", "levels": [99] * 9}, r"less than 2\^31"),
        ({"kind": "vq", "dead_below": 0}, "greater than 0"),
        ({"kind": "vq", "commitment": -1}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_refused(given, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        bottleneck(**given)
