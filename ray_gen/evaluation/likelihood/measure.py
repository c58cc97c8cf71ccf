"""What a variational autoencoder says of images that it was not trained on: bounds on log p(x),
bits per dimension, active units and reconstructions.

Noise is a function of (seed, number of the image, number of the sample) and sums are float64, so
the size of a batch and the number of workers change no score but in its last digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ray_gen.core import Bounds, Encodes, Networks, Reconstructs, posteriors_of
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.likelihood.held_out import HeldOutImages
from ray_gen.evaluation.likelihood.importance import (
    bernoulli_bits,
    gaussian_bits,
    importance_weighted,
)
from ray_gen.evaluation.likelihood.means import Means
from ray_gen.evaluation.likelihood.reconstruction import (
    WINDOW,
    mean_squared_error,
    structural_similarity,
)
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.scores import Score
from ray_gen.evaluation.subject import Labelled
from ray_gen.noise import permutation
from ray_gen.sampling import noise_for

ACTIVE = 0.01
"""A unit is active if the variance of its posterior mean over the images is larger."""

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
"""What is averaged over images."""


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
    progress: Progress = silent,
) -> list[Score]:
    """Scores of `count` images of a split, chosen at random; None: of all.

    elbo, reconstruction, kl: E log p(x|z) - KL(q(z|x) ‖ p(z)), -E log p(x|z) and KL, in nats, the
        expectations over K = `samples` z an image.
    log_likelihood_bound: log 1/K Σ p(x, z_k) / q(z_k|x) (Burda et al. 2016, eq. 8), in nats. Its
        expectation lies between the ELBO and log p(x), and rises with K.
    bits_per_dimension: of that bound, where pixels have probabilities: 0 or 1 under a Bernoulli, or
        0 to 255 under a Gaussian, of the images with uniform noise (`gaussian_bits`).
    active_units: how many numbers in z have Var_x(E[z|x]) > 0.01 (Burda et al. 2016, section 5).
    reconstruction_mse, reconstruction_ssim: of E[x|z] at the posterior mean, images in [0, 1]; SSIM
        where they have at least 11 pixels a side.

    The spread is the standard error of the mean over images. networks: in eval mode; nothing in
    them changes. conditional: give them the labels. batch_size: images, or samples of images, that
    go through a network at once; it bounds the memory, whatever K is. description: which split and
    weights, for the protocols. progress: called with this worker's images.
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
            images_NHWC[part].to(world.device),
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
    }
    return list(_scores(objective, sums, images_NHWC.shape[1:], samples, protocol))


def _measure(
    objective: Bounds,
    networks: Networks,
    images: HeldOutImages,
    samples: int,
    at_once: int,
    seed: int,
    sums: Means,
) -> None:
    """All that is summed over images, of these."""

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
            sums.add("reconstruction_ssim", structural_similarity(made, images.unit))


def _scores(
    objective: Bounds,
    sums: Means,
    shape_HWC: tuple[int, ...],
    samples: int,
    protocol: Mapping[str, Any],
) -> Iterator[Score]:
    bernoulli, binarised = objective.likelihood == "bernoulli", objective.pixel_noise is not None
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
    if not improper:
        value, spread = sums.mean("log_likelihood_bound" if bernoulli else "dequantised")
        dimensions = math.prod(shape_HWC)
        bits = {**common, "samples": samples, "unit": "bits per pixel and channel"}
        if bernoulli:
            value = bernoulli_bits(value, dimensions)
        else:
            low, high = objective.image_range
            value = gaussian_bits(value, dimensions, high - low)
            bits["pixels"] = "with uniform noise of one of 256 levels"
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
    """The numbers of the images to look at: int64, in their order."""
    if not total:
        raise Refused(
            "data.held_out_fraction: no images are held out, and a likelihood is measured on them; "
            "set e.g. 0.1"
        )
    for field, value in (("importance_samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise Refused(f"evaluation.{field}: {value} is not positive; set e.g. 100")
    if count is None:
        return torch.arange(total)
    if not 1 <= count <= total:
        raise Refused(
            f"evaluation.count: {count} images were asked for and {total} are held out; "
            f"set 1 to {total}"
        )
    return permutation(seed, "chosen images", 0, total)[:count].sort().values
