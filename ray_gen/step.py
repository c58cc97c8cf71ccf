"""One step: for each due phase freeze, loss, backward, sum over workers, optimiser; then the EMA.

The only file that toggles `requires_grad`, runs a backward pass or moves a weight. A step is one
global batch of real images; phases, terms and noise come from the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import FunctionType

import torch
from torch import Tensor, nn

from ray_gen.build import DTYPES
from ray_gen.core import (
    Batch,
    Losses,
    Networks,
    Objective,
    Phase,
    PhaseModule,
    Term,
    phase_modules,
)
from ray_gen.distributed import FlatSum, World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.meter import Meter
from ray_gen.noise import Tape, seed_of
from ray_gen.schedule import ema_decay, learning_rate_factor
from ray_gen.state import State

TermLoss = Callable[
    [Tensor, Tensor | None, dict[str, Tensor], Tensor], tuple[tuple[str, ...], Tensor, Tensor]
]
"""(images, labels, noise, images_seen) of a micro-batch to tags, sums over its images (tags,), and
the term's part of the loss."""

TermRun = Callable[
    [Tensor, Tensor | None, dict[str, Tensor], Tensor], tuple[tuple[str, ...], Tensor]
]
"""The same, which adds the gradients to the parameters' `grad` in the place of giving the loss."""


class _PhaseRunner:
    """A phase with what it needs on this rank."""

    def __init__(
        self, phase: Phase, experiment: Experiment, state: State, world: World, images: Tensor
    ) -> None:
        self.phase = phase
        self.optimizer = state.optimizers[phase.name]
        self.settings = self.optimizer.settings = experiment.optimizers[phase.name]
        self.parameters = self.optimizer.parameters
        self.modules: list[PhaseModule] = [
            module for name in phase.updates for module in phase_modules(state.networks[name])
        ]
        self.tape = Tape(phase.noise, experiment.seed, phase.name, phase.every, images)
        self.sum = FlatSum(self.parameters, world)
        self.runs: dict[str, TermRun] = {}
        for term in phase.terms:
            loss = _term_loss(term, state.networks, experiment)
            self.runs[term.name] = (
                _compiled(loss, self.parameters, images.device)
                if experiment.training.compile
                else _eager(loss)
            )

    def due_terms(self, step: int) -> Sequence[Term]:
        """The terms of this update; `every` of a term counts updates of its phase."""
        update = (step + 1) // self.phase.every
        return [term for term in self.phase.terms if update % term.every == 0]


class Step:
    """Trains `state` on one global batch a call, this rank's part of it."""

    def __init__(
        self,
        experiment: Experiment,
        objective: Objective,
        state: State,
        world: World,
        meter: Meter,
    ) -> None:
        training = experiment.training
        part = images_per_rank(experiment, world)
        images = torch.arange(part.start, part.stop, device=world.device)
        self._experiment = experiment
        self._state = state
        self._world = world
        self._meter = meter
        self._dtype = DTYPES[training.precision]
        self._part = len(part)
        self._micro_batch = min(training.micro_batch_size or self._part, self._part)
        self._runners = [
            _PhaseRunner(phase, experiment, state, world, images) for phase in objective.phases()
        ]
        # torch's generators are seeded only where a user's class may draw from them.
        self._seeds_torch = "custom" in {
            experiment.objective.kind,
            *(network.kind for network in experiment.networks.values()),
        }
        self._trainable: tuple[str, ...] | None = None
        state.networks.train()

    def __call__(self, images: Tensor, labels: Tensor | None) -> None:
        """images: this rank's part of the global batch, (N, C, H, W); labels: (N,) or None.

        Collective: every rank, same order.
        """
        step = self._state.step
        for runner in self._runners:
            if (step + 1) % runner.phase.every == 0:
                self._run(runner, step, images, labels)
        self._state.step = step + 1
        self._update_ema()

    def _run(self, runner: _PhaseRunner, step: int, images: Tensor, labels: Tensor | None) -> None:
        phase = runner.phase
        self._make_trainable(phase.updates)
        for module in runner.modules:
            module.begin_phase()
        if self._seeds_torch:
            torch.manual_seed(seed_of(self._experiment.seed, phase.name, step, self._world.rank))
        noise = runner.tape[step]
        seen = torch.full(
            (), float(step * self._global_batch_size), dtype=self._dtype, device=images.device
        )
        terms = runner.due_terms(step)
        for start in range(0, self._part, self._micro_batch):
            part = slice(start, start + self._micro_batch)
            drawn = {name: values[part].to(self._dtype) for name, values in noise.items()}
            own = None if labels is None else labels[part]
            for term in terms:
                tags, sums = runner.runs[term.name](images[part], own, drawn, seen)
                self._meter.record(f"{phase.name}/{term.name}", step, tags, sums)
        statistics = [m.phase_statistics() for m in runner.modules]
        sums = iter(runner.sum([s for s in statistics if s is not None]))
        rate = runner.settings.learning_rate * learning_rate_factor(
            runner.settings.schedule, step * self._global_batch_size
        )
        if runner.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(runner.parameters, runner.settings.clip_norm, foreach=True)
        runner.optimizer.step(rate)
        for parameter in runner.parameters:
            parameter.grad = None
        for module, own in zip(runner.modules, statistics, strict=True):
            module.end_phase(None if own is None else next(sums))

    def _make_trainable(self, names: tuple[str, ...]) -> None:
        """Only these networks get gradients: backward stops at the others' weights, and their
        forward passes on constants build no graph."""
        if self._trainable == names:
            return
        for name, network in self._state.networks.items():
            network.requires_grad_(name in names)
        self._trainable = names

    @property
    def _global_batch_size(self) -> int:
        return self._experiment.training.global_batch_size

    def _update_ema(self) -> None:
        training = self._experiment.training
        step = self._state.step
        if step % training.ema_every_steps:
            return
        since = training.ema_every_steps * self._global_batch_size
        images = step * self._global_batch_size
        decay = ema_decay(images, since, training.ema_half_life_images, training.ema_ramp)
        self._state.update_ema(1.0 - decay)


def _term_loss(term: Term, networks: Networks, experiment: Experiment) -> TermLoss:
    """One term, weighted, of the mean over the global batch."""
    autocast = experiment.training.precision == "bf16" and not term.full_precision
    scale = term.weight * term.every / experiment.training.global_batch_size

    def loss(
        images: Tensor, labels: Tensor | None, noise: dict[str, Tensor], seen: Tensor
    ) -> tuple[tuple[str, ...], Tensor, Tensor]:
        precision = (
            torch.autocast(images.device.type, torch.bfloat16) if autocast else nullcontext()
        )
        with precision:
            losses = term.loss(networks, Batch(images, labels, noise, seen))
        tagged = _by_tag(term, losses, len(images))
        columns = torch.stack([value.detach() for value in tagged.values()])
        total = torch.stack([value.sum() for value in losses.minimised.values()]).sum()
        return tuple(tagged), columns.sum(1), total * scale

    return loss


def _eager(loss: TermLoss) -> TermRun:
    """By torch's own kernels."""

    def run(
        images: Tensor, labels: Tensor | None, noise: dict[str, Tensor], seen: Tensor
    ) -> tuple[tuple[str, ...], Tensor]:
        tags, sums, total = loss(images, labels, noise, seen)
        total.backward()
        return tags, sums

    return run


def _compiled(loss: TermLoss, parameters: list[nn.Parameter], device: torch.device) -> TermRun:
    """One graph of a term's forward and backward passes, penalties' double backward included; on a
    GPU a CUDA graph. Raises Refused where torch or the machine cannot compile.
    """
    import torch._dynamo
    import torch._dynamo.exc

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise Refused(
            f"training.compile: the compiler of torch {torch.__version__} cannot trace gradients; "
            "install a newer torch, or set it to false"
        )
    torch._dynamo.config.trace_autograd_ops = True  # pyright: ignore

    def gradients(
        images: Tensor, labels: Tensor | None, noise: dict[str, Tensor], seen: Tensor
    ) -> tuple[tuple[str, ...], Tensor, tuple[Tensor | None, ...]]:
        tags, sums, total = loss(images, labels, noise, seen)
        return tags, sums, torch.autograd.grad(total, parameters, allow_unused=True)

    assert isinstance(gradients, FunctionType)
    # Graphs are kept by code object, at most eight each: a copy of its own for every term.
    own = FunctionType(
        gradients.__code__.replace(), gradients.__globals__, closure=gradients.__closure__
    )
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    graph = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)

    def run(
        images: Tensor, labels: Tensor | None, noise: dict[str, Tensor], seen: Tensor
    ) -> tuple[tuple[str, ...], Tensor]:
        try:
            tags, sums, found = graph(images, labels, noise, seen)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise Refused(
                f"training.compile: this cannot be compiled ({str(error).splitlines()[0]}); set it "
                "to false"
            ) from error
        _accumulate(parameters, found)
        return tags, sums

    return run


def _accumulate(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add what a graph returned to each `grad`, in memory of its own: two parameters may share one
    gradient, and a CUDA graph writes its next ones to the same place. Strides are the parameter's:
    fused optimisers walk both at once."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad += gradient


def _by_tag(term: Term, losses: Losses, count: int) -> Mapping[str, Tensor]:
    """What the meter records: minimised losses under `loss/`, the rest under its own tag."""
    tagged = {f"loss/{name}": value for name, value in losses.minimised.items()}
    tagged.update(losses.reported)
    for tag, value in tagged.items():
        if value.shape != (count,):
            raise ValueError(
                f"term {term.name}: {tag} has shape {tuple(value.shape)}; a term returns one value "
                "for each image, (N,), and the step averages over the global batch"
            )
    return tagged


def images_per_rank(experiment: Experiment, world: World) -> range:
    """The part of the global batch that this rank trains on."""
    group = experiment.group_size
    groups = world.share(experiment.training.global_batch_size // group)
    return range(groups.start * group, groups.stop * group)
