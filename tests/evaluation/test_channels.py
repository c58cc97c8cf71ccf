"""Metrics of images of any channels and of 16 bits, and what the protocol says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ray_gen
from ray_gen.data import Split, Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.evaluator import Evaluator, SplitImages, subject_of
from ray_gen.evaluation.extractors.run import TrainedRun
from ray_gen.evaluation.images import as_rgb, seen_in_words, with_8_bits
from ray_gen.evaluation.likelihood.importance import gaussian_bits
from ray_gen.evaluation.request import Request, measure
from ray_gen.evaluation.scores import Score, Scores
from ray_gen.evaluation.subject import SampledImages
from ray_gen.evaluation.table import table
from ray_gen.experiment import Experiment
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.training.build import build_objective
from ray_gen.training.sources import open_source
from ray_gen.training.state import State
from tests.evaluation.helpers import Made, Tiny, by_name, measured, pictures
from tests.helpers import gan, vae
from tests.runs import saved

CPU = torch.device("cpu")
OF_FEATURES = ["fid", "kid", "inception_score", "precision", "recall", "density", "coverage"]
OF_PIXELS = ["sliced_wasserstein", "nearest_neighbour"]


def as_16_bits(levels: Tensor) -> Tensor:
    """uint8 to uint16 of the same brightness: 255 · 257 = 65,535."""
    return (levels.int() * 257).to(torch.uint16)


def scores(
    metrics: list[str], generated: Tensor, reference: Tensor, **others: Any
) -> dict[str, Score]:
    given = {"extractor": Tiny(), "world": World(), "kid_subset_size": 20, **others}
    _, channels, height, width = reference.shape
    known = pictures(20, 3, (channels, height, width))
    training = Made(as_16_bits(known) if reference.dtype == torch.uint16 else known)
    return by_name(measured(metrics, Made(generated), Made(reference), training=training, **given))


def test_extractors_see_rgb_of_grey_and_of_transparent_images() -> None:
    grey, colour = pictures(4, 1, (1, 8, 8)), pictures(4, 2, (3, 8, 8))
    assert torch.equal(as_rgb(colour), colour)
    assert torch.equal(as_rgb(grey), grey.repeat(1, 3, 1, 1))
    opacity = torch.zeros_like(grey)
    opacity[:, :, :4] = 255
    for colours in (grey, colour):
        found = as_rgb(torch.cat([colours, opacity], dim=1))
        assert found.dtype == torch.uint8
        assert torch.equal(found[:, :, :4], as_rgb(colours)[:, :, :4])
        assert (found[:, :, 4:] == 255).all()
        deep = as_rgb(as_16_bits(torch.cat([colours, opacity], dim=1)))
        assert torch.equal(deep.int(), as_16_bits(found).int())
        assert torch.equal(with_8_bits(deep), found)


@pytest.mark.parametrize("channels", [2, 4])
def test_features_of_transparent_images_are_those_on_white(channels: int) -> None:
    fakes, reals = (pictures(40, seed, (channels, 16, 16)) for seed in (1, 2))
    found = scores(OF_FEATURES, fakes, reals, opacity=True)
    expected = scores(OF_FEATURES, as_rgb(fakes), as_rgb(reals))
    for name in OF_FEATURES:
        assert found[name].value == expected[name].value
        white = "RGB on white" if channels == 4 else "grey on white"
        assert found[name].protocol["seen_as"] == white
        assert expected[name].protocol["seen_as"] == "RGB"


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_have_the_scores_of_8(channels: int) -> None:
    fakes, reals = (pictures(40, seed, (channels, 16, 16)) for seed in (1, 2))
    metrics = OF_FEATURES + OF_PIXELS
    plain = scores(metrics, fakes, reals)
    deep = scores(metrics, as_16_bits(fakes), as_16_bits(reals))
    name = {1: "grey", 3: "RGB"}[channels]
    for metric in OF_FEATURES:
        assert deep[metric].value == plain[metric].value
        assert deep[metric].protocol["seen_as"] == f"{name}, 16 bits rounded to 8"
    for metric in OF_PIXELS:
        assert deep[metric].value == pytest.approx(plain[metric].value, rel=1e-4)
        assert deep[metric].protocol["seen_as"] == f"{name}, 16 bits"
        assert plain[metric].protocol["seen_as"] == name


@pytest.mark.parametrize(("channels", "bits"), [(2, 8), (4, 16), (5, 16), (16, 8)])
@pytest.mark.parametrize("opacity", [False, True])
def test_pixels_of_any_channels_are_compared(channels: int, bits: int, opacity: bool) -> None:
    fakes, reals = (pictures(12, seed, (channels, 16, 16)) for seed in (1, 2))
    if bits == 16:
        fakes, reals = as_16_bits(fakes), as_16_bits(reals)
    opacity = opacity and channels in (2, 4)
    found = scores(OF_PIXELS, fakes, reals, extractor=None, opacity=opacity)
    names = {2: "grey with opacity", 4: "RGBA"} if opacity else {}
    words = names.get(channels, f"{channels} channels")
    deep = ", 16 bits" if bits == 16 else ""
    assert {score.protocol["seen_as"] for score in found.values()} == {words + deep}
    assert all(score.value > 0 for score in found.values())


def test_the_last_bits_count_between_pixels() -> None:
    """Differences below one of 256 levels are seen in 16 bits."""
    reals = as_16_bits(pictures(20, 1, (1, 16, 16)))
    noise = torch.randint(0, 100, reals.shape)
    noisy = (reals.int() + noise).clamp(max=65_535).to(torch.uint16)
    assert scores(["sliced_wasserstein"], noisy, reals)["sliced_wasserstein"].value > 0
    assert scores(["fid"], noisy, reals)["fid"].value < 1e-6


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_features_of_more_channels_are_refused_with_a_way_out(channels: int) -> None:
    images = pictures(40, 1, (channels, 16, 16))
    none = "" if channels == 5 else " of which none is opacity"
    told = (
        r"evaluation\.features: tiny sees grey or RGB images, and the images have"
        rf" {channels} channels{none}; "
    )
    with pytest.raises(Refused, match=rf"{told}.*--features run:RUN, or set evaluation\.metrics"):
        scores(["inception_score"], images, images)


def store_of(channels: int, bits: int, side: int = 8, count: int = 48) -> Store:
    """Blobs of colour, with labels; a quarter is held out."""

    def split(size: int, seed: int) -> Split:
        levels = pictures(size, seed, (channels, side, side)).permute(0, 2, 3, 1).contiguous()
        return Split(as_16_bits(levels) if bits == 16 else levels, torch.arange(size) % 10)

    names = tuple("0123456789")
    held_out = split(count // 4, 2)
    return Store(split(count, 1), held_out, names, skipped=0, path=Path(), label_count=10)


def of_channels(this: Experiment, channels: int, bits: int = 8) -> Experiment:
    return this.with_fields(data__channels=channels, data__bits=bits)


def scores_of(this: Experiment, store: Store, **given: Any) -> Scores:
    state = State.build(this, build_objective(this), World())
    subject = subject_of(this, build_objective(this), state.ema, {"weights": "ema"})
    return Evaluator(Evaluation.model_validate(given), store, "blobs", World()).scores(subject)


def test_a_model_of_five_channels_is_measured_by_what_needs_no_rgb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The default extractor was not asked for, so what needs it is left out and told."""

    class Default(Tiny):
        name = "inception"

        def __init__(self, **_: Any) -> None:
            super().__init__()

    monkeypatch.setattr("ray_gen.evaluation.extractors.inception.Inception", Default)
    this, store = of_channels(gan(), 5), store_of(5, 8)
    found = scores_of(this, store)
    assert [score.name for score in found] == OF_PIXELS
    assert "name a trained run of such images by --features run:RUN" in found.without[0]
    with pytest.raises(Refused, match="5 channels"):
        scores_of(this, store, metrics=["fid"])


@pytest.mark.parametrize(("channels", "bits"), [(5, 8), (4, 16), (2, 8)])
def test_a_trained_run_sees_all_channels_and_bits(tmp_path: Path, channels: int, bits: int) -> None:
    this, store = of_channels(vae("training.images=24"), channels, bits), store_of(channels, bits)
    run = saved(this, store, tmp_path / "run")
    extractor = TrainedRun(run=str(run), part="auto", device=CPU)
    images = SplitImages(store, "train", "blobs", CPU).take(range(7))
    assert extractor(images).vectors.shape == (7, 5)
    features = {"kind": "run", "run": str(run)}
    metrics = ["fid", "precision", "sliced_wasserstein"]
    found = scores_of(this, store, features=features, metrics=metrics)
    (seen,) = {score.protocol["seen_as"] for score in found}
    assert seen == seen_in_words(channels, bits)


def test_a_reference_is_read_as_the_data_of_the_run(tmp_path: Path) -> None:
    """Dark images of 12 bits are not brightened because no other is brighter."""
    data = {"data__bits": 16, "data__value_range": (0, 4095)}
    this = vae("training.images=24").with_fields(**data)
    run = saved(this, store_of(1, 16), tmp_path / "run")
    dark = np.full((8, 8), 819, np.uint16)
    (tmp_path / "dark").mkdir()
    Image.fromarray(dark).save(tmp_path / "dark" / "0.png")
    reference = Request.of(str(run), reference=str(tmp_path / "dark")).reference
    assert reference is not None
    images = SplitImages(open_source(reference), "train", "dark", CPU).take([0])
    assert images.dtype == torch.uint16 and images.shape == (1, 1, 8, 8)
    assert (images.int() == 65_535 // 5).all()  # 819 / 4095


def test_pictures_with_opacity_are_not_compared_with_bands(tmp_path: Path) -> None:
    for number in range(2):
        levels = pictures(1, number, (4, 8, 8))[0].permute(1, 2, 0).numpy()
        for kind in ("png", "npy"):
            (tmp_path / kind).mkdir(exist_ok=True)
        Image.fromarray(levels).save(tmp_path / "png" / f"{number}.png")
        np.save(tmp_path / "npy" / f"{number}.npy", levels)
    given = {"generated": str(tmp_path / "png"), "metrics": OF_PIXELS[:1], "channels": 4}
    with pytest.raises(Refused, match=r"--reference: .* have 4 channels, and the pictures RGBA"):
        measure(Request.of(reference=str(tmp_path / "npy"), **given), World())
    found = measure(Request.of(reference=str(tmp_path / "png"), **given), World())
    assert {score.protocol["seen_as"] for score in found} == {"RGBA"}


def test_a_reference_is_taken_for_what_the_run_takes(tmp_path: Path) -> None:
    """Bands of a run whose data have none of opacity: a reference of RGB images is refused."""
    this, store = of_channels(vae("training.images=24"), 4), store_of(4, 8)
    run = saved(this.with_fields(data__opacity=False), store, tmp_path / "run")
    (tmp_path / "rgb").mkdir()
    Image.fromarray(pictures(1, 0, (3, 8, 8))[0].permute(1, 2, 0).numpy()).save(
        tmp_path / "rgb" / "0.png"
    )
    reference = Request.of(str(run), reference=str(tmp_path / "rgb")).reference
    assert reference is not None
    with pytest.raises(Refused, match=r"0\.png is RGB, and 4 channels are wanted of which none is"):
        open_source(reference)
    with pytest.raises(Refused, match=r"0\.png is RGB, and 4 channels are wanted of which none is"):
        ray_gen.load(run).read(tmp_path / "rgb" / "0.png")


def test_samples_have_the_bits_of_the_training_images() -> None:
    for bits, dtype in ((8, torch.uint8), (16, torch.uint16)):
        this = of_channels(gan(), 1, bits)
        state = State.build(this, build_objective(this), World())
        subject = subject_of(this, build_objective(this), state.ema, {})
        made = SampledImages(subject, 5, None, 0).take(range(5))
        assert made.dtype == dtype
        if bits == 16:
            coarse = SampledImages(replace(subject, bits=8), 5, None, 0).take(range(5))
            torch.testing.assert_close(made.int() / 65_535, coarse.int() / 255, atol=3e-3, rtol=0)


def test_a_table_says_which_channels_each_value_is_of() -> None:
    images = [pictures(20, seed, (4, 16, 16)) for seed in (1, 2)]
    found = scores(["fid", "kid", *OF_PIXELS], *images, opacity=True)
    told = table([("a", Scores(tuple(found.values())))])
    assert "- fid, kid: seen as RGB on white" in told
    assert "- sliced_wasserstein, nearest_neighbour: seen as RGBA" in told
    grey = [pictures(20, seed, (1, 16, 16)) for seed in (1, 2)]
    plain = scores(["fid", *OF_PIXELS], *grey)
    assert table([("a", Scores(tuple(plain.values())))]).count("seen as grey") == 1


def test_bits_per_dimension_of_the_uniform_distribution_are_the_bits_of_a_level() -> None:
    assert gaussian_bits(0.0, 7) == 8
    assert gaussian_bits(0.0, 7, levels=65_536) == 16


@pytest.mark.parametrize("channels", [1, 4])
def test_each_further_bit_of_a_level_is_a_bit_of_a_smooth_density(channels: int) -> None:
    """P(level of 16 bits) = P(level of 8 bits) / 256, if the density hardly changes in a level."""
    overrides = ("objective.likelihood=gaussian", "objective.sigma=0.5")
    found: dict[int, dict[str, Score]] = {}
    for bits in (8, 16):
        this = of_channels(vae(*overrides), channels, bits)
        scored = scores_of(this, store_of(channels, bits), metrics=["likelihood"])
        found[bits] = by_name(list(scored))
    coarse, fine = (found[bits]["bits_per_dimension"] for bits in (8, 16))
    assert fine.value == pytest.approx(coarse.value + 8, abs=5e-3)
    assert fine.protocol["pixels"] == "with uniform noise of one of 65,536 levels"
    assert coarse.protocol["pixels"] == "with uniform noise of one of 256 levels"
    assert fine.protocol["seen_as"] == seen_in_words(channels, 16)
    for name in ("elbo", "kl", "reconstruction_mse"):
        assert found[16][name].value == pytest.approx(found[8][name].value, rel=1e-4)


def test_maps_have_no_levels_and_so_no_bits() -> None:
    store = store_of(3, 8)
    maps = Split(torch.randn(12, 8, 8, 3).half(), store.held_out.labels)
    this = of_channels(vae("objective.likelihood=gaussian"), 3)
    found = by_name(list(scores_of(this, replace(store, held_out=maps), metrics=["likelihood"])))
    assert "elbo" in found and "bits_per_dimension" not in found
