"""Adapts classes that were written for ray_gen 0.1 to this version.

An objective of 0.1 had one `latent`, its own modules among `networks()`, and these methods:
`sample(networks, z, labels)`, `reconstruct(networks, images, labels)` and `encode(...)` to a pair.
A network of 0.1 reads its signature as an `ImageToVector` or a `VectorToImage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, ClassVar

from torch import Tensor, nn

from ray_gen.core import (
    ImageToVector,
    Networks,
    Noise,
    Noises,
    Posterior,
    Signature,
    VectorToImage,
)

Z = "z"
"""Name of the only latent of 0.1."""


def objective_of(given: Any) -> Any:
    """An objective of 0.1, adapted to this version. Anything else is returned unchanged."""
    if not hasattr(given, "latent") or hasattr(given, "latents"):
        return given
    names = [name for name in dir(given) if not name.startswith("_")]
    # Members go on the class: a protocol looks for them there.
    parts = {name: property(attrgetter(f"_old.{name}")) for name in names}
    parts |= {name: method for name, method in _OTHERWISE.items() if name in parts}
    own = {name: part for name, part in parts.items() if not hasattr(_Objective, name)}
    return type(type(given).__name__, (_Objective,), own)(given)


class _Objective:
    """Wraps an objective of 0.1. Inside, the objective calls its own methods, unchanged."""

    sampling_noise: ClassVar[Noises] = {}
    gives_probability = False

    def __init__(self, old: Any) -> None:
        self._old = old

    @property
    def averaged(self) -> tuple[str, ...]:
        """All networks and modules that are used after training."""
        return self._old.sampled_from

    @property
    def latents(self) -> Mapping[str, Noise]:
        """The only latent. Without a prior: the input of the decoder."""
        if self.has_prior:
            return {Z: self._old.latent}
        for signature in self.networks().values():
            if signature.form == "vector_to_map":
                return {Z: Noise(signature.input)}
        return {}

    @property
    def has_prior(self) -> bool:
        """Whether the objective has a latent to draw."""
        return self._old.latent is not None

    def networks(self) -> Mapping[str, Signature]:
        """Signatures of the networks that are built from the experiment."""
        return {name: of for name, of in self._old.networks().items() if isinstance(of, Signature)}

    def modules(self) -> Mapping[str, nn.Module]:
        """The objective's own modules."""
        return {name: of for name, of in self._old.networks().items() if isinstance(of, nn.Module)}

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """See `ray_gen.core.Objective`."""
        return self._old.sample(networks, latents[Z], labels)


def _reconstruct(
    self: Any,
    networks: Networks,
    images: Tensor,
    labels: Tensor | None,
    noise: Mapping[str, Tensor],
) -> Tensor:
    return self._old.reconstruct(networks, images, labels)


def _encode(
    self: Any, networks: Networks, images: Tensor, labels: Tensor | None
) -> Mapping[str, Posterior]:
    return {Z: Posterior(*self._old.encode(networks, images, labels))}


_OTHERWISE: dict[str, Any] = {"reconstruct": _reconstruct, "encode": _encode}
"""Optional methods. Their arguments or results were different in 0.1."""


def signature_of(signature: Signature) -> Signature:
    """The same signature. If 0.1 knew its form, it has the attribute names of 0.1."""
    if signature.conditions or signature.label_numbers or signature.reconstructs:  # since 0.2
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
