"""A run of MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from ray_gen.runs.loggers.logger import LoggedRun, Picture
from ray_gen.storage import Folder

VARIABLE = "MLFLOW_TRACKING_URI"
FILE = "mlflow.db"
ARTIFACTS = "mlflow_artifacts"
LONGEST_PARAMETER = 500
"""Characters. Old servers take no more."""
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def tracking_uri_of(settings: str | None, location: str) -> str | None:
    """Where MLflow keeps a run: the setting, else $MLFLOW_TRACKING_URI, else a file beside a local
    run folder. None: nowhere."""
    found = settings or os.environ.get(VARIABLE)
    run = Folder(location)
    return found or (f"sqlite:///{run.path.parent / FILE}" if run.is_local else None)


class Mlflow:
    """Sends a run to MLflow. The step of every number is images."""

    def __init__(self, tracking_uri: str | None, experiment: str) -> None:
        """See `ray_gen.experiment.loggers.MlflowLogger`."""
        self._uri, self._experiment = tracking_uri, experiment

    def start(self, run: LoggedRun) -> None:
        """Begins a run of MLflow, or goes on with the one whose id is in the memory."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = tracking_uri_of(self._uri, run.location)
        self._client = MlflowClient(tracking_uri=uri)
        known = run.memory.get("run_id")
        if known is not None:
            self._id: str = known
            self._client.update_run(known, status="RUNNING")
            return
        made = self._client.create_run(self._experiment_id(uri or ""), run_name=run.name)
        self._id = run.memory["run_id"] = made.info.run_id
        values = run.hyperparameters.items()
        parameters = [Param(path, str(value)[:LONGEST_PARAMETER]) for path, value in values]
        for first in range(0, len(parameters), 100):  # a server takes no more at once
            self._client.log_batch(self._id, params=parameters[first : first + 100])
        self._client.set_tag(self._id, "ray_gen.run", run.location)
        self._client.log_dict(self._id, dict(run.experiment), "experiment.yaml")

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """Sends them."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(tag, value, now, images) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def pictures(self, images: int, values: Mapping[str, Picture]) -> None:
        """Sends them as PNG, among the artifacts."""
        for tag, picture in values.items():
            self._client.log_image(self._id, picture, f"{tag}_{images:012d}.png")

    def end(self, how: str) -> None:
        """Sets the run's status."""
        self._client.set_terminated(self._id, STATUS[how])

    def _experiment_id(self, uri: str) -> str:
        """The id of the experiment. Makes it if it does not exist."""
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return found.experiment_id
        scheme, _, path = uri.partition(":///")
        # Without it MLflow would put artifacts into the working directory.
        artifacts = str(Path(path).parent / ARTIFACTS) if scheme == "sqlite" else None
        try:
            return self._client.create_experiment(self._experiment, artifact_location=artifacts)
        except Exception:
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                raise
            return found.experiment_id  # another run has just made it
