"""One step: for each due phase freeze, loss, backward, sum over workers, optimiser; then the EMA.

Only this file toggles `requires_grad`, runs a backward pass or moves a weight. A step trains on one
global batch of real images. Phases, terms and noise come from the objective.

A step runs one of a few *programs* on the device. The due phases, terms and losses determine which
one. Everything else that changes from step to step lies in buffers (`block.py`), so a program can
be recorded once and replayed. The host works only before and after the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import FunctionType

import torch
from torch import Tensor, nn

from ray_gen.core import (
    Batch,
    Losses,
    Networks,
    Number,
    Objective,
    Phase,
    PhaseModule,
    Term,
    Weight,
    begin_phases,
    declared,
    parametrised,
    phase_modules,
    value_at,
)
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.noise import Tape, seed_of
from ray_gen.training.block import Block, Numbers
from ray_gen.training.build import DTYPES
from ray_gen.training.frozen import frozen_modules
from ray_gen.training.gradients import FlatSum
from ray_gen.training.meter import Meter, TagSums
from ray_gen.training.optimizers import clip_
from ray_gen.training.profiles import exponent_of, profile_decay
from ray_gen.training.schedule import ema_decay
from ray_gen.training.state import State

Program = Callable[[Tensor, Tensor | None], None]
"""All the work of a step on the device, given this rank's images (N, C, H, W) and labels (N,)."""

Recorder = Callable[[Program], Program]
"""Turns a program into an equivalent one: a recording, for example."""

TermLoss = Callable[
    [Tensor, Tensor | None, dict[str, Tensor], dict[str, Tensor]],
    tuple[tuple[str, ...], Tensor, Tensor | None],
]
"""Takes (images, labels, noise, numbers) of a micro-batch. Returns tags, sums over its images
(tags, 1), and the term's part of the loss (None if no loss is due). numbers: see `_PhaseRunner`."""

TermRun = Callable[
    [Tensor, Tensor | None, dict[str, Tensor], dict[str, Tensor]], tuple[tuple[str, ...], Tensor]
]
"""Like `TermLoss`, but adds the gradients to the parameters' `grad` and does not return a loss."""

Due = tuple[tuple[str, frozenset[str]], ...]
"""The due terms of a phase, each with the due names in its `weights`."""

_SEEN = "images_seen"
_EMA = "ema"
_LONGEST_PERIOD = 4096
"""Largest number of steps whose `_Turn` is cached."""


class _PhaseRunner:
    """A phase and all that it needs on this rank.

    The optimiser gets its own numbers. The terms get `_SEEN`, the numbers of `Phase.numbers` by
    name, and the weights by the names from `_weight`. A number that never changes is a Python
    float, fixed in the program. But the numbers of `Phase.numbers` are always tensors.
    """

    def __init__(
        self, phase: Phase, experiment: Experiment, state: State, world: World, images: Tensor
    ) -> None:
        """images: int64 (N,), this rank's indices in the global batch, on the device."""
        self.phase = phase
        self.optimizer = state.optimizers[phase.name]
        self.optimizer.settings = experiment.optimizers[phase.name]
        self.parameters = self.optimizer.parameters
        self._modules: dict[str, PhaseModule] = {}
        self._originals: dict[str, Tensor] = {}
        frozen = frozen_modules(experiment, state.networks)
        fixed = {inner for module in frozen for inner in module.modules()}
        for name in phase.updates:
            found = phase_modules(state.networks[name], name)
            self._modules |= {path: one for path, one in found.items() if one not in fixed}
            self._originals |= parametrised(state.networks[name], name)
        self._sum = FlatSum(self.parameters, world)
        self._batch = experiment.training.global_batch_size
        self._dtype = DTYPES[experiment.training.precision]
        noise = declared(phase.noise, state.networks)
        of_modules = {
            f"{path}.{name}": spec
            for path, module in self._modules.items()
            for name, spec in module.phase_noise.items()
        }
        # For the largest share of any rank, so that a block has the same length on every rank.
        largest = -(-self._batch // world.size)
        length = min(Tape.length_for(noise, largest), Tape.length_for(of_modules, 1))
        self.block = Block(length, world.device)
        self._tape = Tape(noise, experiment.seed, phase.name, phase.every, images, length)
        once = torch.zeros(1, dtype=torch.int64, device=world.device)
        self._module_tape = Tape(of_modules, experiment.seed, phase.name, phase.every, once, length)
        weights, optimizer = _weights(phase), self.optimizer.numbers()
        self._weights = _constant(weights)
        self._optimizer = _constant(optimizer)
        self._own = {
            name: torch.full((), value, dtype=self._dtype, device=world.device)
            for name, value in _constant(phase.numbers).items()
        }
        moving = _moving({**phase.numbers, **weights})
        self._numbers = Numbers({**moving, _SEEN: float}, length, self._dtype, world.device)
        # In float64, like the optimiser's settings that never change (Python floats).
        rates = _moving(optimizer)
        self._rates = Numbers(rates, length, torch.float64, world.device) if rates else None
        self._terms = {term.name: term for term in phase.terms}
        of_losses = [weight.every for term in phase.terms for weight in term.weights.values()]
        self.period = phase.every * math.lcm(*(term.every for term in phase.terms), *of_losses)
        """Number of steps after which the pattern of due terms and losses repeats, once all have
        started."""
        late = {
            phase.start_images,
            *(w.start_images for t in phase.terms for w in t.weights.values()),
        }
        self.starts = {self._first_step(images) for images in late}
        """Steps at which the phase or a loss is due for the first time."""
        self._runs: dict[tuple[str, frozenset[str]], TermRun] = {}
        self._networks, self._experiment, self._device = state.networks, experiment, world.device

    def is_due(self, step: int) -> bool:
        """Whether this step has an update of the phase."""
        started = step >= self._first_step(self.phase.start_images)
        return started and (step + 1) % self.phase.every == 0

    def _first_step(self, images: int) -> int:
        """The first step that begins at `images` images or more."""
        return -(-images // self._batch)

    def due(self, step: int) -> Due:
        """The due terms of this step's update. `every` of a term or loss counts updates."""
        update = (step + 1) // self.phase.every

        def is_due(weight: Weight) -> bool:
            return update % weight.every == 0 and step >= self._first_step(weight.start_images)

        return tuple(
            (term.name, frozenset(n for n, w in term.weights.items() if is_due(w)))
            for term in self.phase.terms
            if update % term.every == 0
        )

    def begin(self, step: int, meter: Meter) -> None:
        """The host's work before the program. Fills a new block if the last one has ended."""
        every = self.phase.every
        if self.block.begin((step + 1) // every - 1):
            first = self.block.first
            self._tape.fill(first)
            self._module_tape.fill(first)
            for numbers in (self._numbers, self._rates):
                if numbers is not None:
                    numbers.fill(lambda row: ((first + row + 1) * every - 1) * self._batch)
            meter.turn(self.block)

    def run(
        self,
        terms: Sequence[tuple[str, TermRun]],
        images: Tensor,
        labels: Tensor | None,
        micro_batch: int,
        meter: Meter,
    ) -> None:
        """One update on the device. terms: from `runs_of`. Collective: every rank, same order."""
        begin_phases(self._modules, self._originals)
        noise = self._tape.read(self.block.place)
        numbers = {**self._own, **self._numbers.read(self.block.place)}
        noise = {name: values.to(self._dtype) for name, values in noise.items()}
        for some, of_some, drawn in _micro_batches(images, labels, noise, micro_batch):
            for name, term in terms:
                tags, sums = term(some, of_some, drawn, numbers)
                if tags:
                    meter.record(name, tags, sums, self.block)
        statistics = [module.phase_statistics() for module in self._modules.values()]
        totals = self._sum([own for own in statistics if own is not None])
        self._update_weights()
        if self._modules:
            self._move_modules([own is not None for own in statistics], totals)
        self.block.place.add_(1)

    def runs_of(self, due: Due) -> list[tuple[str, TermRun]]:
        """The functions that run the due terms, each with the term's name in the meter."""
        return [(f"{self.phase.name}/{name}", self._run_of(name, losses)) for name, losses in due]

    def _run_of(self, name: str, losses: frozenset[str]) -> TermRun:
        run = self._runs.get((name, losses))
        if run is None:
            term, experiment = self._terms[name], self._experiment
            loss = _term_loss(term, losses, self._networks, experiment, self._weights)
            compiled = experiment.training.compile
            run = _compiled(loss, self.parameters, self._device) if compiled else _eager(loss)
            self._runs[name, losses] = run
        return run

    def _update_weights(self) -> None:
        now: Mapping[str, float | Tensor] = self._optimizer
        if self._rates is not None:
            now = {**now, **self._rates.read(self.block.place)}
        if "clip_norm" in now:
            clip_([p.grad for p in self.parameters if p.grad is not None], now["clip_norm"])
        self.optimizer.step(now)
        for parameter in self.parameters:
            parameter.grad = None

    def _move_modules(self, has_statistics: Sequence[bool], totals: Sequence[Tensor]) -> None:
        noise, left = self._module_tape.read(self.block.place), iter(totals)
        for (path, module), has in zip(self._modules.items(), has_statistics, strict=True):
            total = next(left) if has else None
            own = {name: noise[f"{path}.{name}"][0].to(self._dtype) for name in module.phase_noise}
            if own:
                module.end_phase(total, own)
            else:
                module.end_phase(total)


def _micro_batches(
    images: Tensor, labels: Tensor | None, noise: dict[str, Tensor], size: int
) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Tensor]]]:
    """Images, labels and noise, in parts of `size` images."""
    if size >= images.shape[0]:
        yield images, labels, noise
        return
    for start in range(0, images.shape[0], size):
        part = slice(start, start + size)
        drawn = {name: values[part] for name, values in noise.items()}
        yield images[part], None if labels is None else labels[part], drawn


def _weight(term: Term, loss: str | None = None) -> str:
    """Name of the weight of a term, or of one of its losses, among a phase's numbers."""
    return f"weight of {term.name}" if loss is None else f"weight of {term.name}/{loss}"


def _weights(phase: Phase) -> dict[str, Number]:
    numbers: dict[str, Number] = {}
    for term in phase.terms:
        numbers[_weight(term)] = term.weight
        numbers |= {_weight(term, name): weight.value for name, weight in term.weights.items()}
    return numbers


def _constant(numbers: Mapping[str, Number]) -> dict[str, float]:
    return {name: n for name, n in numbers.items() if isinstance(n, (int, float))}


def _moving(numbers: Mapping[str, Number]) -> dict[str, Callable[[float], float]]:
    return {name: n.at for name, n in numbers.items() if not isinstance(n, (int, float))}


class _Averages:
    """Moves the EMA of the weights and the profiles, every `training.ema_every_steps` steps."""

    def __init__(self, experiment: Experiment, state: State, world: World) -> None:
        training = experiment.training
        self._averages = {_EMA: state.average(), **state.profile_averages()}
        self.every = training.ema_every_steps
        self._batch = training.global_batch_size
        self._block = Block(128, world.device)
        since = self.every * self._batch

        def of_ema(images: float) -> float:
            half_life = value_at(training.ema_half_life_images, images)
            ramp = value_at(training.ema_ramp, images)
            return 1.0 - ema_decay(images, since, half_life, ramp)

        def of_profile(exponent: float) -> Callable[[float], float]:
            return lambda images: 1.0 - profile_decay(images, since, exponent)

        weights = {_EMA: of_ema}
        weights |= {str(s): of_profile(exponent_of(s)) for s in training.ema_profiles}
        self._weights = Numbers(weights, self._block.length, torch.float64, world.device)

    def begin(self, step: int) -> None:
        """The host's work before the program."""
        if self._block.begin((step + 1) // self.every - 1):
            first, every = self._block.first, self.every
            self._weights.fill(lambda row: (first + row + 1) * every * self._batch)

    def run(self) -> None:
        """Move the averages, on the device."""
        weights = self._weights.read(self._block.place)
        for name, average in self._averages.items():
            average(weights[name])
        self._block.place.add_(1)


@dataclass
class _Turn:
    """The work of all steps at which the same phases, terms and losses are due."""

    runners: list[_PhaseRunner]
    averages: bool
    program: Program
    rows: tuple[TagSums, ...] | None = None
    """Where the program writes the values that terms report. Known after its first run."""


class Step:
    """Each call trains `state` on this rank's part of one global batch."""

    def __init__(
        self,
        experiment: Experiment,
        objective: Objective,
        state: State,
        world: World,
        meter: Meter,
        record: Recorder | None = None,
    ) -> None:
        """record: called on each program before its first run; its result runs instead. With
        `record`, the step does not seed torch's generators: a replay could not seed them again."""
        training = experiment.training
        if record is not None and training.compile:
            raise Refused(
                "training.compile: makes its own CUDA graphs, and a recorded step cannot contain "
                "them; set training.compile to false"
            )
        part = images_per_rank(experiment, world)
        images = torch.arange(part.start, part.stop, device=world.device)
        self._experiment = experiment
        self._state = state
        self._world = world
        self._meter = meter
        meter.begin_stage()
        self._micro_batch = min(training.micro_batch_size or len(part), len(part))
        self._record = record
        self._turns: dict[int, _Turn] = {}
        self._programs: dict[tuple[object, ...], _Turn] = {}
        state.networks.train()
        frozen = frozen_modules(experiment, state.networks)
        for module in frozen:
            module.eval()
        self._frozen = [parameter for module in frozen for parameter in module.parameters()]
        self._runners = [
            _PhaseRunner(phase, experiment, state, world, images) for phase in objective.phases()
        ]
        self._averages = _Averages(experiment, state, world)
        self.period = math.lcm(self._averages.every, *(runner.period for runner in self._runners))
        """Number of steps after which the pattern of due phases, terms and losses repeats, once all
        have started."""
        self._starts = sorted({step for runner in self._runners for step in runner.starts})
        """Steps at which the pattern changes, and that have not come yet."""
        # Seed torch's generators only if a user's class may draw from them.
        self._seeds_torch = record is None and "custom" in {
            experiment.objective.kind,
            *(network.kind for network in experiment.networks.values()),
        }
        self._trainable: tuple[str, ...] | None = None

    def __call__(self, images: Tensor, labels: Tensor | None) -> None:
        """images: this rank's part of the global batch, (N, C, H, W); labels: (N,) or None.

        Collective: every rank, same order.
        """
        step = self._state.step
        if self._starts and step >= self._starts[0]:
            self._starts = [start for start in self._starts if start > step]
            self._turns.clear()
        turn = self._turns.get(step % self.period) or self._turn(step)
        for runner in turn.runners:
            runner.begin(step, self._meter)
        if turn.averages:
            self._averages.begin(step)
        if turn.rows is None:
            with self._meter.watched() as rows:
                turn.program(images, labels)
            turn.rows = tuple(rows)
        else:
            turn.program(images, labels)
        for rows in turn.rows:
            rows.note(step)
        self._state.step = step + 1

    def _turn(self, step: int) -> _Turn:
        """The turn of a step. Steps that are a whole number of periods apart share it."""
        due = [(runner, runner.due(step)) for runner in self._runners if runner.is_due(step)]
        averages = (step + 1) % self._averages.every == 0
        key = (averages, *((runner.phase.name, terms) for runner, terms in due))
        turn = self._programs.get(key)
        if turn is None:
            turn = _Turn([runner for runner, _ in due], averages, self._program(due, averages))
            self._programs[key] = turn
        if len(self._turns) < _LONGEST_PERIOD:
            self._turns[step % self.period] = turn
        return turn

    def _program(self, due: Sequence[tuple[_PhaseRunner, Due]], averages: bool) -> Program:
        runs = [(runner, runner.runs_of(terms)) for runner, terms in due]

        def program(images: Tensor, labels: Tensor | None) -> None:
            for runner, terms in runs:
                self._make_trainable(runner.phase.updates)
                if self._seeds_torch:
                    self._seed_torch(runner.phase.name)
                runner.run(terms, images, labels, self._micro_batch, self._meter)
            if averages:
                self._averages.run()

        return program if self._record is None else self._record(program)

    def _seed_torch(self, phase: str) -> None:
        seed = seed_of(self._experiment.seed, phase, self._state.step, self._world.rank)
        torch.manual_seed(seed)

    def _make_trainable(self, names: tuple[str, ...]) -> None:
        """Only these networks get gradients, except for their frozen parts. Backward stops at the
        weights of the others, and a forward pass of the others on constants builds no graph."""
        if self._trainable == names:
            return
        for name, network in self._state.networks.items():
            network.requires_grad_(name in names)
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._trainable = names


def _term_loss(
    term: Term,
    due: frozenset[str],
    networks: Networks,
    experiment: Experiment,
    constant: Mapping[str, float],
) -> TermLoss:
    """The loss of one term: its weighted part of the mean over the global batch."""
    training, group_size = experiment.training, experiment.group_size
    exact = term.full_precision or any(term.weights[name].full_precision for name in due)
    autocast = training.precision == "bf16" and not exact
    batch_size, whole = training.global_batch_size, _weight(term)

    def weight(numbers: Mapping[str, Tensor], name: str, every: int) -> float | Tensor:
        return (constant[name] if name in constant else numbers[name]) * every

    def loss(
        images: Tensor,
        labels: Tensor | None,
        noise: dict[str, Tensor],
        numbers: dict[str, Tensor],
    ) -> tuple[tuple[str, ...], Tensor, Tensor | None]:
        batch = Batch(images, labels, noise, numbers[_SEEN], numbers, due, group_size)
        precision = (
            torch.autocast(images.device.type, torch.bfloat16) if autocast else nullcontext()
        )
        with precision:
            losses = term.loss(networks, batch)
        check_losses(term, losses, due, images.shape[0])
        if not losses.minimised:  # no loss is due
            none = images.new_zeros(0)
            return *_sums_by_tag(losses, none, images.shape[0]), None
        parts = torch.stack([value.sum() for value in losses.minimised.values()])
        tags, sums = _sums_by_tag(losses, parts.detach(), images.shape[0])
        if term.weights:
            each = [
                weight(numbers, _weight(term, n), term.weights[n].every) if n in due else 1.0
                for n in losses.minimised
            ]
            parts = torch.stack([part * w for part, w in zip(parts.unbind(), each, strict=True)])
        return tags, sums, parts.sum() * (weight(numbers, whole, term.every) / batch_size)

    return loss


def _eager(loss: TermLoss) -> TermRun:
    """Runs a term uncompiled, with torch's own kernels."""

    def run(
        images: Tensor,
        labels: Tensor | None,
        noise: dict[str, Tensor],
        numbers: dict[str, Tensor],
    ) -> tuple[tuple[str, ...], Tensor]:
        tags, sums, total = loss(images, labels, noise, numbers)
        if total is not None:
            total.backward()
        return tags, sums

    return run


def _compiled(loss: TermLoss, parameters: list[nn.Parameter], device: torch.device) -> TermRun:
    """Compiles a term's forward and backward passes into one graph, including the double backward
    of penalties. On a GPU it is a CUDA graph. Raises Refused if torch or the machine cannot
    compile it."""
    import torch._dynamo
    import torch._dynamo.exc

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise Refused(
            f"training.compile: the compiler of torch {torch.__version__} cannot trace gradients; "
            "install a newer torch, or set training.compile to false"
        )
    torch._dynamo.config.trace_autograd_ops = True  # pyright: ignore

    def gradients(
        images: Tensor,
        labels: Tensor | None,
        noise: dict[str, Tensor],
        numbers: dict[str, Tensor],
    ) -> tuple[tuple[str, ...], Tensor, tuple[Tensor | None, ...]]:
        tags, sums, total = loss(images, labels, noise, numbers)
        if total is None:
            return tags, sums, (None,) * len(parameters)
        return tags, sums, torch.autograd.grad(total, parameters, allow_unused=True)

    assert isinstance(gradients, FunctionType)
    # torch caches at most eight graphs per code object, so every term gets its own copy.
    own = FunctionType(
        gradients.__code__.replace(), gradients.__globals__, closure=gradients.__closure__
    )
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    graph = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)

    def run(
        images: Tensor,
        labels: Tensor | None,
        noise: dict[str, Tensor],
        numbers: dict[str, Tensor],
    ) -> tuple[tuple[str, ...], Tensor]:
        try:
            tags, sums, found = graph(images, labels, noise, numbers)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise Refused(
                f"training.compile: torch cannot compile this ({str(error).splitlines()[0]}); set "
                "training.compile to false"
            ) from error
        _accumulate(parameters, found)
        return tags, sums

    return run


def _accumulate(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Adds a graph's gradients to each `grad`, in separate memory: two parameters may share one
    gradient, and a CUDA graph writes its next gradients to the same place. A `grad` has its
    parameter's strides: fused optimisers read both together."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad += gradient


def _sums_by_tag(losses: Losses, minimised: Tensor, count: int) -> tuple[tuple[str, ...], Tensor]:
    """Tags and values for the meter. Values are sums over `count` images: (tags, 1). minimised: the
    sums of the minimised losses; their tags begin with `loss/`. The others keep their own tags."""
    tags = [f"loss/{name}" for name in losses.minimised]
    sums = [minimised]
    if losses.reported:
        tags += losses.reported
        sums.append(torch.stack([v.detach() for v in losses.reported.values()]).sum(1))
    if losses.of_phase:
        tags += losses.of_phase
        numbers = [v.detach().to(minimised.dtype) for v in losses.of_phase.values()]
        sums.append(torch.stack(numbers) * count)
    return tuple(tags), (minimised if len(sums) == 1 else torch.cat(sums))[:, None]


def check_losses(term: Term, losses: Losses, due: frozenset[str], count: int) -> None:
    """Raises ValueError if a term returned something that it must not return."""
    if term.weights:
        _check_turns(term, losses, due)
    for values, prefix in ((losses.minimised, "loss/"), (losses.reported, "")):
        for tag, value in values.items():
            if value.shape != (count,):
                raise ValueError(
                    f"term {term.name}: {prefix}{tag} has shape {tuple(value.shape)}; return one "
                    "value for each image, (N,), and the step averages them over the global batch; "
                    "put a number of the whole phase in `of_phase`"
                )
    for tag, value in losses.of_phase.items():
        if value.ndim:
            raise ValueError(
                f"term {term.name}: {tag} has shape {tuple(value.shape)}; a number in `of_phase` "
                "must be 0-dimensional"
            )


def _check_turns(term: Term, losses: Losses, due: frozenset[str]) -> None:
    for name in due - losses.minimised.keys():
        raise ValueError(
            f"term {term.name}: the loss {name} has a weight and is due, but the term returned "
            f"only {', '.join(losses.minimised)}; return {name}, or remove its weight"
        )
    for name in term.weights.keys() - due:
        if name in losses.minimised:
            raise ValueError(
                f"term {term.name}: returned the loss {name}, but it is not due at this update; "
                "compute it only if its name is in `batch.due`"
            )


def images_per_rank(experiment: Experiment, world: World) -> range:
    """The part of the global batch that this rank trains on."""
    group = experiment.group_size
    groups = world.share(experiment.training.global_batch_size // group)
    return range(groups.start * group, groups.stop * group)
