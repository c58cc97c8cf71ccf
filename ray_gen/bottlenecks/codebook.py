"""The codebook of a VQ-VAE (van den Oord et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.bottlenecks.gradients import rotated, straight_through
from ray_gen.bottlenecks.quantiser import Quantised
from ray_gen.bottlenecks.usage import perplexity_and_usage, reported, summed_rows
from ray_gen.core import Noise
from ray_gen.phase_sums import PhaseSums

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})
_GRADIENTS = {"straight_through": straight_through, "rotation": rotated}
_BEGINS_WITH = 1e4
"""N of codes from elsewhere. N becomes n / (1 - γ), with n encodings of a code in a phase: 100 to
100,000 for usual batches. A smaller N lets codes die that the first batches do not use, and a
larger one only delays the codes."""
_DISTANCES = 1 << 22
"""Largest count of distances at once: 16 MiB. On a CPU, searches with 2^24 took up to 1.2
times as long."""


class Codebook(PhaseSums):
    """K codes e of D numbers. An encoding z becomes the nearest code.

    *Means.* A code is the mean of its encodings, older phases weighing less (van den Oord et al.
    2017, appendix A.1). Once a phase, by sums over all ranks:

        N <- γ N + n,   m <- γ m + Σ z,   e = m / N

    N and m are the paper's, times 1 / (1 - γ). Only ratios count, so they need no correction for
    their start. N of a code in use cannot vanish, so it needs no constant beside it either.

    *Dead codes.* A code whose N falls below `dead_below` times the mean N goes out of use: N is 0,
    and no encoding becomes it. Encodings offer themselves: each one, at a code that is drawn, with
    the probability K d² / Σ d². d is its distance from its nearest code. Σ d² is over all encodings
    of the phase before. So a code gets at most one offer on average: M / K of them, if a phase has
    M < K encodings. A code out of use with exactly one offer takes it, with the mean N. Offers are
    declared noise of each image, and a code adds its offers up over all ranks. So this does not
    depend on which rank saw an encoding.

    *Start.* kmeans: one code is in use, all others are dead. Their offers are the draws of
    k-means|| (Bahmani et al. 2012, algorithm 2, step 4). The means that follow are Lloyd's
    iterations, each on the images of a phase. uniform: all codes are in use, drawn from U(±1/K).

    Distances are computed in the type of the codes (float32), also under autocast.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("commitment",)

    codes: Tensor
    """e: (K, D)"""
    totals: Tensor
    """m: (K, D)"""
    counts: Tensor
    """N: (K,), in encodings. 0: out of use."""
    offers: Tensor
    """0-dimensional: K / Σ d², offers for each squared distance."""
    perplexity: Tensor
    """0-dimensional, from 1 to K, of the phase before. 0 before the first one."""
    usage: Tensor
    """0-dimensional: the share of all codes that the phase before used."""

    def __init__(
        self,
        code_count: int,
        channels: int,
        positions: Sequence[int],
        *,
        decay: float = 0.99,
        dead_below: float = 0.1,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
        start: Literal["kmeans", "uniform"] = "kmeans",
        normalised: bool = False,
    ) -> None:
        """channels: D. positions: (h, w) of a map of encodings. dead_below: in (0, 1). normalised:
        encodings and codes have length 1."""
        super().__init__(code_count * (channels + 1) + 1)
        self.code_count, self.channels = code_count, channels
        self.noise: Mapping[str, Noise] = {"offers": Noise(tuple(positions), "uniform")}
        self._decay, self._dead_below, self._normalised = decay, dead_below, normalised
        self._pass_gradient = _GRADIENTS[gradient]
        codes = self._as_codes(torch.empty(code_count, channels).uniform_(-1.0, 1.0) / code_count)
        counts = torch.ones(code_count)
        if start == "kmeans":
            counts[1:] = 0.0
        self.register_buffer("codes", codes)
        self.register_buffer("totals", codes * counts[:, None])
        self.register_buffer("counts", counts)
        for name in ("offers", "perplexity", "usage"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, z: Tensor, *, noise: Mapping[str, Tensor] = _NOTHING) -> Quantised:
        """Encodings (N, D, h, w) to codes; commitment: mean over positions and channels of
        (sg(e) - z)² (eq. 3, without β)."""
        with torch.autocast(z.device.type, enabled=False):
            z = self._encodings(z)
            indices = self.nearest(z)
            e = self.lookup(indices)
            squares = (e - z).square()
            if self.collecting:
                self._see(z, indices, squares, noise)
            losses = {"commitment": squares.flatten(1).mean(1)}
            z_q = self._pass_gradient(z, e)
        return Quantised(z_q, indices, losses, reported(self.perplexity, self.usage))

    def quantised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `Quantiser`."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            indices = self.nearest(self._encodings(z))
            return self.lookup(indices), indices

    def lookup(self, indices: Tensor) -> Tensor:
        """int64 (N, h, w) to codes (N, D, h, w)."""
        return F.embedding(indices, self.codes).movedim(-1, 1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The index of the nearest code in use: (N, D, h, w) to int64 (N, h, w)."""
        squares = torch.where(self.counts > 0.0, self.codes.square().sum(1), math.inf)
        rows = _flat(z)
        # A program takes any number of images, so it cannot know the number of parts.
        one_part = torch.compiler.is_exporting()
        parts = [rows] if one_part else rows.split(max(1, _DISTANCES // self.code_count))
        found = [
            torch.addmm(squares, part, self.codes.t(), alpha=-2.0).argmin(1)  # ‖z - e‖² - ‖z‖²
            for part in parts
        ]
        return torch.cat(found).view(z.shape[0], *z.shape[2:])

    def _encodings(self, z: Tensor) -> Tensor:
        z = z.to(self.codes.dtype)
        return F.normalize(z, dim=1) if self._normalised else z

    def _as_codes(self, means: Tensor) -> Tensor:
        return F.normalize(means, dim=1) if self._normalised else means

    @torch.no_grad()
    def _see(
        self, z: Tensor, indices: Tensor, squares: Tensor, noise: Mapping[str, Tensor]
    ) -> None:
        """Adds up, for each code, the encodings that became it; or, if it is out of use, those that
        were offered to it. indices: (N, h, w); squares: (e - z)², (N, D, h, w)."""
        places, squares = indices, squares.sum(1)
        if noise:
            drawn = noise["offers"] * self.code_count  # its fraction is a second number, U[0, 1)
            place = drawn.long().clamp(max=self.code_count - 1)
            offered = (drawn - place < squares * self.offers) & (self.counts[place] == 0.0)
            places = torch.where(offered, place, indices)
        rows = F.pad(_flat(z), (0, 1), value=1.0)
        sums = summed_rows(rows, places.flatten(), self.code_count)
        self.add(torch.cat([sums.flatten(), squares.sum()[None]]), len(rows))

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """All buffers. sums: Σ z and n of each code, then Σ d²."""
        rows, error = sums[:-1].view(self.code_count, -1), sums[-1]
        z, n = rows[:, :-1], rows[:, -1]
        in_use = self.counts > 0.0
        counts, totals = self._decay * self.counts + n, self._decay * self.totals + z
        mean = torch.where(in_use, counts, 0.0).mean()
        # The largest N is at least the mean, so at least one code stays.
        stays = in_use & (counts >= self._dead_below * mean)
        starts = ~in_use & (n == 1.0)
        counts = torch.where(stays, counts, torch.where(starts, mean, 0.0))
        totals = torch.where(starts[:, None], mean * z, totals) * (counts > 0.0)[:, None]
        means = self._as_codes(totals / counts.clamp(min=1e-20)[:, None])
        perplexity, usage = perplexity_and_usage(torch.where(in_use, n, 0.0))
        return {
            "codes": torch.where(counts[:, None] > 0.0, means, self.codes),
            "totals": totals,
            "counts": counts,
            "offers": self.code_count / error.clamp(min=1e-20),
            "perplexity": perplexity,
            "usage": usage,
        }


def begun_with(codes: Tensor) -> dict[str, Tensor]:
    """The buffers of a codebook that begins with these codes, (K, D), all in use."""
    codes = codes.float()
    counts = torch.full((len(codes),), _BEGINS_WITH)
    none_yet = {name: torch.zeros(()) for name in ("offers", "perplexity", "usage")}
    return {"codes": codes, "totals": codes * counts[:, None], "counts": counts, **none_yet}


def _flat(z: Tensor) -> Tensor:
    """(N, D, h, w) to (N h w, D)."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])
