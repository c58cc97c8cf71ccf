"""Which failures Ray may try again, and which end a run at once."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayError
from ray.train import ControllerError, UserCallback, WorkerGroupError
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.context import TrainRunContext

from ray_gen.distributed import WorkerLostError
from ray_gen.errors import Failed, Refused
from ray_gen.storage import INTACT, StorageError, reason_of


class EndOnError(UserCallback):
    """Runs in Ray Train's controller. A worker that died is replaced; an exception of ours or of a
    user's class would come again at the same step, so it ends the run.

    When one rank dies the others raise from their collectives, sometimes first.
    """

    def after_exception(
        self, run_context: TrainRunContext, worker_exceptions: dict[int, Exception]
    ) -> None:
        """Raising here makes Ray give up, with the exception raised as the cause."""
        errors = list(worker_exceptions.values())
        if any(isinstance(error, (RayTrainError, RayError, WorkerLostError)) for error in errors):
            return
        raise errors[0]


def is_of_the_controller(error: Exception) -> bool:
    """Whether a fit ended because its controller died, or met the storage in an outage, for which
    it waits 6 s: another fit goes on from the last checkpoint."""
    if isinstance(error, ControllerError):
        return isinstance(error.controller_failure, OSError)
    return isinstance(error, RayActorError)


def in_words(error: Exception) -> Exception:
    """What ended a fit, without Ray's layers around it."""
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, OSError):
            return StorageError(f"storage: {reason_of(cause)}; {INTACT}, when it answers")
        return cause if isinstance(cause, (Refused, Failed)) else Failed(f"Ray Train: {cause}")
    if isinstance(error, WorkerGroupError):
        causes = "; ".join(str(e).splitlines()[0] for e in error.worker_failures.values())
        return Failed(f"workers died more often than workers.max_restarts allows: {causes}")
    return error
