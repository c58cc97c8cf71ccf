"""Flow matching: its loss, its ODE, and latents that are as large as an image."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ray_gen
from ray_gen.core import Noise
from ray_gen.distributed import World
from ray_gen.experiment import ExperimentError
from ray_gen.noise import draw, key_of
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.state import State
from tests.helpers import batches, stepped
from tests.proofs.flow import Flow, experiment
from tests.runs import saved

FP64 = "training.precision=fp64"
CONDITIONAL = "objective.conditional=true"


def test_the_loss_is_the_equation(store_8) -> None:
    """‖v(x_t, t) - (x - ε)‖² of one step, image by image and layer by layer."""
    this = experiment(FP64)
    objective = build_objective(this)
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    w0, b0, w1, b1 = State.build(this, objective, World()).networks.state_dict().values()
    numbers = torch.zeros(1, dtype=torch.int64), torch.arange(24)
    times = draw(Noise((), "uniform"), key_of(this.seed, "velocity", "t"), *numbers)[0]
    epsilons = draw(Noise((1, 8, 8)), key_of(this.seed, "velocity", "epsilon"), *numbers)[0]
    assert 0.0 <= float(times.min()) < 0.2 < 0.8 < float(times.max()) < 1.0
    assert float(images.min()) < -0.9
    total = 0.0
    for image, t, epsilon in zip(images, times.double(), epsilons.double(), strict=True):
        x, e = image.flatten(), epsilon.flatten()
        hidden = (w0 @ torch.cat([(1 - t) * e + t * x, t[None]]) + b0).clamp(min=0)
        total += float(((w1 @ hidden + b1 - (x - e)) ** 2).sum())
    _, meter = stepped(this, objective, store_8, 1)
    assert meter.report()["loss/flow"] == pytest.approx(total / 24, rel=1e-12)


class Field(nn.Module):
    """A velocity that is known."""

    def __init__(self, velocity) -> None:
        super().__init__()
        self._velocity = velocity

    def forward(self, x: Tensor, labels: Tensor | None, *, time: Tensor) -> Tensor:
        assert time.shape == (len(x), 1)
        return self._velocity(x, time[..., None, None])


def end_of(velocity, z: Tensor, steps: int, solver: str) -> Tensor:
    """Where the ODE ends, in [-1, 1]."""
    objective = Flow(image_shape=(1, 8, 8), label_count=None, steps=steps, solver=solver)
    networks = nn.ModuleDict({"velocity": Field(velocity)})
    return objective.sample(networks, {"z": z}, None, {}).double() * 2 - 1


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_velocity_of_a_point_mass_ends_at_the_point(solver: str, steps: int) -> None:
    """x_t = (1 - t) ε + t c has the velocity (c - x_t) / (1 - t), which is not defined at 1."""
    point, z = torch.rand(1, 8, 8).double() * 2 - 1, torch.randn(5, 1, 8, 8).double()
    found = end_of(lambda x, t: (point - x) / (1 - t), z, steps, solver)
    torch.testing.assert_close(found, point.expand(5, 1, 8, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_half_the_step_has_half_the_error_or_a_quarter(solver: str, order: int) -> None:
    """dx/dt = 2 t x from z ends at e z."""
    z = torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64)
    errors = [
        float((end_of(lambda x, t: 2 * t * x, z, steps, solver) - 0.3 * math.e).abs().max())
        for steps in (16, 32)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_an_image_stays_in_its_range() -> None:
    z = torch.randn(2, 1, 8, 8)
    for speed in (-9.0, 9.0):
        assert (end_of(lambda x, t, v=speed: x * 0 + v, z, 2, "euler") == speed / 9).all()


@pytest.fixture(scope="module")
def pipeline(store_8, tmp_path_factory):
    """A small trained run with classes, in use."""
    folder = tmp_path_factory.mktemp("runs")
    return ray_gen.load(saved(experiment(CONDITIONAL), store_8, folder / "flow"))


def test_samples_and_walks_go_through_latents_that_are_as_large_as_an_image(pipeline) -> None:
    assert pipeline.latent_shape == (1, 8, 8)
    images, z = pipeline.sample(12, seed=3), pipeline.latents(12, seed=3)
    assert images.shape == z.shape == (12, 1, 8, 8)
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0
    assert torch.equal(images, pipeline.sample(12, seed=3))
    assert torch.equal(images, pipeline.decode(z))
    assert not torch.equal(pipeline.decode(z[:1], labels=1), images[:1])

    ways = pipeline.interpolate(z[:2], z[2:4], steps=5, labels=[0, 1])
    assert ways.shape == (2, 5, 1, 8, 8)
    torch.testing.assert_close(ways[:, 0], images[:2])
    torch.testing.assert_close(ways[:, -1], pipeline.decode(z[2:4], labels=[0, 1]))

    rows = pipeline.traverse([0, 10, 63], extent=2.0, steps=3, labels=4)
    assert rows.shape == (3, 3, 1, 8, 8)
    moved = torch.zeros(1, 1, 8, 8)
    torch.testing.assert_close(rows[:, 1], pipeline.decode(moved, labels=4).expand(3, 1, 8, 8))
    moved[0, 0, 1, 2] = 2.0  # number 10 of rows of 8
    torch.testing.assert_close(rows[1, 2:], pipeline.decode(moved, labels=4))


def test_the_ode_is_exported_as_one_program(pipeline, tmp_path: Path) -> None:
    ray_gen.export(pipeline, tmp_path / "out", formats=["torch"])
    (file,) = (tmp_path / "out").glob("*.pt2")
    program = torch.export.load(file).module()
    labels = torch.arange(10)
    torch.testing.assert_close(
        program(pipeline.latents(10, seed=1), labels), pipeline.sample(10, labels=labels, seed=1)
    )


@pytest.mark.parametrize("kind", ["resnet", "dcgan"])
def test_an_architecture_that_cannot_do_it_says_what_it_can(kind: str) -> None:
    this = experiment(f"networks.velocity={{kind: {kind}}}")
    sentence = rf"networks\.velocity\.kind: {kind} .*a map to a map; use mlp"
    with pytest.raises(ExperimentError, match=sentence):
        build_networks(this, build_objective(this))
