"""What the rooms agree on: the words of training, as types. Imports torch and nothing else.

An *objective* says which networks a model has, which *phases* train them, and what a sample is.
`step.py` runs phases without knowing the model; objectives know nothing of ranks or optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

ImageShape = tuple[int, int, int]
"""(channels, height, width)"""

Networks = nn.ModuleDict
"""The networks of a model by name; every one is called as `network(x, labels)`."""


@dataclass(frozen=True)
class ImageToVector:
    """A network that maps images_NCHW (and labels_N, if `label_count`) to vectors (N, vector_size).

    Encoders and discriminators are of this kind.
    """

    image_shape: ImageShape
    vector_size: int
    label_count: int | None = None


@dataclass(frozen=True)
class VectorToImage:
    """A network that maps vectors (N, vector_size) (and labels_N, if `label_count`) to images_NCHW.

    Decoders and generators are of this kind. `output` is the network's last function: "tanh" gives
    images in (-1, 1), "identity" gives the parameters of a likelihood (logits or means).
    """

    vector_size: int
    image_shape: ImageShape
    label_count: int | None = None
    output: Literal["tanh", "identity"] = "identity"


Signature = ImageToVector | VectorToImage


@dataclass(frozen=True)
class Noise:
    """Random numbers that one image needs: a shape and a distribution.

    "normal" is N(0, 1); "uniform" is U[low, high).
    """

    shape: tuple[int, ...]
    distribution: Literal["normal", "uniform"] = "normal"
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What a term of a loss sees: a part of the global batch, of whole groups, on one rank.

    images: (N, C, H, W), in the objective's `image_range`; labels: int64 (N,) or None;
    noise: by the names that the phase declares, each (N, *shape);
    images_seen: 0-dimensional float tensor, images that the run has seen before this step.
    """

    images: Tensor
    labels: Tensor | None
    noise: Mapping[str, Tensor]
    images_seen: Tensor


_NOTHING: Mapping[str, Tensor] = {}  # torch.compile cannot trace `dict[str, Tensor]`


@dataclass(frozen=True)
class Losses:
    """What a term returns: values of each image, (N,), which nobody but `step.py` averages.

    minimised: their sum, times the term's weight, is its loss. reported: averaged over images for
    the eye only.
    """

    minimised: Mapping[str, Tensor]
    reported: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class Term:
    """A part of a phase's loss. `every` counts updates of its phase: a term that is due on every
    n-th update weighs `weight * n` there (lazy regularisation, Karras et al. 2020, StyleGAN2, 3.1).
    `full_precision` takes it out of autocast: penalties on gradients overflow or vanish in 16 bits.
    """

    name: str
    loss: Callable[[Networks, Batch], Losses]
    weight: float = 1.0
    every: int = 1
    full_precision: bool = False


@dataclass(frozen=True)
class Phase:
    """Networks that one optimiser updates together, by the gradient of the sum of `terms`.

    Due at step s (from 0) when (s + 1) mod `every` = 0. `noise` is what its terms draw.
    """

    name: str
    updates: tuple[str, ...]
    terms: tuple[Term, ...]
    noise: Mapping[str, Noise] = field(default_factory=dict[str, Noise])
    every: int = 1


@runtime_checkable
class Objective(Protocol):
    """A model: which losses on which networks in which phases, and how to sample from it."""

    image_range: tuple[float, float]
    """Range of the images that its networks see: (0, 1) or (-1, 1)."""

    sampled_from: tuple[str, ...]
    """Networks that are used after training. Of these an EMA is kept."""

    latent: Noise | None
    """The prior of z; None for a model that has none (a plain autoencoder)."""

    def networks(self) -> Mapping[str, Signature | nn.Module]:
        """Signatures of the networks to build, or modules that the objective brings itself."""
        ...

    def phases(self) -> Sequence[Phase]:
        """The phases of a step, in their order."""
        ...

    def sample(self, networks: Networks, z: Tensor, labels: Tensor | None) -> Tensor:
        """Latents (N, latent_size) and labels (N,) to images_NCHW in [0, 1]."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """An objective whose networks can map an image to itself."""

    def reconstruct(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """images_NCHW in `image_range` to reconstructions in [0, 1]."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """An objective whose networks can say where an image lies among the latents."""

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """images_NCHW in `image_range` to mean and log-variance of q(z|x), each (N, latent_size);
        None in the latter's place where the encoder gives one z and no distribution."""
        ...


@runtime_checkable
class Discriminates(Protocol):
    """An objective with a network that tells real images from others."""

    discriminates_with: tuple[str, ...]
    """The networks that this takes. No EMA is kept of them, unless they are `sampled_from`."""

    def discriminate(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """images_NCHW in `image_range` to logits (N,), the higher the more real."""
        ...


@runtime_checkable
class Evaluates(Protocol):
    """An objective with a held-out score of its own, as the ELBO of a VAE."""

    evaluation_noise: Mapping[str, Noise]

    def evaluate(self, networks: Networks, batch: Batch) -> Mapping[str, Tensor]:
        """Scores of each image, (N,), by name; higher or lower is better as their names say."""
        ...


@runtime_checkable
class Bounds(Protocol):
    """An objective with importance weights p(x, z) / q(z|x): the mean of their logarithms, and the
    logarithm of their mean, are lower bounds on log p(x)."""

    image_range: tuple[float, float]
    likelihood: Literal["bernoulli", "gaussian"]
    """p(x|z): probabilities of pixels that are 0 or 1, or densities of pixels in `image_range`."""

    pixel_noise: Noise | None
    """What `observed` redraws the pixels of an image with; None: it leaves them as they are."""

    posterior_noise: Noise
    """What one z from q(z|x) takes for an image."""

    def observed(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """images_NCHW in `image_range` to the pixels that the likelihood is of; noise as
        `pixel_noise` says."""
        ...

    def log_weights(
        self, networks: Networks, images: Tensor, labels: Tensor | None, epsilon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p(x|z) and log p(z) - log q(z|x) at the z of each epsilon, in nats: both float64
        (S, N). Their sum is the weight's logarithm.

        images: (N, C, H, W), as observed; labels: (N,) or None; epsilon: (S, N, ...) for S samples.
        """
        ...


class PhaseModule(nn.Module):
    """A module with buffers that training moves: once in a phase that updates its network, by
    `step.py`, and never in a forward pass.

    Running statistics and power iterations then do not depend on how often a network was called, on
    micro-batches or on the number of workers.
    """

    def begin_phase(self) -> None:
        """Before the forward passes of a phase that updates this module's network."""

    def phase_statistics(self) -> Tensor | None:
        """Sums over what this rank saw since `begin_phase`, to be added up over all ranks."""
        return None

    def end_phase(self, statistics: Tensor | None) -> None:
        """Move the buffers; `statistics` are the sums over all ranks."""


def phase_modules(network: nn.Module) -> list[PhaseModule]:
    """The modules of a network whose buffers a phase moves, in a fixed order."""
    return [module for module in network.modules() if isinstance(module, PhaseModule)]
