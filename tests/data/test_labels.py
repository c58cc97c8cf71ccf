"""Labels: of Parquet columns, metadata files, lists of names and classes; why there are none."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ray_gen
from ray_gen.data import DataError, ImageFolder, ImageList, Joined, Parquet, Store
from ray_gen.data.convert import Conversion, Layout
from ray_gen.data.sources.labels import (
    MOST_CLASSES,
    Column,
    classes_of,
    names_in,
    observed,
    of_file,
)
from ray_gen.data.sources.metadata import NAMES, Metadata, missing
from ray_gen.data.told import remarks
from ray_gen.evaluation.subject import SampledImages
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.data import FolderData
from ray_gen.storage import Folder
from ray_gen.training.sources import open_data, with_classes
from tests.data.pictures import noise, opened, write, write_classes
from tests.data.test_parquet import hf, write_table


def parquet(path: Path, **settings: Any) -> Parquet:
    return Parquet(path=str(path), **settings)


def folder(path: Path, **settings: Any) -> ImageFolder:
    return ImageFolder(path=str(path), **settings)


def labels(store: Store) -> list[int]:
    assert store.train.labels is not None
    return store.train.labels.tolist()


def named(store: Store) -> list[str]:
    """The class name of each training image."""
    assert store.class_names is not None
    return [store.class_names[label] for label in labels(store)]


def class_label(names: list[str], column: str = "label") -> dict[str, str]:
    """Hugging Face's metadata of a column that names its classes."""
    kind = {"_type": "ClassLabel", "names": names}
    return {"huggingface": json.dumps({"info": {"features": {column: kind}}})}


CONDITIONAL = """
data: {data}
networks:
  encoder: {{kind: mlp, hidden_sizes: [8], label_size: 4}}
  decoder: {{kind: mlp, hidden_sizes: [8], label_size: 4}}
objective: {{kind: vae, latent_size: 2, conditional: {conditional}, likelihood: bernoulli}}
optimizers:
  autoencoder: {{kind: adam, learning_rate: 0.001}}
training: {{images: 16, global_batch_size: 4}}
"""


def read_by_a_run(data: dict[str, Any], conditional: bool) -> Store:
    """The data as a run reads it."""
    given = CONDITIONAL.format(data=json.dumps(data), conditional=str(conditional).lower())
    return open_data(Experiment.from_yaml(given))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))


# Columns


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        *((kind, 0) for kind in ("int64", "uint64", "int32", "float64", "float32")),
        *((kind, 2_000_000) for kind in ("int64", "uint64", "int32", "float64", "float32")),
        *((kind, 10**12) for kind in ("int64", "uint64", "float64")),
    ],
)
def test_the_numbers_that_occur_are_the_classes(kind: str, base: int, tmp_path: Path) -> None:
    column = np.asarray([base + 10001, base + 1, base + 5, base + 1], kind)
    path = write_table(tmp_path / "a.parquet", image=hf(range(4)), label=column)
    store = opened(parquet(path), tmp_path / "cache")
    assert labels(store) == [2, 0, 1, 0]
    assert store.class_names == (str(base + 1), str(base + 5), str(base + 10001))
    assert store.label_count == 3


def test_numbers_are_sorted_as_numbers_and_strings_as_strings(tmp_path: Path) -> None:
    for column, right in (([10, 9, 2], ("2", "9", "10")), (["10", "9", "2"], ("10", "2", "9"))):
        path = write_table(tmp_path / "a.parquet", image=hf(range(3)), label=column)
        assert opened(parquet(path), tmp_path / "cache").class_names == right
    path = write_table(tmp_path / "a.parquet", image=hf(range(2)), label=[True, False])
    assert named(opened(parquet(path), tmp_path / "cache")) == ["true", "false"]


def test_floats_that_are_not_whole_are_no_labels(tmp_path: Path) -> None:
    column = [1.0, 2.0, 2.5]
    path = write_table(tmp_path / "a.parquet", image=hf(range(3)), label=column, target=[1, 2, 2])
    with pytest.raises(DataError, match=r"data\.label_column: row 2 of \S* has 2\.5 in 'label'"):
        opened(parquet(path, label_column="label"), tmp_path / "cache")
    assert named(opened(parquet(path), tmp_path / "cache")) == ["1", "2", "2"]


@pytest.mark.parametrize(
    "column", [[3, -1, 3], [3, None, 3], [3.0, float("nan"), 3.0], ["3", "", "3"]]
)
def test_rows_without_a_class_concern_only_conditional_training(
    column: list[Any], tmp_path: Path
) -> None:
    path = write_table(tmp_path / "a.parquet", image=hf(range(3)), label=column)
    data = {"kind": "parquet", "path": str(path), "held_out_fraction": 0}
    store = read_by_a_run(data, conditional=False)
    assert len(store.train) == 3 and store.train.labels is None and store.class_names is None
    told = "\n".join(remarks(store))
    assert "classes are not used: 1 of 3 rows have no label in 'label' (null, NaN, -1 or " in told
    with pytest.raises(ExperimentError, match=r"conditional: .* 1 of 3 rows have no label in 'l"):
        read_by_a_run(data, conditional=True)


def test_named_classes_keep_their_order_also_where_some_do_not_occur(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "a.parquet", class_label(["dog", "cat", "ant"]), image=hf(range(3)),
        label=[2, 0, 2],
    )  # fmt: skip
    store = opened(parquet(path), tmp_path / "cache")
    assert store.class_names == ("dog", "cat", "ant") and labels(store) == [2, 0, 2]


@pytest.mark.parametrize("beyond", [2, 1000, -2])
def test_a_label_beyond_the_named_classes_is_refused(beyond: int, tmp_path: Path) -> None:
    names = class_label(["cat", "dog"])
    write_table(tmp_path / "d" / "a.parquet", names, image=hf(range(2)), label=[0, 1])
    write_table(tmp_path / "d" / "b.parquet", names, image=hf(range(7)), label=[1] * 6 + [beyond])
    message = rf"row 6 of \S*b\.parquet has the label {beyond} in 'label', .* classes 0 to 1"
    with pytest.raises(DataError, match=message):
        opened(parquet(tmp_path / "d"), tmp_path / "cache")
    left_out = opened(parquet(tmp_path / "d", labels="none"), tmp_path / "cache")
    assert left_out.train.labels is None and len(left_out.train) == 9


def test_shards_that_name_their_classes_in_another_order_are_matched_by_name(
    tmp_path: Path,
) -> None:
    root = tmp_path / "d"
    write_table(root / "a.parquet", class_label(["cat", "dog"]), image=hf(range(2)), label=[0, 1])
    write_table(
        root / "b.parquet", class_label(["bird", "dog", "cat"]), image=hf(range(3)),
        label=[0, 1, 2],
    )  # fmt: skip
    write_table(root / "c.parquet", image=hf(range(2)), label=["bird", "cat"])
    store = opened(parquet(root), tmp_path / "cache")
    assert store.class_names == ("cat", "dog", "bird")
    assert named(store) == ["cat", "dog", "bird", "dog", "cat", "bird", "cat"]
    write_table(root / "d.parquet", image=hf(range(1)), label=["cow"])
    with pytest.raises(DataError, match=r"d\.parquet has the label 'cow' .* \(cat, dog, bird\)"):
        opened(parquet(root), tmp_path / "cache")


@pytest.mark.parametrize("other", [["cat", "dog"], "named"])
def test_numbers_in_one_shard_and_names_in_another_are_refused(other: Any, tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_table(root / "a.parquet", image=hf(range(2)), label=[0, 1])
    if other == "named":
        write_table(root / "b.parquet", class_label(["a", "b"]), image=hf(range(2)), label=[0, 1])
    else:
        write_table(root / "b.parquet", image=hf(range(2)), label=other)
    with pytest.raises(DataError, match=r"numbers without names in \S*a\.parquet .* \S*b\.parq"):
        opened(parquet(root), tmp_path / "cache")
    assert opened(parquet(root, labels="none"), tmp_path / "cache").train.labels is None


def test_more_than_10_000_values_are_no_classes(tmp_path: Path) -> None:
    count = MOST_CLASSES + 1
    images = pa.array([None] * count, pa.binary())
    path = write_table(tmp_path / "a.parquet", image=images, label=range(count), kind=[1] * count)
    groups, columns = parquet(path).row_groups()
    assert sum(group.rows for group in groups) == count
    assert columns.label is None and columns.class_names is None and columns.label_count is None
    assert columns.notes == (
        "'label' has more than 10,000 different values, too many for classes, so labels are left"
        " out",
    )
    assert columns.no_classes == (
        "'label' has more than 10,000 different values; data.label_column can also name kind"
    )
    small = write_table(tmp_path / "b.parquet", image=hf(range(9)), label=range(9))
    few = read_by_a_run({"kind": "parquet", "path": str(small)}, conditional=True)
    assert few.label_count == 9


def test_a_conditional_run_is_refused_with_the_number_of_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_gen.data.sources.labels.MOST_CLASSES", 3)
    path = write_table(tmp_path / "a.parquet", image=hf(range(6)), label=range(6))
    data = {"kind": "parquet", "path": str(path)}
    store = read_by_a_run(data, conditional=False)
    assert store.class_names is None
    with pytest.raises(ExperimentError, match=r"conditional: .* more than 3 different values"):
        read_by_a_run(data, conditional=True)


def test_values_are_looked_for_only_until_there_are_too_many() -> None:
    def batches() -> Any:
        for start in range(0, 10**9, 10**4):
            assert start < 10**5
            yield pa.table({"id": range(start, start + 10**4)})

    column = observed(batches(), "id", "a.parquet", pa.schema({"id": pa.int64()}))
    assert len(column.values) == MOST_CLASSES + 1
    assert classes_of([column], "id").too_many


def test_several_columns_make_classes_of_the_combinations_that_occur(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_table(
        root / "a.parquet", class_label(["wild", "tame"], "kind"), image=hf(range(4)),
        kind=[1, 0, 1, 0], legs=[10, 9, 9, 9],
    )  # fmt: skip
    write_table(
        root / "b.parquet", class_label(["tame", "wild"], "kind"), image=hf(range(2)),
        kind=[1, 0], legs=[9, 10],
    )  # fmt: skip
    source = parquet(root, label_column=("kind", "legs"))
    store = opened(source, tmp_path / "cache")
    assert store.class_names == ("kind=wild, legs=9", "kind=tame, legs=9", "kind=tame, legs=10")
    assert labels(store) == [2, 0, 1, 0, 0, 2]

    data = {"kind": "parquet", "path": str(root), "label_column": ["kind", "legs"]}
    streamed = {"placement": "stream", "image_size": 6, "channels": 3}
    write_table(root / "train.parquet", image=hf(range(9)), kind=["tame"] * 9, legs=[9] * 9)
    assert read_by_a_run({**data, **streamed}, conditional=True).class_names == store.class_names

    write_table(root / "b.parquet", image=hf(range(2)), kind=["wild", None], legs=[None, 9])
    with pytest.raises(ExperimentError, match="2 of 15 rows have no label in 'kind' and 'legs'"):
        read_by_a_run(data, conditional=True)
    with pytest.raises(DataError, match=r"no column 'leg'; did you mean legs\?"):
        read_by_a_run({**data, "label_column": ["kind", "leg"]}, conditional=True)


@pytest.mark.parametrize(
    ("columns", "right"),
    [
        ({"target": [0, 1], "labels": [5, 6], "fine_label": [8, 9]}, ("5", "6")),
        ({"class": ["a", "b"], "target": [5, 6], "coarse_label": [8, 9]}, ("a", "b")),
        ({"label": [[0], [1]], "fine_label": [7, 8]}, ("7", "8")),
    ],
)
def test_the_first_usual_column_that_holds_labels_is_used(
    columns: dict[str, Any], right: tuple[str, ...], tmp_path: Path
) -> None:
    path = write_table(tmp_path / "a.parquet", image=hf(range(2)), **columns)
    assert opened(parquet(path), tmp_path / "cache").class_names == right


def test_candidates_are_named_where_none_was_chosen(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "a.parquet", class_label(["x", "y"], "species"), image=hf(range(2)),
        caption=["a cat", "a dog"], species=[0, 1], weight=[0.5, 1.5],
    )  # fmt: skip
    data = {"kind": "parquet", "path": str(path)}
    store = read_by_a_run(data, conditional=False)
    told = "no column is used as labels; data.label_column can name one of species, caption"
    assert told in list(remarks(store))
    with pytest.raises(ExperimentError, match=r"set data\.label_column to one of species, caption"):
        read_by_a_run(data, conditional=True)
    store = read_by_a_run({**data, "label_column": "species"}, conditional=True)
    assert store.class_names == ("x", "y")


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ([0.5, 1.5], r"row 0 of \S*a\.parquet has 0\.5 in 'label'"),
        ([[0], [1, 2]], r"'label' of \S*a\.parquet is list<.*int64>"),
        (pa.array([1, 2], pa.decimal128(3, 0)), r"'label' of \S*a\.parquet is decimal128\(3, 0\)"),
        (pa.array([1, 2], pa.timestamp("ms")), r"'label' of \S*a\.parquet is timestamp\[ms\]"),
    ],
)
def test_a_column_of_labels_that_holds_none_is_told(values: Any, fact: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", image=hf(range(2)), label=values)
    data = {"kind": "parquet", "path": str(path)}
    told = [remark for remark in remarks(read_by_a_run(data, False)) if "'label'" in remark]
    assert len(told) == 1
    why = rf"{fact}, and a class is a whole number or a name"
    assert re.search(rf"^labels are not used: {why}$", told[0])
    with pytest.raises(ExperimentError, match=why):
        read_by_a_run(data, conditional=True)


def test_a_column_that_cannot_hold_labels_is_never_proposed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for i in range(2):
        write(tmp_path / "d" / f"{i}.png", noise(6, 6, 3, i))
    (tmp_path / "d" / "metadata.csv").write_text("file_name,label,kind\n0.png,0.5,a\n1.png,1.5,b")
    data = {"kind": "folder", "path": str(tmp_path / "d")}
    told = [remark for remark in remarks(read_by_a_run(data, False)) if "'label'" in remark]
    assert [remark.partition("; ")[2] for remark in told] == ["data.label_column can name kind"]
    assert read_by_a_run({**data, "label_column": "kind"}, True).class_names == ("a", "b")


@pytest.mark.parametrize("column", ["File_Name", "image", "picture of"])
def test_metadata_without_a_column_file_name_is_told_with_a_remedy_that_works(
    column: str, tmp_path: Path
) -> None:
    for i in range(2):
        write(tmp_path / "d" / f"{i}.png", noise(6, 6, 3, i))
    (tmp_path / "d" / "metadata.csv").write_text(f"{column},label\n0.png,a\n1.png,b\n")
    data = {"kind": "folder", "path": str(tmp_path / "d")}
    (told,) = [remark for remark in remarks(read_by_a_run(data, False)) if "metadata" in remark]
    assert f"d/metadata.csv is not used: it has no column file_name, but {column}, label;" in told
    given = told.rpartition("set data.labels=")[2]
    assert read_by_a_run({**data, "labels": given}, True).class_names == ("a", "b")


def test_vectors_are_not_called_no_classes(tmp_path: Path) -> None:
    write(tmp_path / "d" / "0.png", noise(6, 6, 3))
    (tmp_path / "d" / "dataset.json").write_text('{"labels": [["0.png", [0.1, 0.2]]]}')
    data = {"kind": "folder", "path": str(tmp_path / "d")}
    (told,) = [remark for remark in remarks(read_by_a_run(data, False)) if "dataset" in remark]
    assert "d/dataset.json has vectors as labels, which are not read;" in told
    with pytest.raises(ExperimentError, match="has vectors as labels"):
        read_by_a_run(data, conditional=True)


def test_metadata_without_any_name_is_told_as_that(tmp_path: Path) -> None:
    write(tmp_path / "d" / "0.png", noise(6, 6, 3))
    (tmp_path / "d" / "metadata.csv").write_text("file_name,label\n,a\n,b\n")
    told = list(remarks(read_by_a_run({"kind": "folder", "path": str(tmp_path / "d")}, False)))
    end = f"names no image of {tmp_path}/d, so it is not used"
    assert any(remark.endswith(end) for remark in told)


def test_a_split_without_labels_may_lack_their_column(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_table(root / "test.parquet", image=hf(range(3)))
    write_table(root / "train.parquet", image=hf(range(2)), label=[4, 9])
    data = {"kind": "parquet", "path": str(root)}
    store = read_by_a_run(data, conditional=False)
    assert len(store.train) == 2 and len(store.held_out) == 3 and store.train.labels is None
    message = r"3 of 5 rows have no label in 'label' .*, the first of them in \S*test\.parquet;"
    with pytest.raises(ExperimentError, match=message):
        read_by_a_run(data, conditional=True)


def test_labels_are_streamed_as_they_are_decoded(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_table(root / "train-0.parquet", image=hf(range(20)), label=[7, 300] * 10)
    write_table(root / "test-0.parquet", image=hf(range(5)), label=[300] * 5)
    data = {"kind": "parquet", "path": str(root), "image_size": 6, "channels": 3}
    store = read_by_a_run({**data, "placement": "stream"}, conditional=True)
    assert store.class_names == ("7", "300") and store.label_count == 2
    assert store.stream is not None
    for group in range(len(store.stream.groups)):
        assert store.stream.read(group).labels == [0, 1, 0, 1, 0] or group % 2
    write_table(root / "test-0.parquet", image=hf(range(5)), label=[300] * 4 + [-1])
    store = read_by_a_run({**data, "placement": "stream"}, conditional=False)
    assert store.class_names is None and store.label_count is None
    assert "classes are not used: 1 of 25 rows have no label" in "\n".join(remarks(store))


def test_a_run_of_the_first_rules_keeps_labels_as_indices(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", image=hf(range(3)), label=[1, 5, 1])
    store = opened(parquet(path, rules=1), tmp_path / "cache", rules=1)
    assert labels(store) == [1, 5, 1] and store.label_count == 6 and store.class_names is None
    path = write_table(tmp_path / "b.parquet", image=hf(range(3)), label=[1, -1, 1])
    with pytest.raises(DataError, match=r"data\.label_column: row 1 of \S* has the label -1"):
        opened(parquet(path, rules=1), tmp_path / "cache", rules=1)
    path = write_table(tmp_path / "c.parquet", image=hf(range(3)), label=[1.0, 2.0, 1.0])
    assert opened(parquet(path, rules=1), tmp_path / "cache", rules=1).train.labels is None


def test_a_converted_data_set_has_the_same_classes(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", image=hf(range(6)), label=[7, 9, -1, 9, 7, 30])
    layout = Layout(None, 0.0, False, 100, 3, 0)
    conversion = Conversion(parquet(path), layout, Folder(str(tmp_path / "out")))
    for part in range(conversion.parts):
        conversion.write(part)
    conversion.finish()
    written = parquet(tmp_path / "out")
    groups, columns = written.row_groups()
    assert columns.class_names == ("7", "9", "30")
    assert columns.classes is not None and columns.classes.without == 1
    read = [label for group in groups for label in written.read(group, columns).labels]
    assert sorted(read, key=str) == [0, 0, 1, 1, 2, None]


def test_other_data_have_the_classes_of_the_run_by_name(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "a.parquet", image=hf(range(4)), label=["pear", "fig", "fig", "x"]
    )
    store = opened(parquet(path), tmp_path / "cache")
    mapped = with_classes(store, ("apple", "fig", "x", "pear"), "--reference")
    assert labels(mapped) == [3, 1, 1, 2] and mapped.label_count == 4
    with pytest.raises(DataError, match=r"--reference: .* class 'x', .* \(apple, fig, pear\)"):
        with_classes(store, ("apple", "fig", "pear"), "--reference")
    path = write_table(tmp_path / "b.parquet", image=hf(range(3)), label=[1, 0, 1])
    store = opened(parquet(path), tmp_path / "cache")
    assert labels(with_classes(store, ("zero", "one"), "--reference")) == [1, 0, 1]
    with pytest.raises(DataError, match="class '1'"):
        with_classes(store, ("zero", "one", "two"), "--reference")


def digit(seed: int) -> bytes:
    """An encoded grey image of 28×28."""
    file = io.BytesIO()
    Image.fromarray(noise(28, 28, 1, seed)).save(file, "PNG")
    return file.getvalue()


def test_a_run_is_compared_with_images_of_its_own_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels 3 and 7 of other data are the run's classes 3 and 7, not its classes 0 and 1."""
    used: list[torch.Tensor] = []

    def sampled(subject: Any, count: int, labels: torch.Tensor, seed: int) -> SampledImages:
        used.append(labels)
        return SampledImages(subject, count, labels, seed)

    monkeypatch.setattr("ray_gen.evaluation.evaluator.SampledImages", sampled)
    run = Path(__file__).parents[1] / "old_runs" / "v0_1" / "cdcgan"
    images = [digit(seed) for seed in range(16)]
    path = write_table(tmp_path / "a.parquet", image=images, label=[7, 3] * 8)
    asked: dict[str, Any] = {"metrics": ["sliced_wasserstein"], "split": "train"}
    ray_gen.evaluate(str(run), reference=f"parquet:{path}", **asked)
    assert used[0].unique().tolist() == [3, 7]
    path = write_table(tmp_path / "b.parquet", image=images, label=[7, 30] * 8)
    with pytest.raises(DataError, match="--reference: its images have the class '30'"):
        ray_gen.evaluate(str(run), reference=f"parquet:{path}", **asked)


MISSING = {"numbers": [None, -1], "floats": [None, -1.0, float("nan")], "words": [None, ""]}


@st.composite
def shards(draw: st.DrawFn) -> list[tuple[pa.Table, list[str | None]]]:
    """Tables with a column of labels, and the name of the class of each row."""
    kind = draw(st.sampled_from(["numbers", "words", "named"]))
    few = st.sampled_from([0, 1, 2, 10, 100, 2_000_000, -7, 2**53])
    found: list[tuple[pa.Table, list[str | None]]] = []
    for _ in range(draw(st.integers(1, 4))):
        names = draw(st.permutations(["ant", "bee", "cat", "dog"]))
        metadata: dict[str, str] = {}
        if kind == "words":
            values = draw(st.lists(st.sampled_from([*names, *MISSING["words"]]), max_size=9))
            column = pa.array(values, draw(st.sampled_from([pa.string(), pa.large_string()])))
            if draw(st.booleans()):
                column = column.dictionary_encode()
            told: list[str | None] = [value or None for value in values]
        else:
            form = draw(st.sampled_from(["numbers", "floats"]))
            number = st.integers(0, 3) if kind == "named" else few
            values: list[Any] = draw(st.lists(number | st.sampled_from(MISSING[form]), max_size=9))
            column = pa.array(values, pa.float64() if form == "floats" else pa.int64())
            none = [v is None or v != v or v == -1 for v in values]
            told = [None if no else str(int(v)) for v, no in zip(values, none, strict=True)]
            if kind == "named":
                metadata = class_label(names)
                told = [None if name is None else names[int(name)] for name in told]
        found.append((pa.table({"label": column}).replace_schema_metadata(metadata), told))
    return found


@given(shards(), st.integers(1, 9))
def test_every_row_has_the_class_that_its_label_names(
    tables: list[tuple[pa.Table, list[str | None]]], rows: int
) -> None:
    """For any types, any order of named classes, and any division into batches."""

    def column(place: int, rows: int) -> Column:
        table, _ = tables[place]
        batches = table.to_batches(rows)
        return of_file(batches, len(table), table.schema, "label", str(place))

    columns = [column(place, rows) for place in range(len(tables))]
    classes = classes_of(columns, "label")
    for place, (table, told) in enumerate(tables):
        found = [classes.of(str(place), value) for value in table.column("label").to_pylist()]
        assert [None if i is None else classes.names[i] for i in found] == told
    assert classes.without == sum(told.count(None) for _, told in tables)
    assert len(set(classes.names)) == len(classes.names)
    named = names_in(tables[0][0].schema, "label")
    seen = {name for _, told in tables for name in told if name is not None}
    if named is not None:
        assert classes.names == named
    elif all(name.lstrip("-").isdecimal() for name in seen):
        assert classes.names == tuple(sorted(seen, key=int))
    else:
        assert classes.names == tuple(sorted(seen))
    whole = classes_of([column(place, 10**6) for place in range(len(tables))], "label")
    assert whole == classes


class Tree:
    """Files that exist only here."""

    kind, root = "tree", "/data"

    def __init__(self, **files: bytes) -> None:
        self._files = files

    def name(self, path: str) -> str:
        return f"/data/{path}"

    def open(self, path: str) -> io.BytesIO:
        return io.BytesIO(self._files[path])


def written(kind: str, rows: list[tuple[str, str | int | None]]) -> bytes:
    """Rows of names and labels, as a file."""
    names, values = ([row[place] for row in rows] for place in (0, 1))
    if kind == "dataset.json":
        return json.dumps({"labels": [list(row) for row in rows]}).encode()
    if kind == "metadata.jsonl":
        lines = [json.dumps({"label": y, "file_name": x}) for x, y in rows]
        return "\n".join(lines).encode()
    file = io.BytesIO() if kind == "metadata.parquet" else io.StringIO(newline="")
    if isinstance(file, io.BytesIO):
        pq.write_table(pa.table({"file_name": names, "label": values}), file)
        return file.getvalue()
    writer = csv.writer(file)
    writer.writerow(["file_name", "label"])
    writer.writerows(rows)
    return file.getvalue().encode()


part = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("C", "Z")), min_size=1)
paths = st.lists(part.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3)
label = st.sampled_from([0, 7, 100]) | st.none()


@given(
    st.dictionaries(paths.map("/".join), label | st.just("no row"), min_size=1, max_size=12),
    st.sampled_from(NAMES),
    st.booleans(),
)
def test_every_image_has_the_class_of_its_row(
    images: dict[str, Any], kind: str, words: bool
) -> None:
    told = {x: f"c{y}" if words and isinstance(y, int) else y for x, y in images.items()}
    rows = [(x, y) for x, y in told.items() if y != "no row"]
    files = Tree(**{kind: written(kind, rows)})  # pyright: ignore
    found = Metadata("auto", files, list(images), [kind]).labels()
    right = {x: str(y) for x, y in rows if y is not None}
    if found is None or found.class_names is None:
        assert not right
        return
    assert {x: found.class_names[y] for x, y in found.of.items()} == right
    whole = all(name.isdecimal() for name in right.values())
    assert list(found.class_names) == sorted(set(right.values()), key=int if whole else str)
    without = missing(found, list(images)).no_classes
    assert bool(without) == (len(right) < len(images))


# Metadata of image files


def tree(root: Path, *paths: str) -> Path:
    for seed, path in enumerate(paths):
        write(root / path, noise(8, 8, 3, seed))
    return root


CSV = "file_name,text,label\n0.png,a,7\n1.png,b,30\n2.png,c,7\n"
LINES = "".join(
    json.dumps({"file_name": f"{i}.png", "bbox": [1, 2], "label": label}) + "\n"
    for i, label in enumerate((7, 30, 7))
)


@pytest.mark.parametrize("kind", ["csv", "bom", "jsonl", "parquet", "json"])
def test_metadata_gives_labels_to_the_images_beside_it(kind: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0.png", "1.png", "2.png")
    if kind == "csv":
        (root / "metadata.csv").write_text(CSV)
    elif kind == "bom":
        (root / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())
    elif kind == "jsonl":
        (root / "metadata.jsonl").write_text(LINES)
    elif kind == "json":
        pairs = [["0.png", 7], ["1.png", 30], ["2.png", 7]]
        (root / "dataset.json").write_text(json.dumps({"labels": pairs}))
    else:
        names = [f"{i}.png" for i in range(3)]
        write_table(root / "metadata.parquet", file_name=names, label=[7, 30, 7])
    store = opened(folder(root), tmp_path / "cache")
    assert store.class_names == ("7", "30") and labels(store) == [0, 1, 0]
    assert not store.found.not_read


def test_a_line_of_json_ends_only_at_a_line_feed(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0.png", "1.png")
    rows = [{"file_name": f"{i}.png", "label": i, "text": "a\u2028b\x85c"} for i in range(2)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (root / "metadata.jsonl").write_bytes(lines.encode())
    assert named(opened(folder(root), tmp_path / "cache")) == ["0", "1"]


def test_where_metadata_gives_labels_folders_are_no_classes_but_may_be_splits(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path / "set", "train/a/0.png", "train/1.png", "test/0.png")
    (root / "train" / "metadata.csv").write_text("file_name,label\na/0.png,cat\n1.png,dog\n")
    (root / "test" / "metadata.csv").write_text("file_name,label\n0.png,dog\n")
    store = opened(folder(root), tmp_path / "cache")
    assert store.class_names == ("cat", "dog")
    assert len(store.train) == 2 and len(store.held_out) == 1
    assert store.held_out.labels is not None and store.held_out.labels.tolist() == [1]
    assert sorted(named(store)) == ["cat", "dog"]

    for split in ("train", "test"):
        (root / split / "metadata.csv").unlink()
    rows = "file_name,label\ntrain/a/0.png,cat\ntrain/1.png,dog\ntest/0.png,dog\n"
    (root / "metadata.csv").write_text(rows)
    again = opened(folder(root), tmp_path / "cache")
    assert again.digest == store.digest


def test_the_nearer_metadata_counts(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "train/0.png", "test/0.png")
    (root / "metadata.csv").write_text("file_name,label\ntrain/0.png,far\ntest/0.png,far\n")
    (root / "train" / "metadata.csv").write_text("file_name,label\n0.png,near\n")
    assert named(opened(folder(root), tmp_path / "cache")) == ["near"]


def test_stylegans_labels(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "00000/img0.png", "00000/img1.png", "00001/img2.png")
    pairs = [["00000/img0.png", 3], ["00000/img1.png", 1], ["00001/img2.png", 3]]
    (root / "dataset.json").write_text(json.dumps({"labels": pairs}))
    store = opened(folder(root), tmp_path / "cache")
    assert store.class_names == ("1", "3") and labels(store) == [1, 0, 1]

    (root / "dataset.json").write_text(json.dumps({"labels": None}))
    data = {"kind": "folder", "path": str(root)}
    none = read_by_a_run(data, conditional=False)
    assert none.train.labels is None
    with pytest.raises(ExperimentError, match=r"dataset\.json says .* data\.labels=folders"):
        read_by_a_run(data, conditional=True)
    folders = read_by_a_run({**data, "labels": "folders"}, conditional=True)
    assert folders.class_names == ("00000", "00001")

    (root / "dataset.json").write_text(json.dumps({"something": "else"}))
    assert opened(folder(root), tmp_path / "cache").class_names == ("00000", "00001")


def test_folders_and_none(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"cat": 2, "dog": 1})
    (root / "metadata.csv").write_text("file_name,label\ncat/000.png,1\n")
    store = opened(folder(root, labels="folders"), tmp_path / "cache")
    assert store.class_names == ("cat", "dog") and store.found.not_read == {".csv": 1}
    assert opened(folder(root, labels="none"), tmp_path / "cache").class_names is None
    write(root / "loose.png", noise(8, 8, 3, 9))
    assert len(opened(folder(root, labels="none"), tmp_path / "cache").train) == 4


@pytest.mark.parametrize(
    "text",
    [
        "id,breed\n0,cat\n1,dog\n",  # without suffix
        "0.png,cat\n1.png,dog\n",  # no header
        "cat\t0.png\ndog\t1.png\n",  # the other way round
        "img/0.png;cat\nimg/1.png;dog\n",
        "0.png cat\n1.png dog\n",
        'path,class\n"img/0.png"," cat "\n./img/1.png,dog\n',
        "a,path,class\n1,img\\0.png,cat\n1,img\\1.png,dog\n",
        "breed,picture\ncat,0.png\ndog,1.png\n",
    ],
)
@pytest.mark.parametrize("outside", [True, False])
def test_a_file_of_names_and_classes(text: str, outside: bool, tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "img/0.png", "img/1.png")
    file = (tmp_path if outside else root) / "labels.csv"
    file.write_text(text)
    store = opened(folder(root, labels=str(file) if outside else "labels.csv"), tmp_path / "cache")
    assert named(store) == ["cat", "dog"]


def test_a_file_of_tabs_may_hold_commas(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0,5.png", "1,5.png")
    (root / "labels.tsv").write_text(
        "file_name\tlabel\tfrom, to\n0,5.png\tcat\tx\n1,5.png\tdog\ty\n"
    )
    store = opened(folder(root, labels="labels.tsv"), tmp_path / "cache")
    assert named(store) == ["cat", "dog"]


def test_the_end_of_a_path_names_an_image_where_it_is_the_only_one(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "x/a/0.png", "x/b/0.png")
    (tmp_path / "labels.csv").write_text("a/0,cat\nb/0.png,dog\n")
    labels = str(tmp_path / "labels.csv")
    assert named(opened(folder(root, labels=labels), tmp_path / "cache")) == ["cat", "dog"]


def test_names_relative_to_the_file_of_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "set" / "images", "a/0.png", "b/0.png")
    file = tmp_path / "set" / "labels.csv"
    file.write_text("images/a/0.png,cat\nimages/b/0.png,dog\n")
    assert named(opened(folder(root, labels=str(file)), tmp_path / "c")) == ["cat", "dog"]
    file.write_text("name,class\n0.png,cat\n")
    with pytest.raises(DataError, match=r"names '0\.png', which may be a/0\.png or b/0\.png"):
        opened(folder(root, labels=str(file)), tmp_path / "c")


def test_a_changed_file_of_classes_is_read_again(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0.png", "1.png")
    file = tmp_path / "labels.csv"
    file.write_text("0.png,cat\n1.png,dog\n")
    first = opened(folder(root, labels=str(file)), tmp_path / "cache")
    file.write_text("0.png,cat\n1.png,catfish\n")
    second = opened(folder(root, labels=str(file)), tmp_path / "cache")
    assert second.class_names == ("cat", "catfish") and first.path != second.path


def test_text_that_is_numbers_in_all_files_is_numbers(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "train/0.png", "train/1.png", "test/0.png")

    def write_rows(train: tuple[str, str], test: str) -> Store:
        rows = f"file_name,label\n0.png,{train[0]}\n1.png,{train[1]}\n"
        (root / "train" / "metadata.csv").write_text(rows)
        (root / "test" / "metadata.csv").write_text(f"file_name,label\n0.png,{test}\n")
        return opened(folder(root), tmp_path / "cache")

    assert write_rows(("10", "9"), "9").class_names == ("9", "10")
    assert write_rows(("10.0", "9.0"), "9").class_names == ("9", "10")
    assert write_rows(("10", "9"), "x").class_names == ("10", "9", "x")
    assert write_rows(("001", "02"), "02").class_names == ("001", "02")
    assert write_rows(("10", ""), "9").class_names is None
    assert write_rows(("18446744073709551616", "1"), "1").class_names == (
        "1", "18446744073709551616",
    )  # fmt: skip


def test_rows_without_a_file_and_files_without_a_row_are_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0.png", "1.png", "2.png")
    rows = "file_name,label\n0.png,cat\nx.png,dog\ny.png,cow\n"
    (root / "metadata.csv").write_text(rows)
    data = {"kind": "folder", "path": str(root), "held_out_fraction": 0}
    store = read_by_a_run(data, conditional=False)
    told = "\n".join(remarks(store))
    assert "2 rows of" in told and "the first is x.png" in told
    assert "classes are not used: 2 images have no class in" in told
    assert "the first is 1.png; add rows" in told
    assert store.train.labels is None
    with pytest.raises(ExperimentError, match=r"2 images have no class in \S*metadata\.csv"):
        read_by_a_run(data, conditional=True)
    for name in ("1.png", "2.png"):
        (root / name).unlink()
    assert read_by_a_run(data, conditional=True).class_names == ("cat",)  # of images only


def test_metadata_of_other_files_is_not_used(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"cat": 2, "dog": 1})
    (root / "metadata.csv").write_text("file_name,label\nx.png,1\n")
    store = opened(folder(root), tmp_path / "cache")
    assert store.class_names == ("cat", "dog")
    assert any("metadata.csv names no image of" in remark for remark in remarks(store))


def test_the_label_column_of_metadata_is_chosen_as_for_parquet(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "a/0.png", "b/1.png")
    rows = "file_name,text,breed\na/0.png,hello,husky\nb/1.png,world,poodle\n"
    (root / "metadata.csv").write_text(rows)
    store = opened(folder(root), tmp_path / "cache")
    assert store.class_names == ("a", "b")  # it gives no labels, so folders do
    assert any("data.label_column can name one of text, breed" in r for r in remarks(store))
    store = opened(folder(root, label_column="breed"), tmp_path / "cache")
    assert named(store) == ["husky", "poodle"]
    both = opened(folder(root, label_column=("breed", "text")), tmp_path / "cache")
    assert both.class_names == ("breed=husky, text=hello", "breed=poodle, text=world")
    with pytest.raises(DataError, match=r"no column 'bred'; did you mean breed\?"):
        opened(folder(root, label_column="bred"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"data\.label_column: .* set .* to one of text, breed"):
        opened(folder(root, labels="metadata.csv"), tmp_path / "cache")
    (root / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"no metadata\.csv, .* 'breed'; set data\.labels"):
        opened(folder(root, label_column="breed"), tmp_path / "cache")


def test_each_unusable_file_of_labels_has_its_sentence(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0.png", "1.png")

    def refused(message: str, **settings: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(folder(root, **settings), tmp_path / "cache")

    refused(r"data\.labels: 'fodlers' is neither auto, folders, none nor a file", labels="fodlers")
    refused(r"data\.labels: /nowhere/a\.csv cannot be read", labels="/nowhere/a.csv")
    for missing_file in ("a.csv", "../set/a.csv"):
        message = rf"data\.labels: {missing_file} is neither a file here nor one in \S*set;"
        refused(message, labels=missing_file)
    (root / "a.csv").write_text("0.png\n1.png\n")
    refused(r"data\.labels: .* has only the column", labels="a.csv")
    (root / "a.csv").write_text("0.png,cat\n0.png,dog\n")
    refused(r"a\.csv gives '0\.png' two classes, cat and dog", labels="a.csv")
    (root / "a.csv").write_text("0.png,cat\n1.png,dog,3\n")
    refused(r"data\.labels: \S*a\.csv cannot be read: .*Expected 2 columns, got 3", labels="a.csv")
    (root / "a.csv").write_bytes(b"0.png,k\xe4fer\n1.png,x\n")
    refused(r"a\.csv cannot be read: it is not UTF-8 text", labels="a.csv")
    (root / "a.csv").write_text("0.png,1.5\n1.png,2\n")
    refused(r"data\.label_column: row 0 of \S*a\.csv has 1\.5", labels="a.csv")
    (root / "a.csv").write_text("name,class\nx.png,cat\n")
    refused(r"data\.labels: \S*a\.csv names no image of \S*set; .* 'x\.png'", labels="a.csv")
    (root / "a.csv").write_text("a,a\n0.png,1.5\n")
    refused(r"two columns of one name \(a, a\)", labels="a.csv")
    (root / "a.csv").write_text("")
    refused(r"data\.labels: ", labels="a.csv")
    (root / "metadata.jsonl").write_text('{"file_name": "0.png"}\nnot json\n')
    refused(r"line 2 of \S*metadata\.jsonl is not a JSON object")
    (root / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 1}\n')
    (root / "metadata.csv").write_text("file_name,label\n0.png,1\n")
    refused(r"metadata\.csv and \S*metadata\.jsonl describe the same .* data\.labels=metadata\.j")
    for advice in ("metadata.jsonl", "folders", "none"):
        assert len(opened(folder(root, labels=advice), tmp_path / "cache").train) == 2


def test_a_path_of_labels_is_relative_to_here_or_among_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").write_text("0.png,cat\n")

    def absolute(labels: str) -> str:
        data = FolderData.model_validate({"path": "set", "labels": labels})
        data = data.with_places(lambda path: str(tmp_path / path))
        assert isinstance(data, FolderData)
        return data.labels

    assert absolute("here.csv") == str(tmp_path / "here.csv")
    assert absolute("there.csv") == "there.csv"
    assert absolute("folders") == "folders"


def test_a_file_is_read_once_for_classes_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Tree(**{"metadata.csv": b"file_name,label,age\n0.png,a,1\n1.png,b,2.5\n"})  # pyright: ignore
    opens: list[str] = []
    opening = files.open
    monkeypatch.setattr(files, "open", lambda path: opens.append(path) or opening(path))
    metadata = Metadata("auto", files, ["0.png", "1.png"], ["metadata.csv"])  # pyright: ignore
    found = metadata.labels(besides=["age"])
    assert found is not None and found.class_names == ("a", "b")
    assert metadata.numbers(["age"], ["0.png"]).of == {"0.png": (1.0,), "1.png": (2.5,)}
    assert opens == ["metadata.csv"]


# Names that look alike: é as one code point, or as two

NFC, NFD = (normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("on_disk", "told"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize("setting", ["auto", "given", "list"])
def test_a_name_means_the_file_that_looks_so(
    setting: str, on_disk: str, told: str, tmp_path: Path
) -> None:
    root = tree(tmp_path / "set", f"{on_disk}/{on_disk}.png", "b.png")
    rows = f"{told}/{told}.png,7\nb.png,8\n"
    if setting == "auto":
        (root / "metadata.csv").write_text(f"file_name,label\n{rows}")
        store = opened(folder(root), tmp_path / "cache")
    elif setting == "given":
        (tmp_path / "classes.csv").write_text(rows.replace(f"{told}/", ""))
        store = opened(folder(root, labels=str(tmp_path / "classes.csv")), tmp_path / "cache")
    else:
        (root / "all.txt").write_text(rows)
        store = opened(ImageList(path=str(root / "all.txt")), tmp_path / "cache")
    assert sorted(named(store)) == ["7", "8"]


def test_a_name_that_means_two_files_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", f"{NFC}/{NFD}.png", f"{NFD}/{NFC}.png")
    (root / "metadata.csv").write_text(f"file_name,label\n{NFC}/{NFC}.png,7\n")
    with pytest.raises(DataError, match=r"which may be .* or .*; give paths"):
        opened(folder(root), tmp_path / "cache")
    (root / "metadata.csv").write_text(f"file_name,label\n{NFC}/{NFD}.png,7\n{NFD}/{NFC}.png,8\n")
    assert sorted(named(opened(folder(root), tmp_path / "cache"))) == ["7", "8"]


@pytest.mark.parametrize("kind", ["folders", "splits", "csv", "parquet", "named", "list", "joined"])
def test_classes_that_look_alike_are_one(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    if kind in ("folders", "splits", "joined"):
        tops = ("train/", "test/") if kind == "splits" else ("", "")
        tree(root, f"{tops[0]}{NFC}/0.png", f"{tops[1]}{NFD}/1.png", f"{tops[0]}x/2.png")
        tree(root, *([f"{tops[1]}x/3.png"] if kind == "splits" else []))
        source: Any = folder(root)
        if kind == "joined":
            parts = [tree(tmp_path / form, f"{form}/0.png", "x/1.png") for form in (NFC, NFD)]
            source = Joined(sources=[folder(part) for part in parts])
    elif kind in ("csv", "list"):
        tree(root, "0.png", "1.png", "2.png")
        rows = f"0.png,{NFC}\n1.png,{NFD}\n2.png,x\n"
        (root / "metadata.csv").write_text(f"file_name,label\n{rows}")
        (root / "all.txt").write_text(rows)
        source = folder(root) if kind == "csv" else ImageList(path=str(root / "all.txt"))
    else:
        if kind == "parquet":
            write_table(root / "0.parquet", image=hf(range(3)), label=[NFC, NFD, "x"])
        else:
            for number, names in enumerate(([NFC, "x"], ["x", NFD])):
                shard = root / f"{number}.parquet"
                write_table(shard, class_label(names), image=hf(range(2)), label=[0, 1])
        source = parquet(root)
    store = opened(source, tmp_path / "cache", held_out_fraction=0.0)
    assert store.class_names == (NFC, "x")
    assert store.found.unlabelled == 0


def test_the_named_split_is_the_folder_that_looks_so(tmp_path: Path) -> None:
    tree(tmp_path / "set", f"{NFD}/0.png", "x/1.png")
    splits = {"train": NFC, "held_out": "x"}
    store = opened(folder(tmp_path / "set", splits=splits), tmp_path / "cache")
    assert (len(store.train), len(store.held_out)) == (1, 1)


@pytest.mark.parametrize("joined", [False, True])
def test_more_than_10_000_folders_are_no_classes_as_in_columns(
    joined: bool, tmp_path: Path
) -> None:
    root = tree(tmp_path / "set", "0/0.png")
    for number in range(1, MOST_CLASSES + 1):
        (root / str(number)).mkdir()
        (root / str(number) / "0.png").hardlink_to(root / "0" / "0.png")
    if joined:
        (root / "0" / "0.png").rename(tree(tmp_path / "more", "0/1.png") / "0" / "0.png")
        (root / "0").rmdir()
        listing = Joined(sources=[folder(root), folder(tmp_path / "more")]).listing()
    else:
        listing = folder(root).listing()
    assert listing.class_names is None
    (note,) = [note for note in listing.notes if "10,001" in note]
    assert "more than 10,000" in note and "labels are left out" in note
    assert {next(listing.items).load()[1] for _ in range(5)} == {None}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["train_0.png", "test_3.png"], True),
        (["x-train-0.png", "x-VAL-3.png"], True),
        (["c/train1.png", "c/val1.png", "d/0.png"], True),
        (["train_0.png", "tube.png"], False),
        (["train_tracks.png", "test_tubes.png"], False),
        (["train/test_0.png", "test/train_0.png"], False),
        (["test_0.png", "test_1.png"], False),
    ],
)
def test_files_that_are_named_like_splits_are_told(
    names: list[str], told: bool, tmp_path: Path
) -> None:
    root = tree(tmp_path / "set", *names)
    store = opened(folder(root), tmp_path / "cache", held_out_fraction=0.0)
    notes = [note for note in remarks(store) if "names of files make no splits" in note]
    assert bool(notes) == told
    assert all("data.held_out_fraction" in note and "data.splits" in note for note in notes)
    alone = opened(folder(root, splits="none"), tmp_path / "cache", held_out_fraction=0.0)
    assert not any("names of files" in note for note in remarks(alone))
