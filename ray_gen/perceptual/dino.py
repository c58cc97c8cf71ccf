"""The distance of the tokens of DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.perceptual.features import FIELD, FeatureDistance, ssim_instead, unit_vectors
from ray_gen.perceptual.frozen import Frozen
from ray_gen.vit import VisionTransformer, of_dino
from ray_gen.weights import digest_of, downloaded, read_weights

LARGEST_SIDE = 512
"""Pixels of the longer side that the network sees if `side` is not set."""


def url_of(size: str) -> str:
    """Where the weights of DINOv2's ViT-S/14, ViT-B/14 or ViT-L/14 are published. size: "s", "b"
    or "l"."""
    name = f"dinov2_vit{size}14"
    return f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth"


class DinoDistance(FeatureDistance):
    """mean (t̂(x) - t̂(y))² over blocks, tokens and numbers, with t̂ = t / √(‖t‖² + ε): the tokens t
    (class token and patches) after each block of a DINOv2 (Oquab et al. 2024), scaled to length 1.

    The sides of images become multiples of a patch, 14 pixels (bicubic, antialiased). Usual weights
    are 250 to 1000, because the mean is also over the numbers of a token.
    """

    def __init__(
        self,
        *,
        channels: int,
        opacity: bool,
        size: str = "b",
        side: int | None = None,
        weights: str | None = None,
        digest: str | None = None,
        field: str = FIELD,
    ) -> None:
        """size: "s", "b" or "l". side: pixels of the longer side that the network sees; None: as it
        is, but at most 512. weights: a file with the published state dict of DINO or DINOv2: ViT-S,
        B or L, without registers. None: that of `size`, downloaded on first use. digest: of the
        weights, as `description` says it. Raises Refused."""
        super().__init__("dino", channels=channels, opacity=opacity, field=field)
        self._size, self._side, self._weights, self._digest = size, side, weights, digest

    def load(self) -> None:
        """Read the network's weights. Raises Refused."""
        field, url = f"{self._field}.weights", url_of(self._size)
        file = self._weights or downloaded(url, field, instead=ssim_instead(field))
        path = Path(file).expanduser()
        tensors = read_weights(path, field)
        digest = digest_of(tensors)
        if self._digest not in (None, digest):
            raise Refused(
                f"{self._field}.digest: the weights have the digest {digest}, and not "
                f"{self._digest}; give the file that the run began with ({field})"
            )
        network = of_dino(tensors, "a ViT-S, B or L of DINO or DINOv2 without registers", field)
        self._patch, depth = network.patch, len(network.blocks)
        self.network = Frozen(network)
        whose = "a file" if self._weights else f"DINOv2's ViT-{self._size.upper()}/14"
        self.description = (
            f"dino, the tokens of {depth} blocks of {whose}, its weights have the digest {digest}"
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """Unit vectors, (N, T, D) for each block."""
        height, width = images.shape[2:]
        longer = max(height, width)
        wanted = min(longer, LARGEST_SIDE) if self._side is None else self._side
        sides = [
            max(1, (side * wanted + longer * self._patch // 2) // (longer * self._patch))
            for side in (height, width)
        ]
        size = [count * self._patch for count in sides]
        if [height, width] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        network = self.network.network
        assert isinstance(network, VisionTransformer)
        return [unit_vectors(tokens, axis=2) for tokens in network.tokens(images)]

    def apart(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        """Mean over blocks, tokens and numbers."""
        each = zip(wanted, found, strict=True)
        blocks = [(one - other).square().mean((1, 2)) for one, other in each]
        return torch.stack(blocks).mean(0)
