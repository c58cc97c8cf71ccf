"""Splits and classes from the names of folders and shards."""

from __future__ import annotations

import itertools
import shlex

import pytest

from ray_gen.data import DataError
from ray_gen.data.sources.layout import layout_of, splits_of_shards
from tests.helpers import vae

TRAIN = (
    "train",
    "training",
    "Train",
    "TRAINING",
    "Train-0",
    "train2017",
    "train-00000-of-00002",
    "_TRAIN.2_",
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


HOLLOW: dict[tuple[str, ...], str] = {
    ("c/",): "c is empty or a link to nothing",
    ("c/deep/er/",): "c is empty or a link to nothing",
    ("c/readme.txt",): r"c has no images, but 1 \.txt",
    ("c/x.ico", "c/y/z.ico", "c/notes"): r"c has no images, but 2 \.ico, 1 without suffix",
    ("c/x.mp4", "c/empty/"): r"c has no images, but 1 \.mp4",
}


@pytest.mark.parametrize("barren", HOLLOW)
def test_a_class_folder_without_an_image_is_refused(barren: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=rf"^data\.path: data/{HOLLOW[barren]}"):
        layout_of(tree("a", "b"), "auto", "data", barren)
    in_splits = tree("train/a", "train/b", "test/a", "test/b")
    inside = [f"test/{path}" for path in barren]
    with pytest.raises(DataError, match=rf"^data\.path: data/test/{HOLLOW[barren]}"):
        layout_of(in_splits, "auto", "data", inside)


def test_a_folder_with_images_may_hold_anything_else() -> None:
    beside = ["a/deep/", "a/notes.txt", "b/x/y.ico", "README.md", "LICENSE"]
    assert layout_of(tree("a", "b"), "auto", "data", beside).class_names == ("a", "b")
    paths = tree("set/train/a", "set/test/a")
    beside = ["set/train/readme.txt", "set/train/a/labels/x.txt", "set/docs/x.md", "docs/x.md"]
    assert layout_of(paths, "auto", "data", beside).class_names == ("a",)


def test_flat_images_have_no_classes_and_ignore_empty_folders() -> None:
    layout = layout_of(["a.png", "b.png"], "auto", "data", ["empty/"])
    assert layout.class_names is None


@pytest.mark.parametrize("train", ["train", "train/a", "set/train/a"])
@pytest.mark.parametrize("hollow", ["val/", "test/a/", "Test/readme.txt"])
def test_an_empty_held_out_split_beside_train_is_refused(train: str, hollow: str) -> None:
    top = "set/" if train.startswith("set") else ""
    name = hollow.partition("/")[0]
    for classes in (True, False):
        with pytest.raises(DataError, match=rf"data/{top}{name} .*split.*; put images into it"):
            layout_of(tree(train), "auto", "data", [top + hollow], classes=classes)
    assert layout_of(tree(train), "auto", "data", [f"{top}docs/x.md"]).places
    with pytest.raises(DataError, match=f"data/{name} "):
        layout_of(tree("train/a", "dev/a"), "auto", "data", [hollow])


TWO_READINGS = (
    ("seg_train", "seg_test", "seg_pred"),
    ("trainA", "trainB", "testA", "testB"),
    ("trainval", "test"),
    ("train", "val", "trainval"),
    ("train_val", "test"),
    ("pretrain", "test"),
    ("train", "holdout"),
    ("train", "held_out"),
    ("trn", "tst"),
    ("TrainSet", "TestSet", "extra"),
    ("trainset", "testset"),
    ("training_part", "devel", "valset"),
    ("train_tracks", "test_tubes"),
    ("train_images", "val_images"),
    ("my train", "test"),
    ("seg_train", "seg_test"),
    ("train", "test tube"),
    ("train no.1", "test: a"),
    ("it's train", "'test' 100%"),
    ("train é", "val 火车"),
)


@pytest.mark.parametrize("folders", TWO_READINGS)
def test_names_that_hold_the_names_of_splits_are_refused(folders: tuple[str, ...]) -> None:
    paths = tree(*folders)
    with pytest.raises(DataError, match=r"^data\.splits: .*may be splits or classes") as refused:
        layout_of(paths, "auto", "data")
    advice = str(refused.value).partition(" set ")[2].partition(" (other folders")[0]
    data = vae("data=folder:data", *shlex.split(advice)).data
    told = data.arguments()["splits"]
    named = layout_of(paths, told, "data")
    assert {place.split for place in named.places.values()} == {"train", "held_out"}
    assert "tr" in told["train"].lower()
    assert told["held_out"].lower() not in ("trainval", "extra", "seg_pred")
    assert layout_of(paths, "none", "data").class_names == tuple(sorted(folders))


CLASSES = (
    ("trainers", "sandals"),
    ("trainval", "cat"),
    ("bullet_train", "valley", "devil", "contest"),
    ("strain", "test"),
    ("trainA", "cat"),
    ("testing", "cat", "dog"),
    ("valve", "device", "trained"),
    ("train_tracks", "cat"),
    ("test_tubes", "beaker"),
)


@pytest.mark.parametrize("folders", CLASSES)
def test_ordinary_classes_stay_classes(folders: tuple[str, ...]) -> None:
    assert layout_of(tree(*folders), "auto", "data").class_names == tuple(sorted(folders))


INNER = (
    ("x/train", "x/test", "y/train", "y/test"),
    ("fold1/train/x", "fold1/test/x", "fold2/train/x", "fold2/test/x"),
    ("images/train", "images/val", "labels/train"),
    ("x/trainA", "x/testA", "y"),
)


@pytest.mark.parametrize("folders", INNER)
@pytest.mark.parametrize("classes", [True, False])
def test_splits_inside_of_classes_are_refused(folders: tuple[str, ...], classes: bool) -> None:
    paths = tree(*folders)
    with pytest.raises(DataError, match=r"^data\.splits: .*hold folders named like splits") as told:
        layout_of(paths, "auto", "data", classes=classes)
    top = folders[0].partition("/")[0]
    assert f"give data/{top} alone" in str(told.value)
    inside = [path.removeprefix(f"{top}/") for path in paths if path.startswith(f"{top}/")]
    if "trainA" not in folders[0]:
        alone = layout_of(inside, "auto", f"data/{top}")
        assert {place.split for place in alone.places.values()} == {"train", "held_out"}
    assert layout_of(paths, "none", "data").class_names == tuple(
        sorted({folder.partition("/")[0] for folder in folders})
    )


def test_without_a_training_split_the_test_split_stays_held_out() -> None:
    with pytest.raises(DataError, match=r"\{train: dev, held_out: test\}"):
        layout_of(tree("dev", "test"), "auto", "data")


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        (("dev set", "test set"), r'\{train: "dev set", held_out: "test set"\}'),
        (("eval_a", "val_a"), r"\{train: eval_a, held_out: val_a\}"),
    ],
)
def test_nor_are_names_of_two_held_out_splits_classes(folders, advice: str) -> None:
    with pytest.raises(DataError, match=advice):
        layout_of(tree(*folders), "auto", "data")


def test_one_folder_for_both_splits_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.splits: train and held_out are both 'train'"):
        layout_of(tree("train", "x"), {"train": "train", "held_out": "train"}, "data")


SHARDS: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("train-00000.parquet", "validation-00000.parquet"): ("train", "held_out"),
    ("Train-0.parquet", "testing-0.parquet"): ("train", "held_out"),
    ("data/digits-training.parquet", "data/digits-eval.parquet"): ("train", "held_out"),
    ("Training/0.parquet", "Dev/0.parquet"): ("train", "held_out"),
    (
        "train-00000-of-00001-b42a775f407cee45.parquet",
        "test-00000-of-00001-00f2a6c8d9e1b377.parquet",
    ): (
        "train",
        "held_out",
    ),
    ("x/partial-train/0.parquet", "x/test/0.parquet"): ("train", "held_out"),
    ("test/train_tracks.parquet", "train/tracks.parquet"): ("held_out", "train"),
    ("train-0.parquet", "train-1.parquet"): (None, None),
    ("0.parquet", "1.parquet"): (None, None),
}


@pytest.mark.parametrize("names", SHARDS)
def test_shards_tell_their_split(names: tuple[str, ...]) -> None:
    assert tuple(splits_of_shards(names, "data").values()) == SHARDS[names]


def test_a_shard_without_a_split_beside_shards_with_one_is_refused() -> None:
    with pytest.raises(DataError, match=r"the name extra\.parquet tells no split"):
        splits_of_shards(["train-0.parquet", "test-0.parquet", "extra.parquet"], "data")


@pytest.mark.parametrize(
    "names",
    [
        ("test.parquet", "validation.parquet"),
        ("trainval-0.parquet", "test-0.parquet"),
        ("0.parquet", "1.parquet", "eval.parquet"),
        ("train.parquet", "holdout.parquet"),
        ("train-0.parquet", "tst-0.parquet"),
        ("train_tracks.parquet", "test_tubes.parquet"),
        ("train.parquet", "test_tubes.parquet"),
    ],
)
def test_a_held_out_shard_is_never_trained_on_without_a_word(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"^data\.path: .*rename"):
        splits_of_shards(names, "data")


def test_shards_of_one_split_alone_are_the_data_set() -> None:
    for name in ("test", "val", "train"):
        assert set(splits_of_shards([f"{name}-0.parquet", f"{name}-1.parquet"], "d").values()) == {
            None
        }
