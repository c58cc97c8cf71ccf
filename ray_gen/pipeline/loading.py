"""From a run folder to a pipeline."""

from __future__ import annotations

import os
from typing import Literal

import torch

from ray_gen.build import build_networks, build_objective
from ray_gen.checkpoints import newest_checkpoint
from ray_gen.experiment import Experiment, absolute_path
from ray_gen.pipeline.pipeline import Pipeline
from ray_gen.pipeline.pretrained import is_pretrained, read
from ray_gen.state import EMA, EXPERIMENT, NETWORKS, load_tensors, read_manifest
from ray_gen.storage import Folder


def load(
    run: str | os.PathLike[str],
    *,
    weights: Literal["ema", "raw"] = "ema",
    device: str | torch.device | None = None,
) -> Pipeline:
    """A pipeline from a run folder (its newest whole checkpoint), one of its checkpoints, or what
    `export` wrote.

    run: a path or URI. device None: a GPU if there is one. Raises CheckpointError.
    """
    given = Folder(absolute_path(os.fspath(run)))
    if given.is_local and is_pretrained(given.path):
        return Pipeline(*read(given.path, weights=weights, device=device))
    folder = newest_checkpoint(given).fetch()
    manifest = read_manifest(folder)
    experiment = Experiment.from_yaml((folder / EXPERIMENT).read_text(encoding="utf-8"))
    objective = build_objective(experiment)
    networks = build_networks(experiment, objective, objective.sampled_from)
    load_tensors(folder, EMA if weights == "ema" else NETWORKS, networks)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    networks.to(device).eval().requires_grad_(False)
    return Pipeline(experiment, objective, networks, folder, int(manifest["images"]))


def experiment_of(run: str | os.PathLike[str]) -> Experiment:
    """The experiment of a run folder or checkpoint, without its networks."""
    checkpoint = newest_checkpoint(Folder(absolute_path(os.fspath(run))))
    return Experiment.from_yaml(checkpoint.read_text(EXPERIMENT))
