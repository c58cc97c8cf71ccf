"""`data`: where images come from and what is done to them before training sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from ray_gen.experiment.settings import Component, Location, free

ImageSize = PositiveInt | tuple[PositiveInt, PositiveInt]

# Fields of every source that are not the source's own arguments.
_SHARED = (
    "kind",
    "image_size",
    "center_crop",
    "channels",
    "flip",
    "held_out_fraction",
    "on_corrupt",
    "placement",
    "classes",
    "digest",
    "window_images",
)


class DataSettings(Component):
    """What every source shares."""

    image_size: ImageSize | None = None
    """Pixels: one number for a square, or [height, width]. Images are scaled to cover it and then
    cropped at the centre. None: the size that all images of the data have."""
    center_crop: PositiveInt | None = None
    """Pixels of the original: a centred square that is cut out before resizing (CelebA: 160)."""
    channels: Literal[1, 3] | None = None
    """1 is grey, 3 is RGB; transparency is laid on white. None: as the first image has it."""
    flip: bool = False
    """Mirror each image with probability ½, anew at every draw."""
    held_out_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the images that is never trained on, chosen by a hash of each image's path or row.
    Sources with a held-out split of their own ignore it."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An image that cannot be decoded stops the run with its path, or is skipped and counted."""
    placement: Literal["auto", "device", "host", "stream"] = free("auto", but="stream")
    """Where images lie: decoded on the device, or memory-mapped on its node, or (stream) as Parquet
    where they are, of any size, read and decoded as training goes on, in an order of its own. auto:
    on the device if they take at most a quarter of its free memory, else on its node."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their labels; filled in from the data at the start."""
    digest: str | None = None
    """Of all decoded pixels and labels in their order; filled in from the data at the start. What
    data is: where it lies may change."""

    @model_validator(mode="after")
    def _only_parquet_streams(self) -> Self:
        if self.placement == "stream" and not isinstance(self, ParquetData):
            raise ValueError(
                "placement: stream reads Parquet files; write them with `ray-gen data convert`, or "
                "set it to auto"
            )
        return self

    def height_and_width(self) -> tuple[int, int] | None:
        """The size of the images, where the settings alone say it."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    def has_labels(self) -> bool | None:
        """Whether images have labels, where the settings alone say it."""
        return None if self.classes is None else bool(self.classes)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the source itself."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in fields if name not in _SHARED}


class Mnist5kData(DataSettings):
    """5,000 real MNIST digits that come with the package: 28 x 28 grey, 400 a class to train on and
    100 a class held out."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Mnist5k"}
    kind: Literal["mnist5k"] = "mnist5k"
    image_size: ImageSize | None = 28
    channels: Literal[1, 3] | None = 1

    def has_labels(self) -> bool | None:
        """Always."""
        return True


class TorchvisionData(DataSettings):
    """A data set of torchvision by the name of its class."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Torchvision"}
    kind: Literal["torchvision"] = "torchvision"
    dataset: str
    """The class: MNIST, FashionMNIST, CIFAR10, CelebA, FakeData, …"""
    root: str = free("~/.cache/torchvision")
    """Folder that holds its files, or that they are downloaded to."""
    download: bool = free(False)
    """Fetch the files if they are not there."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the class, e.g. {split: byclass} for EMNIST."""


class FolderData(DataSettings):
    """Image files in one folder a class, or flat: PNG, JPEG, WebP; grey, RGB, RGBA, palette."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Folder"}
    kind: Literal["folder"] = "folder"
    path: Location = free(...)
    """The folder; a relative path is relative to where the command runs."""


class ParquetData(DataSettings):
    """Parquet files in the image layout of Hugging Face data sets, or with a binary column."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Parquet"}
    kind: Literal["parquet"] = "parquet"
    path: Location = free(...)
    """A file, a folder of shards, or a URI (s3://, gs://, hdfs://, file://)."""
    image_column: str | None = None
    """None: the one column whose type can hold encoded images."""
    label_column: str | None = None
    """None: `label`, if there is such a column of integers."""
    window_images: PositiveInt = 1024
    """Of placement stream: images that are shuffled together, in each of the streams that the
    groups of a global batch are read from. Some twice as many are in memory, as they are stored."""


_SHORT_FORMS = {"folder": "path", "parquet": "path", "torchvision": "dataset"}


def from_short_form(value: Any) -> Any:
    """`mnist5k`, `folder:PATH`, `parquet:PATH_OR_URI` and `torchvision:CLASS` as mappings."""
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if rest and kind in _SHORT_FORMS:
        return {"kind": kind, _SHORT_FORMS[kind]: rest}
    return {"kind": kind}


def _from_whole_short_form(value: Any) -> Any:
    """`from_short_form`. Raises ValueError for `folder:`, which YAML reads as {folder: null}."""
    for kind, field in _SHORT_FORMS.items():
        read_as_mapping = isinstance(value, dict) and kind in value and "kind" not in value
        if read_as_mapping or value in (kind, f"{kind}:"):
            raise ValueError(
                f"{kind} needs its {field} right after a colon, without a space: "
                f"data={kind}:{field.upper()}"
            )
    return from_short_form(value)


Data = Annotated[
    Annotated[
        Mnist5kData | TorchvisionData | FolderData | ParquetData, Field(discriminator="kind")
    ],
    BeforeValidator(_from_whole_short_form),
]
