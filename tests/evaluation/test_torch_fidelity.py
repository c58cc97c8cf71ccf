"""Our scores against those of torch-fidelity for the same images, from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ray_gen.distributed import World
from ray_gen.evaluation.extractors.inception import Inception
from tests.evaluation.helpers import Made, Tiny, by_name, inception_weights, measured, pictures

NAMES = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "inception_score": "inception_score_mean",
    "precision": "precision",
    "recall": "recall",
}


class Pixels(Dataset[Tensor]):
    """A set of images in the form that torch-fidelity takes."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def both(count: int, extractor: Any, **theirs: Any) -> Iterator[tuple[str, float, float]]:
    """(name, our value, torch-fidelity's value) for each metric."""
    from torch_fidelity import calculate_metrics

    fake, real = pictures(count, 1, (3, 32, 32)), pictures(count, 2, (3, 32, 32))
    settings = {"kid_subset_size": min(1000, count // 2)}
    expected = calculate_metrics(
        input1=Pixels(fake),
        input2=Pixels(real),
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        cuda=False,
        cache=False,
        rng_seed=7,
        save_cpu_ram=True,  # no loader processes
        verbose=False,
        **settings,
        **theirs,
    )
    scores = by_name(
        measured(
            list(NAMES),
            Made(fake),
            Made(real),
            extractor=extractor,
            world=World(),
            seed=7,
            **settings,
        )
    )
    for ours, name in NAMES.items():
        yield ours, scores[ours].value, expected[name]
    for ours in ("kid", "inception_score"):
        spread = scores[ours].spread
        assert spread is not None
        yield ours, spread, expected[NAMES[ours].replace("_mean", "_std")]


def check(values: Iterator[tuple[str, float, float]]) -> None:
    for name, ours, theirs in values:
        assert ours == pytest.approx(theirs, rel=1e-3 if name == "fid" else 1e-4), name


def test_4096_images_through_the_same_small_network() -> None:
    import torch_fidelity

    class Registered(torch_fidelity.FeatureExtractorBase):
        """Tiny in the form of torch-fidelity's extractors."""

        def __init__(self, name: str, features: list[str], **_: Any) -> None:
            super().__init__(name, features)
            self.tiny = Tiny(64)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found = self.tiny(images)
            return tuple(
                {"vectors": found.vectors, "logits": found.logits}[n] for n in self.features_list
            )

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "vectors", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "vectors"

    torch_fidelity.register_feature_extractor("ray_gen_tiny", Registered)
    check(both(4096, Tiny(64), feature_extractor="ray_gen_tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [16, pytest.param(4096, marks=pytest.mark.timeout(20_000))])
def test_images_through_inception(tmp_path: Path, count: int) -> None:
    path = inception_weights(tmp_path / "random.pth")
    ours = Inception(weights=str(path), device=torch.device("cpu"))
    check(
        both(
            count,
            ours,
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(path),
        )
    )
