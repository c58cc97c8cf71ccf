"""The patch discriminator of pix2pix (Isola et al. 2017, PatchGAN, section 3.2.2 and appendix
6.1.2), which VQGAN and latent diffusion train their autoencoders with: a convolutional network that
gives a logit for each patch of an image."""

from __future__ import annotations

from torch import Tensor, nn

from ray_gen.core import Signature
from ray_gen.networks.blocks import blocks_of, ends_of, with_features
from ray_gen.networks.from_vector import initialise
from ray_gen.networks.labels import LabelPlane
from ray_gen.networks.sizes import patch_problem
from ray_gen.networks.spectral_norm import with_spectral_norm

_MOST = 8  # largest multiple of the width


class PatchDiscriminator(nn.Module):
    """images (N, C, H, W) -> logits (N, 1, h, w), with h = H / 2^layers - 2, rounded down.

    With 3 layers and width 64: 64, 128, 256 (stride 2), 512 (stride 1), 1. Each logit sees 70 x 70
    pixels; 256 x 256 pixels have 30 x 30 logits. All kernels are 4 x 4.
    """

    def __init__(
        self, signature: Signature, *, layers: int, width: int, norm: str, spectral_norm: bool
    ) -> None:
        super().__init__()
        if not signature.several_logits or signature.output_shape != (1,):
            raise ValueError(
                "gives a logit for each patch of an image, but the objective asks for a vector of "
                "the whole image; use dcgan, resnet or conv"
            )
        _, height, side = signature.input
        problem = patch_problem(height, side, layers)
        if problem is not None:
            raise ValueError(problem)
        self.label = LabelPlane(signature)
        channels = [width * min(2**n, _MOST) for n in range(layers + 1)]
        inputs = signature.input[0] + self.label.added
        found: list[nn.Module] = [
            nn.Conv2d(inputs, width, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for n in range(1, layers + 1):
            stride = 2 if n < layers else 1
            normalised = norm == "batch"
            found.append(nn.Conv2d(channels[n - 1], channels[n], 4, stride, 1, bias=not normalised))
            found += [nn.BatchNorm2d(channels[n])] if normalised else []
            found.append(nn.LeakyReLU(0.2, inplace=True))
        found.append(nn.Conv2d(channels[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*found)
        initialise(self.layers)
        if spectral_norm:
            with_spectral_norm(self.layers)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: a block is a convolution and what follows it."""
        return blocks_of(self.layers)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: (N, C, H, W); labels: see `Signature`."""
        return self.layers(self.label(images, labels))

    def features(
        self, images: Tensor, labels: Tensor | None = None, *, layer: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ray_gen.core.Featured`: after the activation of a convolution."""
        ends = ends_of(self.layers)[:-1]
        return with_features(self.layers, ends, self.label(images, labels), layer)
