"""PNG files of 16 bits a channel, through torchvision: Pillow keeps only 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode_png(data: bytes) -> NDArray[np.uint16]:
    """The values of a PNG file: uint16 (H, W, C)."""
    from torchvision.io import ImageReadMode, decode_image

    encoded = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    return decode_image(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
