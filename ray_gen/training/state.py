"""Exactly what a checkpoint holds: networks, their EMA, optimiser moments and the step.

No random state and no loader position: both are functions of the step. A checkpoint is a folder of
safetensors files and a manifest with their sizes and digests, written last; nothing is unpickled.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_gen.core import Networks, Objective
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.runs.manifest import (
    EMA,
    EXPERIMENT,
    FILES,
    NETWORKS,
    OPTIMIZERS,
    CheckpointError,
    FileFacts,
    Manifest,
)
from ray_gen.training import foreach
from ray_gen.training.build import build_networks, build_optimizers
from ray_gen.training.optimizers import PhaseOptimizer


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
        Manifest(
            step=self.step,
            images=self.step * experiment.training.global_batch_size,
            settled=self.settled,
            metrics=dict(metrics or {}),
            files={name: FileFacts.of(folder / name) for name in FILES},
        ).write(folder)

    def load(self, folder: Path) -> None:
        """Take over a checkpoint, strictly: every tensor, no other, the same shapes."""
        manifest = Manifest.of(folder)
        _fill(_tensors(self.networks), _read(folder, NETWORKS), folder / NETWORKS)
        _fill(_tensors(self.ema), _read(folder, EMA), folder / EMA)
        _fill(self.moments(), _read(folder, OPTIMIZERS), folder / OPTIMIZERS)
        self.step = manifest.step
        self.settled = dict(manifest.settled)

    def moments(self) -> dict[str, Tensor]:
        """Optimiser state by `phase/parameter/moment`."""
        return {
            f"{phase}/{name}": tensor
            for phase, optimizer in self.optimizers.items()
            for name, tensor in optimizer.tensors().items()
        }


def copy_of(checkpoint: Path, folder: Path, experiment: Experiment) -> None:
    """A checkpoint's tensors as a checkpoint of another experiment, in an empty folder."""
    manifest = Manifest.of(checkpoint)
    for name in (NETWORKS, EMA, OPTIMIZERS):
        shutil.copyfile(checkpoint / name, folder / name)
    (folder / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
    files = {**manifest.files, EXPERIMENT: FileFacts.of(folder / EXPERIMENT)}
    replace(manifest, files=files).write(folder)


def load_tensors(folder: Path, name: str, tensors: nn.Module) -> None:
    """Fill a module from one file of a checkpoint; entries of other networks are passed over."""
    wanted = _tensors(tensors)
    found = _read(folder, name)
    _fill(wanted, {key: found[key] for key in found if key in wanted}, folder / name)


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / name
    Manifest.of(folder).check_digest(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


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
