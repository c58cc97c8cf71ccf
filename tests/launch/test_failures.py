"""What ended a fit, without Ray's layers around it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.train import ControllerError, WorkerGroupError

from ray_gen.distributed import WorkerLostError
from ray_gen.errors import Failed, GpuMemoryError, MachineMemoryError, Refused
from ray_gen.launch import cluster, parts
from ray_gen.launch.failures import EndOnError, in_words, is_of_the_controller, of_a_task
from ray_gen.storage import Folder, StorageError
from tests.launch.test_memory import OF_RAY_2_60


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


MEMORY = r"most often the memory of its machine runs short: .*--num-cpus=N.*: it writes what lacks$"


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (WorkerCrashedError(), Failed, MEMORY),
        (OutOfMemoryError("short"), Failed, MEMORY),
        (NodeDiedError("gone"), Failed, MEMORY),
        (OutOfMemoryError(OF_RAY_2_60), MachineMemoryError, r"192\.0\.2\.2 .*2\.8.*--num-cpus=N"),
        (
            ObjectLostError("ab", None, ""),
            Failed,
            r"^Ray ended the command: .*ab.*again: it",
        ),
        (RayTaskError("f", "", Refused("data.path: x")), Refused, r"^data\.path: x$"),
        (RayTaskError("f", "", OSError("full")), OSError, "^full$"),
        (RayTaskError("f", "told", KeyError("x")), RayTaskError, "told"),
    ],
)
def test_a_task_that_ended_is_one_sentence(
    error: RayError, kind: type[Exception], told: str
) -> None:
    found = of_a_task(error, "it writes what lacks")
    with pytest.raises(kind, match=told):
        raise found
    if isinstance(found, Failed):
        assert "micro_batch_size" not in str(found) and "\n" not in str(found)


class Parts:
    """A conversion whose first task dies."""

    destination = Folder("memory")
    count, parts = 8, 2


def test_a_process_that_dies_while_it_writes_a_part_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Task:
        remote = staticmethod(lambda *given: given)

    def get(task: object) -> None:
        raise WorkerCrashedError

    cancelled: list[object] = []
    monkeypatch.setattr(cluster, "connected", nullcontext)
    monkeypatch.setattr(cluster, "check_shared", lambda folder: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
    monkeypatch.setattr(ray, "remote", lambda **given: lambda function: Task)
    monkeypatch.setattr(ray, "put", lambda given: given)
    monkeypatch.setattr(ray, "wait", lambda tasks, timeout: (tasks[:1], tasks[1:]))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda task, force: cancelled.append(task))
    write: Any = parts._on_ray
    with pytest.raises(Failed, match=r"a process of this command died.* writes the missing files$"):
        write(Parts(), [0, 1], lambda *told: None, False)
    assert len(cancelled) == 1
