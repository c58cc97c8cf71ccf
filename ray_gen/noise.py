"""Random numbers as a pure function of (seed, name, step, image): a counter-based generator.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in torch integer
operations. A rank draws exactly the part of the images it has, on any device, in any order, and
nothing has to be saved: the integers are the same everywhere, the floats up to the rounding of
their last operation. The 64-bit key is a hash of (seed, name); the 128-bit counter holds
(block of four numbers, image, step).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ray_gen.core import Noise

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in 32 bits
_ROUNDS = 10

Key = tuple[int, int]


def key_of(seed: int, *names: str | int) -> Key:
    """A Philox key for a seed and a path of names. Mixed by a hash, so that neighbouring seeds and
    names share nothing; lengths are hashed too, so ("ab", "c") is not ("a", "bc")."""
    digest = hashlib.blake2b(repr((seed, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed for torch's own generators, mixed as `key_of` mixes."""
    low, high = key_of(seed, *names)
    return ((high << 32) | low) >> 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors of 32-bit words and a key to four tensors of random words.

    The counters may be of any shapes that broadcast. Products wrap modulo 2^64, which leaves both
    halves of an unsigned 32 x 32-bit product intact.
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
    """An even number of words along the last axis to as many N(0, 1) in float32 (Box and Muller).

    In float64 up to the last rounding, so that devices and vector widths agree on nearly every
    number; the radius takes all 32 bits, so the tails reach 6.6 standard deviations.
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


def permutation(seed: int, name: str, epoch: int, count: int) -> Tensor:
    """A uniformly random order of `count` things: int64 (count,), a function of its arguments.

    The argsort of 63-bit random keys; equal keys (probability count² / 2^64) keep their order.
    """
    low, high = words(key_of(seed, name), torch.tensor([epoch]), torch.arange(count), 2)[0].unbind(
        1
    )
    return torch.argsort((high << 31) ^ low, stable=True)


class Tape:
    """The noise of a phase, drawn for several of its updates at once.

    Philox is some hundred elementwise operations, whose launches would cost a small network a tenth
    of its step on a CPU (and more on a GPU); drawn for many steps together they cost about 1 %.
    """

    numbers = 1 << 18
    """Numbers drawn at once, at most: 1 MB, which a core's cache still holds."""

    def __init__(
        self, specs: Mapping[str, Noise], seed: int, phase: str, every: int, images: Tensor
    ) -> None:
        """images: int64 (N,), this rank's indices in the global batch, on the device."""
        self._specs = dict(specs)
        self._keys = {name: key_of(seed, phase, name) for name in specs}
        self._every = every
        self._images = images
        size = sum(math.prod(spec.shape) for spec in specs.values()) * images.numel()
        self._updates = max(1, min(128, self.numbers // max(1, size)))
        self._first = 0
        self._drawn: dict[str, Tensor] = {}

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """The noise of one step at which the phase is due: by name, (N, *shape)."""
        update = (step + 1) // self._every - 1
        if not self._drawn or not self._first <= update < self._first + self._updates:
            self._first = update
            updates = torch.arange(update, update + self._updates, device=self._images.device)
            steps = (updates + 1) * self._every - 1
            self._drawn = {
                name: draw(spec, self._keys[name], steps, self._images)
                for name, spec in self._specs.items()
            }
        return {name: drawn[update - self._first] for name, drawn in self._drawn.items()}
