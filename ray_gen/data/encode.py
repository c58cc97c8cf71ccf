"""Writes the latents of a source as sharded Parquet: one part at a time, in any process.

Parts, records and order are those of `convert.py`. A row holds the moments of q(z|x) of one image:
lists of the numbers of a map (c, h, w), in this order. The manifest has all that a reader needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ray_gen.data.build import decoded
from ray_gen.data.convert import Conversion, Layout
from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.moments import Name
from ray_gen.data.sampled import Sampled
from ray_gen.data.sources.base import Item, Source
from ray_gen.data.sources.latents import FORMAT, KIND
from ray_gen.data.sources.parquet import Columns, Parquet, RowGroup
from ray_gen.data.store import middle
from ray_gen.data.wanted import Pixels
from ray_gen.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

BATCH = 64
"""Largest number of images that are encoded at once."""
BATCH_PIXELS = BATCH * 128 * 128
"""Largest number of their pixels, if they are several images. `latent-kl-f8` takes 0.2 GB of a CPU
for an image of 256 x 256, so some 3 GB for so many."""
_TYPES: dict[str, type[np.floating[Any]]] = {"fp16": np.float16, "fp32": np.float32}


class Encoder(Protocol):
    """Gives the moments of images. It may be sent to other processes."""

    @property
    def shape_CHW(self) -> tuple[int, int, int]:  # noqa: N802
        """Shape of z: (c, h, w)."""
        ...

    @property
    def digest(self) -> str:
        """Of its weights."""
        ...

    @property
    def has_deviations(self) -> bool:
        """Whether it gives a distribution, not only one z."""
        ...

    def __call__(self, images_NHWC: Tensor) -> Tensor:
        """Decoded images, uint8 or uint16 (N, H, W, C), to the mean of q(z|x), and its standard
        deviation if it gives a distribution: float32 (N, 1 or 2, c, h, w) on the CPU."""
        ...


@dataclass(frozen=True)
class Form:
    """What is written of the latents."""

    precision: Literal["fp16", "fp32"]
    """Type of the stored numbers."""
    flips: bool
    """Whether mirrored images are encoded, too: z of a mirrored image is not z mirrored."""
    window_HW: tuple[int, int]
    """Size of the images that the encoder sees: the middle of the decoded ones."""
    facts: Mapping[str, Any]
    """What the manifest tells of the autoencoder and of the source, as JSON."""

    @property
    def images_at_once(self) -> int:
        """Images that are encoded at once. A function of the form alone: a part always has the same
        batches, so that its numbers do not depend on who writes it."""
        height, width = self.window_HW
        return max(1, min(BATCH, BATCH_PIXELS // (height * width)))

    def rounded(self, moments: NDArray[np.float32], images: Sequence[str]) -> NDArray[Any]:
        """Moments of some images in the stored type. Raises DataError if a number is not finite."""
        with np.errstate(over="ignore"):
            found = moments.astype(_TYPES[self.precision])
        wrong = ~np.isfinite(found).reshape(len(found), -1).all(1)
        if wrong.any():
            remedy = "write them with --precision fp32"
            if not np.isfinite(moments).all():
                remedy = "use a checkpoint of the autoencoder whose weights are sound"
            name = images[int(wrong.argmax())]
            raise DataError(f"{name} has latents that {self.precision} cannot hold; {remedy}")
        return found


class Sums:
    """Sums over the numbers of z, by channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.values = np.zeros(channels)
        self.squares = np.zeros(channels)

    def add(self, mean: NDArray[Any], deviation: NDArray[Any] | None) -> None:
        """Adds E[z] and E[z²] of one image: (c, h, w) each."""
        mean = mean.astype(np.float64)
        squares = mean**2 if deviation is None else mean**2 + deviation.astype(np.float64) ** 2
        self.count += mean[0].size
        self.values += mean.sum((1, 2))
        self.squares += squares.sum((1, 2))

    def told(self) -> dict[str, Any]:
        """As JSON, without loss."""
        return {
            "count": self.count,
            "values": self.values.tolist(),
            "squares": self.squares.tolist(),
        }

    @staticmethod
    def statistics(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Mean and standard deviation by channel and of all numbers, of `told` of several parts."""
        count = sum(part["count"] for part in told)
        if not count:
            raise DataError(
                "no image is left to train on, so latents have no statistics; make"
                " data.held_out_fraction smaller, or name a SOURCE with training images"
            )
        mean = np.sum([part["values"] for part in told], 0) / count
        squares = np.sum([part["squares"] for part in told], 0) / count
        deviation = np.sqrt(np.maximum(squares - mean**2, 0.0))
        total = math.sqrt(max(0.0, float(squares.mean() - mean.mean() ** 2)))
        return {
            "mean": mean.tolist(),
            "std": deviation.tolist(),
            "mean_of_all": float(mean.mean()),
            "std_of_all": total,
            "scaling_factor": 1.0 / total if total else 1.0,
        }


class Encoding(Conversion):
    """The latents of the images of one source in one folder. See `Conversion`."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        destination: Folder,
        encoder: Encoder,
        form: Form,
        streamed: bool = False,
    ) -> None:
        """layout: `wanted` are the images before `form.window_HW` is cut out. streamed: hold out
        the row groups that a stream of the source holds out; see `Sampled`."""
        super().__init__(source, layout, destination)
        self._encoder = encoder
        self._form = form
        self._streamed = streamed
        self._sums = Sums(encoder.shape_CHW[0])
        of_one: tuple[Name, ...] = ("mean", "std") if encoder.has_deviations else ("mean",)
        mirrored: tuple[Name, ...] = ("mean_flipped", "std_flipped")
        self.names: tuple[Name, ...] = of_one + mirrored[: len(of_one)] * form.flips
        """The columns of moments."""

    def _arguments(self) -> tuple[Any, ...]:
        return *super()._arguments(), self._encoder, self._form, self._streamed

    def _row_groups(self, source: Parquet) -> tuple[Sequence[RowGroup], Columns]:
        groups, columns = super()._row_groups(source)
        if self._streamed:
            groups = Sampled(source, self.layout.held_out_fraction).with_splits(groups)
        return groups, columns

    def _identity(self) -> dict[str, Any]:
        form = self._form
        return {
            "encoder": self._encoder.digest,
            "form": [form.precision, form.flips, form.window_HW],
            "streamed": self._streamed,
        }

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        return {
            "the encoder": self._encoder.digest[:12],
            "--precision": self._form.precision,
            "--flips": self._form.flips,
            **{name: value for name, value in settings.items() if name.startswith("--")},
        }

    def _write(self, part: int, folder: Path) -> dict[str, Any]:
        self._sums = Sums(self._encoder.shape_CHW[0])
        record = super()._write(part, folder)
        return {**record, "sums": self._sums.told()}

    def _rows(
        self, part: int
    ) -> Iterator[tuple[Item, tuple[bytes, int | None] | CorruptImageError]]:
        wanted = self.layout.wanted
        assert wanted is not None
        waiting: list[tuple[Item, Pixels]] = []
        for item, result in decoded(self._items(part), wanted, self.source.field):
            if isinstance(result, CorruptImageError):
                yield item, result
                continue
            waiting.append((item, result))
            if len(waiting) == self._form.images_at_once:
                yield from self._encoded(waiting)
                waiting = []
        if waiting:
            yield from self._encoded(waiting)

    def _encoded(
        self, images: Sequence[tuple[Item, Pixels]]
    ) -> Iterator[tuple[Item, tuple[bytes, int | None]]]:
        stacked = np.stack([pixels.values_HWC for _, pixels in images])
        seen = middle(torch.from_numpy(stacked), self._form.window_HW)
        moments = [self._encoder(seen)]
        if self._form.flips:
            mirrored = np.ascontiguousarray(seen.numpy()[:, :, ::-1])  # torch flips no uint16
            moments.append(self._encoder(torch.from_numpy(mirrored)))
        names = [item.name for item, _ in images]
        stored = self._form.rounded(torch.cat(moments, dim=1).numpy(), names)
        for (item, pixels), maps in zip(images, stored, strict=True):
            if self._split(item) == "train":
                self._sums.add(maps[0], maps[1] if "std" in self.names else None)
            yield item, (maps.tobytes(), pixels.label)

    def image_columns(self) -> tuple[list[tuple[str, pa.DataType]], dict[bytes, bytes]]:
        import pyarrow as pa

        number = pa.float16() if self._form.precision == "fp16" else pa.float32()
        kind = pa.list_(number, math.prod(self._encoder.shape_CHW))
        return [(name, kind) for name in self.names], {}

    def image_arrays(self, stored: Sequence[bytes]) -> list[pa.Array]:
        import pyarrow as pa

        size = math.prod(self._encoder.shape_CHW)
        numbers = np.frombuffer(b"".join(stored), _TYPES[self._form.precision])
        moments = numbers.reshape(len(stored), len(self.names), size)
        return [
            pa.FixedSizeListArray.from_arrays(pa.array(moments[:, place].reshape(-1)), size)
            for place in range(len(self.names))
        ]

    def _told(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        statistics = Sums.statistics([record["sums"] for record in records])
        channels, height, width = self._encoder.shape_CHW
        return {
            KIND: {
                "format": FORMAT,
                "shape_CHW": [channels, height, width],
                "downsampling": self._form.window_HW[0] / height,
                "moments": list(self.names),
                "precision": self._form.precision,
                "statistics": statistics,
                **self._form.facts,
            }
        }
