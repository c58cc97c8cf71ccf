"""A trained run as extractor, for images that differ too much from ImageNet's."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.evaluation.extractors import Features
from ray_gen.pipeline.loading import load_as
from ray_gen.pipeline.model import Model
from ray_gen.pixels import unit
from ray_gen.weights import digest_of

FIELD = "evaluation.features.run"


class TrainedRun:
    """The encoder's posterior means, or the input of the discriminator's last layer: see
    `Model.features`. Images are resized to the size of the run's training images."""

    takes_16_bits = True

    def __init__(
        self, *, run: str, part: Literal["auto", "encoder", "discriminator"], device: torch.device
    ) -> None:
        """run: path or URI of a run, a checkpoint or an exported model. part: auto takes the
        encoder if there is one. Raises Refused if the run is conditional or lacks the part."""
        try:
            self._model = load_as(Model, run, device=device)
        except Refused as refused:
            raise Refused(f"{FIELD}: {refused}") from refused
        experiment = self._model.experiment
        if experiment.label_count is not None:
            raise Refused(
                f"{FIELD}: {run} is conditional, and the classes of the images to compare are not "
                "known; name a run without labels"
            )
        self._device = device
        self.channels, height, width = experiment.image_shape
        self._size = height, width
        self.resizing = f"{height}x{width}, bilinear, antialiased"
        self._part: Literal["encoder", "discriminator"] = self._model.part_for_features(part)
        try:
            example = self._model.features(torch.zeros(1, *experiment.image_shape), part=self._part)
        except Refused as refused:
            raise Refused(f"{FIELD}: {run}: {refused}") from refused
        networks = self._model.networks
        if self._part == "discriminator":
            networks = self._model.discriminators
        self.digest = digest_of(networks.state_dict())
        kind, images = experiment.objective.kind, self._model.images_seen
        self.name = (
            f"{self._part} of the run {self._model.name} ({kind}, {images} images), "
            f"{example.shape[1]} features"
        )

    def __call__(self, images: Tensor) -> Features:
        """uint8 or uint16 (N, channels, H, W) to vectors (N, D), float32."""
        values = self._sized(unit(images))
        return Features(self._model.features(values, part=self._part).to(self._device))

    def vectors_of(self, images: Tensor) -> Tensor:
        """Floats (N, channels, H, W) in [0, 1] to vectors (N, D); gradients flow through it."""
        return self._model.vectors_of(self._sized(images), None, self._part).float()

    def _sized(self, values: Tensor) -> Tensor:
        if values.shape[2:] == self._size:
            return values
        return F.interpolate(values, self._size, mode="bilinear", antialias=True).clamp(0, 1)
