"""A trained run in two lines: load it, sample from it. No data set, no Ray, nothing unpickled."""

from __future__ import annotations

import difflib
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ray_gen.build import build_networks, build_objective
from ray_gen.checkpoints import newest_checkpoint
from ray_gen.core import Networks, Objective
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, absolute_path
from ray_gen.noise import draw, key_of
from ray_gen.state import EMA, EXPERIMENT, NETWORKS, load_tensors, read_manifest
from ray_gen.storage import Folder

BATCH = 256
"""Images that go through a network at once: memory stays bounded for any count."""


class Pipeline:
    """The networks of a run that are used after training, in eval mode."""

    def __init__(self, experiment: Experiment, objective: Objective, networks: Networks) -> None:
        self.experiment = experiment
        self.objective = objective
        self.networks = networks
        self.device = next(iter(networks.parameters())).device
        self.class_names = experiment.data.classes or ()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.experiment.image_shape))
        return f"Pipeline({self.experiment.name}, {shape}, classes={len(self.class_names)})"

    @torch.no_grad()
    def sample(
        self,
        count: int,
        labels: int | str | Sequence[int | str] | Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """`count` images drawn from the model: float (count, C, H, W) in [0, 1], on the CPU.

        labels: of a conditional model, one for all or one for each, as numbers or class names; None
        takes the classes in turn. seed: equal seeds give equal images, and image i does not depend
        on `count`; None draws a new one.
        """
        if count < 1:
            raise Refused(f"count: at least one image, not {count}")
        batches = list(self.batches(count, labels, secrets.randbits(62) if seed is None else seed))
        return torch.cat(batches)

    @torch.no_grad()
    def batches(
        self, count: int, labels: int | str | Sequence[int | str] | Tensor | None, seed: int
    ) -> Iterator[Tensor]:
        """What `sample` gives, in parts of at most 256 images."""
        if self.objective.latent is None:
            raise Refused(
                f"a {self.experiment.objective.kind} objective has no prior to sample from; train "
                "a vae or a gan"
            )
        chosen = self._labels(count, labels)
        key = key_of(seed, "sample")
        step = torch.zeros(1, dtype=torch.int64, device=self.device)
        dtype = next(iter(self.networks.parameters())).dtype
        for start in range(0, count, BATCH):
            indices = torch.arange(start, min(start + BATCH, count), device=self.device)
            z = draw(self.objective.latent, key, step, indices)[0].to(dtype)
            part = None if chosen is None else chosen[indices]
            yield self.objective.sample(self.networks, z, part).float().cpu()

    def _labels(
        self, count: int, labels: int | str | Sequence[int | str] | Tensor | None
    ) -> Tensor | None:
        classes = self.experiment.label_count
        if classes is None:
            if labels is not None:
                raise Refused("labels: this run is not conditional; leave them out")
            return None
        if labels is None:
            return torch.arange(count, device=self.device) % classes
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        if isinstance(labels, (int, str)):
            labels = [labels] * count
        if len(labels) != count:
            raise Refused(f"labels: {len(labels)} given for {count} images")
        return torch.tensor([self._label(label) for label in labels], device=self.device)

    def _label(self, label: int | str) -> int:
        """A class by number or name."""
        if isinstance(label, str) and label in self.class_names:
            return self.class_names.index(label)
        if isinstance(label, str) and label.lstrip("-").isdigit():
            label = int(label)
        if isinstance(label, int) and 0 <= label < len(self.class_names):
            return label
        near = difflib.get_close_matches(str(label), self.class_names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        names = ", ".join(self.class_names[:10]) + (", …" if len(self.class_names) > 10 else "")
        raise Refused(
            f"labels: there is no class {label!r} among the {len(self.class_names)} of this run "
            f"({names}){hint}"
        )


def load(
    run: str | os.PathLike[str],
    *,
    weights: Literal["ema", "raw"] = "ema",
    device: str | torch.device | None = None,
) -> Pipeline:
    """A pipeline from a run folder (its newest whole checkpoint) or one of its checkpoints.

    run: a path or URI. device None: a GPU if there is one. Raises CheckpointError.
    """
    folder = newest_checkpoint(Folder(absolute_path(os.fspath(run)))).fetch()
    read_manifest(folder)
    experiment = Experiment.from_yaml((folder / EXPERIMENT).read_text(encoding="utf-8"))
    objective = build_objective(experiment)
    networks = build_networks(experiment, objective, objective.sampled_from)
    load_tensors(folder, EMA if weights == "ema" else NETWORKS, networks)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    networks.to(device).eval().requires_grad_(False)
    return Pipeline(experiment, objective, networks)
