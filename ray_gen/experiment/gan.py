"""`objective` of kind gan: losses, penalties and augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from ray_gen.experiment.augment import AdaSettings, Augment
from ray_gen.experiment.distances import Distance, L1Distance
from ray_gen.experiment.networks import NetworkSettings
from ray_gen.experiment.objective import ObjectiveSettings
from ray_gen.experiment.schedules import Count, Fraction, NonNegative
from ray_gen.settings import live


class GanObjective(ObjectiveSettings):
    """A generative adversarial network (Goodfellow et al. 2014), also as conditional GAN (Mirza and
    Osindero 2014)."""

    targets: ClassVar[Mapping[str, str]] = {"objective": "ray_gen.objectives.gan:Gan"}
    network_names: ClassVar[tuple[str, ...] | None] = ("generator", "discriminator")
    phase_names: ClassVar[tuple[str, ...] | None] = ("discriminator", "generator")
    at_rest: ClassVar[str | None] = "D(x) and D(G(z)) have settled at their equilibrium"
    title: ClassVar[str] = "Generative adversarial network"
    knows_opacity: ClassVar[bool] = True
    parts_of_weights: ClassVar[Mapping[str, str]] = {
        "lecam_weight": "the running means of its logits",
        "path_length_weight": "the running mean of its path lengths",
        "reconstruction_weight": "the layers of its discriminator that reconstruct",
    }
    kind: Literal["gan"] = "gan"
    latent_size: PositiveInt = 100
    """How many numbers the latent vector z has."""
    latent_distribution: Literal["normal", "uniform"] = "normal"
    """Where z is drawn from: N(0, I), or uniform on [-1, 1] as in the DCGAN paper."""
    loss: Literal[
        "non_saturating", "minimax", "hinge", "least_squares", "wasserstein", "relativistic"
    ] = "non_saturating"
    """The losses of both networks. non_saturating: the generator minimises -log D(G(z)). minimax:
    it minimises log(1 - D(G(z))). hinge: Lim and Ye 2017. least_squares: Mao et al. 2017.
    wasserstein: Arjovsky et al. 2017; it needs gradient_penalty_weight. relativistic: each
    generated image is compared with a real one (Jolicoeur-Martineau 2019), as in R3GAN; it needs
    r1_weight and r2_weight."""
    discriminator_steps: Count = live(1)
    """Discriminator updates, each on new images, for one update of the generator: k."""
    label_smoothing: Fraction = live(0.0)
    """How much the target of real images is below 1: one-sided label smoothing (Salimans et al.
    2016)."""
    r1_weight: NonNegative = live(0.0)
    """Weight γ of the gradient penalty R1 = γ/2 · E‖∇D(x)‖² (Mescheder et al. 2018). The right
    value depends on the data: search this field first."""
    r1_every: Count = live(1)
    """Discriminator updates between two R1 terms. Each term's weight is multiplied by this number
    (StyleGAN2: 16)."""
    r2_weight: NonNegative = live(0.0)
    """Weight γ of the gradient penalty R2 = γ/2 · E‖∇D(G(z))‖² on generated images (Mescheder et
    al. 2018). R3GAN uses it together with R1, with the same weight."""
    r2_every: Count = live(1)
    """Discriminator updates between two R2 terms. Each term's weight is multiplied by this
    number."""
    gradient_penalty_weight: NonNegative = live(0.0)
    """Weight λ of the gradient penalty λ · E(‖∇D(x̂)‖₂ - 1)² on mixes x̂ of a real and a generated
    image (Gulrajani et al. 2017: 10, with the Wasserstein loss). The discriminator must have no
    BatchNorm."""
    gradient_penalty_every: Count = live(1)
    """Discriminator updates between two such terms. Each term's weight is multiplied by this
    number."""
    lecam_weight: NonNegative = live(0.0)
    """Weight λ of LeCam: each logit is held near the running mean of the other kind's logits (Tseng
    et al. 2021: 0.3 with the hinge loss). For few images. A schedule of kind steps starts it
    later."""
    lecam_every: Count = live(1)
    """Discriminator updates between two LeCam terms. Each term's weight is multiplied by this
    number."""
    consistency_weight: NonNegative = live(0.0)
    """Weight λ of the consistency penalty λ · E(D(x) - D(T(x)))² on real images as D sees them,
    where T mirrors and shifts by up to 1/8 (Zhang et al. 2020: 10)."""
    fake_consistency_weight: NonNegative = live(0.0)
    """Weight λ of the same penalty on generated images: balanced consistency, with the same weight
    as real images (Zhao et al. 2021: 10)."""
    consistency_every: Count = live(1)
    """Discriminator updates between two consistency penalties. Each one's weight is multiplied by
    this number."""
    classifier_weight: NonNegative = 0.0
    """Weight of the discriminator's auxiliary classifier: it also learns the class of real images
    (Odena et al. 2017; Gulrajani et al. 2017 and StudioGAN: 1). It needs conditional=true, and a
    discriminator that does not get the class: its labels are none or projection."""
    generator_classifier_weight: NonNegative = 0.0
    """Weight of the same classifier's loss on generated images in the generator's loss, which makes
    it draw the class that it was asked for (StudioGAN: 1, Gulrajani et al. 2017: 0.1)."""
    classify_generated: bool = False
    """Whether the discriminator also learns the classes of generated images, as in Odena et al.
    2017. Later work learns those of real images only."""
    path_length_weight: NonNegative = live(0.0)
    """Weight λ of the path length penalty λ · E(‖Jᵀy‖ - a)² on the generator (Karras et al. 2020,
    StyleGAN2, section 3.2: 2; ADA uses none for CIFAR-10). It needs a generator with styles."""
    path_length_every: Count = live(4)
    """Generator updates between two path length terms. Each term's weight is multiplied by this
    number (StyleGAN2: 4). Half of the images are used."""
    hinge_margin: PositiveFloat | tuple[PositiveFloat, PositiveFloat] = 1.0
    """Logit from which a real image adds nothing to the hinge loss, and minus which a generated one
    does not: a number, or [least, largest] of uniform draws for each image (FastGAN: [0.8, 1.0],
    where its code draws for each logit)."""
    reconstruction_weight: NonNegative = live(0.0)
    """Weight of the discriminator's reconstructions: it reconstructs the augmented real images from
    its features, and the distance from them is a loss (Liu et al. 2021, eq. 4). For few images. The
    loss is a mean over images; FastGAN's code sums over the 8 images of a batch: 8."""
    reconstruction_distance: Distance = L1Distance()
    """How far a reconstruction is from its image. FastGAN takes a perceptual distance: vgg16 is
    its nearest. All but l1 and ssim need the weights of a trained network."""
    penalty_precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the discriminator's passes for R1, R2 and the gradient penalty, with
    training.precision=bf16. bf16: as in its other passes. Gradients of images, their squares and
    sums are float32 in both."""
    augment: Augment = ()
    """Augmentation of all images that the discriminator sees, for data sets of up to some ten
    thousand images. A list: transforms of DiffAugment (Zhao et al. 2020). A mapping
    {kind: ada, …}, or ada alone: adaptive discriminator augmentation (Karras et al. 2020)."""

    @model_validator(mode="after")
    def _smoothing_has_a_probability(self) -> Self:
        if not self.gives_probability and self.label_smoothing != 0.0:
            raise ValueError(
                f"label_smoothing moves a probability, but the {self.loss} loss has none: "
                "set label_smoothing to 0 or choose another loss"
            )
        return self

    @model_validator(mode="after")
    def _an_adaptive_p_has_a_zero(self) -> Self:
        augment = self.augment
        if (
            isinstance(augment, AdaSettings)
            and augment.p == "adaptive"
            and self.loss in ("relativistic", "wasserstein")
        ):
            raise ValueError(
                f"augment.p: adaptive counts the real images whose D(x) is above ½, and the logits "
                f"of the {self.loss} loss have no such zero: only their differences count; set "
                "augment.p to a number, or to a schedule: {kind: cosine, start: 0, end: 0.3, "
                "until_images: N}"
            )
        return self

    @model_validator(mode="after")
    def _margins_are_of_the_hinge_loss(self) -> Self:
        if self.loss != "hinge" and self.hinge_margin != 1.0:
            raise ValueError(
                f"hinge_margin is of the hinge loss, but the loss is {self.loss}: set hinge_margin "
                "to 1 or loss to hinge"
            )
        if isinstance(self.hinge_margin, tuple) and self.hinge_margin[0] >= self.hinge_margin[1]:
            least, largest = self.hinge_margin
            raise ValueError(
                f"hinge_margin is [{least:g}, {largest:g}], but its first number must be below its "
                "second: give one number, or e.g. [0.8, 1.0]"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the objective's class. `ada` holds those of `AdaSettings`."""
        given = super().arguments()
        if isinstance(self.augment, AdaSettings):
            given |= {"augment": (), "ada": self.augment.arguments()}
        return given

    @model_validator(mode="after")
    def _a_classifier_has_classes(self) -> Self:
        weights = {
            "classifier_weight": self.classifier_weight,
            "generator_classifier_weight": self.generator_classifier_weight,
        }
        for name, weight in weights.items():
            if weight != 0.0 and not self.conditional:
                raise ValueError(
                    f"{name} is {_told(weight)}, but without labels there is no class to tell: set "
                    f"conditional to true or {name} to 0"
                )
        if self.generator_classifier_weight != 0.0 and self.classifier_weight == 0.0:
            raise ValueError(
                f"generator_classifier_weight is {_told(self.generator_classifier_weight)}, but "
                "with classifier_weight 0 the classifier learns nothing: set classifier_weight to "
                "1, or generator_classifier_weight to 0"
            )
        if self.classify_generated and self.classifier_weight == 0.0:
            raise ValueError(
                "classify_generated is true, but with classifier_weight 0 nothing is classified: "
                "set classifier_weight, for example to 1, or classify_generated to false"
            )
        return self

    def told(self, image_shape: tuple[int, int, int], images: int) -> Mapping[str, str]:
        """The augmentation."""
        del image_shape, images
        if isinstance(self.augment, AdaSettings):
            return {"augments": self.augment.told()}
        return {"augments": ", ".join(self.augment)} if self.augment else {}

    def advice(
        self, images: int, starts_from_a_run: bool, of_latents: bool = False
    ) -> Iterator[str]:
        """About augmentation, and about a trained run to start from."""
        augmented = isinstance(self.augment, AdaSettings) or bool(self.augment)
        start = "" if starts_from_a_run else "training.start_from=RUN, a run of similar images"
        if images < 100 and start:
            yield (
                f"a GAN that learns {images:,} images from the beginning makes copies of them; "
                f"set {start}, and training.freeze"
            )
        elif images < 1_000 and not augmented:
            other = f", or {start}" if start else ""
            yield (
                f"without augmentation the discriminator knows {images:,} images by heart soon; "
                f"set objective.augment=[{'' if of_latents else 'color,'}translation]{other}"
            )
        elif images < 1_000 and start:
            yield f"for more variety from {images:,} images set {start}"
        elif images > 100_000 and augmented:
            yield (
                f"{images:,} images need no augmentation, which costs a little quality; "
                "objective.augment=[] turns it off"
            )

    @property
    def gives_probability(self) -> bool:
        """Whether the sigmoid of D's logit is D(x), the probability that x is real."""
        return self.loss in ("non_saturating", "minimax")

    def network_problems(self, networks: Mapping[str, NetworkSettings]) -> Iterator[str]:
        """A gradient penalty of each image needs logits that depend on this image alone, a
        classifier a network that does not get the class, and reconstructions one that makes them.
        Labels enter as a network can take them."""
        discriminator = networks.get("discriminator")
        classifies = self.classifier_weight != 0.0
        if self.conditional:
            to = "vectors" if classifies else "vector"
            for name, form in (("generator", "vector_to_map"), ("discriminator", f"map_to_{to}")):
                network = networks.get(name)
                problem = None if network is None else network.labels_problem(form)
                if problem is not None:
                    yield f"networks.{name}.labels: {problem}"
        if classifies and discriminator is not None:
            yield from _classifier_problems(discriminator)
        if self.reconstruction_weight != 0.0 and not getattr(discriminator, "reconstructs", True):
            yield (
                "objective.reconstruction_weight: needs a discriminator that reconstructs images, "
                f"and {getattr(discriminator, 'kind', 'it')} does not; set "
                "networks.discriminator.kind=fastgan or objective.reconstruction_weight=0"
            )
        if self.gradient_penalty_weight != 0.0 and getattr(discriminator, "batch_norm", False):
            yield (
                "objective.gradient_penalty_weight: penalises the gradient at each image, and with "
                "BatchNorm a logit depends on the other images too (Gulrajani et al. 2017, section "
                "4); set networks.discriminator.batch_norm=false"
            )

        generator = networks.get("generator")
        if self.path_length_weight != 0.0 and generator is not None and not generator.may_be_styled:
            yield (
                "objective.path_length_weight: needs a generator with styles, and "
                f"{getattr(generator, 'kind', 'custom')} has none; set it to 0, or "
                "networks.generator.kind to stylegan2"
            )
        mixing = getattr(generator, "mixing", 0.0)
        if self.latent_distribution == "uniform" and mixing != 0.0:
            yield (
                "networks.generator.mixing: takes styles of a normal z, but "
                "objective.latent_distribution is uniform; set mixing to 0, or "
                "latent_distribution to normal"
            )

    def stop_problem(self) -> str | None:
        """A problem for losses on logits: D(x) = ½ is an equilibrium of probabilities."""
        if not self.gives_probability:
            return f"the {self.loss} loss gives no probability, so D(x) = ½ is not its equilibrium"
        return None


def _told(weight: Any) -> str:
    """A weight in an error."""
    return str(weight) if isinstance(weight, (int, float)) else "a schedule"


def _classifier_problems(discriminator: NetworkSettings) -> Iterator[str]:
    kind = getattr(discriminator, "kind", "custom")
    off = "set objective.classifier_weight and objective.generator_classifier_weight to 0"
    if discriminator.form_problem("map_to_vectors", ()) is not None:
        yield (
            f"networks.discriminator.kind: {kind} has no classifier, but "
            "objective.classifier_weight is not 0; use resnet, dcgan, mlp or your own class "
            f"(kind: custom), or {off}"
        )
    elif getattr(discriminator, "labels", None) == "concatenated":
        can = "none or projection" if kind != "mlp" else "none"
        yield (
            "networks.discriminator.labels: concatenated shows the discriminator the class that "
            f"its classifier is to tell; set it to {can}, or {off}"
        )
