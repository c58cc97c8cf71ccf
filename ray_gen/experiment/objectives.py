"""`objective`: what is trained. Its networks and phases are known without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ray_gen.experiment.schedules import Count, CountSteps, NonNegative, Share
from ray_gen.experiment.settings import Component, live

Better = Literal["min", "max"]


class ObjectiveSettings(Component):
    """What every objective says of itself, before it is built."""

    network_names: ClassVar[tuple[str, ...] | None] = None
    """Keys that `networks` must have; None where only the objective's class knows."""
    phase_names: ClassVar[tuple[str, ...] | None] = None
    """Keys that `optimizers` must have; None where only the objective's class knows."""
    evaluated: ClassVar[Mapping[str, Better | None] | None] = {}
    """Its held-out scores, which `checkpoints.best` can follow, and which of two values is the
    better one; None where only the objective's class knows."""
    title: ClassVar[str] = "Model with an objective of its own"
    """What a model card calls it."""
    has_likelihood: ClassVar[bool] = False
    """Whether it bounds log p(x): `ray_gen.core.Bounds`."""
    at_rest: ClassVar[str | None] = None
    """What has happened when its own stopping rule ends a run; None where it has none."""

    conditional: bool = False
    """Give the label to every network."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the objective's class; the condition reaches it as `label_count`."""
        return {
            name: value.at(0) if isinstance(value, CountSteps) else value
            for name, value in super().arguments().items()
            if name != "conditional"
        }

    def stop_problem(self) -> str | None:
        """Why `training.stop_at_equilibrium` cannot end a run of this objective, or None."""
        kind = getattr(self, "kind", "custom")
        return f"a {kind} objective has no rest to come to" if self.at_rest is None else None


class AutoencoderObjective(ObjectiveSettings):
    """A plain autoencoder: reconstruction alone. It has no prior, so it cannot be sampled from."""

    targets: ClassVar[Mapping[str, str]] = {"objective": "ray_gen.objectives.vae:Autoencoder"}
    network_names: ClassVar[tuple[str, ...] | None] = ("encoder", "decoder")
    phase_names: ClassVar[tuple[str, ...] | None] = ("autoencoder",)
    evaluated: ClassVar[Mapping[str, Better | None] | None] = {"reconstruction": "min"}
    title: ClassVar[str] = "Autoencoder"
    kind: Literal["autoencoder"] = "autoencoder"
    latent_size: PositiveInt = 32
    """Numbers in z."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """bernoulli: binary cross-entropy from logits; gaussian: squared error."""


class VaeObjective(ObjectiveSettings):
    """A variational autoencoder (Kingma and Welling 2014), β-VAE and conditional VAE (Sohn et
    al. 2015) included."""

    targets: ClassVar[Mapping[str, str]] = {"objective": "ray_gen.objectives.vae:Vae"}
    network_names: ClassVar[tuple[str, ...] | None] = ("encoder", "decoder")
    phase_names: ClassVar[tuple[str, ...] | None] = ("autoencoder",)
    evaluated: ClassVar[Mapping[str, Better | None] | None] = {
        "elbo": "max",
        "reconstruction": "min",
        "kl": None,
    }
    has_likelihood: ClassVar[bool] = True
    title: ClassVar[str] = "Variational autoencoder"
    kind: Literal["vae"] = "vae"
    latent_size: PositiveInt = 20
    """Numbers in z."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """p(x|z): independent Bernoulli from logits, or a Gaussian about the decoder's output."""
    sigma: PositiveFloat | Literal["learned"] = "learned"
    """Standard deviation of the Gaussian, pixels in [0, 1]: a number, or one learned for all pixels
    (Rybkin et al. 2021). The Bernoulli has none."""
    beta: NonNegative = live(1.0)
    """Weight of the KL term (Higgins et al. 2017); 1 is the ELBO."""
    beta_warmup_images: NonNegativeInt = 0
    """Images over which the weight grows linearly from 0 to beta."""
    binarize: bool = False
    """Redraw each pixel as Bernoulli(x) whenever an image is drawn (Salakhutdinov and Murray 2008;
    Burda et al. 2016), so that the Bernoulli is a likelihood. Held-out images are drawn once."""

    @model_validator(mode="after")
    def _only_a_bernoulli_is_of_binary_pixels(self) -> Self:
        if self.binarize and self.likelihood != "bernoulli":
            raise ValueError(
                "binarize makes pixels 0 or 1 and a gaussian likelihood is a density of grey "
                "values: set binarize to false or likelihood to bernoulli"
            )
        return self


class GanObjective(ObjectiveSettings):
    """A generative adversarial network (Goodfellow et al. 2014), conditional GAN (Mirza and
    Osindero 2014) included."""

    targets: ClassVar[Mapping[str, str]] = {"objective": "ray_gen.objectives.gan:Gan"}
    network_names: ClassVar[tuple[str, ...] | None] = ("generator", "discriminator")
    phase_names: ClassVar[tuple[str, ...] | None] = ("discriminator", "generator")
    at_rest: ClassVar[str | None] = "D(x) and D(G(z)) have settled at their equilibrium"
    title: ClassVar[str] = "Generative adversarial network"
    kind: Literal["gan"] = "gan"
    latent_size: PositiveInt = 100
    """Numbers in z."""
    latent_distribution: Literal["normal", "uniform"] = "normal"
    """N(0, I), or uniform on [-1, 1] as in the DCGAN paper."""
    loss: Literal["non_saturating", "minimax", "hinge"] = "non_saturating"
    """The generator's: -log D(G(z)), log(1 - D(G(z))), or hinge for both networks."""
    discriminator_steps: Count = live(1)
    """k: discriminator updates, each on fresh images, to one update of the generator."""
    label_smoothing: Share = live(0.0)
    """One-sided (Salimans et al. 2016): the target of real images is 1 minus this."""
    r1_weight: NonNegative = live(0.0)
    """γ of R1 = γ/2 · E‖∇D(x)‖² (Mescheder et al. 2018). Its right size depends on the data: the
    first knob to search."""
    r1_every: Count = live(1)
    """Discriminator updates between two R1 terms, each then weighted by as many (StyleGAN2: 16)."""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """DiffAugment (Zhao et al. 2020) on what the discriminator sees; for a few thousand images."""

    @model_validator(mode="after")
    def _smoothing_has_a_probability(self) -> Self:
        if self.loss == "hinge" and self.label_smoothing != 0.0:
            raise ValueError(
                "label_smoothing moves a probability and the hinge loss has none: "
                "set label_smoothing to 0 or choose another loss"
            )
        return self

    def stop_problem(self) -> str | None:
        """D(x) = ½ is an equilibrium of probabilities."""
        if self.loss == "hinge":
            return "the hinge loss gives no probability, so D(x) = ½ is not its equilibrium"
        return None


class CustomObjective(ObjectiveSettings):
    """A class of your own that satisfies `ray_gen.core.Objective`, called as
    `Name(image_shape=..., label_count=..., **options)`."""

    evaluated: ClassVar[Mapping[str, Better | None] | None] = None
    at_rest: ClassVar[str | None] = "its objective has settled"
    kind: Literal["custom"] = "custom"
    target: str = Field(pattern=r"^[\w.]+:\w+$")
    """package.module:Name, importable on every node."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments."""

    def arguments(self) -> dict[str, Any]:
        """The options."""
        return self.options


Objective = Annotated[
    AutoencoderObjective | VaeObjective | GanObjective | CustomObjective,
    Field(discriminator="kind"),
]
