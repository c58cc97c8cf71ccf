"""`data`: the source of the images, and their preparation before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from ray_gen.settings import Component, Location, free

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
    """Settings that all sources share."""

    image_size: ImageSize | None = None
    """Pixels: one number for a square, or [height, width]. Images are scaled to cover it and then
    cropped at the centre. None: the size of the data's images, which must all be equal."""
    center_crop: PositiveInt | None = None
    """Pixels: side of a centred square that is cut out of the original before resizing (CelebA:
    160)."""
    channels: Literal[1, 3] | None = None
    """1 is grey, 3 is RGB. Transparent pixels are put on white. None: as in the first image."""
    flip: bool = False
    """Mirror each image with probability ½, drawn again each time training uses the image."""
    held_out_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the images that is held out of training, chosen by a hash of each image's path or
    row. Sources with their own held-out split ignore it."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """stop: an image that cannot be decoded stops the run; the error names its path. skip: such
    images are skipped and counted."""
    placement: Literal["auto", "device", "host", "stream"] = free("auto", but="stream")
    """Where the images are during training. device: decoded, on the device. host: decoded and
    memory-mapped on the device's node. stream: Parquet of any size stays in its place; training
    reads and decodes it step by step, in an order of its own. auto: device if the images take at
    most a quarter of its free memory, else host."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their labels; filled in from the data at the start."""
    digest: str | None = None
    """Digest of all decoded pixels and labels in their order; filled in from the data at the start.
    It identifies the data. The path may change."""

    @model_validator(mode="after")
    def _only_parquet_streams(self) -> Self:
        if self.placement == "stream" and not isinstance(self, ParquetData):
            raise ValueError(
                "placement: stream reads only Parquet files; write them with `ray-gen data "
                "convert`, or set placement to auto"
            )
        return self

    @property
    def short_form(self) -> str:
        """The data in the form of the command line: KIND:PATH, or only KIND."""
        for field in ("path", "dataset"):
            if hasattr(self, field):
                return f"{getattr(self, 'kind')}:{getattr(self, field)}"  # noqa: B009
        return getattr(self, "kind")  # noqa: B009

    def height_and_width(self) -> tuple[int, int] | None:
        """The image size if the settings give it, else None."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    def has_labels(self) -> bool | None:
        """Whether images have labels. None if the settings do not tell."""
        return None if self.classes is None else bool(self.classes)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the source's class."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in fields if name not in _SHARED}


class Mnist5kData(DataSettings):
    """5,000 real MNIST digits that come with the package: 28 x 28 grey, 400 per class for training,
    100 per class held out."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Mnist5k"}
    kind: Literal["mnist5k"] = "mnist5k"
    image_size: ImageSize | None = 28
    channels: Literal[1, 3] | None = 1

    def has_labels(self) -> bool | None:
        """True."""
        return True


class TorchvisionData(DataSettings):
    """A data set of torchvision by the name of its class."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:TorchvisionDataset"}
    kind: Literal["torchvision"] = "torchvision"
    dataset: str
    """The class: MNIST, FashionMNIST, CIFAR10, CelebA, FakeData, …"""
    root: str = free("~/.cache/torchvision")
    """Folder of its files, also the target of a download."""
    download: bool = free(False)
    """Download the files if they are missing."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the class, e.g. {split: byclass} for EMNIST."""


class FolderData(DataSettings):
    """Image files, one folder per class or all in one folder: PNG, JPEG, WebP; grey, RGB, RGBA,
    palette."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:ImageFolder"}
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
    """None: the only column whose type can hold encoded images."""
    label_column: str | None = None
    """None: the column `label` if it exists and holds integers."""
    window_images: PositiveInt = 1024
    """Only for placement stream: number of images that one stream shuffles together. Each group of
    a global batch has its own stream. About twice this number is in memory, in stored form."""


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
