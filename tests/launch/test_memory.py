"""Who has the memory of a machine that ran short, in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ray.train import ControllerError, WorkerGroupError

from ray_gen.errors import MachineMemoryError
from ray_gen.launch.failures import EndOnError, in_words
from ray_gen.launch.memory import ended_for_memory, kills_for_memory, ran_short

OF_RAY_2_60 = """4 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 192.0.2.2, ID: f8e07c) was 6.79GB used / 23.54GB limit (0.288569)
OOM kill reason: Memory usage 7079374848B exceeded threshold of 6647722496B (26.3% of 25276510208B)
Total non-selected idle workers: 1
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
3203\t2.80\tray::RayTrainWorker
1180\t0.46\tpython -m pytest -n 0
Refer to the documentation on how to address the out of memory issue"""
OF_RAY_2_4 = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.62.231, ID: e5d95) where the task (actor ID: 43aa, \
name=Actor.__init__, pid=15668, memory used=0.00GB) was running was 27.28GB / 28.80GB (0.947347), \
which exceeds the memory usage threshold of 0.95. Ray killed this worker (ID: 6f2e)
Top 10 memory users:
PID     MEM(GB) COMMAND
410728  8.47    ray::foo
410729  8.47    ray::bar"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            OF_RAY_2_60,
            ["node 192.0.2.2", "6.8 of 23.5 GiB", "RayTrainWorker (process 3203)", "2.8"],
        ),
        (OF_RAY_2_4, ["node 10.0.62.231", "27.3 of 28.8 GiB", "ray::foo (process 410728)", "8.5"]),
    ],
)
def test_what_ray_tells_in_a_hundred_lines_is_one_sentence(text: str, told: list[str]) -> None:
    errors = (
        ControllerError(RuntimeError(text)),
        WorkerGroupError("", {0: RuntimeError(text)}),
    )
    for error in errors:
        found = in_words(error)
        assert isinstance(found, MachineMemoryError)
        assert all(part in str(found) for part in told)
        assert "training.micro_batch_size" in str(found) and "\n" not in str(found)
    with pytest.raises(MachineMemoryError):
        EndOnError().after_exception(None, {1: RuntimeError(text)})
    assert ended_for_memory(str(found)) is None
    assert ended_for_memory("The actor died unexpectedly") is None


def test_the_largest_process_and_the_free_memory_are_told(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    for pid, name, pages, in_files in ((7, "small", 2**30, 0), (81, "cached", 2**33, 2**33)):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "statm").write_text(f"9 {pages // page} {in_files // page} 0 0 0 0")
        (folder / "comm").write_text(f"{name}\n")
    (tmp_path / "meminfo").write_text("MemTotal:  8388608 kB\nMemAvailable:  524288 kB\n")
    (tmp_path / "vmstat").write_text("pgfault 12\noom_kill 3\n")
    told = ran_short(3 * 2**29, tmp_path)
    assert "had 1.5 GiB" in told
    assert "is small (process 7) with 1.0 GiB" in told
    assert "0.5 of 8.0 GiB are free" in told
    assert kills_for_memory(tmp_path) == 3
    assert kills_for_memory(tmp_path / "none") is None


def test_this_machine_can_be_asked() -> None:
    assert "GiB are free" in ran_short(0)
    assert (kills_for_memory() or 0) >= 0
