"""The experiment: the whole of a run as one typed tree. Settings only; imports no torch."""

from ray_gen.experiment.checks import too_many_workers
from ray_gen.experiment.experiment import Experiment
from ray_gen.experiment.reading import data_settings, parse_yaml
from ray_gen.experiment.settings import Component, ExperimentError, Settings, differences
from ray_gen.experiment.tree import Change, absolute_path

__all__ = [
    "Change",
    "Component",
    "Experiment",
    "ExperimentError",
    "Settings",
    "absolute_path",
    "data_settings",
    "differences",
    "parse_yaml",
    "too_many_workers",
]
