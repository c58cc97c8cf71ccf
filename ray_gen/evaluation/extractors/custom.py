"""A user's own extractor, named "package.module:Name".

A complete one, in a file my_features.py of the working directory:

    import torch
    from torch import nn

    class MyFeatures(nn.Module):
        resizing = "none: any size is taken"  # for the protocol

        def __init__(self, size: int = 64) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, size, 4, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            # self.layers.load_state_dict(torch.load("weights.pt", weights_only=True))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images.float() / 255)  # uint8 (N, 3, H, W) to float32 (N, size)

    ray-gen evaluate RUN --features custom:my_features:MyFeatures

In an experiment: `evaluation.features={kind: custom, target: my_features:MyFeatures, options:
{size: 32}}`. See `Custom` for what such a class may do, and `Features` for class scores.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.evaluation.extractors import Differentiable, Features
from ray_gen.weights import digest_of


class Custom:
    """Wraps an object of the user's class. The object maps uint8 (N, 3, H, W) on the device to
    float32 (N, D), or to Features. If `ray-gen project` is to use it, it also has `vectors_of`: see
    `Differentiable`.

    It is made with `options` as keyword arguments. A torch module is moved to the device and put in
    eval mode. The object may have attributes `resizing` (words for the protocol) and `digest`. A
    module without `digest` is identified by its tensors, its options and the text of its file. The
    features of other objects without `digest` are not cached.
    """

    channels = 3

    def __init__(
        self,
        *,
        target: str,
        factory: Callable[..., Any],
        options: Mapping[str, Any] | None = None,
        device: torch.device,
    ) -> None:
        """factory: the class that `target` names. Raises Refused if it cannot be made or called."""
        try:
            self._extract: Callable[[Tensor], Any] = factory(**(options or {}))
        except TypeError as error:
            raise Refused(f"evaluation.features.options: {target}: {error}") from error
        if not callable(self._extract):
            raise Refused(
                f"evaluation.features.target: {target} cannot be called with images; give the "
                "class a method __call__"
            )
        if isinstance(self._extract, nn.Module):
            self._extract.to(device).eval().requires_grad_(False)
        self.name = f"{target} {dict(options)}" if options else target
        self.resizing = str(getattr(self._extract, "resizing", "its own"))
        self.digest = _digest(self._extract)
        if isinstance(self._extract, Differentiable):
            self.vectors_of = self._extract.vectors_of

    def __call__(self, images: Tensor) -> Features:
        """images: uint8 (N, 3, H, W). The features that the object gives, not yet checked."""
        found = self._extract(images)
        return found if isinstance(found, Features) else Features(found)


def _digest(extract: object) -> str | None:
    given = getattr(extract, "digest", None)
    if isinstance(given, str):
        return given
    if not isinstance(extract, nn.Module):
        return None
    try:
        text = Path(inspect.getfile(type(extract))).read_bytes()
    except (OSError, TypeError):  # a class from a notebook has no file
        return None
    whole = digest_of(extract.state_dict()).encode() + text
    return hashlib.sha256(whole).hexdigest()[:32]
