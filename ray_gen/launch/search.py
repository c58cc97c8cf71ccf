"""`search`: trials of one experiment through Ray Tune, from the process that the user started.

A search goes on from its own files: what ended is told to the algorithm and the scheduler anew,
what was cut off is tried first and goes on from its run folder. What Tune writes of itself is never
read.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray
import ray.tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.stopper import FunctionStopper

from ray_gen.build import build_networks, build_objective
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Failed, Refused
from ray_gen.evaluation import Evaluator, Model, name_of
from ray_gen.evaluators.names import LIKELIHOOD, LIKELIHOOD_SCORES, METRICS
from ray_gen.experiment import Experiment, ExperimentError, absolute_path, differences
from ray_gen.experiment.search import Range, better
from ray_gen.launch.board import Board
from ray_gen.launch.claim import Claim
from ray_gen.launch.cluster import Share, check_shared, connected
from ray_gen.launch.driver import interruptible
from ray_gen.launch.progress import read_progress
from ray_gen.launch.proposals import Proposer, config_of
from ray_gen.launch.trial import Search, TrialProcess
from ray_gen.loop import ALL_SEEN, train
from ray_gen.run import PROGRESS, STOP
from ray_gen.sources import class_names, open_data
from ray_gen.state import EXPERIMENT, State
from ray_gen.storage import Folder, StorageError, default_storage
from ray_gen.trials import (
    BEST,
    REPORT,
    SEARCH,
    TABLE,
    TRIALS,
    Mode,
    Trial,
    as_csv,
    best_trial,
    read_trials,
    score_of,
    write_trials,
)

DEATHS = 3
"""Of a trial's process without a judgement between them, after which it is given up."""
TUNE = ".tune"
"""What Ray Tune writes while it runs, in the search folder; deleted at the end, never read."""


@dataclass(frozen=True)
class Searched:
    """A search that has ended."""

    location: str
    metric: str
    mode: Mode
    trials: list[Trial] = field(repr=False)
    interrupted: bool = False

    @property
    def best(self) -> Trial | None:
        """The trial whose last score is the best."""
        return best_trial(self.trials, self.mode)

    @property
    def best_run(self) -> str:
        """Its run folder: `ray_gen.load(searched.best_run)`. Raises Failed."""
        if self.best is None:
            raise Failed(f"{self.location}: no trial was judged")
        return (Folder(self.location) / TRIALS / self.best.name).location

    @property
    def exit_code(self) -> int:
        """Of a command: 130 after an interruption, as shells have it."""
        return 130 if self.interrupted else 0


def search(
    experiment: Experiment,
    *,
    storage: str | None = None,
    name: str | None = None,
    fresh: bool = False,
    show: bool = False,
) -> Searched:
    """Search what `experiment.search` says, on Ray, and return all trials.

    storage: folder or URI of search folders; None: the experiment's, $RAY_GEN_STORAGE, or
    ~/ray_gen_runs. name: a known one goes on; None: the experiment's name and the time. fresh:
    refuse a name that exists. show: a table and a few words on stderr. Raises Refused for what
    cannot start, Failed where no trial came to a score.
    """
    if experiment.search is None:
        raise Refused(
            "search: the experiment does not say what to search; add e.g.\n"
            "  search: {space: {optimizers.generator.learning_rate: {loguniform: [1e-5, 1e-3]}}}"
        )
    experiment = experiment.absolute()
    place = storage or experiment.storage or default_storage()
    name = name or f"{experiment.name}-search-{time.strftime('%Y%m%d-%H%M%S')}"
    if "/" in name or name.startswith("."):
        raise Refused(f"--name: {name!r} is not the name of a folder")
    folder = Folder(absolute_path(place)) / name
    folder.check_writable()
    if fresh and folder.exists(SEARCH):
        raise Refused(f"{folder.location}: there is such a search; leave out --fresh to go on")
    if folder.exists(EXPERIMENT):
        raise Refused(f"{folder.location}: is a run and no search; choose another --name")
    try:
        found = _search(experiment, folder, show)
    finally:
        folder.remove_if_empty()
    if show:
        _tell(found)
    if found.best is None and not found.interrupted:
        reasons = [f"{trial.name}: {trial.reason}" for trial in found.trials if trial.reason]
        raise Failed("\n".join(["no trial came to a score", *reasons[:5]]))
    return found


def _search(experiment: Experiment, folder: Folder, show: bool) -> Searched:
    settings = experiment.search
    assert settings is not None
    metric = experiment.search_metric
    mode = settings.mode or better(metric)
    assert mode is not None
    board = Board(settings.total, experiment.training.images, metric, mode, show=show)
    with board, Claim(folder):
        board.say("reading data")
        store = open_data(experiment)
        experiment = _resolved(experiment, store)
        trials = _trials_before(folder, experiment)
        _check(experiment, store)
        searched = Searched(folder.location, metric, mode, trials)
        study = _Study(experiment, folder, trials, mode)
        if not study.goes_on:
            _write_results(folder, experiment, searched)
            return searched
        board.say("starting Ray")
        with connected():
            share, room = _room(experiment)
            check_shared(folder)
            folder.write_text(SEARCH, experiment.to_yaml())
            shared = Search(
                folder.location,
                _of_a_trial(experiment, share).to_yaml(),
                metric,
                experiment.search_every_images,
                share,
                tuple(path for path in sys.path if path),
            )
            folder.remove(STOP)
            try:
                with interruptible(study.stop, board.say, folder.location):
                    _run(study, shared, room, board)
            except Failed:
                with suppress(OSError, StorageError):  # what is raised is told
                    _write_results(folder, experiment, searched)
                raise
            finally:
                folder.remove(STOP)
                folder.remove(TUNE)
        _write_results(folder, experiment, searched)
    return Searched(folder.location, metric, mode, trials, study.stopping.is_set())


def _resolved(experiment: Experiment, store: Store) -> Experiment:
    """With what the data knows. A group size of auto stays: it is each trial's, by its batch."""
    given = experiment.model_dump(mode="json")
    bare = experiment.model_copy(update={"search": None})
    resolved = bare.resolved(store.image_shape, class_names(store), store.digest)
    return resolved.with_values(
        {"training.group_size": given["training"]["group_size"], "search": given["search"]}
    )


def _trials_before(folder: Folder, experiment: Experiment) -> list[Trial]:
    """What an earlier search of the same name left. Refuses one of another experiment."""
    try:
        before = Experiment.from_yaml(folder.read_text(SEARCH))
    except FileNotFoundError:
        return []
    different = list(differences(experiment, before))
    ours, theirs = experiment.search, before.search
    if ours is not None and theirs is not None:
        different += [f"search.{d}" for d in differences(ours, theirs)]
    if _is_evaluated(experiment):
        now, then = experiment.evaluation, before.evaluation
        different += [
            f"evaluation.{name}: {getattr(now, name)!r} here, {getattr(then, name)!r} there"
            for name in type(now).model_fields
            if name != "batch_size" and getattr(now, name) != getattr(then, name)
        ]
    if experiment.training.images != before.training.images:
        different.append(
            f"training.images: {experiment.training.images} here, {before.training.images} there"
        )
    if different:
        raise ExperimentError(
            [
                f"{folder.location} is the search of another experiment; choose another --name, or "
                "undo:",
                *(f"  {difference}" for difference in different),
            ]
        )
    trials = read_trials(folder)
    for trial in trials:
        trial.state = trial.state if trial.ended else "waiting"
    return trials


def _check(experiment: Experiment, store: Store) -> None:
    """What only the data and the classes of networks and objective know: each value of the space
    can be built, and there is the metric."""
    settings = experiment.search
    assert settings is not None
    bare = experiment.model_copy(update={"search": None})
    problems: list[str] = []
    for path, values in settings.space.items():
        for value in values.examples():
            try:
                tried = bare.with_values({path: value})
                build_networks(tried, build_objective(tried))
            except (Refused, ValueError, TypeError) as error:
                problems.append(f"search.space.{path}: {value}: {error}")
    if problems:
        raise ExperimentError(problems)
    metric = experiment.search_metric
    if _is_evaluated(experiment):
        _check_evaluation(bare.with_values(_evaluation_of(experiment)), metric, store)
        return
    objective = build_objective(bare)
    every = max(phase.every * term.every for phase in objective.phases() for term in phase.terms)
    images = experiment.training.global_batch_size * every  # all terms are due once
    short = ("images", "report_every_images", "checkpoint_every_images")
    changes: dict[str, Any] = {f"training.{name}": images for name in short}
    one = bare.with_values({**changes, "training.compile": False})
    one = one.with_fields(evaluation__every_images=None)
    state = State.build(one, objective, World())
    (report,) = train(one, objective, state, store, World())
    if score_of(report.metrics, metric) is None:
        found = sorted(tag for tag in report.metrics if not tag.startswith(("speed/", "memory/")))
        raise ExperimentError(
            [
                f"search.metric: nothing of this experiment yields {metric!r}; there are "
                + ", ".join(found)
            ]
        )


def _check_evaluation(experiment: Experiment, metric: str, store: Store) -> None:
    """Whether an evaluation of this experiment measures the metric."""
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    evaluator = Evaluator(experiment.evaluation, store, name_of(experiment.data), World())
    evaluator.scores(Model(experiment, objective, state.ema, {"weights": "ema"}), check_only=True)
    if (metric if metric in METRICS else LIKELIHOOD) not in evaluator.metrics:
        without = "; ".join(evaluator.without)
        raise ExperimentError([f"search.metric: {metric} cannot be measured here ({without})"])


def _is_evaluated(experiment: Experiment) -> bool:
    """Whether the metric is measured by `evaluation`, and not by the objective itself."""
    metric, own = experiment.search_metric, experiment.objective.evaluated or ()
    return metric in (*METRICS, *LIKELIHOOD_SCORES) and metric not in own


def _of_a_trial(experiment: Experiment, share: Share) -> Experiment:
    """The experiment of every trial, before it gets its values: judged as often as the search
    asks, on the workers that it has."""
    every = experiment.search_every_images
    changes: dict[str, Any] = {
        "search": None,
        "workers.count": share.workers,
        "workers.gpu": share.gpu > 0,
        "workers.cpus": share.cpus,
        "training.checkpoint_every_images": every,
        "training.report_every_images": min(every, experiment.training.report_every_images),
    }
    if _is_evaluated(experiment):
        changes |= _evaluation_of(experiment)
    return experiment.with_values(changes)


def _evaluation_of(experiment: Experiment) -> dict[str, Any]:
    """The changes after which `evaluation` measures the metric, beside what it did before."""
    metric, before = experiment.search_metric, experiment.evaluation
    asked = metric if metric in METRICS else LIKELIHOOD
    metrics: Any = before.metrics if before.every_images is not None else ()
    if metrics != "auto" and asked not in metrics:
        metrics = [*metrics, asked]
    return {
        "evaluation.metrics": metrics,
        "evaluation.every_images": experiment.search_every_images,
    }


def _room(experiment: Experiment) -> tuple[Share, int]:
    """What a trial gets, and how many trials there is room for. Raises ExperimentError."""
    settings = experiment.search
    assert settings is not None
    asked = settings.workers
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    gpu = (1.0 if gpus else 0.0) if asked.gpu == "auto" else asked.gpu
    slots = 0
    for node in nodes:
        fitting = int(node.get("CPU", 0)) // asked.cpus
        if gpu:
            fitting = min(fitting, int(node.get("GPU", 0)) * math.floor(1 / gpu + 1e-9))
        slots += fitting
    room = slots // asked.count
    if room < 1:
        has = f"{sum(node.get('CPU', 0) for node in nodes):g} CPU cores and {gpus:g} GPUs"
        raise ExperimentError(
            [
                f"search.workers: a trial takes {asked.count} x ({asked.cpus} CPU cores and "
                f"{gpu:g} GPUs), and the cluster has {has}; ask for less"
            ]
        )
    if settings.scheduler == "pbt" and asked.count > 1 and room < settings.total:
        raise ExperimentError(
            [
                f"search.trials: in population based training {settings.total} trials of several "
                f"workers train at once, and the cluster has room for {room}; use fewer trials, "
                "or search.workers.count=1"
            ]
        )
    if settings.concurrent != "auto":
        room = min(room, settings.concurrent)
    return Share(asked.count, gpu, asked.cpus), room


class _Study(Callback):
    """The records of a search, kept while Tune runs it. Called on Tune's thread."""

    def __init__(
        self, experiment: Experiment, folder: Folder, trials: list[Trial], mode: Mode
    ) -> None:
        assert experiment.search is not None
        self.experiment = experiment
        self.settings = experiment.search
        self.folder = folder
        self.trials = trials
        self.mode: Mode = mode
        self.stopping = threading.Event()
        self._spent: dict[str, float] = {}
        self._deaths: dict[str, list[int]] = {}
        self.ends: str | None = None
        """Why no trial can go on."""
        self._ended: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given, for a restore that never comes

    def begin(self, values: Mapping[str, Any]) -> Trial | None:
        """A new trial; None where the search is to end."""
        if self.stopping.is_set():
            return None
        trial = Trial(f"trial_{len(self.trials):03d}", dict(values))
        self.trials.append(trial)
        return trial

    @property
    def goes_on(self) -> bool:
        """Whether there is a trial that has not ended."""
        ended = sum(trial.ended for trial in self.trials)
        return ended < max(self.settings.total, len(self.trials))

    def stop(self) -> None:
        """Ask the trials that run to save and stop, and those that wait not to begin."""
        self.stopping.set()
        self.folder.write_text(STOP, "")
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        for trial in self.trials:
            if trial.state == "running":
                (self.folder / TRIALS / trial.name).write_text(STOP, "")

    def lost(self, reason: str, *, blame: bool) -> None:
        """Tune itself has ended: what ran goes on when it is started again; where it ran alone,
        unless it died too often without having come further."""
        for trial in self.trials:
            if trial.state == "running":
                given_up = blame and self._died(trial)
                trial.state, trial.reason = ("failed", reason) if given_up else ("waiting", None)
        self._write()

    def _died(self, trial: Trial) -> bool:
        """Note a death; whether there were as many without a new judgement as are tolerated."""
        deaths = self._deaths.setdefault(trial.name, [])
        deaths.append(trial.images)
        return deaths.count(trial.images) >= DEATHS

    def reached(self) -> dict[str, int]:
        """Images of the trials that run, as they last said."""
        found: dict[str, int] = {}
        for trial in list(self.trials):
            run = self.folder / TRIALS / trial.name
            if trial.state == "running" and run.is_local:
                progress = read_progress(run, PROGRESS)
                found[trial.name] = 0 if progress is None else int(progress["images"])
        return found

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        # Not where it is judged: there it may have been given the values that it goes on with.
        record.values = dict(trial.config["trial"]["values"])
        self._spent[record.name] = record.seconds  # a result tells of this attempt alone
        record.state = "running"
        self._write()

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._of(trial)
        self._ended[record.name] = result
        images = int(result["images"])
        record.seconds = self._spent.get(record.name, 0.0) + float(result.get("seconds", 0.0))
        if "score" in result:
            # What was judged from here on was of other weights, before it took over another's.
            record.history = [point for point in record.history if point[0] < images]
            record.images, record.score = images, float(result["score"])
            record.history.append((record.images, record.score))
            trial.max_failures = self.experiment.workers.max_restarts  # it came further
        self._write()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        result = self._ended.get(record.name, {})
        stop = result.get("stop")
        if "ends" in result:
            self.ends = result["ends"]
            self.stopping.set()
            record.state = "waiting"
        elif "failed" in result:
            record.state, record.reason = "failed", result["failed"]
        elif stop is not None and stop != "asked to stop":
            record.state = "done"
            record.reason = None if stop == ALL_SEEN else stop
        elif self.stopping.is_set():
            record.state = "waiting"
        else:
            record.state, record.reason = "stopped", f"by {self.settings.scheduler}"
        self._write()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A process that died is replaced, but for the last time if it does not come further."""
        record = self._of(trial)
        self._died(record)
        if self._deaths[record.name].count(record.images) >= DEATHS - 1:
            trial.max_failures = 0

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        record.state, record.reason = "failed", f"its process died: {_error_of(trial)}"
        self._write()

    def _of(self, trial: Any) -> Trial:
        name = str(trial.custom_trial_name)
        return next(record for record in self.trials if record.name == name)

    def _write(self) -> None:
        write_trials(self.folder, self.trials)


def _error_of(trial: Any) -> str:
    """A line of what Tune wrote down when a trial's process died for the last time."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
    lines = [line for line in text.rpartition("Failure # ")[2].splitlines()[1:] if line.strip()]
    if not lines:
        return "it did not say why"
    return lines[-1].strip() if "ray::" in lines[0] else lines[0].strip()  # of a traceback the end


def _run(study: _Study, shared: Search, room: int, board: Board) -> None:
    """Tune, started again where a lack of memory ends it."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # the table tells what failed
    board.begin(study.trials)
    crashes, before = 0, -1
    while study.goes_on and not study.stopping.is_set():
        failure = _run_once(study, shared, room, board)
        if failure is None:
            break
        images = sum(trial.images for trial in study.trials)
        crashes = crashes + 1 if images == before else 1
        before = images
        if "OutOfMemoryError" not in failure or crashes > DEATHS:
            raise Failed(
                f"Ray Tune: {failure.strip().splitlines()[-1]}; the same --name goes on from what "
                "was saved"
            )
        # Ray kills what takes too much memory, and Tune ends with it, without a word which it was:
        # from here on there is one at a time.
        study.lost("its process died: this machine ran out of memory", blame=room == 1)
        room = 1
        board.say("the machine ran out of memory; going on, with one trial at a time")
    if study.ends is not None:
        raise Failed(study.ends)


def _run_once(study: _Study, shared: Search, room: int, board: Board) -> str | None:
    """Tune in a thread beside this one, which draws the table and hears signals. Returns why Tune
    itself failed."""
    failures: list[str] = []

    def fit() -> None:
        try:
            _tuner(study, shared, room).fit()
        except Exception:
            # As text: the frames of an exception would keep the trials' processes alive.
            failures.append(traceback.format_exc())

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    # Tune prints a banner whatever its verbosity; the table is drawn on stderr.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
            board.show(list(study.trials), study.reached())
    return failures[0] if failures else None


def _tuner(study: _Study, shared: Search, room: int) -> Tuner:
    settings, share = study.settings, shared.share
    space: dict[str, Any] | None = None
    proposer = None
    waiting = [trial for trial in study.trials if not trial.ended]
    new = max(0, settings.total - len(study.trials))
    study.folder.remove(TUNE)
    if settings.learns:
        proposer = Proposer(settings, study.mode, study.trials, study.begin)
    else:
        for number in range(len(study.trials), settings.total):
            study.begin(settings.values_of(number))
        waiting = [trial for trial in study.trials if not trial.ended]
        space = {"trial": ray.tune.grid_search([config_of(trial) for trial in waiting])}
    scheduler = _scheduler(study)
    # A trial of several workers follows a Ray Train, which takes its own CPU cores and GPUs; Tune
    # wants to hear something.
    alone = share.workers == 1
    resources = {"cpu": float(share.cpus), "gpu": share.gpu} if alone else {"memory": 1e6}
    return Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(TrialProcess, search=shared), resources),
        param_space=space,
        tune_config=TuneConfig(
            search_alg=proposer,
            scheduler=scheduler,
            num_samples=1 if proposer is None else len(waiting) + new,
            # A population lives at once: trials that wait for room are begun and take turns.
            max_concurrent_trials=None if settings.scheduler == "pbt" and alone else room,
            reuse_actors=True,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=RunConfig(
            name=TUNE,
            storage_path=study.folder.location,
            failure_config=FailureConfig(max_failures=study.experiment.workers.max_restarts),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            callbacks=[study],
            stop=FunctionStopper(lambda trial_id, result: study.stopping.is_set()),
            verbose=0,
        ),
    )


def _name_of(trial: Any) -> str:
    return str(trial.config["trial"]["name"])


def _scheduler(study: _Study) -> TrialScheduler:
    settings, experiment = study.settings, study.experiment
    every = experiment.search_every_images
    judged: dict[str, Any] = {"time_attr": "images", "metric": "score", "mode": study.mode}
    grace = settings.grace_images or every
    if settings.scheduler == "asha":
        asha = _Asha(
            **judged,
            grace_period=grace,
            max_t=max(grace, experiment.training.images),
            reduction_factor=settings.reduction_factor,
            stop_last_trials=False,
        )
        return asha.remember(study.trials)
    if settings.scheduler == "median":
        return _Median(**judged, grace_period=grace).remember(study.trials)
    if settings.scheduler == "pbt":
        space = settings.space
        mutations = {path: _mutation(values) for path, values in space.items()}

        def within(config: dict[str, Any]) -> dict[str, Any]:
            values = config["trial"]["values"]
            config["trial"]["values"] = {p: space[p].nearest(v) for p, v in values.items()}
            return config

        return PopulationBasedTraining(
            **judged,
            perturbation_interval=1,  # at each judgement
            burn_in_period=settings.grace_images or 0,
            hyperparam_mutations={"trial": {"values": mutations}},
            quantile_fraction=settings.quantile,
            perturbation_factors=(settings.perturbation, 1 / settings.perturbation),
            custom_explore_fn=within,
            log_config=False,
        )
    return FIFOScheduler()


def _mutation(values: Range) -> Any:
    """A range as population based training takes it."""
    if values.choice is not None:
        return list(values.choice)
    return getattr(ray.tune, values.kind)(*(values.bounds or ()))


class _Remembers(TrialScheduler):
    """A scheduler that knows what trials were worth before it was made; decisions about that were
    taken then."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)  # pyright: ignore
        self.earlier: dict[str, Sequence[tuple[int, float]]] = {}

    def remember(self, trials: Sequence[Trial]) -> Self:
        """Those that ended now, those that go on when Tune adds them."""
        self.earlier = {trial.name: trial.history for trial in trials}
        for trial in trials:
            if trial.ended:
                self.on_trial_add(None, _Known(trial.name, trial.name))  # pyright: ignore
        return self

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial that is new to this scheduler, but not always to the search."""
        super().on_trial_add(tune_controller, trial)
        for images, score in self.earlier.pop(trial.custom_trial_name, ()):
            self.recall(trial, {"images": images, "score": score})

    def recall(self, trial: Any, result: dict[str, Any]) -> None:
        """An earlier judgement."""
        self.on_trial_result(None, trial, result)  # pyright: ignore


class _Asha(_Remembers, ASHAScheduler):
    pass


class _Median(_Remembers, MedianStoppingRule):
    def recall(self, trial: Any, result: dict[str, Any]) -> None:
        """An earlier judgement, which is not decided about again: others may be better by now."""
        self._results[trial].append(result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune tells of the judgement that stopped a trial twice, and a failure may have none."""
        known = self._results.get(trial)
        if "score" in result and not (known and known[-1]["images"] == result["images"]):
            super().on_trial_complete(tune_controller, trial, result)


@dataclass(frozen=True)
class _Known:
    """A trial of an earlier search, as far as a scheduler looks at it."""

    trial_id: str
    custom_trial_name: str
    status: str = "TERMINATED"


def _write_results(folder: Folder, experiment: Experiment, searched: Searched) -> None:
    """search.csv, best.yaml and report.html."""
    folder.write_text(TABLE, as_csv(searched.trials, searched.metric))
    best = searched.best
    if best is not None:
        run = folder / TRIALS / best.name
        trained = Experiment.from_yaml(run.read_text(EXPERIMENT))
        trained = trained.with_fields(training__images=best.images)
        text = f"# {best.name} of {folder.name}: {searched.metric} {best.score:.6g}\n"
        folder.write_text(BEST, text + trained.to_yaml())
    from ray_gen.report import write_report  # its figures take a second to import

    write_report(folder, experiment, searched.trials, searched.mode)


def _tell(searched: Searched) -> None:
    """Where the search is, what it found, and how to look at it."""
    at = searched.location
    states = [trial.state for trial in searched.trials]
    counts = ", ".join(
        f"{states.count(state)} {word}"
        for state, word in (
            ("done", "done"),
            ("stopped", "stopped early"),
            ("failed", "failed"),
            ("waiting", "to go on with: the same --name again"),
        )
        if state in states
    )
    print(f"{at}: {len(states)} trials ({counts})")
    best = searched.best
    if best is None:
        return
    values = "  ".join(f"{path}={value}" for path, value in best.values.items())
    print(f"  best:   {best.name}, {searched.metric} {best.score:.5g}  {values}")
    print(f"  look:   {at}/{REPORT}, tensorboard --logdir {at}/{TRIALS}")
    print(f"  sample: ray-gen sample {searched.best_run} --count 64 --seed 0 --output grid.png")
    print(f"  train:  ray-gen train {at}/{BEST}")
