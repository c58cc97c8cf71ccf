"""Families: recipes for any data. Each is a pure function from the size of the images, whether
there are labels, whether the data are latents, and the amount of training, to an experiment with a
reason for each number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.data import from_short_form
from ray_gen.experiment.manual import explained, flow
from ray_gen.experiment.reading import Changes, apply_changes, data_of
from ray_gen.networks.sizes import size_problem
from ray_gen.recipes.families import (
    dcgan,
    fastgan,
    latent_fsq,
    latent_kl_f4,
    latent_kl_f8,
    latent_small,
    latent_vq,
    r3gan,
    sngan,
    stylegan2_ada,
    wgan_gp,
)
from ray_gen.recipes.families.facts import Facts, Tree, reasons_of, values_of

GIVEN = "As given."
"""The reason of a number that the user changed."""
PLACEHOLDER = "~/images"
"""The folder of images in a printed family whose data nobody named."""


@dataclass(frozen=True)
class Family:
    """A recipe for any data."""

    claim: str
    """What it is, and what was measured: the comment at its head."""
    images: int
    """`training.images` if nobody gives it."""
    batch: Callable[[float], int]
    """From the side of the images in pixels to `training.global_batch_size` if nobody gives it."""
    experiment: Callable[[Facts], Tree]
    """All fields but `data`, `name` and `seed`."""
    size_problem: Callable[[int, int], str | None]
    """From height and width to why it is not for such images. None if it is."""

    @classmethod
    def of(cls, module: ModuleType) -> Family:
        """From a file of this folder, whose docstring is the claim."""
        claim = (module.__doc__ or "").strip()
        sizes = getattr(module, "size_problem", size_problem)
        return cls(claim, module.IMAGES, module.batch, module.experiment, sizes)


FAMILIES: Mapping[str, Family] = {
    "r3gan": Family.of(r3gan),
    "stylegan2-ada": Family.of(stylegan2_ada),
    "fastgan": Family.of(fastgan),
    "dcgan": Family.of(dcgan),
    "sngan": Family.of(sngan),
    "wgan-gp": Family.of(wgan_gp),
    "latent-kl-f8": Family.of(latent_kl_f8),
    "latent-kl-f4": Family.of(latent_kl_f4),
    "latent-vq": Family.of(latent_vq),
    "latent-fsq": Family.of(latent_fsq),
    "latent-small": Family.of(latent_small),
}
"""By name."""


def family_text(name: str, changes: Changes = (), *, data_needed: bool = True) -> str:
    """The experiment of a family for the data that the changes name, as YAML with a reason beside
    each number. The other changes stand in it, too.

    data_needed: whether `data` must be named. Raises ExperimentError.
    """
    plain, reasons, _ = _made(name, changes, data_needed)
    head = "".join(f"# {line}\n" for line in FAMILIES[name].claim.splitlines())
    return head + explained(plain, reasons)


def chosen(name: str, changes: Changes) -> str:
    """What a family chose, in one line."""
    plain, reasons, facts = _made(name, changes, True)
    told = [
        f"{path}={flow(_at(plain, path))}"
        for path, why in reasons.items()
        if why != GIVEN and not isinstance(_at(plain, path), dict) and "_every_" not in path
    ]
    size = facts.height if facts.height == facts.width else f"[{facts.height},{facts.width}]"
    return f"{', '.join(told)}; reasons: ray-gen recipes {name} data.image_size={size}"


def _made(
    name: str, changes: Changes, data_needed: bool
) -> tuple[dict[str, Any], dict[str, str], Facts]:
    """The experiment as plain Python with the changes, the reasons by dotted path, and the facts
    that it follows from."""
    family = FAMILIES[name]
    given: dict[str, Any] = {}
    apply_changes(given, changes, Experiment)
    data = _data(name, given, data_needed)
    facts = _facts(family, name, given, data)
    tree = {
        "name": f"{name}-{_in_words(facts)}",
        "seed": 0,
        "data": data,
        **family.experiment(facts),
    }
    reasons, plain, before = dict(reasons_of(tree)), values_of(tree), values_of(tree)
    for path in apply_changes(plain, changes, Experiment):
        for other in [one for one in reasons if f"{one}.".startswith(f"{path}.")]:
            if other == path or _at(plain, other) != _at(before, other):
                reasons[other] = GIVEN
        for gone in [one for one in reasons if not _has(plain, one) and _has(before, one)]:
            del reasons[gone]  # another `kind` has no such field
    return plain, reasons, facts


def _data(name: str, given: dict[str, Any], needed: bool) -> dict[str, Any]:
    """The data as a mapping with `kind`. Raises ExperimentError if nobody named them."""
    data = from_short_form(given.get("data"))
    if isinstance(data, dict) and "kind" in data:
        return _with_size(data)
    if not needed:
        return {"kind": "folder", "path": PLACEHOLDER, **(data or {})}
    raise ExperimentError(
        [f"data: {name} is a family for any data; name them: {_command(name, None, data or {})}"]
    )


def _with_size(data: dict[str, Any]) -> dict[str, Any]:
    """The data. Latents say themselves how large they are. Raises ExperimentError if a place holds
    none."""
    if data["kind"] != "latents" or "image_size" in data or "path" not in data:
        return data
    # They import torch.
    from ray_gen.data.errors import DataError
    from ray_gen.data.sources.latents import LatentManifest

    try:
        _, height, width = LatentManifest.read(str(data["path"])).moments.shape_CHW
    except DataError as error:
        raise ExperimentError([str(error)]) from None
    return {**data, "image_size": [height, width]}


def _facts(family: Family, name: str, given: dict[str, Any], data: dict[str, Any]) -> Facts:
    size = data_of(data).height_and_width()
    if size is None:
        raise ExperimentError(
            [
                f"data.image_size: the numbers of {name} follow from the size of the images; give "
                f"it: {_command(name, data, {})}"
            ]
        )
    height, width = size
    problem = family.size_problem(height, width)
    if problem is not None:
        if data["kind"] == "latents":
            problem += (
                ". This is the size of the latents: encode images of another size, or with an"
                " autoencoder of another objective.downsampling"
            )
        raise ExperimentError([f"data.image_size: {name} {problem}"])
    training, objective = given.get("training"), given.get("objective")
    images = _whole(training, "images") or family.images
    batch = _whole(training, "global_batch_size") or family.batch(math.sqrt(height * width))
    conditional = isinstance(objective, dict) and objective.get("conditional") is True
    return Facts(height, width, conditional, images, batch, data["kind"] == "latents")


def _whole(section: Any, field: str) -> int | None:
    """A positive whole number in a section; None for anything else, which validation judges."""
    value = section.get(field) if isinstance(section, dict) else None
    return value if type(value) is int and value > 0 else None


def _command(name: str, data: dict[str, Any] | None, known: dict[str, Any]) -> str:
    """A command that works, with a place for what is not known."""
    place = f"folder:{PLACEHOLDER}"
    if data is not None:
        place = f"{data['kind']}:{data['path']}" if "path" in data else str(data["kind"])
    size = str(known.get("image_size", 64)).replace(" ", "")
    return f"ray-gen train {name} data={place} data.image_size={size}"


def _in_words(facts: Facts) -> str:
    square = facts.height == facts.width
    return str(facts.height) if square else f"{facts.height}x{facts.width}"


def _has(tree: Any, path: str) -> bool:
    """Whether something stands at a dotted path."""
    above, _, key = path.rpartition(".")
    here = _at(tree, above) if above else tree
    return isinstance(here, dict) and key in here


def _at(tree: Any, path: str) -> Any:
    """The value at a dotted path; None if there is none."""
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
