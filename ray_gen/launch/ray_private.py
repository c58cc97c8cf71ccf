"""Every private name of Ray that ray_gen uses. No other file touches one.

A release of Ray may move or change any of them. The functions here then work without the name, and
their docstrings say what that costs. Names are looked up when they are used, so no import can fail.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.job_config import JobConfig

PRINT = "ray._private.worker.print_to_stdstream"
ADDRESS = "ray._private.utils.read_ray_address"
STATUS = "ray.autoscaler.v2.sdk.get_cluster_status"
CONTEXT = "ray.train.v2._internal.execution.context.get_train_context"
CONTEXT_CLASS = "ray.train.v2._internal.execution.context.TrainContext"
NOTICE = "ray.train.v2._internal.execution.preemption.PreemptionContext"
SNAPSHOT = "ray.train.v2._internal.constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME"
SIGTERM_HANDLER = "ray._private.utils.set_sigterm_handler"
WORKER = "ray.train.v2._internal.execution.worker_group.worker.RayTrainWorker"
NODE = "ray._private.node.Node"
NAMES = (
    *(PRINT, ADDRESS, STATUS, CONTEXT, CONTEXT_CLASS, NOTICE, SNAPSHOT, WORKER),
    *(SIGTERM_HANDLER, NODE),
)


def find(name: str) -> Any:
    """What the installed Ray has under a private name; None if it has nothing there."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except (ImportError, AttributeError):  # AttributeError: a module that only half exists
        return None


def silence_deaths() -> None:
    """Keeps Ray from printing every worker's death on the driver. Ray prints it even with
    log_to_driver=False. The progress line reports deaths.

    Without the name: Ray prints them, too.
    """
    module, _, attribute = PRINT.rpartition(".")
    if find(PRINT) is not None:
        setattr(importlib.import_module(module), attribute, lambda *args, **kwargs: None)


@contextmanager
def own_sigterm_handler() -> Generator[None]:
    """After the `with` statement this process has the handler of SIGTERM that it had before, which
    `ray.init` replaces and `ray.shutdown` removes. Ray's own handler waits up to 30 s for its node
    before it ends this process.

    Without the name: Ray's handler answers while `ray.init` runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray sets none there
        return
    before = signal.getsignal(signal.SIGTERM)
    module, _, attribute = SIGTERM_HANDLER.rpartition(".")
    own = find(SIGTERM_HANDLER)
    if own is not None:
        setattr(importlib.import_module(module), attribute, lambda handler: None)
    try:
        yield
    finally:
        if own is not None:
            setattr(importlib.import_module(module), attribute, own)
        if before is not None:  # Ray's library in C++ sets its own, and at the end none
            signal.signal(signal.SIGTERM, before)


@contextmanager
def ended_by(end: Callable[[], None]) -> Generator[None]:
    """Inside the `with` statement `ray.shutdown` calls `end` when it has disconnected, before it
    ends the processes of a local Ray itself.

    Without the name: `end` is not called. Ray ends two processes that do not hear SIGTERM one after
    the other, each after a second.
    """
    node, name = find(NODE), "kill_all_processes"
    own = getattr(node, name, None)
    if own is None:
        yield
        return

    def kill_all_processes(*args: Any, **options: Any) -> None:
        end()
        own(*args, **options)

    setattr(node, name, kill_all_processes)
    try:
        yield
    finally:
        setattr(node, name, own)


def job_with(folders: Sequence[str]) -> JobConfig:
    """The configuration of a job whose workers look for modules in these folders first, and not in
    the working directory, where a torch.py would hide torch.

    Without the names of its fields: Ray's own. Workers then look in the working directory first.
    In a submitted job: Ray's own, too. The working directory is then the job's package.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return JobConfig()
    try:
        return JobConfig(_client_job=True, _py_driver_sys_path=list(folders))
    except TypeError:
        return JobConfig()


def address_of_started_cluster() -> str | None:
    """The address that the last `ray start` on this machine wrote down; None if there is no such
    address. The cluster may be gone.

    Without the name: reads the file that the documentation of `ray.init` names.
    """
    read = find(ADDRESS)
    if read is not None:
        try:
            return read() or None
        except TypeError:  # it has other arguments now
            pass
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        text = (Path(temporary) / "ray" / "ray_current_cluster").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.strip() or None


def asks_for_a_token(address: str, proc: Path = Path("/proc")) -> bool:
    """Whether the cluster to which this machine belongs was started with a token. On a cluster
    without one, an actor of a driver that has one never starts.

    Reads it from Ray's process of this machine. If there is none, or it has other names: True, so
    that Ray uses the token if it finds one.
    """
    for folder in proc.iterdir():
        with suppress(OSError):  # it has ended, or belongs to another user
            program, *options = (folder / "cmdline").read_bytes().split(b"\0")
            if program.endswith(b"raylet") and f"--gcs-address={address}".encode() in options:
                return b"RAY_AUTH_MODE=token" in (folder / "environ").read_bytes().split(b"\0")
    return True


def coming_nodes(gcs_address: str) -> int | None:
    """Nodes that the cluster's autoscaler is about to start or has just started.

    Without the name: None. The caller then waits a fixed time.
    """
    get_cluster_status = find(STATUS)
    if get_cluster_status is None:
        return None
    try:
        status = get_cluster_status(gcs_address)
        return len(status.pending_launches) + len(status.pending_nodes)
    except (AttributeError, TypeError):
        return None


def preemption_notice() -> object:
    """What Ray has told this worker about workers whose machines will soon be taken away.

    `ray.train.get_preemption_info` makes all workers wait for each other, through an actor. Our
    workers already meet at each control step, which calls this often. So this reads only what has
    reached this worker.

    Without the names: always None. No checkpoint is saved at a notice; see `hears_notices`.
    """
    try:
        info = find(CONTEXT)().preemption_context.preemption_info
        return None if info is None else (info.deadline_ms, tuple(info.preempted_ranks))
    except (AttributeError, TypeError, RuntimeError):  # RuntimeError: not in a worker of Ray Train
        return None


def hears_notices() -> bool:
    """Whether `preemption_notice` can find anything. Ray 2.58 is the first with these names."""
    fields: Any = getattr(find(CONTEXT_CLASS), "__dataclass_fields__", {})
    known = "preemption_context" in fields and hasattr(find(NOTICE), "preemption_info")
    return known and find(CONTEXT) is not None


def snapshot_file() -> str:
    """Ray Train's own record in a run folder. It must not be there when a run goes on: Ray would
    restore it, and would raise if a checkpoint in it is gone.

    Without the name: the file's name in Ray 2.60.
    """
    return find(SNAPSHOT) or "checkpoint_manager_snapshot.json"


def is_train_worker(title: bytes) -> bool:
    """Whether a process with this title trains. Ray writes the name of a worker's class in the
    title of its process.

    Imports nothing of Ray. If the class has another name: False, so a pod's preStop ends at once,
    and a training loses what it did since its last checkpoint.
    """
    return WORKER.rpartition(".")[2].encode() in title
