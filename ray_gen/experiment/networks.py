"""`networks`: an architecture for each network that the objective names.

The objective defines the input and output of each network: a map to a vector (encoders,
discriminators), a vector to a map (decoders, generators), or a map to a map, with conditions. An
architecture lists the forms that it supports and the class for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ray_gen.networks.sizes import halvings, multiple_problem, patch_problem, size_problem
from ray_gen.settings import Component, or_its_kind


def _in_words(form: str) -> str:
    """ "map_to_vector" as "a map to a vector"."""
    words = {"array": "an array", "several": "several outputs", "vectors": "several vectors"}
    return " to ".join(words.get(part, f"a {part}") for part in form.split("_to_"))


class NetworkSettings(Component):
    """Settings that all architectures share. `targets` maps each supported form of signature
    (`ray_gen.core.Signature.form`) to a class, or "any" to one class."""

    takes_conditions: ClassVar[bool] = False
    """Whether it takes other conditions than labels."""
    reconstructs: ClassVar[bool] = False
    """Whether its discriminator can reconstruct what it sees."""
    gives_features: ClassVar[bool] = False
    """Whether its discriminator gives features (`ray_gen.core.Featured`), as far as the settings
    know."""
    may_be_styled: ClassVar[bool] = False
    """Whether its generator has styles (`ray_gen.core.Styled`), as far as the settings know."""

    def target_for(self, form: str) -> str:
        """The class for a supported form of signature."""
        return self.targets.get(form) or self.targets["any"]

    def form_problem(self, form: str, conditions: Sequence[str]) -> str | None:
        """Why it does not support such a signature, and what to use instead. None if it does."""
        kind = getattr(self, "kind", "custom")
        if form not in self.targets and "any" not in self.targets:
            can = " or ".join(map(_in_words, self.targets))
            return (
                f"{kind} maps {can}, but the objective needs {_in_words(form)}; use mlp, or your "
                "own class (kind: custom)"
            )
        if conditions and not self.takes_conditions:
            return (
                f"{kind} takes labels but not {' or '.join(conditions)}, and the objective gives "
                f"{' and '.join(conditions)}; use mlp, or your own class (kind: custom)"
            )
        return None

    def labels_problem(self, form: str) -> str | None:
        """Why labels cannot enter such a network as its field `labels` says. None if they can."""
        given = getattr(self, "labels", None)
        known = self.label_ways(form)
        if given is None or given in known:
            return None
        does = "makes images" if form.endswith("_map") else "looks at images"
        return f"{given} is not for a network that {does}; set it to {' or '.join(known)}"

    def label_ways(self, form: str) -> tuple[str, ...]:
        """The values of its field `labels`, if it has one, for a form of signature."""
        if form.endswith("_map"):
            return ("concatenated", "conditional_batch_norm")
        return ("concatenated", "projection", "none")

    def size_problem(self, height: int, width: int, form: str | None = None) -> str | None:
        """Why this architecture does not support images of this size. None if it does. form: of
        the network's signature, if it is known before the objective is built."""
        return None

    def group_problem(self, group_size: int) -> str | None:
        """Why it cannot train with groups of so many images, from the name of its field on. None if
        it can."""
        return None


class _ConvolutionalSettings(NetworkSettings):
    """Of architectures that halve an image down to a start map, or double one up."""

    def size_problem(self, height: int, width: int, form: str | None = None) -> str | None:
        """Why images of this size have no start map, and the nearest that do. None if they do."""
        return size_problem(height, width)


class MlpNetwork(NetworkSettings):
    """Fully connected layers. Input and output may have any shape. Conditions are joined to the
    input."""

    targets: ClassVar[Mapping[str, str]] = {"any": "ray_gen.networks.mlp:Mlp"}
    takes_conditions: ClassVar[bool] = True
    gives_features: ClassVar[bool] = True
    kind: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[PositiveInt, ...] = (400,)
    """Widths of the hidden layers, from input to output."""
    activation: Literal["relu", "leaky_relu", "tanh"] = "relu"
    """The function between the layers; leaky_relu has slope 0.2."""
    initial_weights: Literal["default", "glorot"] = "default"
    """How weights and biases begin. default: torch's, uniform within ±1/√inputs. glorot: weights
    uniform within ±√(6 / (inputs + outputs)) (Glorot and Bengio 2010, eq. 16), biases 0: for
    tanh."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label, in conditional models."""
    labels: Literal["concatenated", "none"] = "concatenated"
    """How labels enter, in conditional models. concatenated: joined to the input, a class as a
    learned vector. none: not at all, for a discriminator that classifies."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""

    def label_ways(self, form: str) -> tuple[str, ...]:
        """What makes an image needs its label."""
        return ("concatenated",) if form.endswith("_map") else ("concatenated", "none")


class ConvNetwork(_ConvolutionalSettings):
    """Strided convolutions without normalisation, for VAEs: 4 x 4 kernels, stride 2, down to 4 x 4
    (7 x 7 for 28 x 28, 6 x 10 for 96 x 160), or down to the map that is the latent, with residual
    blocks there. The decoder mirrors the encoder."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.conv:ConvEncoder",
        "vector_to_map": "ray_gen.networks.conv:ConvDecoder",
        "map_to_map": "ray_gen.networks.conv_maps:encoder_or_decoder",
    }
    gives_features: ClassVar[bool] = True
    kind: Literal["conv"] = "conv"
    width: PositiveInt = 32
    """Channels at the highest resolution; they double at each halving of the size."""
    blocks: NonNegativeInt = 2
    """Residual blocks where the latent is a map: 2 in VQ-VAE (van den Oord et al. 2017)."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label, in a conditional decoder of vectors."""

    def size_problem(self, height: int, width: int, form: str | None = None) -> str | None:
        """Only latents that are vectors need a start map."""
        return None if form == "map_to_map" else super().size_problem(height, width)


class DcganNetwork(_ConvolutionalSettings):
    """The generator and discriminator of DCGAN (Radford et al. 2016)."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.dcgan:DcganDiscriminator",
        "vector_to_map": "ray_gen.networks.dcgan:DcganGenerator",
        "map_to_vectors": "ray_gen.networks.dcgan:DcganDiscriminator",
    }
    gives_features: ClassVar[bool] = True
    kind: Literal["dcgan"] = "dcgan"
    width: PositiveInt = 64
    """Channels at the highest resolution; they double at each halving of the size (64: 64, 128,
    256, 512)."""
    batch_norm: bool = True
    """Whether there is BatchNorm, as in the paper. With R1, a discriminator is often better without
    it."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label, in a conditional generator."""
    labels: Literal["concatenated", "conditional_batch_norm", "projection", "none"] = "concatenated"
    """How labels enter, in conditional models. concatenated: a class as a learned vector joined to
    z, or a learned plane joined to the image. conditional_batch_norm: gains and biases of BatchNorm
    are linear in the labels (generators). projection: the logit gets the inner product of the
    features, summed over positions, and a vector of the labels (discriminators; Miyato and Koyama
    2018). none: not at all, for a discriminator that classifies."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""

    @model_validator(mode="after")
    def _conditional_batch_norm_is_a_batch_norm(self) -> Self:
        if self.labels == "conditional_batch_norm" and not self.batch_norm:
            raise ValueError(
                "labels is conditional_batch_norm, but batch_norm is false: set batch_norm to true "
                "or labels to concatenated"
            )
        return self


class FastGanNetwork(_ConvolutionalSettings):
    """The generator and discriminator of FastGAN (Liu et al. 2021), for few images. The published
    ones have 256 to 1,024 pixels; smaller images have their first stages. Images above 512 pixels
    on a side are best trained with a micro-batch that fits the memory. The discriminator judges 50
    places of an image, and reconstructs if `objective.reconstruction_weight` is above 0. Labels are
    joined to z, and to the discriminator's last maps."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.fastgan:FastGanDiscriminator",
        "vector_to_map": "ray_gen.networks.fastgan:FastGanGenerator",
    }
    reconstructs: ClassVar[bool] = True
    kind: Literal["fastgan"] = "fastgan"
    width: PositiveInt = 64
    """Channels at 128 pixels in the generator and at 64 in the discriminator (published: 64). Both
    have 8 times as many at 8 pixels; the generator has 16 times as many at 4."""
    batch_norm: bool = True
    """Whether there is BatchNorm, as published. With R1, a discriminator is often better without
    it."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label, in conditional models."""
    spectral_norm: bool = True
    """Divide every weight by its largest singular value (Miyato et al. 2018), as published."""


class ResnetNetwork(_ConvolutionalSettings):
    """The residual generator and discriminator of SNGAN (Miyato et al. 2018), WGAN-GP and, with
    shared_embedding, latent_chunks, attention and spectral_norm, BigGAN (Brock et al. 2019). The
    discriminator has no BatchNorm."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.resnet:ResnetDiscriminator",
        "vector_to_map": "ray_gen.networks.resnet:ResnetGenerator",
        "map_to_vectors": "ray_gen.networks.resnet:ResnetDiscriminator",
    }
    gives_features: ClassVar[bool] = True
    kind: Literal["resnet"] = "resnet"
    width: PositiveInt = 64
    """Channels at the highest resolution; they double at each halving of the size, up to 16 x
    width. Up to 3 halvings (32 pixels) all maps have 4 x width channels in a generator, 2 x width
    in a discriminator (SNGAN: 64; BigGAN: 96)."""
    channels: tuple[PositiveInt, ...] | None = None
    """Channels, instead of those from width. A generator: of the start map and after each block. A
    discriminator: after each block."""
    halvings: PositiveInt | None = None
    """How many of a discriminator's blocks halve the map, from the first on. None: 2 of 4 up to 32
    pixels, else all but the last (BigGAN). SNGAN at 64 pixels: 5."""
    hidden_channels: Literal["input", "output"] = "input"
    """Channels between the two convolutions of a discriminator's block: as before it (SNGAN) or
    after it (BigGAN). In the first block and in generators: as after it."""
    pooling: Literal["sum", "mean"] = "sum"
    """How a discriminator joins the positions of its last map. sum: SNGAN, BigGAN. mean: WGAN-GP
    (Gulrajani et al. 2017)."""
    labels: Literal["concatenated", "conditional_batch_norm", "projection", "none"] = "concatenated"
    """How labels enter, in conditional models. concatenated: a class as a learned vector joined to
    z, or a learned plane joined to the image. conditional_batch_norm: gains and biases of BatchNorm
    are linear in the labels (generators; SNGAN, BigGAN). projection: the logit gets the inner
    product of the features and a vector of the labels (discriminators; Miyato and Koyama 2018).
    none: not at all, for a discriminator that classifies."""
    label_size: PositiveInt = 32
    """Length of the learned vector of each label that is concatenated to z."""
    shared_embedding: PositiveInt | None = None
    """Length of one learned vector of the labels, from which each BatchNorm's gains and biases are
    linear (BigGAN: 128). None: each BatchNorm has its own gains and biases for each class (SNGAN).
    For conditional_batch_norm."""
    latent_chunks: bool = False
    """Cut z into equal chunks: the first enters the generator's first layer, each other one the
    BatchNorms of a block (BigGAN). objective.latent_size must be a multiple of the blocks + 1 (4 at
    32 pixels, where BigGAN has 80; 6 at 128, where it has 120)."""
    attention: tuple[PositiveInt, ...] = ()
    """Heights of maps, in pixels, at which self-attention follows a block (Zhang et al. 2019).
    BigGAN: 64 for images of 128 pixels; StudioGAN's: 16 for those of 32."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018), but no embedding of
    labels in a generator. SNGAN: in the discriminator. BigGAN: in both."""
    initial_weights: Literal["xavier", "orthogonal", "normal"] = "xavier"
    """How weights begin. xavier: uniform within ±g √(6 / (inputs + outputs)) (Glorot and Bengio
    2010), with g = √2 in the blocks' 3 x 3 convolutions, else 1 (SNGAN). orthogonal: BigGAN.
    normal: N(0, 0.02²). Biases begin at 0."""


class StyleGan2Network(_ConvolutionalSettings):
    """The generator and discriminator of StyleGAN2 (Karras et al. 2020), with the choices of
    StyleGAN2-ADA. The generator's last layer has no tanh, and labels enter as published: a learned
    vector beside z, and the product of a learned vector and D's features. `published` has the
    values of the published configurations."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.stylegan2_discriminator:StyleGan2Discriminator",
        "vector_to_map": "ray_gen.networks.stylegan2:StyleGan2Generator",
    }
    may_be_styled: ClassVar[bool] = True
    kind: Literal["stylegan2"] = "stylegan2"
    channel_base: PositiveInt = 16_384
    """Channels of a map times √(height · width) (published: 16,384 below 512 pixels, else 32,768;
    CIFAR-10: 32,768)."""
    channel_max: PositiveInt = 512
    """Most channels of a map (published: 512)."""
    style_size: PositiveInt = 512
    """Length W of a style (published: 512, as `objective.latent_size`). In a discriminator: length
    of the learned vectors of labels."""
    mapping_layers: PositiveInt = 8
    """Layers from z to the styles (StyleGAN2: 8; ADA: 2, also for CIFAR-10). In a discriminator:
    from a label to its vector (8)."""
    mapping_rate: PositiveFloat = 0.01
    """How fast these layers learn in comparison with the others (published: 0.01)."""
    mixing: float = Field(0.9, ge=0.0, le=1.0)
    """Share of generated images that get the styles of a second z from a random layer onwards, in
    training (Karras et al. 2019, StyleGAN, section 3.1: 0.9; CIFAR-10: 0). For a generator."""
    residual: bool = True
    """Whether the discriminator's blocks are residual (published: true; CIFAR-10: false)."""
    deviation_group: PositiveInt = 4
    """Consecutive images whose deviation from each other the discriminator sees (published: 4 to
    8; CIFAR-10: 32). It must divide `training.group_size`. 1: it sees none."""

    @classmethod
    def published(
        cls, preset: Literal["auto", "paper256", "cifar"], side: int
    ) -> tuple[Self, Self]:
        """Generator and discriminator of a configuration of StyleGAN2-ADA for images of `side`
        pixels.

        A recipe also has what goes with them: Adam with β (0, 0.99) and ε 1e-8, latent_size 512,
        non_saturating loss, R1 at every 16th update, path length with weight 2 at every 4th.

        | | auto, on g GPUs | paper256 | cifar |
        |---|---|---|---|
        | batch B | max(min(g · min(4096 / side, 32), 64), g) | 64 | 64 |
        | deviation_group | min(B / g, 4) | 8 | 32 |
        | learning rate | 0.0025, from 1024 pixels 0.002 | 0.0025 | 0.0025 |
        | R1 γ | 0.0002 side² / B | 1 | 0.01 |
        | EMA half-life, images | B · 312.5 | 20,000 | 500,000 |
        | EMA ramp | 0.05 | none | 0.05 |
        | path length, mixing | yes | yes | no |
        """
        wide = preset == "cifar" or (preset == "auto" and side >= 512)
        base = {"channel_base": 32_768 if wide else 16_384}
        group = {"auto": 4, "paper256": 8, "cifar": 32}[preset]
        layers, mixing = 8 if preset == "paper256" else 2, 0.0 if preset == "cifar" else 0.9
        residual = preset != "cifar"
        generator = cls.model_validate({**base, "mapping_layers": layers, "mixing": mixing})
        discriminator = cls.model_validate({**base, "residual": residual, "deviation_group": group})
        return generator, discriminator

    def group_problem(self, group_size: int) -> str | None:
        """A problem if the groups of deviations do not fit into those of training."""
        if group_size % self.deviation_group == 0:
            return None
        near = max(n for n in range(1, self.deviation_group + 1) if group_size % n == 0)
        return (
            f"deviation_group: {self.deviation_group} does not divide training.group_size "
            f"{group_size}; set it to {near}, or training.group_size to a multiple of it"
        )


class R3ganNetwork(_ConvolutionalSettings):
    """The generator and discriminator of R3GAN (Huang et al. 2024): residual stages of grouped
    convolutions, without normalisation. Labels enter as learned vectors: joined to z, and
    multiplied with the features of the discriminator."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.r3gan:R3ganDiscriminator",
        "vector_to_map": "ray_gen.networks.r3gan:R3ganGenerator",
    }
    kind: Literal["r3gan"] = "r3gan"
    width: PositiveInt = 768
    """Channels of the stages at low resolution. The paper: 768, for ImageNet 1536. 96 suits small
    sets on a CPU (unmeasured)."""
    full_width_stages: PositiveInt = 4
    """Number of stages with that width, from the start map on. Each stage above has half the
    channels of the stage before. The paper: 4 (4 x 4 to 32 x 32), for ImageNet at 64 x 64 5."""
    blocks: PositiveInt = 2
    """Residual blocks of a stage. The paper: 2."""
    expansion: PositiveInt = 2
    """How many times more channels a block has inside (an inverted bottleneck). The paper: 2."""
    group_width: PositiveInt = 16
    """Channels in a group of the 3 x 3 convolution; where it does not divide the channels inside a
    block, their greatest common divisor. The paper: 16, for ImageNet 32."""
    label_size: PositiveInt = 64
    """Length of the learned vector of the labels that joins z, in a conditional generator. The
    paper: 64."""
    tanh: bool = False
    """Whether images pass through tanh where the objective asks for it. The paper's do not: they
    are only clamped when they are shown."""
    bf16_from: PositiveInt = 8
    """The shorter side from which stages run in bfloat16, in pixels, with training.precision=bf16.
    The others stay in float32. The paper: 8; 32 at 256 x 256."""

    def size_problem(self, height: int, width: int, form: str | None = None) -> str | None:
        """Also why there would be stages without a channel."""
        problem = super().size_problem(height, width)
        if problem is not None:
            return problem
        steps, _ = halvings((1, height, width))
        halved = max(0, steps + 1 - self.full_width_stages)
        if self.width >> halved:
            return None
        return (
            f"halves its width {halved} times up to {height} x {width}, which leaves no channel of "
            f"{self.width}; set width to at least {1 << halved}, or raise full_width_stages"
        )


class AutoencoderKlNetwork(NetworkSettings):
    """The encoder and decoder of latent diffusion's autoencoder (Rombach et al. 2022), with the
    weights of diffusers' AutoencoderKL and VQModel: residual blocks with GroupNorm in levels, each
    of half the size, and attention at the smallest. For latents that are maps."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_map": "ray_gen.networks.autoencoder_kl:encoder_or_decoder"
    }
    kind: Literal["autoencoder_kl"] = "autoencoder_kl"
    width: PositiveInt = 128
    """Channels that multipliers multiply (published: 128)."""
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 4, 4), min_length=2)
    """Channels of each level in widths, from the size of the image on. A level more halves the side
    of the latent: 4 levels give an eighth. Published for a quarter: [1, 2, 4]; an eighth:
    [1, 2, 4, 4]; a sixteenth: [1, 1, 2, 2, 4]; a 32nd: [1, 1, 2, 2, 4, 4]."""
    blocks: PositiveInt = 2
    """Residual blocks of a level in the encoder (published: 2). A decoder has one more."""
    attention: tuple[PositiveInt, ...] = ()
    """Heights of maps, in pixels, at which self-attention follows each residual block. Published
    for 256 pixels: 16 for latents of a sixteenth, [16, 8] for those of a 32nd; VQ of an eighth: 32,
    with multipliers [1, 2, 2, 4]; else none."""
    middle_attention: bool = True
    """Whether there is self-attention between the two residual blocks at the latent's size. Its
    time and memory grow with the square of the latent's pixels."""
    groups: PositiveInt = 32
    """Groups of GroupNorm (published: 32). They must divide the channels of every level: 8 for a
    width of 24."""
    quant_conv: bool = True
    """Whether a 1 x 1 convolution ends the encoder and another begins the decoder, as published
    until Stable Diffusion XL. Later models have none. diffusers' VQModel has both."""

    @property
    def downsampling(self) -> int:
        """How many pixels of a side become one number of the latent."""
        return 1 << (len(self.multipliers) - 1)

    def size_problem(self, height: int, width: int, form: str | None = None) -> str | None:
        """Why the sides cannot be halved often enough, and the nearest that can. None if they
        can."""
        return multiple_problem(height, width, self.downsampling)

    @model_validator(mode="after")
    def _groups_divide_the_channels(self) -> Self:
        common = self.width * math.gcd(*self.multipliers)
        if common % self.groups:
            channels = next(
                m * self.width for m in self.multipliers if m * self.width % self.groups
            )
            most = max(n for n in range(1, self.groups + 1) if common % n == 0)
            multiple = self.groups // math.gcd(self.groups, *self.multipliers)
            raise ValueError(
                f"groups is {self.groups}, which does not divide the {channels} channels of a "
                f"level: set groups to {most}, or width to a multiple of {multiple}"
            )
        return self


class PatchNetwork(NetworkSettings):
    """The patch discriminator of pix2pix (Isola et al. 2017), VQGAN and latent diffusion: a logit
    for each patch of an image. For objectives that take several logits of an image. A label is a
    learned plane joined to the image."""

    targets: ClassVar[Mapping[str, str]] = {
        "map_to_vector": "ray_gen.networks.patch:PatchDiscriminator"
    }
    gives_features: ClassVar[bool] = True
    kind: Literal["patch"] = "patch"
    layers: PositiveInt = 3
    """Convolutions with stride 2. With 3 a logit sees 70 x 70 pixels (published), with 2 34 x 34,
    with 1 16 x 16. Images need sides of 24, 12 or 6 pixels for them; 32 x 32 has 36 logits with 2.
    """
    width: PositiveInt = 64
    """Channels after the first convolution; they double at each of the next, up to 8 x width
    (published: 64)."""
    norm: Literal["batch", "none"] = "batch"
    """Between the first and the last convolution. batch: BatchNorm over a group, as published."""
    spectral_norm: bool = False
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""

    def size_problem(self, height: int, width: int, form: str | None = None) -> str | None:
        """Why no patch is left, and how many layers leave some. None if there are patches."""
        return patch_problem(height, width, self.layers)


class CustomNetwork(NetworkSettings):
    """Your own class, called as `Name(signature, **options)`. For signatures see ray_gen.core."""

    may_be_styled: ClassVar[bool] = True
    reconstructs: ClassVar[bool] = True
    gives_features: ClassVar[bool] = True
    kind: Literal["custom"] = "custom"
    target: str = Field(pattern=r"^[\w.]+:\w+$")
    """The class, as package.module:Name. Every node must be able to import it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    def arguments(self) -> dict[str, Any]:
        """The options."""
        return self.options


_Kinds = (
    MlpNetwork
    | ConvNetwork
    | DcganNetwork
    | FastGanNetwork
    | ResnetNetwork
    | StyleGan2Network
    | R3ganNetwork
    | AutoencoderKlNetwork
    | PatchNetwork
    | CustomNetwork
)
Network = Annotated[_Kinds, Field(discriminator="kind"), or_its_kind(_Kinds)]
