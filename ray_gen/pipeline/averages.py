"""Averages of a run's weights that are chosen after its training, from snapshots of averages by
power functions: see `training.profiles`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_gen import temporary
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.runs.checkpoints import averages_name, commit, images_of, newest_checkpoint, whole
from ray_gen.runs.manifest import (
    COPIES,
    EMA,
    EXPERIMENT,
    MANIFEST,
    CheckpointError,
    FileFacts,
    Manifest,
    profile_file,
)
from ray_gen.runs.names import run_folder
from ray_gen.runs.snapshots import snapshots
from ray_gen.storage import Folder
from ray_gen.training.build import DTYPES
from ray_gen.training.profiles import WIDEST, Combination, Profile, combination
from ray_gen.training.state import read_tensors, write_tensors

NARROWEST = 0.001
LARGEST_ERROR = 0.1
"""Of a combination that is worth to be used: see `Combination.error`."""


@dataclass(frozen=True)
class Averaged:
    """A checkpoint with averages of a width. It can be used as a path."""

    sigma: float
    """The width, relative to the images seen."""
    images: int
    """Images seen."""
    checkpoint: str
    """What `checkpoint` and --checkpoint call it: "ema-0.1"."""
    location: str
    """Its folder, in the folder of the run."""
    snapshots: int
    """Number of snapshots that were combined."""
    error: float
    """‖sum of the snapshots' profiles − profile‖ / ‖profile‖."""

    def __fspath__(self) -> str:
        return self.location

    def __str__(self) -> str:
        return (
            f"{self.checkpoint}: averages of width {self.sigma} after {self.images:,} images, from "
            f"{self.snapshots} snapshots, with an error of {100 * self.error:.2g} %"
        )


def ema(run: str | os.PathLike[str], sigma: float, *, at: int | None = None) -> Averaged:
    """Make a checkpoint `ema-SIGMA` of a run: the average of its weights by a power function of
    this width, as if `training.ema_profiles` had had it.

        averaged = ray_gen.ema("digits", 0.15)
        ray_gen.load("digits", checkpoint="ema-0.15").grid(64)
        ray_gen.evaluate(averaged, metrics=["fid"])

    run: its path, URI or name. sigma: the standard deviation of the weights' times, relative to the
    images seen: a small one forgets fast. at: the images of a snapshot; None: of the last one. The
    checkpoint has nothing but the averages: training cannot go on from it, and it has no
    discriminator. Raises Refused if the run has no snapshots, or too few for this width.
    """
    return averages(run, [sigma], at=at)[0]


def averages(
    run: str | os.PathLike[str], sigmas: Sequence[float], *, at: int | None = None
) -> list[Averaged]:
    """As `ema`, for several widths. Reads each snapshot once."""
    for sigma in sigmas:
        _check_width(sigma)
    folder = run_folder(run)
    if whole(folder) is not None:
        raise Refused(f"{folder.location}: is a checkpoint; name its run, which has the snapshots")
    newest = newest_checkpoint(folder)
    text = newest.read_text(EXPERIMENT)
    experiment = Experiment.from_yaml(text)
    taken = _until(folder, at)
    images, profiles = images_of(taken[-1]), experiment.training.ema_profiles
    known = [Profile(sigma, images_of(one)) for one in taken for sigma in profiles]
    found = {float(sigma): combination(known, Profile(sigma, images)) for sigma in sigmas}
    for sigma, combined in found.items():
        _check_error(sigma, combined, profiles, len(taken), images)
    dtype = DTYPES[experiment.training.precision]
    tensors, manifest = _combined(taken, profiles, found, dtype)
    made: list[Averaged] = []
    for sigma, combined in found.items():
        name = averages_name(sigma, at)
        error = combined.error
        with temporary.folder("averages-") as work:
            write_tensors(tensors[sigma], work / EMA)
            (work / EXPERIMENT).write_text(text, encoding="utf-8")
            files = {file: FileFacts.of(work / file) for file in (EMA, EXPERIMENT)}
            metrics = {"ema/sigma": sigma, "ema/error_percent": 100 * error}
            Manifest(manifest.step, images, {}, metrics, files).write(work)
            commit(work, folder, f"checkpoint_{name}")
        location = (folder / f"checkpoint_{name}").location
        made.append(Averaged(sigma, images, name, location, len(taken), error))
    return made


def _check_width(sigma: float) -> None:
    if not NARROWEST <= sigma < WIDEST:
        raise Refused(
            f"--sigma: {sigma} is not from {NARROWEST} to below {WIDEST:.4f} (all weights since the"
            " start count alike); 0.05 to 0.2 are usual"
        )


def _until(run: Folder, at: int | None) -> list[Folder]:
    """The snapshots of a run until the images `at`, oldest first. The last one has just these
    images."""
    found = snapshots(run)
    if not found:
        raise Refused(
            f"{run.location}: has no snapshots of averages; a run saves them if it is trained with "
            "training.ema_profiles=[0.05,0.1]"
        )
    times = [images_of(one) for one in found]
    if at is None:
        return found
    if at not in times:
        near = sorted(sorted(times, key=lambda images: abs(images - at))[:3])
        listed = ", ".join(str(images) for images in near)
        raise Refused(f"--at: {run.location} has no snapshot of {at} images; the nearest: {listed}")
    return found[: times.index(at) + 1]


def _check_error(
    sigma: float, combined: Combination, profiles: Sequence[float], count: int, images: int
) -> None:
    if combined.error <= LARGEST_ERROR:
        return
    raise Refused(
        f"--sigma: {sigma} cannot be made from {count} snapshot{'s' * (count > 1)} of the widths "
        f"{', '.join(map(str, profiles))} until {images:,} images: the error is "
        f"{100 * combined.error:.0f} %, and at most {100 * LARGEST_ERROR:.0f} % is useful; name a "
        "width nearer to these, or train with two training.ema_profiles or a smaller "
        "training.ema_snapshot_images"
    )


def _combined(
    taken: Sequence[Folder],
    profiles: Sequence[float],
    found: Mapping[float, Combination],
    dtype: torch.dtype,
) -> tuple[dict[float, dict[str, Tensor]], Manifest]:
    """The tensors of each width, and the manifest of the last snapshot. Sums are float64. What is
    not averaged comes from the last snapshot."""
    names = [profile_file(str(profile)) for profile in profiles]
    sums: dict[float, dict[str, Tensor]] = {sigma: {} for sigma in found}
    weights = {sigma: iter(combined.weights) for sigma, combined in found.items()}
    for one in taken:
        with one.fetched([*names, MANIFEST]) as folder:
            for name in names:
                own = {sigma: next(left) for sigma, left in weights.items()}
                for key, tensor in read_tensors(folder, name).items():
                    if not tensor.isfinite().all():
                        raise _not_finite(one, name, key)
                    for sigma, weight in own.items():
                        added = tensor.double() * weight
                        before = sums[sigma].get(key)
                        sums[sigma][key] = added if before is None else before.add_(added)
    with taken[-1].fetched([COPIES, MANIFEST]) as folder:
        copies = read_tensors(folder, COPIES)
    averaged = {
        sigma: {key: total.to(dtype) for key, total in totals.items()} | copies
        for sigma, totals in sums.items()
    }
    return averaged, Manifest.unchecked(taken[-1])


def _not_finite(snapshot: Folder, name: str, key: str) -> CheckpointError:
    remedy = "its weights were not finite, or are too large for half precision"
    return CheckpointError(
        f"{snapshot.location}/{name}: {key} is not finite: {remedy}; train with "
        "training.ema_snapshot_precision=fp32"
    )
