"""`ray-gen evaluate`: what runs, or pictures of any other tool, are worth."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--generated", help="In the place of a run, a folder of pictures of any other tool.")
@click.option(
    "--reference", help="Real images: a folder, mnist5k, torchvision:CIFAR10, … [the run's]."
)
@click.option("--split", type=click.Choice(["train", "held_out"]), help="Of the reference.")
@click.option(
    "--metrics", help="fid,kid,…; else those that need no weights, and all if they are there."
)
@click.option(
    "--count", type=click.IntRange(min=2), help="Images [the reference's, at most 50,000]."
)
@click.option("--features", help="inception, torchvision:resnet50 or custom:package.module:Name.")
@click.option("--features-weights", help="File with the weights of the features [fetched].")
@click.option(
    "--samples", type=click.IntRange(min=1), help="K of a VAE's importance-weighted bound."
)
@click.option("--weights", type=click.Choice(["ema", "raw"]), help="To sample from.")
@click.option("--seed", type=click.IntRange(min=0))
@click.option("--batch-size", type=click.IntRange(min=1), help="Images in a network at once.")
@click.option("--kid-subset-size", type=click.IntRange(min=2))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--output", type=click.Path(path_type=Path), help="JSON file with every protocol.")
def evaluate(
    runs: tuple[str, ...],
    generated: str | None,
    reference: str | None,
    split: str | None,
    metrics: str | None,
    features: str | None,
    features_weights: str | None,
    samples: int | None,
    workers: int,
    output: Path | None,
    **given: Any,
) -> None:
    """Measure run folders or checkpoints, one row of a table each.

    Every value comes with its protocol: how many images, which split, which features.
    """
    sys.path.insert(0, str(Path.cwd()))  # where a class of the user's may lie
    from ray_gen.cli.options import check_output, writing
    from ray_gen.cli.progress import measuring
    from ray_gen.pipeline import experiment_of
    from ray_gen.scoring import evaluate as measure
    from ray_gen.scoring import table

    settings = {name: value for name, value in given.items() if value is not None}
    if metrics is not None:
        settings["metrics"] = [name.strip() for name in metrics.split(",")]
    if samples is not None:
        settings["importance_samples"] = samples
    if features is not None or features_weights is not None:
        settings["features"] = _features(features or "inception", features_weights)
    if output is not None:
        check_output(output, ".json", folder=False)
    for run in runs:
        experiment_of(run)  # a wrong path is told before the first run is measured
    rows: list[tuple[str, Any]] = []
    named: list[str] = []
    for run in runs or (None,):
        with measuring() as progress:
            scores = measure(
                run,
                generated=generated,
                reference=reference,
                split=split,
                workers=workers,
                progress=progress,
                **settings,
            )
        rows.append((Path(run or str(generated)).name, scores))
        named.append(run or str(generated))
    click.echo(table(rows))
    if output is not None:
        found = [
            {"of": of, **scores.as_json()} for of, (_, scores) in zip(named, rows, strict=True)
        ]
        with writing(output):
            output.write_text(json.dumps(found, indent=2), encoding="utf-8")
        click.echo(f"{output}: every value with its protocol", err=True)


def _features(text: str, weights: str | None) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    fields: dict[str, Any] = {"kind": kind}
    if rest:
        fields["target" if kind == "custom" else "backbone"] = rest
    if weights is not None:
        fields["weights"] = str(Path(weights).expanduser().absolute())
    return fields
