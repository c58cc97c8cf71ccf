"""`ray-gen project`: the latents of images, by optimisation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ray_gen.cli import options
from ray_gen.errors import Refused

if TYPE_CHECKING:
    from ray_gen.pipeline import Pipeline
    from ray_gen.pipeline.projection import Features

LATENTS, PICTURE = "latents.safetensors", "projections.png"
"""The files that the command writes."""


@click.command()
@options.of_a_run
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--labels",
    help="For a conditional model: one class for all images or one for each, by name or number.",
)
@options.CONDITION
@click.option(
    "--space",
    type=click.Choice(["z", "w", "w+"]),
    help="Where to look: latents z; or styles, one for all layers (w) or one for each (w+) [w if "
    "the generator has styles, else z].",
)
@click.option("--steps", default=500, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--features",
    help="Also compare features: torchvision:vgg16, run:RUN or custom:package.module:Name [none].",
)
@click.option("--features-weights", help="File with the weights of the features [downloaded].")
@click.option(
    "--features-weight",
    default=0.1,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Weight of the features against the squared error of the pixels.",
)
@click.option(
    "--sigma",
    default=0.1,
    show_default=True,
    type=click.FloatRange(min=0),
    help="How far a pixel in [0, 1] may be from the model's image. More keeps it nearer the mean.",
)
@click.option(
    "--starts",
    default=256,
    show_default=True,
    type=click.IntRange(min=1),
    help="Draws from the prior, of which the nearest is the start in z, without an encoder.",
)
@click.option("--seed", default=0, show_default=True, help="Of all draws.")
@click.option(
    "-o",
    "--output",
    default="projections",
    show_default=True,
    type=click.Path(path_type=Path),
    help=f"A folder: {LATENTS}, and {PICTURE}, each image above its projection.",
)
@click.option("--zoom", type=click.IntRange(1, 64), help="As for `ray-gen sample`.")
def project(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    images: tuple[Path, ...],
    labels: str | None,
    conditions: tuple[str, ...],
    space: Literal["z", "w", "w+"] | None,
    steps: int,
    features: str | None,
    features_weights: str | None,
    features_weight: float,
    sigma: float,
    starts: int,
    seed: int,
    output: Path,
    zoom: int | None,
) -> None:
    """Find the latents whose images are nearest to given images.

    \b
        ray-gen project RUN me.png you.png -o found
        ray-gen interpolate RUN --from found/latents.safetensors:0 --to found/latents.safetensors:1

    Takes files, or all images below folders. The images are cropped, resized and converted as in
    training. A conditional run takes the class of an image from the name of its folder, unless
    --labels gives it. A model with an encoder starts at the encoding of an image, others in w and
    w+ at the mean style. `interpolate`, `arithmetic` and `traverse` take what is found. Equal
    arguments give equal latents.
    """
    options.check_output(output)
    if features_weights is not None and features is None:
        raise Refused("--features-weights: name the features, e.g. --features torchvision:vgg16")
    pipeline = options.opened(run, weights, checkpoint, trust_code)
    from ray_gen.cli.progress import measuring
    from ray_gen.pipeline.files import from_files, image_files, joined
    from ray_gen.runs import pictures

    numbers = options.condition_numbers(conditions)
    parts = from_files(pipeline.experiment, images, options.class_list(labels), None, numbers)
    real, classes, _ = joined(parts)
    with measuring() as progress:
        found = pipeline.project(
            real,
            classes,
            numbers,
            space=space,
            steps=steps,
            seed=seed,
            features=None if features is None else _features(pipeline, features, features_weights),
            features_weight=features_weight,
            sigma=sigma,
            starts=starts,
            names=[file.stem for file in image_files(images)],
            progress=progress,
        )
    made = pipeline.decode(found.z, found.labels, conditions=found.conditions)
    picture = pictures.projections_grid(
        real,
        made,
        found.names,
        [f"{value:.1f} dB" for value in found.psnr.tolist()],
        opacity=pipeline.pixel_format.opacity,
        zoom=options.zoom_for(pipeline, zoom),
    )
    with options.writing(output):
        found.save(output / LATENTS)
        pictures.save_png(picture, output / PICTURE)
    width = max(map(len, found.names))
    for name, value in zip(found.names, found.psnr.tolist(), strict=True):
        click.echo(f"{name:<{width}}  {value:.1f} dB")
    click.echo(f"{output / LATENTS}: {len(found)} latents; {PICTURE}: images and projections")
    click.echo(f"  use: ray-gen traverse {run} --base {output / LATENTS}:0")


def _features(pipeline: Pipeline, text: str, weights: str | None) -> Features:
    """The extractor that --features names, as a function of the model's images."""
    from ray_gen.cli.evaluate import feature_settings
    from ray_gen.evaluation.embedding import vectors_of
    from ray_gen.evaluation.evaluator import extractor_of
    from ray_gen.experiment.evaluation import Evaluation

    settings = Evaluation.model_validate({"features": feature_settings(text, weights)})
    try:
        extractor = extractor_of(settings.features, pipeline.device)
        channels = pipeline.experiment.picture_shape[0]
        return vectors_of(extractor, channels, opacity=pipeline.pixel_format.opacity)
    except Refused as refused:
        raise Refused(str(refused).replace("evaluation.features", "--features")) from refused
