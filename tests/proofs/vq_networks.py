"""The networks of a VQ-VAE, maps to maps, and its codebook (van den Oord et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import Noise, PhaseModule, Signature


class Residual(nn.Module):
    """x + conv1(relu(conv3(relu(x)))) (section 4.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) to the same shape."""
        return x + self.narrow(F.relu(self.wide(F.relu(x))))


class Resize(nn.Module):
    """A map (N, C, H, W) to another: convolutions that halve its side or double it, and a residual
    block where it is small. A label adds a learned number to each channel."""

    def __init__(self, signature: Signature, *, width: int = 8) -> None:
        super().__init__()
        (inputs, start, _), (outputs, end, _) = signature.input, signature.output_shape
        steps = (max(start, end) // min(start, end)).bit_length() - 1
        if min(start, end) << steps != max(start, end):
            raise ValueError(f"halves or doubles a side, which takes {start} to no {end}")
        of = nn.ConvTranspose2d if start < end else nn.Conv2d
        resized = [part for _ in range(steps) for part in (nn.ReLU(), of(width, width, 4, 2, 1))]
        layers = [Residual(width), *resized] if start < end else [*resized, Residual(width)]
        labels = signature.label_count
        self.labels = None if labels is None else nn.Embedding(labels, width)
        self.first = nn.Conv2d(inputs, width, 3, 1, 1)
        self.rest = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, outputs, 3, 1, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels: int64 (N,) or None."""
        x = self.first(x)
        return self.rest(x if self.labels is None else x + self.labels(labels)[..., None, None])


class Codebook(PhaseModule):
    """K codes e of D numbers, the means of the encodings z that they stand for (appendix A.1).

    Once a phase, over all ranks: n ← γ n + (1 - γ) Σ 1, m ← γ m + (1 - γ) Σ z, e = m / n. A code
    with n < `dead_below` starts again with the mean n, near a code drawn in proportion to n.
    """

    codes: Tensor
    sums: Tensor
    counts: Tensor
    perplexity: Tensor
    _seen: Tensor

    def __init__(self, count: int, size: int, *, decay: float, dead_below: float) -> None:
        super().__init__()
        self._moves, self._dead_below, self._collecting = 1.0 - decay, dead_below, False
        self.phase_noise = {"place": Noise((count,), "uniform"), "aside": Noise((count, size))}
        codes = torch.empty(count, size).uniform_(-1.0 / count, 1.0 / count)
        self.register_buffer("codes", codes)  # e: (K, D)
        self.register_buffer("sums", codes.clone())  # m: (K, D)
        self.register_buffer("counts", torch.ones(count))  # n: (K,)
        self.register_buffer("perplexity", torch.zeros(()))  # of the last phase
        self.register_buffer("_seen", torch.zeros(count, size + 1), persistent=False)

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """The nearest code of each encoding: (N, D, h, w) to int64 (N, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            flat = z.movedim(1, -1).reshape(-1, z.shape[1])  # (N h w, D)
            nearest = (self.codes.square().sum(1) - 2.0 * flat @ self.codes.t()).argmin(1)
            if self._collecting:  # by a product: scattered sums have no fixed order on a GPU
                is_of = nearest[:, None] == torch.arange(len(self.codes), device=z.device)
                self._seen += is_of.to(z.dtype).t() @ F.pad(flat, (0, 1), value=1.0)
        return nearest.view(-1, *z.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """int64 (N, h, w) to codes (N, D, h, w)."""
        return F.embedding(indices, self.codes).movedim(-1, 1)

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Start collecting."""
        self._seen.zero_()
        self._collecting = True

    def phase_statistics(self) -> Tensor | None:
        """Σ z and Σ 1 of each code: (K, D + 1)."""
        return self._seen

    def end_phase(
        self, statistics: Tensor | None, noise: Mapping[str, Tensor] | None = None
    ) -> None:
        """Move the codes, unless no rank saw an encoding."""
        assert statistics is not None and noise is not None
        found, total = statistics[:, -1], statistics[:, -1].sum()
        counts = self.counts.lerp(found, self._moves)
        sums = self.sums.lerp(statistics[:, :-1], self._moves)
        codes = sums / counts.clamp(min=1e-5)[:, None]
        dead, fresh = counts < self._dead_below, counts.mean().clamp(min=self._dead_below)
        below = counts.cumsum(0)
        drawn = torch.searchsorted(below, noise["place"] * below[-1]).clamp(max=len(below) - 1)
        codes = torch.where(dead[:, None], codes[drawn] + 0.01 * noise["aside"], codes)
        sums = torch.where(dead[:, None], fresh * codes, sums)
        counts = torch.where(dead, fresh, counts)
        usage = found / total.clamp(min=1.0)
        perplexity = torch.xlogy(usage, usage).sum().neg().exp()
        new = {"codes": codes, "sums": sums, "counts": counts, "perplexity": perplexity}
        for name, value in new.items():
            old = getattr(self, name)
            old.copy_(torch.where(total > 0, value, old))
        self._seen.zero_()
        self._collecting = False
