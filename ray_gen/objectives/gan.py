"""Generative adversarial networks (Goodfellow et al. 2014), also conditional (Mirza and Osindero
2014), and methods that stabilise them: hinge loss, R1, label smoothing, DiffAugment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ray_gen import losses
from ray_gen.augment import augment, augment_noise
from ray_gen.core import (
    Batch,
    ImageShape,
    Losses,
    Networks,
    Noise,
    NoiseOf,
    Noises,
    Number,
    Objective,
    Phase,
    Schedule,
    Signature,
    Term,
    Window,
    noise_of,
    value_at,
)
from ray_gen.objectives.equilibrium import note_win, settled, watch, won
from ray_gen.pixels import unstretched

_OF_DISCRIMINATOR: Noises = {
    "judged_real": NoiseOf("discriminator"),
    "judged_fake": NoiseOf("discriminator"),
}
"""Noise of D for real and for generated images. Most discriminators have none."""


class Gan(Objective):
    """min_G max_D E log D(x) + E log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1).

    k discriminator steps, each on new images, for each generator step. Images are in [-1, 1].
    """

    image_range = (-1.0, 1.0)
    sampled_from: tuple[str, ...] = ("generator",)
    sampling_noise: Noises = {"fakes": NoiseOf("generator")}  # noqa: RUF012
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
        label_smoothing: Number,
        r1_weight: Number,
        r1_every: int,
        augment: Sequence[str],
        opacity: bool = False,
    ) -> None:
        """opacity: whether the last channel of the images is opacity."""
        self._image_shape = image_shape
        self._label_count = label_count
        self._latent_size = latent_size
        self._loss = loss
        self._discriminator_steps = discriminator_steps
        self._label_smoothing = label_smoothing
        self._r1_weight = _halved(r1_weight)
        self._r1_every = r1_every
        self._augment = tuple(augment)
        self._opacity = opacity
        normal = latent_distribution == "normal"
        z = Noise((latent_size,)) if normal else Noise((latent_size,), "uniform", -1.0, 1.0)
        self.latents = {"z": z}
        self.gives_probability = loss != "hinge"

    def networks(self) -> Mapping[str, Signature]:
        """A generator from z to an image and a discriminator from an image to one logit."""
        return {
            "generator": Signature(
                (self._latent_size,), self._image_shape, self._label_count, "tanh"
            ),
            "discriminator": Signature(self._image_shape, (1,), self._label_count),
        }

    def phases(self) -> Sequence[Phase]:
        """The discriminator's phase at every step, the generator's phase at every k-th."""
        noise: Noises = {
            **self.latents,
            "fakes": NoiseOf("generator"),
            **_OF_DISCRIMINATOR,
            **augment_noise(self._augment),
        }
        terms = [Term("discriminator", self._discriminator_loss)]
        if self._r1_weight:
            r1 = Term("r1", self._r1, self._r1_weight, self._r1_every, full_precision=True)
            terms.append(r1)
        generator = Term("generator", self._generator_loss)
        every = self._discriminator_steps
        numbers = {"label_smoothing": self._label_smoothing}
        return [
            Phase("discriminator", ("discriminator",), tuple(terms), noise, numbers=numbers),
            Phase("generator", ("generator",), (generator,), noise, every=every),
        ]

    def _logits(self, networks: Networks, images: Tensor, batch: Batch, call: str) -> Tensor:
        """D's logits (N, 1) of augmented images, real or generated."""
        seen = augment(images, self._augment, batch.noise, opacity=self._opacity)
        noise = noise_of(batch.noise, call)
        return networks["discriminator"](seen, batch.labels, **noise).to(batch.images.dtype)

    def _fakes(self, networks: Networks, batch: Batch) -> Tensor:
        """G(z): (N, C, H, W) in [-1, 1]."""
        return networks["generator"](
            batch.noise["z"], batch.labels, **noise_of(batch.noise, "fakes")
        )

    def _discriminator_loss(self, networks: Networks, batch: Batch) -> Losses:
        fake = self._logits(networks, self._fakes(networks, batch), batch, "judged_fake")
        real = self._logits(networks, batch.images, batch, "judged_real")
        if self._loss == "hinge":
            loss = losses.discriminator_loss_hinge(real, fake)
            reported = {"discriminator/real_logit": real, "discriminator/fake_logit": fake}
        else:
            loss = losses.discriminator_loss(real, fake, batch.numbers["label_smoothing"])
            reported = {
                "discriminator/real": real.detach().sigmoid(),  # D(x)
                "discriminator/fake": fake.detach().sigmoid(),  # D(G(z))
            }
        return Losses({"discriminator": loss}, {t: v.flatten() for t, v in reported.items()})

    def _r1(self, networks: Networks, batch: Batch) -> Losses:
        """‖∇_x D(x)‖² on real images; its weight is γ/2."""
        images = batch.images.detach().requires_grad_()
        logits = self._logits(networks, images, batch, "judged_real")
        return Losses({"r1": losses.squared_gradient_norm(logits, images)})

    def _generator_loss(self, networks: Networks, batch: Batch) -> Losses:
        fake = self._logits(networks, self._fakes(networks, batch), batch, "judged_fake")
        equation = {
            "non_saturating": losses.generator_loss_non_saturating,
            "minimax": losses.generator_loss_minimax,
            "hinge": losses.generator_loss_hinge,
        }[self._loss]
        return Losses({"generator": equation(fake)})

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """G(z) in [0, 1]."""
        fakes = networks["generator"](latents["z"], labels, **noise_of(noise, "fakes"))
        return unstretched(fakes.float(), self.image_range)

    def discriminate(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """D's logits (N,) of images without augmentation. Their sigmoid is D(x), except with the
        hinge loss: there it is no probability."""
        return networks["discriminator"](images, labels).float().flatten()

    def watch(self, memory: dict[str, float], metrics: Mapping[str, float], steps: int) -> None:
        """Take note of D(x) and D(G(z))."""
        watch(memory, metrics, steps)

    def settled(self, memory: dict[str, float], images: int, window: Window) -> bool:
        """Whether D(x) and D(G(z)) have settled at the optimum t / 2, with the target t of real
        images: ½ without smoothing (Salimans et al. 2016, 3.4)."""
        smoothing = value_at(self._label_smoothing, images)
        return settled(memory, images, window, (1.0 - smoothing) / 2)

    def note(self, memory: dict[str, float], metrics: Mapping[str, float], before: int) -> None:
        """Take note of D(x) and D(G(z)). The hinge loss has no such probabilities."""
        if self.gives_probability:
            note_win(memory, metrics, before)

    def failure(self, memory: Mapping[str, float], images: int) -> str | None:
        """The words, if D(x) has been 1 and D(G(z)) 0 for 50,000 images."""
        return won(memory, images)


class _Half:
    """Half of a schedule: the γ/2 of R1."""

    def __init__(self, number: Schedule) -> None:
        self._number = number

    def at(self, images: float) -> float:
        """Half of the schedule's value after `images` images."""
        return self._number.at(images) / 2


def _halved(number: Number) -> Number:
    return number / 2 if isinstance(number, (int, float)) else _Half(number)
