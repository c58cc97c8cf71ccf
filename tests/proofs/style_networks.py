"""The generator of StyleGAN2 (Karras et al. 2020, section 2), small: mapping and synthesis."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu

from ray_gen.core import Noise, Signature

NETWORKS = {
    "mapping": {"kind": "custom", "target": f"{__name__}:StyleMapping"},
    "synthesis": {
        "kind": "custom",
        "target": f"{__name__}:StyleSynthesis",
        "options": {"channels": 8},
    },
    "discriminator": {"kind": "dcgan", "width": 8, "batch_norm": False},
}
"""Of a small experiment."""


class StyleMapping(nn.Module):
    """z (N, Z) to a style for each layer, (N, L, W).

    In training, 9 of 10 images use another z's styles from a random layer onwards (style mixing,
    Karras et al. 2019, section 3.1).
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        (z_size,), (self._layers, width) = signature.input, signature.output_shape
        if signature.label_count is not None:
            raise ValueError("StyleMapping takes no labels; set objective.conditional to false")
        self.body = nn.Sequential(
            nn.Linear(z_size, width), nn.LeakyReLU(0.2), nn.Linear(width, width)
        )
        self._mixing = {"other": Noise((z_size,)), "where": Noise((2,), "uniform")}

    @property
    def noise(self) -> dict[str, Noise]:
        """In training: another z; U[0, 1) decides whether to mix, and from which layer."""
        return self._mixing if self.training else {}

    def forward(
        self, z: Tensor, labels: Tensor | None = None, noise: dict[str, Tensor] | None = None
    ) -> Tensor:
        """z: (N, Z), of any length."""
        styles = self._style(z).expand(-1, self._layers, -1)  # (N, L, W)
        if not noise:
            return styles
        mixes, where = noise["where"].unbind(1)  # (N,)
        first = 1 + (where * (self._layers - 1)).floor()
        layer = torch.arange(self._layers, device=z.device)
        others = (mixes < 0.9)[:, None] & (layer >= first[:, None])  # (N, L)
        return torch.where(others[..., None], self._style(noise["other"]), styles)

    def _style(self, z: Tensor) -> Tensor:
        """(N, Z) to (N, 1, W)."""
        return self.body(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())[:, None]


class StyledLayer(nn.Module):
    """A convolution whose inputs the style scales, and whose outputs are scaled back to unit
    variance (eq. 1 and 3); then noise, bias and LeakyReLU."""

    def __init__(self, channels: int, style_size: int) -> None:
        super().__init__()
        self.scales = nn.Linear(style_size, channels)
        nn.init.ones_(self.scales.bias)
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise_strength = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """x: (N, C, H, W); style: (N, W); noise: (N, 1, H, W)."""
        scales = self.scales(style)  # (N, C)
        squares = scales.square() @ self.weight.square().sum((2, 3)).t()  # (N, C)
        x = conv2d(x * scales[..., None, None], self.weight, padding=1)
        x = x * (squares + 1e-8).rsqrt()[..., None, None]
        noise = self.noise_strength[:, None, None] * noise
        return leaky_relu(x + noise + self.bias[:, None, None], 0.2)


class StyleSynthesis(nn.Module):
    """Styles (N, L, W) to images_NCHW: a layer at 4 x 4, and two at each size up to the image's."""

    def __init__(self, signature: Signature, *, channels: int) -> None:
        super().__init__()
        layers, width = signature.input
        sides = [4 << (i + 1) // 2 for i in range(layers)]
        if sides[-1:] * 2 != list(signature.output_shape[1:]):
            raise ValueError(f"{layers} styles make images of {sides[-1]} x {sides[-1]} pixels")
        self.noise = {f"layer_{i}": Noise((1, side, side)) for i, side in enumerate(sides)}
        self.constant = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.layers = nn.ModuleList(StyledLayer(channels, width) for _ in sides)
        self.to_image = nn.Conv2d(channels, signature.output_shape[0], 1)

    def forward(
        self, styles: Tensor, labels: Tensor | None = None, *, noise: dict[str, Tensor]
    ) -> Tensor:
        """styles: (N, L, W); noise: (N, 1, H, W) for each layer."""
        x = self.constant.expand(styles.shape[0], -1, -1, -1)
        for i, (layer, (name, of)) in enumerate(zip(self.layers, self.noise.items(), strict=True)):
            x = layer(interpolate(x, of.shape[1:]), styles[:, i], noise[name])
        return self.to_image(x)
