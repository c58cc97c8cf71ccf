"""About how much memory a worker's device needs, measured by one small step on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ray_gen.core import Objective, Phase
from ray_gen.distributed import World
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.training.build import DTYPES
from ray_gen.training.code import custom_targets
from ray_gen.training.frozen import trainable
from ray_gen.training.labels import labels_in_turn
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Step

FEW = 4
"""Least images of a step."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one worker. Of a GPU, CUDA itself takes some 0.5 GiB more."""

    weights: int
    gradients: int
    """Of the phase with the most; twice, if workers sum them in a flat buffer."""
    optimizers: int
    ema: int
    images: int
    """The training images, if they lie on the device."""
    activations: int
    """Tensors that backward passes of one micro-batch need. What one operation needs for itself
    comes on top."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def memory_of(
    experiment: Experiment,
    objective: Objective,
    *,
    micro_batch: int,
    several: bool = False,
    images: int = 0,
) -> Memory:
    """What a worker needs. micro_batch: images in one forward pass. several: whether there are
    other workers. images: bytes of training images on the device.

    Trains copies with few images, one group, for one step in which all losses are due. Backward
    passes keep something of the weights and something of each image, so two sizes of a group tell
    what a micro-batch keeps. A user's own class gets a whole group. The time and the memory that
    this takes are those of these steps.
    """
    steps = {group: _of_a_step(one, objective) for group, one in _small(experiment).items()}
    few, most = min(steps), max(steps)
    one, other = steps[few], steps[most]
    activations = one.activations * micro_batch // few
    if most > few:
        of_image = (other.activations - one.activations) / (most - few)
        found = round(one.activations + of_image * (micro_batch - few))
        activations = max(other.activations, found)
    return replace(
        one,
        gradients=one.gradients * (2 if several else 1),
        images=images,
        activations=activations,
    )


def _of_a_step(small: Experiment, objective: Objective) -> Memory:
    """Of a step without other workers. Every phase, term and loss that the run comes to is due at
    it. small: a batch is one group."""
    group, phases, world = small.group_size, objective.phases(), World()
    state = State.build(small, objective, world)
    trained = [trainable(small, phase, state.networks) for phase in phases]
    every = [phase.every * math.lcm(1, *_every_of(phase)) for phase in phases]
    starts = (start for phase in phases for start in _starts_of(phase))
    late = max(start for start in starts if start < small.training.images)
    period, first = math.lcm(*every), -(-late // group)
    state.step = -(-(first + 1) // period) * period - 1
    low, high = objective.image_range
    dtype = DTYPES[small.training.precision]
    shape = (group, *small.image_shape)
    given = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    kept = _Kept(_tensors(state.networks))
    step = Step(small, objective, state, world, Meter(group, world))
    with (
        torch.random.fork_rng(devices=[]),  # a step seeds it for users' classes
        torch.autograd.graph.saved_tensors_hooks(kept.pack, _unpack),
    ):
        step(low + given * (high - low), labels_in_turn(small, torch.arange(group)))
    return Memory(
        weights=_bytes(_tensors(state.networks)),
        gradients=max(_bytes(of.values()) for of in trained),
        optimizers=_bytes(state.moments().values()),
        ema=sum(_bytes(_tensors(of)) for of in (state.ema, *state.profiles.values())),
        images=0,
        activations=kept.peak,
    )


def _small(experiment: Experiment) -> dict[int, Experiment]:
    """Copies whose batch is one group, by its size: the two smallest that divide the group of the
    experiment, fit its networks and have at least `FEW` images. Else the whole group."""
    whole = experiment.group_size
    found: dict[int, Experiment] = {}
    if not custom_targets(experiment):
        for group in (n for n in range(FEW, whole // 2 + 1) if whole % n == 0):
            with suppress(ExperimentError):
                found[group] = _of_one_group(experiment, group)
            if len(found) == 2:
                return found
    return {whole: _of_one_group(experiment, whole)}


def _of_one_group(experiment: Experiment, group: int) -> Experiment:
    return experiment.with_fields(
        training__global_batch_size=group,
        training__group_size=group,
        training__micro_batch_size=None,
        training__compile=False,
        workers__count=1,
        lineage=[],
    )


def _starts_of(phase: Phase) -> Iterator[int]:
    """Images from which the phase and its losses are due. 0 is one of them."""
    yield from (0, phase.start_images)
    yield from (weight.start_images for term in phase.terms for weight in term.weights.values())


def _every_of(phase: Phase) -> Iterator[int]:
    for term in phase.terms:
        yield term.every
        yield from (weight.every for weight in term.weights.values())


class _Kept:
    """Counts the bytes of tensors that autograd keeps for backward passes, each storage once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """known: tensors that do not count."""
        self.peak = self._now = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._users: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._known:
            return _Saved(tensor, None)
        self._users[place] = self._users.get(place, 0) + 1
        if self._users[place] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)

        def free() -> None:
            self._users[place] -= 1
            if not self._users[place]:
                self._now -= size

        return _Saved(tensor, free)


class _Saved:
    """A tensor that autograd keeps. It is deleted when autograd needs it no longer."""

    def __init__(self, tensor: Tensor, free: Callable[[], None] | None) -> None:
        self.tensor, self._free = tensor, free

    def __del__(self) -> None:
        if self._free is not None:
            self._free()


def _unpack(saved: _Saved) -> Tensor:
    return saved.tensor


def _tensors(networks: nn.Module) -> list[Tensor]:
    return [*networks.parameters(), *networks.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
