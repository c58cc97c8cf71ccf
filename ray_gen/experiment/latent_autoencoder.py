"""`objective` of kind latent_autoencoder: a small map as latent, and three losses."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ray_gen.experiment.augment import DiffAugment
from ray_gen.experiment.bottlenecks import Bottleneck, KlBottleneck
from ray_gen.experiment.distances import Perceptual, SsimDistance
from ray_gen.experiment.networks import NetworkSettings
from ray_gen.experiment.objective import MinOrMax, ObjectiveSettings
from ray_gen.experiment.schedules import NonNegative
from ray_gen.settings import live


class LatentAutoencoderObjective(ObjectiveSettings):
    """An autoencoder whose latent is a small map: the first stage of latent diffusion (Rombach et
    al. 2022), or with a quantiser a tokenizer (Esser et al. 2021). All losses are means, over
    pixels, numbers of the latent, or patches: no weight depends on the size of the images."""

    targets: ClassVar[Mapping[str, str]] = {
        "objective": "ray_gen.objectives.latent_autoencoder:LatentAutoencoder"
    }
    network_names: ClassVar[tuple[str, ...] | None] = ("encoder", "decoder", "discriminator")
    forms: ClassVar[Mapping[str, str]] = {"encoder": "map_to_map", "decoder": "map_to_map"}
    phase_names: ClassVar[tuple[str, ...] | None] = ("autoencoder", "discriminator")
    evaluated: ClassVar[Mapping[str, MinOrMax | None] | None] = {
        "reconstruction": "min",
        "perceptual": "min",
        "kl": None,
    }
    title: ClassVar[str] = "Latent autoencoder"
    has_prior: ClassVar[bool] = False
    knows_opacity: ClassVar[bool] = True
    parts_of_weights: ClassVar[Mapping[str, str]] = {
        "perceptual_weight": "the perceptual distance",
        "adversarial_weight": "a discriminator",
        "lecam_weight": "the running means of the discriminator's logits",
    }
    kind: Literal["latent_autoencoder"] = "latent_autoencoder"
    latent_channels: PositiveInt = 4
    """Channels of the map of latents (Rombach et al. 2022: 3 at downsampling 4, 4 at 8). With fsq
    or lfq the quantiser gives them: one for each of its levels or bits."""
    downsampling: PositiveInt = Field(8, ge=2)
    """How many pixels of a side become one number: f. A power of 2; the sides of images are
    multiples of it."""
    bottleneck: Bottleneck = KlBottleneck()
    """What lies between encoder and decoder: a distribution of latents (kl), or a quantiser (vq,
    fsq, lfq)."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """The error of a pixel, for images in [-1, 1]: its absolute value, or its square. With
    learned_scale a likelihood: Laplace's, or Gauss's up to constants."""
    learned_scale: bool = False
    """Whether reconstruction and perceptual loss are divided by eˢ, and s added, with one learned
    number s. Without, s is 0, as in Rombach et al. 2022."""
    perceptual: Perceptual = SsimDistance()
    """How the perceptual loss compares a reconstruction with its image. ssim needs no weights.
    lpips is that of the published models."""
    perceptual_weight: NonNegative = live(1.0)
    """Weight of the perceptual loss, against a mean error of pixels of weight 1."""
    adversarial_weight: NonNegative = live(0.0)
    """Weight of the autoencoder's adversarial loss. 0: there is no discriminator. Fixed: 0.1; with
    adaptive: 0.5 (Rombach et al. 2022) to 0.8 (Esser et al. 2021)."""
    adaptive: bool = False
    """Whether adversarial_weight is multiplied by ‖∇ L_rec‖ / (‖∇ L_G‖ + 1e-4), at most 1e4: the
    norms of both losses' gradients at the decoder's last layer, over the global batch of the step
    before (Esser et al. 2021, eq. 7)."""
    adversarial_loss: Literal["hinge", "non_saturating", "least_squares"] = "hinge"
    """The losses of both sides. The discriminator's is halved, as published for hinge."""
    discriminator_start_images: NonNegativeInt = 0
    """Images from which the discriminator trains."""
    start_images: NonNegativeInt = 0
    """Images from which the autoencoder hears the discriminator. An untrained one only harms, so it
    should be later than discriminator_start_images."""
    lecam_weight: NonNegative = live(0.0)
    """Weight of LeCam in the discriminator's loss: each logit is held near the running mean of the
    other kind's (Tseng et al. 2021)."""
    augment: tuple[DiffAugment, ...] = ()
    """DiffAugment of all images that the discriminator sees (Zhao et al. 2020)."""

    @property
    def is_adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return self.adversarial_weight != 0.0

    @property
    def held_out_scores(self) -> Mapping[str, MinOrMax | None]:
        """Without a perceptual loss, or a KL, it has no such score."""
        there = {"perceptual": self.perceptual_weight != 0.0, "kl": self.bottleneck.kind == "kl"}
        assert self.evaluated is not None
        return {name: of for name, of in self.evaluated.items() if there.get(name, True)}

    def unused(self) -> tuple[str, ...]:
        """The discriminator, if its weight is 0."""
        return () if self.is_adversarial else ("discriminator",)

    def network_problems(self, networks: Mapping[str, NetworkSettings]) -> Iterator[str]:
        """Networks whose levels make maps of another size."""
        for name in ("encoder", "decoder"):
            found = getattr(networks.get(name), "downsampling", self.downsampling)
            if found != self.downsampling:
                yield (
                    f"networks.{name}.multipliers: its levels make one number of {found} pixels of "
                    f"a side, but objective.downsampling is {self.downsampling}; give "
                    f"{self.downsampling.bit_length()} multipliers, or set "
                    f"objective.downsampling={found}"
                )

    def freeze_problems(self, frozen: Collection[str]) -> Iterator[str]:
        """An adaptive weight needs the decoder's last layer, the first that freezes."""
        if self.is_adversarial and self.adaptive and "decoder" in frozen:
            yield (
                "training.freeze.decoder: freezes the last layer, where the adaptive weight "
                "compares gradients: it would stay 0; set objective.adaptive=false, or leave it out"
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the objective's class."""
        given = super().arguments()
        names = ("adaptive", "discriminator_start_images", "start_images", "lecam_weight")
        part = {name: given.pop(name) for name in (*names, "augment")}
        part |= {
            "weight": given.pop("adversarial_weight"),
            "loss": given.pop("adversarial_loss"),
        }
        bottleneck = self.bottleneck
        options = {**bottleneck.arguments(), "kind": bottleneck.kind}
        return {
            **given,
            "latent_channels": bottleneck.channels(self.latent_channels)[1],
            "bottleneck": {**options, "weights": bottleneck.weights()},
            "adversarial": part if self.is_adversarial else None,
        }

    def told(self, image_shape: tuple[int, int, int], images: int) -> Mapping[str, str]:
        """The map of latents, with its codes or the weight of its KL in both conventions, and the
        discriminator's times."""
        _, height, width = image_shape
        _, channels = self.bottleneck.channels(self.latent_channels)
        latent = (channels, height // self.downsampling, width // self.downsampling)
        of_map = f"{math.prod(latent):,} numbers, {' x '.join(map(str, latent))}; "
        if isinstance(self.bottleneck, KlBottleneck):
            summed = self.bottleneck.summed_weight(latent, image_shape)
            of_map += (
                f"bottleneck.weight is {summed:.3g} beside sums over pixels and latents, the "
                "convention of published models"
            )
        else:
            of_map += f"at each of {math.prod(latent[1:]):,} places one of "
            of_map += f"{self.bottleneck.code_count():,} codes"
            if channels != self.latent_channels:
                of_map += f", whose {channels} numbers {self.bottleneck.kind} decides"
        found = {"latents": of_map}
        if self.is_adversarial:
            trains, heard = self.discriminator_start_images, self.start_images
            found["adversarial"] = (
                f"the discriminator trains from {trains:,} images on, the autoencoder hears it "
                f"from {heard:,} on"
            )
            if heard >= images:
                found["adversarial"] += f": never, for training ends after {images:,}"
            elif heard <= trains:
                found["adversarial"] += (
                    ": before it has learned anything; set objective.start_images some thousand "
                    "images later"
                )
        return found

    @model_validator(mode="after")
    def _latents_know_no_labels(self) -> Self:
        if self.conditional:
            raise ValueError(
                "conditional gives labels to the networks, but an image says all that a latent "
                "autoencoder needs: set it to false; what learns the latents may take labels"
            )
        return self

    @model_validator(mode="after")
    def _downsampling_is_a_power_of_2(self) -> Self:
        if self.downsampling & (self.downsampling - 1):
            low = 1 << (self.downsampling.bit_length() - 1)
            raise ValueError(
                f"downsampling is {self.downsampling}, but maps are halved again and again: set it "
                f"to {low} or {2 * low}"
            )
        return self

    @model_validator(mode="after")
    def _a_discriminator_trains_first(self) -> Self:
        if self.is_adversarial and self.start_images < self.discriminator_start_images:
            raise ValueError(
                f"start_images is {self.start_images}, before the discriminator trains "
                f"(discriminator_start_images is {self.discriminator_start_images}): the "
                "autoencoder would hear random numbers; set start_images to at least "
                f"{self.discriminator_start_images}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_belongs_to_a_discriminator_that_is_not_there(self) -> Self:
        if not self.is_adversarial and (self.lecam_weight != 0.0 or self.augment):
            name = "lecam_weight" if self.lecam_weight != 0.0 else "augment"
            raise ValueError(
                f"{name} is of the discriminator, but with adversarial_weight 0 there is none: set "
                f"adversarial_weight, e.g. to 0.1, or leave {name} out"
            )
        return self

    def advice(
        self, images: int, starts_from_a_run: bool, of_latents: bool = False
    ) -> Iterator[str]:
        """About a trained run to start from."""
        if images < 1_000 and not starts_from_a_run:
            yield (
                f"{images:,} images teach an autoencoder little of other images; set "
                "training.start_from=RUN, a run of similar images"
            )
