"""Latents as data: training reads what `encode` writes: standardised, drawn and mirrored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ray_gen.core import Noise
from ray_gen.data import DataError, ImageFolder, Latents, Store
from ray_gen.data import encode as of_encode
from ray_gen.data.convert import Layout
from ray_gen.data.encode import Encoding, Form
from ray_gen.data.feed import Feed, FeedSettings, Stored
from ray_gen.data.sources.parquet import MANIFEST, PLAN
from ray_gen.data.stream import Streamed
from ray_gen.data.wanted import Wanted
from ray_gen.experiment.data import LatentsData
from ray_gen.noise import draw_one, key_of
from ray_gen.storage import Folder
from ray_gen.training.sources import open_source
from tests.data.pictures import write_classes

SHAPE = (3, 2, 4)


class Halves:
    """Channel 0 of z has the means of tiles of 4 x 2 pixels, the others functions of them."""

    shape_CHW = SHAPE
    digest = "0123456789abcdef"
    has_deviations = True

    def __call__(self, images_NHWC: Any) -> Any:
        values = images_NHWC[..., 0].float() / 255
        tiles = values.reshape(len(values), 2, 4, 4, 2).mean((2, 4))  # (N, h, w) = (N, 2, 4)
        mean = torch.stack([tiles, 2 * tiles + 1, -tiles], dim=1)
        deviation = torch.tensor([0.25, 0.5, 0.125])[:, None, None].expand_as(mean)
        return torch.stack([mean, deviation], dim=1)


def encoding(to: Path, encoder: Any = None, **changes: Any) -> Encoding:
    pictures = to.parent / "pictures"
    if not pictures.exists():
        write_classes(pictures, {"cat": 24, "dog": 36})
    given: dict[str, Any] = {"precision": "fp32", "flips": True, "window_HW": (8, 8), "facts": {}}
    layout = Layout(Wanted((10, 8), None, 3), 0.2, False, 25, 10, 0)
    form = Form(**{**given, **changes})
    source = ImageFolder(path=str(pictures))
    return Encoding(source, layout, Folder(str(to)), encoder or Halves(), form)


def encoded(to: Path, **changes: Any) -> dict[str, Any]:
    this = encoding(to, **changes)
    this.destination.write_text(PLAN, this.plan)
    for part in this.missing():
        this.write(part)
    return this.finish()


class Counting(Halves):
    """Remembers how many images come at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images_NHWC: Any) -> Any:
        self.batches.append(len(images_NHWC))
        return super().__call__(images_NHWC)


def opened(path: Path, cache: Path, monkeypatch: Any, **settings: Any) -> Store:
    monkeypatch.setenv("RAY_GEN_CACHE", str(cache))
    return open_source(LatentsData(path=str(path), **settings))


def rows(path: Path) -> dict[str, Any]:
    """All training rows, in order, as float64 (N, c, h, w) by column."""
    table = pq.read_table(sorted(path.glob("train-*.parquet")))
    names = [name for name in table.column_names if name != "label"]
    return {
        name: np.stack(table[name].to_numpy()).astype(np.float64).reshape(-1, *SHAPE)
        for name in names
    }


@pytest.mark.parametrize(
    ("window_HW", "count"),
    [((8, 8), 64), ((128, 128), 64), ((256, 256), 16), ((512, 256), 8), ((2048, 1024), 1)],
)
def test_larger_images_are_encoded_fewer_at_once(window_HW: tuple[int, int], count: int) -> None:
    """As many pixels as 64 images of 128 x 128 have."""
    assert Form("fp16", False, window_HW, {}).images_at_once == count


def test_the_form_decides_how_many_images_are_encoded_at_once(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(of_encode, "BATCH_PIXELS", 7 * 8 * 8)
    encoder = Counting()
    this = encoding(tmp_path / "to", encoder, flips=False)
    for part in this.missing():
        this.write(part)
    assert encoder.batches == [7, 7, 6] * 3


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_store_holds_the_standardised_means_and_the_labels(
    tmp_path: Path, monkeypatch: Any, precision: Any
) -> None:
    manifest = encoded(tmp_path / "out", precision=precision)
    there = rows(tmp_path / "out")
    store = opened(tmp_path / "out", tmp_path / "cache", monkeypatch)
    assert set(there) == {"mean", "std", "mean_flipped", "std_flipped"}
    assert manifest["images"] == {"train": len(store.train), "validation": len(store.held_out)}
    assert store.class_names == ("cat", "dog") and store.train.labels is not None
    assert store.image_shape == SHAPE
    mean, std = there["mean"], there["std"]
    centre = mean.mean((0, 2, 3), keepdims=True)
    spread = np.sqrt((mean**2 + std**2).mean((0, 2, 3), keepdims=True) - centre**2)
    expected = ((mean - centre) / spread * 0.5).transpose(0, 2, 3, 1)
    assert np.allclose(store.train.images_NHWC.numpy(), expected, atol=2e-3)
    told = manifest["latents"]["statistics"]
    assert np.allclose(told["mean"], centre.ravel(), rtol=1e-12)
    assert np.allclose(told["std"], spread.ravel(), rtol=1e-9)


def test_training_draws_z_of_declared_noise_and_takes_the_flipped_moments(
    tmp_path: Path, monkeypatch: Any
) -> None:
    encoded(tmp_path / "out")
    store = opened(tmp_path / "out", tmp_path / "cache", monkeypatch, flip=True)
    settings = FeedSettings(7, 6, range(6), (-1.0, 1.0), True, torch.float32, moments=store.moments)
    device = torch.device("cpu")
    reader = Stored(store.read_in_training, None, settings, device, on_device=True)
    raw, _ = next(reader.batches(3, 4))
    images, _ = next(Feed(reader, settings, device).steps(3, 4))
    assert images.shape == (6, *SHAPE)
    step, numbers = 3, torch.arange(6)
    epsilon = draw_one(Noise(SHAPE), key_of(7, "data", "latent"), numbers, step)
    flip = draw_one(Noise((1, 1, 1), "uniform"), key_of(7, "data", "flip"), numbers, step) < 0.5
    assert 0 < flip.sum() < 6
    mean, std, mean_flipped, std_flipped = (
        raw.float().permute(0, 3, 1, 2).reshape(6, 3, 4, 2, 4).unbind(2)
    )
    expected = torch.where(flip, mean_flipped + std_flipped * epsilon, mean + std * epsilon)
    assert torch.equal(images, expected)
    # Flipped tiles are the tiles of the flipped image here.
    assert torch.allclose(mean_flipped, mean.flip(3), atol=1e-3)

    parts: list[torch.Tensor] = []
    for part in (range(2), range(2, 6)):  # of two workers
        of_worker = replace(settings, part=part)
        own = Stored(store.read_in_training, None, of_worker, device, on_device=True)
        parts += [images for images, _ in Feed(own, of_worker, device).steps(3, 4)]
    assert torch.equal(torch.cat(parts), images)


def test_a_stream_gives_the_same_moments_as_the_store(tmp_path: Path, monkeypatch: Any) -> None:
    encoded(tmp_path / "out")
    mapped = opened(tmp_path / "out", tmp_path / "cache", monkeypatch)
    streamed = opened(tmp_path / "out", tmp_path / "cache", monkeypatch, placement="stream")
    assert streamed.stream is not None and streamed.image_shape == SHAPE
    reader = Streamed(
        streamed.stream, seed=0, streams=1, group_size=1, part=range(1),
        labels=lambda classes, _: classes, pinned=False,
    )  # fmt: skip
    found = [images for images, _ in reader.batches(0, len(mapped.train))]

    def sorted_bytes(images: torch.Tensor) -> list[bytes]:
        return sorted(image.contiguous().numpy().tobytes() for image in images)

    assert sorted_bytes(torch.cat(found)) == sorted_bytes(mapped.read_in_training)


def test_an_encoding_that_was_cut_off_goes_on_to_the_same_files(tmp_path: Path) -> None:
    encoded(tmp_path / "whole")
    this = encoding(tmp_path / "cut")
    this.destination.write_text(PLAN, this.plan)
    this.write(1)
    with pytest.raises(DataError, match="encoding did not finish; run the same ray-gen encode"):
        Latents(path=str(tmp_path / "cut")).identity()
    assert encoding(tmp_path / "cut").missing() == [0, 2]
    encoded(tmp_path / "cut")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_file())
    assert len(files) > 5
    for name in files:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_latents_cannot_do_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    encoded(tmp_path / "out", flips=False)
    with pytest.raises(DataError, match=r"data.flip: .* encode again with --flips"):
        opened(tmp_path / "out", tmp_path / "cache", monkeypatch, flip=True)
    with pytest.raises(DataError, match=r"data.image_size: 64, and the latents"):
        opened(tmp_path / "out", tmp_path / "cache", monkeypatch, image_size=64)
    with pytest.raises(DataError, match=r"data.channels: 4, and the latents in .* have 3;"):
        opened(tmp_path / "out", tmp_path / "cache", monkeypatch, channels=4)
    with pytest.raises(DataError, match=r"data.held_out_fraction: 0.5, and .*; leave it out"):
        opened(tmp_path / "out", tmp_path / "cache", monkeypatch, held_out_fraction=0.5)
    for field, value in (("center_crop", 4), ("random_crop_from", 9), ("bits", 16)):
        with pytest.raises(ValueError, match=field):
            LatentsData.model_validate({"path": "x", field: value})
    with pytest.raises(DataError, match=r"has no _manifest.json"):
        Latents(path=str(tmp_path)).identity()

    class Broken(Halves):
        def __call__(self, images_NHWC: Any) -> Any:
            return super().__call__(images_NHWC) * 1e5

    this = encoding(tmp_path / "bad", Broken(), precision="fp16")
    with pytest.raises(DataError, match="fp16 cannot hold; write them with --precision fp32"):
        this.write(0)


def test_fields_that_agree_with_the_latents_are_taken(tmp_path: Path, monkeypatch: Any) -> None:
    encoded(tmp_path / "out", facts={"source": {"held_out_fraction": 0.2}})
    given = {"channels": 3, "image_size": (2, 4), "held_out_fraction": 0.2}
    store = opened(tmp_path / "out", tmp_path / "cache", monkeypatch, **given)
    assert len(store.train) + len(store.held_out) == 60


def test_the_manifest_names_what_a_reader_needs(tmp_path: Path) -> None:
    encoded(tmp_path / "out", facts={"autoencoder": {"run": "faces"}})
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())["latents"]
    assert told["shape_CHW"] == [3, 2, 4] and told["autoencoder"] == {"run": "faces"}
    assert told["moments"] == ["mean", "std", "mean_flipped", "std_flipped"]
    assert told["statistics"]["scaling_factor"] == pytest.approx(
        1 / told["statistics"]["std_of_all"]
    )
