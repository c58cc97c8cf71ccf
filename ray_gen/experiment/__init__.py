"""The experiment: all settings of a run in one typed tree. No module here imports torch."""

from ray_gen.experiment.checks import too_many_workers
from ray_gen.experiment.experiment import Experiment
from ray_gen.experiment.reading import data_settings, parse_yaml
from ray_gen.experiment.tree import Change
from ray_gen.settings import Component, ExperimentError, Settings, absolute_path, differences

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
