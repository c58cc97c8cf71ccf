"""Training as a generator of reports: no Ray, no files, no models.

The step count, or what all ranks agreed on at a control step, decides whether `train` yields after
a step. So every rank has the same number of reports, and a collective report cannot deadlock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import torch

from ray_gen.core import STOPPED, Batch, Evaluates, Fails, Objective, Settles, declared
from ray_gen.data import Split, Store
from ray_gen.data.feed import Feed, FeedSettings, Reader, Stored, fits_device
from ray_gen.data.stream import Streamed
from ray_gen.distributed import World
from ray_gen.errors import Failed
from ray_gen.experiment import Experiment
from ray_gen.experiment.training import Training
from ray_gen.noise import Key, drawn, key_of
from ray_gen.pixels import selected, to_range
from ray_gen.training.build import DTYPES, build_objective
from ray_gen.training.labels import labels_of
from ray_gen.training.meter import Meter, NonFiniteError
from ray_gen.training.state import State
from ray_gen.training.step import Step, images_per_rank

CONTROL_SECONDS = 0.25
"""Target time between two control steps. One costs about 0.3 ms with gloo."""
ALL_SEEN = "all images seen"
ASKED = "asked to stop"


class Control(IntEnum):
    """What a rank asks for at a control step. All ranks do the largest value that any rank asked
    for."""

    GO_ON = 0
    SAVE = 1
    """Nothing but a checkpoint: what comes of the run does not depend on it."""
    SAVE_AND_STOP = 2


@dataclass(frozen=True)
class Report:
    """A report of a run, equal on every rank except for speed and memory.

    metrics: means since the last report, by tag. save: whether a checkpoint is due. evaluate:
    whether an evaluation (`evaluation.every_images`) is due; then `save` is true, so that the
    evaluated weights can be loaded. stop: why the run ends here, or None if it continues.
    """

    step: int
    images: int
    metrics: dict[str, float]
    save: bool
    evaluate: bool = False
    stop: str | None = None
    failure: str | None = None
    """Why training no longer helps: see `ray_gen.core.Fails`. None if it helps."""
    between: bool = False
    """Whether this is only a checkpoint between two reports: `Control.SAVE`. It has no metrics."""


def train(
    experiment: Experiment,
    objective: Objective,
    state: State,
    store: Store,
    world: World,
    control: Callable[[int], Control] = lambda images: Control.GO_ON,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    meter: Meter | None = None,
    snapshot: Callable[[], object] = lambda: None,
) -> Iterator[Report]:
    """Trains `state` from its step to the end of the experiment. Collective: every rank.

    Calls `control(images)` at control steps. Calls `evaluate()` for further metrics when
    `evaluation.every_images` is due and at the end; it must not change the state. meter: collects
    the losses; a caller who gives one can look at the latest of them at control steps. Raises
    NonFiniteError on every rank, at the next report if a loss is not a finite number, at the next
    checkpoint if a weight is not. Such a report is never yielded. Calls `snapshot()` when one of
    `training.ema_profiles` is due, before the checkpoint of the same step.
    """
    if finished(experiment, state.step, state.settled):
        return
    training = experiment.training
    batch = training.global_batch_size
    every = experiment.evaluation.every_images
    meter = meter or Meter(batch, world)
    stages = dict(experiment.stages())  # first step -> settings: they may change during a run
    start = max(first for first in stages if first <= state.step)
    of_stage = objective if start == 0 else build_objective(stages[start])
    step = Step(stages[start], of_stage, state, world, meter)
    feed = build_feed(experiment, objective, store, world)
    clock = _Clock(world.device, state.step * batch)
    next_control = state.step + 1
    meter.held = dict(state.unreported)
    reported = state.reported if state.unreported else state.step
    for images, labels in feed.steps(state.step, experiment.steps):
        if state.step in stages and state.step != start:
            start = state.step
            of_stage = build_objective(stages[start])
            step = Step(stages[start], of_stage, state, world, meter)
        step(images, labels)
        done = state.step
        if snapshot_due(training, done):
            with clock.paused():
                snapshot()
        asked = Control.GO_ON
        if done >= next_control:
            wanted, interval = world.maxima(
                [int(control(done * batch)), clock.steps_within(CONTROL_SECONDS)]
            )
            asked, next_control = Control(wanted), done + interval
        last = done == experiment.steps
        measured = every is not None and _due(done, batch, every)
        save = (
            last
            or measured
            or asked == Control.SAVE_AND_STOP
            or _due(done, batch, training.checkpoint_every_images)
        )
        due = _due(done, batch, training.report_every_images)
        if not (save or due):
            if asked == Control.SAVE:
                with clock.paused():
                    yield _between(experiment, state, meter, world, reported)
            continue
        metrics = {**meter.report(), **clock.report(done * batch)}
        stop = ASKED if asked == Control.SAVE_AND_STOP else None
        rest = training.stop_at_equilibrium
        if rest is not None and isinstance(of_stage, Settles):
            of_stage.watch(state.settled, metrics, done - reported)
            if due and of_stage.settled(state.settled, done * batch, rest):
                stop = at_rest(experiment)
        if isinstance(of_stage, Fails):
            of_stage.note(state.settled, metrics, reported * batch)
        failure = failure_of(of_stage, state.settled, done * batch)
        if last:
            stop = ALL_SEEN
        measured |= every is not None and stop not in (None, ASKED)
        save = save or stop is not None
        if save:
            _check_weights(state, world)
            scores = held_out_scores(experiment, objective, state, store.held_out, world)
            for name, value in scores.items():
                if not math.isfinite(value):
                    raise NonFiniteError(f"{name} is not a finite number at step {done}", done)
            metrics |= scores
            if measured and evaluate is not None:
                metrics |= evaluate()
        if stop not in (None, ASKED) and training.ema_profiles and done >= training.ema_every_steps:
            snapshot()
        reported = done
        state.unreported = {}
        yield Report(done, done * batch, metrics, save, measured, stop, failure)
        if stop is not None:
            return
        if asked == Control.SAVE and not save:
            yield _between(experiment, state, meter, world, reported)
        clock.resume(done * batch)


def _between(
    experiment: Experiment, state: State, meter: Meter, world: World, reported: int
) -> Report:
    """A checkpoint between two reports. Collective: every rank."""
    meter.hold()
    _check_weights(state, world)
    state.unreported, state.reported = dict(meter.held), reported
    images = state.step * experiment.training.global_batch_size
    return Report(state.step, images, {}, save=True, between=True)


def finished(experiment: Experiment, step: int, settled: Mapping[str, float]) -> str | None:
    """Why a run has ended at this step, with this memory of its stopping rule. None if it has not
    ended. Step and memory come from a state or a manifest."""
    if step >= experiment.steps:
        return ALL_SEEN
    return at_rest(experiment) if STOPPED in settled else None


def failure_of(objective: Objective, memory: Mapping[str, float], images: int) -> str | None:
    """Why training no longer helps, with this memory after `images` images. None if it helps."""
    return objective.failure(memory, images) if isinstance(objective, Fails) else None


def at_rest(experiment: Experiment) -> str:
    """Why a run ended, if the stopping rule of its objective ended it."""
    return experiment.objective.at_rest or "its objective has settled"


def _due(step: int, batch: int, every_images: int) -> bool:
    """Whether a multiple of `every_images` lies in this step."""
    return step * batch // every_images > (step - 1) * batch // every_images


def snapshot_due(training: Training, step: int) -> bool:
    """Whether a snapshot of the profiles is due after so many steps: only after one that moves
    them."""
    every = training.ema_every_steps
    if not training.ema_profiles or step % every:
        return False
    return _due(step // every, every * training.global_batch_size, training.snapshot_interval)


def count_snapshots(training: Training, steps: int) -> int:
    """The snapshots of a whole run. At its end comes one too."""
    every = training.ema_every_steps
    if not training.ema_profiles or steps < every:
        return 0
    update = every * training.global_batch_size
    return count_due(steps // every, update, training.snapshot_interval)


def count_due(steps: int, batch: int, every_images: int) -> int:
    """In how many of the steps something is due that comes every `every_images` images, and at the
    end."""
    regular = min(steps, steps * batch // every_images)
    return regular + (not _due(steps, batch, every_images))


def first_due(batch: int, every_images: int) -> int:
    """After how many images it is due for the first time: whole steps."""
    return -(-every_images // batch) * batch


def build_feed(experiment: Experiment, objective: Objective, store: Store, world: World) -> Feed:
    """The images of this rank."""
    settings = FeedSettings(
        seed=experiment.seed,
        global_batch_size=experiment.training.global_batch_size,
        part=images_per_rank(experiment, world),
        image_range=objective.image_range,
        flip=experiment.data.flip,
        dtype=DTYPES[experiment.training.precision],
        crop_HW=None if experiment.data.random_crop_from is None else store.image_shape[1:],
        moments=store.moments,
    )
    return Feed(_reader(experiment, store, settings, world.device), settings, world.device)


def _reader(
    experiment: Experiment, store: Store, settings: FeedSettings, device: torch.device
) -> Reader:
    if store.stream is not None:
        return Streamed(
            store.stream,
            seed=settings.seed,
            streams=experiment.training.global_batch_size // experiment.group_size,
            group_size=experiment.group_size,
            part=settings.part,
            labels=partial(labels_of, experiment),
            pinned=device.type == "cuda",
        )
    placement = experiment.data.placement
    images = store.read_in_training
    on_device = placement == "device" or (placement == "auto" and fits_device(images, device))
    labels = labels_of(experiment, store.train.labels, store.train.conditions)
    return Stored(
        images,
        labels,
        settings,
        device,
        on_device=on_device,
        sources=store.sources,
        shares=experiment.data.shares(),
    )


def _check_weights(state: State, world: World) -> None:
    """Raises NonFiniteError if a weight or moment is not finite, and Failed if the weights differ
    between workers. Then nothing is saved. Collective: every rank, same order."""
    name = state.non_finite()
    if world.maxima([int(name is not None)])[0]:
        where = f"the weight or moment {name}" if name else "a weight or moment on another worker"
        raise NonFiniteError(f"{where} is not a finite number at step {state.step}", state.step)
    differing = world.differing(state.networks)
    if differing:
        raise Failed(
            f"the workers' weights differ at step {state.step}, first in {differing[0]}: a network "
            "or objective draws its own random numbers, or changes its buffers in forward passes; "
            "declare the random numbers as `noise`, or change the buffers in a PhaseModule "
            "(ray_gen.core)"
        )


@torch.no_grad()
def held_out_scores(
    experiment: Experiment, objective: Objective, state: State, split: Split, world: World
) -> dict[str, float]:
    """The objective's own scores on the held-out split, with EMA weights: means over its images.

    Each rank takes a share of them. Collective: every rank, same order.
    """
    total = len(split.images_NHWC)
    if not isinstance(objective, Evaluates) or not total:
        return {}
    share = world.share(total)
    device, dtype = world.device, DTYPES[experiment.training.precision]
    specs = declared(objective.evaluation_noise, state.ema)

    def key(name: str) -> Key:
        return key_of(experiment.seed, "held out", name)

    seen = torch.full((), float("inf"), dtype=dtype, device=device)
    sums: dict[str, torch.Tensor] = {}
    # A rank without a share needs the names of the scores too: it scores one image with weight 0.
    own = share or range(1)
    labels = labels_of(experiment, split.labels, split.conditions)
    for start in range(own.start, own.stop, 512):
        part = torch.arange(start, min(start + 512, own.stop))
        noise = drawn(specs, key, part.to(device), dtype)
        stored = selected(split.images_NHWC, part).to(device)
        images = to_range(stored, objective.image_range, dtype)
        batch = Batch(
            images,
            None if labels is None else labels[part].to(device),
            noise,
            seen,
        )
        for name, values in objective.evaluate(state.ema, batch).items():
            added = values.sum(dtype=torch.float64) * bool(share)
            sums[name] = sums[name] + added if name in sums else added
    flat = torch.stack([sums[name] for name in sorted(sums)])
    world.sum_(flat)
    means = (flat / total).tolist()
    return {f"held_out/{name}": mean for name, mean in zip(sorted(sums), means, strict=True)}


class _Clock:
    """Speed and memory of this worker. The time of a report does not count."""

    def __init__(self, device: torch.device, images: int) -> None:
        self._device = device
        self._steps = 1
        self._since = time.perf_counter()
        self.resume(images)

    def resume(self, images: int) -> None:
        self._images = images
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Generator[None]:
        """The time inside the `with` statement does not count."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began

    def steps_within(self, seconds: float) -> int:
        """Number of steps that fit into `seconds` at the present pace."""
        now = time.perf_counter()
        pace = max(1e-6, (now - self._since) / self._steps)
        self._since = now
        self._steps = max(1, min(1000, int(seconds / pace)))
        return self._steps

    def report(self, images: int) -> dict[str, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            import resource

            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = time.perf_counter() - self._start
        return {
            "speed/images_per_second": (images - self._images) / max(seconds, 1e-9),
            "memory/peak_GiB": peak / 2**30,
        }
