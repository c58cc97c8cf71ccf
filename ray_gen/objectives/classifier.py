"""The auxiliary classifier of a GAN (Odena et al. 2017, AC-GAN): D also says which class an image
is of, and G makes images whose class D can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ray_gen import losses
from ray_gen.core import Shape

LOGIT, CLASSES = "logit", "classes"
"""The outputs of a discriminator that also classifies."""


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


def taken_apart(output: Any) -> tuple[Tensor, Tensor | None]:
    """The logit and the class logits (N, K) of what a discriminator returned; None if it does not
    classify."""
    return (output[LOGIT], output[CLASSES]) if isinstance(output, Mapping) else (output, None)


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
