"""The vision transformer of DINO, DINOv2 and CLIP, with the weights that they published.

The shapes of the tensors say how large it is. No code of others is needed to read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.weights import misfit

HEAD_SIZE = 64
"""Numbers of an attention head, in all published sizes."""
_OFFSET = 0.1
"""DINO and DINOv2 add it to the sides of the wanted grid when they resize positions."""


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021, ViT: patches and a class token through blocks of attention and MLP,
    each behind a LayerNorm. Options are what DINOv2 and CLIP add."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        patch: int,
        positions: int,
        heads: int,
        epsilon: float,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        scales: bool = False,
        norm_before: bool = False,
        projected: int | None = None,
    ) -> None:
        """width: numbers of a token. patch: side in pixels. positions: learned ones of patches, a
        square number. epsilon: of each LayerNorm. scales: learned scales of each branch (Touvron et
        al. 2021, LayerScale). norm_before: LayerNorm before the first block, and patches without
        bias. projected: numbers of the output, if it is projected."""
        super().__init__()
        self.patch = patch
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=not norm_before)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(1 + positions, width))
        self.norm_before = nn.LayerNorm(width, epsilon) if norm_before else nn.Identity()
        self.blocks = nn.ModuleList(
            [_Block(width, heads, epsilon, activation, scales) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width, epsilon)
        self.projection = nn.Identity()
        if projected is not None:
            self.projection = nn.Linear(width, projected, bias=False)

    @property
    def side(self) -> int:
        """Side of the images that it learned its positions for, in pixels."""
        return math.isqrt(len(self.positions) - 1) * self.patch

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Standardised images (N, 3, H, W), whose sides are multiples of `patch`, to the tokens
        (N, 1 + hw, width) after each block, the class token first."""
        grid = self.patches(images)
        tokens = grid.flatten(2).mT
        first = self.class_token.expand(len(tokens), 1, -1)
        tokens = torch.cat([first, tokens], dim=1) + self._positions(*grid.shape[2:])
        tokens = self.norm_before(tokens)
        found: list[Tensor] = []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Standardised images (N, 3, H, W) to the class token after the last LayerNorm, projected
        if there is a projection: (N, D)."""
        return self.projection(self.norm(self.tokens(images)[-1][:, 0]))

    def _positions(self, height: int, width: int) -> Tensor:
        """The learned positions, resized to a grid of patches as DINOv2 does: (1 + hw, width)."""
        side = math.isqrt(len(self.positions) - 1)
        if (height, width) == (side, side):
            return self.positions
        grid = self.positions[1:].T.unflatten(1, (side, side))[None]
        scale = ((height + _OFFSET) / side, (width + _OFFSET) / side)
        resized = F.interpolate(grid, scale_factor=scale, mode="bicubic")[0]
        return torch.cat([self.positions[:1], resized.flatten(1).T])


class _Block(nn.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        epsilon: float,
        activation: Callable[[Tensor], Tensor],
        scales: bool,
    ) -> None:
        super().__init__()
        self._heads, self._activation = heads, activation
        self.norm_1, self.norm_2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale_1 = nn.Parameter(torch.empty(width)) if scales else 1.0
        self.scale_2 = nn.Parameter(torch.empty(width)) if scales else 1.0

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, width) to the same shape."""
        q, k, v = (
            part.unflatten(2, (self._heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm_1(tokens)).chunk(3, dim=2)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(seen) * self.scale_1
        hidden = self._activation(self.up(self.norm_2(tokens)))
        return tokens + self.down(hidden) * self.scale_2


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), of the same shape: CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


_OF_DINO = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "positions"),
    (r"^patch_embed\.proj\.", "patches."),
    (r"\.norm(\d)\.", r".norm_\1."),
    (r"\.attn\.qkv\.", ".qkv."),
    (r"\.attn\.proj\.", ".out."),
    (r"\.ls(\d)\.gamma$", r".scale_\1"),
    (r"\.mlp\.fc1\.", ".up."),
    (r"\.mlp\.fc2\.", ".down."),
)


def of_dino(tensors: Mapping[str, Tensor], what: str, field: str) -> VisionTransformer:
    """The network of DINO's or DINOv2's published weights: ViT-S, B or L, without registers. what:
    the network, and field: the setting of its file, for messages. Raises Refused."""
    named = {_renamed(name, _OF_DINO): tensor.float() for name, tensor in tensors.items()}
    named.pop("mask_token", None)  # of training
    if "class_token" in named:
        named["class_token"] = named["class_token"].flatten()
    if "positions" in named:
        named["positions"] = named["positions"].flatten(0, -2)
    scales = "blocks.0.scale_1" in named
    return _filled(named, what, field, epsilon=1e-6, scales=scales)


_OF_CLIP = (
    (r"^vision_model\.embeddings\.class_embedding$", "class_token"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "positions"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "patches."),
    (r"^vision_model\.pre_layrnorm\.", "norm_before."),
    (r"^vision_model\.post_layernorm\.", "norm."),
    (r"^vision_model\.encoder\.layers\.", "blocks."),
    (r"^visual_projection\.", "projection."),
    (r"\.layer_norm(\d)\.", r".norm_\1."),
    (r"\.self_attn\.out_proj\.", ".out."),
    (r"\.mlp\.fc1\.", ".up."),
    (r"\.mlp\.fc2\.", ".down."),
)


def of_clip(tensors: Mapping[str, Tensor], what: str, field: str) -> VisionTransformer:
    """The image network of OpenAI's CLIP, with its projection, by the names that Hugging Face gives
    its tensors. Those of the text network may be there. what, field: as for `of_dino`. Raises
    Refused."""
    of_images = {
        name: tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(("vision_model.", "visual_projection."))
        and not name.endswith(".position_ids")
    }
    named = {_renamed(name, _OF_CLIP): tensor for name, tensor in of_images.items()}
    for name in [name for name in named if ".self_attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in named for part in parts):
            joined = torch.cat([named.pop(part) for part in parts])
            named[name.replace(".self_attn.q_proj.", ".qkv.")] = joined
    projected = named.get("projection.weight", torch.empty(0, 0)).shape[0]
    return _filled(
        named,
        what,
        field,
        epsilon=1e-5,
        activation=quick_gelu,
        norm_before=True,
        projected=projected,
    )


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        name = re.sub(old, new, name)
    return name


def _filled(
    tensors: Mapping[str, Tensor], what: str, field: str, **options: object
) -> VisionTransformer:
    """The network of these tensors, in eval mode."""
    patches, positions = tensors.get("patches.weight"), tensors.get("positions")
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 2:
        raise misfit(ValueError("it has no embedding of patches"), what, field)
    width = len(patches)
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    with torch.device("meta"):
        network = VisionTransformer(
            width=width,
            depth=len(blocks),
            patch=patches.shape[2],
            positions=len(positions) - 1,
            heads=max(1, width // HEAD_SIZE),
            **options,  # pyright: ignore[reportArgumentType]
        )
    try:
        network.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise misfit(error, what, field) from error
    if math.isqrt(len(positions) - 1) ** 2 != len(positions) - 1:
        raise Refused(f"{field}: the positions of {what} are no square grid; give other weights")
    return network.eval().requires_grad_(False)
