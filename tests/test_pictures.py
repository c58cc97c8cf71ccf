"""What a picture file holds is the images, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_gen.errors import Refused
from ray_gen.runs import pictures


def rows(count: int, steps: int, channels: int = 1) -> torch.Tensor:
    """(R, S, C, 4, 6), each image of one level of its own."""
    levels = torch.arange(1, count * steps + 1).reshape(count, steps, 1, 1, 1) / 255
    return levels.expand(count, steps, channels, 4, 6)


def test_a_grid_is_in_reading_order_on_white() -> None:
    picture = pictures.grid(rows(1, 5)[0], columns=2)
    assert picture.shape == (3 * 6 + 2, 2 * 8 + 2, 1)
    assert picture[2, 2, 0] == 1
    assert picture[2, 10, 0] == 2
    assert picture[14, 2, 0] == 5
    assert set(np.unique(picture)) == {1, 2, 3, 4, 5, 255}
    assert pictures.grid(rows(1, 5)[0]).shape == (2 * 6 + 2, 3 * 8 + 2, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_written_as_a_grid_an_animation_an_array_or_files(
    tmp_path: Path, channels: int
) -> None:
    images = rows(2, 3, channels)
    said = pictures.save_rows(images, tmp_path / "a.png", zoom=2)
    assert said == f"{tmp_path}/a.png: 2 rows of 3 steps"
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[:2] == (2 * (2 * 6 + 2), 2 * (3 * 8 + 2))
    assert picture.ndim == (2 if channels == 1 else 3)

    said = pictures.save_rows(images, tmp_path / "a.gif")
    assert said.endswith("2 rows of 3 steps, forwards and backwards")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4
        assert animation.info["loop"] == 0
        for frame, step in enumerate((0, 1, 2, 1)):
            animation.seek(frame)
            expected = pictures.grid(images[:, step])
            found = np.asarray(animation.convert("L"))
            assert np.array_equal(found, expected[:, :, 0])

    pictures.save_rows(images, tmp_path / "a.npz")
    written = np.load(tmp_path / "a.npz")["images"]
    assert written.shape == (2, 3, 4, 6, channels)
    assert written[:, :, 0, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]

    pictures.save_rows(images, tmp_path / "folder")
    files = sorted((tmp_path / "folder").iterdir())
    assert [np.asarray(Image.open(file)).flat[0] for file in files] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Refused, match="already contains PNG files"):
        pictures.save_rows(images, tmp_path / "folder")


def test_pairs_stand_below_each_other_and_a_short_last_row_is_filled_with_white() -> None:
    first, second = rows(1, 5)[0], rows(2, 5)[1]
    picture = pictures.grid(pictures.in_turn_rows(first, second, 3), 3)
    tops, lefts = range(2, 24, 6), range(2, 26, 8)
    found = [[int(picture[top, left, 0]) for left in lefts] for top in tops]
    assert found == [[1, 2, 3], [6, 7, 8], [4, 5, 255], [9, 10, 255]]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_equation_shows_groups_means_signs_and_results(channels: int) -> None:
    images = torch.arange(1, 21).reshape(20, 1, 1, 1).expand(20, channels, 16, 16) / 255
    groups = [
        ("+", images[:3], images[3:4]),
        ("-", images[4:6], images[6:7]),
        ("+", images[7:8], images[8:9]),
    ]
    picture = pictures.equation(groups, images[11:])
    levels = set(np.unique(picture)) - {0, 255}
    assert levels == {*range(1, 10)} - {10, 11} | {*range(12, 21)}
    assert picture.shape[2] == channels
    # Means in the last row, from the left, before the results.
    below = [int(level) for level in picture[-10, :, 0] if level not in (0, 255)]
    assert list(dict.fromkeys(below)) == [4, 7, 9, 18, 19, 20]
    black = picture[:, :, 0] == 0
    at = np.flatnonzero(black.any(0))
    signs = np.split(at, np.flatnonzero(np.diff(at) > 8) + 1)
    bars = [_runs(black[:, sign[0] : sign[-1] + 1].any(1)) for sign in signs]
    arms = [_runs(black[:, sign[0]]) for sign in signs]
    heights = [int(black[:, sign].any(1).sum()) for sign in signs]
    assert (bars, arms) == ([1, 1, 2], [1, 1, 2])  # minus, plus, equals
    assert heights[0] < heights[1]
    alone = pictures.equation([("-", images[:1], images[1:2])], images[11:])
    assert (alone == 0).any()


def _runs(line: np.ndarray) -> int:
    """How many unbroken runs of True."""
    return int((np.diff(line.astype(int), prepend=0) == 1).sum())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(Image.Image, "save", full)
    for name in ("a.png", "a.gif", "a.npz"):
        with pytest.raises(OSError, match="No space"):
            pictures.save_rows(rows(2, 3), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
