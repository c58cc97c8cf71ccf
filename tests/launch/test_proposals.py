"""What is tried next: first interrupted trials, then what Optuna proposes from ended trials."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ray_gen.experiment.search import Search
from ray_gen.launch.search import proposals as module
from ray_gen.launch.search.proposals import Proposer
from ray_gen.searches.records import Trial

SPACE = {
    "rate": {"loguniform": [1e-5, 1e-1]},
    "size": {"lograndint": [1, 65]},
    "steps": {"randint": [1, 6]},
    "beta": {"uniform": [0.5, 2]},
    "hidden": {"choice": [[32], [64, 32], None, "deep"]},
}


class Study:
    """Begins trials as a search does."""

    def __init__(self, before: list[Trial] | None = None, **settings: Any) -> None:
        self.search = Search.model_validate({"space": SPACE, "trials": 6, **settings})
        self.trials = before or []
        self.ends = False
        self.numbers = iter(range(1000))
        self.proposer = Proposer(self.search, "min", self.trials, self.begin)

    def begin(self, values: Any) -> Trial | None:
        if self.ends:
            return None
        self.trials.append(Trial(f"trial_{len(self.trials):03d}", dict(values)))
        return self.trials[-1]

    def suggested(self) -> tuple[str, Any]:
        """Tune's name of the next trial, and its configuration."""
        trial_id = f"id{next(self.numbers)}"
        found = self.proposer.suggest(trial_id)
        return trial_id, found if found == Searcher.FINISHED else found["trial"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any] | str, float | None]]:
    """What Optuna is told: a trial (its values, or Tune's name of it), and its score, if any."""
    known: list[tuple[dict[str, Any] | str, float | None]] = []

    class Told(OptunaSearch):
        def add_evaluated_point(self, parameters: dict, value: float, *given: Any) -> None:
            known.append((parameters, value))
            super().add_evaluated_point(parameters, value, *given)

        def on_trial_complete(
            self, trial_id: str, result: dict | None = None, error: bool = False
        ) -> None:
            known.append((trial_id, None if error or result is None else result["score"]))
            super().on_trial_complete(trial_id, result, error)

    monkeypatch.setattr(module, "OptunaSearch", Told)
    return known


def values(number: int) -> dict[str, Any]:
    given = {"rate": 1e-3 * (number + 1), "size": 2**number, "steps": 1 + number % 5}
    return {**given, "beta": 1.0, "hidden": SPACE["hidden"]["choice"][number % 4]}


def coded(number: int) -> dict[str, Any]:
    """`values` for Optuna, which knows a choice by its index."""
    return {**values(number), "hidden": number % 4}


def test_new_trials_come_until_there_are_enough() -> None:
    study = Study()
    found = [study.suggested()[1] for _ in range(6)]
    assert [trial["name"] for trial in found] == [f"trial_{n:03d}" for n in range(6)]
    assert study.suggested()[1] == Searcher.FINISHED
    assert len(study.trials) == 6
    for trial in found:
        given = trial["values"]
        assert list(given) == list(SPACE)
        assert 1e-5 <= given["rate"] <= 1e-1
        assert type(given["size"]) is int
        assert 1 <= given["size"] < 65
        assert type(given["steps"]) is int
        assert 1 <= given["steps"] < 6
        assert given["hidden"] in SPACE["hidden"]["choice"]
    assert len({trial["values"]["rate"] for trial in found}) == 6


def test_all_values_of_a_range_are_proposed() -> None:
    study = Study(space={"steps": {"randint": [1, 4]}}, trials=40)
    assert {study.suggested()[1]["values"]["steps"] for _ in range(40)} == {1, 2, 3}


def test_what_was_cut_off_is_tried_first_and_with_its_own_values() -> None:
    before = [
        Trial("trial_000", values(0), "done", score=3.0, images=480),
        Trial("trial_001", values(1), "waiting", images=96),
        Trial("trial_002", values(2), "failed", "diverged"),
        Trial("trial_003", values(3), "waiting"),
    ]
    study = Study(before)
    found = [study.suggested()[1] for _ in range(5)]
    assert found[:2] == [
        {"name": "trial_001", "values": values(1)},
        {"name": "trial_003", "values": values(3)},
    ]
    assert [trial["name"] for trial in found[2:4]] == ["trial_004", "trial_005"]
    assert found[4] == Searcher.FINISHED


def test_what_ended_is_known_to_optuna(told) -> None:
    before = [
        Trial("trial_000", values(0), "done", score=3.0),
        Trial("trial_001", values(1), "stopped", score=5.0),
        Trial("trial_002", values(2), "failed", "diverged", score=0.0),
        Trial("trial_003", values(3), "waiting", score=1.0),
        Trial("trial_004", values(4), "done"),
    ]
    Study(before)
    assert told == [(coded(0), 3.0), (coded(1), 5.0)]


def test_what_ends_is_told_to_optuna_whether_it_is_new_or_was_cut_off(told) -> None:
    study = Study([Trial("trial_000", values(0), "waiting"), Trial("trial_001", values(1))])
    cut_off, _ = study.suggested()
    failing, _ = study.suggested()
    new, _ = study.suggested()
    broken, _ = study.suggested()
    study.proposer.on_trial_complete(cut_off, {"score": 2.0, "images": 480})
    study.proposer.on_trial_complete(failing, {"failed": "diverged", "score": 1.0})
    study.proposer.on_trial_complete(new, {"score": 4.0, "images": 480})
    study.proposer.on_trial_complete(broken, None, error=True)
    assert told == [(coded(0), 2.0), (new, 4.0), (broken, None)]


def test_a_search_that_is_to_end_gets_no_new_trials() -> None:
    study = Study()
    study.suggested()
    study.ends = True
    assert study.suggested()[1] == Searcher.FINISHED
    assert len(study.trials) == 1


def test_optuna_learns_from_what_it_knows() -> None:
    """20 trials, better with a lower rate; then 10 new ones."""
    before = [
        Trial(f"trial_{n:03d}", {**values(n % 6), "rate": 10 ** (-5 + n / 5)}, "done", score=n)
        for n in range(20)
    ]
    study = Study(before, trials=30)
    rates = sorted(study.suggested()[1]["values"]["rate"] for _ in range(10))
    assert rates[5] < 1e-3  # the middle of the range, where chance has it


def test_the_same_search_proposes_the_same() -> None:
    first, again, other = Study(), Study(), Study(seed=1)
    assert first.suggested() == again.suggested() != other.suggested()
