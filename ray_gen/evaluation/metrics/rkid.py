"""KID of reconstructions."""

from __future__ import annotations

from ray_gen.evaluation.metrics.kid import Kid


class Rkid(Kid):
    """`rkid`: the kernel distance of features between reconstructions and the same crops of the
    held-out images that they were made from. It has the settings of `kid`."""

    scores = {"rkid": "lower"}
    sides = ("reconstructed", "originals")
    of_samples = False
    of_reconstructions = True
