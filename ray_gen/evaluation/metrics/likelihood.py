"""Scores of a model with a likelihood, on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import PositiveInt

from ray_gen.evaluation.metric import Lacking, Metric
from ray_gen.evaluation.scores import Score
from ray_gen.settings import Settings, free


class LikelihoodSettings(Settings):
    """The bound on log p(x)."""

    importance_samples: PositiveInt = free(100)
    """Samples of z per image for the importance-weighted bound of `likelihood`: K. Papers use
    5000."""


class Likelihood(Metric[LikelihoodSettings]):
    """`likelihood`: bounds on log p(x), bits per dimension, active units and reconstruction errors,
    see `likelihood.measure`. The model and its data decide which of them exist."""

    asked_as = ("likelihood",)
    scores = {
        "elbo": "higher",
        "reconstruction": "lower",
        "kl": None,
        "log_likelihood_bound": "higher",
        "bits_per_dimension": "lower",
        "active_units": None,
        "reconstruction_mse": "lower",
        "reconstruction_ssim": "higher",
    }
    of_samples = False
    settings_class = LikelihoodSettings

    def check(self) -> None:
        """The model has a likelihood, and there are held-out images."""
        from ray_gen.core import Bounds, Decodes

        where, given = "evaluation.metrics: likelihood", self.given
        if given.subject is None:
            raise Lacking(f"{where}: pictures have no likelihood; name a run instead", None)
        if isinstance(given.subject.objective, Decodes):
            raise Lacking(
                f"{where}: of a model in latents it is that of latents, not of images; leave it"
                " out",
                None,
            )
        if not isinstance(given.subject.objective, Bounds):
            raise Lacking(
                f"{where}: the objective {given.subject.kind} has no likelihood; leave it out", None
            )
        if given.labelled is None or not len(given.labelled.images_NHWC):
            why = f"it is measured on held-out images, and {given.data} has none"
            remedy = "name other images"
            if "training" in given.sets:
                remedy = "set data.held_out_fraction to 0.1"
            raise Lacking(f"{where}: {why}; {remedy}", why)

    def measure(self) -> Iterator[Score]:
        """The scores on at most `evaluation.count` held-out images. Collective: every rank, same
        order."""
        from ray_gen.core import Bounds
        from ray_gen.evaluation.likelihood.measure import likelihood_scores

        given, subject, images = self.given, self.given.subject, self.given.labelled
        assert subject is not None and images is not None and isinstance(subject.objective, Bounds)
        yield from likelihood_scores(
            subject.objective,
            subject.networks,
            images,
            samples=self.settings.importance_samples,
            batch_size=given.batch_size,
            seed=given.seed,
            world=given.world,
            conditional=subject.conditional,
            dtype=subject.dtype,
            count=None if given.count is None else min(given.count, len(images.images_NHWC)),
            description={**subject.description, "data": given.data, "split": "held_out"},
            opacity=given.opacity,
            progress=given.progress,
        )
