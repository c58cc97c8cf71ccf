"""From a run folder to a pipeline."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack

import torch

from ray_gen.build import build_networks, build_objective, distrust
from ray_gen.checkpoints import fetched, is_in_a_run, newest_checkpoint
from ray_gen.experiment import Experiment, absolute_path
from ray_gen.pipeline.pipeline import Pipeline
from ray_gen.pipeline.pretrained import (
    Weights,
    checked_device,
    checked_weights,
    is_pretrained,
    placed,
    read,
)
from ray_gen.state import EMA, EXPERIMENT, NETWORKS, load_tensors, read_manifest
from ray_gen.storage import Folder


def load(
    run: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    device: str | torch.device | None = None,
) -> Pipeline:
    """A pipeline from a run folder (its newest whole checkpoint), one of its checkpoints, or what
    `export` wrote.

    run: a path or URI. device None: a GPU if there is one. Raises Refused, CheckpointError among
    it.
    """
    weights, device = checked_weights(weights), checked_device(device)
    given = _distrusted(run)
    if given.is_local and is_pretrained(given.path):
        return Pipeline(*read(given.path, weights=weights, device=device))
    with ExitStack() as stack:
        found, folder = stack.enter_context(fetched(given))
        manifest = read_manifest(folder)
        experiment = Experiment.from_yaml(Folder(str(folder)).read_text(EXPERIMENT))
        objective = build_objective(experiment)
        networks = build_networks(experiment, objective, objective.sampled_from)
        load_tensors(folder, EMA if weights == "ema" else NETWORKS, networks)
        placed(networks, device)
        name, images = _run_name(given, found), int(manifest["images"])
        pipeline = Pipeline(experiment, objective, networks, folder, images, name)
        weakref.finalize(pipeline, stack.pop_all().close)  # it may yet read its discriminator
        return pipeline


def _distrusted(run: str | os.PathLike[str]) -> Folder:
    """The folder given; of a checkpoint also the run that it lies in is somebody's."""
    given = Folder(absolute_path(os.fspath(run)))
    if given.is_local:
        distrust(given.path)
        if is_in_a_run(given.name):
            distrust(given.path.parent)
    return given


def _run_name(given: Folder, checkpoint: Folder) -> str:
    """The name of the folder that holds a checkpoint, if it is one of a run."""
    if checkpoint.parent == given.parent and is_in_a_run(given.name):
        return given.parent.name
    return given.name


def experiment_of(run: str | os.PathLike[str]) -> Experiment:
    """The experiment of a run folder or checkpoint, without its networks."""
    checkpoint = newest_checkpoint(_distrusted(run))
    return Experiment.from_yaml(checkpoint.read_text(EXPERIMENT))
