"""The README.md of an exported model: what it is, how to load it, how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_gen.core import Objective
from ray_gen.experiment import Experiment
from ray_gen.experiment.data import Condition
from ray_gen.pipeline.pretrained import Facts, finite_metrics, published
from ray_gen.pixels import channels_in_words
from ray_gen.training.code import custom_targets
from ray_gen.version import __version__

CARD = "README.md"
_NAMED_CLASSES = 30


@dataclass(frozen=True)
class ExportedFile:
    """One file of an exported model."""

    name: str
    bytes: int
    content: str
    """Its content in a few words."""
    difference: float | None = None
    """Largest |difference| between the outputs of the file, read back, and the original's. None:
    not run."""

    def checked(self) -> str:
        """The difference as text."""
        return "–" if self.difference is None else f"{self.difference:.2g}"


def card(
    experiment: Experiment,
    objective: Objective,
    facts: Facts,
    files: Sequence[ExportedFile],
    truncation: float | None = None,
) -> str:
    """The text of the card, in the format of the Hugging Face hub. truncation: that of the styles
    in the programs."""
    sections = [
        _head(experiment, objective),
        _summary(experiment, facts),
        _use(experiment, objective, files),
        _truncation(truncation, files),
        _files(files),
        _metrics(facts),
        _recipe(published(experiment)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(experiment: Experiment, objective: Objective) -> str:
    kind = experiment.objective.kind
    lines = ["---", "library_name: ray_gen", "tags:", "- ray_gen", f"- {kind}"]
    if objective.has_prior and experiment.label_count is None:
        lines.append("pipeline_tag: unconditional-image-generation")
    return "\n".join([*lines, "---"])


def _summary(experiment: Experiment, facts: Facts) -> str:
    what = experiment.objective.title
    channels, height, width = experiment.picture_shape
    pictures = experiment.data.pictures
    told = channels_in_words(channels, opacity=pictures.has_opacity(), bits=pictures.bits)
    known = "" if told in ("grey", "RGB") else f" ({told})"
    size = f"{channels} x {height} x {width}"
    given = ["their class"] if experiment.label_count else []
    given += [one.name for one in _conditions(experiment)]
    conditional = f" given {' and '.join(given)}" if given else ""
    trained = "" if facts.images is None else f", trained on {facts.images:,} images"
    weights = {"ema": " Its weights are averages over training (EMA).", "raw": "", None: ""}
    decoder = experiment.data.decoded_by()
    decodes = "" if decoder is None else f" The model draws latents, which {decoder} decodes."
    return (
        f"# {facts.name or experiment.name}\n\n{what} of {size} images{known}{conditional}"
        f"{trained}; made with ray_gen {__version__}.{weights[facts.weights]}"
        f"{decodes}"
    )


def _recipe(experiment: Experiment) -> str:
    """The experiment, without that of an autoencoder."""
    told = experiment.model_copy(update={"data": experiment.data.brief()})
    return f"## Recipe\n\n```yaml\n{told.to_yaml()}```"


def _conditions(experiment: Experiment) -> Sequence[Condition]:
    """The numbers that the networks get."""
    return (experiment.data.condition_statistics or ()) if experiment.label_numbers else ()


def _use(experiment: Experiment, objective: Objective, files: Sequence[ExportedFile]) -> str:
    parts = ["## Use"]
    shape = ", ".join(map(str, experiment.picture_shape))
    if any(file.name.endswith(".safetensors") for file in files):
        labels = ", labels" if experiment.label_count else ""
        labels += ", conditions=conditions" if experiment.label_numbers else ""
        second = (
            f"again = model.reconstruct(images{labels})  # float (N, {shape}) in [0, 1], both"
            if not objective.has_prior
            else f"images = model.sample(64, seed=0)  # float (64, {shape}) in [0, 1]"
        )
        parts.append(
            "```python\nfrom ray_gen import Pipeline\n\n"
            f'model = Pipeline.from_pretrained("FOLDER_OR_REPOSITORY")\n{second}\n```'
        )
    targets = custom_targets(experiment)
    if targets:
        parts.append(
            f"Its classes are not part of ray_gen: {', '.join(f'`{name}`' for name in targets)}. "
            "They must be importable; loading the model imports them. A model from a repository "
            "needs `Pipeline.from_pretrained(..., custom_classes=True)`. If `code/` holds their "
            "source, `ray_gen.load(FOLDER, trust_code=True)` runs it: read it first."
        )
    for name, z in objective.latents.items() if objective.has_prior else ():
        drawn = "N(0, 1)" if z.distribution == "normal" else f"U[{z.low:g}, {z.high:g})"
        parts.append(f"{name} ({', '.join(map(str, ('N', *z.shape)))}) is drawn from {drawn}.")
    names = experiment.data.classes or ()
    if experiment.label_count:
        named = [f"{number} {name}" for number, name in enumerate(names) if str(number) != name]
        listed = f" ({', '.join(named)})" if 0 < len(named) <= _NAMED_CLASSES else ""
        parts.append(f"Labels are int64 (N,) from 0 to {len(names) - 1}{listed}.")
    if experiment.label_numbers:
        told = [
            f"{one.name} ({one.low:g} to {one.high:g} in the data, on average {one.mean:g})"
            for one in _conditions(experiment)
        ]
        parts.append(
            f"Conditions are float32 (N, {len(told)}), in the data's own units: {', '.join(told)}."
        )
    if any(file.name.endswith(".pt2") for file in files):
        parts.append(
            "These `.pt2` files hold no pickle. But `torch.export.load` unpickles a file that "
            "holds one: load only files from people you trust. `.safetensors` and `.onnx` are data "
            "only."
        )
    return "\n\n".join(parts)


def _truncation(truncation: float | None, files: Sequence[ExportedFile]) -> str:
    if truncation is None or not any(file.name.endswith((".pt2", ".onnx")) for file in files):
        return ""
    return (
        f"The programs (`.pt2`, `.onnx`) truncate styles with ψ = {truncation:g}: less variety, "
        "better images. In ray_gen the model itself does not; there "
        f"`model.sample(64, truncation={truncation:g})` gives the same images."
    )


def _files(files: Sequence[ExportedFile]) -> str:
    rows = [f"| `{file.name}` | {file.content} | {file.checked()} |" for file in files]
    return "\n".join(
        [
            "## Files",
            "",
            "The last column is the largest difference between the outputs of a file, read back, "
            "and the outputs of the original model.",
            "",
            "| file | content | difference |",
            "|---|---|---|",
            *rows,
        ]
    )


def _metrics(facts: Facts) -> str:
    found = finite_metrics(facts.metrics)
    if not found:
        return ""
    rows = [f"| `{tag}` | {value:.6g} |" for tag, value in sorted(found.items())]
    return "\n".join(
        ["## Metrics of the run at this checkpoint", "", "| metric | |", "|---|---|", *rows]
    )
