"""`ray-gen evaluate`: measures runs, or pictures of another tool."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from ray_gen.cli.options import CHECKPOINT, TRUST_CODE, check_output, import_from_here, writing
from ray_gen.errors import Failed, Refused

if TYPE_CHECKING:
    from ray_gen.evaluation.scores import Scores

OPTIONS = {
    "evaluation.features.weights": "--features-weights",
    "evaluation.importance_samples": "--samples",
    "evaluation.reference": "--split",
    **{
        f"evaluation.{name}": f"--{name.replace('_', '-')}"
        for name in (
            "metrics",
            "count",
            "features",
            "weights",
            "seed",
            "batch_size",
            "kid_subset_size",
        )
    },
}
"""The options of the command by the fields of the settings."""
OF_PICTURES = {
    "data.image_size": "--image-size",
    "data.channels": "--channels",
    "data.on_corrupt": "--on-corrupt",
}
"""Options for fields of pictures and of a given reference. A run's own data has no such options."""


def _size(context: object, option: object, text: str | None) -> int | tuple[int, int] | None:
    """The setting `data.image_size`."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--generated", help="Instead of a run: a folder of pictures from another tool.")
@click.option(
    "--reference", help="Real images: a folder, mnist5k, torchvision:CIFAR10, … [the run's data]."
)
@click.option("--data", help="Where the run's own data lie now, if they have moved.")
@click.option("--split", type=click.Choice(["train", "held_out"]), help="Split of the reference.")
@click.option(
    "--image-size",
    callback=_size,
    metavar="N|HxW",
    help="Size in pixels. Pictures and their reference are scaled and cropped to it.",
)
@click.option(
    "--channels",
    type=click.IntRange(1, 16),
    help="Channels of pictures and their reference: 1 (grey), 3 (RGB), 2 or 4 (with opacity), …",
)
@click.option(
    "--on-corrupt",
    type=click.Choice(["stop", "skip"]),
    help="What to do with a picture that cannot be decoded [stop].",
)
@click.option(
    "--metrics", help="fid,kid,… [all; only those that need no weights if weights are missing]."
)
@click.option(
    "--count",
    type=click.IntRange(min=2),
    help="Images of each set [as many as the reference has, at most 50,000].",
)
@click.option(
    "--features",
    help="inception, dinov2, clip, torchvision:resnet50, run:RUN or custom:package.module:Name.",
)
@click.option("--features-weights", help="File with the weights of the features [downloaded].")
@click.option(
    "--samples", type=click.IntRange(min=1), help="K of a VAE's importance-weighted bound."
)
@click.option("--weights", type=click.Choice(["ema", "raw"]), help="Weights that are evaluated.")
@CHECKPOINT
@TRUST_CODE
@click.option("--seed", type=click.IntRange(min=0), help="Of samples, subsets and projections.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images in a network at once.")
@click.option("--kid-subset-size", type=click.IntRange(min=2), help="Images in a subset of KID.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Ray workers. 1: in this process, without Ray.",
)
@click.option("--verbose", is_flag=True, help="Also show how each single value was measured.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file with every protocol.")
def evaluate(
    runs: tuple[str, ...],
    generated: str | None,
    reference: str | None,
    metrics: str | None,
    verbose: bool,
    features: str | None,
    features_weights: str | None,
    samples: int | None,
    checkpoint: str,
    trust_code: bool,
    output: Path | None,
    **given: Any,
) -> None:
    """Measure run folders, checkpoints or exported models.

    \b
        ray-gen evaluate RUN --metrics fid,kid --count 10000
        ray-gen evaluate --generated ~/pictures --reference ~/images

    Each is a column of a table. Every value comes with its protocol: how many images, which split,
    which features. Options that are not given come from the `evaluation` settings of the run.
    """
    import_from_here(*runs)
    from ray_gen.pipeline.loading import experiment_of, facts_of

    arguments = {name: value for name, value in given.items() if value is not None}
    arguments |= {"generated": generated, "reference": reference}
    arguments |= {"checkpoint": checkpoint, "trust_code": trust_code} if runs else {}
    if metrics is not None:
        arguments["metrics"] = [name.strip() for name in metrics.split(",")]
    if samples is not None:
        arguments["importance_samples"] = samples
    if features is not None or features_weights is not None:
        arguments["features"] = feature_settings(features or "inception", features_weights)
    if output is not None:
        check_output(output, ".json", folder=False)
        if not output.absolute().parent.is_dir():
            raise Refused(f"--output: {output} cannot be written: make the folder {output.parent}")
    taken: list[str] = []
    for run in runs:  # refuses a wrong one before the first is measured
        weights = arguments.get("weights") or experiment_of(run, checkpoint).evaluation.weights
        facts = facts_of(run, weights, checkpoint)
        taken.append(f"{facts.name}: {facts}")
    for told in taken:
        click.echo(told, err=True)
    of_pictures = reference is not None or {"image_size", "channels", "on_corrupt"} & {*arguments}
    options = {**OPTIONS, **(OF_PICTURES if of_pictures else {})}
    if len(runs) < 2:
        found = _measured(next(iter(runs), None), arguments, options)
        _tell([(next(iter(runs), str(generated)), found)], {}, output, options, verbose)
        return
    rows: list[tuple[str, Scores]] = []
    failed: dict[str, str] = {}
    try:
        for run, name in zip(runs, _names(runs), strict=True):
            try:
                rows.append((run, _measured(run, arguments, options, name)))
            except (Refused, Failed) as error:
                failed[run] = str(error)
                told = f"{click.style('failed:', fg='red', bold=True)} {run}: {error}"
                click.echo(told, err=True)
    finally:  # also after Ctrl-C: shows what was measured before
        _tell(rows, failed, output, options, verbose)
    if failed:
        raise Failed(f"{len(failed)} of {len(runs)} runs could not be measured")


def _measured(
    run: str | None, arguments: dict[str, Any], options: dict[str, str], of: str = ""
) -> Scores:
    """The scores of a run, or of the pictures that the arguments name. of: its name in progress, if
    there are several."""
    from ray_gen.cli.progress import measuring
    from ray_gen.launch.evaluate import evaluate as measure

    try:
        with measuring(of) as progress:
            return measure(run, progress=progress, **arguments)
    except (Refused, Failed) as error:
        kind = Refused if isinstance(error, Refused) else Failed
        raise kind(_with_options(str(error), options)) from error


def _tell(
    rows: list[tuple[str, Scores]],
    failed: dict[str, str],
    output: Path | None,
    options: dict[str, str],
    verbose: bool,
) -> None:
    """Prints the table and writes the file with every protocol."""
    from ray_gen.evaluation.table import table

    if rows:
        names = _names([of for of, _ in rows])
        named = [(name, scores) for name, (_, scores) in zip(names, rows, strict=True)]
        click.echo(_briefly(_with_options(table(named, verbose=verbose), options)))
    if output is not None and (rows or failed):
        found = [{"of": of, **scores.as_json()} for of, scores in rows]
        found += [{"of": of, "failed": why} for of, why in failed.items()]
        with writing(output):
            output.write_text(json.dumps(found, indent=2), encoding="utf-8")
        click.echo(f"{output}: every value with its protocol", err=True)


def _column(of: str) -> str:
    """The name of a run for its column: of a checkpoint, the run's and its own."""
    path = PurePosixPath(of.rstrip("/"))
    in_a_run = path.name == "best" or path.name.startswith("checkpoint_")
    return f"{path.parent.name}/{path.name}" if in_a_run and path.parent.name else path.name


def _names(runs: Sequence[str]) -> list[str]:
    """Their names for columns and progress; the paths, if two have the same name."""
    names = [_column(run) for run in runs]
    return names if len({*names}) == len(names) else list(runs)


def _briefly(text: str) -> str:
    """The text, with paths relative to the working directory or to the folder of the runs."""
    from ray_gen.experiment import absolute_path
    from ray_gen.storage import default_storage

    folders = {str(Path.cwd()), absolute_path(default_storage()).rstrip("/")} - {"/", ""}
    for folder in sorted(folders, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", text)
    return text


def _with_options(text: str, options: dict[str, str]) -> str:
    """A message with options instead of settings fields: `--count` for `evaluation.count`, and
    `--features` for all fields below `evaluation.features`."""

    def named(match: re.Match[str]) -> str:
        field = match[0]
        while "." in field:
            if field in options:
                return options[field]
            field = field.rpartition(".")[0]
        return match[0]

    return re.sub(r"(?<![\w./-])(?:evaluation|data)(?:\.\w+)+", named, text)


def feature_settings(text: str, weights: str | None) -> dict[str, Any]:
    """The setting `evaluation.features`."""
    kind, _, rest = text.partition(":")
    of = {"inception": None, "torchvision": "backbone", "run": "run", "custom": "target"}
    of |= {"dinov2": None, "clip": None}
    if kind not in of:
        raise Refused(f"--features: {kind!r} is not one of {', '.join(of)}")
    field = of[kind]
    if (field is None) == bool(rest):
        examples = (
            "inception, dinov2, clip, torchvision:resnet50, run:RUN or custom:package.module:Name"
        )
        raise Refused(f"--features: {text!r} is incomplete or has too many parts; write {examples}")
    fields: dict[str, Any] = {"kind": kind}
    if field is not None:
        fields[field] = rest
    if weights is not None:
        if kind in ("custom", "run"):
            raise Refused(
                f"--features-weights: {kind} features have their own weights; leave it out"
            )
        fields["weights"] = str(Path(weights).expanduser().absolute())
    return fields
