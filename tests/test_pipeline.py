"""A trained run in two lines: without its data, without Ray, whatever the count."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ray_gen
from ray_gen.errors import Refused
from ray_gen.runs import pictures
from ray_gen.runs.checkpoints import checkpoint_name, checkpoints, commit, prune
from ray_gen.runs.manifest import OPTIMIZERS
from ray_gen.storage import Folder, StorageError
from tests.helpers import gan, trained, vae


@pytest.fixture(scope="module")
def run(store_8, tmp_path_factory) -> Path:
    """A run folder of a conditional DCGAN with one checkpoint."""
    experiment = gan("objective.conditional=true", kind="dcgan")
    state, reports = trained(experiment, store_8)
    folder = tmp_path_factory.mktemp("runs") / "run"
    made = folder.parent / "made"
    made.mkdir()
    state.save(made, experiment, reports[-1].metrics)
    commit(made, Folder(str(folder)), checkpoint_name(480))
    return folder


def test_equal_seeds_give_equal_images_and_no_image_depends_on_the_count(run: Path) -> None:
    pipeline = ray_gen.load(run)
    few, many = pipeline.sample(3, seed=5), pipeline.sample(300, seed=5)
    assert few.shape == (3, 1, 8, 8)
    assert 0.0 <= float(few.min()) <= float(few.max()) <= 1.0
    torch.testing.assert_close(many[:3], few)
    assert not torch.equal(pipeline.sample(3, seed=6), few)
    assert not torch.equal(pipeline.sample(3), pipeline.sample(3))


def test_labels_are_numbers_or_names(run: Path) -> None:
    pipeline = ray_gen.load(run)
    threes = pipeline.sample(2, labels=3, seed=0)
    assert torch.equal(pipeline.sample(2, labels=["3", 3], seed=0), threes)
    assert torch.equal(pipeline.sample(2, labels=torch.tensor([3, 3]), seed=0), threes)
    assert not torch.equal(pipeline.sample(2, labels=4, seed=0), threes)
    for wrong in (10, -1, "three", [3, 11]):
        with pytest.raises(Refused, match="labels: there is no class"):
            pipeline.sample(2, labels=wrong)
    with pytest.raises(Refused, match="labels: 3 given for 2"):
        pipeline.sample(2, labels=[1, 2, 3])


def test_ema_weights_are_what_is_sampled_unless_raw_ones_are_asked_for(run: Path) -> None:
    ema, raw = (ray_gen.load(run, weights=kind) for kind in ("ema", "raw"))
    assert not torch.equal(ema.sample(2, seed=0), raw.sample(2, seed=0))


def test_weights_and_devices_that_there_are_none_of_are_refused(run: Path, tmp_path: Path) -> None:
    exported = ray_gen.load(run).save_pretrained(tmp_path / "out")
    for model in (run, exported):
        for wrong in ("foo", "EMA", None):
            with pytest.raises(Refused, match=f"weights: {wrong!r} is neither 'ema'.* nor 'raw'"):
                ray_gen.load(model, weights=wrong)  # pyright: ignore[reportArgumentType]
        for wrong in ("foo", []):
            with pytest.raises(Refused, match=r"device: torch does not know .*cuda:1"):
                ray_gen.load(model, device=wrong)  # pyright: ignore[reportArgumentType]
        if not torch.cuda.is_available():
            with pytest.raises(Refused, match="device: cuda cannot be used: "):
                ray_gen.load(model, device="cuda")
    with pytest.raises(Refused, match="weights: 'foo' is neither"):
        ray_gen.export(ray_gen.load(run), tmp_path / "new", weights="foo")  # pyright: ignore
    assert not (tmp_path / "new").exists()


def test_a_run_goes_by_its_folder_whichever_of_its_checkpoints_is_named(run: Path) -> None:
    checkpoint = run / checkpoint_name(480)
    for place in (run, checkpoint, f"{run}/", f"file://{checkpoint}"):
        assert ray_gen.load(place).name == "run"


def test_sampling_changes_no_weight_and_no_statistic(run: Path) -> None:
    pipeline = ray_gen.load(run)
    before = {key: value.clone() for key, value in pipeline.networks.state_dict().items()}
    pipeline.sample(10, seed=0)
    assert all(torch.equal(before[k], v) for k, v in pipeline.networks.state_dict().items())


def test_sampling_needs_neither_ray_nor_the_data_nor_torchvision(run: Path) -> None:
    code = f"""
import sys
for name in ("ray", "torchvision", "tensorboard", "pyarrow"):
    sys.modules[name] = None
import ray_gen
assert ray_gen.load({str(run)!r}).sample(4, seed=0).shape == (4, 1, 8, 8)
assert "ray_gen.pipeline.export" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_that_is_none_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"{tmp_path}/no: there is no such run"):
        ray_gen.load(tmp_path / "no")
    with pytest.raises(Refused, match="neither a run folder nor a checkpoint"):
        ray_gen.load(tmp_path)
    (tmp_path / "experiment.yaml").write_text("")
    with pytest.raises(Refused, match="no complete checkpoint yet"):
        ray_gen.load(tmp_path)


def test_an_unconditional_vae_takes_no_labels_and_an_autoencoder_has_no_prior(
    store_8, tmp_path: Path
) -> None:
    small = "training.images=24"
    for name, experiment, sentence in (
        ("vae", vae(small), "labels: this run is not conditional"),
        ("ae", vae(small, "objective={kind: autoencoder, latent_size: 3}"), "has no prior"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        trained(experiment, store_8)[0].save(folder, experiment)
        with pytest.raises(Refused, match=sentence):
            ray_gen.load(folder).sample(2, labels=1)


def test_samples_are_written_as_a_grid_an_array_or_files(run: Path, tmp_path: Path) -> None:
    pipeline = ray_gen.load(run)
    images = pipeline.sample(5, seed=0)
    expected = pictures.to_bytes(images)
    for output in ("a.png", "a.npz", "folder"):
        pictures.save_samples(pipeline.batches(5, None, 0), 5, tmp_path / output)
    assert Image.open(tmp_path / "a.png").size == (3 * 10 + 2, 2 * 10 + 2)
    assert np.array_equal(np.load(tmp_path / "a.npz")["images"], expected)
    files = sorted((tmp_path / "folder").iterdir())
    assert len(files) == 5
    assert np.array_equal(np.asarray(Image.open(files[4])), expected[4, :, :, 0])


def test_only_the_newest_checkpoints_are_kept_and_ones_cut_off_do_not_count(
    run: Path, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path / "run"))
    whole = next(iter(run.glob("checkpoint_0*")))
    for images in (10, 200, 3000):
        commit(whole, folder, checkpoint_name(images))
    folder.write_text("checkpoint_manager_snapshot.json", "{}")
    (folder.path / checkpoint_name(40_000)).mkdir()
    (folder.path / checkpoint_name(40_000) / "networks.safetensors").write_bytes(b"cut off")
    assert [found.name for found in checkpoints(folder)] == [
        checkpoint_name(images) for images in (3000, 200, 10)
    ]
    prune(folder, 2)
    assert folder.names() == [
        checkpoint_name(200),
        checkpoint_name(3000),
        "checkpoint_manager_snapshot.json",
    ]


def test_a_checkpoint_that_cannot_be_stored_leaves_the_others_and_nothing_half_made(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = Folder(str(tmp_path / "run"))
    whole = next(iter(run.glob("checkpoint_0*")))
    commit(whole, folder, checkpoint_name(1))

    def full(source: str, target: str) -> None:
        Path(target).write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    for name in (checkpoint_name(1), checkpoint_name(2)):
        with pytest.raises(StorageError, match=r"storage: .*No space left on device"):
            commit(whole, folder, name)
    assert folder.names() == [checkpoint_name(1)]
    assert ray_gen.load(folder.path).sample(1, seed=0).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_behind_a_uri_behaves_as_one_on_disk(
    run: Path, tmp_path: Path, scheme: str
) -> None:
    folder = Folder(f"{scheme}{tmp_path / 'run'}")
    assert folder.names() == []
    assert not folder.exists()
    commit(next(iter(run.glob("checkpoint_0*"))), folder, checkpoint_name(7))
    folder.write_text("experiment.yaml", "x")
    assert folder.read_text("experiment.yaml") == "x"
    assert folder.names() == [checkpoint_name(7), "experiment.yaml"]
    with pytest.raises(FileNotFoundError):
        folder.read_text("none")
    first = ray_gen.load(folder.location).sample(2, seed=0)
    assert torch.equal(first, ray_gen.load(run).sample(2, seed=0))
    folder.remove(checkpoint_name(7))
    folder.remove("experiment.yaml")
    folder.remove("none")
    assert folder.names() == []


def test_a_folder_behind_a_uri_with_a_query_keeps_it_at_the_end() -> None:
    runs = Folder("s3://bucket/runs?endpoint_override=host:9000&scheme=http")
    run = runs / "a"
    assert run.location == "s3://bucket/runs/a?endpoint_override=host:9000&scheme=http"
    assert run.name == "a"
    assert run.parent == runs


def test_what_is_refused_travels_between_processes_word_for_word() -> None:
    for refused in (
        ray_gen.ExperimentError(["a.b: is wrong", "c: is missing"]),
        StorageError("storage: full"),
        Refused("labels: none"),
    ):
        assert str(pickle.loads(pickle.dumps(refused))) == str(refused)


@pytest.mark.parametrize("where", ["disk", "s3"])
@pytest.mark.parametrize("how", ["gone", "truncated", "one bit"])
def test_a_damaged_file_of_the_optimisers_concerns_no_model(
    run: Path, tmp_path: Path, where: str, how: str, request
) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    file = copied / checkpoint_name(480) / OPTIMIZERS
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:9] if how == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    given = Folder(str(copied))
    if where == "s3":
        given = Folder(request.getfixturevalue("s3").new_bucket()) / "run"
        given.put(copied, "")
    pipeline, before = ray_gen.load(given.location), ray_gen.load(run)
    assert torch.equal(pipeline.sample(3, seed=0), before.sample(3, seed=0))
    images = before.sample(3, seed=0)
    assert torch.equal(
        pipeline.discriminate(images, labels=[1, 2, 3]),
        before.discriminate(images, labels=[1, 2, 3]),
    )
