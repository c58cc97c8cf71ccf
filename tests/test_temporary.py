"""Temporary files of processes that end, and of those that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ray_gen import temporary

CHILD = """
import sys, time
from ray_gen import temporary
made = temporary.new_folder("checkpoint-")
(made / "file").write_text("x")
print(made, flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, and a process that has none yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "_own", None)
    return tmp_path


def begun(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process, and the temporary folder that it has made."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_process_that_ends_leaves_nothing(place: Path) -> None:
    process, folder = begun(place)
    assert (folder / "file").exists()
    process.communicate("\n")
    assert process.returncode == 0
    assert list(place.iterdir()) == []


def test_the_next_process_removes_what_a_killed_one_left(place: Path) -> None:
    killed, folder = begun(place)
    living, others = begun(place)
    killed.kill()
    killed.wait()
    assert (folder / "file").exists()
    own = temporary.new_folder("run-")
    assert not folder.exists()
    assert (others / "file").exists() and own.is_dir()
    living.communicate("\n")
    assert list(place.iterdir()) == [own.parent]


def test_nothing_else_is_removed(place: Path, tmp_path_factory) -> None:
    """No file, no folder of another name, and nothing that a link leads to."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").touch()
    (place / f"{temporary.PREFIX}link").symlink_to(elsewhere)
    (place / f"{temporary.PREFIX}file").touch()
    (place / "ray_gen-mine").mkdir()
    before = {path.name for path in place.iterdir()}
    temporary.remove_abandoned()
    assert {path.name for path in place.iterdir()} == before
    assert (elsewhere / "file").exists()


def test_a_folder_that_the_system_has_cleaned_away_is_made_again(place: Path) -> None:
    first = temporary.new_folder("run-").parent
    subprocess.run(["rm", "-r", str(first)], check=True)
    assert temporary.new_folder("run-").is_dir()


def test_a_folder_in_a_with_statement() -> None:
    with pytest.raises(ZeroDivisionError), temporary.folder("fetched-") as made:
        (made / "file").touch()
        raise ZeroDivisionError
    assert not made.exists()
