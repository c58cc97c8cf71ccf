"""`networks`: an architecture for each network that the objective names.

The objective defines the input and output of each network: a map to a vector (encoders,
discriminators), a vector to a map (decoders, generators), or a map to a map, with conditions. An
architecture lists the forms that it supports and the class for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ray_gen.networks.sizes import size_problem
from ray_gen.settings import Component


def _in_words(form: str) -> str:
    """ "map_to_vector" as "a map to a vector"."""
    words = {"array": "an array", "several": "several outputs"}
    return " to ".join(words.get(part, f"a {part}") for part in form.split("_to_"))


class NetworkSettings(Component):
    """Settings that all architectures share. `targets` maps each supported form of signature
    (`ray_gen.core.Signature.form`) to a class, or "any" to one class."""

    takes_conditions: ClassVar[bool] = False
    """Whether it takes other conditions than labels."""

    def target_for(self, form: str) -> str:
        """The class for a supported form of signature."""
        return self.targets.get(form) or self.targets["any"]

    def form_problem(self, form: str, conditions: Sequence[str]) -> str | None:
        """Why it does not support such a signature, and what to use instead. None if it does."""
        kind = getattr(self, "kind", "custom")
        if form not in self.targets and "any" not in self.targets:
            can = " or ".join(map(_in_words, self.targets))
            return (
                f"{kind} maps {can}, but the objective needs {_in_words(form)}; use mlp, or your "
                "own class (kind: custom)"
            )
        if conditions and not self.takes_conditions:
            return (
                f"{kind} takes labels but not {' or '.join(conditions)}, and the objective gives "
                f"{' and '.join(conditions)}; use mlp, or your own class (kind: custom)"
            )
        return None

    def size_problem(self, height: int, width: int) -> str | None:
        """Why this architecture does not support images of this size. None if it does."""
        return None


class _ConvolutionalSettings(NetworkSettings):
    """Of architectures that halve an image down to a start map, or double one up."""

    def size_problem(self, height: int, width: int) -> str | None:
        """Why images of this size have no start map, and the nearest that do. None if they do."""
        return size_problem(height, width)


class MlpNetwork(NetworkSettings):
    """Fully connected layers. Input and output may have any shape. Conditions are joined to the
    input."""

    targets: ClassVar[Mapping[str, str]] = {"any": "ray_gen.networks.mlp:Mlp"}
    takes_conditions: ClassVar[bool] = True
    kind: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[PositiveInt, ...] = (400,)
    """Widths of the hidden layers, from input to output."""
    activation: Literal["relu", "leaky_relu", "tanh"] = "relu"
    """The function between the layers; leaky_relu has slope 0.2."""
    initial_weights: Literal["default", "glorot"] = "default"
    """How weights and biases begin. default: torch's, uniform within ±1/√inputs. glorot: weights
    uniform within ±√(6 / (inputs + outputs)) (Glorot and Bengio 2010, eq. 16), biases 0: for
    tanh."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label, in conditional models."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""


class ConvNetwork(_ConvolutionalSettings):
    """Strided convolutions without normalisation, for VAEs: 4 x 4 kernels, stride 2, down to 4 x 4
    (7 x 7 for 28 x 28, 6 x 10 for 96 x 160). The decoder mirrors the encoder."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.conv:ConvEncoder",
        "vector_to_map": "ray_gen.networks.conv:ConvDecoder",
    }
    kind: Literal["conv"] = "conv"
    width: PositiveInt = 32
    """Channels at the highest resolution; they double at each halving of the size."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label, in a conditional decoder."""


class DcganNetwork(_ConvolutionalSettings):
    """The generator and discriminator of DCGAN (Radford et al. 2016)."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.dcgan:DcganDiscriminator",
        "vector_to_map": "ray_gen.networks.dcgan:DcganGenerator",
    }
    kind: Literal["dcgan"] = "dcgan"
    width: PositiveInt = 64
    """Channels at the highest resolution; they double at each halving of the size (64: 64, 128,
    256, 512)."""
    batch_norm: bool = True
    """Whether there is BatchNorm, as in the paper. With R1, a discriminator is often better without
    it."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label, in a conditional generator."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""


class CustomNetwork(NetworkSettings):
    """Your own class, called as `Name(signature, **options)`. For signatures see ray_gen.core."""

    kind: Literal["custom"] = "custom"
    target: str = Field(pattern=r"^[\w.]+:\w+$")
    """The class, as package.module:Name. Every node must be able to import it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    def arguments(self) -> dict[str, Any]:
        """The options."""
        return self.options


Network = Annotated[
    MlpNetwork | ConvNetwork | DcganNetwork | CustomNetwork, Field(discriminator="kind")
]
