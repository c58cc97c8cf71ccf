"""`Projected`: the latents that `Pipeline.project` found for images, and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.pipeline.origin import Origin, read, write

FORMAT = "ray_gen latents 1"
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Projected:
    """N latents and the images that they stand for.

    found = pipeline.project(images)
    pipeline.interpolate(found.z, pipeline.latents(len(images), seed=0))
    """

    z: Mapping[str, Tensor]
    """Latents by name, each float32 (N, *shape). Of a generator with styles: {"styles": w}, with w
    (N, L, W), unless they were looked for in z."""
    errors: Tensor
    """Mean squared error of each decoded image, for pixels in [0, 1]: float32 (N,)."""
    labels: tuple[int, ...] | None = None
    """The class of each image. None for a model without classes."""
    conditions: Mapping[str, Sequence[float]] | None = None
    """The numbers that each image was conditioned on, by name. None for a model without them."""
    names: tuple[str, ...] = ()
    """The name of each image, e.g. of its file. Empty: unknown."""
    origin: Origin | None = None
    """The weights that decode these latents. None: unknown."""

    def __len__(self) -> int:
        return len(self.errors)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(z.shape)}" for name, z in self.z.items())
        return f"Projected({shapes}, {float(self.psnr.mean()):.1f} dB)"

    @property
    def psnr(self) -> Tensor:
        """Peak signal-to-noise ratio of each decoded image, -10 log₁₀ of its error, in dB: (N,).
        Higher is nearer."""
        return -10.0 * self.errors.clamp_min(1e-12).log10()

    def check_origin(self, run: Origin) -> None:
        """Raises Refused if the latents belong to other weights."""
        if self.origin is not None and self.origin.weights != run.weights:
            raise Refused(
                f"latents: were projected with the weights of {self.origin.run}, which are not the "
                f"weights of {run.run} that are loaded here, so they mean other images; project "
                "the images again"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file, whole or not at all."""
        facts = {
            "labels": self.labels,
            "conditions": self.conditions and {k: list(v) for k, v in self.conditions.items()},
            "names": self.names,
        }
        metadata = {"format": FORMAT, "facts": json.dumps(facts)}
        tensors = {f"z.{name}": z for name, z in self.z.items()}
        write(Path(path), {**tensors, "errors": self.errors}, metadata, self.origin)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Projected:
        """Read a file that `save` wrote. Raises Refused for any other file. Nothing is
        unpickled."""
        path = Path(path).expanduser()
        found, metadata = read(
            path,
            missing="there is no such file; `ray-gen project` writes one",
            unreadable="is no file of latents that can be read",
            remedy="`ray-gen project` writes one",
        )
        if metadata.get("format") != FORMAT:
            raise Refused(
                f"{path}: is no file of the format {FORMAT!r}; use a file that `ray-gen project` "
                "of this version wrote"
            )
        try:
            return cls._of(found, metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"{path}: is damaged ({error}); project the images again") from error

    @classmethod
    def _of(cls, found: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Projected:
        facts: dict[str, Any] = json.loads(metadata["facts"])
        errors = found["errors"]
        z = {n.removeprefix("z."): tensor for n, tensor in found.items() if n.startswith("z.")}
        labels, conditions, names = facts["labels"], facts["conditions"], facts["names"]
        lists = [*(x for x in (labels, names) if x), *(conditions or {}).values()]
        counts = {len(errors), *(len(one) for one in (*z.values(), *lists))}
        if len(counts) > 1 or not z:
            raise ValueError(f"it has latents of {sorted(counts)} images")
        if not all(bool(torch.isfinite(one).all()) for one in z.values()):
            raise ValueError("a number is not finite")
        return cls(
            z,
            errors,
            None if labels is None else tuple(map(int, labels)),
            conditions,
            tuple(map(str, names)),
            Origin.of(metadata),
        )
