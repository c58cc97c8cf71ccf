"""Generative adversarial networks (Goodfellow et al. 2014), also conditional (Mirza and Osindero
2014): the game and its six losses. What may be added to them lies in files of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

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
    Phase,
    Signature,
    Term,
    Weight,
    Window,
    noise_of,
    value_at,
)
from ray_gen.objectives import classifier, equilibrium
from ray_gen.objectives.augmented import AdaAugmented, Augmentation, DiffAugmented
from ray_gen.objectives.classifier import Classifier, GeneratorClassifier
from ray_gen.objectives.consistency import Consistency
from ray_gen.objectives.decoding import Clamping
from ray_gen.objectives.game import (
    Addition,
    Judged,
    Judgements,
    Kind,
    Round,
    as_input,
    taken_apart,
    together,
)
from ray_gen.objectives.gradient_penalties import OneCentred, ZeroCentred, halved
from ray_gen.objectives.lecam import LeCam
from ray_gen.objectives.path_length import PathLengths
from ray_gen.objectives.reconstruction import Reconstruction
from ray_gen.pixels import unstretched

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


class Gan(Clamping):
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
        self._r1_weight = r1_weight
        self._hinge_margin = hinge_margin
        self._reconstructs = reconstruction_weight != 0.0
        classifies = classifier_weight or generator_classifier_weight
        self._judgement = classifier.outputs(label_count) if classifies else (1,)
        self.gives_probability = loss not in _ON_LOGITS
        normal = latent_distribution == "normal"
        z = Noise((latent_size,)) if normal else Noise((latent_size,), "uniform", -1.0, 1.0)
        self.latents = {"z": z}
        self._augmentation: Augmentation = DiffAugmented(augment, opacity=opacity)
        if ada is not None:
            middle = 0.5 if loss == "least_squares" else 0.0
            self._augmentation = AdaAugmented(
                image_shape=image_shape, opacity=opacity, middle=middle, **ada
            )

        def penalty(weight: Number, every: int) -> Weight:
            return Weight(weight, every, full_precision=penalty_precision == "fp32")

        # The relativistic loss shares its two passes with R1 and R2 (Huang et al. 2024,
        # algorithm 1).
        alone = loss != "relativistic"
        of_fakes = Weight(fake_consistency_weight, consistency_every)
        of_paths = Weight(path_length_weight, path_length_every, full_precision=True)
        mixes = penalty(gradient_penalty_weight, gradient_penalty_every)
        distance = {**reconstruction_distance, "channels": image_shape[0], "opacity": opacity}
        additions: list[Addition] = [
            ZeroCentred("r1", "real", penalty(halved(r1_weight), r1_every), alone=alone),
            ZeroCentred("r2", "fake", penalty(halved(r2_weight), r2_every), alone=alone),
            Classifier(Weight(classifier_weight), of_generated=classify_generated),
            LeCam(Weight(lecam_weight, lecam_every)),
            Consistency("consistency", "real", Weight(consistency_weight, consistency_every)),
            Consistency("fake_consistency", "fake", of_fakes),
            OneCentred("gradient_penalty", mixes),
            PathLengths(of_paths, image_shape),
            GeneratorClassifier(Weight(generator_classifier_weight)),
            Reconstruction(Weight(reconstruction_weight), distance),
        ]
        self._additions = [one for one in additions if one.weight.value]

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
                reconstructs=self._reconstructs,
            ),
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """Those of what is added, and of the augmentation."""
        found: dict[str, nn.Module] = {}
        for owner in (*self._additions, self._augmentation):
            found |= owner.modules()
        return found

    def phases(self) -> Sequence[Phase]:
        """The discriminator's phase at every step, the generator's phase at every k-th."""
        return [
            self._phase("discriminator", self._discriminator_losses),
            self._phase("generator", self._generator_losses, every=self._discriminator_steps),
        ]

    def _phase(self, name: str, loss: Callable[[Networks, Batch], Losses], every: int = 1) -> Phase:
        """A phase: its loss and what is added to it."""
        added = [one for one in self._additions if one.phase == name]
        weights = {one.name: one.weight for one in added if not one.alone}
        if weights:
            weights[name] = Weight()
        terms = [Term(name, loss, weights=weights)]
        terms += [one.term(self._augmentation) for one in added if one.alone]
        updates = [name, *(module for one in added for module in one.updated)]
        numbers = dict(self._augmentation.numbers)
        noise: dict[str, Noise | NoiseOf] = {
            **self.latents,
            "fakes": NoiseOf("generator"),
            "judged_real": NoiseOf("discriminator"),
            "judged_fake": NoiseOf("discriminator"),
            **self._augmentation.noise,
        }
        for one in added:
            noise |= one.noise
        if name == "discriminator":
            updates += self._augmentation.updated
            numbers["label_smoothing"] = self._label_smoothing
            if isinstance(self._hinge_margin, tuple):
                noise["hinge_margin"] = Noise((2,), "uniform", *self._hinge_margin)
        return Phase(name, tuple(updates), tuple(terms), noise, every, numbers)

    def _added(self, phase: str, game: Round, judged: Judgements) -> list[Losses]:
        """What is added to a phase's loss from its own passes."""
        sharing = [one for one in self._additions if one.phase == phase and not one.alone]
        return [one.losses(game, judged) for one in sharing]

    def _discriminator_losses(self, networks: Networks, batch: Batch) -> Losses:
        game = Round(networks, batch, self._augmentation)
        images, fakes = batch.images, game.generated()
        if "r1" in batch.due:
            images = as_input(images)
        if "r2" in batch.due:
            fakes = as_input(fakes.to(images.dtype))
        fake = game.judged(fakes, "fake")
        real = game.judged(images, "real", reconstructs="reconstruction" in batch.due)
        logits = real.logits, fake.logits
        told = losses.mean_of_each(real.logits), losses.mean_of_each(fake.logits)
        if self.gives_probability:
            loss = losses.discriminator_loss(*logits, batch.numbers["label_smoothing"])
            reported = {  # D(x) and D(G(z))
                "discriminator/real": told[0].sigmoid(),
                "discriminator/fake": told[1].sigmoid(),
            }
        else:
            loss = _ON_LOGITS[self._loss](*logits, *self._margins(real.logits, batch))
            reported = {"discriminator/real_logit": told[0], "discriminator/fake_logit": told[1]}
        added = self._added("discriminator", game, {"real": real, "fake": fake})
        of_augmentation = self._augmentation.watch(networks, batch, real.logits)
        return together(Losses({"discriminator": loss}, reported), *added, of_augmentation)

    def _margins(self, logits: Tensor, batch: Batch) -> Sequence[float | Tensor]:
        """The hinge loss's margins for real and for generated images: one number, or one drawn for
        each image and all its logits. Other losses have none."""
        if self._loss != "hinge":
            return ()
        if not isinstance(self._hinge_margin, tuple):
            return self._hinge_margin, self._hinge_margin
        margins = batch.noise["hinge_margin"].view(-1, 2, *[1] * (logits.ndim - 1))
        return margins.unbind(1)

    def _generator_losses(self, networks: Networks, batch: Batch) -> Losses:
        game = Round(networks, batch, self._augmentation)
        judged: dict[Kind, Judged] = {"fake": game.judged(game.generated(), "fake")}
        logits = judged["fake"].logits
        if self._loss == "relativistic":
            judged["real"] = game.judged(batch.images, "real")
            loss = losses.relativistic_loss(logits, judged["real"].logits)
        else:
            loss = _OF_GENERATOR[self._loss](logits)
        added = self._added("generator", game, judged)
        return together(Losses({"generator": loss}), *added)

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
        logits, _ = taken_apart(networks["discriminator"](images, labels))
        return losses.mean_of_each(logits.float())

    def watch(self, memory: dict[str, float], metrics: Mapping[str, float], steps: int) -> None:
        """Take note of D(x) and D(G(z))."""
        equilibrium.watch(memory, metrics, steps)

    def settled(self, memory: dict[str, float], images: int, window: Window) -> bool:
        """Whether D(x) and D(G(z)) have settled at the optimum t / 2, with the target t of real
        images: ½ without smoothing (Salimans et al. 2016, 3.4)."""
        smoothing = value_at(self._label_smoothing, images)
        return equilibrium.settled(memory, images, window, (1.0 - smoothing) / 2)

    def note(self, memory: dict[str, float], metrics: Mapping[str, float], before: int) -> None:
        """Take note of whether D wins. D that minimises the Wasserstein loss cannot: the loss has
        no least value."""
        if self._loss != "wasserstein":
            won = equilibrium.wins(metrics, has_probability=self.gives_probability)
            equilibrium.note_win(memory, won, before)

    def failure(self, memory: Mapping[str, float], images: int) -> str | None:
        """The words, if D has won in every report of 50,000 images."""
        won = equilibrium.won(memory, images, has_probability=self.gives_probability)
        if won is None:
            return None
        advice = ["a lower optimizers.discriminator.learning_rate"]
        if self.gives_probability and value_at(self._label_smoothing, images) == 0.0:
            advice.insert(0, "objective.label_smoothing=0.1")
        if value_at(self._r1_weight, images) == 0.0:
            advice.insert(0, "objective.r1_weight above 0")
        *others, last = advice
        listed = f"{', '.join(others)} or {last}" if others else last
        return f"{won}; train again with {listed}"
