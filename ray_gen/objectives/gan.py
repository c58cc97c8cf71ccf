"""Generative adversarial networks (Goodfellow et al. 2014), also conditional (Mirza and Osindero
2014): six losses, and what stabilises them: penalties, label smoothing, augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ray_gen import losses
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
    Weight,
    Window,
    noise_of,
    value_at,
)
from ray_gen.objectives import classifier
from ray_gen.objectives.anchors import Anchors
from ray_gen.objectives.augmented import AdaAugmented, Augmentation, DiffAugmented
from ray_gen.objectives.consistency import CONSISTENCY_NOISE, moved
from ray_gen.objectives.equilibrium import note_win, settled, watch, won
from ray_gen.objectives.path_length import PathLength, path_length_losses
from ray_gen.objectives.reconstruction import DISTANCE, reconstructed
from ray_gen.perceptual import distance_of
from ray_gen.pixels import unstretched

_OF_DISCRIMINATOR: Noises = {
    "judged_real": NoiseOf("discriminator"),
    "judged_fake": NoiseOf("discriminator"),
}
"""Noise of D for real and for generated images. Most discriminators have none."""
_OF_MIXES: Noises = {
    "mix": Noise((1, 1, 1), "uniform"),
    "judged_mix": NoiseOf("discriminator"),
}
"""Noise of the gradient penalty: the share of the real image in each mix, and D's."""

_OF_GENERATOR = {
    "non_saturating": losses.generator_loss_non_saturating,
    "minimax": losses.generator_loss_minimax,
    "hinge": losses.generator_loss_hinge,
    "least_squares": losses.generator_loss_least_squares,
    "wasserstein": losses.generator_loss_wasserstein,
}
_ON_LOGITS = {
    "hinge": losses.discriminator_loss_hinge,
    "least_squares": losses.discriminator_loss_least_squares,
    "wasserstein": losses.discriminator_loss_wasserstein,
    "relativistic": losses.relativistic_loss,
}
"""The discriminator's losses that have no probability."""


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
        r2_weight: Number = 0.0,
        r2_every: int = 1,
        gradient_penalty_weight: Number = 0.0,
        gradient_penalty_every: int = 1,
        lecam_weight: Number = 0.0,
        lecam_every: int = 1,
        consistency_weight: Number = 0.0,
        fake_consistency_weight: Number = 0.0,
        consistency_every: int = 1,
        ada: Mapping[str, Any] | None = None,
        classifier_weight: Number = 0.0,
        generator_classifier_weight: Number = 0.0,
        classify_generated: bool = False,
        path_length_weight: Number = 0.0,
        path_length_every: int = 4,
        hinge_margin: float | tuple[float, float] = 1.0,
        reconstruction_weight: Number = 0.0,
        reconstruction_distance: Mapping[str, Any] = MappingProxyType({"kind": "l1"}),
        penalty_precision: str = "fp32",
        opacity: bool = False,
    ) -> None:
        """augment: names of DiffAugment. ada: arguments of `AdaAugmented`, instead of them.
        reconstruction_distance: arguments of `distance_of`. opacity: whether the last channel of
        the images is opacity."""
        self._image_shape = image_shape
        self._label_count = label_count
        self._latent_size = latent_size
        self._loss = loss
        self._discriminator_steps = discriminator_steps
        self._label_smoothing = label_smoothing
        self._r1 = Weight(_halved(r1_weight), r1_every)
        self._r2 = Weight(_halved(r2_weight), r2_every)
        self._gradient_penalty = Weight(gradient_penalty_weight, gradient_penalty_every)
        self._lecam = Weight(lecam_weight, lecam_every)
        self._path_length = Weight(path_length_weight, path_length_every)
        self._consistency = {
            "consistency": Weight(consistency_weight, consistency_every),
            "fake_consistency": Weight(fake_consistency_weight, consistency_every),
        }
        self._classifier = Weight(classifier_weight)
        self._generator_classifier = Weight(generator_classifier_weight)
        self._classify_generated = classify_generated
        classes = classifier_weight or generator_classifier_weight
        self._judgement = classifier.outputs(label_count) if classes else (1,)
        self._hinge_margin = hinge_margin
        self._reconstruction = Weight(reconstruction_weight)
        self._distance: Mapping[str, Any] = {
            **reconstruction_distance,
            "channels": image_shape[0],
            "opacity": opacity,
        }
        self._exact = penalty_precision == "fp32"
        self._augment: Augmentation = DiffAugmented(augment, opacity=opacity)
        if ada is not None:
            middle = 0.5 if loss == "least_squares" else 0.0
            self._augment = AdaAugmented(
                image_shape=image_shape, opacity=opacity, middle=middle, **ada
            )
        normal = latent_distribution == "normal"
        z = Noise((latent_size,)) if normal else Noise((latent_size,), "uniform", -1.0, 1.0)
        self.latents = {"z": z}
        self.gives_probability = loss not in _ON_LOGITS

    def networks(self) -> Mapping[str, Signature]:
        """A generator from z to an image and a discriminator from an image to one logit, and to
        class logits if it classifies."""
        return {
            "generator": Signature(
                (self._latent_size,), self._image_shape, self._label_count, "tanh"
            ),
            "discriminator": Signature(
                self._image_shape,
                self._judgement,
                self._label_count,
                several_logits=True,
                reconstructs=self._reconstruction.value != 0.0,
            ),
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """The running means of the logits and path lengths, if a penalty needs them, the distance
        of reconstructions, and the modules of the augmentation."""
        found: dict[str, nn.Module] = {"anchors": Anchors()} if self._lecam.value else {}
        if self._path_length.value:
            found["path_length"] = PathLength()
        if self._reconstruction.value:
            found[DISTANCE] = distance_of(**self._distance)
        return {**found, **self._augment.modules()}

    def phases(self) -> Sequence[Phase]:
        """The discriminator's phase at every step, the generator's phase at every k-th."""
        noise: Noises = {
            **self.latents,
            "fakes": NoiseOf("generator"),
            **_OF_DISCRIMINATOR,
            **self._augment.noise,
        }
        of_discriminator = {**noise, **_OF_MIXES} if self._gradient_penalty.value else noise
        if any(weight.value for weight in self._consistency.values()):
            of_discriminator = {**of_discriminator, **CONSISTENCY_NOISE}
        if isinstance(self._hinge_margin, tuple):
            margins = Noise((2,), "uniform", *self._hinge_margin)
            of_discriminator = {**of_discriminator, "hinge_margin": margins}
        weights = dict[str, Weight]()
        if self._generator_classifier.value:
            weights = {
                "generator": Weight(),
                "generator_classifier": self._generator_classifier,
            }
        updates, terms = ("generator",), (Term("generator", self._generator_loss, weights=weights),)
        of_generator, path = noise, self._path_length
        if path.value:
            updates += ("path_length",)
            name, loss = "path_length", path_length_losses
            terms += (Term(name, loss, path.value, path.every, full_precision=True),)
            of_generator = {**noise, "direction": Noise(self._image_shape)}
        every = self._discriminator_steps
        anchors = ("anchors",) if self._lecam.value else ()
        numbers = {"label_smoothing": self._label_smoothing, **self._augment.numbers}
        return [
            Phase(
                "discriminator",
                ("discriminator", *anchors, *self._augment.updated),
                tuple(self._discriminator_terms()),
                of_discriminator,
                numbers=numbers,
            ),
            Phase("generator", updates, terms, of_generator, every, self._augment.numbers),
        ]

    def _discriminator_terms(self) -> Iterator[Term]:
        """The loss, then the penalties, whose passes of D are in full precision. The relativistic
        loss shares its two passes with R1 and R2 (Huang et al. 2024, algorithm 1)."""
        penalties = {"r1": (self._r1, self._r1_loss), "r2": (self._r2, self._r2_loss)}
        used = {name: both for name, both in penalties.items() if both[0].value}
        optional = {"lecam": self._lecam, "classifier": self._classifier, **self._consistency}
        optional["reconstruction"] = self._reconstruction
        weights = {name: weight for name, weight in optional.items() if weight.value}
        if self._loss == "relativistic":
            for name, (weight, _) in used.items():
                weights[name] = replace(weight, full_precision=self._exact)
            used = {}
        if weights:
            weights["discriminator"] = Weight()
        yield Term("discriminator", self._discriminator_losses, weights=weights)
        for name, (weight, loss) in used.items():
            yield Term(name, loss, weight.value, weight.every, full_precision=self._exact)
        mixes = self._gradient_penalty
        if mixes.value:
            name = "gradient_penalty"
            yield Term(name, self._mixes_loss, mixes.value, mixes.every, full_precision=self._exact)

    def _logits(self, networks: Networks, images: Tensor, batch: Batch, call: str) -> Tensor:
        """D's logits of augmented images, real or generated: (N, 1), (N, K) or (N, K, H, W)."""
        return self._judged(networks, self._seen(networks, images, batch, call), batch, call)

    def _seen(self, networks: Networks, images: Tensor, batch: Batch, call: str) -> Tensor:
        """What D sees of images in a call: (N, C, H, W)."""
        return self._augment(networks, images, batch, generated=call == "judged_fake")

    def _judged(self, networks: Networks, seen: Tensor, batch: Batch, call: str) -> Tensor:
        """D's logits of what it sees."""
        return self._told(networks, seen, batch, call)[0]

    def _told(
        self, networks: Networks, seen: Tensor, batch: Batch, call: str
    ) -> tuple[Tensor, Tensor | None]:
        """D's logits of what it sees, and its class logits (N, K) if it classifies."""
        noise = noise_of(batch.noise, call)
        judgement = networks["discriminator"](seen, batch.labels, **noise)
        return _taken_apart(judgement, batch)

    def _fakes(self, networks: Networks, batch: Batch) -> Tensor:
        """G(z): (N, C, H, W) in [-1, 1]."""
        return networks["generator"](
            batch.noise["z"], batch.labels, **noise_of(batch.noise, "fakes")
        )

    def _discriminator_losses(self, networks: Networks, batch: Batch) -> Losses:
        """The loss, and from its own passes of D what else is due in this term."""
        images, fakes = batch.images, self._fakes(networks, batch)
        if "r1" in batch.due:
            images = _leaf(images)
        if "r2" in batch.due:
            fakes = _leaf(fakes.to(images.dtype))
        seen_fake = self._seen(networks, fakes, batch, "judged_fake")
        fake, classes_of_fake = self._told(networks, seen_fake, batch, "judged_fake")
        seen_real = self._seen(networks, images, batch, "judged_real")
        minimised: dict[str, Tensor] = {}
        if "reconstruction" in batch.due:
            judgement, minimised["reconstruction"] = reconstructed(networks, seen_real, batch)
            real, classes_of_real = _taken_apart(judgement, batch)
        else:
            real, classes_of_real = self._told(networks, seen_real, batch, "judged_real")
        if self._loss in _ON_LOGITS:
            loss = _ON_LOGITS[self._loss](real, fake, *self._margins(real, batch))
            reported = {
                "discriminator/real_logit": losses.mean_of_each(real),
                "discriminator/fake_logit": losses.mean_of_each(fake),
            }
        else:
            loss = losses.discriminator_loss(real, fake, batch.numbers["label_smoothing"])
            reported = {
                "discriminator/real": losses.mean_of_each(real).sigmoid(),  # D(x)
                "discriminator/fake": losses.mean_of_each(fake).sigmoid(),  # D(G(z))
            }
        minimised["discriminator"] = loss
        for name, logits, judged in (("r1", real, images), ("r2", fake, fakes)):
            if name in batch.due:
                minimised[name] = losses.squared_gradient_norm(logits, judged)
        if self._classifier.value:
            minimised["classifier"] = classifier.class_loss(classes_of_real, batch.labels)
            if self._classify_generated:
                of_fake = classifier.class_loss(classes_of_fake, batch.labels)
                minimised["classifier"] = minimised["classifier"] + of_fake
            for name, found in (("real", classes_of_real), ("fake", classes_of_fake)):
                accuracy = classifier.accuracy(found, batch.labels)
                reported[f"classifier/{name}_accuracy"] = accuracy
        if self._lecam.value:  # the means move in each phase
            anchors = networks["anchors"](real, fake)
            if "lecam" in batch.due:
                minimised["lecam"] = losses.lecam_penalty(real, fake, *anchors)
        for name, seen, logits, of in (
            ("consistency", seen_real, real, "real"),
            ("fake_consistency", seen_fake, fake, "fake"),
        ):
            if name in batch.due:  # both passes of D get the same noise
                copies = moved(seen, batch, f"moved_{of}")
                again = self._judged(networks, copies, batch, f"judged_{of}")
                minimised[name] = losses.consistency_penalty(logits, again)
        of_images, of_phase = self._augment.watch(networks, batch, real)
        reported = {tag: value.detach() for tag, value in {**reported, **of_images}.items()}
        return Losses(minimised, reported, of_phase)

    def _margins(self, logits: Tensor, batch: Batch) -> Sequence[float | Tensor]:
        """The hinge loss's margins for real and for generated images: one number, or one drawn for
        each image and all its logits. Other losses have none."""
        if self._loss != "hinge":
            return ()
        if not isinstance(self._hinge_margin, tuple):
            return self._hinge_margin, self._hinge_margin
        margins = batch.noise["hinge_margin"].view(-1, 2, *[1] * (logits.ndim - 1))
        return margins.unbind(1)

    def _r1_loss(self, networks: Networks, batch: Batch) -> Losses:
        """‖∇_x D(x)‖² on real images; its weight is γ/2."""
        images = _leaf(batch.images)
        logits = self._logits(networks, images, batch, "judged_real")
        return Losses({"r1": losses.squared_gradient_norm(logits, images)})

    def _r2_loss(self, networks: Networks, batch: Batch) -> Losses:
        """‖∇_x D(x)‖² on generated images; its weight is γ/2."""
        fakes = _leaf(self._fakes(networks, batch).to(batch.images.dtype))
        logits = self._logits(networks, fakes, batch, "judged_fake")
        return Losses({"r2": losses.squared_gradient_norm(logits, fakes)})

    def _mixes_loss(self, networks: Networks, batch: Batch) -> Losses:
        """(‖∇_x D(x̂)‖₂ - 1)² on mixes of a real and a generated image; its weight is λ."""
        fakes = self._fakes(networks, batch).to(batch.images.dtype)
        mixes = _leaf(torch.lerp(fakes, batch.images, batch.noise["mix"].to(fakes.dtype)))
        logits = self._logits(networks, mixes, batch, "judged_mix")
        return Losses({"gradient_penalty": losses.gradient_norm_penalty(logits, mixes)})

    def _generator_loss(self, networks: Networks, batch: Batch) -> Losses:
        fakes = self._fakes(networks, batch)
        seen = self._seen(networks, fakes, batch, "judged_fake")
        fake, classes = self._told(networks, seen, batch, "judged_fake")
        if self._loss == "relativistic":
            real = self._logits(networks, batch.images, batch, "judged_real")
            minimised = {"generator": losses.relativistic_loss(fake, real)}
        else:
            minimised = {"generator": _OF_GENERATOR[self._loss](fake)}
        if self._generator_classifier.value:
            minimised["generator_classifier"] = classifier.class_loss(classes, batch.labels)
        return Losses(minimised)

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """G(z) in [0, 1]."""
        return self.unclamped(networks, latents, labels, noise).clamp(0.0, 1.0)

    def unclamped(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """G(z), in [0, 1] if G ends in a tanh."""
        fakes = networks["generator"](latents["z"], labels, **noise_of(noise, "fakes"))
        return unstretched(fakes.float(), self.image_range)

    def discriminate(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """D's logits (N,) of images without augmentation: their mean where an image has several.
        Their sigmoid is D(x), if `gives_probability`."""
        logits, _ = classifier.taken_apart(networks["discriminator"](images, labels))
        return losses.mean_of_each(logits.float())

    def watch(self, memory: dict[str, float], metrics: Mapping[str, float], steps: int) -> None:
        """Take note of D(x) and D(G(z))."""
        watch(memory, metrics, steps)

    def settled(self, memory: dict[str, float], images: int, window: Window) -> bool:
        """Whether D(x) and D(G(z)) have settled at the optimum t / 2, with the target t of real
        images: ½ without smoothing (Salimans et al. 2016, 3.4)."""
        smoothing = value_at(self._label_smoothing, images)
        return settled(memory, images, window, (1.0 - smoothing) / 2)

    def note(self, memory: dict[str, float], metrics: Mapping[str, float], before: int) -> None:
        """Take note of D(x) and D(G(z)), if the loss has such probabilities."""
        if self.gives_probability:
            note_win(memory, metrics, before)

    def failure(self, memory: Mapping[str, float], images: int) -> str | None:
        """The words, if D(x) has been 1 and D(G(z)) 0 for 50,000 images."""
        return won(memory, images)


def _taken_apart(judgement: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The logits of an output of D, and its class logits (N, K) if it classifies."""
    logits, classes = classifier.taken_apart(judgement)
    dtype = batch.images.dtype
    return logits.to(dtype), None if classes is None else classes.to(dtype)


def _leaf(images: Tensor) -> Tensor:
    """The images as an input whose gradient is asked for."""
    return images.detach().requires_grad_()


class _Half:
    """Half of a schedule: the γ/2 of R1."""

    def __init__(self, number: Schedule) -> None:
        self._number = number

    def at(self, images: float) -> float:
        """Half of the schedule's value after `images` images."""
        return self._number.at(images) / 2


def _halved(number: Number) -> Number:
    return number / 2 if isinstance(number, (int, float)) else _Half(number)
