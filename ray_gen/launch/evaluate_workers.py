"""Evaluation on several Ray workers. Each worker generates and measures its share of the images."""

from __future__ import annotations

import logging
import sys
import threading
import time
from functools import partial
from typing import Any

import ray
import ray.train.torch
from ray.exceptions import RayError
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_gen import temporary
from ray_gen.distributed import World, use_cores
from ray_gen.errors import Failed
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.request import Request, measure, prepared
from ray_gen.evaluation.scores import Scores
from ray_gen.launch.cluster import check_gpus, check_seen, connected, equal_share, when_there
from ray_gen.launch.failures import EndOnError, in_words
from ray_gen.storage import Folder
from ray_gen.training.code import carried, take

POLL_SECONDS = 0.5
"""Time between two reads of the workers' progress."""


def evaluate_on_workers(request: Request, workers: int, progress: Progress) -> Scores:
    """The scores of a request, measured by `workers` workers. Raises Refused or Failed."""
    # Before Ray starts, refuse what cannot be measured.
    prepared(request, World(), progress)
    starting = (0, 1, f"starting {workers} workers")
    progress(*starting)
    with temporary.folder("evaluate-") as folder, connected():
        gpu, cpus = when_there(
            partial(equal_share, workers),
            [{"CPU": 1.0}] * workers,
            lambda words: progress(0, 1, words),
        )
        check_gpus(gpu, workers)
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
                "trusted": carried(),
                "board": board,
            },
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker=each
            ),
            run_config=RunConfig(
                name="evaluate",
                storage_path=str(folder),
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
            ray.kill(board)  # without this, workers on a cluster would go on after Ctrl-C
    if found is None:
        raise Failed("the workers of the evaluation ended without scores")
    return Scores.from_json(found)


def _board(*told: Any) -> Any:
    """An actor on the driver's node. It keeps the last progress that the first worker reported."""

    @ray.remote(num_cpus=0)
    class Board:  # in a function, so pickled by value: its process need not import ray_gen
        def __init__(self, *told: Any) -> None:
            self._told = told

        def tell(self, *told: Any) -> None:
            self._told = told

        def told(self) -> Any:
            return self._told

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # If memory is short, Ray kills the youngest processes first. So the board may restart.
    lasting = Board.options(scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
    return lasting.remote(*told)


def _fit(trainer: TorchTrainer, board: Any, progress: Progress) -> Any:
    """Runs the workers and returns their answer.

    In a second thread: on the main thread Ray Train answers Ctrl-C by waiting for its workers to
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
    """Reports progress to the driver from time to time. Raises if the driver is gone."""
    stage, at = "", 0.0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal stage, at
        now = time.monotonic()
        if what != stage or now - at >= POLL_SECONDS:
            stage, at = what, now
            ray.get(board.tell.remote(done, total, what))

    return progress


def evaluate_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Runs on every worker. All return the same scores."""
    sys.path += [path for path in config["python_path"] if path not in sys.path]
    take(config["trusted"])
    use_cores(config["threads"])
    world = World.joined(ray.train.torch.get_device())
    progress = _told_to(config["board"]) if world.rank == 0 else silent
    return measure(Request.from_json(config["request"]), world, progress).as_json()
