"""The types that all parts of the package share. Imports torch and nothing else.

An *objective* says which networks a model has, which *phases* train them, and what a sample is.
`step.py` runs phases without knowing the model. Objectives know nothing of ranks or optimisers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.utils import parametrize

Shape = tuple[int, ...]
"""Shape of one item of a batch: (D,) is a vector, (C, H, W) a map."""

ImageShape = tuple[int, int, int]
"""(channels, height, width)"""

Networks = nn.ModuleDict
"""A model's networks and the objective's own modules, by name. A network is called as
`network(x, labels, **more)`. `more` holds the conditions of its signature by name, and `noise` if
the network declares noise (see `noise_of`)."""

_NOTHING: Mapping[str, Any] = {}  # torch.compile cannot trace `dict[str, Tensor]`


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a network. Shapes are of one item of a batch.

    An experiment with `networks.NAME: {kind: custom, target: "module:Name", options: {...}}` calls
    the class, a `torch.nn.Module`, as `Name(signature, **options)`:

        class Linear(nn.Module):
            def __init__(self, signature, width=64):
                super().__init__()
                self.shape = signature.output_shape
                inputs, outputs = math.prod(signature.input), math.prod(self.shape)
                self.layers = nn.Sequential(
                    nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs)
                )

            def forward(self, x, labels=None):
                return self.layers(x).unflatten(1, self.shape)

    The call passes `labels` if `label_count` is set: int64 (N,); with `label_numbers`, see there.
    `conditions` are further inputs, (N, *shape) each, by keyword: a time, for example. A network
    with several outputs returns a mapping by name.
    """

    input: Shape
    outputs: Shape | Mapping[str, Shape]
    """Shape of the only output, or a mapping from output names to shapes."""
    label_count: int | None = None
    activation: Literal["tanh", "identity"] = "identity"
    """Last function of the network: "tanh" gives values in (-1, 1), "identity" any value (logits,
    means). "tanh" asks for images in [-1, 1]: an architecture that was published without it may
    leave it out. Its objective clamps samples."""
    conditions: Mapping[str, Shape] = field(default_factory=lambda: _NOTHING)
    label_numbers: int = 0
    """How many numbers the labels of an image have besides its class. The experiment knows it
    (`data.conditions`) and sets it; an objective does not. If there are any, `labels` is float32
    (N, 1 + label_numbers): the class, then standardised numbers. Without classes (`label_count` is
    0) it is float32 (N, label_numbers). `parts_of_labels` takes both apart."""
    several_logits: bool = False
    """Whether the network may return several logits of an image, (N, K) or (N, K, H, W), where the
    output has the shape (1,). The objective takes means over them."""
    reconstructs: bool = False
    """Whether the objective also asks the network for reconstructions: see `Reconstructing`."""

    @property
    def form(self) -> str:
        """Kinds of input and output: "map_to_vector", "vector_to_map", "map_to_several", … Several
        outputs that are all vectors are "vectors"."""
        outputs = self.outputs
        if not isinstance(outputs, Mapping):
            return f"{_word(self.input)}_to_{_word(outputs)}"
        vectors = all(len(shape) == 1 for shape in outputs.values())
        return f"{_word(self.input)}_to_{'vectors' if vectors else 'several'}"

    @property
    def output_shape(self) -> Shape:
        """The shape of the only output. Raises ValueError if there are several."""
        if isinstance(self.outputs, Mapping):
            names = " and ".join(self.outputs)
            raise ValueError(f"has one output, but the signature asks for {names}")
        return self.outputs


def parts_of_labels(
    labels: Tensor | None, signature: Signature
) -> tuple[Tensor | None, Tensor | None]:
    """The classes, int64 (N,), and the standardised numbers, float32 (N, label_numbers), of the
    labels that a network of this signature gets. None for what its labels do not have."""
    if labels is None or not signature.label_numbers:
        return labels, None
    if not signature.label_count:
        return None, labels
    return labels[:, 0].long(), labels[:, 1:]


def _word(shape: Shape) -> str:
    return {1: "vector", 3: "map"}.get(len(shape), "array")


class ImageToVector(Signature):
    """images_NCHW to vectors (N, vector_size), with the attribute names of 0.1."""

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
    """vectors (N, vector_size) to images_NCHW, with the attribute names of 0.1."""

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
        """`activation`, under its name in 0.1."""
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
    """All the noise of one call of a network or of an objective's own module. A phase declares, for
    example, `{"fakes": NoiseOf("generator")}`. Its `batch.noise` then holds the generator's noise
    "layer_0" as "fakes.layer_0", and `noise_of(batch.noise, "fakes")` gives the arguments of the
    call."""

    network: str


Noises = Mapping[str, Noise | NoiseOf]


@runtime_checkable
class TakesNoise(Protocol):
    """A network, or an objective's own module, that takes random numbers: noise of layers, dropout,
    style mixing, augmentation.

    Its call takes `noise=`, a mapping from the names in `noise` to tensors (N, *shape). The module
    never draws random numbers itself. What it declares may depend on its mode: dropout declares
    nothing when not `training`.
    """

    noise: Mapping[str, Noise]


def noise_of(noise: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Keyword arguments for the call whose noise is declared as `name: NoiseOf(network)`. Empty if
    the network takes no noise."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): x for key, x in noise.items() if key.startswith(prefix)}
    return {"noise": own} if own else {}


def declared(noises: Noises, networks: Networks) -> dict[str, Noise]:
    """The noise to draw, by name: each `NoiseOf` becomes the noise that its network declares in its
    present mode."""
    found: dict[str, Noise] = {}
    for name, spec in noises.items():
        if isinstance(spec, Noise):
            found[name] = spec
            continue
        own = getattr(networks[spec.network], "noise", None)
        if isinstance(own, Mapping):  # if not, `noise` is something else, such as a layer
            found |= {f"{name}.{key}": of_network for key, of_network in own.items()}
    return found


@runtime_checkable
class Pretrained(Protocol):
    """An own module of an objective with weights that others have trained: buffers that are not
    persistent, so they are in no checkpoint."""

    def load(self) -> None:
        """Read the weights. Called before the module is used, and not where a model is only sampled
        from. Raises Refused."""
        ...


@runtime_checkable
class Reconstructing(Protocol):
    """A discriminator that also reconstructs the images that it sees, so that its features know
    more of them than what tells real from generated (Liu et al. 2021, FastGAN, section 3.2). It
    needs to, if its signature `reconstructs`."""

    def reconstructed(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Mapping[str, Tensor] = _NOTHING,
    ) -> tuple[Any, Sequence[tuple[Tensor, Tensor]]]:
        """images_NCHW in [-1, 1] to the output of a call, and from the same pass pairs of
        an image and its reconstruction, (N, C, h, w) each: of the whole or of a part, in [-1, 1].
        noise: of the network."""
        ...


@runtime_checkable
class Balances(Protocol):
    """A decoder that compares how hard two losses pull at its last layer (Esser et al. 2021,
    section 3.2)."""

    def adaptive_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """‖∇ L_rec‖ / ‖∇ L_G‖ at the weight of the last layer, in the last phase that updated it:
        0-dimensional; 0 before there is one. Both losses, (N,), are noted for the next phase."""
        ...


@runtime_checkable
class Featured(Protocol):
    """A discriminator whose features can be compared: of an image and its reconstruction (Larsen et
    al. 2016)."""

    def features(
        self, images: Tensor, labels: Tensor | None = None, *, layer: int | None = None
    ) -> tuple[Any, Tensor]:
        """images_NCHW to the output of a call, and from the same pass what comes out of a block:
        (N, ...). layer: the number of the block, from 1 for the first after the image; None: the
        last before the output. Raises Refused for a block that it has not."""
        ...


@runtime_checkable
class Styled(Protocol):
    """A generator that works in two parts (Karras et al. 2019, StyleGAN): a vector z becomes a
    style for each of its L layers, and styles become an image. Path length, truncation and
    interpolation between styles use the parts; `forward(z, labels, noise=...)` is both.

    `noise` is that of `forward`: all that the network declares in its present mode. Each part takes
    from it what it needs.
    """

    def styles(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        noise: Mapping[str, Tensor] = _NOTHING,
        truncation: float = 1.0,
    ) -> Tensor:
        """z (N, D) to styles (N, L, W). truncation ψ: styles are mean + ψ (style - mean), with the
        mean over z that the network keeps (Karras et al. 2019, appendix B). 1 changes nothing."""
        ...

    def synthesize(self, styles: Tensor, noise: Mapping[str, Tensor] = _NOTHING) -> Tensor:
        """Styles (N, L, W) to images_NCHW."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """A number that changes with the images that a run has seen."""

    def at(self, images: float) -> float:
        """The value after `images` images. A pure function, so equal on every rank."""
        ...


Number = float | Schedule
"""A constant, or a number that changes with the images seen. Terms get it as a tensor."""


def value_at(number: Number, images: float) -> float:
    """The value of a number, or of a schedule after `images` images."""
    return number if isinstance(number, (int, float)) else number.at(images)


@dataclass(frozen=True)
class Batch:
    """The input of a term: a part of the global batch on one rank, always whole groups."""

    images: Tensor
    """(N, C, H, W), in the objective's `image_range`."""
    labels: Tensor | None
    """int64 (N,). With numbers to condition on: float32, see `Signature.label_numbers`. An
    objective only hands them on to its networks."""
    noise: Mapping[str, Tensor]
    """(N, *shape) each, by the names that the phase declares."""
    images_seen: Tensor
    """Number of images that the run has seen before this step: a float, 0-dimensional."""
    numbers: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)
    """The values of `Phase.numbers` at this step, by name: floats, 0-dimensional. The mapping also
    holds the step's own numbers, such as weights that change."""
    due: frozenset[str] = frozenset()
    """The names in the term's `weights` whose losses count at this update. A term must not return
    the other losses in `weights`."""
    group_size: int = 1
    """A loss may couple images only within a group. N is a multiple of `group_size`. Image i
    belongs to group i // group_size."""


@dataclass(frozen=True)
class Losses:
    """What a term returns: one value per image, (N,). Only `step.py` averages them.

    minimised: their weighted sum is the term's loss. reported: averaged over images, for display
    only. of_phase: 0-dimensional numbers of the phase, not of an image, for display only. They
    come from buffers of a `PhaseModule`, so they are equal on every rank.
    """

    minimised: Mapping[str, Tensor]
    reported: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)
    of_phase: Mapping[str, Tensor] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class Weight:
    """The weight of one loss of a term. `every` counts updates of the phase: with `every` = n the
    loss is due at every n-th update and weighs `value * n` there (lazy regularisation, Karras et
    al. 2020, StyleGAN2, 3.1). `full_precision` takes the term out of autocast at the updates where
    the loss is due. Before `start_images` images the loss is not due."""

    value: Number = 1.0
    every: int = 1
    full_precision: bool = False
    start_images: int = 0


@dataclass(frozen=True)
class Term:
    """A part of a phase's loss: one forward pass and the losses that come from it.

    `weight` and `every` apply to all losses of the term, as in `Weight`. `weights` apply to single
    losses by name, in addition. `full_precision` takes the term out of autocast: penalties on
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

    Due at step s (from 0) when (s + 1) mod `every` = 0, and not before `start_images` images.
    `updates` names networks and own modules: the optimiser updates their parameters, and the phase
    updates their `PhaseModule`s. `noise` is the noise of the terms. `numbers` are constants and
    schedules for the terms.
    """

    name: str
    updates: tuple[str, ...]
    terms: tuple[Term, ...]
    noise: Noises = field(default_factory=lambda: _NOTHING)
    every: int = 1
    numbers: Mapping[str, Number] = field(default_factory=lambda: _NOTHING)
    start_images: int = 0


@runtime_checkable
class Objective(Protocol):
    """A model: its networks, the losses and phases that train them, and how to sample from it.

    Subclass this. A subclass may omit every member that has a default here. An experiment with
    `objective: {kind: custom, target: "module:Name", options: {...}}` calls the class as

        Name(image_shape=(C, H, W), label_count=None, **options)

    label_count: the number of classes if `objective.conditional` is true, else None. Each key of
    `networks()` needs an architecture in `networks` of the experiment, and each phase an optimiser
    in `optimizers`. The shortest example, an autoencoder:

        class Autoencoder(Objective):
            image_range = (0.0, 1.0)
            sampled_from = ("decoder",)
            has_prior = False

            def __init__(self, *, image_shape, label_count, latent_size=8):
                self.latents = {"z": Noise((latent_size,))}
                self._signatures = {
                    "encoder": Signature(image_shape, (latent_size,)),
                    "decoder": Signature((latent_size,), image_shape),
                }

            def networks(self):
                return self._signatures

            def phases(self):
                term = Term("reconstruction", self._loss)
                return [Phase("both", ("encoder", "decoder"), (term,))]

            def _loss(self, networks, batch):
                again = networks["decoder"](networks["encoder"](batch.images))
                return Losses({"mse": (again - batch.images).square().flatten(1).mean(1)})

            def sample(self, networks, latents, labels, noise):
                return networks["decoder"](latents["z"]).float().clamp(0, 1)
    """

    image_range: tuple[float, float]
    """Range of the images that the networks see: (0, 1) or (-1, 1)."""

    sampled_from: tuple[str, ...]
    """Names of the networks and own modules that are used after training."""

    latents: Mapping[str, Noise]
    """The latents of one image, by name: a vector, a map, or the levels of a hierarchy."""

    has_prior: bool = True
    """Whether `latents` also gives their distribution. A plain autoencoder knows only the shape of
    z."""

    sampling_noise: Noises = _NOTHING
    """The networks' noise in `sample` and `reconstruct`, in addition to the latents."""

    @property
    def averaged(self) -> tuple[str, ...]:
        """The names in `sampled_from` that have an average over training (EMA). The others are
        copied whenever the average moves: a codebook, for example, is already an average."""
        return self.sampled_from

    def networks(self) -> Mapping[str, Signature]:
        """The signature of each network, by name. The experiment chooses the architectures."""
        ...

    def modules(self) -> Mapping[str, nn.Module]:
        """The objective's own modules, by name: a learned σ, a codebook, an adaptive probability.
        They are among the networks and in every checkpoint."""
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
        """Latents (N, *shape), labels (N,) or None, and `sampling_noise` to images_NCHW in
        [0, 1]."""
        ...


@runtime_checkable
class Clamps(Protocol):
    """An objective whose samples are clamped to [0, 1], and that can leave this out. Projection
    asks for it: no gradient passes through a clamped pixel."""

    def unclamped(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """images_NCHW of the same arguments as `sample`, which may leave [0, 1]. `sample` clamps
        them."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """An objective whose networks can reconstruct an image."""

    def reconstruct(
        self,
        networks: Networks,
        images: Tensor,
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """images_NCHW in `image_range` and `sampling_noise` to reconstructions in [0, 1]."""
        ...


@runtime_checkable
class Decodes(Protocol):
    """An objective whose networks see latents in place of images. Its samples are images: an
    autoencoder decodes them."""

    def decoded(self, networks: Networks, images: Tensor) -> Tensor:
        """What the networks see, (N, c, h, w), to images (N, C, H, W) in [0, 1]."""
        ...


@runtime_checkable
class InBlocks(Protocol):
    """A network that is a row of blocks. `training.freeze` counts them."""

    def blocks_from_image(self) -> Sequence[nn.Module]:
        """The blocks, the one nearest to the image first: of a discriminator its first layers, of a
        generator its last. Together they are what can be frozen in part. What takes labels is in
        none: new classes must be learnt."""
        ...


class Posterior(NamedTuple):
    """The position of an image in one latent: q(z|x) = N(mean, exp(log_variance))."""

    mean: Tensor
    """(N, *shape)"""
    log_variance: Tensor | None
    """(N, *shape); None if the encoder gives one z and no distribution."""


@runtime_checkable
class Encodes(Protocol):
    """An objective whose networks can map an image to its latents."""

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Posterior]:
        """images_NCHW in `image_range` to a posterior for each of `latents`. The networks are in
        eval mode and draw nothing here."""
        ...


def posteriors_of(
    objective: Encodes, networks: Networks, images: Tensor, labels: Tensor | None
) -> Mapping[str, Posterior]:
    """The result of `encode`. Raises TypeError if it is not a mapping, as in 0.1."""
    found = objective.encode(networks, images, labels)
    if not isinstance(found, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{type(objective).__name__}.encode must return a mapping from each latent to a "
            f"ray_gen.core.Posterior (since ray_gen 0.2), but returned {type(found).__name__}"
        )
    return found


@runtime_checkable
class Codes(Protocol):
    """An objective whose latents are maps of codes from a finite set."""

    code_count: int | None
    """Number of codes in the set. None: this model has no codes."""

    def codes(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Tensor]:
        """images_NCHW in `image_range` to the numbers of the codes of each latent, int64 (N, ...),
        from 0 to below `code_count`. The networks are in eval mode and draw nothing here."""
        ...


@runtime_checkable
class Discriminates(Protocol):
    """An objective with a network that tells real images from others.

    If the objective's `gives_probability` is true, the sigmoid of a logit is D(x), the probability
    that x is real.
    """

    discriminates_with: tuple[str, ...]
    """The networks that `discriminate` uses. They have no EMA unless they are in `sampled_from`."""

    def discriminate(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """images_NCHW in `image_range` to logits (N,): a higher logit means more real. The network
        is in eval mode and draws nothing here."""
        ...


@runtime_checkable
class Evaluates(Protocol):
    """An objective with held-out scores of its own, such as the ELBO of a VAE.

    The settings of a shipped objective say whether "min" or "max" is better. A class of your own
    may say it in `better`, a mapping from scores to "min" or "max". `better` is optional.
    """

    evaluation_noise: Noises

    def evaluate(self, networks: Networks, batch: Batch) -> Mapping[str, Tensor]:
        """Scores of each image, (N,), by name. The batch holds any number of images, with labels
        and `evaluation_noise`. It has no `numbers`."""
        ...


class Window(Protocol):
    """How close to its optimum, and for how many images, an objective must stay to be settled."""

    @property
    def tolerance(self) -> float:
        """Largest distance from the optimum."""
        ...

    @property
    def window_images(self) -> int:
        """Number of images for which it must stay within the tolerance."""
        ...


@runtime_checkable
class Settles(Protocol):
    """An objective that sees in its own reports that it has settled. Training may then end.

    Its memory between two reports is a mapping of numbers. A checkpoint stores it. Once the run has
    settled, the memory has the key `STOPPED`.
    """

    def watch(self, memory: dict[str, float], metrics: Mapping[str, float], steps: int) -> None:
        """Take note of a report: `metrics` are means over `steps` steps."""
        ...

    def settled(self, memory: dict[str, float], images: int, window: Window) -> bool:
        """Whether the objective has settled after `images` images. Training asks at every full
        `training.report_every_images`."""
        ...


@runtime_checkable
class Fails(Protocol):
    """An objective that sees in its own reports that training no longer helps. The run then says so
    and goes on.

    Its memory is the mapping of `Settles`.
    """

    def note(self, memory: dict[str, float], metrics: Mapping[str, float], before: int) -> None:
        """Take note of a report: `metrics` are means since `before` images."""
        ...

    def failure(self, memory: Mapping[str, float], images: int) -> str | None:
        """Why training no longer helps after `images` images, in words that stay the same while it
        is so. None if it helps."""
        ...


STOPPED = "stopped"
"""Key in the memory of a stopping rule: the number of images after which the rule ended the run."""


LikelihoodKind = Literal[
    "bernoulli", "continuous_bernoulli", "gaussian", "logistic", "logistic_mixture"
]
"""p(x|z). bernoulli: probabilities of pixels that are 0 or 1. logistic, logistic_mixture:
probabilities of levels. The others: densities of pixels in `image_range`."""

DENSITIES: tuple[LikelihoodKind, ...] = ("continuous_bernoulli", "gaussian")


@runtime_checkable
class Bounds(Protocol):
    """An objective with importance weights p(x, z) / q(z|x): the mean of their logarithms, and the
    logarithm of their mean, are lower bounds on log p(x)."""

    image_range: tuple[float, float]
    likelihood: LikelihoodKind
    """p(x|z)."""

    pixel_noise: Noise | None
    """Noise with which `observed` redraws the pixels of an image. None: `observed` leaves them
    unchanged."""

    posterior_noise: Noise
    """Noise for one draw of z from q(z|x), for one image."""

    def observed(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """images_NCHW in `image_range` to the pixels that the likelihood describes. noise: as
        `pixel_noise` declares."""
        ...

    def log_weights(
        self, networks: Networks, images: Tensor, labels: Tensor | None, epsilon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p(x|z) and log p(z) - log q(z|x) at the z of each epsilon, in nats: both float64
        (S, N). Their sum is the weight's logarithm.

        images: (N, C, H, W), from `observed`; labels: (N,) or None; epsilon: (S, N, ...) for S
        samples of z.
        """
        ...


class PhaseModule(nn.Module):
    """A module with buffers that training updates. `step.py` updates them once in each phase that
    updates the module's network. A forward pass never changes them.

    So running statistics and power iterations do not depend on the number of calls of a network, of
    micro-batches or of workers. A module whose new state needs random numbers declares them as
    `phase_noise`.
    """

    phase_noise: Mapping[str, Noise] = _NOTHING
    """Noise for `end_phase`. The shapes are for one draw per phase, not per image."""

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Called before the forward passes of a phase that updates this module's network.

        original: for a parametrisation (torch.nn.utils.parametrize), the tensor that it
        parametrises.
        """

    def phase_statistics(self) -> Tensor | None:
        """Sums over the images of this rank since `begin_phase`, or None if the module has none.
        The step adds them up over all ranks."""
        return None

    def end_phase(
        self, statistics: Tensor | None, noise: Mapping[str, Tensor] | None = None
    ) -> None:
        """Update the buffers. statistics: the sums over all ranks; a module that saw nothing in
        this phase stays unchanged. noise: by the names of `phase_noise`, the same on every rank;
        not passed if `phase_noise` is empty."""


def phase_modules(network: nn.Module, name: str = "") -> dict[str, PhaseModule]:
    """The `PhaseModule`s of a network, by path, in a fixed order. Each path begins with `name`. The
    network itself may be one."""
    return {
        path: module
        for path, module in network.named_modules(prefix=name)
        if isinstance(module, PhaseModule)
    }


def begin_phase(network: nn.Module) -> None:
    """Begin a phase for one network, as `step.py` does for the networks that a phase updates."""
    begin_phases(phase_modules(network), parametrised(network))


def begin_phases(modules: Mapping[str, PhaseModule], originals: Mapping[str, Tensor]) -> None:
    """Begin a phase of these modules. originals: from `parametrised`."""
    for path, module in modules.items():
        if path in originals:
            module.begin_phase(originals[path])
        else:
            module.begin_phase()


def parametrised(network: nn.Module, name: str = "") -> dict[str, Tensor]:
    """The original tensor of each parametrisation among `phase_modules`, by path. Parametrisations
    of 0.1 are left out: their `begin_phase` takes no tensor."""
    return {
        f"{path}.{number}": module.original
        for path, module in network.named_modules(prefix=name)
        if isinstance(module, parametrize.ParametrizationList)
        for number, part in enumerate(module)
        if isinstance(part, PhaseModule) and inspect.signature(part.begin_phase).parameters
    }
