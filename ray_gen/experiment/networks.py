"""`networks`: an architecture for each network that the objective names.

What a network maps to what, the objective says: a map to a vector (encoders, discriminators), a
vector to a map (decoders, generators), a map to a map, with conditions. An architecture says which
of these it can do, and under which classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ray_gen.experiment.settings import Component

_STRIDED_SIZES = "4·2^n from 8 up (8, 16, 32, 64, …) or 28"


def _strided_problem(height: int, width: int) -> str | None:
    """Why strided (de)convolutions from a 4 x 4 or 7 x 7 map cannot make this size, or None."""
    if height == width and height == 28:
        return None
    if height == width and height >= 8 and height & (height - 1) == 0:
        return None
    return (
        f"makes square images of {_STRIDED_SIZES} pixels, and data.image_size is {height} x {width}"
    )


def _in_words(form: str) -> str:
    """ "map_to_vector" as "a map to a vector"."""
    words = {"array": "an array", "several": "several outputs"}
    return " to ".join(words.get(part, f"a {part}") for part in form.split("_to_"))


class NetworkSettings(Component):
    """What every architecture shares. `targets` has a class for each form of signature that it can
    do (`ray_gen.core.Signature.form`), or one for "any"."""

    takes_conditions: ClassVar[bool] = False
    """Whether it takes other inputs than labels."""

    def target_for(self, form: str) -> str:
        """The class for a form of signature that it can do."""
        return self.targets.get(form) or self.targets["any"]

    def form_problem(self, form: str, conditions: Sequence[str]) -> str | None:
        """Why it cannot do such a signature, and what can; None if it can."""
        kind = getattr(self, "kind", "custom")
        if form not in self.targets and "any" not in self.targets:
            can = " or ".join(map(_in_words, self.targets))
            return (
                f"{kind} maps {can}, and the objective asks for {_in_words(form)}; take mlp, or a "
                "class of your own (kind: custom)"
            )
        if conditions and not self.takes_conditions:
            return (
                f"{kind} takes labels and no {' or '.join(conditions)}, which the objective "
                "gives; take mlp, or a class of your own (kind: custom)"
            )
        return None

    def size_problem(self, height: int, width: int) -> str | None:
        """Why this architecture cannot do images of this size, or None."""
        return None


class MlpNetwork(NetworkSettings):
    """Fully connected layers: anything to anything, conditions joined to the input."""

    targets: ClassVar[Mapping[str, str]] = {"any": "ray_gen.networks.mlp:Mlp"}
    takes_conditions: ClassVar[bool] = True
    kind: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[PositiveInt, ...] = (400,)
    """Widths of the hidden layers, from input to output."""
    activation: Literal["relu", "leaky_relu", "tanh"] = "relu"
    """Between layers; leaky_relu has slope 0.2."""
    initial_weights: Literal["default", "glorot"] = "default"
    """default: torch's, uniform within 1/√inputs, biases too. glorot: uniform within
    √(6 / (inputs + outputs)) (Glorot and Bengio 2010, eq. 16), biases 0: for tanh."""
    label_size: PositiveInt = 32
    """Length of the learned vector that stands for a label, in conditional models."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""


class ConvNetwork(NetworkSettings):
    """Strided convolutions without normalisation, for VAEs: 4 x 4 kernels, stride 2, down to 4 x 4
    (7 x 7 for 28 x 28), and the mirror image."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.conv:ConvEncoder",
        "vector_to_map": "ray_gen.networks.conv:ConvDecoder",
    }
    kind: Literal["conv"] = "conv"
    width: PositiveInt = 32
    """Channels at the highest resolution; doubled at every halving."""
    label_size: PositiveInt = 32
    """Length of the learned vector that stands for a label in a conditional decoder."""

    def size_problem(self, height: int, width: int) -> str | None:
        """Square powers of two from 8 up, and 28."""
        return _strided_problem(height, width)


class DcganNetwork(NetworkSettings):
    """The generator and discriminator of DCGAN (Radford et al. 2016)."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.dcgan:DcganDiscriminator",
        "vector_to_map": "ray_gen.networks.dcgan:DcganGenerator",
    }
    kind: Literal["dcgan"] = "dcgan"
    width: PositiveInt = 64
    """Channels at the highest resolution; doubled at every halving (64: 64, 128, 256, 512)."""
    batch_norm: bool = True
    """As in the paper. R1 is often better without it in the discriminator."""
    label_size: PositiveInt = 32
    """Length of the learned vector that stands for a label in a conditional generator."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""

    def size_problem(self, height: int, width: int) -> str | None:
        """Square powers of two from 8 up, and 28."""
        return _strided_problem(height, width)


class CustomNetwork(NetworkSettings):
    """A class of your own, called as `Name(signature, **options)`; signatures: ray_gen.core."""

    kind: Literal["custom"] = "custom"
    target: str = Field(pattern=r"^[\w.]+:\w+$")
    """package.module:Name, importable on every node."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments."""

    def arguments(self) -> dict[str, Any]:
        """The options."""
        return self.options


Network = Annotated[
    MlpNetwork | ConvNetwork | DcganNetwork | CustomNetwork, Field(discriminator="kind")
]
