"""What a run writes for TensorBoard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ray_gen.cli.tensorboard import mirror_events
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.runs.loggers.tensorboard import charts_of
from ray_gen.runs.writer import RunWriter
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.state import State
from tests.helpers import gan, vae


def written(run: Path, this: Experiment, store: Store, *compared: str) -> dict[str, Any]:
    """What a short run wrote once, by tag."""
    objective = build_objective(this)
    state = State.build(this, objective, World())
    writer = RunWriter(Folder(str(run)), this, objective, store, state, compared)
    for report in train(this, objective, state, store, World()):
        writer.report(report)
    writer.close()
    (file,) = (run / "tensorboard").glob("events*")
    events = EventFileLoader(str(file)).Load()
    return {value.tag: value for event in events for value in event.summary.value}


def hparams(run: Path, store: Store, *compared: str) -> dict[str, Any]:
    """The fields of a short run that TensorBoard's HParams tab shows."""
    value = written(run, vae("training.images=24"), store, *compared)[
        "_hparams_/session_start_info"
    ]
    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    found = data.session_start_info.hparams
    return {path: getattr(v, v.WhichOneof("kind")) for path, v in found.items()}


def test_a_run_is_compared_by_what_identifies_it(store_8, tmp_path: Path) -> None:
    found = hparams(tmp_path, store_8)
    assert found["objective.beta"] == 1.0
    assert found["networks.encoder.kind"] == "mlp"
    assert found["training.global_batch_size"] == 24
    assert found["training.images"] == 24
    assert found["data.kind"] == "mnist5k"
    assert found["data.image_size"] == "[8, 8]"
    unlike = ("workers.", "checkpoints.", "storage", "evaluation.", "loggers", "search", "name")
    assert not [path for path in found if path.startswith(unlike)]
    assert not {"data.digest", "data.classes", "data.rules", "data.flip"} & found.keys()
    assert "null" not in found.values()


def test_a_run_is_compared_by_its_scores_and_losses(store_8, tmp_path: Path) -> None:
    found = written(tmp_path, vae("training.images=24"), store_8)["_hparams_/experiment"]
    data = HParamsPluginData.FromString(found.metadata.plugin_data.content)
    tags = [metric.name.tag for metric in data.experiment.metric_infos]
    assert tags[:3] == ["held_out/elbo", "held_out/reconstruction", "held_out/kl"]
    assert {"loss/kl", "samples/spread"} <= set(tags)
    assert not [tag for tag in tags if tag.startswith(("speed/", "memory/"))]


def test_real_and_fake_are_on_one_chart(store_8, tmp_path: Path) -> None:
    written_once = written(tmp_path, gan("training.images=24"), store_8)
    found = written_once["custom_scalars__config__"]
    layout = Layout.FromString(found.tensor.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts == {
        "discriminator/real and fake": [r"^discriminator/real$", r"^discriminator/fake$"],
        "losses": [r"^loss/discriminator$", r"^loss/generator$"],
    }
    shown = [tag for tags in charts.values() for tag in tags]
    assert all(any(re.match(pattern, tag) for tag in written_once) for pattern in shown)


def test_charts_of_logits_and_of_an_objective_of_ones_own() -> None:
    tags = ["a/real_logit", "a/fake_logit", "a/mean_real", "a/mean_fake", "a/unreal", "a/realism"]
    assert charts_of(tags) == {
        "a/real_logit and fake_logit": ["a/real_logit", "a/fake_logit"],
        "a/mean_real and mean_fake": ["a/mean_real", "a/mean_fake"],
    }


def test_a_trial_is_compared_by_what_the_search_varies(store_8, tmp_path: Path) -> None:
    rate = "optimizers.autoencoder.learning_rate"
    assert hparams(tmp_path, store_8, rate, "objective.beta") == {rate: 1e-3, "objective.beta": 1}


def test_a_trial_is_compared_by_all_of_a_network_that_is_searched(store_8, tmp_path: Path) -> None:
    found = hparams(tmp_path, store_8, "networks.encoder")
    assert found["networks.encoder.kind"] == "mlp"
    assert all(path.startswith("networks.encoder.") for path in found)


def test_runs_have_the_names_of_their_folders(tmp_path: Path) -> None:
    runs, mirror = tmp_path / "runs", tmp_path / "mirror"
    for name in ("one/tensorboard/events.tfevents.1", "search/trials/0001/tensorboard/tfevents.2"):
        (runs / name).parent.mkdir(parents=True)
        (runs / name).write_text(name)
    for _ in range(2):
        mirror_events(Folder(str(runs)), mirror)
    found = {str(f.relative_to(mirror)): f.read_text() for f in mirror.rglob("*") if f.is_file()}
    assert found == {
        "one/events.tfevents.1": "one/tensorboard/events.tfevents.1",
        "search/trials/0001/tfevents.2": "search/trials/0001/tensorboard/tfevents.2",
    }
