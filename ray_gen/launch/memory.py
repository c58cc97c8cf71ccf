"""Too little memory: halves the micro-batch of a GPU, and says who has the memory of a machine."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from ray_gen.errors import Failed, GpuMemoryError
from ray_gen.experiment import Experiment
from ray_gen.launch.processes import PROC, resident_bytes

GIB = 2**30
LESS = (
    "close other programs, or lower training.micro_batch_size, workers.cpus or the number of "
    "workers on this machine"
)
"""What helps if the memory of a machine runs short."""
_USED = re.compile(
    r"Memory on the node \(IP: ([^,)]+).*? was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB"
)
_LARGEST = re.compile(r"Top \d+ memory users:\D*(\d+)\s+([\d.]+)\s+(\S+)")


def with_half_the_images(
    experiment: Experiment, error: GpuMemoryError, workers: int = 1
) -> tuple[Experiment, str]:
    """A copy of a resolved experiment that needs less memory of a GPU and gives the same result,
    and what was changed, in a sentence. Raises Failed if there is none.

    workers: the number of workers that ran out of memory.
    """
    size = experiment.group_size
    groups = -(-experiment.training.global_batch_size // size // workers)  # of a worker, at most
    micro = experiment.training.micro_batch_size
    together = groups if micro is None else min(groups, micro // size)
    if together == 1:
        raise Failed(
            f"{error}, even with one group of {size} images at a time; use smaller networks or "
            "images, data.placement=host, another training.group_size, or a larger GPU"
        ) from error
    half = -(-together // 2) * size
    return experiment.with_fields(training__micro_batch_size=half), (
        f"{error} with {together * size} images at a time; going on from the last checkpoint with "
        f"training.micro_batch_size={half}, which does not change the result"
    )


def ended_for_memory(told: str, remedy: str = LESS) -> str | None:
    """A sentence, if this text is what Ray tells of processes that it ended because the memory of
    their machine ran short. None if it is not. remedy: the end of the sentence."""
    used, largest = _USED.search(told), _LARGEST.search(told)
    if used is None:
        return None
    node, have, limit = used.groups()
    who = ""
    if largest is not None:
        pid, size, name = largest.groups()
        who = f"; the largest process was {name} (process {pid}) with {float(size):.1f} GiB"
    return (
        f"the memory of node {node} ran short ({float(have):.1f} of {float(limit):.1f} GiB in "
        f"use), so Ray ended processes of this run{who}; {remedy}"
    )


def ran_short(own: int, proc: Path = PROC) -> str:
    """Why the system ended a process that had `own` bytes, and who has the memory now: the end of
    a sentence."""
    sizes = {int(each.name): 0 for each in proc.iterdir() if each.name.isdigit()}
    sizes = {pid: resident_bytes(pid, proc) for pid in sizes}
    largest = max(sizes, key=sizes.__getitem__)
    name = f"process {largest}"
    with suppress(OSError):
        name = (proc / str(largest) / "comm").read_text(errors="replace").strip() + f" ({name})"
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE))
    free, total = (int(facts[fact]) / 2**20 for fact in ("MemAvailable", "MemTotal"))
    return (
        f"the memory of this machine ran short: it had {own / GIB:.1f} GiB, the largest process "
        f"now is {name} with {sizes[largest] / GIB:.1f} GiB, and {free:.1f} of {total:.1f} GiB are "
        f"free; {LESS}"
    )


def kills_for_memory(proc: Path = PROC) -> int | None:
    """How many processes the system has killed because memory ran short, since it started. None if
    it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", (proc / "vmstat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])
