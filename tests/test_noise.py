"""The generator: known answers, and a function of (seed, name, step, image) alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.noise import (
    Tape,
    draw,
    key_of,
    normal,
    permutation,
    philox,
    seed_of,
    uniform,
    words,
)

ONES = 0xFFFFFFFF

# kat_vectors of Random123 (Salmon et al. 2011): counter, key, answer of philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

seeds = st.integers(0, 2**63 - 1)
steps = st.one_of(st.integers(0, 1000), st.integers(2**32 - 2, 2**40))
shapes = st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple)
distributions = st.sampled_from(["normal", "uniform"])


def philox_in_integers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 as the paper writes it, in unbounded integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & ONES,
            (first >> 32) ^ c3 ^ k1,
            first & ONES,
        )
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return c0, c1, c2, c3


def drawn(spec: Noise, seed: int, name: str, step: int, images: range) -> Tensor:
    """The noise of one step: (N, *shape)."""
    return draw(spec, key_of(seed, name), torch.tensor([step]), torch.tensor(images))[0]


def largest_deviation(sample: Tensor, distribution) -> float:
    """Kolmogorov and Smirnov's sup |F_n - F|."""
    ordered = sample.double().flatten().sort().values
    expected = distribution(ordered)
    ranks = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float(torch.maximum(expected - ranks[:-1], ranks[1:] - expected).max())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, answer) -> None:
    found = philox(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in found) == answer


@given(
    st.tuples(*[st.integers(0, ONES)] * 4),
    st.tuples(st.integers(0, ONES), st.integers(0, ONES)),
)
def test_philox_equals_the_paper_in_unbounded_integers(counter, key) -> None:
    found = philox(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in found) == philox_in_integers(counter, key)


@given(seeds, steps, st.integers(0, ONES - 3), st.integers(1, 9))
def test_words_are_philox_of_block_image_and_step(seed, step, image, count) -> None:
    key = key_of(seed, "phase", "z")
    found = words(key, torch.tensor([step]), torch.tensor([image]), count)[0, 0].tolist()
    blocks = [
        philox_in_integers((block, image, step & ONES, step >> 32), key)
        for block in range((count + 3) // 4)
    ]
    assert found == [word for block in blocks for word in block][:count]


@settings(deadline=None)
@given(
    seeds,
    st.lists(steps, min_size=1, max_size=3),
    shapes,
    distributions,
    st.integers(1, 40),
    st.data(),
)
def test_a_part_equals_the_slice_of_the_whole(
    seed, some_steps, shape, distribution, count, data
) -> None:
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    spec, key = Noise(shape, distribution), key_of(seed, "z")
    at = torch.tensor(some_steps)
    whole = draw(spec, key, at, torch.arange(count))
    part = draw(spec, key, at, torch.arange(first, last))
    assert whole.shape == (len(some_steps), count, *shape)
    assert whole.dtype == torch.float32
    size = math.prod(shape) + 1
    whole_words, part_words = (
        words(key, at, images, size) for images in (torch.arange(count), torch.arange(first, last))
    )
    assert torch.equal(part_words, whole_words[:, first:last])
    # Vectorised and scalar log and cos may round the last bit of a float64 differently.
    torch.testing.assert_close(part, whole[:, first:last], rtol=3e-7, atol=1e-9)


@given(seeds, steps, st.permutations(range(7)))
def test_the_order_of_images_does_not_matter(seed, step, order) -> None:
    spec, key = Noise((3,), "uniform"), key_of(seed, "z")
    at = torch.tensor([step])
    whole = draw(spec, key, at, torch.arange(7))
    assert torch.equal(draw(spec, key, at, torch.tensor(order)), whole[:, order])


@pytest.mark.parametrize(
    "other",
    [
        (0, "z", 6, range(4096)),  # step
        (0, "z", 5 + 2**32, range(4096)),
        (0, "y", 5, range(4096)),  # name
        (1, "z", 5, range(4096)),  # seed
        (0, "z", 5, range(4096, 8192)),  # images
    ],
)
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_other_seeds_names_steps_and_images_are_uncorrelated(other, distribution) -> None:
    spec = Noise((4,), distribution)
    ours = drawn(spec, 0, "z", 5, range(4096)).double().flatten()
    theirs = drawn(spec, *other).double().flatten()
    correlation = float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(ours.numel())
    assert not (ours == theirs).all()


def test_numbers_of_one_image_are_uncorrelated() -> None:
    """Box and Muller's pairs, and neighbours in a block."""
    values = drawn(Noise((9,)), 3, "z", 0, range(20_000)).double()
    correlations = torch.corrcoef(values.T) - torch.eye(9)
    assert float(correlations.abs().max()) < 5 / math.sqrt(len(values))
    squares = torch.corrcoef(values.square().T) - torch.eye(9)
    assert float(squares.abs().max()) < 5 / math.sqrt(len(values))


@pytest.mark.parametrize("name", ["z", "epsilon"])
def test_normals_are_normal(name: str) -> None:
    values = drawn(Noise((5,)), 11, name, 7, range(40_000)).double().flatten()
    count = values.numel()
    # Five standard errors of the mean and of the second, third and fourth moments.
    for power, (moment, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        error = abs(float((values**power).mean()) - moment)
        assert error < 5 * math.sqrt(variance / count)
    deviation = largest_deviation(values, lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))))
    assert deviation < 1.95 / math.sqrt(count)  # Kolmogorov's 0.1 % point
    assert 4.0 < float(values.abs().max()) < 6.7


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 5.0)])
def test_uniforms_are_uniform(low: float, high: float) -> None:
    spec = Noise((4,), "uniform", low, high)
    values = drawn(spec, 11, "z", 7, range(40_000)).double().flatten()
    assert low <= float(values.min())
    assert float(values.max()) < high
    deviation = largest_deviation(values, lambda x: (x - low) / (high - low))
    assert deviation < 1.95 / math.sqrt(values.numel())


def test_extreme_words_give_finite_numbers_in_range() -> None:
    extreme = torch.tensor([0, 0, ONES, ONES, 0, ONES, 0, ONES])
    values = normal(extreme)
    assert bool(values.isfinite().all())
    assert float(values.abs().max()) == pytest.approx(math.sqrt(2 * 32 * math.log(2)), rel=1e-6)
    assert uniform(torch.tensor([0, ONES])).tolist() == [0.0, 1.0 - 2.0**-24]


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.integers(0, 300), min_size=1, max_size=12),
    st.sampled_from([0, 2**32 - 150]),
    st.sampled_from([(3,), (2, 2), (7, 1, 1)]),
)
def test_a_tape_equals_draw_at_every_due_step_in_any_order(every, updates, base, shape) -> None:
    specs = {"z": Noise(shape), "u": Noise((1,), "uniform")}
    images = torch.arange(3, 9)
    tape = Tape(specs, 5, "generator", every, images)
    for update in updates:
        step = (base + update + 1) * every - 1
        found = tape[step]
        assert found.keys() == specs.keys()
        for name, spec in specs.items():
            expected = draw(spec, key_of(5, "generator", name), torch.tensor([step]), images)[0]
            torch.testing.assert_close(found[name], expected, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("numbers", [1, 100, 1 << 17])
def test_how_much_a_tape_draws_at_once_does_not_matter(monkeypatch, numbers: int) -> None:
    monkeypatch.setattr(Tape, "numbers", numbers)
    spec, images = Noise((5,), "uniform"), torch.arange(8)
    tape = Tape({"z": spec}, 1, "p", 2, images)
    for step in range(1, 40, 2):
        expected = draw(spec, key_of(1, "p", "z"), torch.tensor([step]), images)[0]
        assert torch.equal(tape[step]["z"], expected)


def test_phases_and_names_of_a_tape_draw_their_own_noise() -> None:
    images = torch.arange(64)
    specs = {"z": Noise((8,)), "y": Noise((8,))}
    tapes = [Tape(specs, 1, phase, 1, images)[0] for phase in ("discriminator", "generator")]
    values = torch.stack([tape[name].flatten() for tape in tapes for name in specs])
    correlations = torch.corrcoef(values) - torch.eye(4)
    assert float(correlations.abs().max()) < 5 / math.sqrt(values.shape[1])


@settings(deadline=None)
@given(seeds, st.integers(0, 2**35), st.integers(1, 300))
def test_a_permutation_holds_everything_once(seed, epoch, count) -> None:
    order = permutation(seed, "order", epoch, count)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(count))
    assert torch.equal(order, permutation(seed, "order", epoch, count))


def test_permutations_differ_by_seed_name_and_epoch() -> None:
    orders = [
        permutation(seed, name, epoch, 1000)
        for seed in (0, 1)
        for name in ("order", "other")
        for epoch in (0, 1, 2**32)
    ]
    for position, order in enumerate(orders):
        for other in orders[:position]:
            assert int((order == other).sum()) < 12  # by chance 1 in the mean


def test_permutations_are_uniform() -> None:
    """χ² of where each of 5 things lands in 2,000 epochs: 16 degrees of freedom."""
    orders = torch.stack([permutation(9, "order", epoch, 5) for epoch in range(2000)])
    expected = len(orders) / 5
    counts = torch.stack([(orders == thing).sum(0) for thing in range(5)]).double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 39.3  # its 0.1 % point


def test_keys_are_mixed_by_a_hash() -> None:
    paths = [(0, "ab", "c"), (0, "a", "bc"), (0, "abc"), (1, "ab", "c"), (0, "c", "ab"), (0, 1)]
    assert len({key_of(*path) for path in paths}) == len(paths)
    low, high = zip(*(key_of(seed, "z") for seed in range(100)), strict=True)
    assert len(set(low)) == len(set(high)) == 100
    assert all(0 <= seed_of(seed, "z") < 2**63 for seed in range(100))
