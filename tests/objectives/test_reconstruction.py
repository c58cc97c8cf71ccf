"""A discriminator that also reconstructs, and margins of the hinge loss, against steps by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ray_gen.augment import augment
from ray_gen.core import Batch, Noise
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import ExperimentError
from ray_gen.noise import draw, key_of
from ray_gen.sampling import noise_for
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.rehearsal import rehearse
from ray_gen.training.state import State
from tests.helpers import ADAM, TRAINING, batches, experiment, gan, stepped

RATE = 0.05
FP64 = "training.precision=fp64"
SGD = [
    f"optimizers.{name}={{kind: sgd, learning_rate: {RATE}}}"
    for name in ("generator", "discriminator")
]


class Remembering(nn.Module):
    """A discriminator that reconstructs the image, and one row of it, which its noise chooses."""

    def __init__(self, signature) -> None:
        super().__init__()
        channels = signature.input[0]
        self.body, self.head = nn.Conv2d(channels, 3, 3, padding=1), nn.Conv2d(3, 1, 4, 2)
        self.back = nn.Conv2d(3, channels, 1) if signature.reconstructs else None
        self.noise = {"row": Noise((), "uniform", 0.0, 8.0)}

    def forward(self, images: Tensor, labels: Tensor | None = None, noise=None) -> Tensor:
        return self.head(self.body(images).relu())

    def reconstructed(self, images: Tensor, labels: Tensor | None = None, *, noise):
        features = self.body(images).relu()
        again, row = self.back(features), noise["row"].long()
        every = torch.arange(len(images))
        rows = images[every, :, row], again[every, :, row]
        return self.head(features), [(images, again), tuple(x[:, :, None] for x in rows)]


def ours(name: str = "Remembering") -> str:
    return f"networks.discriminator={{kind: custom, target: '{__name__}:{name}'}}"


def drawn(spec: Noise, phase: str, name: str, step: int) -> Tensor:
    key = key_of(0, phase, name)
    return draw(spec, key, torch.tensor([step]), torch.arange(24))[0].double()


@pytest.mark.parametrize("micro", [[], ["training.micro_batch_size=6"]])
@pytest.mark.parametrize("margins", [1.0, [0.8, 1.0]])
def test_steps_are_written_out_in_float64(store_8, micro: list[str], margins) -> None:
    this = gan(
        FP64,
        *SGD,
        *micro,
        ours(),
        "objective.loss=hinge",
        f"objective.hinge_margin={margins}",
        "objective.reconstruction_weight={kind: linear, start: 8, end: 2, until_images: 240}",
        "objective.augment=[color]",
    )
    objective = build_objective(this)
    state = State.build(this, objective, World())
    networks = copy.deepcopy(state.networks)
    _, meter = stepped(this, objective, store_8, 4, state)
    generator, judge = networks["generator"], networks["discriminator"]
    told = []
    for step, (images, _) in enumerate(batches(this, objective, store_8, 0, 4)):
        for phase in ("discriminator", "generator"):
            noise = {"augment_color": drawn(Noise((3,), "uniform"), phase, "augment_color", step)}
            fakes = generator(drawn(objective.latents["z"], phase, "z", step), None)
            fake = judge(augment(fakes, ["color"], noise))
            if phase == "discriminator":
                m = torch.ones(24, 2, dtype=torch.float64)
                if isinstance(margins, list):
                    m = drawn(Noise((2,), "uniform", 0.8, 1.0), phase, "hinge_margin", step)
                m = m[:, :, None, None, None]
                seen = augment(images, ["color"], noise)
                real = judge(seen)
                loss = ((m[:, 0] - real).clamp(min=0) + (m[:, 1] + fake).clamp(min=0)).mean()
                again = judge.back(judge.body(seen).relu())
                apart = (seen - again).abs()
                row = drawn(Noise((), "uniform", 0.0, 8.0), phase, "judged_real.row", step).long()
                of_row = torch.stack([each[:, r] for each, r in zip(apart, row, strict=True)])
                distance = apart.mean() + of_row.mean()
                told.append(float(distance.detach()))
                loss = loss + (8 - 6 * 24 * step / 240) * distance
                moved = judge
            else:
                loss, moved = -fake.mean(), generator
            gradients = torch.autograd.grad(loss, list(moved.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                    parameter -= RATE * gradient
    for name, parameter in state.networks.named_parameters():
        torch.testing.assert_close(parameter, networks.get_parameter(name), rtol=1e-6, atol=1e-8)
    assert meter.report()["loss/reconstruction"] == pytest.approx(sum(told) / 4, rel=1e-5)


def test_only_a_discriminator_that_is_asked_to_has_decoders() -> None:
    for weight, has in ((0, False), (8, True)):
        this = gan(f"objective.reconstruction_weight={weight}", kind="fastgan")
        objective = build_objective(this)
        networks = build_networks(this, objective)
        assert any("decoders" in name for name in networks.state_dict()) == has
        assert ("distance" in networks) == has


def test_every_part_of_both_networks_learns_at_64_pixels() -> None:
    """In one step: excitations, noise, the small branch and all decoders."""
    net = {"kind": "fastgan", "width": 1}
    this = experiment(
        {
            "networks": {"generator": net, "discriminator": net},
            "objective": {"kind": "gan", "loss": "hinge", "reconstruction_weight": 8},
            "optimizers": {"generator": ADAM, "discriminator": ADAM},
            "training": {**TRAINING, "global_batch_size": 2, "group_size": 2},
        },
        side=64,
    )
    objective = build_objective(this)
    networks = build_networks(this, objective).train()
    with torch.no_grad():
        for name, parameter in networks.named_parameters():
            if name.endswith("strengths"):
                parameter.fill_(0.1)
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    for phase in objective.phases():
        noise = noise_for(phase.noise, networks, 0, "test", torch.arange(2), torch.float32)
        due = frozenset(phase.terms[0].weights)
        losses = phase.terms[0].loss(networks, Batch(images, None, noise, torch.zeros(()), {}, due))
        networks.zero_grad()
        torch.stack(list(losses.minimised.values())).sum().backward()
        still = [
            name
            for name, parameter in networks[phase.name].named_parameters()
            if parameter.grad is None or not parameter.grad.any()
        ]
        assert not still


def test_a_discriminator_that_cannot_reconstruct_is_refused_with_the_remedy() -> None:
    for kind in ("mlp", "dcgan"):
        with pytest.raises(ExperimentError, match=r"networks.discriminator.kind=fastgan"):
            gan("objective.reconstruction_weight=1", kind=kind)
    this = gan("objective.reconstruction_weight=1", "objective.loss=hinge", ours("Plain"))
    with pytest.raises(Refused, match="Plain has no method `reconstructed`"):
        rehearse(this, build_objective(this))


class Plain(nn.Module):
    """A discriminator that reconstructs nothing."""

    def __init__(self, signature) -> None:
        super().__init__()
        self.head = nn.Conv2d(signature.input[0], 1, 4, 2)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.head(images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["objective.hinge_margin=0.9"], "set hinge_margin to 1 or loss to hinge"),
        (["objective.loss=hinge", "objective.hinge_margin=[1.0,0.8]"], r"e.g. \[0.8, 1.0\]"),
    ],
)
def test_margins_that_cannot_be_are_refused(options: list[str], words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        gan(*options)
