"""The training state, exactly as a checkpoint holds it: networks, their EMA, optimiser moments and
the step.

It has no random state and no loader position: both are functions of the step. A checkpoint is a
folder of safetensors files and a manifest with their sizes and digests. The manifest is written
last. Nothing is unpickled.
"""

from __future__ import annotations

import copy
import os
import re
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
    COPIES,
    EMA,
    EXPERIMENT,
    FILES,
    NETWORKS,
    OPTIMIZERS,
    CheckpointError,
    FileFacts,
    Manifest,
    profile_file,
)
from ray_gen.training import foreach
from ray_gen.training.build import build_networks, build_optimizers
from ray_gen.training.optimizers import PhaseOptimizer

_REPORTED, _UNREPORTED, _PROFILE = "/reported", "/unreported/", "/profile/"
"""Names beside the optimisers' moments, which begin with the name of a phase."""


@dataclass(frozen=True)
class Average:
    """The tensors of the networks and of their EMA, looked up once: in a small network the lookup
    by name takes as long as the arithmetic."""

    averages: list[Tensor]
    values: list[Tensor]
    copies: list[tuple[Tensor, Tensor]]
    """Each tensor that is not averaged, with the tensor that it copies."""

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> None:
        """Move the averages towards the values by `weight`, 0-dimensional, in [0, 1]."""
        for copy_of_it, value in self.copies:
            copy_of_it.copy_(value)
        if self.averages:
            weights = {dtype: weight.to(dtype) for dtype in {a.dtype for a in self.averages}}
            each = [weights[a.dtype] for a in self.averages]
            foreach.lerp_(self.averages, self.values, each)


@dataclass
class State:
    """The training state of one worker. All workers hold the same state."""

    networks: Networks
    ema: Networks
    """Averages of the networks and modules in `objective.sampled_from`, in eval mode."""
    optimizers: dict[str, PhaseOptimizer]
    """By phase."""
    step: int = 0
    """Steps done."""
    settled: dict[str, float] = field(default_factory=dict[str, float])
    """The memory of the objective's stopping rule: see `ray_gen.core.Settles`."""
    unreported: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Values of the steps since the last report, by tag: see `Meter.held`. Empty right after a
    report."""
    reported: int = 0
    """Steps done at the last report, if there is anything unreported."""
    averaged: tuple[str, ...] | None = None
    """Names in `ema` that are averages. The others are copies. None: all are averages."""
    profiles: dict[str, Networks] = field(default_factory=dict[str, Networks])
    """Like `ema`, averages by power functions (`training.profiles`), by width. Only parameters are
    averaged. Buffers are copies: a combination of averages has weights below 0, and a variance must
    not become negative."""

    @classmethod
    def build(cls, experiment: Experiment, objective: Objective, world: World) -> State:
        """The state before the first step: a function of the experiment alone."""
        networks = build_networks(experiment, objective).to(world.device)
        ema = nn.ModuleDict({n: copy.deepcopy(networks[n]) for n in objective.sampled_from})
        ema.eval().requires_grad_(False)
        optimizers = build_optimizers(experiment, objective.phases(), networks)
        profiles = {str(sigma): copy.deepcopy(ema) for sigma in experiment.training.ema_profiles}
        return cls(networks, ema, optimizers, averaged=objective.averaged, profiles=profiles)

    def average(self) -> Average:
        """The operation that moves the averages, buffers included, towards the networks."""
        return self._average_of(self.ema, Tensor)

    def profile_averages(self) -> dict[str, Average]:
        """The operations that move the profiles towards the networks, by width."""
        return {sigma: self._average_of(of, nn.Parameter) for sigma, of in self.profiles.items()}

    def _average_of(self, networks: Networks, kind: type[Tensor]) -> Average:
        """The operation that averages the tensors of this kind and copies the others."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        copies: list[tuple[Tensor, Tensor]] = []
        for name, network in networks.items():
            for average, value in zip(
                _tensors(network).values(), _tensors(self.networks[name]).values(), strict=True
            ):
                if self._is_averaged(name, average, kind):
                    averages.append(average)
                    values.append(value.detach())
                elif not _is_constant(value):
                    copies.append((average, value.detach()))
        return Average(averages, values, copies)

    def _is_averaged(self, network: str, tensor: Tensor, kind: type[Tensor]) -> bool:
        averaged = self.averaged is None or network in self.averaged
        return averaged and tensor.is_floating_point() and isinstance(tensor, kind)

    def non_finite(self) -> str | None:
        """The name of the first weight or moment that is not finite, or None."""
        parts = (_tensors(self.networks), _tensors(self.ema), self.moments())
        for name, tensor in chain.from_iterable(part.items() for part in parts):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return name
        return None

    def save(
        self, folder: Path, experiment: Experiment, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Write a checkpoint into an empty folder: all that is needed to continue training, or to
        sample. Raises OSError if the disk is full."""
        write_tensors(_tensors(self.networks), folder / NETWORKS)
        write_tensors(_tensors(self.ema), folder / EMA)
        unreported = {_UNREPORTED + tag: values for tag, values in self.unreported.items()}
        unreported |= {_REPORTED: torch.tensor(self.reported)} if unreported else {}
        write_tensors(self.moments() | self._of_profiles() | unreported, folder / OPTIMIZERS)
        (folder / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
        Manifest(
            step=self.step,
            images=self.step * experiment.training.global_batch_size,
            settled=self.settled,
            metrics=dict(metrics or {}),
            files={name: FileFacts.of(folder / name) for name in FILES},
        ).write(folder)

    def load(self, folder: Path) -> None:
        """Load a checkpoint strictly: it must hold exactly these tensors, in the same shapes."""
        manifest = Manifest.checked(folder)
        _fill(_tensors(self.networks), read_tensors(folder, NETWORKS), folder / NETWORKS)
        _fill(_tensors(self.ema), read_tensors(folder, EMA), folder / EMA)
        moments = read_tensors(folder, OPTIMIZERS)
        found = sorted(name for name in moments if name.startswith(_UNREPORTED))
        self.unreported = {name.removeprefix(_UNREPORTED): moments.pop(name) for name in found}
        self.reported = int(moments.pop(_REPORTED, manifest.step))
        _fill(self.moments() | self._of_profiles(), moments, folder / OPTIMIZERS)
        self.step = manifest.step
        self.settled = dict(manifest.settled)

    def save_snapshot(self, folder: Path, experiment: Experiment) -> None:
        """Write the profiles into an empty folder, as of their last update. Raises OSError if the
        disk is full."""
        training = experiment.training
        dtype = torch.float16 if training.ema_snapshot_precision == "fp16" else torch.float32
        averages: dict[str, dict[str, Tensor]] = {}
        copies: dict[str, Tensor] = {}
        for sigma, networks in self.profiles.items():
            own = averages[profile_file(sigma)] = {}
            for name, network in networks.items():
                for key, tensor in _tensors(network).items():
                    if self._is_averaged(name, tensor, nn.Parameter):
                        own[f"{name}.{key}"] = tensor.detach().to(dtype)
                    else:
                        copies[f"{name}.{key}"] = tensor  # the same for each
        files = {**averages, COPIES: copies}
        for name, tensors in files.items():
            write_tensors(tensors, folder / name)
        step = self.step - self.step % training.ema_every_steps
        Manifest(
            step=step,
            images=step * training.global_batch_size,
            settled={},
            metrics={},
            files={name: FileFacts.of(folder / name) for name in files},
        ).write(folder)

    def _of_profiles(self) -> dict[str, Tensor]:
        """The tensors of the profiles, as a checkpoint names them."""
        return {
            f"{_PROFILE}{sigma}/{name}": tensor
            for sigma, networks in self.profiles.items()
            for name, tensor in _tensors(networks).items()
        }

    def moments(self) -> dict[str, Tensor]:
        """Optimiser state by `phase/parameter/moment`."""
        return {
            f"{phase}/{name}": tensor
            for phase, optimizer in self.optimizers.items()
            for name, tensor in optimizer.tensors().items()
        }


def _is_constant(value: Tensor) -> bool:
    """Whether a tensor that is not averaged never changes: a parameter that does not train, such as
    those of the autoencoder that decodes samples."""
    return isinstance(value, nn.Parameter) and not value.requires_grad


def copy_of(checkpoint: Path, folder: Path, experiment: Experiment) -> None:
    """Copy a checkpoint's tensors into an empty folder, as a checkpoint of another experiment."""
    manifest = Manifest.checked(checkpoint)
    for name in (NETWORKS, EMA, OPTIMIZERS):
        shutil.copyfile(checkpoint / name, folder / name)
    (folder / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
    files = {**manifest.files, EXPERIMENT: FileFacts.of(folder / EXPERIMENT)}
    replace(manifest, files=files).write(folder)


def load_tensors(folder: Path, name: str, tensors: nn.Module) -> None:
    """Fill a module from one file of a checkpoint. Ignores the entries of other networks."""
    wanted = _tensors(tensors)
    found = read_tensors(folder, name)
    _fill(wanted, {key: found[key] for key in found if key in wanted}, folder / name)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint. Raises CheckpointError if it is damaged."""
    path = folder / name
    Manifest.checked(folder, [name]).check_digest(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


@torch.no_grad()
def _fill(tensors: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    missing, extra = tensors.keys() - found.keys(), found.keys() - tensors.keys()
    if missing or extra:
        word, names = ("lacks", missing) if missing else ("has the unknown tensor", extra)
        raise CheckpointError(
            f"{path}: {word} {sorted(names)[0]}: the checkpoint belongs to another experiment"
        )
    for name, tensor in tensors.items():
        if tensor.shape != found[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, but "
                f"{tuple(tensor.shape)} in the experiment's network: the checkpoint belongs to "
                "another experiment"
            )
        tensor.copy_(found[name])  # keeps the strides of `tensor`


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name."""
    return dict(module.state_dict(keep_vars=True))


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file. Raises OSError, which safetensors hides in an error of its own."""
    try:
        save_file(_on_cpu(tensors), file)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
