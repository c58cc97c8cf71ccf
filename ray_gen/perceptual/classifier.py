"""The distance of what a classifier of torchvision makes of two images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.backbones import classifier
from ray_gen.errors import Refused
from ray_gen.perceptual.features import FIELD, FeatureDistance, as_maps
from ray_gen.perceptual.frozen import Frozen


class TorchvisionDistance(FeatureDistance):
    """mean (f(x) - f(y))² over the numbers of f: the logits of a classifier of torchvision, or the
    features before them.

    The logits of convnext_small are the perceptual loss of TiTok (Yu et al. 2024). Whole images are
    resized (antialiased) to the size that the classifier was made for, and normalised as its
    training images were. Reconstructions are not clamped.
    """

    def __init__(
        self,
        *,
        channels: int,
        opacity: bool,
        backbone: str,
        of: str = "logits",
        weights: str | None = None,
        digest: str | None = None,
        field: str = FIELD,
    ) -> None:
        """backbone: a name in torchvision.models. of: "logits" or "features". weights: a file with
        its state dict. None: torchvision's default weights, downloaded on first use. digest: of the
        weights, as `description` says it. Raises Refused."""
        super().__init__(
            f"torchvision's {backbone}", channels=channels, opacity=opacity, field=field
        )
        self._backbone, self._of, self._weights, self._digest = backbone, of, weights, digest

    def load(self) -> None:
        """Read the network's weights. Raises Refused."""
        name, field = self._backbone, self._field
        found = classifier(
            name, self._weights, field=f"{field}.backbone", weights_field=f"{field}.weights"
        )
        if self._digest not in (None, found.digest):
            raise Refused(
                f"{field}.digest: the weights of {name} have the digest {found.digest}, and not "
                f"{self._digest}; give the file that the run began with ({field}.weights)"
            )
        if self._of == "features":
            found.network.set_submodule(found.last, nn.Identity())
        self.network = Frozen(found.network)
        self.mean, self.std = as_maps(found.mean), as_maps(found.std)
        self._size, self._mode = found.size, found.mode
        self.description = (
            f"torchvision's {name} ({found.source}), its {self._of}, {self._size} x {self._size} "
            f"{self._mode}, its weights have the digest {found.digest}"
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """Logits or features, (N, D). Normalising commutes with resizing."""
        size = (self._size, self._size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode=self._mode, antialias=True)
        return [self.network(images)]

    def apart(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        """Mean over the numbers."""
        apart = found[0] - wanted[0]
        return apart.to(torch.promote_types(apart.dtype, torch.float32)).square().mean(1)
