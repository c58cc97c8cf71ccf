"""ADA in a GAN: p against a simulation, whose draws are whose, and consistency penalties."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ray_gen.augment.ada import Ada
from ray_gen.core import Batch, declared
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.objectives.augmented import AdaptiveP
from ray_gen.training.build import build_objective
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Step
from tests.helpers import batches, gan, largest_difference, stepped, trained, weights
from tests.objectives.test_gan import FP64

ADA = "objective.augment={kind: ada, ada_images: 480, target: 0.1}"
FAST = "optimizers.discriminator.learning_rate=0.01"
ALWAYS = "objective.augment={kind: ada, p: 1}"
BATCH = 24


def simulated(
    phases: Iterable[list[float]], images: float, target: float, largest: float, middle: float = 0.0
) -> list[float]:
    """p after each phase of D, from the logits of its real images, in plain Python."""
    p, signs, trajectory = 0.0, list[float](), list[float]()
    for number, logits in enumerate(phases, 1):
        signs += [(logit > middle) - (logit < middle) for logit in logits]
        if number % 4 == 0:
            overfits = sum(signs) / len(signs) > target
            p += (1 if overfits else -1) * len(signs) / images
            p, signs = min(largest, max(0.0, p)), []
        trajectory.append(p)
    return trajectory


def test_p_goes_as_a_plain_simulation_goes() -> None:
    """To its upper end and back to 0. D's opinion of real images is given."""
    given = random.Random(0)
    shift = [1.5] * 60 + [0.0] * 70 + [1.0] * 40
    phases = [[given.gauss(mean, 1.0) for _ in range(BATCH)] for mean in shift]
    module = AdaptiveP(target=0.5, images=1000.0, max_p=0.7).double()
    trajectory = []
    for logits in phases:
        module.begin_phase()
        for part in torch.tensor(logits, dtype=torch.float64).split(10):
            module(part.sign())
        module.end_phase(module.phase_statistics())
        trajectory.append(float(module.p))
    assert trajectory == pytest.approx(simulated(phases, 1000.0, 0.5, 0.7), abs=1e-12)
    assert max(trajectory) == 0.7
    assert len({round(p, 9) for p in trajectory}) > 12
    assert trajectory.count(0.0) > 8


def test_p_keeps_still_without_images() -> None:
    module = AdaptiveP(target=0.6, images=100.0, max_p=0.8)
    module.p.fill_(0.3)
    for _ in range(9):
        module.begin_phase()
        module(torch.ones(0))
        module.end_phase(module.phase_statistics())
    assert float(module.p) == pytest.approx(0.3)


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "hinge"])
@pytest.mark.parametrize("micro", [[], ["training.micro_batch_size=6"]])
def test_p_of_a_run_follows_the_logits_of_its_augmented_images(
    store_8: Store, loss: str, micro: list[str]
) -> None:
    this = gan(ADA, FP64, f"objective.loss={loss}", FAST, *micro, kind="dcgan")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    meter = Meter(BATCH, World())
    step = Step(this, objective, state, World(), meter)
    judged: list[Tensor] = []
    seen = state.networks["discriminator"].register_forward_hook(
        lambda module, given, logits: judged.append(logits.detach().flatten())
    )
    phases, trajectory = [], []
    for images, labels in batches(this, objective, store_8, 0, 24):
        judged.clear()
        step(images, labels)
        parts = len(micro) * 3 + 1
        of_d = judged[: 2 * parts]  # generated and real in turn, then those of G's phase
        phases.append([logit for part in of_d[1::2] for logit in part.tolist()])
        trajectory.append(float(state.networks["augment_p"].get_buffer("p")))
    seen.remove()
    assert all(len(phase) == BATCH for phase in phases)
    middle = 0.5 if loss == "least_squares" else 0.0
    assert trajectory == pytest.approx(simulated(phases, 480, 0.1, 0.8, middle), abs=1e-12)
    report = meter.report()
    signs = [(logit > middle) - (logit < middle) for phase in phases for logit in phase]
    assert report["augment/sign"] == pytest.approx(sum(signs) / len(signs))
    before = [0.0, *trajectory[:-1]]  # a phase uses p, then moves it
    assert report["augment/p"] == pytest.approx(sum(before) / len(before))
    assert max(trajectory) > 0.1


def test_p_is_in_the_checkpoint(store_8: Store, tmp_path: Path) -> None:
    this = gan(ADA, FP64, kind="dcgan")
    objective = build_objective(this)
    state, _ = stepped(this, objective, store_8, 10)
    state.save(tmp_path, this)
    again = State.build(this, objective, World())
    again.load(tmp_path)
    assert float(again.networks["augment_p"].get_buffer("p")) > 0
    for ours in (state, again):
        stepped(this, objective, store_8, 6, ours)
    assert largest_difference(weights(state), weights(again)) == 0


def batch_of(this: Experiment, networks: nn.ModuleDict, phase: int, images: Tensor) -> Batch:
    """A batch with all noise that a phase declares, and a p of 1."""
    generator = torch.Generator().manual_seed(4)
    objective = build_objective(this)
    noise = {
        name: (torch.rand if spec.distribution == "uniform" else torch.randn)(
            len(images), *spec.shape, generator=generator
        )
        for name, spec in declared(objective.phases()[phase].noise, networks).items()
    }
    numbers = {"label_smoothing": torch.zeros(()), "augment_p": torch.ones(())}
    return Batch(images, None, noise, torch.zeros(()), numbers)


class Watched(nn.Module):
    """A discriminator that keeps the images it sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append(images)
        return self.network(images, labels)


@pytest.mark.parametrize("shared", [False, True])
def test_real_and_generated_images_share_transforms_only_if_asked(
    store_8: Store, shared: bool
) -> None:
    """R1's pass sees the same real images as the loss."""
    this = gan(f"objective.augment={{kind: ada, p: 1, shared: {shared}}}", "objective.r1_weight=1")
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    networks["discriminator"] = watched = Watched(networks["discriminator"])
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    batch = batch_of(this, networks, 0, images)
    for term in objective.phases()[0].terms:
        term.loss(networks, batch)
    fake, real, of_r1 = watched.seen
    pipe = Ada(this.image_shape, this.objective.augment.multipliers()).float()  # type: ignore
    fakes = networks["generator"](batch.noise["z"], None)
    names = ("augment_real", "augment_real" if shared else "augment_fake")
    for found, given, name in zip((real, fake), (images, fakes), names, strict=True):
        noise = {key: batch.noise[f"{name}.{key}"] for key in ("uniform", "normal")}
        torch.testing.assert_close(found, pipe(given, torch.ones(()), noise))
    assert torch.equal(real, of_r1)
    assert any(name.startswith("augment_fake") for name in batch.noise) != shared


def test_r1_is_the_gradient_at_images_before_augmentation(store_8: Store) -> None:
    """Against finite differences in float64."""
    this = gan(ALWAYS, "objective.r1_weight=1", FP64)
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    images = images[:2].double()
    batch = batch_of(this, networks, 0, images)
    batch = Batch(
        images,
        None,
        {name: values.double() for name, values in batch.noise.items()},
        batch.images_seen,
        {name: value.double() for name, value in batch.numbers.items()},
    )
    r1 = next(term for term in objective.phases()[0].terms if term.name == "r1")
    found = r1.loss(networks, batch).minimised["r1"]
    pipe = networks["augment"]
    noise = {key: batch.noise[f"augment_real.{key}"] for key in ("uniform", "normal")}

    def logits(x: Tensor) -> Tensor:
        return networks["discriminator"](pipe(x, torch.ones(()).double(), noise), None).flatten()

    slopes = []
    for place in range(images[0].numel()):
        step = torch.zeros_like(images).flatten(1)
        step[:, place] = 1e-5
        step = step.view_as(images)
        slopes.append((logits(images + step) - logits(images - step)) / 2e-5)
    expected = torch.stack(slopes).square().sum(0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_scheduled_p_reaches_the_images(store_8: Store) -> None:
    """p = 0, then 1: the first half of the run is that of no augmentation up to rounding."""
    steps = "objective.augment.p={kind: steps, values: [[0, 0], [240, 1]]}"
    of = {}
    for name, more in {"none": [], "late": ["objective.augment=ada", steps]}.items():
        this = gan(FP64, "objective.loss=relativistic", *more)
        objective = build_objective(this)
        state, meter = stepped(this, objective, store_8, 10)
        before = weights(state)
        stepped(this, objective, store_8, 3, state)
        of[name] = before, weights(state)
        if name == "late":
            assert meter.report()["augment/p"] == 0.0
    for number, apart in enumerate((False, True)):
        ours = {k: v for k, v in of["late"][number].items() if "augment" not in k}
        assert (largest_difference(ours, of["none"][number]) > 1e-6) == apart


@pytest.mark.parametrize("loss", ["relativistic", "wasserstein"])
def test_an_adaptive_p_needs_a_d_with_a_zero(loss: str) -> None:
    penalty = "objective.gradient_penalty_weight=10"
    with pytest.raises(ExperimentError, match=r"objective.*augment\.p: .*schedule"):
        gan(f"objective.loss={loss}", penalty, "objective.augment=ada")
    gan(f"objective.loss={loss}", penalty, "objective.augment={kind: ada, p: 0.2}")


@pytest.mark.parametrize(("first", "then"), [("0.3", "adaptive"), ("adaptive", "0.3")])
def test_p_may_become_adaptive_during_a_run_or_the_reverse(
    store_8: Store, first: str, then: str
) -> None:
    change = f"lineage=[{{images: 240, values: {{objective.augment.p: {then}}}}}]"
    ada = f"objective.augment={{kind: ada, p: {first}, ada_images: 480, target: -1e-9}}"
    state, reports = trained(gan(ada, change, FAST, kind="dcgan"), store_8)
    assert ["augment/p" in report.metrics for report in reports] == [
        first == "adaptive",
        then == "adaptive",
    ]
    assert float(state.networks["augment_p"].get_buffer("p")) > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{kind: ada, p: 2}", r"augment\.p: .*less than or equal to 1"),
        ("{kind: ada, p: often}", r"augment\.p: "),
        ("{kind: ada, hue: -1}", r"augment\.hue: "),
        ("{kind: ada, colour: 1}", r"augment\.colour: there is no such field"),
        ("{kind: aad}", r"augment\.kind: .*did you mean ada"),
        ("[colour]", r"augment: .*did you mean color"),
    ],
)
def test_wrong_augmentation_is_refused_where_it_stands(given: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=r"^objective\." + told):
        gan(f"objective.augment={given}")


def test_augmentation_survives_yaml() -> None:
    for given in ("ada", "{kind: ada, p: 0.3, hue: 0}", "[color, cutout]"):
        this = gan(f"objective.augment={given}")
        assert Experiment.from_yaml(this.to_yaml(), ()).objective == this.objective


@pytest.mark.parametrize("augment", [[], [ALWAYS]])
def test_consistency_is_the_squared_difference_of_logits_of_moved_images(
    store_8: Store, augment: list[str]
) -> None:
    """Moved pixel by pixel here: half of the copies mirrored, then shifted by at most 1/8."""
    this = gan("objective.consistency_weight=1", "objective.fake_consistency_weight=1", *augment)
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    networks["discriminator"] = watched = Watched(networks["discriminator"])
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    given = batch_of(this, networks, 0, images)
    due = frozenset({"discriminator", "consistency", "fake_consistency"})
    batch = Batch(images, None, given.noise, given.images_seen, given.numbers, due)
    (term,) = objective.phases()[0].terms
    found = term.loss(networks, batch).minimised
    seen: dict[str, Tensor] = dict(
        zip(("fake", "real", "moved_real", "moved_fake"), watched.seen, strict=True)
    )
    mirrored = 0
    for of, loss in (("real", "consistency"), ("fake", "fake_consistency")):
        for image, copy, flip in zip(
            seen[of], seen[f"moved_{of}"], batch.noise[f"moved_{of}_flip"].tolist(), strict=True
        ):
            mirrored += flip < 0.5
            whole = torch.nn.functional.pad(image.flip(2) if flip < 0.5 else image, (1, 1, 1, 1))
            moves = [
                whole[:, 1 + down : 9 + down, 1 + right : 9 + right]
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
            ]
            assert any(torch.equal(copy, move) for move in moves)
        apart = watched.network(seen[of], None) - watched.network(seen[f"moved_{of}"], None)
        torch.testing.assert_close(found[loss], apart.flatten().square(), rtol=1e-4, atol=1e-9)
    assert 10 < mirrored < 38


def test_a_large_weight_makes_d_consistent(store_8: Store) -> None:
    losses = {}
    for weight in (1e-6, 1000):
        this = gan(f"objective.consistency_weight={weight}", kind="dcgan")
        losses[weight] = trained(this, store_8)[1][-1].metrics["loss/consistency"]
    assert losses[1000] < 0.5 * losses[1e-6]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "ada",
            "12 transforms of ADA, adaptive p, from 0 to at most 0.8, up or down by 1 in 500,000",
        ),
        ("{kind: ada, p: 0.25, cutout: 1}", "13 transforms of ADA, p 0.25"),
        (
            "{kind: ada, p: {kind: linear, start: 0, end: 0.3, until_images: 100}, hue: 0}",
            "11 transforms of ADA, p by a schedule, 0 at the beginning",
        ),
        ("[color, cutout]", "color, cutout"),
    ],
)
def test_a_plan_tells_the_rule_of_p(given: str, told: str) -> None:
    found = gan(f"objective.augment={given}").objective.told((1, 8, 8), 480)
    assert found["augments"].startswith(told)
    assert gan().objective.told((1, 8, 8), 480) == {}
