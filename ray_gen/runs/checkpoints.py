"""Finds, commits and prunes the checkpoints of a run folder. A commit is whole or not at all."""

from __future__ import annotations

import errno
import operator
import re
import secrets
import shutil
from collections.abc import Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import SupportsIndex

from ray_gen.errors import Refused
from ray_gen.runs.manifest import EXPERIMENT, MANIFEST, CheckpointError, Manifest
from ray_gen.storage import KEPT, Folder, StorageError

BEST = "best"
"""Name, in a run folder, of the copy of the best checkpoint."""
NEWEST = "newest"
"""What a user calls the last checkpoint of a run."""
Choice = str | SupportsIndex
"""A checkpoint of a run: "newest", "best", the number of images that it has seen, or "ema-0.1":
averages of this width, from `ray-gen ema`."""
DUE = ".due"
"""Name, in a run folder, of the checkpoint that belongs to the evaluation in progress."""
AWAITED = "evaluation_awaited"
"""Marker file in a checkpoint: an evaluation beside the training has not read it yet."""
BETWEEN = "between_reports"
"""Marker file in a checkpoint that was saved between two reports. It is deleted when a newer one is
whole."""
_NAME = re.compile(r"checkpoint_\d+")
_OF_AVERAGES = re.compile(r"ema-(\d*\.\d+)(-\d+)?")
"""Matches "ema-0.1", and "ema-0.1-24000" of averages at an earlier time."""
_CUT_OFF = re.compile(r"\.checkpoint_\d+\.(whole|(whole\.)?([0-9a-f]{8}\.)*partial)")
FETCHES = 3
"""Number of attempts to read a checkpoint that another process replaces meanwhile."""
COMMITS = 3
"""Number of attempts to commit a checkpoint while another process commits the same one: a worker
whose node is lost may still write when its successor does."""
_MET = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
"""Errors after which another attempt helps, because another process has renamed or deleted."""


def checkpoint_name(images: int) -> str:
    """The name of a checkpoint. The order of names is the order of images."""
    return f"checkpoint_{images:012d}"


def averages_name(sigma: float, images: int | None = None) -> str:
    """What a user calls a checkpoint with averages of a width, and of a time if it is not the last.
    Its folder is `checkpoint_` and this."""
    return f"ema-{sigma}" + (f"-{images}" if images is not None else "")


def name_of_averages(folder: str) -> str | None:
    """What a user calls the checkpoint of averages in this folder. None: it is no such folder."""
    name = folder.removeprefix("checkpoint_")
    return name if name != folder and _OF_AVERAGES.fullmatch(name) else None


def is_in_a_run(name: str) -> bool:
    """Whether a checkpoint of this name lies in the folder of its run."""
    return name == BEST or name.startswith("checkpoint_")


def run_of(given: Folder) -> Folder:
    """The folder of the run that a folder belongs to: its parent if it is a checkpoint in a run."""
    if is_in_a_run(given.name) and whole(given) is not None:
        return given.parent
    return given


def images_of(checkpoint: Folder) -> int:
    """Images seen when the checkpoint was saved, from its name."""
    return int(checkpoint.name.rpartition("_")[2])


def checkpoints(run: Folder) -> list[Folder]:
    """The checkpoints of a run folder that have a manifest, newest first."""
    names = [name for name in reversed(run.names()) if _NAME.fullmatch(name)]
    return [run / name for name in names if (run / name).exists(MANIFEST)]


def with_reports(run: Folder) -> Iterator[Folder]:
    """The checkpoints of a run folder that came with a report, newest first."""
    return (found for found in checkpoints(run) if not found.exists(BETWEEN))


def newest_manifest(run: Folder) -> Manifest | None:
    """The manifest of a run's newest checkpoint, or None. Does not check sizes and digests."""
    found = checkpoints(run)
    return Manifest.unchecked(found[0]) if found else None


def newest_checkpoint(run: Folder) -> Folder:
    """The folder itself if it is a checkpoint, else the newest checkpoint in it, else its best one.
    Raises CheckpointError if there is none."""
    given = whole(run)
    if given is not None:
        return given
    found = checkpoints(run)
    if found:
        return found[0]
    best = whole(run / BEST)
    if best is not None:
        return best
    if not run.exists():
        raise CheckpointError(f"{run.location}: there is no such run; correct the path")
    raise CheckpointError(
        f"{run.location}: has no complete checkpoint yet; wait until the run has saved one"
        if run.exists(EXPERIMENT)
        else f"{run.location}: is neither a run folder nor a checkpoint; correct the path"
    )


def newer_ones(run: Folder, found: Folder) -> list[str]:
    """Names of the run's checkpoints that are newer than `found`, newest first. If `found` is the
    newest checkpoint, they are not whole."""
    names = [name for name in reversed(run.names()) if _NAME.fullmatch(name)]
    return [name for name in names if not _NAME.fullmatch(found.name) or name > found.name]


def chosen_checkpoint(run: Folder, choice: Choice = NEWEST) -> Folder:
    """The checkpoint of a run that the user chooses: see `Choice`. A folder that is a checkpoint
    itself takes only "newest". Raises CheckpointError if there is no such checkpoint, Refused for
    another choice."""
    if choice == NEWEST:
        return newest_checkpoint(run)
    averages = _averages(choice)
    wanted = averages or (BEST if choice == BEST else _image_count(choice))
    if whole(run) is not None:
        raise CheckpointError(
            f"checkpoint: {run.location} is a checkpoint itself; leave {wanted} out, or name its "
            "run"
        )
    if averages is not None:
        made = whole(run / f"checkpoint_{averages}")
        if made is not None:
            return made
    best = whole(run / BEST)
    if best is not None and (wanted == BEST or Manifest.unchecked(best).images == wanted):
        return best
    for found in checkpoints(run):
        if images_of(found) == wanted:
            return found
    newest_checkpoint(run)  # raises if there is no run, or no checkpoint at all
    if averages is not None:
        sigma, _, at = averages.removeprefix("ema-").partition("-")
        command = f"ray-gen ema {run.name} --sigma {sigma}" + (f" --at {at}" if at else "")
        raise CheckpointError(
            f"checkpoint: {run.location} has no {averages}; make it by `{command}`"
        )
    what = "no best checkpoint" if wanted == BEST else f"no checkpoint of {wanted:,} images"
    keeps = ", and keeps one only if checkpoints.best is set" if wanted == BEST else ""
    raise CheckpointError(f"checkpoint: {run.location} has {what}{keeps}; {choices_of(run)}")


def choices_of(run: Folder, but: Folder | None = None) -> str:
    """The checkpoints of a run that can be chosen, in words. but: one that is not among them."""
    found = [folder for folder in checkpoints(run) if but is None or folder.name != but.name]
    names = [str(images_of(folder)) for folder in found]
    names += [BEST] if whole(run / BEST) is not None else []
    names += [made for made in map(name_of_averages, run.names()) if made is not None]
    if not names:
        return "the run has no other checkpoint"
    return f"`checkpoint` may be one of: {', '.join(names)}"


def _averages(choice: Choice) -> str | None:
    """The checkpoint of averages that is chosen, by the name that `averages_name` gives it."""
    match = _OF_AVERAGES.fullmatch(choice) if isinstance(choice, str) else None
    return None if match is None else averages_name(float(match[1])) + (match[2] or "")


def _image_count(choice: Choice) -> int:
    """A number of images from Python or from a command line: 24000 or "24,000"."""
    with suppress(TypeError, ValueError):
        if isinstance(choice, str):
            return int(choice.replace(",", ""))
        if not isinstance(choice, bool):
            return operator.index(choice)
    raise Refused(
        f"checkpoint: {choice!r} is neither newest, best, ema-SIGMA nor a number of images"
    )


def whole(checkpoint: Folder) -> Folder | None:
    """The whole checkpoint of this name: the folder itself, or its spare (see `_spare`) if `commit`
    has not finished. None if neither is whole."""
    if checkpoint.exists(MANIFEST):
        return checkpoint
    if checkpoint.name != DUE and not is_in_a_run(checkpoint.name):
        return None
    spare = checkpoint.parent / _spare(checkpoint.name)
    return spare if spare.exists(MANIFEST) else None


@contextmanager
def fetched(
    run: Folder, files: Collection[str] | None = None, choice: Choice = NEWEST
) -> Generator[tuple[Folder, Path]]:
    """A checkpoint of a run (see `chosen_checkpoint`), and its local path inside the `with`
    statement. A CheckpointError raised there names the checkpoint, not its local copy, and the
    other checkpoints of the run.

    files: those to fetch from behind a URI, besides the manifest; None: all.
    """
    wanted = None if files is None else (*files, MANIFEST)
    for _ in range(FETCHES):
        found = chosen_checkpoint(run, choice)
        with ExitStack() as stack:
            try:
                before = found.read_text(MANIFEST)
                folder = stack.enter_context(found.fetched(wanted))
                if not found.is_local and found.read_text(MANIFEST) != before:
                    continue
            except FileNotFoundError:  # replaced or pruned meanwhile
                continue
            try:
                yield found, folder
            except CheckpointError as error:
                told = str(error).replace(str(folder), found.location)
                others = f" ({choices_of(run, found)})" if found.location != run.location else ""
                raise CheckpointError(f"{told}{others}") from error
            return
    raise CheckpointError(f"{run.location}: changes faster than it can be read; try again")


def commit(source: Path, run: Folder, name: str) -> None:
    """Copy a local checkpoint into the run folder as `name`. Replaces an existing one.

    The new checkpoint counts only when it is whole: a local one gets its name by a rename, a remote
    one gets its manifest last. The old one is deleted only when the new one lies whole beside it
    (see `whole`). Raises StorageError; the old or the new checkpoint is then still whole.
    """
    for attempt in range(1, COMMITS + 1):
        try:
            _commit(source, run, name)
            return
        except OSError as error:
            if attempt < COMMITS and error.errno in _MET:
                continue
            raise StorageError(
                f"storage: {run.location} cannot take {name} ({error.strerror or error}); {KEPT}: "
                "make room, or choose another --storage, and start again with the same --name"
            ) from error


def _commit(source: Path, run: Folder, name: str) -> None:
    """One attempt of `commit`."""
    spare = _spare(name)
    replaces = (run / name).exists(MANIFEST)
    if replaces:
        _copy(source, run, spare)
        discard(run, name)
    if replaces and run.is_local:
        (run.path / spare).rename(run.path / name)
    else:
        _copy(source, run, name)
        discard(run, spare)


def _copy(source: Path, run: Folder, name: str) -> None:
    """Copy a local checkpoint to `name`. No whole checkpoint has this name yet."""
    if not run.is_local:
        discard(run, name)
        for file in sorted(source.iterdir(), key=lambda file: file.name == MANIFEST):
            run.put(file, f"{name}/{file.name}")
        return
    _remove_partial(run, name)
    partial = run.path / _partial(name)
    try:
        run.put(source, partial.name)
        if _sizes(partial) != _sizes(source):  # another process has deleted a part of it
            raise FileNotFoundError(errno.ENOENT, "a file of the copy is gone")
        if name.startswith(".") or not (run / name).exists(MANIFEST):
            discard(run, name)
        partial.rename(run.path / name)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _partial(name: str) -> str:
    """A new name for a copy in progress. No two processes write to the same copy."""
    return f".{name.lstrip('.')}.{secrets.token_hex(4)}.partial"


def _remove_partial(run: Folder, name: str) -> None:
    """Delete what interrupted copies of `name` left. Their processes are dead or lost."""
    left = re.compile(rf"\.{re.escape(name.lstrip('.'))}(\.[0-9a-f]{{8}})*\.partial")
    for other in filter(left.fullmatch, run.names()):
        _remove_copy(run, other)


def _remove_copy(run: Folder, partial: str) -> None:
    """Delete a copy in progress. A lost process may still write to it. So it gets another name
    first: the process then fails to rename it, and never commits what is partly deleted."""
    taken = run.path / _partial(partial.removesuffix(".partial"))
    with suppress(FileNotFoundError):
        (run.path / partial).rename(taken)
    shutil.rmtree(taken, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def _spare(name: str) -> str:
    """Name of the spare of `name`: a whole checkpoint that will replace the one called `name`."""
    return f".{name.lstrip('.')}.whole"


def discard(run: Folder, name: str) -> None:
    """Delete a checkpoint. The manifest goes first: if this is interrupted, the rest does not count
    as a checkpoint."""
    run.remove(f"{name}/{MANIFEST}")
    run.remove(name)


def prune(run: Folder, keep: int) -> None:
    """Keep the newest `keep` checkpoints that came with a report, those that await an evaluation,
    and the newest of all. Delete the others, and the remains of interrupted copies."""
    newest, reported = checkpoints(run)[:1], with_reports(run)
    kept = {folder.name for folder in (*newest, *islice(reported, keep))}
    for name in run.names():
        old = _NAME.fullmatch(name) and name not in kept and not (run / name).exists(AWAITED)
        if run.is_local and name.endswith(".partial") and _CUT_OFF.fullmatch(name):
            _remove_copy(run, name)
        elif old or _CUT_OFF.fullmatch(name):
            discard(run, name)


def mend_best(run: Folder) -> None:
    """Give the best checkpoint its name if its commit was interrupted. Delete what interrupted
    copies of it, and of the one due, left. No other process may write them meanwhile."""
    if run.is_local:
        for name in (BEST, _spare(BEST), DUE, _spare(DUE)):
            _remove_partial(run, name)
    best = whole(run / BEST)
    if best is not None and best.name != BEST:
        with best.fetched() as folder:
            commit(folder, run, BEST)


def take_up_due(run: Folder) -> None:
    """If a run failed during an evaluation, rename the checkpoint of this evaluation from `DUE` to
    its `checkpoint_name`. No other process may write it meanwhile."""
    due = whole(run / DUE)
    if due is not None:
        name = checkpoint_name(Manifest.unchecked(due).images)
        if not any(known.name >= name for known in checkpoints(run)):
            with due.fetched() as folder:
                commit(folder, run, name)
    for name in (DUE, _spare(DUE)):
        discard(run, name)
