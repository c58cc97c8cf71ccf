"""What every worker runs: it builds or restores the state, trains, and delivers reports. No Ray."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from ray_gen.core import Objective
from ray_gen.data import Store
from ray_gen.distributed import WorkerLostError, World, use_cores
from ray_gen.errors import Failed, GpuMemoryError, Refused
from ray_gen.evaluation.evaluator import during_training, subject_of
from ray_gen.evaluation.progress import silent
from ray_gen.experiment import Experiment
from ray_gen.experiment.data import LatentsData
from ray_gen.launch.imports import import_failure
from ray_gen.runs.checkpoints import (
    BETWEEN,
    checkpoint_name,
    checkpoints,
    commit,
    fetched,
    images_of,
    newest_manifest,
    prune,
)
from ray_gen.runs.manifest import CheckpointError
from ray_gen.runs.writer import RunWriter, write_environment
from ray_gen.storage import INTACT, KEPT, Folder, StorageError
from ray_gen.training.build import build_objective
from ray_gen.training.code import carried, collected, take, with_code
from ray_gen.training.code import store as store_code
from ray_gen.training.loop import Control, Report, failure_of, finished, train
from ray_gen.training.meter import Meter, NonFiniteError
from ray_gen.training.sources import open_data
from ray_gen.training.state import State


@dataclass(frozen=True)
class Work:
    """What a worker gets to do, as it travels to its process."""

    experiment: str
    """YAML, resolved."""
    run: str
    """Location of the run folder."""
    threads: int
    """CPU cores of the worker."""
    python_path: list[str] = field(default_factory=lambda: [path for path in sys.path if path])
    """Folders in which users' own classes may lie."""
    trusted: list[list[str]] = field(default_factory=carried)
    """Sources of users' own classes that the driver trusts: see `training.code`."""
    compared: list[str] = field(default_factory=list)
    """Fields by which TensorBoard compares this run with others. If empty: all fields."""


def trained(
    work: Work,
    device: Callable[[], torch.device],
    deliver: Callable[[Report, Path | None], None],
    notice: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Trains one run from its newest checkpoint. Returns how it ended: the same on every rank.

    device: gives this worker's device. deliver: gets each report, and the folder of its checkpoint
    on the first rank, which it commits and deletes. notice: see `reports`.
    Collective: every rank of a process group, or one process alone.
    """
    run = Folder(work.run)
    prepare(work.python_path, work.threads)
    take(work.trusted)
    experiment = Experiment.from_yaml(work.experiment)
    ended: dict[str, Any] | None = None
    try:
        with explained(run):
            training = reports(experiment, run, device(), work.compared, notice)
            for report, saved in training:
                try:
                    deliver(report, saved)
                except BaseException as error:
                    training.throw(error)  # so that the run's own files say what ended it
                ended = {
                    "stop": report.stop,
                    "images": report.images,
                    "metrics": report.metrics,
                    "failure": report.failure,
                }
    except NonFiniteError as error:
        # Every rank gets here. A return ends the run; after an exception it could be tried again.
        images = (error.step or 0) * experiment.training.global_batch_size
        seen = f" ({images:,} images)" if images else ""
        return {"failed": f"{error}{seen}", "try": to_try(experiment)}
    return ended or ended_before(experiment, run)


def to_try(experiment: Experiment) -> str:
    """What may help against losses that are not finite."""
    rates = " and ".join(f"optimizers.{phase}.learning_rate" for phase in experiment.optimizers)
    phase = next(iter(experiment.optimizers))
    more = "" if experiment.training.precision != "bf16" else ", or training.precision=fp32"
    return f"try a lower {rates}, or optimizers.{phase}.clip_norm=1{more}"


def prepare(python_path: Sequence[str], threads: int) -> None:
    """Prepares this process for training: adds the folders of users' classes to sys.path, and sets
    its number of CPU threads."""
    sys.path += [path for path in python_path if path not in sys.path]
    use_cores(threads)


@contextmanager
def explained(run: Folder) -> Generator[None]:
    """Turns errors during training into messages for the user. NonFiniteError passes unchanged."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        told = str(error).splitlines()[0].rstrip(".")
        raise GpuMemoryError(f"a GPU ran out of memory ({told})") from error
    except StorageError as error:
        raise error if KEPT in str(error) else StorageError(f"{error}; {INTACT}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise Failed(f"{error}\n{traceback.format_exc()}") from error
        raise StorageError(
            f"{run.location}: {error.strerror or error}; {KEPT}: mend the storage and start "
            "again with the same --name"
        ) from error
    except (Refused, Failed, NonFiniteError, WorkerLostError):
        raise
    except ImportError as error:
        told = import_failure(traceback.format_exc())
        raise Failed(told or f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if is_of_ray(error):
            raise
        if "can't allocate memory" in str(error):  # torch has no class of its own for it
            raise Failed(
                "this machine has too little memory: lower training.micro_batch_size or "
                f"training.global_batch_size ({str(error).splitlines()[0]})"
            ) from error
        raise Failed(f"{type(error).__name__}: {error}\n{traceback.format_exc()}") from error


def is_of_ray(error: Exception) -> bool:
    """Whether the error is Ray's: Ray defines its class or one of its base classes. Ray Core and
    Ray Train have no public base class of all their errors."""
    return any(base.__module__.partition(".")[0] == "ray" for base in type(error).__mro__)


def reports(
    experiment: Experiment,
    run: Folder,
    device: torch.device,
    compared: Sequence[str] = (),
    notice: Callable[[], object] = lambda: None,
) -> Generator[tuple[Report, Path | None]]:
    """Trains a run from its newest checkpoint, and writes everything except checkpoints. If a
    checkpoint is due, the first rank yields it as a folder, which the caller commits and deletes.
    Collective: every rank of a process group, or one process alone.

    compared: fields by which TensorBoard compares this run with others. If empty: all fields.
    notice: returns what is known about workers that will soon be taken away. When its answer
    changes, a checkpoint is saved.
    """
    world = World.joined(device)
    store = open_data(experiment)
    objective = build_objective(experiment)
    sources = collected(experiment)
    experiment = with_code(experiment, sources)
    state = State.build(experiment, objective, world)
    passed_over = restore(state, run, world)
    if not state.step and begins_with_another(experiment):
        from ray_gen.launch import start  # it imports the room of the pipeline

        start.begin_from(experiment, objective, state, run)
        start.take_autoencoder(experiment, state)
    check_agreement(experiment, state, store, world)
    writer = None
    if world.rank == 0:
        writer = RunWriter(run, experiment, objective, store, state, compared, passed_over)
        write_environment(run, world, _images(experiment, state))
        store_code(run, sources)
    try:
        yield from _written(experiment, objective, state, store, world, writer, notice)
    finally:
        if writer is not None:
            writer.close()


def begins_with_another(experiment: Experiment) -> bool:
    """Whether a run begins with tensors of another model."""
    in_latents = isinstance(experiment.data, LatentsData)
    return in_latents or experiment.training.start_from is not None


def _written(
    experiment: Experiment,
    objective: Objective,
    state: State,
    store: Store,
    world: World,
    writer: RunWriter | None,
    notice: Callable[[], object],
) -> Iterator[tuple[Report, Path | None]]:
    """Yields the reports of the loop. Writes each report before it yields the report."""
    evaluate = None
    evaluation = experiment.evaluation
    if evaluation.every_images is not None and evaluation.placement == "inline":
        evaluate = evaluation_of(experiment, objective, state, store, world, writer)
    latest: dict[str, float] = {}
    meter = Meter(experiment.training.global_batch_size, world)

    known = None

    def control(images: int) -> Control:
        nonlocal known
        if writer is not None:
            writer.progress(images, latest, meter.latest)
            if writer.stop_is_asked():
                return Control.SAVE_AND_STOP
            if writer.save_is_due():
                return Control.SAVE
        before, known = known, notice()
        return Control.GO_ON if known == before else Control.SAVE

    def snapshot() -> None:
        if writer is not None:
            writer.snapshot()

    training = train(experiment, objective, state, store, world, control, evaluate, meter, snapshot)
    for report in training:
        saved = None
        if report.between:
            if writer is not None:
                saved = writer.checkpoint({})
                (saved / BETWEEN).touch()
            yield report, saved
            continue
        latest = report.metrics
        if writer is not None:
            report = writer.report(report)
            if report.save:
                saved = writer.checkpoint(report.metrics)
                try:
                    writer.keep_best(report, saved)
                except Exception:
                    shutil.rmtree(saved)
                    raise
        yield report, saved


def evaluation_of(
    experiment: Experiment,
    objective: Objective,
    state: State,
    store: Store,
    world: World,
    writer: RunWriter | None,
) -> Callable[[], dict[str, float]]:
    """Returns a function that evaluates the EMA on all workers together. Making the function and
    calling it are collective."""
    # Before training, refuse what cannot be measured.
    progress = silent if writer is None else writer.evaluated_so_far
    evaluator, _ = during_training(experiment, objective, state.ema, store, world, progress)

    def evaluate() -> dict[str, float]:
        images = _images(experiment, state)
        description = {"images seen": images, "weights": "ema"}
        subject = subject_of(experiment, objective, state.ema, description)
        with writer.evaluating(images) if writer is not None else nullcontext():
            try:
                scores = evaluator.scores(subject)
            except torch.OutOfMemoryError as error:
                raise Failed(
                    "a GPU ran out of memory in an evaluation: lower evaluation.batch_size and "
                    "start again with the same --name; the training up to here is kept "
                    f"({str(error).splitlines()[0]})"
                ) from error
        if writer is not None:
            writer.evaluated(images, scores.as_json())
        return scores.as_metrics()

    return evaluate


def _images(experiment: Experiment, state: State) -> int:
    return state.step * experiment.training.global_batch_size


def ended_before(experiment: Experiment, run: Folder) -> dict[str, Any]:
    """How a run ended if its newest checkpoint is already its last. A worker died between that
    checkpoint and the end of the run."""
    manifest = newest_manifest(run)
    assert manifest is not None
    stop = finished(experiment, manifest.step, manifest.settled)
    failure = failure_of(build_objective(experiment), manifest.settled, manifest.images)
    metrics = dict(manifest.metrics)
    return {"stop": stop, "images": manifest.images, "metrics": metrics, "failure": failure}


def restore(state: State, run: Folder, world: World) -> list[str]:
    """Restores the newest whole checkpoint of the run folder, at the start and after a worker's
    death. Returns a message for each checkpoint that it skipped. Collective: every rank.

    Ignores Ray's registry of checkpoints, which may lack some: a worker can die between an upload
    and its registration. The manifests say which checkpoints are whole. The first rank chooses for
    all: a worker of an earlier attempt may still be writing a checkpoint, which only ranks that
    look later would see.
    """
    chosen, passed_over = (None, []) if world.rank else _restored(state, checkpoints(run))
    (images,) = world.maxima([-1 if chosen is None else images_of(chosen)])
    if world.rank and images >= 0:
        try:
            _restored(state, [run / checkpoint_name(images)])
        except (CheckpointError, FileNotFoundError) as error:
            raise Failed(
                f"the workers do not see the same checkpoint ({error}): the storage differs "
                "between nodes; use one that they share"
            ) from error
    return passed_over


def _restored(state: State, found: Sequence[Folder]) -> tuple[Folder | None, list[str]]:
    """Loads the first whole checkpoint of `found`. Returns it, and a message for each that it
    skipped."""
    passed_over: list[str] = []
    for newest, earlier in zip_longest(found, found[1:]):
        try:
            with fetched(newest) as (_, folder):
                state.load(folder)
            return newest, passed_over
        except CheckpointError as error:
            if earlier is None:
                raise
            passed_over.append(f"{error}; going on from {earlier.name}")
    return None, passed_over


def check_agreement(experiment: Experiment, state: State, store: Store, world: World) -> None:
    """Raises Failed if ranks have different checkpoints, data or sources of own classes. With
    different checkpoints they would wait for each other for ever. With other data or classes they
    would train another run. Collective: every rank."""
    other_data = int(store.digest != experiment.data.digest)
    code = int(hashlib.sha256(repr(sorted(experiment.code.items())).encode()).hexdigest()[:8], 16)
    latest, minus_earliest, other_data, most, minus_least = world.maxima(
        [state.step, -state.step, other_data, code, -code]
    )
    if latest != -minus_earliest:
        raise Failed(
            "the workers do not see the same checkpoint: the storage differs between nodes; use "
            "one that they share"
        )
    if other_data:
        raise Failed(
            "data: a worker's images differ from the driver's: a file was added or removed since "
            "the start, or nodes have different files or versions of Pillow; use files that do not "
            "change and that all nodes share"
        )
    if most != -minus_least:
        raise Failed(
            f"the workers import different versions of {', '.join(experiment.code)}: copies differ "
            "between nodes, or a file was changed since the start; give all nodes the same files"
        )


def commit_and_prune(saved: Path, run: Folder, name: str, keep: int) -> None:
    """Commits a local checkpoint to the run folder as `name`, and prunes the old ones but `keep`.
    Errors are messages for the user."""
    with explained(run):
        commit(saved, run, name)
        prune(run, keep)
