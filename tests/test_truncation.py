"""Truncated styles: in samples, between two of them, in exported programs; and what has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import ray_gen
from ray_gen import Pipeline
from ray_gen.cli import main
from ray_gen.core import Styled
from ray_gen.errors import Refused
from ray_gen.pipeline.export import export
from ray_gen.sampling import noise_for
from tests.helpers import STYLEGAN2, gan
from tests.runs import SHORT, saved

NEAR = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def run(store_8, tmp_path_factory) -> Path:
    return saved(
        gan(SHORT, *STYLEGAN2, "objective.conditional=true"),
        store_8,
        tmp_path_factory.mktemp("styled") / "run",
    )


@pytest.fixture(scope="module")
def pipeline(run: Path) -> Pipeline:
    return ray_gen.load(run)


@pytest.fixture(scope="module")
def plain(store_8, tmp_path_factory) -> Path:
    return saved(gan(SHORT), store_8, tmp_path_factory.mktemp("plain") / "run")


def mean_and_styles(pipeline: Pipeline, z: Tensor, labels: list[int]) -> tuple[Tensor, Tensor]:
    generator = pipeline.networks["generator"]
    assert isinstance(generator, Styled)
    buffers = dict(generator.named_buffers())  # pyright: ignore
    mean = buffers["mean_style.total"] / (1 - buffers["mean_style.rest"])
    with torch.no_grad():
        return mean, generator.styles(z, torch.tensor(labels))


def images_of(pipeline: Pipeline, styles: Tensor, numbers: list[int], seed: int) -> Tensor:
    generator, which = pipeline.networks["generator"], torch.tensor(numbers)
    noises = pipeline.objective.sampling_noise
    noise = noise_for(noises, pipeline.networks, seed, "sample", which, torch.float32)
    own = {name.removeprefix("fakes."): value for name, value in noise.items()}
    with torch.no_grad():
        images = (generator.synthesize(styles, own) + 1) / 2  # pyright: ignore
        return images.clamp(0, 1)


def test_a_sample_has_styles_nearer_to_their_mean(pipeline: Pipeline) -> None:
    labels = [3, 1, 4]
    z = pipeline.latents(3, seed=5)
    mean, styles = mean_and_styles(pipeline, z, labels)
    assert float(mean.abs().max()) > 0.0
    for share in (0.0, 0.7, 1.5):
        expected = images_of(pipeline, mean + share * (styles - mean), [0, 1, 2], 5)
        found = pipeline.sample(3, labels, 5, truncation=share)
        torch.testing.assert_close(found, expected, **NEAR)
        torch.testing.assert_close(
            pipeline.decode(z, labels, 5, truncation=share), expected, **NEAR
        )
    whole = pipeline.sample(3, labels, 5, truncation=1.0)
    assert torch.equal(whole, pipeline.sample(3, labels, 5))


def test_a_path_between_truncated_styles_is_straight(pipeline: Pipeline) -> None:
    z = pipeline.latents(4, seed=5)
    way = pipeline.interpolate(z[:2], z[2:], 3, [3, 1], truncation=0.5)
    ends = [mean_and_styles(pipeline, part, [3, 1]) for part in (z[:2], z[2:])]
    first, last = (mean + 0.5 * (styles - mean) for mean, styles in ends)
    for step, styles in enumerate((first, (first + last) / 2, last)):
        expected = images_of(pipeline, styles, [0, 1], 0)
        torch.testing.assert_close(way[:, step], expected, **NEAR)
    assert not torch.allclose(way, pipeline.interpolate(z[:2], z[2:], 3, [3, 1]))


def test_walks_from_latents_are_truncated(pipeline: Pipeline) -> None:
    z = pipeline.latents(2, seed=5)
    rows = pipeline.traverse([0], z[:1], steps=3, labels=3, truncation=0.5)
    torch.testing.assert_close(rows[0, 1], pipeline.decode(z[:1], 3, truncation=0.5)[0], **NEAR)
    found = pipeline.arithmetic([z], labels=3, truncation=0.5)
    mean = z.double().mean(0, keepdim=True).float()
    torch.testing.assert_close(found, pipeline.decode(mean, 3, truncation=0.5), **NEAR)


def test_what_has_no_styles_says_so(pipeline: Pipeline, plain: Path, tmp_path: Path) -> None:
    other = ray_gen.load(plain)
    z = other.latents(2, 0, truncation=0.5)
    for call in (
        lambda: other.decode(z, truncation=0.5),
        lambda: other.interpolate(z, z, truncation=0.5),
        lambda: other.traverse([0], truncation=0.5),
    ):
        with pytest.raises(Refused, match=r"truncation: a run of kind gan .* has no styles"):
            call()
    with pytest.raises(Refused, match="has no generator with styles"):
        export(other, tmp_path / "out", truncation=0.5)
    with pytest.raises(Refused, match="truncates its styles, not z"):
        pipeline.latents(2, truncation=0.5)
    with pytest.raises(Refused, match=r"truncation: -0\.5 is not a share"):
        pipeline.sample(2, truncation=-0.5)


def test_programs_contain_the_truncation(pipeline: Pipeline, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(run), str(out), "--formats", "torch,onnx", "--truncation", "0.6"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    program = torch.export.load(out / "generator.pt2").module()
    z, labels = pipeline.latents(3, seed=5), [3, 1, 4]
    noises = pipeline.objective.sampling_noise
    noise = noise_for(noises, pipeline.networks, 5, "sample", torch.arange(3), torch.float32)
    found = program(z, torch.tensor(labels), *noise.values())
    expected = pipeline.sample(3, labels, 5, truncation=0.6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (out / "generator.onnx").is_file()  # `export` compares it with the model
    card = (out / "README.md").read_text()
    assert "truncate styles with ψ = 0.6" in card


def test_commands_truncate(pipeline: Pipeline, run: Path, tmp_path: Path) -> None:
    import numpy as np

    npz = tmp_path / "s.npz"
    same = ["--seed", "5", "--labels", "3", "--truncation", "0.5"]
    done = CliRunner().invoke(
        main, ["sample", str(run), "--count", "3", *same, "--output", str(npz)]
    )
    assert done.exit_code == 0, done.output
    expected = pipeline.sample(3, [3, 3, 3], 5, truncation=0.5)
    levels = np.load(npz)["images"].astype(float) / 255
    assert np.abs(levels - expected.permute(0, 2, 3, 1).clamp(0, 1).numpy()).max() < 0.003
    npz = tmp_path / "w.npz"
    way = ["--from", "0", "--to", "1", "--steps", "3", "--output", str(npz)]
    done = CliRunner().invoke(main, ["interpolate", str(run), *same, *way])
    assert done.exit_code == 0, done.output
    z = pipeline.latents(2, seed=5)
    expected = pipeline.interpolate(z[:1], z[1:], 3, 3, truncation=0.5)
    found = next(iter(np.load(npz).values())).astype(float) / 255
    assert np.abs(found.reshape(3, 8, 8) - expected[0, :, 0].clamp(0, 1).numpy()).max() < 0.003
