"""A prior that is fitted after training: a mixture of Gaussians, fitted to an encoder's outputs.

Ex-post density estimation (Ghosh et al. 2020, "From variational to deterministic autoencoders",
section 4): the decoder has learnt the region of the encodings, and N(0, I) covers this region only
in part. With this prior, one can sample from a plain autoencoder too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.errors import Refused
from ray_gen.noise import draw_one, key_of
from ray_gen.pipeline.latent import truncated
from ray_gen.pipeline.origin import Origin, read, write

FORMAT = "ray_gen mixture 1"
_TENSORS = ("weights", "means", "cholesky")


@dataclass(frozen=True, eq=False)
class Mixture:
    """p(z) = Σ_k w_k N(z; μ_k, L_k L_kᵀ), in float64 on the CPU: a prior to sample a model with.

    mixture = pipeline.fit_mixture(images, components=10)
    pipeline.sample(64, prior=mixture)
    """

    weights: Tensor
    """w: (K,), positive; their sum is 1."""
    means: Tensor
    """μ: (K, D)."""
    cholesky: Tensor
    """L: (K, D, D), lower triangular."""
    origin: Origin | None = None
    """None: unknown. The mixture is then accepted for any run."""

    def __repr__(self) -> str:
        return f"Mixture(components={len(self.weights)}, latent_size={self.latent_size})"

    @property
    def latent_size(self) -> int:
        """D."""
        return self.means.shape[1]

    @classmethod
    def fit(
        cls,
        latents: Tensor | Iterable[Tensor],
        components: int = 10,
        seed: int = 0,
        origin: Origin | None = None,
    ) -> Mixture:
        """Fit a mixture by expectation maximisation, started from k-means, with full covariances
        (scikit-learn).

        latents: (N, D), or an iterable of parts. origin: the run that encoded them. Equal arguments
        give equal mixtures on one machine and version of scikit-learn. Raises Refused without
        scikit-learn, and for fewer latents than components.
        """
        if hasattr(latents, "__array__"):  # a tensor or a NumPy array
            latents = torch.as_tensor(latents)
        if not isinstance(latents, Tensor):
            parts = [torch.as_tensor(part) for part in latents]
            latents = torch.cat(parts) if parts else torch.empty(0, 1)
        if not 1 <= components <= len(latents):
            raise Refused(
                f"components: {components} cannot be fitted to {len(latents)} images; use at "
                "least one component, and many images for each component"
            )
        try:
            from sklearn.mixture import GaussianMixture
        except ImportError as error:
            raise Refused(
                "prior: fitting a mixture needs scikit-learn, and it is not installed: pip install "
                "scikit-learn (sampling from a saved mixture does not need it)"
            ) from error
        numbers = latents.detach().flatten(1).double().cpu().numpy()
        try:
            fitted = GaussianMixture(components, random_state=seed % 2**32).fit(numbers)
        except ValueError as error:
            raise Refused(f"components: {components} cannot be fitted: {error}") from error
        return cls(
            weights=torch.from_numpy(fitted.weights_),
            means=torch.from_numpy(fitted.means_),
            cholesky=torch.linalg.cholesky(torch.from_numpy(fitted.covariances_)),
            origin=origin,
        )

    def check_origin(self, run: Origin) -> None:
        """Raises Refused if the mixture was fitted to another run. Equal weights mean the same run,
        whatever its name is."""
        if self.origin is None or self.origin.weights == run.weights:
            return
        theirs = (
            f"other weights of {run.run} than these (another checkpoint, or other --weights)"
            if self.origin.run == run.run
            else f"{self.origin.run}, but this run is {run.run}"
        )
        raise Refused(
            f"prior: the mixture was fitted to {theirs}; fit a mixture to the weights that you "
            "sample from"
        )

    def draw(self, seed: int, indices: Tensor, truncation: float | None = None) -> Tensor:
        """Latents by their numbers: int64 (N,) to float32 (N, D), a function of (seed, number).

        truncation: of the normal numbers, before a component scales them; see `latent.truncated`.
        """
        indices, uniform = indices.cpu(), Noise((1,), "uniform")
        which = draw_one(uniform, key_of(seed, "mixture", "component"), indices)
        bounds = self.weights.cumsum(0)[:-1]  # the last component takes the rounding error
        chosen = torch.searchsorted(bounds, which[:, 0].double(), right=True)
        normal = Noise((self.latent_size,))
        epsilon = draw_one(normal, key_of(seed, "mixture", "z"), indices)
        moved = truncated(epsilon.double(), normal, truncation)
        # Row by row, so that no latent depends on how many are drawn. A matrix product may round a
        # row differently if the number of rows changes.
        spread = (self.cholesky[chosen] * moved[:, None]).sum(dim=2)
        return (self.means[chosen] + spread).float()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        write(Path(path), tensors, {"format": FORMAT}, self.origin)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mixture:
        """Read a file that `save` wrote. Raises Refused for any other file. Nothing is
        unpickled."""
        path = Path(path).expanduser()
        found, metadata = read(
            path,
            missing="there is no such file; `Mixture.save` writes one",
            unreadable="is not a mixture that can be read",
            remedy="use a file that `Mixture.save` wrote",
        )
        if metadata.get("format") != FORMAT or set(found) != set(_TENSORS):
            raise Refused(
                f"{path}: is not a mixture of the format {FORMAT!r}; use a file that this version "
                "of ray_gen wrote"
            )
        if found["means"].ndim != 2:
            raise Refused(f"{path}: is damaged in 'means'; fit and save the mixture again")
        count, size = found["means"].shape
        shapes = {"weights": (count,), "means": (count, size), "cholesky": (count, size, size)}
        for name, shape in shapes.items():
            if tuple(found[name].shape) != shape or not bool(found[name].isfinite().all()):
                raise Refused(f"{path}: is damaged in {name!r}; fit and save the mixture again")
        return cls(
            **{name: found[name].double() for name in _TENSORS},
            origin=Origin.of(metadata),
        )
