"""Loggers: what they get, and what they cannot do to a run."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ray_gen.experiment import Experiment, ExperimentError, differences
from ray_gen.experiment.loggers import TensorBoardLogger
from ray_gen.runs.evaluations import evaluation_file
from ray_gen.runs.loggers import Logger, apart, check_loggers, log_late_scores
from ray_gen.storage import Folder
from tests.helpers import largest_difference, vae, weights
from tests.loggers.helpers import BATCH, STEPS, numbers, run, short, warnings
from tests.loggers.own import Recorder


def own(name: str, file: Path, **options: str) -> str:
    """The short form of a logger of the tests' own."""
    given = {"file": str(file), **options}
    return json.dumps({"kind": "custom", "target": f"tests.loggers.own:{name}", "options": given})


def calls(file: Path, kind: str = "") -> list[list[Any]]:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [call for call in found if kind in ("", call[0])]


def given(file: Path) -> dict[int, dict[str, float]]:
    """The numbers that a recorder got. Each only once."""
    found = calls(file, "numbers")
    assert len({images for _, images, _ in found}) == len(found)
    return {images: values for _, images, values in found}


# Settings.


def test_a_run_without_the_field_writes_for_tensorboard() -> None:
    assert vae().loggers == (TensorBoardLogger(),)


def test_a_name_alone_is_a_logger_with_its_defaults() -> None:
    this = vae("loggers=[tensorboard,csv,wandb,mlflow]", "loggers.2.project=digits")
    kinds = [logger.kind for logger in this.loggers]
    assert kinds == ["tensorboard", "csv", "wandb", "mlflow"]
    assert this.value_at("loggers")[2]["project"] == "digits"
    assert Experiment.from_yaml(this.to_yaml()) == this
    assert vae("loggers=[]").loggers == ()


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ("[wandbb]", "loggers.0.kind: 'wandbb' is not one of .*; did you mean wandb?"),
        ("[csv, csv]", "loggers: csv is there twice; name each logger once"),
        ("[{kind: wandb, projekt: a}]", "loggers.0.projekt: .*; did you mean loggers.0.project?"),
        ("[custom]", "loggers.0.target: is required and was not given"),
        ("[{kind: custom, target: 'a:B', options: {api_key: x}}]", "loggers.0.options: api_key "),
    ],
)
def test_a_wrong_logger_is_refused_by_its_path(loggers: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        vae(f"loggers={loggers}")


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter22@host/x",
        "https://hunter22@host",
        "postgresql://me:hunter22@db/mlflow",
        "https://host/x?token=hunter22",
    ],
)
@pytest.mark.parametrize(
    "logger",
    ["{kind: mlflow, tracking_uri: '%s'}", "{kind: custom, target: 'a:B', options: {u: '%s'}}"],
)
def test_an_address_with_a_password_is_refused_and_not_shown(logger: str, address: str) -> None:
    with pytest.raises(ExperimentError, match="holds credentials") as refused:
        vae(f"loggers=[{logger % address}]")
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:5000", "https://host/path", "databricks", "postgresql://db/m"]
)
def test_an_address_without_a_password_is_taken(address: str) -> None:
    this = vae(f"loggers=[{{kind: mlflow, tracking_uri: '{address}'}}]")
    assert this.absolute().value_at("loggers")[0]["tracking_uri"] == address


def test_a_file_of_mlflow_is_found_from_every_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    this = vae("loggers=[{kind: mlflow, tracking_uri: 'sqlite:///runs.db'}]").absolute()
    assert this.value_at("loggers")[0]["tracking_uri"] == f"sqlite:///{tmp_path}/runs.db"


def test_a_resumed_run_may_have_other_loggers() -> None:
    assert not list(differences(vae("loggers=[csv, wandb]"), vae()))


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = rf"loggers: {package} is not installed; pip install 'ray_gen\[{package}\]'"
    with pytest.raises(ExperimentError, match=message):
        check_loggers(vae(f"loggers=[csv, {package}]"), Folder(str(tmp_path)))


def test_a_class_that_is_no_logger_is_refused(tmp_path: Path) -> None:
    this = vae("loggers=[{kind: custom, target: 'tests.loggers.own:Lacking'}]")
    with pytest.raises(ExperimentError, match=r"loggers.0.target: .* is a class without end"):
        check_loggers(this, Folder(str(tmp_path)))


def test_options_that_the_class_does_not_take_are_refused(store_8, tmp_path: Path) -> None:
    this = short("loggers=[{kind: custom, target: 'tests.loggers.own:Recorder'}]")
    with pytest.raises(ExperimentError, match=r"loggers.0.options: .*file"):
        run(this, tmp_path, store_8)


def test_mlflow_needs_a_server_for_a_run_behind_a_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ExperimentError, match=r"loggers.1.tracking_uri: is required"):
        check_loggers(vae("loggers=[csv, mlflow]"), Folder("s3://bucket/runs/one"))


# What a logger gets.


def test_a_logger_gets_all_numbers_and_pictures_in_turn(store_8, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    run(short(f"loggers=[{own('Recorder', file)}]"), tmp_path / "run", store_8)
    assert isinstance(Recorder(""), Logger)
    kinds = [call[0] for call in calls(file)]
    assert kinds == ["start", *["numbers", "pictures"] * STEPS, "end"]
    assert calls(file)[0] == ["start", "run", 0, 1]
    assert calls(file)[-1] == ["end", "finished"]
    assert given(file) == numbers(tmp_path / "run")
    first, second = calls(file, "pictures")[:2]
    assert first[2].keys() == {"images/samples", "images/reconstructions", "images/real"}
    assert second[2].keys() == {"images/samples", "images/reconstructions"}
    assert all(kind == ["uint8", 3, 1] for kind in first[2].values())


def test_without_tensorboard_no_events_are_written(store_8, tmp_path: Path) -> None:
    run(short("loggers=[]"), tmp_path, store_8)
    assert not (tmp_path / "tensorboard").exists()
    assert not (tmp_path / "loggers.json").exists()
    assert len(numbers(tmp_path)) == STEPS


def test_after_a_resume_a_logger_goes_on_with_its_memory_and_gets_each_report_once(
    store_8, tmp_path: Path
) -> None:
    """The first part ends after step 4; the second goes on from step 2."""
    file, folder = tmp_path / "calls", tmp_path / "run"
    this = short(f"loggers=[{own('Recorder', file)}, csv]")
    run(this, folder, store_8, until=4, save=tmp_path / "saved")
    assert calls(file)[-1] == ["end", "failed"]
    run(this, folder, store_8, checkpoint=tmp_path / "saved")
    assert calls(file, "start") == [["start", "run", 0, 1], ["start", "run", 48, 2]]
    expected = numbers(folder)
    assert list(given(file)) == list(expected) == [BATCH * n for n in range(1, STEPS + 1)]
    own_of_machine = ("speed/", "memory/")
    for images, values in given(file).items():
        for tag, value in values.items():
            assert tag.startswith(own_of_machine) or value == expected[images][tag]


def test_scores_of_an_evaluation_beside_the_run_come_late(store_8, tmp_path: Path) -> None:
    """One during the run, one after its end. Each once."""
    file, folder = tmp_path / "calls", tmp_path / "run"
    this = short(
        f"loggers=[tensorboard, csv, {own('Recorder', file)}]",
        f"evaluation={{every_images: {BATCH * 2}, placement: beside}}",
    )

    def evaluated(images: int, value: float) -> None:
        score = {"name": "fid", "value": value, "spread": None, "protocol": {}}
        text = json.dumps({"scores": [score], "without": []})
        Folder(str(folder / "evaluations")).write_text(evaluation_file(images), text)

    run(this, folder, store_8, until=4, save=tmp_path / "saved")
    evaluated(48, 3.5)
    run(this, folder, store_8, checkpoint=tmp_path / "saved")
    evaluated(96, 2.5)
    (folder / "evaluations" / evaluation_file(144)).write_text('{"failed": "no memory"}')
    for _ in range(2):
        log_late_scores(this, Folder(str(folder)), lambda sentence: pytest.fail(sentence))
    late = [call[1:] for call in calls(file, "numbers") if call[2].keys() == {"evaluation/fid"}]
    assert late == [[48, {"evaluation/fid": 3.5}], [96, {"evaluation/fid": 2.5}]]
    with (folder / "metrics.csv").open() as table:
        rows = [(row["images"], row["evaluation/fid"]) for row in csv.DictReader(table)]
    assert [(images, value) for images, value in rows if value] == [("48", "3.5"), ("96", "2.5")]


# What a logger cannot do.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for its loggers half a second."""
    monkeypatch.setattr("ray_gen.runs.loggers.together.END_SECONDS", 0.5)


@pytest.mark.parametrize("method", ["start", "numbers", "pictures", "end"])
@pytest.mark.parametrize("kind", ["Broken", "Hanging"])
def test_a_dead_logger_changes_nothing_and_is_told_once(
    store_8, tmp_path: Path, impatient: None, kind: str, method: str
) -> None:
    plain = run(short(), tmp_path / "plain", store_8)
    file, folder, bad = tmp_path / "calls", tmp_path / "run", tmp_path / "bad"
    loggers = f"{own(kind, bad, method=method)}, {own('Recorder', file)}"
    began = time.monotonic()
    state = run(short(f"loggers=[{loggers}]"), folder, store_8)
    assert time.monotonic() - began < 20.0
    assert largest_difference(weights(state), weights(plain)) == 0
    assert given(file) == numbers(folder)
    assert len(given(file)) == STEPS
    (told,) = warnings(folder)
    why = "failed (OSError: no route to host)" if kind == "Broken" else "did not end in time"
    assert told.startswith(f"loggers: tests.loggers.own:{kind} {why}")
    assert told.endswith("; the run goes on without it")
    if kind == "Broken":
        assert len(calls(bad, "raises")) == 1


def test_a_logger_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "PATIENCE_SECONDS", 0.05)
    told: list[str] = []
    this = apart.Apart("slow", told.append)
    this.call(lambda: time.sleep(0.3))
    made: list[int] = []
    time.sleep(0.15)
    for _ in range(3):
        this.call(lambda: made.append(1))
    this.call(None)
    this.wait(5.0)
    time.sleep(0.3)
    assert told == ["loggers: slow has not answered for 0 s; the run goes on without it"]
    assert not made


def test_a_logger_that_is_slower_than_the_run_is_given_up() -> None:
    told: list[str] = []
    this = apart.Apart("slow", told.append)
    began = time.monotonic()
    for _ in range(apart.WAITING + 3):
        this.call(lambda: time.sleep(0.5))
    assert time.monotonic() - began < 0.4
    (sentence,) = told
    assert sentence.startswith(f"loggers: slow is slower than the run: {apart.WAITING} calls wait")


def test_what_is_told_of_an_error_holds_no_secret(
    store_8, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    message = "GET https://me:hunter22@host/x with key 0123456789abcdef: refused"
    logger = own("Broken", tmp_path / "bad", method="start", message="see below")
    logger = logger.replace("see below", message)
    # As an error of a library: the experiment itself may not hold such an address.
    monkeypatch.setattr("ray_gen.experiment.loggers.server_without_credentials", lambda a: a)
    monkeypatch.setattr("ray_gen.experiment.loggers.without_credentials", lambda a: a)
    run(short(f"loggers=[{logger}]"), tmp_path / "run", store_8)
    (told,) = warnings(tmp_path / "run")
    assert "GET https://host/x with key ...: refused" in told


# Files.


def test_the_table_has_all_numbers_also_after_a_resume(store_8, tmp_path: Path) -> None:
    this = short("loggers=[csv]")
    run(this, tmp_path / "run", store_8, until=4, save=tmp_path / "saved")
    run(this, tmp_path / "run", store_8, checkpoint=tmp_path / "saved")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        int(row.pop("images")): {tag: float(value) for tag, value in row.items() if value}
        for row in rows
    }
    assert found == numbers(tmp_path / "run")
    scored = [images for images, values in found.items() if "held_out/elbo" in values]
    assert scored == [48, 96, 144]  # a column that came with the second report
