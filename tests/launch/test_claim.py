"""One writer at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_gen.errors import Refused
from ray_gen.launch import claim
from ray_gen.launch.claim import FILE, Claim
from ray_gen.storage import Folder, StorageError

HOLD = """
import sys, time
from ray_gen.launch.claim import Claim
from ray_gen.storage import Folder
with Claim(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(run: Path) -> subprocess.Popen[str]:
    """Another process that writes a run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_live_writer_is_refused_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(Refused, match=f"^{tmp_path}: .*pid {process.pid} "):
            Claim(Folder(str(tmp_path))).__enter__()
    finally:
        process.kill()
        process.wait()
    with Claim(Folder(str(tmp_path))):
        assert (tmp_path / FILE).exists()
    assert not (tmp_path / FILE).exists()


def test_a_writer_on_another_machine_is_believed_until_it_is_silent(tmp_path: Path) -> None:
    facts = {"host": "elsewhere", "pid": 1, "started": "1", "token": "x"}
    (tmp_path / FILE).write_text(json.dumps({**facts, "time": time.time() - 65}))
    with pytest.raises(Refused, match="on elsewhere"):
        Claim(Folder(str(tmp_path))).__enter__()
    (tmp_path / FILE).write_text(json.dumps({**facts, "time": time.time() - 100}))
    with Claim(Folder(str(tmp_path))):
        pass


def test_a_writer_that_was_silent_for_too_long_leaves_the_run_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.01)
    other = json.dumps({"host": "elsewhere", "pid": 1, "token": "x", "time": time.time()})

    def stays() -> bool:
        (tmp_path / FILE).write_text(other)
        time.sleep(0.2)
        return (tmp_path / FILE).read_text() == other

    with Claim(Folder(str(tmp_path))):
        assert stays() or stays() or stays()  # a beat that had begun may overwrite it once
    assert (tmp_path / FILE).read_text() == other


def test_a_failing_storage_does_not_count_as_unclaimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise StorageError("it does not answer")

    monkeypatch.setattr(Folder, "read_text", fails)
    with pytest.raises(StorageError, match="does not answer"):
        Claim(Folder(str(tmp_path))).__enter__()
    assert not (tmp_path / FILE).exists()


def test_a_storage_that_keeps_nothing_does_not_count_as_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "write_text", lambda *_: None)
    with pytest.raises(StorageError, match=r"writer\.json: "):
        Claim(Folder(str(tmp_path))).__enter__()
