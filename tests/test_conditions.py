"""Numbers to condition on: from the columns of a table to networks, samples and exports."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from ray_gen.cli import main
from ray_gen.core import Signature, parts_of_labels
from ray_gen.data import DataError, Store
from ray_gen.data.convert import Conversion, Layout
from ray_gen.data.wanted import Wanted
from ray_gen.errors import Refused
from ray_gen.evaluation.evaluator import Evaluator, SplitImages, subject_of
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.networks.conv import ConvDecoder, ConvEncoder
from ray_gen.networks.dcgan import DcganDiscriminator, DcganGenerator
from ray_gen.networks.mlp import Mlp
from ray_gen.pipeline import Pipeline, load
from ray_gen.pipeline.export import export, programs
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.labels import labels_in_turn, labels_of
from ray_gen.training.sources import class_names, open_data, source_of, with_labels_of
from tests.helpers import (
    ADAM,
    TRAINING,
    batches,
    largest_difference,
    trained,
    trained_by_workers,
    weights,
)
from tests.networks.test_labels import CONV, DCGAN, MLP
from tests.programs import eager, replayed

SIDE = 8
AGES = np.linspace(20.0, 80.0, 192)
POSES = np.stack([np.cos(AGES), np.sin(AGES)], axis=1)


def picture(age: float, number: int) -> bytes:
    """A grey image that is brighter the greater the age is, with a little noise."""
    random = np.random.default_rng(number)
    level = 255 * (age - 10) / 80 + random.normal(0, 8, (SIDE, SIDE))
    data = io.BytesIO()
    Image.fromarray(level.clip(0, 255).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def rows() -> dict[str, Any]:
    return {
        "image": [picture(age, number) for number, age in enumerate(AGES)],
        "label": [number % 3 for number in range(len(AGES))],
        "age": AGES,
        "pose": pa.FixedSizeListArray.from_arrays(POSES.flatten(), 2),
    }


def parquet(folder: Path, group: int = 16, **columns: Any) -> str:
    """Two shards. columns: replaced ones, or new ones."""
    folder.mkdir(exist_ok=True)
    table = pa.table({**rows(), **columns})
    half = len(table) // 2
    for number, part in enumerate((table[:half], table[half:])):
        pq.write_table(part, folder / f"{number}.parquet", row_group_size=group)
    return f"parquet:{folder}"


def tree(folder: Path, **cells: Any) -> str:
    """Image files and a metadata.csv. cells: the columns besides the names."""
    folder.mkdir()
    names = [f"{number:03}.png" for number in range(len(AGES))]
    for number, (name, age) in enumerate(zip(names, AGES, strict=True)):
        (folder / name).write_bytes(picture(age, number))
    columns = {"file_name": names, "age": AGES, **cells}
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return f"folder:{folder}"


def vae(data: str, *overrides: str, network: str = "mlp", conditional: bool = True) -> Experiment:
    body: dict[str, Any] = {"kind": network}
    body |= {"hidden_sizes": [32]} if network == "mlp" else {"width": 8}
    given = {
        "data": data,
        "networks": {"encoder": body, "decoder": body},
        "objective": {
            "kind": "vae",
            "latent_size": 3,
            "likelihood": "gaussian",
            "sigma": 0.1,
            "conditional": conditional,
        },
        "optimizers": {"autoencoder": ADAM},
        "training": TRAINING,
    }
    return Experiment.from_yaml(json.dumps(given), overrides)


def gan(data: str, *overrides: str, network: str = "dcgan") -> Experiment:
    body: dict[str, Any] = {"kind": network}
    body |= {"hidden_sizes": [32]} if network == "mlp" else {"width": 4}
    given = {
        "data": data,
        "networks": {"generator": body, "discriminator": body},
        "objective": {"kind": "gan", "latent_size": 3, "conditional": True},
        "optimizers": {"generator": ADAM, "discriminator": ADAM},
        "training": TRAINING,
    }
    return Experiment.from_yaml(json.dumps(given), overrides)


def opened(this: Experiment) -> tuple[Experiment, Store]:
    """The experiment, resolved as a run does it, and its data."""
    store = open_data(this)
    conditions = [asdict(condition) for condition in store.conditions]
    return this.resolved(
        store.image_shape, class_names(store), store.digest, conditions=conditions
    ), store


def pipeline_of(this: Experiment, store: Store, folder: Path) -> Pipeline:
    """A trained run, read back."""
    folder.mkdir()
    trained(this, store)[0].save(folder, this)
    return load(folder)


AGE = "data.conditions=[age]"
BOTH = "data.conditions=[age,pose]"
NO_CLASSES = "data.labels=none"


# Data


def of_keys(store: Store) -> list[tuple[float, ...]]:
    assert store.train.conditions is not None and store.held_out.conditions is not None
    held_out = store.held_out.conditions.tolist()
    return sorted(map(tuple, [*store.train.conditions.tolist(), *held_out]))


def test_each_image_keeps_its_numbers(tmp_path: Path) -> None:
    """The brightness of each image tells its age."""
    _, store = opened(vae(parquet(tmp_path / "set"), BOTH))
    for split in (store.train, store.held_out):
        assert split.conditions is not None and split.conditions.dtype == torch.float32
        ages = split.conditions[:, 0].double()
        seen = split.images_NHWC.double().mean((1, 2, 3)) / 255 * 80 + 10
        assert float((ages - seen).abs().max()) < 2
        torch.testing.assert_close(split.conditions[:, 1].double(), ages.cos(), atol=1e-5, rtol=0)
    assert [one.name for one in store.conditions] == ["age", "pose[0]", "pose[1]"]
    assert len(store.train) + len(store.held_out) == len(AGES)


def test_statistics_are_those_of_the_training_split(tmp_path: Path) -> None:
    this, store = opened(vae(parquet(tmp_path / "set"), BOTH))
    assert store.train.conditions is not None
    numbers = store.train.conditions.double().numpy()
    for told, column in zip(this.data.condition_statistics or (), numbers.T, strict=True):
        assert told.mean == pytest.approx(column.mean(), rel=1e-12, abs=1e-12)
        assert told.deviation == pytest.approx(column.std(), rel=1e-12)
        assert (told.low, told.high) == (column.min(), column.max())
    again = Experiment.from_yaml(this.to_yaml())
    assert again.data.condition_statistics == this.data.condition_statistics


def arrow(folder: Path) -> str:
    """The same rows, as `datasets.save_to_disk` writes them."""
    folder.mkdir()
    table = pa.table(rows())
    file = str(folder / "data.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=50):
            writer.write_batch(batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return f"arrow:{folder}"


def test_sources_of_the_same_images_give_the_same_numbers(tmp_path: Path) -> None:
    found = {}
    folder = tree(tmp_path / "tree").removeprefix("folder:")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for path in Path(folder).iterdir():
            file.write(path, path.name)
    with tarfile.open(tmp_path / "all.tar", "w") as file:
        for path in sorted(Path(folder).iterdir()):
            file.add(path, path.name)
    for data in (
        parquet(tmp_path / "set"),
        arrow(tmp_path / "arrow"),
        f"folder:{folder}",
        f"zip:{tmp_path / 'all.zip'}",
        f"tar:{tmp_path / 'all.tar'}",
    ):
        _, store = opened(vae(data, AGE))
        found[data.partition(":")[0]] = of_keys(store)
    assert found["parquet"] == sorted((float(np.float32(age)),) for age in AGES)
    assert all(numbers == found["parquet"] for numbers in found.values())


def test_joined_sources_have_the_same_numbers(tmp_path: Path) -> None:
    sources = [parquet(tmp_path / "set"), tree(tmp_path / "tree")]

    def joined(*conditions: list[str]) -> Experiment:
        each = [
            {"kind": source.split(":")[0], "path": source.split(":")[1], "conditions": names}
            for source, names in zip(sources, conditions, strict=True)
        ]
        text = json.dumps({"kind": "joined", "sources": each})
        return vae("mnist5k", f"data={text}")

    this, store = opened(joined(["age"], ["age"]))
    assert of_keys(store) == sorted((float(np.float32(age)),) for age in AGES for _ in range(2))
    refused(joined(["age", "pose"], ["age"]), "data.sources.1.conditions: has the numbers age, and")
    with pytest.raises(ExperimentError, match=r"conditions: name them in each of data.sources"):
        this.with_fields(data__conditions=["age"])


def test_lists_in_metadata_are_several_numbers(tmp_path: Path) -> None:
    folder = Path(tree(tmp_path / "tree").removeprefix("folder:"))
    (folder / "metadata.csv").unlink()
    lines = [
        json.dumps({"file_name": f"{number:03}.png", "pose": pose.tolist()})
        for number, pose in enumerate(POSES)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    _, store = opened(vae(f"folder:{folder}", "data.conditions=[pose]"))
    assert of_keys(store) == sorted(map(tuple, POSES.astype(np.float32).tolist()))


def test_a_file_of_names_and_numbers_leaves_folders_as_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for image in range(4):
            data = picture(20 + 9 * image, 10 * number + image)
            (tmp_path / "set" / name / f"{name}{image}.png").write_bytes(data)
    table = tmp_path / "ages.csv"
    cells = [f"{name}/{name}{image}.png,{image}" for name in ("a", "b") for image in range(4)]
    table.write_text("\n".join(["name,age", *cells]))
    this = vae(f"folder:{tmp_path / 'set'}", AGE, f"data.labels={table}", "data.channels=1")
    this, store = opened(this.with_fields(data__held_out_fraction=0.0))
    assert this.data.classes == ("a", "b")
    assert store.train.conditions is not None
    assert store.train.conditions.flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_digest_covers_numbers_and_is_that_of_before_without(tmp_path: Path) -> None:
    data = parquet(tmp_path / "set")
    without = opened(vae(data, conditional=False))[1].digest
    with_age = opened(vae(data, AGE))[1].digest
    other = parquet(tmp_path / "other", age=AGES + 1)
    assert opened(vae(other, conditional=False))[1].digest == without
    assert len({without, with_age, opened(vae(other, AGE))[1].digest}) == 3


def test_streamed_numbers_belong_to_their_images(tmp_path: Path) -> None:
    this = vae(parquet(tmp_path / "set"), BOTH, "data.placement=stream", "data.window_images=32")
    this, store = opened(this)
    assert store.stream is not None
    told = (this.data.condition_statistics or ())[0]
    for images, labels in batches(this, build_objective(this), store, 0, 5):
        assert labels is not None and labels.shape == (24, 4) and labels.dtype == torch.float32
        ages = labels[:, 1].double() * told.deviation + told.mean
        seen = images.double().mean((1, 2, 3)) * 80 + 10
        assert float((ages - seen).abs().max()) < 2
        places = ((ages - 20) / 60 * (len(AGES) - 1)).round()
        assert labels[:, 0].tolist() == (places % 3).tolist()


@pytest.mark.parametrize("raw", [False, True])
def test_a_converted_set_has_the_same_numbers(tmp_path: Path, raw: bool) -> None:
    for number, data in enumerate((parquet(tmp_path / "set"), tree(tmp_path / "tree"))):
        this = vae(data, BOTH if number == 0 else AGE)
        wanted = Wanted((SIDE, SIDE), None, 1) if raw else None
        layout = Layout(wanted, 0.1, False, shard_images=64, group_images=16, seed=0)
        (tmp_path / f"out{number}").mkdir()
        made = Conversion(source_of(this.data), layout, Folder(str(tmp_path / f"out{number}")))
        for part in made.missing():
            made.write(part)
        made.finish()
        again = vae(f"parquet:{tmp_path / f'out{number}'}", BOTH if number == 0 else AGE)
        assert of_keys(opened(again)[1]) == of_keys(opened(this)[1])


# What is refused


def refused(this: Experiment, *parts: str) -> None:
    with pytest.raises((DataError, ExperimentError)) as told:
        open_data(this)
    for part in parts:
        assert part in str(told.value), told.value


def test_columns_that_cannot_condition_are_refused(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(len(AGES))]
    holes = [None if number == 130 else age for number, age in enumerate(AGES)]
    nan = [float("nan") if number == 5 else age for number, age in enumerate(AGES)]
    data = parquet(tmp_path / "set", name=names, hole=holes, nan=nan, same=[0.1] * len(AGES))
    refused(vae(data, "data.conditions=[agee]"), "no column 'agee'", "did you mean age?")
    refused(vae(data, "data.conditions=[name]"), "'name' of", "is string", "columns of numbers")
    refused(vae(data, "data.conditions=[hole]"), "row 34 of", "1.parquet", "no number in 'hole'")
    refused(vae(data, "data.conditions=[nan]"), "row 5 of", "0.parquet", "no number in 'nan'")
    refused(vae(data, "data.conditions=[same]"), "same is 0.1 for all training images")
    with pytest.raises(ExperimentError, match=r"data.*conditions: age is named twice"):
        vae(data, "data.conditions=[age,age]")
    assert getattr(vae(data, "data.conditions=age").data, "conditions", None) == ("age",)
    twice = parquet(tmp_path / "twice", **{"pose[0]": AGES})
    refused(vae(twice, "data.conditions=[pose,'pose[0]']"), "two numbers have the name pose[0]")


def test_lists_of_another_length_are_refused(tmp_path: Path) -> None:
    data = parquet(tmp_path / "set", pose=POSES.tolist())
    refused(vae(data, "data.conditions=[pose]"), "'pose' of", "fixed_size_list")
    data = parquet(tmp_path / "two")
    table = pa.table({**rows(), "pose": pa.FixedSizeListArray.from_arrays(AGES, 1)})
    pq.write_table(table, tmp_path / "two" / "2.parquet")
    refused(vae(data, "data.conditions=[pose]"), "2.parquet has the numbers pose[0] and", "length")


def test_a_corrupt_image_takes_its_numbers_with_it(tmp_path: Path) -> None:
    pictures = [picture(age, number) for number, age in enumerate(AGES)]
    pictures[50] = b"no image"
    data = parquet(tmp_path / "set", image=pictures)
    _, store = opened(vae(data, AGE, "data.on_corrupt=skip"))
    assert of_keys(store) == sorted((float(np.float32(x)),) for x in np.delete(AGES, 50))


def test_metadata_that_cannot_condition_is_refused(tmp_path: Path) -> None:
    words = ["old" if number == 7 else "1" for number in range(len(AGES))]
    data = tree(tmp_path / "tree", word=words)
    refused(vae(data, "data.conditions=[word]"), "row 7 of", "'old' in 'word', which is no number")
    refused(vae(data, "data.conditions=[agee]"), "no column 'agee'", "did you mean age?")
    table = tmp_path / "tree" / "metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(["file_name,age,word", "gone.png,,", *lines[1:]]))
    assert len(of_keys(opened(vae(data, AGE))[1])) == len(AGES)
    table.write_text("\n".join([*lines, "000.png,33,1"]))
    refused(vae(data, AGE), "gives '000.png' two rows with different numbers")
    table.write_text("\n".join([lines[0], "gone.png,1,1"]))
    refused(vae(data, AGE), "names no image of", "the first name is 'gone.png'")
    table.write_text("\n".join(lines))
    (tmp_path / "tree" / "more.png").write_bytes(picture(30, 1))
    refused(vae(data, AGE), "1 image has no numbers in", "the first is more.png")
    (tmp_path / "tree" / "metadata.csv").unlink()
    refused(vae(data, AGE), "has no metadata.csv")


def test_numbers_come_from_the_json_of_webdataset(tmp_path: Path) -> None:
    target = tmp_path / "set.tar"

    def write(told: dict[int, dict[str, Any]]) -> None:
        with tarfile.open(target, "w") as file:
            for number, age in enumerate(AGES):
                row = {
                    "age": float(age),
                    "pose": [number, -2 * number],
                    "label": number % 2,
                    "deep": {},
                }
                row = told.get(number, row)
                for name, content in (
                    (f"{number:03}.png", picture(age, number)),
                    (f"{number:03}.json", json.dumps(row).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))

    data = f"tar:{target}"
    write({})
    _, store = opened(vae(data, AGE))
    assert of_keys(store) == sorted((float(np.float32(x)),) for x in AGES)
    assert store.class_names == ("0", "1") and not store.found.not_read
    _, store = opened(vae(data, "data.conditions=[age, pose]", "data.labels=none"))
    assert [one.name for one in store.conditions] == ["age", "pose[0]", "pose[1]"]
    assert store.class_names is None
    refused(vae(data, "data.conditions=[agee]"), "no column 'agee'", "did you mean age?")
    refused(vae(data, "data.conditions=[deep]"), "deep")
    write({3: {"label": 1}, 4: {"age": None, "label": 0}})
    refused(vae(data, AGE), "2 images have no numbers in the .json files of", "is 003.png")
    write({3: {"age": "41", "label": 1}})
    refused(vae(data, AGE), "'age' of the .json files of", "is string; name columns of numbers")


def test_settings_that_would_ignore_numbers_are_refused(tmp_path: Path) -> None:
    data = parquet(tmp_path / "set")
    with pytest.raises(ExperimentError, match=r"data.conditions: .* set objective.conditional to"):
        vae(data, AGE, conditional=False)
    with pytest.raises(ExperimentError, match="conditions: this kind of data has no table"):
        vae("mnist5k", AGE)


# Labels


def test_labels_are_taken_apart() -> None:
    labels = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.5, 3.0]])
    both = Signature((5,), (1, 8, 8), 3, label_numbers=2)
    classes, numbers = parts_of_labels(labels, both)
    assert classes is not None and classes.tolist() == [2, 0] and classes.dtype == torch.int64
    assert numbers is not None and numbers.tolist() == [[0.5, -1.0], [1.5, 3.0]]
    alone = Signature((5,), (1, 8, 8), 0, label_numbers=3)
    assert parts_of_labels(labels, alone) == (None, labels)
    plain = Signature((5,), (1, 8, 8), 3)
    assert parts_of_labels(torch.tensor([1]), plain) == (torch.tensor([1]), None)
    assert parts_of_labels(None, both) == (None, None)


NETWORKS = [
    (Mlp, MLP, True),
    (ConvDecoder, CONV, True),
    (DcganGenerator, DCGAN, True),
    (Mlp, MLP, False),
    (ConvEncoder, CONV, False),
    (DcganDiscriminator, DCGAN, False),
]


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("kind", "options", "to_image"), NETWORKS)
def test_each_number_reaches_the_network(kind, options, to_image: bool, classes: int) -> None:
    ends = ((5,), (1, 8, 8)) if to_image else ((1, 8, 8), (5,))
    network = kind(Signature(*ends, classes, label_numbers=2), **options).eval()
    x = torch.randn(1, *ends[0]).repeat(3, *[1] * len(ends[0]))
    numbers = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.cat([torch.ones(3, 1), numbers], dim=1) if classes else numbers
    found = network(x, labels).detach()
    assert min(float((found[a] - found[b]).abs().max()) for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-5


def test_a_linear_network_is_the_equation() -> None:
    """W [z, e(y), c] + b."""
    signature = Signature((5,), (2,), 3, label_numbers=2)
    network = Mlp(signature, **{**MLP, "hidden_sizes": []})
    z, classes, numbers = torch.randn(4, 5), torch.tensor([0, 2, 1, 2]), torch.randn(4, 2)
    (layer,) = [part for part in network.modules() if isinstance(part, torch.nn.Linear)]
    assert network.label.table is not None
    joined = torch.cat([z, network.label.table(classes), numbers], dim=1)
    labels = torch.cat([classes.float()[:, None], numbers], dim=1)
    torch.testing.assert_close(network(z, labels), layer(joined))


def test_labels_are_standardised(tmp_path: Path) -> None:
    this, store = opened(vae(parquet(tmp_path / "set"), BOTH))
    labels = labels_of(this, store.train.labels, store.train.conditions)
    assert labels is not None and labels.dtype == torch.float32
    torch.testing.assert_close(labels[:, 1:].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(labels[:, 1:].std(0, correction=0), torch.ones(3))
    assert store.train.labels is not None
    assert torch.equal(labels[:, 0].long(), store.train.labels)


def test_samples_without_numbers_spread_over_the_data(tmp_path: Path) -> None:
    this, _ = opened(vae(parquet(tmp_path / "set"), BOTH))
    labels = labels_in_turn(this, torch.arange(300))
    assert labels is not None
    assert torch.equal(labels[:3], labels_in_turn(this, torch.arange(3)))
    assert torch.equal(labels[7:8], labels_in_turn(this, torch.tensor([7])))
    assert labels[:, 0].tolist() == [number % 3 for number in range(300)]
    assert float(labels[:, 1:].abs().max()) <= 2
    for number, told in enumerate(this.data.condition_statistics or (), 1):
        given = told.mean + told.deviation * labels[:, number].double()
        assert told.low - 1e-5 <= float(given.min()) and float(given.max()) <= told.high + 1e-5
        counts = torch.histc(labels[:, number], 10)
        assert int(counts.min()) >= 25  # of 30 in each tenth


# Training


def test_samples_follow_the_condition(tmp_path: Path) -> None:
    """A small conditional VAE learns that brightness is a linear function of the age."""
    fast = ("training.images=24000", "optimizers.autoencoder.learning_rate=5e-3")
    this, store = opened(vae(parquet(tmp_path / "set"), AGE, NO_CLASSES, *fast))
    assert (this.label_count, this.label_numbers) == (0, 1)
    pipeline = pipeline_of(this, store, tmp_path / "run")
    ages = np.linspace(25, 75, 40)
    images = pipeline.sample(40, seed=1, conditions={"age": ages})
    bright = images.mean((1, 2, 3)).numpy()
    assert np.corrcoef(ages, bright)[0, 1] > 0.95
    assert np.abs(bright - (ages - 10) / 80).mean() < 0.1
    same = pipeline.sample(40, seed=1, conditions={"age": 50})
    assert float(same.mean((1, 2, 3)).std()) < 0.5 * bright.std()


@pytest.mark.parametrize("network", ["mlp", "conv", "dcgan"])
@pytest.mark.parametrize("classes", [False, True])
def test_every_network_trains(tmp_path: Path, network: str, classes: bool) -> None:
    more = [] if classes else [NO_CLASSES]
    data = parquet(tmp_path / "set")
    for make in (vae, gan):
        this, store = opened(make(data, BOTH, *more, "training.images=48", network=network))
        pipeline = pipeline_of(this, store, tmp_path / make.__name__)
        given = {"age": 40, "pose[0]": [0.0, 1.0], "pose[1]": torch.tensor([1.0, 0.0])}
        assert pipeline.sample(2, seed=0, conditions=given).shape == (2, 1, SIDE, SIDE)
        assert pipeline.sample(70, seed=0).shape == (70, 1, SIDE, SIDE)


def test_a_users_objective_hands_numbers_on(tmp_path: Path) -> None:
    """Flow matching knows nothing of them, and its velocity learns to follow the age."""
    from tests.proofs.flow import experiment

    data = f"{{kind: parquet, path: {parquet(tmp_path / 'set').removeprefix('parquet:')}}}"
    fast = ("training.images=24000", "optimizers.velocity.learning_rate=3e-3")
    this = experiment(f"data={data}", AGE, NO_CLASSES, "objective.conditional=true", *fast)
    this, store = opened(this.with_fields(data__classes=None))
    ages = np.linspace(25, 75, 40)
    pipeline = pipeline_of(this, store, tmp_path / "run")
    bright = pipeline.sample(40, seed=1, conditions={"age": ages}).mean((1, 2, 3)).numpy()
    assert np.corrcoef(ages, bright)[0, 1] > 0.9


EXPERIMENTS = {
    "vae": (vae, (BOTH, "training.micro_batch_size=6"), {}),
    "conv-vae": (vae, (BOTH, NO_CLASSES), {"network": "conv"}),
    "dcgan": (gan, (BOTH, "objective.r1_weight=1", "objective.r1_every=3"), {}),
    "bf16": (gan, (BOTH, "training.precision=bf16"), {}),
}


@pytest.mark.parametrize("family", EXPERIMENTS)
def test_a_replayed_step_is_the_step(tmp_path: Path, family: str) -> None:
    make, overrides, options = EXPERIMENTS[family]
    this, store = opened(make(parquet(tmp_path / "set"), *overrides, **options))
    data = batches(this, build_objective(this), store, 0, 8)
    (ours, reported), (theirs, expected) = replayed(this, data), eager(this, data)
    assert largest_difference(weights(ours), weights(theirs)) == 0
    assert reported == expected


def test_two_workers_are_one_and_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    data = parquet(tmp_path / "set")
    streamed = ("data.placement=stream", "data.window_images=32")
    for number, more in enumerate(((), streamed)):
        this, store = opened(vae(data, BOTH, "training.precision=fp64", *more))
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (one,) = trained_by_workers(1, [this], store, folder)
        (two,) = trained_by_workers(2, [this], store, folder)
        assert largest_difference(one, two) < 1e-9
    state, _ = trained(this, store)
    half = this.with_fields(training__images=24 * 10)
    before, _ = trained(half, store)
    resumed, _ = trained(this, store, state=before)
    assert largest_difference(weights(resumed), weights(state)) == 0


def test_a_conditional_run_without_numbers_is_as_before(tmp_path: Path) -> None:
    """Classes travel as int64 (N,)."""
    this, store = opened(vae(parquet(tmp_path / "set")))
    ((_, labels),) = batches(this, build_objective(this), store, 0, 1)
    assert labels is not None and labels.dtype == torch.int64 and labels.shape == (24,)
    assert this.data.condition_statistics is None and store.conditions == ()


# Use


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional VAE on classes and three numbers."""
    folder = tmp_path_factory.mktemp("conditions")
    this, store = opened(vae(parquet(folder / "set"), BOTH, "training.images=480"))
    (folder / "run").mkdir()
    trained(this, store)[0].save(folder / "run", this)
    return folder / "run"


GIVEN = {"age": 40.0, "pose[0]": 0.5, "pose[1]": -0.5}


def test_what_a_pipeline_refuses(run: Path, tmp_path: Path) -> None:
    pipeline = load(run)
    images = torch.rand(2, 1, SIDE, SIDE)
    for given, message in (
        ({"age": 40}, r"pose\[0\] is missing; give exactly age \(from 20"),
        ({**GIVEN, "sex": 1}, "'sex' is no number of this run"),
        ({**GIVEN, "age": [1, 2, 3]}, r"conditions\['age'\]: 3 given for 2 images"),
        ({**GIVEN, "age": "old"}, r"conditions\['age'\]: 'old' is not a number"),
        ({**GIVEN, "age": float("nan")}, "not finite"),
        (40, "give a mapping by name"),
    ):
        with pytest.raises(Refused, match=message):
            pipeline.sample(2, conditions=given)  # pyright: ignore
    with pytest.raises(Refused, match="conditions: this run is conditional; give the numbers"):
        pipeline.encode(images, 1)
    with pytest.raises(Refused, match="labels: this run is conditional; give the classes"):
        pipeline.encode(images, conditions=GIVEN)
    plain, store = opened(vae(parquet(tmp_path / "set"), "training.images=48"))
    with pytest.raises(Refused, match="conditions: this run is conditional without conditions"):
        pipeline_of(plain, store, tmp_path / "plain").sample(2, conditions=GIVEN)


def test_encode_decode_and_walks_take_numbers(run: Path) -> None:
    pipeline = load(run)
    images = torch.rand(3, 1, SIDE, SIDE)
    z = pipeline.encode(images, [0, 1, 2], conditions=GIVEN)
    assert isinstance(z, Tensor)
    again = pipeline.decode(z, [0, 1, 2], conditions=GIVEN)
    torch.testing.assert_close(pipeline.reconstruct(images, [0, 1, 2], GIVEN), again)
    other = pipeline.decode(z, [0, 1, 2], conditions={**GIVEN, "age": 70})
    assert float((other - again).abs().max()) > 1e-4
    way = pipeline.interpolate(z, z.flip(0), 3, [0, 1, 2], conditions=GIVEN)
    torch.testing.assert_close(way[:, 0], again)
    rows = pipeline.traverse([0, 1], z[:1], steps=3, labels=0, conditions=GIVEN)
    torch.testing.assert_close(rows[:, 1], again[:1].expand(2, -1, -1, -1))
    assert pipeline.arithmetic([z], labels=0, conditions=GIVEN).shape == (1, 1, SIDE, SIDE)
    assert pipeline.features(images, 0, conditions=GIVEN).shape == (3, 3)


def test_one_label_for_all_is_that_label_for_each(run: Path) -> None:
    pipeline = load(run)
    drawn = pipeline.sample(4, 2, seed=3, conditions=GIVEN)
    each = {name: [number] * 4 for name, number in GIVEN.items()}
    assert torch.equal(drawn, pipeline.sample(4, [2] * 4, seed=3, conditions=each))
    torch.testing.assert_close(drawn[:2], pipeline.sample(2, 2, seed=3, conditions=GIVEN))
    assert not torch.equal(drawn, pipeline.sample(4, 2, seed=3))


def test_commands(run: Path, tmp_path: Path) -> None:
    def invoked(*words: str) -> Any:
        return CliRunner().invoke(main, [*words])

    numbers = [f"--condition={name}={number}" for name, number in GIVEN.items()]
    done = invoked(
        "sample", str(run), *numbers, "--count=4", "--labels=2", f"--output={tmp_path}/s.npz"
    )
    assert done.exit_code == 0, done.output
    images = torch.from_numpy(np.load(tmp_path / "s.npz")["images"])
    expected = load(run).sample(4, 2, seed=0, conditions=GIVEN).mul(255).round()
    assert torch.equal(images.permute(0, 3, 1, 2).float(), expected)
    done = invoked("sample", str(run), "--condition=age", f"--output={tmp_path}/s.npz")
    assert "--condition: 'age' is not NAME=NUMBER" in done.output
    done = invoked("sample", str(run), "--condition=age=3", f"--output={tmp_path}/s.npz")
    assert "pose[0] is missing" in done.output
    done = invoked("reconstruct", str(run), "--data", "--count=4", f"--output={tmp_path}/r.npz")
    assert done.exit_code == 0, done.output
    walk = f"--output={tmp_path}/w.npz"
    for words in (
        ("interpolate", "--rows=2", "--steps=3"),
        ("interpolate", "--rows=2", "--steps=3", *numbers),
        ("traverse", "--dimensions=0"),
        ("traverse", "--dimensions=0", "--base=5"),
    ):
        done = invoked(words[0], str(run), *words[1:], walk)
        assert done.exit_code == 0, done.output
    drawn = load(run).sample(6, seed=0)
    rows = torch.from_numpy(np.load(tmp_path / "w.npz")["images"])
    middle = rows.reshape(-1, SIDE, SIDE)[4].float() / 255
    assert float((middle - drawn[5, 0]).abs().max()) < 0.003
    picture = f"--output={tmp_path}/a.png"
    done = invoked("arithmetic", str(run), "--plus=0,3", "--labels=0", picture)
    assert "--condition: the samples have different numbers of age" in done.output
    done = invoked("arithmetic", str(run), "--plus=0,3", "--labels=0", *numbers, picture)
    assert done.exit_code == 0, done.output


def test_exported_programs_take_numbers_in_the_units_of_the_data(run: Path, tmp_path: Path) -> None:
    pipeline = load(run)
    made = export(run, tmp_path / "out")
    assert not made.notes
    names = {program.name: program.inputs for program in programs.programs_of(pipeline)[0]}
    assert names == {
        "decoder": ("z", "labels", "conditions"),
        "encoder": ("images", "labels", "conditions"),
    }
    z, classes = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    numbers = torch.tensor([list(GIVEN.values())]).repeat(4, 1)
    expected = pipeline.decode(z, classes, conditions=GIVEN)
    loaded = torch.export.load(tmp_path / "out" / "decoder.pt2").module()
    torch.testing.assert_close(loaded(z, classes, numbers), expected, atol=1e-5, rtol=0)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "decoder.onnx"))
    given = {"z": z.numpy(), "labels": classes.numpy(), "conditions": numbers.numpy()}
    (images,) = session.run(None, given)
    torch.testing.assert_close(torch.from_numpy(images), expected, atol=1e-5, rtol=0)
    again = Pipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(again.decode(z, classes, conditions=GIVEN), expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Conditions are float32 (N, 3)" in card and "age (20" in card


def test_metrics_draw_samples_with_the_labels_of_the_reference(run: Path) -> None:
    pipeline = load(run)
    this = pipeline.experiment
    store = with_labels_of(open_data(this), this, "--reference")
    expected = labels_of(this, open_data(this).train.labels, store.train.conditions)
    assert store.train.labels is not None and expected is not None
    assert torch.equal(store.train.labels, expected)
    with pytest.raises(DataError, match="--reference: its images have not the numbers age, pose"):
        with_labels_of(replace(store, conditions=()), this, "--reference")
    from ray_gen.distributed import World

    settings = Evaluation(metrics=("likelihood",), count=8)
    evaluator = Evaluator(settings, store, "data", World())
    subject = subject_of(this, pipeline.objective, pipeline.networks, {})
    found = {score.name: score.value for score in evaluator.scores(subject)}
    assert found and all(np.isfinite(list(found.values())))
    assert len(SplitImages(store, "train", "data", torch.device("cpu"))) == len(store.train)
