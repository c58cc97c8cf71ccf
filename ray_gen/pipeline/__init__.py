"""Load a trained run and use it. Needs no data set and no Ray. Unpickles nothing."""

from ray_gen.pipeline.loading import experiment_of
from ray_gen.pipeline.pipeline import Pipeline, load

__all__ = ["Pipeline", "experiment_of", "load"]
