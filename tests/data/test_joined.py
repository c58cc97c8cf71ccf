"""Several sources as one: classes by name, own splits, and shares of what training draws."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_gen.data import ArrowFolder, DataError, ImageFolder, ImageZip, Joined, Parquet
from ray_gen.data.build import split_of
from ray_gen.data.feed import FeedSettings, SharedOrder, Stored
from ray_gen.data.told import remarks, summary
from ray_gen.experiment import ExperimentError, data_settings
from ray_gen.training.sources import open_source
from tests.data.pictures import noise, opened, write
from tests.data.test_archives import zipped
from tests.data.test_convert import converted
from tests.data.test_parquet import hf, write_table
from tests.data.test_rows import saved

CPU = torch.device("cpu")


def rows(images_NHWC: Any) -> set[bytes]:
    return {image.numpy().tobytes() for image in images_NHWC}


def coloured(root: Path, classes: dict[str, int], first: int = 0) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        for index in range(count):
            seed = first + 1000 * number + index
            write(root / name / f"{index:03}.png", noise(6, 6, 3, seed))
    return root


def test_classes_are_joined_by_name(tmp_path: Path) -> None:
    first = coloured(tmp_path / "first", {"cat": 3, "dog": 3})
    second = zipped(coloured(tmp_path / "second", {"bird": 2, "dog": 4}, 5000), tmp_path / "b.zip")
    table = {"image": hf(range(9000, 9003)), "label": ["dog", "cow", "cat"]}
    write_table(tmp_path / "c.parquet", **table)
    source = Joined(
        sources=[
            ImageFolder(path=str(first)),
            ImageZip(path=str(second)),
            Parquet(path=str(tmp_path / "c.parquet")),
        ]
    )
    store = opened(source, tmp_path / "cache")
    assert store.class_names == ("cat", "dog", "bird", "cow")
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 2 + [1] * 4 + [1, 3, 0]
    assert store.sources == (6, 6, 3)
    assert summary(store).startswith("15 images (15 train, 0 held out) of 6×6, RGB, 4 classes")


def test_each_source_keeps_its_own_splits(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 100)):
        coloured(tmp_path / "first" / split, {"cat": 5, "dog": 5}, first)
    second = coloured(tmp_path / "second", {"cat": 30, "dog": 30}, 5000)
    first_source, second_source = (
        ImageFolder(path=str(tmp_path / "first")),
        ImageFolder(path=str(second)),
    )
    alone = opened(second_source, tmp_path / "cache", held_out_fraction=0.3)
    store = opened(
        Joined(sources=[first_source, second_source]), tmp_path / "cache", held_out_fraction=0.3
    )
    own = opened(first_source, tmp_path / "cache", held_out_fraction=0.3)
    assert store.sources == (10, len(alone.train))
    assert rows(store.held_out.images_NHWC) == (
        rows(own.held_out.images_NHWC) | rows(alone.held_out.images_NHWC)
    )


def test_a_source_without_classes_is_told(tmp_path: Path) -> None:
    first = coloured(tmp_path / "first", {"cat": 3, "dog": 3})
    write(tmp_path / "second" / "0.png", noise(6, 6, 3, 77))
    source = Joined(
        sources=[ImageFolder(path=str(first)), ImageFolder(path=str(tmp_path / "second"))]
    )
    store = opened(source, tmp_path / "cache")
    assert store.class_names is None and store.train.labels is None
    told = "data.sources.1 has no named classes, so classes are not used"
    assert told in list(remarks(store))


def test_other_channels_and_no_class_in_common_are_told(tmp_path: Path) -> None:
    write(tmp_path / "grey" / "cat" / "0.png", noise(6, 6, 1, 5))
    second = coloured(tmp_path / "second", {"Cat": 2})
    source = Joined(
        sources=[ImageFolder(path=str(tmp_path / "grey")), ImageFolder(path=str(second))]
    )
    store = opened(source, tmp_path / "cache")
    told = list(remarks(store))
    assert store.image_shape == (3, 6, 6)
    assert any("all become RGB" in remark for remark in told)
    assert any("no class in common: their names together are 2 classes" in r for r in told)


def test_errors_name_the_source_and_its_fields(tmp_path: Path) -> None:
    first = coloured(tmp_path / "first", {"cat": 3})
    splits = tmp_path / "second"
    coloured(splits, {"train/a": 2, "test/a": 2, "other": 2})
    source = Joined(sources=[ImageFolder(path=str(first)), ImageFolder(path=str(splits))])
    with pytest.raises(DataError, match=r"^data\.sources\.1\.splits: .* set data\.sources\.1\.spl"):
        opened(source, tmp_path / "cache")
    source = Joined(sources=[ImageFolder(path=str(first)), ArrowFolder(path=str(splits))])
    with pytest.raises(DataError, match=r"^data\.sources\.1\.path: "):
        opened(source, tmp_path / "cache")
    write_table(tmp_path / "c.parquet", image=hf(range(3)))
    cut = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(cut[:4] + b"x" * 40 + cut[44:])
    source = Joined(
        sources=[ImageFolder(path=str(first)), Parquet(path=str(tmp_path / "c.parquet"))]
    )
    with pytest.raises(DataError, match=r"^data\.sources"):
        opened(source, tmp_path / "cache")


def test_a_skipped_image_leaves_the_counts_of_sources_right(tmp_path: Path) -> None:
    first = coloured(tmp_path / "first", {"cat": 3})
    (first / "cat" / "001.png").write_bytes(b"no image")
    second = coloured(tmp_path / "second", {"cat": 4}, 50)
    source = Joined(sources=[ImageFolder(path=str(first)), ImageFolder(path=str(second))])
    assert opened(source, tmp_path / "cache", on_corrupt="skip").sources == (2, 4)


def test_joined_sources_become_one_parquet_data_set(tmp_path: Path) -> None:
    first = coloured(tmp_path / "first", {"cat": 9, "dog": 9})
    second = coloured(tmp_path / "second", {"bird": 6, "dog": 6}, 5000)
    source = Joined(sources=[ImageFolder(path=str(first)), ImageFolder(path=str(second))])
    store = opened(source, tmp_path / "cache", held_out_fraction=0.2)
    converted(source, tmp_path / "out", None, held_out_fraction=0.2)
    written = opened(Parquet(path=str(tmp_path / "out")), tmp_path / "cache")
    assert written.class_names == store.class_names == ("cat", "dog", "bird")
    for split in ("train", "held_out"):
        expected, found = getattr(store, split), getattr(written, split)
        assert rows(found.images_NHWC) == rows(expected.images_NHWC)
    write_table(tmp_path / "c.parquet", image=hf(range(3)))
    source = Joined(sources=[source.sources[0], Parquet(path=str(tmp_path / "c.parquet"))])
    with pytest.raises(DataError, match=r"^data\.sources: joined Parquet files are not converted"):
        converted(source, tmp_path / "more", None)


shares_of = st.lists(st.tuples(st.integers(50, 700), st.floats(1e-3, 1e3)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=25)
@given(shares_of, st.integers(0, 2**62), st.integers(0, 9), st.data())
def test_shares_hold_and_do_not_depend_on_the_batch_size(
    sources: list[tuple[int, float]], seed: int, blocks: int, data: st.DataObject
) -> None:
    counts, weights = zip(*sources, strict=True)
    order = SharedOrder(seed, counts, weights, CPU)
    total = blocks * order.block
    dealt = order.dealt(blocks)
    assert sum(dealt) == total
    exact = [Fraction(weight) for weight in weights]
    for number, weight in zip(dealt, exact, strict=True):
        assert abs(number - total * weight / sum(exact)) < len(exact)
    after = order.dealt(blocks + 1)
    assert all(later >= number for number, later in zip(dealt, after, strict=True))

    first = data.draw(st.integers(0, total))
    last = first + data.draw(st.integers(1, 2000))
    whole = order[range(first, last)]
    size = data.draw(st.integers(30, 999))
    other = SharedOrder(seed, counts, weights, CPU)  # another worker, which begins here
    parts = [other[range(i, min(i + size, last))] for i in range(first, last, size)]
    assert torch.equal(torch.cat(parts), whole)
    assert int(whole.min()) >= 0 and int(whole.max()) < sum(counts)


def test_each_source_has_epochs_of_its_own() -> None:
    """In a source's own sequence, every epoch holds each of its images once."""
    counts, weights = (700, 90, 311), (5.0, 2.0, 1.0)
    drawn = SharedOrder(7, counts, weights, CPU)[range(0, 8192)].numpy()
    start = 0
    for count, weight in zip(counts, weights, strict=True):
        own = drawn[(drawn >= start) & (drawn < start + count)] - start
        assert abs(len(own) - 8192 * weight / 8) < 2
        seen = np.bincount(own, minlength=count)
        assert seen.max() - seen.min() <= 1
        start += count


def test_blocks_mix_the_sources() -> None:
    """Not one source after another, and not in turns."""
    drawn = SharedOrder(3, (1000, 1000), (1.0, 1.0), CPU)[range(0, 1024)] < 1000
    runs = int((drawn[1:] != drawn[:-1]).sum())
    assert 430 < runs < 600  # of random order: 512 ± 16


def test_training_draws_by_the_shares_on_any_number_of_workers() -> None:
    images = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1)

    def drawn(part: range, shares: Any = (3.0, 1.0)) -> Any:
        feed = FeedSettings(7, 64, part, (0.0, 1.0), flip=False, dtype=torch.float32)
        stored = Stored(images, None, feed, CPU, on_device=True, sources=(20, 80), shares=shares)
        return torch.stack([batch.flatten() for batch, _ in stored.batches(3, 35)])

    whole = drawn(range(64))
    assert torch.equal(whole, torch.cat([drawn(range(24)), drawn(range(24, 64))], 1))
    assert abs(int((whole < 20).sum()) - 0.75 * 64 * 32) < 200
    alike = drawn(range(64), None)
    assert abs(int((alike < 20).sum()) - 0.2 * 64 * 32) < 20


def joined(tmp_path: Path, *assignments: str, **fields: Any) -> Any:
    from ray_gen.experiment.reading import _DataAlone, apply_override

    given: dict[str, Any] = {"data": {"kind": "joined", **fields}}
    for assignment in assignments:
        apply_override(given, assignment, _DataAlone)
    return _DataAlone.model_validate(given).data


def test_settings_of_joined_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    first = coloured(tmp_path / "first", {"cat": 9, "dog": 9})
    second = saved(tmp_path / "second", range(500, 512), names=["dog", "cat"], label=[0, 1] * 6)
    data = joined(tmp_path, sources=[f"folder:{first}", str(second)], weights=[3, 1])
    assert [source.kind for source in data.sources] == ["folder", "arrow"]
    assert data.short_form == f"joined:folder:{first}+arrow:{second}"
    store = open_source(data)
    assert store.class_names == ("cat", "dog") and sum(store.sources) == len(store.train)
    held_out = next(name for i in range(99) if split_of(name := f"{i}.png", 0.5) == "held_out")
    write(tmp_path / "one" / held_out, noise(6, 6, 3))
    empty = joined(
        tmp_path,
        "data.held_out_fraction=0.5",
        sources=[f"folder:{first}", f"folder:{tmp_path / 'one'}"],
        weights=[1, 1],
    )
    with pytest.raises(
        ExperimentError, match=r"^data\.weights: data\.sources\.1 has no training i"
    ):
        open_source(empty)
    for source in (data_settings("mnist5k"), data):
        assert type(source).model_validate(source.model_dump(mode="json")) == source


def test_fields_of_one_source_are_set_by_its_number(tmp_path: Path) -> None:
    data = joined(
        tmp_path,
        "data.sources.0.splits=none",
        "data.sources.1=zip:b.zip",
        sources=["folder:a", "c"],
    )
    assert data.sources[0].splits == "none" and data.sources[1].path == "b.zip"
    with pytest.raises(ExperimentError, match=r"'7' is no item of a list of 1; items are numbered"):
        joined(tmp_path, "data.sources.7.splits=none", sources=["folder:a"])
