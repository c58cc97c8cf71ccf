"""A small autoencoder of 4 x 4 codes, with any discrete bottleneck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor, nn

from ray_gen import losses
from ray_gen.bottlenecks.kinds import quantiser_of
from ray_gen.core import (
    Batch,
    ImageShape,
    Losses,
    Networks,
    Noise,
    NoiseOf,
    Objective,
    Phase,
    Signature,
    Term,
    Weight,
    noise_of,
)
from ray_gen.experiment import Experiment
from ray_gen.experiment.bottlenecks import Bottleneck

CHANNELS, POSITIONS = 3, (4, 4)


class Resize(nn.Sequential):
    """A map to one of half or twice its sides."""

    def __init__(self, signature: Signature, *, width: int = 8) -> None:
        (inputs, start, _), (outputs, end, _) = signature.input, signature.output_shape
        resized = nn.Conv2d if start > end else nn.ConvTranspose2d
        layers = nn.Conv2d(inputs, width, 3, 1, 1), nn.Tanh(), resized(width, outputs, 4, 2, 1)
        super().__init__(*layers)


class Quantising(Objective):
    """min ‖x - decoder(z_q)‖² and the losses of the bottleneck."""

    image_range = (0.0, 1.0)
    sampled_from = ("encoder", "decoder", "bottleneck")
    averaged = ("encoder", "decoder")
    has_prior = False

    def __init__(
        self, *, image_shape: ImageShape, label_count: int | None, bottleneck: dict[str, Any]
    ) -> None:
        del label_count
        settings = TypeAdapter(Bottleneck).validate_python(bottleneck)
        given, taken = settings.channels(CHANNELS)
        self._weights = {name: Weight(value) for name, value in settings.weights().items()}
        self._bottleneck = {"channels": taken, "positions": POSITIONS, **settings.arguments()}
        self._encoder = Signature(image_shape, (given, *POSITIONS))
        self._decoder = Signature((taken, *POSITIONS), image_shape)
        self.latents = {"z": Noise((given, *POSITIONS))}

    def networks(self) -> Mapping[str, Signature]:
        """Images to encodings, and codes to images."""
        return {"encoder": self._encoder, "decoder": self._decoder}

    def modules(self) -> Mapping[str, nn.Module]:
        """The bottleneck."""
        return {"bottleneck": quantiser_of(**self._bottleneck)}

    def phases(self) -> Sequence[Phase]:
        """One, of one term."""
        term = Term("autoencoder", self._losses, weights=self._weights)
        noise = {"codes": NoiseOf("bottleneck")}
        return [Phase("autoencoder", self.sampled_from, (term,), noise)]

    def _losses(self, networks: Networks, batch: Batch) -> Losses:
        z = networks["encoder"](batch.images)
        codes = networks["bottleneck"](z, **noise_of(batch.noise, "codes"))
        output = networks["decoder"](codes.z_q).to(batch.images.dtype)
        error = losses.squared_error(output, batch.images)
        return Losses({"error": error, **codes.losses}, of_phase=codes.of_phase)

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """Of the codes of z."""
        z_q, _ = networks["bottleneck"].quantised(latents["z"])
        return networks["decoder"](z_q).float().clamp(0.0, 1.0)


KINDS: dict[str, dict[str, Any]] = {
    "vq": {"kind": "vq", "codes": 16, "decay": 0.9, "gradient": "rotation"},
    "unit": {"kind": "vq", "codes": 32, "start": "uniform", "normalised": True, "dead_below": 0.5},
    "fsq": {"kind": "fsq", "levels": [33, 32, 31]},
    "lfq": {
        "kind": "lfq",
        "bits": 5,
        "group_bits": 3,
        "entropy": {"kind": "linear", "start": 0.0, "end": 0.2, "until_images": 200},
    },
}


def experiment(kind: str, *overrides: str) -> Experiment:
    """One of `KINDS`."""
    from tests.helpers import TRAINING, experiment

    options = {"bottleneck": KINDS[kind]}
    objective = {"kind": "custom", "target": f"{__name__}:Quantising", "options": options}
    network = {"kind": "custom", "target": f"{__name__}:Resize"}
    parts = {"objective": objective, "networks": {"encoder": network, "decoder": network}}
    adam = {"kind": "adam", "learning_rate": 1e-2}
    more = {"optimizers": {"autoencoder": adam}, "training": TRAINING}
    return experiment({**parts, **more}, *overrides)
