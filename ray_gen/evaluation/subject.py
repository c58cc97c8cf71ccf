"""What an evaluation is of: a trained model, and the images that it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ray_gen.core import Networks, Objective
from ray_gen.evaluation.images import quantised
from ray_gen.sampling import sampled


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated: networks in eval mode, on the worker's device."""

    objective: Objective
    networks: Networks
    kind: str
    """Of the objective, for messages."""
    conditional: bool
    """Whether networks are given labels."""
    dtype: torch.dtype
    """Of the images that a likelihood is measured on."""
    description: Mapping[str, Any]
    """For the protocol: the run, the images that it has seen, which weights."""


class Labelled(Protocol):
    """Images of a data set with their labels."""

    @property
    def images_NHWC(self) -> Tensor:  # noqa: N802
        """uint8 (N, H, W, C), 0 to 255."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,)"""
        ...


class SampledImages:
    """Images that a model draws. Image i is a function of (seed, i) and its label alone."""

    digest = None

    def __init__(self, subject: Subject, count: int, labels: Tensor | None, seed: int) -> None:
        """labels: int64 (count,) or None."""
        assert subject.objective.has_prior
        self._subject, self._count, self._labels, self._seed = subject, count, labels, seed
        first = next(iter(subject.networks.parameters()))
        self._device, self._dtype = first.device, first.dtype
        self.description = {**subject.description, "seed": seed}
        if labels is not None:
            self.description["labels"] = "drawn evenly from those of the whole reference"

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W)"""
        numbers = torch.tensor(indices, device=self._device)
        labels = None if self._labels is None else self._labels[numbers]
        objective, networks = self._subject.objective, self._subject.networks
        images = sampled(
            objective, networks, self._seed, "evaluation", numbers, labels, self._dtype
        )
        return quantised(images)
