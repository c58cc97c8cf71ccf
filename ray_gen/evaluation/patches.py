"""Sliced Wasserstein distance of patches at each scale. It needs no weights and no network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.core import ImageShape, Noise
from ray_gen.distributed import World
from ray_gen.evaluation.images import EvenlySpread, gathered
from ray_gen.evaluation.progress import Progress
from ray_gen.noise import draw_one, key_of, words

IMAGES = 16_384
"""Largest number of images of each set, as in the paper. RGB patches of a scale are then 1.2 GB."""
PATCHES, SIDE, DIRECTIONS, SMALLEST = 128, 7, 512, 16
"""Patches per image, side of a patch, number of directions, side of the smallest scale: as in the
paper's code."""

_AT_ONCE = 8
"""Directions at once: projections of 2 million patches on 8 directions take 67 MB per set."""
_BINOMIAL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def sliced_wasserstein(
    generated: Pictures, reference: Pictures, seed: int, world: World, progress: Progress
) -> dict[str, float]:
    """10³ times the sliced Wasserstein-1 distance of the patches of two sets of images, by scale.

        1 / 512 Σ_d W₁(A d, B d),     W₁(a, b) = mean |sort(a) − sort(b)|

    A, B: all patches of a set, one per row. d: random directions on the sphere. Karras et al. 2018,
    "Progressive growing of GANs", section 5, with the numbers of their code. Keys are scales, e.g.
    "32x32". In [0, ∞), lower is better, 0 for equal sets. Both sets have equally many images. The
    ranks divide the directions among themselves. Collective: every rank, same order.
    """
    assert generated.count == reference.count
    own = world.share(DIRECTIONS // _AT_ONCE)
    sums = torch.zeros(len(generated.scales), dtype=torch.float64, device=world.device)
    names = [f"{height}x{width}" for height, width in generated.scales]
    for scale, name in enumerate(names):
        first = generated.patches(scale, seed, world)
        second = reference.patches(scale, seed, world)
        directions = _directions(first.shape[1], scale, seed, world.device)
        for done, block in enumerate(own, 1):
            some = directions[:, block * _AT_ONCE : (block + 1) * _AT_ONCE]
            apart = _sorted((first @ some).T) - _sorted((second @ some).T)
            sums[scale] += apart.abs_().mean(1, dtype=torch.float64).sum()
            progress(done, len(own), f"sliced Wasserstein distance at {name}")
    world.sum_(sums)
    return dict(zip(names, (sums * (1e3 / DIRECTIONS)).tolist(), strict=True))


class Pictures:
    """A Consumer that keeps images as levels on the CPU: this rank's, and at most 16,384 over all
    ranks. Images up to 256x256 take less memory than their patches."""

    def __init__(self, shape: ImageShape, total: int, count: int, own: range) -> None:
        """shape: (channels, height, width). total: images of the pass. count: how many of them to
        keep. own: the numbers of those that this rank sees."""
        self.scales = scales_of(shape)
        self.size = shape[0] * SIDE**2
        self._spread = EvenlySpread(total, min(count, IMAGES), own)
        self._kept: list[Tensor] = []

    @property
    def count(self) -> int:
        """Number of images that all ranks keep together."""
        return self._spread.count

    def see(self, first: int, images: Tensor) -> None:
        """Keeps chosen images of a batch, uint8 or uint16 (N, C, H, W). first: number of its first
        image."""
        chosen = self._spread.chosen(first, images)
        if len(chosen):
            self._kept.append(chosen.cpu())

    def patches(self, scale: int, seed: int, world: World) -> Tensor:
        """128 random patches of each image at one scale: float32 (images * 128, C * 49) on the
        device. Over all patches, each channel has mean 0 and standard deviation 1.

        Their places depend only on the seed and on the row of the image. So a set has distance 0
        from itself, and the number of workers and the batch size change no value.
        Collective: every rank, same order.
        """
        own = range(self._spread.rows.start * PATCHES, self._spread.rows.stop * PATCHES)
        values = torch.empty(len(own), self.size)
        channels = self.size // SIDE**2
        sums = torch.zeros(2, channels, dtype=torch.float64, device=world.device)
        done = 0
        for images in self._kept:
            floats = images.to(world.device).float()
            rows = torch.arange(len(images), device=world.device) + own.start // PATCHES + done
            part = _patches(laplacian(floats, scale, len(self.scales)), rows, scale, seed)
            wide = part.double()
            sums += torch.stack([wide.sum((0, 1, 3)), wide.square().sum((0, 1, 3))])
            values[done * PATCHES : (done + len(images)) * PATCHES] = part.reshape(-1, self.size)
            done += len(images)
        world.sum_(sums)
        mean, squares = sums / (self.count * PATCHES * SIDE**2)
        deviation = (squares - mean.square()).clamp(min=0).sqrt()
        deviation = torch.where(deviation > 0, deviation, 1.0)  # images of one colour
        by_channel = values.unflatten(1, (channels, SIDE**2))
        by_channel.sub_(mean.float().cpu()[:, None]).div_(deviation.float().cpu()[:, None])
        return gathered(values, own, self.count * PATCHES, world).to(world.device)


def scales_of(shape: ImageShape) -> list[tuple[int, int]]:
    """(height, width) of each scale of the pyramid, from the image's size down to 16 pixels. shape:
    (channels, height, width), at least as large as a patch."""
    height, width = shape[1:]
    assert min(height, width) >= SIDE
    scales = [(height, width)]
    while min(height := -(-height // 2), width := -(-width // 2)) >= SMALLEST:
        scales.append((height, width))
    return scales


def laplacian(images: Tensor, scale: int, scales: int) -> Tensor:
    """One level of the Laplacian pyramid (Burt and Adelson 1983) of float (N, C, H, W): the details
    at `scale`, where 0 is the finest. The last of the `scales` levels is the blurred, small image.
    Edges are mirrored, as in cv2.pyrDown and pyrUp."""
    for _ in range(scale):
        images = _blurred(images)[:, :, ::2, ::2]
    if scale == scales - 1:
        return images
    spread = torch.zeros_like(images)
    spread[:, :, ::2, ::2] = _blurred(images)[:, :, ::2, ::2]
    return images - 4 * _blurred(spread)


def _blurred(images: Tensor) -> Tensor:
    channels = images.shape[1]
    row = _BINOMIAL.to(images).expand(channels, 1, 1, 5)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, row, groups=channels), row.mT, groups=channels)


def _patches(level: Tensor, rows: Tensor, scale: int, seed: int) -> Tensor:
    """level: (N, C, H, W), to (N, 128, C, 49). rows: int64 (N,), numbers of the images."""
    height, width = level.shape[2:]
    key = key_of(seed, "sliced_wasserstein", "patches")
    step = torch.tensor([scale], device=level.device)
    down, across = words(key, step, rows, 2 * PATCHES)[0].chunk(2, dim=1)
    corners = (down % (height - SIDE + 1)) * width + across % (width - SIDE + 1)
    inside = torch.arange(SIDE, device=level.device)
    offsets = (inside[:, None] * width + inside).flatten()
    places = (corners[:, :, None] + offsets).flatten(1)  # (N, 128 * 49)
    found = level.flatten(2).gather(2, places[:, None].expand(-1, level.shape[1], -1))
    return found.unflatten(2, (PATCHES, SIDE**2)).transpose(1, 2)


def _directions(size: int, scale: int, seed: int, device: torch.device) -> Tensor:
    """Unit vectors, (size, 512)."""
    key = key_of(seed, "sliced_wasserstein", "directions")
    numbers = torch.arange(DIRECTIONS, device=device)
    drawn = draw_one(Noise((size,)), key, numbers, step=scale)
    return F.normalize(drawn, dim=1).T.contiguous()


def _sorted(rows: Tensor) -> Tensor:
    """Sorts each row. On a CPU, 1.28 million numbers take 6 ms with NumPy and 100 ms with torch."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    return torch.from_numpy(np.sort(rows.contiguous().numpy(), axis=1))
