"""Random numbers as a pure function of (seed, name, step, image): a counter-based generator.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in torch integer
operations. A rank draws the numbers of its own images only, on any device, in any order. Nothing
has to be saved. The integers are equal everywhere. The floats may differ in the rounding of their
last operation. The 64-bit key is a hash of (seed, name). The 128-bit counter holds (block of four
numbers, image, step).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ray_gen.core import Noise

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1, in 32 bits
_ROUNDS = 10

Key = tuple[int, int]


def key_of(seed: int, *names: str | int) -> Key:
    """A Philox key for a seed and a path of names. A hash mixes them, so neighbouring seeds and
    names share nothing. It includes their lengths, so ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.blake2b(repr((seed, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed for torch's own generators, mixed as in `key_of`."""
    low, high = key_of(seed, *names)
    return ((high << 32) | low) >> 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors of 32-bit words and a key to four tensors of random words.

    The shapes of the counters must broadcast. Products wrap modulo 2^64, so both halves of an
    unsigned 32 x 32-bit product stay intact.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _MASK) ^ c3 ^ k1
        c1 = product1 & _MASK
        c3 = product0 & _MASK
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def words(key: Key, steps: Tensor, images: Tensor, count: int) -> Tensor:
    """`count` random 32-bit words for each step and image: int64 (S, N, count) in [0, 2^32).

    steps: int64 (S,), images: int64 (N,), indices in the global batch, below 2^32.
    """
    blocks = torch.arange((count + 3) // 4, device=images.device)
    step = steps[:, None, None]
    drawn = philox((blocks, images[:, None], step & _MASK, step >> 32), key)
    shape = (steps.numel(), images.numel(), blocks.numel())
    return torch.stack([word.expand(shape) for word in drawn], dim=-1).flatten(2)[..., :count]


def uniform(word: Tensor) -> Tensor:
    """32-bit words to U[0, 1): the top 24 bits, which float32 holds exactly."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def normal(word: Tensor) -> Tensor:
    """32-bit words to N(0, 1) in float32, of the same shape (Box and Muller). The last axis has an
    even number of words.

    Computed in float64 and rounded at the end, so that devices and vector widths agree on nearly
    every number. The radius uses all 32 bits, so the tails reach 6.6 standard deviations.
    """
    first, second = word.to(torch.float64).mul_(2.0**-32).chunk(2, dim=-1)
    radius = (first + 2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = second * (2.0 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin_()], dim=-1).to(torch.float32)


def draw(spec: Noise, key: Key, steps: Tensor, images: Tensor) -> Tensor:
    """The noise of some steps and images: float32 (S, N, *spec.shape)."""
    count = math.prod(spec.shape)
    shape = (steps.numel(), images.numel(), *spec.shape)
    if spec.distribution == "normal":
        return normal(words(key, steps, images, count + count % 2))[..., :count].reshape(shape)
    values = uniform(words(key, steps, images, count))
    return values.mul_(spec.high - spec.low).add_(spec.low).reshape(shape)


def draw_one(spec: Noise, key: Key, images: Tensor, step: int = 0) -> Tensor:
    """The noise of one step: float32 (N, *spec.shape)."""
    return draw(spec, key, torch.tensor([step], device=images.device), images)[0]


def permutation(seed: int, name: str, epoch: int, count: int) -> Tensor:
    """A uniformly random order of `count` items: int64 (count,), a function of the arguments.

    The argsort of 63-bit random keys. Equal keys (probability count² / 2^64) keep their order.
    """
    low, high = words(key_of(seed, name), torch.tensor([epoch]), torch.arange(count), 2)[0].unbind(
        1
    )
    return torch.argsort((high << 31) ^ low, stable=True)


def drawn(
    specs: Mapping[str, Noise], key: Callable[[str], Key], images: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Noise outside training, where there are no steps: by name, (N, *shape) each.

    key: from the name of a noise to its key. images: int64 (N,), the numbers of the images or
    samples, on the device.
    """
    return {name: draw_one(spec, key(name), images).to(dtype) for name, spec in specs.items()}


class Tape:
    """The noise of a phase, drawn for a block of its updates at once.

    Philox is about a hundred elementwise operations. Launched at every step, they would cost a
    small network a tenth of its step on a CPU, and more on a GPU. Launched for many steps at once,
    they cost about 1 %. A block lies in buffers that keep their address for the whole run, so a
    recorded step can read the row that a counter on the device gives.
    """

    numbers = 1 << 18
    """Largest count of numbers drawn at once: 1 MB, which still fits into a core's cache."""

    def __init__(
        self,
        specs: Mapping[str, Noise],
        seed: int,
        phase: str,
        every: int,
        images: Tensor,
        length: int | None = None,
    ) -> None:
        """images: int64 (N,), this rank's indices in the global batch, on the device. length:
        number of updates in a block; None: from `length_for`."""
        self._specs = dict(specs)
        self._keys = {name: key_of(seed, phase, name) for name in specs}
        self._every = every
        self._images = images
        self.length = length or self.length_for(specs, images.numel())
        self._first = 0
        self._block: dict[str, Tensor] = {}

    @classmethod
    def length_for(cls, specs: Mapping[str, Noise], images: int) -> int:
        """Number of updates in a block, with `images` images an update."""
        size = sum(math.prod(spec.shape) for spec in specs.values()) * images
        return max(1, min(128, cls.numbers // max(1, size)))

    def fill(self, update: int) -> None:
        """Draw the block that begins with this update of the phase, counted from 0."""
        self._first = update
        updates = torch.arange(update, update + self.length, device=self._images.device)
        steps = (updates + 1) * self._every - 1
        for name, spec in self._specs.items():
            values = draw(spec, self._keys[name], steps, self._images)
            if name in self._block:
                self._block[name].copy_(values)
            else:
                self._block[name] = values

    def read(self, place: Tensor) -> dict[str, Tensor]:
        """The noise of row `place` of the block: by name, (N, *shape). place: int64 (), on the
        device."""
        return {name: values.index_select(0, place)[0] for name, values in self._block.items()}

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """The noise of one step at which the phase is due: by name, (N, *shape)."""
        update = (step + 1) // self._every - 1
        if not self._block or not self._first <= update < self._first + self.length:
            self.fill(update - update % self.length)
        return {name: values[update - self._first] for name, values in self._block.items()}
