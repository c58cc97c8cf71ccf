"""Residual networks of SNGAN (Miyato et al. 2018, appendix B.4, tables 4 and 5), and by their
settings of BigGAN (Brock et al. 2019, appendix B, figure 15), for all image sizes that have a start
map.

Up to three doublings (32 pixels) all maps have the same channels: 4 x width in the generator, 2 x
width in the discriminator. Larger images have `width` channels at their resolution. Channels double
when the sides halve, up to 16 x width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import Signature
from ray_gen.networks.blocks import with_features
from ray_gen.networks.labels import (
    ConditionalBatchNorm,
    LabelPlane,
    LabelVector,
    Projection,
    code_size,
    label_code,
    without_labels,
)
from ray_gen.networks.sizes import halvings as halvings_of
from ray_gen.networks.spectral_norm import with_spectral_norm

_MOST = 16  # largest multiple of the width


def generator_channels(width: int, doublings: int) -> tuple[int, ...]:
    """Channels of the start map and after each block."""
    if doublings <= 3:
        return (4 * width,) * (doublings + 1)
    return tuple(width * min(2**n, _MOST) for n in reversed(range(doublings + 1)))


def discriminator_channels(width: int, doublings: int) -> tuple[int, ...]:
    """Channels after each block. There is one more block than halvings, or there are four."""
    if doublings <= 3:
        return (2 * width,) * 4
    return tuple(width * min(2**n, _MOST) for n in range(doublings + 1))


def _conv(
    inputs: int, outputs: int, kernel: int, gain: float = 1.0, *, bias: bool = True
) -> nn.Conv2d:
    """A convolution that keeps the size. Weights are Glorot's times a gain, biases 0."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _initialise(network: nn.Module, weights: str) -> None:
    """Weights that are not Glorot's: orthogonal (Saxe et al. 2014) or N(0, 0.02²)."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            if weights == "orthogonal":
                nn.init.orthogonal_(layer.weight)
            elif weights == "normal":
                nn.init.normal_(layer.weight, 0.0, 0.02)


def _attends(heights: Sequence[int], attention: Sequence[int]) -> list[bool]:
    """Whether self-attention follows each block. heights: of the blocks' outputs. Of several blocks
    with the same height, it follows the first.

    Raises ValueError if no block has such a height.
    """
    for height in attention:
        if height not in heights:
            known = ", ".join(map(str, dict.fromkeys(heights)))
            raise ValueError(
                f"attention: {height} is not the height of a block's output, which are {known}"
            )
    return [
        height in attention and height not in heights[:number]
        for number, height in enumerate(heights)
    ]


class SelfAttention(nn.Module):
    """x + γ W (values · softmax(queriesᵀ keys)), γ = 0 at first (Zhang et al. 2019, SAGAN, eq. 1 to
    3): each position looks at all others. (N, C, H, W) to the same, with even sides.

    As in BigGAN, keys and values are the largest of 2 x 2 positions, queries and keys have C / 8
    channels and values C / 2. No convolution has a bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._sizes = (max(channels // 8, 1), max(channels // 2, 1))
        queries, values = self._sizes
        self.queries = _conv(channels, queries, 1, bias=False)
        self.keys = _conv(channels, queries, 1, bias=False)
        self.values = _conv(channels, values, 1, bias=False)
        self.out = _conv(values, channels, 1, bias=False)
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        queries = self.queries(x).flatten(2)  # (N, Q, HW)
        keys = F.max_pool2d(self.keys(x), 2).flatten(2)  # (N, Q, HW/4)
        values = F.max_pool2d(self.values(x), 2).flatten(2)  # (N, V, HW/4)
        shares = (queries.transpose(1, 2) @ keys).softmax(2)  # (N, HW, HW/4)
        seen = (values @ shares.transpose(1, 2)).unflatten(2, x.shape[2:])  # (N, V, H, W)
        return x + self.strength * self.out(seen)


class _UpBlock(nn.Module):
    """BatchNorm, ReLU, doubling, convolution, BatchNorm, ReLU, convolution; beside it a doubled
    1 x 1 convolution. (N, in, H, W) to (N, out, 2H, 2W).

    The convolutions have no biases, unlike the published ones: each would move all positions of a
    channel alike, and the next BatchNorm takes that away. Their gradient would be rounding errors,
    which Adam makes as large as any other step.
    """

    def __init__(self, inputs: int, outputs: int, condition_size: int, attends: bool) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, condition_size)
        self.conv1 = _conv(inputs, outputs, 3, math.sqrt(2), bias=False)
        self.norm2 = ConditionalBatchNorm(outputs, condition_size)
        self.conv2 = _conv(outputs, outputs, 3, math.sqrt(2), bias=False)
        self.shortcut = _conv(inputs, outputs, 1, bias=False)
        self.attention = SelfAttention(outputs) if attends else nn.Identity()

    def without_labels(self) -> nn.Module:
        """Its parts that take no labels."""
        norms = [norm for norm in (self.norm1, self.norm2) if not norm.conditional]
        return nn.ModuleList([*norms, self.conv1, self.conv2, self.shortcut, self.attention])

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """x: (N, in, H, W); condition: (N, condition_size)."""
        h = self.conv1(_doubled(F.relu(self.norm1(x, condition))))
        h = self.conv2(F.relu(self.norm2(h, condition)))
        # A 1 x 1 convolution before the doubling gives the same and costs a quarter.
        return self.attention(h + _doubled(self.shortcut(x)))


def _doubled(x: Tensor) -> Tensor:
    """Each pixel four times: (N, C, H, W) to (N, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class _Block(nn.Module):
    """ReLU, convolution, ReLU, convolution, and halving if it `halves`; beside it a 1 x 1
    convolution if channels or sides change. The first block of a network has no first ReLU: it
    would cut off half of the image's range."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, first: bool, halves: bool, attends: bool
    ) -> None:
        super().__init__()
        self._first, self._halves = first, halves
        self.conv1 = _conv(inputs, hidden, 3, math.sqrt(2))
        self.conv2 = _conv(hidden, outputs, 3, math.sqrt(2))
        changes = halves or inputs != outputs
        self.shortcut = _conv(inputs, outputs, 1) if changes else nn.Identity()
        self.attention = SelfAttention(outputs) if attends else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H, W), or (N, out, H/2, W/2)."""
        h = self.conv2(F.relu(self.conv1(x if self._first else F.relu(x))))
        if self._halves:
            # The mean of a 1 x 1 convolution is the convolution of the mean, for a quarter.
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return self.attention(h + self.shortcut(x))


class ResnetGenerator(nn.Module):
    """z (N, vector_size) -> images (N, C, H, W), with tanh if the signature asks for it.

    At 32 pixels and width 64: 256 channels at 4², 8², 16² and 32². At 64: 1024 x 4², 512 x 8², 256
    x 16², 128 x 32², 64 x 64².
    """

    def __init__(
        self,
        signature: Signature,
        *,
        width: int,
        channels: Sequence[int] | None,
        labels: str,
        label_size: int,
        shared_embedding: int | None,
        latent_chunks: bool,
        attention: Sequence[int],
        spectral_norm: bool,
        initial_weights: str,
        **of_discriminators: object,
    ) -> None:
        super().__init__()
        del of_discriminators
        steps, (height, width_of_start) = halvings_of(signature.output_shape)
        sizes = tuple(channels or generator_channels(width, steps))
        if len(sizes) != steps + 1:
            raise ValueError(
                f"channels: a generator of this size needs {steps + 1} numbers, of the start map "
                f"and after each of {steps} blocks, but there are {len(sizes)}"
            )
        self._start = (height, width_of_start, sizes[0])
        self._tanh = signature.activation == "tanh"
        self._signature = signature

        first, chunk = signature.input[0], 0
        if latent_chunks:
            first = chunk = _chunk_size(first, steps + 1)
        self._chunk = chunk
        in_norms = labels == "conditional_batch_norm" and code_size(signature) > 0
        self._in_norms = in_norms
        self.label = LabelVector(without_labels(signature) if in_norms else signature, label_size)
        condition = code_size(signature) if in_norms else 0
        self.shared = None
        if in_norms and shared_embedding is not None:
            self.shared = nn.Linear(condition, shared_embedding, bias=False)
            nn.init.xavier_uniform_(self.shared.weight)
            condition = shared_embedding

        self.first = _linear(first + self.label.added, math.prod(self._start))
        heights = [height * 2**n for n in range(1, steps + 1)]
        attends = _attends(heights, attention)
        self.blocks = nn.ModuleList(
            _UpBlock(sizes[n], sizes[n + 1], condition + chunk, attends[n]) for n in range(steps)
        )
        self.norm = ConditionalBatchNorm(sizes[-1], 0)
        self.last = _conv(sizes[-1], signature.output_shape[0], 3)

        # For a class alone, gains and biases are tables of values: they begin at 1 and 0, and no
        # singular value bounds them. For a vector they are a linear layer like others.
        tables = self.shared is None and not chunk
        for norm in self._norms():
            if not tables and norm.conditional:
                nn.init.xavier_uniform_(norm.gain.weight)
                nn.init.xavier_uniform_(norm.bias.weight)
        _initialise(self, initial_weights)
        for norm in self._norms():
            if tables:
                norm.begin_as_plain()
        if spectral_norm:
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    with_spectral_norm(layer)
            with_spectral_norm(self.first)
            for norm in self._norms():
                if not tables and norm.conditional:
                    with_spectral_norm(norm)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`. A BatchNorm that takes labels is in none."""
        blocks = [block.without_labels() for block in self.blocks]  # pyright: ignore
        return [nn.ModuleList([self.norm, self.last]), *reversed(blocks), self.first]

    def _norms(self) -> Iterator[ConditionalBatchNorm]:
        return (m for m in self.modules() if isinstance(m, ConditionalBatchNorm))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (N, vector_size); labels: see `Signature`."""
        count = len(self.blocks)
        first, *chunks = z.split(self._chunk, dim=1) if self._chunk else (z,)
        of_labels: list[Tensor] = []
        if self._in_norms:
            code = label_code(labels, self._signature, z)
            of_labels = [code if self.shared is None else self.shared(code)]
        conditions = [[*of_labels, chunk] for chunk in chunks] or [of_labels] * count
        x = self.first(self.label(first, labels)).view(-1, *self._start)
        x = x.permute(0, 3, 1, 2)  # channels last without a copy
        for block, parts in zip(self.blocks, conditions, strict=True):
            x = block(x, torch.cat(parts, dim=1) if parts else None)
        x = self.last(F.relu(self.norm(x)))
        return torch.tanh(x) if self._tanh else x


def _chunk_size(latent_size: int, count: int) -> int:
    """The length of each of `count` parts of z. Raises ValueError if they are not equal."""
    if latent_size % count:
        below = max(latent_size // count, 1) * count
        raise ValueError(
            f"latent_chunks: z has {latent_size} numbers, which are no {count} equal chunks; set "
            f"objective.latent_size to {below} or {below + count}"
        )
    return latent_size // count


class ResnetDiscriminator(nn.Module):
    """images (N, C, H, W) -> (N, vector_size): one logit, or the output of an encoder. Of several
    outputs each has a linear layer of its own, and labels enter the first.

    At 32 pixels and width 64: 128 channels at 16², 8², 8² and 8². At 64: 64 x 32², 128 x 16², 256 x
    8², 512 x 4², 1024 x 4². Then ReLU and the sum (or mean) over positions.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        width: int,
        channels: Sequence[int] | None,
        halvings: int | None,
        hidden_channels: str,
        pooling: str,
        labels: str,
        attention: Sequence[int],
        spectral_norm: bool,
        initial_weights: str,
        **of_generators: object,
    ) -> None:
        super().__init__()
        del of_generators
        steps, _ = halvings_of(signature.input)
        sizes = tuple(channels or discriminator_channels(width, steps))
        down = halvings if halvings is not None else min(2, steps) if steps <= 3 else steps
        _, height, of_width = signature.input
        if down > len(sizes) or height % 2**down or of_width % 2**down:
            raise ValueError(
                f"halvings: {len(sizes)} blocks cannot halve {height} x {of_width} pixels {down} "
                "times; leave it out, or take a smaller number"
            )
        self._mean = pooling == "mean"
        in_image = labels == "concatenated"
        self.label = LabelPlane(signature if in_image else without_labels(signature))
        attends = _attends([height >> min(n + 1, down) for n in range(len(sizes))], attention)
        inputs = signature.input[0] + self.label.added
        blocks: list[nn.Module] = []
        for n, size in enumerate(sizes):
            hidden = inputs if n > 0 and hidden_channels == "input" else size
            halves = n < down
            blocks.append(
                _Block(inputs, hidden, size, first=n == 0, halves=halves, attends=attends[n])
            )
            inputs = size
        self.blocks = nn.Sequential(*blocks)
        projects = labels == "projection" and code_size(signature) > 0
        self.projection = Projection(signature, inputs) if projects else None
        outputs = signature.outputs
        named = outputs if isinstance(outputs, Mapping) else {"output": outputs}
        self._several = isinstance(outputs, Mapping)
        self.heads = nn.ModuleDict({name: _linear(inputs, size[0]) for name, size in named.items()})
        _initialise(self, initial_weights)
        if spectral_norm:
            with_spectral_norm(self)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`. The last layers together are the last block."""
        return [*self.blocks, self.heads]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """images: (N, C, H, W); labels: see `Signature`."""
        return self._outputs(self.blocks(self.label(images, labels)), labels)

    def features(
        self, images: Tensor, labels: Tensor | None = None, *, layer: int | None = None
    ) -> tuple[Tensor | dict[str, Tensor], Tensor]:
        """See `ray_gen.core.Featured`: the sum of a block's two branches."""
        maps, ends = self.label(images, labels), tuple(range(len(self.blocks)))
        maps, found = with_features(self.blocks, ends, maps, layer)
        return self._outputs(maps, labels), found

    def _outputs(self, maps: Tensor, labels: Tensor | None) -> Tensor | dict[str, Tensor]:
        """maps: (N, F, h, w), of the last block."""
        maps = F.relu(maps)
        features = maps.mean((2, 3)) if self._mean else maps.sum((2, 3))  # (N, F)
        outputs = {name: head(features) for name, head in self.heads.items()}
        if self.projection is not None:
            first = next(iter(outputs))
            outputs[first] = outputs[first] + self.projection(features, labels)
        return outputs if self._several else outputs["output"]
