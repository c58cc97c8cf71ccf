"""The model that an evaluation measures, and the images that it generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ray_gen.core import Networks, Objective
from ray_gen.pixels import quantised
from ray_gen.sampling import sampled


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated: networks in eval mode, on the worker's device."""

    objective: Objective
    networks: Networks
    kind: str
    """Kind of the objective, for messages."""
    conditional: bool
    """Whether the networks take labels."""
    dtype: torch.dtype
    """Type of the images that a likelihood is measured on."""
    description: Mapping[str, Any]
    """For the protocol: the run, the number of images seen in training, EMA or raw weights."""
    bits: int = 8
    """Bits of a channel of the training images, 8 or 16. Samples have as many."""
    opacity: bool = False
    """Whether the last channel of the images is opacity."""


class Labelled(Protocol):
    """Images of a data set with their labels."""

    @property
    def images_NHWC(self) -> Tensor:  # noqa: N802
        """uint8 (N, H, W, C), 0 to 255, or uint16, 0 to 65,535."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,). None: the data has no labels."""
        ...


class SampledImages:
    """Images that a model generates. Image i depends only on (seed, i) and its label."""

    digest = None  # statistics of samples are never cached

    def __init__(self, subject: Subject, count: int, labels: Tensor | None, seed: int) -> None:
        """count: number of images. labels: int64 (count,); None for an unconditional model. The
        objective must have a prior."""
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
        """(N, C, H, W) on the device of the networks: uint8, 0 to 255, or uint16, 0 to 65,535."""
        numbers = torch.tensor(indices, device=self._device)
        labels = None if self._labels is None else self._labels[numbers]
        objective, networks = self._subject.objective, self._subject.networks
        images = sampled(
            objective, networks, self._seed, "evaluation", numbers, labels, self._dtype
        )
        return quantised(images, self._subject.bits)
