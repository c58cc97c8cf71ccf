"""The cache of reference statistics: used only if the whole key is equal, replaced if damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_gen.distributed import World
from ray_gen.evaluation.scores import Score
from tests.evaluation.helpers import Made, Tiny, measured, pictures

ALL = ["fid", "kid", "inception_score", "precision", "coverage"]


def scores(
    folder: Path | None, reference: Made, metrics: Sequence[str] = ALL, extractor: Any = None
) -> list[Score]:
    return measured(
        metrics,
        Made(pictures(60, 1)),
        reference,
        extractor=extractor or Tiny(),
        world=World(),
        kid_subset_size=20,
        cache_folder=folder,
    )


def made(count: int = 80, digest: str | None = "reference") -> Made:
    return Made(pictures(100, 2)[:count], digest)


def test_a_second_evaluation_embeds_no_reference_image(tmp_path: Path) -> None:
    first, second, third = made(), made(), made()
    measured = scores(tmp_path, first)
    assert first.taken == 80 + 1  # one more, for the shape
    assert scores(tmp_path, second) == measured
    assert second.taken == 1
    assert scores(tmp_path, third, ["fid"])[0] == measured[0]
    assert third.taken == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 2


def test_statistics_that_are_missing_in_the_cache_are_measured(tmp_path: Path) -> None:
    scores(tmp_path, made(), ["fid"])
    assert len(list(tmp_path.iterdir())) == 1
    again = made()
    scores(tmp_path, again)
    assert again.taken == 81
    assert len(list(tmp_path.iterdir())) == 2


def other_name(tiny: Tiny) -> None:
    tiny.name = "another"


def other_weights(tiny: Tiny) -> None:
    tiny.digest = "another"


def other_resizing(tiny: Tiny) -> None:
    tiny.resizing = "another"


@pytest.mark.parametrize("change", [other_name, other_weights, other_resizing])
def test_another_extractor_is_another_entry(tmp_path: Path, change: Callable[[Tiny], None]) -> None:
    scores(tmp_path, made())
    extractor, reference = Tiny(), made()
    change(extractor)
    scores(tmp_path, reference, extractor=extractor)
    assert reference.taken == 81


def test_other_images_are_another_entry(tmp_path: Path) -> None:
    scores(tmp_path, made())
    for reference in (made(digest="another"), made(count=79)):
        scores(tmp_path, reference)
        assert reference.taken == len(reference) + 1


def test_images_or_weights_without_a_digest_are_never_kept(tmp_path: Path) -> None:
    scores(tmp_path, made(digest=None))
    extractor = Tiny()
    other: Any = extractor
    other.digest = None
    scores(tmp_path, made(), extractor=extractor)
    scores(None, made())
    assert not list(tmp_path.iterdir())


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swapped(path: Path) -> None:
    """Puts another entry under this name."""
    other = next(p for p in path.parent.iterdir() if p != path)
    path.write_bytes(other.read_bytes())


def not_finite(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).fill_(torch.nan) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)


def pickled(path: Path) -> None:
    torch.save({"mean": torch.zeros(16)}, path)


@pytest.mark.parametrize("damage", [halved, swapped, not_finite, pickled])
def test_a_damaged_entry_is_measured_again_and_replaced(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    measured = scores(tmp_path, made())
    damage(sorted(tmp_path.iterdir())[0])
    again, third = made(), made()
    assert scores(tmp_path, again) == measured
    assert again.taken == 81
    scores(tmp_path, third)
    assert third.taken == 1


def test_a_disk_error_gives_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept"):
        found = scores(tmp_path / "file" / "folder", made())
    assert found == scores(None, made())
