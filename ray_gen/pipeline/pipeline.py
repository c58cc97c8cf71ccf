"""`Pipeline`: load a trained run, use it, write it to files for others and read these again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self, SupportsFloat, SupportsIndex

import torch

from ray_gen.errors import Refused
from ray_gen.pipeline.arguments import Conditions, checked_count, whole_number
from ray_gen.pipeline.grid import Grid
from ray_gen.pipeline.loading import load_as
from ray_gen.pipeline.mixture import Mixture
from ray_gen.pipeline.pretrained import Weights
from ray_gen.pipeline.projects import Projects
from ray_gen.runs.captions import count_shown
from ray_gen.runs.checkpoints import NEWEST, Choice
from ray_gen.runs.pictures import samples_grid, zoom_of

LARGEST_ZOOM = 64
"""Pixels of a picture for a side of one pixel of an image."""

# `export` is imported where it is called: it imports torch.export, which sampling does not need.


class Pipeline(Projects):
    """A trained run.

        pipeline = ray_gen.load("digits")
        images = pipeline.sample(64, seed=0)     # float (64, C, H, W) in [0, 1]
        pipeline.grid(64).save("grid.png")       # a notebook shows a grid without `save`
        z = pipeline.encode(images)              # with an encoder: (64, latent_size)
        pipeline.decode(z + 0.1)

    See `Model` for what images, latents and labels may be.
    """

    def grid(
        self,
        count: SupportsIndex | None = None,
        labels: int | str | Sequence[int | str] | None = None,
        seed: SupportsIndex = 0,
        truncation: SupportsFloat | None = None,
        prior: Mixture | None = None,
        conditions: Conditions | None = None,
        *,
        zoom: SupportsIndex | None = None,
        numbered: bool = False,
    ) -> Grid:
        """A picture of samples, which a notebook shows: that of `ray-gen sample`.

            pipeline.grid(64)
            pipeline.grid(32, labels=["cat", "dog"], numbered=True).save("pets.png")

        count: number of samples. None: about 64. labels: classes of a conditional model, used in
        turn, by number or name. None: all. With at most 16 of them each column has one class.
        seed, truncation, prior, conditions: as for `sample`. zoom: side of one pixel of an image in
        the picture. None: small images are shown larger. numbered: write the number of each sample
        above it.
        """
        some = [labels] if isinstance(labels, (int, str)) else labels
        if some is not None and not len(some):
            raise Refused("labels: is empty; give at least one class, or leave it out")
        side = None if zoom is None else whole_number(zoom, "zoom")
        if side is not None and not 1 <= side <= LARGEST_ZOOM:
            raise Refused(f"zoom: {side} is not 1 to {LARGEST_ZOOM}")
        names = self.classes_in_turn(some)
        number = count_shown(len(names)) if count is None else checked_count(count)
        in_turn = None if some is None else [some[index % len(some)] for index in range(number)]
        images = self.sample(number, in_turn, seed, truncation, prior, conditions)
        picture = samples_grid(
            images,
            names,
            opacity=self.pixel_format.opacity,
            zoom=side or zoom_of(*images.shape[2:]),
            numbered=numbered,
        )
        return Grid(picture, f"{number} samples of {self.name}")

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

        ray_gen.load("digits").sample(64, seed=0)     # float (64, C, H, W) in [0, 1]
        ray_gen.load("digits", checkpoint="best").grid(64)

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
