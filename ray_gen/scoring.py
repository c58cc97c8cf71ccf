"""`evaluate`: a run, or pictures that any other tool made, against real images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation import Request, Scores, exported, measure, name_of
from ray_gen.evaluators.base import Progress, Score, silent
from ray_gen.experiment import Experiment, absolute_path
from ray_gen.experiment.data import Data
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.experiment.settings import problems_of
from ray_gen.pipeline import loading
from ray_gen.pipeline.pretrained import read_config
from ray_gen.storage import without_credentials


def evaluate(
    run: str | os.PathLike[str] | None = None,
    *,
    generated: str | None = None,
    reference: str | None = None,
    split: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    on_corrupt: str | None = None,
    workers: int = 1,
    progress: Progress = silent,
    **settings: Any,
) -> Scores:
    """The scores of a run folder, a checkpoint or an exported model, each with its protocol.

    generated: in the place of a run, a folder of pictures (or `parquet:…`). reference: real images
    as `data` of an experiment names them, e.g. "folder:~/photos" or "mnist5k"; None: the data that
    the run was trained on. split: "train" or "held_out" of them; None: as `evaluation.reference`
    says. image_size, channels, on_corrupt: as `data` of an experiment has them, of pictures and of
    their reference; of a run's reference, whose images are brought to the run's, on_corrupt alone.
    workers: 1 evaluates in this process; more are Ray workers, with a GPU each where the cluster
    has any, and give the same values. settings: fields of `evaluation`, e.g. metrics=["fid"],
    count=10_000, in the place of the run's own. Raises Refused.
    """
    if (run is None) == (generated is None):
        raise Refused("evaluate: name either a run, or pictures with --generated")
    if generated is not None and reference is None:
        raise Refused(
            "--reference: pictures need real ones to be compared with: a folder, or a source such "
            "as mnist5k or torchvision:CIFAR10"
        )
    decoding = {"image_size": image_size, "channels": channels, "on_corrupt": on_corrupt}
    decoding = {name: value for name, value in decoding.items() if value is not None}
    if split is not None:
        settings["reference"] = split
    if run is None:
        request = Request(
            None,
            _source(str(generated), "--generated", decoding),
            _source(str(reference), "--reference", decoding),
            _settings(None, settings),
        )
    else:
        location, experiment = absolute_path(os.fspath(run)), experiment_of(run)
        data = _reference(location, experiment, reference, decoding)
        request = Request(location, None, data, _settings(experiment, settings))
    if workers > 1:
        from ray_gen.launch.evaluate import evaluate_on_workers

        return evaluate_on_workers(request, workers, progress)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measure(request, World(device=device), progress)


def experiment_of(run: str | os.PathLike[str]) -> Experiment:
    """The experiment of a run, a checkpoint or an exported model. Raises Refused."""
    folder = exported(absolute_path(os.fspath(run)))
    return loading.experiment_of(run) if folder is None else read_config(folder)[0]


def _settings(experiment: Experiment | None, changes: Mapping[str, Any]) -> Evaluation:
    """The run's own settings with changes, checked."""
    own = Evaluation() if experiment is None else experiment.evaluation
    given = {**own.model_dump(mode="json"), **changes}
    try:
        return Evaluation.model_validate(given)
    except ValidationError as error:
        problems = problems_of(error, Evaluation, given)
        raise Refused("\n".join(f"evaluation.{problem}" for problem in problems)) from None


def _reference(
    location: str, experiment: Experiment, named: str | None, decoding: Mapping[str, Any]
) -> Data | None:
    """What samples of a run are compared with, in the run's size and channels; None: its data."""
    own = {"image_size": experiment.data.image_size, "channels": experiment.data.channels}
    for name in own:
        if name in decoding:
            raise Refused(
                f"data.{name}: a run has its own, and a reference is brought to it; leave it out"
            )
    if named is not None:
        return _source(named, "--reference", {**own, **decoding})
    if decoding:
        raise Refused(
            "data.on_corrupt: a run's own data is read as it was for training; leave it out, or "
            "name other images with --reference"
        )
    return None if exported(location) is None else _data_of_export(location, experiment)


def _data_of_export(location: str, experiment: Experiment) -> Data | None:
    """The data of an exported model, which holds only the last part of a local path; None where
    its settings say all of it."""
    data = experiment.absolute().data
    path = getattr(data, "path", "://")
    if "://" in path:
        return None
    if not Path(path).exists():
        raise Refused(
            f"--reference: {location} was trained on {name_of(experiment.data)}, and an export "
            "does not say where that lies; name images to compare with, or start in the folder "
            f"that holds {Path(path).name}"
        )
    return data


def _source(text: str, option: str, decoding: Mapping[str, Any]) -> Data:
    """A folder, or a source in its short form, with settings of how its images are decoded."""
    kinds = ("folder:", "parquet:", "torchvision:")
    short = text if text.startswith(kinds) or text == "mnist5k" else f"folder:{text}"
    without_credentials(short.partition(":")[2])  # before it stands in a message
    adapter: TypeAdapter[Data] = TypeAdapter(Data)
    try:
        data = adapter.validate_python(short)
    except ValidationError as error:
        raise Refused(f"{option}: {text}: {error.errors()[0]['msg']}") from error
    changes = dict(decoding)
    if hasattr(data, "path"):
        changes["path"] = absolute_path(getattr(data, "path"))  # noqa: B009
    if text != "mnist5k" and not text.startswith("torchvision:"):
        changes["held_out_fraction"] = 0.0  # all of the pictures that were named
    given = {**data.model_dump(), **changes}
    try:
        return type(data).model_validate(given)
    except ValidationError as error:
        problems = problems_of(error, type(data), given)
        raise Refused("\n".join(f"data.{problem}" for problem in problems)) from None


def table(runs: Sequence[tuple[str, Scores]]) -> str:
    """Runs and their scores as a Markdown table, and under it how each value was measured."""
    names = list(dict.fromkeys(score.name for _, scores in runs for score in scores))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for run, scores in runs:
        found = {score.name: _cell(score) for score in scores}
        lines.append(f"| {run} | " + " | ".join(found.get(name, "") for name in names) + " |")
    lines.append("")
    for run, scores in runs:
        lines += _protocol(run, scores)
    lines += dict.fromkeys(f"- left out: {why}" for _, scores in runs for why in scores.without)
    return "\n".join(lines)


def _cell(score: Score) -> str:
    spread = "" if score.spread is None else f" ± {score.spread:.2g}"
    return f"{score.value:.5g}{spread}"


def _protocol(run: str, scores: Scores) -> list[str]:
    """How the scores of a run were measured: what all of a family share, then each one's own."""
    lines: list[str] = []
    of_samples = [score for score in scores if "generated" in score.protocol]
    others = [score for score in scores if "generated" not in score.protocol]
    for family in (of_samples, others):
        if not family:
            continue
        first = family[0].protocol
        shared = {k: v for k, v in first.items() if all(v == s.protocol.get(k) for s in family)}
        lines.append(f"- {run}: {_words(shared)}")
        own: dict[str, list[str]] = {}
        for score in family:
            words = _words({k: v for k, v in score.protocol.items() if k not in shared})
            own.setdefault(words, []).append(score.name)
        lines += [f"  - {', '.join(names)}: {words}" for words, names in own.items() if words]
    return lines


def _words(protocol: Mapping[str, Any]) -> str:
    """A protocol in a line."""
    told: list[str] = []
    for key, value in protocol.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            told.append(f"{name} ({_words(value)})")
        elif isinstance(value, float):
            told.append(f"{name} {value:.4g}")
        elif value is not None:
            told.append(f"{name} {value}")
    return ", ".join(told)
