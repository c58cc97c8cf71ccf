"""Load a run folder, or an exported folder, as a model."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from typing import TypeVar

import torch

from ray_gen.experiment import Experiment, absolute_path
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import (
    Weights,
    checked_device,
    checked_weights,
    is_pretrained,
    placed,
    read_config,
    read_pretrained,
)
from ray_gen.runs.checkpoints import fetched, is_in_a_run, newest_checkpoint
from ray_gen.runs.manifest import EMA, EXPERIMENT, NETWORKS, OF_A_MODEL, Manifest
from ray_gen.storage import Folder
from ray_gen.training.build import build_networks, build_objective, distrust
from ray_gen.training.state import load_tensors

_Model = TypeVar("_Model", bound=Model)


def load_as(
    kind: type[_Model],
    run: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    device: str | torch.device | None = None,
) -> _Model:
    """Load a run, a checkpoint or an exported folder as a `kind`: see `pipeline.load`."""
    weights, device = checked_weights(weights), checked_device(device)
    given = _distrusted(run)
    if given.is_local and is_pretrained(given.path):
        return kind(*read_pretrained(given.path, weights=weights, device=device))
    with ExitStack() as stack:
        found, folder = stack.enter_context(fetched(given, OF_A_MODEL))
        manifest = Manifest.checked(folder, OF_A_MODEL)
        experiment = Experiment.from_yaml(Folder(str(folder)).read_text(EXPERIMENT))
        objective = build_objective(experiment)
        networks = build_networks(experiment, objective, objective.sampled_from)
        load_tensors(folder, EMA if weights == "ema" else NETWORKS, networks)
        placed(networks, device)
        name, images = _run_name(given, found), manifest.images
        model = kind(experiment, objective, networks, folder, images, name)
        weakref.finalize(model, stack.pop_all().close)  # the model may still read its discriminator
        return model


def _distrusted(run: str | os.PathLike[str]) -> Folder:
    """The given folder, marked as not trusted. For a checkpoint its run folder is marked too."""
    given = Folder(absolute_path(os.fspath(run)))
    if given.is_local:
        distrust(given.path)
        if is_in_a_run(given.name):
            distrust(given.path.parent)
    return given


def _run_name(given: Folder, checkpoint: Folder) -> str:
    """The name of the run folder, also if one of its checkpoints was given."""
    if checkpoint.parent == given.parent and is_in_a_run(given.name):
        return given.parent.name
    return given.name


def experiment_of(run: str | os.PathLike[str]) -> Experiment:
    """The experiment of a run folder, a checkpoint or an exported model, without its networks."""
    given = _distrusted(run)
    if given.is_local and is_pretrained(given.path):
        return read_config(given.path)[0]
    return Experiment.from_yaml(newest_checkpoint(given).read_text(EXPERIMENT))
