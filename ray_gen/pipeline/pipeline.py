"""What one does with a trained run: beside sampling and encoding, walk through its latents."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from ray_gen import latent
from ray_gen.errors import Refused
from ray_gen.mixture import Mixture
from ray_gen.pipeline.exporter import exporter
from ray_gen.pipeline.files import image_files, read_images
from ray_gen.pipeline.inputs import (
    STACK,
    Array,
    Floats,
    Labels,
    all_whole,
    checked_latents,
    real,
    tensor_of,
    whole,
)
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import Weights


class Pipeline(Model):
    """A trained run. Where a walk takes latents, it takes images too if there is an encoder."""

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repository: str | os.PathLike[str],
        *,
        weights: Weights = "ema",
        device: str | torch.device | None = None,
        revision: str | None = None,
        custom_classes: bool = False,
    ) -> Pipeline:
        """An exported folder, or a repository OWNER/NAME of the Hugging Face hub; see
        `ray_gen.exporting.from_pretrained`."""
        return exporter().from_pretrained(
            folder_or_repository,
            weights=weights,
            device=device,
            revision=revision,
            custom_classes=custom_classes,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """`config.json`, `model.safetensors` and a model card in a new or empty folder."""
        return exporter().save_pretrained(self, folder)

    def push_to_hub(
        self,
        repository: str,
        *,
        formats: Sequence[str] | None = ("safetensors",),
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """The same in a repository OWNER/NAME of the Hugging Face hub; the address of the commit.
        See `ray_gen.exporting.push_to_hub`."""
        return exporter().push_to_hub(
            self, repository, formats=formats, private=private, token=token
        )

    def read(self, *paths: str | os.PathLike[str]) -> Tensor:
        """Images from files, or all below folders, as this run's data settings bring them in."""
        return read_images(image_files(paths), self.experiment)

    def fit_mixture(
        self,
        images: Floats,
        labels: Labels | None = None,
        components: SupportsIndex = 10,
        seed: SupportsIndex = 0,
    ) -> Mixture:
        """A prior for `sample` of this model, fitted to the posterior means of images with
        scikit-learn. Keep it with `Mixture.save`."""
        count, start = whole(components, "components"), whole(seed, "seed")
        return Mixture.fit(self.encode(images, labels), count, start, self.origin)

    def interpolate(
        self,
        first: Floats,
        last: Floats,
        steps: SupportsIndex = 9,
        labels: Labels | None = None,
        spherical: bool = True,
    ) -> Tensor:
        """Images on the way from each of `first` to its partner in `last`, both included:
        (N, steps, C, H, W).

        labels: one for each way. spherical: along great circles where the prior is normal; under a
        uniform prior, or none, every way is straight (`latent.interpolated`).
        """
        a, b = self._latents_of(first, "first"), self._latents_of(last, "last")
        if len(a) != len(b):
            raise Refused(f"first, last: {len(a)} and {len(b)} ends; give as many of both")
        prior = self.objective.latent
        normal = prior is not None and prior.distribution == "normal"
        ways = latent.interpolated(a, b, whole(steps, "steps"), spherical=spherical and normal)
        return self._decoded_rows(ways, self._labels(labels, len(a), in_turn=True))

    def arithmetic(
        self,
        plus: Iterable[Floats],
        minus: Iterable[Floats] = (),
        labels: Labels | None = None,
    ) -> Tensor:
        """The image of a sum: of each group of latents the mean is added or subtracted
        (`latent.combined`). (1, C, H, W).

        To go on with the latent itself, take `latent.combined`.
        """
        added, taken = self._groups(plus, "plus"), self._groups(minus, "minus")
        return self.decode(latent.combined(added, taken), labels)

    def traverse(
        self,
        dimensions: SupportsIndex | Sequence[int] | Array,
        base: Floats | None = None,
        extent: SupportsFloat | None = None,
        steps: SupportsIndex = 9,
        labels: Labels | None = None,
    ) -> Tensor:
        """Images of one latent with one number of it moved by -extent to extent, a row for each
        dimension: (dimensions, steps, C, H, W).

        base: None is the prior's mean (zeros without a prior). extent: None is 3, or for a uniform
        prior half its width. An odd number of steps has the base itself in the middle.
        """
        rows = all_whole(dimensions, "dimensions")
        mean, half_width = 0.0, 3.0
        prior = self.objective.latent
        if prior is not None and prior.distribution == "uniform":
            mean, half_width = (prior.low + prior.high) / 2, (prior.high - prior.low) / 2
        reach = half_width if extent is None else real(extent, "extent")
        base = torch.full(self.latent_shape, mean) if base is None else base
        start = self._latents_of(base, "base")
        if len(start) != 1:
            raise Refused(f"base: {len(start)} were given; take one of them, e.g. base[:1]")
        if not rows:
            raise Refused("dimensions: none is given; name at least one")
        ways = latent.traversed(start, rows, reach, whole(steps, "steps"))
        label = self._labels(labels, 1, in_turn=True)
        return self._decoded_rows(ways, None if label is None else label.repeat(len(rows)))

    def _groups(self, given: Iterable[Floats], argument: str) -> list[Tensor]:
        """The latents of each group."""
        if not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Refused(f"{argument}: give a list of groups, not {type(given).__name__}")
        return [self._latents_of(group, f"{argument}[{i}]") for i, group in enumerate(given)]

    def _latents_of(self, of: Floats, argument: str) -> Tensor:
        """Latents as they are, images encoded."""
        given = tensor_of(of, argument, STACK)
        shape = self.experiment.image_shape
        if given.shape[-3:] == shape and given.shape[1:] != self.latent_shape:
            self.encoder()
            if self.experiment.label_count is not None:
                raise Refused(
                    f"{argument}: this run is conditional, so images do not say enough; encode "
                    "them first: pipeline.encode(images, labels)"
                )
            return self.encode(given)
        return checked_latents(given, self.latent_shape, argument)

    def _decoded_rows(self, ways: Tensor, labels: Tensor | None) -> Tensor:
        """(N, steps, *latent_shape) and a label for each row to (N, steps, C, H, W)."""
        steps = ways.shape[1]
        each = None if labels is None else labels.repeat_interleave(steps)
        return self._mapped(self._decode, ways.flatten(0, 1), each).unflatten(0, (-1, steps))
