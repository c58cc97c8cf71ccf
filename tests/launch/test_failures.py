"""What ended a fit, without Ray's layers around it."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from ray_gen.distributed import WorkerLostError
from ray_gen.errors import Failed, GpuMemoryError, Refused
from ray_gen.launch.failures import EndOnError, in_words, is_of_the_controller
from ray_gen.storage import StorageError


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (ControllerError(Refused("evaluation.count: 5")), Refused, r"^evaluation\.count: 5$"),
        (ControllerError(Failed("a user's class")), Failed, "^a user's class$"),
        (ControllerError(OSError("gone")), StorageError, "gone.* is intact"),
        (ControllerError(KeyError("x")), Failed, "Ray Train: .*x"),
        (WorkerGroupError("", {0: ValueError("one\ntwo")}), Failed, r"max_restarts.*: one$"),
        (ValueError("another"), ValueError, "^another$"),
    ],
)
def test_an_error_is_what_it_was_before_ray_wrapped_it(
    error: Exception, kind: type[Exception], told: str
) -> None:
    found = in_words(error)
    with pytest.raises(kind, match=told):
        raise found


def test_a_gpu_with_too_little_memory_ends_a_fit_though_other_ranks_lost_a_worker() -> None:
    error = GpuMemoryError("a GPU ran out of memory")
    with pytest.raises(GpuMemoryError):
        EndOnError().after_exception(None, {0: WorkerLostError("rank 1"), 1: error})
    assert isinstance(in_words(ControllerError(error)), GpuMemoryError)
    EndOnError().after_exception(None, {0: WorkerLostError("rank 1")})


def test_only_a_dead_controller_or_a_storage_is_worth_another_fit() -> None:
    assert is_of_the_controller(RayActorError())
    assert is_of_the_controller(ControllerError(OSError("gone")))
    assert not is_of_the_controller(ControllerError(Failed("a user's class")))
    assert not is_of_the_controller(WorkerGroupError("", {}))
