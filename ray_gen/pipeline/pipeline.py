"""`Pipeline`: load a trained run, use it, write it to files for others and read these again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from ray_gen.pipeline.loading import load_as
from ray_gen.pipeline.pretrained import Weights
from ray_gen.pipeline.walks import Walks
from ray_gen.runs.checkpoints import NEWEST, Choice

# `export` is imported where it is called: it imports torch.export, which sampling does not need.


class Pipeline(Walks):
    """A trained run."""

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repository: str | os.PathLike[str],
        *,
        weights: Weights = "ema",
        device: str | torch.device | None = None,
        revision: str | None = None,
        custom_classes: bool = False,
    ) -> Self:
        """Load an exported folder, or a repository OWNER/NAME of the Hugging Face hub; see
        `ray_gen.pipeline.export.from_pretrained`."""
        from ray_gen.pipeline import export

        return export.from_pretrained(
            cls,
            folder_or_repository,
            weights=weights,
            device=device,
            revision=revision,
            custom_classes=custom_classes,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `config.json`, `model.safetensors` and a model card to a new or empty folder."""
        from ray_gen.pipeline import export

        return export.save_pretrained(self, folder)

    def push_to_hub(
        self,
        repository: str,
        *,
        formats: Sequence[str] | None = ("safetensors",),
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Write the same files to a repository OWNER/NAME of the Hugging Face hub. Returns the
        address of the commit. See `ray_gen.pipeline.export.push_to_hub`."""
        from ray_gen.pipeline import export

        return export.push_to_hub(self, repository, formats=formats, private=private, token=token)


def load(
    run: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    device: str | torch.device | None = None,
    checkpoint: Choice = NEWEST,
    trust_code: bool = False,
) -> Pipeline:
    """A pipeline from a run, one of its checkpoints, or a folder of `export`.

    run: a path, a URI, or the name of a run in the storage ($RAY_GEN_STORAGE, else
    ~/ray_gen_runs). device None: a GPU if there is one. checkpoint: "newest", "best", or a number
    of images; `str(pipeline.facts)` says what was taken. trust_code: run the source files of own
    classes (`kind: custom`) that the folder holds, and first say on stderr which; without it, these
    classes are imported as any other module, and nothing in the folder runs. Raises Refused or its
    subclass CheckpointError; a damaged checkpoint is refused, and the message names the others.
    """
    return load_as(
        Pipeline,
        run,
        weights=weights,
        device=device,
        checkpoint=checkpoint,
        trust_code=trust_code,
    )
