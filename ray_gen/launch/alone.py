"""Trains a run in one process of this machine, without Ray.

The driver starts the process, and starts it again if it dies: the run then goes on from its last
checkpoint. The process does not hear SIGINT and SIGTERM, and ends when the driver ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import IO, Any

import torch

from ray_gen.errors import Failed, GpuMemoryError, Refused
from ray_gen.experiment import Experiment
from ray_gen.launch.imports import import_failure, searched_first
from ray_gen.launch.memory import kills_for_memory, ran_short, with_half_the_images
from ray_gen.launch.place import cores, own_share
from ray_gen.launch.processes import (
    Process,
    end,
    resident_bytes,
    start_of,
    with_descendants,
)
from ray_gen.launch.signals import shielded
from ray_gen.launch.watch import Watch
from ray_gen.launch.worker import Work, commit_and_prune, trained
from ray_gen.runs.checkpoints import checkpoint_name
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.storage import Folder
from ray_gen.training.loop import Report

READY = "ready"
"""What the process writes when it has imported everything."""
END_SECONDS = 5.0
"""How long the process may take to end after its answer."""


class WorkerProcess:
    """A process that waits for work and then trains a run. Its imports go on meanwhile."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """say: gets each line that the process prints."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(searched_first()),
            "OMP_NUM_THREADS": str(cores()),
            "PYTHONUNBUFFERED": "1",
        }
        with shielded():
            self._process = subprocess.Popen(
                # -P: not the working directory first, where a torch.py would hide torch.
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                text=True,
                errors="replace",
            )
        self._kills, self._bytes = kills_for_memory(), 0
        self._answers: list[str] = []
        self._printed: list[str] = []
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            _each_line(self._process.stdout, self._answers.append),
            _each_line(self._process.stderr, self._heard),
        ]
        self._say = say

    def _heard(self, line: str) -> None:
        if READY in self._answers:
            self._say(line)
        else:  # it may be the traceback of an import
            self._printed.append(line)

    def train(self, work: Work, device: str, look: Callable[[], None]) -> dict[str, Any] | None:
        """Trains a run. Returns how it ended, or None if the process died. Raises Refused, Failed
        or GpuMemoryError if the run did.

        look: is called twice a second.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died
            self._process.stdin.write(json.dumps({"work": asdict(work), "device": device}) + "\n")
            self._process.stdin.flush()
        while True:
            answered = len(self._answers) > 1
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS if answered else 0.5)
                break
            if answered:  # a thread of a user's class goes on; `close` ends it
                break
            self._bytes = resident_bytes(self._process.pid)
            look()
        look()
        if self._process.returncode is not None:
            for reader in self._readers:
                reader.join(5.0)  # a process that it has started may hold the pipe
        if READY not in self._answers:
            if self._process.wait() < 0:  # killed
                return None
            told = "\n".join(self._printed)
            last = self._printed[-1] if self._printed else self.death
            raise Failed(import_failure(told) or f"the process that trains did not start: {last}")
        if self._answers[-1] == READY:
            return None
        return ended_of(json.loads(self._answers[-1]))

    @property
    def death(self) -> str:
        """How the process died, in words."""
        code = self._process.wait()
        if code >= 0:
            return f"the process that trains ended with exit code {code}"
        told = f"the process that trains was killed ({signal.Signals(-code).name})"
        if -code != signal.SIGKILL:
            return told
        kills = kills_for_memory()
        if kills is not None and kills == self._kills:  # somebody else has killed it
            return told
        because = "perhaps because" if kills is None else "because"
        return f"{told}, {because} {ran_short(self._bytes)}"

    def close(self) -> None:
        """Ends the process, and all that it has started."""
        started = start_of(self._process.pid)
        if started is not None:
            processes = with_descendants({Process(self._process.pid, started)})
            self._process.kill()
            end(processes)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _each_line(pipe: IO[str], take: Callable[[str], None]) -> threading.Thread:
    """Starts a thread that takes each line of a pipe until its end."""

    def read() -> None:
        with suppress(ValueError):  # closed
            for line in pipe:
                take(line.rstrip("\n"))

    thread = threading.Thread(target=read, name="pipe", daemon=True)
    thread.start()
    return thread


@contextmanager
def started(say: Callable[[str], None]) -> Generator[list[WorkerProcess]]:
    """A process that waits for work, in a list to which `fit` adds those that replace it. All end
    with the `with` statement."""
    processes = [WorkerProcess(say)]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def fit(
    processes: list[WorkerProcess],
    experiment: Experiment,
    run: Folder,
    watch: Watch,
    saving: Callable[[bool], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Trains a run to its end, and starts the process again if it dies.

    saving: inside this context the user's signals make the run save and stop.
    """
    device, threads = own_share(experiment)
    run.write_text(EXPERIMENT, experiment.to_yaml())
    watch.line.stage("starting")
    restarts = experiment.workers.max_restarts
    with saving(True):
        while True:
            try:
                work = Work(experiment.to_yaml(), run.location, threads)
                ended = processes[-1].train(work, device, watch.look)
            except GpuMemoryError as error:
                experiment, told = with_half_the_images(experiment, error)
                run.write_text(EXPERIMENT, experiment.to_yaml())
            else:
                if ended is not None:
                    return ended
                if not restarts:
                    break
                restarts -= 1
                told = f"{processes[-1].death}; going on from the last checkpoint"
            watch.line.say(told)
            processes.append(WorkerProcess(watch.line.say))
    raise Failed(
        "the process that trains died more often than workers.max_restarts allows: "
        f"{processes[-1].death}"
    )


class Commits:
    """Commits the checkpoints of a run in a thread, one after the other, while training goes on. An
    error ends the run at its next report."""

    def __init__(self, run: Folder, keep: int) -> None:
        """keep: number of newest checkpoints to keep."""
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, "commit")
        self._last: Future[None] | None = None

    def deliver(self, report: Report, saved: Path | None) -> None:
        """Takes a report and its checkpoint. Raises what an earlier commit raised."""
        if self._last is not None and (saved is not None or self._last.done()):
            self._last.result()
        if saved is not None:
            name = checkpoint_name(report.images)
            self._last = self._thread.submit(self._commit, saved, name)

    def wait(self) -> None:
        """Waits for the last commit. Raises what it raised."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Waits for the last commit."""
        self._thread.shutdown()

    def _commit(self, saved: Path, name: str) -> None:
        try:
            commit_and_prune(saved, self._run, name, self._keep)
        finally:
            shutil.rmtree(saved, ignore_errors=True)


def answered(work: Work, device: torch.device) -> dict[str, Any]:
    """Trains a run. Returns how it `ended`, or the sentence of an error by the error's kind, for
    `ended_of`."""
    experiment = Experiment.from_yaml(work.experiment)
    commits = Commits(Folder(work.run), experiment.checkpoints.keep)
    try:
        ended = trained(work, lambda: device, commits.deliver)
        commits.wait()
    except Refused as error:
        return {Refused.__name__: str(error)}
    except GpuMemoryError as error:
        return {GpuMemoryError.__name__: str(error)}
    except Failed as error:
        return {Failed.__name__: str(error)}
    finally:
        commits.close()
    return {"ended": ended}


def ended_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """How a run ended. Raises the error if the answer is one."""
    for kind in (Refused, GpuMemoryError, Failed):
        if kind.__name__ in answer:
            raise kind(answer[kind.__name__])
    return answer["ended"]


def main() -> None:
    """The process: reads one order from its standard input, and writes the answer to its standard
    output. Ends at once when its input ends, which is when the driver has ended."""
    orders, answers = _own(0, "r"), _own(1, "w")
    os.dup2(2, 1)  # what a user's class prints is no answer
    order: Queue[str] = Queue()

    def listen() -> None:
        for line in orders:
            order.put(line)
        os._exit(1)

    threading.Thread(target=listen, name="orders", daemon=True).start()
    print(READY, file=answers, flush=True)
    given = json.loads(order.get())
    answer = answered(Work(**given["work"]), torch.device(given["device"]))
    print(json.dumps(answer), file=answers, flush=True)


def _own(number: int, mode: str) -> IO[str]:
    """A stream on a file descriptor that processes of this one do not get."""
    own = os.fdopen(os.dup(number), mode, encoding="utf-8")
    with open(os.devnull, mode) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), number)
    return own


if __name__ == "__main__":
    main()
