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
    """A class whose objects map uint8 (N, 3, H, W) to float32 (N, D), or to Features.

    It is made with `options`; a torch module is moved to the device and put in eval mode. It may
    say of itself `resizing` (words for the protocol) and `digest`. A module without a `digest` is
    identified by its tensors, its options and the text of its file; anything else without one is
    not cached.
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
        """factory: what `target` names."""
        try:
            self._extract: Callable[[Tensor], Any] = factory(**(options or {}))
        except TypeError as error:
            raise Refused(f"evaluation.features.options: {target}: {error}") from error
        if not callable(self._extract):
            raise Refused(
                f"evaluation.features.target: {target} cannot be called with images; give it "
                "__call__"
            )
        if isinstance(self._extract, nn.Module):
            self._extract.to(device).eval().requires_grad_(False)
        self.name = f"{target} {dict(options)}" if options else target
        self.resizing = str(getattr(self._extract, "resizing", "its own"))
        self.digest = _digest(self._extract)

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 3, H, W) to what the class sees in them."""
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
    except (OSError, TypeError):  # typed into a notebook
        return None
    whole = digest_of(extract.state_dict()).encode() + text
    return hashlib.sha256(whole).hexdigest()[:32]
