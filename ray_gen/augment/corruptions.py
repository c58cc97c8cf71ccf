"""What adaptive augmentation does to images besides geometry and colour: frequency bands, holes."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.augment.warp import reflected

_HALF_BAND = {-3: -1 / 32, -1: 9 / 32, 0: 16 / 32, 1: 9 / 32, 3: -1 / 32}
"""A low-pass filter up to half of the frequencies: the autocorrelation of the wavelet sym2."""


def bands(size: int) -> Tensor:
    """Matrices that split a line into four bands of frequencies, as shares of the highest: up to
    1/8, 1/4, 1/2 and 1. float64 (4, size, size). Their sum is the identity."""
    rest = torch.eye(size, dtype=torch.float64)
    found = []
    for distance in (1, 2, 4):
        low = _low_pass(size, distance) @ rest
        found.append(rest - low)
        rest = low
    return torch.stack([rest, *reversed(found)])


def _low_pass(size: int, distance: int) -> Tensor:
    """The half-band filter on every `distance`-th pixel of a line that is reflected at its ends."""
    pixel = torch.arange(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for tap, value in _HALF_BAND.items():
        values = torch.full((size,), value, dtype=torch.float64)
        matrix.index_put_((pixel, reflected(pixel + tap * distance, size)), values, accumulate=True)
    return matrix


def banded(images: Tensor, gains: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """Scales the bands of images (N, C, H, W) along both axes. gains: (N, 4); the matrices: from
    `bands`, (4, H, H) and (4, W, W)."""
    rows = torch.einsum("nb,bij->nij", gains, of_rows)[:, None]
    columns = torch.einsum("nb,bij->nij", gains, of_columns)[:, None]
    return rows @ images @ columns.transpose(2, 3)


def cut(images: Tensor, on: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sets a rectangle with half the sides to 0 where `on`. Its centre x, y: (N,), in sides. A part
    of it may lie outside."""
    _, _, height, width = images.shape
    rows = (_middles(height, y) - y[:, None]).abs() < 0.25
    columns = (_middles(width, x) - x[:, None]).abs() < 0.25
    hole = rows[:, None, :, None] & columns[:, None, None, :] & on[:, None, None, None]
    return images.masked_fill(hole, 0.0)


def _middles(size: int, like: Tensor) -> Tensor:
    """The centres of pixels, in sides: (size,)"""
    return (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size
