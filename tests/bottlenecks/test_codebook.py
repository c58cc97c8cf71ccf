"""The codebook, against a computation by hand, and what its start finds."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ray_gen.bottlenecks.codebook import Codebook
from ray_gen.bottlenecks.quantiser import Quantiser

COUNT, SIZE, SIDES = 6, 3, (2, 3)
DECAY, DEAD_BELOW = 0.8, 0.3


def new_codebook(count: int = COUNT, size: int = SIZE, **options) -> Codebook:
    """float64"""
    torch.manual_seed(3)
    given = {"decay": DECAY, "dead_below": DEAD_BELOW, **options}
    return Codebook(count, size, SIDES, **given).double()


def encodings(images: int, size: int = SIZE) -> Tensor:
    """float64 (images, size, 2, 3)"""
    return torch.randn(images, size, *SIDES, dtype=torch.float64)


def offers(z: Tensor) -> dict[str, Tensor]:
    return {"offers": torch.rand(len(z), *z.shape[2:], dtype=torch.float64)}


def tensors(codebook: Codebook) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in codebook.state_dict().items()}


def phase(codebook: Codebook, *seen: Tensor, drawn: Sequence[dict] | None = None) -> None:
    """A phase of one worker that sees these micro-batches."""
    codebook.begin_phase()
    for z, noise in zip(seen, drawn or [offers(z) for z in seen], strict=True):
        codebook(z, noise=noise)
    codebook.end_phase(codebook.phase_statistics())


@pytest.mark.parametrize("start", ["kmeans", "uniform"])
def test_codes_move_as_the_docstring_says(start: str) -> None:
    """Twelve phases of two micro-batches, code by code in Python's numbers."""
    codebook = new_codebook(start=start)
    started = died = 0
    for number in range(12):
        torch.manual_seed(number)
        parts = [encodings(images) * 0.3 + 0.5 * number for images in (2, 4)]
        drawn, before = [offers(part) for part in parts], tensors(codebook)
        phase(codebook, *parts, drawn=drawn)
        flat = torch.cat([part.permute(0, 2, 3, 1).reshape(-1, SIZE) for part in parts])
        numbers = torch.cat([noise["offers"].flatten() for noise in drawn]).tolist()
        N, in_use = before["counts"].tolist(), [n > 0 for n in before["counts"].tolist()]
        own: list[list[Tensor]] = [[] for _ in range(COUNT)]
        error = 0.0
        for z, drawn_number in zip(flat, numbers, strict=True):
            distances = [
                float((z - e).square().sum()) if used else math.inf
                for e, used in zip(before["codes"], in_use, strict=True)
            ]
            nearest, least = distances.index(min(distances)), min(distances)
            place, fraction = divmod(drawn_number * COUNT, 1.0)
            offered = fraction < least * float(before["offers"]) and not in_use[int(place)]
            own[int(place) if offered else nearest].append(z)
            error += least
        moved = [DECAY * N[k] + len(own[k]) for k in range(COUNT)]
        mean = sum(moved[k] for k in range(COUNT) if in_use[k]) / COUNT
        for k in range(COUNT):
            code, count = before["codes"][k], 0.0
            if in_use[k] and moved[k] >= DEAD_BELOW * mean:
                total = DECAY * before["totals"][k] + sum(own[k], torch.zeros(SIZE))
                code, count = total / moved[k], moved[k]
            elif in_use[k]:
                died += 1
            elif len(own[k]) == 1:
                started += 1
                code, count = own[k][0], mean
            torch.testing.assert_close(codebook.codes[k], code)
            torch.testing.assert_close(codebook.totals[k], count * code)
            assert math.isclose(codebook.counts[k], count, rel_tol=1e-9)
        assert math.isclose(codebook.offers, COUNT / error, rel_tol=1e-9)
        used = [len(own[k]) for k in range(COUNT) if in_use[k] and own[k]]
        shares = [n / sum(used) for n in used]
        entropy = -sum(share * math.log(share) for share in shares)
        assert math.isclose(codebook.usage, len(used) / COUNT)
        assert math.isclose(codebook.perplexity, math.exp(entropy))
    assert started > 2
    assert died > 2


def test_the_nearest_code_in_use_is_the_nearest(monkeypatch) -> None:
    """Also where the search is in parts."""
    monkeypatch.setattr("ray_gen.bottlenecks.codebook._DISTANCES", 5 * COUNT)
    codebook, z = new_codebook(start="uniform"), encodings(4) / COUNT
    codebook.counts[2] = 0.0
    distances = (z[:, :, None] - codebook.codes.t()[None, :, :, None, None]).norm(dim=1)
    distances[:, 2] = math.inf
    assert torch.equal(codebook.nearest(z), distances.argmin(1))
    z_q, indices = codebook.quantised(z)
    assert torch.equal(z_q, codebook.codes[indices].permute(0, 3, 1, 2))
    assert torch.equal(z_q, codebook.lookup(indices))


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_gradients_are_of_codes_and_of_the_commitment(gradient: str) -> None:
    codebook, z = new_codebook(start="uniform", gradient=gradient), encodings(4).requires_grad_()
    out = codebook(z)
    e = codebook.lookup(out.indices)
    torch.testing.assert_close(out.z_q, e)
    assert out.losses["commitment"].shape == (4,)
    torch.testing.assert_close(out.losses["commitment"], (z - e).square().mean((1, 2, 3)))
    of_commitment = torch.autograd.grad(out.losses["commitment"].sum(), z, retain_graph=True)[0]
    torch.testing.assert_close(of_commitment, 2 * (z - e) / (SIZE * 6))
    of_codes = torch.autograd.grad((out.z_q * e).sum(), z)[0]
    expected = e  # rotated back by Rᵀ: along z, with the length ‖e‖² / ‖z‖
    if gradient == "rotation":
        expected = z * e.square().sum(1, keepdim=True) / z.square().sum(1, keepdim=True)
    torch.testing.assert_close(of_codes, expected)


def clusters(generator: torch.Generator, centres: Tensor, images: int) -> Tensor:
    """Encodings (images, D, 2, 3) within 0.05 of one of the centres (K, D) each."""
    drawn = torch.randint(len(centres), (images, *SIDES), generator=generator)
    z = centres[drawn].permute(0, 3, 1, 2)
    return z + 0.01 * torch.randn(z.shape, dtype=z.dtype, generator=generator)


def test_the_start_finds_clusters_that_lie_apart() -> None:
    """20 clusters in 8 dimensions, far from 0, 32 codes: a code in the middle of each."""
    generator = torch.Generator().manual_seed(0)
    centres = 5.0 + torch.randn(20, 8, dtype=torch.float64, generator=generator)
    codebook = new_codebook(32, 8, decay=0.9, dead_below=0.1)
    torch.manual_seed(0)
    for _ in range(60):
        phase(codebook, clusters(generator, centres, 32))
    codes = codebook.codes[codebook.counts > 0]
    assert len(codes) > 20
    assert float(torch.cdist(centres, codes).min(1).values.max()) < 0.03
    assert float(torch.cdist(codes, centres).min(1).values.max()) < 0.1
    assert float(codebook.usage) > 20 / 32


def test_dead_codes_come_alive() -> None:
    """When all encodings leave for another place, codes follow them there."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    codebook = new_codebook(16, 4, decay=0.9)
    torch.manual_seed(0)
    for _ in range(20):
        phase(codebook, clusters(generator, centres, 32))
    moved = centres.flip(0) * 3.0 + 7.0
    for _ in range(100):
        phase(codebook, clusters(generator, moved, 32))
    codes = codebook.codes[codebook.counts > 0]
    assert float(torch.cdist(moved, codes).min(1).values.max()) < 0.05
    assert float(torch.cdist(codes, moved).min(1).values.max()) < 0.3


def test_codes_of_length_one() -> None:
    """The nearest one has the largest cosine, and moves to the mean direction."""
    codebook, z = new_codebook(start="uniform", normalised=True), 4.0 * encodings(6)
    codes = codebook.codes.clone()
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(COUNT).double())
    cosines = torch.einsum("nchw,kc->nkhw", z, codes)
    out = codebook(z)
    assert torch.equal(out.indices, cosines.argmax(1))
    assert torch.equal(codebook.quantised(z)[1], out.indices)
    phase(codebook, z)
    torch.testing.assert_close(codebook.codes.norm(dim=1), torch.ones(COUNT).double())
    unit = (z / z.norm(dim=1, keepdim=True)).movedim(1, -1)
    k = int(out.indices.flatten().mode().values)
    sums = DECAY * codes[k] + unit[out.indices == k].sum(0)
    torch.testing.assert_close(codebook.codes[k], sums / sums.norm())


def test_no_code_moves_in_a_forward_pass() -> None:
    codebook = new_codebook()
    before = tensors(codebook)
    codebook(encodings(4))
    codebook.begin_phase()
    for mode in (True, False):
        z = encodings(4)
        codebook.train(mode)(z, noise=offers(z))
    assert all(torch.equal(value, before[name]) for name, value in tensors(codebook).items())


def test_a_phase_that_saw_nothing_moves_nothing() -> None:
    codebook = new_codebook()
    for _ in range(3):
        phase(codebook, encodings(8))
    before = tensors(codebook)
    phase(codebook)
    assert all(torch.equal(value, before[name]) for name, value in tensors(codebook).items())


def test_three_workers_make_the_codebook_of_one() -> None:
    """Bit for bit, but for the order in which floats of ranks are added."""
    one = new_codebook()
    several = [copy.deepcopy(one) for _ in range(3)]
    torch.manual_seed(0)
    for _ in range(6):
        parts = [encodings(images) for images in (5, 4, 3)]
        drawn = [offers(part) for part in parts]
        phase(one, *parts, drawn=drawn)
        for codebook, z, noise in zip(several, parts, drawn, strict=True):
            codebook.begin_phase()
            codebook(z, noise=noise)
        total = sum(codebook.phase_statistics() for codebook in several)
        for codebook in several:
            codebook.end_phase(total)
            torch.testing.assert_close(tensors(codebook), tensors(one), rtol=1e-12, atol=1e-12)
    assert int((one.counts > 0).sum()) > 2


def test_autocast_changes_nothing() -> None:
    codebook, z = new_codebook(start="uniform").float(), encodings(4).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = codebook(z)
    assert torch.equal(inside.z_q, codebook(z).z_q)
    assert inside.z_q.dtype == torch.float32


def test_it_is_a_quantiser() -> None:
    assert isinstance(new_codebook(), Quantiser)
