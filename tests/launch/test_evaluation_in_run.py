"""An evaluation during training loses no checkpoint, and finds the one that it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ray.train import Checkpoint

from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Failed
from ray_gen.evaluation import evaluator
from ray_gen.launch import worker
from ray_gen.launch.evaluate_beside import evaluate_checkpoint, failures_beside
from ray_gen.runs.checkpoints import AWAITED, DUE, checkpoint_name, checkpoints, prune, take_up_due
from ray_gen.runs.manifest import Manifest
from ray_gen.runs.writer import RunWriter
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import vae


class Judge:
    """An evaluator that gives fixed scores or runs out of memory."""

    fails = True

    def __init__(self, *_: object) -> None: ...

    def checked(self, subject: object) -> None: ...

    def scores(self, subject: object):
        if self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self

    def as_json(self) -> dict[str, str]:
        return {"scores": "found"}

    def as_metrics(self) -> dict[str, float]:
        return {"evaluation/fid": 1.0}


def evaluated(store: Store, run: Folder, step: int) -> dict[str, float]:
    """What an evaluation within a run gives, by one worker."""
    this = vae("evaluation.every_images=24")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    state.step = step
    writer = RunWriter(run, this, objective, store, state)
    evaluate = worker.evaluation_of(this, objective, state, store, World(), writer)
    try:
        return evaluate()
    finally:
        writer.close()


def test_the_checkpoint_outlives_an_evaluation_without_memory(
    store_8, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(evaluator, "Evaluator", Judge)
    run = Folder(str(tmp_path))
    with pytest.raises(Failed, match=r"lower evaluation\.batch_size .* 20\.00 GiB"):
        evaluated(store_8, run, 4)
    assert not checkpoints(run)
    take_up_due(run)
    assert [found.name for found in checkpoints(run)] == [checkpoint_name(96)]
    state = State.build(vae(), build_objective(vae()), World())
    state.load(checkpoints(run)[0].path)
    assert state.step == 4
    assert not (tmp_path / DUE).exists()


def test_a_due_checkpoint_replaces_no_other(store_8, tmp_path: Path, monkeypatch) -> None:
    """Neither the same one nor a newer one. It is gone when the evaluation has ended."""
    monkeypatch.setattr(evaluator, "Evaluator", Judge)
    run = Folder(str(tmp_path))
    for step in (4, 3, 4):
        with pytest.raises(Failed):
            evaluated(store_8, run, step)
        take_up_due(run)
        assert [found.name for found in checkpoints(run)] == [checkpoint_name(96)]
    monkeypatch.setattr(Judge, "fails", False)
    assert evaluated(store_8, run, 5) == {"evaluation/fid": 1.0}
    assert not (tmp_path / DUE).exists()
    take_up_due(run)
    assert len(checkpoints(run)) == 1


def test_an_evaluation_and_its_report_write_one_checkpoint(
    store_8, tmp_path: Path, monkeypatch
) -> None:
    this = vae()
    state = State.build(this, build_objective(this), World())
    state.step = 4
    writer = RunWriter(Folder(str(tmp_path)), this, build_objective(this), store_8, state)
    saves: list[Path] = []
    save = State.save

    def counted(self: State, folder: Path, *given: object) -> None:
        saves.append(folder)
        save(self, folder, *given)

    monkeypatch.setattr(State, "save", counted)
    with writer.evaluating(96):
        pass
    first, second = writer.checkpoint({"a/b": 1.0}), writer.checkpoint({"a/b": 2.0})
    writer.close()
    assert saves == [first, second]
    ours, theirs = Manifest.verified(first), Manifest.verified(second)
    assert (ours.files, ours.step) == (theirs.files, 4)
    assert (ours.metrics, theirs.metrics) == ({"a/b": 1.0}, {"a/b": 2.0})


def saved(run: Path, *steps: int) -> None:
    this = vae()
    state = State.build(this, build_objective(this), World())
    for step in steps:
        state.step = step
        folder = run / checkpoint_name(24 * step)
        folder.mkdir()
        state.save(folder, this)


def test_a_checkpoint_that_an_evaluation_awaits_is_not_pruned(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    saved(tmp_path, 1, 2, 3, 4)
    first = tmp_path / checkpoint_name(24)
    (first / AWAITED).touch()
    prune(run, 2)
    assert [found.name for found in checkpoints(run)] == [checkpoint_name(n) for n in (96, 72, 24)]
    settings = {"every_images": 24, "metrics": ["sliced_wasserstein"], "count": 10}
    metrics = evaluate_checkpoint(
        Checkpoint(str(first)), run=run.location, settings=settings, python_path=[], trusted=[]
    )
    assert "evaluation/sliced_wasserstein" in metrics
    prune(run, 2)
    assert [found.name for found in checkpoints(run)] == [checkpoint_name(n) for n in (96, 72)]
    assert not failures_beside(run)


def test_an_evaluation_that_fails_or_is_lost_is_told_of_and_awaited_no_longer(
    tmp_path: Path,
) -> None:
    run = Folder(str(tmp_path))
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / checkpoint_name(24 * step) / AWAITED).touch()
    (tmp_path / checkpoint_name(24) / "ema.safetensors").write_bytes(b"")
    found = evaluate_checkpoint(
        Checkpoint(str(tmp_path / checkpoint_name(24))),
        run=run.location,
        settings={},
        python_path=[],
        trusted=[],
    )
    assert not found
    failed, lost = failures_beside(run)
    assert "ema.safetensors: has 0 bytes" in failed
    assert lost == f"{checkpoint_name(48)} was not evaluated: its task was lost"
    assert len(failures_beside(run)) == 1
    assert json.loads((tmp_path / "evaluations" / "images_000000000024.json").read_text())["failed"]
