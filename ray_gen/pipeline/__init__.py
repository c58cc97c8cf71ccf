"""A trained run in two lines: load it, use it. No data set, no Ray, nothing unpickled."""

from ray_gen.pipeline.loading import experiment_of
from ray_gen.pipeline.pipeline import Pipeline, load

__all__ = ["Pipeline", "experiment_of", "load"]
