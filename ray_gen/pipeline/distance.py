"""The distance of what a trained run's network sees of two images."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.pipeline.loading import load_as
from ray_gen.pipeline.model import Model
from ray_gen.weights import digest_of


class RunDistance(nn.Module):
    """mean (f(x) - f(y))² over the numbers of f: the encoder's posterior means, or the input of the
    discriminator's last layer (`Model.features`). Images are resized to those that the run was
    trained on (bilinear, antialiased)."""

    def __init__(
        self,
        *,
        run: str,
        field: str,
        part: Literal["auto", "encoder", "discriminator"] = "auto",
        digest: str | None = None,
    ) -> None:
        """run: path or URI of a run, a checkpoint or an exported model. field: the setting, for
        messages. digest: of the weights, as `description` says it. Raises Refused if the run is
        conditional, lacks the part, or has other weights."""
        super().__init__()
        try:
            model = load_as(Model, run, device="cpu")
            self._part: Literal["encoder", "discriminator"] = model.part_for_features(part)
            if self._part == "encoder":
                model.encoder()
            self.networks = model.networks if self._part == "encoder" else model.discriminators
        except Refused as refused:
            raise Refused(f"{field}.run: {refused}") from refused
        if model.experiment.label_count is not None:
            raise Refused(
                f"{field}.run: {run} is conditional, and a distance gives its network no labels; "
                "name a run without labels"
            )
        found = digest_of(self.networks.state_dict())
        if digest not in (None, found):
            raise Refused(
                f"{field}.digest: the {self._part} of {run} has the digest {found}, and not "
                f"{digest}; name the run or checkpoint that this run began with ({field}.run)"
            )
        self._model, self._field, self._run = model, field, run
        self.description = (
            f"the {self._part} of the run {model.name} after {model.images_seen} images, its "
            f"weights have the digest {found}"
        )

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] twice to (N,). Gradients reach only the second."""
        channels = self._model.experiment.image_shape[0]
        if images.shape[1] != channels:
            raise Refused(
                f"{self._field}.run: {self._run} sees images of {channels} channels, and these "
                f"have {images.shape[1]}; name a run of such images"
            )
        with torch.no_grad():
            wanted = self._features(images)
        apart = self._features(again) - wanted
        return apart.to(torch.promote_types(apart.dtype, torch.float32)).square().mean(1)

    def _features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] to (N, D)."""
        size = self._model.experiment.image_shape[1:]
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self._model.vectors_by(self.networks, 0.5 * (images + 1.0), self._part)
