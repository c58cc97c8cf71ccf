"""Training on a Ray cluster. No other room of ray_gen imports ray."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Ray reads these when it is imported or when its processes start. A user's own settings win.
for _name, _value in {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # reports are drained once an interval
    # A worker answers health checks from its own thread, even in a long step. No answer is a hang.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else Ray prints each line of a worker twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else Ray uploads the working directory under `uv run`
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no FutureWarning on machines without GPUs
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trial's run folder holds these records
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no score
    "TUNE_GLOBAL_CHECKPOINT_S": "100000000",  # a search goes on from its own records
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from ray_gen.launch.driver import check, train
    from ray_gen.launch.run import Run

__all__ = ["Run", "check", "train"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `launch.notice` needs no torch, whose import takes seconds.
    if name not in __all__:
        raise AttributeError(name)
    home = "ray_gen.launch.run" if name == "Run" else "ray_gen.launch.driver"
    return getattr(importlib.import_module(home), name)
