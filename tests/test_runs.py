"""`ray-gen runs`: what is listed of each run, from files that a test writes by hand."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ray_gen.cli import main
from ray_gen.launch.claim import FILE, Claim
from ray_gen.runs.checkpoints import checkpoint_name
from ray_gen.runs.manifest import MANIFEST
from ray_gen.searches.records import Trial, write_trials
from ray_gen.storage import Folder
from tests.helpers import vae

YAML = vae().to_yaml()  # 480 images


def run(folder: Path, told: Mapping[str, Any] | str | None = None, saved: int = 0) -> Path:
    """The small files of a run: its experiment, its progress, and a checkpoint of `saved`
    images."""
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(YAML)
    if told is not None:
        text = told if isinstance(told, str) else json.dumps(told)
        (folder / "progress.json").write_text(text)
    if saved:
        (folder / checkpoint_name(saved)).mkdir()
        (folder / checkpoint_name(saved) / MANIFEST).write_text("{}")
    return folder


def told(state: str, why: str | None, images: int, age: float = 0.0, **more: Any) -> dict[str, Any]:
    """A progress file of a run that wrote `age` seconds ago."""
    progress = {"state": state, "why": why, "images": images, "of": 480, "doing": "training"}
    return {**progress, "time": time.time() - age, "rate": None, "metrics": {}, **more}


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(main, ["runs", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def lines(*arguments: str) -> list[str]:
    done = CliRunner().invoke(main, ["runs", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


def state_of(folder: Path) -> tuple[str, str | None, int, int | None]:
    (found,) = listed(str(folder))
    return found["state"], found["why"], found["done"], found["of"]


def test_a_line_for_each_run_the_newest_first(tmp_path: Path, monkeypatch) -> None:
    scores = {"held_out/kl": 2.0, "held_out/elbo": -115.1234, "loss/kl": 1.0}
    run(tmp_path / "old", told("ended", "all images seen", 480, 7200, metrics=scores))
    run(tmp_path / "new", told("stopped", "asked to stop", 240, 180, metrics={"loss/kl": 1.0}))
    run(tmp_path / "mid", told("failed", "the disk is full", 96, 600))
    (tmp_path / "no run").mkdir()
    (tmp_path / "notes.txt").touch()
    monkeypatch.setenv("RAY_GEN_STORAGE", str(tmp_path))
    for found in (lines(), lines(str(tmp_path)), lines("--storage", str(tmp_path))):
        head, *rest = (" ".join(line.split()) for line in found)
        assert head == "run state images scores last wrote"
        assert rest == [
            "new stopped 240/480 kl 1 3 min ago asked to stop",
            "mid failed 96/480 10 min ago the disk is full",
            "old ended 480/480 elbo -115.1, kl 2 2 h ago all images seen",
        ]
    assert [entry["location"] for entry in listed("old")] == [str(tmp_path / "old")]


def test_a_run_trains_as_long_as_its_writer_lives(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", told("training", None, 240))
    assert state_of(folder) == ("stopped", "its process was killed", 240, 480)
    with Claim(Folder(str(folder))):
        assert state_of(folder) == ("training", None, 240, 480)
        (folder / "progress.json").unlink()
        assert state_of(folder) == ("training", "starting", 0, 480)
    dead = {"host": socket.gethostname(), "pid": os.getpid(), "started": "0", "time": time.time()}
    (folder / FILE).write_text(json.dumps(dead))
    assert state_of(folder) == ("stopped", None, 0, 480)


def test_runs_of_earlier_versions_are_known_by_their_images(tmp_path: Path) -> None:
    early = {"doing": "training", "images": 480, "rate": 1.0, "metrics": {}}
    assert state_of(run(tmp_path / "a", early, 480)) == ("ended", None, 480, 480)
    assert state_of(run(tmp_path / "b", {**early, "images": 24})) == ("stopped", None, 24, 480)
    assert state_of(run(tmp_path / "c", None, 240)) == ("stopped", None, 240, 480)


def test_the_last_scores_are_shown_also_if_later_reports_have_none(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", told("training", None, 72, metrics={"loss/kl": 1.0}))
    reports = [
        {"images": 24, "held_out/elbo": -9.0},
        {"images": 48, "held_out/elbo": -8.0, "evaluation/fid": 30.0, "evaluation/kid": 0.25,
         "evaluation/kid_spread": 0.5, "evaluation/recall": 0.5},
        {"images": 72, "loss/kl": 1.0},
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, reports))
    (folder / "metrics.jsonl").write_text(text + '\n{"images": 96, "held_out/el')
    assert listed(str(folder))[0]["scores"] == {"fid": 30.0, "kid": 0.25}
    beside = run(tmp_path / "b", told("ended", None, 72))
    (beside / "evaluations").mkdir()
    for images, value in ((24, 50.0), (48, 40.0)):
        score = {"name": "fid", "value": value, "spread": None, "protocol": {}}
        file = beside / "evaluations" / f"images_{images:012d}.json"
        file.write_text(json.dumps({"scores": [score], "without": []}))
    assert listed(str(beside))[0]["scores"] == {"fid": 40.0}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"progress.json": b'{"state": "train'}, "progress.json cannot be read"),
        ({"progress.json": b"\xff\xfe"}, "progress.json cannot be read"),
        ({"progress.json": b"[]"}, "progress.json cannot be read"),
        ({"progress.json": b'{"images": {}, "of": 1}'}, "int() argument"),
        ({"progress.json": None, "experiment.yaml": b"a: [\n"}, "experiment.yaml cannot be read"),
        ({"progress.json": None, "experiment.yaml": b"7"}, "experiment.yaml cannot be read"),
        (
            {"progress.json": None, "experiment.yaml": None},
            "it has no experiment.yaml, no progress",
        ),
    ],
)
def test_a_damaged_run_says_so_in_its_line(
    tmp_path: Path, damage: dict[str, bytes | None], why: str
) -> None:
    run(tmp_path / "good", told("ended", None, 480))
    folder = run(tmp_path / "bad", told("ended", None, 480))
    (folder / "metrics.jsonl").touch()
    for name, content in damage.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    found = {entry["name"]: entry for entry in listed(str(tmp_path))}
    assert found["good"]["state"] == "ended"
    assert found["bad"]["state"] == "damaged"
    assert found["bad"]["why"].startswith(why)


def test_a_search_is_one_line_and_its_name_lists_its_trials(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_GEN_STORAGE", str(tmp_path))
    space = "{space: {objective.beta: {uniform: [0.5, 2]}}, trials: 5}"
    run(tmp_path / "s" / "trials" / "t0", told("ended", None, 480))
    (tmp_path / "s" / "search.yaml").write_text(vae(f"search={space}").to_yaml())
    trials = [
        Trial("t0", {}, "done", score=-20.0),
        Trial("t1", {}, "stopped", score=-10.0),
        Trial("t2", {}, "running", score=-30.0),
    ]
    write_trials(Folder(str(tmp_path / "s")), trials)
    ((name, state, done, of, scores, why),) = (
        [entry[key] for key in ("name", "state", "done", "of", "scores", "why")]
        for entry in listed()
    )
    assert (name, state, done, of, why) == ("s", "search", 2, 5, "not running")
    assert scores == {"elbo": -10.0}
    assert "2/5 trials" in lines()[1]
    assert [entry["name"] for entry in listed("s")] == ["t0"]
    (tmp_path / "s" / "trials.json").write_text("[")
    assert listed()[0]["state"] == "damaged"


def test_an_empty_storage_says_how_to_begin(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["runs", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no runs yet; train one: ray-gen train" in done.stderr
    assert listed(str(tmp_path)) == []
    done = CliRunner().invoke(main, ["runs", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "there is no such folder" in done.stderr
