"""`networks`: an architecture for each network that the objective names.

Every architecture comes in two directions, which the objective's signature chooses: image to vector
(encoders, discriminators) and vector to image (decoders, generators).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ray_gen.experiment.base import Component

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


class NetworkSettings(Component):
    """What every architecture shares."""

    def size_problem(self, height: int, width: int) -> str | None:
        """Why this architecture cannot do images of this size, or None."""
        return None


class MlpNetwork(NetworkSettings):
    """Fully connected layers; images of any shape."""

    targets: ClassVar[Mapping[str, str]] = {
        "image_to_vector": "ray_gen.networks.mlp:MlpEncoder",
        "vector_to_image": "ray_gen.networks.mlp:MlpDecoder",
    }
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
        "image_to_vector": "ray_gen.networks.conv:ConvEncoder",
        "vector_to_image": "ray_gen.networks.conv:ConvDecoder",
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
        "image_to_vector": "ray_gen.networks.dcgan:DcganDiscriminator",
        "vector_to_image": "ray_gen.networks.dcgan:DcganGenerator",
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
