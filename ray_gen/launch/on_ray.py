"""Trains a run on Ray: what each worker of Ray Train does, and what the driver does with them."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.train import (
    Checkpoint,
    CheckpointUploadMode,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
    ValidationTaskConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer

from ray_gen.errors import Failed, GpuMemoryError, MachineMemoryError
from ray_gen.experiment import Experiment
from ray_gen.launch.cluster import (
    Share,
    bundles_of,
    check_gpus,
    check_shared,
    connected,
    missed_on_a_cluster,
    outlives_signals,
    placement_groups,
    remove_placement_groups,
    share_of,
    when_there,
)
from ray_gen.launch.evaluate_beside import evaluate_checkpoint, failures_beside
from ray_gen.launch.failures import EndOnError, in_words, is_of_the_controller
from ray_gen.launch.memory import with_half_the_images
from ray_gen.launch.ray_private import preemption_notice, snapshot_file
from ray_gen.launch.watch import Watch
from ray_gen.launch.worker import Work, commit_and_prune, trained
from ray_gen.runs.checkpoints import AWAITED, checkpoint_name, prune
from ray_gen.runs.loggers import log_late_scores
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.storage import Folder, encoded
from ray_gen.training.code import carried
from ray_gen.training.loop import Report

CONTROLLER_RESTARTS = 3
"""How often the driver starts Ray Train again after its controller has died."""
STARTS = 40
"""How often Ray Train asks again for workers that did not start within a minute. Cloud nodes with
GPUs take three to ten minutes."""
RESIZE_SECONDS = 30.0
"""Time between two checks whether an elastic run has room to grow. A resize costs a restart from
the last checkpoint, some 20 s."""


def fit(
    experiment: Experiment,
    run: Folder,
    watch: Watch,
    saving: Callable[[bool], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Trains a run to its end. Connects to a cluster, or starts Ray.

    saving: inside this context the user's signals make the run save and stop. Its argument: whether
    Ray goes on if it gets such a signal, too.
    """
    # Ray would restore its record of an earlier fit, and would raise if a checkpoint in it is gone.
    run.remove(snapshot_file())
    line = watch.line
    with connected():
        share = when_there(partial(share_of, experiment), bundles_of(experiment), line.stage)
        check_shared(run)
        check_gpus(share.gpu, share.workers)
        for sentence in missed_on_a_cluster():
            line.say(sentence)
        experiment = bounded(experiment, share)
        run.write_text(EXPERIMENT, experiment.to_yaml())
        line.stage(f"starting {share}")
        with saving(outlives_signals()):
            ended = _fit(experiment, run, share, watch)
    if experiment.evaluation.is_beside:
        for failure in failures_beside(run):
            line.say(failure)
        log_late_scores(experiment, run, line.say)
        prune(run, experiment.checkpoints.keep)
    return ended


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains one run as a worker of Ray Train. Returns how it ended: the same on every rank.

    config: the fields of `Work`.
    """
    work = Work(**config)
    run, experiment = Folder(work.run), Experiment.from_yaml(work.experiment)
    beside = experiment.evaluation.is_beside

    def deliver(report: Report, saved: Path | None) -> None:
        awaited = beside and report.evaluate and saved is not None
        if saved is not None and awaited:
            (saved / AWAITED).touch()
        ray.train.report(
            {"images": report.images, **report.metrics},
            None if saved is None else Checkpoint.from_directory(str(saved)),
            checkpoint_dir_name=checkpoint_name(report.images) if report.save else None,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=partial(upload, run=run, keep=experiment.checkpoints.keep),
            delete_local_checkpoint_after_upload=True,
            validation=awaited,
        )

    return trained(work, ray.train.torch.get_device, deliver, preemption_notice)


def upload(checkpoint: Checkpoint, name: str, run: Folder, keep: int) -> Checkpoint:
    """Commits a checkpoint and prunes the old ones, in Ray's upload thread. An error here ends the
    run at the loop's next report."""
    try:
        commit_and_prune(Path(checkpoint.path), run, name, keep)
    except Exception:
        shutil.rmtree(checkpoint.path, ignore_errors=True)  # Ray deletes it only after an upload
        raise
    if run.is_local:
        return Checkpoint(str(run.path / name))
    return Checkpoint(encoded((run / name).location))


def bounded(experiment: Experiment, share: Share) -> Experiment:
    """Fixes the micro-batch size for the largest number of workers. So a worker needs no more
    memory when others leave."""
    if share.least is None or experiment.training.micro_batch_size is not None:
        return experiment
    groups = experiment.training.global_batch_size // experiment.group_size
    each = -(-groups // share.workers) * experiment.group_size
    return experiment.with_fields(training__micro_batch_size=each)


def trainer_of(
    experiment: Experiment, run: Folder, share: Share, compared: Sequence[str] = ()
) -> TorchTrainer:
    """Ray Train's trainer of a run: its `fit()` returns what `train_worker` returns.

    compared: fields by which TensorBoard compares this run with others. If empty: all fields.
    """
    return TorchTrainer(
        train_worker,
        validation_config=_beside(experiment, run, share),
        train_loop_config=asdict(
            Work(experiment.to_yaml(), run.location, share.cpus, compared=list(compared))
        ),
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


def _fit(experiment: Experiment, run: Folder, share: Share, watch: Watch) -> dict[str, Any]:
    """Runs Ray Train to the end. Starts it again if its controller dies, or with less memory."""
    before, restarts = placement_groups(), CONTROLLER_RESTARTS
    ends_for_memory = 0
    while True:
        ended = _fit_in_thread(trainer_of(experiment, run, share), run, watch.look)
        if not isinstance(ended, Exception):
            return ended
        error = in_words(ended)
        if isinstance(error, GpuMemoryError):
            experiment, told = with_half_the_images(experiment, error, share.workers)
            run.write_text(EXPERIMENT, experiment.to_yaml())
        elif isinstance(error, MachineMemoryError):
            ends_for_memory += 1
            if ends_for_memory > experiment.workers.max_restarts:
                raise Failed(f"workers died more often than workers.max_restarts allows: {error}")
            told = f"{error}; going on from the last checkpoint"
        elif restarts and is_of_the_controller(ended):
            restarts -= 1
            told = "Ray Train's controller died; going on from the last checkpoint"
        else:
            raise error
        remove_placement_groups(placement_groups() - before)  # without a dashboard Ray keeps them
        run.remove(snapshot_file())  # this also waits until the storage answers again
        watch.line.say(told)


def _beside(experiment: Experiment, run: Folder, share: Share) -> ValidationConfig | None:
    """How Ray evaluates checkpoints in tasks beside the training, at most one at a time. None if
    the experiment does not ask for it."""
    if not experiment.evaluation.is_beside:
        return None
    config = {
        "run": run.location,
        "settings": experiment.evaluation.model_dump(mode="json"),
        "python_path": [path for path in sys.path if path],
        "trusted": carried(),
    }
    return ValidationConfig(
        fn=evaluate_checkpoint,
        task_config=ValidationTaskConfig(fn_kwargs=config),
        ray_remote_kwargs={"num_cpus": 1, "num_gpus": 1 if share.gpu else 0, "max_retries": 0},
    )


def _fit_in_thread(
    trainer: TorchTrainer, run: Folder, look: Callable[[], None]
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
        look()
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
