"""Projection in the styles of a generator, and walks from the styles that are found."""

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
from ray_gen import Pipeline
from ray_gen.cli import main
from ray_gen.core import Noise, Objective, Styled
from ray_gen.errors import Refused
from ray_gen.pipeline.projected import Projected
from ray_gen.pipeline.projection import Options, project
from ray_gen.pipeline.styles import DRAWS, moments
from ray_gen.sampling import latents_of
from tests.helpers import STYLEGAN2, gan, vae
from tests.runs import SHORT, saved

SIZES = Z, LAYERS, W = 3, 2, 4
NEAR = {"rtol": 1e-5, "atol": 1e-6}


class Linear(nn.Module):
    """Styles w_l = A z + b, the same for both layers; an image Σ_l B_l w_l. In float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def drawn(*shape: int) -> nn.Parameter:
            numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(numbers, requires_grad=False)

        self.a, self.b, self.layers = drawn(W, Z), drawn(W), drawn(LAYERS, 16, W)

    def styles(self, z: Tensor, labels: Any = None, noise: Any = None, truncation: float = 1.0):
        """(N, Z) to (N, LAYERS, W)."""
        assert truncation == 1.0
        return (z @ self.a.T + self.b)[:, None].expand(-1, LAYERS, -1)

    def synthesize(self, styles: Tensor, noise: Any = None) -> Tensor:
        """(N, LAYERS, W) to (N, 1, 4, 4)."""
        return torch.einsum("nlw,lpw->np", styles, self.layers).reshape(-1, 1, 4, 4)

    def forward(self, z: Tensor, labels: Any = None, *, noise: Any = None) -> Tensor:
        """Both."""
        return self.synthesize(self.styles(z))


class OfLinear(Objective):
    """Samples without bounds."""

    image_range = (0.0, 1.0)
    sampled_from = ("generator",)
    latents = {"z": Noise((Z,))}  # noqa: RUF012

    def sample(self, networks, latents, labels, noise) -> Tensor:
        return networks["generator"](latents["z"], labels)


OPTIONS = Options(
    steps=600,
    starts=1,
    sigma=0.5,
    learning_rate=0.1,
    seed=0,
    features=None,
    features_weight=0.0,
    space="w",
)


def mean_and_deviation(generator: Linear) -> tuple[Tensor, float]:
    z = latents_of(OfLinear.latents, 0, "project", torch.arange(DRAWS), torch.float64)["z"]
    found = generator.styles(z)[:, 0]
    return found.mean(0), float(found.var(0, unbiased=False).mean().sqrt())


def test_mean_and_deviation_are_those_of_the_prior() -> None:
    """E[w] = b and Var w = A Aᵀ, up to the error of 10,000 draws."""
    generator = Linear()
    cpu = torch.device("cpu")
    mean, deviation = moments(OfLinear(), generator, None, 0, cpu, torch.float64)
    exact = float((generator.a @ generator.a.T).diagonal().mean().sqrt())
    assert isinstance(generator, Styled) and mean.shape == (LAYERS, W)
    assert deviation == pytest.approx(exact, rel=0.02)
    assert float((mean - generator.b).abs().max()) < 5 * exact / DRAWS**0.5 * 2
    torch.testing.assert_close(mean[1], mean_and_deviation(generator)[0])
    assert deviation == pytest.approx(mean_and_deviation(generator)[1])


@pytest.mark.parametrize("space", ["w", "w+"])
def test_it_is_the_most_probable_style_of_a_linear_gaussian_model(space: Any) -> None:
    """Ridge regression of u = (w - μ) / s: u = (MᵀM + σ² I)⁻¹ Mᵀ (x - Σ_l B_l μ), where M is
    s Σ_l B_l of w, and s times all B_l side by side of w+."""
    generator = Linear()
    mean, deviation = mean_and_deviation(generator)
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    networks = nn.ModuleDict({"generator": generator})
    options = replace(OPTIONS, space=space)
    found, errors = project(OfLinear(), networks, images, None, options, 0, lambda *_: None)
    both = generator.layers.sum(0)
    matrix = deviation * (both if space == "w" else generator.layers.transpose(0, 1).flatten(1))
    ridge = matrix.T @ matrix + 0.25 * torch.eye(matrix.shape[1], dtype=torch.float64)
    centred = images.flatten(1) - both @ mean
    u = torch.linalg.solve(ridge, matrix.T @ centred.T).T.reshape(2, -1, W)
    expected = (mean + deviation * u).expand(2, LAYERS, W)
    torch.testing.assert_close(found["styles"], expected, rtol=2e-3, atol=2e-3)
    made = generator.synthesize(expected).clamp(0, 1)
    torch.testing.assert_close(
        errors, (made - images).square().flatten(1).mean(1), rtol=5e-3, atol=0
    )


@pytest.fixture(scope="module")
def run(store_8, tmp_path_factory) -> Path:
    """Conditional, with styles."""
    this = gan(SHORT, *STYLEGAN2, "objective.conditional=true")
    return saved(this, store_8, tmp_path_factory.mktemp("styled") / "run")


@pytest.fixture(scope="module")
def pipeline(run: Path) -> Pipeline:
    return ray_gen.load(run)


@pytest.fixture(scope="module")
def plain(store_8, tmp_path_factory) -> Path:
    return saved(vae(SHORT), store_8, tmp_path_factory.mktemp("plain") / "run")


LABELS = [3, 3, 8]


@pytest.fixture(scope="module")
def found(pipeline: Pipeline) -> tuple[Tensor, Projected]:
    """Own samples, and what is found of them in w."""
    own = pipeline.sample(3, LABELS, seed=0)
    return own, pipeline.project(own, LABELS, steps=300, sigma=0)


def errors_of(pipeline: Pipeline, latents: Any, own: Tensor) -> Tensor:
    return (pipeline.decode(latents, LABELS) - own).square().flatten(1).mean(1)


def test_own_samples_are_found_in_styles(
    pipeline: Pipeline, found: tuple[Tensor, Projected]
) -> None:
    own, result = found
    styles = result.z["styles"]
    assert styles.shape == (3, *pipeline.style_shape)
    assert torch.equal(styles, styles[:, :1].expand_as(styles))
    torch.testing.assert_close(errors_of(pipeline, result.z, own), result.errors, rtol=1e-3, atol=0)
    random = errors_of(pipeline, pipeline.latents(3, seed=9), own)
    mean = errors_of(pipeline, pipeline.styles(torch.zeros(3, 5), LABELS, truncation=0.0), own)
    assert bool((result.errors < random / 50).all())
    assert bool((result.errors < mean / 50).all())
    wide = pipeline.project(own, LABELS, steps=300, sigma=0, space="w+")
    assert not torch.equal(wide.z["styles"][:, 0], wide.z["styles"][:, 1])
    assert bool((wide.errors < mean / 5).all())


def test_it_is_a_function_of_image_and_seed(
    pipeline: Pipeline, found: tuple[Tensor, Projected]
) -> None:
    own = found[0]
    first, again, other = (
        pipeline.project(own, LABELS, steps=20, seed=seed).z["styles"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    alone = pipeline.project(own[:1], LABELS[:1], steps=20, seed=1).z["styles"]
    torch.testing.assert_close(alone, first[:1], rtol=1e-3, atol=1e-3)


def test_more_prior_keeps_styles_nearer_to_their_mean(
    pipeline: Pipeline, found: tuple[Tensor, Projected]
) -> None:
    own = found[0]
    mean = pipeline.styles(torch.zeros(3, 5), LABELS, truncation=0.0)["styles"]
    near, far = (
        (pipeline.project(own, LABELS, steps=60, sigma=sigma).z["styles"] - mean).norm()
        for sigma in (10.0, 0.0)
    )
    assert near < far


def test_walks_take_styles(pipeline: Pipeline, found: tuple[Tensor, Projected]) -> None:
    z = found[1].z
    made = pipeline.decode(z, LABELS)
    other = pipeline.latents(3, seed=4)
    way = pipeline.interpolate(z, other, 3, LABELS)
    torch.testing.assert_close(way[:, 0], made, **NEAR)
    torch.testing.assert_close(way[:, 2], pipeline.decode(other, LABELS), **NEAR)
    of_other = pipeline.styles(other, LABELS)["styles"]
    middle = pipeline.decode({"styles": (z["styles"] + of_other) / 2}, LABELS)
    torch.testing.assert_close(way[:, 1], middle, **NEAR)
    total = pipeline.arithmetic([z, other], [z], labels=3)
    mean = pipeline.styles(other, 3)["styles"].mean(0, keepdim=True)
    torch.testing.assert_close(total, pipeline.decode({"styles": mean}, 3), rtol=1e-4, atol=1e-5)
    base = {"styles": z["styles"][1:2]}
    rows = pipeline.traverse([0, 2], base, steps=3, labels=3)
    moved = base["styles"].clone()
    moved[..., 2] += 3 * pipeline.style_deviation
    torch.testing.assert_close(rows[0, 1], pipeline.decode(base, 3)[0], **NEAR)
    torch.testing.assert_close(
        rows[1, 2], pipeline.decode({"styles": moved}, 3, numbers=[1])[0], **NEAR
    )
    from_mean = pipeline.traverse([1], steps=3, labels=3, latent_name="styles")
    mean = pipeline.decode(pipeline.latents(1, seed=0), 3, truncation=0.0)
    torch.testing.assert_close(from_mean[0, 1], mean[0], **NEAR)


def test_styles_are_truncated_like_those_of_z(pipeline: Pipeline) -> None:
    z = pipeline.latents(3, seed=4)
    expected = pipeline.decode(z, LABELS, truncation=0.5)
    styles = pipeline.styles(z, LABELS)
    torch.testing.assert_close(pipeline.decode(styles, LABELS, truncation=0.5), expected, **NEAR)
    half = pipeline.styles(z, LABELS, truncation=0.5)
    torch.testing.assert_close(pipeline.decode(half, LABELS), expected, **NEAR)
    first = {"styles": styles["styles"][:1]}
    rows = pipeline.traverse([0], first, steps=3, labels=3, truncation=0.5)
    torch.testing.assert_close(rows[0, 1], expected[0], **NEAR)


def test_z_can_be_asked_for(pipeline: Pipeline, found: tuple[Tensor, Projected]) -> None:
    assert pipeline.project(found[0], LABELS, steps=2, space="z").z.keys() == {"z"}


def test_what_has_no_styles_says_so(pipeline: Pipeline, plain: Path) -> None:
    other = ray_gen.load(plain)
    images = torch.zeros(1, 1, 8, 8)
    with pytest.raises(Refused, match=r"space: .* has no styles, so there is no w;"):
        other.project(images, space="w")
    with pytest.raises(Refused, match="space: 'x' is not one of z, w, w"):
        pipeline.project(images, 3, space="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Refused, match="z: has styles; give exactly the latents of this run: z"):
        other.decode({"styles": torch.zeros(1, 4, 6)})
    with pytest.raises(Refused, match="the shape is"):
        pipeline.decode({"styles": torch.zeros(1, 4, 5)}, 3)
    styles = {"styles": torch.zeros(1, *pipeline.style_shape)}
    with pytest.raises(Refused, match="base: has styles, which have no latent z"):
        pipeline.traverse([0], styles, labels=3, latent_name="z")


def use(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_commands_take_styles(run: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    use("sample", run, "--count", 2, "--labels", 3, "--output", tmp_path / "own")
    out = tmp_path / "found"
    told = use("project", run, tmp_path / "own", "--labels", 3, "--steps", 20, "-o", out)
    assert "2 latents" in told and (out / "projections.png").is_file()
    file = out / "latents.safetensors"
    made = pipeline.decode(Projected.load(file).z, 3)
    same = ["--labels", 3, "--output"]
    use("interpolate", run, "--from", file, "--to", "5,6", *same, out / "i.npz")
    rows = torch.from_numpy(np.load(out / "i.npz")["images"]).permute(0, 1, 4, 2, 3) / 255
    torch.testing.assert_close(rows[:, 0], made, rtol=0, atol=1 / 200)
    both = ["--from", f"{file}:0,4", "--to", "5,6"]
    use("interpolate", run, *both, *same, out / "mixed.npz")
    use("traverse", run, "--base", f"{file}:1", "--steps", 3, "--output", out / "t.npz")
    rows = torch.from_numpy(np.load(out / "t.npz")["images"]).permute(0, 1, 4, 2, 3) / 255
    assert len(rows) == pipeline.style_shape[1]
    torch.testing.assert_close(rows[0, 1], made[1], rtol=0, atol=1 / 200)
    use("traverse", run, "--base", f"{file}:1", "--output", out / "t.png")
    groups = ["--plus", f"{file}:0-1", "--minus", "0,1", "--plus", "2"]
    use("arithmetic", run, *groups, *same, out / "a.png")
    assert Image.open(out / "a.png").width > 50
    done = CliRunner().invoke(main, ["project", str(run), str(tmp_path), "--space", "y"])
    assert done.exit_code == 2
