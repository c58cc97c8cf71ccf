"""Builds the objective, networks and optimisers that the settings name. Imports each class only
when it is built."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ray_gen.core import Networks, Objective, Phase, Settles, Signature
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.networks import CustomNetwork, Network
from ray_gen.experiment.objectives import CustomObjective
from ray_gen.networks.batch_norm import with_group_batch_norm
from ray_gen.noise import seed_of
from ray_gen.training import v0_1
from ray_gen.training.code import is_trusted, specs_to
from ray_gen.training.optimizers import PhaseOptimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Type of the weights, by `training.precision`: bf16 keeps weights in float32."""


_runs: set[Path] = set()
"""Run folders that may come from somebody else. Nothing is imported from them."""


def distrust(folder: Path) -> None:
    """From now on, an experiment cannot import a module from this folder. An import runs code, and
    a loaded run may come from anybody."""
    _runs.add(folder.resolve())


def _check_is_in_no_run(module: str, field: str) -> None:
    """Raises ExperimentError if a module lies in a run folder, and is not trusted. Looks for the
    module as an import would, but imports nothing, not even its package."""
    for spec in specs_to(module):
        within = spec.submodule_search_locations
        places = [*([spec.origin] if spec.has_location and spec.origin else []), *(within or ())]
        if is_trusted(spec):
            continue
        for place in (Path(place).resolve() for place in places):
            if any(place.is_relative_to(run) for run in _runs):
                raise ExperimentError(
                    [
                        f"{field}: {module} lies in a run folder ({place}), and ray_gen runs no "
                        "code from run folders; if you trust the module, give --trust-code (in "
                        "Python trust_code=True), or move it out and put it on PYTHONPATH"
                    ]
                )


def import_target(target: str, field: str) -> Any:
    """The class named "package.module:Name"."""
    module_name, _, name = target.partition(":")
    if not all(module_name.split(".")):
        raise ExperimentError([f"{field}: {target} names no module; write package.module:Name"])
    _check_is_in_no_run(module_name, field)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ExperimentError(
            [
                f"{field}: {target} cannot be imported ({error}); put its module on PYTHONPATH of "
                "every node"
            ]
        ) from error
    if not hasattr(module, name):
        raise ExperimentError([f"{field}: the module {module_name} has no {name}"])
    return getattr(module, name)


def class_of(target: str, field: str, *parts: str, of: type = object) -> type:
    """A user's class with methods of these names. ray_gen calls only such
    classes, so an experiment from somebody else cannot call arbitrary functions."""
    found = import_target(target, field)
    if isinstance(found, type) and issubclass(found, of):
        has = {name for base in found.__mro__[:-1] for name in vars(base)}
        if has.issuperset(parts):
            return found
    wanted = f"a subclass of torch.nn.{of.__name__}" if of is not object else "a class"
    raise ExperimentError(
        [f"{field}: {target} is not {wanted}" + (f" with {', '.join(parts)}" if parts else "")]
    )


def build_objective(experiment: Experiment) -> Objective:
    """The objective of a resolved experiment, checked against its networks and optimisers."""
    settings = experiment.objective
    field = "objective.kind"
    if isinstance(settings, CustomObjective):
        field = "objective.target"
        factory: Any = class_of(settings.target, field, "networks", "phases", "sample")
    else:
        factory = import_target(settings.targets["objective"], field)
    try:
        objective = factory(
            image_shape=experiment.image_shape,
            label_count=experiment.label_count,
            **({"opacity": experiment.data.has_opacity()} if settings.knows_opacity else {}),
            **settings.arguments(),
        )
    except (TypeError, ValueError) as error:
        raise ExperimentError([f"objective.options: {error}"]) from error
    except KeyError as error:
        raise ExperimentError([f"objective.options: {error} is missing"]) from error
    objective = v0_1.objective_of(objective)
    if not isinstance(objective, Objective):
        lacking = [part for part in _PARTS if not hasattr(objective, part)]
        raise ExperimentError(
            [
                f"{field}: {type(objective).__name__} lacks {', '.join(lacking)} of "
                "ray_gen.core.Objective; subclass it to inherit the optional members"
            ]
        )
    own = [name for name, of in objective.networks().items() if isinstance(of, nn.Module)]
    if own:
        raise ExperimentError(
            [f"{field}: {own[0]} among `networks()` is a module; return it from `modules()`"]
        )
    if experiment.training.stop_at_equilibrium is not None and not isinstance(objective, Settles):
        raise ExperimentError(
            [
                f"training.stop_at_equilibrium: {type(objective).__name__} lacks `watch` or "
                "`settled` (ray_gen.core.Settles), so it cannot say when it has settled; set "
                "training.stop_at_equilibrium to null"
            ]
        )
    names = ["labels", *objective.latents, *objective.sampling_noise]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ExperimentError(
            [f"{field}: two inputs of `sample` have the name {twice[0]}; rename a latent or noise"]
        )
    phases = {phase.name for phase in objective.phases()}
    _same_names("optimizers", experiment.optimizers, phases)
    _same_names("networks", experiment.networks, objective.networks())
    _check_calls(objective, field)
    return objective


def better_of(experiment: Experiment, score: str) -> Literal["min", "max"] | None:
    """Whether lower ("min") or higher ("max") values of a score are better. The settings say
    it. For a user's objective, its class may say it (`ray_gen.core.Evaluates`). None if neither
    does."""
    said, settings = experiment.better(score), experiment.objective
    if said is None and isinstance(settings, CustomObjective):
        kind: Any = class_of(settings.target, "objective.target")
        found = getattr(kind, "better", {}).get(score)
        return found if found in ("min", "max") else None
    return said


_PARTS = (
    *("image_range", "sampled_from", "latents", "has_prior", "sampling_noise", "averaged"),
    *("networks", "modules", "phases", "sample"),
)


def _check_calls(objective: Objective, field: str) -> None:
    """Refuses methods with the arguments of 0.1. A user's class that subclasses one of ours may
    still have such methods."""
    for name, given in (("sample", "latents"), ("reconstruct", "images")):
        method = getattr(objective, name, None)
        try:
            if method is not None:
                inspect.signature(method).bind(None, None, None, None)
        except TypeError:
            raise ExperimentError(
                [
                    f"{field}: {type(objective).__name__}.{name} must take (networks, {given}, "
                    "labels, noise): latents and noise are mappings by name since ray_gen 0.2"
                ]
            ) from None


def _own_modules(experiment: Experiment, objective: Objective) -> Mapping[str, nn.Module]:
    """The objective's own modules, newly built. Their initial weights are a function of
    the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(experiment.seed, "weights", "modules of the objective"))
        return objective.modules()


def _same_names(section: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    if set(given) != set(wanted):
        raise ExperimentError(
            [
                f"{section}: the experiment gives {', '.join(sorted(given))}, but the objective "
                f"needs exactly {', '.join(sorted(wanted))}"
            ]
        )


def build_networks(
    experiment: Experiment, objective: Objective, only: Iterable[str] | None = None
) -> Networks:
    """Networks and own modules with their initial weights, on the CPU: a function of the experiment
    alone.

    Each has its own random stream, so the weights of one do not depend on the size of another.
    only: names of those to build; None: all.
    """
    networks: dict[str, nn.Module] = {}
    signatures, own = objective.networks(), _own_modules(experiment, objective)
    both = signatures.keys() & own.keys()
    if both:
        raise ExperimentError(
            [f"objective: {min(both)} names both a network and an own module; rename one"]
        )
    wanted: Mapping[str, Signature | nn.Module] = {**signatures, **own}
    for name, signature in wanted.items():
        if only is not None and name not in only:
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(experiment.seed, "weights", name))
            if isinstance(signature, nn.Module):
                network = signature
            else:
                seen = _with_numbers(signature, experiment)
                network = _build_network(experiment.networks[name], seen, name)
        network = with_group_batch_norm(network, experiment.group_size)
        network.to(DTYPES[experiment.training.precision])
        networks[name] = network.to(memory_format=torch.channels_last)  # pyright: ignore
    return nn.ModuleDict(networks)


def _with_numbers(signature: Signature, experiment: Experiment) -> Signature:
    """The signature, with the numbers that labels have besides the class."""
    numbers = experiment.label_numbers
    if not numbers or signature.label_count is None:
        return signature
    return Signature(
        signature.input,
        signature.outputs,
        signature.label_count,
        signature.activation,
        signature.conditions,
        numbers,
    )


def _build_network(settings: Network, signature: Signature, name: str) -> nn.Module:
    field = f"networks.{name}"
    if isinstance(settings, CustomNetwork):
        factory: Any = class_of(settings.target, f"{field}.target", of=nn.Module)
        signature = v0_1.signature_of(signature)
    else:
        problem = settings.form_problem(signature.form, tuple(signature.conditions))
        if problem is not None:
            raise ExperimentError([f"{field}.kind: {problem}"])
        factory = import_target(settings.target_for(signature.form), f"{field}.kind")
    try:
        return factory(signature, **settings.arguments())
    except (TypeError, ValueError) as error:
        raise ExperimentError([f"{field}: {error}"]) from error


def build_optimizers(
    experiment: Experiment, phases: Iterable[Phase], networks: Networks
) -> dict[str, PhaseOptimizer]:
    """One optimiser for each phase, over the parameters of the networks that the phase updates."""
    return {
        phase.name: PhaseOptimizer(
            experiment.optimizers[phase.name],
            {
                f"{name}.{key}": parameter
                for name in phase.updates
                for key, parameter in networks[name].named_parameters()
            },
        )
        for phase in phases
    }
