"""Several losses of one term: weights, turns, numbers of the phase, groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ray_gen.core import Batch, Losses, Networks, Number, Phase, Term, Weight
from ray_gen.distributed import World
from ray_gen.experiment.schedules import Linear, Steps
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import gan, largest_difference, relative_difference, stepped, vae, weights
from tests.programs import eager, replayed

FP64 = "training.precision=fp64"


class With:
    """An objective with other terms in its first phase."""

    def __init__(self, objective, terms: Callable[[Phase], tuple[Term, ...]], **more) -> None:
        self._objective, self._terms, self._more = objective, terms, more

    def __getattr__(self, name: str):
        return getattr(self._objective, name)

    def phases(self) -> list[Phase]:
        first, *others = self._objective.phases()
        return [dataclasses.replace(first, terms=self._terms(first), **self._more), *others]


def apart(weight: Number, every: int):
    """KL and reconstruction as two terms, each with a forward pass of its own."""

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms

        def only(name: str) -> Callable[[Networks, Batch], Losses]:
            return lambda networks, batch: Losses(
                {name: elbo.loss(networks, batch).minimised[name]}
            )

        return (
            Term("reconstruction", only("reconstruction")),
            Term("kl", only("kl"), weight, every),
        )

    return terms


def together(weight: Number, every: int):
    """The same from one forward pass."""

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms

        def loss(networks: Networks, batch: Batch) -> Losses:
            found = elbo.loss(networks, batch).minimised
            return Losses({n: found[n] for n in found if n == "reconstruction" or n in batch.due})

        return (Term("elbo", loss, weights={"kl": Weight(weight, every)}),)

    return terms


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("weight", [0.3, Linear(start=0.0, end=2.0, until_images=200)])
@pytest.mark.parametrize("micro", [[], ["training.micro_batch_size=6"]])
def test_losses_of_one_term_weigh_as_terms_of_their_own(store_8, weight, every, micro) -> None:
    """Lazy ones too: due on every n-th update, and n times as heavy there."""
    this = vae(FP64, *micro)
    found, reports = [], []
    for terms in (apart(weight, every), together(weight, every)):
        state, meter = stepped(this, With(build_objective(this), terms), store_8, 12)
        found.append(weights(state))
        reports.append(meter.report())
    assert relative_difference(*found) < 1e-10
    assert reports[0] == pytest.approx(reports[1])
    plain, _ = stepped(this, build_objective(this), store_8, 12)
    assert relative_difference(weights(plain), found[0]) > 1e-4


def test_a_weight_that_changes_is_part_of_the_program(store_8, monkeypatch) -> None:
    weight = Linear(start=0.0, end=2.0, until_images=1000)
    this = vae()
    objective = With(build_objective(this), together(weight, 2))
    monkeypatch.setattr("tests.programs.build_objective", lambda experiment: objective)
    from tests.helpers import batches

    data = batches(this, objective, store_8, 0, 55)
    (ours, reported), (theirs, expected) = replayed(this, data), eager(this, data)
    assert largest_difference(weights(ours), weights(theirs)) == 0
    assert reported == expected


def changed(store, change: Callable[[Losses, Batch], Losses], **more):
    """One step of a VAE whose term's losses go through a function."""
    this = vae()

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms
        return (
            dataclasses.replace(
                elbo,
                loss=lambda networks, batch: change(elbo.loss(networks, batch), batch),
                **more,
            ),
        )

    return stepped(this, With(build_objective(this), terms), store, 3)[1].report()


def test_a_number_of_the_phase_is_reported_as_it_is(store_8) -> None:
    def change(losses: Losses, batch: Batch) -> Losses:
        number = batch.images_seen + 7.0
        return dataclasses.replace(losses, of_phase={"codes/perplexity": number})

    assert changed(store_8, change)["codes/perplexity"] == pytest.approx(7.0 + 24.0)


def test_what_is_given_in_a_wrong_shape_or_out_of_turn_is_refused(store_8) -> None:
    def vector(losses: Losses, batch: Batch) -> Losses:
        return dataclasses.replace(losses, of_phase={"perplexity": batch.images.flatten(1)[:, 0]})

    def mean(losses: Losses, batch: Batch) -> Losses:
        return Losses({"kl": losses.minimised["kl"].mean()})

    with pytest.raises(ValueError, match=r"kll .*due"):
        changed(store_8, lambda losses, batch: losses, weights={"kll": Weight(1.0)})
    with pytest.raises(ValueError, match=r"elbo: perplexity has shape \(24,\).* 0-dimensional"):
        changed(store_8, vector)
    with pytest.raises(ValueError, match=r"loss/kl has shape \(\); .*one value for each image"):
        changed(store_8, mean)
    with pytest.raises(ValueError, match=r"the loss kl, .*not due.*`batch\.due`"):
        changed(store_8, lambda losses, batch: losses, weights={"kl": Weight(1.0, every=2)})


def coupled(values: Tensor, group_size: int) -> Tensor:
    """A loss that couples images: the variance within each group, shared out over it."""
    groups = values.view(-1, group_size)
    return groups.var(1, correction=0).repeat_interleave(group_size)


@pytest.mark.parametrize("micro", [8, 16, 24])
def test_what_couples_images_couples_those_of_a_group(store_8, micro: int) -> None:
    """So that micro-batches, and workers, change nothing."""
    this = vae(FP64, "training.group_size=8", f"training.micro_batch_size={micro}")

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms

        def loss(networks: Networks, batch: Batch) -> Losses:
            found = elbo.loss(networks, batch).minimised
            assert batch.group_size == 8
            return Losses({**found, "spread": coupled(found["kl"], batch.group_size)})

        return (dataclasses.replace(elbo, loss=loss),)

    states = []
    for experiment in (this, vae(FP64, "training.group_size=8")):
        objective = With(build_objective(experiment), terms)
        states.append(weights(stepped(experiment, objective, store_8, 8)[0]))
    assert relative_difference(*states) < 1e-10


def test_numbers_reach_a_term_as_tensors(store_8) -> None:
    seen: list[dict[str, float]] = []

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms

        def loss(networks: Networks, batch: Batch) -> Losses:
            assert all(value.shape == () for value in batch.numbers.values())
            assert all(value.dtype == torch.float32 for value in batch.numbers.values())
            seen.append({name: float(value) for name, value in batch.numbers.items()})
            return elbo.loss(networks, batch)

        return (dataclasses.replace(elbo, loss=loss),)

    this = vae()
    numbers = {"beta": 1.0, "p": Linear(start=0.0, end=1.0, until_images=96), "c": 0.25}
    objective = With(build_objective(this), terms, numbers=numbers)
    state = State.build(this, objective, World())
    stepped(this, objective, store_8, 6, state)
    assert [step["p"] for step in seen] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    assert {step["c"] for step in seen} == {0.25}


def test_a_phase_that_is_seldom_due_has_the_numbers_of_its_steps(store_8) -> None:
    """The phase is due every third step. Its number is the images seen before that step, also after
    a resume."""
    this = gan("objective.discriminator_steps=3")
    seen: list[float] = []

    class Watched(With):
        def phases(self) -> list[Phase]:
            discriminator, generator = self._objective.phases()
            (term,) = generator.terms

            def loss(networks: Networks, batch: Batch) -> Losses:
                seen.append(float(batch.images_seen))
                return term.loss(networks, batch)

            watched = dataclasses.replace(generator, terms=(dataclasses.replace(term, loss=loss),))
            return [discriminator, watched]

    objective = Watched(build_objective(this), lambda phase: phase.terms)
    state, _ = stepped(this, objective, store_8, 7)
    stepped(this, objective, store_8, 6, state)
    assert seen == [24.0 * step for step in (2, 5, 8, 11)]


@pytest.mark.parametrize("penalised", [True, False])
def test_a_loss_in_full_precision_takes_its_term_along_when_it_is_due(
    store_8, penalised: bool
) -> None:
    """And at no other update."""
    seen: list[bool] = []

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms

        def loss(networks: Networks, batch: Batch) -> Losses:
            seen.append(torch.is_autocast_enabled("cpu"))
            found = elbo.loss(networks, batch).minimised
            return Losses({n: found[n] for n in found if n != "kl" or n in batch.due})

        weight = Weight(1.0, every=3, full_precision=penalised)
        return (Term("elbo", loss, weights={"kl": weight}),)

    this = vae("training.precision=bf16")
    stepped(this, With(build_objective(this), terms), store_8, 6)
    assert seen == [True, True, not penalised] * 2


@pytest.mark.parametrize("reports", [True, False])
def test_a_term_of_which_nothing_is_due_trains_nothing(store_8, reports: bool) -> None:
    """It may report all the same."""

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms

        def lazy(networks: Networks, batch: Batch) -> Losses:
            found = elbo.loss(networks, batch).minimised["kl"]
            due = {"lazy": found} if "lazy" in batch.due else {}
            return Losses(due, {"latent/kl": found} if reports else {})

        return (elbo, Term("regulariser", lazy, weights={"lazy": Weight(1.0, every=4)}))

    this = vae(FP64)
    found, meter = stepped(this, With(build_objective(this), terms), store_8, 3)
    plain, _ = stepped(this, build_objective(this), store_8, 3)
    assert largest_difference(weights(found), weights(plain)) == 0
    metrics = meter.report()
    assert ("latent/kl" in metrics) == reports
    later, _ = stepped(this, With(build_objective(this), terms), store_8, 4)
    four, _ = stepped(this, build_objective(this), store_8, 4)
    assert largest_difference(weights(later), weights(four)) > 0


def late(start: int):
    """Both losses of the ELBO in one term; the KL starts late, by itself or by its weight."""

    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms

        def loss(networks: Networks, batch: Batch) -> Losses:
            found = elbo.loss(networks, batch).minimised
            due = {name for name in found if name != "kl" or name in batch.due}
            return Losses({name: found[name] for name in found if name in due})

        return (Term("elbo", loss, weights={"kl": Weight(0.5, start_images=start)}),)

    return terms


def late_by_weight(start: int):
    def terms(phase: Phase) -> tuple[Term, ...]:
        (elbo,) = phase.terms
        weight = Weight(Steps(values=((0, 0.0), (start, 0.5))))
        return (Term("elbo", elbo.loss, weights={"kl": weight}),)

    return terms


@pytest.mark.parametrize("start", [8, 20, 24])
def test_a_loss_that_starts_late_is_one_whose_weight_was_0(store_8, start: int) -> None:
    given = vae(FP64)
    objective = build_objective(given)
    found = [
        weights(stepped(given, With(objective, terms(start)), store_8, 6)[0])
        for terms in (late, late_by_weight)
    ]
    assert largest_difference(*found) < 1e-12


def test_a_phase_that_starts_late_moves_nothing_before(store_8) -> None:
    given = gan(FP64)
    objective = build_objective(given)
    (first, *_) = objective.phases()
    batch = given.training.global_batch_size
    late_one = With(objective, lambda phase: phase.terms, start_images=2 * batch)
    states = [stepped(given, late_one, store_8, steps)[0] for steps in (0, 2, 3)]
    begun, before, after = (weights(state)[first.updates[0]] for state in states)
    assert all(torch.equal(a, b) for a, b in zip(begun.values(), before.values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(begun.values(), after.values(), strict=True))
