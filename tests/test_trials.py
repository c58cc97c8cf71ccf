"""The records of a search: what is written is read again, and the best trial is the best."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gen.errors import Refused
from ray_gen.searches.records import (
    RECORDS,
    TRIALS,
    Trial,
    as_csv,
    best_trial,
    ranked,
    read_trials,
    score_of,
    write_trials,
)
from ray_gen.storage import Folder

values = st.dictionaries(
    st.text(min_size=1),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
        st.lists(st.integers(), max_size=3),
    ),
    max_size=3,
)
trials = st.builds(
    Trial,
    name=st.text(min_size=1),
    values=values,
    state=st.sampled_from(["waiting", "running", "done", "stopped", "failed"]),
    reason=st.none() | st.text(),
    images=st.integers(0, 10**12),
    score=st.none() | st.floats(allow_nan=False),
    seconds=st.floats(0, 1e9),
    history=st.lists(st.tuples(st.integers(1, 10**12), st.floats(allow_nan=False)), max_size=3),
)


@given(st.lists(trials, max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory, given: list[Trial]) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("search")))
    write_trials(folder, given)
    assert read_trials(folder) == given


def test_a_search_begins_without_records(tmp_path: Path) -> None:
    assert read_trials(Folder(str(tmp_path))) == []
    assert read_trials(Folder(str(tmp_path / "nowhere"))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged; choose another --name"),
        ('[{"name": "trial_000", "val', "is damaged"),
        ("null", "another version"),
        ("7", "another version"),
        ('{"name": "trial_000"}', "another version"),
        ('[{"name": "trial_000"}]', "another version"),
        ('["trial_000"]', "another version"),
        ('[{"name": "trial_000", "values": {}, "history": [[1]]}]', "another version"),
    ],
)
def test_damaged_records_are_refused_with_their_path(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / RECORDS).write_text(text)
    with pytest.raises(Refused, match=said) as refused:
        read_trials(Folder(str(tmp_path)))
    assert str(tmp_path / RECORDS) in str(refused.value)


def test_lost_records_are_refused_where_there_are_runs(tmp_path: Path) -> None:
    """New trials of the same names would go on from the runs of others."""
    (tmp_path / TRIALS / "trial_000").mkdir(parents=True)
    with pytest.raises(Refused, match=r"trials\.json: is missing"):
        read_trials(Folder(str(tmp_path)))


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_text(json.dumps([{"name": "a", "values": {"x": 1}, "more": 3}]))
    assert read_trials(Folder(str(tmp_path))) == [Trial("a", {"x": 1})]


def trial(name: str, score: float | None, state: str = "done") -> Trial:
    return Trial(name, {}, state, score=score)  # type: ignore[arg-type]


MIXED = [
    trial("unjudged", None, "running"),
    trial("one", 1.0),
    trial("broken", 0.0, "failed"),
    trial("three", 3.0, "stopped"),
    trial("minus", -2.0),
    trial("nan", math.nan),
    trial("early", None, "failed"),
    trial("infinite", math.inf),
]


def test_the_best_trial_is_the_first_of_the_ranked() -> None:
    lowest = [t.name for t in ranked(MIXED, "min")]
    highest = [t.name for t in ranked(MIXED, "max")]
    rest = ["unjudged", "broken", "nan", "early", "infinite"]
    assert lowest == ["minus", "one", "three", *rest]
    assert highest == ["three", "one", "minus", *rest]
    best = {mode: best_trial(MIXED, mode) for mode in ("min", "max")}
    assert best == {"min": MIXED[4], "max": MIXED[3]}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_failed_or_was_not_judged_is_not_the_best(mode) -> None:
    assert best_trial([], mode) is None
    worthless = [t for t in MIXED if t.name in ("unjudged", "broken", "nan", "early", "infinite")]
    assert best_trial(worthless, mode) is None
    assert ranked(worthless, mode) == worthless


@given(st.lists(st.builds(trial, st.text(), st.none() | st.floats()), max_size=8))
def test_ranking_loses_nobody_and_turns_round_with_the_mode(given: list[Trial]) -> None:
    for mode in ("min", "max"):
        order = ranked(given, mode)
        assert sorted(map(id, order)) == sorted(map(id, given))
        scores = [t.score for t in order if t.score is not None and math.isfinite(t.score)]
        assert scores == sorted(scores, reverse=mode == "max")
        best = best_trial(given, mode)
        assert best is (order[0] if scores else None)


def test_of_equals_the_first_one_is_the_best() -> None:
    equal = [trial("a", 1.0), trial("b", 1.0)]
    assert best_trial(equal, "min") is best_trial(equal, "max") is equal[0]


def test_a_score_is_the_objectives_own_first() -> None:
    metrics = {"elbo": 1.0, "evaluation/elbo": 2.0, "held_out/elbo": 3.0, "loss/generator": 4.0}
    assert score_of(metrics, "elbo") == 3.0
    del metrics["held_out/elbo"]
    assert score_of(metrics, "elbo") == 2.0
    assert score_of(metrics, "loss/generator") == 4.0
    assert score_of(metrics, "generator") is None


def test_the_table_has_a_row_for_each_trial() -> None:
    given = [
        Trial("a", {"x": 1e-05, "y": [8, 8]}, "done", None, 480, 0.1234567890123, 1.26),
        Trial("b", {"x": 2, "z": None}, "failed", 'says "no", and\nleaves', 0, None),
    ]
    header, *rows = csv.reader(io.StringIO(as_csv(given, "kid")))
    assert header == ["trial", "state", "kid", "images", "seconds", "x", "y", "z", "reason"]
    assert rows == [
        ["a", "done", "0.1234567890123", "480", "1.3", "1e-05", "[8, 8]", "", ""],
        ["b", "failed", "", "0", "0.0", "2", "", "", 'says "no", and\nleaves'],
    ]
    assert as_csv([], "kid").splitlines() == ["trial,state,kid,images,seconds,reason"]
