"""Latent autoencoders: an image becomes a small map of numbers and again an image (Rombach et al.
2022, section 3.1; Esser et al. 2021). A VAE, or a quantiser, with a perceptual and an adversarial
loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ray_gen import losses
from ray_gen.core import (
    Balances,
    Batch,
    ImageShape,
    Losses,
    Networks,
    Noise,
    NoiseOf,
    Noises,
    Number,
    Phase,
    Posterior,
    Signature,
    Term,
    Weight,
    noise_of,
)
from ray_gen.errors import Refused
from ray_gen.objectives.augmented import DiffAugmented
from ray_gen.objectives.bottleneck import bottleneck_of, quantiser_in
from ray_gen.objectives.decoding import OF_NETWORKS, Decoding
from ray_gen.objectives.game import Judged, Kind, Round, together
from ray_gen.objectives.lecam import LeCam
from ray_gen.perceptual import distance_of
from ray_gen.pixels import unstretched

_PERCEPTUAL, _LOG_SCALE = "perceptual", "log_scale"
_LOSSES = {
    "hinge": (losses.discriminator_loss_hinge, losses.generator_loss_hinge),
    "non_saturating": (losses.discriminator_loss, losses.generator_loss_non_saturating),
    "least_squares": (
        losses.discriminator_loss_least_squares,
        losses.generator_loss_least_squares,
    ),
}
"""Of the discriminator and of the autoencoder."""


@dataclass(frozen=True)
class Adversarial:
    """The part that a discriminator plays."""

    loss: Literal["hinge", "non_saturating", "least_squares"]
    weight: Number
    adaptive: bool
    """Whether the weight is multiplied by the ratio of gradients that the decoder gives."""
    discriminator_start_images: int
    """From here on the discriminator trains."""
    start_images: int
    """From here on the autoencoder hears it."""
    lecam_weight: Number
    augment: Sequence[str]
    """Names of DiffAugment."""


class LogScale(nn.Module):
    """s, the logarithm of the scale of the reconstruction's error: one number (Esser et al. 2021,
    in their code)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


class LatentAutoencoder(Decoding):
    """min (d(x, x̂) + λ_p P(x, x̂)) / eˢ + s + λ_b B(z) + λ_a L_G(x̂), x̂ = decoder(z).

    d is the mean of |x - x̂| or (x - x̂)² over pixels, P a perceptual distance, B the loss of the
    bottleneck: KL(q(z|x) ‖ N(0, I)) over the count of numbers in z, or that of a quantiser. L_G is
    the mean over a discriminator's patches. All are means, so no weight depends on the size of the
    images. Rombach et al. 2022, eq. 25, in the form of means. s is 0 unless it is learned. Images
    are in [-1, 1].
    """

    image_range = (-1.0, 1.0)
    has_prior = False
    evaluation_noise: Noises = OF_NETWORKS
    sampling_noise: Noises = {"decoding": NoiseOf("decoder")}  # noqa: RUF012

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        label_count: int | None,
        latent_channels: int,
        downsampling: int,
        bottleneck: Mapping[str, Any],
        reconstruction: str,
        learned_scale: bool,
        perceptual: Mapping[str, Any],
        perceptual_weight: Number,
        adversarial: Mapping[str, Any] | None,
        opacity: bool = False,
    ) -> None:
        """bottleneck: arguments of `bottleneck_of`. perceptual: arguments of `distance_of`.
        adversarial: fields of `Adversarial`. opacity: whether the last channel of the images is
        opacity. Raises ValueError if the sides are no multiples of `downsampling`."""
        channels, height, width = image_shape
        if height % downsampling or width % downsampling:
            near = " x ".join(str(_nearest(side, downsampling)) for side in (height, width))
            raise ValueError(
                f"downsampling: {downsampling} does not divide images of {height} x {width}; set "
                f"data.image_size to {near}, or a smaller downsampling"
            )
        self._image_shape = image_shape
        self._latent = (latent_channels, height // downsampling, width // downsampling)
        self._bottleneck = bottleneck_of(self._latent, **bottleneck)
        self._absolute = reconstruction == "l1"
        self._learned_scale = learned_scale
        self._perceptual: dict[str, Any] = {
            **perceptual,
            "channels": channels,
            "opacity": opacity,
        }
        self._perceptual_weight = perceptual_weight
        self._adversarial = part = Adversarial(**adversarial) if adversarial else None
        self._augmentation = DiffAugmented(part.augment if part else (), opacity=opacity)
        weight = part.lecam_weight if part else 0.0
        self._lecam = LeCam(Weight(weight)) if weight else None
        self.latents = {"z": Noise(self._latent)}
        self.code_count = self._bottleneck.code_count
        self.sampled_from = ("encoder", "decoder", *self._bottleneck.own)

    @property
    def averaged(self) -> tuple[str, ...]:
        """Encoder and decoder. A codebook is already an average."""
        return ("encoder", "decoder")

    def networks(self) -> Mapping[str, Signature]:
        """An encoder from images to maps, a decoder back, and a discriminator of patches, if there
        is an adversarial loss."""
        encoded = (self._bottleneck.encoded_channels, *self._latent[1:])
        found = {
            "encoder": Signature(self._image_shape, encoded),
            "decoder": Signature(self._latent, self._image_shape),
        }
        if self._adversarial is not None:
            found["discriminator"] = Signature(self._image_shape, (1,), several_logits=True)
        return found

    def modules(self) -> Mapping[str, nn.Module]:
        """The perceptual distance, a quantiser, a learned scale, and what LeCam keeps."""
        found = dict(self._bottleneck.modules())
        if self._perceptual_weight:
            found[_PERCEPTUAL] = distance_of(**self._perceptual)
        if self._learned_scale:
            found[_LOG_SCALE] = LogScale()
        return found if self._lecam is None else {**found, **self._lecam.modules()}

    def phases(self) -> Sequence[Phase]:
        """The autoencoder's phase, then the discriminator's on the autoencoder's new weights."""
        scale = (_LOG_SCALE,) if self._learned_scale else ()
        updates = ("encoder", "decoder", *self._bottleneck.own, *scale)
        noise = {**OF_NETWORKS, **self._bottleneck.noise}
        numbers = {**self._bottleneck.numbers, "perceptual_weight": self._perceptual_weight}
        part = self._adversarial
        if part is None:
            alone = Term("autoencoder", self._autoencoder_losses)
            return [Phase("autoencoder", updates, (alone,), noise, numbers=numbers)]
        heard = {"adversarial": Weight(part.weight, start_images=part.start_images)}
        both = Term("autoencoder", self._autoencoder_losses, weights=heard)
        of_d = {} if self._lecam is None else {self._lecam.name: self._lecam.weight}
        against = Term("discriminator", self._discriminator_losses, weights=of_d)
        noise |= {"judged_real": NoiseOf("discriminator"), "judged_fake": NoiseOf("discriminator")}
        noise |= self._augmentation.noise
        updated = () if self._lecam is None else self._lecam.updated
        return [
            Phase("autoencoder", updates, (both,), noise, numbers=numbers),
            Phase(
                "discriminator",
                ("discriminator", *updated),
                (against,),
                noise,
                numbers=numbers,
                start_images=part.discriminator_start_images,
            ),
        ]

    def _encoded(
        self, networks: Networks, images: Tensor, noise: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """The encoder's output, before the bottleneck: (N, m, h, w)."""
        encoded = networks["encoder"](images, None, **noise_of(noise, "encoding"))
        return encoded.to(images.dtype)

    def _reconstructed(self, networks: Networks, batch: Batch) -> tuple[Tensor, Losses]:
        """x̂ (N, C, H, W), and the losses of the bottleneck."""
        encoded = self._encoded(networks, batch.images, batch.noise)
        decoding = noise_of(batch.noise, "decoding")
        latent = self._bottleneck(networks, encoded, batch)
        again = networks["decoder"](latent.z, None, **decoding).to(batch.images.dtype)
        return again, latent.losses

    def _error(self, images: Tensor, again: Tensor) -> Tensor:
        """The mean of |x - x̂| or (x - x̂)² over channels and pixels: (N,)."""
        apart = images - again
        return losses.mean_of_each(apart.abs() if self._absolute else apart.square())

    def _autoencoder_losses(self, networks: Networks, batch: Batch) -> Losses:
        again, of_latent = self._reconstructed(networks, batch)
        error = self._error(batch.images, again)
        minimised, reported = {"reconstruction": error}, {}
        if self._perceptual_weight:
            apart = networks[_PERCEPTUAL](batch.images, again).to(error.dtype)
            minimised["perceptual"] = batch.numbers["perceptual_weight"] * apart
            reported["reconstruction/perceptual"] = apart
        if self._learned_scale:
            reported["reconstruction/error"] = error
            minimised = self._scaled(networks, minimised)
        found = [Losses(minimised, reported), of_latent]
        if "adversarial" in batch.due:
            total = torch.stack([*minimised.values()]).sum(0)
            found.append(self._adversarial_loss(networks, batch, again, total))
        return together(*found)

    def _scaled(self, networks: Networks, minimised: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each loss over eˢ. The first one carries the s."""
        scale = networks[_LOG_SCALE]
        assert isinstance(scale, LogScale)
        found = {name: value * (-scale.value).exp() for name, value in minimised.items()}
        found["reconstruction"] = found["reconstruction"] + scale.value
        return found

    def _adversarial_loss(
        self, networks: Networks, batch: Batch, again: Tensor, reconstruction: Tensor
    ) -> Losses:
        """L_G of each image (N,), with the adaptive weight. reconstruction: (N,), what the
        gradient of L_G is compared with."""
        part = self._adversarial
        assert part is not None
        judged = Round(networks, batch, self._augmentation).judged(again, "fake")
        loss = _LOSSES[part.loss][1](judged.logits)
        if not part.adaptive:
            return Losses({"adversarial": loss})
        factor = _balanced(networks["decoder"]).adaptive_weight(reconstruction, loss)
        return Losses({"adversarial": factor * loss}, of_phase={"adversarial/factor": factor})

    def _discriminator_losses(self, networks: Networks, batch: Batch) -> Losses:
        part = self._adversarial
        assert part is not None
        again, _ = self._reconstructed(networks, batch)
        game = Round(networks, batch, self._augmentation)
        judged: dict[Kind, Judged] = {
            "real": game.judged(batch.images, "real"),
            "fake": game.judged(again.detach(), "fake"),
        }
        logits = judged["real"].logits, judged["fake"].logits
        reported = {
            "discriminator/real_logit": losses.mean_of_each(logits[0]),
            "discriminator/fake_logit": losses.mean_of_each(logits[1]),
        }
        found = [Losses({"discriminator": 0.5 * _LOSSES[part.loss][0](*logits)}, reported)]
        if self._lecam is not None:
            found.append(self._lecam.losses(game, judged))
        return together(*found)

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Posterior]:
        """μ and log σ² of q(z|x), (N, c, h, w) each; with a quantiser the encoder's output before
        it, without a distribution."""
        return {"z": self._bottleneck.posterior(self._encoded(networks, images))}

    def codes(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Tensor]:
        """The numbers of the codes of each image, int64 (N, h, w), with a quantiser."""
        encoded = self._encoded(networks, images)
        return {"z": quantiser_in(networks).quantised(encoded)[1]}

    def unclamped(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """decoder(z), where pixels may leave [0, 1]."""
        z = self._bottleneck.decoded_from(networks, latents["z"])
        images = networks["decoder"](z, None, **noise_of(noise, "decoding"))
        return unstretched(images.float(), self.image_range)

    def evaluate(self, networks: Networks, batch: Batch) -> Mapping[str, Tensor]:
        """Of each image, (N,): the error and the perceptual distance of its reconstruction, and the
        KL in nats for each number of z."""
        encoded = self._encoded(networks, batch.images, batch.noise)
        posterior = self._bottleneck.posterior(encoded)
        z = self._bottleneck.decoded_from(networks, posterior.mean)
        again = networks["decoder"](z, None, **noise_of(batch.noise, "decoding"))
        again = again.to(batch.images.dtype).clamp(*self.image_range)
        found = {"reconstruction": self._error(batch.images, again)}
        if _PERCEPTUAL in networks:
            found["perceptual"] = networks[_PERCEPTUAL](batch.images, again)
        if posterior.log_variance is not None:
            kl = losses.gaussian_kl(posterior.mean, posterior.log_variance)
            found["kl"] = kl / z[0].numel()
        return found


def _balanced(decoder: nn.Module) -> Balances:
    """The decoder. Raises Refused if it does not compare gradients."""
    if not isinstance(decoder, Balances):
        raise Refused(
            f"objective.adaptive: {type(decoder).__name__} has no method `adaptive_weight` "
            "(ray_gen.core.Balances); give it one, or set objective.adaptive to false"
        )
    return decoder


def _nearest(side: int, multiple: int) -> int:
    """The nearest multiple of at least one."""
    return max(1, round(side / multiple)) * multiple
