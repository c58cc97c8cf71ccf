"""Write a trained run to files for others: for ray_gen and the Hugging Face hub (safetensors), for
torch without ray_gen (torch.export), and for other programs (ONNX)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

import torch

from ray_gen import temporary
from ray_gen.data import DataError, Store
from ray_gen.errors import Refused
from ray_gen.experiment.data import LatentsData
from ray_gen.experiment.named_data import named_by
from ray_gen.pipeline.export import diffusers, programs
from ray_gen.pipeline.export.card import CARD, ExportedFile, card
from ray_gen.pipeline.loading import load_as, pretrained_as
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import (
    CONFIG,
    DIFFUSERS,
    MODEL,
    Weights,
    checked_weights,
    read_config,
    read_pretrained,
    write_pretrained,
)
from ray_gen.pipeline.truncation import psi
from ray_gen.runs.checkpoints import NEWEST, Choice
from ray_gen.runs.manifest import CheckpointError
from ray_gen.training.code import CODE, custom_targets
from ray_gen.training.sources import data_as_in_run, open_source

__all__ = ["FORMATS", "Exported", "export", "from_pretrained", "push_to_hub", "save_pretrained"]

_Model = TypeVar("_Model", bound=Model)

FORMATS = ("safetensors", "torch", "onnx")
_WRITERS = {"torch": (".pt2", programs.write_torch), "onnx": (".onnx", programs.write_onnx)}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Exported:
    """The files that `export` wrote."""

    path: Path
    files: tuple[ExportedFile, ...]
    notes: tuple[str, ...]
    """One sentence for each file that was not written or not run: which one and why."""
    source: str
    """The run, the checkpoint and the weights that were exported, in words."""


def export(
    run: str | os.PathLike[str] | Model,
    folder: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    checkpoint: Choice = NEWEST,
    formats: Sequence[str] | None = None,
    trust_code: bool = False,
    truncation: SupportsFloat | None = None,
    to: str | None = None,
    data: str | None = None,
) -> Exported:
    """Write a trained model into a new or empty folder, whole or not at all.

        ray_gen.export("digits", "digits-model", formats=["safetensors"])
        ray_gen.Pipeline.from_pretrained("digits-model").grid(64)

    run: a run (its path, URI or name), a checkpoint, an exported folder or a pipeline. weights,
    checkpoint: only for a run, as in `ray_gen.load`; a pipeline has its weights already. formats:
    some of "safetensors" (`model.safetensors` and `config.json`), "torch" (.pt2) and "onnx"; None:
    all three, ONNX only if it is installed. A README.md is written too. The source files of own
    classes (`kind: custom`) lie in `code/`. trust_code: as in `ray_gen.load`. truncation: the ψ
    of a generator with styles, which the programs (.pt2 and .onnx) then contain. The model itself
    (`model.safetensors`) stays as it is: its `sample` takes any truncation.

    to: "diffusers" writes the folder of a latent autoencoder that `diffusers.AutoencoderKL` or
    `diffusers.VQModel` loads, instead of all formats and without a README.md. Its scaling, and
    AutoencoderKL's shift, are those of latents of training images: of the run's own data, or of
    `data`.

    Every file is read back and compared with the model. Raises Refused if the folder is not empty,
    Failed if a file differs by more than `programs.TOLERANCE`.
    """
    weights = checked_weights(weights)
    chosen, notes = _chosen(formats)
    target = _target(folder)
    pipeline = _opened(run, weights, checkpoint, trust_code)
    if to is not None:
        if to != "diffusers":
            raise Refused(f"--to: {to!r} is unknown; diffusers is what ray_gen can write for")
        if formats is not None:
            raise Refused("--formats: --to diffusers writes one format; give only one of both")
        if truncation is not None:
            raise Refused(
                "--truncation: --to diffusers writes no generator with styles; leave it out"
            )
        return _to_diffusers(pipeline, target, data)
    if data is not None:
        raise Refused("--data: only --to diffusers looks at data; leave it out")
    share = None if truncation is None else psi(truncation)
    if share is not None and not pipeline.has_styles:
        raise Refused(
            f"truncation: {pipeline.name} has no generator with styles, so its programs cannot "
            "contain one; leave it out, and draw z itself from a narrower distribution"
        )
    facts = replace(pipeline.facts, name=pipeline.name)
    experiment, objective, networks = pipeline.experiment, pipeline.objective, pipeline.networks
    made, missing = programs.programs_of(pipeline, share)
    files: list[ExportedFile] = []
    with _whole(target) as work:
        if "safetensors" in chosen:
            write_pretrained(work, experiment, objective, networks, facts)
            difference = _reread(work, made, share)
            files.append(_file(work / CONFIG, "the experiment"))
            files.append(_file(work / MODEL, "the networks", difference))
            for file in sorted((work / CODE).rglob("*.py")):
                named = file.relative_to(work).as_posix()
                files.append(ExportedFile(named, file.stat().st_size, "source of its own classes"))
        kinds = [kind for kind in _WRITERS if kind in chosen]
        notes += missing if kinds else []
        for program in made if kinds else ():
            exported = programs.traced(program)
            given = [
                f"{name} {('N', *probe.shape[1:])}".replace("'", "")
                for name, probe in zip(program.inputs, program.probes[0], strict=True)
            ]
            content = f"{', '.join(given)} to {', '.join(program.outputs)}"
            for kind in kinds:
                suffix, write_program = _WRITERS[kind]
                path = work / f"{program.name}{suffix}"
                difference = write_program(exported, program, path)
                files.append(_file(path, content, difference))
                if difference is None:
                    notes.append(f"{path.name}: was not run, onnxruntime is not installed")
        text = card(experiment, objective, facts, files, share)
        (work / CARD).write_text(text, encoding="utf-8")
        files.append(_file(work / CARD, "the model card"))
    return Exported(target, tuple(files), tuple(notes), f"{pipeline.name}: {pipeline.facts}")


def _to_diffusers(pipeline: Model, target: Path, data: str | None) -> Exported:
    """A folder for diffusers."""
    kind = diffusers.kind_of(pipeline)
    latents = diffusers.statistics_of(pipeline, _images(pipeline, data))
    with _whole(target) as work:
        difference = diffusers.write(work, pipeline, latents)
        files = (
            _file(work / CONFIG, f"diffusers.{kind}"),
            _file(work / DIFFUSERS, "the networks", difference),
        )
    shift = f", shift {latents.mean:.5g}" if kind == "AutoencoderKL" else ""
    notes = [f"scaling {latents.scaling:.5g}{shift}: from {latents.images:,} images"]
    if difference is None:
        notes.append("was not loaded, diffusers is not installed: pip install diffusers")
    return Exported(target, files, tuple(notes), f"{pipeline.name}: {pipeline.facts}")


def _images(model: Model, named: str | None) -> Store:
    """The images whose latents are measured: the run's own, or others that are read as it reads its
    own. Raises Refused."""
    if named is not None:
        data = data_as_in_run(named, "--data", model.experiment)
        if isinstance(data, LatentsData):
            raise Refused(f"--data: {named} holds latents already; name images")
        with named_by("--data"):
            return open_source(data)
    try:
        return open_source(model.experiment.data)
    except DataError as error:  # an exported model does not know where its images lie
        raise Refused(f"{error}, or name them with --data") from error


def save_pretrained(pipeline: Model, folder: str | os.PathLike[str]) -> Path:
    """Write `config.json`, `model.safetensors` and a model card to a new or empty folder."""
    return export(pipeline, folder, formats=["safetensors"]).path


def from_pretrained(
    kind: type[_Model],
    folder_or_repository: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    device: str | torch.device | None = None,
    revision: str | None = None,
    custom_classes: bool = False,
) -> _Model:
    """Load an exported folder, or a repository OWNER/NAME of the Hugging Face hub, as a `kind`.

    Unpickles nothing. weights "ema" accepts any weights in the folder. revision: a branch, tag or
    commit of a repository. custom_classes: the config of a model may name classes that are not
    ray_gen's. Loading imports them from the installed packages and calls them with options from the
    config. They can be anything, e.g. torch.hub's `load`. So a repository with such classes needs
    your consent. Raises Refused, CheckpointError, ExperimentError.
    """
    name = os.fspath(folder_or_repository)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not _REPOSITORY.fullmatch(name):
            raise CheckpointError(f"{name}: there is no such folder")
        folder = _downloaded(name, revision)
        targets = custom_targets(read_config(folder)[0])
        if targets and not custom_classes:
            raise CheckpointError(
                f"{name}: has classes that are not ray_gen's ({', '.join(targets)}); loading would "
                "import and call them; if you trust its owner, give custom_classes=True"
            )
    return pretrained_as(kind, folder, weights=weights, device=device)


def push_to_hub(
    run: str | os.PathLike[str] | Model,
    repository: str,
    *,
    weights: Weights = "ema",
    formats: Sequence[str] | None = ("safetensors",),
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Export to a repository OWNER/NAME of the Hugging Face hub, in one commit. Makes the
    repository if it does not exist.

    private None: the default of your hub account. token None: the token of `hf auth login`. Returns
    the address of the commit. Raises Refused.
    """
    hub = _hub(repository)
    with temporary.folder("export-") as work:
        made = export(run, work / "model", weights=weights, formats=formats)
        try:
            api = hub.HfApi(token=token, library_name="ray_gen")
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=made.path, commit_message="Export from ray_gen"
            )
        except Exception as error:
            raise Refused(f"{repository}: cannot be written to the hub: {error}") from error
    return str(commit.commit_url)


def _downloaded(repository: str, revision: str | None) -> Path:
    """The two files of a repository, in the hub's own cache."""
    hub = _hub(repository)
    try:
        return Path(
            hub.snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, MODEL])
        )
    except Exception as error:
        raise CheckpointError(
            f"{repository}: is neither a local folder nor a readable repository: {error}"
        ) from error


def _hub(repository: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Refused(
            f"{repository}: the Hugging Face hub needs huggingface_hub: "
            "pip install 'ray_gen[hub]' (local folders do not need it)"
        )
    import huggingface_hub

    return huggingface_hub


def _chosen(formats: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The formats to write, and a note if one is left out."""
    lacking = programs.missing_for_onnx()
    sentence = (
        f"onnx: not written, {' and '.join(lacking)} is missing: pip install 'ray_gen[export]'"
    )
    if formats is None:
        return [f for f in FORMATS if f != "onnx" or not lacking], [sentence] if lacking else []
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        what = f"{unknown[0]!r} is not one of" if unknown else "is empty; give some of"
        raise Refused(f"--formats: {what} {', '.join(FORMATS)}")
    if "onnx" in formats and lacking:
        raise Refused(f"--formats: {sentence}")
    return list(formats), []


def _target(folder: str | os.PathLike[str]) -> Path:
    """The target folder. It does not exist yet or is empty."""
    if "://" in os.fspath(folder):
        raise Refused(f"{folder}: is not a local folder; export to a local one and copy it there")
    target = Path(folder).expanduser().resolve()
    if target == Path.cwd():
        raise Refused(f"{target}: is the working directory; give the name of a new folder in it")
    with _refusals(target):
        if target.exists() and not target.is_dir():
            raise Refused(f"{target}: is a file; give the name of a new folder")
        inside = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if inside:
        raise Refused(f"{target}: has {inside[0]} in it; give a new or empty folder")
    return target


def _opened(
    run: str | os.PathLike[str] | Model, weights: Weights, checkpoint: Choice, trust_code: bool
) -> Model:
    """The model to export."""
    if isinstance(run, Model):
        return run
    return load_as(
        Model, run, weights=weights, device="cpu", checkpoint=checkpoint, trust_code=trust_code
    )


def _reread(
    folder: Path, made: Sequence[programs.ModelProgram], truncation: float | None
) -> float | None:
    """The largest difference between the model and the model read from the folder."""
    again, _ = programs.programs_of(Model(*read_pretrained(folder, device="cpu")), truncation)
    return max(
        (
            programs.check(MODEL, ours.expected, theirs.expected, chooses=ours.chooses)
            for ours, theirs in zip(made, again, strict=True)
        ),
        default=None,
    )


def _file(path: Path, content: str, difference: float | None = None) -> ExportedFile:
    return ExportedFile(path.name, path.stat().st_size, content, difference)


@contextmanager
def _whole(target: Path) -> Generator[Path]:
    """A temporary folder beside the target. If the block succeeds, it is renamed to the target,
    else it is deleted."""
    with _refusals(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            work = around / target.name  # only the owner may enter the folder of mkdtemp itself
            work.mkdir()
            yield work
            if target.exists():
                target.rmdir()  # empty, as `_target` saw
            work.rename(target)
        finally:
            shutil.rmtree(around, ignore_errors=True)


@contextmanager
def _refusals(target: Path) -> Generator[None]:
    """Turn an OSError into Refused with a readable message."""
    try:
        yield
    except OSError as error:
        raise Refused(f"{target}: cannot be written: {error.strerror or error}") from error
