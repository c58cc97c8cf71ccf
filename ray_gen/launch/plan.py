"""`Plan`: what a run would be, in numbers and in words. Nothing here starts or writes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ray_gen.core import Networks, Objective
from ray_gen.data import Store
from ray_gen.data.feed import fits_device
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.experiment.manual import brief_yaml
from ray_gen.launch.place import own_share
from ray_gen.training.frozen import trainable
from ray_gen.training.loop import count_due, count_snapshots, first_due
from ray_gen.training.memory import Memory, memory_of
from ray_gen.training.step import images_per_rank

_WIDTH = 12
"""Of the first word of a line."""


@dataclass(frozen=True)
class Plan:
    """What a run would be. `str(plan)` says all of it."""

    experiment: Experiment
    """Resolved: with what the data says."""
    location: str
    """The run folder."""
    from_images: int | None
    """Images of the checkpoint that it would go on from. None: it would begin."""
    data: tuple[str, ...]
    """What was read: a line, and remarks."""
    parameters: dict[str, int]
    """Trainable numbers of each network and own module, by name."""
    workers: int | None
    """Number of workers, the largest if it may change. None: the cluster decides."""
    ray: str | None
    """Why it would train on Ray. None: in one process of this machine."""
    memory: Memory | None = None
    """About what one worker needs. None: not measured."""
    described: Mapping[str, str] = field(default_factory=dict[str, str])
    """What own modules say of themselves, by name: a distance, and the digest of its weights."""
    start: tuple[str, ...] = ()
    """What it would take of a trained model, in lines. Empty if it takes nothing, or has begun."""
    snapshot: int = 0
    """Bytes of a snapshot of `training.ema_profiles`, without buffers."""

    @property
    def images_of_a_worker(self) -> int:
        """Images of a step on the worker with the most; of the only worker, if the number of
        workers is not known."""
        return len(images_per_rank(self.experiment, World(size=self.workers or 1)))

    @property
    def micro_batch(self) -> int:
        """Images in one forward pass."""
        own = self.images_of_a_worker
        return min(own, self.experiment.training.micro_batch_size or own)

    def lines(self) -> Iterator[str]:
        """What to know before training, besides the data: networks, steps, where and when."""
        training = self.experiment.training
        counts = {
            "report": training.report_every_images,
            "checkpoint": training.checkpoint_every_images,
            "evaluation": self.experiment.evaluation.every_images,
        }
        when = ", ".join(self._count(what, every) for what, every in counts.items())
        yield from _lines("start", self.start)
        yield _line("networks", self._networks())
        yield from (_line(name, words) for name, words in self.described.items())
        yield _line("steps", self._steps())
        yield _line("trains", f"{self._where()}: {when}")

    def text(self, *, full: bool = False) -> str:
        """All of it, and the experiment. full: with every field, else those without defaults."""
        found = [_line("run", self._run())]
        found += [*_lines("data", self.data), *_lines("start", self.start)]
        found.append(_line("networks", self._networks()))
        found += [_line(name, words) for name, words in self.described.items()]
        if (decoder := self.experiment.data.decoded_by()) is not None:
            encoded = self.experiment.data.pictures.short_form
            found.append(_line("decodes", f"{decoder}, of {encoded}"))
        found.append(_line("steps", self._steps()))
        found += [_line(*both) for both in self._told().items()]
        if self.memory is not None:
            found.append(_line("memory", self._memory(self.memory)))
        found += [_line("reports", self._reports()), _line("checkpoints", self._saves())]
        if self.experiment.training.ema_profiles:
            found.append(_line("snapshots", self._snapshots()))
        found += [_line("evaluations", self._evaluations()), _line("trains", self._where())]
        found.append(_line("loggers", ", ".join(one.kind for one in self.experiment.loggers)))
        title = "experiment" if full else "experiment, without defaults (--full: every field)"
        brief = self.experiment.model_copy(update={"data": self.experiment.data.brief()})
        yaml = self.experiment.to_yaml() if full else brief_yaml(brief)
        return "\n".join([*found, "", f"# {title}", yaml.rstrip()])

    def _told(self) -> Mapping[str, str]:
        this = self.experiment
        return this.objective.told(this.image_shape, this.training.images)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Plan({self.experiment.name}: {self._steps()}; {self._where()})"

    def _run(self) -> str:
        if self.from_images is None:
            return f"{self.location}, from the beginning"
        return f"{self.location}, goes on from {self.from_images:,} images"

    def _networks(self) -> str:
        each = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items() if count)
        return f"{each}; {sum(self.parameters.values()):,} parameters"

    def _steps(self) -> str:
        training, steps = self.experiment.training, self.experiment.steps
        batch = training.global_batch_size
        parts = [f"{steps:,} of {batch:,} images: {steps * batch:,} images"]
        own, micro = self.images_of_a_worker, self.micro_batch
        if self.workers is None:
            parts.append("divided among the workers")
        elif self.workers > 1:
            parts.append(f"{own:,} on each of {self.workers} workers")
        if micro < own:
            parts.append(f"{micro:,} at once")
        return ", ".join(parts) + f"; groups of {self.experiment.group_size:,}"

    def _memory(self, memory: Memory) -> str:
        parts = {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimisers": memory.optimizers,
            "EMA": memory.ema,
            "images": memory.images,
            "backward passes": memory.activations,
        }
        shown = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
        of = "a worker" if self.workers == 1 else "each worker"
        if self.workers is None:
            of = "a single worker"
        return f"about {_size(memory.total)} for {of} ({shown})"

    def _reports(self) -> str:
        return self._times(self.experiment.training.report_every_images)

    def _saves(self) -> str:
        experiment = self.experiment
        told = self._times(experiment.training.checkpoint_every_images)
        minutes = experiment.checkpoints.every_minutes
        more = [f"and every {minutes:g} minutes"] if minutes is not None else []
        best = experiment.checkpoints.best
        more += [f"best by {best.metric}"] if best is not None else []
        return ", ".join([told, *more])

    def _snapshots(self) -> str:
        training = self.experiment.training
        count = count_snapshots(training, self.experiment.steps)
        widths = " and ".join(map(str, training.ema_profiles))
        size = _size(count * self.snapshot)
        return f"{count:,} of the averages of widths {widths}: {size} in the run folder"

    def _evaluations(self) -> str:
        settings = self.experiment.evaluation
        if settings.every_images is None:
            return "none (evaluation.every_images sets them)"
        told = self._times(settings.every_images)
        metrics = settings.metrics
        named = "all metrics" if metrics == "auto" else ", ".join(metrics)
        return f"{told}, {named}, {settings.placement}"

    def _count(self, what: str, every: int | None) -> str:
        """How often something comes."""
        if every is None:
            return f"no {what}s"
        steps, batch = self.experiment.steps, self.experiment.training.global_batch_size
        count = count_due(steps, batch, every)
        return f"{count:,} {what}{'s' * (count > 1)}"

    def _times(self, every: int) -> str:
        steps, batch = self.experiment.steps, self.experiment.training.global_batch_size
        if first_due(batch, every) >= steps * batch:
            return "1, at the end"
        count = count_due(steps, batch, every)
        return f"{count:,}, the first after {first_due(batch, every):,} images"

    def _where(self) -> str:
        if self.ray is not None:
            count = self.workers
            if count is None:
                return f"on Ray ({self.ray}), a worker on each GPU, else one"
            elastic = "up to " * (self.experiment.workers.count != count)
            return f"on Ray ({self.ray}), {elastic}{count} worker{'s' * (count > 1)}"
        device, threads = own_share(self.experiment)
        if device.startswith("cuda"):
            on = torch.cuda.get_device_name(device)
        else:
            on = f"the CPU with {threads} thread{'s' * (threads > 1)}"
        return f"in one process of this machine, without Ray, on {on}"


def plan_of(
    experiment: Experiment,
    location: str,
    store: Store,
    objective: Objective,
    networks: Networks,
    *,
    data: tuple[str, ...],
    start: tuple[str, ...] = (),
    from_images: int | None,
    ray: str | None,
    measured: bool = False,
) -> Plan:
    """The plan of a run. experiment: resolved. ray: why it trains on Ray, or None. measured:
    whether to measure its memory, by one small step."""
    trained: dict[str, nn.Parameter] = {}
    for phase in objective.phases():
        trained |= trainable(experiment, phase, networks)
    parameters = {
        name: sum(p.numel() for path, p in trained.items() if path.startswith(f"{name}."))
        for name in networks
        if any(name in phase.updates for phase in objective.phases())
    }
    workers = 1 if ray is None else experiment.workers.most
    snapshot = _bytes_of_snapshot(experiment, objective, networks)
    signatures = objective.networks()
    plan = Plan(
        experiment,
        location,
        from_images,
        data,
        parameters,
        workers,
        ray,
        start=start,
        snapshot=snapshot,
        described={
            name: words
            for name, module in networks.items()
            if name not in signatures
            and isinstance(words := getattr(module, "description", None), str)
        },
    )
    if not measured:
        return plan
    memory = memory_of(
        experiment,
        objective,
        micro_batch=plan.micro_batch,
        several=(workers or 1) > 1,
        images=_images_on_device(experiment, store, ray),
    )
    return replace(plan, memory=memory)


def _bytes_of_snapshot(experiment: Experiment, objective: Objective, networks: Networks) -> int:
    training = experiment.training
    size = 2 if training.ema_snapshot_precision == "fp16" else 4
    averaged = {*objective.sampled_from} & {*objective.averaged}
    count = sum(p.numel() for name in averaged for p in networks[name].parameters())
    return len(training.ema_profiles) * size * count


def _images_on_device(experiment: Experiment, store: Store, ray: str | None) -> int:
    """Bytes of the training images in a GPU's memory; on a CPU they are mapped from a file."""
    placement = experiment.data.placement
    if store.stream is not None or placement not in ("auto", "device"):
        return 0
    images = store.read_in_training
    here = "cpu" if ray is not None else own_share(experiment)[0]
    fits = here != "cpu" and fits_device(images, torch.device(here))
    return images.nbytes if placement == "device" or fits else 0


def _lines(name: str, texts: Sequence[str]) -> Iterator[str]:
    """Lines, of which the first begins with the name."""
    yield from (_line(name if not n else "", text) for n, text in enumerate(texts))


def _line(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}{text}"


def _size(size: int) -> str:
    """Bytes in a unit of which there is at least one."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= length:
            return (
                f"{size / length:.1f} {unit}"
                if size < 100 * length
                else f"{size // length:,} {unit}"
            )
    return f"{size / 2**10:.0f} KiB"
