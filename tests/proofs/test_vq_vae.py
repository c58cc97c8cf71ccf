"""The VQ-VAE: its codebook against a computation by hand, and what it gives to a pipeline."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

import ray_gen
from ray_gen.core import Batch
from ray_gen.noise import Tape
from ray_gen.training.build import build_objective
from tests.helpers import stepped
from tests.proofs.vq_networks import Codebook
from tests.proofs.vq_vae import experiment
from tests.runs import saved

FP64 = "training.precision=fp64"
COUNT, SIZE = 5, 3
DECAY, DEAD_BELOW = 0.8, 0.9


def new_codebook() -> Codebook:
    torch.manual_seed(3)
    return Codebook(COUNT, SIZE, decay=DECAY, dead_below=DEAD_BELOW).double()


def encodings(count: int, spread: float = 1.0) -> Tensor:
    """(count, SIZE, 2, 3)"""
    return spread * torch.randn(count, SIZE, 2, 3, dtype=torch.float64)


def draws() -> dict[str, Tensor]:
    return {
        "place": torch.rand(COUNT, dtype=torch.float64),
        "aside": torch.randn(COUNT, SIZE, dtype=torch.float64),
    }


def tensors(codebook: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in codebook.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def phase(codebook: Codebook, *seen: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
    """A phase of a single worker that sees these encodings; their indices."""
    codebook.begin_phase()
    found = [codebook(z) for z in seen]
    codebook.end_phase(codebook.phase_statistics(), noise or draws())
    return torch.cat(found) if found else torch.empty(0)


def test_the_nearest_code_is_the_nearest() -> None:
    codebook, z = new_codebook(), encodings(4)
    indices = codebook(z)
    assert indices.shape == (4, 2, 3)
    for n in range(4):
        for row in range(2):
            for column in range(3):
                distances = (codebook.codes - z[n, :, row, column]).norm(dim=1)
                assert indices[n, row, column] == distances.argmin()
                code = codebook.lookup(indices)[n, :, row, column]
                assert torch.equal(code, codebook.codes[distances.argmin()])


def test_codes_move_as_the_appendix_says_and_dead_ones_begin_anew() -> None:
    """Eight phases of two micro-batches, code by code in Python's numbers."""
    codebook = new_codebook()
    replaced = 0
    for number in range(8):
        torch.manual_seed(number)
        parts = [encodings(count, 0.05) + 0.3 * number for count in (2, 4)]
        noise, before = draws(), tensors(codebook)
        indices = phase(codebook, *parts, noise=noise).flatten()
        flat = torch.cat([part.permute(0, 2, 3, 1).reshape(-1, SIZE) for part in parts])
        n, m = [], []
        for k in range(COUNT):
            own = [z for z, index in zip(flat, indices.tolist(), strict=True) if index == k]
            n.append(DECAY * float(before["counts"][k]) + (1 - DECAY) * len(own))
            m.append(DECAY * before["sums"][k] + (1 - DECAY) * sum(own, torch.zeros(SIZE)))
        codes = [m[k] / n[k] for k in range(COUNT)]
        fresh = max(DEAD_BELOW, sum(n) / COUNT)
        for k in range(COUNT):
            code, count = codes[k], n[k]
            if count < DEAD_BELOW:
                replaced += 1
                place, source, below = float(noise["place"][k]) * sum(n), 0, n[0]
                while below < place:
                    source += 1
                    below += n[source]
                code, count = codes[source] + 0.01 * noise["aside"][k], fresh
            torch.testing.assert_close(codebook.codes[k], code)
            torch.testing.assert_close(codebook.sums[k], count * code)
            assert math.isclose(codebook.counts[k], count)
    assert replaced > 2


def test_a_dead_code_is_alive_afterwards() -> None:
    codebook, far = new_codebook(), torch.full((SIZE,), 100.0)
    codebook.codes[1], codebook.sums[1] = far, far
    for _ in range(2):
        phase(codebook, encodings(8))
    assert codebook.codes[1].norm() < 10
    assert bool((codebook.counts >= DEAD_BELOW).all())
    around = codebook.codes[1][None, :, None, None].expand(4, -1, 2, 3)
    assert bool((phase(codebook, around) == 1).all())


def test_no_code_moves_in_a_forward_pass() -> None:
    codebook = new_codebook()
    before = tensors(codebook)
    codebook(encodings(4))
    codebook.begin_phase()
    for mode in (True, False):
        codebook.train(mode)(encodings(4))
    assert same(tensors(codebook), before)


def test_a_phase_that_saw_nothing_leaves_the_codes() -> None:
    codebook = new_codebook()
    phase(codebook, encodings(8))
    before = tensors(codebook)
    phase(codebook)
    assert same(tensors(codebook), before)


def test_two_workers_make_the_codebook_of_one() -> None:
    one, parts, noise = new_codebook(), (encodings(8), encodings(4)), draws()
    two = [copy.deepcopy(one) for _ in parts]
    phase(one, *parts, noise=noise)
    for codebook, part in zip(two, parts, strict=True):
        codebook.begin_phase()
        codebook(part)
    total = sum(codebook.phase_statistics() for codebook in two)
    for codebook in two:
        codebook.end_phase(total, noise)
        torch.testing.assert_close(tensors(codebook), tensors(one))


def test_the_perplexity_is_that_of_the_phase() -> None:
    """exp(-Σ p log p): the number of codes, where all are used alike."""
    codebook = new_codebook()
    codebook.codes.copy_(torch.eye(COUNT, SIZE) + 3.0 * torch.arange(COUNT)[:, None])
    for used, expected in (
        ([0, 1, 2, 3, 4], 5.0),
        ([3, 3, 3], 1.0),
        ([0, 0, 0, 2], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
    ):
        again = copy.deepcopy(codebook)
        phase(again, codebook.codes[used][:, :, None, None])
        assert math.isclose(again.perplexity, expected)


def test_a_report_has_the_perplexity_of_the_phase_before(store_8) -> None:
    this = experiment(FP64)
    objective = build_objective(this)
    state, _ = stepped(this, objective, store_8, 3)
    before = float(state.networks["codebook"].perplexity)
    _, meter = stepped(this, objective, store_8, 1, state)
    assert math.isclose(meter.report()["codebook/perplexity"], before)
    assert 1.0 < before <= 16.0


class Given(nn.Module):
    """An encoder of one answer, whatever the images."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.answer


def test_an_encoding_has_the_gradient_of_its_code_and_of_its_commitment(store_8) -> None:
    """β / positions · ‖z - sg(e)‖² of an image, beside what the decoder gives back."""
    this = experiment(FP64)
    objective = build_objective(this)
    networks = stepped(this, objective, store_8, 2)[0].networks
    z, images = torch.randn(3, 4, 4, 4).double().requires_grad_(), torch.rand(3, 1, 8, 8).double()
    networks["encoder"] = Given(z)
    (term,) = objective.phases()[0].terms
    losses = term.loss(networks, Batch(images, None, {}, torch.zeros(()))).minimised
    beta = term.weights["commitment"].value
    (found,) = torch.autograd.grad(
        (losses["reconstruction"] + beta * losses["commitment"]).sum(), z
    )
    codebook = networks["codebook"]
    e = codebook.lookup(codebook(z)).requires_grad_()
    error = (networks["decoder"](e) - images).square().sum()
    (of_code,) = torch.autograd.grad(error, e)
    torch.testing.assert_close(found, of_code + 0.25 / 16 * 2 * (z - e))
    assert losses["commitment"].shape == (3,)


def test_an_image_is_encoded_as_indices_of_codes(store_8, tmp_path: Path) -> None:
    pipeline = ray_gen.load(saved(experiment(), store_8, tmp_path / "run"))
    images = store_8.held_out.images_NHWC[:6].permute(0, 3, 1, 2) / 255
    codes = pipeline.encode(images)
    assert codes.shape == (6, 4, 4)
    assert torch.equal(codes, codes.round())
    assert 0 <= int(codes.min()) <= int(codes.max()) < 16
    decoder, codebook = (pipeline.networks[name] for name in ("decoder", "codebook"))
    expected = decoder(codebook.codes[codes.long()].permute(0, 3, 1, 2)).clamp(0, 1)
    torch.testing.assert_close(pipeline.reconstruct(images), expected)
    torch.testing.assert_close(pipeline.decode(codes + 0.9), expected)
    # As far as U[0, K) goes, and one step beyond.
    assert pipeline.traverse([0, 15], base=codes[:1], extent=16.0).shape == (2, 9, 1, 8, 8)
    assert pipeline.latents(100, seed=0).long().unique().tolist() == list(range(16))


def test_the_codebook_is_used_as_it_is_and_not_averaged(store_8) -> None:
    state, _ = stepped(experiment(), build_objective(experiment()), store_8, 4)
    raw, kept = (of["codebook"].state_dict() for of in (state.networks, state.ema))
    assert same(kept, raw)
    assert not same(state.ema["decoder"].state_dict(), state.networks["decoder"].state_dict())


def test_a_large_codebook_is_not_drawn_for_many_phases_at_once(store_8, monkeypatch) -> None:
    """The codebook draws noise for every code. This noise limits the length of a block, as an
    image's noise does."""
    lengths: list[tuple[int, int]] = []

    class Watched(Tape):
        def __init__(self, specs, *given) -> None:
            super().__init__(specs, *given)
            size = sum(math.prod(spec.shape) for spec in specs.values())
            lengths.append((self.length, size))

    monkeypatch.setattr("ray_gen.training.step.Tape", Watched)
    this = experiment("objective.options.codebook.count=512")
    stepped(this, build_objective(this), store_8, 1)
    assert max(size for _, size in lengths) == 512 * 5
    assert all(length == 1 or length * size <= Tape.numbers for length, size in lengths)
