"""What a pipeline does beside sampling: encode, decode, judge, and walk through the latents."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ray_gen
from ray_gen import Pipeline
from ray_gen.errors import Refused
from ray_gen.pipeline import latent
from ray_gen.pipeline.mixture import Mixture
from ray_gen.runs import pictures
from tests.helpers import gan, trained, vae
from tests.runs import SHORT, saved

NEAR = {"rtol": 1e-5, "atol": 1e-6}
"""Another batch size sums in another order."""

EXPERIMENTS = {
    "vae": vae(SHORT),
    "conditional vae": vae(SHORT, "objective.conditional=true", kind="dcgan"),
    "fp64": vae(SHORT, "training.precision=fp64"),
    "autoencoder": vae(SHORT, "objective={kind: autoencoder, latent_size: 3}"),
    "gan": gan(SHORT),
    "uniform gan": gan(SHORT, "objective.latent_distribution=uniform"),
    "conditional gan": gan(SHORT, "objective.conditional=true", kind="dcgan"),
    "hinge": gan(SHORT, "objective.loss=hinge"),
}
ENCODERS = [name for name in EXPERIMENTS if "vae" in name or name in ("fp64", "autoencoder")]
SAMPLERS = [name for name in EXPERIMENTS if name != "autoencoder"]
GANS = ["gan", "uniform gan", "conditional gan", "hinge"]


@pytest.fixture(scope="module")
def runs(store_8, tmp_path_factory) -> dict[str, Path]:
    """Checkpoints by name."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: saved(this, store_8, folder / name) for name, this in EXPERIMENTS.items()}


@pytest.fixture(scope="module")
def pipelines(runs: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: ray_gen.load(run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def images(store_8) -> Tensor:
    """24 held-out images in [0, 1]."""
    return store_8.held_out.images_NHWC.permute(0, 3, 1, 2) / 255


def labels_for(pipeline: Pipeline, count: int) -> list[int] | None:
    """Of a conditional model."""
    if pipeline.experiment.label_count is None:
        return None
    return [(3 * index) % 10 for index in range(count)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_decoded_latents(pipelines, name: str) -> None:
    pipeline = pipelines[name]
    labels = labels_for(pipeline, 300)
    for truncation in (None, 0.5):
        z = pipeline.latents(300, 7, truncation)
        assert z.shape == (300, 5)
        assert (z.dtype, z.device.type) == (torch.float32, "cpu")
        sampled = pipeline.sample(300, labels, 7, truncation)
        assert torch.equal(pipeline.decode(z, labels), sampled)
    assert torch.equal(pipeline.latents([299, 4, 4], 7), pipeline.latents(300, 7)[[299, 4, 4]])
    assert torch.equal(pipeline.decode(pipeline.latents(3, 7)), pipeline.sample(3, seed=7))
    assert not torch.equal(pipeline.latents(3), pipeline.latents(3))


def test_truncation_bounds_what_is_drawn(pipelines) -> None:
    for name in ("gan", "uniform gan"):
        pipeline = pipelines[name]
        z, cut = pipeline.latents(300, 0), pipeline.latents(300, 0, truncation=0.5)
        assert float(z.abs().max()) > 0.9 > 0.5 >= float(cut.abs().max()) > 0.4
        assert torch.equal(pipeline.latents(300, 0, truncation=float("inf")), z)
        with pytest.raises(Refused, match="truncation: -1 is not positive"):
            pipeline.sample(2, truncation=-1)


@pytest.mark.parametrize("name", ENCODERS)
def test_images_and_latents_in_batches_of_any_size_are_as_one_by_one(
    pipelines, images: Tensor, name: str
) -> None:
    pipeline = pipelines[name]
    many = images.repeat(12, 1, 1, 1)  # 288: two parts
    labels = labels_for(pipeline, len(many))
    z = pipeline.encode(many, labels)
    made = pipeline.reconstruct(many, labels)
    assert z.shape == (288, *pipeline.latent_shape)
    assert made.shape == many.shape
    assert z.dtype == made.dtype == torch.float32
    assert 0.0 <= float(made.min()) <= float(made.max()) <= 1.0
    for index in (0, 255, 256, 287):
        label = None if labels is None else labels[index]
        one = pipeline.encode(many[index], label)  # (C, H, W)
        torch.testing.assert_close(one, z[index : index + 1], **NEAR)
        again = pipeline.reconstruct(many[index : index + 1], label)
        torch.testing.assert_close(again, made[index : index + 1], **NEAR)
        torch.testing.assert_close(pipeline.decode(one[0], label), again, **NEAR)


def test_a_drawn_encoding_is_about_the_mean_and_a_function_of_the_seed(
    pipelines, images: Tensor
) -> None:
    pipeline = pipelines["vae"]
    mean, log_variance = pipeline.posterior(images)
    assert log_variance is not None
    drawn = [pipeline.encode(images, seed=seed) for seed in range(200)]
    assert torch.equal(drawn[5], pipeline.encode(images, seed=5))
    torch.testing.assert_close(drawn[5][:3], pipeline.encode(images[:3], seed=5), **NEAR)
    scores = (torch.stack(drawn) - mean) / (0.5 * log_variance).exp()
    assert float(scores.mean().abs()) < 0.02
    assert float(scores.std()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(pipeline.encode(images), mean)
    plain = pipelines["autoencoder"]
    assert plain.posterior(images)[1] is None
    assert torch.equal(plain.encode(images, seed=5), plain.encode(images))


@pytest.mark.parametrize("name", GANS)
def test_the_discriminator_is_the_trained_one_in_eval_mode(
    pipelines, store_8, images: Tensor, name: str
) -> None:
    pipeline = pipelines[name]
    network = trained(EXPERIMENTS[name], store_8)[0].networks["discriminator"].eval()
    labels = labels_for(pipeline, 24)
    with torch.no_grad():
        numbers = None if labels is None else torch.tensor(labels)
        expected = network(images * 2 - 1, numbers)[:, 0]
    torch.testing.assert_close(pipeline.discriminate(images, labels), expected, **NEAR)
    one = pipeline.discriminate(images[3], None if labels is None else labels[3])
    torch.testing.assert_close(one, expected[3:4], **NEAR)
    assert set(pipeline.networks) == {"generator"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_way_between_samples_begins_and_ends_at_them(pipelines, name: str) -> None:
    pipeline = pipelines[name]
    z = pipeline.latents(80, 0)
    way = pipeline.interpolate(z[:40], z[40:], steps=9)
    assert way.shape == (40, 9, 1, 8, 8)
    torch.testing.assert_close(way[:, 0], pipeline.decode(z[:40]), **NEAR)
    torch.testing.assert_close(way[:, -1], pipeline.decode(z[40:]), **NEAR)
    one = pipeline.interpolate(z[0], z[40], steps=3, spherical=False)
    torch.testing.assert_close(one[0, 1], pipeline.decode((z[0] + z[40]) / 2)[0], **NEAR)
    bent = pipeline.interpolate(z[0], z[40], steps=3)
    assert torch.allclose(bent, one) == (name == "uniform gan")


def test_a_sum_of_groups_is_the_image_of_the_sum_of_their_means(pipelines) -> None:
    pipeline = pipelines["gan"]
    a, b, c = pipeline.latents(9, 0).split(3)
    expected = pipeline.decode(a.mean(0) - b.mean(0) + c.mean(0))
    torch.testing.assert_close(pipeline.arithmetic([a, c], [b]), expected, **NEAR)
    rest = pipeline.arithmetic([a, b[0]], [a])
    torch.testing.assert_close(rest, pipeline.decode(b[0]), **NEAR)


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_a_traverse_has_its_base_in_the_middle(pipelines, name: str) -> None:
    pipeline = pipelines[name]
    (size,) = pipeline.latent_shape
    base = torch.linspace(-0.5, 0.5, size)
    way = pipeline.traverse([0, size - 1], base, steps=5)
    assert way.shape == (2, 5, 1, 8, 8)
    middle = pipeline.decode(base).expand(2, -1, -1, -1)
    torch.testing.assert_close(way[:, 2], middle, **NEAR)
    base[-1] += 1.0 if name == "uniform gan" else 3.0
    torch.testing.assert_close(way[1, -1:], pipeline.decode(base), **NEAR)
    at_mean = pipeline.traverse(0, steps=3)
    torch.testing.assert_close(at_mean[0, 1:2], pipeline.decode(torch.zeros(size)), **NEAR)


def test_walks_take_images_where_there_is_an_encoder(pipelines, images: Tensor) -> None:
    pipeline = pipelines["vae"]
    z = pipeline.encode(images)
    for ours, theirs in (
        (pipeline.interpolate(images[0], images[1]), pipeline.interpolate(z[0], z[1])),
        (pipeline.arithmetic([images[:3]], [z[3:5]]), pipeline.arithmetic([z[:3]], [z[3:5]])),
        (pipeline.traverse(2, images[:1]), pipeline.traverse(2, z[:1])),
    ):
        torch.testing.assert_close(ours, theirs, **NEAR)
    with pytest.raises(Refused, match=r"first: .*conditional.*pipeline\.encode"):
        pipelines["conditional vae"].interpolate(images[0], images[1])
    with pytest.raises(Refused, match=r"plus\[0\]: the shape is \(1, 8, 8, 1\)"):
        pipeline.arithmetic([torch.zeros(1, 8, 8, 1)])


def test_a_mixture_is_a_prior_for_a_model_with_an_encoder(
    pipelines, images: Tensor, tmp_path: Path
) -> None:
    for name in ("vae", "conditional vae", "autoencoder"):
        pipeline = pipelines[name]
        mixture = pipeline.fit_mixture(images, labels_for(pipeline, 24), components=2)
        mixture.save(tmp_path / "m.safetensors")
        loaded = Mixture.load(tmp_path / "m.safetensors")
        sampled = pipeline.sample(300, seed=1, prior=mixture)
        assert torch.equal(pipeline.sample(300, seed=1, prior=loaded), sampled)
        z = pipeline.latents(300, 1, prior=mixture)
        assert torch.equal(pipeline.decode(z), sampled)
        assert torch.equal(pipeline.latents([299], 1, prior=mixture), z[299:])
        encoded = pipeline.encode(images, labels_for(pipeline, 24))
        distances = (z.mean(0) - encoded.mean(0)).abs() / encoded.std(0)
        assert float(distances.max()) < 0.5
    with pytest.raises(Refused, match=r"prior: .* 3 .* 5"):
        pipelines["vae"].sample(2, prior=mixture)


def test_a_mixture_is_for_the_weights_that_it_was_fitted_to(
    runs, pipelines, images: Tensor, store_8, tmp_path: Path
) -> None:
    vae = pipelines["vae"]
    mixture = vae.fit_mixture(images, components=2)
    exported = ray_gen.load(vae.save_pretrained(tmp_path / "out"))
    sampled = vae.sample(3, seed=1, prior=mixture)
    assert torch.equal(exported.sample(3, seed=1, prior=mixture), sampled)
    other = EXPERIMENTS["vae"].with_fields(seed=7)
    theirs = ray_gen.load(saved(other, store_8, tmp_path / "theirs"))
    with pytest.raises(Refused, match=r"mixture .* vae, .* theirs"):
        theirs.sample(2, prior=mixture)
    with pytest.raises(Refused, match=r"mixture .* vae, .* theirs"):
        theirs.latents(2, prior=mixture)
    raw = ray_gen.load(runs["vae"], weights="raw")
    with pytest.raises(Refused, match="other weights of vae"):
        raw.sample(2, prior=mixture)
    theirs.sample(2, prior=Mixture.fit(vae.encode(images), 2))  # nobody said whose


def test_image_files_come_in_as_the_runs_own_data(pipelines, tmp_path: Path) -> None:
    pipeline = pipelines["vae"]
    sample = pipeline.sample(1, seed=0)
    pixels = pictures.to_bytes(sample)[0]
    pictures.save_png(pixels, tmp_path / "b" / "own.png")
    torch.testing.assert_close(
        pipeline.read(tmp_path / "b" / "own.png") * 255, sample * 255, rtol=0, atol=0.5001
    )
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200  # what lies beside the centred square is cut off
    for name in ("c.jpg", "a.webp"):
        Image.fromarray(wide).save(tmp_path / "b" / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    found = pipeline.read(tmp_path / "b")
    assert found.shape == (3, 1, 8, 8)
    torch.testing.assert_close(found[0], torch.full((1, 8, 8), 200 / 255), rtol=0, atol=0.1)
    torch.testing.assert_close(found[1:2] * 255, pipeline.read(str(tmp_path / "b" / "c.jpg")) * 255)


def test_image_files_are_cropped_as_the_data_was_where_they_are_large_enough(
    pipelines, tmp_path: Path
) -> None:
    whole = pipelines["vae"]
    cropping = Pipeline(vae(SHORT, "data.center_crop=16"), whole.objective, whole.networks)
    pixels = np.zeros((40, 40), np.uint8)
    pixels[12:28, 12:28] = 100
    Image.fromarray(pixels).save(tmp_path / "large.png")
    cropped = cropping.read(tmp_path / "large.png")
    torch.testing.assert_close(cropped, torch.full((1, 1, 8, 8), 100 / 255), rtol=0, atol=0.1)
    small = tmp_path / "small.png"
    pictures.save_png(pictures.to_bytes(whole.sample(1, seed=0))[0], small)
    assert torch.equal(cropping.read(small), whole.read(small))


@pytest.mark.parametrize(
    "setting",
    ["random_crop_from=12", "random_crop_from=[9, 16]", "center_crop=6", "center_crop=16"],
)
def test_image_files_of_the_models_size_are_read_as_they_are(
    setting: str, pipelines, tmp_path: Path
) -> None:
    whole = pipelines["vae"]
    cropping = Pipeline(vae(SHORT, f"data.{setting}"), whole.objective, whole.networks)
    sample, larger = pictures.to_bytes(whole.sample(2, seed=0))
    pictures.save_png(sample, tmp_path / "own.png")
    assert torch.equal(cropping.read(tmp_path / "own.png"), whole.read(tmp_path / "own.png"))
    pictures.save_png(larger.repeat(3, 0).repeat(3, 1), tmp_path / "larger.png")
    read = [pipeline.read(tmp_path / "larger.png") for pipeline in (cropping, whole)]
    assert not torch.equal(*read)  # others are cropped


def test_files_that_are_no_images_are_refused_by_their_path(pipelines, tmp_path: Path) -> None:
    read = pipelines["vae"].read
    with pytest.raises(Refused, match=f"^{tmp_path}/no.png: "):
        read(tmp_path / "no.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(Refused, match=f"^{tmp_path}/text.png: .*decoded"):
        read(tmp_path / "text.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match=f"^{tmp_path}/empty: .*.png"):
        read(tmp_path / "empty")
    with pytest.raises(Refused, match="images: no file was named"):
        read()


def test_what_a_model_cannot_do_is_refused_in_a_sentence(pipelines, images: Tensor) -> None:
    gan, vae, plain = (pipelines[name] for name in ("gan", "vae", "autoencoder"))
    for do in (gan.encode, gan.reconstruct, gan.posterior, gan.fit_mixture):
        with pytest.raises(Refused, match=r"gan .*encoder.* vae"):
            do(images)
    with pytest.raises(Refused, match="of kind gan has no encoder"):
        gan.interpolate(images[0], images[1])
    with pytest.raises(Refused, match="of kind gan has no encoder"):
        pipelines["conditional gan"].arithmetic([images])
    for pipeline in (vae, plain):
        with pytest.raises(Refused, match="has no discriminator; take a run"):
            pipeline.discriminate(images)
    with pytest.raises(Refused, match=r"autoencoder .*prior.*fit_mixture"):
        plain.latents(3)
    with pytest.raises(Refused, match="not loaded from a run"):
        Pipeline(gan.experiment, gan.objective, gan.networks).discriminate(images)


def test_inputs_that_cannot_be_are_refused_in_a_sentence(pipelines, images: Tensor) -> None:
    gan, vae = pipelines["gan"], pipelines["vae"]
    z = gan.latents(4, 0)
    for wrong, sentence in (
        (torch.zeros(2, 3, 8, 8), r"images: their shape is \(2, 3, 8, 8\) and .* \(N, 1, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), r"images: their shape is \(0, 1, 8, 8\)"),
        (torch.zeros(8, 8), r"images: their shape is \(8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "images: are torch.uint8.*images / 255"),
        (images * 2 - 1, r"images: go from -1.* to 1; .*\[0, 1\]"),
        (images * torch.nan, "images: go from nan"),
    ):
        with pytest.raises(Refused, match=sentence):
            vae.encode(wrong)
    for wrong, sentence in (
        (torch.zeros(2, 4), r"z: the shape is \(2, 4\) and .* \(N, 5\)"),
        (torch.zeros(0, 5), r"z: the shape is \(0, 5\)"),
        (torch.tensor(1.0), r"z: the shape is \(\)"),
        (torch.zeros(2, 5, dtype=torch.int64), "z: is torch.int64"),
        (torch.full((2, 5), torch.inf), "z: has numbers that are not finite"),
    ):
        with pytest.raises(Refused, match=sentence):
            gan.decode(wrong)
    for do, sentence in (
        (lambda: gan.sample(0), "count: 0 .*at least one"),
        (lambda: gan.sample(2**32 + 1), "count: 4294967297 is too large"),
        (lambda: gan.sample([1, 2]), r"count: \[1, 2\] .*whole number"),
        (lambda: gan.arithmetic(3), "plus: give a list of groups, not int"),
        (lambda: gan.latents([]), "count: .*empty"),
        (lambda: gan.latents([0, -1]), "count: .*numbers .* from -1 to 0"),
        (lambda: gan.interpolate(z[0], z[1], steps=1), "steps: 1"),
        (lambda: gan.interpolate(z[:2], z[:3]), "first, last: 2 and 3 latents"),
        (lambda: gan.traverse(5), "dimension: 5 .* 0 to 4"),
        (lambda: gan.traverse([]), "dimensions: .*empty"),
        (lambda: gan.traverse(0, z), r"base: has 4 latents.*base\[:1\]"),
        (lambda: gan.arithmetic([]), "plus, minus: no group"),
        (lambda: gan.decode(z, 3), "labels: this run is not conditional"),
    ):
        with pytest.raises(Refused, match=sentence):
            do()
    with pytest.raises(Refused, match=r"^labels: .*conditional"):
        pipelines["conditional vae"].encode(images)
    with pytest.raises(Refused, match="labels: there is no class 10"):
        pipelines["conditional vae"].encode(images, 10)


def test_arrays_and_numbers_of_numpy_and_torch_are_taken(pipelines, images: Tensor) -> None:
    vae, gan = pipelines["vae"], pipelines["conditional gan"]
    z, pixels = vae.encode(images), images.numpy().astype(np.float64)
    pixels.flags.writeable = False
    mirrored = pixels[::-1]  # its strides are negative
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(vae.encode(pixels), z, **NEAR)
        torch.testing.assert_close(vae.encode(mirrored), z.flip(0), **NEAR)
        assert torch.equal(vae.decode(z.numpy()), vae.decode(z))
    assert torch.equal(vae.interpolate(z[0].numpy(), z[1]), vae.interpolate(z[0], z[1]))
    assert torch.equal(vae.arithmetic([z[:2].numpy()], z[2:3]), vae.arithmetic([z[:2]], [z[2]]))
    rows = vae.traverse([1, 3], z[:1], 2.0, 5)
    moved = vae.traverse(np.array([1, 3]), z[:1].numpy(), np.float32(2), np.int64(5))
    assert torch.equal(moved, rows)
    threes = gan.sample(2, [3, 4], 5, 0.5)
    for labels in (np.array([3, 4]), torch.tensor([3, 4]), np.array(["3", "4"]), (3, np.int8(4))):
        two, seed = np.int64(2), torch.tensor(5)
        assert torch.equal(gan.sample(two, labels, seed, torch.tensor(0.5)), threes)
    assert torch.equal(gan.latents(np.array([1, 0]), 5), gan.latents(2, 5).flip(0))


ANYTHING = ("a", b"a", 1.5, True, {1: 2}, {1, 2}, object(), np.array(["a"]), np.ndarray)


@pytest.mark.parametrize("wrong", ANYTHING, ids=lambda wrong: type(wrong).__name__)
def test_values_of_a_wrong_type_are_refused_by_the_name_of_the_argument(
    pipelines, images: Tensor, wrong: Any
) -> None:
    vae, gan, conditional = (pipelines[name] for name in ("vae", "gan", "conditional gan"))
    z = gan.latents(2, 0)
    for argument, do in {
        "count": [gan.sample, gan.latents, lambda it: list(gan.batches(it, None, 0))],
        "seed": [
            lambda it: gan.sample(2, seed=it),
            lambda it: vae.encode(images, seed=it),
            lambda it: vae.fit_mixture(images, seed=it),
        ],
        "labels": [lambda it: conditional.sample(1, it), lambda it: conditional.sample(2, [3, it])],
        "prior": [lambda it: gan.sample(2, prior=it)],
        "images": [vae.encode, vae.posterior, vae.reconstruct, vae.fit_mixture, gan.discriminate],
        "z": [gan.decode, lambda it: gan.decode([z, it])],
        "first": [lambda it: gan.interpolate(it, z)],
        "last": [lambda it: gan.interpolate(z, it)],
        "steps": [lambda it: gan.interpolate(z, z, it), lambda it: gan.traverse(0, steps=it)],
        r"plus\[0\]": [lambda it: gan.arithmetic([it])],
        r"minus\[1\]": [lambda it: gan.arithmetic([z], [z, it])],
        "dimensions": [gan.traverse, lambda it: gan.traverse([0, it])],
        "base": [lambda it: gan.traverse(0, it)],
        "components": [lambda it: vae.fit_mixture(images, components=it)],
    }.items():
        for one in do:
            with pytest.raises(Refused, match=f"^{argument}: "):
                one(wrong)
    for argument, one in (
        ("truncation", lambda it: gan.sample(2, truncation=it)),
        ("extent", lambda it: gan.traverse(0, extent=it)),
    ):
        if wrong != 1.5:  # a number
            with pytest.raises(Refused, match=f"^{argument}: "):
                one(wrong)
    if not isinstance(wrong, str):
        with pytest.raises(Refused, match=r"^paths: "):
            vae.read(wrong)


def test_a_discriminator_whose_checkpoint_has_gone_is_refused(
    runs: dict[str, Path], images: Tensor, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs["gan"], tmp_path / "run")
    pipeline = ray_gen.load(folder)
    shutil.rmtree(folder)
    with pytest.raises(Refused, match=f"{folder}: is no complete checkpoint"):
        pipeline.discriminate(images)
    assert pipeline.sample(1).shape == (1, 1, 8, 8)


def test_a_run_of_another_format_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["gan"], tmp_path / "run")
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"format": 1', '"format": 2'))
    with pytest.raises(Refused, match=r"manifest.json: has format 2, .*version .*reads 1"):
        ray_gen.load(folder)


def test_using_a_run_needs_neither_its_data_nor_what_trained_it(
    runs: dict[str, Path], pipelines, images: Tensor, tmp_path: Path
) -> None:
    pipelines["vae"].fit_mixture(images, components=2).save(tmp_path / "m.safetensors")
    pictures.save_png(pictures.to_bytes(images)[0], tmp_path / "a.png")
    code = f"""
import sys
absent = ("ray", "torchvision", "tensorboard", "pyarrow", "sklearn", "scipy")
sys.modules.update(dict.fromkeys(absent))
import ray_gen
from ray_gen.pipeline.mixture import Mixture
vae, gan = ray_gen.load({str(runs["vae"])!r}), ray_gen.load({str(runs["gan"])!r})
image = vae.read({str(tmp_path / "a.png")!r})
z = vae.encode(image)
assert vae.interpolate(image, vae.latents(1, 0)).shape == (1, 9, 1, 8, 8)
assert vae.traverse([0, 1], z).shape == (2, 9, 1, 8, 8)
assert vae.reconstruct(image).shape == vae.arithmetic([z], [z]).shape == image.shape
assert vae.sample(2, prior=Mixture.load({str(tmp_path / "m.safetensors")!r})).shape[0] == 2
assert gan.discriminate(gan.sample(2)).shape == (2,)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_latent_functions_are_what_the_pipeline_decodes(pipelines) -> None:
    pipeline = pipelines["gan"]
    z = pipeline.latents(4, 0)
    ways = latent.interpolated(z[:2], z[2:], 4, spherical=True)
    torch.testing.assert_close(
        pipeline.interpolate(z[:2], z[2:], 4).flatten(0, 1),
        pipeline.decode(ways.flatten(0, 1)),
        **NEAR,
    )
