"""Runs that began with the first rules of reading read the same bytes for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import ray_gen
from ray_gen.data import ImageFolder1
from ray_gen.experiment import Experiment
from tests.data.pictures import opened

OLD: dict[str, tuple[str, int, tuple[int, int, int], tuple[str, ...] | None]] = {
    "grey_first": ("73f03be9996188d368bbf2c64a8ded5f", 1, (1, 9, 8), None),
    "opaque": ("be99c9af6965169f4cb096b90d5e4bdf", 1, (3, 8, 8), None),
    "deep": ("2ef15433f9cfb46372bb3d84398d778a", 1, (1, 8, 8), None),
    "two": ("7e64ad1dec68a20b9c497261d7cbce1f", 2, (3, 8, 8), ("testing", "training")),
    "split": ("5634e0555d01a9223d295f44ac60d367", 2, (3, 8, 8), ("a", "b")),
    "wrapped": ("bbb36b672b86fad9a3c94ad4177674e4", 1, (3, 8, 8), ("set",)),
    "large": ("5d5d75893e717bbcfcf9835dea663eaa", 1, (3, 6, 10), None),
}
"""What ray_gen 0.1 read of the files below: digest, training images, shape, classes."""
SETTINGS: dict[str, dict[str, Any]] = {"large": {"image_size": (6, 10), "center_crop": 12}}


def made(root: Path) -> Path:
    """The files that 0.1 read."""
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return generator.integers(0, 256, shape, dtype=np.uint8)

    def save(path: str, pixels: np.ndarray) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)

    save("grey_first/0.png", noise(9, 8))
    save("grey_first/1.png", noise(9, 8, 3))
    save("opaque/0.png", noise(8, 8, 4))
    save("opaque/1.png", noise(8, 8, 3))
    save("deep/0.png", generator.integers(0, 4096, (8, 8)).astype(np.uint16))
    save("deep/1.png", generator.integers(0, 65536, (8, 8)).astype(np.uint16))
    for split in ("training", "testing"):
        for index in range(3):
            save(f"two/{split}/{index}.png", noise(8, 8, 3))
    for split in ("train", "val"):
        for name in "ab":
            save(f"split/{split}/{name}/0.png", noise(8, 8, 3))
    for index in range(3):
        save(f"wrapped/set/train/{index}.png", noise(8, 8, 3))
    save("large/0.png", noise(20, 16, 3))
    save("large/1.png", noise(16, 20, 3))
    return root


@pytest.mark.parametrize("name", OLD)
def test_the_first_rules_read_what_0_1_read(name: str, tmp_path: Path) -> None:
    source = ImageFolder1(path=str(made(tmp_path) / name))
    settings = {"held_out_fraction": 0.3, **SETTINGS.get(name, {})}
    store = opened(source, tmp_path / "cache", rules=1, **settings)
    assert (store.digest, len(store.train), store.image_shape, store.class_names) == OLD[name]


def test_an_experiment_that_has_read_its_data_without_naming_rules_keeps_the_first() -> None:
    new = ray_gen.recipe("vae-mnist5k")
    assert new.data.rules == 2
    given = yaml.safe_load(new.to_yaml())
    given["data"] |= {"digest": "0" * 32}
    assert Experiment.of(given).data.rules == 2
    del given["data"]["rules"]
    assert Experiment.of(given).data.rules == 1
