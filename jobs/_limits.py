"""How near a step comes to what the machine can compute: floating point operations a second, as a
share of the best that large matrix products and wide convolutions reach in the same run."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.training.build import build_objective
from ray_gen.training.loop import build_feed
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Step


def flops_of(run: Callable[[], object]) -> float:
    """Floating point operations of matrix products and convolutions while `run` runs. A product and
    a sum count as two.

    torch's own counter takes the weight gradient of a convolution in groups for one without groups.
    """
    formulas = {torch.ops.aten.convolution_backward: _of_convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return float(counter.get_total_flops())


def _of_convolution_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    *others: Any,
    **more: Any,
) -> int:
    """Each gradient, of the input and of the weight, costs as much as the forward pass. All
    arguments are those of the operator, with shapes for tensors."""
    del more
    transposed, wanted = others[4], others[7]
    places = math.prod(x[2:]) if transposed else math.prod(gradient[2:])
    return 2 * x[0] * places * math.prod(weight) * (wanted[0] + wanted[1])


@dataclass
class Measured:
    """One thing that computes, and what it reached."""

    name: str
    run: Callable[[], object]
    """Once: a step, or one large product."""
    images: int
    """Of one call; 0: no images."""
    flops: float
    """Of one call, on average over calls."""
    passes: Mapping[str, float] = field(default_factory=dict[str, float])
    """Forward passes of each network in a step, on average over steps."""
    seconds: list[float] = field(default_factory=list[float])
    """Of one call, by round."""

    @property
    def flops_per_second(self) -> float:
        """The median over rounds."""
        return self.flops / median(self.seconds)


def peaks(device: torch.device) -> list[Measured]:
    """A product of two matrices of 2048 x 2048, and a 3 x 3 convolution of 256 channels on 16 maps
    of 32 x 32, forward: float32, channels-last."""
    size = 2048
    left, right = torch.randn(2, size, size, device=device).unbind()
    maps = torch.randn(16, 256, 32, 32, device=device)
    maps = maps.to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    return [
        Measured("torch.mm, 2048 x 2048", lambda: torch.mm(left, right), 0, 2.0 * size**3),
        Measured(
            "3 x 3 convolution, 256 channels",
            lambda: F.conv2d(maps, weight, padding=1),
            0,
            2.0 * 16 * 32 * 32 * 256 * 256 * 9,
        ),
    ]


def step_of(name: str, experiment: Experiment, store: Store, device: torch.device) -> Measured:
    """The training step of an experiment, on one batch that lies on the device.

    FLOPs and passes are means over one period of the step: of penalties that are due every 16th
    update, for example.
    """
    world = World(device=device)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, world)
    step = Step(
        experiment, objective, state, world, Meter(experiment.training.global_batch_size, world)
    )
    feed = build_feed(experiment, objective, store, world)
    images, labels = next(iter(feed.steps(0, experiment.steps)))
    calls: Counter[str] = Counter()
    hooks = [
        network.register_forward_pre_hook(_counting(calls, of))
        for of, network in state.networks.items()
    ]
    period = step.period

    def run() -> None:
        step(images, labels)

    flops = flops_of(lambda: [run() for _ in range(period)]) / period
    for hook in hooks:
        hook.remove()
    passes = {of: count / period for of, count in calls.items()}
    return Measured(name, run, len(images), flops, passes)


def _counting(calls: Counter[str], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        del module, given
        calls[name] += 1

    return count


def measure(all_: Sequence[Measured], rounds: int, seconds: float, device: torch.device) -> None:
    """Times all in turns: each for about `seconds` a round."""
    counts = {one.name: 1 for one in all_}
    for one in all_:
        while _timed(one, counts[one.name], device) < seconds / 4:
            counts[one.name] *= 2
        elapsed = _timed(one, counts[one.name], device)
        counts[one.name] = max(1, round(counts[one.name] * seconds / elapsed))
    for _ in range(rounds):
        for one in all_:
            one.seconds.append(_timed(one, counts[one.name], device) / counts[one.name])


def _timed(one: Measured, count: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        one.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def table(best: Sequence[Measured], steps: Sequence[Measured]) -> str:
    """Peaks, then a row for each step: images/s, GFLOPs an image, shares of the peaks, passes."""
    lines = [f"{one.name}: {one.flops_per_second / 1e9:,.0f} GFLOP/s" for one in best]
    heads = ["images/s", "GFLOP/image", *(f"of {one.name.split(',')[0]}" for one in best), "passes"]
    rows = [["", *heads]]
    for one in steps:
        shares = [f"{one.flops_per_second / peak.flops_per_second:.0%}" for peak in best]
        passes = ", ".join(f"{name} {count:g}" for name, count in one.passes.items())
        speed = one.images / median(one.seconds)
        rows.append(
            [one.name, f"{speed:,.0f}", f"{one.flops / one.images / 1e9:.3f}", *shares, passes]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
