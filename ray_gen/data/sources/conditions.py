"""Numbers to condition on, from columns of tables: Parquet and Arrow files, and metadata beside
images.

A column of numbers gives one number to each image. A column of lists of one fixed length gives
several: `pose[0]`, `pose[1]`, ….
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.errors import DataError
from ray_gen.data.sources.labels import check_exists, functions

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FIELD = "data.conditions"
_ADVICE = "correct the table, or leave the column out"


@dataclass(frozen=True)
class Conditions:
    """The columns to condition on, and the numbers that they give."""

    columns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """The name of each number, in the order of the columns."""

    def of(
        self, rows: pa.Table | pa.RecordBatch, where: str, first_row: int = 0
    ) -> list[tuple[float, ...]] | None:
        """The numbers of each row, rounded to float32. None if there are no columns. where,
        first_row: file and first of its rows, for messages. Raises DataError for a row without a
        number."""
        if not self.columns:
            return None
        parts = [_numbers(rows.column(name), name, where, first_row) for name in self.columns]
        return list(map(tuple, np.concatenate(parts, axis=1).tolist()))


def conditions_of(columns: Sequence[str], schemas: Iterable[tuple[str, pa.Schema]]) -> Conditions:
    """The numbers in these columns of all files. schemas: name and schema of each file. Raises
    DataError for a column that does not exist or does not hold numbers, and if files differ."""
    found: Conditions | None = None
    first = ""
    for where, schema in schemas if columns else ():
        names = tuple(name for column in columns for name in _names(schema, column, where))
        if found is None:
            found, first = Conditions(tuple(columns), names), where
        elif names != found.names:
            raise DataError(
                f"{FIELD}: {where} has the numbers {', '.join(names)} and {first}"
                f" {', '.join(found.names)}; write lists of one length in all files"
            )
    found = found or Conditions()
    twice = [name for number, name in enumerate(found.names) if name in found.names[:number]]
    if twice:
        raise DataError(f"{FIELD}: two numbers have the name {twice[0]}; leave one column out")
    return found


def columns_named(names: Sequence[str]) -> list[tuple[str, int]]:
    """The columns that numbers of these names come from, each with the length of its lists; 0 for a
    column of numbers."""
    found: list[tuple[str, int]] = []
    for name in names:
        column, bracket, place = name.removesuffix("]").rpartition("[")
        if not bracket or not place.isdecimal():
            found.append((name, 0))
        elif found and found[-1] == (column, int(place)):
            found[-1] = (column, int(place) + 1)
        else:
            found.append((column, 1))
    return found


def _names(schema: pa.Schema, column: str, where: str) -> Iterator[str]:
    """The names of the numbers of a column."""
    from pyarrow import types

    check_exists(schema.names, FIELD, column, where)
    kind = schema.field(column).type
    if types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        yield from (f"{column}[{place}]" for place in range(kind.list_size))
    elif _is_number(kind):
        yield column
    else:
        raise DataError(
            f"{FIELD}: {column!r} of {where} is {kind}; name columns of numbers, or of lists whose"
            " type has one fixed length (fixed_size_list)"
        )


def _is_number(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind)


def _numbers(values: Any, column: str, where: str, first_row: int) -> NDArray[np.float32]:
    """The numbers of a column: (rows, numbers)."""
    import pyarrow as pa
    from pyarrow import types

    length = 1
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    null = values.is_null().to_numpy(zero_copy_only=False)
    if types.is_fixed_size_list(values.type):
        length = values.type.list_size
        # `flatten` leaves out the lists that are null; `values` would hold rows outside a slice.
        values = functions().fill_null(values, pa.scalar([None] * length, values.type)).flatten()
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        found = numbers.astype(np.float32).reshape(-1, length)
    bad = ~np.isfinite(found).all(axis=1) | null
    if bad.any():
        row = int(bad.argmax())
        what = "no number" if null[row] or np.isnan(found[row]).any() else "no finite float32"
        raise DataError(
            f"{FIELD}: row {first_row + row} of {where} has {what} in {column!r}; {_ADVICE}"
        )
    return found
