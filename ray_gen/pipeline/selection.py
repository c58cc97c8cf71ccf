"""Latents, named in words: a sample of the prior by its number in a grid, an image file through the
encoder, or a latent that was projected, by its place in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.pipeline.arguments import class_number
from ray_gen.pipeline.pipeline import Pipeline
from ray_gen.pipeline.projected import Projected
from ray_gen.pipeline.styles import are_styles


@dataclass(frozen=True)
class InFile:
    """A latent in a file of `ray-gen project`."""

    file: Path
    latents: Projected
    """All latents of the file."""
    number: int
    """Which of them, from 0."""

    @property
    def name(self) -> str:
        """The name of its image, or its number."""
        names = self.latents.names
        return names[self.number] if names else str(self.number)


Name = int | Path | InFile
"""The number of a sample, an image file, or a projected latent."""


@dataclass(frozen=True)
class Chosen:
    """Selected latents, with their images."""

    z: dict[str, Tensor]
    """Latents by name, each (N, *shape). Of projections in styles: {"styles": (N, L, W)}."""
    images: Tensor
    """(N, C, H, W): the image of each sample or projected latent, or the image file."""
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

    def chosen(self, names: Sequence[Name]) -> Chosen:
        """The samples with these numbers, these image files, encoded, and these projections."""
        if any(isinstance(name, Path) for name in names):
            self.pipeline.encoder()  # raises first: without an encoder, a class does not help
        z: list[dict[str, Tensor]] = []
        images: list[Tensor] = []
        labels = [self.label(name) for name in names]
        numbers = [self.numbers(name) for name in names]
        for name, label, given in zip(names, labels, numbers, strict=True):
            if isinstance(name, Path):
                images.append(self.pipeline.read(name))
                z.append(
                    self.pipeline.by_name(self.pipeline.encode(images[-1], label, None, given))
                )
                continue
            found, sample = self._projected(name), name if isinstance(name, int) else name.number
            if found is None:
                of_z = None if self.pipeline.has_styles else self.truncation
                found = self.pipeline.latents([sample], self.seed, of_z)
            z.append(self.pipeline.by_name(found))
            seed = self.seed if isinstance(name, int) else 0  # the noise that it was found with
            images.append(self.pipeline.decode(z[-1], label, seed, [sample], given, self.of_styles))
        known = [label for label in labels if label is not None]
        if any(are_styles(one) for one in z):
            each = zip(z, labels, numbers, strict=True)
            z = [self.pipeline.styles(one, label, given) for one, label, given in each]
        joined = {key: torch.cat([one[key] for one in z]) for key in z[0]}
        first = numbers[0]
        of_each = {key: [one[key] for one in numbers if one] for key in first} if first else None
        return Chosen(joined, torch.cat(images), known or None, of_each)

    def alike(self, groups: Sequence[Chosen]) -> list[dict[str, Tensor]]:
        """The latents of each group: styles of all, if one has styles."""
        if not any(are_styles(group.z) for group in groups):
            return [group.z for group in groups]
        return [self.pipeline.styles(of.z, of.labels, of.conditions) for of in groups]

    @property
    def of_styles(self) -> float | None:
        """The truncation, if the model's generator has styles. Else it is in z."""
        return self.truncation if self.pipeline.has_styles else None

    def _projected(self, name: Name) -> dict[str, Tensor] | None:
        """The latents in a file, (1, *shape) each. None for a sample's number."""
        if not isinstance(name, InFile):
            return None
        name.latents.check_origin(self.pipeline.origin)
        row = slice(name.number, name.number + 1)
        return {key: level[row] for key, level in name.latents.z.items()}

    def numbers(self, name: Name) -> dict[str, float] | None:
        """The numbers to condition on: of a projected latent, its own; of an image file, if they
        are given."""
        if isinstance(name, InFile):
            own = name.latents.conditions
            return None if own is None else {key: one[name.number] for key, one in own.items()}
        if self.conditions is not None:
            return dict(self.conditions)
        return self.pipeline.conditions_in_turn(name) if isinstance(name, int) else None

    def label(self, name: Name) -> int | None:
        """The class of a sample or of a projected latent. For an image file: the class, if only one
        is possible."""
        classes = self.pipeline.experiment.label_count
        if not classes:
            if self.labels is not None:
                raise Refused("labels: this run is not conditional; leave them out")
            return None
        if isinstance(name, InFile):
            return None if name.latents.labels is None else name.latents.labels[name.number]
        labels = range(classes) if self.labels is None else self.labels
        if isinstance(name, Path) and len(labels) > 1:
            raise Refused(
                f"labels: this run is conditional and the class of {name} is not known; give one "
                "class for all"
            )
        number = name if isinstance(name, int) else 0
        return class_number(labels[number % len(labels)], self.pipeline.class_names)
