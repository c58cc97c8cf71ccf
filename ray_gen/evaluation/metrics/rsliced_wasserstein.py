"""Sliced Wasserstein distance of reconstructions."""

from __future__ import annotations

from ray_gen.evaluation.metrics.sliced_wasserstein import SlicedWasserstein


class RslicedWasserstein(SlicedWasserstein):
    """`rsliced_wasserstein`: the distance of patches between reconstructions and the same crops of
    the held-out images that they were made from. It needs no weights. Blur moves it at the finest
    scale."""

    scores = {"rsliced_wasserstein": "lower"}
    sides = ("reconstructed", "originals")
    of_samples = False
    of_reconstructions = True
