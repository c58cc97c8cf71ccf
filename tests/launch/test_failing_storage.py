"""A run behind a URI whose storage fails while it trains, without Ray."""

from __future__ import annotations

import re
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_gen import storage
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Failed
from ray_gen.experiment import Experiment
from ray_gen.launch import worker
from ray_gen.runs.checkpoints import BEST, checkpoint_name, checkpoints, commit, fetched
from ray_gen.runs.loggers import tensorboard
from ray_gen.runs.progress import read_progress
from ray_gen.runs.writer import METRICS_FILE, PROGRESS, SAMPLES
from ray_gen.storage import INTACT, Folder, StorageError
from ray_gen.training.build import build_objective
from ray_gen.training.loop import Report
from ray_gen.training.state import State
from tests.helpers import largest_difference, vae, weights
from tests.s3 import S3, SECRET

BATCH, STEPS = 24, 8
THIS = vae(
    f"training.images={BATCH * STEPS}",
    f"training.report_every_images={BATCH}",
    f"training.checkpoint_every_images={2 * BATCH}",
    "checkpoints.keep=2",
    "checkpoints.best={metric: elbo, mode: max}",
)


@pytest.fixture(autouse=True)
def temporary(store_8, tmp_path: Path, monkeypatch) -> Path:
    """Where temporary files lie."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(worker, "open_data", lambda experiment: store_8)
    return folder


def left_in(temporary: Path) -> list[Path]:
    """Temporary files that are left. This process keeps its own folder for them."""
    return list(temporary.glob("*/*"))


def trained(
    run: Folder, before: Callable[[int], None] = lambda images: None, this: Experiment = THIS
) -> None:
    """What a worker does; `before` is called ahead of each report."""
    with worker.explained(run):
        for report, saved in worker.reports(this, run, torch.device("cpu")):
            if saved is not None:
                worker.commit_and_prune(saved, run, checkpoint_name(report.images), keep=2)
                shutil.rmtree(saved)
            before(report.images)


def test_a_checkpoint_that_cannot_be_delivered_ends_the_run_and_the_run_says_so(
    tmp_path: Path,
) -> None:
    def deliver(report: Report, saved: Path | None) -> None:
        if saved is not None:
            shutil.rmtree(saved)
            raise StorageError("storage: full")

    work = worker.Work(THIS.to_yaml(), str(tmp_path / "run"), threads=1)
    with pytest.raises(StorageError, match=r"^storage: full; what was saved before is intact"):
        worker.trained(work, lambda: torch.device("cpu"), deliver)
    told = read_progress(Folder(work.run))
    assert told is not None and (told["state"], told["why"]) == ("failed", "storage: full")


def test_a_trial_that_its_search_stops_says_so(tmp_path: Path) -> None:
    run = Folder(str(tmp_path / "run"))
    reports = worker.reports(THIS, run, torch.device("cpu"))
    next(reports)
    reports.close()
    told = read_progress(run)
    assert told is not None and told["why"] == "its search stopped it early"


def test_a_full_disk_is_told_once_with_the_place_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = State.save

    def into_little_room(*given: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        try:
            save(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(State, "save", into_little_room)
    with pytest.raises(StorageError) as caught:
        trained(Folder(str(tmp_path / "run")))
    assert re.fullmatch(
        r"temporary files: /\S+ cannot take a checkpoint \(File too large\); make room, or set "
        rf"TMPDIR to a folder on another disk; {INTACT}",
        str(caught.value),
    )
    (tmp_path / "no folder").touch()
    run = Folder(str(tmp_path / "no folder"))
    with pytest.raises(StorageError) as caught, worker.explained(run):
        commit(tmp_path, run, BEST)
    assert str(caught.value).count("what was saved before is intact") == 1


def loaded(run: Folder) -> State:
    state = State.build(THIS, build_objective(THIS), World())
    with fetched(run) as (_, folder):
        state.load(folder)
    return state


@pytest.fixture
def undisturbed(tmp_path: Path) -> State:
    """The end of a run on a disk."""
    run = Folder(str(tmp_path / "undisturbed"))
    trained(run)
    return loaded(run)


def test_a_storage_that_fails_for_a_while_costs_nothing(
    s3: S3, undisturbed: State, temporary: Path, caplog
) -> None:
    run = Folder(s3.new_bucket()) / "a"

    def outage(images: int) -> None:
        if images == 3 * BATCH:
            s3.fail("busy", requests=35)  # more than pyarrow's own retries in 6 s

    trained(run, outage)
    state = loaded(run)
    assert state.step == STEPS
    assert largest_difference(weights(state), weights(undisturbed)) == 0
    assert len(run.read_text(METRICS_FILE).splitlines()) == STEPS
    assert len([n for n in (run / SAMPLES).names() if n.startswith("samples_")]) == STEPS
    assert [c.name for c in checkpoints(run)] == [checkpoint_name(BATCH * k) for k in (8, 6)]
    assert (run / BEST).exists("manifest.json") and run.exists(PROGRESS)
    assert "SLOW_DOWN" in caplog.text
    assert not left_in(temporary)


@pytest.mark.parametrize(
    ("how", "methods", "reason"),
    [
        pytest.param("drop", [""], "NETWORK_CONNECTION", marks=pytest.mark.slow),
        ("denied", [""], "ACCESS_DENIED"),
        ("denied", ["P"], "ACCESS_DENIED"),  # reads go on: PUT and POST alone fail
        ("denied", ["DELETE"], "ACCESS_DENIED"),
    ],
)
def test_a_storage_that_fails_for_ever_ends_the_run(
    s3: S3,
    undisturbed: State,
    temporary: Path,
    monkeypatch,
    how: str,
    methods: list[str],
    reason: str,
) -> None:
    """What was saved before is whole: the same run goes on from it as if nothing had happened."""
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    run = Folder(s3.new_bucket()) / "a"

    def fails(images: int) -> None:
        if images == 5 * BATCH:
            s3.fail(how, methods=methods)

    told = rf"{run.location}.*{reason}.*saved before is intact: start again, with the same --name"
    with pytest.raises(StorageError, match=told) as caught:
        trained(run, fails)
    assert SECRET not in str(caught.value)
    s3.heal()
    assert loaded(run).step in (4, 6)  # 6 if it was written but old files could not be deleted
    trained(run)
    assert largest_difference(weights(loaded(run)), weights(undisturbed)) == 0
    assert len(run.read_text(METRICS_FILE).splitlines()) == STEPS
    assert not left_in(temporary)


def test_events_come_in_parts_that_make_one_run(s3: S3, store_8: Store, monkeypatch) -> None:
    """A large event file is not copied again and again; nothing is hidden by its successor."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(tensorboard, "EVENTS_BYTES", 2**14)
    run = Folder(s3.new_bucket()) / "a"
    trained(run)
    parts = (run / "tensorboard").names()
    assert len(parts) > 2
    assert sum((run / "tensorboard").sizes("tfevents").values()) > 2**14
    with (run / "tensorboard").fetched() as folder:
        events = EventAccumulator(str(folder))
        events.Reload()
        steps = [event.step for event in events.Scalars("speed/images_per_second")]
    assert steps == [BATCH * (k + 1) for k in range(STEPS)]


def test_other_errors_of_a_worker_are_not_the_storages(s3: S3) -> None:
    with pytest.raises(Failed, match="not of the storage"), worker.explained(Folder("s3://a/b")):
        raise OSError(5_000, "not of the storage")
