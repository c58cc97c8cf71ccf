"""What is told of a search while it runs."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gen.launch.search import board as module
from ray_gen.launch.search.board import ROWS, Board, short_names
from ray_gen.searches.records import Trial


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["objective.latent_size"], ["latent_size"]),
        (["objective.latent_size", "objective.beta"], ["latent_size", "beta"]),
        (
            ["optimizers.generator.learning_rate", "optimizers.discriminator.learning_rate"],
            ["generator.learning_rate", "discriminator.learning_rate"],
        ),
        (["seed"], ["seed"]),
        (["seed", "a.seed", "b.a.seed"], ["seed", "a.seed", "b.a.seed"]),
        (["a.kind", "b.kind", "c.size"], ["a.kind", "b.kind", "size"]),
        ([], []),
    ],
)
def test_paths_are_shortened_as_far_as_they_differ(paths: list[str], names: list[str]) -> None:
    assert list(short_names(paths).values()) == names


@given(
    st.lists(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join),
        unique=True,
        max_size=6,
    )
)
def test_short_names_are_ends_of_their_paths_and_differ(paths: list[str]) -> None:
    names = short_names(paths)
    assert list(names) == paths
    assert all(f".{path}".endswith(f".{name}") for path, name in names.items())
    assert len(set(names.values())) == len(paths)


TRIALS = [
    Trial("trial_000", {"rate": 1e-3}, "done", images=1000, score=2.0),
    Trial("trial_001", {"rate": 1e-4}, "stopped", images=500, score=1.0),
    Trial("trial_002", {"rate": 1e-5}, "failed", "diverged", images=100, score=9.0),
    Trial("trial_003", {"rate": 1e-2}, "running", images=200, score=1.5),
    Trial("trial_004", {"rate": 1e-1}, "running"),
]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which a test moves."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_and_only_for_news(clock, capsys) -> None:
    with Board(8, 1000, "elbo", "max", show=True) as board:
        board.begin([])
        board.show(TRIALS, {})
        assert capsys.readouterr().err == ""  # too early
        clock[0] += module.LOG_SECONDS
        board.show(TRIALS, {"trial_003": 400, "trial_004": 100})
        told = capsys.readouterr().err
        # 2100 images in 10 s; 5 trials of 750 are open, and 500 images of them are done.
        assert told == (
            "3/8 trials, 2 running, 1 stopped early, 1 failed, best trial_000: elbo 2, some 15 s "
            "left\n"
        )
        clock[0] += module.LOG_SECONDS / 2
        board.show([*TRIALS, TRIALS[0]], {})
        assert capsys.readouterr().err == ""
        clock[0] += module.LOG_SECONDS / 2
        board.show([*TRIALS, TRIALS[0]], {})
        assert "4/8 trials" in capsys.readouterr().err


def test_brackets_and_colons_are_printed_as_they_are(monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    values = {"augment": "[color, translation]", "path": "~/[/images] of :cat:"}
    with Board(8, 1000, "elbo", "max", show=True) as board:
        board.say("[color, translation] in ~/[/images] of :cat:")
        board.show([Trial("trial_000", values, "running")], {})
    told = capsys.readouterr().err
    assert "[color, translation] in ~/[/images] of :cat:" in told
    assert told.count("[color, translation]") > 1
    assert told.count("~/[/images] of :cat:") > 1


def test_the_same_is_not_told_again(clock, capsys) -> None:
    board = Board(8, 1000, "elbo", "max", show=True)
    for _ in range(3):
        clock[0] += module.LOG_SECONDS
        board.show([TRIALS[4]], {})
    assert capsys.readouterr().err == "0/8 trials, 1 running\n"


def test_nothing_is_told_where_nobody_looks(clock, capsys) -> None:
    with Board(8, 1000, "elbo", "max", show=False) as board:
        board.say("reading data")
        clock[0] += 1000.0
        board.show(TRIALS, {})
    assert capsys.readouterr() == ("", "")


def test_what_was_trained_before_is_not_taken_for_speed(clock, capsys) -> None:
    board = Board(2, 1000, "elbo", "max", show=True)
    before = [Trial("trial_000", {}, "waiting", images=900, score=1.0)]
    board.begin(before)
    clock[0] += 10.0
    running = [Trial("trial_000", {}, "running", images=900, score=1.0)]
    board.show(running, {"trial_000": 950})  # 5 images a second, and 1050 to go
    assert "some 4 min left" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_table_shows_what_runs_and_then_the_best(mode) -> None:
    board = Board(30, 1000, "elbo", mode, show=False)
    more = [
        Trial(f"more_{n}", {"rate": 1e-3, "size": n}, "done", score=10.0 + n) for n in range(20)
    ]
    table = board.table([*TRIALS, *more], {"trial_004": 64}, "title")
    assert table.row_count == ROWS
    assert [column.header for column in table.columns] == [
        *("trial", "", "images", "elbo", "rate", "size")
    ]
    names = list(table.columns[0].cells)
    assert names[:2] == ["trial_003", "trial_004"]
    assert names[2] == ("trial_001" if mode == "min" else "more_19")
    assert list(table.columns[2].cells)[:2] == ["200", "64"]
    assert list(table.columns[3].cells)[:2] == ["1.5", ""]


def test_a_reader_that_is_gone_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as gone:
        monkeypatch.setattr("sys.stderr", gone)
        with Board(2, 1000, "elbo", "max", show=True) as board:
            board.say("a sentence")
            board.say("a sentence")
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
