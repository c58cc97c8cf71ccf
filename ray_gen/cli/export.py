"""`ray-gen export`."""

from __future__ import annotations

import click

from ray_gen.cli import options


@click.command()
@options.of_a_run
@click.argument("folder", metavar="DIR")
@click.option(
    "--formats",
    help="Some of safetensors,torch,onnx [all; onnx only if ray_gen[export] is installed].",
)
@click.option(
    "--truncation",
    type=float,
    help="Share of the way from the mean style, in programs of a generator with styles [1].",
)
@click.option(
    "--to",
    type=click.Choice(["diffusers"]),
    help="Write a latent autoencoder as diffusers' AutoencoderKL or VQModel reads it.",
)
@click.option(
    "--data",
    help="Training images whose latents give diffusers' scaling and shift [the run's own data].",
)
def export(
    run: str,
    folder: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    formats: str | None,
    truncation: float | None,
    to: str | None,
    data: str | None,
) -> None:
    """Write a trained model into a new folder DIR, for others to use.

    \b
        ray-gen export RUN DIR --checkpoint best
        ray-gen export RUN DIR --to diffusers

    \b
    safetensors  config.json and model.safetensors: for ray_gen and the Hugging Face hub
    torch        generator.pt2, or decoder.pt2 and encoder.pt2: for torch without ray_gen
    onnx         the same as .onnx

    Images are in [0, 1], batches have any size. Each file is read back and compared with the run.
    """
    options.import_from_here(run)
    from ray_gen.pipeline.export import export as write

    chosen = None if formats is None else [name.strip() for name in formats.split(",")]
    raw = weights == "raw"
    written = write(
        run,
        folder,
        weights="raw" if raw else "ema",
        checkpoint=checkpoint,
        formats=chosen,
        trust_code=trust_code,
        truncation=truncation,
        to=to,
        data=data,
    )
    click.echo(written.source, err=True)
    for file in written.files:
        checked = "" if file.difference is None else f"  largest difference {file.checked()}"
        click.echo(f"{file.name:<18} {file.bytes / 1e3:9,.0f} kB{checked}")
    for note in written.notes:
        click.echo(note, err=True)
    click.echo(written.path)
