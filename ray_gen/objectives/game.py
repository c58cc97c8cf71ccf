"""A round of the game of a GAN: images, what the discriminator says of them, and what may be added
to the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from ray_gen.core import Batch, Losses, Networks, Noises, Reconstructing, Term, Weight, noise_of
from ray_gen.errors import Refused
from ray_gen.objectives.augmented import Augmentation

Kind = Literal["real", "fake"]
"""Of images: from the data, or generated."""

LOGIT, CLASSES = "logit", "classes"
"""The outputs of a discriminator that also classifies."""


@dataclass(frozen=True)
class Judged:
    """Images, and what the discriminator says of them."""

    images: Tensor
    """(N, C, H, W), as they were."""
    seen: Tensor
    """(N, C, H, W), as D saw them: augmented."""
    logits: Tensor
    """(N, 1), (N, K) or (N, K, H, W)"""
    classes: Tensor | None
    """Class logits (N, K), if D classifies."""
    reconstructions: Sequence[tuple[Tensor, Tensor]] = ()
    """Pairs as of `Reconstructing.reconstructed`, if they were asked for."""


Judgements = Mapping[Kind, Judged]


@dataclass(frozen=True)
class Round:
    """Both networks and a batch."""

    networks: Networks
    batch: Batch
    augmentation: Augmentation

    def generated(self) -> Tensor:
        """G(z): (N, C, H, W) in [-1, 1]."""
        noise = noise_of(self.batch.noise, "fakes")
        return self.networks["generator"](self.batch.noise["z"], self.batch.labels, **noise)

    def images(self, of: Kind) -> Tensor:
        """Real or generated images of one type, (N, C, H, W)."""
        real = self.batch.images
        return real if of == "real" else self.generated().to(real.dtype)

    def judged(
        self, images: Tensor, of: Kind | Literal["mix"], *, reconstructs: bool = False
    ) -> Judged:
        """D's opinion of images_NCHW, augmented. of: "mix" if they lie between both kinds.
        reconstructs: whether D also reconstructs what it sees."""
        seen = self.augmentation(self.networks, images, self.batch, generated=of == "fake")
        return self._judged(images, seen, of, reconstructs)

    def judged_unchanged(self, images: Tensor, of: Kind) -> Judged:
        """D's opinion of images_NCHW without augmentation."""
        return self._judged(images, images, of, reconstructs=False)

    def _judged(self, images: Tensor, seen: Tensor, of: str, reconstructs: bool) -> Judged:
        discriminator, labels = self.networks["discriminator"], self.batch.labels
        noise, pairs = noise_of(self.batch.noise, f"judged_{of}"), ()
        if reconstructs:
            output, pairs = reconstructing(discriminator).reconstructed(seen, labels, **noise)
        else:
            output = discriminator(seen, labels, **noise)
        logits, classes = taken_apart(output)
        dtype = self.batch.images.dtype
        classes = None if classes is None else classes.to(dtype)
        return Judged(images, seen, logits.to(dtype), classes, pairs)


class Addition:
    """One more loss of a phase. A subclass overrides what it has.

    The loss comes from the phase's own passes. If `alone`, it comes from passes of its own: then it
    is a term.
    """

    phase: Literal["discriminator", "generator"] = "discriminator"
    alone: bool = False
    noise: Noises = MappingProxyType({})
    updated: tuple[str, ...] = ()
    """Those of its modules that the phase updates."""

    def __init__(self, name: str, weight: Weight) -> None:
        self.name, self.weight = name, weight

    def modules(self) -> Mapping[str, nn.Module]:
        """The objective's own modules that it needs."""
        return {}

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """The loss by `name`, if it is due, and what to report.

        judged: by the passes of the phase's own loss. Empty if the loss is `alone`; without "real"
        in a generator's phase whose loss asks for generated images only.
        """
        raise NotImplementedError

    def term(self, augmentation: Augmentation) -> Term:
        """A term of the loss, if it is `alone`."""

        def loss(networks: Networks, batch: Batch) -> Losses:
            return self.losses(Round(networks, batch, augmentation), {})

        weight = self.weight
        return Term(self.name, loss, weight.value, weight.every, weight.full_precision)


def together(*parts: Losses) -> Losses:
    """All that the parts of one term give."""
    minimised: dict[str, Tensor] = {}
    reported: dict[str, Tensor] = {}
    of_phase: dict[str, Tensor] = {}
    for part in parts:
        minimised.update(part.minimised)
        reported.update({tag: value.detach() for tag, value in part.reported.items()})
        of_phase.update(part.of_phase)
    return Losses(minimised, reported, of_phase)


def taken_apart(output: Any) -> tuple[Tensor, Tensor | None]:
    """The logits and the class logits (N, K) of what a discriminator returned; None if it does not
    classify."""
    return (output[LOGIT], output[CLASSES]) if isinstance(output, Mapping) else (output, None)


def reconstructing(discriminator: nn.Module) -> Reconstructing:
    """The discriminator. Raises Refused if it cannot reconstruct."""
    if not isinstance(discriminator, Reconstructing):
        raise Refused(
            f"objective.reconstruction_weight: {type(discriminator).__name__} has no method "
            "`reconstructed` (ray_gen.core.Reconstructing); give it one, set "
            "networks.discriminator.kind to fastgan or objective.reconstruction_weight to 0"
        )
    return discriminator


def as_input(images: Tensor) -> Tensor:
    """The images as an input whose gradient is asked for."""
    return images.detach().requires_grad_()
