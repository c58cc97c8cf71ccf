"""How far a reconstruction is from its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from ray_gen.errors import Refused
from ray_gen.runs.names import run_folder
from ray_gen.settings import Location, Settings, absolute_path, free, or_its_kind

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class DistanceSettings(Settings):
    """What the settings of all distances have in common."""

    files: ClassVar[tuple[str, ...]] = ()
    """Fields that name a file of weights. Every node must have it."""
    built_by: ClassVar[str | None] = None
    """The class of a distance that stands above the objectives, as "module:Name"."""

    def absolute(self, field: str) -> Self:
        """The settings with absolute paths. field: the dotted path of these settings."""
        del field
        given = {name: getattr(self, name) for name in self.files}
        changes = {name: absolute_path(path) for name, path in given.items() if path is not None}
        return self.model_copy(update=changes) if changes else self

    def arguments(self) -> dict[str, Any]:
        """Arguments of `perceptual.distance_of`."""
        return self.model_dump()


class L1Distance(DistanceSettings):
    """The mean absolute difference of pixels, for images in [-1, 1]."""

    kind: Literal["l1"] = "l1"


class SsimDistance(DistanceSettings):
    """1 - MS-SSIM (Wang et al. 2003), for training without a perceptual network. The scales are
    those whose shorter side has at least 16 pixels, at most five; the five published weights are
    divided by the sum of those that are left. So images below 32 pixels have one scale. Windows
    have 11 x 11 pixels, fewer for smaller images, and lie inside the image. All channels count."""

    kind: Literal["ssim"] = "ssim"


class Vgg16Distance(DistanceSettings):
    """Squared differences of the features that a VGG16 trained on ImageNet has at each position,
    scaled to length 1 (Zhang et al. 2018, with equal weights). The features of five layers are
    compared. Reconstructions must have at least 16 pixels. Grey images are repeated to RGB, opacity
    is put on white, other channels are refused."""

    files: ClassVar[tuple[str, ...]] = ("weights",)
    kind: Literal["vgg16"] = "vgg16"
    weights: str | None = free(None)
    """A file with the state dict of torchvision's vgg16. Every node must have it. None: downloaded
    on first use (528 MB)."""
    digest: _Digest | None = None
    """The digest that the weights must have, as `ray-gen train --check` prints it. None: any."""


class LpipsDistance(DistanceSettings):
    """LPIPS, version 0.1 (Zhang et al. 2018): as vgg16, with a weight for each channel that was
    fitted to judgements of people. These weights come from an installed torchmetrics or lpips (pip
    install 'ray_gen[perceptual]'). Channels as for vgg16."""

    files: ClassVar[tuple[str, ...]] = ("trunk", "lins")
    kind: Literal["lpips"] = "lpips"
    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """The network whose features are compared. Losses take vgg (at least 16 pixels a side); metrics
    of papers often alex (31 pixels). squeeze (17 pixels) is the smallest."""
    trunk: str | None = free(None)
    """A file with the state dict of torchvision's vgg16, alexnet or squeezenet1_1. None: downloaded
    on first use (528, 233 or 5 MB)."""
    lins: str | None = free(None)
    """A file with the weights of channels, by the names of the lpips package. None: that of the
    installed torchmetrics or lpips, whose SHA-256 is checked."""
    digest: _Digest | None = None
    """The digest that trunk and lins must have, as `ray-gen train --check` prints it. None: any."""


class TorchvisionDistance(DistanceSettings):
    """Mean squared difference of the logits of a classifier of torchvision, or of the features
    before them. With convnext_small it is the perceptual loss of TiTok (Yu et al. 2024: logits,
    weight 0.1 in its second stage). Whole images are resized to the size of the classifier.
    Channels as for vgg16."""

    files: ClassVar[tuple[str, ...]] = ("weights",)
    kind: Literal["torchvision"] = "torchvision"
    backbone: str
    """Name of the classifier in torchvision.models, e.g. convnext_small."""
    of: Literal["logits", "features"] = "logits"
    """What is compared. features: the inputs of the last linear layer."""
    weights: str | None = free(None)
    """A file with the state dict of the classifier. None: torchvision's default weights, downloaded
    on first use."""
    digest: _Digest | None = None
    """The digest that the weights must have, as `ray-gen train --check` prints it. None: any."""


class DinoDistance(DistanceSettings):
    """Mean squared difference of the tokens of all blocks of a DINOv2 without registers (Oquab et
    al. 2024), each token scaled to length 1. Usual weights are 250 to 1000. Channels as for
    vgg16."""

    files: ClassVar[tuple[str, ...]] = ("weights",)
    kind: Literal["dino"] = "dino"
    size: Literal["s", "b", "l"] = "b"
    """Size of the network that is downloaded: ViT-S/14, ViT-B/14 or ViT-L/14."""
    side: PositiveInt | None = None
    """Pixels of the longer side that the network sees. Its patches have 14 pixels, so small images
    give few tokens unless they are enlarged, e.g. to 224. None: as in the data, at most 512."""
    weights: str | None = free(None)
    """A file with a published state dict of DINO or DINOv2: ViT-S, B or L, without registers. None:
    that of `size`, downloaded on first use (88 MB, 346 MB or 1.2 GB)."""
    digest: _Digest | None = None
    """The digest that the weights must have, as `ray-gen train --check` prints it. None: any."""


class RunDistance(DistanceSettings):
    """Mean squared difference of the features of a trained run's network, for images that differ
    too much from ImageNet's: of its encoder, or the inputs of its discriminator's last layer."""

    built_by: ClassVar[str | None] = "ray_gen.pipeline.distance:RunDistance"
    kind: Literal["run"] = "run"
    run: Location = free(...)
    """The trained run: a run folder, a checkpoint or an exported model. Its model takes no labels.
    Every node must reach it."""
    part: Literal["auto", "encoder", "discriminator"] = "auto"
    """The network whose features are used. auto: the encoder if there is one, else the
    discriminator."""
    digest: _Digest | None = None
    """The digest that the weights must have, as `ray-gen train --check` prints it. None: any."""

    def absolute(self, field: str) -> Self:
        """See `DistanceSettings.absolute`. Raises Refused if there is no such run."""
        try:
            return self.model_copy(update={"run": run_folder(self.run).location})
        except Refused as refused:
            raise Refused(f"{field}.run: {refused}") from None


class CustomDistance(DistanceSettings):
    """Your own module. It is called with images and reconstructions (N, C, H, W) in [-1, 1] and
    returns one value for each pair, (N,). Its tensors do not learn and are in no checkpoint. A
    method `load`, if there is one, reads its weights."""

    kind: Literal["custom"] = "custom"
    target: str = Field(pattern=r"^[\w.]+:\w+$")
    """The class, a torch.nn.Module, as package.module:Name. Every node must be able to import it.
    Sampling from the run does not need it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""


_Beside = (
    LpipsDistance
    | Vgg16Distance
    | TorchvisionDistance
    | DinoDistance
    | RunDistance
    | CustomDistance
    | SsimDistance
)
Perceptual = Annotated[_Beside, Field(discriminator="kind"), or_its_kind(_Beside)]
"""Distances that stand beside one of pixels."""

_Kinds = (
    L1Distance
    | SsimDistance
    | Vgg16Distance
    | LpipsDistance
    | TorchvisionDistance
    | DinoDistance
    | RunDistance
    | CustomDistance
)
Distance = Annotated[_Kinds, Field(discriminator="kind"), or_its_kind(_Kinds)]


def distances_in(settings: Settings) -> Mapping[str, DistanceSettings]:
    """The distances among the fields of an objective, by the name of the field."""
    fields = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {name: value for name, value in fields.items() if isinstance(value, DistanceSettings)}
