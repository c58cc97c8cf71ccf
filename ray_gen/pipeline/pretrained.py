"""A folder with a trained model, without its training state. It has the layout of the Hugging Face
hub's mixin: `config.json` and `model.safetensors`.

    {"experiment": {...}, "ray_gen": {"format": 1, "version": ..., "weights": "ema", ...}}

`experiment` is enough to build the networks. So a `PyTorchModelHubMixin` whose `__init__` has an
argument `experiment` can read the folder too. Tensors are named NETWORK.PARAMETER. Nothing is
unpickled, whatever else the folder holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ray_gen.core import Networks, Objective
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.runs.manifest import CheckpointError
from ray_gen.settings import without_place
from ray_gen.storage import Folder
from ray_gen.training.build import build_networks, build_objective, distrust
from ray_gen.training.code import (
    Source,
    check_importable,
    collected,
    held,
    store,
    with_code,
)
from ray_gen.version import __version__

FORMAT = 1
CONFIG = "config.json"
MODEL = "model.safetensors"
DIFFUSERS = "diffusion_pytorch_model.safetensors"

Weights = Literal["ema", "raw"]


def checked_weights(weights: str) -> Weights:
    """The argument, if it is "ema" or "raw". Raises Refused."""
    if weights == "ema":
        return "ema"
    if weights == "raw":
        return "raw"
    raise Refused(
        f"weights: {weights!r} is neither 'ema', the averages over training, nor 'raw', the last "
        "ones"
    )


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device; None: a GPU if there is one. Raises Refused."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise Refused(
            f"device: torch does not know {device!r}; 'cpu', 'cuda' or 'cuda:1' are usual"
        ) from error


def placed(networks: Networks, device: torch.device) -> Networks:
    """The networks on a device, in eval mode and without gradients."""
    try:
        return networks.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        why = str(error).partition("\n")[0]
        raise Refused(f"device: {device} cannot be used: {why}") from error


@dataclass(frozen=True)
class Facts:
    """Facts about a model that are not in its experiment."""

    weights: Weights | None = None
    """ema: averages over training; raw: the last weights. None if unknown."""
    images: int | None = None
    """Number of training images. None if unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """The finite metrics of its checkpoint."""
    name: str | None = None
    """Name of its run. None if unknown."""
    source: str | None = None
    """What it was loaded from, in a few words. None: from no file."""
    code: tuple[Source, ...] = field(default=(), repr=False)
    """The source files of its own classes. Empty if its folder does not hold them."""

    def __str__(self) -> str:
        images = "" if self.images is None else f" of {self.images:,} images"
        head, mark, rest = (self.source or "model in memory").partition(" (")
        kinds = {"ema": ", EMA", "raw": ", raw weights", None: ""}
        return f"{head}{images}{mark}{rest}{kinds[self.weights]}"


def finite_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that JSON can hold: the finite ones."""
    return {tag: float(value) for tag, value in metrics.items() if math.isfinite(float(value))}


def is_pretrained(folder: Path) -> bool:
    """Whether a local folder has a `config.json`. Then it is an exported model, not a run."""
    return (folder / CONFIG).is_file()


def is_of_diffusers(folder: Path) -> bool:
    """Whether a local folder has a `config.json` that names a class of diffusers."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "_class_name" in config and "experiment" not in config


def read_diffusers(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """The class and the tensors of a folder that diffusers wrote. Unpickles nothing. Raises
    CheckpointError."""
    kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["_class_name"]
    if kind not in ("AutoencoderKL", "VQModel"):
        raise CheckpointError(
            f"{folder}: is diffusers' {kind}; ray_gen reads its AutoencoderKL and VQModel (of a "
            "whole pipeline: its folder `vae`)"
        )
    path = folder / DIFFUSERS
    try:
        return kind, load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); save the model with safe_serialization=True"
        ) from error


def published(experiment: Experiment) -> Experiment:
    """The experiment without the fields that only concern the machine of the training.

    Removes storage and evaluation. Keeps only the last part of local paths. Removes user, password
    and query from URIs.
    """
    data = experiment.data.published().model_dump(mode="json")
    changes: dict[str, Any] = {"storage": None, "evaluation": {}, "data": data}
    start = experiment.training.start_from
    if start is not None:
        changes["training__start_from__source"] = without_place(start.source)
    return experiment.with_fields(**changes)


def write_pretrained(
    folder: Path, experiment: Experiment, objective: Objective, networks: Networks, facts: Facts
) -> None:
    """Write both files into an existing folder, with the networks of `objective.sampled_from`, and
    the source files of the model's own classes."""
    sources = facts.code or collected(experiment)
    experiment = with_code(experiment, sources)
    store(Folder(str(folder)), sources)
    tensors = {
        key: tensor.detach().cpu().contiguous()
        for key, tensor in _sampled(objective, networks).state_dict().items()
    }
    # Not `save_file`: only the owner could read its file.
    (folder / MODEL).write_bytes(save(tensors, metadata={"format": "pt"}))
    config = {
        "experiment": published(experiment).model_dump(mode="json"),
        "ray_gen": {
            "format": FORMAT,
            "version": __version__,
            "name": facts.name,
            "weights": facts.weights,
            "images": facts.images,
            "metrics": finite_metrics(facts.metrics),
        },
    }
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _sampled(objective: Objective, networks: Networks) -> Networks:
    """The networks that are used after training."""
    return nn.ModuleDict({name: networks[name] for name in objective.sampled_from})


def read_config(folder: Path) -> tuple[Experiment, Facts]:
    """The experiment of such a folder, and its facts. Raises CheckpointError if it is no such
    folder, ExperimentError if the experiment is not valid."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: is not an exported model, {CONFIG} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); export the run again") from None
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), dict):
        raise CheckpointError(
            f"{path}: has no `experiment`, so it is another program's model; ray_gen loads runs "
            "and folders that `ray-gen export` made"
        )
    about = config.get("ray_gen")  # the mixin's own save_pretrained does not write it
    about = about if isinstance(about, dict) else {}
    if about.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path}: has format {about['format']} of ray_gen {about.get('version')}; this version "
            f"({__version__}) reads format {FORMAT}: install the other version"
        )
    experiment = Experiment.of(config["experiment"])
    facts = Facts(
        about.get("weights"),
        about.get("images"),
        about.get("metrics") or {},
        about.get("name") or experiment.name,  # exports of 0.1 have no name of their run
        "exported model",
        held(Folder(str(folder)), experiment),
    )
    return experiment, facts


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of such a folder, by `network.name`. Raises CheckpointError."""
    path = folder / MODEL
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; ray_gen loads weights only from this file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); export the run again") from error


def read_pretrained(
    folder: Path, *, weights: Weights = "ema", device: str | torch.device | None = None
) -> tuple[Experiment, Objective, Networks]:
    """The arguments of `Pipeline`, read from such a folder. The networks are in eval mode.

    weights "ema" accepts any weights, "raw" refuses averages. device None: a GPU if there is one.
    Imports the classes of a `kind: custom` model and calls them with their options, as loading a
    run does. Raises Refused, CheckpointError, ExperimentError.
    """
    weights, device = checked_weights(weights), checked_device(device)
    distrust(folder)
    experiment, facts = read_config(folder)
    if weights == "raw" and facts.weights == "ema":
        raise CheckpointError(
            f"{folder}: holds averaged weights (EMA) and no raw ones; use the run itself, or "
            "export it with --weights raw"
        )
    programs = [file.name for file in sorted(folder.glob("*.pt2")) + sorted(folder.glob("*.onnx"))]
    check_importable(Folder(str(folder)), experiment, programs)
    objective = build_objective(experiment)
    networks = build_networks(experiment, objective, objective.sampled_from)
    path, tensors = folder / MODEL, read_tensors(folder)
    try:
        networks.load_state_dict(tensors)  # strict; it copies the values, so strides stay
    except RuntimeError as error:
        problem = " ".join(str(error).splitlines()[1].split()) if "\n" in str(error) else error
        raise CheckpointError(f"{path}: does not fit its {CONFIG}: {problem}") from None
    return experiment, objective, placed(networks, device)
