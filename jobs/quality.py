"""Which model is better on one data set, when each gets the same seconds of processor time.

    python jobs/quality.py split FOLDER DATA [--group REGEX] [--test 0.2] [--only CLASS ...]
                                 [--without CLASS ...] [--most N]
    python jobs/quality.py classifier DATA [--side 32]
    python jobs/quality.py run STUDY.yaml DATA DEST [--only NAME ...] [--minutes 20]
    python jobs/quality.py table DEST
    python jobs/quality.py checkpoints DATA RUN [--metrics kid ...]

`split` copies a folder of classes into DATA/train and DATA/test. Files whose names match REGEX in
the same text (its groups, joined) come to the same side: near copies of a training image must not
be test images. `classifier` trains a small classifier, with equal numbers of images of all classes;
its features are those of the metrics. `run` trains each model of a study with one thread, and
`--minutes` of processor time each, and evaluates it against the held-out images. `table` prints
what is there. `checkpoints` evaluates each checkpoint that a run has kept.

A study names models. Each is a recipe and changes of its fields; `{data}` is DATA, and `{dest}` is
DEST, so that one model may begin with another:

    metrics: [kid, coverage]
    defaults: {data: "folder:{data}", data.image_size: 32}
    models:
      dcgan: {recipe: dcgan, changes: {objective.r1_weight: 1}}
      again: {recipe: dcgan, changes: {training.start_from: "{dest}/dcgan"}, minutes: 60, seeds: 3}

The images of a run are chosen before it: a run of one step and some seconds of training give the
processor time of a start and of an image (`pace`), and schedules end where the run ends. The time
that a run really took is in the table, from its first process to its last (`wait4`), decoding of
the data included. Where a phase begins in mid-run, `later` names the changes with which it begins
at once; the pace is then the mean of both. `checkpoints` keeps so many of a run. A model may have
`metrics` of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

# A script sees only its own folder; without this it would measure an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _classifier import fit

import ray_gen
from ray_gen.distributed import World, use_cores
from ray_gen.runs.manifest import MANIFEST
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.sources import open_data, resolved_by
from ray_gen.training.state import State

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("kid", "coverage", "nearest_neighbour", "sliced_wasserstein")
PACE_IMAGES, PACE_SECONDS = 64, 12.0
"""Images between two readings of the clock, and for how long it is read."""


def split(
    source: Path,
    data: Path,
    *,
    group: str = "^.*$",
    share: float = 0.2,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    most: int | None = None,
) -> None:
    """Copy `source`/CLASS/* into `data`/train/CLASS and `data`/test/CLASS. The side is a function
    of the text that `group` matches, over all classes. most: training images at most; the others
    become test images, near copies together."""
    classes = {path.name for path in source.iterdir() if path.is_dir()}
    for name in {*only, *without} - classes:
        sys.exit(f"{source} has no class {name}; it has {', '.join(sorted(classes))}")
    pattern = re.compile(group)
    places: list[tuple[float, Path]] = []
    for path in sorted(source.glob("*/*")):
        if path.parent.name in without or (only and path.parent.name not in only):
            continue
        found = pattern.search(path.name)
        key = path.stem if found is None else "".join(filter(None, found.groups() or found.group()))
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        places.append((number, path))
    places.sort(key=lambda place: -place[0])  # those with the largest numbers train
    kept = sum(number >= share for number, _ in places)
    if most is not None and most < kept:
        kept = most
        while kept and places[kept - 1][0] == places[kept][0]:
            kept -= 1
    for at, (_, path) in enumerate(places):
        target = data / ("train" if at < kept else "test") / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    print(f"{kept} training and {len(places) - kept} test images in {data}")


def run(study: dict[str, Any], data: Path, dest: Path, only: list[str], minutes: float) -> None:
    """Train and evaluate the models of a study, one after the other. What is there is kept."""
    dest.mkdir(parents=True, exist_ok=True)
    unknown = set(only) - study["models"].keys()
    if unknown:
        sys.exit(f"--only: the study has no {', '.join(sorted(unknown))}")
    for name, model in study["models"].items():
        if only and name not in only:
            continue
        for seed in range(int(model.get("seeds", 1))):
            folder = dest / (name if seed == 0 else f"{name}-seed{seed}")
            if (folder / "quality.json").is_file():
                continue
            given = {**study.get("defaults", {}), **model.get("changes", {}), "seed": seed}
            changes = [f"{path}={filled(value, data, dest)}" for path, value in given.items()]
            budget = 60.0 * float(model.get("minutes", minutes))
            later = [
                f"{path}={json.dumps(value)}" for path, value in model.get("later", {}).items()
            ]
            images = _images_for(model["recipe"], changes, later, budget)
            kept = int(model.get("checkpoints", 1))
            facts = {"recipe": model["recipe"], "changes": changes, "images": images}
            _one(facts, _lengths(images, kept), folder, data, metrics_of(study, model))


def metrics_of(study: dict[str, Any], model: dict[str, Any]) -> Sequence[str]:
    """The metrics of a model: its own, or else those of the study."""
    return model.get("metrics", study.get("metrics", METRICS))


def filled(value: Any, data: Path, dest: Path) -> str:
    """A value as YAML on one line, with the two places."""
    return json.dumps(value).replace("{data}", str(data)).replace("{dest}", str(dest))


def _one(
    facts: dict[str, Any],
    lengths: list[str],
    folder: Path,
    data: Path,
    metrics: Sequence[str],
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    facts["cpu_seconds"] = _train(facts["recipe"], [*facts["changes"], *lengths], folder)
    scores = _evaluate(folder, data, metrics)
    (folder / "quality.json").write_text(json.dumps({**facts, "scores": scores}, indent=1))
    print(json.dumps({"run": folder.name, **facts, "scores": scores}), flush=True)


def _lengths(images: int, checkpoints: int = 1) -> list[str]:
    return [
        "workers.cpus=1",
        f"training.images={images}",
        f"training.report_every_images={max(1, images // 20)}",
        f"training.checkpoint_every_images={max(1, images // checkpoints)}",
        f"checkpoints.keep={max(2, checkpoints)}",
        "checkpoints.every_minutes=null",
        "evaluation.every_images=null",
    ]


def _images_for(recipe: str, changes: list[str], later: list[str], budget: float) -> int:
    """As many images as the budget is enough for: the processor time of a run of one step, and of
    an image in mid-run. later: changes of the second half, for its pace."""
    paces = [_pace_of(recipe, changes)]
    if later:
        paces.append(_pace_of(recipe, [*changes, *later]))
    with tempfile.TemporaryDirectory() as place:
        start = _train(recipe, [*changes, *_lengths(1)], Path(place) / "start")
    return max(1, round((budget - start) * len(paces) / sum(paces)))


def _pace_of(recipe: str, changes: list[str]) -> float:
    """`pace` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "pace", recipe, *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def pace(recipe: str, changes: list[str]) -> float:
    """Seconds of processor time for an image of training, on one thread."""
    use_cores(1)
    more = [f"training.report_every_images={PACE_IMAGES}", "evaluation.every_images=null"]
    experiment = ray_gen.recipe(recipe, *changes, *more)
    store = open_data(experiment)
    experiment = resolved_by(experiment, store)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    times: list[tuple[int, float]] = []
    for report in train(experiment, objective, state, store, World()):
        times.append((report.images, time.process_time()))
        (first, begun), (last, ended) = times[min(1, len(times) - 1)], times[-1]
        if last > first and ended - begun >= PACE_SECONDS:
            return (ended - begun) / (last - first)
    sys.exit(f"{recipe}: ended before its pace was known")


def _train(recipe: str, changes: list[str], folder: Path) -> float:
    """Train into a folder with one thread. Returns the processor time in seconds."""
    command = [sys.executable, "-m", "ray_gen", "train", recipe, "--local"]
    command += ["--name", folder.name, "--storage", str(folder.parent), *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or not folder.is_dir():
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _evaluate(folder: Path, data: Path, metrics: Sequence[str]) -> dict[str, float]:
    """Scores against the test images. No metrics: none, and no classifier is needed."""
    if not metrics:
        return {}
    features = {
        "kind": "custom",
        "target": "_classifier:Classifier",
        "options": {"weights": str(data / "classifier.safetensors")},
    }
    scores = ray_gen.evaluate(folder, split="held_out", metrics=metrics, features=features)
    return {score.name: score.value for score in scores}


def _row(file: Path) -> dict[str, Any]:
    return {"run": file.parent.name, **json.loads(file.read_text())}


def table(dest: Path) -> str:
    """What is there, sorted by KID."""
    rows = [_row(file) for file in dest.glob("*/quality.json")]
    rows.sort(key=lambda row: row["scores"].get("kid", math.inf))
    heads = [[row["run"], f"{row['images']:,}", f"{row['cpu_seconds']:.0f}"] for row in rows]
    scores = [row["scores"] for row in rows]
    return _table(["run", "images", "CPU seconds"], heads, scores)


Evaluate = Callable[[Path, Path, Sequence[str]], dict[str, float]]
"""From a run or checkpoint, the data and the metrics to scores."""


def checkpoints(
    data: Path, run: Path, metrics: Sequence[str], evaluated: Evaluate = _evaluate
) -> str:
    """The scores of a run over time."""
    folders = sorted(run.glob("checkpoint_[0-9]*"))
    images = [json.loads((folder / MANIFEST).read_text())["images"] for folder in folders]
    scores = [evaluated(folder, data, metrics) for folder in folders]
    return _table(["images"], [[f"{count:,}"] for count in images], scores)


def _table(
    names: list[str], heads: Sequence[Sequence[str]], scores: Sequence[dict[str, float]]
) -> str:
    """names: of the first columns. heads: these, of each row. scores: of each row."""
    columns = list(dict.fromkeys(name for row in scores for name in row))
    lines = [[*names, *columns], ["-"] * (len(names) + len(columns))]
    for head, row in zip(heads, scores, strict=True):
        lines.append([*head, *(f"{row.get(name, math.nan):.4g}" for name in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("split")
    one.add_argument("source", type=Path)
    one.add_argument("data", type=Path)
    one.add_argument("--group", default=r"^.*$")
    one.add_argument("--test", type=float, default=0.2)
    one.add_argument("--only", nargs="*", default=[], metavar="CLASS")
    one.add_argument("--without", nargs="*", default=[], metavar="CLASS")
    one.add_argument("--most", type=int, metavar="N")
    one = commands.add_parser("classifier")
    one.add_argument("data", type=Path)
    one.add_argument("--side", type=int, default=32)
    one = commands.add_parser("run")
    one.add_argument("study", type=Path)
    one.add_argument("data", type=Path)
    one.add_argument("dest", type=Path)
    one.add_argument("--only", nargs="*", default=[])
    one.add_argument("--minutes", type=float, default=20.0)
    one = commands.add_parser("pace", help="seconds of processor time for an image")
    one.add_argument("recipe")
    one.add_argument("changes", nargs="*")
    one = commands.add_parser("table")
    one.add_argument("dest", type=Path)
    one = commands.add_parser("checkpoints")
    one.add_argument("data", type=Path)
    one.add_argument("run", type=Path)
    one.add_argument("--metrics", nargs="+", default=METRICS)
    given = parser.parse_args()
    if given.command == "split":
        split(
            given.source,
            given.data,
            group=given.group,
            share=given.test,
            only=given.only,
            without=given.without,
            most=given.most,
        )
    elif given.command == "classifier":
        fitted = fit(given.data, given.data / "classifier.safetensors", side=given.side)
        print(f"accuracy {fitted.accuracy:.3f}, mean over classes {fitted.balanced:.3f}")
    elif given.command == "pace":
        print(pace(given.recipe, given.changes))
    elif given.command == "run":
        study = yaml.safe_load(given.study.read_text())
        run(study, given.data.resolve(), given.dest.resolve(), given.only, given.minutes)
    elif given.command == "checkpoints":
        print(checkpoints(given.data.resolve(), given.run.resolve(), given.metrics))
    else:
        print(table(given.dest))


if __name__ == "__main__":
    main()
