"""Projection: the latents of a trained model whose image is nearest to a given image, found by
optimisation (Karras et al. 2020, StyleGAN2, appendix D)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_gen.core import Clamps, Encodes, Networks, Noise, Objective, posteriors_of
from ray_gen.noise import draw_one, key_of
from ray_gen.pipeline.styles import STYLES, Offsets, Space, styled
from ray_gen.pipeline.truncation import from_styles
from ray_gen.pixels import stretched
from ray_gen.sampling import latents_of, noise_for

Features = Callable[[Tensor], Tensor]
"""images_NCHW in [0, 1], with the model's channels, to numbers (N, ...). Gradients flow through
it."""

Levels = dict[str, Tensor]
"""Latents by name, each (N, *shape)."""

_RAMP_UP, _RAMP_DOWN = 0.05, 0.25
"""Shares of the steps in which the learning rate rises and falls."""
BATCH = 64
"""Images that are optimised at once. It bounds the memory for any number of images."""


@dataclass(frozen=True)
class Options:
    """How to project."""

    steps: int
    """Steps of Adam."""
    starts: int
    """Draws from the prior, of which the nearest is the start of an image."""
    sigma: float
    """Standard deviation of a pixel about the model's image, for pixels in [0, 1]."""
    learning_rate: float
    """The largest learning rate of Adam."""
    seed: int
    """Of the draws."""
    features: Features | None
    """What also has to agree. None: only pixels."""
    features_weight: float
    """Weight of the features against the squared error of the pixels."""
    space: Space = "z"
    """Where to look. w and w+ need a generator with styles and a prior."""


class Distance:
    """How far decoded images are from the images that were given, for each image, (N,).

    The mean squared error of the pixels, plus `features_weight` times the squared error of the
    features as a share of the squared length of the image's own features.
    """

    def __init__(self, images: Tensor, options: Options) -> None:
        """images: (N, C, H, W) in [0, 1]."""
        self._images = images
        self._features, self._weight = options.features, options.features_weight
        self._wanted = None if self._features is None else _vectors(self._features(images))

    def __call__(self, decoded: Tensor) -> Tensor:
        """(N, C, H, W) to (N,)."""
        found = pixel_errors(decoded, self._images)
        if self._features is None or self._wanted is None:
            return found
        missed = (_vectors(self._features(decoded)) - self._wanted).square().sum(1)
        length = self._wanted.square().sum(1).clamp_min(torch.finfo(missed.dtype).tiny)
        return found + self._weight * missed / length


def pixel_errors(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of the pixels: two times (N, C, H, W) in [0, 1] to (N,)."""
    return (decoded - images).square().flatten(1).mean(1)


def _vectors(features: Tensor) -> Tensor:
    return features.float().flatten(1)


def project(
    objective: Objective,
    networks: Networks,
    images: Tensor,
    labels: Tensor | None,
    options: Options,
    first: int,
    told: Callable[[int, float], None],
) -> tuple[Levels, Tensor]:
    """The latents of images, and the squared error of the pixels of their decoded images, (N,).

    In z it looks for the z of the highest p(x, z), with p(x|z) = N(decoded(z), σ²) for each pixel.
    That is, it minimises, for each image,

        distance(decoded(z), x) + σ² ‖z‖² / (C H W)    for z from N(0, I),

    and for a uniform prior the distance alone, with z kept within its bounds. Without a prior there
    is no second term. The start is the encoder's mean, or without an encoder the nearest of
    `starts` draws from the prior. The best z of all steps is kept, so the result is never worse
    than the start. No image's result depends on the others, up to rounding.

    In w and w+ it looks for styles w, and u = (w - mean) / deviation takes the place of z, with the
    prior N(0, I) (`Offsets`). The start is the mean style, or the style of the encoder's mean.
    Noise that fades away moves u before each step, as in Karras et al. 2020; the best of what was
    tried is kept. Unlike there, the noise of the generator's layers stays as it is: pixels that
    only this noise explains would be in no style. The result is {"styles": w}, with w (N, L, W).

    Pixels are clamped to [0, 1], but their gradients are those of unclamped pixels: a pixel that is
    outside by mistake comes back.

    images: (N, C, H, W) in [0, 1]. labels: as the networks get them, on their device. first: number
    of the first image; image i has the noise of sample number `first` + i, as in `decode`. told: is
    called after each step with its number and the mean squared error of the pixels.
    """
    distance = Distance(images, options)
    numbers = torch.arange(first, first + len(images), device=images.device)
    noise = noise_for(objective.sampling_noise, networks, 0, "sample", numbers, images.dtype)

    start: Levels | None = None
    if isinstance(objective, Encodes):
        with torch.no_grad():
            seen = stretched(images, objective.image_range)
            start = {k: p.mean for k, p in posteriors_of(objective, networks, seen, labels).items()}
    share = options.sigma**2 / images[0].numel()
    generator = styled(networks)
    if options.space == "z" or generator is None:
        start = start or _nearest_draws(objective, networks, images, labels, options)
        priors = objective.latents if objective.has_prior else {}

        def of_z(z: Levels) -> Tensor:
            return _sampled(objective, networks, z, labels, noise)

        return _descended(start, of_z, images, distance, priors, share, options, told)

    offsets = Offsets.of(objective, generator, labels, options.space, options.seed, images)
    name = next(iter(objective.latents))
    u = offsets.zero
    if start is not None:
        with torch.no_grad():
            u = offsets.nearest(generator.styles(start[name], labels, {}))
    prior, takes_styles = Noise(tuple(u.shape[1:])), from_styles(networks)
    key = key_of(options.seed, "project", "noise")

    def of_u(u: Levels) -> Tensor:
        styles = {name: offsets.styles(u[STYLES])}
        return _sampled(objective, takes_styles, styles, labels, noise)

    def moved(u: Levels, step: int) -> Levels:
        scale = offsets.noise_at(step, options.steps)
        if not scale:
            return u
        return {STYLES: u[STYLES] + scale * draw_one(prior, key, numbers, step).to(images.dtype)}

    found, errors = _descended(
        {STYLES: u}, of_u, images, distance, {STYLES: prior}, share, options, told, moved
    )
    return {STYLES: offsets.styles(found[STYLES])}, errors


def _sampled(
    objective: Objective,
    networks: Networks,
    latents: Levels,
    labels: Tensor | None,
    noise: Mapping[str, Tensor],
) -> Tensor:
    """Images in [0, 1], (N, C, H, W). Where the objective clamps pixels, the gradients are those of
    the pixels before that."""
    if not isinstance(objective, Clamps):
        return objective.sample(networks, latents, labels, noise)
    free = objective.unclamped(networks, latents, labels, noise)
    return free + (free.clamp(0.0, 1.0) - free).detach()


def _as_they_are(levels: Levels, step: int) -> Levels:
    return levels


def _descended(
    start: Levels,
    decoded: Callable[[Levels], Tensor],
    images: Tensor,
    distance: Distance,
    priors: Mapping[str, Noise],
    share: float,
    options: Options,
    told: Callable[[int, float], None],
    moved: Callable[[Levels, int], Levels] = _as_they_are,
) -> tuple[Levels, Tensor]:
    """The best latents of all steps of Adam from a start, and the errors of their pixels. moved:
    what is tried at a step, of the latents that Adam has reached."""
    z = {name: level.clone().requires_grad_() for name, level in start.items()}
    best = {name: level.clone() for name, level in start.items()}
    lowest = images.new_full((len(images),), math.inf)
    errors = lowest.clone()
    adam = torch.optim.Adam(z.values(), lr=options.learning_rate)
    for step in range(options.steps + 1):
        tried = moved(z, step)
        made = decoded(tried)
        loss = distance(made)
        for name, prior in priors.items():
            if prior.distribution == "normal":
                loss = loss + share * tried[name].square().flatten(1).sum(1)
        with torch.no_grad():
            better = loss < lowest
            lowest = torch.where(better, loss, lowest)
            errors = torch.where(better, pixel_errors(made.clamp(0.0, 1.0), images), errors)
            for name, level in tried.items():
                each = better.reshape(-1, *[1] * (level.ndim - 1))
                best[name] = torch.where(each, level, best[name])
        told(step, float(errors.mean()))
        if step == options.steps:
            break
        for group in adam.param_groups:
            group["lr"] = options.learning_rate * ramp(step, options.steps)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        with torch.no_grad():
            for name, prior in priors.items():
                if prior.distribution == "uniform":
                    z[name].clamp_(prior.low, prior.high)
    return best, errors


def ramp(step: int, steps: int) -> float:
    """The share of the largest learning rate at a step: linear from 0 in the first twentieth of the
    steps, a cosine to 0 in the last quarter."""
    t = (step + 1) / (steps + 1)
    falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / _RAMP_DOWN))
    return falling * min(1.0, t / _RAMP_UP)


@torch.no_grad()
def _nearest_draws(
    objective: Objective,
    networks: Networks,
    images: Tensor,
    labels: Tensor | None,
    options: Options,
) -> Levels:
    """For each image, the draw from the prior whose pixels are nearest. All images choose among the
    same draws, decoded with their own labels."""
    device, dtype = images.device, images.dtype
    kinds = torch.zeros(len(images), dtype=torch.long, device=device)  # images of equal labels
    if labels is not None:
        kinds = labels.unique(dim=0, return_inverse=True)[1]
    best: Levels = {}
    lowest = torch.full((len(images),), math.inf, device=device, dtype=dtype)
    for kind in kinds.unique().tolist():
        own = kinds == kind
        for first in range(0, options.starts, BATCH):
            numbers = torch.arange(first, min(first + BATCH, options.starts), device=device)
            z = latents_of(objective.latents, options.seed, "project", numbers, dtype)
            noise = noise_for(objective.sampling_noise, networks, 0, "sample", numbers, dtype)
            label = (
                None if labels is None else labels[own][:1].expand(len(numbers), *labels.shape[1:])
            )
            made = objective.sample(networks, z, label, noise)
            least, which = torch.cdist(images.flatten(1), made.flatten(1)).min(1)
            better = own & (least < lowest)
            lowest = torch.where(better, least, lowest)
            for name, level in z.items():
                keep = better.reshape(-1, *[1] * (level.ndim - 1))
                best[name] = torch.where(keep, level[which], best.get(name, level[which]))
    return best
