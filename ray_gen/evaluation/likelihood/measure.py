"""Scores of a variational autoencoder on held-out images: bounds on log p(x), bits per dimension,
active units and reconstruction errors.

Noise is a function of (seed, number of the image, number of the sample), and sums are float64. So
the batch size and the number of workers change only the last digits of a score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ray_gen.core import DENSITIES, Bounds, Encodes, Networks, Reconstructs, posteriors_of
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.images import bits_of, seen_in_words
from ray_gen.evaluation.likelihood.held_out import HeldOutImages
from ray_gen.evaluation.likelihood.importance import (
    bernoulli_bits,
    gaussian_bits,
    importance_weighted,
)
from ray_gen.evaluation.likelihood.means import Means
from ray_gen.evaluation.likelihood.reconstruction import mean_squared_error
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.scores import Score
from ray_gen.evaluation.subject import Labelled
from ray_gen.noise import permutation
from ray_gen.perceptual.ssim import WINDOW, structural_similarity
from ray_gen.pixels import levels_of, selected
from ray_gen.sampling import noise_for

ACTIVE = 0.01
"""A unit is active if its posterior mean has a larger variance over the images."""

_MEANS = (
    "elbo",
    "reconstruction",
    "kl",
    "log_likelihood_bound",
    "dequantised",
    "reconstruction_mse",
    "reconstruction_ssim",
    "grey",
)
"""Names of the values that are averaged over images."""


@torch.no_grad()
def likelihood_scores(
    objective: Bounds,
    networks: Networks,
    split: Labelled,
    *,
    samples: int,
    batch_size: int,
    seed: int,
    world: World,
    conditional: bool,
    dtype: torch.dtype,
    count: int | None = None,
    description: Mapping[str, Any] | None = None,
    opacity: bool = False,
    progress: Progress = silent,
) -> list[Score]:
    """Scores of `count` images of a split, chosen at random. None: of all images.

    elbo, reconstruction, kl: E log p(x|z) - KL(q(z|x) ‖ p(z)), -E log p(x|z) and KL, in nats. The
        expectations are means over K = `samples` draws of z per image.
    log_likelihood_bound: log 1/K Σ p(x, z_k) / q(z_k|x) (Burda et al. 2016, eq. 8), in nats. Its
        expectation lies between the ELBO and log p(x), and rises with K.
    bits_per_dimension: the same bound in bits per pixel and channel, if the pixels have
        probabilities. Under a Bernoulli the pixels are 0 or 1. Else they are 0 to 255, or 0 to
        65,535 of 16 bits; under a density the bound is that of the images with uniform noise
        (`gaussian_bits`). Maps have no levels, so no bits.
    active_units: how many numbers in z have Var_x(E[z|x]) > 0.01 (Burda et al. 2016, section 5).
    reconstruction_mse, reconstruction_ssim: between x and E[x|z] at the posterior mean, both in
        [0, 1]. SSIM needs at least 11 pixels a side.

    The spread is the standard error of the mean over images. networks: in eval mode; they do not
    change. conditional: whether the networks take labels. batch_size: images, or samples of z, that
    go through a network at once. It bounds the memory for every K. dtype: type of the images.
    description: split and weights, for the protocol. opacity: whether the last channel is opacity,
    for the protocol. progress: called with this worker's images.
    Raises Refused for an empty split, and for samples, batch_size or count out of range.
    Collective: every rank, same order.
    """
    images_NHWC, labels = split.images_NHWC, split.labels if conditional else None
    numbers = _chosen(len(images_NHWC), samples, batch_size, count, seed)
    own = world.share(len(numbers))
    sums = Means(_MEANS, math.prod(objective.posterior_noise.shape), len(numbers), world)
    at_once = max(1, batch_size // samples)
    for start in range(own.start, own.stop, at_once):
        part = numbers[start : min(own.stop, start + at_once)]
        images = HeldOutImages.of(
            objective,
            selected(images_NHWC, part).to(world.device),
            None if labels is None else labels[part].to(world.device),
            part.to(world.device),
            seed,
            dtype,
        )
        _measure(objective, networks, images, samples, batch_size // len(part), seed, sums)
        progress(start + len(part) - own.start, len(own), "likelihood")
    sums.combine()
    protocol = {
        **(description or {}),
        "images": len(numbers),
        "of": len(images_NHWC),
        "likelihood": objective.likelihood,
        "seed": seed,
        "seen_as": seen_in_words(images_NHWC.shape[3], bits_of(images_NHWC), opacity=opacity),
    }
    levels = levels_of(images_NHWC.dtype)
    return list(_scores(objective, sums, images_NHWC.shape[1:], levels, samples, protocol))


def _measure(
    objective: Bounds,
    networks: Networks,
    images: HeldOutImages,
    samples: int,
    at_once: int,
    seed: int,
    sums: Means,
) -> None:
    """Adds the values of these images to the sums."""

    def weighted(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return importance_weighted(
            objective,
            networks,
            pixels,
            images.labels,
            images.numbers,
            samples=samples,
            at_once=at_once,
            seed=seed,
        )

    likelihood, ratio, bound = weighted(images.observed)
    sums.add("elbo", likelihood + ratio)
    sums.add("reconstruction", -likelihood)
    sums.add("kl", -ratio)
    sums.add("log_likelihood_bound", bound)
    sums.add("grey", images.grey)
    if images.dequantised is not None:
        sums.add("dequantised", weighted(images.dequantised)[2])
    if isinstance(objective, Encodes):
        found = posteriors_of(objective, networks, images.observed, images.labels)
        posteriors = found.values()
        sums.add_units(torch.cat([posterior.mean.flatten(1) for posterior in posteriors], dim=1))
    if isinstance(objective, Reconstructs):
        noise = noise_for(
            getattr(objective, "sampling_noise", {}),
            networks,
            seed,
            "held out",
            images.numbers,
            images.plain.dtype,
        )
        made = objective.reconstruct(networks, images.plain, images.labels, noise)
        sums.add("reconstruction_mse", mean_squared_error(made, images.unit))
        if min(made.shape[2:]) >= WINDOW:
            similarity = structural_similarity(made.double(), images.unit.double())
            sums.add("reconstruction_ssim", similarity)


def _scores(
    objective: Bounds,
    sums: Means,
    shape_HWC: tuple[int, ...],
    levels: int | None,
    samples: int,
    protocol: Mapping[str, Any],
) -> Iterator[Score]:
    bernoulli, binarised = objective.likelihood == "bernoulli", objective.pixel_noise is not None
    density = objective.likelihood in DENSITIES
    improper = bernoulli and not binarised and sums.mean("grey")[0] > 0
    if binarised:
        pixels = "binarised once: 1 with the probability of the grey value"
    elif improper:
        pixels = "grey values, which a Bernoulli gives no probability: no log-likelihood"
    else:
        pixels = "as they are"
    common = {**protocol, "pixels": pixels, "spread": "standard error of the mean over images"}
    nats = {**common, "samples": samples, "unit": "nats"}
    for name in ("elbo", "reconstruction", "kl", "log_likelihood_bound"):
        yield Score(name, *sums.mean(name), nats)
    if not improper and (bernoulli or levels is not None):
        value, spread = sums.mean("dequantised" if density else "log_likelihood_bound")
        dimensions = math.prod(shape_HWC)
        bits = {**common, "samples": samples, "unit": "bits per pixel and channel"}
        if not density:
            value = bernoulli_bits(value, dimensions)
        else:
            low, high = objective.image_range
            assert levels is not None
            value = gaussian_bits(value, dimensions, high - low, levels)
            bits["pixels"] = f"with uniform noise of one of {levels:,} levels"
        spread = None if spread is None else bernoulli_bits(-spread, dimensions)
        yield Score("bits_per_dimension", value, spread, bits)
    if isinstance(objective, Encodes):
        variances = sums.variances()
        units = {**common, "spread": None, "units": len(variances), "threshold": ACTIVE}
        yield Score("active_units", float((variances > ACTIVE).sum()), None, units)
    if isinstance(objective, Reconstructs):
        means = {**common, "pixels": "as they are", "z": "posterior mean"}
        yield Score("reconstruction_mse", *sums.mean("reconstruction_mse"), means)
        if min(shape_HWC[:2]) >= WINDOW:
            windows = {**means, "windows": "11 x 11, inside the image"}
            yield Score("reconstruction_ssim", *sums.mean("reconstruction_ssim"), windows)


def _chosen(total: int, samples: int, batch_size: int, count: int | None, seed: int) -> Tensor:
    """Numbers of the images to measure: int64 (count,), ascending."""
    if not total:
        raise Refused(
            "data.held_out_fraction: no images are held out, and a likelihood is measured on "
            "held-out images; set e.g. 0.1"
        )
    for field, value in (("importance_samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise Refused(f"evaluation.{field}: {value} is not positive; set e.g. 100")
    if count is None:
        return torch.arange(total)
    if not 1 <= count <= total:
        raise Refused(
            f"evaluation.count: {count} images were asked for, and {total} are held out; "
            f"set 1 to {total}"
        )
    return permutation(seed, "chosen images", 0, total)[:count].sort().values
