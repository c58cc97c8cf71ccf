"""The experiment: the whole of a run as one typed tree. Settings only; imports no torch."""

from ray_gen.experiment.base import Component, ExperimentError, Settings, differences
from ray_gen.experiment.plain import data_settings, parse_yaml
from ray_gen.experiment.tree import Change, Experiment, absolute_path, too_many_workers

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
