"""Builds the objective, networks and optimisers that the settings name. Imports each class only
when it is built."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ray_gen.core import Networks, Objective, Phase, Pretrained, Settles, Signature
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.data import LatentsData
from ray_gen.experiment.distances import CustomDistance, DistanceSettings, distances_in
from ray_gen.experiment.networks import CustomNetwork, Network
from ray_gen.experiment.objective import ObjectiveSettings
from ray_gen.experiment.objectives import CustomObjective
from ray_gen.networks.batch_norm import with_group_batch_norm
from ray_gen.noise import seed_of
from ray_gen.objectives.in_latents import InLatents, check_bounds
from ray_gen.training import v0_1
from ray_gen.training.code import autoencoder_of, in_a_sentence, is_trusted, specs_to
from ray_gen.training.frozen import trainable
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
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            why = f"the module {error.name} is not found; start in the folder of "
            why += f"{module_name.replace('.', '/')}.py, or put it on PYTHONPATH of every node"
        else:
            why = f"it needs the module {error.name}, which is not installed here; install it"
        raise ExperimentError([f"{field}: {target} cannot be imported: {why}"]) from error
    except Exception as error:  # a user's module, which may raise anything
        raise ExperimentError(
            [f"{field}: {target} cannot be imported: {in_a_sentence(error)}"]
        ) from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ExperimentError([f"{field}: the module {module_name} has no {name}{hint}"])
    return getattr(module, name)


def class_of(target: str, field: str, *parts: str, of: type = object) -> type:
    """A user's class with methods of these names. ray_gen calls only such
    classes, so an experiment from somebody else cannot call arbitrary functions."""
    found = import_target(target, field)
    if isinstance(found, type) and issubclass(found, of):
        lacking = [part for part in parts if not _defines(found, part)]
        if not lacking:
            return found
        raise ExperimentError([f"{field}: {target} is a class without {', '.join(lacking)}"])
    wanted = f"a subclass of torch.nn.{of.__name__}" if of is not object else "a class"
    raise ExperimentError(
        [f"{field}: {target} is not {wanted}" + (f" with {', '.join(parts)}" if parts else "")]
    )


def _defines(kind: type, method: str) -> bool:
    """Whether a class has a method that is not only a line of the protocol `Objective`."""
    for base in kind.__mro__[:-1]:
        if method in vars(base):
            return base is not Objective and vars(base)[method] is not None
    return False


def build_objective(experiment: Experiment) -> Objective:
    """The objective of a resolved experiment, checked against its networks and optimisers."""
    settings = experiment.objective
    field = "objective.kind"
    if isinstance(settings, CustomObjective):
        field = "objective.target"
        factory: Any = class_of(settings.target, field, "networks", "phases", "sample")
    else:
        factory = import_target(settings.targets["objective"], field)
    given: dict[str, Any] = {
        "image_shape": experiment.image_shape,
        "label_count": experiment.label_count,
        **({"opacity": experiment.data.has_opacity()} if settings.knows_opacity else {}),
        **({"levels": experiment.data.levels()} if settings.knows_levels else {}),
    }
    options = {**settings.arguments(), **_distances_made_later(settings)}
    made = _made(factory, (), given, options, "objective")
    objective: Objective = v0_1.objective_of(made)
    _check_parts(objective, field)
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
    unused = experiment.objective.unused()
    _same_names("optimizers", experiment.optimizers, phases, unused)
    _same_names("networks", experiment.networks, objective.networks(), unused)
    known = {*objective.networks(), *_own_modules(experiment, objective)}
    for phase in objective.phases():
        for name in (name for name in phase.updates if name not in known):
            raise ExperimentError(
                [
                    f"{field}: the phase {phase.name} updates {name}, which is neither in "
                    "`networks()` nor in `modules()`"
                ]
            )
    _check_calls(objective, field)
    return _decoded(objective, experiment, field)


def _decoded(objective: Objective, experiment: Experiment, field: str) -> Objective:
    """The objective; of latents, with samples that an autoencoder decodes."""
    settings = autoencoder_of(experiment)
    if settings is None:
        return objective
    problem = check_bounds(objective)
    if problem is not None:
        raise ExperimentError([f"{field}: {problem}"])
    decodes = build_objective(settings)
    names = [name for name in decodes.sampled_from if name != "encoder"]

    def networks() -> Networks:
        return build_networks(settings, decodes, names)

    return InLatents(objective, decodes, networks, experiment.image_shape)


def _distances_made_later(settings: ObjectiveSettings) -> dict[str, Any]:
    """The arguments of distances whose class is a user's, or stands above the objectives, with
    `make`: it imports the class and builds it when the distance is loaded."""
    found: dict[str, Any] = {}
    given = settings.arguments()
    for name, distance in distances_in(settings).items():
        field = f"objective.{name}"
        if isinstance(distance, CustomDistance):
            make = partial(_own_distance, distance, field)
        elif distance.built_by is not None:
            make = partial(_distance_from_above, distance, field)
        else:
            continue
        found[name] = {**given[name], "make": make}
    return found


def _own_distance(settings: CustomDistance, field: str) -> nn.Module:
    factory: Any = class_of(settings.target, f"{field}.target", "forward", of=nn.Module)
    return _made(factory, (), {}, settings.options, field)


def _distance_from_above(settings: DistanceSettings, field: str) -> nn.Module:
    options = {name: value for name, value in settings.arguments().items() if name != "kind"}
    return import_target(str(settings.built_by), f"{field}.kind")(**options, field=field)


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


def _check_parts(objective: object, field: str) -> None:
    """Raises ExperimentError if an objective lacks a part, or if its latents have no names."""
    name = type(objective).__name__
    lacking = [part for part in _PARTS if not hasattr(objective, part)]
    if lacking:
        subclass = isinstance(objective, Objective)
        remedy = "set it" if subclass else "subclass it to inherit the optional members"
        raise ExperimentError(
            [f"{field}: {name} lacks {', '.join(lacking)} of ray_gen.core.Objective; {remedy}"]
        )
    if not isinstance(getattr(objective, "latents"), Mapping):  # noqa: B009
        raise ExperimentError(
            [f"{field}: `latents` of {name} must map names to Noise, as in {{'z': Noise((64,))}}"]
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


def _same_names(
    section: str, given: Iterable[str], wanted: Iterable[str], unused: Iterable[str]
) -> None:
    if set(given) - set(unused) != set(wanted):
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
                if isinstance(network, Pretrained):
                    network.load()
            else:
                seen = _as_data_asks(signature, experiment)
                network = _build_network(experiment.networks[name], seen, name)
        network = with_group_batch_norm(network, experiment.group_size)
        network.to(DTYPES[experiment.training.precision])
        networks[name] = network.to(memory_format=torch.channels_last)  # pyright: ignore
    return nn.ModuleDict(networks)


def _as_data_asks(signature: Signature, experiment: Experiment) -> Signature:
    """The signature, with the numbers that labels have besides the class, and without a last tanh
    if the data are latents, which have no bounds."""
    numbers = experiment.label_numbers if signature.label_count is not None else 0
    bounded = not isinstance(experiment.data, LatentsData)
    if not numbers and (bounded or signature.activation == "identity"):
        return signature
    return Signature(
        signature.input,
        signature.outputs,
        signature.label_count,
        signature.activation if bounded else "identity",
        signature.conditions,
        numbers,
        signature.several_logits,
        signature.reconstructs,
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
        problem = settings.labels_problem(signature.form)
        if problem is not None and signature.label_count is not None:
            raise ExperimentError([f"{field}.labels: {problem}"])
        factory = import_target(settings.target_for(signature.form), f"{field}.kind")
    return _made(factory, (signature,), {}, settings.arguments(), field)


def _made(
    factory: Any,
    ordered: tuple[Any, ...],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    field: str,
) -> Any:
    """`factory(*ordered, **given, **options)`. Raises ExperimentError if it does not take these
    arguments, or raises itself. given: what ray_gen passes; options: what the experiment passes."""
    name = getattr(factory, "__name__", str(factory))
    takes = [*inspect.signature(factory).parameters.values()][len(ordered) :]
    names = [one.name for one in takes if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    if not any(one.kind is one.VAR_KEYWORD for one in takes):
        if any(one not in names for one in given):
            raise ExperimentError(
                [
                    f"{field}.target: {name} must take {' and '.join(given)} by keyword: "
                    f"def __init__(self, *, {', '.join(given)}, ...)"
                ]
            )
        for one in (one for one in options if one not in names):
            own = [other for other in names if other not in given]
            told = f"takes {', '.join(own)}" if own else "takes none"
            raise ExperimentError([f"{field}.options.{one}: {name} has no such option; it {told}"])
    needed = [one.name for one in takes if one.name in names and one.default is one.empty]
    for one in (one for one in needed if one not in given and one not in options):
        raise ExperimentError([f"{field}.options: {one} is missing; {name} needs it"])
    try:
        return factory(*ordered, **given, **options)
    except Refused:
        raise
    except (TypeError, ValueError) as error:
        raise ExperimentError([_located(str(error), factory, options, field)]) from error
    except Exception as error:
        raise ExperimentError([f"{field}: {name} raised {in_a_sentence(error)}"]) from error


def _located(problem: str, factory: Any, options: Mapping[str, Any], field: str) -> str:
    """A problem that a class of this package or a user's class found, with its field. Ours begins
    with the field if it concerns one; the options of a user's class are in `options`."""
    if not factory.__module__.startswith("ray_gen."):
        return f"{field}.options: {problem}"
    return f"{field}{'.' if problem.partition(':')[0] in options else ': '}{problem}"


def build_optimizers(
    experiment: Experiment, phases: Iterable[Phase], networks: Networks
) -> dict[str, PhaseOptimizer]:
    """One optimiser for each phase, over the parameters of the networks that the phase updates,
    except for the frozen ones."""
    return {
        phase.name: PhaseOptimizer(
            experiment.optimizers[phase.name], trainable(experiment, phase, networks)
        )
        for phase in phases
    }
