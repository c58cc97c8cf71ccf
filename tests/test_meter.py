"""Means over images, whatever the steps, micro-batches and ranks they came in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ray_gen.distributed import World
from ray_gen.training.block import Block
from ray_gen.training.meter import Meter, NonFiniteError

BATCH = 8


class OtherRank(World):
    """A second rank whose sums are known."""

    def sum_(self, tensor: Tensor) -> None:
        tensor += self.theirs  # type: ignore[attr-defined]


class Recorded(Meter):
    """A meter whose terms have blocks of their own, as phases have."""

    def __init__(self, batch: int, world: World) -> None:
        super().__init__(batch, world)
        self.blocks: dict[str, Block] = {}
        self.steps: dict[str, int] = {}


def record(meter: Recorded, term: str, step: int, values: dict[str, Tensor]) -> None:
    """Values of each image, as the step sums them."""
    block = meter.blocks.setdefault(term, Block(64, torch.device("cpu")))
    another = meter.steps.get(term) == step  # micro-batch of the same step
    if not another:
        if term in meter.steps:
            block.place.add_(1)
        if block.begin(step):
            meter.turn(block)
        meter.steps[term] = step
    sums = torch.stack(list(values.values())).sum(1, keepdim=True).detach()
    with meter.watched() as written:
        meter.record(term, tuple(values), sums, block)
    for rows in written:
        rows.note(step)


def values(steps: int, count: int = BATCH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, count, generator=generator)


def test_a_value_is_the_mean_over_images_and_steps() -> None:
    meter, drawn = Recorded(BATCH, World()), values(5)
    for step, row in enumerate(drawn):
        record(meter, "term", step, {"a": row, "b": 2 * row})
    means = meter.report()
    assert means == pytest.approx({"a": float(drawn.mean()), "b": 2 * float(drawn.mean())})


@pytest.mark.parametrize("parts", [(8,), (4, 4), (2, 2, 2, 2), (6, 2), (1, 7)])
def test_micro_batches_of_any_sizes_give_the_same_means(parts: tuple[int, ...]) -> None:
    meter, drawn = Recorded(BATCH, World()), values(3)
    for step, row in enumerate(drawn):
        for part in row.split(parts):
            record(meter, "term", step, {"a": part})
    assert meter.report()["a"] == pytest.approx(float(drawn.mean()))


def test_ranks_are_added_up_whatever_their_shares() -> None:
    """3 images here and 5 there: the mean is over 8 images, not over two means."""
    ours, theirs = values(2, 3), values(2, 5, seed=1)
    world = OtherRank()
    object.__setattr__(world, "theirs", theirs.sum(1).double())
    meter = Recorded(BATCH, world)
    for step, row in enumerate(ours):
        record(meter, "term", step, {"a": row})
    expected = float(torch.cat([ours, theirs], dim=1).mean())
    assert meter.report()["a"] == pytest.approx(expected)


def test_terms_that_are_due_less_often_are_means_over_their_own_steps() -> None:
    meter, often, seldom = Recorded(BATCH, World()), values(6), values(2, seed=1)
    for step, row in enumerate(often):
        record(meter, "often", step, {"a": row})
        if step % 3 == 2:
            record(meter, "seldom", step, {"b": seldom[step // 3]})
    expected = {"a": float(often.mean()), "b": float(seldom.mean())}
    assert meter.report() == pytest.approx(expected)


def test_a_report_forgets_what_it_told() -> None:
    meter, drawn = Recorded(BATCH, World()), values(4)
    assert meter.report() == {}
    for first in (0, 2):
        for step in (first, first + 1):
            record(meter, "term", step, {"a": drawn[step]})
        assert meter.report()["a"] == pytest.approx(float(drawn[first : first + 2].mean()))
    assert meter.report() == {}


def test_a_report_may_cover_any_number_of_steps() -> None:
    meter, drawn = Recorded(BATCH, World()), values(1000)
    for step, row in enumerate(drawn):
        for part in row.split(4):
            record(meter, "term", step, {"a": part})
    assert meter.report()["a"] == pytest.approx(float(drawn.mean()), rel=1e-6)


def test_what_is_recorded_later_does_not_change_what_was_recorded() -> None:
    """A term may write into its tensors again, and its graph is not kept alive."""
    meter = Recorded(BATCH, World())
    weight = torch.ones(BATCH, requires_grad=True)
    value = 3 * weight
    record(meter, "term", 0, {"a": value})
    with torch.no_grad():
        value.zero_()
    record(meter, "term", 1, {"a": weight})
    assert meter.report()["a"] == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_value_that_is_not_a_number_is_named_with_its_step(bad: float) -> None:
    meter, drawn = Recorded(BATCH, World()), values(200)
    for step, row in enumerate(drawn):
        late = torch.where(torch.arange(BATCH) == 3, torch.tensor(bad), row)
        record(meter, "early term", step, {"loss/a": late if step >= 150 else row, "b": row})
        record(meter, "late term", step, {"loss/c": late if step >= 130 else row})
    with pytest.raises(NonFiniteError, match=r"^loss/c .* step 130$"):
        meter.report()


def test_infinities_of_both_signs_in_one_batch_are_noticed() -> None:
    meter, row = Recorded(BATCH, World()), values(1)[0]
    row[0], row[1] = float("inf"), -float("inf")
    record(meter, "term", 7, {"loss/a": row})
    with pytest.raises(NonFiniteError, match="since step 7"):
        meter.report()


def test_a_value_of_another_rank_that_is_not_a_number_is_noticed_here() -> None:
    world = OtherRank()
    object.__setattr__(world, "theirs", torch.tensor([0.0, float("nan")], dtype=torch.float64))
    meter = Recorded(BATCH, world)
    for step, row in enumerate(values(2)):
        record(meter, "term", step, {"loss/a": row})
    with pytest.raises(NonFiniteError, match=r"^loss/a is .* since step 1$"):
        meter.report()


def test_a_tag_of_two_terms_is_refused() -> None:
    """Added up or overwritten, it would be the value of neither."""
    meter, row = Recorded(BATCH, World()), values(1)[0]
    record(meter, "encoder/likelihood", 0, {"loss/kl": row, "loss/features": row})
    with pytest.raises(ValueError, match=r"encoder/likelihood and decoder/.* loss/features"):
        record(meter, "decoder/likelihood", 0, {"loss/features": row})


def test_a_later_stage_may_move_a_tag_to_another_term() -> None:
    """The report also contains what the earlier stage recorded."""
    meter, drawn = Recorded(BATCH, World()), values(4)
    for step in (0, 1):
        record(meter, "first", step, {"loss/a": drawn[step]})
    meter.begin_stage()
    for step in (2, 3):
        record(meter, "second", step, {"loss/a": drawn[step]})
    assert meter.report()["loss/a"] == pytest.approx(float(drawn.mean()))
    assert meter.report() == {}
