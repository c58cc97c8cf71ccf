"""Stop, resume and train longer equals one long run, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_gen.distributed import World
from ray_gen.launch.worker import commit_and_prune, reports
from ray_gen.runs.checkpoints import checkpoint_name, checkpoints
from ray_gen.runs.manifest import CheckpointError
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import Control, train
from ray_gen.training.state import State
from tests.helpers import gan, largest_difference, some_of, trained, weights
from tests.test_invariance import EXPERIMENTS


def resumed(experiment, folder: Path) -> State:
    """A new state from a checkpoint."""
    state = State.build(experiment, build_objective(experiment), World())
    state.load(folder)
    return state


@pytest.mark.parametrize(
    ("name", "steps"), [*((name, 7) for name in EXPERIMENTS), ("vae", 10), ("cdcgan-tamed", 10)]
)
def test_training_longer_equals_one_long_run(
    store_8, tmp_path: Path, name: str, steps: int
) -> None:
    whole, _ = trained(EXPERIMENTS[name](), store_8)
    short = EXPERIMENTS[name](f"training.images={24 * steps}")
    half, _ = trained(short, store_8)
    assert largest_difference(weights(half), weights(whole)) > 0
    half.save(tmp_path, short)
    longer, reports = trained(
        EXPERIMENTS[name](), store_8, state=resumed(EXPERIMENTS[name](), tmp_path)
    )
    assert reports[-1].step == 20
    assert largest_difference(weights(longer), weights(whole)) == 0
    moments, expected = longer.moments(), whole.moments()
    assert moments.keys() == expected.keys()
    assert all(torch.equal(moments[key], expected[key]) for key in moments)


def test_a_stop_that_is_asked_for_saves_where_it_stands(
    store_8, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("ray_gen.training.loop.CONTROL_SECONDS", 0.0)  # after every step
    whole, _ = trained(EXPERIMENTS["vae"](), store_8)
    experiment = EXPERIMENTS["vae"]()
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())

    def stop_after_five_steps(images: int) -> Control:
        return Control.SAVE_AND_STOP if images >= 24 * 5 else Control.GO_ON

    reports = list(train(experiment, objective, state, store_8, World(), stop_after_five_steps))
    assert reports[-1].save
    assert reports[-1].stop == "asked to stop"
    assert state.step == 5
    state.save(tmp_path, experiment)
    longer, _ = trained(experiment, store_8, state=resumed(experiment, tmp_path))
    assert largest_difference(weights(longer), weights(whole)) == 0


@pytest.mark.parametrize(
    ("interruptions", "checkpoint_every_images"),
    [((1,), 10_000), ((2, 4, 5, 10, 11), 10_000), ((), 24 * 11), ((8,), 24 * 11)],
)
def test_an_interrupted_run_stops_at_its_equilibrium_where_the_undisturbed_one_does(
    store_8,
    tmp_path: Path,
    monkeypatch,
    interruptions: tuple[int, ...],
    checkpoint_every_images: int,
) -> None:
    """It is at the equilibrium after 3 steps. The window is 8 steps: at step 9 it has stayed for 6,
    at step 12 for 9, so it stops at 12. Reports at other steps would stop it at 9, 10 or 11."""
    monkeypatch.setattr("ray_gen.training.loop.CONTROL_SECONDS", 0.0)  # after every step

    def stopped(interruptions: tuple[int, ...], checkpoint_every_images: int) -> tuple[int, State]:
        experiment = gan(
            f"training.stop_at_equilibrium={{tolerance: 0.2, window_images: {24 * 8}}}",
            f"training.report_every_images={24 * 3}",
            f"training.checkpoint_every_images={checkpoint_every_images}",
        )
        objective = build_objective(experiment)
        state = State.build(experiment, objective, World())
        state.settled |= {"real_left": 1, "fake_left": 1}
        for stop in (*interruptions, experiment.steps):

            def control(images: int, stop: int = stop) -> Control:
                return Control.SAVE_AND_STOP if images >= 24 * stop else Control.GO_ON

            *_, last = train(experiment, objective, state, store_8, World(), control)
            assert last.save
            if last.stop != "asked to stop":
                break
            folder = tmp_path / str(last.step)
            folder.mkdir()
            state.save(folder, experiment)
            state = resumed(experiment, folder)
        assert "settled" in last.stop
        return last.step, state

    step, state = stopped(interruptions, checkpoint_every_images)
    undisturbed, expected = stopped((), 10_000)
    assert step == undisturbed == 12
    assert largest_difference(weights(state), weights(expected)) == 0


def test_another_experiments_checkpoint_is_refused(store_8, tmp_path: Path) -> None:
    other = EXPERIMENTS["vae"]("training.images=24")
    trained(other, store_8)[0].save(tmp_path, other)
    with pytest.raises(CheckpointError, match="belongs to another experiment"):
        resumed(EXPERIMENTS["mlp-gan"](), tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another experiment"):
        resumed(EXPERIMENTS["vae"]("objective.latent_size=6"), tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no manifest", "bad manifest"])
def test_a_damaged_checkpoint_is_refused_with_its_path(
    store_8, tmp_path: Path, damage: str
) -> None:
    experiment = EXPERIMENTS["vae"]("training.images=24")
    trained(experiment, store_8)[0].save(tmp_path, experiment)
    file = tmp_path / ("manifest.json" if "manifest" in damage else "networks.safetensors")
    content = bytearray(file.read_bytes())
    if damage in ("remove", "no manifest"):
        file.unlink()
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        resumed(experiment, tmp_path)


FREE = ("time", "speed/", "memory/")
"""What is not a function of the experiment."""


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are functions of the experiment."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(FREE)} for line in lines]


@pytest.mark.parametrize("name", some_of(EXPERIMENTS, "vae", "ada", "tokenizer"))
def test_saving_by_time_changes_nothing_but_where_a_killed_run_goes_on(
    store_8, tmp_path: Path, monkeypatch, name: str
) -> None:
    """Not even after a kill between two reports."""
    has_scores = "elbo" in (EXPERIMENTS[name]().objective.evaluated or ())
    monkeypatch.setattr("ray_gen.training.loop.CONTROL_SECONDS", 0.0)  # after every step
    monkeypatch.setattr("ray_gen.launch.worker.open_data", lambda experiment: store_8)

    def run(folder: str, minutes: str, killed_at: int | None = None) -> Folder:
        experiment = EXPERIMENTS[name](
            f"checkpoints.every_minutes={minutes}",
            *(["checkpoints.best={metric: elbo, mode: max}"] if has_scores else []),
            f"training.report_every_images={24 * 3}",
            f"training.checkpoint_every_images={24 * 9}",
            "training.images=432",
        ).with_fields(data__digest=store_8.digest)
        there = Folder(str(tmp_path / folder))
        for report, saved in reports(experiment, there, torch.device("cpu")):
            if saved is not None:
                commit_and_prune(saved, there, checkpoint_name(report.images), 2)
            if report.step == killed_at and report.between:
                break
        return there

    without = run("without", "null")
    kept = [checkpoint_name(24 * 9), checkpoint_name(24 * 18)]
    assert [found.name for found in reversed(checkpoints(without))] == kept
    run("with", "1.0e-9", killed_at=5)
    (only,) = checkpoints(Folder(str(tmp_path / "with")))
    assert only.name == checkpoint_name(24 * 5)
    for step in (11, 12, 17):
        run("with", "1.0e-9", killed_at=step)
    ours = run("with", "1.0e-9")
    assert [found.name for found in reversed(checkpoints(ours))] == kept
    assert lines_of(ours.path) == lines_of(without.path)
    for checkpoint in (*kept, *(["best"] if has_scores else [])):
        for file in ("networks", "ema", "optimizers"):
            path = f"{checkpoint}/{file}.safetensors"
            assert (ours.path / path).read_bytes() == (without.path / path).read_bytes()
