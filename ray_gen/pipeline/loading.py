"""Load a run folder, or an exported folder, as a model."""

from __future__ import annotations

import os
import sys
import weakref
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import (
    Facts,
    Weights,
    checked_device,
    checked_weights,
    finite_metrics,
    is_pretrained,
    placed,
    read_config,
    read_pretrained,
)
from ray_gen.runs.checkpoints import (
    BEST,
    NEWEST,
    Choice,
    chosen_checkpoint,
    fetched,
    is_in_a_run,
    name_of_averages,
    newer_ones,
    run_of,
)
from ray_gen.runs.manifest import EMA, EXPERIMENT, MANIFEST, NETWORKS, OF_A_MODEL, Manifest
from ray_gen.runs.names import run_folder
from ray_gen.storage import Folder
from ray_gen.training.build import build_networks, build_objective, distrust
from ray_gen.training.code import changed, check_importable, collected, held, stored
from ray_gen.training.code import trust as trust_sources
from ray_gen.training.state import load_tensors

_Model = TypeVar("_Model", bound=Model)


def load_as(
    kind: type[_Model],
    run: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    device: str | torch.device | None = None,
    checkpoint: Choice = NEWEST,
    trust_code: bool = False,
) -> _Model:
    """Load a run, a checkpoint or an exported folder as a `kind`: see `pipeline.load`."""
    weights, device = checked_weights(weights), checked_device(device)
    given = _distrusted(run, checkpoint)
    if trust_code:
        trust(run, checkpoint)
    if given.is_local and is_pretrained(given.path):
        return pretrained_as(kind, given.path, weights=weights, device=device)
    with ExitStack() as stack:
        found, folder = stack.enter_context(fetched(given, OF_A_MODEL, checkpoint))
        file = EMA if weights == "ema" else NETWORKS
        manifest = Manifest.of_weights(folder, file)
        experiment = Experiment.from_yaml(Folder(str(folder)).read_text(EXPERIMENT))
        check_importable(_holder(given), experiment)
        objective = build_objective(experiment)
        networks = build_networks(experiment, objective, objective.sampled_from)
        load_tensors(folder, file, networks)
        placed(networks, device)
        _tell_if_changed(_holder(given), experiment)
        facts = _facts(given, found, checkpoint, manifest, weights)
        facts = replace(facts, code=held(_holder(given), experiment))
        model = kind(experiment, objective, networks, folder, facts)
        weakref.finalize(model, stack.pop_all().close)  # the model may still read its discriminator
        return model


def pretrained_as(
    kind: type[_Model],
    folder: Path,
    *,
    weights: Weights = "ema",
    device: str | torch.device | None = None,
) -> _Model:
    """Load an exported folder as a `kind`."""
    parts = read_pretrained(folder, weights=weights, device=device)
    _tell_if_changed(Folder(str(folder)), parts[0])
    return kind(*parts, facts=read_config(folder)[1])


def facts_of(
    run: str | os.PathLike[str], weights: Weights = "ema", checkpoint: Choice = NEWEST
) -> Facts:
    """The facts of the model that `load_as` would load now. Reads no weights."""
    given = _distrusted(run, checkpoint)
    if given.is_local and is_pretrained(given.path):
        return read_config(given.path)[1]
    found = chosen_checkpoint(given, checkpoint)
    return _facts(given, found, checkpoint, Manifest.unchecked(found), weights)


def _facts(
    given: Folder, found: Folder, choice: Choice, manifest: Manifest, weights: Weights
) -> Facts:
    """The facts of a model that is loaded from the checkpoint `found` of the folder `given`."""
    source = "checkpoint"
    taken = choice == NEWEST and found.location != given.location
    newer = newer_ones(given, found) if taken else []
    why = f"; {newer[0]} has no {MANIFEST}, so it is not whole" if newer else ""
    made = name_of_averages(found.name)
    if made is not None:
        source += f" ({made})"
    elif found.location == (given / BEST).location:
        source += f" (best{why})"
    elif taken:
        source += f" (newest{why})"
    metrics = finite_metrics(manifest.metrics)
    return Facts(weights, manifest.images, metrics, run_of(given).name, source)


def _distrusted(run: str | os.PathLike[str], checkpoint: Choice = NEWEST) -> Folder:
    """The given folder, marked as not trusted. For a checkpoint its run folder is marked too."""
    given = run_folder(run)
    if given.is_local:
        distrust(given.path)
        if is_in_a_run(given.name):
            distrust(given.path.parent)
        if checkpoint != NEWEST and is_pretrained(given.path):
            raise Refused(
                f"checkpoint: {given.location} is an exported model and has none; leave it out"
            )
    return given


def trust(run: str | os.PathLike[str], checkpoint: Choice = NEWEST) -> None:
    """From now on this process runs the source files of the own classes that a run, a checkpoint or
    an exported folder holds. Says on stderr which files these are. Raises Refused if one is missing
    or was changed."""
    given = _distrusted(run, checkpoint)
    sources = stored(_holder(given), experiment_of(run, checkpoint))
    for source in sources:
        print(f"running {source.place} (SHA-256 {source.sha256})", file=sys.stderr)
    trust_sources(sources)


def _tell_if_changed(holder: Folder, experiment: Experiment) -> None:
    """Says on stderr if the own classes here differ from those that the model was trained with."""
    differs = changed(holder, experiment, collected(experiment))
    if differs is not None:
        print(f"{differs} (trust_code=True in Python)", file=sys.stderr)


def _holder(given: Folder) -> Folder:
    """The folder that holds the source files of a given folder's own classes."""
    return given.parent if is_in_a_run(given.name) else given


def experiment_of(run: str | os.PathLike[str], checkpoint: Choice = NEWEST) -> Experiment:
    """The experiment of a run folder, a checkpoint or an exported model, without its networks."""
    given = _distrusted(run, checkpoint)
    if given.is_local and is_pretrained(given.path):
        return read_config(given.path)[0]
    return Experiment.from_yaml(chosen_checkpoint(given, checkpoint).read_text(EXPERIMENT))
