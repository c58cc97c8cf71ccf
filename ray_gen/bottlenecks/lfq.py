"""Lookup-free quantisation (Yu et al. 2024, "Language model beats diffusion: tokenizer is key to
visual generation", MAGVIT-v2)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.bottlenecks.gradients import straight_through
from ray_gen.bottlenecks.quantiser import Quantised
from ray_gen.bottlenecks.usage import Usage
from ray_gen.core import Noise
from ray_gen.phase_sums import PhaseSums


class Lfq(nn.Module):
    """z_q = sign z for each of L channels: one of K = 2^L codes (section 3.1). Gradients pass
    straight through. The index of a code is Σᵢ 2^i [zᵢ > 0].

    *Entropies.* With p(c|z) = softmax_c 2 zᵀc / τ over the codes c (Open-MAGVIT2), the loss is
    E H(p) - H(E p): each encoding is certain of its code, and all codes are equally
    likely. The bits of p are independent: p(cᵢ = 1|z) = sigmoid(4 zᵢ / τ). So H(p) is the sum of L
    entropies of a bit. H(E p) is taken for each group of bits. The sum over groups is an upper
    bound of the whole, and exact for one group.

    H(E p) couples all images. A part of a batch gives too low an estimate of it: it would ask
    each image to use all codes. So -H(E p) enters as Σ_c p(c|z) log p̄(c). p̄ is E p over the
    encodings of all ranks in the phase before. At p = p̄, value and gradient are those of -H.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("commitment", "entropy")
    noise: Mapping[str, Noise] = MappingProxyType({})

    def __init__(self, bits: int, *, temperature: float = 0.01, group_bits: int = 9) -> None:
        """bits: L. group_bits: the largest group."""
        super().__init__()
        self.channels, self.code_count = bits, 2**bits
        self._slope, self._group_bits = 4.0 / temperature, group_bits
        self.register_buffer("places", 2 ** torch.arange(bits)[:, None, None], persistent=False)
        groups = torch.arange(bits).split(group_bits)
        self.used = Usage(self.code_count)
        self.likely = nn.ModuleList([MeanProbabilities(len(group)) for group in groups])

    def forward(self, z: Tensor, *, noise: Mapping[str, Tensor] | None = None) -> Quantised:
        """Encodings (N, L, h, w) to codes; commitment: mean over positions and channels of
        (sg(z_q) - z)²; entropy: in nats, at least -L log 2, mean over positions."""
        with torch.autocast(z.device.type, enabled=False):
            z = self._exact(z)
            e, indices = self.quantised(z)
            self.used(indices)
            losses = {
                "commitment": (e - z).square().flatten(1).mean(1),
                "entropy": self._entropy(z * self._slope).flatten(1).mean(1),
            }
            z_q = straight_through(z, e)
        return Quantised(z_q, indices, losses, self.used.of_phase())

    @torch.no_grad()
    def quantised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `Quantiser`."""
        bits = (z > 0.0).long()
        return (2 * bits - 1).to(self._exact(z).dtype), (bits * self._places()).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """int64 (N, h, w) to codes (N, L, h, w)."""
        bits = (indices[:, None] // self._places()) % 2
        return (2 * bits - 1).to(self.used.usage.dtype)

    def _places(self) -> Tensor:
        """2^i: int64 (L, 1, 1)"""
        return self.get_buffer("places")

    def _exact(self, z: Tensor) -> Tensor:
        return z.to(self.used.usage.dtype)

    def _entropy(self, logits: Tensor) -> Tensor:
        """H(p) + Σ_c p log p̄ in nats: logits of the bits (N, L, h, w) to (N, h, w)."""
        of_bits = logits.sigmoid() * F.softplus(-logits) + (-logits).sigmoid() * F.softplus(logits)
        groups = logits.split(self._group_bits, dim=1)
        of_codes = [mean(group) for mean, group in zip(self.likely, groups, strict=True)]
        return of_bits.sum(1) + torch.stack(of_codes).sum(0)


class MeanProbabilities(PhaseSums):
    """p̄: how likely each value of b bits was in the phase before, over the encodings of all ranks.
    All are equally likely before the first phase."""

    LEAST = 1e-5
    """Of p̄ in a logarithm, as in Open-MAGVIT2."""

    mean: Tensor
    """(2^b,)"""

    def __init__(self, bits: int) -> None:
        super().__init__(2**bits)
        self.register_buffer("mean", torch.full((2**bits,), 0.5**bits))
        values = torch.arange(2**bits)[None, :] // 2 ** torch.arange(bits)[:, None] % 2
        self.register_buffer("values", values.to(self.mean.dtype), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Σ_c p(c) log p̄(c): logits of the bits (N, b, h, w) to (N, h, w)."""
        flat, values = logits.movedim(1, -1), self.get_buffer("values")  # (N, h, w, b), (b, 2^b)
        ones, zeros = F.logsigmoid(flat), F.logsigmoid(-flat)
        p = ((ones - zeros) @ values + zeros.sum(-1, keepdim=True)).exp()  # (N, h, w, 2^b)
        self.add(p.detach().flatten(0, 2).sum(0), p.shape[:3].numel())
        return p @ self.mean.clamp(min=self.LEAST).log()

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """The mean of this phase."""
        return {"mean": sums / count}
