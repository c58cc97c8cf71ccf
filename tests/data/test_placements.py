"""The same images give the same data wherever they lie: folder, zip, tar, shards, list, Parquet."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ray_gen.data import ImageFolder, ImageList, ImageTar, ImageZip, Parquet, Store
from tests.data.pictures import noise, opened, write
from tests.data.test_archives import zipped
from tests.data.test_convert import converted

SIZE = {"image_size": (12, 10)}
FRACTION = 0.3


def pictures(root: Path, folders: list[str]) -> Path:
    """Images of many kinds, each with pixels of its own."""
    for number, folder in enumerate(folders):
        for index in range(8):
            seed, path = 100 * number + index, root / folder
            write(path / f"{index}.png", noise(16 + index, 20, 3, seed))
            write(path / f"{index}.jpg", noise(24, 16 + index, 3, seed + 20), quality=95)
            write(path / f"grey{index}.png", noise(14, 14, 1, seed + 40))
            write(path / f"alpha{index}.webp", noise(15, 15, 4, seed + 60), lossless=True)
        palette = Image.fromarray(noise(20, 20, 3, 900 + number)).convert("P")
        write(root / folder / "palette.gif", palette)
    (root / "README").write_text("text")
    return root


def labelled(store: Store) -> dict[str, dict[bytes, str | None]]:
    """The class name of each image, by its pixels, in each split."""
    found: dict[str, dict[bytes, str | None]] = {}
    for name in ("train", "held_out"):
        split = getattr(store, name)
        names: list[str | None] = [None] * len(split)
        if store.class_names is not None:
            names = [store.class_names[label] for label in split.labels.tolist()]
        pixels = [image.numpy().tobytes() for image in split.images_NHWC]
        found[name] = dict(zip(pixels, names, strict=True))
        assert len(found[name]) == len(split) > 0
    return found


LAYOUTS = {
    "classes": ["cat", "dog", "ünïcode & spaces"],
    "no classes": [""],
    "splits": ["train/cat", "train/dog", "val/cat", "val/dog"],
    "splits without classes": ["train", "test"],
    "classes in folders": ["cat/a", "cat/b", "dog"],
    "a wrapping folder": ["set/cat", "set/dog"],
}


@pytest.mark.parametrize("folders", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_images_are_the_same_data_in_every_place(
    folders: list[str], tmp_path: Path
) -> None:
    root = pictures(tmp_path / "set", folders)
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "."], cwd=root, check=True)
    subprocess.run(["tar", "-cf", tmp_path / "b.tar", "set"], cwd=tmp_path, check=True)
    sources: dict[str, Any] = {
        "folder": ImageFolder(path=str(root)),
        "zip": ImageZip(path=str(zipped(root, tmp_path / "a.zip"))),
        "zip of the folder": ImageZip(path=str(zipped(root, tmp_path / "b.zip", "whole/"))),
        "tar": ImageTar(path=str(tmp_path / "a.tar")),
        "tar of the folder": ImageTar(path=str(tmp_path / "b.tar")),
    }

    if folders == [""]:  # a folder of images is a class, in archives too
        for name in ("zip of the folder", "tar of the folder"):
            assert opened(sources.pop(name), tmp_path / "cache", **SIZE).label_count == 1

    def open_one(source: Any) -> Store:
        return opened(source, tmp_path / "cache", held_out_fraction=FRACTION, **SIZE)

    stores = {name: open_one(source) for name, source in sources.items()}
    assert {store.digest for store in stores.values()} == {stores["folder"].digest}
    assert len({store.path for store in stores.values()}) == len(stores)
    expected = labelled(stores["folder"])
    for name, store in stores.items():
        assert labelled(store) == expected, name

    for name in ("folder", "zip", "tar"):
        target = tmp_path / f"{name}.parquet"
        converted(sources[name], target, None, held_out_fraction=FRACTION)
        store = open_one(Parquet(path=str(target)))
        assert labelled(store) == expected and store.class_names == stores["folder"].class_names


def test_shards_and_a_list_hold_the_same_images(tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", ["cat", "dog"])
    files = sorted(file.relative_to(root) for file in root.rglob("*.*"))
    for shard in range(3):
        target = tmp_path / "shards" / f"{shard}.tar"
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["tar", "-cf", target, *files[shard::3]], cwd=root, check=True)
    lines = [f"set/{file}\t{file.parent}" for file in files]
    (tmp_path / "list.txt").write_text("\n".join(lines))

    def images(source: Any) -> dict[bytes, str | None]:
        store = opened(source, tmp_path / "cache", held_out_fraction=FRACTION, **SIZE)
        splits = labelled(store)
        return splits["train"] | splits["held_out"]

    expected = images(ImageFolder(path=str(root)))
    assert images(ImageTar(path=str(tmp_path / "shards"))) == expected
    assert images(ImageList(path=str(tmp_path / "list.txt"))) == expected
