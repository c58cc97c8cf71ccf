"""How the codes of a bottleneck are used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ray_gen.phase_sums import PhaseSums

LARGEST = 1 << 18
"""Codes that are counted: 1 MiB of counts, which the ranks sum in every phase."""


def perplexity_and_usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-Σ p log p), from 1 to K, with p = counts / Σ counts; and the share of codes with a
    count. counts: (K,). Returns 0-dimensional tensors."""
    p = counts / counts.sum().clamp(min=1.0)
    return torch.xlogy(p, p).sum().neg().exp(), (counts > 0).to(p.dtype).mean()


def summed_rows(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """The sum of the rows of each place: (M, C) and int64 (M,) in [0, count) to (count, C).

    Sums of whole numbers, in units of 2^-32: they do not depend on their order, which a GPU does
    not fix. The absolute values of a place must sum to less than 2^31. 4,096 rows of 65 numbers to
    16,384 places took 7 ms on a CPU; a product with one-hot rows, which has a fixed order, 875 ms.
    """
    sums = torch.zeros(count, rows.shape[1], dtype=torch.int64, device=rows.device)
    sums.index_add_(0, places, (rows * 2.0**32).round().long())
    return sums.to(rows.dtype) * 2.0**-32


class Usage(PhaseSums):
    """Perplexity of the codes of the phase before, and the share of codes that it used. Codes
    beyond `LARGEST` are not counted."""

    perplexity: Tensor
    """0-dimensional, from 1 to K. 0 before the first phase."""
    usage: Tensor
    """0-dimensional, from 0 to 1."""

    def __init__(self, code_count: int) -> None:
        self._count = code_count if code_count <= LARGEST else 0
        super().__init__(self._count)
        self.register_buffer("perplexity", torch.zeros(()))
        self.register_buffer("usage", torch.zeros(()))

    def forward(self, indices: Tensor) -> None:
        """int64 (N, h, w)."""
        if self.collecting and self._count:
            places = indices.flatten()
            ones = torch.ones(len(places), 1, dtype=self._sums.dtype, device=places.device)
            self.add(summed_rows(ones, places, self._count)[:, 0], len(places))

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """Both, of this phase alone."""
        perplexity, usage = perplexity_and_usage(sums)
        return {"perplexity": perplexity, "usage": usage}

    def of_phase(self) -> dict[str, Tensor]:
        """Both, by the names of reports. Empty if the codes are not counted."""
        return reported(self.perplexity, self.usage) if self._count else {}


def reported(perplexity: Tensor, usage: Tensor) -> dict[str, Tensor]:
    """Both by the names of reports."""
    return {"codebook/perplexity": perplexity, "codebook/usage": usage}
