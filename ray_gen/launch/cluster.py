"""The Ray cluster that a run gets: found or started, and what each worker may have of it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray._private.worker
from ray._private.utils import read_ray_address
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError, too_many_workers
from ray_gen.experiment.training import Span
from ray_gen.storage import VARIABLE, Folder

Found = TypeVar("Found")

SILENCE_SECONDS = 20.0
"""Without a node on its way, after which none is expected; an autoscaler looks every five."""


@dataclass(frozen=True)
class Share:
    """Workers and what each has."""

    workers: int
    gpu: float
    """GPUs: 0, 1, or a part of one that several share."""
    cpus: int
    least: int | None = None
    """Workers that a run which may shrink goes on with; None: all of them, always."""

    def __str__(self) -> str:
        if self.least is not None:
            return f"{self.least} to {self.workers} workers"
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}"


@contextmanager
def connected() -> Generator[None]:
    """A connection to the cluster of RAY_ADDRESS or of a running `ray start --head`, else to a
    local one that ends with it. A connection that was there before is used and left.

    To be entered on the main thread: Ray's processes die with the thread that started them.
    """
    if ray.is_initialized():
        yield
        return
    _be_quiet()
    address = _running_cluster()
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options
        )
    except ConnectionError as error:
        hint = "" if "RAY_AUTH_MODE" in os.environ else ", or asks for a token: RAY_AUTH_MODE=token"
        raise Refused(
            f"RAY_ADDRESS: the cluster {address} does not answer ({error}){hint}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _running_cluster() -> str | None:
    """The address of a cluster that answers; None to start a local one.

    Ray waits more than a minute for the address of a cluster that is gone, so it is tried first.
    """
    asked = os.environ.get("RAY_ADDRESS")
    address = asked or read_ray_address()
    if not address or address == "local":
        return None
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return address
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError as error:
        if asked is None:
            return None
        raise Refused(
            f"RAY_ADDRESS: the cluster {asked} does not answer ({error.strerror or error}); start "
            "it (`ray start --head`), or unset RAY_ADDRESS to use this machine alone"
        ) from error
    return address


def _be_quiet() -> None:
    """Ray prints every death of a worker to the driver, whatever log_to_driver says; ours are told
    in the progress line."""
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None


def share_of(experiment: Experiment) -> Share:
    """What `workers` asks for, on the cluster as it is; refused where it can never be had."""
    asked = experiment.workers
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    gpu = gpus > 0 if asked.gpu == "auto" else asked.gpu
    groups = experiment.training.global_batch_size // experiment.group_size
    count, least = asked.count, None
    if isinstance(count, Span):
        count, least = count.max, count.min
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if count == "auto" and not any(cores):
        raise ExperimentError(
            [
                "workers.count: auto takes what there is, and the cluster has no CPU core for a "
                "worker; where it starts nodes when they are asked for, say how many, e.g. "
                "workers.count=4 workers.gpu=true"
            ]
        )
    if count == "auto":
        count = max(1, min(gpus - evaluates_beside(experiment), groups)) if gpu else 1
    if count > groups:
        raise ExperimentError(
            [too_many_workers(count, experiment.training.global_batch_size, experiment.group_size)]
        )
    needed = least or count
    if gpu and needed > gpus:
        raise ExperimentError(
            [
                f"workers.count: {needed} workers with a GPU each, and the cluster has "
                f"{gpus or 'no'} GPU{'s' if gpus != 1 else ''}; use workers.count={max(1, gpus)}"
                + ("" if gpus else " and workers.gpu=false")
            ]
        )
    if evaluates_beside(experiment):
        cores[cores.index(max(cores))] -= 1
        if max(cores) < 1 or (gpu and needed >= gpus):
            raise ExperimentError(
                [
                    "evaluation.placement: beside needs a CPU core"
                    + (" and a GPU" if gpu else "")
                    + " that the workers leave free; use inline, or fewer workers"
                ]
            )
    each = asked.cpus
    if each == "auto":
        fitting = [n for n in range(1, max(cores) + 1) if _fit(cores, n, count)]
        each = 1 if gpu or not fitting else fitting[-1]
    # A worker lives on one node, so cores are counted node by node.
    if not _fit(cores, each, needed):
        raise ExperimentError(
            [
                f"workers.cpus: {needed} workers with {each} CPU cores each, and the cluster has "
                f"{' + '.join(map(str, cores))}; use fewer workers or cores"
            ]
        )
    return Share(count, float(gpu), each, least)


def when_there(
    look: Callable[[], Found],
    asked: list[dict[str, float]] | None,
    say: Callable[[str], None],
    enough: Callable[[Found], bool] = lambda found: True,
) -> Found:
    """What `look` finds, after nodes have come that the cluster starts when they are asked for.

    look: raises Refused where the cluster as it is has no room. asked: a bundle of resources for
    each worker; None where that cannot be said, and nothing is waited for. enough: whether nodes
    that are still on their way need not be waited for.

    Whether a cluster starts nodes it does not tell, so it is asked, and waited for as long as any
    are on their way.
    """
    try:
        return look()
    except Refused:
        if asked is None or _running_cluster() is None:
            raise
    request_resources(bundles=asked)
    silent_since, told = time.monotonic(), 0
    try:
        while True:
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            coming = len(status.pending_launches) + len(status.pending_nodes)
            if coming:
                silent_since = time.monotonic()
                if coming != told:
                    say(f"waiting for {coming} node{'s' if coming > 1 else ''}")
                told = coming
            with suppress(Refused):
                found = look()
                if enough(found):
                    return found
            if time.monotonic() - silent_since > SILENCE_SECONDS:
                return look()
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])  # from here on the workers' own demand holds the nodes


def bundles_of(experiment: Experiment) -> list[dict[str, float]] | None:
    """What nodes are asked for: a bundle for each worker that a run cannot do without."""
    workers = experiment.workers
    count = workers.count.min if isinstance(workers.count, Span) else workers.count
    if count == "auto":
        return None
    cpus = 1 if workers.cpus == "auto" else workers.cpus
    bundle = {"CPU": float(cpus)} | ({"GPU": 1.0} if workers.gpu is True else {})
    return [bundle] * (count + evaluates_beside(experiment))


def evaluates_beside(experiment: Experiment) -> bool:
    """Whether evaluations run in a task of their own while the workers train on."""
    evaluation = experiment.evaluation
    return evaluation.every_images is not None and evaluation.placement == "beside"


def _fit(cores: Sequence[int], each: int, count: int) -> bool:
    """Whether nodes with so many cores have room for `count` workers of `each`."""
    return sum(have // each for have in cores) >= count


def equal_share(workers: int) -> tuple[bool, int]:
    """Whether each of so many workers gets a GPU, and its CPU cores. Raises Refused."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    fitting = [n for n in range(1, max(cores) + 1) if _fit(cores, n, workers)]
    if not fitting or 0 < gpus < workers:
        room = f"{gpus} GPUs" if 0 < gpus < workers else f"{sum(cores)} CPU cores"
        raise Refused(
            f"--workers: {workers} workers, and the cluster has {room}; use at most "
            f"{gpus or sum(cores)}"
        )
    return gpus > 0, 1 if gpus else fitting[-1]


def check_shared(run: Folder) -> None:
    """Refuse a local run folder that some node of the cluster does not see."""
    if not run.is_local:
        return
    probe = ".seen-by-all-nodes"
    run.write_text(probe, "")
    try:
        check_seen(run, probe)
    finally:
        run.remove(probe)


def check_seen(run: Folder, name: str = "") -> None:
    """Refuse a local run folder, or a file in it, that some node of the cluster does not see."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not run.is_local or len(nodes) < 2:
        return

    @ray.remote(num_cpus=0)
    def sees(path: str) -> bool:
        from pathlib import Path

        return Path(path).exists()

    asked = {
        node["NodeID"]: sees.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(run.path / name))
        for node in nodes
    }
    blind = {node for node, answer in asked.items() if not ray.get(answer)}
    if blind:
        names = sorted(node["NodeManagerHostname"] for node in nodes if node["NodeID"] in blind)
        raise Refused(
            f"storage: {run.location} is not shared with {', '.join(names)}; choose a "
            f"file system that all nodes see, or a URI such as s3://bucket/runs, with --storage or "
            f"${VARIABLE}"
        )
