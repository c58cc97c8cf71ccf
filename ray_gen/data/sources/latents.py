"""Latents that `ray-gen encode` has written: rows of moments, read as maps of floats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.errors import DataError, reason
from ray_gen.data.moments import DEVIATION, Moments
from ray_gen.data.sources.parquet import MANIFEST, PLAN, Columns, Parquet
from ray_gen.storage import Folder, StorageError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

KIND = "latents"
"""Under this key a manifest says that it is one of latents."""
AUTOENCODER = "autoencoder"
"""Name of the folder with the autoencoder, beside the shards: an exported model."""
CONFIG = "config.json"
"""Its file with the autoencoder's experiment."""
WEIGHTS = "model.safetensors"
"""Its file with the weights."""
FORMAT = 1
_AGAIN = "run the same ray-gen encode command again, which writes what is missing"


@dataclass(frozen=True)
class LatentManifest:
    """What a folder of latents tells about them."""

    moments: Moments
    mean: tuple[float, ...]
    """Of each channel of z, over the training images."""
    deviation: tuple[float, ...]
    """Standard deviation of each channel; 1 for a channel that never changes."""
    told: Mapping[str, Any]
    """All of the manifest."""

    @property
    def of_latents(self) -> Mapping[str, Any]:
        """The part about latents: the autoencoder, the source, the statistics."""
        return self.told[KIND]

    @classmethod
    def read(cls, location: str, field: str = "data.path") -> LatentManifest:
        """The manifest in a folder or at a URI. Raises DataError."""
        folder = _folder(location)
        try:
            told = json.loads(folder.read_text(MANIFEST))
        except FileNotFoundError:
            raise DataError(f"{field}: {location} {_without_manifest(folder)}") from None
        except (StorageError, OSError) as error:
            raise DataError(
                f"{field}: {location} cannot be read: {reason(error)}; check that it is there and"
                " that this user has access to it"
            ) from error
        except ValueError:
            raise _damaged(field, location, MANIFEST) from None
        if not isinstance(told, dict) or KIND not in told:
            raise DataError(
                f"{field}: {location} is not a folder of latents; give one that ray-gen encode has"
                " written, or name the kind of data, e.g. parquet:PATH"
            )
        of_latents = told[KIND]
        if isinstance(of_latents, dict) and of_latents.get("format", FORMAT) != FORMAT:
            raise DataError(
                f"{field}: {location} has format {of_latents['format']} of a later version of"
                f" ray_gen ({of_latents.get('version')}); install that one"
            )
        try:
            channels, height, width = map(int, of_latents["shape_CHW"])
            statistics = of_latents["statistics"]
            mean, deviation = (tuple(map(float, statistics[name])) for name in ("mean", "std"))
            moments = Moments((channels, height, width), tuple(of_latents["moments"]))
        except (KeyError, TypeError, ValueError):
            raise _damaged(field, location, MANIFEST) from None
        sound = len(mean) == len(deviation) == channels and np.isfinite(mean + deviation).all()
        if not sound:
            raise _damaged(field, location, MANIFEST)
        return cls(moments, mean, tuple(one or 1.0 for one in deviation), told)

    def scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Shift and factor of standardised latents, (z - shift) * factor: (c, 1, 1) each. Each
        channel gets mean 0 and standard deviation `DEVIATION`."""
        shift = np.asarray(self.mean, np.float32)[:, None, None]
        factor = np.float32(DEVIATION) / np.asarray(self.deviation, np.float32)[:, None, None]
        return shift, factor


def autoencoder_beside(
    location: str, manifest: LatentManifest, field: str = "data.path"
) -> tuple[dict[str, Any], str]:
    """The experiment of the autoencoder that lies beside latents, and the digest of its weights by
    their manifest. Raises DataError."""
    folder = _folder(location) / AUTOENCODER
    try:
        digest = str(manifest.of_latents["autoencoder"]["digest"])
    except (KeyError, TypeError):
        raise _damaged(field, location, MANIFEST) from None
    names = folder.names()
    lacking = [name for name in (CONFIG, WEIGHTS) if name not in names]
    if lacking:
        raise DataError(
            f"{field}: the autoencoder in {folder.location}, which decodes samples, has no"
            f" {lacking[0]}; {_AGAIN}"
        )
    try:
        experiment = json.loads(folder.read_text(CONFIG))["experiment"]
    except OSError as error:
        raise DataError(f"{field}: {folder.location}/{CONFIG}: {reason(error)}") from error
    except (KeyError, TypeError, ValueError):
        raise _damaged(field, folder.location, CONFIG) from None
    return experiment, digest


def _folder(location: str) -> Folder:
    return Folder(location if "://" in location else str(Path(location).expanduser()))


def _without_manifest(folder: Folder) -> str:
    """Why a folder has no manifest, and what to do."""
    if folder.exists(PLAN):
        return f"is not complete: its encoding did not finish; {_AGAIN}"
    if folder.exists():
        return f"has no {MANIFEST}; give a folder that ray-gen encode has written"
    return (
        "does not exist on the machine that reads it; give a folder that ray-gen encode has written"
    )


def _damaged(field: str, location: str, name: str) -> DataError:
    return DataError(f"{field}: {location}/{name} is damaged; {_AGAIN}")


class Latents(Parquet):
    """A folder or URI that `ray-gen encode` has written.

    An image is the moments of its latents, standardised, one above the other: float16 (k h, w, c).
    See `Moments`.
    """

    kind = "latents"
    writer = "ray-gen encode"

    @cached_property
    def manifest(self) -> LatentManifest:
        """What is there. Raises DataError."""
        return LatentManifest.read(self.path, self.field)

    def identity(self) -> object:
        """See `Tables`. The manifest says how numbers are standardised."""
        told = json.dumps(dict(self.manifest.told), sort_keys=True)
        digest = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
        identity: Any = super().identity()
        return {**identity, "manifest": digest}

    def _of_images(self, schema: pa.Schema, location: str) -> Columns:
        moments = self.manifest.moments
        channels, height, width = moments.shape_CHW
        size = channels * height * width
        for name in moments.names:
            kind = schema.field(name).type if name in schema.names else None
            if kind is None or getattr(kind, "list_size", None) != size:
                raise DataError(
                    f"{self.field}: {location} has no column {name!r} of {size} numbers, which the"
                    f" {MANIFEST} beside it promises; encode the images again"
                )
        shape = (len(moments.names) * height, width, channels)
        return replace(
            Columns("latents", None, None, None, shape, "float16", opacity=False),
            parts=moments.names,
        )

    def _with_images(self, rows: pa.Table, columns: Columns) -> pa.Table:
        import pyarrow as pa

        moments, (shift, factor) = self.manifest.moments, self.manifest.scale()
        maps: list[NDArray[np.float32]] = []
        for name in moments.names:
            column = rows.column(name).combine_chunks()
            if column.null_count:
                raise DataError(f"{self.field}: {self.path} has rows without {name}; encode again")
            numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            found = numbers.reshape(len(rows), *moments.shape_CHW)
            found = found - shift if name.startswith("mean") else found
            maps.append(found * factor)
        # (N, k, c, h, w) to (N, k h, w, c): the maps one above the other, channels last
        stacked = np.stack(maps, axis=1).transpose(0, 1, 3, 4, 2).astype(np.float16)
        stored = pa.py_buffer(np.ascontiguousarray(stacked))
        assert columns.shape_HWC is not None
        kind = pa.binary(2 * int(np.prod(columns.shape_HWC)))
        made = pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, stored])
        return rows.append_column(columns.image, made)
