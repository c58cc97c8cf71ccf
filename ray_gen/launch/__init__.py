"""Training on a Ray cluster. The only room that imports ray."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Read by Ray when it is imported or when its processes start; a user's own settings win.
for _name, _value in {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # reports are drained once an interval
    # A worker answers from a thread of its own, also in a long step: silence is a hang.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else a worker's prints come twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else below `uv run` the working directory is uploaded
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no FutureWarning on machines without GPUs
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's run folder has all of it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no score
    "TUNE_GLOBAL_CHECKPOINT_S": "100000000",  # a search goes on from its own records
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from ray_gen.launch.driver import Run, train

__all__ = ["Run", "train"]


def __getattr__(name: str) -> Any:
    # When first used: what hears a machine's notice needs neither torch nor the seconds.
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module("ray_gen.launch.driver"), name)
