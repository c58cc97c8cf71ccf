"""What earlier versions wrote goes on: runs and exports load, sample, evaluate and resume.

`old_runs/v0_1` was made by ray_gen 0.1 (933dfbb) with `ray-gen train`, one worker and one thread,
and `ray-gen export --formats safetensors`; `expected.*` is what that version made of them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ray_gen
from ray_gen.distributed import World, use_cores
from ray_gen.experiment import Experiment
from ray_gen.pipeline import Pipeline
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.sources import open_data
from ray_gen.training.state import State

RUNS = Path(__file__).parent / "old_runs" / "v0_1"
EXPECTED = json.loads((RUNS / "expected.json").read_text())
TENSORS = load_file(RUNS / "expected.safetensors")
NAMES = ("vae", "cdcgan")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


HERE = {
    "torch": torch.__version__,
    "processor": _processor(),
    "capability": torch.backends.cpu.get_cpu_capability(),
}
APART = {"rtol": 1e-4, "atol": 1e-5}
NEAR = {"rtol": 0.0, "atol": 0.0} if EXPECTED["made_on"] == HERE else APART
"""Bit for bit where the arithmetic is that of the machine that made them."""
TRAINED = {"rtol": 2e-5, "atol": 2e-7} if EXPECTED["made_on"] == HERE else APART
"""After more training. Generations of one processor's name add in other orders: weights differed by
1.5e-8."""


@pytest.fixture(autouse=True)
def _as_a_worker() -> None:
    use_cores(1)


def _is_as_expected(name: str, pipeline: Pipeline, weights: str) -> None:
    samples = pipeline.sample(6, seed=5)
    found = {"samples": samples}
    if name == "vae":
        images = pipeline.sample(4, seed=9)
        found |= {"means": pipeline.encode(images), "draws": pipeline.encode(images, seed=1)}
    for part, values in found.items():
        torch.testing.assert_close(values, TENSORS[f"{name}/{part}/{weights}"], **NEAR)


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_samples_and_encodes(name: str, weights: str) -> None:
    pipeline = ray_gen.load(RUNS / name, weights=weights, device="cpu")
    _is_as_expected(name, pipeline, weights)
    if name == "cdcgan":
        logits = pipeline.discriminate(pipeline.sample(6, seed=5), range(6))
        torch.testing.assert_close(logits, TENSORS[f"{name}/logits/{weights}"], **NEAR)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_export_samples_and_encodes(name: str) -> None:
    _is_as_expected(name, Pipeline.from_pretrained(RUNS / f"{name}-export", device="cpu"), "ema")


@pytest.mark.parametrize("name", NAMES)
def test_the_latents_of_an_old_run_are_walked_through(name: str) -> None:
    pipeline = ray_gen.load(RUNS / name, device="cpu")
    label = {} if name == "vae" else {"labels": 3}
    ends = [pipeline.latents([number], 0) for number in (1, 2)]
    way = pipeline.interpolate(*ends, 5, **label)
    torch.testing.assert_close(way, TENSORS[f"{name}/interpolated"], **NEAR)
    rows = pipeline.traverse([0, 2], steps=3, **label)
    torch.testing.assert_close(rows, TENSORS[f"{name}/traversed"], **NEAR)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_is_evaluated(name: str) -> None:
    expected = EXPECTED["scores"][name]
    metrics = ["sliced_wasserstein", "nearest_neighbour"]
    metrics += ["likelihood"] if name == "vae" else []
    scores = ray_gen.evaluate(str(RUNS / name), metrics=metrics, count=200)
    for score, value in expected.items():
        assert scores[score].value == pytest.approx(value, rel=NEAR["rtol"], abs=NEAR["atol"])


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    """From its first checkpoint to its last: networks, averages, moments and memory."""
    first, last = sorted((RUNS / name).glob("checkpoint_*"))
    experiment = Experiment.from_yaml((first / "experiment.yaml").read_text())
    objective = build_objective(experiment)
    resumed, expected = (State.build(experiment, objective, World()) for _ in range(2))
    resumed.load(first)
    expected.load(last)
    assert (resumed.step, expected.step) == (10, 20)
    *_, report = train(experiment, objective, resumed, open_data(experiment), World())
    assert report.step == 20
    for ours, theirs in (
        (resumed.networks.state_dict(), expected.networks.state_dict()),
        (resumed.ema.state_dict(), expected.ema.state_dict()),
        (resumed.moments(), expected.moments()),
    ):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(
                value, theirs[key], **TRAINED, msg=lambda m, k=key: f"{k}: {m}"
            )
    saved = tmp_path / "checkpoint"
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir()
    resumed.save(saved, experiment)
    written, manifest = (
        json.loads((folder / "manifest.json").read_text()) for folder in (saved, last)
    )
    assert written["settled"] == manifest["settled"]
