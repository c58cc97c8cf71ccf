"""DINOv2 and CLIP: vision transformers whose features are nearer to people's judgement than those
of Inception. Their published weights are read as nothing but tensors."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.evaluation.extractors import WEIGHTS, Features
from ray_gen.perceptual.features import IMAGENET_MEAN, IMAGENET_STD
from ray_gen.pixels import unit
from ray_gen.vit import VisionTransformer, of_clip, of_dino
from ray_gen.weights import digest_of, downloaded, read_weights

_DINO_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
_CLIP_URL = (
    "https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/main/pytorch_model.bin"
)
_CLIP_FILE = "clip-vit-large-patch14-336.bin"
"""Name of the downloaded file: that of the URL says nothing."""


class _Transformer:
    """A vision transformer's vector of the whole image."""

    channels = 3
    name: str
    resizing: str
    digest: str

    def __init__(
        self,
        network: VisionTransformer,
        side: int,
        *,
        crop: bool,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        """side: of the images that it sees, in pixels. crop: whether it sees the middle square of
        an image, and not all of it as a square. mean, std: of what it sees, for each channel in
        [0, 1]."""
        self._network, self._side, self._crop = network.to(device), side, crop
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._std = torch.tensor(std, device=device)[:, None, None]
        of = "of the middle square, " if crop else ""
        self.resizing = f"{side}x{side}, {of}bicubic, antialiased, clamped to [0, 1]"

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 3, H, W) to vectors (N, D), float32."""
        return Features(self.vectors_of(unit(images)))

    def vectors_of(self, images: Tensor) -> Tensor:
        """Floats (N, 3, H, W) in [0, 1] to vectors (N, D), float32; gradients flow through it."""
        size = (self._side, self._side)
        if self._crop:
            images = _middle_square(images)
        if images.shape[2:] != size:
            # Bicubic resizing overshoots. Pictures of 8 bits, as the metrics define, cannot.
            resized = F.interpolate(images, size, mode="bicubic", antialias=True)
            images = resized.clamp(0, 1)
        return self._network((images.float() - self._mean) / self._std)


def _middle_square(images: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, s, s), s the smaller of height and width."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


class Dinov2(_Transformer):
    """The class token of DINOv2's ViT-L/14 after its last LayerNorm, of images of 224 x 224: the
    features of FD-DINOv2 (Stein et al. 2023, "Exposing flaws of generative model evaluation
    metrics"), which is `fid` of them.

    weights: a file with the published state dict of a DINOv2: ViT-S, B or L, without registers.
    None: ViT-L/14's are downloaded on first use (1.2 GB). Raises Refused.
    """

    def __init__(self, *, weights: str | None = None, device: torch.device) -> None:
        path = Path(weights).expanduser() if weights else downloaded(_DINO_URL, WEIGHTS)
        tensors = read_weights(path, WEIGHTS)
        network = of_dino(tensors, "a ViT-S, B or L of DINOv2 without registers", WEIGHTS)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        super().__init__(network, 224, crop=False, mean=mean, std=std, device=device)
        width, depth = network.norm.weight.shape[0], len(network.blocks)
        self.name = f"DINOv2 of {depth} blocks, patches of {network.patch}, {width} features"
        self.digest = digest_of(tensors)


class Clip(_Transformer):
    """The image vector of OpenAI's CLIP ViT-L/14 for 336 x 336 pixels: the features of CMMD
    (Jayasumana et al. 2024, "Rethinking FID"), which is `mmd_rbf` of them. As in the authors' code,
    it sees the middle square of an image, resized as Pillow does (which also rounds to 8 bits).

    weights: a file with the state dict of such a network, with Hugging Face's names; tensors of its
    text network may be there. Its learned positions say the size of images. None: those of
    openai/clip-vit-large-patch14-336 are downloaded on first use (1.7 GB). Raises Refused.
    """

    def __init__(self, *, weights: str | None = None, device: torch.device) -> None:
        path = Path(weights).expanduser() if weights else downloaded(_CLIP_URL, WEIGHTS, _CLIP_FILE)
        tensors = read_weights(path, WEIGHTS)
        network = of_clip(tensors, "an image network of CLIP", WEIGHTS)
        mean = (0.48145466, 0.4578275, 0.40821073)
        std = (0.26862954, 0.26130258, 0.27577711)
        side = network.side
        super().__init__(network, side, crop=True, mean=mean, std=std, device=device)
        depth = len(network.blocks)
        self.name = f"CLIP of {depth} blocks, patches of {network.patch}, {side} pixels"
        self.digest = digest_of(tensors)
