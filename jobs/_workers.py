"""A worker of scaling.py: runs all-reduces of some sizes, or the project's own step with its
gradients summed in several ways. `python _workers.py RANK JOB`, with the job in JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray_gen.training.step
from ray_gen.distributed import World, use_cores
from ray_gen.experiment import Experiment
from ray_gen.training.build import build_objective
from ray_gen.training.gradients import FlatSum
from ray_gen.training.loop import build_feed
from ray_gen.training.meter import Meter
from ray_gen.training.sources import open_data
from ray_gen.training.state import State


def _zero_where_none(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


class Silent(FlatSum):
    """No communication, only compute. The result is wrong. Its time is the limit of overlap."""

    def __call__(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """Nothing is summed."""
        _zero_where_none(self._parameters)
        return [other.clone() for other in others]


class EachParameter(FlatSum):
    """One all-reduce for each parameter, and one for each of the others."""

    def __call__(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """As FlatSum."""
        sums = [other.clone() for other in others]
        for tensor in [*_zero_where_none(self._parameters), *sums]:
            self._world.sum_(tensor)
        return sums


class Bf16(FlatSum):
    """Rounds gradients to bf16 before they are sent; gloo adds them up in bf16, too. BatchNorm's
    sums go in fp32, in a separate call, because they contain counts of groups."""

    def __call__(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """As FlatSum."""
        gradients = _zero_where_none(self._parameters)
        flat = torch.cat([gradient.flatten() for gradient in gradients]).bfloat16()
        self._world.sum_(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))
        return _summed_together(others, self._world)


def _summed_together(others: Sequence[Tensor], world: World) -> list[Tensor]:
    if not others:
        return []
    flat = torch.cat([other.flatten() for other in others])
    world.sum_(flat)
    return list(flat.split([other.numel() for other in others]))


class Buckets(FlatSum):
    """All-reduces of four parts, in the order in which the backward pass makes them. Each starts
    when its last gradient is there, and runs during the rest of the backward pass.

    Only for phases of one term and one micro-batch: a gradient must be final when it comes.
    """

    count = 4

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        super().__init__(parameters, world)
        limit = sum(p.numel() for p in self._parameters) / self.count
        self._buckets: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(self._parameters):
            if sum(p.numel() for p in self._buckets[-1]) >= limit:
                self._buckets.append([])
            self._buckets[-1].append(parameter)
            parameter.register_post_accumulate_grad_hook(self._arrived)
        self._flats = [torch.empty(sum(p.numel() for p in b)) for b in self._buckets]
        self._reset()

    def _reset(self) -> None:
        self._missing = [{id(p) for p in bucket} for bucket in self._buckets]
        self._works: list[dist.Work] = []

    def _arrived(self, parameter: Tensor) -> None:
        for missing in self._missing:
            missing.discard(id(parameter))
        while len(self._works) < len(self._buckets) and not self._missing[len(self._works)]:
            self._send()

    def _send(self) -> None:
        """Sends the next bucket. The order is the same on every rank."""
        flat = self._flats[len(self._works)]
        gradients = _zero_where_none(self._buckets[len(self._works)])
        torch._foreach_copy_(self._views_of(flat, gradients), gradients)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._works.append(work)

    @staticmethod
    def _views_of(flat: Tensor, layouts: Sequence[Tensor]) -> list[Tensor]:
        views, offset = [], 0
        for layout in layouts:
            views.append(flat.as_strided(layout.size(), layout.stride(), offset))
            offset += layout.numel()
        return views

    def __call__(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """As FlatSum."""
        while len(self._works) < len(self._buckets):
            self._send()
        sums = _summed_together(others, self._world)
        for work, flat, bucket in zip(self._works, self._flats, self._buckets, strict=True):
            work.wait()
            for parameter, view in zip(bucket, self._views_of(flat, bucket), strict=True):
                parameter.grad = view
        self._reset()
        return sums


class Compared(FlatSum):
    """Sums in fp32, and records the error of a sum in bf16: ‖Δg‖ / ‖g‖ of each phase."""

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        super().__init__(parameters, world)
        self._rounded = Bf16(self._parameters, world)
        self.errors: list[float] = []

    def __call__(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """As FlatSum."""
        own = [gradient.clone() for gradient in _zero_where_none(self._parameters)]
        self._rounded()
        rounded = torch.cat([g.flatten() for g in _zero_where_none(self._parameters)])
        for parameter, gradient in zip(self._parameters, own, strict=True):
            parameter.grad = gradient
        sums = super().__call__(others)
        exact = torch.cat([g.flatten() for g in _zero_where_none(self._parameters)])
        self.errors.append(float((rounded - exact).norm() / exact.norm()))
        return sums


CHOICES: dict[str, type[FlatSum]] = {
    "flat": FlatSum,
    "flat, seed 1": FlatSum,
    "silent": Silent,
    "each": EachParameter,
    "bf16": Bf16,
    "buckets": Buckets,
}


class _Training:
    """A state of the project, and the step that trains it."""

    def __init__(self, experiment: Experiment, kind: type[FlatSum], world: World) -> None:
        objective = build_objective(experiment)
        state = State.build(experiment, objective, world)
        self.meter = Meter(experiment.training.global_batch_size, world)
        ray_gen.training.step.FlatSum = kind  # the name by which the step finds it
        self.step = ray_gen.training.step.Step(experiment, objective, state, world, self.meter)
        ray_gen.training.step.FlatSum = FlatSum
        feed = build_feed(experiment, objective, open_data(experiment).train, world)
        self._batches = iter(feed.steps(0, experiment.steps))

    def seconds(self, steps: int) -> float:
        """Time of a block of steps. Collective: every rank, in the same order."""
        dist.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            self.step(*next(self._batches))
        dist.barrier()
        return time.perf_counter() - start


def choices(job: dict[str, Any], world: World) -> dict[str, Any]:
    """Times the choices in turns, one block a round. Returns the seconds per step and the losses of
    each block, and the error of the gradients in bf16."""
    experiment = Experiment.from_yaml(job["experiment"])
    trainings = {
        name: _Training(experiment.with_fields(seed=int("seed 1" in name)), kind, world)
        for name, kind in CHOICES.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    losses: dict[str, list[dict[str, float]]] = {name: [] for name in trainings}
    for number in range(job["rounds"] + 1):  # the first is not counted: buffers are made
        for name, training in trainings.items():
            elapsed = training.seconds(job["steps"]) / job["steps"]
            losses[name].append(training.meter.report())
            if number:
                seconds[name].append(elapsed)
    compared = _Training(experiment, Compared, world)
    compared.seconds(job["steps"])
    errors = [runner.sum.errors for runner in compared.step._runners]
    return {"seconds": seconds, "losses": losses, "bf16_errors": errors}


def all_reduces(job: dict[str, Any], world: World) -> dict[str, Any]:
    """Seconds of the project's FlatSum on one gradient, by its bytes."""
    seconds: dict[str, list[float]] = {}
    for count in job["sizes"]:
        parameter = nn.Parameter(torch.zeros(count // 4))
        flat_sum = FlatSum([parameter], world)
        for number in range(job["repeats"] + 1):  # the first is not counted: the buffer is made
            parameter.grad = torch.ones_like(parameter)
            dist.barrier()
            start = time.perf_counter()
            flat_sum()
            elapsed = time.perf_counter() - start
            if number:
                seconds.setdefault(str(count), []).append(elapsed)
    return {"seconds": seconds}


def main(rank: int, job: dict[str, Any]) -> None:
    """Joins the other workers, does the job, and writes rank 0's answer."""
    use_cores(1)
    dist.init_process_group(
        "gloo",
        init_method="tcp://10.77.0.1:29511",
        rank=rank,
        world_size=job["workers"],
        timeout=timedelta(seconds=120),
    )
    world = World.joined(torch.device("cpu"))
    answer = {"choices": choices, "all_reduces": all_reduces}[job["kind"]](job, world)
    dist.barrier()
    if rank == 0:
        Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
