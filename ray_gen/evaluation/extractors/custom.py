"""A user's own extractor, named "package.module:Name"."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.evaluation.extractors import Features
from ray_gen.evaluation.extractors.weights import digest_of


class Custom:
    """Wraps an object of the user's class. The object maps uint8 (N, 3, H, W) on the device to
    float32 (N, D), or to Features.

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
