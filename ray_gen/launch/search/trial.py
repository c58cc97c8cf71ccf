"""The process in which trials of a search run. Ray Tune starts it; it trains one trial after the
other.

A trial of one worker trains in this process, so only the first trial pays for imports. A trial of
several workers starts its own Ray Train and follows its reports.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
import torch

from ray_gen import temporary
from ray_gen.errors import Failed, GpuMemoryError, Refused
from ray_gen.experiment import Change, Experiment
from ray_gen.launch.claim import STALE_SECONDS, Claim
from ray_gen.launch.cluster import Share
from ray_gen.launch.failures import in_words
from ray_gen.launch.memory import with_half_the_images
from ray_gen.launch.on_ray import trainer_of
from ray_gen.launch.ray_private import snapshot_file
from ray_gen.launch.start import begun
from ray_gen.launch.worker import ended_before, explained, prepare, reports
from ray_gen.runs.checkpoints import (
    BEST,
    DUE,
    checkpoint_name,
    checkpoints,
    commit,
    fetched,
    images_of,
    newest_manifest,
    prune,
    take_up_due,
    with_reports,
)
from ray_gen.runs.manifest import EXPERIMENT, Manifest
from ray_gen.runs.snapshots import SNAPSHOTS
from ray_gen.runs.writer import METRICS_FILE, PROGRESS, SPREAD, STOP
from ray_gen.searches.records import TRIALS, score_of
from ray_gen.storage import Folder, StorageError
from ray_gen.training.loop import ASKED
from ray_gen.training.meter import NonFiniteError
from ray_gen.training.state import copy_of

DONOR = "trial.json"
"""File beside a checkpoint that Tune holds. It names the trial that made the checkpoint."""
ERROR = "error.txt"
"""File in a run folder: the traceback of an exception in a user's class."""
COLLAPSED = 0.02
"""If samples spread less than this share of the real images' spread, they are all alike."""
STOP_SECONDS = 60.0
"""Time that several workers get to save and stop."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a search have in common."""

    location: str
    """Of the search folder."""
    experiment: str
    """YAML of a trial before it gets its values."""
    metric: str
    every_images: int
    """Images between two judgements."""
    share: Share
    python_path: tuple[str, ...]
    compared: tuple[str, ...] = ()
    """Fields that the trials differ in, which TensorBoard's HParams shows."""

    @property
    def trials(self) -> Folder:
        """The folder of the trials' runs."""
        return Folder(self.location) / TRIALS


class TrialProcess(ray.tune.Trainable):
    """Trains one trial after the other. A step ends when a trial is judged.

    config: `trial`, with its `name` and its `values` by dotted path. Population based training
    overwrites `name`, so `trial_name` counts. A result has `images` and `score`, or `failed`: why
    the trial ended. Errors from a trial's own settings are never raised here, because Tune would
    try again.
    """

    def setup(self, config: dict[str, Any], shared: Shared | None = None) -> None:
        """Prepares the process, before its first trial."""
        assert shared is not None
        prepare(shared.python_path, shared.share.cpus)
        self._shared = shared
        self._results: Iterator[dict[str, Any]] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Makes the process ready for its next trial."""
        self._close()
        return True

    def cleanup(self) -> None:
        """Closes the last trial."""
        self._close()

    def step(self) -> dict[str, Any]:
        """Trains until the trial is judged next."""
        if self._results is None:
            self._results = self._judged()
        return next(self._results)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copies the newest checkpoint that came with a report, so that another trial can go on
        from it."""
        images = images_of(next(with_reports(self._run)))
        with fetched(self._run, choice=images) as (_, newest):
            shutil.copytree(newest, Path(checkpoint_dir) / "checkpoint")
        (Path(checkpoint_dir) / DONOR).write_text(json.dumps({"trial": self.trial_name}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Takes over another trial's weights. Ignores a checkpoint of the trial itself: its run
        folder holds its newest one."""
        donor = json.loads((Path(checkpoint) / DONOR).read_text())["trial"]
        if donor != self.trial_name:
            with _claimed(self._run):
                adopt(self._run, Path(checkpoint) / "checkpoint", donor, self._values)

    @property
    def _run(self) -> Folder:
        return self._shared.trials / str(self.trial_name)

    @property
    def _values(self) -> Mapping[str, Any]:
        return self.config["trial"]["values"]

    def _close(self) -> None:
        if isinstance(self._results, Generator):
            self._results.close()
        self._results = None

    def _judged(self) -> Iterator[dict[str, Any]]:
        """The results of the trial from its present state on. The last one is `done`."""
        result: dict[str, Any] = {"images": 0}
        judgements = self._judgements()
        try:
            with _claimed(self._run), closing(judgements):
                if Folder(self._shared.location).exists(STOP):
                    yield {**result, "done": True, "stop": ASKED}
                    return
                for result in judgements:
                    yield result
        except StorageError as error:  # not the trial's fault: the next one would fail too
            yield {**result, "ends": str(error), "done": True}
        except (NonFiniteError, Refused, Failed) as error:
            take_up_due(self._run)
            first, _, more = str(error).partition("\n")
            if more:
                self._run.write_text(ERROR, str(error))
                first += f" ({self.trial_name}/{ERROR})"
            yield {**result, "failed": first, "done": True}

    def _judgements(self) -> Generator[dict[str, Any]]:
        began = time.monotonic()
        every, before, alike = self._shared.every_images, _saved(self._run), 0
        for metrics, stop in trained(self._experiment(), self._run, self._shared):
            score, images = score_of(metrics, self._shared.metric), int(metrics["images"])
            if stop is None and (score is None or images // every == before // every):
                continue
            before = images
            alike = alike + 1 if metrics.get(SPREAD, 1.0) < COLLAPSED else 0
            if alike == 2:
                raise Failed(
                    f"its samples are all alike after {images:,} images (lower its learning "
                    "rates, or judge it later: search.every_images)"
                )
            if score is not None and not math.isfinite(score):
                raise Failed(f"{self._shared.metric} is not a finite number at {images:,} images")
            result = {"images": images, "seconds": time.monotonic() - began}
            result |= {} if score is None else {"score": score}
            yield result | ({} if stop is None else {"done": True, "stop": stop})

    def _experiment(self) -> Experiment:
        """The experiment of the newest checkpoint, which records what the trial took over. Without
        a checkpoint, a new one."""
        found = checkpoints(self._run)
        if found:
            experiment = Experiment.from_yaml(found[0].read_text(EXPERIMENT))
        else:
            common = Experiment.from_yaml(self._shared.experiment)
            experiment = common.with_values(self._values).with_group_size()
            start = experiment.training.start_from
            if start is not None and start.digest is None:  # the space names it
                experiment, origin = begun(experiment, None, self._run)
                assert origin is not None
                origin.write(self._run)
        self._run.write_text(EXPERIMENT, experiment.to_yaml())
        return experiment


@contextmanager
def _claimed(run: Folder) -> Generator[None]:
    """Claims the run for this process. First waits until a process that Tune has lost stops
    writing it."""
    deadline = time.monotonic() + STALE_SECONDS + STOP_SECONDS
    while True:
        try:
            claim = Claim(run).__enter__()
            break
        except Refused as refused:
            if time.monotonic() > deadline:
                raise StorageError(str(refused)) from None
            time.sleep(1.0)
    try:
        run.remove(STOP)  # it was meant for the earlier process
        yield
    finally:
        claim.__exit__()


def adopt(run: Folder, checkpoint: Path, donor: str, values: Mapping[str, Any]) -> None:
    """Makes a run go on from another run's checkpoint with these values, and records this in its
    experiment."""
    images = Manifest.checked(checkpoint).images
    theirs = Experiment.from_yaml((checkpoint / EXPERIMENT).read_text(encoding="utf-8"))
    found = checkpoints(run)
    if found and found[0].name > checkpoint_name(images):
        ours = Experiment.from_yaml(found[0].read_text(EXPERIMENT))
        if _has_adopted(ours, donor, images, values):
            return  # already adopted: then the process trained further, and died
    before = theirs.stages()[-1][1]
    changed = {path: new for path, new in values.items() if before.value_at(path) != new}
    lineage = list(theirs.lineage)
    if lineage and lineage[-1].images == images:  # the donor has not trained since its take-over
        changed = {**lineage.pop().values, **changed}
    lineage.append(Change(images=images, values=changed, source=donor))
    experiment = theirs.with_fields(lineage=[c.model_dump(mode="json") for c in lineage])
    with temporary.folder("adopted-") as folder:
        copy_of(checkpoint, folder, experiment)
        commit(folder, run, checkpoint_name(images))
    for other in found:
        if other.name > checkpoint_name(images):
            run.remove(other.name)
    for file in (BEST, DUE, SNAPSHOTS):  # they hold the weights that are given up
        run.remove(file)
    run.write_text(EXPERIMENT, experiment.to_yaml())


def _has_adopted(
    experiment: Experiment, donor: str, images: int, values: Mapping[str, Any]
) -> bool:
    last = experiment.lineage[-1] if experiment.lineage else None
    if last is None or (last.source, last.images) != (donor, images):
        return False
    # A second take-over of the same checkpoint has other values.
    now = experiment.stages()[-1][1]
    return all(now.value_at(path) == value for path, value in values.items())


Judged = Iterator[tuple[Mapping[str, Any], str | None]]
"""Metrics of a report, and why the run ends there; None if it goes on."""


def trained(experiment: Experiment, run: Folder, shared: Shared) -> Judged:
    """Trains a trial, with less memory if a GPU has too little."""
    train = in_this_process if shared.share.workers == 1 else on_workers
    while True:
        try:
            yield from train(experiment, run, shared)
            return
        except GpuMemoryError as error:
            experiment, _ = with_half_the_images(experiment, error, shared.share.workers)
        run.write_text(EXPERIMENT, experiment.to_yaml())
        gc.collect()  # the tensors of the failed step
        torch.cuda.empty_cache()


def in_this_process(experiment: Experiment, run: Folder, shared: Shared) -> Judged:
    device = torch.device("cuda" if shared.share.gpu else "cpu")
    ended = None
    with explained(run):
        for report, saved in reports(experiment, run, device, shared.compared):
            if saved is not None:
                try:
                    commit(saved, run, checkpoint_name(report.images))
                    prune(run, experiment.checkpoints.keep)
                finally:
                    shutil.rmtree(saved)
            ended = report.stop
            if not report.between:
                yield {"images": report.images, **report.metrics}, report.stop
    if ended is None:
        before = ended_before(experiment, run)
        yield {"images": before["images"], **before["metrics"]}, before["stop"]


def on_workers(experiment: Experiment, run: Folder, shared: Shared) -> Judged:
    """The reports of a Ray Train, read from the files that its first worker writes into the run
    folder."""
    for file in (PROGRESS, DUE, snapshot_file()):  # as `train` does
        run.remove(file)
    trainer = trainer_of(experiment, run, shared.share, shared.compared)
    outcomes: list[Any] = []

    def fit() -> None:
        try:
            outcomes.append(trainer.fit().return_value)
        except Exception as error:
            outcomes.append(in_words(error))

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    reached = _saved(run)
    end = experiment.steps * experiment.training.global_batch_size
    thread.start()
    try:
        alive = True
        while alive:
            alive = thread.is_alive()
            saved = _saved(run)  # a worker writes the line of a report before its checkpoint
            for line in _lines(run):
                if reached < line["images"] <= saved and line["images"] < end:
                    reached = line["images"]
                    yield line, None
            time.sleep(0.5 if alive else 0.0)
    finally:
        if thread.is_alive():
            run.write_text(STOP, "")
            thread.join(STOP_SECONDS)
    (ended,) = outcomes
    if isinstance(ended, Exception):
        raise ended
    if "failed" in ended:
        raise Failed(ended["failed"])
    yield _of_newest(run), ended["stop"]


def _saved(run: Folder) -> int:
    """Images of the newest checkpoint; 0 if there is none."""
    manifest = newest_manifest(run)
    return 0 if manifest is None else manifest.images


def _of_newest(run: Folder) -> dict[str, Any]:
    manifest = newest_manifest(run)
    assert manifest is not None
    return {"images": manifest.images, **manifest.metrics}


def _lines(run: Folder) -> list[dict[str, Any]]:
    """The reports that a run folder holds."""
    try:
        return [json.loads(line) for line in run.read_text(METRICS_FILE).splitlines()]
    except (FileNotFoundError, ValueError):
        return []
