"""What a pipeline asks of the room above it: to be written for others, and read again.

`exporting` is made of pipelines, so nothing here may import it. This is its interface, seen from
below; as settings name what builds them (`Component.targets`), it is named, and imported when one
of these is first called. `exporting` holds itself against this interface, for the type checker.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch

from ray_gen.pipeline.pretrained import Weights

if TYPE_CHECKING:
    from ray_gen.pipeline.pipeline import Pipeline

TARGET = "ray_gen.exporting"


class Exporter(Protocol):
    """A module with these functions."""

    def save_pretrained(self, pipeline: Pipeline, folder: str | os.PathLike[str]) -> Path:
        """Files of a pipeline in a new or empty folder."""
        ...

    def push_to_hub(
        self,
        run: Pipeline,
        repository: str,
        *,
        formats: Sequence[str] | None,
        private: bool | None,
        token: str | None,
    ) -> str:
        """The same in a repository; the address of the commit."""
        ...

    def from_pretrained(
        self,
        folder_or_repository: str | os.PathLike[str],
        *,
        weights: Weights,
        device: str | torch.device | None,
        revision: str | None,
        custom_classes: bool,
    ) -> Pipeline:
        """A pipeline of such a folder or repository."""
        ...


def exporter() -> Exporter:
    """The room itself."""
    return cast("Exporter", importlib.import_module(TARGET))
