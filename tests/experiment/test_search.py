"""What is searched: ranges, refusals that name the path, values that are functions of a number."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_gen.evaluation.metrics import OF_SAMPLES
from ray_gen.experiment import Experiment, ExperimentError, differences
from ray_gen.experiment.search import Range, Search, SearchWorkers, better_of_score
from tests.helpers import gan, vae

RATE = "search.space.optimizers.autoencoder.learning_rate={loguniform: [1e-5, 1e-2]}"
SIZE = "search.space.objective.latent_size={choice: [8, 16]}"
RATES = "search.space.optimizers.generator.learning_rate={loguniform: [1e-5, 1e-2]}"


def two(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    """A lower and a higher one."""
    return st.tuples(values, values).filter(lambda ends: ends[0] < ends[1])


numbers = two(st.floats(-1e9, 1e9))
positive = two(st.floats(1e-300, 1e300))
whole = two(st.integers(-1000, 1000))
counts = two(st.integers(1, 10**6))
choices = st.lists(
    st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers(), max_size=2)),
    min_size=1,
    max_size=5,
    unique_by=repr,
)
ranges = st.one_of(
    st.builds(lambda ends: Range(uniform=ends), numbers),
    st.builds(lambda ends: Range(loguniform=ends), positive),
    st.builds(lambda ends: Range(randint=ends), whole),
    st.builds(lambda ends: Range(lograndint=ends), counts),
    st.builds(lambda values: Range(choice=tuple(values)), choices),
)


class Drawing(Random):
    """A random generator whose every real number is `number`."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self._number = number

    def random(self) -> float:
        return self._number

    def getrandbits(self, k: int, /) -> int:
        return super().getrandbits(k)  # else randrange calls random() for ever


def lies_in(value: Any, values: Range) -> bool:
    if values.choice is not None:
        return value in values.choice
    assert values.bounds is not None
    low, high = values.bounds
    if values.kind.endswith("randint"):
        return type(value) is int and low <= value < high
    return type(value) is float and low <= value <= high


@given(
    ranges,
    st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 5e-324, math.nextafter(1.0, 0.0)]),
)
def test_every_draw_lies_in_its_range(values: Range, number: float) -> None:
    assert lies_in(values.draw(Drawing(number)), values)


@given(ranges, st.one_of(st.floats(-1e12, 1e12), st.integers(-(10**12), 10**12)))
def test_the_nearest_value_lies_in_the_range_and_is_nearest_to_itself(
    values: Range, value: float
) -> None:
    if values.choice is not None:
        value = values.choice[int(value) % len(values.choice)]
    near = values.nearest(value)
    assert lies_in(near, values)
    assert values.nearest(near) == near
    if lies_in(value, values):
        assert near == value


@given(ranges)
def test_what_stands_for_a_range_lies_in_it(values: Range) -> None:
    assert values.examples()
    assert all(lies_in(value, values) for value in values.examples())


@given(ranges)
def test_a_range_survives_its_yaml(values: Range) -> None:
    given = yaml.safe_load(yaml.safe_dump(values.model_dump(mode="json")))
    assert list(given) == [values.kind]
    assert Range.model_validate(given) == values


def test_whole_numbers_are_drawn_equally_often_below_zero_too() -> None:
    random = Random(0)
    counts = Counter(Range(randint=(-3, 3)).draw(random) for _ in range(6000))
    assert sorted(counts) == [-3, -2, -1, 0, 1, 2]
    assert all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize("kind", ["loguniform", "lograndint"])
def test_logarithms_are_drawn_equally_often(kind: str) -> None:
    random = Random(0)
    drawn = [Range.model_validate({kind: [1, 10_000]}).draw(random) for _ in range(4000)]
    decades = Counter(int(math.log10(value)) for value in drawn)
    assert sorted(decades) == [0, 1, 2, 3]
    assert all(850 < count < 1150 for count in decades.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a range is one of uniform, loguniform, randint, lograndint, choice"),
        ({"uniform": [0, 1], "choice": [1]}, "a range is one of"),
        ({"choice": []}, "choice: is empty"),
        ({"choice": [8, 16, 8]}, "choice: .*8 .*twice"),
        ({"choice": [[1], [2], [1]]}, r"choice: .*\[1\] .*twice"),
        ({"uniform": [1, 1]}, "uniform: is empty, 1.0 is not below 1.0"),
        ({"uniform": [2, 1]}, "uniform: is empty"),
        ({"randint": [4, 4]}, "randint: is empty, 4 is not below 4"),
        ({"loguniform": [0, 1]}, "loguniform: 0.0 has no logarithm; begin above 0"),
        ({"loguniform": [-1, 1]}, "loguniform: -1.0 has no logarithm"),
        ({"lograndint": [0, 9]}, "lograndint: 0 has no logarithm"),
        ({"randint": [1.5, 4]}, "integer"),
        ({"uniform": [1]}, "uniform"),
        ({"uniform": [0, float("inf")]}, "finite"),
        ({"loguniforn": [1, 2]}, "loguniforn"),
    ],
)
def test_a_range_that_is_none_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Range.model_validate(given)


# An experiment with a search.


@pytest.mark.parametrize(
    "experiment",
    [
        vae(RATE, SIZE),
        vae(SIZE, "search.metric=sliced_wasserstein", "search.algorithm=grid", "search.seed=3"),
        vae("search.space.networks.encoder.hidden_sizes={choice: [[32], [64, 32]]}"),
        vae(SIZE, "search.workers={count: 1, gpu: 0.25, cpus: 2}", "search.concurrent=3"),
        gan(RATES, "search.scheduler=pbt", "search.metric=loss/generator", "search.mode=min"),
        vae("search.space={training.precision: {choice: [fp32, bf16]}}", "search.trials=3"),
        vae(RATE, "lineage=[{images: 48, values: {objective.beta: 2.0}, source: trial_001}]"),
    ],
)
def test_an_experiment_with_a_search_survives_its_yaml(experiment: Experiment) -> None:
    text = experiment.to_yaml()
    assert Experiment.from_yaml(text) == experiment
    assert Experiment.from_yaml(text).to_yaml() == text
    assert experiment.absolute() == experiment


def test_the_keys_of_the_space_are_dotted_paths_in_assignments_too() -> None:
    inline = "{objective.latent_size: {choice: [8, 16]}, objective.beta: {uniform: [0.5, 2]}}"
    whole = vae(f"search={{space: {inline}}}", "search.trials=3")
    by_path = vae(SIZE, "search.space.objective.beta={uniform: [0.5, 2]}", "search.trials=3")
    assert whole == by_path
    assert whole.search is not None
    assert list(whole.search.space) == ["objective.latent_size", "objective.beta"]
    assert whole.search.trials == 3
    again = Experiment.from_yaml(whole.to_yaml(), ["search.space.objective.beta={uniform: [0, 9]}"])
    assert again.search is not None
    assert again.search.space["objective.beta"].uniform == (0, 9)
    assert again.search.space["objective.latent_size"].choice == (8, 16)


def test_a_search_changes_nothing_of_the_run() -> None:
    assert list(differences(vae(), vae(RATE, SIZE))) == []
    assert vae(RATE).model_copy(update={"search": None}) == vae()


@pytest.mark.parametrize(
    ("space", "said"),
    [
        # No such field.
        ("objective.latent_sise={choice: [8]}", "did you mean objective.latent_size?"),
        ("objektive.latent_size={choice: [8]}", "did you mean objective"),
        (
            "optimizers.autoencodr.learning_rate={choice: [0.1]}",
            "there is no such field; did you mean optimizers.autoencoder.learning_rate?",
        ),
        ("objective.discriminator_steps={choice: [1]}", "there is no such field"),
        ("seed.more={choice: [1]}", "there is no such field"),
        ("networks.encoder.wdth={choice: [1]}", "there is no such field"),
        # A value that its type refuses, at any place of the range.
        ("objective.latent_size={uniform: [2, 8]}", "uniform: takes whole numbers; use randint"),
        ("objective.latent_size={loguniform: [2, 8]}", "whole numbers; use lograndint"),
        ("objective.beta=1.0", "a range is written as e.g."),
        ("objective.beta={uniform: []}", "uniform: takes two numbers"),
        ("search.trials={choice: [1, 2]}", "fields of `search` cannot be searched"),
        ("learning_rate={uniform: [1, 2]}", "did you mean optimizers.autoencoder.learning_rate"),
        ("objective.latent_size={choice: [8, large]}", "'large'"),
        ("objective.latent_size={randint: [0, 8]}", "greater than 0"),
        ("objective.beta={uniform: [-1, 1]}", "greater than or equal to 0"),
        ("training.precision={choice: [fp32, fp8]}", "'fp8'"),
        ("networks.encoder.kind={choice: [mlp, mpl]}", "did you mean mlp?"),
        # A value that another field forbids.
        ("training.global_batch_size={choice: [24, 28]}", "6 does not divide"),
        ("objective.likelihood={choice: [bernoulli, gaussian]}", "is of grey values"),
        # Nothing to search.
        ("objective.beta={uniform: [2, 1]}", "is empty"),
        ("objective.beta={unifrom: [1, 2]}", "did you mean"),
        ("objective.beta=[1, 2]", "search.space.objective.beta"),
        ("training.report_every_images={choice: [100, 200]}", "does not change the training"),
        ("training.images={choice: [240, 480]}", "does not change the training"),
        ("training.micro_batch_size={choice: [6, 12]}", "does not change the training"),
        ("workers.count={choice: [1, 2]}", "does not change the training"),
        ("checkpoints.keep={choice: [2, 3]}", "does not change the training"),
        ("evaluation.count={choice: [10, 20]}", "does not change the training"),
        ("objective.beta={choice: [1.0]}", "all values equal the experiment's own"),
        # Other data.
        ("data.held_out_fraction={choice: [0.1, 0.2]}", "train on the same data"),
        ("data.image_size={choice: [[8, 8], [16, 16]]}", "train on the same data"),
        ("data={choice: ['folder:/here', 'folder:/there']}", "train on the same data"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_path(space: str, said: str) -> None:
    path = re.escape("search.space." + re.split("=", space)[0])
    binary = ["objective.binarize=true"] if "likelihood" in space else []
    with pytest.raises(ExperimentError) as refused:
        vae(*binary, f"search.space.{space}")
    for problem in refused.value.problems:
        assert re.match(path, problem), problem
    assert any(said in problem for problem in refused.value.problems), refused.value


def test_a_custom_networks_options_need_not_be_given_before() -> None:
    mine = "{kind: custom, target: 'tests.custom_objectives:FeatureDiscriminator'}"
    found = gan(
        f"networks.discriminator={mine}",
        "search.space.networks.discriminator.options.width={choice: [4, 8]}",
    )
    assert found.search is not None


@pytest.mark.parametrize(
    "space",
    [
        "data.flip={choice: [true, false]}",
        "seed={randint: [0, 1000]}",
        "training.global_batch_size={choice: [24, 48]}",
        "networks.encoder={choice: [{kind: mlp}, {kind: mlp, hidden_sizes: [8]}]}",
        "networks.encoder.kind={choice: [mlp, conv]}",
        "optimizers.autoencoder.clip_norm={choice: [null, 1.0]}",
        "optimizers.autoencoder.schedule.warmup_images={choice: [0, 100]}",
    ],
)
def test_what_makes_another_run_can_be_searched(space: str) -> None:
    assert vae(f"search.space.{space}").search is not None


def test_trials_have_the_workers_of_the_search_and_not_of_the_experiment() -> None:
    """Eight workers of a plain run would not share the 4 groups of the smaller batch."""
    batches = "search.space.training.global_batch_size={choice: [24, 48]}"
    assert vae("training.global_batch_size=48", "workers.count=8", batches).search is not None
    with pytest.raises(ExperimentError, match="8 workers cannot share 4 groups"):
        vae("training.global_batch_size=48", "search.workers.count=8", batches)
    with pytest.raises(ExperimentError, match="8 workers cannot share 4 groups"):
        vae("search.workers.count=8", SIZE)


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        (lambda: vae(SIZE, "search.metric=elbow"), "no score 'elbow'; did you mean elbo?"),
        (lambda: vae(SIZE, "search.metric=zzz"), "no score 'zzz'; there are elbo, "),
        (lambda: gan(RATES, "search.metric=elbo"), "search.metric: this experiment has no score"),
        (lambda: gan(RATES, "search.metric=loss/generator"), "search.mode: is unknown for loss/"),
        (lambda: vae(SIZE, "search.metric=kl"), "search.mode: is unknown for kl; set it to min"),
        (lambda: vae(SIZE, "search.metric=nearest_neighbour"), "search.mode: is unknown for near"),
        (lambda: vae(SIZE, "search.mode=min"), "search.mode: must be max for elbo"),
        (
            lambda: vae(SIZE, "search.metric=fid", "search.mode=max"),
            "search.mode: must be min for fid",
        ),
        (lambda: vae(SIZE, "evaluation.placement=beside"), "evaluation.placement: a search judges"),
        (lambda: vae(SIZE, "search.every_images=300"), "search.every_images: with 300, a trial of"),
        (lambda: vae("search.trials=3"), "search.space: is required"),
        (lambda: vae("search.space={}"), "space: names no field"),
        (lambda: vae(SIZE, "search.trails=3"), "did you mean search.trials?"),
        (lambda: vae(SIZE, "search.trials=0"), "search.trials"),
        (lambda: vae(SIZE, "search.workers.gpu=2"), "share of one GPU"),
        (lambda: vae(SIZE, "search.workers.gpu=-0.5"), "share of one GPU"),
        (
            lambda: vae(RATE, "search.algorithm=grid"),
            "search: space.optimizers.autoencoder.learning_rate: a grid needs choice or randint, "
            "not loguniform",
        ),
        (
            lambda: gan(RATES, "search.scheduler=pbt", "search.algorithm=optuna"),
            "pbt needs all values at the start",
        ),
        (
            lambda: gan(RATES, "search.scheduler=pbt", "search.trials=1"),
            "needs at least two",
        ),
        (
            lambda: vae(
                "search.space.objective.beta={choice: [2.0]}",
                "search={scheduler: pbt, algorithm: grid, space: {objective.beta: {choice: [2]}}}",
            ),
            "needs at least two",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(experiment: Any, said: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(said)):
        experiment()


@pytest.mark.parametrize(
    ("metric", "mode", "expected"),
    [
        (None, None, ("elbo", "max")),
        ("kl", "min", ("kl", "min")),
        ("kid", None, ("kid", "min")),
        ("recall", None, ("recall", "max")),
        ("log_likelihood_bound", None, ("log_likelihood_bound", "max")),
        ("loss/elbo", "min", ("loss/elbo", "min")),
    ],
)
def test_the_metric_says_which_is_better_where_it_knows(metric, mode, expected) -> None:
    given = [f"search.metric={metric}" if metric else "", f"search.mode={mode}" if mode else ""]
    found = vae(SIZE, *filter(None, given))
    assert found.search is not None
    assert (
        found.search_metric,
        found.search.mode or better_of_score(found.search_metric),
    ) == expected


def test_a_gan_is_never_judged_by_its_loss_unless_asked() -> None:
    assert gan(RATES).search_metric == "sliced_wasserstein"
    assert all(
        better_of_score(name) is not None or name == "nearest_neighbour" for name in OF_SAMPLES
    )


def test_population_based_training_changes_only_what_can_change_in_mid_run() -> None:
    live = {
        "optimizers.generator.learning_rate": "{loguniform: [1e-5, 1e-2]}",
        "optimizers.discriminator.clip_norm": "{choice: [null, 1.0]}",
        "objective.discriminator_steps": "{randint: [1, 6]}",
        "objective.r1_weight": "{loguniform: [0.01, 100]}",
        "objective.r1_every": "{choice: [1, 16]}",
        "objective.label_smoothing": "{uniform: [0, 0.2]}",
        "optimizers.generator.betas": "{choice: [[0.5, 0.9], [0.5, 0.99]]}",
        "training.ema_half_life_images": "{loguniform: [100, 1000]}",
    }
    space = [f"search.space.{path}={values}" for path, values in live.items()]
    assert gan(*space, "search.scheduler=pbt").search is not None
    fixed = {
        "objective.latent_size": "{choice: [8, 16]}",
        "networks.generator.hidden_sizes": "{choice: [[8], [16]]}",
        "optimizers.generator.eps": "{choice: [1e-8, 1e-6]}",
        "training.global_batch_size": "{choice: [24, 48]}",
        "seed": "{randint: [0, 9]}",
    }
    for path, values in fixed.items():
        with pytest.raises(ExperimentError) as refused:
            gan(f"search.space.{path}={values}", "search.scheduler=pbt")
        (problem,) = refused.value.problems
        assert problem.startswith(f"search.space.{path}: pbt copies weights")
        assert gan(f"search.space.{path}={values}").search is not None


def test_population_based_training_does_not_mix_models_with_and_without_parts() -> None:
    path, pbt = "search.space.objective.lecam_weight", "search.scheduler=pbt"
    with pytest.raises(ExperimentError) as refused:
        gan(f"{path}={{choice: [0, 0.1, 0.3]}}", pbt)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{path}: pbt copies weights into running trials, and trials with 0")
    assert gan(f"{path}={{choice: [0.1, 0.3]}}", pbt).search is not None
    assert gan(f"{path}={{choice: [0, 0.1, 0.3]}}").search is not None


# Values by number.


def space_of(**values: dict[str, Any]) -> Search:
    return Search.model_validate(
        {"space": {"a": {"uniform": [0, 1]}, "b": {"randint": [0, 9]}}, **values}
    )


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_values_are_a_function_of_the_seed_and_the_number(seed: int, number: int) -> None:
    search = space_of(algorithm="random", seed=seed)
    again = space_of(algorithm="random", seed=seed, trials=99, scheduler="none")
    assert search.values_of(number) == again.values_of(number)
    assert search.values_of(number) != search.values_of(number + 1)
    assert search.values_of(number) != space_of(algorithm="random", seed=seed + 1).values_of(number)


def test_values_are_the_same_in_another_process() -> None:
    """Python salts the hashes of strings anew in every process."""
    code = (
        "from ray_gen.experiment.search import Search\n"
        "print(Search(space={'a': {'uniform': [0, 1]}}, algorithm='random').values_of(7))"
    )
    values = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert values[0] == values[1] != ""


def test_every_value_that_is_drawn_is_one_that_the_experiment_takes() -> None:
    found = gan(
        RATES,
        "search.space.objective.discriminator_steps={randint: [1, 6]}",
        "search.space.objective.latent_size={lograndint: [1, 64]}",
        "search.space.objective.label_smoothing={uniform: [0, 0.2]}",
        "search.algorithm=random",
    )
    assert found.search is not None
    bare = found.model_copy(update={"search": None})
    for number in range(10):
        values = found.search.values_of(number)
        changed = bare.with_values(values)
        assert {path: changed.value_at(path) for path in values} == values


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.one_of(
            st.lists(st.integers(), min_size=1, max_size=4, unique=True).map(
                lambda values: {"choice": values}
            ),
            two(st.integers(-4, 4)).map(lambda ends: {"randint": ends}),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_grid_has_every_combination_once(space: dict[str, Any]) -> None:
    search = Search.model_validate({"space": space, "algorithm": "grid"})
    points = [search.values_of(number) for number in range(search.total)]
    assert all(list(point) == list(space) for point in points)
    assert len({tuple(point.values()) for point in points}) == len(points)
    sides = [
        given["choice"] if "choice" in given else range(*given["randint"])
        for given in space.values()
    ]
    assert len(points) == math.prod(map(len, sides))
    assert all(
        value in side for point in points for value, side in zip(point.values(), sides, strict=True)
    )


def test_a_grid_changes_its_last_path_fastest() -> None:
    search = Search.model_validate(
        {"space": {"a": {"choice": [1, 2]}, "b": {"randint": [0, 2]}}, "algorithm": "grid"}
    )
    assert [tuple(search.values_of(n).values()) for n in range(4)] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]


def test_a_large_grid_is_counted_without_being_written_down() -> None:
    space = {name: {"randint": [0, 1000]} for name in "abcdef"}
    with pytest.raises(ValueError, match=r"a grid of 1,000,000,000,000,000,000 trials .*remove"):
        Search.model_validate({"space": space, "algorithm": "grid"})
    space = {name: {"randint": [0, 21]} for name in "abc"}
    search = Search.model_validate({"space": space, "algorithm": "grid"})
    assert search.total == 21**3
    assert set(search.values_of(search.total - 1).values()) == {20}


@pytest.mark.parametrize("algorithm", ["auto", "random", "optuna"])
def test_where_there_are_few_points_each_is_tried_once(algorithm: str) -> None:
    space = {"a": {"choice": ["x", "y"]}, "b": {"lograndint": [1, 4]}}
    search = Search.model_validate({"space": space, "algorithm": algorithm, "trials": 16})
    assert (search.total, search.learns) == (6, False)
    points = [tuple(search.values_of(n).values()) for n in range(6)]
    assert sorted(points) == [(a, b) for a in "xy" for b in (1, 2, 3)]
    few = Search.model_validate({"space": space, "algorithm": "random", "trials": 4})
    assert (few.total, few.learns) == (4, False)
    assert [tuple(few.values_of(n).values()) for n in range(4)] == points[:4]


def test_a_population_may_have_doubles() -> None:
    space = {"a": {"choice": ["x", "y"]}}
    search = Search.model_validate({"space": space, "scheduler": "pbt", "trials": 8})
    assert search.total == 8


def test_only_optuna_learns_from_earlier_trials() -> None:
    learns = {
        (algorithm, scheduler): space_of(algorithm=algorithm, scheduler=scheduler).learns
        for algorithm in ("auto", "random", "optuna")
        for scheduler in ("none", "asha", "median", "pbt")
        if (algorithm, scheduler) != ("optuna", "pbt")
    }
    assert {kind for kind, learn in learns.items() if not learn} == {
        ("auto", "pbt"),
        *(("random", scheduler) for scheduler in ("none", "asha", "median", "pbt")),
    }


def test_workers_take_a_part_of_a_gpu_or_a_whole_one() -> None:
    assert SearchWorkers.model_validate({"gpu": 0.125}).gpu == 0.125
    assert SearchWorkers.model_validate({"gpu": 1}).gpu == 1.0
    assert SearchWorkers.model_validate({"gpu": 0}).gpu == 0
    assert SearchWorkers.model_validate({"gpu": "auto"}).gpu == "auto"


def test_a_search_is_checked_without_ray_or_torch() -> None:
    code = (
        "import sys\n"
        "from ray_gen.recipes import recipe\n"
        "recipe('vae-mnist5k', 'search.space.objective.latent_size={choice: [8, 16]}')\n"
        "assert not {'ray', 'torch', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_two_workers_of_a_trial_share_no_gpu() -> None:
    assert vae(SIZE, "search.workers={count: 2, gpu: 1}").search is not None
    with pytest.raises(ExperimentError, match=r"search\.workers\.gpu: two workers"):
        vae(SIZE, "search.workers={count: 2, gpu: 0.5}")
