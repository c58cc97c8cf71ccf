"""`train`: from an experiment to a run folder, in the process that the user started."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from ray_gen.core import Networks, Objective
from ray_gen.data import Store
from ray_gen.data.told import lines
from ray_gen.distributed import World
from ray_gen.errors import Failed, Interrupted, Refused
from ray_gen.evaluation.evaluator import during_training
from ray_gen.evaluation.metrics import OF_SAMPLES
from ray_gen.experiment import Experiment, ExperimentError, absolute_path, differences
from ray_gen.experiment.data import LatentsData
from ray_gen.experiment.reading import Changes
from ray_gen.launch import alone
from ray_gen.launch.claim import Claim
from ray_gen.launch.home import check_home
from ray_gen.launch.place import why_ray
from ray_gen.launch.plan import Plan, plan_of
from ray_gen.launch.progress import ProgressLine, scores, watched
from ray_gen.launch.run import Ended, Run
from ray_gen.launch.signals import Interruption, what_was_saved
from ray_gen.launch.start import begun
from ray_gen.launch.watch import Watch
from ray_gen.recipes import as_experiment
from ray_gen.runs.checkpoints import DUE, checkpoints, fetched, take_up_due
from ray_gen.runs.loggers import check_loggers
from ray_gen.runs.manifest import (
    EXPERIMENT,
    CheckpointError,
    Manifest,
)
from ray_gen.runs.reports import OnReport
from ray_gen.runs.writer import PROGRESS, STOP
from ray_gen.storage import DEFAULT, Folder, StorageError, default_storage
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.code import (
    changed,
    check_importable,
    collected,
    custom_targets,
    with_code,
)
from ray_gen.training.loop import ALL_SEEN, ASKED, failure_of, finished
from ray_gen.training.rehearsal import rehearse
from ray_gen.training.sources import as_begun, open_data, resolved_by
from ray_gen.training.start import StartingPoint, Table, table_of

LONGEST_NAME_BYTES = 200
"""File systems take 255 for a name. Files beside a run's folder add a few letters."""


def _before(ended: str) -> str:
    """Words for a run that is started again, but has already ended. ended: why it ended."""
    return "had seen all images before" if ended == ALL_SEEN else f"had ended before: {ended}"


def train(
    experiment: Experiment | str | os.PathLike[str],
    changes: Changes = (),
    *,
    storage: str | os.PathLike[str] | None = None,
    name: str | None = None,
    fresh: bool = False,
    show: bool | None = None,
    local: bool | None = None,
    on_report: OnReport | None = None,
) -> Run:
    """Train and return the run.

        run = ray_gen.train("vae-mnist5k", {"training.images": 100_000}, name="digits")
        run.load().grid(64)

    experiment: the name of a recipe, a file, or an Experiment. changes: new values of its fields,
    as for `ray_gen.recipe`: {"training.images": 1000}, {"training": {"images": 1000}} or
    ["training.images=1000"].
    storage: folder or URI of run folders. None: the experiment's, $RAY_GEN_STORAGE, or
    ~/ray_gen_runs. name: if a run has it, that run is resumed. None: the experiment's name and the
    time. fresh: refuse a name that exists. show: a progress line and a few words. None: in a
    terminal and in a notebook. local: True trains in one process of this machine, without Ray;
    False trains on Ray; None uses Ray only if a cluster is there or the experiment needs it. The
    weights are the same. on_report: is called in this process with the images and the metrics of
    each report, e.g. (20_096, {"loss/kl": 9.1}). What it raises ends the run; what was saved is
    kept.
    Raises Refused if the run cannot start, Failed if it did not end well.
    """
    show = watched() if show is None else show
    experiment = as_experiment(experiment, changes).absolute()
    ray = why_ray(experiment, local)
    run = folder_of(experiment, storage, name or timed(experiment.name), on_ray=ray is not None)
    _check_fresh(run, fresh)
    try:
        result = Run(run.location, _train(experiment, run, show, ray, on_report))
    except Interrupted as interrupted:
        told = f"training had not begun{_saved(run)}"
        raise Interrupted(told, number=interrupted.number) from None
    finally:
        run.remove_if_empty()  # if the run was refused
    if show:
        _tell(result, has_prior=experiment.objective.has_prior)
    return result


def check(
    experiment: Experiment | str | os.PathLike[str],
    changes: Changes = (),
    *,
    storage: str | os.PathLike[str] | None = None,
    name: str | None = None,
    fresh: bool = False,
    show: bool | None = None,
    local: bool | None = None,
) -> Plan:
    """What `train` would do with the same arguments. Nothing is started, and no run is written.

        print(ray_gen.check("vae-mnist5k", {"training.images": 1_000_000}))

    Reads the data, and keeps the decoded images, as training does; may download the weights of
    `evaluation.features`. Measures the memory by one small step on the CPU. show: a progress line.
    Raises Refused if `train` would refuse it.
    """
    show = watched() if show is None else show
    experiment = as_experiment(experiment, changes).absolute()
    ray = why_ray(experiment, local)
    named = name or timed(experiment.name)
    run = folder_of(experiment, storage, named, on_ray=ray is not None, probe=False)
    _check_fresh(run, fresh)
    with ProgressLine(0, show=show) as line:
        ready = prepared(experiment, run, line, lambda told: None)
        check_evaluation(ready, line)
        line.stage("measuring memory")
        return planned(ready, run, ray, measured=True)


def _check_fresh(run: Folder, fresh: bool) -> None:
    if fresh and (run.exists(EXPERIMENT) or checkpoints(run)):
        raise Refused(f"{run.location}: the run exists; leave out --fresh to resume it")


def timed(name: str) -> str:
    """A name that no run has yet: `name` and the time."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def folder_of(
    experiment: Experiment,
    storage: str | os.PathLike[str] | None,
    name: str,
    *,
    on_ray: bool = True,
    probe: bool = True,
) -> Folder:
    """The folder of a run or search. Raises Refused if it cannot be written, or if a local Ray that
    `on_ray` needs could not start. probe: whether to write a file there, and remove it again."""
    storage = os.fspath(storage) if storage else experiment.storage
    check_home(
        runs=not storage and default_storage() == DEFAULT,
        cache=experiment.data.placement != "stream",
        starts_ray=on_ray and _starts_ray(),
    )
    parent = Folder(absolute_path(storage or default_storage()))
    check_name(name, parent)
    folder = parent / name
    if probe:
        folder.check_writable()
    return folder


def check_name(name: str, parent: Folder) -> None:
    """Raises Refused if no folder in `parent` can have this name."""
    if not name:
        raise Refused("--name: is empty; give a name, or leave the option out")
    if "/" in name or name.startswith("."):
        raise Refused(f"--name: {name!r}: a name has no slash and does not begin with a dot")
    if not name.isprintable():  # also half a character, from bytes that are not UTF-8
        raise Refused(f"--name: {name!r}: has a character that cannot be printed; leave it out")
    size = len(name.encode())
    if size > LONGEST_NAME_BYTES:
        raise Refused(
            f"--name: has {size} bytes, and file systems take {LONGEST_NAME_BYTES}; choose a "
            "shorter name"
        )
    special = sorted(set(name) & set("?#%"))
    if special and not parent.is_local:
        raise Refused(
            f"--name: {name!r}: {special[0]} has a meaning of its own in the URI "
            f"{parent.location}; choose a name without it"
        )


def _starts_ray() -> bool:
    from ray_gen.launch.cluster import starts_ray  # imports Ray

    return starts_ray()


def _train(
    experiment: Experiment, run: Folder, show: bool, ray: str | None, on_report: OnReport | None
) -> Ended:
    """`train` in a run folder that can be written. ray: why it trains on Ray, or None."""
    images = experiment.steps * experiment.training.global_batch_size
    with ExitStack() as stack:
        line = stack.enter_context(ProgressLine(images, show=show))
        interruption = stack.enter_context(Interruption(line.say, lambda: _saved(run)))
        stack.enter_context(Claim(run))
        if ray is None:
            fit = partial(alone.fit, stack.enter_context(alone.started(line.say)))
        else:
            fit = _fit_on_ray
        ready = prepared(experiment, run, line, line.say)
        experiment, objective, manifest = ready.experiment, ready.objective, ready.manifest
        if manifest is not None:
            ended = finished(experiment, manifest.step, manifest.settled)
            if ended is not None:
                failure = failure_of(objective, manifest.settled, manifest.images)
                metrics = dict(manifest.metrics)
                return Ended(manifest.images, _before(ended), metrics, failure)
        if ray is not None:
            check_evaluation(ready, line)  # before Ray starts, which takes longer
        for told in planned(ready, run, ray).lines():
            line.say(told)
        if ready.origin is not None and ready.start is not None:
            ready.origin.write(run, ready.start)
        del ready  # networks, which would stay in memory during the run
        for file in (STOP, PROGRESS, DUE):
            run.remove(file)
        if ray is not None:
            line.stage(f"{'starting' if _starts_ray() else 'connecting to'} Ray ({ray})")
        watch = Watch(run, line, on_report, 0 if manifest is None else manifest.images)
        ended = fit(experiment, run, watch, partial(_saving, run, interruption))
    if "failed" in ended:
        raise Failed(f"{ended['failed']}{_saved(run)}; {ended['try']}")
    return Ended(ended["images"], ended["stop"], ended["metrics"], ended["failure"])


@dataclass(frozen=True)
class Prepared:
    """What a run needs before it starts."""

    experiment: Experiment
    """Resolved."""
    store: Store
    objective: Objective
    networks: Networks
    """With their initial weights."""
    manifest: Manifest | None
    """Of the checkpoint that the run goes on from."""
    told: tuple[str, ...]
    """What was read: a line, and remarks."""
    origin: StartingPoint | None = None
    """What a run that has not begun starts from."""
    start: Table | None = None
    """What it takes of it."""


def prepared(
    experiment: Experiment, run: Folder, line: ProgressLine, tell: Callable[[str], None]
) -> Prepared:
    """Reads the data, finds the newest checkpoint, and builds the networks: so a user's class fails
    here, not in a worker. Raises Refused. tell: gets what was read."""
    line.stage("reading data")
    before = experiment_before(run)
    experiment, origin = begun(as_begun(experiment, before, line.say), before, run)
    store = open_data(experiment, line.decoded)
    told = (*lines(store), *_advice(experiment, store))
    for sentence in told:
        tell(sentence)
    experiment = resolved_by(experiment, store)
    manifest = goes_on_from(run, experiment, line.say_once)
    if before is not None:
        check_importable(run, before)
    objective = build_objective(experiment)
    networks = build_networks(experiment, objective)
    start = None if origin is None else table_of(experiment, objective, networks, origin)
    if custom_targets(experiment):
        for sentence in rehearse(experiment, objective):
            line.say(sentence)
    sources = collected(experiment)
    differs = None if before is None else changed(run, before, sources)
    if differs is not None:
        line.say(differs)
    experiment = with_code(experiment, sources)
    check_loggers(experiment, run)
    best = experiment.checkpoints.best
    if best is not None and best.metric not in OF_SAMPLES and not len(store.held_out):
        raise ExperimentError(
            [
                "checkpoints.best: needs held-out images and there are none; set it to null, "
                f"or {store.to_hold_out}"
            ]
        )
    return Prepared(experiment, store, objective, networks, manifest, told, origin, start)


def _advice(experiment: Experiment, store: Store) -> Iterator[str]:
    """What the objective says to so many images, and to their pixels."""
    images = store.stream.rows if store.stream is not None else len(store.train)
    objective, starts = experiment.objective, experiment.training.start_from is not None
    of_latents = isinstance(experiment.data, LatentsData)
    yield from (f"  {told}" for told in objective.advice(images, starts, of_latents))
    channels, _, _ = store.image_shape
    yield from (f"  {told}" for told in objective.advice_on_pixels(channels, store.grey_share()))


def check_evaluation(ready: Prepared, line: ProgressLine) -> None:
    """Raises Refused if the evaluations of a run cannot work."""
    if ready.experiment.evaluation.every_images is not None:
        line.stage("checking the evaluation")
        networks = build_networks(ready.experiment, ready.objective).eval()
        during_training(ready.experiment, ready.objective, networks, ready.store, World())


def planned(ready: Prepared, run: Folder, ray: str | None, *, measured: bool = False) -> Plan:
    """The plan of a run. measured: with its memory."""
    return plan_of(
        ready.experiment,
        run.location,
        ready.store,
        ready.objective,
        ready.networks,
        data=ready.told,
        start=() if ready.start is None else tuple(ready.start.lines()),
        from_images=None if ready.manifest is None else ready.manifest.images,
        ray=ray,
        measured=measured,
    )


def _fit_on_ray(*given: Any) -> dict[str, Any]:
    from ray_gen.launch import on_ray  # imports Ray, which takes seconds

    return on_ray.fit(*given)


@contextmanager
def _saving(run: Folder, interruption: Interruption, sure: bool) -> Generator[None]:
    """Inside the `with` statement the run trains, and a signal makes it save and stop. sure:
    whether its workers go on if they get the signal, too."""
    try:
        with interruption.saving(lambda: run.write_text(STOP, ""), sure=sure):
            yield
    except Exception:
        with suppress(OSError, StorageError):  # the user must see the first error
            take_up_due(run)
        raise
    finally:
        with suppress(OSError, StorageError):  # it must not hide an earlier error
            run.remove(STOP)


def _saved(run: Folder) -> str:
    """Words for the end of a sentence: where the run's checkpoints are, or that there is none."""
    return what_was_saved(run.location, lambda: bool(checkpoints(run)))


def experiment_before(run: Folder) -> Experiment | None:
    """The experiment of the newest checkpoint that can be read. None: there is none."""
    for checkpoint in checkpoints(run):
        with suppress(ExperimentError, FileNotFoundError, ValueError):  # `goes_on_from` tells
            return Experiment.from_yaml(checkpoint.read_text(EXPERIMENT))
    return None


def goes_on_from(
    run: Folder, experiment: Experiment, say: Callable[[str], None]
) -> Manifest | None:
    """The manifest of the newest whole checkpoint. The run goes on from it, and the workers choose
    the same one. None without a checkpoint.

    Before anything starts, raises if the checkpoint belongs to another experiment, or if no
    checkpoint is whole. Ignores the run folder's experiment.yaml: people read that file, and it
    may be gone.
    """
    found = checkpoints(run)
    for newest, earlier in zip_longest(found, found[1:]):
        try:
            manifest = _verified(newest, experiment)
            text = newest.read_text(EXPERIMENT)
            break
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            if earlier is None:
                raise CheckpointError(
                    f"{error}; to go on from the beginning, delete {newest.location}"
                ) from None
            say(f"{error}; going on from {earlier.name}")
    else:
        return None
    try:
        before = Experiment.from_yaml(text)
    except ExperimentError as error:
        raise ExperimentError(
            [
                f"{(newest / EXPERIMENT).location} is of another version of ray_gen; use that "
                "version, or choose another --name:",
                *(f"  {problem}" for problem in error.problems),
            ]
        ) from None
    _check_same(run, experiment, before)
    return manifest


def _verified(checkpoint: Folder, experiment: Experiment) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError if a file has changed.

    Behind a URI it checks only the sizes of the files, unless the run has ended: the workers of a
    run that goes on fetch the files and check their bytes.
    """
    if not checkpoint.is_local:
        manifest = Manifest.unchecked(checkpoint)
        manifest.check_sizes(checkpoint.sizes(""), checkpoint.location)
        if finished(experiment, manifest.step, manifest.settled) is None:
            return manifest
    with fetched(checkpoint) as (_, folder):
        return Manifest.verified(folder)


def _check_same(run: Folder, experiment: Experiment, before: Experiment) -> None:
    """Raises ExperimentError if the run is of another experiment or of other data."""
    digest = before.data.digest  # None in runs of versions without a digest
    given = experiment.with_fields(data__digest=digest)
    different = list(differences(given, before))
    known = given if given.lineage else given.with_fields(lineage=before.lineage)
    if different and not list(differences(known, before)):  # it was resumed with other values
        paths = dict.fromkeys(path for change in before.lineage for path in change.values)
        raise ExperimentError(
            [
                f"{run.location} has changed {' and '.join(paths)} since it began; `ray-gen resume "
                f"{shlex.quote(run.location)}` goes on with it; or choose another --name"
            ]
        )
    if different:
        raise ExperimentError(
            [
                f"{run.location} is the run of another experiment; choose another --name, or undo:",
                *(f"  {difference}" for difference in different),
            ]
        )
    if digest is not None and experiment.data.digest != digest:
        raise ExperimentError(
            [
                f"data: its images differ from those that the run {run.location} began with (a "
                "file was added, removed, renamed or changed, or this version of Pillow decodes it "
                "differently); choose another --name, or put the old data back"
            ]
        )


def _tell(run: Run, *, has_prior: bool) -> None:
    """Prints where the run is and how to look at it. has_prior: whether it makes samples."""
    told = "".join(f"  {name} {value:.4g}" for name, value in scores(run.metrics).items())
    failure = f"; {run.failure}" if run.failure else ""
    print(f"{run.location}: {run.images:,} images, {run.stop}{told}{failure}")
    quoted = shlex.quote(run.location)
    if run.stop == ASKED:
        print(f"  resume: ray-gen resume {quoted}")
    print(f"  look:   ray-gen tensorboard {quoted}")
    if has_prior:
        print(f"  sample: ray-gen sample {quoted} --count 64 --seed 0 --output grid.png")
    else:
        print(f"  use:    ray-gen reconstruct {quoted} --data --output reconstructions.png")
