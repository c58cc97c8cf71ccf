"""A step as a program: recorded and replayed, and run where there is no data and no device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import proxy_tensor

from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.training.build import DTYPES, build_objective, build_optimizers
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Program, Step


class Recorded:
    """Runs a program once as it is, since it may make its buffers then. The second run records
    every operation. Later runs only repeat the record.

    The recorder would cast a weight anew for each of its uses; a step casts it once.
    """

    recordings: int = 0

    def __init__(self, program: Program) -> None:
        self._program = program
        self._graph: Any = None
        self._runs = 0

    def __call__(self, images: Tensor, labels: Tensor | None) -> None:
        self._runs += 1
        if self._runs == 1:
            self._program(images, labels)
        elif self._graph is None:
            with (
                patch.object(proxy_tensor, "disable_autocast_cache", contextlib.nullcontext),
                # The recorder keeps a fake of every value. Nobody reads them, and they take 60 % of
                # its time.
                patch.object(proxy_tensor, "extract_val", lambda *given, **named: None),
            ):
                self._graph = proxy_tensor.make_fx(self._program)(images, labels)
            Recorded.recordings += 1
        else:
            with torch.no_grad():
                self._graph(images, labels)


def replayed(
    this: Experiment, batches: list[tuple[Tensor, Tensor | None]]
) -> tuple[State, dict[str, float]]:
    """The state after these steps and the meter's report. All but the first two steps of each
    program are replayed."""
    return _stepped(this, batches, Recorded)


def eager(
    this: Experiment, batches: list[tuple[Tensor, Tensor | None]]
) -> tuple[State, dict[str, float]]:
    """The same, each step run as it is written."""
    return _stepped(this, batches, None)


def _stepped(this: Experiment, batches: Any, record: Any) -> tuple[State, dict[str, float]]:
    objective = build_objective(this)
    state = State.build(this, objective, World())
    meter = Meter(this.training.global_batch_size, World())
    step = Step(this, objective, state, World(), meter, record)
    for images, labels in batches:
        step(images, labels)
    return state, meter.report()


def runs_on_meta(this: Experiment, steps: int) -> None:
    """Steps of fake tensors on "meta", which know shapes, types and devices and no number: reading
    one (`.item()`, `float()`, `if tensor:`) raises, and so does a tensor of another device."""
    objective = build_objective(this)
    real = State.build(this, objective, World())
    with FakeTensorMode(), _kernels_that_torch_has_not():
        world = World(device=torch.device("meta"))
        for networks in (real.networks, real.ema):
            _make_fake(networks)
        optimizers = build_optimizers(this, objective.phases(), real.networks)
        state = State(real.networks, real.ema, optimizers, averaged=objective.averaged)
        step = Step(this, objective, state, world, Meter(this.training.global_batch_size, world))
        batch, dtype = this.training.global_batch_size, DTYPES[this.training.precision]
        images = torch.empty(batch, *this.image_shape, dtype=dtype, device="meta")
        labels = None
        if this.needs_labels:
            labels = torch.empty(batch, dtype=torch.int64, device="meta")
        for _ in range(steps):
            step(images, labels)


def _make_fake(networks: nn.Module) -> None:
    """Tensors of the same shapes, strides and types on "meta"."""
    for module in networks.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                fake: Tensor = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
                )
                is_parameter = isinstance(tensor, nn.Parameter)
                held[name] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake


@contextlib.contextmanager
def _kernels_that_torch_has_not() -> Iterator[None]:
    """torch 2.14 has no kernel on "meta" for fused optimisers whose rate is a tensor, and for no
    fused SGD. These kernels write in place, so one that does nothing is correct. torch's autocast
    raises on "meta". Without autocast the operations are the same, in other types."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    for name in (
        "_fused_sgd_",
        "_fused_sgd_.tensor_lr",
        "_fused_adam_.tensor_lr",
        "_fused_adamw_.tensor_lr",
    ):
        with contextlib.suppress(RuntimeError):  # a later torch may have it
            library.impl(name, lambda *given, **named: None)
    autocast = torch.autocast
    torch.autocast = lambda *given, **named: contextlib.nullcontext()  # type: ignore
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore
        library._destroy()
