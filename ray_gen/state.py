"""Exactly what a checkpoint holds: networks, their EMA, optimiser moments and the step.

No random state and no loader position: both are functions of the step. A checkpoint is a folder of
safetensors files and a manifest with their sizes and digests, written last; nothing is unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_gen import foreach
from ray_gen.build import build_networks, build_optimizers
from ray_gen.core import Networks, Objective
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.optimizers import PhaseOptimizer

FORMAT = 1
MANIFEST = "manifest.json"
NETWORKS = "networks.safetensors"
EMA = "ema.safetensors"
OPTIMIZERS = "optimizers.safetensors"
EXPERIMENT = "experiment.yaml"


class CheckpointError(Refused):
    """A checkpoint that cannot be used, with its path, why, and what to do."""


@dataclass(frozen=True)
class Average:
    """The tensors of networks and those of their EMA, found once: their names take a small network
    as long as their sums."""

    averages: list[Tensor]
    values: list[Tensor]
    copies: list[tuple[Tensor, Tensor]]
    """What is not averaged, and what it is to be equal to."""

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> None:
        """Move by `weight`, 0-dimensional."""
        for copy_of_it, value in self.copies:
            copy_of_it.copy_(value)
        if self.averages:
            weights = {dtype: weight.to(dtype) for dtype in {a.dtype for a in self.averages}}
            each = [weights[a.dtype] for a in self.averages]
            foreach.lerp_(self.averages, self.values, each)


@dataclass
class State:
    """The training state of one worker; all workers hold the same."""

    networks: Networks
    ema: Networks
    """Averages of the networks and modules that are sampled from, in eval mode."""
    optimizers: dict[str, PhaseOptimizer]
    """By phase."""
    step: int = 0
    """Steps done."""
    settled: dict[str, float] = field(default_factory=dict[str, float])
    """What the objective's stopping rule remembers: see `ray_gen.core.Settles`."""
    averaged: tuple[str, ...] | None = None
    """Those of `ema` that are averages; the others are copies. None: all."""

    @classmethod
    def build(cls, experiment: Experiment, objective: Objective, world: World) -> State:
        """The state before the first step: a function of the experiment alone."""
        networks = build_networks(experiment, objective).to(world.device)
        ema = nn.ModuleDict({n: copy.deepcopy(networks[n]) for n in objective.sampled_from})
        ema.eval().requires_grad_(False)
        optimizers = build_optimizers(experiment, objective.phases(), networks)
        return cls(networks, ema, optimizers, averaged=objective.averaged)

    def average(self) -> Average:
        """What moves the averages towards the networks, buffers included."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        copies: list[tuple[Tensor, Tensor]] = []
        for name, network in self.ema.items():
            averages_it = self.averaged is None or name in self.averaged
            for average, value in zip(
                _tensors(network).values(), _tensors(self.networks[name]).values(), strict=True
            ):
                if averages_it and average.is_floating_point():
                    averages.append(average)
                    values.append(value.detach())
                else:
                    copies.append((average, value.detach()))
        return Average(averages, values, copies)

    def non_finite(self) -> str | None:
        """The name of a weight or moment that is not a finite number, or None."""
        parts = (_tensors(self.networks), _tensors(self.ema), self.moments())
        for name, tensor in chain.from_iterable(part.items() for part in parts):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return name
        return None

    def save(
        self, folder: Path, experiment: Experiment, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Write a checkpoint into an empty folder: all that it takes to train on, or to sample."""
        save_file(_on_cpu(_tensors(self.networks)), folder / NETWORKS)
        save_file(_on_cpu(_tensors(self.ema)), folder / EMA)
        save_file(_on_cpu(self.moments()), folder / OPTIMIZERS)
        (folder / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "step": self.step,
            "images": self.step * experiment.training.global_batch_size,
            "settled": self.settled,
            "metrics": dict(metrics or {}),
            "files": {
                name: _facts(folder / name) for name in (NETWORKS, EMA, OPTIMIZERS, EXPERIMENT)
            },
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take over a checkpoint, strictly: every tensor, no other, the same shapes."""
        manifest = read_manifest(folder)
        _fill(_tensors(self.networks), _read(folder, NETWORKS), folder / NETWORKS)
        _fill(_tensors(self.ema), _read(folder, EMA), folder / EMA)
        _fill(self.moments(), _read(folder, OPTIMIZERS), folder / OPTIMIZERS)
        self.step = int(manifest["step"])
        self.settled = dict(manifest["settled"])

    def moments(self) -> dict[str, Tensor]:
        """Optimiser state by `phase/parameter/moment`."""
        return {
            f"{phase}/{name}": tensor
            for phase, optimizer in self.optimizers.items()
            for name, tensor in optimizer.tensors().items()
        }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there and whole."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: is no complete checkpoint, {MANIFEST} is missing (it is written last)"
        ) from None
    manifest = parsed_manifest(text, str(path))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    check_sizes(manifest, sizes, str(folder))
    return manifest


def check_sizes(manifest: dict[str, Any], sizes: Mapping[str, int], where: str) -> None:
    """Raises CheckpointError unless all files are there, and as long as the manifest says."""
    for name, facts in manifest["files"].items():
        size, whole = sizes.get(name), facts["bytes"]
        if size != whole:
            found = "is missing" if size is None else f"has {size} bytes instead of {whole}"
            raise CheckpointError(f"{where}/{name}: {found}; use another checkpoint of the run")


def parsed_manifest(text: str, where: str) -> dict[str, Any]:
    """What a manifest says, if it is one. Raises CheckpointError."""
    try:
        told = json.loads(text)
        known = told["format"] == FORMAT
        if known and not _is_manifest(told):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{where}: is damaged; use another checkpoint of the run") from None
    if not known:
        raise CheckpointError(f"{where}: has format {told['format']}, this version reads {FORMAT}")
    return told


def _is_manifest(told: dict[str, Any]) -> bool:
    files = told["files"]
    numbers = (told["step"], told["images"], *(facts["bytes"] for facts in files.values()))
    return (
        files.keys() == {NETWORKS, EMA, OPTIMIZERS, EXPERIMENT}
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(facts["sha256"], str) for facts in files.values())
        and all(isinstance(told[name], dict) for name in ("settled", "metrics"))
    )


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint all of whose bytes are as they were written."""
    manifest = read_manifest(folder)
    for name, facts in manifest["files"].items():
        _check_digest(folder / name, facts["sha256"])
    return manifest


def copy_of(checkpoint: Path, folder: Path, experiment: Experiment) -> None:
    """A checkpoint's tensors as a checkpoint of another experiment, in an empty folder."""
    manifest = read_manifest(checkpoint)
    for name in (NETWORKS, EMA, OPTIMIZERS):
        shutil.copyfile(checkpoint / name, folder / name)
    (folder / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
    manifest["files"][EXPERIMENT] = _facts(folder / EXPERIMENT)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def load_tensors(folder: Path, name: str, tensors: nn.Module) -> None:
    """Fill a module from one file of a checkpoint; entries of other networks are passed over."""
    wanted = _tensors(tensors)
    found = _read(folder, name)
    _fill(wanted, {key: found[key] for key in found if key in wanted}, folder / name)


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / name
    manifest = read_manifest(folder)
    _check_digest(path, manifest["files"][name]["sha256"])
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _check_digest(path: Path, expected: str) -> None:
    if _digest(path) != expected:
        raise CheckpointError(
            f"{path}: is damaged (its SHA-256 is not the manifest's); use another checkpoint"
        )


@torch.no_grad()
def _fill(tensors: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    missing, extra = tensors.keys() - found.keys(), found.keys() - tensors.keys()
    if missing or extra:
        word, names = ("lacks", missing) if missing else ("has the unknown", extra)
        raise CheckpointError(
            f"{path}: {word} {sorted(names)[0]}: it belongs to another experiment"
        )
    for name, tensor in tensors.items():
        if tensor.shape != found[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(found[name].shape)} and the experiment's network "
                f"{tuple(tensor.shape)}: it belongs to another experiment"
            )
        tensor.copy_(found[name])  # keeps the strides that it has here


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name."""
    return dict(module.state_dict(keep_vars=True))


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
