"""Weights & Biases offline and MLflow with a local store, for real. And servers that are dead."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_gen.runs.loggers.mlflow import tracking_uri_of
from tests.helpers import largest_difference, weights
from tests.loggers.helpers import BATCH, STEPS, numbers, run, short, warnings

SECRET = "0123456789abcdef0123456789abcdef01234567"
OF_MACHINE = ("speed/", "memory/")


def interrupted(experiment: Any, tmp_path: Path, store: Any) -> Path:
    """A run that ended after step 4 and went on from step 2."""
    folder = tmp_path / "storage" / "digits"
    run(experiment, folder, store, until=4, save=tmp_path / "saved")
    run(experiment, folder, store, checkpoint=tmp_path / "saved")
    return folder


def of_training(values: dict[str, float]) -> dict[str, float]:
    """Without the numbers that differ if a step is repeated."""
    return {tag: value for tag, value in values.items() if not tag.startswith(OF_MACHINE)}


def same(found: dict[int, dict[str, float]], folder: Path) -> bool:
    expected = numbers(folder)
    assert found.keys() == expected.keys()
    return all(of_training(found[i]) == of_training(expected[i]) for i in found)


def holds(folder: Path, secret: str) -> list[Path]:
    """The files that hold a secret."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [file for file in files if secret.encode() in file.read_bytes()]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key of W&B in the environment, as users have it."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.delenv("WANDB_MODE", raising=False)


def records(file: Path) -> Iterator[Any]:
    """What W&B wrote for a later `wandb sync`: blocks of 32 KiB, as LevelDB has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        part, at = content[at + 7 : at + 7 + size], at + 7 + size
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield Record.FromString(whole)


def history(file: Path) -> Iterator[dict[str, Any]]:
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {"/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_offline(store_8, tmp_path: Path, key: None) -> None:
    folder = interrupted(
        short("loggers=[{kind: wandb, project: digits, mode: offline}]"), tmp_path, store_8
    )
    assert not warnings(folder)
    kept = json.loads((folder / "loggers.json").read_text())["wandb"]["memory"]
    files = sorted((folder / "wandb").glob(f"offline-run-*-{kept['id']}/*.wandb"))
    assert len(files) == 2  # one for each part, of one run
    rows = [row for file in files for row in history(file)]
    pictures = [row for row in rows if "images/samples/path" in row]
    assert [row["images"] for row in pictures] == [BATCH * n for n in range(1, STEPS + 1)]
    found = {
        row["images"]: {tag: v for tag, v in row.items() if "/" in tag}
        for row in rows
        if "loss/kl" in row
    }
    assert same(found, folder)
    begun = [r.run for f in files for r in records(f) if r.WhichOneof("record_type") == "run"]
    assert {(r.run_id, r.display_name, r.project) for r in begun} == {
        (kept["id"], "digits", "digits")
    }
    config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert config["objective"]["latent_size"] == 5
    assert not holds(folder, SECRET)


@pytest.fixture(params=["closed", "silent"])
def dead(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that refuses connections, or takes them and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "silent":
            server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def unharmed(loggers: str, tmp_path: Path, store: Any) -> str:
    """Trains with loggers whose server is dead. Returns what was told."""
    plain = run(short(), tmp_path / "plain", store)
    began = time.monotonic()
    state = run(short(f"loggers=[{loggers}]"), tmp_path / "run", store)
    assert time.monotonic() - began < 25.0
    assert largest_difference(weights(state), weights(plain)) == 0
    assert len(numbers(tmp_path / "run")) == STEPS
    (told,) = warnings(tmp_path / "run")
    assert not holds(tmp_path / "run", SECRET)
    return told


def test_a_dead_server_of_wandb(
    store_8, tmp_path: Path, key: None, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_gen.runs.loggers.wandb.START_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_BASE_URL", dead)
    told = unharmed("wandb", tmp_path, store_8)
    assert told.startswith("loggers: wandb failed (CommError: ")


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow without an address from outside."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return pytest.importorskip("mlflow", reason="mlflow is not installed")


@pytest.mark.parametrize(
    ("settings", "variable", "found"),
    [
        ("http://a", "http://b", "http://a"),
        (None, "http://b", "http://b"),
        (None, "", "sqlite:////runs/mlflow.db"),
    ],
)
def test_where_mlflow_keeps_a_run(
    settings: str | None, variable: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert tracking_uri_of(settings, "/runs/digits") == found


def test_mlflow_with_a_local_store(
    store_8, tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "storage").mkdir()
    folder = interrupted(short("loggers=[mlflow]"), tmp_path, store_8)
    assert not warnings(folder)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/storage/mlflow.db")
    experiment = client.get_experiment_by_name("ray_gen")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "digits"
    assert found.info.status == "FINISHED"
    assert found.data.params["objective.latent_size"] == "5"
    assert found.data.tags["ray_gen.run"] == str(folder)
    points: dict[int, dict[str, float]] = {}
    for tag in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, tag):
            assert tag not in points.setdefault(metric.step, {})
            points[metric.step][tag] = metric.value
    assert same(points, folder)
    artifacts = [file.path for file in client.list_artifacts(found.info.run_id, "images")]
    assert f"images/samples_{BATCH * STEPS:012d}.png" in artifacts
    assert not (tmp_path / "mlruns").exists()


def test_a_dead_server_of_mlflow(
    store_8, tmp_path: Path, mlflow: Any, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    told = unharmed(f"{{kind: mlflow, tracking_uri: '{dead}'}}", tmp_path, store_8)
    assert told.startswith("loggers: mlflow failed (MlflowException: ")
