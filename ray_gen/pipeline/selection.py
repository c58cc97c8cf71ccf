"""Samples, selected by their number in a grid, together with image files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.pipeline.arguments import class_number
from ray_gen.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Chosen:
    """Selected samples or image files, with their latents and images."""

    z: dict[str, Tensor]
    """Latents by name, each (N, *shape)."""
    images: Tensor
    """(N, C, H, W): the image of each sample or file."""
    labels: list[int] | None
    """Class numbers. None for a model without classes."""
    conditions: dict[str, list[float]] | None = None
    """Numbers to condition on, by name. None for a model without such numbers."""


@dataclass(frozen=True)
class Samples:
    """Defines sample number i: the sample that `Pipeline.sample` draws with the labels in turn."""

    pipeline: Pipeline
    seed: int
    labels: Sequence[int | str] | None
    """Classes, used in turn. None: all classes of a conditional model."""
    truncation: float | None
    conditions: Mapping[str, float] | None = None
    """Numbers to condition on, of all samples. None: spread, as in `Pipeline.sample`."""

    def chosen(self, names: Sequence[int | Path]) -> Chosen:
        """The samples with these numbers, and these image files, encoded."""
        if any(isinstance(name, Path) for name in names):
            self.pipeline.encoder()  # raises first: without an encoder, a class does not help
        z: list[dict[str, Tensor]] = []
        images: list[Tensor] = []
        labels = [self.label(name) for name in names]
        numbers = [self.numbers(name) for name in names]
        for name, label, given in zip(names, labels, numbers, strict=True):
            if isinstance(name, int):
                z.append(
                    self.pipeline.by_name(self.pipeline.latents([name], self.seed, self.truncation))
                )
                images.append(self.pipeline.decode(z[-1], label, self.seed, [name], given))
            else:
                images.append(self.pipeline.read(name))
                z.append(
                    self.pipeline.by_name(self.pipeline.encode(images[-1], label, None, given))
                )
        known = [label for label in labels if label is not None]
        joined = {key: torch.cat([one[key] for one in z]) for key in z[0]}
        first = numbers[0]
        of_each = {key: [one[key] for one in numbers if one] for key in first} if first else None
        return Chosen(joined, torch.cat(images), known or None, of_each)

    def numbers(self, name: int | Path) -> dict[str, float] | None:
        """The numbers to condition on of a sample; of an image file, if they are given."""
        if self.conditions is not None:
            return dict(self.conditions)
        return self.pipeline.conditions_in_turn(name) if isinstance(name, int) else None

    def label(self, name: int | Path) -> int | None:
        """The class of a sample. For an image file: the class, if only one is possible."""
        classes = self.pipeline.experiment.label_count
        if not classes:
            if self.labels is not None:
                raise Refused("labels: this run is not conditional; leave them out")
            return None
        labels = range(classes) if self.labels is None else self.labels
        if isinstance(name, Path) and len(labels) > 1:
            raise Refused(
                f"labels: this run is conditional and the class of {name} is not known; give one "
                "class for all"
            )
        number = name if isinstance(name, int) else 0
        return class_number(labels[number % len(labels)], self.pipeline.class_names)
