"""Loggers: where the numbers and pictures of a run go, besides the files of the run folder."""

from ray_gen.runs.loggers.logger import LoggedRun, Logger, Picture
from ray_gen.runs.loggers.together import Loggers, check_loggers, log_late_scores

__all__ = ["LoggedRun", "Logger", "Loggers", "Picture", "check_loggers", "log_late_scores"]
