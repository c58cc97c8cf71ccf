"""An affine warp of images: linear in the images, twice differentiable, the same bits in each run.

Images are sampled bilinearly at twice their resolution. Coordinates outside the image are
reflected at the centres of its outermost pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_UP = (-0.09127176311425016, -0.05754352622850029, 0.5912717631142503)
_UP_FILTER = (*_UP, 1.1150870524570007, *_UP[::-1])
_DOWN = (0.02674875741081004, -0.01686411844287496, -0.07822326652899003, 0.26686411844287505)
_DOWN_FILTER = (*_DOWN, 0.6029490182363602, *_DOWN[::-1])
"""The low-pass filters 9/7 of Cohen, Daubechies and Feauveau (1992), as in JPEG 2000. Up and then
down is the identity. Both are symmetric about a pixel, so mirrored and reflected images stay
exact. Karras et al. 2020 use sym6, which is not symmetric: there, a mirrored image is moved by
almost half a pixel."""
_MARGIN = len(_DOWN_FILTER) // 2
"""Samples on each side that the filter sees beyond the image, at twice the resolution."""


def reflected(positions: Tensor, size: int) -> Tensor:
    """Whole positions on a line of `size` pixels that goes on as its own mirror image."""
    period = max(2 * (size - 1), 1)
    inside = positions % period
    return torch.minimum(inside, period - inside)


def doubling(size: int) -> Tensor:
    """The matrix that doubles the resolution of a line: float64 (2 size - 1, size). Sample 2i lies
    at pixel i."""
    reach = len(_UP_FILTER) // 2
    matrix = torch.zeros(2 * size - 1, size, dtype=torch.float64)
    for tap, value in enumerate(_UP_FILTER, -reach):
        samples = torch.arange(tap % 2, 2 * size - 1, 2)
        pixels = reflected((samples - tap) // 2, size)
        values = torch.full(pixels.shape, value, dtype=torch.float64)
        matrix.index_put_((samples, pixels), values, accumulate=True)
    return matrix


def halving(size: int) -> Tensor:
    """The matrix that halves the resolution of a line: float64 (size, 2 size - 1 + 2 margin)."""
    pixel = torch.arange(size)
    matrix = torch.zeros(size, 2 * size - 1 + 2 * _MARGIN, dtype=torch.float64)
    for tap, value in enumerate(_DOWN_FILTER):
        matrix[pixel, 2 * pixel + tap] = value
    return matrix


class Warp(nn.Module):
    """Warps each image by an affine map of its own. Built in float64; `to` gives it the type of the
    images."""

    rows_up: Tensor
    columns_up: Tensor
    rows_down: Tensor
    columns_down: Tensor
    y: Tensor
    x: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self._half = (max(width - 1, 1) / 2, max(height - 1, 1) / 2)
        for name, size, axis in (("rows", height, "y"), ("columns", width, "x")):
            self.register_buffer(f"{name}_up", doubling(size), persistent=False)
            self.register_buffer(f"{name}_down", halving(size), persistent=False)
            sample = torch.arange(-_MARGIN, 2 * size - 1 + _MARGIN, dtype=torch.float64)
            centred = (sample - (size - 1)) / 2
            self.register_buffer(axis, centred, persistent=False)

    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        """images: (N, C, H, W). maps: (N, 2, 3) from a place (x, y, 1) in the result to a place
        (x, y) in the image, in pixels from the centre. Returns (N, C, H, W)."""
        (a, b, c), (d, e, f) = (row.unbind(1) for row in maps.unbind(1))
        x, y = self.x[None, None, :], self.y[None, :, None]
        across = a[:, None, None] * x + (b[:, None, None] * y + c[:, None, None])
        down = d[:, None, None] * x + (e[:, None, None] * y + f[:, None, None])
        half_width, half_height = self._half
        # In units of half the image: -1 and 1 are the centres of the outermost pixels.
        places = torch.stack([across / half_width, down / half_height], dim=3)
        doubled = self.rows_up @ (images @ self.columns_up.t())
        sampled: Tensor = _sample(doubled, places)
        return self.rows_down @ (sampled @ self.columns_down.t())


# Bilinear samples as an operator of our own. The gradient of torch's own differs on a GPU in the
# last bits from run to run, and has no gradient. A linear map needs only itself and its adjoint for
# derivatives of any order. An autograd.Function would do, but torch.compile makes wrong second
# derivatives of it (torch 2.14).


@torch.library.custom_op(
    "ray_gen::sample", mutates_args=(), schema="(Tensor x, Tensor y) -> Tensor"
)
def _sample(images: Tensor, places: Tensor) -> Tensor:
    """images: (N, C, H, W). places: (N, P, Q, 2), x and y in [-1, 1]. Returns (N, C, P, Q)."""
    return F.grid_sample(images, places, "bilinear", "reflection", align_corners=True)


@torch.library.custom_op(
    "ray_gen::scatter",
    mutates_args=(),
    schema="(Tensor x, Tensor y, SymInt height, SymInt width) -> Tensor",
)
def _scatter(samples: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """The adjoint of `_sample`: adds each sample (N, C, P, Q) to the four pixels that it came from.
    Returns (N, C, height, width)."""
    if samples.is_cuda:
        return scattered_exactly(samples, places, height, width)
    like = samples.new_empty(()).expand(*samples.shape[:2], height, width)
    scatter = torch.ops.aten.grid_sampler_2d_backward.default
    return scatter(samples, like, places, 0, 2, True, [True, False])[0]


@_sample.register_fake
def _(images: Tensor, places: Tensor) -> Tensor:
    return images.new_empty(*images.shape[:2], *places.shape[1:3])


@_scatter.register_fake
def _(samples: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    return samples.new_empty(*samples.shape[:2], height, width)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.sides = inputs[0].shape[2:]


def _adjoint_of_sample(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:
    return _scatter(slopes, ctx.saved_tensors[0], *ctx.sides), None


def _adjoint_of_scatter(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None]:
    return _sample(slopes, ctx.saved_tensors[0]), None, None, None


_sample.register_autograd(_adjoint_of_sample, setup_context=_keep)
_scatter.register_autograd(_adjoint_of_scatter, setup_context=_keep)


_FRACTION = 2.0**44
"""Parts of an image's largest sample that a sum counts. 2^18 samples fit into one pixel."""


def scattered_exactly(samples: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """What `_scatter` returns, in sums of whole numbers: they do not depend on their order, which
    on a GPU changes from run to run. Their error is 2^-44 of an image's largest sample."""
    count, channels = samples.shape[:2]
    halves = places.new_tensor([(width - 1) / 2, (height - 1) / 2])
    x, y = ((places + 1) * halves).flatten(1, 2).unbind(2)  # (N, P·Q) each
    x, y = _folded(x, width), _folded(y, height)
    left, top = x.floor().clamp(max=width - 2), y.floor().clamp(max=height - 2)
    right_share, low_share = x - left, y - top
    first = (top * width + left).long()
    largest = samples.abs().amax((1, 2, 3), keepdim=True).flatten(2)  # (N, 1, 1)
    scale = _FRACTION / largest.double().clamp(min=torch.finfo(samples.dtype).tiny)
    values = samples.flatten(2).double() * scale
    sums = torch.zeros(count, channels, height * width, dtype=torch.int64, device=samples.device)
    for step, share in (
        (0, (1 - right_share) * (1 - low_share)),
        (1, right_share * (1 - low_share)),
        (width, (1 - right_share) * low_share),
        (width + 1, right_share * low_share),
    ):
        places_of = (first + step)[:, None].expand(-1, channels, -1)
        sums.scatter_add_(2, places_of, (values * share[:, None]).round().long())
    # NaN and infinity come back through `largest`.
    found = sums.double() / _FRACTION * largest.double()
    return found.to(samples.dtype).view(count, channels, height, width)


def _folded(places: Tensor, size: int) -> Tensor:
    """`reflected`, of any places."""
    period = 2.0 * (size - 1)
    inside = places.abs() % period
    return torch.minimum(inside, period - inside)
