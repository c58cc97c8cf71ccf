"""`train`: from an experiment to a run folder, in the process that the user started."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from ray.train import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
    ValidationTaskConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer

from ray_gen.data.told import lines
from ray_gen.distributed import World
from ray_gen.errors import Failed, Interrupted, Refused
from ray_gen.evaluation.evaluator import during_training
from ray_gen.evaluation.metrics import OF_SAMPLES
from ray_gen.experiment import Experiment, ExperimentError, absolute_path, differences
from ray_gen.launch.claim import Claim
from ray_gen.launch.cluster import (
    Share,
    bundles_of,
    check_shared,
    connected,
    evaluates_beside,
    missed_on_a_cluster,
    outlives_signals,
    placement_groups,
    remove_placement_groups,
    share_of,
    starts_ray,
    when_there,
)
from ray_gen.launch.evaluate_beside import evaluate_checkpoint, failures_beside
from ray_gen.launch.failures import EndOnError, in_words, is_of_the_controller
from ray_gen.launch.home import check_home
from ray_gen.launch.progress import ProgressLine, read_progress
from ray_gen.launch.ray_private import snapshot_file
from ray_gen.launch.signals import Interruption, what_was_saved
from ray_gen.launch.worker import train_worker
from ray_gen.runs.checkpoints import DUE, checkpoints, fetched, prune, take_up_due
from ray_gen.runs.manifest import (
    EXPERIMENT,
    CheckpointError,
    Manifest,
)
from ray_gen.runs.writer import PROGRESS, STOP
from ray_gen.storage import DEFAULT, Folder, StorageError, default_storage, encoded
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.loop import ALL_SEEN, ASKED, failure_of, finished
from ray_gen.training.sources import as_begun, open_data, resolved_by

CONTROLLER_RESTARTS = 3
"""How often the driver starts Ray Train again after its controller has died."""
STARTS = 40
"""How often Ray Train asks again for workers that did not start within a minute. Cloud nodes with
GPUs take three to ten minutes."""
LONGEST_NAME_BYTES = 200
"""File systems take 255 for a name. Files beside a run's folder add a few letters."""
RESIZE_SECONDS = 30.0
"""Time between two checks whether an elastic run has room to grow. A resize costs a restart from
the last checkpoint, some 20 s."""


def _before(ended: str) -> str:
    """Words for a run that is started again, but has already ended. ended: why it ended."""
    return "had seen all images before" if ended == ALL_SEEN else f"had ended before: {ended}"


@dataclass(frozen=True)
class Run:
    """A run that has ended. It can be used as a path: `ray_gen.load(run)`."""

    location: str
    images: int
    stop: str
    """Why it ended: "all images seen", "asked to stop", …"""
    metrics: dict[str, float]
    failure: str | None = None
    """Why training no longer helped at its end, in the objective's words. None if it helped."""

    def __fspath__(self) -> str:
        return self.location

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 130 after an interruption, as in shells; 1 after a failure
        that the objective has seen."""
        return 130 if self.stop == ASKED else int(self.failure is not None)


def train(
    experiment: Experiment,
    *,
    storage: str | None = None,
    name: str | None = None,
    fresh: bool = False,
    show: bool = False,
) -> Run:
    """Train on Ray and return the run.

    storage: folder or URI of run folders. None: the experiment's, $RAY_GEN_STORAGE, or
    ~/ray_gen_runs. name: if a run has it, that run is resumed. None: the experiment's name and the
    time. fresh: refuse a name that exists. show: a progress line and a few words on stderr.
    Raises Refused if the run cannot start, Failed if it did not end well.
    """
    check_is_experiment(experiment)
    experiment = experiment.absolute()
    run = folder_of(experiment, storage, name or timed(experiment.name))
    if fresh and (run.exists(EXPERIMENT) or checkpoints(run)):
        raise Refused(f"{run.location}: the run exists; leave out --fresh to resume it")
    try:
        result = _train(experiment, run, show)
    except Interrupted as interrupted:
        told = f"training had not begun{_saved(run)}"
        raise Interrupted(told, number=interrupted.number) from None
    finally:
        run.remove_if_empty()  # if the run was refused
    if show:
        _tell(result)
    return result


def bounded(experiment: Experiment, share: Share) -> Experiment:
    """Fixes the micro-batch size for the largest number of workers. So a worker needs no more
    memory when others leave."""
    if share.least is None or experiment.training.micro_batch_size is not None:
        return experiment
    groups = experiment.training.global_batch_size // experiment.group_size
    each = -(-groups // share.workers) * experiment.group_size
    return experiment.with_fields(training__micro_batch_size=each)


def check_is_experiment(given: object) -> None:
    """Raises TypeError if `given` is not an Experiment, and says what to give instead."""
    if not isinstance(given, Experiment):
        raise TypeError(
            f"experiment: {given!r} is not an Experiment; ray_gen.recipe(NAME_OR_FILE, "
            "'path=value') gives one"
        )


def timed(name: str) -> str:
    """A name that no run has yet: `name` and the time."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def folder_of(experiment: Experiment, storage: str | None, name: str) -> Folder:
    """The folder of a run or search. Raises Refused if it cannot be written."""
    storage = storage or experiment.storage
    check_home(
        runs=not storage and default_storage() == DEFAULT,
        cache=experiment.data.placement != "stream",
        starts_ray=starts_ray(),
    )
    parent = Folder(absolute_path(storage or default_storage()))
    check_name(name, parent)
    folder = parent / name
    folder.check_writable()
    return folder


def check_name(name: str, parent: Folder) -> None:
    """Raises Refused if no folder in `parent` can have this name."""
    if not name:
        raise Refused("--name: is empty; give a name, or leave the option out")
    if "/" in name or name.startswith("."):
        raise Refused(f"--name: {name!r}: a name has no slash and does not begin with a dot")
    if not name.isprintable():  # also half a character, from bytes that are not UTF-8
        raise Refused(f"--name: {name!r}: has a character that cannot be printed; leave it out")
    size = len(name.encode())
    if size > LONGEST_NAME_BYTES:
        raise Refused(
            f"--name: has {size} bytes, and file systems take {LONGEST_NAME_BYTES}; choose a "
            "shorter name"
        )
    special = sorted(set(name) & set("?#%"))
    if special and not parent.is_local:
        raise Refused(
            f"--name: {name!r}: {special[0]} has a meaning of its own in the URI "
            f"{parent.location}; choose a name without it"
        )


def _train(experiment: Experiment, run: Folder, show: bool) -> Run:
    """`train` in a run folder that can be written."""
    images = experiment.steps * experiment.training.global_batch_size
    with (
        ProgressLine(images, show=show) as line,
        Interruption(line.say, lambda: _saved(run)) as interruption,
        Claim(run),
    ):
        line.stage("reading data")
        experiment = as_begun(experiment, experiment_before(run), line.say)
        store = open_data(experiment, line.decoded)
        for told in lines(store):
            line.say(told)
        experiment = resolved_by(experiment, store)
        manifest = goes_on_from(run, experiment, line.say_once)
        objective = build_objective(experiment)
        build_networks(experiment, objective)  # a user's class fails here, not in a worker
        best = experiment.checkpoints.best
        if best is not None and best.metric not in OF_SAMPLES and not len(store.held_out):
            raise ExperimentError(
                [
                    "checkpoints.best: needs held-out images and there are none; set it to null, "
                    f"or {store.to_hold_out}"
                ]
            )
        if manifest is not None:
            ended = finished(experiment, manifest.step, manifest.settled)
            if ended is not None:
                failure = failure_of(objective, manifest.settled, manifest.images)
                metrics = dict(manifest.metrics)
                return Run(run.location, manifest.images, _before(ended), metrics, failure)
        if experiment.evaluation.every_images is not None:
            line.stage("checking the evaluation")
            networks = build_networks(experiment, objective).eval()
            during_training(experiment, objective, networks, store, World())
            del networks
        # The last file is Ray's record of an earlier fit. Ray would restore this record, and would
        # raise if a checkpoint in it is gone.
        for file in (STOP, PROGRESS, DUE, snapshot_file()):
            run.remove(file)
        line.stage("starting Ray")
        with connected():
            share = when_there(partial(share_of, experiment), bundles_of(experiment), line.stage)
            check_shared(run)
            for sentence in missed_on_a_cluster():
                line.say(sentence)
            experiment = bounded(experiment, share)
            run.write_text(EXPERIMENT, experiment.to_yaml())
            line.stage(f"starting {share}")
            try:
                sure = outlives_signals()
                with interruption.saving(lambda: run.write_text(STOP, ""), sure=sure):
                    ended = _fit(experiment, run, share, line)
            except Exception:
                with suppress(OSError, StorageError):  # the user must see the first error
                    take_up_due(run)
                raise
            finally:
                with suppress(OSError, StorageError):  # it must not hide an earlier error
                    run.remove(STOP)
        if evaluates_beside(experiment):
            for failure in failures_beside(run):
                line.say(failure)
            prune(run, experiment.checkpoints.keep)
    if "failed" in ended:
        raise Failed(f"{ended['failed']}{_saved(run)}; {ended['try']}")
    return Run(run.location, ended["images"], ended["stop"], ended["metrics"], ended["failure"])


def _saved(run: Folder) -> str:
    """Words for the end of a sentence: where the run's checkpoints are, or that there is none."""
    return what_was_saved(run.location, lambda: bool(checkpoints(run)))


def experiment_before(run: Folder) -> Experiment | None:
    """The experiment of the newest checkpoint that can be read. None: there is none."""
    for checkpoint in checkpoints(run):
        with suppress(ExperimentError, FileNotFoundError, ValueError):  # `goes_on_from` tells
            return Experiment.from_yaml(checkpoint.read_text(EXPERIMENT))
    return None


def goes_on_from(
    run: Folder, experiment: Experiment, say: Callable[[str], None]
) -> Manifest | None:
    """The manifest of the newest whole checkpoint. The run goes on from it, and the workers choose
    the same one. None without a checkpoint.

    Before anything starts, raises if the checkpoint belongs to another experiment, or if no
    checkpoint is whole. Ignores the run folder's experiment.yaml: people read that file, and it
    may be gone.
    """
    found = checkpoints(run)
    for newest, earlier in zip_longest(found, found[1:]):
        try:
            manifest = _verified(newest, experiment)
            text = newest.read_text(EXPERIMENT)
            break
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            if earlier is None:
                raise CheckpointError(
                    f"{error}; to go on from the beginning, delete {newest.location}"
                ) from None
            say(f"{error}; going on from {earlier.name}")
    else:
        return None
    try:
        before = Experiment.from_yaml(text)
    except ExperimentError as error:
        raise ExperimentError(
            [
                f"{(newest / EXPERIMENT).location} is of another version of ray_gen; use that "
                "version, or choose another --name:",
                *(f"  {problem}" for problem in error.problems),
            ]
        ) from None
    _check_same(run, experiment, before)
    return manifest


def _verified(checkpoint: Folder, experiment: Experiment) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError if a file has changed.

    Behind a URI it checks only the sizes of the files, unless the run has ended: the workers of a
    run that goes on fetch the files and check their bytes.
    """
    if not checkpoint.is_local:
        manifest = Manifest.unchecked(checkpoint)
        manifest.check_sizes(checkpoint.sizes(""), checkpoint.location)
        if finished(experiment, manifest.step, manifest.settled) is None:
            return manifest
    with fetched(checkpoint) as (_, folder):
        return Manifest.verified(folder)


def _check_same(run: Folder, experiment: Experiment, before: Experiment) -> None:
    """Raises ExperimentError if the run is of another experiment or of other data."""
    digest = before.data.digest  # None in runs of versions without a digest
    different = list(differences(experiment.with_fields(data__digest=digest), before))
    if different:
        raise ExperimentError(
            [
                f"{run.location} is the run of another experiment; choose another --name, or undo:",
                *(f"  {difference}" for difference in different),
            ]
        )
    if digest is not None and experiment.data.digest != digest:
        raise ExperimentError(
            [
                f"data: its images differ from those that the run {run.location} began with (a "
                "file was added, removed, renamed or changed, or this version of Pillow decodes it "
                "differently); choose another --name, or put the old data back"
            ]
        )


def trainer_of(
    experiment: Experiment, run: Folder, share: Share, compared: Sequence[str] = ()
) -> TorchTrainer:
    """Ray Train's trainer of a run: its `fit()` returns what `train_worker` returns.

    compared: fields by which TensorBoard compares this run with others. If empty: all fields.
    """
    return TorchTrainer(
        train_worker,
        validation_config=_beside(experiment, run, share),
        train_loop_config={
            "experiment": experiment.to_yaml(),
            "run": run.location,
            "threads": share.cpus,
            "python_path": [path for path in sys.path if path],
            "compared": list(compared),
        },
        torch_config=TorchConfig(timeout_s=experiment.workers.timeout_seconds),
        scaling_config=ScalingConfig(
            num_workers=share.workers if share.least is None else (share.least, share.workers),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=bool(share.gpu),
            resources_per_worker={"CPU": share.cpus, **({"GPU": share.gpu} if share.gpu else {})},
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=encoded(run.parent.location),
            failure_config=FailureConfig(
                max_failures=experiment.workers.max_restarts,
                controller_failure_limit=STARTS,
            ),
            callbacks=[EndOnError()],
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.cpus)}},
        ),
    )


def _fit(experiment: Experiment, run: Folder, share: Share, line: ProgressLine) -> dict[str, Any]:
    """Runs Ray Train to the end, and starts it again if its controller dies."""
    trainer = trainer_of(experiment, run, share)
    before = placement_groups()
    for _ in range(CONTROLLER_RESTARTS):
        ended = _fit_in_thread(trainer, run, line)
        if not (isinstance(ended, Exception) and is_of_the_controller(ended)):
            break
        remove_placement_groups(placement_groups() - before)  # without a dashboard Ray keeps them
        run.remove(snapshot_file())  # this also waits until the storage answers again
        line.say("Ray Train's controller died; going on from the last checkpoint")
    else:
        ended = _fit_in_thread(trainer, run, line)
    if isinstance(ended, Exception):
        raise in_words(ended)
    return ended


def _beside(experiment: Experiment, run: Folder, share: Share) -> ValidationConfig | None:
    """How Ray evaluates checkpoints in tasks beside the training, at most one at a time. None if
    the experiment does not ask for it."""
    if not evaluates_beside(experiment):
        return None
    config = {
        "run": run.location,
        "settings": experiment.evaluation.model_dump(mode="json"),
        "python_path": [path for path in sys.path if path],
    }
    return ValidationConfig(
        fn=evaluate_checkpoint,
        task_config=ValidationTaskConfig(fn_kwargs=config),
        ray_remote_kwargs={"num_cpus": 1, "num_gpus": 1 if share.gpu else 0, "max_retries": 0},
    )


def _fit_in_thread(
    trainer: TorchTrainer, run: Folder, line: ProgressLine
) -> dict[str, Any] | Exception:
    """Runs one fit in a second thread. This thread draws the progress and receives signals."""
    outcomes: list[Any] = []

    def fit() -> None:
        try:
            with ascii_tags(run.name):
                outcomes.append(trainer.fit().return_value)
        except Exception as error:
            outcomes.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5 if run.is_local else 5.0)
        progress = read_progress(run, PROGRESS)
        if progress is not None:
            line.trained(progress)
    return outcomes[0]


@contextmanager
def ascii_tags(name: str) -> Generator[None]:
    """Inside the `with` statement Ray Train keeps no metrics of its own for a run whose name is not
    ASCII: their tags cannot hold it. The run folder has all metrics."""
    variable = "RAY_TRAIN_METRICS_ENABLED"
    if name.isascii() or variable in os.environ:
        yield
        return
    os.environ[variable] = "0"
    try:
        yield
    finally:
        del os.environ[variable]


def _tell(run: Run) -> None:
    """Prints where the run is and how to look at it."""
    scores = {tag: value for tag, value in run.metrics.items() if tag.startswith("held_out/")}
    told = "".join(f"  {tag} {value:.4g}" for tag, value in scores.items())
    failure = f"; {run.failure}" if run.failure else ""
    print(f"{run.location}: {run.images:,} images, {run.stop}{told}{failure}")
    quoted = shlex.quote(run.location)
    print(f"  look:   ray-gen tensorboard {quoted}")
    print(f"  sample: ray-gen sample {quoted} --count 64 --seed 0 --output grid.png")
