"""Latents of any shape, and several of them: sampled, encoded, walked through, exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ray_gen
from ray_gen import Pipeline
from ray_gen.core import (
    Batch,
    ImageShape,
    Losses,
    Networks,
    Noise,
    NoiseOf,
    Noises,
    Objective,
    Phase,
    Posterior,
    Signature,
    Term,
    noise_of,
)
from ray_gen.errors import Refused
from ray_gen.experiment import ExperimentError
from ray_gen.losses import squared_error
from ray_gen.pipeline import latent
from ray_gen.pipeline.export import export
from ray_gen.training.build import build_objective
from tests.helpers import (
    ADAM,
    TRAINING,
    experiment,
    gan,
    relative_difference,
    trained,
    weights,
)
from tests.runs import SHORT, saved


class Levels(Objective):
    """An autoencoder with two latents: a vector and, below it, a map that is uniform."""

    image_range = (0.0, 1.0)
    sampled_from = ("encoder", "decoder")
    sampling_noise: Noises = {"decoding": NoiseOf("decoder")}  # noqa: RUF012

    def __init__(self, *, image_shape: ImageShape, label_count: int | None, levels: int) -> None:
        latents = {"top": Noise((3,)), "bottom": Noise((2, 2, 2), "uniform", -1.0, 1.0)}
        self.latents = latents if levels == 2 else {"bottom": latents["bottom"]}
        self._image_shape, self._labels = image_shape, label_count

    def networks(self) -> Mapping[str, Signature]:
        shapes = {name: noise.shape for name, noise in self.latents.items()}
        size = sum(torch.Size(shape).numel() for shape in shapes.values())
        return {
            "encoder": Signature(self._image_shape, shapes, self._labels),
            "decoder": Signature((size,), self._image_shape, self._labels),
        }

    def phases(self) -> list[Phase]:
        term = Term("reconstruction", self._loss)
        return [Phase("autoencoder", self.sampled_from, (term,), self.sampling_noise)]

    def _loss(self, networks: Networks, batch: Batch) -> Losses:
        z = networks["encoder"](batch.images, batch.labels)
        made = self._decoded(networks, z, batch.labels, batch.noise)
        return Losses({"reconstruction": squared_error(made, batch.images)})

    def _decoded(self, networks: Networks, z: Any, labels: Any, noise: Any) -> Tensor:
        joined = torch.cat([z[name].flatten(1) for name in self.latents], dim=1)
        return networks["decoder"](joined, labels, **noise_of(noise, "decoding"))

    def sample(self, networks, latents, labels, noise) -> Tensor:
        return self._decoded(networks, latents, labels, noise).float().clamp(0.0, 1.0)

    def encode(self, networks, images, labels) -> dict[str, Posterior]:
        found = networks["encoder"](images, labels)
        return {name: Posterior(z, None) for name, z in found.items()}

    def reconstruct(self, networks, images, labels, noise) -> Tensor:
        return self.sample(networks, networks["encoder"](images, labels), labels, noise)


class Noisy(torch.nn.Module):
    """A decoder that draws: noise beside its input always, dropout in training alone."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self._shape = signature.output_shape
        self.body = torch.nn.Linear(signature.input[0] + 4, torch.Size(self._shape).numel())

    @property
    def noise(self) -> dict[str, Noise]:
        dropout = {"dropout": Noise((), "uniform")} if self.training else {}
        return {"layer": Noise((4,)), **dropout}

    def forward(self, z: Tensor, labels: Any = None, *, noise: Mapping[str, Tensor]) -> Tensor:
        assert ("dropout" in noise) == self.training
        out = self.body(torch.cat([z, noise["layer"]], dim=1)).view(-1, *self._shape)
        if self.training:
            out = out * (noise["dropout"] > 0.1)[:, None, None, None]
        return out


def levels(*overrides: str, count: int = 2, noisy: bool = False):
    body = {"kind": "mlp", "hidden_sizes": [16]}
    custom = {"kind": "custom", "target": "tests.test_latents:Noisy"}
    target = "tests.test_latents:Levels"
    return experiment(
        {
            "networks": {"encoder": body, "decoder": custom if noisy else body},
            "objective": {"kind": "custom", "target": target, "options": {"levels": count}},
            "optimizers": {"autoencoder": ADAM},
            "training": TRAINING,
        },
        SHORT,
        *overrides,
    )


@pytest.fixture(scope="module")
def runs(store_8, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("levels")
    conditional = "objective.conditional=true"
    return {
        name: saved(this, store_8, folder / name)
        for name, this in {
            "two": levels(),
            "conditional": levels(conditional),
            "map": levels(count=1),
            "noisy": levels(noisy=True),
        }.items()
    }


@pytest.fixture(scope="module")
def pipelines(runs: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: ray_gen.load(run) for name, run in runs.items()}


@pytest.fixture
def images(store_8) -> Tensor:
    return store_8.held_out.images_NHWC.permute(0, 3, 1, 2) / 255


def test_samples_of_a_hierarchy_are_its_latents_decoded(pipelines) -> None:
    pipeline = pipelines["two"]
    z = pipeline.latents(300, seed=3)
    assert {name: tuple(level.shape) for name, level in z.items()} == {
        "top": (300, 3),
        "bottom": (300, 2, 2, 2),
    }
    assert -1.0 <= float(z["bottom"].min()) < -0.9 < 0.9 < float(z["bottom"].max()) < 1.0
    assert float(z["top"].abs().max()) > 2.0
    sampled = pipeline.sample(300, seed=3)
    assert torch.equal(pipeline.decode(z, seed=3), sampled)
    assert torch.equal(pipeline.sample(300, seed=3), sampled)
    some = pipeline.latents([299, 4], seed=3)
    assert all(torch.equal(level, z[name][[299, 4]]) for name, level in some.items())
    correlation = torch.corrcoef(torch.stack([z["top"][:, 0], z["bottom"][:, 0, 0, 0]]))[0, 1]
    assert abs(float(correlation)) < 0.2  # drawn apart


def test_truncation_is_of_each_latent(pipelines) -> None:
    cut = pipelines["two"].latents(300, 0, truncation=0.5)
    assert all(0.4 < float(level.abs().max()) <= 0.5 for level in cut.values())


def test_images_are_encoded_to_every_latent_and_walked_between(pipelines, images) -> None:
    pipeline = pipelines["two"]
    z = pipeline.encode(images)
    assert z.keys() == {"top", "bottom"}
    torch.testing.assert_close(pipeline.decode(z), pipeline.reconstruct(images))
    way = pipeline.interpolate(images[:2], images[2:4], steps=5)
    assert way.shape == (2, 5, 1, 8, 8)
    torch.testing.assert_close(way[:, 0], pipeline.reconstruct(images[:2]))
    middle = {
        "top": latent.interpolated(z["top"][:2], z["top"][2:4], 5, spherical=True)[:, 2],
        "bottom": latent.interpolated(z["bottom"][:2], z["bottom"][2:4], 5, spherical=False)[:, 2],
    }
    torch.testing.assert_close(way[:, 2], pipeline.decode(middle))
    total = pipeline.arithmetic([images[:3], images[3:4]], [images[4:6]])
    means = {
        name: level[:3].mean(0, keepdim=True) + level[3:4] - level[4:6].mean(0, keepdim=True)
        for name, level in z.items()
    }
    torch.testing.assert_close(total, pipeline.decode(means))


def test_a_traversal_moves_one_number_of_the_latent_that_is_named(pipelines) -> None:
    pipeline = pipelines["two"]
    rows = pipeline.traverse([0, 7], steps=3, latent_name="bottom")
    assert rows.shape == (2, 3, 1, 8, 8)
    moved = {"top": torch.zeros(1, 3), "bottom": torch.zeros(1, 2, 2, 2)}
    moved["bottom"][0, 1, 1, 1] = 1.0  # number 7 of the map, to the end of its prior
    torch.testing.assert_close(rows[1, 2:3], pipeline.decode(moved))
    assert pipeline.traverse([2], steps=3, latent_name="top", extent=0.5).shape[:2] == (1, 3)
    with pytest.raises(Refused, match=r"latents top \(3,\), bottom \(2, 2, 2\); name one"):
        pipeline.traverse([0])
    with pytest.raises(Refused, match="there is no middle"):
        pipeline.traverse([0], latent_name="middle")
    with pytest.raises(Refused, match="has 8 dimensions, 0 to 7"):
        pipeline.traverse([8], latent_name="bottom")


def test_a_map_is_one_latent_as_a_vector_is(pipelines, images) -> None:
    pipeline = pipelines["map"]
    assert pipeline.latent_shape == (2, 2, 2)
    z = pipeline.latents(5, seed=1)
    assert z.shape == (5, 2, 2, 2)
    assert torch.equal(pipeline.decode(z), pipeline.sample(5, seed=1))
    assert pipeline.encode(images).shape == (24, 2, 2, 2)
    assert pipeline.traverse([0, 7], steps=3).shape == (2, 3, 1, 8, 8)
    mixture = pipeline.fit_mixture(images, components=2)
    assert mixture.latent_size == 8
    drawn = pipeline.latents(4, seed=0, prior=mixture)
    assert drawn.shape == (4, 2, 2, 2)
    assert torch.equal(pipeline.sample(4, seed=0, prior=mixture), pipeline.decode(drawn))


def test_what_a_hierarchy_cannot_do_is_said(pipelines, images) -> None:
    pipeline = pipelines["two"]
    with pytest.raises(Refused, match=r"fitted to one latent.*top \(3,\), bottom"):
        pipeline.fit_mixture(images)
    with pytest.raises(Refused, match=r"z: this run has the latents .*by name"):
        pipeline.decode(torch.zeros(1, 3))
    with pytest.raises(Refused, match=r"z: has top;.* exactly .*top \(3,\), bottom"):
        pipeline.decode({"top": torch.zeros(1, 3)})
    with pytest.raises(Refused, match=r"z\['bottom'\]: the shape is \(1, 3\)"):
        pipeline.decode({"top": torch.zeros(1, 3), "bottom": torch.zeros(1, 3)})
    with pytest.raises(Refused, match=r"z: .*numbers of images, 1 to 2"):
        pipeline.decode({"top": torch.zeros(1, 3), "bottom": torch.zeros(2, 2, 2, 2)})


def test_classes_reach_every_latent(pipelines, images) -> None:
    pipeline = pipelines["conditional"]
    threes = pipeline.sample(4, labels=3, seed=0)
    assert not torch.equal(threes, pipeline.sample(4, labels=4, seed=0))
    assert pipeline.encode(images[:4], 3)["top"].shape == (4, 3)


def test_noise_of_a_network_is_drawn_for_it_by_number(pipelines) -> None:
    """The same number has the same noise, however many are drawn; along a walk it stays."""
    pipeline = pipelines["noisy"]
    sampled = pipeline.sample(300, seed=3)
    assert torch.equal(pipeline.sample(300, seed=3), sampled)
    torch.testing.assert_close(pipeline.sample(5, seed=3), sampled[:5])
    z = pipeline.latents(300, seed=3)
    assert torch.equal(pipeline.decode(z, seed=3), sampled)
    one = {name: level[7:8] for name, level in z.items()}
    torch.testing.assert_close(pipeline.decode(one, seed=3, numbers=[7]), sampled[7:8])
    assert float((pipeline.decode(one, seed=4) - sampled[7:8]).abs().max()) > 1e-3
    same = {name: level[:1].expand(2, *level.shape[1:]) for name, level in z.items()}
    first, second = pipeline.decode(same)
    assert not torch.equal(first, second)  # another number, another noise
    (still,) = pipeline.interpolate(one, one, steps=4)
    torch.testing.assert_close(still, still[:1].expand_as(still))


@pytest.mark.parametrize("name", ["two", "map", "noisy", "conditional"])
def test_exported_programs_take_every_latent_and_noise(
    runs, pipelines, tmp_path, name: str
) -> None:
    written = export(runs[name], tmp_path / name)
    assert not written.notes
    pipeline = Pipeline.from_pretrained(tmp_path / name)
    expected = pipelines[name].sample(3, seed=1)
    assert torch.equal(pipeline.sample(3, seed=1), expected)
    program = torch.export.load(tmp_path / name / "decoder.pt2").module()
    z = pipeline.by_name(pipeline.latents(3, seed=1))
    labels = [torch.arange(3)] if name == "conditional" else []
    noise = [torch.zeros(3, 4)] if name == "noisy" else []
    made = program(*z.values(), *labels, *noise)
    assert made.shape == expected.shape
    assert ((made - expected).abs().max() < 1e-5) == (name != "noisy")


def test_one_latent_in_the_shape_of_images_is_no_image(store_8, tmp_path: Path) -> None:
    """A tensor that could be a latent or an image counts as a latent, with and without a batch
    axis."""
    from tests.proofs.flow import experiment as flow

    pipeline = ray_gen.load(saved(flow(SHORT), store_8, tmp_path / "flow"))
    z = pipeline.latents(2, seed=0)
    assert z.shape == (2, 1, 8, 8)
    (bare,), (whole,) = pipeline.interpolate(z[0], z[1], 3), pipeline.interpolate(z[:1], z[1:], 3)
    assert torch.equal(bare, whole)


class Dropping(torch.nn.Module):
    """A discriminator with dropout, by noise of its own."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.body = torch.nn.Linear(torch.Size(signature.input).numel(), 16)
        self.head = torch.nn.Linear(16, signature.output_shape[0])

    @property
    def noise(self) -> dict[str, Noise]:
        return {"keep": Noise((16,), "uniform")} if self.training else {}

    def forward(self, x: Tensor, labels: Any = None, *, noise: Any = None) -> Tensor:
        hidden = self.body(x.flatten(1)).relu()
        return self.head(hidden * (noise["keep"] < 0.7) if noise else hidden)


def test_a_discriminator_that_draws_is_given_its_noise_in_every_call(store_8, tmp_path) -> None:
    custom = "networks.discriminator={kind: custom, target: tests.test_latents:Dropping}"
    this = gan(custom, "objective.r1_weight=1", "training.precision=fp64", SHORT)
    parts = gan(
        *(custom, "objective.r1_weight=1", "training.precision=fp64", SHORT),
        "training.micro_batch_size=6",
    )
    whole, split = (weights(trained(of, store_8)[0]) for of in (this, parts))
    assert relative_difference(split, whole) < 1e-9
    pipeline = ray_gen.load(saved(this, store_8, tmp_path / "gan"))
    assert pipeline.discriminate(pipeline.sample(3, seed=0)).shape == (3,)


@pytest.mark.parametrize("name", ["labels", "bottom"])
def test_inputs_of_one_name_are_refused(name: str, monkeypatch) -> None:
    both = {"bottom": Noise((2,)), **({"labels": Noise((2,))} if name == "labels" else {})}
    noise = {} if name == "labels" else {"bottom": NoiseOf("decoder")}
    monkeypatch.setattr(Levels, "sampling_noise", noise)
    original = Levels.__init__

    def changed(self, **given: Any) -> None:
        original(self, **given)
        self.latents = both

    monkeypatch.setattr(Levels, "__init__", changed)
    refused = "labels" if name == "labels" else "bottom"
    with pytest.raises(ExperimentError, match=f"two inputs of `sample` .*{refused}"):
        build_objective(levels())
