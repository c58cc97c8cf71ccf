"""Calls a user's own classes once, before a run starts. What is wrong with them is then told in a
sentence on the driver, and not in a traceback of a worker."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ray_gen.core import (
    Batch,
    Losses,
    Networks,
    Objective,
    Phase,
    Reconstructs,
    Signature,
    Term,
    begin_phase,
    value_at,
)
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.objectives import CustomObjective
from ray_gen.sampling import latents_of, noise_for
from ray_gen.training.build import DTYPES, build_networks
from ray_gen.training.code import in_a_sentence
from ray_gen.training.labels import labels_in_turn
from ray_gen.training.step import check_losses


def rehearse(experiment: Experiment, objective: Objective) -> list[str]:
    """Calls each term of an objective, its `sample` and `reconstruct`, on the CPU with one group of
    random images. Returns sentences about what works but should not be so. Raises ExperimentError.
    """
    networks = build_networks(experiment, objective).train()
    numbers = torch.arange(experiment.group_size)
    low, high = objective.image_range
    images = torch.rand(
        (len(numbers), *experiment.image_shape),
        dtype=DTYPES[experiment.training.precision],
        generator=torch.Generator().manual_seed(0),
    )
    images = low + (high - low) * images
    wrong: list[str] = []
    for name, signature in objective.networks().items():
        networks[name].register_forward_hook(_noting(wrong, name, signature))
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        try:
            for phase in objective.phases():
                for name in phase.updates:
                    begin_phase(networks[name])
                for term in phase.terms:
                    _rehearse_term(experiment, networks, phase, term, images, numbers)
            _rehearse_uses(experiment, objective, networks.eval(), images, numbers)
        except ExperimentError as error:
            raise ExperimentError(wrong[:1] or error.problems) from error
        except (torch.OutOfMemoryError, MemoryError):  # the workers may have more
            return []
        draws = not torch.equal(before, torch.get_rng_state())
    if wrong and not isinstance(experiment.objective, CustomObjective):
        raise ExperimentError(wrong[:1])  # an objective of one's own may take what it likes
    return [_DRAWS] if draws else []


_DRAWS = (
    "a class of your own draws random numbers from torch, so the result depends on the number of "
    "workers; declare them as `noise` (see ray_gen.core.Noise and TakesNoise)"
)


def _noting(wrong: list[str], name: str, signature: Signature) -> Any:
    """A hook that notes in `wrong` where the output of a network differs from its signature."""
    wanted = signature.outputs

    def note(network: nn.Module, given: object, found: Any) -> None:
        named = isinstance(wanted, Mapping) and isinstance(found, Mapping)
        outputs = found if named else {"": found}
        for output, shape in (wanted if isinstance(wanted, Mapping) else {"": wanted}).items():
            one = outputs.get(output)
            if isinstance(one, Tensor) and one.shape[1:] == shape:
                continue
            several = signature.several_logits and shape == (1,)
            if several and isinstance(one, Tensor) and one.ndim in (2, 4):
                continue
            told = _in_words(outputs.get(output, found)) + (f" as {output}" if output else "")
            asked = ", ".join(map(str, ("N", *shape)))
            wrong.append(
                f"networks.{name}: {type(network).__name__} returned {told}; its signature asks "
                f"for ({asked})"
            )

    return note


def _in_words(found: object) -> str:
    """A tensor by its shape, anything else by its class."""
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    return f"a {type(found).__name__}"


class _Declared(dict[str, Tensor]):
    """The noise of a phase. Says so if a term takes what the phase does not declare."""

    def __init__(self, noise: Mapping[str, Tensor], where: str) -> None:
        super().__init__(noise)
        self._where = where

    def __missing__(self, name: str) -> Tensor:
        there = f"declares only {', '.join(self)}" if self else "declares none"
        raise ExperimentError(
            [
                f"{self._where} takes the noise {name!r}, but its phase {there}; add it to the "
                "`noise` of the phase"
            ]
        )


def _rehearse_term(
    experiment: Experiment,
    networks: Networks,
    phase: Phase,
    term: Term,
    images: Tensor,
    numbers: Tensor,
) -> None:
    where = f"objective: the term {term.name} of the phase {phase.name}"
    noise = noise_for(
        phase.noise, networks, experiment.seed, "rehearsal", numbers, dtype=images.dtype
    )
    batch = Batch(
        images,
        labels_in_turn(experiment, numbers),
        _Declared(noise, where),
        images_seen=torch.tensor(0.0),
        numbers={name: torch.tensor(value_at(of, 0.0)) for name, of in phase.numbers.items()},
        due=frozenset(term.weights),
        group_size=experiment.group_size,
    )
    with _told(where):
        losses = term.loss(networks, batch)
    if not isinstance(losses, Losses):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ExperimentError(
            [f"{where} returned {_in_words(losses)}; it must return ray_gen.core.Losses"]
        )
    try:
        check_losses(term, losses, batch.due, len(images))
    except ValueError as error:
        raise ExperimentError([f"objective: {error}"]) from error


@torch.no_grad()
def _rehearse_uses(
    experiment: Experiment,
    objective: Objective,
    networks: Networks,
    images: Tensor,
    numbers: Tensor,
) -> None:
    seed, dtype = experiment.seed, images.dtype
    labels = labels_in_turn(experiment, numbers)
    noise = noise_for(objective.sampling_noise, networks, seed, "rehearsal", numbers, dtype)
    found: dict[str, object] = {}
    if objective.has_prior:
        latents = latents_of(objective.latents, seed, "rehearsal", numbers, dtype)
        with _told("objective: `sample`"):
            found["sample"] = objective.sample(networks, latents, labels, noise)
    if isinstance(objective, Reconstructs):
        with _told("objective: `reconstruct`"):
            found["reconstruct"] = objective.reconstruct(networks, images, labels, noise)
    shape = experiment.picture_shape
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.shape != (len(images), *shape):
            raise ExperimentError(
                [
                    f"objective: `{name}` returned {_in_words(value)}; it must return images "
                    f"{('N', *shape)} in [0, 1]".replace("'", "")
                ]
            )


@contextmanager
def _told(where: str) -> Generator[None]:
    """Turns an exception of a user's class into a sentence with its place."""
    try:
        yield
    except (Refused, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):  # torch has no class of its own for it
            raise MemoryError from error
        raise ExperimentError([f"{where} raised {in_a_sentence(error)}"]) from error
