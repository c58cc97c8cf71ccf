"""Splits and classes from the names of folders and shards."""

from __future__ import annotations

import itertools

import pytest

from ray_gen.data import DataError
from ray_gen.data.sources.layout import layout_of, splits_of_shards

TRAIN = (
    "train",
    "training",
    "Train",
    "TRAINING",
    "train_images",
    "Train-0",
    "train2017",
    "my train",
)
HELD_OUT = (
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
    "Test",
    "val2017",
)


def tree(*folders: str) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(2)]


@pytest.mark.parametrize(("train", "held_out"), list(itertools.product(TRAIN, HELD_OUT)))
def test_folders_with_the_names_of_splits_are_splits(train: str, held_out: str) -> None:
    layout = layout_of(tree(f"{train}/cat", f"{train}/dog", f"{held_out}/cat"), "auto", "data")
    assert layout.class_names == ("cat", "dog")
    for path, place in layout.places.items():
        assert place.split == ("train" if path.startswith(train) else "held_out")
        assert place.class_name == path.split("/")[1]


def test_splits_are_found_through_one_wrapping_folder_and_keys_do_not_hold_its_name() -> None:
    inner = tree("train/a", "train/b", "test/a")
    wrapped = layout_of([f"set/{path}" for path in inner], "auto", "data")
    plain = layout_of(inner, "auto", "data")
    assert [p.split for p in wrapped.places.values()] == [p.split for p in plain.places.values()]
    assert [p.key for p in wrapped.places.values()] == [p.key for p in plain.places.values()]
    assert wrapped.class_names == ("a", "b")


def test_a_validation_split_comes_before_a_test_split_which_is_counted_as_not_read() -> None:
    layout = layout_of(tree("train", "val", "test"), "auto", "data")
    assert {place.split for place in layout.places.values()} == {"train", "held_out"}
    assert not any(path.startswith("test/") for path in layout.places)
    assert layout.unused == {"test": 2}


def test_a_class_may_be_named_like_a_split_if_nothing_else_suggests_one() -> None:
    layout = layout_of(tree("train", "car", "plane"), "auto", "data")
    assert layout.class_names == ("car", "plane", "train")
    layout = layout_of(tree("test tube", "beaker"), "auto", "data")
    assert layout.class_names == ("beaker", "test tube")


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test", "car"),
        ("eval", "dev"),
        ("Training", "Testing", "readings"),
    ],
)
def test_what_looks_like_both_is_refused_and_the_advice_works(folders: tuple[str, ...]) -> None:
    paths = tree(*folders)
    with pytest.raises(DataError, match=r"^data\.splits: .*may be splits or classes") as refused:
        layout_of(paths, "auto", "data")
    message = str(refused.value)
    train, held_out = message.partition("{train: ")[2].partition("}")[0].split(", held_out: ")
    layout = layout_of(paths, {"train": train, "held_out": held_out}, "data")
    assert {place.split for place in layout.places.values()} == {"train", "held_out"}
    assert layout_of(paths, "none", "data").class_names == tuple(
        sorted({f.split("/")[0] for f in folders})
    )


def test_a_lonely_split_beside_other_folders_is_refused() -> None:
    paths = tree("train/cat", "train/dog", "extra")
    with pytest.raises(DataError, match=r"give data/train itself, or set data\.splits=none"):
        layout_of(paths, "auto", "data")
    assert layout_of(paths, "none", "data").class_names == ("extra", "train")


def test_a_named_split_that_is_not_there_is_refused_with_what_is_there() -> None:
    with pytest.raises(
        DataError, match=r"data\.splits\.held_out: .* no folder 'tset'.*it has a, test"
    ):
        layout_of(tree("a", "test"), {"train": "a", "held_out": "tset"}, "data")


@pytest.mark.parametrize("barren", ["c", "a"])
def test_an_empty_class_folder_is_refused(barren: str) -> None:
    paths = tree("a", "b")
    if barren == "a":  # a folder with images may have empty folders below
        assert layout_of(paths, "auto", "data", ["a/deep"]).class_names == ("a", "b")
        return
    with pytest.raises(DataError, match="data/c is empty or a link to nothing"):
        layout_of(paths, "auto", "data", [barren])


def test_flat_images_have_no_classes_and_ignore_empty_folders() -> None:
    layout = layout_of(["a.png", "b.png"], "auto", "data", ["empty"])
    assert layout.class_names is None


SHARDS = {
    ("train-00000.parquet", "validation-00000.parquet"): ("train", "held_out"),
    ("Train-0.parquet", "testing-0.parquet"): ("train", "held_out"),
    ("data/digits-training.parquet", "data/digits-eval.parquet"): ("train", "held_out"),
    ("Training/0.parquet", "Dev/0.parquet"): ("train", "held_out"),
    ("train-0.parquet", "train-1.parquet"): (None, None),
    ("0.parquet", "1.parquet"): (None, None),
}


@pytest.mark.parametrize("names", SHARDS)
def test_shards_tell_their_split(names: tuple[str, ...]) -> None:
    assert tuple(splits_of_shards(names, "data").values()) == SHARDS[names]


def test_a_shard_without_a_split_beside_shards_with_one_is_refused() -> None:
    with pytest.raises(DataError, match=r"the name extra\.parquet tells no split"):
        splits_of_shards(["train-0.parquet", "test-0.parquet", "extra.parquet"], "data")
