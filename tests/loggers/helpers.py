"""Short runs with loggers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.runs.writer import METRICS_FILE, PROGRESS, RunWriter
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import ALL_SEEN, train
from ray_gen.training.state import State
from tests.helpers import vae

STEPS = 6
BATCH = 24


def short(*assignments: str, steps: int = STEPS) -> Experiment:
    """A VAE of a few steps that reports after each, and saves after every second."""
    return vae(
        f"training.images={BATCH * steps}",
        f"training.report_every_images={BATCH}",
        f"training.checkpoint_every_images={2 * BATCH}",
        *assignments,
    )


def run(
    experiment: Experiment,
    folder: Path | str,
    store: Store,
    checkpoint: Path | None = None,
    until: int | None = None,
    save: Path | None = None,
) -> State:
    """Trains from a checkpoint, or from the beginning. until: the step after which the worker is
    told to close, as after an exception. save: where the state after step 2 goes."""
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    if checkpoint is not None:
        state.load(checkpoint)
    writer = RunWriter(Folder(str(folder)), experiment, objective, store, state)
    try:
        for report in train(experiment, objective, state, store, World()):
            writer.progress(report.images, report.metrics)
            writer.report(report)
            if report.step == 2 and save is not None:
                save.mkdir()
                state.save(save, experiment)
            if report.step == until:
                break
        else:
            assert report.stop == ALL_SEEN
    finally:
        writer.close()
    return state


def reports(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def numbers(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of each report, by images."""
    return {
        line["images"]: {tag: v for tag, v in line.items() if "/" in tag}
        for line in reports(folder)
    }


def warnings(folder: Path) -> list[str]:
    """What the run told of its loggers."""
    return json.loads((folder / PROGRESS).read_text()).get("warnings", [])
