"""`ray-gen encode`: the latents of a run's encoder, and the autoencoder beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import ray_gen
from ray_gen.cli import main
from ray_gen.data import ImageFolder, open_store
from ray_gen.data.errors import DataError
from ray_gen.data.sources.latents import LatentManifest
from ray_gen.data.sources.parquet import MANIFEST
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.launch.encode import encode
from ray_gen.launch.start import take_autoencoder
from ray_gen.pipeline import encoder as of_encoder
from ray_gen.pipeline.encoder import encoder_of
from ray_gen.pipeline.loading import load_as
from ray_gen.pipeline.model import Model
from ray_gen.pixels import unit
from ray_gen.precision import full_precision
from ray_gen.runs.checkpoints import NEWEST
from ray_gen.storage import Folder, StorageError
from ray_gen.training.build import build_objective
from ray_gen.training.sources import open_data, resolved_by
from ray_gen.training.state import State
from tests.data.pictures import damage, write_classes
from tests.data.test_stream import write
from tests.helpers import random_store, vae
from tests.proofs import latent_autoencoder
from tests.runs import SHORT, saved

SHAPE = (2, 4, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder `run` and images `pictures`."""
    place = tmp_path_factory.mktemp("encode")
    this = latent_autoencoder.experiment(SHORT)
    saved(this, random_store(8), place / "run")
    write_classes(place / "pictures", {"cat": 20, "dog": 30})
    return place


@pytest.fixture(scope="module")
def latents(place: Path) -> Path:
    """The latents of the images."""
    told = encode(
        place / "run", str(place / "latents"), str(place / "pictures"),
        precision="fp32", flips=True, local=True, shard_images=30, group_images=8,
    )  # fmt: skip
    assert sum(told["images"].values()) == 50
    return place / "latents"


def all_rows(folder: Path) -> dict[str, Any]:
    table = pq.read_table(sorted(folder.glob("*.parquet")))
    return {name: np.stack(table[name].to_numpy()) for name in table.column_names}


def test_rows_are_the_posteriors_of_the_images(place: Path, latents: Path, tmp_path: Path) -> None:
    pipeline = ray_gen.load(place / "run")
    store = open_store(
        ImageFolder(path=str(place / "pictures")), image_size=8, center_crop=None, channels=1,
        held_out_fraction=0.1, on_corrupt="stop", cache_folder=tmp_path,
    )  # fmt: skip
    pixels = torch.cat([store.train.images_NHWC, store.held_out.images_NHWC])
    images = unit(pixels.permute(0, 3, 1, 2))
    rows = all_rows(latents)
    for seen, suffix in ((images, ""), (images.flip(3), "_flipped")):
        mean, log_variance = pipeline.posterior(seen)
        assert log_variance is not None
        of_image = torch.cat([mean, (0.5 * log_variance).exp()], dim=1).flatten(1).numpy()
        stored = np.concatenate([rows[f"mean{suffix}"], rows[f"std{suffix}"]], axis=1)
        # The rows are in another order.
        assert np.allclose(
            stored[np.lexsort(stored.T)], of_image[np.lexsort(of_image.T)], atol=1e-6
        )
    assert sorted(rows["label"]) == [0] * 20 + [1] * 30


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_datasets_reads_the_rows(
    place: Path, tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    folder = tmp_path / "latents"
    encode(place / "run", str(folder), str(place / "pictures"), precision=precision, local=True)
    read = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(read) == {"train", "validation"}
    for split in read:
        rows = read[split].with_format("numpy")
        own = pq.read_table(sorted(folder.glob(f"{split}-*.parquet")))
        assert rows.column_names == own.column_names and len(rows) == len(own) > 0
        for name in own.column_names:
            assert np.array_equal(rows[:][name], np.stack(own[name].to_numpy())), name
        assert rows.features["mean"].length == np.prod(SHAPE)
    assert len(read["train"]) + len(read["validation"]) == 50


def test_the_folder_holds_the_autoencoder_and_says_what_it_is(place: Path, latents: Path) -> None:
    own, kept = ray_gen.load(place / "run"), ray_gen.load(latents / "autoencoder")
    z = torch.randn(3, *SHAPE)
    assert torch.equal(own.decode(z), kept.decode(z))
    told = json.loads((latents / MANIFEST).read_text())["latents"]
    assert told["shape_CHW"] == [*SHAPE] and told["downsampling"] == 2
    assert told["autoencoder"]["digest"] == kept.origin.weights == own.origin.weights
    assert told["source"]["path"] == str(place / "pictures")
    assert told["source"]["image_size"] == [8, 8] and told["source"]["channels"] == 1


def test_a_run_that_was_cut_off_goes_on_and_another_encoder_is_refused(
    place: Path, latents: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    given: dict[str, Any] = {"flips": True, "local": True, "shard_images": 30, "group_images": 8}
    source, to = str(place / "pictures"), str(tmp_path / "cut")
    put = Folder.put

    def full(folder: Folder, file: Path, name: str) -> None:
        if "00001" in name:
            raise OSError(28, "No space left on device")
        put(folder, file, name)

    monkeypatch.setattr(Folder, "put", full)
    with pytest.raises(StorageError, match=r"No space left on device.*give the same command again"):
        encode(place / "run", to, source, precision="fp32", **given)
    monkeypatch.undo()
    with pytest.raises(Refused, match="holds latents with --precision fp32; choose another folder"):
        encode(place / "run", to, source, precision="fp16", **given)
    other = latent_autoencoder.experiment(SHORT, "seed=1")
    saved(other, random_store(8), tmp_path / "other")
    with pytest.raises(Refused, match=r"holds latents with the encoder [0-9a-f]{12}; choose"):
        encode(tmp_path / "other", to, source, precision="fp32", **given)
    encode(place / "run", to, source, precision="fp32", **given)
    for file in latents.glob("*.parquet"):
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes()


def test_what_is_missing_or_cut_off_is_told_and_written_again(
    place: Path, latents: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    again = tmp_path / "again"
    shutil.copytree(latents, again)
    files = [file.relative_to(latents) for file in latents.rglob("*") if file.is_file()]
    whole = {str(file): (latents / file).read_bytes() for file in files}

    def write() -> None:
        encode(
            place / "run", str(again), str(place / "pictures"),
            precision="fp32", flips=True, local=True, shard_images=30, group_images=8,
        )  # fmt: skip
        for name, content in whole.items():
            assert (again / name).read_bytes() == content, name

    def read() -> Experiment:
        data = {"kind": "latents", "path": str(again)}
        this = vae("objective.likelihood=gaussian").with_fields(data=data)
        return resolved_by(this, open_data(this))

    shard = sorted(again.glob("train-*.parquet"))[0]
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name} in .* is missing, by the _manifest.json"):
        read()
    write()
    shard.write_bytes(whole[shard.name][:-100])
    with pytest.raises(DataError, match=rf"{shard.name} in .* is not whole, by the _manifest.json"):
        read()
    write()
    (again / "_parts" / "00000.json").write_text('{"skipped": 0, "spl')
    write()
    untouched = (again / "autoencoder" / "model.safetensors").stat().st_mtime_ns
    write()
    assert (again / "autoencoder" / "model.safetensors").stat().st_mtime_ns == untouched
    for file in ("config.json", "model.safetensors"):
        (again / "autoencoder" / file).unlink()
        with pytest.raises(DataError, match=rf"the autoencoder in .* has no {file}; run the same"):
            read()
        write()
    (again / "autoencoder" / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"autoencoder/config.json is damaged; run the same"):
        read()
    write()
    manifest = json.loads(whole[MANIFEST])
    del manifest["latents"]["autoencoder"]
    (again / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"_manifest.json is damaged; run the same"):
        read()
    write()
    weights = again / "autoencoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    this = read()
    state = State.build(this, build_objective(this), World())
    with pytest.raises(Refused, match=r"the autoencoder in .*again/autoencoder is damaged, or ano"):
        take_autoencoder(this, state)
    write()
    take_autoencoder(this, state)
    (again / "_plan.json").write_text("{")
    with pytest.raises(Refused, match=r"_plan.json is damaged, so what lies there is unknown"):
        write()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("statistics", "mean"), [0.0]),
        (("statistics", "std"), [float("nan"), 1.0]),
        (("shape_CHW",), "large"),
        ((), []),
    ],
)
def test_a_damaged_manifest_is_told(
    latents: Path, tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    told = json.loads((latents / MANIFEST).read_text())
    here = told
    for name in ("latents", *path)[:-1]:
        here = here[name]
    here[("latents", *path)[-1]] = value
    (tmp_path / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"_manifest.json is damaged; run the same ray-gen encode"):
        LatentManifest.read(str(tmp_path))


def test_latents_of_a_later_format_are_told(latents: Path, tmp_path: Path) -> None:
    told = json.loads((latents / MANIFEST).read_text())
    told["latents"]["format"] = 2
    (tmp_path / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(DataError, match="has format 2 of a later version of ray_gen"):
        LatentManifest.read(str(tmp_path))


def test_half_a_manifest_and_no_folder_are_told(latents: Path, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text((latents / MANIFEST).read_text()[:200])
    with pytest.raises(DataError, match=r"_manifest.json is damaged; run the same ray-gen encode"):
        LatentManifest.read(str(tmp_path))
    with pytest.raises(DataError, match=r"nowhere does not exist on the machine that reads it"):
        LatentManifest.read(str(tmp_path / "nowhere"))


def test_an_encoding_that_wrote_nothing_does_not_keep_its_folder(
    place: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    with pytest.raises(DataError, match="does not exist"):
        encode(place / "run", str(to), str(tmp_path / "nowhere"), local=True)
    assert not to.exists()
    to.mkdir()
    with pytest.raises(DataError, match="does not exist"):
        encode(place / "run", str(to), str(tmp_path / "nowhere"), local=True)
    assert to.exists()  # the user's
    write_classes(tmp_path / "damaged", {"cat": 1})
    for file in (tmp_path / "damaged").rglob("*.png"):
        damage(file)
    with pytest.raises(DataError, match="cannot be decoded"):
        encode(place / "run", str(to), str(tmp_path / "damaged"), local=True)
    told = encode(place / "run", str(to), str(place / "pictures"), local=True)
    assert sum(told["images"].values()) == 50


def test_somebody_elses_files_stay(place: Path, tmp_path: Path) -> None:
    for name in ("_plan.json", "notes.txt"):
        to = tmp_path / name.strip("_")
        to.mkdir()
        (to / name).write_text("{}")
        with pytest.raises(Refused, match="choose another folder"):
            encode(place / "run", str(to), str(place / "pictures"), local=True)
        assert [file.name for file in to.iterdir() if file.is_file()] == [name]
        assert (to / name).read_text() == "{}"


def test_what_has_no_map_of_latents_is_refused(place: Path, tmp_path: Path) -> None:
    vector = saved(vae(SHORT), random_store(8), tmp_path / "vae")
    with pytest.raises(Refused, match=r"its latents are z \(5,\), and only one map"):
        encode(vector, str(tmp_path / "to"), str(place / "pictures"))


@pytest.mark.parametrize("named", [False, True])
def test_what_a_stream_held_out_is_held_out_of_the_latents(
    named: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    """A stream holds out whole row groups. named: the run's own data as SOURCE."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "data" / "a.parquet", range(70), raw=True, group=5)
    write(tmp_path / "data" / "b.parquet", range(70, 120), raw=True, group=10)
    data = str(tmp_path / "data")
    asked = latent_autoencoder.experiment(
        SHORT, f"data=parquet:{data}", "data.placement=stream", "data.held_out_fraction=0.25"
    )
    store = open_data(asked)
    saved(resolved_by(asked, store), store, tmp_path / "run")
    told = encode(
        tmp_path / "run", str(tmp_path / "to"), data if named else None,
        precision="fp32", local=True, shard_images=50,
    )  # fmt: skip
    assert store.stream is not None and 0 < len(store.held_out) < 40
    assert told["images"] == {"train": store.stream.rows, "validation": len(store.held_out)}
    pipeline = ray_gen.load(tmp_path / "run")
    for split, prefix in ((store.held_out, "validation"), (store.train, "train")):
        mean, _ = pipeline.posterior(unit(split.images_NHWC.permute(0, 3, 1, 2)))
        wanted = mean.flatten(1).numpy()
        table = pq.read_table(sorted((tmp_path / "to").glob(f"{prefix}-*.parquet")))
        found = np.stack(table["mean"].to_numpy())
        assert np.allclose(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)], atol=1e-5)
    again = latent_autoencoder.experiment(SHORT).with_fields(data=told["latents"]["source"])
    compared = open_data(again)
    assert torch.equal(compared.held_out.images_NHWC, store.held_out.images_NHWC)


def test_gpus_encode_without_tf32(place: Path, monkeypatch: Any) -> None:
    """Its numbers would depend on the kind of GPU."""
    run = str(place / "run")
    model = load_as(Model, run)
    encoder = encoder_of(model, run, NEWEST, trust_code=False)
    images = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    seen: list[bool] = []
    network = encoder._model.networks["encoder"]
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    encoder(images)
    monkeypatch.setattr(
        of_encoder, "full_precision", lambda device: full_precision(torch.device("cuda"))
    )
    encoder(images)
    assert seen == [True, False] and torch.backends.cudnn.allow_tf32


def test_check_says_what_training_would_do(latents: Path, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path))
    asked = ["data", "check", f"latents:{latents}", "data.flip=true"]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "of 4×4, latents of 2 channels (drawn from q(z|x), mirrored images too)" in done.output
    assert "channel 1: mean" in done.output and "2 classes" in done.output


def test_the_command_line(place: Path, tmp_path: Path) -> None:
    arguments = ["encode", str(place / "run"), str(place / "pictures"), str(tmp_path / "to")]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "2x4x4" in done.output
    assert f"data=latents:{tmp_path / 'to'}\n" in done.output
    assert all_rows(tmp_path / "to")["mean"].dtype == np.float16


def test_the_command_line_says_what_flips_and_corrupt_images_came_to(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "images": {"train": 5},
        "latents": {
            "shape_CHW": [2, 4, 4],
            "moments": ["mean", "std", "mean_flipped", "std_flipped"],
            "statistics": {"std_of_all": 1.0},
        },
    }
    one, two = ", 1 corrupt image skipped", ", 2 corrupt images skipped"
    for skipped, words in ((0, ""), (1, one), (2, two)):
        given = {**told, "skipped": skipped}
        monkeypatch.setattr("ray_gen.launch.encode.encode", lambda *_, given=given, **__: given)
        arguments = ["encode", str(place / "run"), str(tmp_path / "to"), "--flips"]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        first, last = done.output.splitlines()[-2:]
        assert f"deviation 1{words}" in first and ("skipped" in first) == (skipped > 0)
        assert last.endswith(f"data=latents:{tmp_path / 'to'} data.flip=true")
