"""One split as one Arrow file: a record batch with all images in one aligned, mappable buffer."""

from __future__ import annotations

import math
import os
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import pyarrow as pa

_ALIGNMENT = 64


def write(
    raw: Path,
    target: Path,
    image_bytes: int,
    labels: array[int] | None,
    count: int,
    conditions: array[float] | None = None,
) -> None:
    """Writes the Arrow file `target` from `count` images of `image_bytes` each, one after another
    in `raw`. conditions: float32, equally many for each image.

    Maps the raw file and does not read it, so memory stays small for any size.
    """
    import pyarrow as pa

    image_type = pa.binary(image_bytes)
    pixels = pa.memory_map(str(raw)).read_buffer() if count else pa.py_buffer(b"")
    columns = {"image": pa.Array.from_buffers(image_type, count, [None, pixels])}
    if labels is not None:
        columns["label"] = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(labels)])
    if conditions is not None:
        size = len(conditions) // max(count, 1) * conditions.itemsize
        numbers = pa.py_buffer(conditions)
        columns["conditions"] = pa.Array.from_buffers(pa.binary(size), count, [None, numbers])
    batch = _aligned(pa.record_batch(columns))
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def read(
    path: Path,
    shape_HWC: tuple[int, int, int],
    count: int,
    element: torch.dtype = torch.uint8,
    conditions: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """images_NHWC of type `element`, labels int64 (N,) or None, and conditions float32
    (N, `conditions`) or None if there are 0. All are views of the mapped file.

    Writing to these tensors ends the process: the mapping is read-only, but DLPack does not
    tell torch. A read-only NumPy array would not help: torch warns, and then ignores the flag.
    """
    import pyarrow as pa

    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    labelled = "label" in batch.schema.names
    if count == 0:
        images_NHWC = torch.empty((0, *shape_HWC), dtype=element)
        labels = torch.empty(0, dtype=torch.int64) if labelled else None
        return images_NHWC, labels, torch.empty(0, conditions) if conditions else None

    def view(column: str, *shape: int, kind: torch.dtype) -> torch.Tensor:
        length = count * math.prod(shape) * kind.itemsize
        flat = pa.Array.from_buffers(pa.uint8(), length, [None, batch.column(column).buffers()[1]])
        return torch.from_dlpack(flat).view(kind).view(count, *shape)

    return (
        view("image", *shape_HWC, kind=element),
        torch.from_dlpack(batch.column("label")) if labelled else None,
        view("conditions", conditions, kind=torch.float32) if conditions else None,
    )


def _aligned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, with padding in its metadata, so that its images begin at a multiple of 64 in the
    file.

    Arrow places buffers at multiples of 8 in the file. A mapping begins at a page.
    """
    import pyarrow as pa

    body = sum(
        -(-buffer.size // 8) * 8 for column in batch.columns for buffer in column.buffers()[1:]
    )
    for padding in range(0, _ALIGNMENT, 8):
        padded = batch.replace_schema_metadata({"padding": " " * padding})
        sink = pa.MockOutputStream()  # counts bytes; does not read the images
        with pa.ipc.new_file(sink, padded.schema) as writer:
            writer.write_batch(padded)
            if (sink.tell() - body) % _ALIGNMENT == 0:
                return padded
    raise AssertionError("no length of the metadata aligns the images")
