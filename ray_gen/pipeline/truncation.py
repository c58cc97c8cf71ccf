"""Networks whose generator moves its styles towards their mean, or takes styles instead of z."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import SupportsFloat

from torch import Tensor, nn

from ray_gen.core import Networks, Noise, Styled
from ray_gen.errors import Refused
from ray_gen.pipeline.arguments import real_number


def has_styles(networks: Networks) -> bool:
    """Whether one of the networks has styles, so that a truncation is of these and not of z."""
    return any(isinstance(network, Styled) for network in networks.values())


def psi(truncation: SupportsFloat) -> float:
    """The ψ of styles: mean + ψ (style - mean)."""
    number = real_number(truncation, "truncation")
    if not (math.isfinite(number) and number >= 0.0):
        raise Refused(
            f"truncation: {number:g} is not a share of the way from the mean style; set 0 to 1 "
            "(0.7 is usual, 1 changes nothing)"
        )
    return number


def truncated(networks: Networks, truncation: float) -> Networks:
    """The same networks; those with styles move them to mean + truncation (style - mean)."""
    return _replaced(networks, lambda network: _Truncated(network, truncation))


def from_styles(networks: Networks) -> Networks:
    """The same networks; those with styles take styles (N, L, W) in place of z (N, D)."""
    return _replaced(networks, _FromStyles)


def _replaced(networks: Networks, of: Callable[[nn.Module], nn.Module]) -> Networks:
    return nn.ModuleDict(
        {
            name: of(network) if isinstance(network, Styled) else network
            for name, network in networks.items()
        }
    )


class _Of(nn.Module):
    """Stands for a generator with styles. Has its noise."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.training = generator.training

    @property
    def noise(self) -> Mapping[str, Noise]:
        """The generator's."""
        return getattr(self.generator, "noise", {})

    @property
    def styled(self) -> Styled:
        """The generator."""
        assert isinstance(self.generator, Styled)
        return self.generator


class _Truncated(_Of):
    def __init__(self, generator: nn.Module, truncation: float) -> None:
        super().__init__(generator)
        self._truncation = truncation

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, noise: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """z: (N, D) to images (N, C, H, W)."""
        given = noise or {}
        styles = self.styled.styles(z, labels, given, self._truncation)
        return self.styled.synthesize(styles, given)


class _FromStyles(_Of):
    def forward(
        self,
        styles: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """styles: (N, L, W) to images (N, C, H, W)."""
        return self.styled.synthesize(styles, noise or {})
