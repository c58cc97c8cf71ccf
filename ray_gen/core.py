"""What the rooms agree on: the words of training, as types. Imports torch and nothing else.

An *objective* says which networks a model has, which *phases* train them, and what a sample is.
`step.py` runs phases without knowing the model; objectives know nothing of ranks or optimisers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.utils import parametrize

Shape = tuple[int, ...]
"""Of one item of a batch: (D,) is a vector, (C, H, W) a map."""

ImageShape = tuple[int, int, int]
"""(channels, height, width)"""

Networks = nn.ModuleDict
"""The networks and the own modules of a model, by name. A network is called as
`network(x, labels, **more)`: `more` holds the conditions of its signature by name, and `noise`
where it declares some. See `noise_of`."""

_NOTHING: Mapping[str, Any] = {}  # torch.compile cannot trace `dict[str, Tensor]`


@dataclass(frozen=True)
class Signature:
    """What a network maps to what. Shapes are of one item of a batch.

    `labels`, int64 (N,), are given if there is a `label_count`. `conditions` are further inputs,
    (N, *shape) each, by keyword: a time, for example. Several outputs come as a mapping by name.
    """

    input: Shape
    outputs: Shape | Mapping[str, Shape]
    """Of the only output, or by name."""
    label_count: int | None = None
    activation: Literal["tanh", "identity"] = "identity"
    """The last function: "tanh" gives values in (-1, 1), "identity" gives any (logits, means)."""
    conditions: Mapping[str, Shape] = field(default_factory=lambda: _NOTHING)

    @property
    def form(self) -> str:
        """In words: "map_to_vector", "vector_to_map", "map_to_several", …"""
        to = "several" if isinstance(self.outputs, Mapping) else _word(self.outputs)
        return f"{_word(self.input)}_to_{to}"

    @property
    def output_shape(self) -> Shape:
        """The shape of the only output. Raises ValueError where there are several."""
        if isinstance(self.outputs, Mapping):
            names = " and ".join(self.outputs)
            raise ValueError(f"has one output, and {names} are asked for")
        return self.outputs


def _word(shape: Shape) -> str:
    return {1: "vector", 3: "map"}.get(len(shape), "array")


class ImageToVector(Signature):
    """images_NCHW to vectors (N, vector_size), with the names that 0.1 had."""

    def __init__(
        self, image_shape: ImageShape, vector_size: int, label_count: int | None = None
    ) -> None:
        super().__init__(image_shape, (vector_size,), label_count)

    @property
    def image_shape(self) -> Shape:
        """(C, H, W)"""
        return self.input

    @property
    def vector_size(self) -> int:
        """D"""
        return self.output_shape[0]


class VectorToImage(Signature):
    """vectors (N, vector_size) to images_NCHW, with the names that 0.1 had."""

    def __init__(
        self,
        vector_size: int,
        image_shape: ImageShape,
        label_count: int | None = None,
        output: Literal["tanh", "identity"] = "identity",
    ) -> None:
        super().__init__((vector_size,), image_shape, label_count, output)

    @property
    def image_shape(self) -> Shape:
        """(C, H, W)"""
        return self.output_shape

    @property
    def vector_size(self) -> int:
        """D"""
        return self.input[0]

    @property
    def output(self) -> Literal["tanh", "identity"]:
        """What the last function was called."""
        return self.activation


@dataclass(frozen=True)
class Noise:
    """Random numbers that one image needs: a shape and a distribution.

    "normal" is N(0, 1); "uniform" is U[low, high).
    """

    shape: Shape
    distribution: Literal["normal", "uniform"] = "normal"
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class NoiseOf:
    """All the noise that one call of a network or own module takes. A phase that declares
    `{"fakes": NoiseOf("generator")}` has the generator's noise "layer_0" as "fakes.layer_0", and
    `noise_of(batch.noise, "fakes")` gives it to the call."""

    network: str


Noises = Mapping[str, Noise | NoiseOf]


@runtime_checkable
class TakesNoise(Protocol):
    """A network or own module that takes random numbers: noise of layers, dropout, style mixing,
    augmentation.

    It is called with `noise=`, a mapping of (N, *shape) by these names, and never draws itself.
    What it declares may depend on its mode: dropout declares nothing when not `training`.
    """

    noise: Mapping[str, Noise]


def noise_of(noise: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Keyword arguments for the call whose noise was declared as `name: NoiseOf(network)`: nothing
    for a network that takes none."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): x for key, x in noise.items() if key.startswith(prefix)}
    return {"noise": own} if own else {}


def declared(noises: Noises, networks: Networks) -> dict[str, Noise]:
    """What is to be drawn: `NoiseOf` replaced by what the network declares in its present mode."""
    found: dict[str, Noise] = {}
    for name, spec in noises.items():
        if isinstance(spec, Noise):
            found[name] = spec
            continue
        own = getattr(networks[spec.network], "noise", None)
        if isinstance(own, Mapping):  # and not a layer of this name
            found |= {f"{name}.{key}": of_network for key, of_network in own.items()}
    return found


@runtime_checkable
class Schedule(Protocol):
    """A number that changes with the images that a run has seen."""

    def at(self, images: float) -> float:
        """Its value after so many images: the same on every rank, a pure function."""
        ...


Number = float | Schedule
"""A number, or one that changes with the images seen. It reaches a step as a tensor."""


@dataclass(frozen=True)
class Batch:
    """What a term of a loss sees: a part of the global batch, of whole groups, on one rank."""

    images: Tensor
    """(N, C, H, W), in the objective's `image_range`."""
    labels: Tensor | None
    """int64 (N,)"""
    noise: Mapping[str, Tensor]
    """By the names that the phase declares, each (N, *shape)."""
    images_seen: Tensor
    """Images that the run has seen before this step: a float, 0-dimensional."""
    numbers: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)
    """By the names of `Phase.numbers`, as they are at this step: floats, 0-dimensional. The step's
    own, as weights that change, stand beside them."""
    due: frozenset[str] = frozenset()
    """Of the names in the term's `weights`, those whose losses count at this update. A term
    computes no other of them."""
    group_size: int = 1
    """Losses that couple images couple those of a group: N is a multiple of it, and image i
    belongs to group i // group_size."""


@dataclass(frozen=True)
class Losses:
    """What a term returns: values of each image, (N,), which nobody but `step.py` averages.

    minimised: their weighted sum is the term's loss. reported: averaged over images, for the eye
    only. of_phase: numbers, 0-dimensional, that belong to the phase and not to an image, for the
    eye only. They come from buffers of a `PhaseModule`, so every rank has the same.
    """

    minimised: Mapping[str, Tensor]
    reported: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)
    of_phase: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class Weight:
    """Of one loss of a term. `every` counts updates of the phase: a loss that is due on every n-th
    update weighs `value * n` there (lazy regularisation, Karras et al. 2020, StyleGAN2, 3.1).
    `full_precision` takes the term out of autocast at the updates where the loss is due."""

    value: Number = 1.0
    every: int = 1
    full_precision: bool = False


@dataclass(frozen=True)
class Term:
    """A part of a phase's loss: one forward pass, and the losses that come from it.

    `weight` and `every` are of all its losses together, `weights` of single ones by name, on top
    of that; both as `Weight` says. `full_precision` takes the term out of autocast: penalties on
    gradients overflow or vanish in 16 bits.
    """

    name: str
    loss: Callable[[Networks, Batch], Losses]
    weight: Number = 1.0
    every: int = 1
    full_precision: bool = False
    weights: Mapping[str, Weight] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class Phase:
    """Networks that one optimiser updates together, by the gradient of the sum of `terms`.

    Due at step s (from 0) when (s + 1) mod `every` = 0. `updates` names networks and own modules,
    whose parameters the optimiser moves and whose `PhaseModule`s the phase moves. `noise` is what
    its terms draw, `numbers` what they take from schedules.
    """

    name: str
    updates: tuple[str, ...]
    terms: tuple[Term, ...]
    noise: Noises = field(default_factory=lambda: _NOTHING)
    every: int = 1
    numbers: Mapping[str, Number] = field(default_factory=lambda: _NOTHING)


@runtime_checkable
class Objective(Protocol):
    """A model: which losses on which networks in which phases, and how to sample from it.

    To be subclassed: what has a default here may be left out.
    """

    image_range: tuple[float, float]
    """Range of the images that its networks see: (0, 1) or (-1, 1)."""

    sampled_from: tuple[str, ...]
    """Networks and own modules that are used after training."""

    latents: Mapping[str, Noise]
    """What an image is made of, by name: one vector, a map, or the levels of a hierarchy."""

    has_prior: bool = True
    """Whether `latents` also says how they are distributed. A plain autoencoder knows the shape of
    z and not where it comes from."""

    sampling_noise: Noises = _NOTHING
    """What `sample` and `reconstruct` draw beside the latents: the noise of networks."""

    @property
    def averaged(self) -> tuple[str, ...]:
        """Those of `sampled_from` that an average over training (EMA) is kept of. The others are
        copied whenever the average moves: a codebook that is an average itself, for example."""
        return self.sampled_from

    def networks(self) -> Mapping[str, Signature]:
        """What the networks map, by name. The experiment says by which architecture."""
        ...

    def modules(self) -> Mapping[str, nn.Module]:
        """What the objective brings itself, by name: a learned σ, a codebook, an adaptive
        probability. It stands among the networks, and in every checkpoint."""
        return _NOTHING

    def phases(self) -> Sequence[Phase]:
        """The phases of a step, in their order."""
        ...

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """Latents (N, *shape), labels (N,) and `sampling_noise` to images_NCHW in [0, 1]."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """An objective whose networks can map an image to itself."""

    def reconstruct(
        self,
        networks: Networks,
        images: Tensor,
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """images_NCHW in `image_range` and `sampling_noise` to reconstructions in [0, 1]."""
        ...


class Posterior(NamedTuple):
    """Where an image lies in one of the latents: q(z|x) = N(mean, exp(log_variance))."""

    mean: Tensor
    """(N, *shape)"""
    log_variance: Tensor | None
    """The same shape; None where the encoder gives one z and no distribution."""


@runtime_checkable
class Encodes(Protocol):
    """An objective whose networks can say where an image lies among the latents."""

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Posterior]:
        """images_NCHW in `image_range` to a posterior for each of `latents`. The networks are not
        `training`, and draw nothing here."""
        ...


def posteriors_of(
    objective: Encodes, networks: Networks, images: Tensor, labels: Tensor | None
) -> Mapping[str, Posterior]:
    """What `encode` gives, if it is that. Raises TypeError for what an `encode` of 0.1 gave."""
    found = objective.encode(networks, images, labels)
    if not isinstance(found, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{type(objective).__name__}.encode has to give a mapping of each latent to a "
            f"ray_gen.core.Posterior since ray_gen 0.2, and gave {type(found).__name__}"
        )
    return found


@runtime_checkable
class Discriminates(Protocol):
    """An objective with a network that tells real images from others.

    Where its `gives_probability` is true, the sigmoid of a logit is D(x), the probability that x is
    real.
    """

    discriminates_with: tuple[str, ...]
    """The networks that this takes. No EMA is kept of them, unless they are `sampled_from`."""

    def discriminate(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """images_NCHW in `image_range` to logits (N,), the higher the more real. The network, which
        is not `training`, draws nothing here."""
        ...


@runtime_checkable
class Evaluates(Protocol):
    """An objective with held-out scores of its own, as the ELBO of a VAE.

    Which of two values is the better one say its settings. The class of an objective of your own
    says it by `better`, a mapping of scores to "min" or "max", and need not have one.
    """

    evaluation_noise: Noises

    def evaluate(self, networks: Networks, batch: Batch) -> Mapping[str, Tensor]:
        """Scores of each image, (N,), by name. The batch has images, labels and
        `evaluation_noise`, any number of images, and no numbers of phases."""
        ...


class Window(Protocol):
    """How exactly, and how long, an objective has to be at rest."""

    @property
    def tolerance(self) -> float:
        """Largest distance from the optimum."""
        ...

    @property
    def window_images(self) -> int:
        """Images over which it must stay within."""
        ...


@runtime_checkable
class Settles(Protocol):
    """An objective that knows from its own reports when it has come to rest, and training may end.

    What it remembers between two reports is a mapping of numbers, which a checkpoint holds. A run
    that has settled has the key `STOPPED` in it.
    """

    def watch(self, memory: dict[str, float], metrics: Mapping[str, float], steps: int) -> None:
        """Take note of a report: `metrics` are means over so many steps."""
        ...

    def settled(self, memory: dict[str, float], images: int, window: Window) -> bool:
        """Whether it has, after so many images; asked at every full
        `training.report_every_images`."""
        ...


STOPPED = "stopped"
"""In the memory of a stopping rule: the images after which it ended the run."""


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
    micro-batches or on the number of workers. A module whose new state needs random numbers
    declares them as `phase_noise`.
    """

    phase_noise: Mapping[str, Noise] = _NOTHING
    """What `end_phase` draws: the shapes are of one draw a phase, not of one an image."""

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Before the forward passes of a phase that updates this module's network.

        original: of a parametrisation (torch.nn.utils.parametrize), the tensor that it is of.
        """

    def phase_statistics(self) -> Tensor | None:
        """Sums over what this rank saw since `begin_phase`, to be added up over all ranks."""
        return None

    def end_phase(
        self, statistics: Tensor | None, noise: Mapping[str, Tensor] | None = None
    ) -> None:
        """Move the buffers. `statistics` are the sums over all ranks; a module that saw nothing in
        this phase keeps still. noise: by the names of `phase_noise`, if there are any; the same on
        every rank."""


def phase_modules(network: nn.Module, name: str = "") -> dict[str, PhaseModule]:
    """The modules of a network of this name whose buffers a phase moves, by their paths, in a fixed
    order. The network may be one itself."""
    return {
        path: module
        for path, module in network.named_modules(prefix=name)
        if isinstance(module, PhaseModule)
    }


def begin_phase(network: nn.Module) -> None:
    """Begin a phase of a network by itself, as `step.py` does of those that a phase updates."""
    begin_phases(phase_modules(network), parametrised(network))


def begin_phases(modules: Mapping[str, PhaseModule], originals: Mapping[str, Tensor]) -> None:
    """Begin a phase of some modules; originals: what those that are parametrisations are given."""
    for path, module in modules.items():
        if path in originals:
            module.begin_phase(originals[path])
        else:
            module.begin_phase()


def parametrised(network: nn.Module, name: str = "") -> dict[str, Tensor]:
    """The tensors that the parametrisations among `phase_modules` are of, by their paths. Those of
    0.1, whose `begin_phase` takes none, are left out."""
    return {
        f"{path}.{number}": module.original
        for path, module in network.named_modules(prefix=name)
        if isinstance(module, parametrize.ParametrizationList)
        for number, part in enumerate(module)
        if isinstance(part, PhaseModule) and inspect.signature(part.begin_phase).parameters
    }
