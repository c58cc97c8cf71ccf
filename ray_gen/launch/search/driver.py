"""`search`: runs trials of one experiment through Ray Tune, in the process that the user started.

A search goes on from its own files. It tells the algorithm and the scheduler again about ended
trials. Interrupted trials come first, and go on from their run folders. It never reads Tune's own
files.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.stopper import FunctionStopper

from ray_gen.data.told import lines
from ray_gen.errors import Failed, Interrupted, Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.reading import Changes
from ray_gen.launch.claim import Claim
from ray_gen.launch.cluster import (
    check_gpus,
    check_shared,
    connected,
    outlives_signals,
    when_there,
)
from ray_gen.launch.driver import folder_of, timed
from ray_gen.launch.memory import ended_for_memory
from ray_gen.launch.progress import watched
from ray_gen.launch.search.board import Board
from ray_gen.launch.search.checks import (
    bundles_of_trials,
    check_search,
    experiment_before,
    of_a_trial,
    resolved_search,
    room_for,
    trials_at_once,
    trials_before,
)
from ray_gen.launch.search.proposals import Proposer, config_of
from ray_gen.launch.search.schedulers import scheduler_of
from ray_gen.launch.search.study import DEATHS, Study
from ray_gen.launch.search.trial import Shared, TrialProcess
from ray_gen.launch.signals import Interruption, what_was_saved
from ray_gen.launch.start import begun, told_of, with_kept
from ray_gen.recipes import as_experiment
from ray_gen.runs.checkpoints import checkpoints
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.runs.writer import STOP
from ray_gen.searches.records import (
    BEST_EXPERIMENT,
    REPORT,
    SEARCH,
    TABLE,
    TRIALS,
    Mode,
    Trial,
    as_csv,
    best_trial,
)
from ray_gen.storage import Folder, StorageError
from ray_gen.training.build import better_of
from ray_gen.training.sources import as_begun, open_data

TUNE = ".tune"
"""Folder of Ray Tune's own files, in the search folder. Deleted at the end, never read."""


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
        """The trial with the best last score. None if no trial was judged."""
        return best_trial(self.trials, self.mode)

    @property
    def best_run(self) -> str:
        """The run folder of the best trial: `ray_gen.load(searched.best_run)`. Raises Failed if no
        trial was judged."""
        if self.best is None:
            raise Failed(f"{self.location}: no trial was judged")
        return (Folder(self.location) / TRIALS / self.best.name).location

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 130 after an interruption, as in shells."""
        return 130 if self.interrupted else 0


def search(
    experiment: Experiment | str | os.PathLike[str],
    changes: Changes = (),
    *,
    storage: str | os.PathLike[str] | None = None,
    name: str | None = None,
    fresh: bool = False,
    show: bool | None = None,
) -> Searched:
    """Search the space of `experiment.search` on Ray, and return all trials.

        rates = {"optimizers.autoencoder.learning_rate": {"loguniform": [1e-4, 1e-2]}}
        found = ray_gen.search("vae-mnist5k", {"search": {"space": rates, "trials": 8}})
        ray_gen.load(found.best_run).grid(64)

    experiment, changes: as for `ray_gen.train`. storage: folder or URI of search folders. None: the
    experiment's, $RAY_GEN_STORAGE, or ~/ray_gen_runs. name: if a search has it, that search goes
    on. None: the experiment's name and the time. fresh: refuse a name that exists. show: a table
    and a few words. None: in a terminal and in a notebook. Raises Refused if the search cannot
    start, Failed if no trial got a score.
    """
    show = watched() if show is None else show
    experiment = as_experiment(experiment, changes)
    if experiment.search is None:
        phase = next(iter(experiment.optimizers))
        raise Refused(
            "search: the experiment does not say what to search; add e.g.\n"
            f"  search: {{space: {{optimizers.{phase}.learning_rate: "
            "{loguniform: [1e-5, 1e-3]}}}"
        )
    experiment = experiment.absolute()
    folder = folder_of(experiment, storage, name or timed(f"{experiment.name}-search"))
    if fresh and folder.exists(SEARCH):
        raise Refused(f"{folder.location}: the search exists; leave out --fresh to go on with it")
    if folder.exists(EXPERIMENT):
        raise Refused(f"{folder.location}: is a run, not a search; choose another --name")
    try:
        found = _search(experiment, folder, show)
    except Interrupted as interrupted:
        told = f"no trial had begun{_saved(folder)}"
        raise Interrupted(told, number=interrupted.number) from None
    finally:
        folder.remove_if_empty()
    if show:
        _tell(found)
    if found.best is None and not found.interrupted:
        reasons = [f"{trial.name}: {trial.reason}" for trial in found.trials if trial.reason]
        raise Failed("\n".join(["no trial got a score", *reasons[:5]]))
    return found


def _search(experiment: Experiment, folder: Folder, show: bool) -> Searched:
    settings = experiment.search
    assert settings is not None
    metric = experiment.search_metric
    mode = settings.mode or better_of(experiment, metric)
    if mode is None:
        raise ExperimentError(
            [
                f"search.mode: neither settings nor objective say whether a low or a high {metric} "
                "is better; set it to min or max"
            ]
        )
    board = Board(settings.total, experiment.training.images, metric, mode, show=show)
    with (
        board,
        Interruption(board.say, lambda: _saved(folder)) as interruption,
        Claim(folder),
    ):
        board.say("reading data")
        experiment = as_begun(experiment, experiment_before(folder), board.say)
        experiment, origin = begun(experiment, None, folder)
        store = open_data(experiment)
        for told in lines(store):
            board.say(told)
        experiment = resolved_search(experiment, store)
        trials = trials_before(folder, experiment)
        for told in () if origin is None else told_of(experiment, origin):
            board.say(told)
        check_search(experiment, store, origin)
        searched = Searched(folder.location, metric, mode, trials)
        study = Study(experiment, folder, trials, mode)
        if not study.goes_on:
            _write_results(folder, experiment, searched)
            return searched
        board.say("starting Ray")
        with connected():
            wanted = trials_at_once(experiment)
            share, room = when_there(
                partial(room_for, experiment),
                bundles_of_trials(experiment, wanted),
                board.say,
                enough=lambda found: found[1] >= wanted,
            )
            check_shared(folder)
            check_gpus(share.gpu, share.workers * room)
            folder.write_text(SEARCH, experiment.to_yaml())
            if origin is not None:
                origin.write(folder)
            shared = Shared(
                folder.location,
                of_a_trial(with_kept(experiment, folder), share).to_yaml(),
                metric,
                experiment.search_every_images,
                share,
                tuple(path for path in sys.path if path),
                tuple(settings.space),
            )
            folder.remove(STOP)
            try:
                with interruption.saving(study.stop, sure=outlives_signals()):
                    run_trials(study, shared, room, board)
            except Failed:
                with suppress(OSError, StorageError):  # it must not hide the first error
                    _write_results(folder, experiment, searched)
                raise
            finally:
                with suppress(OSError, StorageError):
                    folder.remove(STOP)
                    folder.remove(TUNE)
        _write_results(folder, experiment, searched)
    return Searched(folder.location, metric, mode, trials, study.stopping.is_set())


def _saved(folder: Folder) -> str:
    """Words for the end of a sentence: where trials were saved, or that none was."""
    trials = folder / TRIALS
    return what_was_saved(
        folder.location, lambda: any(checkpoints(trials / name) for name in trials.names())
    )


def run_trials(study: Study, shared: Shared, room: int, board: Board) -> None:
    """Runs Tune. Starts it again if a lack of memory ended it."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # the table shows what failed
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
                f"Ray Tune: {failure.strip().splitlines()[-1]}; start again with the same --name "
                "to go on from what was saved"
            )
        # Ray kills the process that takes too much memory. This also ends Tune, which does not say
        # which trial it was. From here on, trials run one at a time.
        short = ended_for_memory(failure) or "this machine ran out of memory"
        study.lost(f"its process died: {short}", blame=room == 1)
        room = 1
        board.say("the machine ran out of memory; going on, with one trial at a time")
    if study.ends is not None:
        raise Failed(study.ends)


def _run_once(study: Study, shared: Shared, room: int, board: Board) -> str | None:
    """Runs Tune in a second thread. This thread draws the table and receives signals. Returns why
    Tune itself failed, else None."""
    failures: list[str] = []

    def fit() -> None:
        try:
            tuner_of(study, shared, room).fit()
        except Exception:
            # As text: the frames of an exception would keep the trials' processes alive.
            failures.append(traceback.format_exc())

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    # Tune prints a banner on stdout even with verbose=0. The table is drawn on stderr.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
            board.show(list(study.trials), study.reached())
    return failures[0] if failures else None


def tuner_of(study: Study, shared: Shared, room: int) -> Tuner:
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
    scheduler = scheduler_of(study.experiment, study.mode, study.trials)
    # A trial of several workers follows a Ray Train, which reserves CPU cores and GPUs itself. Tune
    # must still get some resource: `memory`.
    alone = share.workers == 1
    resources = {"cpu": float(share.cpus), "gpu": share.gpu} if alone else {"memory": 1e6}
    return Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(TrialProcess, shared=shared), resources),
        param_space=space,
        tune_config=TuneConfig(
            search_alg=proposer,
            scheduler=scheduler,
            num_samples=1 if proposer is None else len(waiting) + new,
            # All trials of a population must have begun. Those without room take turns.
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


def _write_results(folder: Folder, experiment: Experiment, searched: Searched) -> None:
    """Writes search.csv, best.yaml and report.html."""
    folder.write_text(TABLE, as_csv(searched.trials, searched.metric))
    best = searched.best
    if best is not None:
        run = folder / TRIALS / best.name
        trained = Experiment.from_yaml(run.read_text(EXPERIMENT))
        trained = trained.with_fields(training__images=best.images)
        text = f"# {best.name} of {folder.name}: {searched.metric} {best.score:.6g}\n"
        folder.write_text(BEST_EXPERIMENT, text + trained.to_yaml())
    from ray_gen.searches.report import write_report  # its figures take a second to import

    write_report(folder, experiment, searched.trials, searched.mode)


def _tell(searched: Searched) -> None:
    """Prints where the search is, what it found, and how to look at it."""
    at = searched.location
    states = [trial.state for trial in searched.trials]
    counts = ", ".join(
        f"{states.count(state)} {word}"
        for state, word in (
            ("done", "done"),
            ("stopped", "stopped early"),
            ("failed", "failed"),
            ("waiting", "not ended: start again with the same --name"),
        )
        if state in states
    )
    print(f"{at}: {len(states)} trials ({counts})")
    best = searched.best
    if best is None:
        return
    values = "  ".join(f"{path}={value}" for path, value in best.values.items())
    print(f"  best:   {best.name}, {searched.metric} {best.score:.5g}  {values}")
    print(f"  look:   {at}/{REPORT}, ray-gen tensorboard {at}")
    print(f"  sample: ray-gen sample {searched.best_run} --count 64 --seed 0 --output grid.png")
    print(f"  train:  ray-gen train {at}/{BEST_EXPERIMENT}")
