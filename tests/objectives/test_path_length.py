"""The path length penalty against differences of images, and its mean against plain Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ray_gen.core import Batch, begin_phase, declared
from ray_gen.distributed import World
from ray_gen.experiment import ExperimentError
from ray_gen.losses import path_lengths
from ray_gen.objectives.path_length import PathLength, path_length_losses
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import STYLEGAN2, gan, stepped

FP64 = "training.precision=fp64"


def test_a_length_is_that_of_the_jacobian() -> None:
    """√(mean over layers of ‖Jᵀ y‖²), with J from differences of images."""
    networks = State.build(
        gan(*STYLEGAN2, FP64), build_objective(gan(*STYLEGAN2)), World()
    ).networks
    generator = networks["generator"].eval()
    drawn = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    noise = {name: random(2, *spec.shape) for name, spec in generator.noise.items()}
    styles, direction = random(2, 4, 6), random(2, 1, 8, 8)
    with torch.no_grad():
        gradient = torch.zeros(2, 4, 6, dtype=torch.float64)
        for layer in range(4):
            for number in range(6):
                step = torch.zeros_like(styles)
                step[:, layer, number] = 1e-5
                ahead, behind = (
                    generator.synthesize(styles + way * step, noise) for way in (1.0, -1.0)
                )
                change = (ahead - behind) / 2e-5 * direction / 8.0  # √(8 · 8)
                gradient[:, layer, number] = change.sum((1, 2, 3))
    expected = (gradient.square().sum(2).sum(1) / 4).sqrt()
    styles.requires_grad_()
    found = path_lengths(generator.synthesize(styles, noise), styles, direction)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("group", [1, 2, 3])
def test_the_first_half_of_each_group_counts_for_all(group: int) -> None:
    """The mean over the batch is the mean over the images that are used."""
    this = gan(*STYLEGAN2, FP64, "objective.path_length_weight=2")
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    networks["path_length"].mean.fill_(0.3)
    specs = declared(objective.phases()[1].noise, networks)
    noise = {name: torch.rand(6, *spec.shape).double() for name, spec in specs.items()}
    images = torch.zeros(6, 1, 8, 8).double()
    batch = Batch(images, None, noise, torch.zeros(()), group_size=group)
    found = path_length_losses(networks, batch).minimised["path_length"]
    used = {1: [0, 1, 2, 3, 4, 5], 2: [0, 2, 4], 3: [0, 1, 3, 4]}[group]
    lengths = {}
    for i in used:
        own = {
            name.removeprefix("fakes."): value[i : i + 1]
            for name, value in noise.items()
            if name.startswith("fakes.")
        }
        styles = networks["generator"].styles(noise["z"][i : i + 1], noise=own)
        image = networks["generator"].synthesize(styles, own)
        lengths[i] = path_lengths(image, styles, noise["direction"][i : i + 1])
    penalty = torch.stack([(lengths[i] - 0.3).square()[0] for i in used]).mean()
    torch.testing.assert_close(found.mean(), penalty)
    assert [i for i in range(6) if found[i] != 0] == used


def test_the_mean_moves_once_a_phase_from_what_it_saw() -> None:
    module = PathLength().double()
    for lengths in ([1.0, 3.0], [], [4.0]):
        begin_phase(module)
        for length in lengths:
            module(torch.tensor([length], dtype=torch.float64))
        module.end_phase(module.phase_statistics())
    assert float(module.mean) == pytest.approx(0.01 * 2.0 * 0.99 + 0.01 * 4.0)


def test_a_penalty_is_the_lengths_distance_from_the_mean() -> None:
    module = PathLength().double()
    module.mean.fill_(2.0)
    lengths = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert module(lengths).tolist() == [1.0, 0.0, 9.0]


def test_training_moves_the_mean_at_every_fourth_update(store_8) -> None:
    this = gan(*STYLEGAN2, FP64, "objective.path_length_weight=2")
    before, _ = stepped(this, build_objective(this), store_8, 3)
    assert before.networks["path_length"].mean == 0.0
    after, meter = stepped(this, build_objective(this), store_8, 4)
    assert after.networks["path_length"].mean > 0.0
    assert {"loss/path_length", "path_length/mean"} <= meter.report().keys()


def test_a_generator_without_styles_is_refused() -> None:
    with pytest.raises(ExperimentError, match="path_length_weight: needs a generator with styles"):
        gan("objective.path_length_weight=2", kind="dcgan")


def test_mixing_needs_a_normal_latent() -> None:
    with pytest.raises(ExperimentError, match="mixing: takes styles of a normal z"):
        gan(*STYLEGAN2, "objective.latent_distribution=uniform")
    gan(*STYLEGAN2, "objective.latent_distribution=uniform", "networks.generator.mixing=0")


def test_groups_of_deviations_lie_in_groups_of_training() -> None:
    with pytest.raises(ExperimentError) as refused:
        gan(*STYLEGAN2, "networks.discriminator.deviation_group=4")
    assert refused.value.problems == [
        "networks.discriminator.deviation_group: 4 does not divide training.group_size 6; set it "
        "to 3, or training.group_size to a multiple of it"
    ]
