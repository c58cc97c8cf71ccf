"""The report of a search: whole, harmless, and drawn whatever became of the trials."""

from __future__ import annotations

import base64
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gen.experiment import Experiment
from ray_gen.experiment.search import Search
from ray_gen.searches.records import Mode, Trial
from ray_gen.searches.report import write_report
from ray_gen.searches.report.importance import shares_of
from ray_gen.searches.report.page import SCRIPT
from ray_gen.searches.report.results import Results, score_axis
from ray_gen.storage import Folder
from tests.helpers import vae

SPACE = {
    "optimizers.generator.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "optimizers.discriminator.learning_rate": {"uniform": [0.0, 1.0]},
    "networks.width": {"randint": [2, 5]},
    "networks.depth": {"lograndint": [10, 10_000]},
    "objective.loss": {"choice": ["hinge", "x" * 100, True, None, [1, 2], 3.5]},
}


def searched(space: dict[str, Any] = SPACE, metric: str = "fid") -> Experiment:
    settings = Search.model_validate({"space": space, "metric": metric})
    return vae().model_copy(update={"search": settings})


def trials_of(experiment: Experiment, count: int = 12) -> list[Trial]:
    """Of all states; the lower the first parameter, the lower the score."""
    assert experiment.search is not None
    found: list[Trial] = []
    for number in range(count):
        values = experiment.search.values_of(number)
        first = next(iter(values.values()))
        score = 20 + math.log10(first) if isinstance(first, float) else 1.0 * number
        state = ("done", "stopped", "running")[number % 3]
        history = [(100 * n, score + 5 / n) for n in (1, 2, 3)]
        found.append(Trial(f"trial_{number:03d}", values, state, None, 300, score, 60.0, history))
    return found


def failed(trial: Trial) -> Trial:
    return Trial(trial.name, trial.values, "failed", "out of memory", 100)


class Page(HTMLParser):
    """The tags with their attributes, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] not in (["script"], ["style"]):
            self.text += data


def report(
    path: Path, trials: list[Trial], mode: Mode = "min", experiment: Experiment | None = None
) -> Page:
    write_report(Folder(str(path)), experiment or searched(), trials, mode)
    return Page((path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_trial_is_in_it_and_the_best_comes_first(tmp_path: Path, mode: Mode) -> None:
    trials = trials_of(searched())
    trials[7] = failed(trials[7])
    page = report(tmp_path, trials, mode)
    judged = [trial for trial in trials if trial.score is not None]
    best = (min if mode == "min" else max)(judged, key=lambda trial: trial.score or 0.0)
    assert f"fid {best.score:.5g}" in page.text
    assert page.text.index(best.name) == min(page.text.index(trial.name) for trial in trials)
    assert "out of memory" in page.text
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"parallel", "curves", *(f"panel{n}" for n in range(len(SPACE)))} <= ids


def test_it_loads_nothing(tmp_path: Path) -> None:
    page = report(tmp_path, trials_of(searched()))
    assert {"script", "table"} <= {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    policies = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert "default-src 'none'" in str(policies)
    assert "http" not in str(policies)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;%{x}<b>$x$"


def test_what_users_name_is_text_and_never_markup(tmp_path: Path) -> None:
    experiment = searched({"optimizers.a": {"choice": [HOSTILE, "tame"]}}, HOSTILE)
    hostile = [
        Trial(f"{n} {HOSTILE}", {"optimizers.a": HOSTILE}, "done", HOSTILE, 10, n, 1.0, [(10, n)])
        for n in range(5)
    ]
    tame = [
        Trial(f"{n}", {"optimizers.a": "tame"}, "done", "tame", 10, n, 1.0, [(10, n)])
        for n in range(5)
    ]
    page = report(tmp_path, hostile, experiment=experiment)
    tags = [tag for tag, _ in page.tags if tag != "wbr"]
    plain = searched({"optimizers.a": {"choice": ["tame", "other"]}})
    assert tags == [t for t, _ in report(tmp_path, tame, experiment=plain).tags if t != "wbr"]
    assert all(trial.name in page.text for trial in hostile)
    assert not any("onerror" in attributes for _, attributes in page.tags)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("path", SPACE)
def test_one_parameter_and_one_trial_are_enough(tmp_path: Path, path: str, mode: Mode) -> None:
    experiment = searched({path: SPACE[path]})
    page = report(tmp_path, trials_of(experiment, 1), mode, experiment)
    assert "needs 4 judged trials" in page.text
    report(tmp_path, trials_of(experiment, 5), mode, experiment)


def test_it_says_that_nothing_was_found(tmp_path: Path) -> None:
    trials = [failed(trial) for trial in trials_of(searched())]
    page = report(tmp_path, trials)
    assert "No trial has a score: all failed" in page.text
    assert all(trial.name in page.text for trial in trials)
    assert "none was judged" in report(tmp_path, [Trial("trial_000", {})]).text
    assert "none was judged" in report(tmp_path, []).text


def test_values_that_the_space_does_not_know_are_left_out(tmp_path: Path) -> None:
    trials = trials_of(searched())
    trials[0].values = {}
    trials[1].values["objective.loss"] = "unheard of"
    trials[2].values["optimizers.generator.learning_rate"] = 5.0  # beyond its range
    assert "unheard of" in report(tmp_path, trials).text


def test_equal_scores_tell_nothing_of_the_parameters(tmp_path: Path) -> None:
    trials = trials_of(searched())
    for trial in trials:
        trial.score = 3.0
    assert "all scores or all values are equal" in report(tmp_path, trials).text


@given(
    st.lists(st.floats(width=64) | st.none(), min_size=1, max_size=9),
    st.sampled_from(["min", "max"]),
)
def test_the_best_score_is_always_at_its_end_of_the_axis(
    scores: list[float | None], mode: Mode
) -> None:
    trials = [Trial(f"{n}", {}, "done", score=score) for n, score in enumerate(scores)]
    settings = Search.model_validate({"space": {"a": {"uniform": (0, 1)}}})
    results = Results(settings, "fid", mode, trials)
    shares = [results.score.share(score) for score in results.scores]
    assert all(share is not None and -1e-9 <= share <= 1 + 1e-9 for share in shares)
    assert shares == sorted(shares, reverse=mode == "max", key=lambda share: share or 0.0)
    assert all(math.isfinite(end) for end in results.score.layout()["range"])
    assert len(results.trials) == len(trials)


def test_one_diverged_trial_does_not_press_the_others_together() -> None:
    axis = score_axis("elbo", [-1e9, -130.0, -110.0, -120.0, -100.0, -105.0], "max")
    assert axis.low > -300
    assert axis.share(-1e9) == 0.0


def test_the_parameter_that_decides_is_the_important_one() -> None:
    experiment = searched()
    assert experiment.search is not None
    trials = trials_of(experiment, 30)
    shares = shares_of(Results(experiment.search, "fid", "min", trials))
    assert set(shares) == set(SPACE)
    assert next(iter(shares)) == "optimizers.generator.learning_rate"
    assert shares["optimizers.generator.learning_rate"] > 0.8


def test_importance_from_few_trials_is_called_a_guess(tmp_path: Path) -> None:
    assert "Only a guess" in report(tmp_path, trials_of(searched(), 12)).text
    assert "Only a guess" not in report(tmp_path, trials_of(searched(), 60)).text


def test_parameters_have_the_shortest_names_that_tell_them_apart() -> None:
    settings = searched().search
    assert settings is not None
    labels = [axis.label for axis in Results(settings, "fid", "min", []).axes.values()]
    assert labels == [
        "generator.learning_rate",
        "discriminator.learning_rate",
        "width",
        "depth",
        "loss",
    ]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_newest_samples_of_the_best_are_in_it(tmp_path: Path, scheme: str) -> None:
    trials = sorted(trials_of(searched()), key=lambda trial: trial.score or 0.0)
    for trial in trials:
        samples = tmp_path / "trials" / trial.name / "samples"
        samples.mkdir(parents=True)
        for images in (100, 300):
            (samples / f"samples_{images:012d}.png").write_bytes(f"{trial.name} {images}".encode())
        (samples / "reconstructions_000000000300.png").write_bytes(b"other")
    write_report(Folder(f"{scheme}{tmp_path}"), searched(), trials, "min")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    sources = [str(a["src"]).partition(",")[2] for tag, a in page.tags if tag == "img"]
    shown = [base64.b64decode(source).decode() for source in sources]
    assert shown == [f"{trial.name} 300" for trial in trials[:4]]


def test_its_libraries_are_imported_only_when_it_is_written() -> None:
    code = (
        "import sys, ray_gen.searches.report\n"
        "print({'plotly', 'optuna', 'sklearn'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_many_trials_make_no_large_file(tmp_path: Path) -> None:
    random = Random(0)
    trials = trials_of(searched(), 200)
    for trial in trials:
        trial.history = [(100 * n, random.random()) for n in range(10)]
    report(tmp_path, trials)
    assert (tmp_path / "report.html").stat().st_size < 8e6  # of which plotly.js is 4.8e6


@pytest.mark.skipif(shutil.which("node") is None, reason="node reads JavaScript")
def test_the_script_of_the_page_is_javascript(tmp_path: Path) -> None:
    (tmp_path / "script.js").write_text(SCRIPT, encoding="utf-8")
    command = ["node", "--check", str(tmp_path / "script.js")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
