"""Generative adversarial networks (Goodfellow et al. 2014), conditional ones (Mirza and Osindero
2014) and what tames them: hinge loss, R1, label smoothing, DiffAugment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ray_gen import losses
from ray_gen.augment import augment, augment_noise
from ray_gen.core import (
    Batch,
    ImageShape,
    ImageToVector,
    Losses,
    Networks,
    Noise,
    Phase,
    Signature,
    Term,
    VectorToImage,
)


class Gan:
    """min_G max_D E log D(x) + E log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1).

    k discriminator steps, each on fresh images, to one of the generator. Images are in [-1, 1].
    """

    image_range = (-1.0, 1.0)
    sampled_from: tuple[str, ...] = ("generator",)
    discriminates_with: tuple[str, ...] = ("discriminator",)

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        label_count: int | None,
        latent_size: int,
        latent_distribution: str,
        loss: str,
        discriminator_steps: int,
        label_smoothing: float,
        r1_weight: float,
        r1_every: int,
        augment: Sequence[str],
    ) -> None:
        self._image_shape = image_shape
        self._label_count = label_count
        self._latent_size = latent_size
        self._loss = loss
        self._discriminator_steps = discriminator_steps
        self._label_smoothing = label_smoothing
        self._r1_weight = r1_weight
        self._r1_every = r1_every
        self._augment = tuple(augment)
        self.latent = (
            Noise((latent_size,))
            if latent_distribution == "normal"
            else Noise((latent_size,), "uniform", -1.0, 1.0)
        )

    def networks(self) -> Mapping[str, Signature | nn.Module]:
        """A generator from z and a discriminator to one logit."""
        return {
            "generator": VectorToImage(
                self._latent_size, self._image_shape, self._label_count, output="tanh"
            ),
            "discriminator": ImageToVector(self._image_shape, 1, self._label_count),
        }

    def phases(self) -> Sequence[Phase]:
        """The discriminator's phase in every step, the generator's in every k-th."""
        noise = {"z": self.latent, **augment_noise(self._augment)}
        terms = [Term("discriminator", self._discriminator_loss)]
        if self._r1_weight:
            r1 = Term("r1", self._r1, self._r1_weight / 2, self._r1_every, full_precision=True)
            terms.append(r1)
        generator = Term("generator", self._generator_loss)
        every = self._discriminator_steps
        return [
            Phase("discriminator", ("discriminator",), tuple(terms), noise),
            Phase("generator", ("generator",), (generator,), noise, every=every),
        ]

    def _logits(self, networks: Networks, images: Tensor, batch: Batch) -> Tensor:
        """D's logits (N, 1) of images as it sees them: augmented, real and generated alike."""
        seen = augment(images, self._augment, batch.noise)
        return networks["discriminator"](seen, batch.labels).to(batch.images.dtype)

    def _fakes(self, networks: Networks, batch: Batch) -> Tensor:
        return networks["generator"](batch.noise["z"], batch.labels)

    def _discriminator_loss(self, networks: Networks, batch: Batch) -> Losses:
        fake = self._logits(networks, self._fakes(networks, batch), batch)
        real = self._logits(networks, batch.images, batch)
        if self._loss == "hinge":
            loss = losses.discriminator_loss_hinge(real, fake)
            reported = {"discriminator/real_logit": real, "discriminator/fake_logit": fake}
        else:
            loss = losses.discriminator_loss(real, fake, self._label_smoothing)
            reported = {
                "discriminator/real": real.detach().sigmoid(),  # D(x)
                "discriminator/fake": fake.detach().sigmoid(),  # D(G(z))
            }
        return Losses({"discriminator": loss}, {t: v.flatten() for t, v in reported.items()})

    def _r1(self, networks: Networks, batch: Batch) -> Losses:
        images = batch.images.detach().requires_grad_()
        logits = self._logits(networks, images, batch)
        return Losses({"r1": losses.squared_gradient_norm(logits, images)})

    def _generator_loss(self, networks: Networks, batch: Batch) -> Losses:
        fake = self._logits(networks, self._fakes(networks, batch), batch)
        equation = {
            "non_saturating": losses.generator_loss_non_saturating,
            "minimax": losses.generator_loss_minimax,
            "hinge": losses.generator_loss_hinge,
        }[self._loss]
        return Losses({"generator": equation(fake)})

    def sample(self, networks: Networks, z: Tensor, labels: Tensor | None) -> Tensor:
        """G(z) in [0, 1]."""
        return networks["generator"](z, labels).float().add(1.0).mul(0.5)

    def discriminate(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """D's logits (N,), not augmented. Their sigmoid is D(x), but for the hinge loss, which
        knows no probability."""
        return networks["discriminator"](images, labels).float().flatten()
