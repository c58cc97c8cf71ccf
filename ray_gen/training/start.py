"""`training.start_from`: which tensors of a trained model a new run begins with.

A *layer* is a module with tensors of its own, with those of its parametrisations. It is taken whole
or not at all: a bias, a running mean or a singular vector belongs to its weight, and the counts of
a codebook to its codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ray_gen.core import Networks, Objective, PhaseModule
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.storage import Folder
from ray_gen.training.state import State

FOLDER = "start"
"""Folder, in a run folder, of the tensors that the run begins with."""
_TENSORS, _FACTS = "model.safetensors", "start.json"
_SHOWN = 6
"""Number of remarks about one network that are printed. `start.json` has all."""


@dataclass(frozen=True)
class StartingPoint:
    """A trained model, as a new run needs it."""

    source: str
    """The location that was read."""
    told: str
    """What it is, in a few words."""
    weights: str
    """ema or raw: what was asked for."""
    tensors: Mapping[str, Tensor] = field(repr=False)
    """By `network.name`."""
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    """The architecture of each network."""
    classes: tuple[str, ...] | None = None
    """Names of the classes that its labels number. None without labels."""

    def digest(self) -> str:
        """SHA-256 of the names of classes, and of each tensor's name, type, shape and bytes."""
        found = hashlib.sha256(json.dumps(self.classes).encode())
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def write(self, run: Folder, table: Table | None = None) -> None:
        """Write the tensors and the table into a run folder: then it no longer needs the source.
        Takes as much room as the model's weights. table: None in the folder of a search."""
        folder = run / FOLDER
        folder.write_bytes(_TENSORS, save({n: t.contiguous() for n, t in self.tensors.items()}))
        facts = {name: getattr(self, name) for name in _KEPT} | {"digest": self.digest()}
        told = {**facts, "table": [asdict(part) for part in table.parts] if table else []}
        folder.write_text(_FACTS, json.dumps(told, indent=2, ensure_ascii=False))


_KEPT = ("source", "told", "weights", "kinds", "classes")


def kept(folder: Folder) -> StartingPoint | None:
    """What `StartingPoint.write` wrote into a run folder, or into the folder that a search keeps
    for its trials. None if it is not there, or not whole."""
    try:
        facts = json.loads((folder / FOLDER).read_text(_FACTS))
        tensors = load((folder / FOLDER).read_bytes(_TENSORS))
        given: dict[str, Any] = {name: facts[name] for name in _KEPT}
        given["classes"] = None if given["classes"] is None else tuple(given["classes"])
        origin = StartingPoint(tensors=tensors, **given)
        return origin if origin.digest() == facts["digest"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError):
        return None


@dataclass(frozen=True)
class Part:
    """What becomes of one network or own module."""

    name: str
    taken: tuple[str, ...] = ()
    """Its tensors that are taken from the source, wholly or in part."""
    new: Mapping[str, str] = field(default_factory=dict[str, str])
    """Its tensors that begin anew, and why."""
    left: tuple[str, ...] = ()
    """The source's tensors that nothing takes."""
    in_part: Mapping[str, str] = field(default_factory=dict[str, str])
    """Its tensors that are taken in part: which part."""
    remark: str = ""
    """About all of it."""

    def remarks(self) -> Iterator[str]:
        """A line for each layer that is not taken as it is."""
        layers = {_layer_of(name): why for name, why in {**self.new, **self.in_part}.items() if why}
        found = [f"{layer}: {why}" for layer, why in layers.items()]
        left = dict.fromkeys(map(_layer_of, self.left)) if self.taken else {}
        found += [f"{layer}: left, nothing takes it" for layer in left]
        yield from (f"{self.name}.{remark}" for remark in found[:_SHOWN])
        if len(found) > _SHOWN:
            yield f"{self.name}: {len(found) - _SHOWN} more in {FOLDER}/{_FACTS}"


@dataclass(frozen=True)
class Table:
    """What of a trained model a new run begins with."""

    told: str
    parts: tuple[Part, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    """The values, by `network.name`."""

    def lines(self) -> Iterator[str]:
        """The table as people read it."""
        yield self.told
        width = max(len(part.name) for part in self.parts) + 2
        yield f"{'tensors':<{width}}{'taken':>6}{'new':>6}{'left':>6}"
        for part in self.parts:
            counts = (part.taken, part.new, part.left)
            numbers = "".join(f"{len(names):>6}" for names in counts)
            yield f"{part.name:<{width}}{numbers}  {part.remark}".rstrip()
        for part in self.parts:
            yield from part.remarks()


def table_of(
    experiment: Experiment, objective: Objective, networks: Networks, origin: StartingPoint
) -> Table:
    """What these networks, with their initial weights, take from a trained model. Raises Refused if
    a network that should begin with it takes nothing."""
    start = experiment.training.start_from
    assert start is not None
    asked, named = start.networks, tuple(objective.networks())
    unknown = [name for name in asked if name not in networks] if asked != "auto" else []
    if unknown:
        raise Refused(
            f"training.start_from.networks: the model has no network {unknown[0]}; it has "
            f"{', '.join(named)}"
        )
    parts: list[Part] = []
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        source = _below(name, origin.tensors)
        if asked != "auto" and name not in asked:
            remark = "begins anew: it is not in training.start_from.networks"
            parts.append(_anew(name, network, source, remark))
        elif name not in named and name not in objective.sampled_from:
            parts.append(_anew(name, network, source, "begins anew: it is the state of a training"))
        else:
            part, values = _matched(name, network, source, origin, experiment)
            parts.append(part)
            tensors |= {f"{name}.{key}": value for key, value in values.items()}
    table = Table(origin.told, tuple(parts), tensors)
    _check(table, named if asked == "auto" else asked, origin)
    return table


def _check(table: Table, wanted: Sequence[str], origin: StartingPoint) -> None:
    """Raises Refused if one of the wanted networks takes nothing."""
    taking = [part.name for part in table.parts if part.taken]
    for part in table.parts:
        if part.name not in wanted or part.taken or not part.new:
            continue
        if not part.left:
            has = dict.fromkeys(name.partition(".")[0] for name in origin.tensors)
            why = f"{origin.told} has no {part.name}; it has {', '.join(has)}"
        else:
            first = next(part.remarks(), "")
            why = f"nothing of {part.name} fits {origin.told} ({part.remark or first})"
        remedy = "choose another model, or the same architecture and widths"
        if taking:
            remedy = f"set training.start_from.networks=[{','.join(taking)}] to begin it anew"
        raise Refused(f"training.start_from: {why}; {remedy}")


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one network, by their names in it."""
    inside = f"{name}."
    return {n.removeprefix(inside): t for n, t in tensors.items() if n.startswith(inside)}


def _layer_of(tensor: str) -> str:
    """The layer of a tensor: the module that holds it, also if it is parametrised. A tensor that
    the network itself holds is a layer by itself."""
    layer, parametrised, _ = tensor.partition(".parametrizations.")
    return layer if parametrised else tensor.rpartition(".")[0] or tensor


def _anew(name: str, network: nn.Module, source: Mapping[str, Tensor], remark: str) -> Part:
    return Part(name, new=dict.fromkeys(network.state_dict(), ""), left=(*source,), remark=remark)


def _matched(
    name: str,
    network: nn.Module,
    source: Mapping[str, Tensor],
    origin: StartingPoint,
    experiment: Experiment,
) -> tuple[Part, dict[str, Tensor]]:
    """What a network takes, with the values."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in network.state_dict().items():
        whole = isinstance(network, PhaseModule) and "." not in key  # its buffers move together
        layers.setdefault("" if whole else _layer_of(key), {})[key] = tensor
    values: dict[str, Tensor] = {}
    new: dict[str, str] = {}
    in_part: dict[str, str] = {}
    for layer, tensors in layers.items():
        rows = _rows(_module(network, layer), experiment, origin)
        if rows is not None and all(_differ_in_rows(tensors[k], source.get(k)) for k in tensors):
            found, count = rows, len(experiment.data.classes or ())
            if not found:
                new |= dict.fromkeys(tensors, "new, no class of the source has a name of one here")
                continue
            for key, tensor in tensors.items():
                values[key] = tensor.clone()
                values[key][list(found)] = source[key][list(found.values())].to(tensor.dtype)
                if len(found) < count:
                    in_part[key] = f"{len(found)} of {count} classes taken, by name"
            continue
        why = _why_new(tensors, source)
        if why is None:
            values |= {key: source[key] for key in tensors}
        else:
            new |= dict.fromkeys(tensors, why)
    if all(isinstance(_module(network, _layer_of(key)), nn.Embedding) for key in values):
        new |= dict.fromkeys(values, "new, no other layer fits")  # labels alone are no start
        values, in_part = {}, {}
    kinds = origin.kinds.get(name), _kind(experiment, name)
    remark = f"{kinds[0]} in the source, {kinds[1]} here" if kinds[0] and len({*kinds}) > 1 else ""
    left = tuple(key for key in source if key not in values)
    return Part(name, (*values,), new, left, in_part, remark), values


def _module(network: nn.Module, layer: str) -> nn.Module:
    """The module of a layer."""
    own = {
        *dict(network.named_parameters(recurse=False)),
        *dict(network.named_buffers(recurse=False)),
    }
    return network if layer in own else network.get_submodule(layer)


def _why_new(tensors: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> str | None:
    """Why a layer is not taken. None if it is."""
    for key, tensor in tensors.items():
        if key not in source:
            return "new, missing in the source"
        if source[key].shape != tensor.shape:
            there, here = (
                " x ".join(map(str, t.shape)) or "one number" for t in (source[key], tensor)
            )
            return f"new, other shape ({there} in the source, {here} here)"
    return None


def _rows(layer: nn.Module, experiment: Experiment, origin: StartingPoint) -> dict[int, int] | None:
    """Of a table of labels: each row that has a row of the same class in the source, and that row.
    None for another layer, and if the classes are the same or have no names."""
    ours, theirs = tuple(experiment.data.classes or ()), origin.classes
    is_table = isinstance(layer, nn.Embedding) and layer.num_embeddings == experiment.label_count
    if not is_table or theirs is None or ours == theirs:
        return None
    return {row: theirs.index(name) for row, name in enumerate(ours) if name in theirs}


def _differ_in_rows(here: Tensor, there: Tensor | None) -> bool:
    """Whether two tables differ at most in their number of rows."""
    return there is not None and here.shape[1:] == there.shape[1:]


def _kind(experiment: Experiment, name: str) -> str | None:
    """The architecture of a network. None for an own module."""
    return kinds_of(experiment).get(name)


def kinds_of(experiment: Experiment) -> dict[str, str]:
    """The architecture of each network; of users' own, the class."""
    return {
        name: getattr(network, "target", network.kind)
        for name, network in experiment.networks.items()
    }


@torch.no_grad()
def begin(state: State, table: Table) -> None:
    """Give the networks and their averages the values of the table."""
    tensors = state.networks.state_dict(keep_vars=True)
    for name, value in table.tensors.items():
        tensors[name].copy_(value)  # keeps the strides of the network's own
    for name, average in state.ema.items():
        average.load_state_dict(state.networks[name].state_dict())
