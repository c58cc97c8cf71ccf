"""Projection: the latents that are nearest to images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import ray_gen
from ray_gen.cli import main
from ray_gen.core import Noise, Objective
from ray_gen.errors import Refused
from ray_gen.pipeline.projected import Projected
from ray_gen.pipeline.projection import Options, project
from tests.helpers import gan, vae
from tests.runs import SHORT, saved

SIZE = 3
"""Of z."""


OPTIONS = Options(
    steps=400,
    starts=8,
    sigma=0.0,
    learning_rate=0.1,
    seed=0,
    features=None,
    features_weight=0.0,
)


class Linear(Objective):
    """x = W z + ½, in float64, with a prior of choice."""

    image_range = (0.0, 1.0)
    sampled_from = ("decoder",)
    sampling_noise = {}  # noqa: RUF012

    def __init__(self, prior: Noise) -> None:
        self.latents = {"z": prior}

    def networks(self):
        return {}

    def phases(self):
        return []

    def sample(self, networks, latents, labels, noise) -> Tensor:
        return networks["decoder"](latents["z"]).reshape(-1, 1, 4, 4) + 0.5


def linear(prior: Noise, images: Tensor, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """W, and what projection finds."""
    torch.manual_seed(0)
    decoder = nn.Linear(SIZE, 16, bias=False).double()
    networks = nn.ModuleDict({"decoder": decoder}).requires_grad_(False)
    options = replace(OPTIONS, **changes)
    found, errors = project(Linear(prior), networks, images, None, options, 0, lambda *_: None)
    return decoder.weight.detach(), found["z"], errors


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(2, 1, 4, 4)"""
    return torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_it_is_the_most_probable_z_of_a_linear_gaussian_model(images: Tensor, sigma: float) -> None:
    """Ridge regression: z = (WᵀW + σ² I)⁻¹ Wᵀ (x - ½)."""
    weight, z, errors = linear(Noise((SIZE,)), images, sigma=sigma)
    ridge = weight.T @ weight + sigma**2 * torch.eye(SIZE, dtype=torch.float64)
    centred = images.flatten(1) - 0.5
    expected = torch.linalg.solve(ridge, weight.T @ centred.T).T
    torch.testing.assert_close(z, expected, rtol=2e-3, atol=2e-3)
    made = (z @ weight.T + 0.5).clamp(0, 1)
    torch.testing.assert_close(errors, (made - images.flatten(1)).square().mean(1))


def test_z_of_a_uniform_prior_stays_within_its_bounds(images: Tensor) -> None:
    free = linear(Noise((SIZE,)), images)[1]
    bound = float(free.abs().max()) / 2
    z = linear(Noise((SIZE,), "uniform", -bound, bound), images)[1]
    assert float(z.abs().max()) == pytest.approx(bound)


def test_features_are_compared_as_shares_of_their_length(images: Tensor) -> None:
    """With a heavy weight, the features agree although the pixels then agree less: a least squares
    problem with weights."""

    def halves(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :8]

    weight, z, errors = linear(Noise((SIZE,)), images, features=halves, features_weight=100.0)
    target = images.flatten(1)
    rows = torch.full((2, 16), 1 / 16, dtype=torch.float64)
    rows[:, :8] += 100.0 / halves(target).square().sum(1, keepdim=True)
    for own, x, found in zip(rows, target, z, strict=True):
        left = weight.T @ (own[:, None] * weight)
        expected = torch.linalg.solve(left, weight.T @ (own * (x - 0.5)))
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    assert bool((errors > linear(Noise((SIZE,)), images)[2]).all())


class Clamped(Linear):
    """Half of the pixels are z + 4, the others 3 (z + 4), all clamped to [0, 1]. At the start, all
    pixels are 1."""

    def unclamped(self, networks, latents, labels, noise) -> Tensor:
        half = latents["z"] + 4.0
        return torch.cat([half, 3.0 * half], dim=1).reshape(-1, 1, 4, 4)

    def sample(self, networks, latents, labels, noise) -> Tensor:
        return self.unclamped(networks, latents, labels, noise).clamp(0.0, 1.0)


def test_pixels_that_are_clamped_by_mistake_come_back(images: Tensor) -> None:
    """And those that are clamped as they should may stay outside."""
    z = images.flatten(1)[:, :8] - 4.0
    objective, networks = Clamped(Noise((8,))), nn.ModuleDict({"decoder": nn.Linear(1, 1).double()})
    wanted = objective.sample(networks, {"z": z}, None, {})
    found, errors = project(objective, networks, wanted, None, OPTIONS, 0, lambda *_: None)
    assert float(errors.max()) < 1e-6
    torch.testing.assert_close(found["z"], z, rtol=0, atol=5e-3)


EXPERIMENTS = {
    "gan": gan(SHORT, kind="dcgan"),
    "conditional": gan(SHORT, "objective.conditional=true", kind="dcgan"),
    "vae": vae(SHORT),
    "autoencoder": vae(SHORT, "objective={kind: autoencoder, latent_size: 3}"),
}


@pytest.fixture(scope="module")
def runs(store_8, tmp_path_factory) -> dict[str, Path]:
    """Checkpoints by name."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: saved(this, store_8, folder / name) for name, this in EXPERIMENTS.items()}


@pytest.fixture(scope="module")
def digits(store_8) -> Tensor:
    """Three held-out images in [0, 1]."""
    return store_8.held_out.images_NHWC[:3].permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("name", ["gan", "conditional"])
def test_a_models_own_samples_are_found(runs, name: str) -> None:
    pipeline = ray_gen.load(runs[name])
    labels = [3, 3, 8] if name == "conditional" else None
    own = pipeline.sample(3, labels, seed=5)
    start = pipeline.project(own, labels, steps=1, sigma=0)
    found = pipeline.project(own, labels, steps=200, sigma=0)
    assert bool((found.errors < start.errors / 20).all())
    made = pipeline.decode(found.z, labels)
    expected = (made - own).square().flatten(1).mean(1)
    torch.testing.assert_close(found.errors, expected, rtol=1e-3, atol=1e-9)
    least = expected.clamp_min(1e-12)
    torch.testing.assert_close(found.psnr, -10 * least.log10(), rtol=1e-3, atol=0.01)
    assert found.labels == (None if labels is None else tuple(labels))


def test_it_is_a_function_of_image_seed_and_options(runs, digits: Tensor) -> None:
    pipeline = ray_gen.load(runs["gan"])
    found = pipeline.project(digits, steps=20, seed=1)
    again = pipeline.project(digits, steps=20, seed=1)
    other = pipeline.project(digits, steps=20, seed=2, starts=2)
    assert torch.equal(found.z["z"], again.z["z"])
    assert not torch.equal(found.z["z"], other.z["z"])
    alone = pipeline.project(digits[:1], steps=20, seed=1)
    torch.testing.assert_close(alone.z["z"], found.z["z"][:1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["vae", "autoencoder"])
def test_an_encoders_latents_are_the_start_and_get_better(runs, digits: Tensor, name: str) -> None:
    pipeline = ray_gen.load(runs[name])
    encoded = (pipeline.reconstruct(digits) - digits).square().flatten(1).mean(1)
    found = pipeline.project(digits, steps=60, sigma=0)
    assert bool((found.errors < encoded).all())
    assert bool((pipeline.project(digits, steps=1, learning_rate=0).errors <= encoded + 1e-6).all())


def test_a_file_gives_the_same_latents_and_no_other_file_is_taken(
    runs, digits: Tensor, tmp_path: Path
) -> None:
    pipeline = ray_gen.load(runs["conditional"])
    found = pipeline.project(digits, [1, 2, 3], steps=2, names=["a", "b", "c"])
    file = tmp_path / "new" / "l.safetensors"
    found.save(file)
    again = Projected.load(file)
    assert torch.equal(again.z["z"], found.z["z"])
    assert torch.equal(again.errors, found.errors)
    assert (again.labels, again.names) == ((1, 2, 3), ("a", "b", "c"))
    assert again.origin == pipeline.origin
    with pytest.raises(Refused, match="are not the weights of"):
        again.check_origin(ray_gen.load(runs["gan"]).origin)
    (tmp_path / "text.safetensors").write_text("?")
    with pytest.raises(Refused, match="is no file of latents"):
        Projected.load(tmp_path / "text.safetensors")
    with pytest.raises(Refused, match="there is no such file"):
        Projected.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"steps": 0}, "steps: 0 is less than 1"),
        ({"starts": 0}, "starts: 0 is less than 1"),
        ({"sigma": -1}, "sigma: -1 is not a number from 0 up"),
        ({"names": ["a"]}, "names: 1 given for 3 images"),
        ({"labels": 3}, "labels: this run is not conditional"),
    ],
)
def test_what_cannot_be_projected_is_refused(
    runs, digits: Tensor, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(Refused, match=told):
        ray_gen.load(runs["gan"]).project(digits, **arguments)


def test_images_of_another_size_and_without_classes_are_refused(runs, digits: Tensor) -> None:
    with pytest.raises(Refused, match="images: their shape"):
        ray_gen.load(runs["gan"]).project(digits[..., :4])
    with pytest.raises(Refused, match="labels: this run is conditional"):
        ray_gen.load(runs["conditional"]).project(digits)


def use(folder: Path, *arguments: object) -> str:
    done = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_the_command_writes_latents_that_other_commands_take(runs, tmp_path: Path) -> None:
    """Images of any size are read as in training; a conditional row keeps its class."""
    run = runs["conditional"]
    use(tmp_path, "sample", run, "--count", 2, "--labels", 3, "--output", tmp_path / "own")
    large = Image.open(tmp_path / "own" / "000000.png").resize((31, 20))
    large.save(tmp_path / "own" / "large.png")
    out = tmp_path / "found"
    told = use(
        tmp_path, "project", run, tmp_path / "own", "--labels", 3, "--steps", 20, "-o", out,
        "--features", f"run:{runs['vae']}",
    )  # fmt: skip
    assert "large" in told and "3 latents" in told
    picture = Image.open(out / "projections.png")
    assert picture.width > picture.height / 2
    file = out / "latents.safetensors"
    found = Projected.load(file)
    assert (found.names, found.labels) == (("000000", "000001", "large"), (3, 3, 3))
    pipeline = ray_gen.load(run)
    made = pipeline.decode(found.z, 3)
    use(
        tmp_path, "interpolate", run, "--from", file, "--to", f"{file}:1", "--output", out / "i.npz"
    )
    rows = torch.from_numpy(np.load(out / "i.npz")["images"]).permute(0, 1, 4, 2, 3) / 255
    torch.testing.assert_close(rows[:, 0], made, rtol=0, atol=1 / 200)
    torch.testing.assert_close(rows[:, -1], made[[1, 1, 1]], rtol=0, atol=1 / 200)
    use(tmp_path, "traverse", run, "--base", f"{file}:2", "--steps", 3, "--output", out / "t.npz")
    rows = torch.from_numpy(np.load(out / "t.npz")["images"]).permute(0, 1, 4, 2, 3) / 255
    torch.testing.assert_close(rows[0, 1], made[2], rtol=0, atol=1 / 200)
    use(tmp_path, "arithmetic", run, "--plus", f"{file}:0-1", "--output", out / "a.png")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "{file}:9", "--to", "1"], "9 does not exist; the file has 3 latents"),
        (["--from", "no.safetensors", "--to", "1"], "there is no such file"),
    ],
)
def test_a_latent_that_is_not_in_a_file_is_refused(
    runs, digits: Tensor, tmp_path: Path, arguments: list[str], told: str
) -> None:
    file = tmp_path / "l.safetensors"
    pipeline = ray_gen.load(runs["gan"])
    pipeline.project(digits, steps=1).save(file)
    given = [one.format(file=file) for one in arguments]
    done = CliRunner().invoke(main, ["interpolate", str(runs["gan"]), *given])
    assert done.exit_code == 2
    assert told in done.stderr
    wrong = ["interpolate", str(runs["conditional"]), "--from", str(file), "--to", "1"]
    done = CliRunner().invoke(main, wrong)
    assert done.exit_code == 2 and "project the images again" in done.stderr


def test_features_without_gradients_are_refused(runs, tmp_path: Path) -> None:
    use(tmp_path, "sample", runs["gan"], "--count", 1, "--output", tmp_path / "own")
    given = ["project", runs["gan"], tmp_path / "own", "-o", tmp_path / "out", "--features"]
    target = "custom:tests.evaluation.custom_extractors:Mean"
    done = CliRunner().invoke(main, [*map(str, given), target])
    assert done.exit_code == 2
    assert "--features: no gradients flow through" in done.stderr


def vgg16_file(path: Path) -> Path:
    """Random weights of torchvision's vgg16 under the names and shapes of the published file. The
    rows of the large linear layers are equal, so that the file is small."""
    from torchvision import models

    with torch.device("meta"):
        shapes = models.get_model("vgg16", weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, like in shapes.items():
        large = like.ndim == 2
        own = (1, *like.shape[1:]) if large else tuple(like.shape)
        fan_in = like[0].numel() if like.ndim > 1 else 100
        state[name] = (torch.randn(own, generator=generator) * (2 / fan_in) ** 0.5).expand(
            like.shape
        )
    torch.save(state, path)
    return path


def test_vgg16_is_read_from_a_file(runs, tmp_path: Path) -> None:
    weights = vgg16_file(tmp_path / "vgg16.pth")
    use(tmp_path, "sample", runs["gan"], "--count", 1, "--output", tmp_path / "own")
    out = tmp_path / "found"
    told = use(
        tmp_path, "project", runs["gan"], tmp_path / "own", "--steps", 1, "--starts", 1, "-o", out,
        "--features", "torchvision:vgg16", "--features-weights", weights,
    )  # fmt: skip
    assert "1 latents" in told and len(Projected.load(out / "latents.safetensors")) == 1
