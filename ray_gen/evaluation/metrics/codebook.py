"""How much of its codebook a model uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.metric import Lacking, Metric, Shown
from ray_gen.evaluation.scores import Score
from ray_gen.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ray_gen.core import Objective
    from ray_gen.evaluation.images import Consumer

MOST_CODES = 2**24
"""Codes that are counted: 0.1 GB of counts."""
FEW = 10
"""With fewer codes in all images than so many for each of the codebook, the protocol warns."""


class Codebook(Metric[Settings]):
    """`codebook`: the codes of all held-out images together. `codebook_usage`: the share of the
    codes that occur. `codebook_perplexity`: exp(-Σ p log p) of the shares p of the codes, from 1 to
    the number of codes."""

    asked_as = ("codebook",)
    scores = {"codebook_usage": "higher", "codebook_perplexity": "higher"}
    of_samples = False
    of_reconstructions = True
    needs_of_objective = "Codes"

    @classmethod
    def fits(cls, objective: Objective | None) -> bool:
        """Whether the model has codes."""
        from ray_gen.evaluation.reconstructions import has_codes

        return has_codes(objective)

    def check(self) -> None:
        """The model has codes."""
        subject = self.given.subject
        assert subject is not None
        if not self.fits(subject.objective):
            raise Lacking(
                "evaluation.metrics: codebook counts codes, and this model has none; leave it out",
                None,
            )
        count = self._code_count
        if count > MOST_CODES:
            why = f"the model has {count:,} codes, and at most {MOST_CODES:,} are counted"
            raise Lacking(f"evaluation.metrics: codebook: {why}; leave it out", why)

    @property
    def _code_count(self) -> int:
        from ray_gen.core import Codes

        assert self.given.subject is not None
        objective = self.given.subject.objective
        assert isinstance(objective, Codes)
        return objective.code_count or 0

    @cached_property
    def _counted(self) -> _Counts:
        from ray_gen.core import Codes
        from ray_gen.evaluation.reconstructions import Originals

        originals, subject = self.given.sets["originals"], self.given.subject
        assert subject is not None and isinstance(originals, Originals)
        objective, networks = subject.objective, subject.networks
        assert isinstance(objective, Codes)

        def codes(first: int, levels: Tensor) -> list[Tensor]:
            labels = originals.labels_of(first, len(levels), levels.device)
            found = objective.codes(networks, originals.seen(levels), labels)
            return [numbers.flatten() for numbers in found.values()]

        return _Counts(codes, self._code_count, self.given.world.device)

    def sees(self, name: Shown) -> Sequence[Consumer]:
        """The codes of the originals are counted."""
        return [self._counted] if name == "originals" else []

    def measure(self) -> Iterator[Score]:
        """Share and perplexity. Collective: every rank, same order."""
        counts = self._counted.counts
        self.given.world.sum_(counts)
        usage, perplexity = of_counts(counts)
        seen = int(counts.sum())
        protocol: dict[str, Any] = {"codes": len(counts), "codes_of_all_images": seen}
        if seen < FEW * len(counts):
            protocol["warning"] = (
                f"all images together have {seen:,} codes, few beside the {len(counts):,} of the "
                "codebook; more images would use more of it"
            )
        yield Score("codebook_usage", usage, None, {"unit": "share", **protocol})
        yield Score("codebook_perplexity", perplexity, None, protocol)


class _Counts:
    """Counts codes: int64 (K,) on the device."""

    def __init__(
        self, codes: Callable[[int, Tensor], list[Tensor]], count: int, device: torch.device
    ) -> None:
        """codes: from the number of the first image, and levels (N, C, H, W), to numbers of codes.
        count: K."""
        import torch

        self._codes = codes
        self.counts = torch.zeros(count, dtype=torch.int64, device=device)

    def see(self, first: int, images: Tensor) -> None:
        """Adds a batch."""
        import torch

        with torch.no_grad():
            for numbers in self._codes(first, images):
                self.counts += torch.bincount(numbers, minlength=len(self.counts))


def of_counts(counts: Tensor) -> tuple[float, float]:
    """The share of codes that occur, and exp(-Σ p log p). counts: (K,), how often each occurs."""
    import torch

    shares = counts.double() / counts.sum()
    return (counts > 0).double().mean().item(), torch.special.entr(shares).sum().exp().item()
