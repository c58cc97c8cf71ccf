"""Train variational autoencoders and generative adversarial networks on Ray, and use them.

import ray_gen

print(ray_gen.check("vae-mnist5k"))        # what a run would be; nothing starts
run = ray_gen.train("vae-mnist5k", {"training.images": 100_000}, name="digits")
run.history()                              # numbers of its reports, a pandas DataFrame
images = run.load().sample(64)             # float (64, C, H, W) in [0, 1]
scores = ray_gen.evaluate(run, metrics=["sliced_wasserstein"])
ray_gen.Run("digits").plot()               # a run that is there, by name, path or URI

A call that cannot work raises Refused, whose message says what to do; a run that did not end well
raises Failed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_gen.errors import Failed, Refused
    from ray_gen.evaluation.scores import Scores
    from ray_gen.experiment import Experiment, ExperimentError
    from ray_gen.launch import check, train
    from ray_gen.launch.evaluate import evaluate
    from ray_gen.launch.resume import resume
    from ray_gen.launch.run import Run
    from ray_gen.launch.search.driver import search
    from ray_gen.pipeline import Pipeline, load
    from ray_gen.pipeline.averages import ema
    from ray_gen.pipeline.export import export
    from ray_gen.pipeline.mixture import Mixture
    from ray_gen.recipes import recipe
    from ray_gen.version import __version__ as __version__

__all__ = [
    "Experiment",
    "ExperimentError",
    "Failed",
    "Mixture",
    "Pipeline",
    "Refused",
    "Run",
    "Scores",
    "check",
    "ema",
    "evaluate",
    "export",
    "load",
    "recipe",
    "resume",
    "search",
    "train",
]

# Imported on first use: a command that only parses its arguments imports neither torch nor ray.
_HOMES = {
    "Experiment": "ray_gen.experiment",
    "ExperimentError": "ray_gen.experiment",
    "Failed": "ray_gen.errors",
    "Refused": "ray_gen.errors",
    "Run": "ray_gen.launch.run",
    "Mixture": "ray_gen.pipeline.mixture",
    "Pipeline": "ray_gen.pipeline",
    "check": "ray_gen.launch",
    "ema": "ray_gen.pipeline.averages",
    "load": "ray_gen.pipeline",
    "recipe": "ray_gen.recipes",
    "resume": "ray_gen.launch.resume",
    "search": "ray_gen.launch.search.driver",
    "train": "ray_gen.launch",
    "Scores": "ray_gen.evaluation.scores",
    "evaluate": "ray_gen.launch.evaluate",
    "export": "ray_gen.pipeline.export",
    "__version__": "ray_gen.version",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    # With these two, Python suggests the nearest name.
    told = f"module 'ray_gen' has no attribute {name!r}"
    raise AttributeError(told, name=name, obj=importlib.import_module(__name__))
