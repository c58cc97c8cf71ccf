"""A run is a function of its experiment: workers and micro-batches change nothing but time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import (
    STYLEGAN2,
    gan,
    largest_difference,
    larsen,
    latent_autoencoder,
    relative_difference,
    relativistic,
    some_of,
    trained,
    trained_by_workers,
    vae,
    vae_gan,
    weights,
)

FP64 = "training.precision=fp64"
SHORT = "training.images=240"

EXPERIMENTS = {
    "vae": lambda *o: vae(*o),
    "conv-vae": lambda *o: vae("objective.likelihood=gaussian", "data.flip=true", *o, kind="conv"),
    "iwae": lambda *o: vae("objective.samples=3", "objective.gradient=dreg", *o, kind="dcgan"),
    "optimal-sigma": lambda *o: vae(
        "objective.likelihood=gaussian", "objective.sigma=optimal", *o, kind="conv"
    ),
    "mixture": lambda *o: vae("objective.likelihood=logistic_mixture", *o),
    "latent": lambda *o: latent_autoencoder(
        "objective.adaptive=true",
        "objective.learned_scale=true",
        "objective.discriminator_start_images=120",
        "objective.start_images=192",
        "objective.lecam_weight=0.1",
        "objective.augment=[color]",
        *o,
    ),
    "tokenizer": lambda *o: latent_autoencoder(
        "objective.bottleneck={kind: vq, codes: 16, gradient: rotation}", *o
    ),
    "mlp-gan": lambda *o: gan("objective.discriminator_steps=2", *o),
    "dcgan": lambda *o: gan("training.ema_profiles=[0.05, 0.1]", *o, kind="dcgan"),
    "cdcgan-tamed": lambda *o: gan(
        "objective.conditional=true",
        "objective.loss=hinge",
        "objective.lecam_weight=0.3",
        "objective.lecam_every=2",
        "objective.r1_weight=1",
        "objective.r1_every=2",
        "objective.augment=[color,translation,cutout]",
        "networks.discriminator.spectral_norm=true",
        "optimizers.discriminator.clip_norm=1",
        *o,
        kind="dcgan",
    ),
    "ada": lambda *o: gan(
        "objective.augment={kind: ada, ada_images: 480, filter: 1, noise: 1, cutout: 1}",
        "objective.consistency_weight=10",
        "objective.fake_consistency_weight=10",
        "objective.consistency_every=2",
        "objective.r1_weight=1",
        *o,
        kind="dcgan",
    ),
    "wgan-gp": lambda *o: gan(
        "objective.loss=wasserstein",
        "objective.gradient_penalty_weight=10",
        "objective.r2_weight=1",
        "objective.r2_every=2",
        "networks.discriminator.batch_norm=false",
        *o,
        kind="dcgan",
    ),
    "frozen-dcgan": lambda *o: gan(
        "training.freeze={discriminator: 1}",
        "networks.discriminator.spectral_norm=true",
        "objective.r1_weight=1",
        *o,
        kind="dcgan",
    ),
    "ac-resnet": lambda *o: gan(
        "objective.conditional=true",
        "objective.classifier_weight=1",
        "objective.generator_classifier_weight=0.1",
        "networks.generator={kind: resnet, width: 2, labels: conditional_batch_norm}",
        "networks.discriminator={kind: resnet, width: 2, labels: projection, spectral_norm: true}",
        *o,
    ),
    "stylegan2": lambda *o: gan(
        *STYLEGAN2,
        "objective.conditional=true",
        "objective.path_length_weight=2",
        "objective.path_length_every=2",
        "objective.r1_weight=1",
        *o,
    ),
    "r3gan": lambda *o: gan(
        "networks.generator.blocks=1",
        "networks.discriminator.blocks=1",
        "objective.conditional=true",
        "objective.loss=relativistic",
        "objective.r1_weight=1",
        "objective.r2_weight=1",
        *o,
        kind="r3gan",
    ),
    "fastgan": lambda *o: gan(
        "objective.loss=hinge",
        "objective.hinge_margin=[0.8,1.0]",
        "objective.reconstruction_weight=8",
        "objective.reconstruction_distance={kind: ssim}",
        "objective.augment=[color]",
        "networks.generator.width=1",
        "networks.discriminator.width=1",
        *o,
        kind="fastgan",
    ),
    "patch": lambda *o: gan(
        "objective.loss=hinge",
        "objective.r1_weight=1",
        "networks.discriminator={kind: patch, layers: 1, width: 4, spectral_norm: true}",
        *o,
        kind="dcgan",
    ),
    "larsen": lambda *o: larsen(*o, kind="dcgan"),
    "vae-gan": lambda *o: vae_gan(*o),
    "relativistic": lambda *o: relativistic(*o),
}


COUPLED = ("latent", "tokenizer", "cdcgan-tamed", "ada", "stylegan2", "r3gan")
"""Experiments with what workers share beside gradients: norms of gradients, codes, running
statistics, anchors, an adaptive probability, path lengths, pairs."""
QUICK = ("conv-vae", "dcgan", *COUPLED)
BY_COUNT = [
    pytest.param(count, name, marks=[] if name in quick else [pytest.mark.slow])
    for count, quick in ((2, QUICK), (3, ("latent", "ada")))
    for name in EXPERIMENTS
]


@pytest.fixture(scope="module")
def by_workers(store_8, tmp_path_factory, request) -> Callable[[int], dict[tuple[str, str], dict]]:
    """Weights after 10 steps on `count` workers, in fp64 and fp32. One set of processes trains all
    experiments that this session asks for."""
    wanted: dict[int, list[str]] = {}
    for item in request.session.items:
        if getattr(item, "function", None) is test_workers_do_not_change_the_result:
            given = item.callspec.params
            wanted.setdefault(given["count"], []).append(given["name"])

    def of(count: int) -> dict[tuple[str, str], dict]:
        cases = [(name, precision) for name in wanted[count] for precision in ("fp64", "fp32")]
        runs = [EXPERIMENTS[name](f"training.precision={of}", SHORT) for name, of in cases]
        folder: Path = tmp_path_factory.mktemp("weights")
        return dict(zip(cases, trained_by_workers(count, runs, store_8, folder), strict=True))

    return cache(of)


@pytest.fixture(scope="module")
def alone(store_8) -> Callable[[str, str], dict]:
    """The same weights, trained by this process."""
    return cache(
        lambda name, precision: weights(
            trained(EXPERIMENTS[name](f"training.precision={precision}", SHORT), store_8)[0]
        )
    )


@pytest.mark.parametrize(("count", "name"), BY_COUNT)
def test_workers_do_not_change_the_result(by_workers, alone, count: int, name: str) -> None:
    several = by_workers(count)
    assert largest_difference(several[name, "fp64"], alone(name, "fp64")) < 1e-9
    assert relative_difference(several[name, "fp32"], alone(name, "fp32")) < 1e-4


@pytest.mark.parametrize("name", some_of(EXPERIMENTS, *QUICK))
def test_micro_batches_do_not_change_the_result(alone, store_8, name: str) -> None:
    quarter, _ = trained(EXPERIMENTS[name](FP64, SHORT, "training.micro_batch_size=6"), store_8)
    assert largest_difference(weights(quarter), alone(name, "fp64")) < 1e-9


def test_the_group_does_change_the_result_of_batch_norm(alone, store_8) -> None:
    """The tests above can fail: BatchNorm over another group is another run."""
    other, _ = trained(EXPERIMENTS["dcgan"](FP64, SHORT, "training.group_size=12"), store_8)
    assert largest_difference(weights(other), alone("dcgan", "fp64")) > 1e-6


@pytest.mark.parametrize("name", some_of(EXPERIMENTS, *QUICK))
def test_the_seed_changes_the_result(alone, store_8, name: str) -> None:
    other, _ = trained(EXPERIMENTS[name](FP64, SHORT, "seed=1"), store_8)
    assert largest_difference(weights(other), alone(name, "fp64")) > 1e-3


def test_a_run_that_shrinks_and_grows_is_the_run_of_a_fixed_size(store_8, tmp_path: Path) -> None:
    """8, 3, 1 and 5 workers one after the other, each from the checkpoint of those before."""
    batch = ("training.global_batch_size=64", "training.group_size=8", "training.images=1280")
    for of in (vae, gan):
        this = of(*batch, FP64)
        fixed = weights(trained(this, store_8)[0])
        for stage, count in enumerate((8, 3, 1, 5)):
            this = this.with_fields(training__images=320 * (stage + 1))
            folder = tmp_path / of.__name__ / str(stage)
            folder.mkdir(parents=True)
            before = folder.with_name(str(stage - 1)) / "checkpoint" if stage else None
            (found,) = trained_by_workers(count, [this], store_8, folder, before)
        assert relative_difference(found, fixed) < 1e-12
