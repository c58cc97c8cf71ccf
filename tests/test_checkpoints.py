"""What is left of checkpoints when their writer dies, wherever that is, on a disk and on S3."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ray_gen import storage
from ray_gen.runs import checkpoints as module
from ray_gen.runs.checkpoints import (
    BEST,
    DUE,
    checkpoint_name,
    checkpoints,
    commit,
    fetched,
    mend_best,
    newest_checkpoint,
    prune,
)
from ray_gen.runs.manifest import EMA, EXPERIMENT, MANIFEST, NETWORKS, OPTIMIZERS, CheckpointError
from ray_gen.storage import Folder
from tests.s3 import S3

FILES = (EMA, EXPERIMENT, NETWORKS, OPTIMIZERS)


class Killed(BaseException):
    """The process is no more."""


@pytest.fixture(params=["disk", "s3"])
def run(request, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path / "run"))
    return Folder(request.getfixturevalue("s3").new_bucket()) / "run"


def made(folder: Path, step: int) -> Path:
    """A checkpoint whose files all say its step."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text(f"{name} {step}")
    digests = {
        name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()} for name in FILES
    }
    (folder / MANIFEST).write_text(json.dumps({"step": step, "images": step, "files": digests}))
    return folder


def step_of(run: Folder) -> int:
    """The step of a run or checkpoint as a reader finds it, all files of which must be whole."""
    with fetched(run) as (_, folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, facts in manifest["files"].items():
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            assert digest == facts["sha256"], f"{name} is another checkpoint's"
        return manifest["step"]


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the process die after `count` changes of files. It may also die in the middle of
    deleting a folder."""
    done = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def change(*arguments: object, **options: object) -> object:
            nonlocal done
            if done == count:
                raise Killed
            done += 1
            return real(*arguments, **options)

        return change

    def delete(path: Path, **options: object) -> None:
        if options:  # a temporary folder deletes itself
            real_rmtree(path, **options)
            return
        for file in sorted(Path(path).rglob("*")):
            unlink(file)
        rmdir(path)

    real_rmtree = shutil.rmtree
    unlink, rmdir = counted(Path.unlink), counted(shutil.rmtree)
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(shutil, "copyfile", counted(shutil.copyfile))
    monkeypatch.setattr(shutil, "rmtree", delete)
    monkeypatch.setattr(Folder, "put_file", counted(Folder.put_file))
    monkeypatch.setattr(storage, "delete_path", counted(storage.delete_path))


def ways_to_die(act: Callable[[], None], every: int = 1) -> Iterator[int]:
    """Runs `act` again and again. Each run is killed `every` file changes later than the one
    before. Yields after each kill, until `act` completes."""
    for count in range(0, 1000, every):
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            killed_after(count, patch)
            act()
            return
        yield count
    raise AssertionError("`act` never completes")


def test_a_checkpoint_that_is_cut_off_is_none(run: Folder, tmp_path: Path) -> None:
    """And the last one is intact, with `keep` = 1, until the next one is whole."""
    for step in (1, 2):
        commit(made(tmp_path / str(step), step), run, checkpoint_name(step))

    def act() -> None:
        if not (run / checkpoint_name(3)).exists(MANIFEST):
            commit(made(tmp_path / "3", 3), run, checkpoint_name(3))
        prune(run, keep=1)

    found = []
    for _ in ways_to_die(act):
        assert step_of(run) == max(int(c.name.partition("_")[2]) for c in checkpoints(run))
        for checkpoint in checkpoints(run):
            step_of(checkpoint)
        found.append(step_of(run))
    assert found == sorted(found) and set(found) == {2, 3}
    act()
    assert run.names() == [checkpoint_name(3)]


@pytest.mark.parametrize("name", [BEST, checkpoint_name(7)])
def test_one_that_is_replaced_is_always_the_old_or_the_new_one(
    run: Folder, tmp_path: Path, name: str
) -> None:
    commit(made(tmp_path / "1", 1), run, name)

    def act() -> None:
        commit(made(tmp_path / "2", 2), run, name)

    found = [step_of(run / name) for _ in ways_to_die(act)]
    assert len(found) > 5
    assert found == sorted(found) and set(found) == {1, 2}
    act()
    assert step_of(run / name) == 2
    assert run.names() == [name]


def test_a_run_that_goes_on_mends_its_best(run: Folder, tmp_path: Path) -> None:
    """What is under its name is whole again, for those who look at the folder."""
    commit(made(tmp_path / "1", 1), run, BEST)
    # Requests to S3 take long: every third way to die.
    every = 1 if run.is_local else 3
    deaths = []
    for number in ways_to_die(lambda: commit(made(tmp_path / "2", 2), run, BEST), every):
        for _ in ways_to_die(lambda: mend_best(run), every):
            assert step_of(run) in (1, 2)
            deaths.append(number)
        assert (run / BEST).exists(MANIFEST)
        assert step_of(run / BEST) in (1, 2)
    assert len(deaths) > len(set(deaths)) > 1


def test_the_next_best_takes_the_place_of_one_that_was_cut_off(run: Folder, tmp_path: Path) -> None:
    for step in (2, 5):
        commit(made(tmp_path / "1", 1), run, BEST)
        act = lambda step=step: commit(made(tmp_path / str(step), step), run, BEST)  # noqa: E731
        deaths = 0
        for _ in itertools.islice(ways_to_die(act), 3 * step):
            assert step_of(run / BEST) in (1, step)
            deaths += 1
        assert deaths > step
        commit(made(tmp_path / "9", 9), run, BEST)
        assert step_of(run / BEST) == 9
        assert run.names() == [BEST]


def test_who_reads_while_another_replaces_gets_one_of_them(s3: S3, tmp_path: Path) -> None:
    run = Folder(s3.new_bucket()) / "run"
    commit(made(tmp_path / "1", 1), run, BEST)
    real, steps = Folder.fetched, iter((2, 3))

    def replaced_meanwhile(folder: Folder, *files: object):
        step = next(steps, None)
        if step is not None:
            commit(made(tmp_path / str(step), step), run, BEST)
        return real(folder, *files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "fetched", replaced_meanwhile)
        assert step_of(run / BEST) == 3
        steps = iter(range(4, 100))
        with pytest.raises(CheckpointError, match="changes faster"):
            step_of(run / BEST)


def test_who_reads_while_another_prunes_gets_the_newer_one(run: Folder, tmp_path: Path) -> None:
    commit(made(tmp_path / "1", 1), run, checkpoint_name(1))
    real = module.newest_checkpoint

    def found_and_pruned(folder: Folder) -> Folder:
        found = real(folder)
        if found.name == checkpoint_name(1):
            commit(made(tmp_path / "2", 2), run, checkpoint_name(2))
            prune(run, keep=1)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "newest_checkpoint", found_and_pruned)
        assert step_of(run) == 2
    assert newest_checkpoint(run).name == checkpoint_name(2)


NAME = checkpoint_name(7)


@pytest.mark.parametrize("before", [[], [NAME]])
def test_a_lost_worker_and_its_successor_may_commit_the_same_checkpoint(
    tmp_path: Path, before: list[str]
) -> None:
    """Each file change of one is followed by a whole commit of the other, or by its pruning. A
    reader finds one of the two, with all files of the same."""
    for other in ("commit", "prune"):
        for change in range(40):
            run = Folder(str(tmp_path / f"{other} {change}"))
            for name in before:
                commit(made(tmp_path / "1", 1), run, name)
            with pytest.MonkeyPatch.context() as patch:
                met = meeting(patch, run, change, other, tmp_path)
                commit(made(tmp_path / "2", 2), run, NAME)
            assert step_of(run / NAME) in (2, 3)
            prune(run, keep=1)
            assert run.names() == [NAME]
            if not met:
                break
        else:
            raise AssertionError("the commit never completes")


def meeting(
    patch: pytest.MonkeyPatch, run: Folder, change: int, other: str, tmp_path: Path
) -> list[str]:
    """Lets another worker act before the file change of this number. Returns what it did."""
    met: list[str] = []
    done = 0

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object, **options: object) -> object:
            nonlocal done
            done += 1
            if done == change + 1 and not met:
                met.append(other)
                if other == "commit":
                    commit(made(tmp_path / "3", 3), run, NAME)
                else:
                    prune(run, keep=1)
            return real(*arguments, **options)

        return act

    patch.setattr(Path, "rename", watched(Path.rename))
    patch.setattr(shutil, "copyfile", watched(shutil.copyfile))
    patch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    return met


@pytest.mark.parametrize("name", [BEST, DUE])
def test_a_run_that_goes_on_removes_half_copies(tmp_path: Path, name: str) -> None:
    run = Folder(str(tmp_path / "run"))
    commit(made(tmp_path / "1", 1), run, name)
    for _ in ways_to_die(lambda: commit(made(tmp_path / "2", 2), run, name)):
        mend_best(run)
        assert not [left for left in run.names() if left.endswith(".partial")]
        assert step_of(run / name) in (1, 2)


def test_only_the_named_files_are_fetched(run: Folder, tmp_path: Path) -> None:
    commit(made(tmp_path / "1", 1), run, NAME)
    with fetched(run, [EMA, EXPERIMENT]) as (_, folder):
        found = {file.name for file in folder.iterdir()}
        assert found >= {EMA, EXPERIMENT, MANIFEST}
        assert run.is_local or found == {EMA, EXPERIMENT, MANIFEST}
