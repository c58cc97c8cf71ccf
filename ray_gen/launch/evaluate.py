"""Evaluation on several Ray workers: each makes and looks at its share of the images."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import threading
import time
from functools import partial
from typing import Any

import ray
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train import Checkpoint, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_gen.distributed import World, use_cores
from ray_gen.errors import Failed
from ray_gen.evaluation import Request, Scores, measure
from ray_gen.evaluators.base import Progress, silent
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.launch.cluster import check_seen, connected, equal_share, when_there
from ray_gen.launch.failures import EndOnError, in_words
from ray_gen.runs.checkpoints import AWAITED, checkpoint_name, checkpoints
from ray_gen.runs.writer import EVALUATIONS, evaluation_file, write_scalars
from ray_gen.storage import Folder

POLL_SECONDS = 0.5
"""Between two looks at how far the workers are."""


def evaluate_on_workers(request: Request, workers: int, progress: Progress) -> Scores:
    """The scores of a request, measured by so many workers. Raises Refused or Failed."""
    starting = (0, 1, f"starting {workers} workers")
    progress(*starting)
    temporary = tempfile.TemporaryDirectory(prefix="ray_gen-evaluate-", ignore_cleanup_errors=True)
    with temporary as folder, connected():
        gpu, cpus = when_there(
            partial(equal_share, workers),
            [{"CPU": 1.0}] * workers,
            lambda words: progress(0, 1, words),
        )
        if request.run is not None:
            check_seen(Folder(request.run))
        each = {"CPU": cpus, **({"GPU": 1} if gpu else {})}
        board = _board(*starting)
        trainer = TorchTrainer(
            evaluate_worker,
            train_loop_config={
                "request": request.to_json(),
                "threads": cpus,
                "python_path": [path for path in sys.path if path],
                "board": board,
            },
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker=each
            ),
            run_config=RunConfig(
                name="evaluate",
                storage_path=folder,
                callbacks=[EndOnError()],
                logging_config=LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(cpus)}},
            ),
        )
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        try:
            found = _fit(trainer, board, progress)
        except RayError as error:
            raise Failed(f"Ray ended the evaluation: {str(error).splitlines()[0]}") from error
        finally:
            ray.kill(board)  # the workers of a cluster that goes on hear of Ctrl-C by this
    if found is None:
        raise Failed("the workers ended without an answer")
    return Scores.from_json(found)


def _board(*told: Any) -> Any:
    """An actor beside the driver that keeps what the first worker last told of its progress."""

    @ray.remote(num_cpus=0)
    class Board:  # within a function it goes by its text, and its process imports nothing of ours
        def __init__(self, *told: Any) -> None:
            self._told = told

        def tell(self, *told: Any) -> None:
            self._told = told

        def told(self) -> Any:
            return self._told

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Where memory is short Ray kills the youngest processes first.
    lasting = Board.options(scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
    return lasting.remote(*told)


def _fit(trainer: TorchTrainer, board: Any, progress: Progress) -> Any:
    """What the workers return.

    In a thread of its own: on the main one Ray Train answers Ctrl-C by waiting for its workers to
    end, which took up to 65 s.
    """
    found: list[Any] = []
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            found.append(trainer.fit().return_value)
        except BaseException as error:  # SystemExit, too: Ray raises it here when it is shut down
            errors.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    asked = board.told.remote()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if ray.wait([asked], timeout=0)[0]:
            progress(*ray.get(asked))
            asked = board.told.remote()
    for error in errors:
        raise in_words(error) if isinstance(error, Exception) else error
    return found[0]


def _told_to(board: Any) -> Progress:
    """Tells the driver of the progress, now and then. Raises where the driver is gone."""
    stage, at = "", 0.0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal stage, at
        now = time.monotonic()
        if what != stage or now - at >= POLL_SECONDS:
            stage, at = what, now
            ray.get(board.tell.remote(done, total, what))

    return progress


def evaluate_checkpoint(checkpoint: Checkpoint, **config: Any) -> dict[str, Any]:
    """Evaluates a checkpoint in a Ray task beside the training, and writes what it found to the run
    folder: scores with their protocols, and TensorBoard scalars of its own.

    A failure is written in their place; the training goes on. The checkpoint is kept until then.
    """
    sys.path += [path for path in config["python_path"] if path not in sys.path]
    use_cores(1)
    run = Folder(config["run"])
    settings = Evaluation.model_validate({**config["settings"], "weights": "ema"})
    images = int(Folder(checkpoint.path).name.rpartition("_")[2])
    try:
        with checkpoint.as_directory() as folder:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            request = Request(folder, None, None, settings)
            scores = measure(request, World(device=device))
    except Exception as error:
        told = {"failed": f"{type(error).__name__}: {error}"}
        (run / EVALUATIONS).write_text(evaluation_file(images), json.dumps(told, indent=2))
        return {}
    finally:
        (run / checkpoint_name(images)).remove(AWAITED)
    (run / EVALUATIONS).write_text(evaluation_file(images), json.dumps(scores.as_json(), indent=2))
    metrics = scores.as_metrics()
    write_scalars(run, images, metrics)
    return metrics


def failures_beside(run: Folder) -> list[str]:
    """Evaluations of a run that failed or never ended, and why. Nothing is awaited after it."""
    told: list[str] = []
    for name in (run / EVALUATIONS).names():
        if name.endswith(".json"):
            found = json.loads((run / EVALUATIONS).read_text(name))
            if "failed" in found:
                told.append(f"evaluations/{name}: {found['failed']}")
    for checkpoint in checkpoints(run):
        if checkpoint.exists(AWAITED):
            told.append(f"{checkpoint.name} was not evaluated: the task of it was lost")
            checkpoint.remove(AWAITED)
    return told


def evaluate_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker runs; all return the same scores."""
    sys.path += [path for path in config["python_path"] if path not in sys.path]
    use_cores(config["threads"])
    world = World.joined(ray.train.torch.get_device())
    progress = _told_to(config["board"]) if world.rank == 0 else silent
    return measure(Request.from_json(config["request"]), world, progress).as_json()
