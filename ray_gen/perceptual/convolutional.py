"""Distances of the features of VGG16, AlexNet or SqueezeNet: LPIPS, and its form without weights
of channels."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.perceptual.features import FIELD, FeatureDistance, ssim_instead, unit_vectors
from ray_gen.perceptual.frozen import Frozen
from ray_gen.perceptual.trunks import TRUNKS
from ray_gen.weights import digest_of, downloaded, is_published, misfit, read_weights

LINS_SHA256: Mapping[str, str] = {
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
}
"""SHA-256 of the files with LPIPS's weights of channels, version 0.1."""
_SHIPPED = {"torchmetrics": "functional/image/lpips_models", "lpips": "weights/v0.1"}
"""Packages that hold these files, and the folder in each."""


class ConvolutionalDistance(FeatureDistance):
    """Σ_l mean_hw Σ_c w_lc (f̂_lc(x) - f̂_lc(y))², with f̂ = f / √(‖f‖² + ε): the features f_l at each
    position of some layers l of a network trained on ImageNet, scaled to length 1."""

    def __init__(
        self,
        name: str,
        net: str,
        trunk: str | None,
        digest: str | None,
        *,
        channels: int,
        opacity: bool,
        field: str,
        trunk_field: str,
    ) -> None:
        """name: for messages. net: a key of TRUNKS. trunk: a file with its state dict; layers after
        its features may be missing. None: downloaded on first use. digest: what the weights must
        have, None: any. trunk_field: the setting of the file. Raises Refused."""
        super().__init__(name, channels=channels, opacity=opacity, field=field)
        self.trunk, self.least_side = TRUNKS[net], TRUNKS[net].least_side
        self._file, self._digest, self._trunk_field = trunk, digest, trunk_field

    def read_trunk(self) -> tuple[Mapping[str, Tensor], str]:
        """Read the network. Its tensors as they lie in the file, and in words whose they are.
        Raises Refused."""
        network, url, field = self.trunk.network(), self.trunk.url, self._trunk_field
        path = Path(self._file or downloaded(url, field, instead=ssim_instead(field))).expanduser()
        tensors, published = read_weights(path, field), is_published(path, url)
        if self._file is None and not published:
            raise Refused(
                f"{field}: {path} is not the file that {url} has: it is damaged, or another one; "
                f"delete it, or set {field} to the file that you want"
            )
        features = {name: tensors[name] for name in network.state_dict() if name in tensors}
        floats = {name: tensor.float() for name, tensor in features.items()}
        try:
            network.load_state_dict(floats, assign=True)
        except RuntimeError as error:
            raise misfit(error, f"torchvision's {self.trunk.torchvision}", field) from error
        self.network = Frozen(network)
        return features, "of the published weights, " if published else "of other weights, "

    def check_digest(self, tensors: Mapping[str, Tensor]) -> str:
        """The digest of the weights. Raises Refused if it must be another one."""
        digest = digest_of(tensors)
        if self._digest not in (None, digest):
            raise Refused(
                f"{self._field}.digest: the weights have the digest {digest}, and not "
                f"{self._digest}; give the file that the run began with ({self._trunk_field})"
            )
        return digest

    def features(self, images: Tensor) -> list[Tensor]:
        """Unit vectors at each position, (N, D, h, w) for each layer."""
        return [unit_vectors(maps, axis=1) for maps in self.network(images)]

    def apart(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        """Sum over layers and channels, mean over positions."""
        layers: list[Tensor] = []
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            squares = self.weighted((one - other).square(), number)
            layers.append(squares.sum(1).mean((1, 2)))
        return torch.stack(layers).sum(0)

    def weighted(self, squares: Tensor, layer: int) -> Tensor:
        """Squared differences (N, D, h, w) times the weights of their channels."""
        return squares


class Vgg16Distance(ConvolutionalDistance):
    """The distance of VGG16's layers relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, with all
    weights w equal to 1. Zhang et al. 2018 (LPIPS), eq. 1. The network is torchvision's."""

    def __init__(
        self,
        *,
        channels: int,
        opacity: bool,
        weights: str | None = None,
        digest: str | None = None,
        field: str = FIELD,
    ) -> None:
        """weights: a file with the network's state dict. None: downloaded on first use. digest: of
        the features, as `description` says it. Raises Refused."""
        super().__init__(
            *("vgg16", "vgg", weights, digest),
            channels=channels,
            opacity=opacity,
            field=field,
            trunk_field=f"{field}.weights",
        )

    def load(self) -> None:
        """Read the network's weights. Sampling from a run does not need them, so building an
        objective does not read them. Raises Refused."""
        tensors, whose = self.read_trunk()
        digest = self.check_digest(tensors)
        self.description = f"vgg16, its features have the digest {whose}{digest}"


class LpipsDistance(ConvolutionalDistance):
    """Learned Perceptual Image Patch Similarity, version 0.1 (Zhang et al. 2018, eq. 1). The
    weights w ("lins") are not negative and were fitted to judgements of people.

    ε = 1e-8 stands inside the root. In the authors' code ε stands beside it, and then the gradient
    is not a number where all features of a position are 0.
    """

    def __init__(
        self,
        *,
        channels: int,
        opacity: bool,
        net: str = "vgg",
        trunk: str | None = None,
        lins: str | None = None,
        digest: str | None = None,
        field: str = FIELD,
        trunk_field: str | None = None,
        lins_field: str | None = None,
    ) -> None:
        """net: "vgg", "alex" or "squeeze". trunk: a file with the state dict of torchvision's
        vgg16, alexnet or squeezenet1_1. None: downloaded on first use. lins: a file with the
        weights of channels. None: that of an installed torchmetrics or lpips. digest: of trunk and
        lins, as `description` says it. trunk_field, lins_field: the settings of both files. None:
        those below `field`. Raises Refused."""
        super().__init__(
            *(f"lpips {net}", net, trunk, digest),
            channels=channels,
            opacity=opacity,
            field=field,
            trunk_field=trunk_field or f"{field}.trunk",
        )
        self._net, self._lins = net, lins
        self._lins_field = lins_field or f"{field}.lins"

    def load(self) -> None:
        """Read the trunk and the weights of channels. Raises Refused."""
        field, net = self._lins_field, self._net
        path = Path(self._lins).expanduser() if self._lins else shipped_lins(net, field)
        lins = _checked_lins(read_weights(path, field), self.trunk.channels, net, field)
        published = hashlib.sha256(path.read_bytes()).hexdigest() == LINS_SHA256[net]
        if self._lins is None and not published:
            raise Refused(
                f"{field}: {path} is not LPIPS's file of version 0.1 for {net}; install "
                f"torchmetrics or lpips again, or set {field} to the file that you want"
            )
        features, whose = self.read_trunk()
        digest = self.check_digest({**features, **lins})
        for number, weights in enumerate(lins.values()):
            self.register_buffer(f"lin_{number}", weights[0].float(), persistent=False)
        version = "0.1" if published else "with other lins"
        self.description = f"lpips {net} {version}, trunk and lins have the digest {whose}{digest}"

    def weighted(self, squares: Tensor, layer: int) -> Tensor:
        """Squared differences times the lins of a layer."""
        return squares * getattr(self, f"lin_{layer}")


def shipped_lins(net: str, field: str) -> Path:
    """The file of LPIPS's weights of channels in an installed package. The package itself is not
    imported. Raises Refused if there is none."""
    for package, folder in _SHIPPED.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            path = Path(place) / folder / f"{net}.pth"
            if path.exists():
                return path
    raise Refused(
        f"{field}: the weights of LPIPS's channels lie in the packages torchmetrics and lpips, and "
        "neither is installed here; pip install 'ray_gen[perceptual]' on every node, or set "
        f"{field} to a file of them"
    )


def _checked_lins(
    tensors: Mapping[str, Tensor], channels: Sequence[int], net: str, field: str
) -> dict[str, Tensor]:
    """The weights of channels of each layer, (1, D, 1, 1). Raises Refused."""
    found: dict[str, Tensor] = {}
    for number, count in enumerate(channels):
        name = f"lin{number}.model.1.weight"
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != (1, count, 1, 1):
            told = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise misfit(ValueError(f"{name} {told}"), f"LPIPS's {net}", field)
        found[name] = tensor
    return found
