"""The step's contract: a program is recorded once and replayed, and never waits for the device.

Every number that changes from step to step lies in a buffer; which phases, terms and losses are due
chooses one of a few programs.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ray_gen import losses
from ray_gen.experiment import Experiment
from ray_gen.experiment.networks import Network
from ray_gen.experiment.objectives import Objective
from ray_gen.noise import Tape
from ray_gen.training.build import build_objective
from tests.helpers import (
    STYLEGAN2,
    batches,
    gan,
    largest_difference,
    larsen,
    latent_autoencoder,
    some_of,
    vae,
    weights,
)
from tests.programs import Recorded, eager, replayed, runs_on_meta

SCHEDULED = (
    "optimizers.autoencoder.betas=[0.9,{kind: cosine, start: 0.9, end: 0.99, until_images: 900}]",
    "optimizers.autoencoder.clip_norm={kind: linear, start: 9, end: 5, until_images: 900}",
    "optimizers.autoencoder.schedule={kind: linear, warmup_images: 48, horizon_images: 1440}",
    "objective.beta={kind: linear, start: 0, end: 1, until_images: 900}",
    "training.ema_half_life_images={kind: steps, values: [[0, 50], [600, 100]]}",
)
R3GAN_SCHEDULES = [
    f"{path}={given % 'kind: cosine, until_images: 900'}"
    for path, given in {
        "objective.r1_weight": "{%s, start: 2, end: 1}",
        "objective.r2_weight": "{%s, start: 2, end: 1}",
        "optimizers.discriminator.learning_rate": "{%s, start: 2.0e-4, end: 5.0e-5}",
        "optimizers.discriminator.betas": "[0.0, {%s, start: 0.9, end: 0.99}]",
        "optimizers.generator.learning_rate": "{%s, start: 2.0e-4, end: 5.0e-5}",
        "optimizers.generator.betas": "[0.0, {%s, start: 0.9, end: 0.99}]",
        "training.ema_half_life_images": "{%s, start: 1, end: 100}",
    }.items()
]
FAMILIES: dict[str, Experiment] = {
    "vae": vae(),
    "gaussian-vae": vae("objective.likelihood=gaussian", "networks.decoder.spectral_norm=true"),
    "scheduled-vae": vae("optimizers.autoencoder.kind=adamw", *SCHEDULED, kind="conv"),
    "binarised-vae": vae("objective.binarize=true", "training.micro_batch_size=6"),
    "iwae": vae("objective.samples=3", "objective.conditional=true"),
    "dreg": vae(
        "objective.samples=3",
        "objective.gradient=dreg",
        "objective.likelihood=gaussian",
        "training.precision=bf16",
        kind="dcgan",
    ),
    "optimal-sigma": vae("objective.likelihood=gaussian", "objective.sigma=optimal"),
    "continuous-bernoulli": vae("objective.likelihood=continuous_bernoulli"),
    "mixture": vae("objective.likelihood=logistic_mixture", "training.precision=bf16"),
    "sgd-vae": vae("optimizers.autoencoder={kind: sgd, learning_rate: 1e-3, momentum: 0.9}"),
    "autoencoder": vae("objective={kind: autoencoder, latent_size: 3}"),
    "vae-gan": larsen(
        "objective.feature_weight={kind: linear, start: 0.1, end: 1, until_images: 900}",
        "objective.conditional=true",
        "training.precision=bf16",
        kind="dcgan",
    ),
    "latent-autoencoder": latent_autoencoder(
        "objective.adaptive=true",
        "objective.learned_scale=true",
        "objective.discriminator_start_images=120",
        "objective.start_images=240",
        "objective.lecam_weight=0.1",
        "objective.augment=[color]",
        "training.precision=bf16",
    ),
    "tokenizer": latent_autoencoder("objective.bottleneck={kind: vq, codes: 16}"),
    "fsq": latent_autoencoder(
        "objective.bottleneck={kind: fsq, levels: [5, 5]}", "objective.adversarial_weight=0"
    ),
    "lfq": latent_autoencoder(
        "objective.bottleneck={kind: lfq, bits: 3}", "objective.adversarial_weight=0"
    ),
    "gan": gan(),
    "dcgan": gan(
        "training.ema_profiles=[0.05, 0.1]",
        "objective.conditional=true",
        "objective.discriminator_steps=2",
        "objective.r1_weight={kind: cosine, start: 2, end: 1, until_images: 900}",
        "objective.r1_every=3",
        "objective.augment=[color,translation,cutout]",
        "networks.discriminator.spectral_norm=true",
        kind="dcgan",
    ),
    "ada": gan(
        "objective.augment={kind: ada, ada_images: 900, filter: 1, noise: 1, cutout: 1}",
        "objective.r1_weight=1",
        "objective.r1_every=2",
        "objective.consistency_weight=10",
        "objective.consistency_every=3",
        "training.precision=bf16",
        kind="dcgan",
    ),
    "scheduled-ada": gan(
        "objective.loss=relativistic",
        "objective.augment={kind: ada, shared: true}",
        "objective.augment.p={kind: cosine, start: 0, end: 0.5, until_images: 900}",
        "objective.r1_weight=1",
        "objective.r2_weight=1",
        "objective.fake_consistency_weight=10",
    ),
    "hinge": gan(
        "objective.loss=hinge",
        "objective.latent_distribution=uniform",
        "objective.lecam_weight={kind: steps, values: [[0, 0.0], [300, 0.3]]}",
        kind="dcgan",
    ),
    "relativistic": gan(
        "objective.loss=relativistic",
        "objective.r1_weight={kind: cosine, start: 2, end: 1, until_images: 900}",
        "objective.r2_weight=1",
        "objective.r2_every=3",
        "networks.discriminator.batch_norm=false",
        "training.precision=bf16",
        kind="dcgan",
    ),
    "wasserstein": gan(
        "objective.loss=wasserstein",
        "objective.gradient_penalty_weight={kind: linear, start: 1, end: 10, until_images: 900}",
        "objective.gradient_penalty_every=2",
        "networks.discriminator.batch_norm=false",
        kind="dcgan",
    ),
    "frozen": gan(
        "training.freeze={discriminator: 1}",
        "networks.discriminator.spectral_norm=true",
        "objective.r1_weight=1",
        "objective.r1_every=2",
        kind="dcgan",
    ),
    "biggan": gan(
        "objective.conditional=true",
        "objective.loss=hinge",
        "networks.generator={kind: resnet, labels: conditional_batch_norm, shared_embedding: 4, "
        "latent_chunks: true, attention: [8], width: 2}",
        "networks.discriminator={kind: resnet, labels: projection, channels: [4]}",
        "objective.latent_size=6",
    ),
    "classifier": gan(
        "objective.conditional=true",
        "objective.classifier_weight={kind: linear, start: 0, end: 1, until_images: 900}",
        "objective.generator_classifier_weight=0.1",
        "objective.classify_generated=true",
        "objective.r1_weight=1",
        "networks.generator.labels=conditional_batch_norm",
        "networks.discriminator.labels=none",
        kind="dcgan",
    ),
    "stylegan2": gan(
        *STYLEGAN2,
        "objective.conditional=true",
        "objective.path_length_weight={kind: linear, start: 1, end: 2, until_images: 900}",
        "objective.path_length_every=2",
        "training.precision=bf16",
    ),
    "r3gan": gan(
        "networks.generator.blocks=1",
        "networks.discriminator.blocks=1",
        "objective.conditional=true",
        "objective.loss=relativistic",
        *R3GAN_SCHEDULES,
        "training.precision=bf16",
        kind="r3gan",
    ),
    "fastgan": gan(
        "objective.loss=hinge",
        "objective.hinge_margin=[0.8,1.0]",
        "objective.reconstruction_weight={kind: linear, start: 8, end: 1, until_images: 900}",
        "objective.reconstruction_distance={kind: ssim}",
        "objective.augment=[color]",
        "networks.generator.width=1",
        "networks.discriminator.width=1",
        kind="fastgan",
    ),
    "patch": gan(
        "objective.loss=hinge",
        "objective.r1_weight=1",
        "objective.r1_every=2",
        "networks.discriminator={kind: patch, layers: 1, width: 4, spectral_norm: true}",
        kind="dcgan",
    ),
    "autoencoder-kl": latent_autoencoder(
        *(
            f"networks.{name}={{kind: autoencoder_kl, width: 4, multipliers: [1, 2], blocks: 1, "
            "groups: 2, attention: [4]}"
            for name in ("encoder", "decoder")
        ),
        "objective.perceptual_weight=0",
        "training.precision=bf16",
    ),
    "bf16": gan("training.precision=bf16", "objective.r1_weight=1", kind="dcgan"),
}


QUICK = ("scheduled-vae", "dreg", "latent-autoencoder", "tokenizer", "dcgan", "scheduled-ada")
"""With every kind of number that changes, schedules, lazy terms and state that moves."""


@pytest.mark.parametrize("family", some_of(FAMILIES, *QUICK))
def test_a_replayed_step_is_the_step(store_8, monkeypatch, family: str) -> None:
    """Bit for bit, over 28 steps and three blocks: weights, averages, moments, reports."""
    monkeypatch.setattr(Tape, "length_for", staticmethod(lambda specs, images: 10))
    this = FAMILIES[family]
    data = batches(this, build_objective(this), store_8, 0, 28)
    before = Recorded.recordings
    (ours, reported), (theirs, expected) = replayed(this, data), eager(this, data)
    assert 1 <= Recorded.recordings - before <= 12
    assert largest_difference(weights(ours), weights(theirs)) == 0
    moments, those = ours.moments(), theirs.moments()
    assert all(torch.equal(moments[name], those[name]) for name in those)
    assert reported == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reads_no_number_and_mixes_no_devices(family: str) -> None:
    runs_on_meta(FAMILIES[family], steps=12)


@pytest.mark.parametrize("union", [Objective, Network], ids=["objectives", "networks"])
def test_every_kind_that_ships_is_held_to_the_contract(union: Any) -> None:
    """A new objective or architecture joins FAMILIES in the commit that brings it."""
    (kinds, *_) = get_args(union)
    shipped = {kind.model_fields["kind"].default for kind in get_args(kinds)} - {"custom"}
    held = {this.objective.kind for this in FAMILIES.values()}
    held |= {network.kind for this in FAMILIES.values() for network in this.networks.values()}
    assert shipped <= held


@pytest.mark.parametrize("reads", [lambda x: x.item(), float, lambda x: x if x > 0 else -x])
def test_a_step_that_reads_a_number_is_noticed(monkeypatch, reads) -> None:
    real = losses.gaussian_kl

    def reading(mean: Tensor, log_variance: Tensor) -> Tensor:
        return real(mean, log_variance) + 0 * reads(mean.sum())

    monkeypatch.setattr(losses, "gaussian_kl", reading)
    with pytest.raises(Exception, match=r"_local_scalar_dense|data.dependent"):
        runs_on_meta(FAMILIES["vae"], steps=1)


def test_a_step_that_mixes_devices_is_noticed(monkeypatch) -> None:
    real = losses.gaussian_kl

    def mixing(mean: Tensor, log_variance: Tensor) -> Tensor:
        return real(mean, log_variance) + torch.zeros(len(mean))

    monkeypatch.setattr(losses, "gaussian_kl", mixing)
    with pytest.raises(RuntimeError, match=r"(?i)device"):
        runs_on_meta(FAMILIES["vae"], steps=1)


def test_a_number_of_the_host_in_a_step_is_noticed(store_8, monkeypatch) -> None:
    """A recording repeats the same number, while the eager step uses new ones."""
    calls = iter(range(10_000))
    real = losses.gaussian_kl

    def counting(mean: Tensor, log_variance: Tensor) -> Tensor:
        return real(mean, log_variance) * next(calls)

    monkeypatch.setattr(losses, "gaussian_kl", counting)
    this = FAMILIES["vae"]
    data = batches(this, build_objective(this), store_8, 0, 6)
    ours, _ = replayed(this, data)
    calls = iter(range(10_000))
    theirs, _ = eager(this, data)
    assert largest_difference(weights(ours), weights(theirs)) > 0
