"""torchvision's data sets by name, in the formats that their own downloads leave on disk."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from ray_gen.data import DataError, TorchvisionDataset
from tests.data.pictures import noise, opened, write

datasets = pytest.importorskip("torchvision.datasets")


def write_mnist(root: Path, train: int, test: int) -> None:
    """MNIST's IDX files, made of noise."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        pixels = np.stack([noise(28, 28, 1, seed) for seed in range(count)])
        images = struct.pack(">4i", 0x803, count, 28, 28) + pixels.tobytes()
        labels = struct.pack(">2i", 0x801, count) + bytes(seed % 10 for seed in range(count))
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{name}-{kind}-ubyte").write_bytes(data)
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(data, 1))


def test_mnist_from_its_own_files(tmp_path: Path) -> None:
    write_mnist(tmp_path / "root", train=12, test=5)
    source = TorchvisionDataset(dataset="MNIST", root=str(tmp_path / "root"), download=False)
    store = opened(source, tmp_path / "cache", held_out_fraction=0.9)
    assert store.image_shape == (1, 28, 28)
    assert np.array_equal(store.train.images_NHWC[3, ..., 0].numpy(), noise(28, 28, 1, 3))
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [seed % 10 for seed in range(12)]
    assert len(store.held_out) == 5
    assert store.class_names is not None
    assert store.class_names[3] == "3 - three"


def test_changed_files_are_decoded_again_and_others_are_not(tmp_path: Path) -> None:
    write_mnist(tmp_path / "root", train=12, test=5)
    source = TorchvisionDataset(dataset="MNIST", root=str(tmp_path / "root"), download=False)
    seen: list[int] = []

    def decoded() -> bool:
        seen.clear()
        opened(source, tmp_path / "cache", progress=lambda done, total: seen.append(done))
        return bool(seen)

    assert decoded()
    assert not decoded()
    (tmp_path / "root" / "CIFAR10").mkdir()  # another data set in the same root
    assert not decoded()
    os.utime(tmp_path / "root" / "MNIST" / "raw" / "train-labels-idx1-ubyte")
    assert decoded()


def test_cifar10_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = {name: noise(2, 32 * 32 * 3, 1, seed) for seed, name in enumerate("12345t")}

    def dump(name: str, value: object) -> tuple[str, str]:
        data = pickle.dumps(value)
        (folder / name).write_bytes(data)
        return name, hashlib.md5(data).hexdigest()

    train = [dump(f"data_batch_{i}", {"data": images[i], "labels": [int(i), 0]}) for i in "12345"]
    test = [dump("test_batch", {"data": images["t"], "labels": [9, 8]})]
    names = [f"class {i}" for i in range(10)]
    meta_name, digest = dump("batches.meta", {"label_names": names})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    meta = {"filename": meta_name, "key": "label_names", "md5": digest}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)

    source = TorchvisionDataset(dataset="CIFAR10", root=str(tmp_path / "root"), download=False)
    store = opened(source, tmp_path / "cache")
    assert store.train.labels is not None
    assert store.held_out.labels is not None
    assert store.train.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert store.held_out.labels.tolist() == [9, 8]
    assert store.class_names == tuple(names)
    expected = images["3"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(store.train.images_NHWC[4].numpy(), expected)


def test_a_data_set_that_names_its_splits(tmp_path: Path) -> None:
    for split, count in {"train": 4, "valid": 3, "test": 2}.items():
        for index in range(count):
            write(tmp_path / "country211" / split / "AD" / f"{index}.jpg", noise(8, 8, 3, index))
    source = TorchvisionDataset(dataset="Country211", root=str(tmp_path), download=False)
    store = opened(source, tmp_path / "cache")
    assert (len(store.train), len(store.held_out)) == (4, 3)
    chosen = TorchvisionDataset(
        dataset="Country211", root=str(tmp_path), download=False, options={"split": "test"}
    )
    assert len(opened(chosen, tmp_path / "cache").train) == 2


def test_a_data_set_without_splits_is_divided_by_the_fraction(tmp_path: Path) -> None:
    """FakeData draws from torch's global generator, which two threads would share."""
    options = {"size": 200, "image_size": [1, 8, 8], "num_classes": 3}
    source = TorchvisionDataset(
        dataset="FakeData", root=str(tmp_path), download=False, options=options
    )
    store = opened(source, tmp_path / "cache", held_out_fraction=0.25)
    assert len(store.train) + len(store.held_out) == 200
    assert 30 < len(store.held_out) < 70
    assert store.label_count == 3
    reference = datasets.FakeData(**options)
    everything = opened(source, tmp_path / "cache").train
    assert everything.labels is not None
    for index in (0, 99, 199):
        image, label = reference[index]
        assert np.array_equal(everything.images_NHWC[index, ..., 0].numpy(), np.asarray(image))
        assert int(everything.labels[index]) == label


def test_each_name_and_root_without_data_has_its_sentence(tmp_path: Path) -> None:
    def refused(message: str, dataset: str, **options: object) -> None:
        given = {"dataset": dataset, "root": str(tmp_path / "root"), "download": False}
        with pytest.raises(DataError, match=message):
            opened(TorchvisionDataset(**given, options=options), tmp_path / "cache")

    refused(r"data\.dataset: .* no data set 'CIFAR-10'; did you mean CIFAR10", "CIFAR-10")
    refused(r"data\.dataset: .* 'mnist'; did you mean MNIST", "mnist")
    refused(r"data\.root: MNIST cannot be read from \S*root .*set data\.download=true", "MNIST")
    refused(r"data\.dataset: .* no data set 'VisionDataset'", "VisionDataset")
    refused(r"data\.root: CIFAR10 cannot be read from \S*root", "CIFAR10")
    refused(r"data\.root: CelebA cannot be read from \S*root", "CelebA")
    refused(r"data\.options\.sizes: .*did you mean size\?", "FakeData", sizes=3)
    refused(r"data\.options\.split: torchvision's EMNIST cannot be made without", "EMNIST")
    refused(r"data\.options: torchvision's EMNIST refuses .*split", "EMNIST", split="nonsense")
