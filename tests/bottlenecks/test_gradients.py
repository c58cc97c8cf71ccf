"""Gradients from codes to encodings, against automatic differentiation and orthogonal matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.bottlenecks.gradients import rotated, straight_through


def vectors(count: int = 7, size: int = 5) -> tuple[Tensor, Tensor]:
    """Encodings and codes, float64 (count, size)."""
    generator = torch.Generator().manual_seed(1)
    z, e = torch.randn(2, count, size, dtype=torch.float64, generator=generator)
    return z, e


def test_straight_through_gives_the_code_and_the_gradient_of_the_code() -> None:
    z, e = vectors()
    z.requires_grad_()
    torch.testing.assert_close(straight_through(z, e), e)
    (found,) = torch.autograd.grad((straight_through(z, e) * e).sum(), z)
    torch.testing.assert_close(found, e)


def test_rotation_gives_the_code() -> None:
    z, e = vectors()
    torch.testing.assert_close(rotated(z, e), e)
    maps = (z.t().reshape(1, 5, 7, 1), e.t().reshape(1, 5, 7, 1))
    torch.testing.assert_close(rotated(*maps), maps[1])


def test_the_jacobian_of_a_rotation_turns_and_scales() -> None:
    """J = ‖e‖ / ‖z‖ R: R is orthogonal with determinant 1, takes ẑ to ê, and leaves what is
    orthogonal to both."""
    for z, e in zip(*vectors(), strict=True):
        jacobian: Tensor = torch.autograd.functional.jacobian(
            lambda x, e=e: rotated(x[None], e[None])[0], z
        )
        turn = jacobian * z.norm() / e.norm()
        torch.testing.assert_close(turn @ turn.t(), torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(torch.linalg.det(turn), torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(turn @ z / z.norm(), e / e.norm())
        both = torch.linalg.qr(torch.stack([z, e], 1), mode="complete").Q
        torch.testing.assert_close(turn @ both[:, 2:], both[:, 2:])


def test_no_gradient_reaches_the_code() -> None:
    z, e = vectors()
    for function in (straight_through, rotated):
        code = e.clone().requires_grad_()
        assert not function(z, code).requires_grad


def test_where_an_encoding_has_no_direction_its_gradient_passes_straight_through() -> None:
    """An encoder whose last layer begins at 0 gives nothing but zeros."""
    z, e = torch.zeros(2, 5, 1, requires_grad=True), torch.randn(2, 5, 1)
    out = rotated(z, e)
    assert torch.equal(out, e)
    (found,) = torch.autograd.grad(out.sum(), z)
    assert torch.equal(found, torch.ones_like(z))


def test_opposite_vectors_do_not_divide_by_zero() -> None:
    z = vectors()[0].requires_grad_()
    out = rotated(z, -2 * z.detach())
    torch.testing.assert_close(out, -2 * z)
    (found,) = torch.autograd.grad(out.sum(), z)
    assert bool(found.isfinite().all())
