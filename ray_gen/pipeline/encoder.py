"""The encoder of a trained run, for `ray_gen.data.encode`: decoded images to moments of z."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ray_gen.core import Posterior, declared, posteriors_of
from ray_gen.errors import Refused
from ray_gen.pipeline.loading import load_as
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import Weights
from ray_gen.pixels import to_range
from ray_gen.precision import full_precision
from ray_gen.runs.checkpoints import Choice


@dataclass(frozen=True)
class RunEncoder:
    """Encodes with the averaged weights of a run. It may be sent to other processes: each reads the
    run once, on the GPU that it may use."""

    run: str
    """Path or URI of a run, a checkpoint or an exported model."""
    weights: Weights
    checkpoint: Choice
    trust_code: bool
    digest: str
    """Of the model's weights. Another process refuses to encode with others: a run that still
    trains has a newer checkpoint meanwhile."""
    shape_CHW: tuple[int, int, int]
    has_deviations: bool

    def __call__(self, images_NHWC: Tensor) -> Tensor:
        """See `ray_gen.data.encode.Encoder`."""
        return moments(self._model, images_NHWC)

    @cached_property
    def _model(self) -> Model:
        model = load_as(
            Model,
            self.run,
            weights=self.weights,
            checkpoint=self.checkpoint,
            trust_code=self.trust_code,
        )
        if model.origin.weights != self.digest:
            raise Refused(
                f"{self.run}: has other weights than when the encoding began (the newest checkpoint"
                " has changed); name one by its images with --checkpoint, and encode into a new"
                " folder"
            )
        return model

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: other processes read it themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_model"}


def encoder_of(model: Model, run: str, checkpoint: Choice, *, trust_code: bool) -> RunEncoder:
    """The encoder of a loaded model. run, checkpoint, trust_code: how it was loaded. Raises Refused
    if its latent is not one map."""
    model.encoder()  # raises if there is none
    shapes = model.latent_shapes
    if len(shapes) > 1 or any(len(shape) != 3 for shape in shapes.values()):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise Refused(
            f"{model.name}: its latents are {told}, and only one map (channels, height, width) can"
            " be stored as an image; train a latent autoencoder (objective.kind=latent_autoencoder)"
        )
    if model.experiment.needs_labels:
        raise Refused(
            f"{model.name}: is conditional, so its latents depend on labels besides the image; use"
            " an autoencoder with objective.conditional=false"
        )
    if declared(model.objective.sampling_noise, model.networks):
        raise Refused(
            f"{model.name}: draws noise when it decodes, so a latent has no one image; use an"
            " autoencoder whose decoder takes no noise"
        )
    example = torch.zeros(1, *model.experiment.image_shape, device=model.device)
    mean, log_variance = _posterior(model, example.to(next(model.networks.parameters()).dtype))
    channels, height, width = mean.shape[1:]
    return RunEncoder(
        run,
        model.facts.weights or "ema",
        checkpoint,
        trust_code,
        model.origin.weights,
        (channels, height, width),
        log_variance is not None,
    )


def moments(model: Model, images_NHWC: Tensor) -> Tensor:
    """The moments of the only latent, as `ray_gen.data.encode.Encoder` gives them."""
    dtype = next(model.networks.parameters()).dtype
    images = to_range(images_NHWC.to(model.device), model.objective.image_range, dtype)
    with full_precision(model.device):  # so that GPUs of several kinds differ by rounding only
        mean, log_variance = _posterior(model, images)
    parts = [mean] if log_variance is None else [mean, (0.5 * log_variance).exp()]
    return torch.stack(parts, dim=1).float().cpu()


@torch.no_grad()
def _posterior(model: Model, images: Tensor) -> Posterior:
    """The posterior of the only latent. images: in the objective's range."""
    (found,) = posteriors_of(model.encoder(), model.networks, images, None).values()
    return found
