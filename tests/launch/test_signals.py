"""Ctrl-C and SIGTERM: what a run answers, and which processes hear them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ray_gen.errors import Interrupted
from ray_gen.launch import cluster, signals
from ray_gen.launch.processes import (
    Process,
    children_of,
    end,
    ending_with_this_process,
    start_of,
    with_descendants,
)
from ray_gen.launch.signals import SIGNALS, Interruption, deferred, shielded, what_was_saved
from ray_gen.storage import StorageError
from tests.helpers import started, wait_until


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of the tests' own process, as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) == handler
        signal.signal(number, handler)


class Left(Exception):
    """The process would end here."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_anything_is_trained_a_signal_ends_the_command(number: int) -> None:
    with pytest.raises(Interrupted) as interrupted, Interruption(print, lambda: ""):
        os.kill(os.getpid(), number)
    assert interrupted.value.exit_code == 128 + number


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_saves_and_the_second_leaves(number: int, monkeypatch) -> None:
    said: list[str] = []
    asked: list[None] = []
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with Interruption(said.append, lambda: "; nothing was saved") as interruption:
        with interruption.saving(lambda: asked.append(None)):
            os.kill(os.getpid(), number)
            now[0] += signals.ECHO_SECONDS / 2  # `timeout` sends it twice
            os.kill(os.getpid(), number)
            assert len(asked) == 1 and len(said) == 1
            assert said[0].startswith("saving and stopping")
            now[0] += signals.ECHO_SECONDS
            with pytest.raises(Left, match=str(128 + number)):
                os.kill(os.getpid(), number)
        assert said[1:] == ["stopped at once; nothing was saved"]


def test_when_all_is_saved_a_signal_changes_nothing() -> None:
    said: list[str] = []
    with Interruption(said.append, lambda: "") as interruption:
        with interruption.saving(lambda: None):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
    assert said == []


def test_an_exception_that_a_library_swallows_is_not_forgotten() -> None:
    with pytest.raises(Interrupted), Interruption(print, lambda: "") as interruption:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with interruption.saving(lambda: None):
            raise AssertionError("the training has begun")


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_is_answered_at_the_end(number: int, monkeypatch) -> None:
    reached = []
    with pytest.raises(Interrupted), Interruption(print, lambda: ""), deferred():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        reached.append("the end")
    assert reached


HANGS = """
import ctypes
from ray_gen.launch.signals import deferred, shielded
with deferred(), shielded():
    print("hangs", flush=True)
    ctypes.CDLL(None).sleep(600)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_two_signals_end_a_process_that_hangs_in_a_library(number: int) -> None:
    command = [sys.executable, "-c", HANGS]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(number)
        assert "press Ctrl-C again" in process.stderr.readline()
        time.sleep(1.2 * signals.ECHO_SECONDS)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(10) == 128 + number


def test_off_the_main_thread_nothing_is_heard() -> None:
    def work() -> None:
        with Interruption(print, lambda: "") as interruption, interruption.saving(lambda: None):
            pass
        with deferred():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_what_was_saved_is_told_only_where_something_was(monkeypatch) -> None:
    assert what_was_saved("/runs/a", lambda: True) == "; what was saved is in /runs/a"
    assert what_was_saved("/runs/a", lambda: False) == "; nothing was saved"
    monkeypatch.setattr(signals, "LOOK_SECONDS", 0.05)
    silent = threading.Event()
    assert what_was_saved("s3://runs/a", silent.wait) == ""
    silent.set()

    def fails() -> bool:
        raise StorageError("s3://runs/a: does not answer")

    assert what_was_saved("s3://runs/a", fails) == ""


SLEEPS = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print(1, flush=True); input()"
"""A process with a child."""


def family(*, in_a_shield: bool) -> tuple[subprocess.Popen[str], set[Process]]:
    """A process that has started another one, and both."""
    if in_a_shield:
        with shielded():
            process = started([sys.executable, "-c", SLEEPS], stdin=subprocess.PIPE)
    else:
        process = started([sys.executable, "-c", SLEEPS], stdin=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (own,) = {child for child in children_of(os.getpid()) if child.pid == process.pid}
    both = with_descendants([own])
    assert len(both) == 2
    return process, both


@pytest.mark.parametrize("number", SIGNALS)
def test_shielded_processes_and_what_they_start_do_not_hear_signals(number: int) -> None:
    process, both = family(in_a_shield=True)
    other, exposed = family(in_a_shield=False)
    for one in both | exposed:
        os.kill(one.pid, number)
    wait_until(lambda: not any(one.lives for one in exposed), "those without a shield")
    assert all(one.lives for one in both)
    end(both)
    assert not any(one.lives for one in both)
    for ended in (process, other):
        ended.communicate()


@pytest.mark.parametrize("in_a_shield", [True, False])
def test_saving_is_promised_only_if_ray_outlives_the_signal(
    in_a_shield: bool, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(cluster, "NEEDED_TO_DISCONNECT", ("sleep",))  # of these processes
    process, both = family(in_a_shield=in_a_shield)
    try:
        assert cluster.outlives_signals() == in_a_shield
        sure = cluster.outlives_signals()
        with Interruption(print, lambda: "") as one, one.saving(lambda: None, sure=sure):
            os.kill(os.getpid(), signal.SIGTERM)
        assert capsys.readouterr().out.startswith("saving and stopping") == in_a_shield
    finally:
        end(both)
        process.communicate()


def test_this_process_hears_a_signal_in_a_shield() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with shielded():
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: heard, "the signal")
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_uses_an_old_id_again_is_not_killed() -> None:
    process, both = family(in_a_shield=False)
    one = next(iter(both))
    Process(one.pid, "1").kill()
    assert one.lives
    end(both)
    process.communicate()
    assert start_of(process.pid) is None


KILLED = """
import os, signal, subprocess, sys
from ray_gen.launch.processes import children_of, ending_with_this_process
child = subprocess.Popen(["sleep", "600"])
with ending_with_this_process(children_of(os.getpid())):
    print(child.pid, flush=True)
    input()
"""


def test_processes_end_when_this_one_is_killed() -> None:
    process = started([sys.executable, "-c", KILLED], stdin=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    child = Process(pid, start_of(pid) or "")
    assert child.lives
    process.kill()
    process.communicate()
    wait_until(lambda: not child.lives, "the end of the child")


def test_processes_that_end_by_themselves_are_not_waited_for() -> None:
    with ending_with_this_process(set()):
        pass
    end(set())
