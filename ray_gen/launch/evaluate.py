"""Evaluation on several Ray workers: each makes and looks at its share of the images."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from typing import Any

import ray.train.torch
import torch
from ray.train import Checkpoint, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_gen.distributed import World, use_cores
from ray_gen.errors import Failed
from ray_gen.evaluation import Request, Scores, measure
from ray_gen.evaluators.base import Progress
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.launch.cluster import check_seen, connected, equal_share
from ray_gen.launch.failures import EndOnError, in_words
from ray_gen.run import EVALUATIONS, evaluation_file, write_scalars
from ray_gen.storage import Folder


def evaluate_on_workers(request: Request, workers: int, progress: Progress) -> Scores:
    """The scores of a request, measured by so many workers. Raises Refused or Failed."""
    with connected(), tempfile.TemporaryDirectory(prefix="ray_gen-evaluate-") as folder:
        gpu, cpus = equal_share(workers)
        if request.run is not None:
            check_seen(Folder(request.run))
        each = {"CPU": cpus, **({"GPU": 1} if gpu else {})}
        progress(0, 1, f"starting {workers} workers")
        trainer = TorchTrainer(
            evaluate_worker,
            train_loop_config={
                "request": request.to_json(),
                "threads": cpus,
                "python_path": [path for path in sys.path if path],
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
            found = trainer.fit().return_value
        except Exception as error:
            raise in_words(error) from error
    if found is None:
        raise Failed("the workers ended without an answer")
    return Scores.from_json(found)


def evaluate_checkpoint(checkpoint: Checkpoint, **config: Any) -> dict[str, Any]:
    """Evaluates a checkpoint in a Ray task beside the training, and writes what it found to the run
    folder: scores with their protocols, and TensorBoard scalars of its own.

    A failure is written in their place; the training goes on.
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
    (run / EVALUATIONS).write_text(evaluation_file(images), json.dumps(scores.as_json(), indent=2))
    metrics = scores.as_metrics()
    write_scalars(run, images, metrics)
    return metrics


def failures_beside(run: Folder) -> list[str]:
    """Evaluations of a run that failed, and why."""
    told: list[str] = []
    for name in (run / EVALUATIONS).names():
        if name.endswith(".json"):
            found = json.loads((run / EVALUATIONS).read_text(name))
            if "failed" in found:
                told.append(f"evaluations/{name}: {found['failed']}")
    return told


def evaluate_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker runs; all return the same scores."""
    sys.path += [path for path in config["python_path"] if path not in sys.path]
    use_cores(config["threads"])
    world = World.joined(ray.train.torch.get_device())
    return measure(Request.from_json(config["request"]), world).as_json()
