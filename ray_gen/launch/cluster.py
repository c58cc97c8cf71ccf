"""The Ray cluster of a run: finds or starts it, and decides what each worker gets."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError, too_many_workers
from ray_gen.experiment.training import Span
from ray_gen.launch.home import check_home, private_token
from ray_gen.launch.imports import searched_first
from ray_gen.launch.processes import (
    Process,
    children_of,
    end,
    ending_with_this_process,
    with_descendants,
)
from ray_gen.launch.ray_private import (
    address_of_started_cluster,
    asks_for_a_token,
    coming_nodes,
    ended_by,
    hears_notices,
    job_with,
    own_sigterm_handler,
    silence_deaths,
)
from ray_gen.launch.signals import deferred, shielded
from ray_gen.storage import VARIABLE, Folder

Found = TypeVar("Found")

SILENCE_SECONDS = 20.0
"""If no node has been on its way for this long, none is expected. An autoscaler looks every 5 s."""
NEEDED_TO_DISCONNECT = ("raylet", "gcs_server")
"""Processes of a local Ray without which `ray.shutdown` would wait or print errors."""
SLOW_SECONDS = 45.0
"""Ray starts in 10 to 40 s on 2 busy cores. After this time the user is told that it is slow."""
ANSWER_SECONDS = 60.0
"""How long nodes may take to say whether torch sees their GPUs. They import torch for it."""
BLIND_SECONDS = 600.0
"""The same if Ray does not tell of nodes on their way: cloud nodes with GPUs may take this long."""


@dataclass(frozen=True)
class Share:
    """A number of workers, and what each of them gets."""

    workers: int
    gpu: float
    """GPUs of each: 0, 1, or a fraction if several workers share a GPU."""
    cpus: int
    least: int | None = None
    """The fewest workers with which an elastic run goes on. None: it always needs all of them."""

    def __str__(self) -> str:
        if self.least is not None:
            return f"{self.least} to {self.workers} workers"
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}"


@contextmanager
def connected() -> Generator[None]:
    """Connects to the cluster of RAY_ADDRESS or of a running `ray start --head`. Without one,
    starts a local Ray that ends with the connection and does not hear SIGINT and SIGTERM. Uses an
    open connection and leaves it open.

    Enter it on the main thread: Ray's processes die with the thread that started them.
    """
    if ray.is_initialized():
        yield
        return
    silence_deaths()
    address = running_cluster()
    if address is None:
        check_home(runs=False, cache=False, starts_ray=True)
        private_token()
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    # Ray uses the token of this machine only for the cluster that it finds by itself.
    finds = not os.environ.get("RAY_ADDRESS") and (address is None or asks_for_a_token(address))
    given = None if finds else address
    before = children_of(os.getpid())
    try:
        with told_if_slow(address), deferred(), own_sigterm_handler(), shielded():
            ray.init(
                address="local" if address is None else given,
                job_config=job_with(searched_first()),
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
    except BaseException as error:
        _shut_down(set() if address else children_of(os.getpid()) - before)
        if not isinstance(error, ConnectionError):
            raise
        known = "RAY_AUTH_MODE" in os.environ
        hint = "" if known else ", or it asks for a token: set RAY_AUTH_MODE=token"
        raise Refused(
            f"RAY_ADDRESS: the cluster {address} does not answer ({error}){hint}"
        ) from error
    started = set[Process]() if address else children_of(os.getpid()) - before
    with ending_with_this_process(with_descendants(started)):
        try:
            yield
        finally:
            _shut_down(started)


@contextmanager
def told_if_slow(address: str | None) -> Generator[None]:
    """Says so on stderr if the code inside the `with` statement does not answer within
    SLOW_SECONDS: Ray waits in silence. address: the cluster's; None: Ray starts here."""
    what, look = f"the cluster {address}", "its head, and at the ports that are open from here"
    if address is None:
        folder = os.environ.get("RAY_TMPDIR") or "/tmp"
        what = "Ray, which starts on this machine,"
        look = (
            f"{folder}/ray/session_latest/logs (gcs_server.out, raylet.out), the free space there, "
            "free memory, and whether a proxy or firewall stops connections of this machine to "
            "itself"
        )
    told = f"{what} has not answered for {SLOW_SECONDS:.0f} s; waiting for it; look at {look}"
    timer = threading.Timer(SLOW_SECONDS, lambda: print(told, file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def outlives_signals() -> bool:
    """Whether Ray goes on when all processes of this command get SIGTERM. Not if the user's own
    script has started a local Ray."""
    ours = with_descendants(children_of(os.getpid()))
    of_ray = [process for process in ours if process.name in NEEDED_TO_DISCONNECT]
    return all(process.blocks(signal.SIGTERM) for process in of_ray)


def _shut_down(started: Collection[Process]) -> None:
    """Disconnects, and ends the processes of a local Ray. started: those that `ray.init` started;
    none on a cluster. They do not hear Ray's SIGTERM."""
    processes = with_descendants(started)
    for process in started:
        if process.name not in NEEDED_TO_DISCONNECT:
            process.kill()

    def kill() -> None:
        for process in started:
            process.kill()

    with own_sigterm_handler(), ended_by(kill):
        ray.shutdown()
    end(processes)


def starts_ray() -> bool:
    """Whether `connected` starts a local Ray."""
    return not ray.is_initialized() and running_cluster() is None


def running_cluster() -> str | None:
    """The address of a cluster that answers; None to start a local Ray.

    Ray waits more than a minute for a cluster that is gone. So this tries the address first.
    """
    asked = os.environ.get("RAY_ADDRESS")
    address = asked or address_of_started_cluster()
    if not address or address == "local":
        return None
    if asked is not None and address.startswith(("http://", "https://")):
        raise Refused(
            f"RAY_ADDRESS: {address} is the address of a job server; to submit a job, set "
            f"RAY_API_SERVER_ADDRESS={address} and use `ray job submit`; to train from here, set "
            "RAY_ADDRESS to the cluster's own address (HOST:6379), or unset it"
        )
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


def missed_on_a_cluster() -> list[str]:
    """Sentences about what a run on a cluster cannot do with this release of Ray. Empty on a local
    Ray, which ends together with its machine."""
    if hears_notices() or running_cluster() is None:
        return []
    return [
        f"Ray {ray.__version__} does not tell workers that a machine will be taken away: such a "
        "notice saves no checkpoint"
    ]


def share_of(experiment: Experiment) -> Share:
    """The share that `workers` asks for, on the present cluster. Raises ExperimentError if this
    cluster cannot give it."""
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
                "workers.count: auto uses the present nodes, and they have no CPU core for a "
                "worker; if the cluster starts nodes on request, say how many, e.g. "
                "workers.count=4 workers.gpu=true"
            ]
        )
    if count == "auto":
        count = max(1, min(gpus - experiment.evaluation.is_beside, groups)) if gpu else 1
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
    if experiment.evaluation.is_beside:
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
    """Returns what `look` finds. If there is no room, requests nodes from the cluster, waits for
    them and looks again.

    look: raises Refused if the present cluster has no room. asked: a bundle of resources for each
    worker. None if unknown: then it does not wait. enough: whether a finding is good enough to
    stop waiting although more nodes are on their way.

    A cluster does not say whether it starts nodes. So this requests them, and waits while any are
    on their way.
    """
    try:
        return look()
    except Refused:
        if asked is None or running_cluster() is None:
            raise
    request_resources(bundles=asked)
    silent_since, told, patience = time.monotonic(), 0, SILENCE_SECONDS
    try:
        while True:
            coming = coming_nodes(ray.get_runtime_context().gcs_address)
            if coming is None and patience < BLIND_SECONDS:
                patience = BLIND_SECONDS
                say(
                    f"Ray {ray.__version__} does not tell whether nodes are on their way: waiting "
                    f"up to {BLIND_SECONDS / 60:.0f} minutes for room"
                )
            if coming:
                silent_since = time.monotonic()
                if coming != told:
                    say(f"waiting for {coming} node{'s' if coming > 1 else ''}")
                told = coming
            with suppress(Refused):
                found = look()
                if enough(found):
                    return found
            if time.monotonic() - silent_since > patience:
                return look()
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])  # from now on the demand of the workers keeps the nodes


def bundles_of(experiment: Experiment) -> list[dict[str, float]] | None:
    """The resources to request from the cluster: one bundle per worker, for the fewest workers that
    the run can start with, and one for evaluations beside. None if their number is not set."""
    workers = experiment.workers
    count = workers.count.min if isinstance(workers.count, Span) else workers.count
    if count == "auto":
        return None
    cpus = 1 if workers.cpus == "auto" else workers.cpus
    bundle = {"CPU": float(cpus)} | ({"GPU": 1.0} if workers.gpu is True else {})
    return [bundle] * (count + experiment.evaluation.is_beside)


def placement_groups() -> set[str]:
    """Ids of the placement groups of this job. Each holds the resources of a group of workers."""
    if not ray.is_initialized():
        return set()
    job = ray.get_runtime_context().get_job_id()  # the id of a group ends with its job's
    return {
        number
        for number, group in ray.util.placement_group_table().items()
        if group["state"] != "REMOVED" and number.endswith(job)
    }


def remove_placement_groups(numbers: Collection[str]) -> None:
    """Frees the resources of workers whose controller is dead."""
    for number in numbers:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))


def _fit(cores: Sequence[int], each: int, count: int) -> bool:
    """Whether nodes with these `cores` have room for `count` workers with `each` cores."""
    return sum(have // each for have in cores) >= count


def equal_share(workers: int) -> tuple[bool, int]:
    """Whether each of the `workers` gets a GPU, and how many CPU cores. Raises Refused."""
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


def check_gpus(each: float, workers: int) -> None:
    """Raises Refused if torch does not see the GPUs that Ray would give to `workers` workers on
    some node. Without this, the first of them ends in a traceback of NCCL.

    each: GPUs of a worker. A node whose GPUs are in use may not answer in time and is passed over.
    """
    if not each:
        return

    @ray.remote(num_cpus=0, max_retries=0)
    def missing_there(count: int) -> str | None:
        from ray_gen.launch.gpus import missing

        return missing(count)

    asked: dict[ray.ObjectRef[str | None], str] = {}
    for node in ray.nodes():
        there = int(node["Resources"].get("GPU", 0)) if node["Alive"] else 0
        if there < each:
            continue
        count = min(there, math.ceil(each * workers))
        answer = missing_there.options(
            num_gpus=each if each < 1 else count,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(count)
        asked[answer] = node["NodeManagerHostname"]
    answered, busy = ray.wait([*asked], num_returns=len(asked), timeout=ANSWER_SECONDS)
    for answer in busy:
        ray.cancel(answer, force=True)
    why = {asked[answer]: ray.get(answer) for answer in answered}
    for node, told in why.items():
        if told is not None:
            raise Refused(
                f"workers.gpu: Ray gives workers the GPUs of node {node}, but {told}; mend the "
                "driver or the installation of torch there, or train on the CPU: workers.gpu=false"
            )


def check_shared(run: Folder) -> None:
    """Raises Refused if the run folder is local and some node of the cluster does not see it."""
    if not run.is_local:
        return
    probe = ".seen-by-all-nodes"
    run.write_text(probe, "")
    try:
        check_seen(run, probe)
    finally:
        run.remove(probe)


def check_seen(run: Folder, name: str = "") -> None:
    """Raises Refused if some node of the cluster does not see a local run folder, or the file
    `name` in it."""
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
