"""FID of reconstructions."""

from __future__ import annotations

from ray_gen.evaluation.metrics.fid import Fid


class Rfid(Fid):
    """`rfid`: the Fréchet distance of features between reconstructions and the same crops of the
    held-out images that they were made from."""

    scores = {"rfid": "lower"}
    sides = ("reconstructed", "originals")
    of_samples = False
    of_reconstructions = True
