"""The adaptive weight: the norms of two gradients, of means over the batch of all ranks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ray_gen.core import begin_phase
from ray_gen.networks.measured import MeasuredConv2d

X = torch.randn(6, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer(**options: float) -> MeasuredConv2d:
    torch.manual_seed(1)
    return MeasuredConv2d(3, 2, 3, **options).double()


def losses(images: Tensor) -> tuple[Tensor, Tensor]:
    """Two of each image, (N,)."""
    return (images - 1.0).abs().mean((1, 2, 3)), -images.sin().mean((1, 2, 3))


def expected(of: MeasuredConv2d, x: Tensor = X) -> list[float]:
    """The norms of the gradients of means over all images."""
    weight = of.weight.detach().clone().requires_grad_()
    both = losses(conv2d(x, weight, of.bias.detach(), padding=1))
    return [
        float(torch.autograd.grad(one.mean(), weight, retain_graph=True)[0].norm()) for one in both
    ]


def phase(*ranks: tuple[MeasuredConv2d, list[Tensor]]) -> list[Tensor]:
    """A phase of some ranks, each with its micro-batches. The weights that the calls returned."""
    for of, _ in ranks:
        begin_phase(of)
    found = [of.adaptive_weight(*losses(of(x))) for of, parts in ranks for x in parts]
    total = torch.stack([of.measured.phase_statistics() for of, _ in ranks]).sum(0)
    for of, _ in ranks:
        of.measured.end_phase(total)
    return found


def test_it_is_the_ratio_of_the_phase_before() -> None:
    of = layer(epsilon=0.01)
    reconstruction, adversarial = expected(of)
    assert phase((of, [X])) == [0.0]
    (found,) = phase((of, [X]))
    assert found.ndim == 0 and not found.requires_grad
    assert float(found) == pytest.approx(reconstruction / (adversarial + 0.01), rel=1e-12)


def test_workers_and_micro_batches_do_not_change_it() -> None:
    one, *ranks = (copy.deepcopy(layer()) for _ in range(4))
    phase((one, [X]))
    phase((ranks[0], [X[:1], X[1:3]]), (ranks[1], [X[3:]]), (ranks[2], []))
    for rank in ranks:
        torch.testing.assert_close(rank.measured.norms, one.measured.norms, rtol=1e-12, atol=0)


def test_a_phase_that_measured_nothing_and_calls_outside_of_one_change_nothing() -> None:
    of = layer()
    phase((of, [X]))
    before = of.measured.norms.clone()
    phase((of, []))
    with torch.no_grad():
        assert float(of.adaptive_weight(*losses(of(2 * X)))) > 0
    assert torch.equal(of.measured.norms, before)


def test_it_is_bounded() -> None:
    of = layer(epsilon=0.0, bound=1.5)
    begin_phase(of)
    reconstruction, _ = losses(of(X))
    of.adaptive_weight(reconstruction, 0.0 * reconstruction)
    of.measured.end_phase(of.measured.phase_statistics())
    assert float(of.adaptive_weight(*losses(of(X)))) == 1.5


def test_it_adds_nothing_to_the_gradients_of_training() -> None:
    of, plain = layer(), layer()
    begin_phase(of)
    both = losses(of(X))
    weight = of.adaptive_weight(*both)
    (both[0].mean() + (weight * both[1]).mean()).backward()
    losses(plain(X))[0].mean().backward()
    torch.testing.assert_close(of.weight.grad, plain.weight.grad)
