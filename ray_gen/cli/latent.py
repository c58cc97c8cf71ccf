"""Walks through the latents of a run: `ray-gen interpolate`, `arithmetic` and `traverse`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_gen.cli import options
from ray_gen.errors import Refused

if TYPE_CHECKING:
    from ray_gen.pipeline.selection import Name

_ROWS = (
    "A .png (one row per path), a .gif or .mp4 (forward and back), a .npz (uint8; uint16 for 16 "
    "bits), or a folder of PNGs (TIFFs for images that PNG cannot hold)."
)


@click.command()
@options.of_a_run
@options.of_samples
@click.option(
    "--from",
    "first",
    help="Sample numbers, image files or projections: 3, 0-3, a.png, l.safetensors:2.",
)
@click.option("--to", "last", help="As many as --from, or one for all.")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    help="Number of rows. A single sample number stands for itself and the next ones [4, or one "
    "for each given sample].",
)
@click.option("--steps", default=9, show_default=True, help="Images per row, with both ends.")
@click.option("--straight", is_flag=True, help="Along straight lines instead of great circles.")
@options.output_to("interpolation.png", _ROWS)
def interpolate(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    zoom: int | None,
    seed: int,
    labels: str | None,
    conditions: tuple[str, ...],
    truncation: float | None,
    first: str | None,
    last: str | None,
    rows: int | None,
    steps: int,
    straight: bool,
    output: Path,
) -> None:
    """Draw the path from some samples to others.

    \b
        ray-gen interpolate RUN --from 3 --to 13
        ray-gen interpolate RUN --rows 6 --steps 30 --output path.mp4

    `ray-gen sample RUN --annotate` writes the number of each sample above it; give the same --seed,
    --labels and --truncation. If the model has an encoder, you can also give image files. `ray-gen
    project` finds latents of images for every model; give its file, or one latent in it:
    latents.safetensors:2. In a conditional model a row has the class and the numbers of its first
    sample.
    """
    options.check_output(output, ".png", ".gif", ".mp4", ".npz")
    if (first is None) != (last is None):
        raise Refused("--from, --to: give both or neither")
    if first is None or last is None:
        rows = rows or 4
        starts: list[Name] = list(range(rows))
        ends: list[Name] = list(range(rows, 2 * rows))
    else:
        starts = _as_many(options.names_of(first, "--from"), rows)
        ends = _as_many(options.names_of(last, "--to"), rows)
        rows = max(len(starts), len(ends))
        starts, ends = (names * rows if len(names) == 1 else names for names in (starts, ends))
    if not len(starts) == len(ends) == rows:
        raise Refused(
            f"--from, --to, --rows: {len(starts)} first and {len(ends)} last samples for {rows} "
            "rows; give the same number of both"
        )
    pipeline = options.opened(run, weights, checkpoint, trust_code)
    samples = options.samples(pipeline, seed, labels, truncation, conditions)
    a, b = samples.chosen(starts), samples.chosen(ends)
    images = pipeline.interpolate(
        a.z, b.z, steps, a.labels, not straight, a.conditions, samples.of_styles
    )
    from ray_gen.runs import pictures
    from ray_gen.runs.captions import Captions

    ends_of = [f"{_told(one)} to {_told(other)}" for one, other in zip(starts, ends, strict=True)]
    zoom, form = options.zoom_for(pipeline, zoom), pipeline.pixel_format
    with options.writing(output):
        captions = Captions(rows=ends_of)
        click.echo(pictures.save_rows(images, output, zoom, form, captions=captions))


def _told(name: Name) -> str:
    """A latent, for a caption."""
    from ray_gen.runs.captions import drawable

    if isinstance(name, int):
        return str(name)
    return drawable(name.stem if isinstance(name, Path) else name.name, "file")


def _as_many(names: list[Name], rows: int | None) -> list[Name]:
    """One sample number for several rows also stands for the next ones: 3 for 4 rows is 3, 4, 5,
    6."""
    if rows is not None and len(names) == 1 and isinstance(names[0], int):
        return list(range(names[0], names[0] + rows))
    return names


@click.command()
@options.of_a_run
@options.of_samples
@click.option("--plus", multiple=True, help="Add the mean of this group: 0,1,2 or 4-6 or a.png.")
@click.option("--minus", multiple=True, help="Subtract the mean of this group.")
@options.output_to("arithmetic.png", "A .png.")
def arithmetic(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    zoom: int | None,
    seed: int,
    labels: str | None,
    conditions: tuple[str, ...],
    truncation: float | None,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    output: Path,
) -> None:
    """Add and subtract the means of groups of samples, as in figure 7 of the DCGAN paper.

    \b
        ray-gen arithmetic RUN --plus 0,1,2 --minus 3,4,5 --plus 6,7,8

    Look at the grid of `ray-gen sample RUN --annotate`, pick samples that share something, and give
    their numbers. If the model has an encoder, you can also give image files, and for every model a
    file of `ray-gen project`. Each column shows a group and, below it, the image of its mean. On
    the right, the result is in the middle of eight neighbours.
    """
    options.check_output(output, ".png", folder=False)
    if not plus:
        raise Refused("--plus: name at least one group, e.g. --plus 0,1,2")
    # As the paper reads: smiling woman - neutral woman + neutral man.
    written = [
        ("+", plus[0]),
        *(("-", text) for text in minus),
        *(("+", text) for text in plus[1:]),
    ]
    named = [
        (sign, options.names_of(text, "--plus" if sign == "+" else "--minus"))
        for sign, text in written
    ]
    pipeline = options.opened(run, weights, checkpoint, trust_code)
    samples = options.samples(pipeline, seed, labels, truncation, conditions)
    groups = [(sign, samples.chosen(names)) for sign, names in named]
    label = _shared_class([label for _, group in groups for label in group.labels or ()])
    numbers = _shared_numbers([group.conditions for _, group in groups])
    from ray_gen.pipeline import latent
    from ray_gen.runs import pictures

    signs, levels = [sign for sign, _ in groups], samples.alike([group for _, group in groups])
    result, means = {}, [dict[str, Any]() for _ in groups]
    for name in levels[0]:
        added = [of[name] for sign, of in zip(signs, levels, strict=True) if sign == "+"]
        taken = [of[name] for sign, of in zip(signs, levels, strict=True) if sign == "-"]
        result[name] = pipeline.neighbourhood(name, latent.combined(added, taken), seed)
        for mean, of in zip(means, levels, strict=True):
            mean[name] = latent.combined([of[name]], [])
    psi = samples.of_styles
    nine = pipeline.decode(result, label, conditions=numbers, truncation=psi)
    shown = [
        (sign, group.images, pipeline.decode(mean, label, conditions=numbers, truncation=psi))
        for (sign, group), mean in zip(groups, means, strict=True)
    ]
    opacity = pipeline.pixel_format.opacity
    of_groups = [[_told(name) for name in names] for _, names in named]
    zoom = options.zoom_for(pipeline, zoom)
    picture = pictures.equation(shown, nine, opacity=opacity, zoom=zoom, names=of_groups)
    with options.writing(output):
        pictures.save_png(picture, output)
    shown = pictures.channels_viewed(nine.shape[1], opacity=opacity)
    click.echo(f"{output}: {len(groups)} groups with their means, and the result{shown}")


def _shared_class(labels: list[int]) -> int | None:
    """The class of the means and the result."""
    if len(set(labels)) > 1:
        raise Refused(
            f"--labels: the samples have {len(set(labels))} classes and the result needs one; draw "
            "all in one class, e.g. --labels 3, or pick samples that share one"
        )
    return labels[0] if labels else None


def _shared_numbers(groups: Sequence[dict[str, list[float]] | None]) -> dict[str, float] | None:
    """The numbers to condition on of the means and the result."""
    found: dict[str, float] = {}
    for group in groups:
        for name, numbers in (group or {}).items():
            found.setdefault(name, numbers[0])
            if {*numbers} != {found[name]}:
                raise Refused(
                    f"--condition: the samples have different numbers of {name} and the result"
                    f" needs one; give all the same, e.g. --condition {name}={found[name]:g}"
                )
    return found or None


@click.command()
@options.of_a_run
@options.of_samples
@click.option(
    "--dimensions", help="Indices of numbers in z or w, from 0: 3 or 0,4-6 [the first ten]."
)
@click.option(
    "--range",
    "extent",
    type=float,
    help="How far to each side [3; half the width of a uniform prior; 3 deviations of styles].",
)
@click.option(
    "--steps",
    default=9,
    show_default=True,
    help="Images per row. If odd, the base is in the middle.",
)
@click.option("--latent", "latent_name", help="Which of several latents, or styles [the only one].")
@click.option(
    "--base",
    help="A sample's number, an image file or a projection to start from [the prior's mean].",
)
@options.output_to("traversal.png", _ROWS)
def traverse(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    zoom: int | None,
    seed: int,
    labels: str | None,
    conditions: tuple[str, ...],
    truncation: float | None,
    dimensions: str | None,
    latent_name: str | None,
    extent: float | None,
    steps: int,
    base: str | None,
    output: Path,
) -> None:
    """Move one number of z at a time: one row for each.

    \b
        ray-gen traverse RUN --dimensions 0-4

    The base is in the middle. If it is a projection in styles, or with --latent styles, a number of
    the style moves, in all layers alike. In a conditional model the rows have the class and the
    numbers of the base; without --base, those of sample 0.
    """
    options.check_output(output, ".png", ".gif", ".mp4", ".npz")
    rows = None if dimensions is None else options.whole_numbers(dimensions, "--dimensions")
    from ray_gen.pipeline.styles import STYLES, are_styles

    names = [] if base is None else options.names_of(base, "--base")
    if base is not None and len(names) != 1:
        raise Refused(f"--base: {base} names {len(names)} images; name one")
    pipeline = options.opened(run, weights, checkpoint, trust_code)
    samples = options.samples(pipeline, seed, labels, truncation, conditions)
    if names:
        chosen = samples.chosen(names)
        start, label = chosen.z, chosen.labels[0] if chosen.labels else None
        latent_name = latent_name or (STYLES if are_styles(start) else None)
    else:
        start, label = None, samples.label(0)
    if rows is None:
        rows = list(range(min(10, pipeline.size_of_moved(latent_name))))
    numbers = samples.numbers(names[0] if names else 0)
    psi = samples.of_styles
    images = pipeline.traverse(rows, start, extent, steps, label, latent_name, numbers, psi)
    from ray_gen.runs import pictures
    from ray_gen.runs.captions import Captions

    letter = "w" if pipeline.moved(latent_name) == STYLES else "z"
    reach = pipeline.reach(latent_name) if extent is None else extent
    moves = [reach * (2 * step / (steps - 1) - 1) for step in range(steps)]
    captions = Captions(
        [f"{move:+.3g}" if move else "0" for move in moves], [f"{letter}[{row}]" for row in rows]
    )
    zoom, form = options.zoom_for(pipeline, zoom), pipeline.pixel_format
    with options.writing(output):
        click.echo(pictures.save_rows(images, output, zoom, form, captions=captions))
