"""`training.freeze`: the parts of networks that do not train (FreezeD, Mo et al. 2020).

A frozen part is a fixed function of its input. It stays in eval mode, so its BatchNorm normalises
by the statistics that it began with. No power iteration in it moves.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ray_gen.core import InBlocks, Networks, Phase
from ray_gen.experiment import Experiment, ExperimentError


def frozen_modules(experiment: Experiment, networks: Networks) -> list[nn.Module]:
    """What `training.freeze` names. Raises ExperimentError if there is no such network, or if it
    has fewer blocks."""
    found: list[nn.Module] = []
    for name, count in experiment.training.freeze.items():
        field = f"training.freeze.{name}"
        if name not in networks:
            raise ExperimentError(
                [f"{field}: the model has no network {name}; it has {', '.join(networks)}"]
            )
        network = networks[name]
        found += [network] if count == "all" else _nearest_blocks(network, count, field)
    return found


def _nearest_blocks(network: nn.Module, count: int, field: str) -> Sequence[nn.Module]:
    """The `count` blocks of a network that are nearest to the images."""
    kind = type(network).__name__
    if not isinstance(network, InBlocks):
        raise ExperimentError(
            [
                f"{field}: {kind} does not say what its blocks are (ray_gen.core.InBlocks); set it "
                "to all, or leave it out"
            ]
        )
    blocks = network.blocks_from_image()
    if count > len(blocks):
        raise ExperimentError(
            [f"{field}: {kind} has {len(blocks)} blocks, so {count} cannot be frozen; lower it"]
        )
    return blocks[:count]


def trainable(experiment: Experiment, phase: Phase, networks: Networks) -> dict[str, nn.Parameter]:
    """The parameters that a phase trains, by path. Raises ExperimentError if `training.freeze`
    leaves none."""
    modules = frozen_modules(experiment, networks)
    frozen = {parameter for module in modules for parameter in module.parameters()}
    found = {
        f"{name}.{key}": parameter
        for name in phase.updates
        for key, parameter in networks[name].named_parameters()
        if parameter not in frozen
    }
    if frozen and not found:
        names = ", ".join(name for name in phase.updates if name in experiment.training.freeze)
        raise ExperimentError(
            [
                f"training.freeze: leaves the phase {phase.name} nothing to train; freeze fewer "
                f"blocks of {names}"
            ]
        )
    return found
