"""The encoder and decoder of latent diffusion's autoencoder (Rombach et al. 2022), which are those
of VQGAN (Esser et al. 2021), as diffusers' AutoencoderKL has them.

A map is halved, or doubled, between *levels*. A level is a row of residual blocks, each followed by
self-attention at the heights that the settings name. Between encoder and decoder, both have two
blocks with attention between them.

The names of weights are those of diffusers: `autoencoder_kl_names.py` has the few that differ.
Convolutions and linear layers run in the type that autocast asks for. Statistics of GroupNorm are
float32 then, and so is softmax inside torch's attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import Shape, Signature
from ray_gen.networks.measured import MeasuredConv2d
from ray_gen.networks.sizes import halvings_between

_EPSILON = 1e-6  # in GroupNorm


class Norm(nn.GroupNorm):
    """GroupNorm (Wu and He 2018) with statistics in float32 or more: (N, C, ...) to the same shape
    and type. Autocast on a GPU would return float32, and the next layer would keep twice the bytes
    for the backward pass."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=_EPSILON)

    def forward(self, input: Tensor) -> Tensor:
        """As the class says."""
        exact = input.to(torch.promote_types(input.dtype, torch.float32))
        return super().forward(exact).to(input.dtype)


class Residual(nn.Module):
    """x + W₂ φ(norm(W₁ φ(norm(x)))) with 3 x 3 convolutions and φ(x) = x sigmoid(x). Where channels
    change, a 1 x 1 convolution of x. (N, inputs, H, W) to (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = Norm(outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """x + W softmax(q kᵀ / √C) v, with one head and q, k, v linear in norm(x): each position looks
    at all others. (N, C, H, W) to the same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = Norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        positions = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (N, HW, C)
        of_one_head = (layer(positions)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        seen = F.scaled_dot_product_attention(*of_one_head)  # (N, 1, HW, C)
        found = self.to_out(seen[:, 0])
        return x + found.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """A 3 x 3 convolution with stride 2 of a map with zeros at its right and lower border, as
    published. (N, C, H, W) to (N, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel four times, then a 3 x 3 convolution. (N, C, H, W) to (N, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Row(nn.Module):
    """Residual blocks, with attention after the first ones: (N, inputs, H, W) to
    (N, outputs, H, W)."""

    def __init__(
        self, inputs: int, outputs: int, *, groups: int, blocks: int, attentions: int
    ) -> None:
        """attentions: how many of the blocks have attention after them."""
        super().__init__()
        self.resnets = nn.ModuleList(
            Residual(inputs if n == 0 else outputs, outputs, groups) for n in range(blocks)
        )
        self.attentions = nn.ModuleList(Attention(outputs, groups) for _ in range(attentions))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        for number, block in enumerate(self.resnets):
            x = block(x)
            if number < len(self.attentions):
                x = self.attentions[number](x)
        return x


class DownLevel(Row):
    """A row, and a halving of the map unless it is the `last` one: (N, inputs, H, W) to
    (N, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int, *, last: bool, **row: int) -> None:
        super().__init__(inputs, outputs, **row)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        x = super().forward(x)
        for halve in self.downsamplers:
            x = halve(x)
        return x


class UpLevel(Row):
    """A row, and a doubling of the map unless it is the `last` one: (N, inputs, H, W) to
    (N, outputs, 2H, 2W)."""

    def __init__(self, inputs: int, outputs: int, *, last: bool, **row: int) -> None:
        super().__init__(inputs, outputs, **row)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        x = super().forward(x)
        for double in self.upsamplers:
            x = double(x)
        return x


class _Levels:
    """The levels between the maps of an image and of a latent: those that they have in common."""

    def __init__(
        self,
        image: Shape,
        latent: Shape,
        *,
        width: int,
        multipliers: Sequence[int],
        attention: Sequence[int],
        middle_attention: bool,
        blocks: int,
        groups: int,
    ) -> None:
        """Raises ValueError if as many levels do not lead from one map to the other, or if none has
        a height in `attention`."""
        count, halvings = len(multipliers), halvings_between(image, latent)
        if halvings != count - 1:
            raise ValueError(
                f"multipliers: {count} levels halve a side {count - 1} times, but the objective "
                f"asks for {halvings} ({image[1]} x {image[2]} to {latent[1]} x {latent[2]}); give "
                f"{halvings + 1} numbers"
            )
        heights = [image[1] >> level for level in range(count)]
        for height in attention:
            if height not in heights:
                raise ValueError(
                    f"attention: no level has maps of height {height}; their heights are "
                    f"{', '.join(map(str, heights))}"
                )
        self.widths = [width * multiplier for multiplier in multipliers]
        """Channels of each level, the one of the image's size first."""
        self.attends = [height in attention for height in heights]
        """Whether it has attention."""
        self.blocks, self.groups, self._middle_attention = blocks, groups, middle_attention

    def middle(self) -> Row:
        """A new row between encoder and decoder."""
        top, attentions = self.widths[-1], 1 if self._middle_attention else 0
        return Row(top, top, groups=self.groups, blocks=2, attentions=attentions)


def _without_labels(signature: Signature) -> None:
    """Raises ValueError if the network gets labels."""
    if signature.label_count is not None:
        raise ValueError(
            "takes no labels; set objective.conditional to false, or use conv or your own class "
            "(kind: custom)"
        )


class AutoencoderKlEncoder(nn.Module):
    """images (N, C, H, W) -> (N, c, h, w): means and log variances, or what is quantised. H is h,
    and W is w, times 2^(levels - 1)."""

    def __init__(self, signature: Signature, *, quant_conv: bool, **levels: Any) -> None:
        """levels: arguments of `_Levels`."""
        super().__init__()
        _without_labels(signature)
        of = _Levels(signature.input, signature.output_shape, **levels)
        outputs, (first, *_), last = signature.output_shape[0], of.widths, of.widths[-1]
        self.conv_in = nn.Conv2d(signature.input[0], first, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        blocks, end = of.blocks, len(of.widths) - 1
        for level, attends in enumerate(of.attends):
            row = {"groups": of.groups, "blocks": blocks, "attentions": blocks if attends else 0}
            inside = of.widths[max(level - 1, 0)]
            self.down_blocks.append(DownLevel(inside, of.widths[level], last=level == end, **row))
        self.mid_block = of.middle()
        self.conv_norm_out = Norm(last, of.groups)
        self.conv_out = nn.Conv2d(last, outputs, 3, padding=1)
        self.quant_conv = nn.Conv2d(outputs, outputs, 1) if quant_conv else nn.Identity()

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each level, and the middle with the last layers."""
        first, *others = self.down_blocks
        last = [self.mid_block, self.conv_norm_out, self.conv_out, self.quant_conv]
        return [nn.ModuleList([self.conv_in, first]), *others, nn.ModuleList(last)]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: (N, C, H, W); labels: None."""
        x = self.conv_in(images)
        for level in self.down_blocks:
            x = level(x)
        x = self.conv_norm_out(self.mid_block(x))
        return self.quant_conv(self.conv_out(F.silu(x)))


class AutoencoderKlDecoder(nn.Module):
    """z (N, c, h, w) -> images (N, C, H, W), without bounds: the encoder mirrored, with one more
    block in each level."""

    def __init__(self, signature: Signature, *, quant_conv: bool, **levels: Any) -> None:
        """levels: arguments of `_Levels`."""
        super().__init__()
        _without_labels(signature)
        of = _Levels(signature.output_shape, signature.input, **levels)
        inputs, (last, *_), first = signature.input[0], of.widths, of.widths[-1]
        self.post_quant_conv = nn.Conv2d(inputs, inputs, 1) if quant_conv else nn.Identity()
        self.conv_in = nn.Conv2d(inputs, first, 3, padding=1)
        self.mid_block = of.middle()
        self.up_blocks = nn.ModuleList()
        blocks, end = of.blocks + 1, len(of.widths) - 1
        for level, attends in reversed([*enumerate(of.attends)]):
            row = {"groups": of.groups, "blocks": blocks, "attentions": blocks if attends else 0}
            inside = of.widths[min(level + 1, end)]
            self.up_blocks.append(UpLevel(inside, of.widths[level], last=level == 0, **row))
        self.conv_norm_out = Norm(last, of.groups)
        self.conv_out = MeasuredConv2d(last, signature.output_shape[0], 3)

    def adaptive_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """See `ray_gen.core.Balances`."""
        return self.conv_out.adaptive_weight(reconstruction, adversarial)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each level, and the first layers with the middle."""
        *others, last = self.up_blocks
        first = [self.post_quant_conv, self.conv_in, self.mid_block]
        nearest = nn.ModuleList([self.conv_out, self.conv_norm_out, last])
        return [nearest, *reversed(others), nn.ModuleList(first)]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (N, c, h, w); labels: None."""
        x = self.mid_block(self.conv_in(self.post_quant_conv(z)))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def encoder_or_decoder(
    signature: Signature, **settings: Any
) -> AutoencoderKlEncoder | AutoencoderKlDecoder:
    """The one that the signature asks for: an encoder makes maps smaller. Raises ValueError if maps
    and levels do not fit. settings: the fields of `AutoencoderKlNetwork`."""
    encodes = signature.output_shape[1] < signature.input[1]
    kind = AutoencoderKlEncoder if encodes else AutoencoderKlDecoder
    return kind(signature, **settings)
