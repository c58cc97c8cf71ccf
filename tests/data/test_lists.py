"""A list of paths is a data set."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from ray_gen.data import DataError, ImageFolder, ImageList
from ray_gen.data.build import split_of
from ray_gen.data.told import remarks
from tests.data.pictures import noise, opened, write


def images(tmp_path: Path, count: int = 6) -> list[Path]:
    root = tmp_path / "pictures"
    return [write(root / f"{i}.png", noise(6, 6, 3, i)) for i in range(count)]


def listed(tmp_path: Path, text: str, **settings: Any) -> Any:
    (tmp_path / "list.txt").write_text(text)
    source = ImageList(path=str(tmp_path / "list.txt"))
    return opened(source, tmp_path / "cache", **settings)


def test_relative_and_absolute_paths(tmp_path: Path) -> None:
    first, second, *_ = images(tmp_path)
    store = listed(tmp_path, f"\ufeffpictures/0.png\r\n\n{second}\npictures/../pictures/2.png")
    assert len(store.train) == 3 and store.class_names is None
    assert first.exists()


def test_the_paths_of_the_list_are_the_keys(tmp_path: Path) -> None:
    images(tmp_path, 40)
    names = [f"pictures/{i}.png" for i in range(40)]
    store = listed(tmp_path, "\n".join(names), held_out_fraction=0.4)
    assert len(store.held_out) == sum(split_of(name, 0.4) == "held_out" for name in names) > 0


@pytest.mark.parametrize("form", ["{}\t{}", "{},{}", "{}, {}", '"{}","{}"', "  {}\t{} "])
@pytest.mark.parametrize("header", ["", "path", "file_name"])
def test_a_second_column_names_the_classes(form: str, header: str, tmp_path: Path) -> None:
    images(tmp_path)
    lines = [form.format(f"pictures/{i}.png", ("cat", "dog")[i % 2]) for i in range(6)]
    if header:
        lines.insert(0, form.format(header, "label"))
    store = listed(tmp_path, "\n".join(lines))
    assert store.class_names == ("cat", "dog")
    assert store.train.labels.tolist() == [0, 1] * 3


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    images(tmp_path)
    store = listed(tmp_path, "\n".join(f"pictures/{i}.png,{(10, 9, 200)[i % 3]}" for i in range(6)))
    assert store.class_names == ("9", "10", "200")
    assert store.train.labels.tolist() == [1, 0, 2] * 2


def test_a_comma_in_a_name_is_no_column(tmp_path: Path) -> None:
    write(tmp_path / "a, b.png", noise(6, 6, 3))
    write(tmp_path / "c, d.png", noise(6, 6, 3))
    store = listed(tmp_path, "a, b.png\nc, d.png")
    assert len(store.train) == 2 and store.class_names is None
    store = listed(tmp_path, "a, b.png\tcat\nc, d.png\tdog")
    assert store.class_names == ("cat", "dog")


def test_an_image_without_a_class_is_told(tmp_path: Path) -> None:
    images(tmp_path)
    store = listed(tmp_path, "pictures/0.png\tcat\npictures/1.png\t\npictures/2.png")
    assert store.train.labels is None
    assert any("2 images have no class in" in remark for remark in remarks(store))


def test_missing_files_are_named(tmp_path: Path) -> None:
    images(tmp_path)
    text = "pictures/0.png\n" + "\n".join(f"pictures/x{i}.png" for i in range(5))
    with pytest.raises(
        DataError,
        match=r"^data\.path: \S*list\.txt names 5 of 6 files that cannot be read \(no such file or"
        r" directory\): \S*pictures/x0\.png \(line 2\), .*\(line 4\) and 2 more; correct",
    ):
        listed(tmp_path, text)
    with pytest.raises(DataError, match="it is a folder"):
        listed(tmp_path, "pictures")


def test_repeated_lines(tmp_path: Path) -> None:
    images(tmp_path)
    store = listed(tmp_path, "pictures/0.png,cat\npictures/0.png,cat\npictures/1.png,dog")
    assert len(store.train) == 2
    assert any("that repeat a file: 1;" in remark for remark in remarks(store))
    with pytest.raises(
        DataError, match=r"gives pictures/0\.png two classes, cat and dog in line 2"
    ):
        listed(tmp_path, "pictures/0.png,cat\npictures/0.png,dog")


def test_a_changed_class_or_image_is_decoded_again(tmp_path: Path) -> None:
    first, *_ = images(tmp_path)
    before = listed(tmp_path, "pictures/0.png,cat\npictures/1.png,dog")
    after = listed(tmp_path, "pictures/0.png,dog\npictures/1.png,dog")
    assert before.path != after.path
    assert listed(tmp_path, "pictures/0.png,dog\npictures/1.png,dog").path == after.path
    os.utime(first, (0, 0))
    assert listed(tmp_path, "pictures/0.png,dog\npictures/1.png,dog").path != after.path


def test_an_error_is_one_line_without_steering_characters(tmp_path: Path) -> None:
    name = "a\x1b[31m\u202eb\nc\udcff.png"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"a\\x1b\[31m\\u202eb\\nc\\xff\.png cannot be decod"
    ) as told:
        opened(ImageFolder(path=str(tmp_path / "d")), tmp_path / "cache")
    assert str(told.value).isprintable()
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)


def test_what_is_no_list_has_its_sentence(tmp_path: Path) -> None:
    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(ImageList(path=str(path)), tmp_path / "cache")

    refused(tmp_path / "nowhere.txt", "does not exist on the machine that reads it")
    refused(tmp_path, "is a folder; set data=folder:")
    refused(images(tmp_path)[0], "is no list: it is not a text file of paths")
    (tmp_path / "empty.txt").write_text("\n\n")
    refused(tmp_path / "empty.txt", "is empty; write the path of an image in each line")
    (tmp_path / "header.txt").write_text("path,label\n")
    refused(tmp_path / "header.txt", "is empty; write")


def test_paths_in_quotes(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "a b, c" / f"{i}.png", noise(6, 6, 3, i))
    store = listed(tmp_path, '"a b, c/0.png"\n"a b, c/1.png"\n')
    assert len(store.train) == 2 and store.class_names is None
    for mark in ("\t", ","):
        lines = [f'"a b, c/{i}.png"{mark}"{("x", "y")[i]}"' for i in range(2)]
        assert listed(tmp_path, "\n".join(lines)).class_names == ("x", "y")


@pytest.mark.parametrize("bare", [0, 3, 5])
def test_one_line_without_a_class_is_told_as_that(bare: int, tmp_path: Path) -> None:
    images(tmp_path)
    lines = [f"pictures/{i}.png" + ",cat" * (i != bare) for i in range(6)]
    store = listed(tmp_path, "\n".join(lines))
    assert len(store.train) == 6 and store.train.labels is None
    told = [remark for remark in remarks(store) if "no class" in remark]
    assert len(told) == 1 and f"the first is pictures/{bare}.png" in told[0]


@pytest.mark.parametrize("mark", ["\t", ","])
def test_a_third_column_is_refused(mark: str, tmp_path: Path) -> None:
    images(tmp_path)
    lines = [mark.join((f"pictures/{i}.png", "cat", "3" * (i == 4))) for i in range(6)]
    with pytest.raises(DataError, match=r"line 5 of \S*list\.txt has 3 columns; .*classes"):
        listed(tmp_path, "\n".join(lines))
    assert listed(tmp_path, "\n".join(lines[:4])).class_names == ("cat",)


def test_one_file_by_two_paths_is_read_once(tmp_path: Path) -> None:
    first, *_ = images(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "pictures")
    others = f"{first},cat\n./pictures/../pictures/0.png,cat\nagain/0.png,"
    store = listed(tmp_path, f"pictures/0.png,cat\n{others}\npictures/1.png,dog")
    assert len(store.train) == 2 and store.class_names == ("cat", "dog")
    assert any("that repeat a file: 3;" in remark for remark in remarks(store))
    with pytest.raises(
        DataError, match=r"gives pictures/0\.png two classes, cat and dog in line 2"
    ):
        listed(tmp_path, "pictures/0.png,cat\nagain/0.png,dog")


@pytest.mark.parametrize("line", ["~nobody-of-this-name/a.png", "a" * 5000, "a\rb", '"a', "a,b,c"])
def test_odd_lines_have_a_sentence(line: str, tmp_path: Path) -> None:
    images(tmp_path)
    for text in (line, f"pictures/0.png\n{line}", f"pictures/0.png,cat\n{line}"):
        with pytest.raises(DataError, match=r"^data\.path: "):
            listed(tmp_path, text)
