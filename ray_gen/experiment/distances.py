"""How far a reconstruction is from its image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ray_gen.settings import Settings, free


class L1Distance(Settings):
    """The mean absolute difference of pixels, for images in [-1, 1]."""

    kind: Literal["l1"] = "l1"


class Vgg16Distance(Settings):
    """Squared differences of the features that a VGG16 trained on ImageNet has at each position,
    scaled to length 1 (Zhang et al. 2018, with equal weights). The features of five layers are
    compared. Reconstructions must have at least 16 pixels."""

    kind: Literal["vgg16"] = "vgg16"
    weights: str | None = free(None)
    """A file with the state dict of torchvision's vgg16. Every node must have it. None: downloaded
    on first use (528 MB)."""
    digest: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    """The digest that the weights must have, as `ray-gen train --check` prints it. None: any."""


Distance = Annotated[L1Distance | Vgg16Distance, Field(discriminator="kind")]
