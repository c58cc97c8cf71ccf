"""Which failures Ray may retry, and which end a run at once."""

from __future__ import annotations

from typing import Any

from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.train import ControllerError, UserCallback, WorkerGroupError

from ray_gen.distributed import WorkerLostError
from ray_gen.errors import Failed, GpuMemoryError, MachineMemoryError, Refused
from ray_gen.launch.imports import import_failure
from ray_gen.launch.memory import ended_for_memory
from ray_gen.launch.worker import is_of_ray
from ray_gen.storage import INTACT, StorageError, reason_of

_FEWER_TASKS = (
    "close other programs there, or start Ray with fewer cores (ray start --head --num-cpus=N): "
    "each runs one task at a time"
)


class EndOnError(UserCallback):
    """Ends a fit after an exception of our code or of a user's class, which would come again at
    the same step. After a worker's death Ray replaces the worker, but if the memory of its machine
    ran short, the driver begins another fit, and says so. Runs in Ray Train's controller.

    When one rank dies, the others raise WorkerLostError in their collectives, sometimes before
    Ray notices the death.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises to make Ray give up. Ray then reports this exception as the cause."""
        errors = list(worker_exceptions.values())
        for error in errors:
            if isinstance(error, GpuMemoryError):
                raise error
            short = ended_for_memory(str(error))
            if short is not None:
                raise MachineMemoryError(short)
        if any(is_of_ray(error) or isinstance(error, WorkerLostError) for error in errors):
            return
        raise errors[0]


def is_of_the_controller(error: Exception) -> bool:
    """Whether a fit ended because its controller died, or because the storage failed for more than
    the 6 s that the controller waits. Another fit can then go on from the last checkpoint.

    Not if the controller could not begin, because it could not import a module: another would not
    either.
    """
    if isinstance(error, ControllerError):
        return isinstance(error.controller_failure, OSError)
    return isinstance(error, RayActorError) and not error.actor_init_failed


def in_words(error: Exception) -> Exception:
    """The exception that ended a fit, without Ray's layers around it."""
    of_workers = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    for told in map(str, (error, *of_workers)):
        short = ended_for_memory(told)
        if short is not None:
            return MachineMemoryError(short)
    if isinstance(error, RayActorError) and error.actor_init_failed:
        told = str(error).strip()
        return Failed(import_failure(told) or f"Ray Train: {told.splitlines()[-1]}")
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, OSError):
            return StorageError(f"storage: {reason_of(cause)}; {INTACT}, once the storage answers")
        if isinstance(cause, (Refused, Failed)):
            return cause
        return Failed(import_failure(str(cause)) or f"Ray Train: {cause}")
    if isinstance(error, WorkerGroupError):
        causes = "; ".join(str(e).splitlines()[0] for e in error.worker_failures.values())
        return Failed(f"workers died more often than workers.max_restarts allows: {causes}")
    return error


def of_a_task(error: RayError, again: str) -> Exception:
    """What ended a task that only reads or writes data, without Ray's layers around it: what it
    raised, or how its process died. again: what the same command does the next time."""
    if isinstance(error, RayTaskError):
        cause: object = error.cause
        if isinstance(cause, (Refused, Failed, OSError)):
            return cause
        told = import_failure(str(error))
        return error if told is None else Failed(told)
    remedy = f"{_FEWER_TASKS}, and give the same command again: {again}"
    short = ended_for_memory(str(error), remedy)
    if short is not None:
        return MachineMemoryError(short)
    if isinstance(error, (WorkerCrashedError, OutOfMemoryError, NodeDiedError)):
        return Failed(
            "a process of this command died, and again when Ray had started it anew; most often "
            f"the memory of its machine runs short: {remedy}"
        )
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return Failed(f"Ray ended the command: {why}; give it again: {again}")
