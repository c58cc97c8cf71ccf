"""LPIPS of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray_gen.errors import Refused
from ray_gen.evaluation.metric import Lacking
from ray_gen.evaluation.pairs import PairMetric
from ray_gen.settings import Settings, free

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ray_gen.perceptual import LpipsDistance


class LpipsSettings(Settings):
    """The network of LPIPS."""

    lpips_net: Literal["vgg", "alex", "squeeze"] = free("alex")
    """Network of `lpips`. Its authors compare images by alex; many losses are of vgg, and a model
    looks better by the network that it was trained with."""
    lpips_trunk: str | None = free(None)
    """A file with the weights of the network of `lpips`: the state dict of torchvision's vgg16,
    alexnet or squeezenet1_1. None: downloaded on first use, if the metric is named."""
    lpips_lins: str | None = free(None)
    """A file with the weights of channels of `lpips`, by the names of the lpips package. None: that
    of the installed torchmetrics or lpips (pip install 'ray_gen[perceptual]')."""


_File = tuple[str, int, int] | None
"""Path, size and time of a file; None: the published one."""


def _state_of(file: str | None) -> _File:
    if file is None:
        return None
    try:
        found = Path(file).expanduser().stat()
    except OSError:  # loading it says what is wrong
        return file, 0, 0
    return file, found.st_size, found.st_mtime_ns


# Evaluations during training would read its weights again each time: 5 to 528 MB. Until another one
# is loaded, they stay on the device.
@lru_cache(maxsize=1)
def _loaded(
    net: Literal["vgg", "alex", "squeeze"],
    files: tuple[_File, ...],
    channels: int,
    opacity: bool,
    device: torch.device,
) -> LpipsDistance:
    """files: of the trunk and of the weights of channels. Raises Refused."""
    from ray_gen.perceptual import LpipsDistance

    trunk, lins = (None if file is None else file[0] for file in files)
    distance = LpipsDistance(
        channels=channels,
        opacity=opacity,
        net=net,
        trunk=trunk,
        lins=lins,
        trunk_field="evaluation.lpips_trunk",
        lins_field="evaluation.lpips_lins",
    )
    distance.load()
    return distance.to(device)


class Lpips(PairMetric[LpipsSettings]):
    """`lpips`: the mean over images of `perceptual.LpipsDistance`."""

    scores = {"lpips": "lower"}
    has_network = True
    settings_class = LpipsSettings

    def check(self) -> None:
        """The weights are there, or can be downloaded, and the images fit. Collective: every rank,
        same order."""
        given, refusal = self.given, None
        try:
            self._distance = self._loaded()
        except Refused as refused:
            refusal = str(refused)
        if given.world.maxima([int(refusal is not None)])[0]:
            why = refusal or "evaluation.lpips_trunk: another worker has no weights of LPIPS"
            raise Lacking(why, why)

    def _loaded(self) -> LpipsDistance:
        from ray_gen.perceptual.trunks import TRUNKS
        from ray_gen.weights import place_of

        settings, given = self.settings, self.given
        net, trunk = settings.lpips_net, settings.lpips_trunk
        channels, height, width = given.shape_of("originals")
        if channels - given.opacity not in (1, 3):
            raise Refused(
                "evaluation.metrics: lpips sees grey or RGB images, with or without opacity, but"
                f" these have {channels} channels; leave it out"
            )
        url, least = TRUNKS[net].url, TRUNKS[net].least_side
        if min(height, width) < least:
            raise Refused(
                f"evaluation.lpips_net: {net} needs images of at least {least} pixels, and these "
                f"have {height} x {width}; leave lpips out, or set evaluation.lpips_net to another"
            )
        if given.automatic and trunk is None and not place_of(url).exists():
            raise Refused(f"the weights of {net} are not here; name the metric to download them")
        files = tuple(_state_of(file) for file in (trunk, settings.lpips_lins))
        return _loaded(net, files, channels, given.opacity, given.world.device)

    def of_pairs(self, originals: Tensor, reconstructed: Tensor) -> Tensor:
        """At least 0, float32 (N,)."""
        from ray_gen.pixels import unit
        from ray_gen.precision import full_precision

        with full_precision(originals.device):
            return self._distance(2 * unit(originals) - 1, 2 * unit(reconstructed) - 1)

    def protocol(self) -> Mapping[str, Any]:
        """The network and its weights."""
        return {"network": self._distance.description}
