"""Fréchet Inception Distance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.metric import FeatureMetric
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding
    from ray_gen.evaluation.moments import Moments

FEW_IMAGES = 10_000
"""With fewer images in a set, the protocol warns of the bias."""


class Fid(FeatureMetric[Settings]):
    """`fid`: the Fréchet distance of features, see `frechet_distance`."""

    scores = {"fid": "lower"}
    needs = frozenset({"moments"})

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """On the device of the moments. It has no spread."""
        assert generated.moments is not None and reference.moments is not None
        yield next(iter(self.scores)), frechet_distance(generated.moments, reference.moments), None

    def protocol(self) -> Mapping[str, Any]:
        """A warning, if a set has few images."""
        generated, reference = (len(self.given.sets[name]) for name in self.sides)
        warning = bias_warning(generated, reference, self.sides)
        return {} if warning is None else {"warning": warning}


def frechet_distance(generated: Moments, reference: Moments) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians with these moments.

        ‖μ − ν‖² + Tr(Σ + Γ − 2 (Σ Γ)^½)

    Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash
    equilibrium", equation 6. The moments are float64, (D,) and (D, D), of at least two vectors. In
    [0, ∞), lower is better, 0 for equal moments.

    Tr (Σ Γ)^½ is the sum of the singular values of A^T B, for any A A^T = Σ and B B^T = Γ. The
    usual square roots of the eigenvalues of Σ Γ turn the rounding error ε of a zero eigenvalue into
    √ε. With fewer images than features, many eigenvalues are zero.
    """
    import torch

    mean = (generated.mean - reference.mean).square().sum()
    first, second = generated.covariance, reference.covariance
    root = torch.linalg.svdvals(_root(first).T @ _root(second)).sum()
    return max(0.0, (mean + first.trace() + second.trace() - 2 * root).item())


def _root(covariance: Tensor) -> Tensor:
    """A with A A^T = Σ, both (D, D)."""
    import torch

    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def bias_warning(
    generated: int, reference: int, sides: Sequence[str] = ("generated", "reference")
) -> str | None:
    """A warning for the protocol if a set has fewer than 10,000 images, else None. sides: what the
    two sets are.

    Chong and Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them":
    the expectation of FID falls as the number of images rises, and how much depends on the model.
    """
    if min(generated, reference) >= FEW_IMAGES:
        return None
    here = f"{generated} {sides[0]} and {reference} {sides[1]}"
    return f"biased: FID falls with more images; here {here}; compare only equal counts"
