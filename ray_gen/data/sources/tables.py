"""What sources of tables share, whose rows hold an image each: settings, checks of columns, classes
and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from ray_gen.data.errors import DataError
from ray_gen.data.sources.base import SplitName
from ray_gen.data.sources.conditions import Conditions, conditions_of
from ray_gen.data.sources.labels import (
    Choice,
    Column,
    LabelColumn,
    check_exists,
    choice,
    columns_of,
    of_file,
)

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of rows."""

    location: str
    """Path, as its file system names it."""
    path: str
    """Path relative to the given folder, or the file's own name. It is the same wherever the data
    lie."""
    split: SplitName | None
    size: int
    mtime_ns: int


class Tables:
    """Files of rows.

    `image_column` names the image column. Default: the only column of encoded images (binary, or
    Hugging Face's struct<bytes, path>). `label_column` names the label column. Default: the first
    of `label`, `labels`, `fine_label`, `class` and `target` that holds labels. See `labels.py` for
    the classes that come of labels. `labels` "none" leaves them out. `conditions` are columns of
    numbers.
    """

    field = "data.path"

    def __init__(
        self,
        *,
        path: str,
        image_column: str | None = None,
        label_column: LabelColumn | None = None,
        labels: Literal["auto", "none"] = "auto",
        conditions: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.labels = labels
        self.conditions = tuple(conditions)
        self._found: list[Shard] | None = None
        self._watched: dict[str, tuple[int, int]] = {}

    def identity(self) -> object:
        """Relative path, size and time of every file, and the columns."""
        self._found = self._list()
        self._watched = {}
        return {
            "shards": [[s.path, s.split, s.size, s.mtime_ns] for s in self._found],
            "image_column": self.image_column,
            "label_column": self.label_column,
            "labels": self.labels,
            **({"conditions": self.conditions} if self.conditions else {}),
        }

    def _list(self) -> list[Shard]:
        """All files, in order. Raises DataError."""
        raise NotImplementedError

    def _parts(self, location: str, columns: Sequence[str]) -> Iterator[pa.Table | pa.RecordBatch]:
        """The rows of a file, in order; at least these columns of them."""
        raise NotImplementedError

    def _of_all(self, work: Callable[[str], _T], locations: Iterable[str]) -> list[_T]:
        """What `work`, which reads a file, returns for each file."""
        return [work(location) for location in locations]

    def _check_all_have(self, name: str, schemas: Mapping[str, pa.Schema]) -> None:
        """Raises DataError if a file lacks a column of the first."""
        first = next(iter(schemas))
        for location, schema in schemas.items():
            if name not in schema.names:
                raise DataError(
                    f"{self.field}: {location} has no column {name!r}, unlike {first}; keep only"
                    " files of one data set in a folder"
                )

    def _labels(
        self, schemas: Mapping[str, pa.Schema], rows: Mapping[str, int], image: str
    ) -> Choice:
        """The label column and its classes. Reads it in all files: labels are small, and so an
        unusable label is refused at once, not after hours of decoding. schemas, rows: of each file,
        by its location. image: the image column."""
        if self.labels == "none":
            return Choice(no_classes="data.labels is none; set it to auto")
        first = next(iter(schemas))
        for name in columns_of(self.label_column):
            check_exists(schemas[first].names, "data.label_column", name, first)
            self._check_all_have(name, schemas)

        def read(column: LabelColumn) -> list[Column]:
            def look(location: str) -> Column:
                parts = self._parts(location, columns_of(column))
                return of_file(parts, rows[location], schemas[location], column, location)

            return self._of_all(look, schemas)

        return choice(schemas, self.label_column, (image, *self.conditions), read)

    def _conditions(self, schemas: Mapping[str, pa.Schema]) -> Conditions:
        """The numbers to condition on. Reads those of all files, to refuse a missing one before any
        image is decoded."""
        found = conditions_of(self.conditions, schemas.items())

        def look(location: str) -> None:
            row = 0
            for part in self._parts(location, found.columns):
                found.of(part, location, row)
                row += len(part)

        if found.columns:
            self._of_all(look, schemas)
        return found
