"""The InceptionV3 of FID's definition: TensorFlow's network of 2015 with its resizing."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from ray_gen.evaluation.extractors import WEIGHTS, Features
from ray_gen.evaluation.fidelity import torch_fidelity
from ray_gen.weights import digest_of, downloaded, misfit, read_weights

_MODULE = "feature_extractor_inceptionv3"


class Inception:
    """torch-fidelity's extractor: 2,048 pooled features, and 1,008 logits without their bias.

    weights: a file with its state dict. None: the weights ported from TensorFlow are downloaded on
    first use (91 MB, torch-fidelity's release 0.2.0). Raises Refused.
    """

    channels = 3
    name = "inception_v3 of TensorFlow 2015, 2048 pooled features"
    resizing = "299x299, bilinear as TensorFlow 1.x, no antialiasing"

    def __init__(self, *, weights: str | None = None, device: torch.device) -> None:
        build = torch_fidelity(_MODULE, "FeatureExtractorInceptionV3")
        if weights is None:
            path = downloaded(torch_fidelity(_MODULE, "URL_INCEPTION_V3"), WEIGHTS)
        else:
            path = Path(weights).expanduser()
        tensors = read_weights(path, WEIGHTS)
        # The constructor of torch-fidelity unpickles a file. So it gets a file that was written
        # here, from tensors that were read safely.
        written = io.BytesIO()
        torch.save(tensors, written)
        written.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):
                network: nn.Module = build("inception", ["2048", "logits_unbiased"], written)
        except RuntimeError as error:
            raise misfit(error, "torch-fidelity's InceptionV3", WEIGHTS) from error
        self._network = network.to(device)
        self.digest = digest_of(tensors)

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 3, H, W) to vectors (N, 2048) and logits (N, 1008), float32."""
        vectors, logits = self._network(images)
        return Features(vectors, logits)
