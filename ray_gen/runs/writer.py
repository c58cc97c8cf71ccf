"""Writes the files of a run folder: metrics, pictures and scores, and calls the loggers. One worker
does it."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ray_gen import temporary
from ray_gen.core import Decodes, Objective, Reconstructs
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.evaluation.scores import score_in
from ray_gen.experiment import Experiment
from ray_gen.pixels import to_range
from ray_gen.runs import pictures
from ray_gen.runs.captions import NO_CAPTIONS, SHOWN, Captions, count_shown
from ray_gen.runs.checkpoints import BEST, DUE, commit, discard, mend_best
from ray_gen.runs.evaluations import EVALUATIONS, evaluation_file
from ray_gen.runs.loggers import Loggers
from ray_gen.runs.manifest import CheckpointError, Manifest
from ray_gen.runs.pace import Pace
from ray_gen.runs.progress import METRICS_FILE, PROGRESS, Part, RunState, ending_of
from ray_gen.runs.snapshots import commit_snapshot, drop_snapshots
from ray_gen.sampling import noise_for, sampled
from ray_gen.storage import Folder, StorageError
from ray_gen.training.build import DTYPES
from ray_gen.training.labels import labels_in_turn, labels_of
from ray_gen.training.loop import ASKED, Report
from ray_gen.training.state import State

STOP = "stop"
SAMPLES = "samples"
SPREAD = "samples/spread"
"""How much samples differ from each other, relative to real images. Near 0: all samples are
alike."""
DECODED = "reconstructions (the images, encoded and decoded)"
"""Above the real images of a run on latents."""
PICTURED = SHOWN
"""Number of images in a grid, and of samples that are compared with each other."""


class RunWriter:
    """Writes metrics and pictures, and calls the loggers. Only one worker has a writer.

    For a run folder behind a URI, files are first written to a local temporary folder. Every report
    copies the files that changed.
    """

    def __init__(
        self,
        run: Folder,
        experiment: Experiment,
        objective: Objective,
        store: Store,
        state: State,
        compared: Sequence[str] = (),
        passed_over: Sequence[str] = (),
    ) -> None:
        """compared: paths of the fields that loggers get as hyperparameters. Empty: all that
        identify the run. passed_over: sentences about damaged checkpoints that were skipped."""
        self._run = run
        self._experiment = experiment
        self._objective = objective
        self._state = state
        self._store = store
        self._passed_over = passed_over
        self._beside = None if run.is_local else temporary.new_folder("run-")
        self._folder = self._beside or run.path
        evaluation = experiment.evaluation
        inline = None if evaluation.is_beside else evaluation.every_images
        self._total = experiment.steps * experiment.training.global_batch_size
        self._pace = Pace(self._total, inline, experiment.training.global_batch_size)
        self._latest: Mapping[str, float] = {}
        self._failure: str | None = None
        self._ending: tuple[RunState, str | None] = ("training", None)
        self._told = state.step * experiment.training.global_batch_size, "training"
        """Images, and what the run was doing, when progress was last shown."""
        self._part: tuple[str, float, int] | None = None
        """What the present evaluation counts, since when, and from which number."""
        self._warnings: list[str] = []
        self._progress_at = 0.0
        self._asked_at = 0.0
        self._saved_at = time.monotonic()
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._due: Path | None = None
        """The checkpoint that came with the last evaluation."""
        start = state.step * experiment.training.global_batch_size
        self._loggers = Loggers(
            experiment, run, self._folder, start, self._warnings.append, tuple(compared)
        )
        self._reported = False
        self._cut(start)
        mend_best(run)
        stored = store.train.images_NHWC
        apart = stored[:: max(1, len(stored) // PICTURED)][:PICTURED]  # may be sorted by class
        self._real = self._as_pictures(to_range(apart, (0.0, 1.0)))
        self._real_spread = _spread(self._real).clamp(min=1e-6)
        channels = self._real.shape[1]
        self._opacity = experiment.data.pictures.has_opacity()
        self._zoom = pictures.zoom_of(*self._real.shape[2:])
        apart = channels > 3 and not self._opacity
        self._tagged = f"_channels_1-3_of_{channels}" if apart else ""

    @torch.no_grad()
    def _as_pictures(self, images: Tensor) -> Tensor:
        """Images of the data (N, C, H, W) in [0, 1]. Latents are decoded."""
        objective, networks = self._objective, self._state.ema
        if not isinstance(objective, Decodes):
            return images
        weight = next(iter(networks.parameters()))
        return objective.decoded(networks, images.to(weight.device, weight.dtype)).float().cpu()

    def _cut(self, images: int) -> None:
        """This attempt starts from a checkpoint. Drop everything that an earlier attempt wrote
        after it. The loggers drop their own."""
        try:
            lines = self._run.read_text(METRICS_FILE).splitlines()
        except FileNotFoundError:
            lines = []
        kept = [line for line in lines if _images_of(line) <= images]
        if kept != lines or not self._run.is_local:
            Folder(str(self._folder)).write_text(
                METRICS_FILE, "".join(f"{line}\n" for line in kept)
            )
        for part in (SAMPLES, EVALUATIONS):
            for name in (self._run / part).names():
                digits = name.partition(".")[0].rpartition("_")[2]
                if digits.isdigit() and int(digits) > images:
                    (self._run / part).remove(name)
        drop_snapshots(self._run, images)

    def progress(
        self,
        images: int,
        metrics: Mapping[str, float],
        losses: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """Show the progress of the run during training, at most once a second. metrics: of the last
        report. losses: gives newer values of them; it is called only if they are shown."""
        self._pace.trained(images)
        if time.time() - self._progress_at >= 1.0:
            self._latest = {**metrics, **losses()}
            self._tell(images)

    def _tell(self, images: int, doing: str = "training", part: Part | None = None) -> None:
        """Write the progress file: at once in a local folder, with the next report behind a URI.
        part: of an evaluation, how much is done."""
        self._progress_at, self._told = time.time(), (images, doing)
        state, why = self._ending
        told: dict[str, Any] = {"state": state, "why": why, "doing": doing, "images": images}
        told |= {"of": self._total, "time": self._progress_at, "rate": self._pace.rate}
        told |= {"seconds_left": self._pace.left(images)}
        unknown = self._pace.unknown_evaluations(images)
        told |= {"evaluations_left": unknown} if unknown else {}
        told |= {} if part is None else {"part": part}
        told |= {"passed_over": self._passed_over} if self._passed_over else {}
        told |= {"warnings": list(self._warnings)} if self._warnings else {}
        told |= {} if self._failure is None else {"failure": self._failure}
        text = json.dumps({**told, "metrics": dict(self._latest)})
        Folder(str(self._folder)).write_text(PROGRESS, text)

    def evaluated_so_far(self, done: int, total: int, what: str) -> None:
        """Show how far the present evaluation is, at most once a second. what: what is counted."""
        now = time.monotonic()
        if self._part is None or self._part[0] != what:
            self._part = what, now, done
        if time.time() - self._progress_at < 1.0:
            return
        left = self._pace.evaluation_left
        _, since, first = self._part
        if left is None and done > first:
            left = (now - since) * (total - done) / (done - first)
        part: Part = {"what": what, "done": done, "of": total, "seconds_left": left}
        self._tell(self._told[0], "evaluating", part)

    @contextmanager
    def evaluating(self, images: int) -> Generator[None]:
        """Show an evaluation while it runs. Save the checkpoint that is due with it, so that
        `take_up_due` can use it if the run ends here."""
        self._pace.evaluates()
        self._part = None
        self._tell(images, "evaluating")
        folder = self._saved({})
        try:
            commit(folder, self._run, DUE)
            yield
            self._pace.evaluated()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._due = folder
        discard(self._run, DUE)

    def checkpoint(self, metrics: Mapping[str, float]) -> Path:
        """Save a checkpoint to a local folder. The caller deletes the folder. After an evaluation
        the files exist already (see `evaluating`), and only the manifest is written again."""
        self._pace.interrupted()
        self._saved_at = time.monotonic()
        folder, self._due = self._due, None
        if folder is None:
            return self._saved(metrics)
        replace(Manifest.checked(folder), metrics=dict(metrics)).write(folder)
        return folder

    def snapshot(self) -> None:
        """Save a snapshot of the profiles in the run folder."""
        folder = temporary.new_folder("snapshot-")
        try:
            with _refused(folder, "a snapshot"):
                self._state.save_snapshot(folder, self._experiment)
            commit_snapshot(folder, self._run)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _saved(self, metrics: Mapping[str, float]) -> Path:
        """Raises StorageError if the disk of temporary files is full."""
        folder = temporary.new_folder("checkpoint-")
        try:
            with _refused(folder, "a checkpoint"):
                self._state.save(folder, self._experiment, metrics)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def save_is_due(self) -> bool:
        """Whether `checkpoints.every_minutes` have passed since the last checkpoint."""
        minutes = self._experiment.checkpoints.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60.0 * minutes

    def stop_is_asked(self) -> bool:
        """Whether somebody has asked this run to save and stop."""
        if not self._run.is_local and time.time() < self._asked_at + 5.0:
            return False  # a request to an object store takes as long as a step
        self._asked_at = time.time()
        return self._run.exists(STOP)

    def report(self, report: Report) -> Report:
        """Write one report: a line of metrics, and grids. Give both to the loggers. Returns the
        report, with the metric `SPREAD` of the samples."""
        samples = self._samples()
        if samples is not None:
            spread = float(_spread(samples) / self._real_spread)
            report = replace(report, metrics={**report.metrics, SPREAD: spread})
        line = {"step": report.step, "images": report.images, "time": time.time(), **report.metrics}
        with (self._folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        grids = self._grids(samples)
        if not self._reported:
            self._reported = True
            decoded = isinstance(self._objective, Decodes)
            captions = Captions(title=DECODED) if decoded else NO_CAPTIONS
            grids["real"] = pictures.grid(
                self._real, opacity=self._opacity, zoom=self._zoom, captions=captions
            )
        for name, picture in grids.items():
            file_name = "real.png" if name == "real" else f"{name}_{report.images:012d}.png"
            pictures.save_png(picture, self._folder / SAMPLES / file_name)
        logged = {f"images/{name}{self._tagged}": picture for name, picture in grids.items()}
        self._loggers.report(report.images, report.metrics, logged)
        self._pace.interrupted()
        self._latest = report.metrics
        self._failure = report.failure
        beside = self._experiment.evaluation.placement == "beside"
        if report.stop is not None:
            self._ending = "stopped" if report.stop == ASKED else "ended", report.stop
        ends_evaluating = report.evaluate and report.stop is not None and beside
        self._tell(report.images, "evaluating" if ends_evaluating else "training")
        self._push()
        return report

    def evaluated(self, images: int, scores: Mapping[str, Any]) -> None:
        """Write scores with their protocols."""
        folder = self._folder / EVALUATIONS
        Folder(str(folder)).write_text(evaluation_file(images), json.dumps(scores, indent=2))

    def close(self) -> None:
        """Write everything that is still buffered. If an error ends the run, the progress file says
        so."""
        error, warned = sys.exception(), len(self._warnings)
        fails = error is not None and (self._ending[1] is None or isinstance(error, Exception))
        if error is not None and fails:
            self._ending = ending_of(error)
        how = {"ended": "finished", "stopped": "stopped"}.get(self._ending[0], "failed")
        try:
            self._loggers.end(how)
            if fails or len(self._warnings) > warned:
                with suppress(OSError, StorageError):  # the user must see the first error
                    self._tell(*self._told)
                    if self._beside is not None:
                        self._run.put(self._beside / PROGRESS, PROGRESS)
            if self._reported:
                self._push()
        finally:
            if self._due is not None:
                shutil.rmtree(self._due, ignore_errors=True)
            if self._beside is not None:
                shutil.rmtree(self._beside, ignore_errors=True)

    def keep_best(self, report: Report, checkpoint: Path) -> None:
        """Copy a checkpoint to `best/` if it is the best so far."""
        settings = self._experiment.checkpoints.best
        if settings is None:
            return
        value = score_in(report.metrics, settings.metric)
        if value is None or not math.isfinite(value):
            return
        best = self._best_value(settings.metric)
        if best is not None and (value <= best if settings.mode == "max" else value >= best):
            return
        commit(checkpoint, self._run, BEST)

    def _best_value(self, metric: str) -> float | None:
        # The best checkpoint may be later than the one from which this run resumes. It counts: the
        # run repeats the same steps and reaches it again.
        try:
            metrics = Manifest.unchecked(self._run / BEST).metrics
        except (FileNotFoundError, CheckpointError):  # a StorageError reaches the caller
            return None
        return score_in(metrics, metric)

    @torch.no_grad()
    def _samples(self) -> Tensor | None:
        """Samples of the EMA from fixed noise: (64, C, H, W) in [0, 1]. None without a prior."""
        experiment, objective, networks = self._experiment, self._objective, self._state.ema
        if not objective.has_prior:
            return None
        device = next(iter(networks.parameters())).device
        numbers = torch.arange(PICTURED, device=device)
        labels = labels_in_turn(experiment, numbers)
        dtype = DTYPES[experiment.training.precision]
        return sampled(objective, networks, experiment.seed, "fixed", numbers, labels, dtype)

    @torch.no_grad()
    def _grids(self, samples: Tensor | None) -> dict[str, Any]:
        """Grids of the samples, and of the EMA's reconstructions of held-out images, by name."""
        grids: dict[str, Any] = {}
        experiment, objective, networks = self._experiment, self._objective, self._state.ema
        device = next(iter(networks.parameters())).device
        dtype = DTYPES[experiment.training.precision]
        if samples is not None:
            names = (experiment.data.classes or ()) if experiment.label_count else ()
            grids["samples"] = pictures.samples_grid(
                samples[: count_shown(len(names))], names, opacity=self._opacity, zoom=self._zoom
            )
        held_out = self._store.held_out
        if isinstance(objective, Reconstructs) and len(held_out.images_NHWC):
            stored = held_out.images_NHWC[: PICTURED // 2].to(device)
            labels = labels_of(experiment, held_out.labels, held_out.conditions)
            labels = None if labels is None else labels[: PICTURED // 2].to(device)
            images = to_range(stored, objective.image_range, dtype)
            numbers = torch.arange(len(images), device=device)
            noise = noise_for(
                objective.sampling_noise, networks, experiment.seed, "fixed", numbers, dtype
            )
            reconstructed = objective.reconstruct(networks, images, labels, noise)
            grids["reconstructions"] = pictures.pairs_grid(
                to_range(stored, (0.0, 1.0)),
                reconstructed.float(),
                opacity=self._opacity,
                zoom=self._zoom,
            )
        return grids

    def _push(self) -> None:
        """Copy the files that changed to the run folder behind a URI."""
        if self._run.is_local:
            return
        for file in self._folder.rglob("*"):
            try:
                stat = file.stat()
                stamp = (stat.st_size, stat.st_mtime_ns)
                if file.is_file() and self._pushed.get(file) != stamp:
                    self._run.put(file, file.relative_to(self._folder).as_posix())
                    self._pushed[file] = stamp
            except FileNotFoundError:
                if file.exists():
                    raise
                # The thread of a logger has removed or renamed it.


@contextmanager
def _refused(folder: Path, what: str) -> Generator[None]:
    """Raises StorageError if the disk of temporary files is full."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"temporary files: {folder.parent} cannot take {what} ({error.strerror or error}); "
            "make room, or set TMPDIR to a folder on another disk"
        ) from error


def _spread(images: Tensor) -> Tensor:
    """How much images (N, C, H, W) differ: the standard deviation of a pixel over the images,
    averaged over pixels."""
    return images.float().std(0, correction=0).mean().cpu()


def _images_of(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a crash


def write_environment(run: Folder, world: World, images: int) -> None:
    """Write environment.json: versions, hardware, the number of workers, and the number of images
    at which they began."""
    versions = {name: _version(name) for name in ("ray_gen", "torch", "ray", "numpy", "pyarrow")}
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    facts = {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "workers": world.size,
        "from_images": images,
        "threads_each": torch.get_num_threads(),
    }
    run.write_text("environment.json", json.dumps(facts, indent=2))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
