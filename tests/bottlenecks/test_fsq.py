"""FSQ: every code, and the equations of the paper in Python's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_gen.bottlenecks.fsq import Fsq
from ray_gen.bottlenecks.levels import LEVELS, levels_for

SMALL = (8, 6, 5, 2)


def every_code(levels: tuple[int, ...]) -> tuple[Fsq, Tensor, Tensor]:
    """FSQ, all indices (1, K, 1) and their codes (1, c, K, 1)."""
    fsq = Fsq(levels)
    indices = torch.arange(fsq.code_count).view(1, -1, 1)
    return fsq, indices, fsq.lookup(indices)


@pytest.mark.parametrize("levels", [SMALL, *(LEVELS[2**n] for n in (8, 11, 12, 16))])
def test_every_index_has_its_code_and_comes_back(levels: tuple[int, ...]) -> None:
    fsq, indices, codes = every_code(levels)
    assert fsq.code_count == math.prod(levels)
    assert len(codes[0, :, :, 0].t().unique(dim=0)) == fsq.code_count
    assert -1.0 <= float(codes.min()) <= float(codes.max()) <= 1.0
    # An encoding that the bound takes to its code.
    L = fsq.levels.double()
    half, offset = (L - 1) * 1.001 / 2, 0.5 - 0.5 * (L % 2)
    z = ((codes * (L // 2) + offset) / half).atanh() - (offset / half).atanh()
    z_q, found = fsq.quantised(z.float())
    assert torch.equal(found, indices)
    assert torch.equal(z_q, codes)


def test_values_are_those_of_the_equations() -> None:
    z = 3.0 * torch.randn(2, 4, 3, 3, dtype=torch.float64)
    fsq = Fsq(SMALL).double()
    out = fsq(z)
    for (n, c, row, column), x in np.ndenumerate(z.numpy()):
        L = SMALL[c]
        half, offset = (L - 1) * 1.001 / 2, 0.5 * (1 - L % 2)
        level = round(half * math.tanh(x + math.atanh(offset / half)) - offset)
        assert -(L // 2) <= level <= (L - 1) // 2
        assert math.isclose(out.z_q[n, c, row, column], level / (L // 2))
    digits = (out.z_q * fsq.levels.long().floor_divide(2) + fsq.levels // 2).long()
    index = sum(digits[:, c] * math.prod(SMALL[:c]) for c in range(4))
    assert torch.equal(out.indices, torch.as_tensor(index))
    assert out.losses == {}


def test_the_gradient_is_that_of_the_bound() -> None:
    z = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(Fsq(SMALL).double()(z).z_q.sum(), z)
    L = torch.tensor(SMALL, dtype=torch.float64)[:, None, None]
    half, offset = (L - 1) * 1.001 / 2, 0.5 - 0.5 * (L % 2)
    slope = half * (1 - (z + (offset / half).atanh()).tanh().square()) / (L // 2)
    torch.testing.assert_close(found, slope)


def test_an_encoding_of_zeros_is_a_code() -> None:
    """So an untrained encoder begins in the middle."""
    z_q, _ = Fsq(SMALL).quantised(torch.zeros(1, 4, 1, 1))
    assert torch.equal(z_q, torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("size", LEVELS)
def test_the_levels_of_a_size_have_nearly_as_many_codes(size: int) -> None:
    """And none has less than 5. Those of the paper's table 1 are 240 to 64,000 codes."""
    levels = levels_for(size)
    assert min(levels) >= 5
    assert 0.9 <= math.prod(levels) / size <= 1.1


def test_a_size_without_levels_is_refused_with_those_that_have() -> None:
    with pytest.raises(ValueError, match=r"1000 codes; take 256, 512, .*, 65536, or set levels"):
        levels_for(1000)


def test_autocast_changes_nothing() -> None:
    z, fsq = torch.randn(2, 4, 3, 3), Fsq(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fsq(z)
    assert torch.equal(inside.z_q, fsq(z).z_q)
    assert inside.z_q.dtype == torch.float32


def test_usage_and_perplexity_are_those_of_the_phase_before() -> None:
    fsq, _, codes = every_code((3, 2))
    used = codes[:, :, [0, 0, 0, 5]]
    assert not fsq(used * 9).of_phase["codebook/usage"]
    fsq.used.begin_phase()
    assert fsq.quantised(used * 9)[1].flatten().tolist() == [0, 0, 0, 5]
    fsq(used * 9)
    fsq.used.end_phase(fsq.used.phase_statistics())
    reported = fsq(used).of_phase
    assert math.isclose(reported["codebook/usage"], 2 / 6, rel_tol=1e-6)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert math.isclose(reported["codebook/perplexity"], math.exp(entropy), rel_tol=1e-6)


def test_more_codes_than_are_counted() -> None:
    """They are not reported, and a phase does not divide by nothing."""
    fsq = Fsq((64, 64, 64, 64))
    fsq.used.begin_phase()
    assert fsq(torch.randn(2, 4, 3, 3)).of_phase == {}
    fsq.used.end_phase(fsq.used.phase_statistics())
    assert all(bool(value.isfinite()) for value in fsq.state_dict().values())
