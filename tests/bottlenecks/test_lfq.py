"""LFQ, against the entropies of all codes one by one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ray_gen.bottlenecks.lfq import Lfq
from ray_gen.bottlenecks.quantiser import Quantiser
from ray_gen.core import phase_modules

BITS, TEMPERATURE = 5, 0.8


def new_lfq(group_bits: int = 9) -> Lfq:
    """float64"""
    return Lfq(BITS, temperature=TEMPERATURE, group_bits=group_bits).double()


def encodings(images: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(images)
    return torch.randn(images, BITS, 2, 3, dtype=torch.float64, generator=generator)


def phase(lfq: nn.Module, *seen: Tensor) -> None:
    """A phase of one worker that sees these micro-batches."""
    modules = phase_modules(lfq).values()
    for module in modules:
        module.begin_phase()
    for z in seen:
        lfq(z)
    for module in modules:
        module.end_phase(module.phase_statistics())


def every_code(bits: int) -> Tensor:
    """(2^bits, bits) of ±1, the index's lowest bit first."""
    return torch.tensor(
        [[1.0 if index >> bit & 1 else -1.0 for bit in range(bits)] for index in range(2**bits)],
        dtype=torch.float64,
    )


def probabilities(z: Tensor, codes: Tensor) -> Tensor:
    """softmax_c 2 zᵀc / τ: (N, b, h, w) to (N h w, 2^b)."""
    return (2.0 * z.movedim(1, -1).flatten(0, 2) @ codes.t() / TEMPERATURE).softmax(1)


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def test_every_index_has_its_code_and_comes_back() -> None:
    lfq, codes = new_lfq(), every_code(BITS)
    indices = torch.arange(2**BITS).view(1, -1, 1)
    assert torch.equal(lfq.lookup(indices)[0, :, :, 0].t(), codes)
    z_q, found = lfq.quantised(0.3 * lfq.lookup(indices))
    assert torch.equal(found, indices)
    assert torch.equal(z_q, lfq.lookup(indices))
    assert isinstance(lfq, Quantiser)


def test_codes_are_signs_and_gradients_pass_straight_through() -> None:
    lfq, z = new_lfq(), encodings().requires_grad_()
    out = lfq(z)
    torch.testing.assert_close(out.z_q, z.sign())
    torch.testing.assert_close(out.losses["commitment"], (z.abs() - 1).square().mean((1, 2, 3)))
    (found,) = torch.autograd.grad((out.z_q * 3.0).sum(), z)
    assert torch.equal(found, torch.full_like(z, 3.0))


@pytest.mark.parametrize("group_bits", [5, 3, 1])
def test_the_entropy_is_that_of_all_codes(group_bits: int) -> None:
    """H(p) of 2^5 codes, and Σ p log p̄ of each group, p̄ by the phase before."""
    lfq, before, z = new_lfq(group_bits), encodings(6), encodings(4)
    phase(lfq, before[:2], before[2:])
    expected = entropy(probabilities(z, every_code(BITS)))
    for ours, theirs in zip(z.split(group_bits, 1), before.split(group_bits, 1), strict=True):
        codes = every_code(ours.shape[1])
        mean = probabilities(theirs, codes).mean(0)
        expected = expected + probabilities(ours, codes) @ mean.log()
    found = lfq(z).losses["entropy"]
    torch.testing.assert_close(found, expected.view(4, 6).mean(1))


def test_on_the_images_of_the_phase_before_it_is_the_loss_of_the_paper() -> None:
    """E H(p) - H(E p), and its gradient."""
    lfq, z = new_lfq(), encodings(6).requires_grad_()
    phase(lfq, z.detach())
    found = lfq(z).losses["entropy"].mean()
    p = probabilities(z, every_code(BITS))
    expected = entropy(p).mean() - entropy(p.mean(0))
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, z)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_before_the_first_phase_no_code_is_preferred() -> None:
    z = encodings()
    found = new_lfq()(z).losses["entropy"]
    expected = entropy(probabilities(z, every_code(BITS))).view(4, 6).mean(1)
    torch.testing.assert_close(found, expected - BITS * math.log(2))


def test_two_workers_are_one_and_a_phase_that_saw_nothing_moves_nothing() -> None:
    one = new_lfq(3)
    two = [copy.deepcopy(one) for _ in range(2)]
    phase(one, encodings(5), encodings(4))
    of_each = [phase_modules(lfq) for lfq in two]
    for modules, lfq, images in zip(of_each, two, (5, 4), strict=True):
        for module in modules.values():
            module.begin_phase()
        lfq(encodings(images))
    for path in of_each[0]:
        total = sum(modules[path].phase_statistics() for modules in of_each)
        for modules in of_each:
            modules[path].end_phase(total)
    for lfq in two:
        torch.testing.assert_close(lfq.state_dict(), one.state_dict())
    before = copy.deepcopy(one.state_dict())
    phase(one)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_usage_is_that_of_the_phase_before() -> None:
    lfq = new_lfq()
    phase(lfq, every_code(BITS)[:8].t()[None, :, :, None])
    reported = lfq(encodings()).of_phase
    assert math.isclose(reported["codebook/usage"], 8 / 32)
    assert math.isclose(reported["codebook/perplexity"], 8.0)


def test_small_temperatures_overflow_nothing() -> None:
    lfq, z = Lfq(BITS), (100.0 * encodings()).float().requires_grad_()
    phase(lfq, z.detach())
    out = lfq(z)
    (found,) = torch.autograd.grad(out.losses["entropy"].sum(), z)
    assert bool(out.losses["entropy"].isfinite().all())
    assert bool(found.isfinite().all())
