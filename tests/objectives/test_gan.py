"""The GAN against a step written out by hand, and what its options change."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ray_gen.augment import augment
from ray_gen.core import Batch, Losses, Noise, Phase
from ray_gen.distributed import World
from ray_gen.noise import draw, key_of
from ray_gen.objectives import equilibrium
from ray_gen.training import loop
from ray_gen.training.build import build_objective
from ray_gen.training.meter import Meter
from ray_gen.training.rehearsal import rehearse
from ray_gen.training.state import State
from ray_gen.training.step import Step
from tests.helpers import batches, gan, largest_difference, stepped, trained, weights

RATE = 0.05
SGD = [
    f"optimizers.{name}={{kind: sgd, learning_rate: {RATE}}}"
    for name in ("generator", "discriminator")
]
FP64 = "training.precision=fp64"


def z_of(objective, phase: str, step: int, count: int = 24) -> Tensor:
    drawn = draw(
        objective.latents["z"], key_of(0, phase, "z"), torch.tensor([step]), torch.arange(count)
    )
    return drawn[0].double()


def log_sigmoid(logits: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-logits)))


def step_by_hand(networks, objective, experiment, step: int, images: Tensor) -> None:
    """One step of SGD on the paper's losses, in float64."""
    generator, discriminator = networks["generator"], networks["discriminator"]
    settings = experiment.objective
    t = 1 - settings.label_smoothing

    def descend(network, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= RATE * gradient

    def slopes(images: Tensor) -> Tensor:
        """∇D(x) of each image, flat: (N, C·H·W)."""
        x = images.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(x, None).sum(), x, create_graph=True)
        return slope.flatten(1)

    generated = generator(z_of(objective, "discriminator", step), None).detach()
    real, fake = discriminator(images, None), discriminator(generated, None)
    loss = {
        "hinge": (1 - real).clamp(min=0) + (1 + fake).clamp(min=0),
        "least_squares": ((real - 1) ** 2 + fake**2) / 2,
        "wasserstein": fake - real,
        "relativistic": -log_sigmoid(real - fake),
    }.get(
        settings.loss,
        -(t * log_sigmoid(real) + (1 - t) * log_sigmoid(-real) + log_sigmoid(-fake)),
    )
    loss = loss.mean()
    if (step + 1) % settings.r1_every == 0:
        penalty = slopes(images).square().sum(1).mean()
        loss = loss + settings.r1_every * settings.r1_weight / 2 * penalty
    if (step + 1) % settings.r2_every == 0:
        penalty = slopes(generated).square().sum(1).mean()
        loss = loss + settings.r2_every * settings.r2_weight / 2 * penalty
    if settings.gradient_penalty_weight and (step + 1) % settings.gradient_penalty_every == 0:
        key = key_of(0, "discriminator", "mix")
        shares = draw(Noise((1, 1, 1), "uniform"), key, torch.tensor([step]), torch.arange(24))
        mixes = shares[0].double() * images + (1 - shares[0].double()) * generated
        penalty = (slopes(mixes).square().sum(1).sqrt() - 1).square().mean()
        weight = settings.gradient_penalty_every * settings.gradient_penalty_weight
        loss = loss + weight * penalty
    descend(discriminator, loss)
    if (step + 1) % settings.discriminator_steps == 0:
        fake = discriminator(generator(z_of(objective, "generator", step), None), None)
        real = discriminator(images, None)
        loss = {
            "non_saturating": -log_sigmoid(fake),
            "minimax": log_sigmoid(-fake),
            "hinge": -fake,
            "least_squares": (fake - 1) ** 2 / 2,
            "wasserstein": -fake,
            "relativistic": -log_sigmoid(fake - real),
        }[settings.loss]
        descend(generator, loss.mean())


@pytest.mark.parametrize(
    "options",
    [
        ["objective.loss=non_saturating"],
        ["objective.loss=minimax", "objective.discriminator_steps=2"],
        ["objective.loss=hinge", "objective.r1_weight=0.7"],
        ["objective.label_smoothing=0.2", "objective.r1_weight=3", "objective.r1_every=2"],
        ["objective.latent_distribution=uniform", "objective.discriminator_steps=3"],
        ["objective.loss=least_squares", "objective.r2_weight=2", "objective.r2_every=3"],
        [
            "objective.loss=wasserstein",
            "objective.gradient_penalty_weight=10",
            "objective.gradient_penalty_every=2",
            "objective.discriminator_steps=2",
        ],
        ["objective.loss=relativistic"],
        [
            "objective.loss=relativistic",
            "objective.r1_weight=0.7",
            "objective.r2_weight=1.3",
            "objective.r2_every=2",
        ],
        ["objective.loss=relativistic", "objective.gradient_penalty_weight=1"],
    ],
)
@pytest.mark.parametrize("micro", [[], ["training.micro_batch_size=6"]])
def test_steps_are_the_papers_in_float64(store_8, options: list[str], micro: list[str]) -> None:
    experiment = gan(FP64, *SGD, *options, *micro)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    expected = copy.deepcopy(state.networks)
    stepped(experiment, objective, store_8, 6, state)
    for step, (images, _) in enumerate(batches(experiment, objective, store_8, 0, 6)):
        step_by_hand(expected, objective, experiment, step, images)
    for name, parameter in state.networks.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=1e-10, atol=1e-12)


class Recording:
    """An objective that keeps what each of its terms was given."""

    def __init__(self, objective) -> None:
        self._objective = objective
        self.seen: dict[str, list[Batch]] = {}

    def __getattr__(self, name: str):
        return getattr(self._objective, name)

    def phases(self) -> list[Phase]:
        return [
            dataclasses.replace(phase, terms=tuple(map(self._recording, phase.terms)))
            for phase in self._objective.phases()
        ]

    def _recording(self, term):
        def loss(networks, batch: Batch) -> Losses:
            self.seen.setdefault(term.name, []).append(batch)
            return term.loss(networks, batch)

        return dataclasses.replace(term, loss=loss)


def test_k_discriminator_steps_see_fresh_images_and_noise_to_one_generator_step(store_8) -> None:
    experiment = gan(
        "objective.discriminator_steps=3", "objective.r1_weight=1", "objective.r1_every=2"
    )
    objective = Recording(build_objective(experiment))
    state = State.build(experiment, objective, World())
    moved = []
    step = Step(experiment, objective, state, World(), Meter(24, World()))
    for images, labels in batches(experiment, objective, store_8, 0, 7):
        before = copy.deepcopy(state.networks["generator"].state_dict())
        step(images, labels)
        after = state.networks["generator"].state_dict()
        moved.append(any(not torch.equal(after[key], before[key]) for key in after))
    assert moved == [False, False, True, False, False, True, False]
    seen = objective.seen
    assert {name: len(parts) for name, parts in seen.items()} == {
        "discriminator": 7,
        "r1": 3,
        "generator": 2,
    }
    images = [tuple(batch.images.flatten().tolist()) for batch in seen["discriminator"]]
    assert len(set(images)) == 7
    for name, parts, every in (
        ("discriminator", seen["discriminator"], 1),
        ("generator", seen["generator"], 3),
    ):
        for update, batch in enumerate(parts):
            expected = z_of(objective, name, (update + 1) * every - 1).float()
            torch.testing.assert_close(batch.noise["z"], expected)
    drawn = [batch.noise["z"] for name in ("discriminator", "generator") for batch in seen[name]]
    correlations = torch.corrcoef(torch.stack([z.flatten() for z in drawn])) - torch.eye(9)
    assert float(correlations.abs().max()) < 5 / drawn[0].numel() ** 0.5


def test_d_of_x_and_d_of_g_of_z_are_reported(store_8) -> None:
    experiment = gan()
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    ((images, _),) = batches(experiment, objective, store_8, 0, 1)
    with torch.no_grad():
        fakes = state.networks["generator"](z_of(objective, "discriminator", 0).float(), None)
        real, fake = (state.networks["discriminator"](x, None).sigmoid() for x in (images, fakes))
    _, meter = stepped(experiment, objective, store_8, 1, state)
    metrics = meter.report()
    assert metrics["discriminator/real"] == pytest.approx(float(real.mean()), rel=1e-5)
    assert metrics["discriminator/fake"] == pytest.approx(float(fake.mean()), rel=1e-5)
    expected = -(real.log() + (1 - fake).log()).mean()
    assert metrics["loss/discriminator"] == pytest.approx(float(expected), rel=1e-5)


def test_r1_is_taken_in_full_precision_under_bf16(store_8) -> None:
    """With equal weights, R1 is the same number in both precisions. The main loss is not."""
    found = {}
    for precision in ("fp32", "bf16"):
        experiment = gan("objective.r1_weight=1", f"training.precision={precision}", kind="dcgan")
        objective = build_objective(experiment)
        found[precision] = stepped(experiment, objective, store_8, 1)[1].report()
    assert found["bf16"]["loss/r1"] == found["fp32"]["loss/r1"] > 0
    assert found["bf16"]["loss/discriminator"] != found["fp32"]["loss/discriminator"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.05)


def test_weights_stay_in_fp32_under_bf16(store_8) -> None:
    experiment = gan("training.precision=bf16", kind="dcgan")
    state, _ = stepped(experiment, build_objective(experiment), store_8, 3)
    for tensor in state.networks.state_dict().values():
        assert tensor.dtype == torch.float32
        assert bool(tensor.isfinite().all())


class Watched(nn.Module):
    """A discriminator that keeps the images it sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor | None, **noise) -> Tensor:
        self.seen.append(images.detach())
        return self.network(images, labels, **noise)


def test_a_real_image_and_its_generated_partner_share_one_transform(store_8) -> None:
    """In every loss, and each pair has a transform of its own."""
    experiment = gan("objective.augment=[cutout]", "objective.r1_weight=1")
    objective = build_objective(experiment)
    networks = State.build(experiment, objective, World()).networks
    networks["discriminator"] = watched = Watched(networks["discriminator"])
    ((images, _),) = batches(experiment, objective, store_8, 0, 1)
    noise = {"z": torch.randn(24, 5), "augment_cutout": torch.rand(24, 2)}
    batch = Batch(images, None, noise, torch.zeros(()), {"label_smoothing": torch.zeros(())})
    seen = {}
    for term in (term for phase in objective.phases() for term in phase.terms):
        watched.seen.clear()
        term.loss(networks, batch)
        seen[term.name] = list(watched.seen)
    holes = augment(torch.ones_like(images), ["cutout"], noise) == 0
    assert len(holes.flatten(1).unique(dim=0)) > 12
    fakes = networks["generator"](noise["z"], None).detach()
    real, fake = (x.masked_fill(holes, 0.0) for x in (images, fakes))
    expected = {"discriminator": [fake, real], "r1": [real], "generator": [fake]}
    assert seen.keys() == expected.keys()
    for name, inputs in expected.items():
        for ours, theirs in zip(seen[name], inputs, strict=True):
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("opacity", [False, True])
def test_augmentation_changes_the_colour_of_bands_and_no_opacity(opacity: bool) -> None:
    experiment = gan("objective.augment=[color]").with_fields(
        data__channels=4, data__opacity=opacity
    )
    objective = build_objective(experiment)
    networks = State.build(experiment, objective, World()).networks
    networks["discriminator"] = watched = Watched(networks["discriminator"])
    images = torch.rand(24, *experiment.image_shape)
    noise = {"z": torch.randn(24, 5), "augment_color": torch.rand(24, 3)}
    batch = Batch(images, None, noise, torch.zeros(()), {"label_smoothing": torch.zeros(())})
    objective.phases()[0].terms[0].loss(networks, batch)
    _, real = watched.seen
    assert not torch.equal(real[:, :3], images[:, :3])
    assert torch.equal(real[:, 3], images[:, 3]) == opacity


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_labels_of_the_images_reach_both_networks(store_8, kind: str) -> None:
    experiment = gan("objective.conditional=true", kind=kind)
    objective = Recording(build_objective(experiment))
    stepped(experiment, objective, store_8, 2)
    expected = [labels for _, labels in batches(experiment, objective, store_8, 0, 2)]
    for name in ("discriminator", "generator"):
        for batch, labels in zip(objective.seen[name], expected, strict=True):
            assert torch.equal(batch.labels, labels)


def test_an_unconditional_run_does_not_depend_on_labels(store_8) -> None:
    shuffled = dataclasses.replace(
        store_8, train=dataclasses.replace(store_8.train, labels=store_8.train.labels.flip(0))
    )
    for conditional in (False, True):
        experiment = gan(f"objective.conditional={conditional}", "training.images=96")
        ours, theirs = (weights(trained(experiment, s)[0]) for s in (store_8, shuffled))
        assert (largest_difference(ours, theirs) > 0) == conditional


EQUILIBRIUM = "training.stop_at_equilibrium={tolerance: 0.02, window_images: 240}"


class Game:
    """Feeds the equilibrium stop with pairs of D(x) and D(G(z)), 120 images apart."""

    def __init__(self, *overrides: str) -> None:
        self.experiment = gan(EQUILIBRIUM, *overrides)
        self.objective = build_objective(self.experiment)
        self.state = State.build(self.experiment, self.objective, World())

    def stops(self, *pairs: tuple[float, float]) -> list[bool]:
        answers = []
        for real, fake in pairs:
            self.sees(5, real, fake)
            answers.append(self.is_judged())
        return answers

    def sees(self, steps: int, real: float, fake: float) -> None:
        """A report of means over so many steps."""
        self.state.step += steps
        metrics = {"discriminator/real": real, "discriminator/fake": fake}
        self.objective.watch(self.state.settled, metrics, steps)

    def is_judged(self) -> bool:
        """Whether the run stops at the last report."""
        images = self.state.step * self.experiment.training.global_batch_size
        window = self.experiment.training.stop_at_equilibrium
        return self.objective.settled(self.state.settled, images, window)


AT = (0.5, 0.5)
AWAY = (0.8, 0.2)


def test_an_untrained_pair_does_not_stop() -> None:
    assert not any(Game().stops(*[AT] * 50))


def test_both_must_have_left() -> None:
    assert not any(Game().stops(*[(0.5, 0.2)] * 5, *[AT] * 50))
    assert not any(Game().stops(*[(0.8, 0.5)] * 5, *[AT] * 50))
    assert any(Game().stops((0.8, 0.5), (0.5, 0.2), *[AT] * 5))


def test_a_pair_that_left_and_returned_stops_after_its_window() -> None:
    assert Game().stops(AWAY, *[AT] * 4) == [False, False, False, True, True]


def test_both_must_stay_for_the_whole_window() -> None:
    game = Game()
    assert not any(game.stops(AWAY, AT, AT, AWAY, AT, AT, (0.5, 0.47), AT, AT))
    assert game.stops(AT) == [True]


def test_smoothing_moves_where_the_pair_comes_to_rest() -> None:
    overrides = ["objective.label_smoothing=0.2"]
    assert any(Game(*overrides).stops(AWAY, *[(0.4, 0.4)] * 5))
    assert not any(Game(*overrides).stops(AWAY, *[AT] * 50))


def test_an_untrained_pair_that_only_learns_the_smoothing_does_not_stop() -> None:
    """From ½ to where smoothing puts the optimum, without ever telling real from generated."""
    path = [(0.5 - 0.01 * n, 0.5 - 0.01 * n) for n in range(11)]
    assert not any(Game("objective.label_smoothing=0.2").stops(*path, *[(0.4, 0.4)] * 50))


def test_what_the_stop_remembers_survives_a_resume(tmp_path: Path) -> None:
    whole, first, second = Game(), Game(), Game()
    path = [AWAY, AT, AT, AT]
    expected = whole.stops(*path)
    found = first.stops(*path[:2])
    first.state.save(tmp_path, first.experiment)
    second.state.load(tmp_path)
    assert found + second.stops(*path[2:]) == expected == [False, False, False, True]


@given(st.integers(0, 2**32), st.sets(st.integers(1, 99)))
@settings(max_examples=30)
def test_extra_reports_and_resumes_do_not_move_the_stop(seed: int, extra: set[int]) -> None:
    """Extra reports come between the due ones, which come every 5 steps. The window has 10 steps,
    the run 100."""
    # Leaves and returns, with windows on both sides of the tolerance.
    noise = random.Random(seed)
    spread = [0.3] * 10 + [0.05] * 90
    path = [(0.5 + noise.uniform(-s, s), 0.5 + noise.uniform(-s, s)) for s in spread]

    def stop(extra: set[int]) -> int | None:
        game = Game()
        game.state.settled |= {"real_left": 1, "fake_left": 1}
        since = 0
        for step in range(1, 101):
            if step % 5 and step not in extra:
                continue
            game.sees(step - since, *(sum(v) / len(v) for v in zip(*path[since:step], strict=True)))
            since = step
            if step % 5 == 0 and game.is_judged():
                return step
            game.state.settled = json.loads(json.dumps(game.state.settled))  # as a manifest does
        return None

    assert stop(extra) == stop(set())


def test_a_run_in_which_nothing_is_learnt_sees_all_its_images(store_8) -> None:
    frozen = [f"optimizers.{name}.learning_rate=1e-12" for name in ("generator", "discriminator")]
    experiment = gan(
        "training.stop_at_equilibrium={tolerance: 0.2, window_images: 48}",
        "training.report_every_images=24",
        *frozen,
    )
    _, reports = trained(experiment, store_8)
    assert abs(reports[0].metrics["discriminator/real"] - 0.5) < 0.2
    assert [report.stop for report in reports[-2:]] == [None, "all images seen"]


def test_a_run_at_equilibrium_stops_saves_evaluates_and_is_finished(store_8, tmp_path) -> None:
    experiment = gan(
        "training.stop_at_equilibrium={tolerance: 0.49, window_images: 48}",
        "training.report_every_images=24",
        "evaluation.every_images=10000",
    )
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    state.settled |= {"real_left": 1, "fake_left": 1}

    def run(state: State) -> list[loop.Report]:
        return list(
            loop.train(
                *(experiment, objective, state, store_8, World()), evaluate=lambda: {"score": 1.0}
            )
        )

    reports = run(state)
    assert reports[-1].step == 3
    assert reports[-1].stop == experiment.objective.at_rest
    assert reports[-1].save
    assert [report.evaluate for report in reports] == [False, False, True]
    assert ["score" in report.metrics for report in reports] == [False, False, True]
    state.save(tmp_path, experiment)
    again = State.build(experiment, objective, World())
    again.load(tmp_path)
    assert loop.finished(experiment, again.step, again.settled) == experiment.objective.at_rest
    assert not run(again)
    assert again.step == 3


class Won:
    """Feeds a GAN with reports of 10,000 images each."""

    def __init__(self, *overrides: str) -> None:
        self.objective = build_objective(gan(*overrides))
        self.memory: dict[str, float] = {}
        self.images = 0

    def told(self, *pairs: tuple[float, float]) -> list[bool]:
        """Whether the objective tells of a failure after each pair of D(x) and D(G(z))."""
        return self._told({"discriminator/real": x, "discriminator/fake": g} for x, g in pairs)

    def told_of(self, *losses: float) -> list[bool]:
        """The same after each loss of D."""
        return self._told({"loss/discriminator": loss} for loss in losses)

    def _told(self, reports: Iterable[dict[str, float]]) -> list[bool]:
        answers = []
        for metrics in reports:
            before, self.images = self.images, self.images + 10_000
            self.objective.note(self.memory, metrics, before)
            self.memory = json.loads(json.dumps(self.memory))  # as a manifest does
            answers.append(self.objective.failure(self.memory, self.images) is not None)
        return answers


def test_a_discriminator_that_wins_for_50_000_images_is_told() -> None:
    dead = (1.0 - 1e-7, 1e-7)
    game = Won()
    assert game.told((0.9, 0.1), *[dead] * 6) == [False] * 5 + [True] * 2
    sentence = game.objective.failure(game.memory, game.images)
    assert "since 10,000 images" in sentence
    assert game.objective.failure(game.memory, game.images + 10_000) == sentence
    assert game.told((0.99, 1e-7), *[dead] * 5) == [False] * 5 + [True]


@pytest.mark.parametrize("pair", [(1.0 - 2e-6, 0.0), (1.0, 2e-6), (0.5, 0.5)])
def test_a_discriminator_that_almost_wins_is_not(pair: tuple[float, float]) -> None:
    assert not any(Won().told(*[pair] * 9))


@pytest.mark.parametrize("loss", ["hinge", "least_squares", "relativistic"])
def test_a_discriminator_without_any_loss_is_told(loss: str) -> None:
    game = Won(f"objective.loss={loss}")
    assert game.told_of(0.1, *[0.0] * 6) == [False] * 5 + [True] * 2
    assert "loss is 0" in game.objective.failure(game.memory, game.images)
    assert game.told_of(2e-6) == [False]


def test_a_wasserstein_loss_of_0_means_nothing() -> None:
    assert not any(Won("objective.loss=wasserstein").told_of(*[0.0] * 9))


def test_the_advice_of_a_lost_game_names_only_what_is_off() -> None:
    dead = [(1.0, 0.0)] * 6
    for overrides, named in (
        ([], {"r1_weight", "label_smoothing"}),
        (["objective.r1_weight=1"], {"label_smoothing"}),
        (["objective.r1_weight=1", "objective.label_smoothing=0.1"], set()),
    ):
        game = Won(*overrides)
        assert game.told(*dead)[-1]
        sentence = game.objective.failure(game.memory, game.images)
        assert {n for n in ("r1_weight", "label_smoothing") if n in sentence} == named
        assert "optimizers.discriminator.learning_rate" in sentence


def test_logits_of_a_hinge_loss_are_no_probabilities() -> None:
    assert not any(Won("objective.loss=hinge").told(*[(1.0, 0.0)] * 9))


@pytest.mark.parametrize("loss", ["non_saturating", "hinge"])
def test_a_run_whose_discriminator_wins_says_so_in_its_reports(
    store_8, monkeypatch, loss: str
) -> None:
    monkeypatch.setattr(equilibrium, "WON", 100.0)  # anything
    monkeypatch.setattr(equilibrium, "WON_IMAGES", 480)
    state, reports = trained(gan(f"objective.loss={loss}"), store_8)
    assert [report.failure is not None for report in reports] == [False, True]
    assert state.settled == {"won_since": 0}


class Places(nn.Module):
    """A discriminator with a logit for each of 3 x 3 places, in two kinds: (N, 2, 3, 3)."""

    def __init__(self, signature) -> None:
        super().__init__()
        self.layer = nn.Conv2d(signature.input[0], 2, 4, 2)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layer(images)


PLACES = f"networks.discriminator={{kind: custom, target: '{__name__}:Places'}}"


@pytest.mark.parametrize("micro", [[], ["training.micro_batch_size=6"]])
@pytest.mark.parametrize("loss", ["non_saturating", "hinge", "relativistic"])
def test_several_logits_of_an_image_weigh_the_same(store_8, loss: str, micro: list[str]) -> None:
    """Steps on the mean over places, written out, with R1 of the mean logit."""
    experiment = gan(FP64, *SGD, *micro, PLACES, f"objective.loss={loss}", "objective.r1_weight=2")
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    networks = copy.deepcopy(state.networks)
    _, meter = stepped(experiment, objective, store_8, 4, state)
    of_real, of_fake = {
        "non_saturating": (
            lambda x, g: -log_sigmoid(x) - log_sigmoid(-g),
            lambda x, g: -log_sigmoid(g),
        ),
        "hinge": (lambda x, g: (1 - x).clamp(min=0) + (1 + g).clamp(min=0), lambda x, g: -g),
        "relativistic": (lambda x, g: -log_sigmoid(x - g), lambda x, g: -log_sigmoid(g - x)),
    }[loss]
    tag = "real" if loss == "non_saturating" else "real_logit"
    told: list[float] = []
    for step, (images, _) in enumerate(batches(experiment, objective, store_8, 0, 4)):
        for phase, of in (("discriminator", of_real), ("generator", of_fake)):
            network = networks[phase]
            x = images.detach().requires_grad_()
            real = networks["discriminator"](x, None)
            fake = networks["discriminator"](
                networks["generator"](z_of(objective, phase, step), None), None
            )
            means = [real.sum((1, 2, 3)) / 18, fake.sum((1, 2, 3)) / 18]
            total = of(real, fake).mean()
            if phase == "discriminator":
                seen = means[0].detach().sigmoid() if tag == "real" else means[0].detach()
                told.append(float(seen.mean()))
                (slope,) = torch.autograd.grad(means[0].sum(), x, create_graph=True)
                total = total + slope.square().sum((1, 2, 3)).mean()
            gradients = torch.autograd.grad(total, list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter -= RATE * gradient
    for name, parameter in state.networks.named_parameters():
        torch.testing.assert_close(parameter, networks.get_parameter(name), rtol=1e-9, atol=1e-11)
    found = meter.report()[f"discriminator/{tag}"]
    assert found == pytest.approx(sum(told) / 4, rel=1e-5)
    scores = objective.discriminate(state.networks, images.detach(), None)
    expected = state.networks["discriminator"](images.detach()).flatten(1).mean(1)
    torch.testing.assert_close(scores, expected.float())


def test_a_discriminator_of_ones_own_may_return_several_logits() -> None:
    this = gan(PLACES)
    assert not rehearse(this, build_objective(this))


@pytest.mark.parametrize("micro", [[], ["training.micro_batch_size=6"]])
def test_lecam_holds_logits_near_the_running_means_of_the_others(store_8, micro: list[str]) -> None:
    """Against a simulation: the means of a phase are those of the phases before."""
    lecam = ["objective.loss=hinge", "objective.lecam_weight=0.3", "objective.lecam_every=2"]
    experiment = gan(FP64, *SGD, *lecam, *micro)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    networks = copy.deepcopy(state.networks)
    stepped(experiment, objective, store_8, 6, state)
    generator, discriminator = networks["generator"], networks["discriminator"]
    real_means: list[float] = []
    fake_means: list[float] = []

    def anchor(means: list[float]) -> float:
        shares = [0.01 * 0.99 ** (len(means) - 1 - i) for i in range(len(means))]
        total = sum(share * mean for share, mean in zip(shares, means, strict=True))
        return total / sum(shares) if means else 0.0

    for step, (images, _) in enumerate(batches(experiment, objective, store_8, 0, 6)):
        real = discriminator(images, None)
        fake = discriminator(generator(z_of(objective, "discriminator", step), None).detach(), None)
        loss = ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean()
        if (step + 1) % 2 == 0:
            above = (real - anchor(fake_means)).clamp(min=0).square()
            below = (anchor(real_means) - fake).clamp(min=0).square()
            loss = loss + 2 * 0.3 * (above + below).mean()
        gradients = torch.autograd.grad(loss, list(discriminator.parameters()))
        real_means.append(float(real.detach().mean()))
        fake_means.append(float(fake.detach().mean()))
        with torch.no_grad():
            for parameter, gradient in zip(discriminator.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
        fake = discriminator(generator(z_of(objective, "generator", step), None), None)
        gradients = torch.autograd.grad(-fake.mean(), list(generator.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
    for name, parameter in networks.named_parameters():
        found = state.networks.get_parameter(name)
        torch.testing.assert_close(found, parameter, rtol=1e-11, atol=1e-11)
