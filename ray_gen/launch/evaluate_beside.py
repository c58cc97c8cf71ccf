"""Evaluation of a checkpoint beside the training, in its own Ray task."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from ray.train import Checkpoint

from ray_gen.distributed import World, use_cores
from ray_gen.evaluation.request import Request, measure
from ray_gen.experiment import Experiment
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.experiment.loggers import TensorBoardLogger
from ray_gen.runs.checkpoints import AWAITED, checkpoint_name, checkpoints
from ray_gen.runs.evaluations import EVALUATIONS, evaluation_file
from ray_gen.runs.loggers.tensorboard import write_scalars
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.storage import Folder
from ray_gen.training.code import take


def evaluate_checkpoint(checkpoint: Checkpoint, **config: Any) -> dict[str, Any]:
    """Evaluates a checkpoint in a Ray task beside the training. Writes scores with their protocols
    and TensorBoard scalars to the run folder.

    A failure is written instead of the scores, and the training goes on. The checkpoint is kept
    until the evaluation has ended.
    """
    sys.path += [path for path in config["python_path"] if path not in sys.path]
    take(config["trusted"])
    use_cores(1)
    run = Folder(config["run"])
    settings = Evaluation.model_validate({**config["settings"], "weights": "ema"})
    images = int(Folder(checkpoint.path).name.rpartition("_")[2])
    try:
        with checkpoint.as_directory() as folder:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            request = Request(folder, None, None, settings)
            scores = measure(request, World(device=device))
            experiment = Experiment.from_yaml(Folder(folder).read_text(EXPERIMENT))
    except Exception as error:
        told = {"failed": f"{type(error).__name__}: {error}"}
        (run / EVALUATIONS).write_text(evaluation_file(images), json.dumps(told, indent=2))
        return {}
    finally:
        (run / checkpoint_name(images)).remove(AWAITED)
    (run / EVALUATIONS).write_text(evaluation_file(images), json.dumps(scores.as_json(), indent=2))
    metrics = scores.as_metrics()
    if any(isinstance(logger, TensorBoardLogger) for logger in experiment.loggers):
        write_scalars(run, images, metrics)
    return metrics


def failures_beside(run: Folder) -> list[str]:
    """Messages about a run's evaluations that failed or never ended. Also removes the marks that
    keep checkpoints for evaluations."""
    told: list[str] = []
    for name in (run / EVALUATIONS).names():
        if name.endswith(".json"):
            found = json.loads((run / EVALUATIONS).read_text(name))
            if "failed" in found:
                told.append(f"evaluations/{name}: {found['failed']}")
    for checkpoint in checkpoints(run):
        if checkpoint.exists(AWAITED):
            told.append(f"{checkpoint.name} was not evaluated: its task was lost")
            checkpoint.remove(AWAITED)
    return told
