"""What a run writes for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.runs.writer import RunWriter
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.state import State
from tests.helpers import vae


def hparams(run: Path, store: Store, *compared: str) -> dict[str, Any]:
    """The fields of a short run that TensorBoard's HParams tab shows."""
    this = vae("training.images=24")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    writer = RunWriter(Folder(str(run)), this, objective, store, state, compared)
    for report in train(this, objective, state, store, World()):
        writer.report(report)
    writer.close()
    (file,) = (run / "tensorboard").glob("events*")
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                return {
                    path: getattr(v, v.WhichOneof("kind"))
                    for path, v in data.session_start_info.hparams.items()
                }
    raise AssertionError(f"no HParams in {file}")


def test_a_run_is_compared_by_all_of_its_experiment(store_8, tmp_path: Path) -> None:
    found = hparams(tmp_path, store_8)
    assert found["objective.beta"] == 1.0
    assert found["networks.encoder.kind"] == "mlp"
    assert found["training.global_batch_size"] == 24


def test_a_trial_is_compared_by_what_the_search_varies(store_8, tmp_path: Path) -> None:
    rate = "optimizers.autoencoder.learning_rate"
    assert hparams(tmp_path, store_8, rate, "objective.beta") == {rate: 1e-3, "objective.beta": 1}


def test_a_trial_is_compared_by_all_of_a_network_that_is_searched(store_8, tmp_path: Path) -> None:
    found = hparams(tmp_path, store_8, "networks.encoder")
    assert found["networks.encoder.kind"] == "mlp"
    assert all(path.startswith("networks.encoder.") for path in found)
