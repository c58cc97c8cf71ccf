"""Commands that use a trained run: `ray-gen sample`, `reconstruct`, `discriminate`, `mixture`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ray_gen.cli import options
from ray_gen.errors import Refused

if TYPE_CHECKING:
    from ray_gen.pipeline import Pipeline
    from ray_gen.pipeline.files import Part

_IMAGES = click.argument("images", nargs=-1, type=click.Path(path_type=Path))
_LABELS = click.option(
    "--labels",
    help="For a conditional model: one class for all images or one for each, by name or number.",
)


@click.command()
@options.of_a_run
@options.of_samples
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="How many images [64; a grid of classes: about 64, in whole rows].",
)
@click.option(
    "--annotate", is_flag=True, help="Write the number of each sample above it, in a .png."
)
@click.option("--prior", help="Draw z from this file of `ray-gen mixture`, not the model's prior.")
@click.option("--mixture", hidden=True, help="The name of --prior before 0.2.")
@options.output_to(
    "samples.png",
    "A .png (one grid), a .npz (uint8 NHWC; uint16 for 16 bits), or a folder (one PNG per image; "
    "TIFF for images that PNG cannot hold).",
)
def sample(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    zoom: int | None,
    seed: int,
    labels: str | None,
    conditions: tuple[str, ...],
    truncation: float | None,
    count: int | None,
    annotate: bool,
    prior: str | None,
    mixture: str | None,
    output: Path,
) -> None:
    """Draw images from a run folder or one of its checkpoints.

    \b
        ray-gen sample RUN --count 64 --seed 0 --output grid.png
        ray-gen sample RUN --annotate
        ray-gen sample RUN --checkpoint best --count 1000 --output folder

    Needs no data set. In a grid of a conditional model each column is a class, if there are at most
    16. `interpolate`, `arithmetic` and `traverse` take the numbers that --annotate writes.
    """
    options.check_output(output, ".png", ".npz")
    if annotate and output.suffix.lower() != ".png":
        raise Refused(f"--annotate: {output} is no grid; give --output FILE.png, or leave it out")
    if mixture is not None:
        if prior is not None:
            raise Refused("--mixture: is the earlier name of --prior; leave it out")
        click.echo("--mixture: is now called --prior, as in Python; use that name", err=True)
    pipeline = options.opened(run, weights, checkpoint, trust_code)
    from ray_gen.pipeline.mixture import Mixture
    from ray_gen.runs import pictures
    from ray_gen.runs.captions import SHOWN, count_shown

    file = mixture if prior is None else prior
    drawn_from = None if file is None else Mixture.load(file)
    numbers = options.condition_numbers(conditions)
    names = pipeline.classes_in_turn(options.class_list(labels))
    if count is None:
        count = count_shown(len(names)) if output.suffix.lower() == ".png" else SHOWN
    classes = options.in_turn(labels, count)
    batches = pipeline.batches(count, classes, seed, truncation, drawn_from, numbers)
    zoom, form = options.zoom_for(pipeline, zoom), pipeline.pixel_format
    with options.writing(output):
        said = pictures.save_samples(
            batches, count, output, zoom, form, classes=names, numbered=annotate
        )
    click.echo(said)


@click.command()
@options.of_a_run
@_IMAGES
@click.option("--data", is_flag=True, help="Use the run's own held-out images instead of files.")
@click.option(
    "--count", default=32, show_default=True, type=click.IntRange(min=1), help="Most images to use."
)
@_LABELS
@options.CONDITION
@click.option("--seed", type=int, help="Draw z from q(z|x) with this seed [the mean of q(z|x)].")
@options.output_to(
    "reconstructions.png",
    "A .png (a row of originals, a row of reconstructions), a .npz (`images`, `reconstructions`, "
    "uint8 NHWC; uint16 for 16 bits), or a folder of the reconstructions.",
)
def reconstruct(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    zoom: int | None,
    images: tuple[Path, ...],
    data: bool,
    count: int,
    labels: str | None,
    conditions: tuple[str, ...],
    seed: int | None,
    output: Path,
) -> None:
    """Encode images and decode them again.

    \b
        ray-gen reconstruct RUN ~/images
        ray-gen reconstruct RUN --data

    Takes files, or all images below folders. The images are cropped, resized and converted as in
    training. A conditional run takes the class of an image from the name of its folder, unless
    --labels gives it. --data needs the data set.
    """
    options.check_output(output, ".png", ".npz")
    pipeline = options.opened(run, weights, checkpoint, trust_code)
    parts = _parts(pipeline, images, "held_out" if data else None, labels, conditions, count)
    from ray_gen.pipeline.files import image_files
    from ray_gen.runs import pictures

    pairs = (
        (
            some,
            pipeline.reconstruct(some, classes, numbers)
            if seed is None
            else pipeline.decode(
                pipeline.encode(some, classes, seed, numbers), classes, conditions=numbers
            ),
        )
        for some, classes, numbers in parts
    )
    with options.writing(output):
        zoom = options.zoom_for(pipeline, zoom)
        click.echo(pictures.save_pairs(pairs, output, zoom, pipeline.pixel_format))
    given = 0 if data else len(image_files(images))
    if given > count:
        click.echo(f"{given - count:,} more not used: --count {given} takes all")


@click.command()
@click.argument("run")
@options.CHECKPOINT
@options.TRUST_CODE
@_IMAGES
@_LABELS
@options.CONDITION
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Also write the values and logits to this .csv.",
)
def discriminate(
    run: str,
    checkpoint: str,
    trust_code: bool,
    images: tuple[Path, ...],
    labels: str | None,
    conditions: tuple[str, ...],
    output: Path | None,
) -> None:
    """Print D(x) of images: the discriminator's probability that they are real.

    \b
        ray-gen discriminate RUN ~/images --output realness.csv

    Takes files, or all images below folders. They are cropped, resized and converted as in
    training. A conditional run takes the class of an image from the name of its folder, unless
    --labels gives it. If a discriminator gives no probability, the value is the logit: higher means
    more real. A run keeps no average (EMA) of a discriminator, so its last weights are used.
    """
    if output is not None:
        options.check_output(output, ".csv", folder=False)
    if not images:
        raise Refused("IMAGES: name image files or folders of them")
    pipeline = options.opened(run, "ema", checkpoint, trust_code, used="raw")
    pipeline.discriminator()  # refuses before it reads any image
    from ray_gen.pipeline.files import from_files, image_files

    files = image_files(images)
    what, form = ("D(x)", ".4f") if pipeline.discriminates_by_probability else ("logit", "+.4f")
    width = max(len(str(file)) for file in files)
    rows: list[tuple[str, float, float]] = []
    given = options.condition_numbers(conditions)
    parts = from_files(pipeline.experiment, images, options.class_list(labels), None, given)
    for some, classes, numbers in parts:
        logits = pipeline.discriminate(some, classes, numbers)
        scores = logits.sigmoid() if what == "D(x)" else logits
        for score, logit in zip(scores.tolist(), logits.tolist(), strict=True):
            rows.append((str(files[len(rows)]), score, logit))
            click.echo(f"{rows[-1][0]:<{width}}  {score:{form}}")
    mean = sum(score for _, score, _ in rows) / len(rows)
    click.echo(f"{len(rows)} images, {what} {mean:{form}} on average", err=True)
    if output is not None:
        named = ("path", "D(x)", "logit") if what == "D(x)" else ("path", "logit")
        _write_csv([named, *(row[: len(named)] for row in rows)], output)
        click.echo(f"{output}: {', '.join(named)}", err=True)


@click.command()
@options.of_a_run
@_IMAGES
@click.option("--data", is_flag=True, help="Use the run's own training images instead of files.")
@click.option("--components", default=10, show_default=True, type=click.IntRange(min=1))
@_LABELS
@options.CONDITION
@click.option("--seed", default=0, show_default=True, help="Seed of the start of the fit.")
@options.output_to("mixture.safetensors", "A .safetensors file.", zoom=False)
def mixture(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    images: tuple[Path, ...],
    data: bool,
    components: int,
    labels: str | None,
    conditions: tuple[str, ...],
    seed: int,
    output: Path,
) -> None:
    """Fit a mixture of Gaussians to the encodings of images: a prior for `ray-gen sample`.

    \b
        ray-gen mixture RUN --data --components 20
        ray-gen sample RUN --prior mixture.safetensors

    A variational autoencoder often gives better samples with it than with N(0, I). A plain
    autoencoder needs it for samples. Needs scikit-learn.
    """
    options.check_output(output, ".safetensors", folder=False)
    pipeline = options.opened(run, weights, checkpoint, trust_code)
    pipeline.check_mixture()  # refuses before it reads any image
    parts = _parts(pipeline, images, "train" if data else None, labels, conditions, None)
    from ray_gen.pipeline.mixture import Mixture

    z = (pipeline.posterior(*part).mean for part in parts)
    fitted = Mixture.fit(z, components, seed, pipeline.origin)
    with options.writing(output):
        fitted.save(output)
    click.echo(f"{output}: {fitted}")
    same = " --weights raw" if weights == "raw" else ""
    same += "" if checkpoint == "newest" else f" --checkpoint {checkpoint}"
    click.echo(f"  sample: ray-gen sample {run} --prior {output}{same}")


def _write_csv(rows: Sequence[Sequence[str | float]], output: Path) -> None:
    """Write the whole file or nothing."""
    from ray_gen.storage import Folder

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with options.writing(output):
        Folder(str(output.parent.absolute())).write_text(output.name, text.getvalue())


def _parts(
    pipeline: Pipeline,
    paths: tuple[Path, ...],
    split: Literal["train", "held_out"] | None,
    labels: str | None,
    conditions: Sequence[str],
    count: int | None,
) -> Iterator[Part]:
    """Images with labels and conditions, in parts: from files, or from a split of the run's own
    data."""
    from ray_gen.pipeline.files import from_data, from_files

    if split is None and not paths:
        raise Refused("IMAGES: name image files or folders of them, or give --data")
    if split is None:
        given = options.condition_numbers(conditions)
        return from_files(pipeline.experiment, paths, options.class_list(labels), count, given)
    if paths or labels is not None or conditions:
        raise Refused(
            "--data: has its own images, labels and conditions; leave out IMAGES, --labels and"
            " --condition"
        )
    return from_data(pipeline.experiment, split, count)
