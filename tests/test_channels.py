"""Images of any channels and of 16 bits, all the way: from training to files and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import ray_gen
from ray_gen.cli import main
from ray_gen.data import Split, Store
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.pipeline.export import export
from ray_gen.pixels import PixelFormat
from ray_gen.runs import pictures
from ray_gen.runs.writer import RunWriter
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.state import State
from tests.helpers import CLASSES, gan, vae

KINDS = [
    (2, 8, False),
    (2, 8, True),
    (4, 8, False),
    (4, 8, True),
    (5, 8, False),
    (16, 8, False),
    (1, 16, False),
    (4, 16, True),
    (5, 16, False),
]
"""Channels, bits, and whether the last channel is opacity."""


def store_of(channels: int, bits: int) -> Store:
    """72 random images of 8 x 8 with labels, 24 of them held out."""
    generator = torch.Generator().manual_seed(1)

    def split(size: int) -> Split:
        levels = torch.randint(0, 2**bits, (size, 8, 8, channels), generator=generator)
        images = levels.to(torch.uint16 if bits == 16 else torch.uint8)
        return Split(images, torch.randint(0, 10, (size,), generator=generator))

    return Store(split(72), split(24), CLASSES, skipped=0, path=Path(), label_count=10)


def of_channels(this: Experiment, channels: int, bits: int, opacity: bool) -> Experiment:
    return this.with_fields(data__channels=channels, data__bits=bits, data__opacity=opacity)


MODELS: dict[str, Any] = {
    "vae": lambda: vae("training.images=48", kind="conv"),
    "gan": lambda: gan(
        "training.images=48", "objective.augment=[color, translation]", kind="dcgan"
    ),
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A run folder of a model, with its pictures; trained once."""
    made: dict[tuple[str, int, int, bool], Path] = {}

    def of(model: str, channels: int, bits: int, opacity: bool = False) -> Path:
        if (model, channels, bits, opacity) not in made:
            folder = tmp_path_factory.mktemp(f"{model}-{channels}-{bits}-{opacity}")
            this = of_channels(MODELS[model](), channels, bits, opacity)
            objective = build_objective(this)
            state = State.build(this, objective, World())
            store = store_of(channels, bits)
            writer = RunWriter(Folder(str(folder)), this, objective, store, state)
            for report in train(this, objective, state, store, World()):
                writer.report(report)
            writer.close()
            checkpoint = folder / "checkpoint_000000000048"
            checkpoint.mkdir()
            state.save(checkpoint, this)
            made[model, channels, bits, opacity] = folder
        return made[model, channels, bits, opacity]

    return of


def tags_of(run: Path) -> set[str]:
    """Tags of the pictures in TensorBoard."""
    (file,) = (run / "tensorboard").glob("events*")
    values = [v for event in EventFileLoader(str(file)).Load() for v in event.summary.value]
    return {value.tag for value in values if value.tag.startswith("images/")}


@pytest.mark.parametrize(("channels", "bits", "opacity"), KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_a_run_shows_its_images(
    run_of, model: str, channels: int, bits: int, opacity: bool
) -> None:
    run = run_of(model, channels, bits, opacity)
    names = {"real", "samples", *(["reconstructions"] if model == "vae" else [])}
    apart = channels > 3 and not opacity
    more = f"_channels_1-3_of_{channels}" if apart else ""
    assert tags_of(run) == {f"images/{name}{more}" for name in names}
    files = {file.name.partition("_")[0].removesuffix(".png") for file in run.glob("samples/*")}
    assert files == names
    for file in run.glob("samples/*.png"):
        with Image.open(file) as image:
            assert image.mode == ("L" if channels - opacity == 1 else "RGB")
    real = np.asarray(Image.open(run / "samples" / "real.png"))
    real = real[::4, ::4]  # small images are shown larger
    shown = pictures.viewed(
        store_of(channels, bits).train.images_NHWC[:1].permute(0, 3, 1, 2).float() / (2**bits - 1),
        opacity=opacity,
    )
    tile = real[2:10, 2:10].reshape(8, 8, -1)
    assert np.abs(tile.astype(int) - pictures.to_bytes(shown)[0]).max() <= 1


@pytest.mark.parametrize(("channels", "bits", "opacity"), KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_samples_are_files_that_the_run_reads_again(
    run_of, tmp_path: Path, model: str, channels: int, bits: int, opacity: bool
) -> None:
    run = run_of(model, channels, bits, opacity)
    pipeline = ray_gen.load(run)
    images = pipeline.sample(5, seed=0)
    assert images.shape == (5, channels, 8, 8) and images.dtype == torch.float32
    expected = pictures.to_levels(images, PixelFormat(bits, opacity=opacity))

    def sampled(name: str) -> Path:
        arguments = ["sample", str(run), "--count", "5", "--output", str(tmp_path / name)]
        ended = CliRunner().invoke(main, arguments)
        assert ended.exit_code == 0, ended.output
        apart = channels > 3 and not opacity
        assert ("channels 1 to 3" in ended.output) == (name == "a.png" and apart)
        return tmp_path / name

    assert Image.open(sampled("a.png")).mode == ("L" if channels - opacity == 1 else "RGB")
    assert np.array_equal(np.load(sampled("a.npz"))["images"], expected)
    files = sorted(sampled("folder").iterdir())
    for file, levels in zip(files, expected, strict=True):
        found = tifffile.imread(file) if file.suffix == ".tiff" else np.asarray(Image.open(file))
        assert np.array_equal(found.reshape(levels.shape), levels)
    again = pipeline.read(tmp_path / "folder")
    torch.testing.assert_close(again, images, atol=0.51 / (2**bits - 1), rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_samples_of_12_bits_have_12_bits_and_are_read_so(
    run_of, tmp_path: Path, channels: int
) -> None:
    bits, opacity = (8, True) if channels == 2 else (16, False)
    trained = ray_gen.load(run_of("vae", channels, bits, opacity))
    data = {"data__value_range": (0, 4095), "data__bits": 16}
    this = trained.experiment.with_fields(**data)
    pipeline = ray_gen.Pipeline(this, trained.objective, trained.networks)
    assert pipeline.pixel_format == PixelFormat(16, (0, 4095), opacity)
    images = pipeline.sample(3, seed=0)
    said = pictures.save_samples(iter([images]), 3, tmp_path / "12", form=pipeline.pixel_format)
    assert said.endswith(", values 0 to 4,095 as in the data")
    first = next(iter(sorted((tmp_path / "12").iterdir())))
    found = tifffile.imread(first) if first.suffix == ".tiff" else np.asarray(Image.open(first))
    colours = found.reshape(8, 8, channels)[..., : 1 if channels == 2 else channels]
    assert 255 < colours.max() <= 4095
    torch.testing.assert_close(
        pipeline.read(tmp_path / "12"), images, atol=0.51 / 4095 + 0.51 / 65_535, rtol=0
    )


@pytest.mark.parametrize("value_range", ["auto", "full", (0.0, 1.0), (-3.0, 5.5)])
def test_files_of_16_bits_are_read_by_runs_whose_data_had_none(
    run_of, tmp_path: Path, value_range: Any
) -> None:
    trained = ray_gen.load(run_of("vae", 1, 16))
    this = trained.experiment.with_fields(data__value_range=value_range)
    pipeline = ray_gen.Pipeline(this, trained.objective, trained.networks)
    assert pipeline.pixel_format == PixelFormat(16)
    images = pipeline.sample(3, seed=0)
    pictures.save_samples(iter([images]), 3, tmp_path / "16", form=pipeline.pixel_format)
    torch.testing.assert_close(pipeline.read(tmp_path / "16"), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("channels", "bits", "opacity"), KINDS)
def test_images_are_encoded_reconstructed_and_walked_between(
    run_of, tmp_path: Path, channels: int, bits: int, opacity: bool
) -> None:
    pipeline = ray_gen.load(run_of("vae", channels, bits, opacity))
    images = torch.rand(3, channels, 8, 8)
    assert pipeline.encode(images).shape == (3, 5)
    assert pipeline.reconstruct(images).shape == images.shape
    rows = pipeline.interpolate(images[:2], images[1:], steps=3)
    assert rows.shape == (2, 3, channels, 8, 8)
    pictures.save_rows(rows, tmp_path / "a.gif", form=pipeline.pixel_format)
    run = str(run_of("vae", channels, bits, opacity))
    for command in (
        ["interpolate", run, "--steps", "3", "--output", str(tmp_path / "b.npz")],
        ["arithmetic", run, "--plus", "0,1", "--minus", "2", "--output", str(tmp_path / "c.png")],
        ["traverse", run, "--dimensions", "0-2", "--output", str(tmp_path / "d.png")],
    ):
        ended = CliRunner().invoke(main, command)
        assert ended.exit_code == 0, ended.output
    assert np.load(tmp_path / "b.npz")["images"].dtype == np.dtype(f"uint{bits}")


def test_a_discriminator_judges_images_of_many_channels(run_of) -> None:
    pipeline = ray_gen.load(run_of("gan", 5, 8))
    assert pipeline.discriminate(torch.rand(3, 5, 8, 8)).shape == (3,)


@pytest.mark.parametrize(
    ("model", "channels", "bits", "opacity", "name"),
    [
        ("vae", 5, 16, False, "5 channels, 16 bits"),
        ("gan", 4, 8, True, "RGBA"),
        ("gan", 4, 8, False, "4 channels"),
    ],
)
def test_an_export_is_the_run(
    run_of, tmp_path: Path, model: str, channels: int, bits: int, opacity: bool, name: str
) -> None:
    run = run_of(model, channels, bits, opacity)
    written = export(run, tmp_path / "out")  # compares every file with the run
    assert {"decoder.onnx" if model == "vae" else "generator.onnx", "model.safetensors"} <= {
        file.name for file in written.files
    }
    again = ray_gen.load(tmp_path / "out")
    assert torch.equal(again.sample(2, seed=0), ray_gen.load(run).sample(2, seed=0))
    assert again.pixel_format == PixelFormat(bits, opacity=opacity)
    shape = f"{channels} x 8 x 8 images ({name})"
    assert shape in (tmp_path / "out" / "README.md").read_text()
