"""`objective.bottleneck`: what the latents of an autoencoder of maps are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ray_gen.bottlenecks.levels import levels_for
from ray_gen.experiment.schedules import NonNegative
from ray_gen.settings import Settings, live, or_its_kind


class BottleneckSettings(Settings):
    """What all bottlenecks have in common."""

    weight_names: ClassVar[tuple[str, ...]] = ()
    """Its fields that weigh a loss of the same name."""

    def channels(self, latent_channels: int) -> tuple[int, int]:
        """How many channels the encoder gives and the decoder takes, if latents are asked to have
        so many."""
        return latent_channels, latent_channels

    def weights(self) -> dict[str, NonNegative]:
        """The weights of its losses, by name."""
        return {name: getattr(self, name) for name in self.weight_names}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ray_gen.bottlenecks.kinds:quantiser_of`: all other fields."""
        names = type(self).model_fields.keys() - set(self.weight_names)
        return {name: getattr(self, name) for name in sorted(names)}


class KlBottleneck(BottleneckSettings):
    """Latents of a normal distribution, N(μ, σ²) for each number, held near N(0, I) (Kingma and
    Welling 2014; Rombach et al. 2022, the KL-regularised autoencoder). Not a discrete one."""

    weight_names: ClassVar[tuple[str, ...]] = ("weight",)
    kind: Literal["kl"] = "kl"
    weight: NonNegative = live(2e-8)
    """Weight of the KL of one latent number, beside the mean error of one number of the image: loss
    = mean error + weight · KL(q(z|x) ‖ N(0, I)) / (count of latent numbers). Published weights are
    often of sums: sum of errors + w · KL. With c latent channels, C image channels and f pixels to
    a side of a latent, weight = w · c / (C · f²), whatever the size of the image. LDM's w = 1e-6 is
    6.3e-8 for f = 4, c = 3, and 2.1e-8 for f = 8, c = 4 or f = 16, c = 16, all in RGB."""

    def weights(self) -> dict[str, NonNegative]:
        """Of the KL."""
        return {"kl": self.weight}

    def channels(self, latent_channels: int) -> tuple[int, int]:
        """The encoder gives μ and log σ²."""
        return 2 * latent_channels, latent_channels

    def summed_weight(self, latent_shape: Sequence[int], image_shape: Sequence[int]) -> float:
        """The weight of the KL, summed over the latent numbers, beside the sum of the errors: the
        convention of LDM. Of a schedule: at the start."""
        weight = self.weight if isinstance(self.weight, (int, float)) else self.weight.at(0)
        return weight * math.prod(image_shape) / math.prod(latent_shape)


class VqBottleneck(BottleneckSettings):
    """A learned codebook (van den Oord et al. 2017, VQ-VAE): each position of the map becomes the
    nearest of so many codes. Codes are running means of their encodings, of all workers."""

    weight_names: ClassVar[tuple[str, ...]] = ("commitment",)
    kind: Literal["vq"] = "vq"
    codes: Annotated[int, Field(ge=2, le=1 << 18)] = 1024
    """How many codes there are. VQGAN has 1,024 or 16,384."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Part of a code's mean that it keeps from one update to the next (van den Oord et al. 2017,
    appendix A.1). Lower: codes follow the encoder faster."""
    commitment: NonNegative = live(0.25)
    """Weight of the mean squared distance of encodings from their codes (van den Oord et al. 2017:
    0.25)."""
    dead_below: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of an equal share of the encodings below which a code is dead. It starts again at an
    encoding that is far from all codes. Smaller: fewer codes start again."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How the gradient of a code reaches its encoding. straight_through: unchanged (van den Oord et
    al. 2017). rotation: turned and scaled as the encoding is to its code (Fifty et al. 2024)."""
    start: Literal["kmeans", "uniform"] = "kmeans"
    """Where codes begin. kmeans: at encodings of the first images, far from each other (Bahmani et
    al. 2012, k-means||). uniform: at random within ±1/codes."""
    normalised: bool = False
    """Scale encodings and codes to length 1, so that the nearest code is the one with the largest
    cosine."""

    def code_count(self) -> int:
        """K"""
        return self.codes


class FsqBottleneck(BottleneckSettings):
    """Each channel rounded to a few levels (Mentzer et al. 2024, FSQ). The codes are their
    combinations. Nothing is learned, and nothing is weighed."""

    kind: Literal["fsq"] = "fsq"
    codes: PositiveInt | None = None
    """About how many codes there are: a power of two from 256 to 65,536. It chooses the levels by
    table 1 of the paper. None: as levels say."""
    levels: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """How many levels each latent channel has, as [8, 5, 5, 5]. At least 5 each is advised. Empty:
    as codes say."""

    @model_validator(mode="after")
    def _either_codes_or_levels(self) -> Self:
        if (self.codes is None) == (not self.levels):
            raise ValueError("set either codes, as 1024, or levels, as [8, 5, 5, 5]")
        if self.codes is not None:
            levels_for(self.codes)
        elif math.prod(self.levels) >= 1 << 31:
            raise ValueError("levels: their product must be less than 2^31; take fewer or smaller")
        return self

    def code_count(self) -> int:
        """Π of the levels."""
        return math.prod(self.chosen_levels())

    def chosen_levels(self) -> tuple[int, ...]:
        """One for each latent channel."""
        return self.levels if self.codes is None else levels_for(self.codes)

    def channels(self, latent_channels: int) -> tuple[int, int]:
        """One for each level, whatever is asked for."""
        count = len(self.chosen_levels())
        return count, count

    def arguments(self) -> dict[str, Any]:
        """The levels alone."""
        return {"kind": self.kind, "levels": self.chosen_levels()}


class LfqBottleneck(BottleneckSettings):
    """The sign of each channel (Yu et al. 2024, MAGVIT-v2, lookup-free quantisation): one bit a
    channel. An entropy holds encodings away from 0 and makes all codes likely."""

    weight_names: ClassVar[tuple[str, ...]] = ("commitment", "entropy")
    kind: Literal["lfq"] = "lfq"
    bits: Annotated[int, Field(ge=1, le=30)] = 10
    """How many bits a code has, and channels a latent: 2^bits codes. Open-MAGVIT2 has 18."""
    commitment: NonNegative = live(0.25)
    """Weight of the mean squared distance of encodings from their codes."""
    entropy: NonNegative = live(0.1)
    """Weight of the entropy of an encoding's code minus the entropy of all codes, in nats."""
    temperature: PositiveFloat = 0.01
    """Temperature τ of an encoding's probabilities of codes. Larger: encodings must be further from
    0 to be certain."""
    group_bits: Annotated[int, Field(ge=1, le=12)] = 9
    """Codes are counted for groups of at most so many bits. More: a better entropy of all codes,
    for 2^group_bits numbers a position."""

    def code_count(self) -> int:
        """2^bits"""
        return 1 << self.bits

    def channels(self, latent_channels: int) -> tuple[int, int]:
        """One for each bit, whatever is asked for."""
        return self.bits, self.bits


_Kinds = KlBottleneck | VqBottleneck | FsqBottleneck | LfqBottleneck
Bottleneck = Annotated[_Kinds, Field(discriminator="kind"), or_its_kind(_Kinds)]
