"""`Model`: sample, encode, decode and judge with a trained model, on batches of any size."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsFloat, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn

from ray_gen.core import (
    Decodes,
    Discriminates,
    Encodes,
    Networks,
    Noise,
    Objective,
    Posterior,
    Reconstructs,
    Shape,
    posteriors_of,
)
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.pipeline import latent
from ray_gen.pipeline.arguments import (
    BATCH,
    Array,
    Conditions,
    Floats,
    Labels,
    checked_count,
    checked_images,
    checked_levels,
    checked_numbers,
    class_number,
    class_numbers,
    condition_numbers,
    levels_in_words,
    real_number,
    whole_number,
)
from ray_gen.pipeline.files import whole_values
from ray_gen.pipeline.mixture import Mixture
from ray_gen.pipeline.origin import Origin
from ray_gen.pipeline.pretrained import Facts
from ray_gen.pipeline.styles import DRAWS, STYLES, are_styles, moments, styled
from ray_gen.pipeline.truncation import from_styles, has_styles, psi, truncated
from ray_gen.pixels import PixelFormat, stretched
from ray_gen.runs.manifest import NETWORKS, OF_A_MODEL, Manifest
from ray_gen.sampling import latents_of, noise_for
from ray_gen.training.build import build_networks
from ray_gen.training.labels import labels_in_turn, labels_of
from ray_gen.training.state import load_tensors

Latents = Floats | Mapping[str, Floats]
"""One latent: a tensor (N, *shape). Several (the levels of a hierarchy): such tensors by name. Of a
generator with styles also {"styles": (N, L, W)}, as `Pipeline.styles` and `project` give them."""

Drawn = Tensor | dict[str, Tensor]
"""Latents as the methods return them."""

PartForFeatures = Literal["auto", "encoder", "discriminator"]
"""The part of a model whose numbers are features of an image."""

_Found = TypeVar("_Found")


class Model:
    """The networks of a run that are used after training, in eval mode.

    Images are floats (N, C, H, W) in [0, 1], latents are floats (N, *shape). Results are float32 on
    the CPU; the networks may be on any device. Input without N is a batch of one. NumPy arrays are
    accepted too. `labels` are classes of a conditional model by number or name. `conditions` are
    its numbers by name, in the data's own units. Both are one for all or one for each. Methods that
    make images use all classes in turn if no labels are given, and numbers spread over the mean ± 2
    standard deviations of the data if no conditions are given. Impossible requests raise Refused.
    """

    def __init__(
        self,
        experiment: Experiment,
        objective: Objective,
        networks: Networks,
        checkpoint: Path | None = None,
        facts: Facts | None = None,
    ) -> None:
        """checkpoint: the folder of the discriminator; it is read on the first use of it. facts:
        the name of its run, its training images and so on, as far as they are known."""
        self.experiment = experiment
        self.objective = objective
        self.networks = networks
        self.class_names = tuple(experiment.data.classes or ())
        self.facts = facts or Facts()
        self.name = self.facts.name or experiment.name
        self._checkpoint = checkpoint
        weight = next(iter(networks.parameters()))
        self.device, self._dtype = weight.device, weight.dtype

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.experiment.picture_shape))
        classes = len(self.class_names)
        return f"{type(self).__name__}({self.name}, {shape}, classes={classes})"

    @property
    def images_seen(self) -> int | None:
        """Number of images that it was trained on. None if unknown."""
        return self.facts.images

    @property
    def pixel_format(self) -> PixelFormat:
        """The numbers of files of samples: as in the files of the data, if these have 16 bits."""
        data = self.experiment.data.pictures
        values = whole_values(data) if data.bits == 16 else None
        return PixelFormat(data.bits, values, data.has_opacity())

    @property
    def latent_shapes(self) -> dict[str, Shape]:
        """The shape of each latent, by name."""
        found = {name: noise.shape for name, noise in self.objective.latents.items()}
        if not found:
            raise Refused(f"{self._kind} has no latents")
        return found

    @property
    def latent_shape(self) -> Shape:
        """The shape of the only latent: (latent_size,), or the shape of a map. Raises Refused if
        there are several."""
        shapes = self.latent_shapes
        if len(shapes) > 1:
            raise Refused(
                f"{self._kind} has several latents, {levels_in_words(shapes)}; `latent_shapes` "
                "gives all"
            )
        return next(iter(shapes.values()))

    @cached_property
    def origin(self) -> Origin:
        """Identifies the weights that latents belong to: with other weights the same latents mean
        other images."""
        # Imported here: this module also imports the download of weights, which sampling does not
        # need.
        from ray_gen.weights import digest_of

        return Origin(self.name, digest_of(self.networks.state_dict()))

    # Images from latents

    def sample(
        self,
        count: SupportsIndex,
        labels: Labels | None = None,
        seed: SupportsIndex | None = None,
        truncation: SupportsFloat | None = None,
        prior: Mixture | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """`count` images drawn from the model: the decoded `latents`.

        seed: equal seeds give equal images, and image i does not depend on `count`. None: a new
        random seed. truncation: of z, as for `latents`; if the generator has styles, of these, as
        for `decode`.
        """
        seed = _seed(seed)
        return torch.cat(list(self.batches(count, labels, seed, truncation, prior, conditions)))

    def batches(
        self,
        count: SupportsIndex,
        labels: Labels | None,
        seed: SupportsIndex,
        truncation: SupportsFloat | None = None,
        prior: Mixture | None = None,
        conditions: Conditions | None = None,
    ) -> Iterator[Tensor]:
        """The images of `sample`, in parts of at most 256."""
        self._check_prior(prior)
        total, number = checked_count(count), whole_number(seed, "seed")
        chosen = self._labels(labels, total, conditions, in_turn=True)
        networks = self._truncated(truncation) if self.has_styles else self.networks
        for part in _parts(total):
            numbers = torch.arange(total)[part]
            z = self._levels(numbers, number, None if self.has_styles else truncation, prior)
            of_part = None if chosen is None else chosen[part]
            yield self._decoded(z, of_part, number, numbers, networks)

    def latents(
        self,
        count: SupportsIndex | Sequence[int] | Array,
        seed: SupportsIndex | None = None,
        truncation: SupportsFloat | None = None,
        prior: Mixture | None = None,
    ) -> Drawn:
        """The z that `sample` draws. count: how many, or a list of sample numbers.

        truncation: each number of z is drawn given |z| <= truncation (`latent.truncated`). Usual
        for a normal prior: 0.5 to 2. For a uniform prior on [-1, 1], a value below 1 scales z.
        prior: a mixture instead of the model's own prior (`fit_mixture`).
        """
        if truncation is not None and self.has_styles:
            raise Refused(
                "truncation: this model's generator truncates its styles, not z; give it to "
                "`sample`, `decode` or `interpolate`"
            )
        self._check_prior(prior)
        numbers, number = checked_numbers(count), _seed(seed)
        parts = [
            self._levels(numbers[part], number, truncation, prior) for part in _parts(len(numbers))
        ]
        return plain({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def decode(
        self,
        z: Latents,
        labels: Labels | None = None,
        seed: SupportsIndex = 0,
        numbers: SupportsIndex | Sequence[int] | Array | None = None,
        conditions: Conditions | None = None,
        truncation: SupportsFloat | None = None,
    ) -> Tensor:
        """Latents to images: G(z), or E[x|z].

        seed, numbers: select the noise of the networks, if they use any. With the seed and the
        numbers of `latents`, the result equals `sample`. numbers None: 0 to N - 1. truncation ψ,
        for a generator with styles: each style becomes mean + ψ (style - mean) (Karras et al. 2019,
        StyleGAN, appendix B). 0.7 is usual: less variety, better images.
        """
        networks = self._truncated(truncation)
        levels = self._given(z)
        count = count_of(levels)
        of_noise = torch.arange(count) if numbers is None else checked_numbers(numbers)
        if len(of_noise) != count:
            raise Refused(f"numbers: {len(of_noise)} given for {count} images; give one for each")
        of_each = self._labels(labels, count, conditions, in_turn=True)
        if are_styles(levels) and truncation is not None:
            levels = {STYLES: self._styles(levels, of_each, truncation)}
        return self._decoded(levels, of_each, whole_number(seed, "seed"), of_noise, networks)

    @property
    def has_styles(self) -> bool:
        """Whether the generator has styles (`ray_gen.core.Styled`): a truncation is then of these,
        and not of z."""
        return has_styles(self.networks)

    def _truncated(self, truncation: SupportsFloat | None) -> Networks:
        """The networks, with truncated styles. Raises Refused if there are none."""
        if truncation is None:
            return self.networks
        if not self.has_styles:
            raise Refused(
                f"truncation: {self._kind} with these networks has no styles to truncate; truncate "
                "z instead, in `sample` or `latents`"
            )
        return truncated(self.networks, psi(truncation))

    def _levels(
        self,
        numbers: Tensor,
        seed: int,
        truncation: SupportsFloat | None,
        prior: Mixture | None,
    ) -> dict[str, Tensor]:
        """The latents of the samples with these numbers, on the CPU."""
        limit = None if truncation is None else real_number(truncation, "truncation")
        if prior is not None:
            z = prior.draw(seed, numbers, limit).reshape(-1, *self.latent_shape)
            return {next(iter(self.latent_shapes)): z}
        priors = self.objective.latents
        drawn = latents_of(priors, seed, "sample", numbers.to(self.device), torch.float32)
        return {
            name: latent.truncated(z, priors[name], limit).cpu().contiguous()
            for name, z in drawn.items()
        }

    def _styles(
        self, levels: Mapping[str, Tensor], labels: Tensor | None, truncation: SupportsFloat
    ) -> Tensor:
        """Truncated styles (N, L, W) of the only latent or of styles, on the CPU."""
        self._truncated(truncation)  # raises first, if there are no styles
        share, generator = psi(truncation), styled(self.networks)
        assert generator is not None
        name, shape = next(iter(self.latent_shapes.items()))
        given = levels.get(STYLES) if are_styles(levels) else None
        if given is not None and share == 1.0:
            return given.float().cpu()
        z = levels[name] if given is None else torch.zeros(len(given), *shape)
        of_z = share if given is None else 0.0  # 0 gives the mean, whatever z is

        def styles(part: slice, labels: Tensor | None) -> Tensor:
            return generator.styles(z[part].to(self.device, self._dtype), labels, {}, of_z)

        found = _joined(self._in_parts(styles, len(z), labels))
        return found if given is None else found.lerp(given.float().cpu(), share)

    @cached_property
    def style_shape(self) -> Shape:
        """(L, W): the layers that have styles, and the numbers of a style. Raises Refused."""
        z = {name: torch.zeros(1, *shape) for name, shape in self.latent_shapes.items()}
        return tuple(self._styles(z, self._labels(None, 1, in_turn=True), 1.0).shape[1:])

    @cached_property
    def style_deviation(self) -> float:
        """The standard deviation of a number of a style, over draws from the prior, with all labels
        in turn. Raises Refused."""
        generator = styled(self.networks)
        if generator is None or not self.objective.has_prior:
            raise Refused(f"{self._kind} has no prior of styles, so no spread; give an extent")
        labels = self._labels(None, DRAWS, in_turn=True)
        on_device = None if labels is None else labels.to(self.device)
        return moments(self.objective, generator, on_device, 0, self.device, self._dtype)[1]

    def _given(self, latents: Latents, argument: str = "z") -> dict[str, Tensor]:
        """Latents by name, or {"styles": (N, L, W)} for a generator with styles. Raises Refused."""
        shapes = self.latent_shapes
        if isinstance(latents, Mapping) and are_styles(latents) and self.has_styles:
            shapes = {STYLES: self.style_shape}
        return checked_levels(latents, shapes, argument)

    def _decoded(
        self,
        levels: Mapping[str, Tensor],
        labels: Tensor | None,
        seed: int,
        numbers: Tensor,
        networks: Networks | None = None,
    ) -> Tensor:
        """Images of latents or styles, at most 256 at once. The sample numbers select the noise.
        networks: those of the model, or others in their place; styles need none."""
        objective, networks = self.objective, networks or self.networks
        if are_styles(levels) and self.has_styles:
            networks = from_styles(self.networks)
            levels = {next(iter(self.latent_shapes)): levels[STYLES]}

        def decode(part: slice, labels: Tensor | None) -> Tensor:
            z = {name: z[part].to(self.device, self._dtype) for name, z in levels.items()}
            of_part = numbers[part].to(self.device)
            noise = noise_for(
                objective.sampling_noise, networks, seed, "sample", of_part, self._dtype
            )
            return objective.sample(networks, z, labels, noise)

        return _joined(self._in_parts(decode, len(numbers), labels))

    # Latents from images

    def posterior(
        self,
        images: Floats,
        labels: Labels | None = None,
        conditions: Conditions | None = None,
    ) -> Posterior:
        """Mean and log-variance of q(z|x), each (N, *shape). The log-variance is None if the
        encoder gives one z and no distribution. For several latents see `posteriors`."""
        return self.posteriors(images, labels, conditions)[self._only_latent()]

    def posteriors(
        self,
        images: Floats,
        labels: Labels | None = None,
        conditions: Conditions | None = None,
    ) -> dict[str, Posterior]:
        """The posterior of each latent, by name."""
        encoder = self.encoder()
        parts = self._of_images(
            lambda images, labels: posteriors_of(encoder, self.networks, images, labels),
            images,
            labels,
            conditions,
        )
        posteriors: dict[str, Posterior] = {}
        for name in parts[0]:
            spreads = [part[name].log_variance for part in parts]
            known = [spread for spread in spreads if spread is not None]
            means = _joined([part[name].mean for part in parts])
            posteriors[name] = Posterior(means, _joined(known) if known else None)
        return posteriors

    def by_name(self, latents: Latents) -> dict[str, Tensor]:
        """Latents by name, also if there is only one."""
        return self._given(latents)

    def _only_latent(self) -> str:
        shapes = self.latent_shapes
        if len(shapes) > 1:
            raise Refused(
                f"{self._kind} has several latents, {levels_in_words(shapes)}; `posteriors` gives "
                "all"
            )
        return next(iter(shapes))

    def encode(
        self,
        images: Floats,
        labels: Labels | None = None,
        seed: SupportsIndex | None = None,
        conditions: Conditions | None = None,
    ) -> Drawn:
        """The posterior means of images. With a seed: one draw from each posterior."""
        number = None if seed is None else whole_number(seed, "seed")
        levels: dict[str, Tensor] = {}
        for name, (mean, log_variance) in self.posteriors(images, labels, conditions).items():
            levels[name] = mean
            if number is not None and log_variance is not None:
                spec, numbers = {name: Noise(tuple(mean.shape[1:]))}, torch.arange(len(mean))
                epsilon = latents_of(spec, number, "encode", numbers, torch.float32)[name]
                levels[name] = mean + (0.5 * log_variance).exp() * epsilon
        return plain(levels)

    def reconstruct(
        self,
        images: Floats,
        labels: Labels | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Reconstructions of images from their posterior means."""
        objective = self.objective
        if not isinstance(objective, Reconstructs):
            encoded = self.encode(images, labels, conditions=conditions)
            return self.decode(encoded, labels, conditions=conditions)
        done = 0

        def again(images: Tensor, labels: Tensor | None) -> Tensor:
            nonlocal done
            numbers = torch.arange(done, done + len(images), device=self.device)
            done += len(images)
            noise = noise_for(
                objective.sampling_noise, self.networks, 0, "sample", numbers, self._dtype
            )
            return objective.reconstruct(self.networks, images, labels, noise)

        return _joined(self._of_images(again, images, labels, conditions))

    # Scores of the discriminator

    def discriminate(
        self,
        images: Floats,
        labels: Labels | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """The discriminator's logits (N,). Higher means more real. Their sigmoid is D(x) if
        `discriminates_by_probability`.

        The weights are raw: a run keeps no average of a discriminator.
        """
        objective = self.discriminator()
        networks = self.discriminators
        logits = self._of_images(
            lambda images, labels: objective.discriminate(networks, images, labels),
            images,
            labels,
            conditions,
        )
        return _joined(logits)

    def features(
        self,
        images: Floats,
        labels: Labels | None = None,
        part: PartForFeatures = "auto",
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Vectors (N, D) of images: the means of the encoder's posteriors, or the input of the
        discriminator's last layer: the linear or convolution layer that is registered last. A map
        becomes its mean over all positions.

        part: auto takes the encoder if there is one.
        """
        found = self._of_images(
            lambda images, labels: self._vectors(images, labels, part), images, labels, conditions
        )
        return _joined(found)

    def vectors_of(
        self, images: Tensor, labels: Tensor | None, part: PartForFeatures = "auto"
    ) -> Tensor:
        """`features` through which gradients flow: images (N, C, H, W) in [0, 1] and labels as the
        networks get them, all on the networks' device."""
        return self._vectors(
            stretched(images.to(self._dtype), self.objective.image_range), labels, part
        )

    def vectors_by(self, networks: Networks, images: Tensor, part: PartForFeatures) -> Tensor:
        """`vectors_of` by other networks than the model's own, without labels. networks: what
        `networks` holds, or `discriminators`; images: on their device, of their type."""
        values = stretched(images, self.objective.image_range)
        return self._vectors(values, None, part, networks)

    def _vectors(
        self,
        images: Tensor,
        labels: Tensor | None,
        part: PartForFeatures,
        networks: Networks | None = None,
    ) -> Tensor:
        """The features of images in the objective's range."""
        if self.part_for_features(part) == "encoder":
            found = posteriors_of(self.encoder(), networks or self.networks, images, labels)
            means = [posterior.mean.flatten(1) for posterior in found.values()]
            return torch.cat(means, dim=1)
        objective, networks = self.discriminator(), networks or self.discriminators
        layers = [
            module for module in networks.modules() if isinstance(module, (nn.Linear, nn.Conv2d))
        ]
        if not layers:
            raise Refused(f"{self._kind} has a discriminator without a linear or convolution layer")
        seen: list[Tensor] = []

        def remember(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0].flatten(2).mean(2) if inputs[0].ndim > 2 else inputs[0])

        hook = layers[-1].register_forward_pre_hook(remember)
        try:
            objective.discriminate(networks, images, labels)
        finally:
            hook.remove()
        return torch.cat(seen)

    def part_for_features(
        self, part: PartForFeatures = "auto"
    ) -> Literal["encoder", "discriminator"]:
        """The part that `features` takes for `part`."""
        if part != "auto":
            return part
        return "encoder" if isinstance(self.objective, Encodes) else "discriminator"

    @property
    def discriminates_by_probability(self) -> bool:
        """Whether the sigmoid of `discriminate` is D(x), the probability that an image is real."""
        return bool(getattr(self.objective, "gives_probability", False))

    @cached_property
    def discriminators(self) -> Networks:
        """The networks that `discriminate` uses, with their raw weights."""
        if self._checkpoint is None:
            raise Refused(
                "discriminate: this pipeline has no discriminator, as it was not loaded from a "
                "run; load the run"
            )
        Manifest.checked(self._checkpoint, OF_A_MODEL)  # raises if the checkpoint was deleted since
        only = self.discriminator().discriminates_with
        networks = build_networks(self.experiment, self.objective, only)
        load_tensors(self._checkpoint, NETWORKS, networks)
        return networks.to(self.device).eval().requires_grad_(False)

    # Checks of the model and of arguments

    @property
    def _kind(self) -> str:
        return f"a run of kind {self.experiment.objective.kind}"

    def encoder(self) -> Encodes:
        """The objective if it encodes, else raises Refused. It takes images in `image_range`."""
        if isinstance(self.objective, Encodes):
            return self.objective
        if isinstance(self.objective, Decodes):
            raise Refused(
                f"{self._kind} in latents keeps the decoder of their autoencoder, not its encoder; "
                "take the autoencoder itself, or a run that was trained on images"
            )
        raise Refused(
            f"{self._kind} has no encoder, so images have no latents; train a vae or an "
            "autoencoder (your own class needs `encode`: `ray_gen.core.Encodes`)"
        )

    def discriminator(self) -> Discriminates:
        """The objective if it discriminates, else raises Refused. It takes images in
        `image_range`."""
        if isinstance(self.objective, Discriminates):
            return self.objective
        if getattr(self.objective, "judges_latents", False):
            raise Refused(
                f"{self._kind} has a discriminator, but it judges latents, not images; take a run "
                "that was trained on images"
            )
        raise Refused(
            f"{self._kind} has no discriminator; take a run whose objective has one "
            "(your own class needs `discriminate`: `ray_gen.core.Discriminates`)"
        )

    def _check_prior(self, prior: Mixture | None) -> None:
        """Refuse a prior that does not fit this model, and None if the model has no prior."""
        if prior is not None and not isinstance(prior, Mixture):  # pyright: ignore
            raise Refused(
                f"prior: give a mixture, not {type(prior).__name__}; `pipeline.fit_mixture` and "
                "`Mixture.load` give one"
            )
        if prior is None:
            if self.objective.has_prior:
                return
            raise Refused(
                f"{self._kind} has no prior to sample from; fit one to encodings of images with "
                "`ray-gen mixture` and give it as --prior (in Python `pipeline.fit_mixture` and "
                "`prior`), train another model on its latents (`ray-gen encode`), or an objective "
                "that has one"
            )
        size = math.prod(self.latent_shape)
        if prior.latent_size != size:
            raise Refused(
                f"prior: the mixture's latents have {prior.latent_size} numbers and this run's "
                f"{size}; fit one with this run"
            )
        prior.check_origin(self.origin)

    def conditions_in_turn(self, number: int) -> dict[str, float] | None:
        """The numbers of the sample with this number if no conditions are given, in the data's own
        units. None for a model without such numbers."""
        labels = labels_in_turn(self.experiment, torch.tensor([number]))
        known = self.experiment.data.condition_statistics
        if labels is None or not known:
            return None
        standardised = labels[0, -len(known) :].tolist()
        return {
            one.name: one.mean + one.deviation * x
            for one, x in zip(known, standardised, strict=True)
        }

    def classes_in_turn(self, labels: Sequence[int | str] | None = None) -> tuple[str, ...]:
        """The names of these classes, or of all that samples have in turn if none are given. Empty
        for a model without classes."""
        if not self.experiment.label_count or labels is None:
            return self.class_names if self.experiment.label_count else ()
        return tuple(self.class_names[class_number(label, self.class_names)] for label in labels)

    def _labels(
        self,
        labels: Labels | None,
        count: int,
        conditions: Conditions | None = None,
        *,
        in_turn: bool = False,
    ) -> Tensor | None:
        """Labels of `count` images as networks get them (`labels_of`), on the CPU. None for a model
        that is not conditional."""
        classes, known = self.experiment.label_count, self.experiment.data.condition_statistics
        for argument, given, has in (
            ("labels", labels, bool(classes)),
            ("conditions", conditions, self.experiment.label_numbers > 0),
        ):
            if given is not None and not has:
                what = "not conditional" if classes is None else f"conditional without {argument}"
                raise Refused(f"{argument}: this run is {what}; leave them out")
            if given is None and has and not in_turn:
                what = "classes" if argument == "labels" else "numbers"
                raise Refused(
                    f"{argument}: this run is conditional; give the {what} of these images, one for"
                    " all or one for each"
                )
        spread = labels_in_turn(self.experiment, torch.arange(count))
        if spread is None or (labels is None and conditions is None):
            return spread
        chosen = torch.arange(count) % classes if classes else None
        if labels is not None:
            chosen = class_numbers(labels, count, self.class_names)
        if not known:
            return chosen
        if conditions is not None:
            numbers = condition_numbers(conditions, count, known)
            return labels_of(self.experiment, chosen, numbers)
        assert chosen is not None
        return torch.cat([chosen.float()[:, None], spread[:, -len(known) :]], dim=1)

    def _of_images(
        self,
        function: Callable[[Tensor, Tensor | None], _Found],
        images: Floats,
        labels: Labels | None,
        conditions: Conditions | None,
    ) -> list[_Found]:
        """Call a function on parts of the images, scaled to `image_range`."""
        checked = checked_images(images, self.experiment.picture_shape)
        image_range = self.objective.image_range

        def of_part(part: slice, labels: Tensor | None) -> _Found:
            some = checked[part].to(self.device, self._dtype)
            return function(stretched(some, image_range), labels)

        given = self._labels(labels, len(checked), conditions)
        return self._in_parts(of_part, len(checked), given)

    @torch.no_grad()
    def _in_parts(
        self,
        function: Callable[[slice, Tensor | None], _Found],
        count: int,
        labels: Tensor | None,
    ) -> list[_Found]:
        """Call a function on slices of at most 256 items. Labels are on the networks' device."""
        return [
            function(part, None if labels is None else labels[part].to(self.device))
            for part in _parts(count)
        ]


def plain(levels: Mapping[str, Tensor]) -> Drawn:
    """One latent as a tensor, several by name."""
    return next(iter(levels.values())) if len(levels) == 1 else dict(levels)


def count_of(levels: Mapping[str, Tensor]) -> int:
    """The number of images of these latents."""
    return len(next(iter(levels.values())))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor, float32 on the CPU."""
    return torch.cat([part.float().cpu() for part in parts])


def _seed(seed: SupportsIndex | None) -> int:
    """The given seed, or a new random one."""
    return secrets.randbits(62) if seed is None else whole_number(seed, "seed")


def _parts(count: int) -> Iterator[slice]:
    """Slices of at most 256."""
    for start in range(0, count, BATCH):
        yield slice(start, min(start + BATCH, count))
