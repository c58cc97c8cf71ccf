"""Where a run trains: in one process of this machine without Ray, or on Ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.training import Span
from ray_gen.launch.gpus import missing


def why_ray(experiment: Experiment, local: bool | None) -> str | None:
    """Why a run trains on Ray, in a few words. None: it trains in one process of this machine.

    local: what the user asks for. True: no Ray. False: Ray. None: Ray only if it is needed, or if a
    cluster is there. Raises Refused if the run needs Ray and `local` is true.
    """
    needed = _needs(experiment)
    if local:
        if needed is not None:
            raise Refused(f"--local: {needed} needs Ray; leave out --local, or change this field")
        return None
    if needed is not None:
        return needed
    return "--ray" if local is False else _cluster()


def _needs(experiment: Experiment) -> str | None:
    """What of an experiment more than one process must do."""
    workers = experiment.workers
    if isinstance(workers.count, Span):
        return "an elastic number of workers (workers.count)"
    if workers.count != "auto" and workers.count > 1:
        return f"workers.count={workers.count}"
    if experiment.evaluation.is_beside:
        return "evaluation.placement=beside"
    gpus = 0 if workers.gpu is False else torch.cuda.device_count()
    if workers.count == "auto" and gpus > 1:
        return f"a worker on each of {gpus} GPUs (workers.count=auto)"
    return None


def _cluster() -> str | None:
    """The cluster that a run would use, in words. None if there is none.

    Looks without Ray first, whose import takes seconds.
    """
    given = os.environ.get("RAY_ADDRESS")
    if given:
        return f"RAY_ADDRESS={given}"
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return "this process is connected to it"
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if not (Path(temporary) / "ray" / "ray_current_cluster").exists():
        return None
    from ray_gen.launch.cluster import running_cluster

    address = running_cluster()
    return None if address is None else f"`ray start` runs at {address}"


def own_share(experiment: Experiment) -> tuple[str, int]:
    """The device of the one process and its number of CPU threads: what a single worker on Ray gets
    on this machine. Raises ExperimentError if the machine does not have what is asked for."""
    asked, have = experiment.workers, cores()
    there = torch.cuda.device_count() > 0
    if asked.gpu is True and not there:
        raise ExperimentError(
            [
                f"workers.gpu: true, and torch sees no GPU on this machine ({missing(1)}); use "
                "workers.gpu=false"
            ]
        )
    if asked.cpus != "auto" and asked.cpus > have:
        raise ExperimentError(
            [f"workers.cpus: {asked.cpus}, and this machine has {have}; use at most {have}"]
        )
    gpu = there and asked.gpu is not False
    return "cuda:0" if gpu else "cpu", (1 if gpu else have) if asked.cpus == "auto" else asked.cpus


def cores() -> int:
    """CPU cores that this process may use: those of the machine, its affinity and its cgroup."""
    own = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return own
    return own if quota == "max" else max(1, min(own, int(quota) // int(period)))
