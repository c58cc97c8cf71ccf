"""What the networks of a trained model do, on batches of any size."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from ray_gen import latent
from ray_gen.build import build_networks
from ray_gen.core import (
    Discriminates,
    Encodes,
    Networks,
    Noise,
    Objective,
    Reconstructs,
    VectorToImage,
)
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.experiment.objectives import GanObjective
from ray_gen.mixture import Mixture, Origin
from ray_gen.noise import draw, key_of
from ray_gen.pipeline.inputs import (
    BATCH,
    Array,
    Floats,
    Labels,
    checked_count,
    checked_images,
    checked_latents,
    checked_numbers,
    class_numbers,
    real,
    whole,
)
from ray_gen.state import NETWORKS, load_tensors, read_manifest

_ONE_STEP = torch.zeros(1, dtype=torch.int64)


class Model:
    """The networks of a run that are used after training, in eval mode.

    Images are floats (N, C, H, W) in [0, 1] and latents floats (N, latent_size), both in float32 on
    the CPU, wherever the networks are; one of them without N is a batch of one, and NumPy's arrays
    are taken too. `labels` are classes of a conditional model by number or name, one for all or one
    for each; left out where images are made, they are the classes in turn. What cannot be done
    raises Refused.
    """

    def __init__(
        self,
        experiment: Experiment,
        objective: Objective,
        networks: Networks,
        checkpoint: Path | None = None,
        images_seen: int | None = None,
        name: str | None = None,
    ) -> None:
        """checkpoint: the folder from which a discriminator is read when it is asked for.
        images_seen: how many the model was trained on, where that is known. name: the run's, where
        it is not the experiment's."""
        self.experiment = experiment
        self.objective = objective
        self.networks = networks
        self.class_names = experiment.data.classes or ()
        self.images_seen = images_seen
        self.name = name or experiment.name
        self._checkpoint = checkpoint
        weight = next(iter(networks.parameters()))
        self.device, self._dtype = weight.device, weight.dtype

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.experiment.image_shape))
        name, classes = self.experiment.name, len(self.class_names)
        return f"{type(self).__name__}({name}, {shape}, classes={classes})"

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent: (latent_size,)."""
        if self.objective.latent is not None:
            return self.objective.latent.shape
        for signature in self.objective.networks().values():
            if isinstance(signature, VectorToImage):
                return (signature.vector_size,)
        raise Refused(f"{self._kind} has no network that makes images of vectors, so no latents")

    @cached_property
    def origin(self) -> Origin:
        """Whose latents these are: another run's, or another checkpoint's, mean something else."""
        # Here, because that room brings what fetches weights, which no sample needs.
        from ray_gen.evaluators.weights import digest_of

        return Origin(self.name, digest_of(self.networks.state_dict()))

    # Images from latents

    def sample(
        self,
        count: SupportsIndex,
        labels: Labels | None = None,
        seed: SupportsIndex | None = None,
        truncation: SupportsFloat | None = None,
        prior: Mixture | None = None,
    ) -> Tensor:
        """`count` images drawn from the model: `latents`, decoded.

        seed: equal seeds give equal images, and image i does not depend on `count`; None draws a
        new one.
        """
        seed = _seed(seed)
        return torch.cat(list(self.batches(count, labels, seed, truncation, prior)))

    def batches(
        self,
        count: SupportsIndex,
        labels: Labels | None,
        seed: SupportsIndex,
        truncation: SupportsFloat | None = None,
        prior: Mixture | None = None,
    ) -> Iterator[Tensor]:
        """What `sample` gives, in parts of at most 256 images."""
        self._prior_of(prior)
        total = checked_count(count)
        chosen = self._labels(labels, total, in_turn=True)
        for part in _parts(total):
            z = self.latents(range(total)[part], seed, truncation, prior)
            yield self._mapped(self._decode, z, None if chosen is None else chosen[part])

    def latents(
        self,
        count: SupportsIndex | Sequence[int] | Array,
        seed: SupportsIndex | None = None,
        truncation: SupportsFloat | None = None,
        prior: Mixture | None = None,
    ) -> Tensor:
        """The z that `sample` draws: so many, or those of the samples with these numbers.

        truncation: z is drawn given |z| <= truncation, each number of it (`latent.truncated`): for
        a normal prior 0.5 to 2 are usual, for a uniform one on [-1, 1] what is below 1 scales it.
        prior: a mixture in the place of the model's own (`fit_mixture`).
        """
        given = self._prior_of(prior)
        numbers = checked_numbers(count)
        seed = _seed(seed)
        limit = None if truncation is None else real(truncation, "truncation")
        drawn: list[Tensor] = []
        for part in _parts(len(numbers)):
            if isinstance(given, Mixture):
                z = given.draw(seed, numbers[part], limit)
            else:
                indices = numbers[part].to(self.device)
                step = _ONE_STEP.to(self.device)
                z = draw(given, key_of(seed, "sample"), step, indices)[0]
                z = latent.truncated(z, given, limit)
            drawn.append(z.cpu().reshape(-1, *self.latent_shape))
        return torch.cat(drawn)

    def decode(self, z: Floats, labels: Labels | None = None) -> Tensor:
        """Latents to images: G(z), or E[x|z]."""
        checked = checked_latents(z, self.latent_shape)
        of_each = self._labels(labels, len(checked), in_turn=True)
        return self._mapped(self._decode, checked, of_each)

    # Latents from images

    def posterior(
        self, images: Floats, labels: Labels | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of q(z|x), each (N, latent_size); None in the latter's place of a
        model whose encoder gives one z and no distribution."""
        encode = self.encoder().encode

        def both(images: Tensor, labels: Tensor | None) -> Tensor:
            mean, log_variance = encode(self.networks, images, labels)
            return torch.stack([mean] if log_variance is None else [mean, log_variance], dim=1)

        found = self._of_images(both, images, labels)
        return found[:, 0], found[:, 1] if found.shape[1] == 2 else None

    def encode(
        self, images: Floats, labels: Labels | None = None, seed: SupportsIndex | None = None
    ) -> Tensor:
        """The posterior means of images, or with a seed a draw from each posterior."""
        number = None if seed is None else whole(seed, "seed")
        mean, log_variance = self.posterior(images, labels)
        if number is None or log_variance is None:
            return mean
        noise, numbers = Noise(tuple(mean.shape[1:])), torch.arange(len(mean))
        epsilon = draw(noise, key_of(number, "encode"), _ONE_STEP, numbers)[0]
        return mean + (0.5 * log_variance).exp() * epsilon

    def reconstruct(self, images: Floats, labels: Labels | None = None) -> Tensor:
        """Images to themselves, through the posterior mean."""
        objective = self.objective
        if not isinstance(objective, Reconstructs):
            return self.decode(self.encode(images, labels), labels)
        return self._of_images(
            lambda images, labels: objective.reconstruct(self.networks, images, labels),
            images,
            labels,
        )

    # What the discriminator says

    def discriminate(self, images: Floats, labels: Labels | None = None) -> Tensor:
        """The discriminator's logits (N,), the higher the more real. Their sigmoid is D(x) for the
        losses non_saturating and minimax; a hinge loss knows no probability.

        The weights are raw, as no average of a discriminator is kept.
        """
        objective = self.discriminator()
        networks = self._discriminators
        return self._of_images(
            lambda images, labels: objective.discriminate(networks, images, labels), images, labels
        )

    @property
    def discriminates_by_probability(self) -> bool:
        """Whether the sigmoid of what `discriminate` gives is D(x), a probability to be real."""
        settings = self.experiment.objective
        return isinstance(settings, GanObjective) and settings.loss != "hinge"

    @cached_property
    def _discriminators(self) -> Networks:
        if self._checkpoint is None:
            raise Refused(
                "discriminate: this pipeline was not loaded from a run, where its discriminator is"
            )
        read_manifest(self._checkpoint)  # it may have been pruned since
        only = self.discriminator().discriminates_with
        networks = build_networks(self.experiment, self.objective, only)
        load_tensors(self._checkpoint, NETWORKS, networks)
        return networks.to(self.device).eval().requires_grad_(False)

    # What there is, and what was given

    @property
    def _kind(self) -> str:
        return f"a run of kind {self.experiment.objective.kind}"

    def encoder(self) -> Encodes:
        """The objective, if it encodes; it takes what networks see. Raises Refused."""
        if isinstance(self.objective, Encodes):
            return self.objective
        raise Refused(
            f"{self._kind} has no encoder, so no latents of images; train a vae or an autoencoder"
        )

    def discriminator(self) -> Discriminates:
        """The objective, if it discriminates; it takes what networks see. Raises Refused."""
        if isinstance(self.objective, Discriminates):
            return self.objective
        raise Refused(f"{self._kind} has no discriminator; train a gan")

    def _prior_of(self, prior: Mixture | None) -> Noise | Mixture:
        """What latents are drawn from."""
        if prior is not None and not isinstance(prior, Mixture):  # pyright: ignore
            raise Refused(
                f"prior: give a mixture, not {type(prior).__name__}; `pipeline.fit_mixture` and "
                "`Mixture.load` give one"
            )
        found = self.objective.latent if prior is None else prior
        if found is None:
            raise Refused(
                f"{self._kind} has no prior to sample from; fit one to encodings of images "
                "(`pipeline.fit_mixture`), or train a vae or a gan"
            )
        size = torch.Size(self.latent_shape).numel()
        if isinstance(found, Mixture) and found.latent_size != size:
            raise Refused(
                f"prior: the mixture's latents have {found.latent_size} numbers and this run's "
                f"{size}; fit one with this run"
            )
        if isinstance(found, Mixture):
            found.check_origin(self.origin)
        return found

    def _labels(self, labels: Labels | None, count: int, *, in_turn: bool = False) -> Tensor | None:
        """int64 (count,) of a conditional model, on the CPU; None of another."""
        classes = self.experiment.label_count
        if classes is None:
            if labels is not None:
                raise Refused("labels: this run is not conditional; leave them out")
            return None
        if labels is not None:
            return class_numbers(labels, count, self.class_names)
        if not in_turn:
            raise Refused(
                "labels: this run is conditional; give the class of these images, one for all or "
                "one for each"
            )
        return torch.arange(count) % classes

    def _decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.objective.sample(self.networks, z, labels)

    def _of_images(
        self,
        function: Callable[[Tensor, Tensor | None], Tensor],
        images: Floats,
        labels: Labels | None,
    ) -> Tensor:
        """A function of images in the range that the networks see."""
        checked = checked_images(images, self.experiment.image_shape)
        low, high = self.objective.image_range
        return self._mapped(
            lambda part, labels: function(part * (high - low) + low, labels),
            checked,
            self._labels(labels, len(checked)),
        )

    @torch.no_grad()
    def _mapped(
        self,
        function: Callable[[Tensor, Tensor | None], Tensor],
        inputs: Tensor,
        labels: Tensor | None,
    ) -> Tensor:
        """A function of at most 256 inputs at once, on the networks' device and in their type."""
        found: list[Tensor] = []
        for part in _parts(len(inputs)):
            some = inputs[part].to(self.device, self._dtype)
            of_some = None if labels is None else labels[part].to(self.device)
            found.append(function(some, of_some).float().cpu())
        return torch.cat(found)


def _seed(seed: SupportsIndex | None) -> int:
    """What was given, or a new one."""
    return secrets.randbits(62) if seed is None else whole(seed, "seed")


def _parts(count: int) -> Iterator[slice]:
    """Slices of at most 256."""
    for start in range(0, count, BATCH):
        yield slice(start, min(start + BATCH, count))
