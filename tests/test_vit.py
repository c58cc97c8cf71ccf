"""The vision transformer against timm's, on random networks of small sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.evaluation.embedding import extracted
from ray_gen.evaluation.extractors import Differentiable
from ray_gen.evaluation.extractors.transformers import Clip, Dinov2
from ray_gen.vit import of_clip, of_dino, quick_gelu

timm = pytest.importorskip("timm")


def theirs(**more) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    small = {"img_size": 42, "patch_size": 14, "embed_dim": 128, "depth": 3, "num_heads": 2}
    network = VisionTransformer(**small, **more).eval()
    for tensor in network.parameters():
        nn.init.normal_(tensor, std=0.1)
    return network


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda *given: seen.append(given[2]))
        for block in network.blocks
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("scales", [1.0, None])
def test_dino_is_timms(scales: float | None) -> None:
    """With LayerScale, as DINOv2, and without, as DINO."""
    network = theirs(init_values=scales, num_classes=0, global_pool="token")
    ours = of_dino({**network.state_dict(), "mask_token": torch.zeros(1, 128)}, "DINO", "f")
    x = images(2, 3, 42, 42)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), network(x), rtol=1e-4, atol=1e-5)
        for found, expected in zip(ours.tokens(x), tokens_of(network, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


_TO_HUGGING_FACE = {
    "cls_token": "vision_model.embeddings.class_embedding",
    "pos_embed": "vision_model.embeddings.position_embedding.weight",
    "patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "norm_pre.": "vision_model.pre_layrnorm.",
    "norm.": "vision_model.post_layernorm.",
    "blocks.": "vision_model.encoder.layers.",
    "head.weight": "visual_projection.weight",
}


def clip_tensors(network: nn.Module) -> dict[str, Tensor]:
    """timm's tensors by the names that Hugging Face gives those of CLIP."""
    found: dict[str, Tensor] = {
        "text_model.final.weight": torch.zeros(3),
        "logit_scale": torch.ones(()),
    }
    found["vision_model.embeddings.position_ids"] = torch.arange(10)
    for name, tensor in network.state_dict().items():
        for old, new in _TO_HUGGING_FACE.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        name = name.replace(".norm1.", ".layer_norm1.").replace(".norm2.", ".layer_norm2.")
        name = name.replace(".attn.proj.", ".self_attn.out_proj.")
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".self_attn.{part}_proj.")] = rows
        elif name != "head.bias":
            found[name] = tensor.squeeze(0).squeeze(0) if "embeddings" in name else tensor
    weight = found["vision_model.embeddings.patch_embedding.weight"]
    assert weight.shape == (128, 3, 14, 14)
    return found


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def clip_of_timm() -> nn.Module:
    network = theirs(
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        act_layer=QuickGelu,
        num_classes=24,
        global_pool="token",
    )
    nn.init.zeros_(network.head.bias)
    return network


def test_clip_is_timms() -> None:
    network = clip_of_timm()
    ours = of_clip(clip_tensors(network), "CLIP", "f")
    x = images(2, 3, 42, 42)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (2, 24)
    torch.testing.assert_close(quick_gelu(x), QuickGelu()(x))


def test_the_extractors_see_images_as_their_metrics_define(tmp_path: Path) -> None:
    from torchvision.transforms.v2 import functional

    images = torch.randint(0, 256, (2, 3, 60, 50), dtype=torch.uint8)
    dino = theirs(init_values=1.0, num_classes=0, global_pool="token")
    torch.save(dino.state_dict(), tmp_path / "dino.pth")
    ours = Dinov2(weights=str(tmp_path / "dino.pth"), device=torch.device("cpu"))
    large = functional.resize(images.float() / 255, [224, 224], interpolation=3, antialias=True)
    assert large.max() > 1.01 and large.min() < -0.01  # bicubic resizing overshoots
    seen = functional.normalize(large.clamp(0, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    network = of_dino(dino.state_dict(), "DINO", "f")
    found = extracted(ours, images)
    torch.testing.assert_close(found.vectors, network(seen).detach(), rtol=1e-4, atol=1e-4)
    assert ours.name == "DINOv2 of 3 blocks, patches of 14, 128 features"
    assert ours.resizing == "224x224, bicubic, antialiased, clamped to [0, 1]"
    assert found.logits is None

    clip = clip_tensors(clip_of_timm())
    torch.save(clip, tmp_path / "clip.bin")
    ours = Clip(weights=str(tmp_path / "clip.bin"), device=torch.device("cpu"))
    square = images[:, :, 5:55].float() / 255
    small = functional.resize(square, [42, 42], interpolation=3, antialias=True)
    std = [0.26862954, 0.26130258, 0.27577711]
    seen = functional.normalize(small.clamp(0, 1), [0.48145466, 0.4578275, 0.40821073], std)
    network = of_clip(clip, "CLIP", "f")
    found = extracted(ours, images)
    torch.testing.assert_close(found.vectors, network(seen).detach(), rtol=1e-4, atol=1e-4)
    assert ours.resizing == "42x42, of the middle square, bicubic, antialiased, clamped to [0, 1]"
    assert ours.digest is not None and isinstance(ours, Differentiable)


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys's kernel with a = -3/4."""
    a, x = -0.75, np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resized(row: np.ndarray, count: int) -> np.ndarray:
    """Along the first axis, at the places that DINOv2 takes: scale (count + 0.1) / length."""
    found = []
    for number in range(count):
        place = (number + 0.5) * len(row) / (count + 0.1) - 0.5
        first = int(np.floor(place)) - 1
        taps = np.arange(first, first + 4)
        weights = cubic(place - taps)
        found.append(np.tensordot(weights, row[np.clip(taps, 0, len(row) - 1)], 1))
    return np.stack(found)


def test_positions_are_resized_as_dinov2_does() -> None:
    network = of_dino(theirs(num_classes=0).state_dict(), "DINO", "f")
    grid = network.positions[1:].detach().double().numpy().reshape(3, 3, 128)
    expected = resized(resized(grid, 5).swapaxes(0, 1), 2).swapaxes(0, 1)
    found = network._positions(5, 2).detach()
    assert torch.equal(found[0], network.positions[0])
    np.testing.assert_allclose(found[1:].double().numpy().reshape(5, 2, 128), expected, atol=1e-6)
    assert network.tokens(images(1, 3, 70, 28))[0].shape == (1, 11, 128)


def test_other_weights_are_refused() -> None:
    tensors = theirs(num_classes=0).state_dict()
    registers = {**tensors, "register_tokens": torch.zeros(1, 4, 128)}
    cut = {name: tensor for name, tensor in tensors.items() if name != "blocks.1.norm2.bias"}
    flat = {**tensors, "pos_embed": torch.zeros(1, 9, 128)}
    for given, words in (
        (registers, "register_tokens"),
        (cut, r"blocks\.1\.norm_2\.bias"),
        (flat, "no square grid"),
        ({"fc.weight": torch.zeros(2, 2)}, "no embedding of patches"),
    ):
        with pytest.raises(Refused, match=rf"^my\.field: .*{words}"):
            of_dino(given, "a DINO", "my.field")


def test_a_vit_g_is_refused_with_the_sizes_that_are_read(tmp_path: Path) -> None:
    """Its MLP is SwiGLU."""
    gated = {
        name.replace(".fc1.", ".w12.").replace(".fc2.", ".w3."): tensor
        for name, tensor in theirs(num_classes=0).state_dict().items()
    }
    torch.save(gated, tmp_path / "g.pth")
    told = r"^evaluation\.features\.weights: the file does not fit a ViT-S, B or L of DINOv2"
    with pytest.raises(Refused, match=told):
        Dinov2(weights=str(tmp_path / "g.pth"), device=torch.device("cpu"))
