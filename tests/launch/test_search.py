"""A search without Ray: what is checked before it starts, what is kept, what it goes on from."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ray_gen.errors import Failed, Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.search import Range
from ray_gen.launch.cluster import Share
from ray_gen.launch.search import checks as search_checks
from ray_gen.launch.search import driver as module
from ray_gen.launch.search.checks import check_search, of_a_trial, resolved_search, room_for
from ray_gen.launch.search.driver import TUNE, Searched, search, tuner_of
from ray_gen.launch.search.schedulers import Asha, Known, Median, mutation_of, scheduler_of
from ray_gen.launch.search.study import DEATHS, Study
from ray_gen.launch.search.trial import Shared
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.runs.writer import STOP
from ray_gen.searches.records import RECORDS, SEARCH, TRIALS, Trial, read_trials, write_trials
from ray_gen.storage import Folder
from tests.data.pictures import write_classes
from tests.helpers import gan, random_store, vae

RATE = "search.space.optimizers.autoencoder.learning_rate={loguniform: [1e-5, 1e-2]}"
BETA = "search.space.objective.beta={uniform: [0.5, 2]}"
RATES = "search.space.optimizers.generator.learning_rate={loguniform: [1e-5, 1e-2]}"
STEPS = "search.space.objective.discriminator_steps={randint: [1, 6]}"


# What a trial gets, and how many there is room for.


def cluster(*nodes: dict[str, float]) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [{"Alive": True, "Resources": dict(node)} for node in nodes]


ONE = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "share", "room"),
    [
        ([{"CPU": 2.0}], "{}", Share(1, 0.0, 1), 2),
        ([{"CPU": 3.0}], "{cpus: 2}", Share(1, 0.0, 2), 1),
        ([{"CPU": 3.0}, {"CPU": 3.0}], "{cpus: 2}", Share(1, 0.0, 2), 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], "{cpus: 2, count: 2}", Share(2, 0.0, 2), 1),
        ([ONE], "{}", Share(1, 1.0, 1), 2),
        ([ONE], "{gpu: 0}", Share(1, 0.0, 1), 8),
        ([ONE], "{gpu: 0.25}", Share(1, 0.25, 1), 8),
        ([ONE], "{gpu: 0.125}", Share(1, 0.125, 1), 8),  # CPU cores are scarcer
        ([{"CPU": 64.0, "GPU": 1.0}], "{gpu: 0.1}", Share(1, 0.1, 1), 10),
        ([{"CPU": 64.0, "GPU": 1.0}], "{gpu: 0.3}", Share(1, 0.3, 1), 3),
        ([{"CPU": 64.0, "GPU": 2.0}], "{gpu: 0.6}", Share(1, 0.6, 1), 2),  # on one GPU each
        ([ONE, {"CPU": 4.0}], "{}", Share(1, 1.0, 1), 2),
        ([ONE, {"CPU": 4.0, "GPU": 1.0}], "{count: 3}", Share(3, 1.0, 1), 1),
        ([ONE, {"CPU": 4.0}], "{gpu: 0, count: 2}", Share(2, 0.0, 1), 6),
    ],
)
def test_trials_are_packed_on_nodes(
    monkeypatch, nodes, asked: str, share: Share, room: int
) -> None:
    monkeypatch.setattr(search_checks.ray, "nodes", cluster(*nodes))
    assert room_for(vae(RATE, f"search.workers={asked}")) == (share, room)
    assert room_for(vae(RATE, f"search.workers={asked}", "search.concurrent=1")) == (share, 1)
    assert room_for(vae(RATE, f"search.workers={asked}", "search.concurrent=99")) == (share, room)


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([{"CPU": 2.0}], "{cpus: 3}"),
        ([{"CPU": 2.0}], "{gpu: 1}"),
        ([{"CPU": 2.0}, {"CPU": 2.0}], "{cpus: 3}"),  # no node has them
        ([ONE], "{count: 3}"),
        ([ONE], "{count: 2, gpu: 1, cpus: 8}"),
    ],
)
def test_a_trial_that_fits_nowhere_is_refused(monkeypatch, nodes, asked: str) -> None:
    monkeypatch.setattr(search_checks.ray, "nodes", cluster(*nodes))
    with pytest.raises(ExperimentError, match=r"^search\.workers: "):
        room_for(vae(RATE, f"search.workers={asked}"))


def test_dead_nodes_have_no_room(monkeypatch) -> None:
    nodes = [*cluster({"CPU": 2.0})(), {"Alive": False, "Resources": {}}]
    monkeypatch.setattr(search_checks.ray, "nodes", lambda: nodes)
    assert room_for(vae(RATE))[1] == 2


ALONE = Share(1, 0.0, 1)


def test_a_trial_is_an_experiment_of_its_own(monkeypatch) -> None:
    found = of_a_trial(vae(RATE, "workers.count=4"), Share(2, 0.5, 3))
    assert found.search is None
    assert (found.workers.count, found.workers.gpu, found.workers.cpus) == (2, True, 3)
    assert found.training.checkpoint_every_images == 54  # a ninth of 480 images
    assert found.training.report_every_images == 54
    assert found.evaluation.every_images is None  # the ELBO is the objective's own
    assert Experiment.from_yaml(found.to_yaml()) == found
    often = vae(RATE, "search.every_images=100", "training.report_every_images=24")
    found = of_a_trial(often, ALONE)
    assert found.training.checkpoint_every_images == 100
    assert found.training.report_every_images == 24


@pytest.mark.parametrize(
    ("before", "metrics"),
    [
        ([], ("sliced_wasserstein",)),
        (["search.metric=fid"], ("fid",)),
        (["search.metric=fid", "evaluation.metrics=[kid]"], ("fid",)),
        (
            ["search.metric=fid", "evaluation.metrics=[kid]", "evaluation.every_images=48"],
            ("kid", "fid"),
        ),
        (
            ["search.metric=fid", "evaluation.metrics=[fid]", "evaluation.every_images=48"],
            ("fid",),
        ),
        (["search.metric=fid", "evaluation.every_images=48"], "auto"),
    ],
)
def test_a_metric_of_the_evaluation_is_measured_whatever_else_is(before, metrics) -> None:
    found = of_a_trial(gan(RATES, *before), ALONE).evaluation
    assert found.metrics == metrics
    assert found.every_images == 54


def test_a_likelihood_that_the_objective_does_not_give_is_evaluated() -> None:
    found = of_a_trial(vae(RATE, "search.metric=log_likelihood_bound"), ALONE).evaluation
    assert (found.metrics, found.every_images) == (("likelihood",), 54)


def test_a_group_size_of_auto_stays_each_trials_own(store_8) -> None:
    given = vae("training.group_size=auto").with_fields(training__group_size="auto")
    given = given.with_values(
        {"search": {"space": {"training.global_batch_size": {"choice": [24, 32, 20]}}}}
    )
    found = resolved_search(given, store_8)
    assert found.training.group_size == "auto"
    assert found.search == given.search
    trial = of_a_trial(found, ALONE)
    assert [
        trial.with_values({"training.global_batch_size": size}).group_size for size in (24, 32, 20)
    ] == [12, 16, 10]


# What only data and classes know.


def test_a_metric_that_is_there_is_taken(store_8) -> None:
    for this in (
        vae(RATE),
        vae(RATE, "search.metric=sliced_wasserstein"),
        vae(RATE, "search.metric=log_likelihood_bound"),
        vae(RATE, "search.metric=loss/kl", "search.mode=min"),
        gan(RATES),
        gan(RATES, "search.metric=discriminator/real", "search.mode=min"),
    ):
        check_search(this, store_8)


def test_a_term_that_is_not_due_at_the_first_step_is_found(store_8) -> None:
    rare = ("objective.r1_weight=1", "objective.r1_every=4", "objective.discriminator_steps=3")
    check_search(gan(RATES, *rare, "search.metric=loss/generator", "search.mode=min"), store_8)
    check_search(gan(RATES, *rare, "search.metric=loss/r1", "search.mode=min"), store_8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            lambda: gan(RATES, "search.metric=loss/genrator", "search.mode=min"),
            "does not measure 'loss/genrator'; it measures discriminator/fake, ",
        ),
        (
            lambda: gan(RATES, "search.metric=loss/r1", "search.mode=min"),
            "does not measure 'loss/r1'",
        ),
        (
            lambda: vae(RATE, "objective={kind: autoencoder}", "search.metric=sliced_wasserstein"),
            "evaluation.metrics: sliced_wasserstein: the objective autoencoder has no prior",
        ),
    ],
)
def test_a_metric_that_is_not_there_is_refused_before_anything_starts(
    store_8, given, said: str
) -> None:
    with pytest.raises(Refused) as refused:
        check_search(given(), store_8)
    assert said in str(refused.value)


def test_a_held_out_score_needs_held_out_images() -> None:
    store = random_store(8, held_out=0)
    with pytest.raises(Refused, match=r"search\.metric: .*'elbo'; it measures loss"):
        check_search(vae(RATE), store)
    with pytest.raises(Refused, match="it is measured on held-out images"):
        check_search(vae(RATE, "search.metric=log_likelihood_bound"), store)


def test_a_metric_that_an_evaluation_of_all_leaves_out_is_refused(store_8) -> None:
    blind = "evaluation.features={kind: custom, target: 'tests.evaluation.test_samples:Blind'}"
    given = (RATES, "evaluation.every_images=48", "evaluation.count=20", blind)
    with pytest.raises(Refused, match=r"search\.metric: inception_score cannot .*no class scores"):
        check_search(gan(*given, "search.metric=inception_score"), store_8)
    check_search(gan(*given, "search.metric=kid"), store_8)


def test_a_value_that_a_users_class_refuses_is_refused_with_its_path(store_8) -> None:
    mine = "{kind: custom, target: 'tests.custom_objectives:FeatureDiscriminator'}"
    path = "networks.discriminator.options.width"
    given = gan(f"networks.discriminator={mine}", f"search.space.{path}={{choice: [4, wide]}}")
    with pytest.raises(ExperimentError) as refused:
        check_search(given, store_8)
    assert [
        problem.startswith(f"search.space.{path}: wide: ") for problem in refused.value.problems
    ]
    assert len(refused.value.problems) == 1


# The records.


def study(folder: Path, *trials: Trial, given: Experiment | None = None) -> Study:
    return Study(given or vae(RATE), Folder(str(folder)), list(trials), "max")


def tunes(trial: Trial, **facts: Any) -> Any:
    """What Tune has of a trial."""
    config = {"trial": {"name": "of the donor", "values": dict(trial.values)}}
    given = {"custom_trial_name": trial.name, "config": config, "error_file": None}
    return SimpleNamespace(**{**given, "max_failures": 8, **facts})


def started(this: Study, values: Mapping[str, Any] | None = None) -> tuple[Trial, Any]:
    """A new trial that runs, and Tune's one."""
    record = this.begin(values or {"objective.beta": 1.0})
    assert record is not None
    trial = tunes(record)
    this.on_trial_start(0, [], trial)
    return record, trial


def judged(this: Study, trial: Any, *results: dict[str, Any]) -> None:
    for result in results:
        this.on_trial_result(0, [], trial, result)


def written(this: Study) -> list[Trial]:
    return read_trials(this.folder)


@pytest.mark.parametrize(
    ("last", "stopping", "state", "reason"),
    [
        ({"stop": "all images seen"}, False, "done", None),
        ({"stop": "all images seen"}, True, "done", None),
        ({"stop": "D(x) has settled"}, False, "done", "D(x) has settled"),
        ({}, False, "stopped", "by asha"),
        ({"stop": "asked to stop"}, True, "waiting", None),
        ({}, True, "waiting", None),
        ({"failed": "it diverged"}, False, "failed", "it diverged"),
        ({"failed": "it diverged"}, True, "failed", "it diverged"),
    ],
)
def test_how_a_trial_ended(
    tmp_path: Path, last: dict[str, Any], stopping: bool, state: str, reason: str | None
) -> None:
    this = study(tmp_path)
    record, trial = started(this)
    assert written(this)[0].state == "running"
    if stopping:
        this.stop()
    judged(this, trial, {"images": 48, "score": 1.0}, {"images": 96, "score": 2.0, **last})
    this.on_trial_complete(0, [], trial)
    assert (record.state, record.reason) == (state, reason)
    assert (record.images, record.score) == (96, 2.0)
    assert record.history == [(48, 1.0), (96, 2.0)]
    assert written(this) == this.trials


def test_an_end_without_a_score_keeps_the_last_one(tmp_path: Path) -> None:
    this = study(tmp_path)
    record, trial = started(this)
    judged(this, trial, {"images": 48, "score": 1.0}, {"images": 72, "stop": "asked to stop"})
    assert (record.images, record.score, record.history) == (48, 1.0, [(48, 1.0)])
    judged(this, trial, {"images": 0, "failed": "its network cannot be built"})
    assert (record.images, record.score) == (48, 1.0)


def test_what_was_judged_of_weights_that_were_given_up_is_forgotten(tmp_path: Path) -> None:
    """Population based training: from 144 images back to another's 72."""
    this = study(tmp_path)
    record, trial = started(this)
    judged(this, trial, *({"images": n * 48, "score": float(n)} for n in (1, 2, 3)))
    trial.config["trial"]["values"]["objective.beta"] = 2.0
    judged(this, trial, {"images": 144, "score": 3.0})
    assert record.values == {"objective.beta": 1.0}  # of what was judged
    this.on_trial_start(0, [], trial)
    judged(this, trial, {"images": 96, "score": 7.0})
    assert record.values == {"objective.beta": 2.0}
    assert (record.images, record.score) == (96, 7.0)
    assert record.history == [(48, 1.0), (96, 7.0)]


def test_all_attempts_count_as_time(tmp_path: Path) -> None:
    before = Trial("trial_000", {}, "waiting", seconds=100.0)
    this = study(tmp_path, before)
    trial = tunes(before)
    for attempt in (1, 2):  # a process that dies, or a trial that waits for others in its turn
        this.on_trial_start(0, [], trial)
        judged(this, trial, {"images": 48 * attempt, "score": 1.0, "seconds": 5.0})
        judged(this, trial, {"images": 48 * attempt + 24, "score": 1.0, "seconds": 20.0})
    assert before.seconds == 140.0


def test_a_trial_that_dies_without_coming_further_is_given_up(tmp_path: Path) -> None:
    this = study(tmp_path)
    _, trial = started(this)
    for _ in range(DEATHS - 1):
        assert trial.max_failures > 0
        this.on_trial_recover(0, [], trial)
    assert trial.max_failures == 0


def test_a_trial_that_comes_further_may_die_more_often(tmp_path: Path) -> None:
    this = study(tmp_path)
    _, trial = started(this)
    for number in range(1, 8):
        this.on_trial_recover(0, [], trial)
        judged(this, trial, {"images": 48 * number, "score": 1.0})
    assert trial.max_failures == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Failure # 1 (occurred at 2026-01-01)\nThe node died\n"
            "Failure # 2 (occurred at 2026-01-02)\nThe actor died unexpectedly.\n\tclass_name: T\n",
            "The actor died unexpectedly.",
        ),
        (
            "Failure # 1 (occurred at 2026-01-01)\n\x1b[36mray::TrialProcess.train()\x1b[39m\n"
            '  File "x.py", line 3\nOSError: [Errno 5] Input/output error\n',
            "OSError: [Errno 5] Input/output error",
        ),
        ("", "it did not say why"),
        (None, "it did not say why"),
    ],
)
def test_why_a_process_died_is_told_in_a_line(tmp_path: Path, text: str | None, said: str) -> None:
    this = study(tmp_path)
    record, trial = started(this)
    file = tmp_path / "error.txt"
    if text is not None:
        file.write_text(text)
    trial.error_file = str(file)
    this.on_trial_error(0, [], trial)
    assert (record.state, record.reason) == ("failed", f"its process died: {said}")
    assert written(this) == this.trials


def test_what_ran_when_tune_itself_ended_goes_on(tmp_path: Path) -> None:
    this = study(tmp_path, Trial("trial_000", {}, "done", score=1.0))
    record, _ = started(this)
    for _ in range(DEATHS - 1):
        this.lost("out of memory", blame=True)
        assert (record.state, record.reason) == ("waiting", None)
        record.state = "running"
    this.lost("out of memory", blame=False)  # it did not run alone
    assert (record.state, record.reason) == ("waiting", None)
    record.state = "running"
    this.lost("out of memory", blame=True)
    assert (record.state, record.reason) == ("failed", "out of memory")
    assert this.trials[0].state == "done"
    assert written(this) == this.trials


def test_a_storage_that_fails_ends_the_search_and_no_trial(tmp_path: Path) -> None:
    this = study(tmp_path)
    record, trial = started(this)
    judged(this, trial, {"images": 48, "score": 1.0}, {"images": 48, "ends": "the disk is full"})
    this.on_trial_complete(0, [], trial)
    assert (record.state, this.ends) == ("waiting", "the disk is full")
    assert this.stopping.is_set()


def test_a_search_that_is_to_end_asks_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    this = study(tmp_path, Trial("trial_000", {}, "waiting"), Trial("trial_001", {}, "done"))
    started(this)
    this.stop()
    runs = {name: (tmp_path / TRIALS / name / STOP).exists() for name in ("trial_000", "trial_002")}
    assert runs == {"trial_000": False, "trial_002": True}
    assert (tmp_path / STOP).exists()  # for those that wait
    assert this.begin({}) is None
    assert len(this.trials) == 3


def test_how_long_a_search_goes_on(tmp_path: Path) -> None:
    def goes_on(*states: Any, total: int = 2) -> bool:
        trials = [Trial(str(number), {}, state) for number, state in enumerate(states)]
        return study(tmp_path, *trials, given=vae(RATE, f"search.trials={total}")).goes_on

    assert goes_on()
    assert goes_on("done")
    assert goes_on("done", "waiting")
    assert not goes_on("done", "failed")
    assert not goes_on("done", "stopped", "done")
    assert goes_on("done", "stopped", "waiting")  # more than are asked for now, but begun
    assert goes_on("done", "failed", total=3)


def test_tune_may_pickle_the_study(tmp_path: Path) -> None:
    import ray.cloudpickle

    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(study(tmp_path).begin)) is not None


# What Tune is asked.


@pytest.fixture
def asked(tmp_path: Path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """The settings of a tuner: (experiment, trials, share) -> keywords."""
    monkeypatch.setattr(module, "Tuner", lambda trainable, **settings: settings)

    def settings_of(given: Experiment, *trials: Trial, share: Share = ALONE) -> dict[str, Any]:
        this = study(tmp_path, *trials, given=given)
        shared = Shared(str(tmp_path), "", "elbo", 54, share, ())
        return {**tuner_of(this, shared, 3), "study": this}

    return settings_of


def config_names(settings: dict[str, Any]) -> list[str]:
    return [config["name"] for config in settings["param_space"]["trial"]["grid_search"]]


def test_what_waits_comes_first_and_then_the_rest_by_number(asked) -> None:
    given = vae(RATE, "search.algorithm=random", "search.trials=5")
    whole = asked(given)
    assert config_names(whole) == [f"trial_{number:03d}" for number in range(5)]
    begun = whole["study"].trials
    before = [
        Trial("trial_000", begun[0].values, "done", score=1.0),
        Trial("trial_001", begun[1].values, "waiting"),
        Trial("trial_002", begun[2].values, "failed"),
    ]
    rest = asked(given, *before)
    assert config_names(rest) == ["trial_001", "trial_003", "trial_004"]
    assert [trial.values for trial in rest["study"].trials] == [trial.values for trial in begun]


@pytest.mark.parametrize(("trials", "samples"), [(2, 2), (4, 2), (5, 3), (9, 7)])
def test_tune_gets_as_many_samples_as_trials_are_open(asked, trials: int, samples: int) -> None:
    """If fewer trials are asked for than were begun, the begun ones still end normally."""
    states: list[Any] = ["done", "waiting", "stopped", "waiting"]
    value = {"optimizers.autoencoder.learning_rate": 1e-3}
    before = [Trial(f"trial_{n:03d}", value, state, score=1.0) for n, state in enumerate(states)]
    found = asked(vae(RATE, f"search.trials={trials}"), *before)["tune_config"]
    assert found.num_samples == samples
    suggested = [found.search_alg.suggest(str(n)) for n in range(samples)]
    names = [config["trial"]["name"] for config in suggested]
    assert names[:2] == ["trial_001", "trial_003"]
    assert found.search_alg.suggest("more") == "FINISHED"


def test_a_population_lives_at_once(asked) -> None:
    """Tune begins only as many trials as may run at a time, and would breed them in threes."""
    given = vae(RATE, "search.scheduler=pbt", "search.trials=8")
    assert asked(given)["tune_config"].max_concurrent_trials is None
    assert asked(given, share=Share(2, 0.0, 1))["tune_config"].max_concurrent_trials == 3
    assert asked(vae(RATE))["tune_config"].max_concurrent_trials == 3


def test_what_tune_wrote_before_is_gone(asked, tmp_path: Path) -> None:
    (tmp_path / TUNE).mkdir()
    asked(vae(RATE))
    assert not (tmp_path / TUNE).exists()


@pytest.mark.parametrize(
    "values",
    [
        Range(uniform=(0.5, 2.0)),
        Range(loguniform=(1e-5, 1e-2)),
        Range(randint=(1, 6)),
        Range(lograndint=(1, 64)),
    ],
)
def test_a_population_draws_from_the_same_ranges(values: Range) -> None:
    drawn = [mutation_of(values).sample(None) for _ in range(200)]
    assert all(values.nearest(value) == value for value in drawn)
    assert values.bounds is not None
    assert min(drawn) < sum(values.bounds) / 2


def test_perturbed_values_stay_in_their_ranges(tmp_path: Path) -> None:
    given = gan(RATES, STEPS, "search.scheduler=pbt", "search.perturbation=3.0")
    scheduler: Any = scheduler_of(given, "max", [])
    low, high = 1e-5, 1e-2
    for rate, steps in ((low, 1), (high, 5), (1e-3, 3)):
        values = {
            "optimizers.generator.learning_rate": rate,
            "objective.discriminator_steps": steps,
        }
        donor = tunes(Trial("trial_000", values))
        for _ in range(20):
            config, _ = scheduler._get_new_config(None, donor)
            found = config["trial"]["values"]
            assert low <= found["optimizers.generator.learning_rate"] <= high
            assert type(found["objective.discriminator_steps"]) is int
            assert 1 <= found["objective.discriminator_steps"] < 6
            given.model_copy(update={"search": None}).with_values(found)


# Schedulers that remember.


class Tune:
    """Drives a scheduler as Tune does, and keeps the trials' records."""

    def __init__(self, scheduler: TrialScheduler, length: int) -> None:
        self.scheduler: Any = scheduler
        self.length = length
        self.records: dict[str, Trial] = {}
        self.decisions: list[tuple[str, int, str]] = []
        self._controller = SimpleNamespace(get_trials=list, get_live_trials=set)
        self._known: dict[str, Any] = {}

    def add(self, name: str) -> None:
        """A trial that is new to the scheduler."""
        self._known[name] = Known(f"id {name} of {id(self)}", name)
        self.scheduler.on_trial_add(self._controller, self._known[name])

    def judge(self, name: str, score: float) -> None:
        """The next judgement of a trial, which may end it; a new one is added."""
        record = self.records.setdefault(name, Trial(name, {}, "running"))
        if record.ended:
            return
        if name not in self._known:
            self.add(name)
        images = len(record.history) + 1
        record.history.append((images, score))
        record.score = score
        result = {"images": images, "score": score}
        if images == self.length:
            decision, record.state = "END", "done"
        else:
            decision = self.scheduler.on_trial_result(self._controller, self._known[name], result)
        self.decisions.append((name, images, decision))
        if decision in ("END", TrialScheduler.STOP):
            record.state = "done" if decision == "END" else "stopped"
            self.scheduler.on_trial_complete(self._controller, self._known[name], result)


def bare(kind: type) -> Any:
    judged: dict[str, Any] = {"time_attr": "images", "metric": "score", "mode": "max"}
    if kind is not Median:
        judged |= {"max_t": 9, "reduction_factor": 3, "stop_last_trials": False}
    return kind(**judged, grace_period=1)


judgements = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([float(n) for n in range(12)])),
    max_size=60,
)


@settings(max_examples=200)
@given(judgements, judgements)
@pytest.mark.parametrize(("kind", "plain"), [(Asha, ASHAScheduler), (Median, Median)])
def test_a_scheduler_that_remembers_decides_as_one_that_saw_everything(
    kind: type, plain: type, first: list[tuple[str, float]], then: list[tuple[str, float]]
) -> None:
    whole = Tune(bare(plain), 9)
    for name, score in first:
        whole.judge(name, score)
    records = {
        name: Trial(name, {}, r.state if r.ended else "waiting", history=list(r.history))
        for name, r in whole.records.items()
    }
    resumed = Tune(bare(kind).remember(list(records.values())), 9)
    resumed.records = records
    for name, record in records.items():
        if record.state == "waiting":  # what was cut off begins before anything new
            resumed.add(name)
    before = len(whole.decisions)
    for name, score in then:
        whole.judge(name, score)
        resumed.judge(name, score)
    assert resumed.decisions == whole.decisions[before:]


def test_the_scores_of_a_failed_trial_count_as_before() -> None:
    """A rung keeps what it was told, whatever becomes of the trial."""
    failed = Trial("a", {}, "failed", history=[(1, 9.0)])
    tune = Tune(bare(Asha).remember([failed]), 9)
    tune.judge("b", 1.0)
    assert tune.decisions == [("b", 1, TrialScheduler.STOP)]


def test_a_failure_without_a_score_is_no_sample_of_the_median() -> None:
    scheduler = bare(Median)
    trial = Known("id", "a")
    scheduler.on_trial_add(None, trial)
    scheduler.on_trial_complete(None, trial, {"images": 5, "failed": "it diverged"})
    tune = Tune(scheduler, 9)
    for name in "bcdefg":
        tune.judge(name, 1.0)
    assert {decision for *_, decision in tune.decisions} == {TrialScheduler.CONTINUE}


# From beginning to end, with a Tune that trains nothing.


class FakeTune:
    """Replaces Tune: gives a score to at most `most` trials."""

    def __init__(self, monkeypatch, most: int = 99) -> None:
        self.most = most
        self.ran: list[str] = []
        self.shared: Shared | None = None
        monkeypatch.setattr(module, "connected", self._connected)
        monkeypatch.setattr(module, "room_for", lambda experiment: (ALONE, 2))
        monkeypatch.setattr(module, "check_shared", lambda folder: None)
        monkeypatch.setattr(module, "run_trials", self._run)
        monkeypatch.setattr("ray_gen.searches.report.write_report", self._report)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        yield

    def _report(self, folder: Folder, *_: object) -> None:
        folder.write_text("report.html", "a report")

    def _run(self, this: Study, shared: Shared, room: int, board: Any) -> None:
        self.shared = shared
        for number in range(len(this.trials), this.settings.total):
            this.begin(this.settings.values_of(number))
        experiment = Experiment.from_yaml(shared.experiment)
        for number, record in enumerate(this.trials):
            if record.ended or len(self.ran) == self.most:
                continue
            self.ran.append(record.name)
            own = experiment.with_values(record.values)
            (this.folder / TRIALS / record.name).write_text(EXPERIMENT, own.to_yaml())
            trial = tunes(record)
            this.on_trial_start(0, [], trial)
            last = {"stop": "all images seen"}
            judged(this, trial, {"images": 480, "score": float(-abs(number - 1)), **last})
            this.on_trial_complete(0, [], trial)


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> str:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    return f"data=folder:{write_classes(tmp_path / 'images', {'a': 20, 'b': 20})}"


def given_by_a_user(data: str, *more: str) -> Experiment:
    """An experiment as a user writes it."""
    choices = [data, RATE, "search.algorithm=random", "search.trials=3", *more]
    return Experiment.from_yaml(vae().to_yaml(), choices)


def test_a_search_from_beginning_to_end(data: str, tmp_path: Path, monkeypatch, capsys) -> None:
    tune = FakeTune(monkeypatch)
    given = given_by_a_user(data)
    found = search(given, storage=str(tmp_path), name="s", show=True)
    folder = tmp_path / "s"
    assert tune.ran == ["trial_000", "trial_001", "trial_002"]
    assert (found.metric, found.mode, found.exit_code) == ("elbo", "max", 0)
    assert found.best is found.trials[1]
    assert found.best_run == str(folder / "trials/trial_001")
    best = Experiment.from_yaml((folder / "best.yaml").read_text())
    assert best.value_at("optimizers.autoencoder.learning_rate") in found.best.values.values()
    assert (best.training.images, best.search) == (480, None)
    rows = list(csv.DictReader((folder / "search.csv").open()))
    assert [row["trial"] for row in rows] == tune.ran
    assert sorted(path.name for path in folder.iterdir()) == [
        *("best.yaml", "report.html", "search.csv", "search.yaml", "trials", "trials.json")
    ]
    told = capsys.readouterr()
    assert "3 trials (3 done)" in told.out
    assert f"ray-gen train {folder}/best.yaml" in told.out

    saved = Experiment.from_yaml((folder / SEARCH).read_text())
    assert saved.search == given.search
    again = search(saved, storage=str(tmp_path), name="s")  # nothing is left to do
    assert again.trials == found.trials
    assert tune.ran == ["trial_000", "trial_001", "trial_002"]


def test_a_search_that_was_cut_off_goes_on(data: str, tmp_path: Path, monkeypatch) -> None:
    tune = FakeTune(monkeypatch, most=1)
    search(given_by_a_user(data), storage=str(tmp_path), name="s")
    records = read_trials(Folder(str(tmp_path / "s")))
    records[1].state = "running"  # as a killed driver leaves it
    write_trials(Folder(str(tmp_path / "s")), records)
    tune.most = 99
    found = search(given_by_a_user(data, "search.trials=4"), storage=str(tmp_path), name="s")
    assert tune.ran == ["trial_000", "trial_001", "trial_002", "trial_003"]
    assert [trial.state for trial in found.trials] == ["done"] * 4
    assert found.trials[0] == records[0]


def test_results_that_a_killed_driver_did_not_write_are_written(
    data: str, tmp_path: Path, monkeypatch
) -> None:
    tune = FakeTune(monkeypatch)
    search(given_by_a_user(data), storage=str(tmp_path), name="s")
    for name in ("best.yaml", "search.csv", "report.html"):
        (tmp_path / "s" / name).unlink()
    search(given_by_a_user(data), storage=str(tmp_path), name="s")
    assert len(tune.ran) == 3
    assert all(
        (tmp_path / "s" / name).exists() for name in ("best.yaml", "search.csv", "report.html")
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("search.space.objective.beta={uniform: [0.5, 2]}", "search.space"),
        ("search.metric=kid", "search.metric"),
        ("search.seed=1", "search.seed"),
        ("search.scheduler=none", "search.scheduler"),
        ("training.images=960", "training.images: 960 here, 480 there"),
        ("objective.beta=2.0", "objective.beta: 2.0 here, 1.0 there"),
    ],
)
def test_another_search_of_the_same_name_is_refused(
    data: str, tmp_path: Path, monkeypatch, change: str, said: str
) -> None:
    tune = FakeTune(monkeypatch)
    search(given_by_a_user(data), storage=str(tmp_path), name="s")
    before = (tmp_path / "s" / RECORDS).read_text()
    with pytest.raises(ExperimentError, match="is the search of another experiment") as refused:
        search(given_by_a_user(data, change), storage=str(tmp_path), name="s")
    assert said in str(refused.value)
    assert len(tune.ran) == 3
    assert (tmp_path / "s" / RECORDS).read_text() == before


def test_what_may_change_when_a_search_goes_on(data: str, tmp_path: Path, monkeypatch) -> None:
    tune = FakeTune(monkeypatch, most=1)
    search(given_by_a_user(data), storage=str(tmp_path), name="s")
    tune.most = 2
    more = ("search.trials=2", "search.workers.cpus=2", "search.concurrent=1", "name=other")
    search(given_by_a_user(data, *more), storage=str(tmp_path), name="s")
    assert tune.ran == ["trial_000", "trial_001"]


def test_what_cannot_be_a_search_is_refused_and_leaves_nothing(
    data: str, tmp_path: Path, monkeypatch
) -> None:
    FakeTune(monkeypatch)
    storage = tmp_path / "searches"
    plain = Experiment.from_yaml(vae().to_yaml(), [data])
    with pytest.raises(Refused, match="does not say what to search"):
        search(plain, storage=str(storage), name="s")
    with pytest.raises(Refused, match="a name has no slash"):
        search(given_by_a_user(data), storage=str(storage), name="a/b")
    unmeasurable = given_by_a_user(data, "search.metric=loss/klc", "search.mode=min")
    with pytest.raises(Refused, match=r"^search\.metric: .*loss/klc"):
        search(unmeasurable, storage=str(storage), name="s")
    assert not (storage / "s").exists()

    search(given_by_a_user(data), storage=str(storage), name="s")
    with pytest.raises(Refused, match="leave out --fresh"):
        search(given_by_a_user(data), storage=str(storage), name="s", fresh=True)
    (storage / "run").mkdir()
    (storage / "run" / EXPERIMENT).write_text(plain.to_yaml())
    with pytest.raises(Refused, match="is a run, not a search"):
        search(given_by_a_user(data), storage=str(storage), name="run")


def test_a_search_of_which_all_failed_says_why(data: str, tmp_path: Path, monkeypatch) -> None:
    tune = FakeTune(monkeypatch)

    def fails(this: Study, *_: object) -> None:
        _, trial = started(this)
        judged(this, trial, {"images": 0, "failed": "it diverged"})
        this.on_trial_complete(0, [], trial)

    monkeypatch.setattr(module, "run_trials", fails)
    with pytest.raises(Failed, match="trial_000: it diverged"):
        search(given_by_a_user(data), storage=str(tmp_path), name="s")
    assert tune.ran == []


def test_an_interrupted_search_says_so(data: str, tmp_path: Path, monkeypatch) -> None:
    FakeTune(monkeypatch)
    monkeypatch.setattr(module, "run_trials", lambda this, *_: this.stop())
    found = search(given_by_a_user(data), storage=str(tmp_path), name="s")
    assert (found.interrupted, found.exit_code, found.best) == (True, 130, None)
    assert not (tmp_path / "s" / STOP).exists()
    with pytest.raises(Failed, match="no trial was judged"):
        _ = found.best_run
    assert Searched("/s", "elbo", "max", []).exit_code == 0
