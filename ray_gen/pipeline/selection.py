"""Samples by their numbers and image files side by side, as people pick them from a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.pipeline.arguments import class_number
from ray_gen.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Chosen:
    """Some samples or image files, with what the model makes of them."""

    z: dict[str, Tensor]
    """Latents by name, each (N, *shape)."""
    images: Tensor
    """(N, C, H, W): of a sample its image, of a file the file's."""
    labels: list[int] | None
    """Of a conditional model."""


@dataclass(frozen=True)
class Samples:
    """What sample number i is: as `Pipeline.sample` draws it with labels in turn."""

    pipeline: Pipeline
    seed: int
    labels: Sequence[int | str] | None
    """In turn. None: all classes of a conditional model."""
    truncation: float | None

    def chosen(self, names: Sequence[int | Path]) -> Chosen:
        """Samples by their numbers, and image files encoded."""
        if any(isinstance(name, Path) for name in names):
            self.pipeline.encoder()  # told first: without one, no class helps
        z: list[dict[str, Tensor]] = []
        images: list[Tensor] = []
        labels = [self.label(name) for name in names]
        for name, label in zip(names, labels, strict=True):
            if isinstance(name, int):
                z.append(
                    self.pipeline.by_name(self.pipeline.latents([name], self.seed, self.truncation))
                )
                images.append(self.pipeline.decode(z[-1], label, self.seed, [name]))
            else:
                images.append(self.pipeline.read(name))
                z.append(self.pipeline.by_name(self.pipeline.encode(images[-1], label)))
        known = [label for label in labels if label is not None]
        joined = {key: torch.cat([one[key] for one in z]) for key in z[0]}
        return Chosen(joined, torch.cat(images), known or None)

    def label(self, name: int | Path) -> int | None:
        """The class of a sample, or of an image file, where there is but one."""
        classes = self.pipeline.experiment.label_count
        if classes is None:
            if self.labels is not None:
                raise Refused("labels: this run is not conditional; leave them out")
            return None
        labels = range(classes) if self.labels is None else self.labels
        if isinstance(name, Path) and len(labels) > 1:
            raise Refused(
                f"labels: this run is conditional and the class of {name} is not known; name one "
                "class for all"
            )
        number = name if isinstance(name, int) else 0
        return class_number(labels[number % len(labels)], self.pipeline.class_names)
