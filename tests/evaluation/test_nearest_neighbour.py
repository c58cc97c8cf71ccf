"""Memorisation: copies are found, new images are not, and the distances are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation import memorisation as module
from ray_gen.evaluation.memorisation import Nearest, Queries
from tests.evaluation.helpers import Made, measured, pictures


def scored(generated: torch.Tensor, training: torch.Tensor, held_out: torch.Tensor):
    (score,) = measured(
        ["nearest_neighbour"],
        Made(generated),
        Made(held_out, split="held_out"),
        training=Made(training, split="train"),
        world=World(),
    )
    return score


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 48, 40)])
def test_training_images_have_a_ratio_of_zero(shape: tuple[int, int, int]) -> None:
    training, held_out = pictures(300, 1, shape), pictures(100, 2, shape)
    assert scored(training[100:200], training, held_out).value == 0.0


def test_new_images_of_the_same_kind_have_a_ratio_of_one() -> None:
    images = pictures(3000, 1)
    score = scored(images[:1000], images[1000:2000], images[2000:])
    assert score.value == pytest.approx(1.0, abs=0.05)
    assert score.protocol["samples_nearer_than_99_percent_of_held_out"] < 0.03
    assert score.protocol["training"] == {"split": "train", "images": 1000, "size": "16x16"}


def test_near_copies_are_found_among_many_other_samples() -> None:
    images = pictures(900, 1)
    noise = torch.randint(-2, 3, images.shape)
    copies = (images[:30].int() + noise[:30]).clamp(0, 255).to(torch.uint8)
    score = scored(torch.cat([copies, images[600:870]]), images[:300], images[300:600])
    assert 0.7 < score.value < 1.1  # a tenth of copies does not move the median,
    assert score.protocol["samples_nearer_than_99_percent_of_held_out"] >= 0.1  # but raises this
    assert scored(copies, images[:300], images[300:600]).value < 0.3


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 64, 48)])
def test_distances_are_those_of_scikit_learn(shape: tuple[int, int, int]) -> None:
    samples, training = pictures(50, 1, shape), pictures(2500, 2, shape)
    queries, others = Queries(50, range(50)), Queries(50, range(50))
    queries.see(0, samples)
    nearest = Nearest.of(queries, others, shape, torch.device("cpu"))
    for start in range(0, 2500, 128):
        nearest.see(start, training[start : start + 128])
    nearest.finish()
    small = [
        F.interpolate(i.double() / 255, [min(32, s) for s in shape[1:]], mode="area")
        for i in (samples, training)
    ]
    flat = [images.flatten(1).numpy() for images in small]
    exact = NearestNeighbors(n_neighbors=1).fit(flat[1]).kneighbors(flat[0])[0][:, 0]
    assert np.allclose(nearest.squared.sqrt().numpy(), exact, rtol=1e-4)


def test_held_out_images_that_were_trained_on_are_refused() -> None:
    training = pictures(50, 1)
    with pytest.raises(Refused, match="not trained on"):
        scored(pictures(50, 2), training, training)


def test_more_images_than_the_limit_are_thinned_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "IMAGES", 40)
    images = pictures(300, 1)
    score = scored(images[:100], images[100:200], images[200:])
    assert score.protocol["samples"] == score.protocol["held_out"]["images"] == 40
