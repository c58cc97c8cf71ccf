"""The auxiliary classifier of a GAN (Odena et al. 2017, AC-GAN): D also says which class an image
is of, and G makes images whose class D can tell."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ray_gen import losses
from ray_gen.core import Losses, Shape, Weight
from ray_gen.objectives.game import CLASSES, LOGIT, Addition, Judgements, Round


class Classifier(Addition):
    """-log P(c|x) of real images, and of generated ones as in Odena et al. 2017."""

    def __init__(self, weight: Weight, *, of_generated: bool) -> None:
        super().__init__("classifier", weight)
        self._of_generated = of_generated

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """Reports how many classes are told right."""
        real, fake, labels = judged["real"].classes, judged["fake"].classes, game.batch.labels
        loss = class_loss(real, labels)
        if self._of_generated:
            loss = loss + class_loss(fake, labels)
        right = {"real": accuracy(real, labels), "fake": accuracy(fake, labels)}
        reported = {f"classifier/{kind}_accuracy": value for kind, value in right.items()}
        return Losses({self.name: loss}, reported)


class GeneratorClassifier(Addition):
    """-log P(c|G(z, c)) in the generator's phase."""

    phase = "generator"

    def __init__(self, weight: Weight) -> None:
        super().__init__("generator_classifier", weight)

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """Of generated images."""
        return Losses({self.name: class_loss(judged["fake"].classes, game.batch.labels)})


def outputs(label_count: int | None) -> Mapping[str, Shape]:
    """The outputs of a discriminator that classifies: a logit and a number for each class.

    Raises ValueError if the labels have no classes.
    """
    if not label_count:
        raise ValueError(
            "classifier_weight: the labels have no classes to tell; set classifier_weight and "
            "generator_classifier_weight to 0"
        )
    return {LOGIT: (1,), CLASSES: (label_count,)}


def class_loss(class_logits: Tensor | None, labels: Tensor | None) -> Tensor:
    """-log P(c|x), (N,). labels: as in `Batch`."""
    assert class_logits is not None
    return losses.classification_loss(class_logits, _classes(labels))


def accuracy(class_logits: Tensor | None, labels: Tensor | None) -> Tensor:
    """1 where the largest class logit is that of the image's class, else 0: (N,)."""
    assert class_logits is not None
    return (class_logits.argmax(1) == _classes(labels)).to(class_logits.dtype)


def _classes(labels: Tensor | None) -> Tensor:
    """int64 (N,). Numbers to condition on stand behind the class."""
    assert labels is not None
    return labels if labels.ndim == 1 else labels[:, 0].long()
