"""`data`: the source of the images, and their preparation before training."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from ray_gen.settings import Component, Location, Settings, Told, free, without_place

LARGEST_SIDE = 8192
"""Pixels. A larger side is a slip: one image of it would fill a GPU."""


_Size = PositiveInt | tuple[PositiveInt, PositiveInt]


def _size(value: Any) -> Any:
    """ "96x160" as [96, 160]. Raises ValueError for what is no size."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", value.strip())):
        value = [int(found[1]), int(found[2])]
    sides: list[Any] = [*value] if isinstance(value, (list, tuple)) else [value]
    if any(type(side) is not int for side in sides) or len(sides) > 2 or not sides:
        raise ValueError(f"{value!r} is no size in pixels; set e.g. 64 or 96x160 (height x width)")
    if isinstance(value, (list, tuple)) and len(sides) != 2:
        raise ValueError(f"{value!r} is no [height, width]; set e.g. [96, 160]")
    if not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise ValueError(f"{value} is not in 1 to {LARGEST_SIDE:,} pixels; set e.g. 64 or 96x160")
    return value


ImageSize = Annotated[
    _Size,
    BeforeValidator(_size, json_schema_input_type=_Size | str),
    Told("64 or 96x160", unit="pixels, height x width"),
]


def _channels(value: Any) -> Any:
    if value in (None, "auto") or (type(value) is int and 1 <= value <= 16):
        return value
    raise ValueError(
        f"{value!r} is not 1 (grey), 3 (RGB), 2 or 4 (with opacity), another number up to 16, auto"
        " or null"
    )


LabelColumn = str | Annotated[tuple[str, ...], Field(min_length=1)]
Channels = Annotated[
    int | Literal["auto"] | None, BeforeValidator(_channels), Told("1 to 16, auto or null")
]


def _value_range(value: Any) -> Any:
    if value in ("auto", "full"):
        return value
    try:
        low, high = (float(end) for end in value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not auto, full or [low, high]") from None
    if not low < high:
        raise ValueError(f"{value!r}: the first value, black, must be less than the second, white")
    return (low, high)


def _pad(value: Any) -> Any:
    levels = value if isinstance(value, (list, tuple)) else [value]
    if value == "edge" or (
        levels and all(type(level) is int and 0 <= level <= 255 for level in levels)
    ):
        return value
    raise ValueError(
        f"{value!r} is not edge, a number from 0 (black) to 255 (white), or one for each channel"
    )


_NOT_IN_RULES_1 = (
    "bits",
    "value_range",
    "fit",
    "pad",
    "jpeg_scaling",
    "splits",
    "frames",
    "labels",
)
"""Fields that the first rules of reading do not know."""


class Condition(Settings):
    """A number to condition on, and its statistics over the training split."""

    name: str
    """Its column; `COLUMN[0]`, `COLUMN[1]`, … of a column of lists."""
    mean: float
    """Its mean, in the data's own units, as the other three."""
    deviation: PositiveFloat
    """Its standard deviation. Networks get (number - mean) / deviation."""
    low: float
    """Its least value."""
    high: float
    """Its greatest value."""


def _columns(value: Any) -> Any:
    """One column as a list of it. Raises ValueError for a column that is named twice."""
    columns = [value] if isinstance(value, str) else value
    if isinstance(columns, (list, tuple)):
        twice = [name for number, name in enumerate(columns) if name in columns[:number]]
        if twice:
            raise ValueError(f"{twice[0]} is named twice; name each column once")
    return columns


Conditions = Annotated[
    tuple[str, ...],
    BeforeValidator(_columns, json_schema_input_type=tuple[str, ...] | str),
    Told("names of columns"),
]


def _both(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else size


class NamedSplits(Settings):
    """The folders of the two splits."""

    train: str
    """The folder of the training images."""
    held_out: str
    """The folder of the held-out images."""


Splits = Literal["auto", "none"] | NamedSplits


class PixelFields(Component):
    """Settings that say which pixels come of an image. What is compared with a run's images is read
    by all of them."""

    image_size: ImageSize | None = None
    """Size of the images that the networks see: one number for a square, or [height, width]. Images
    are scaled to cover it and then cropped at the centre. None: the size of the data's images,
    which must all be equal."""
    random_crop_from: ImageSize | None = None
    """Size that random windows of `image_size` are cut from. Images are brought to this size, and
    each time training uses one it takes a window of `image_size` at random. Held-out images give
    their middle."""
    center_crop: Annotated[PositiveInt, Told(unit="pixels")] | None = None
    """Side of a centred square that is cut out of the original before resizing (CelebA: 160)."""
    channels: Channels = None
    """Channels of the images: 1 is grey, 3 is RGB, 2 and 4 are the same with opacity; up to 16 for
    images with others. Without opacity, transparent pixels are put on white. None: 3 if any image
    has colour, else 1. auto: the same, with opacity if all images have it."""
    opacity: bool | Literal["auto"] = "auto"
    """Whether the last of 2 or 4 channels is opacity. Files and pictures of samples are then
    transparent, metrics on RGB see them on white, augmentation changes only colours. It changes no
    decoded pixel. auto: it is, unless images have 2 or 4 bands of which none is opacity, as `.npy`
    files and TIFF files can."""
    bits: Literal[8, 16] = 8
    """Bits of a channel of the decoded images."""
    value_range: Annotated[
        Literal["auto", "full"] | tuple[float, float],
        BeforeValidator(_value_range),
        Told("auto, full or [low, high]"),
    ] = "auto"
    """Values of images of more than 8 bits that become black and white. auto: from 0 to the end of
    the 8, 10, 12, 14 or 16 bits that hold the data's largest value; of floats to 1 or 255. full:
    the range of their type. Or [low, high]; values beyond are clipped."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How images get the aspect ratio of `image_size`: crop the longer side, pad the shorter
    one, or stretch it."""
    pad: Annotated[
        Literal["edge"] | int | tuple[int, ...],
        BeforeValidator(_pad),
        Told("edge, 0 to 255, or a list of such numbers"),
    ] = 255
    """What `fit: pad` fills in: edge repeats the last pixels; a number, or one for each channel,
    from 0 (black) to 255 (white)."""
    max_pixels: Annotated[PositiveInt, Told(unit="pixels")] | None = None
    """Largest number of pixels of an image. A larger one counts as corrupt: a small file may claim
    more than the memory holds. Every 4 channels count as a pixel of their own, and a file may have
    32 bytes for each pixel. None: 178,956,970."""
    jpeg_scaling: bool = False
    """Let JPEG photographs be scaled down while they are decompressed, never below twice the wanted
    size. Decoding is faster, pixels differ a little."""
    rules: Literal[1, 2] = 2
    """Version of the rules that say what is read of the same files. A run keeps its own: 1 in
    ray_gen 0.1."""

    def pixel_fields(self) -> dict[str, Any]:
        """The values of these fields."""
        return {name: getattr(self, name) for name in PixelFields.model_fields}

    def pixels(self) -> dict[str, Any]:
        """What `ray_gen.data.store.wanted_of` asks: the pixels that come of an image."""
        return {
            "image_size": self.random_crop_from or self.image_size,
            "center_crop": self.center_crop,
            "channels": self.channels,
            "opacity": None if self.opacity == "auto" else self.opacity,
            "rules": self.rules,
            "value_range": self.value_range,
            "element": f"uint{self.bits}",
            "fit": self.fit,
            "pad": (self.pad,) if isinstance(self.pad, int) else self.pad,
            "jpeg_scaling": self.jpeg_scaling,
            "max_pixels": self.max_pixels,
        }


class DataSettings(PixelFields):
    """Settings that all sources share."""

    flip: bool = False
    """Mirror each image with probability ½, drawn again each time training uses the image."""
    held_out_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the images that is held out of training, chosen by a hash of each image's path or
    row. Sources with their own held-out split ignore it."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """What happens at an image that cannot be decoded. stop: the run stops; the error names the
    path. skip: such images are skipped and counted."""
    placement: Literal["auto", "device", "host", "stream"] = free("auto", but="stream")
    """Where the images are during training. device: decoded, on the device. host: decoded and
    memory-mapped on the device's node. stream: Parquet of any size stays in its place; training
    reads and decodes it step by step, in an order of its own. auto: device if the images take at
    most a quarter of its free memory, else host."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their labels; filled in from the data at the start."""
    condition_statistics: tuple[Condition, ...] | None = None
    """The numbers of `conditions` with their statistics; filled in from the data at the start."""
    digest: str | None = None
    """Digest of all decoded pixels and labels in their order; filled in from the data at the start.
    It identifies the data. The path may change."""

    @model_validator(mode="before")
    @classmethod
    def _rules_of_old_runs(cls, given: Any) -> Any:
        """A run of before has read its data, but names no rules: it keeps the first."""
        if isinstance(given, dict) and given.get("digest") and "rules" not in given:
            return {**given, "rules": 1}
        return given

    @model_validator(mode="before")
    @classmethod
    def _opacity_of_old_runs(cls, given: Any) -> Any:
        """A run of before has read its data, but does not tell its opacity: 2 and 4 channels had
        it."""
        if isinstance(given, dict) and given.get("digest") and "opacity" not in given:
            return {**given, "opacity": given.get("channels") in (2, 4)}
        return given

    @model_validator(mode="before")
    @classmethod
    def _only_tables_have_numbers(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("conditions"):
            if "conditions" not in cls.model_fields:
                if "sources" in cls.model_fields:
                    raise ValueError("conditions: name them in each of data.sources")
                raise ValueError(
                    "conditions: this kind of data has no table of numbers; use Parquet or Arrow"
                    " files, or images with a metadata.csv beside them"
                )
            if given.get("rules", 2) == 1:
                raise ValueError("conditions: the first rules of reading know none; set rules to 2")
        return given

    @model_validator(mode="after")
    def _first_rules_know_few_settings(self) -> Self:
        if self.rules == 2:
            return self
        remedy = "set data.rules=2, which new runs have"
        if not isinstance(self, (FolderData, ParquetData, TorchvisionData, Mnist5kData)):
            raise ValueError(f"rules: 1 reads no {getattr(self, 'kind')} data; {remedy}")  # noqa: B009
        if self.channels not in (None, 1, 3):
            raise ValueError(
                f"channels: {self.channels!r} is not 1, 3 or null, with rules=1; {remedy}"
            )
        more = ("label_column",) if isinstance(self, FolderData) else ()
        for name in (*_NOT_IN_RULES_1, *more):
            info = type(self).model_fields.get(name)
            if info is not None and getattr(self, name) != info.default:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is unknown to the rules of reading"
                    f" rules=1; leave it out, or {remedy}"
                )
        return self

    @model_validator(mode="after")
    def _opacity_is_a_channel(self) -> Self:
        if self.opacity is True and self.channels not in (None, "auto", 2, 4):
            raise ValueError(
                f"opacity: true needs 2 or 4 channels, and channels is {self.channels}; set"
                " channels to 2, 4 or auto, or leave opacity out"
            )
        return self

    @model_validator(mode="after")
    def _only_parquet_streams(self) -> Self:
        if self.placement == "stream" and not isinstance(self, (ParquetData, LatentsData)):
            raise ValueError(
                "placement: stream reads only Parquet files; write them with `ray-gen data "
                "convert`, or set placement to auto"
            )
        return self

    @model_validator(mode="after")
    def _crops_come_from_larger_images(self) -> Self:
        inner, outer = self.height_and_width(), _both(self.random_crop_from)
        if outer is None:
            return self
        if inner is None:
            raise ValueError("image_size: is required with random_crop_from; set e.g. 64")
        if outer[0] < inner[0] or outer[1] < inner[1] or outer == inner:
            raise ValueError(
                f"random_crop_from: {outer[0]}x{outer[1]} is not larger than image_size"
                f" {inner[0]}x{inner[1]}; set e.g. {inner[0] * 9 // 8}x{inner[1] * 9 // 8}"
            )
        return self

    places: ClassVar[tuple[str, ...]] = ("path",)
    """Fields that hold a path or a URI. Those that a source does not have are ignored."""

    def with_places(self, change: Callable[[str], str]) -> Self:
        """A copy with `change` applied to every path and URI."""
        names = [name for name in self.places if name in type(self).model_fields]
        return self.model_copy(update={name: change(getattr(self, name)) for name in names})

    def published(self) -> Self:
        """A copy for others: of a local path only its last part, of a URI no user and no query."""
        return self.with_places(lambda path: without_place(path) or "data")

    def brief(self) -> Self:
        """A copy without what other models say of themselves."""
        return self

    def decoded_by(self) -> str | None:
        """The model that decodes the samples of a model of these data, in words. None: none."""
        return None

    def shares(self) -> tuple[float, ...] | None:
        """The weights of joined sources. None: all images alike."""
        return None

    @property
    def short_form(self) -> str:
        """The data in the form of the command line: KIND:PATH, or only KIND."""
        for field in ("path", "dataset"):
            if hasattr(self, field):
                return f"{getattr(self, 'kind')}:{getattr(self, field)}"  # noqa: B009
        return getattr(self, "kind")  # noqa: B009

    def height_and_width(self) -> tuple[int, int] | None:
        """The image size if the settings give it, else None."""
        return _both(self.image_size)

    def has_opacity(self) -> bool:
        """Whether the last channel of images is opacity. Of data that are not read yet: whether the
        settings say so."""
        return self.opacity is True

    def levels(self) -> int | None:
        """How many values a channel of an image can have: 256 or 65,536. None: any."""
        return 2**self.bits

    def has_conditions(self) -> bool:
        """Whether images have numbers to condition on."""
        return bool(getattr(self, "conditions", ()))

    @property
    def pictures(self) -> DataSettings:
        """The settings of the images that samples are and are compared with: these, unless the
        data are latents of other images."""
        return self

    def has_labels(self) -> bool | None:
        """Whether images have labels. None if the settings do not tell."""
        return None if self.classes is None else bool(self.classes)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the source's class."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in fields if name not in _SHARED}

    @property
    def source(self) -> str:
        """The source's class, as "module:Name"."""
        return self.targets["source"]

    def reading(self) -> dict[str, Any]:
        """What `ray_gen.data.open_store` asks of every source."""
        return {
            **self.pixels(),
            "held_out_fraction": self.held_out_fraction,
            "on_corrupt": self.on_corrupt,
        }


_SHARED = (*DataSettings.model_fields, "kind", "window_images")
"""Fields of every source that are not the source's own arguments."""


class Mnist5kData(DataSettings):
    """5,000 real MNIST digits that come with the package: 28 x 28 grey, 400 per class for training,
    100 per class held out."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Mnist5k"}
    kind: Literal["mnist5k"] = "mnist5k"
    image_size: ImageSize | None = 28
    channels: Channels = 1

    def has_labels(self) -> bool | None:
        """True."""
        return True

    def arguments(self) -> dict[str, Any]:
        """See `DataSettings.arguments`."""
        return {"rules": self.rules}


class TorchvisionData(DataSettings):
    """A data set of torchvision by the name of its class."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:TorchvisionDataset"}
    places: ClassVar[tuple[str, ...]] = ("root",)
    kind: Literal["torchvision"] = "torchvision"
    dataset: str
    """Name of its class, e.g. MNIST, FashionMNIST, CIFAR10, CelebA."""
    root: str = free("~/.cache/torchvision")
    """Folder of its files, also the target of a download."""
    download: bool = free(False)
    """Download the files if they are missing."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the class, e.g. {split: byclass} for EMNIST."""

    def published(self) -> Self:
        """See `DataSettings.published`. The folder of the files is the default again."""
        root = type(self).model_fields["root"].default
        return self.model_copy(update={"root": root})


class ImageFilesData(DataSettings):
    """Fields of all sources that read image files in a tree."""

    path: Location = free(...)
    """Where the files are; a relative path is relative to where the command runs."""
    splits: Splits = "auto"
    """Which folders are the training and the held-out split. auto: those named train, training,
    validation, val, dev, test, eval and the like, also with numbers (val2017). Names that say more,
    as train_images does, are refused. none: all folders are classes. Or their names: {train: NAME,
    held_out: NAME}."""
    frames: Literal["first", "all", "channels"] = "first"
    """What is read of a file with several images: animations, TIFF files with several pages, and
    arrays of shape (N, H, W) or (N, H, W, C). first: the first image. all: all, each as an image.
    channels: all pages of a TIFF file as the channels of one image. With `all`, an array of three
    axes is N grey images. It is one image if its first or last axis is 1 to 4 channels, or its last
    one is up to 16 channels of a square. With the others it is one image if an axis can be 1 to 16
    channels."""
    labels: Location = free("auto")
    """Where classes come from. auto: metadata.csv, .jsonl or .parquet with a column file_name, or
    StyleGAN's dataset.json, beside the images; else their folders. folders. none. Or a file of
    names and classes (CSV, JSON lines, Parquet), with a path relative to where the command runs, or
    among the images."""
    label_column: LabelColumn | None = None
    """Column of the labels in the file of `labels`; several, [a, b], make a class of each
    combination that occurs. None: the first of label, labels, fine_label, class and target that
    holds labels; or the only one beside the names in a file that `labels` gives."""
    conditions: Conditions = ()
    """Columns of numbers in the file of `labels`, or keys of webdataset's KEY.json, for a
    conditional objective: its networks get them beside the class, if there is one. A column of
    lists of one fixed length gives several numbers."""

    def with_places(self, change: Callable[[str], str]) -> Self:
        """See `DataSettings.with_places`. A relative path of labels that is no file from here is
        one among the images, and stays as it is."""
        changed = super().with_places(change)
        if self.labels in ("auto", "folders", "none"):
            return changed
        labels = change(self.labels)
        among_images = not self.labels.startswith(("/", "~")) and not Path(labels).is_file()
        return changed if among_images else changed.model_copy(update={"labels": labels})

    def has_labels(self) -> bool | None:
        """See `DataSettings.has_labels`."""
        return False if self.labels == "none" else super().has_labels()

    def arguments(self) -> dict[str, Any]:
        """See `DataSettings.arguments`."""
        splits = self.splits
        named = splits.model_dump() if isinstance(splits, NamedSplits) else splits
        return {**super().arguments(), "splits": named}


class FolderData(ImageFilesData):
    """Image files below a folder: one folder per class, or all in one folder."""

    targets: ClassVar[Mapping[str, str]] = {
        "source": "ray_gen.data:ImageFolder",
        "source_1": "ray_gen.data:ImageFolder1",
    }
    kind: Literal["folder"] = "folder"

    @property
    def source(self) -> str:
        """See `DataSettings.source`. The first rules of reading have a class of their own."""
        return self.targets["source_1" if self.rules == 1 else "source"]

    def arguments(self) -> dict[str, Any]:
        """See `DataSettings.arguments`."""
        return {"path": self.path} if self.rules == 1 else super().arguments()


class ZipData(ImageFilesData):
    """Image files in a zip file. They are read in place: nothing is extracted."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:ImageZip"}
    kind: Literal["zip"] = "zip"


class TarData(ImageFilesData):
    """Image files in tar files: one, a folder of them, or a pattern such as
    shard-{000000..000009}.tar or *.tar. Classes are folders, or files beside the images as
    webdataset writes them: KEY.cls, or "label" or "class" in KEY.json."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:ImageTar"}
    kind: Literal["tar"] = "tar"
    image_ending: str | None = None
    """Which of several images of one key is read, by what follows the first dot of its name ("jpg",
    "seg.png"). Only where files of one key stand side by side. None: there is only one."""


class ListData(DataSettings):
    """Image files named in a text file, one path a line: absolute, or relative to the list. A
    second column, after a tab or a comma, names the classes."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:ImageList"}
    kind: Literal["list"] = "list"
    path: Location = free(...)
    """The text file with the paths."""
    frames: Literal["first", "all", "channels"] = "first"
    """What is read of a file with several images. first: the first image. all: all, each as an
    image. channels: all pages of a TIFF file as the channels of one image."""


class ParquetData(DataSettings):
    """Parquet files in the image layout of Hugging Face data sets, or with a binary column."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Parquet"}
    kind: Literal["parquet"] = "parquet"
    path: Location = free(...)
    """Where the Parquet is: a file, a folder of shards, or a URI (s3://, gs://, hdfs://, file://,
    and hf://datasets/… for the Hugging Face hub, with the extra `hub`). A run keeps the commit that
    a place on the hub has when it begins; hf://datasets/OWNER/NAME@REVISION names a branch, a tag
    or a commit."""
    image_column: str | None = None
    """Column of the images. None: the only column whose type can hold encoded images."""
    label_column: LabelColumn | None = None
    """Column of the labels. Its values that occur, whole numbers or strings, are the classes.
    Several columns, [a, b], make a class of each combination that occurs. None: the first of label,
    labels, fine_label, class and target that holds labels."""
    labels: Literal["auto", "none"] = "auto"
    """Whether labels are read. none: they are left out."""
    conditions: Conditions = ()
    """Columns of numbers, for a conditional objective: its networks get them beside the class, if
    there is one. A column of lists of one fixed length gives several numbers."""
    window_images: PositiveInt = 1024
    """Number of images that one stream shuffles together. Only for placement stream. Each group of
    a global batch has its own stream. About twice this number is in memory, in stored form."""

    def has_labels(self) -> bool | None:
        """See `DataSettings.has_labels`."""
        return False if self.labels == "none" else super().has_labels()

    def arguments(self) -> dict[str, Any]:
        """See `DataSettings.arguments`."""
        return {**super().arguments(), "rules": self.rules}


def _channels_of_latents(value: Any) -> Any:
    if value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"{value!r} is no number of channels of latents; leave it out")


_OF_PIXELS = (
    *("random_crop_from", "center_crop", "bits", "value_range", "fit", "pad", "max_pixels"),
    *("jpeg_scaling", "rules"),
)
"""Fields that say how pixels are read. Latents are read as they were encoded."""


class LatentsData(DataSettings):
    """Latents that `ray-gen encode` has written. Networks see maps of them, standardised so that
    each channel has mean 0 and standard deviation ½. Samples are decoded by the autoencoder that
    lies beside the latents."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Latents"}
    kind: Literal["latents"] = "latents"
    path: Location = free(...)
    """The folder or URI that `ray-gen encode` has written."""
    channels: Annotated[
        int | Literal["auto"] | None,
        BeforeValidator(_channels_of_latents),
        Told("whole number from 1 or null"),
    ] = None
    """Channels of the latents; filled in from the data at the start."""
    sample: bool = True
    """Draw z from the encoder's posterior, again each time training uses an image. False: z is the
    posterior's mean. Held-out latents are always means."""
    labels: Literal["auto", "none"] = "auto"
    """Whether labels are read. none: they are left out."""
    conditions: Conditions = ()
    """Columns of numbers, for a conditional objective, as for Parquet."""
    window_images: PositiveInt = 1024
    """Number of images that one stream shuffles together, as for Parquet."""
    autoencoder: dict[str, Any] | None = None
    """The experiment of the autoencoder, which decodes samples; filled in from the data at the
    start."""
    autoencoder_digest: str | None = None
    """Digest of the autoencoder's weights; filled in from the data at the start."""
    encoded: dict[str, Any] | None = free(None)
    """The `data` of the images that were encoded; filled in from the data at the start. Samples are
    such images, and metrics compare samples with them."""

    @model_validator(mode="after")
    def _latents_have_no_pixels(self) -> Self:
        for name in _OF_PIXELS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is about pixels, and latents are read as they"
                    " were encoded; leave it out, or encode the images with it"
                )
        if self.opacity is True:
            raise ValueError("opacity: latents have none; leave it out")
        return self

    def pixels(self) -> dict[str, Any]:
        """See `PixelFields.pixels`: the maps as they are."""
        told = PixelFields(opacity=False).pixels()
        return {**told, "element": "float16"}

    def levels(self) -> int | None:
        """See `DataSettings.levels`."""
        return None

    def has_labels(self) -> bool | None:
        """See `DataSettings.has_labels`."""
        return False if self.labels == "none" else super().has_labels()

    def arguments(self) -> dict[str, Any]:
        """See `DataSettings.arguments`."""
        given = super().arguments()
        return {name: given[name] for name in ("path", "labels", "conditions")}

    @property
    def pictures(self) -> DataSettings:
        """See `DataSettings.pictures`: the images that were encoded. Before the data is read, these
        settings."""
        if self.encoded is None:
            return self
        adapter: TypeAdapter[DataSettings] = TypeAdapter(Data)
        return adapter.validate_python(self.encoded)

    def published(self) -> Self:
        """See `DataSettings.published`."""
        if self.encoded is None:
            return super().published()
        told = self.pictures.published().model_dump(mode="json")
        return super().published().model_copy(update={"encoded": told})

    def brief(self) -> Self:
        """See `DataSettings.brief`: without the autoencoder's experiment and its images."""
        return self.model_copy(update={"autoencoder": None, "encoded": None})

    def decoded_by(self) -> str | None:
        """See `DataSettings.decoded_by`: the autoencoder."""
        if self.autoencoder is None:
            return None
        digest = f" (digest {self.autoencoder_digest})" if self.autoencoder_digest else ""
        return f"the autoencoder {self.autoencoder.get('name', 'beside them')}{digest}"


class ArrowData(DataSettings):
    """What `datasets.save_to_disk` writes: a folder of Arrow files, or one for each split."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:ArrowFolder"}
    kind: Literal["arrow"] = "arrow"
    path: Location = free(...)
    """The folder with dataset_info.json or dataset_dict.json."""
    image_column: str | None = None
    """Column of the images. None: the only column that can hold them."""
    label_column: LabelColumn | None = None
    """Column of the labels, as for Parquet. Several, [a, b], make a class of each combination that
    occurs. None: the first of label, labels, fine_label, class and target that holds labels."""
    labels: Literal["auto", "none"] = "auto"
    """Whether labels are read. none: they are left out."""
    conditions: Conditions = ()
    """Columns of numbers, for a conditional objective, as for Parquet."""

    def has_labels(self) -> bool | None:
        """See `DataSettings.has_labels`."""
        return False if self.labels == "none" else super().has_labels()


_SHORT_FORMS = {
    **dict.fromkeys(("folder", "zip", "tar", "list", "parquet", "latents", "arrow"), "path"),
    "torchvision": "dataset",
}


def _whole_short_form(value: Any) -> Any:
    """A short form as a mapping. Raises ValueError for `folder:`, which YAML reads as {folder:
    null}, and for a path that does not exist."""
    for kind, field in _SHORT_FORMS.items():
        read_as_mapping = isinstance(value, dict) and kind in value and "kind" not in value
        if read_as_mapping or value in (kind, f"{kind}:"):
            raise ValueError(
                f"{kind} needs its {field} right after a colon, without a space: "
                f"data={short_form_of(kind)}"
            )
    read = from_short_form(value)
    if isinstance(value, str) and read["kind"] == "joined":
        raise ValueError(
            "joined needs its sources, e.g. data='{kind: joined, sources: [folder:PATH, zip:PATH]}'"
        )
    if isinstance(value, str) and "path" not in read and ":" not in value and value not in _KINDS:
        if os.path.isfile(os.path.expanduser(value)):  # noqa: PTH111, PTH113 -- raises nothing
            raise ValueError(
                f"{value!r} is a file whose name tells no kind of data; give a folder, or a .zip,"
                f" .tar or .parquet file, or for a list of paths data=list:{value}"
            )
        near = difflib.get_close_matches(value, _KINDS, n=1)
        remedy = (
            f"did you mean {near[0]}?"
            if near
            else (f"correct the path, or name its kind for another machine: data=folder:{value}")
        )
        raise ValueError(f"{value!r} is no kind of data and no path on this machine; {remedy}")
    return read


def _alone(value: Any) -> Any:
    """`_whole_short_form` of a source that others are joined with."""
    if value == "joined" or (isinstance(value, dict) and value.get("kind") == "joined"):
        raise ValueError("joined sources cannot be joined again; list all sources in one")
    return _whole_short_form(value)


def _without_shared(data: DataSettings) -> DataSettings:
    """The settings of a source that others are joined with. Raises ValueError if they change a
    field that all sources share."""
    for name in _SHARED:
        info = type(data).model_fields.get(name)
        if info is None or name == "kind":
            continue
        if getattr(data, name) == info.get_default(call_default_factory=True):
            continue
        if name == "placement":
            raise ValueError(
                "placement: joined sources are decoded together and cannot be streamed; leave it"
                " out, or convert each source to Parquet and stream one folder of all"
            )
        raise ValueError(f"{name}: is one for all joined sources; set data.{name} instead")
    return data


_Alone = (
    Mnist5kData | TorchvisionData | FolderData | ZipData | TarData | ListData | ParquetData
    | ArrowData
)  # fmt: skip


class JoinedData(DataSettings):
    """Several sources as one data set. Classes are joined by their names. Each source keeps its own
    splits."""

    targets: ClassVar[Mapping[str, str]] = {"source": "ray_gen.data:Joined"}
    kind: Literal["joined"] = "joined"
    sources: tuple[
        Annotated[
            Annotated[_Alone, Field(discriminator="kind")],
            BeforeValidator(_alone, json_schema_input_type=_Alone | str),
            AfterValidator(_without_shared),
            Told("a source, as data itself"),
        ],
        ...,
    ]
    """The sources that are joined, each as `data` itself or in short form. Fields that all sources
    have (image_size, channels, …) are set in `data`."""
    weights: tuple[PositiveFloat, ...] | None = None
    """Share of each source in the images that training draws, e.g. [3, 1]. None: all images are
    drawn alike."""

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> Self:
        if not self.sources:
            raise ValueError("sources: is empty; name at least one source")
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(
                f"weights: has {len(self.weights)} numbers for {len(self.sources)} sources; give"
                " one for each"
            )
        return self

    def with_places(self, change: Callable[[str], str]) -> Self:
        """See `DataSettings.with_places`."""
        return self.model_copy(
            update={"sources": tuple(s.with_places(change) for s in self.sources)}
        )

    def published(self) -> Self:
        """See `DataSettings.published`."""
        return self.model_copy(update={"sources": tuple(s.published() for s in self.sources)})

    def shares(self) -> tuple[float, ...] | None:
        """See `DataSettings.shares`."""
        return self.weights

    def has_conditions(self) -> bool:
        """See `DataSettings.has_conditions`."""
        return any(source.has_conditions() for source in self.sources)

    @property
    def short_form(self) -> str:
        """joined:, and the short forms of the sources."""
        return f"joined:{'+'.join(source.short_form for source in self.sources)}"


_KINDS = (*_SHORT_FORMS, "mnist5k", "joined")
_KIND_OF_SUFFIX = {
    ".zip": "zip",
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"), "tar"),
    ".parquet": "parquet",
    **dict.fromkeys((".txt", ".lst", ".csv", ".tsv"), "list"),
}


def from_short_form(value: Any) -> Any:
    """`mnist5k`, `KIND:PATH`, `torchvision:CLASS`, or a path or URI alone, as mappings."""
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if rest and kind in _SHORT_FORMS:
        return {"kind": kind, _SHORT_FORMS[kind]: rest}
    if value not in _KINDS and (guessed := kind_of_place(value)) is not None:
        return {"kind": guessed, "path": value}
    return {"kind": kind}


def short_form_of(kind: str) -> str | None:
    """How the short form of a kind is written: `KIND:PATH`, or with the kind's own name as the path
    if something of this name lies here. None for a kind that names no place."""
    if kind not in _SHORT_FORMS:
        return None
    is_here = os.path.lexists(kind)
    return f"{kind}:{kind if is_here else _SHORT_FORMS[kind].upper()}"


def is_short_form(text: str) -> bool:
    """Whether a text names the kind of its source."""
    kind, colon, _ = text.partition(":")
    return text == "mnist5k" or (bool(colon) and kind in _SHORT_FORMS)


def kind_of_place(place: str) -> str | None:
    """The kind of source that lies at a path or URI, from its name and, for a folder, from the
    names in it. None: it does not tell."""
    if "://" in place:  # only Parquet is read through URIs
        return "parquet"
    suffixes = [suffix for suffix in _KIND_OF_SUFFIX if place.lower().endswith(suffix)]
    path = Path(place).expanduser()
    try:
        if not path.is_dir():
            return _KIND_OF_SUFFIX[suffixes[0]] if suffixes else None
        names = {entry.name for entry in islice(path.iterdir(), 1000)}
    except OSError:
        return "folder"
    if names & {"dataset_dict.json", "dataset_info.json"} and "dataset_infos.json" not in names:
        return "arrow"
    if {"_manifest.json", "autoencoder"} <= names:
        return "latents"
    visible = [name for name in names if not name.startswith((".", "_"))]
    for suffix, kind in ((".parquet", "parquet"), (".tar", "tar")):
        if visible and all(name.endswith(suffix) for name in visible):
            return kind
    return "folder"


Data = Annotated[
    Annotated[_Alone | LatentsData | JoinedData, Field(discriminator="kind")],
    BeforeValidator(
        _whole_short_form, json_schema_input_type=_Alone | LatentsData | JoinedData | str
    ),
]
