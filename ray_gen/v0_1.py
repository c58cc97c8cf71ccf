"""Classes that were written for ray_gen 0.1, as this version takes them.

An objective of 0.1 had one `latent`, its own modules among `networks()`, and these methods:
`sample(networks, z, labels)`, `reconstruct(networks, images, labels)` and `encode(...)` to a pair.
A network of 0.1 reads its signature as an `ImageToVector` or a `VectorToImage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ray_gen.core import (
    ImageToVector,
    Networks,
    Noise,
    Noises,
    Posterior,
    Shape,
    Signature,
    VectorToImage,
)

Z = "z"
"""What the one latent of 0.1 is called."""


def objective_of(given: Any) -> Any:
    """An objective of 0.1 in today's form; anything else as it is."""
    if not hasattr(given, "latent") or hasattr(given, "latents"):
        return given
    kind = type(given)
    more = {name: method for name, method in _MORE.items() if hasattr(kind, name)}
    adapted = object.__new__(type(kind.__name__, (_Objective, kind), more))
    adapted.__dict__ = given.__dict__
    return adapted


class _Objective:
    """Stands before the class of 0.1, whose own methods it calls."""

    latent: Noise | None
    sampled_from: tuple[str, ...]
    sampling_noise: ClassVar[Noises] = {}
    gives_probability = False

    @property
    def averaged(self) -> tuple[str, ...]:
        """All of them."""
        return self.sampled_from

    @property
    def latents(self) -> Mapping[str, Noise]:
        """The one latent, or where there is no prior what its decoder takes."""
        if self.latent is not None:
            return {Z: self.latent}
        shape = self._decoded_shape()
        return {} if shape is None else {Z: Noise(shape)}

    @property
    def has_prior(self) -> bool:
        """Whether there is a latent to draw."""
        return self.latent is not None

    def _decoded_shape(self) -> Shape | None:
        for signature in self.networks().values():
            if signature.form == "vector_to_map":
                return signature.input
        return None

    def networks(self) -> Mapping[str, Signature]:
        """Those that are built from the experiment."""
        return {name: of for name, of in self._all().items() if isinstance(of, Signature)}

    def modules(self) -> Mapping[str, nn.Module]:
        """Those that the objective brings."""
        return {name: of for name, of in self._all().items() if isinstance(of, nn.Module)}

    def _all(self) -> Mapping[str, Signature | nn.Module]:
        old: Any = super()
        return old.networks()

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """See `Objective`."""
        old: Any = super()
        return old.sample(networks, latents[Z], labels)


def _reconstruct(
    self: Any,
    networks: Networks,
    images: Tensor,
    labels: Tensor | None,
    noise: Mapping[str, Tensor],
) -> Tensor:
    return super(_Objective, self).reconstruct(networks, images, labels)  # pyright: ignore


def _encode(
    self: Any, networks: Networks, images: Tensor, labels: Tensor | None
) -> Mapping[str, Posterior]:
    mean, log_variance = super(_Objective, self).encode(  # pyright: ignore
        networks, images, labels
    )
    return {Z: Posterior(mean, log_variance)}


_MORE: dict[str, Any] = {"reconstruct": _reconstruct, "encode": _encode}


def signature_of(signature: Signature) -> Signature:
    """The same signature, with the names of 0.1 where that knew its form."""
    if signature.conditions:
        return signature
    if signature.form == "map_to_vector":
        channels, height, width = signature.input
        (size,) = signature.output_shape
        return ImageToVector((channels, height, width), size, signature.label_count)
    if signature.form == "vector_to_map":
        (size,), (channels, height, width) = signature.input, signature.output_shape
        return VectorToImage(
            size, (channels, height, width), signature.label_count, signature.activation
        )
    return signature
