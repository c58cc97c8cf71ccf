"""The labels that networks get: classes, standardised numbers, or both in one tensor. See
`ray_gen.core.Signature.label_numbers`."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.experiment import Experiment

REACH = 2.0
"""Standard deviations: samples for which no numbers are given spread over the mean ± this."""


def labels_of(
    experiment: Experiment, classes: Tensor | None, conditions: Tensor | None
) -> Tensor | None:
    """Labels of images with these classes, int64 (N,), and conditions, (N, K) in the data's own
    units. None if the objective is not conditional, or if they lack what it needs."""
    statistics = experiment.data.condition_statistics or ()
    if experiment.label_count is None or (experiment.label_count and classes is None):
        return None
    if not statistics:
        return classes
    if conditions is None:
        return None
    given = conditions.double()
    mean = given.new_tensor([one.mean for one in statistics])
    deviation = given.new_tensor([one.deviation for one in statistics])
    return _joined(experiment, classes, (given - mean) / deviation)


def labels_in_turn(experiment: Experiment, numbers: Tensor) -> Tensor | None:
    """Labels of the samples with these numbers, int64 (N,): all classes in turn, and conditions
    spread over the mean ± 2 deviations, but not beyond the data. A label depends only on the
    sample's number. None if the objective is not conditional."""
    count = experiment.label_count
    if count is None:
        return None
    classes = numbers % count if count else None
    statistics = experiment.data.condition_statistics or ()
    if not statistics:
        return classes
    # An additive recurrence (Roberts 2018): multiples of the powers of 1 / φ, where φ solves
    # φ^(K + 1) = φ + 1, fill a cube of K dimensions evenly, for any number of samples.
    root = 2.0
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (len(statistics) + 1))
    powers = torch.arange(1, len(statistics) + 1, dtype=torch.float64, device=numbers.device)
    places = (0.5 + numbers.double()[:, None] * root**-powers) % 1.0
    low = places.new_tensor([(one.low - one.mean) / one.deviation for one in statistics])
    high = places.new_tensor([(one.high - one.mean) / one.deviation for one in statistics])
    low, high = low.clamp(min=-REACH), high.clamp(max=REACH)
    return _joined(experiment, classes, low + places * (high - low))


def _joined(experiment: Experiment, classes: Tensor | None, standardised: Tensor) -> Tensor:
    parts = [standardised.float()]
    if experiment.label_count and classes is not None:
        parts.insert(0, classes.float()[:, None])
    return torch.cat(parts, dim=1)
