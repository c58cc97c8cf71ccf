"""`objective`: what is trained. The settings know its networks and phases without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ray_gen.experiment.gan import GanObjective
from ray_gen.experiment.latent_autoencoder import LatentAutoencoderObjective
from ray_gen.experiment.objective import MinOrMax, ObjectiveSettings
from ray_gen.experiment.schedules import NonNegative
from ray_gen.experiment.vae_gan import VaeGanObjective
from ray_gen.settings import live, or_its_kind

LikelihoodName = Literal[
    "bernoulli", "continuous_bernoulli", "gaussian", "logistic", "logistic_mixture"
]


def _advice_on_a_bernoulli(
    likelihood: str, channels: int, grey: float, better: str
) -> Iterator[str]:
    """grey: the share of values that are neither nearly black nor nearly white: 10 % of MNIST's
    digits, 33 % of the same at 8 pixels, 52 % of coloured emoji at 64 pixels."""
    if likelihood == "bernoulli" and grey > (0.4 if channels == 1 else 0.1):
        yield (
            f"a Bernoulli likelihood is of black and white pixels, and {grey:.0%} of these values "
            f"lie between: reconstructions will be washed out; set objective.likelihood to {better}"
        )


class AutoencoderObjective(ObjectiveSettings):
    """A plain autoencoder: only reconstruction. It has no prior, so it cannot make samples."""

    targets: ClassVar[Mapping[str, str]] = {"objective": "ray_gen.objectives.vae:Autoencoder"}
    network_names: ClassVar[tuple[str, ...] | None] = ("encoder", "decoder")
    phase_names: ClassVar[tuple[str, ...] | None] = ("autoencoder",)
    evaluated: ClassVar[Mapping[str, MinOrMax | None] | None] = {"reconstruction": "min"}
    knows_levels: ClassVar[bool] = True
    title: ClassVar[str] = "Autoencoder"
    has_prior: ClassVar[bool] = False
    kind: Literal["autoencoder"] = "autoencoder"
    latent_size: PositiveInt = 32
    """How many numbers the latent vector z has."""
    likelihood: LikelihoodName = "bernoulli"
    """The loss of a pixel. bernoulli: binary cross-entropy from logits. gaussian: squared error.
    The others: as of `vae`."""

    def advice_on_pixels(self, channels: int, grey: float) -> Iterator[str]:
        """About a Bernoulli."""
        yield from _advice_on_a_bernoulli(self.likelihood, channels, grey, "gaussian")


class VaeObjective(ObjectiveSettings):
    """A variational autoencoder (Kingma and Welling 2014), also as β-VAE and conditional VAE (Sohn
    et al. 2015)."""

    targets: ClassVar[Mapping[str, str]] = {"objective": "ray_gen.objectives.vae:Vae"}
    network_names: ClassVar[tuple[str, ...] | None] = ("encoder", "decoder")
    phase_names: ClassVar[tuple[str, ...] | None] = ("autoencoder",)
    evaluated: ClassVar[Mapping[str, MinOrMax | None] | None] = {
        "elbo": "max",
        "reconstruction": "min",
        "kl": None,
    }
    has_likelihood: ClassVar[bool] = True
    knows_levels: ClassVar[bool] = True
    title: ClassVar[str] = "Variational autoencoder"
    kind: Literal["vae"] = "vae"
    latent_size: PositiveInt = 20
    """How many numbers the latent vector z has."""
    likelihood: LikelihoodName = "bernoulli"
    """The distribution p(x|z) of the pixels. bernoulli: pixels that are black or white, from
    logits. continuous_bernoulli: a density of values in [0, 1] (Loaiza-Ganem and Cunningham 2019);
    samples show its mean. gaussian: a density whose mean is the decoder's output. logistic:
    probabilities of 256 or 65,536 levels by a logistic distribution. logistic_mixture: the same by
    a mixture of 10, whose colours depend on each other in RGB (Salimans et al. 2017, PixelCNN++);
    channels are independent otherwise."""
    sigma: PositiveFloat | Literal["learned", "optimal"] = "learned"
    """Standard deviation of the Gaussian, for pixels in [0, 1]: a number, one learned number for
    all pixels, or the one that is optimal (Rybkin et al. 2021): the root of the mean squared error
    of the update before, over its whole batch."""
    beta: NonNegative = live(1.0)
    """Weight of the KL term (Higgins et al. 2017); 1 is the ELBO."""
    beta_warmup_images: NonNegativeInt = 0
    """Images over which the weight grows linearly from 0 to beta."""
    binarize: bool = False
    """Redraw each pixel as Bernoulli(x) each time training uses the image (Salakhutdinov and Murray
    2008; Burda et al. 2016), so that the Bernoulli is a likelihood. Pixels of held-out images are
    drawn once."""
    samples: PositiveInt = 1
    """Draws of z per image and step: K. 1: the ELBO with its KL in closed form. More: the bound
    log 1/K Σ p(x, z_k) / q(z_k|x), on average at least as tight (Burda et al. 2016: 5 and 50). A
    step decodes K latents per image."""
    gradient: Literal["iwae", "dreg"] = "iwae"
    """With more than one sample, the gradient of the encoder. iwae: that of the bound. dreg: one of
    the same expectation with less variance (Tucker et al. 2019), for a second backward pass through
    the decoder: a step of iwae-mnist5k took 11 % longer, with 128 images on one thread."""

    @property
    def held_out_scores(self) -> Mapping[str, MinOrMax | None]:
        """With more than one sample also the bound of them all."""
        assert self.evaluated is not None
        return {"iwae": "max", **self.evaluated} if self.samples > 1 else self.evaluated

    def advice(
        self, images: int, starts_from_a_run: bool, of_latents: bool = False
    ) -> Iterator[str]:
        """About a trained run to start from."""
        if images < 1_000 and not starts_from_a_run:
            yield (
                f"a VAE of {images:,} images reconstructs others badly; set a smaller "
                "objective.latent_size, or training.start_from=RUN, a run of similar images"
            )

    def advice_on_pixels(self, channels: int, grey: float) -> Iterator[str]:
        """About a Bernoulli."""
        if not self.binarize:
            better = "gaussian, or to logistic_mixture"
            yield from _advice_on_a_bernoulli(self.likelihood, channels, grey, better)

    @model_validator(mode="after")
    def _several_samples_have_no_optimal_sigma(self) -> Self:
        if self.samples > 1 and self.likelihood == "gaussian" and self.sigma == "optimal":
            raise ValueError(
                f"sigma is optimal: that is known for one sample, but the bound of {self.samples} "
                "samples weighs their errors: set sigma to learned, or samples to 1"
            )
        return self

    @model_validator(mode="after")
    def _several_samples_have_no_beta(self) -> Self:
        if self.samples > 1 and (self.beta != 1.0 or self.beta_warmup_images):
            raise ValueError(
                "beta and beta_warmup_images weigh the KL of the ELBO, but the bound of "
                f"{self.samples} samples has no KL term: set beta to 1 and beta_warmup_images to "
                "0, or samples to 1"
            )
        if self.samples == 1 and self.gradient == "dreg":
            raise ValueError(
                "gradient is dreg, but with one sample the KL and its gradient are exact: set "
                "samples, for example to 5, or gradient to iwae"
            )
        return self

    @model_validator(mode="after")
    def _only_a_bernoulli_is_of_binary_pixels(self) -> Self:
        if self.binarize and self.likelihood != "bernoulli":
            raise ValueError(
                f"binarize makes pixels 0 or 1, but a {self.likelihood} likelihood is of grey "
                "values: set binarize to false or likelihood to bernoulli"
            )
        return self


class CustomObjective(ObjectiveSettings):
    """Your own subclass of `ray_gen.core.Objective`, called as
    `Name(image_shape=..., label_count=..., **options)`."""

    evaluated: ClassVar[Mapping[str, MinOrMax | None] | None] = None
    at_rest: ClassVar[str | None] = "its objective has settled"
    kind: Literal["custom"] = "custom"
    target: str = Field(pattern=r"^[\w.]+:\w+$")
    """The class, as package.module:Name. Every node must be able to import it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    def arguments(self) -> dict[str, Any]:
        """The options."""
        return self.options


_Kinds = (
    AutoencoderObjective
    | VaeObjective
    | GanObjective
    | VaeGanObjective
    | LatentAutoencoderObjective
    | CustomObjective
)
Objective = Annotated[_Kinds, Field(discriminator="kind"), or_its_kind(_Kinds)]
