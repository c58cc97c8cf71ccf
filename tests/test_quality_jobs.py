"""The jobs that compare models: how data is split, studies that build, and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import ray_gen
from ray_gen.runs.checkpoints import checkpoint_name
from tests.helpers import random_store, vae
from tests.runs import saved

JOBS = Path(__file__).resolve().parent.parent / "jobs"
STUDIES = sorted((JOBS / "studies").glob("*.yaml"))


@pytest.fixture
def quality(job: Callable[[str], ModuleType]) -> ModuleType:
    return job("quality")


@pytest.fixture
def stacked(job: Callable[[str], ModuleType]) -> ModuleType:
    return job("stacked_mnist")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of forty things in three looks each: cat/t07-b.png."""
    folder = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            for look in "abc":
                (folder / name / f"t{number:02}-{look}.png").write_bytes(b"x")
    return folder


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.png"))


def test_looks_of_a_thing_come_to_one_side(
    quality: ModuleType, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    quality.split(pictures, data, group=r"^(t\d+)-", share=0.25)
    train, test = ({name[:3] for name in names_of(data / part)} for part in ("train", "test"))
    assert not train & test and len(train | test) == 40 and 4 < len(test) < 18
    copied = [*names_of(data / "train"), *names_of(data / "test")]
    assert sorted(copied) == names_of(pictures)
    again = tmp_path / "again"
    quality.split(pictures, again, group=r"^(t\d+)-", share=0.25)
    assert names_of(again / "test") == names_of(data / "test")
    assert "training and" in capsys.readouterr().out


def test_one_class_all_others_or_few_images(
    quality: ModuleType, pictures: Path, tmp_path: Path
) -> None:
    only, rest = tmp_path / "only", tmp_path / "rest"
    quality.split(pictures, only, group=r"^(t\d+)-", only=["cat"], most=20)
    quality.split(pictures, rest, group=r"^(t\d+)-", without=["cat"])
    assert [path.name for path in (only / "train").iterdir()] == ["cat"]
    train = names_of(only / "train")
    assert len(train) == 18  # six things whole: 20 would cut one
    assert len(train) + len(names_of(only / "test")) == 120
    assert {path.name for path in (rest / "train").iterdir()} == {"dog"}
    with pytest.raises(SystemExit, match="no class bird; it has cat, dog"):
        quality.split(pictures, tmp_path / "none", only=["bird"])


def _models(file: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    study = yaml.safe_load(file.read_text())
    return [(n, study.get("defaults", {}), model) for n, model in study["models"].items()]


@pytest.mark.parametrize("file", STUDIES, ids=[file.stem for file in STUDIES])
def test_every_model_of_a_study_is_an_experiment_with_its_metrics(
    quality: ModuleType, file: Path, tmp_path: Path
) -> None:
    for name, defaults, model in _models(file):
        known = {"recipe", "changes", "seeds", "minutes", "checkpoints", "later", "metrics"}
        assert model.keys() <= known, name
        metrics = quality.metrics_of(yaml.safe_load(file.read_text()), model)
        for later in ({}, model.get("later", {})):
            given = {**defaults, **model.get("changes", {}), **later}
            if str(given["data"]).startswith("latents:"):
                given["data"] = "folder:{data}"  # latents are read to know their size
                given["data.image_size"] = 16
            changes = [f"{p}={quality.filled(v, tmp_path, tmp_path)}" for p, v in given.items()]
            this = ray_gen.recipe(model["recipe"], *changes)
            bottleneck = getattr(this.objective, "bottleneck", None)
            has_codes = bottleneck is not None and bottleneck.kind != "kl"
            assert has_codes or "codebook" not in metrics, name


def test_a_table_is_sorted_by_kid_and_tells_what_was_not_measured(
    quality: ModuleType, tmp_path: Path
) -> None:
    for name, scores in (("a", {"kid": 2.0}), ("b", {"kid": 1.0, "coverage": 0.5}), ("c", {})):
        (tmp_path / name).mkdir()
        facts = {"images": 12_345, "cpu_seconds": 60.4, "scores": scores}
        (tmp_path / name / "quality.json").write_text(json.dumps(facts))
    assert quality.table(tmp_path).splitlines() == [
        "| run | images | CPU seconds | kid | coverage |",
        "| - | - | - | - | - |",
        "| b | 12,345 | 60 | 1 | 0.5 |",
        "| a | 12,345 | 60 | 2 | nan |",
        "| c | 12,345 | 60 | nan | nan |",
    ]


def test_each_checkpoint_of_a_run_is_measured(quality: ModuleType, tmp_path: Path) -> None:
    for images in (48, 96):
        this = vae(f"training.images={images}")
        saved(this, random_store(8), tmp_path / "run" / checkpoint_name(images))
    measured: list[tuple[Path, tuple[str, ...]]] = []

    def evaluated(folder: Path, data: Path, metrics: tuple[str, ...]) -> dict[str, float]:
        measured.append((folder, metrics))
        return {"kid": float(len(measured))}

    lines = quality.checkpoints(tmp_path, tmp_path / "run", ("kid",), evaluated).splitlines()
    assert lines[0] == "| images | kid |"
    assert lines[2:] == ["| 48 | 1 |", "| 96 | 2 |"]
    assert [metrics for _, metrics in measured] == [("kid",)] * 2


def test_a_classifier_tells_colours_apart(job: Callable[[str], ModuleType], tmp_path: Path) -> None:
    classifier = job("_classifier")
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for name, colour in (("blue", (30, 40, 200)), ("red", (200, 40, 30))):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count if name == "red" else count // 4):
                noise = generator.integers(-20, 20, (12, 12, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    found = classifier.fit(tmp_path, tmp_path / "weights.safetensors", side=16, epochs=25)
    assert found.accuracy == found.balanced == 1.0
    again = classifier.Classifier(str(tmp_path / "weights.safetensors")).eval()
    red = torch.tensor([200, 40, 30], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 20, 30)
    with torch.no_grad():
        features = again(red)
    assert features.vectors.shape == (2, 128)
    assert features.logits is not None and features.logits.argmax(1).tolist() == [1, 1]


class _Brightness(nn.Module):
    """The digit that the brightness of an image says: 0.35 is a 3."""

    def forward(self, images: Tensor) -> Tensor:
        found = (images.mean((1, 2, 3)) * 10).long()
        return nn.functional.one_hot(found, 10).float()


@pytest.mark.parametrize("side", [28, 32])
def test_a_mode_is_a_number_of_three_digits(stacked: ModuleType, side: int) -> None:
    digits = torch.tensor([[3, 0, 7], [3, 0, 7], [9, 9, 9]])
    images = torch.zeros(3, 3, side, side)
    edge = (side - 28) // 2
    inner = slice(edge, edge + 28)
    images[..., inner, inner] = (digits[..., None, None] + 0.5) / 10
    found = stacked.counts(_Brightness(), images)
    assert found.sum() == 3 and found[307] == 2 and found[999] == 1


def test_the_divergence_of_modes_is_that_of_closed_forms(stacked: ModuleType) -> None:
    even = torch.full((1000,), 26)
    assert stacked.reverse_kl(even) == pytest.approx(0.0, abs=1e-12)
    half = torch.where(torch.arange(1000) < 500, 52, 0)
    assert stacked.reverse_kl(half) == pytest.approx(math.log(2))
    one = torch.where(torch.arange(1000) == 5, 26_000, 0)
    assert stacked.reverse_kl(one) == pytest.approx(math.log(1000))
