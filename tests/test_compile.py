"""`training.compile` changes the speed of a step and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from tests.helpers import (
    gan,
    larsen,
    relative_difference,
    relativistic,
    some_of,
    trained,
    vae,
    vae_gan,
    weights,
)

FEW = "training.images=96"

MODELS: dict[str, Callable[..., Experiment]] = {
    "vae": vae,
    "conditional vae": lambda *o: vae("objective.conditional=true", *o),
    "vae, β with warm-up": lambda *o: vae("objective.beta_warmup_images=100", *o),
    "vae, importance-weighted": lambda *o: vae(
        "objective.samples=3", "objective.gradient=dreg", *o
    ),
    "vae, optimal sigma": lambda *o: vae(
        "objective.likelihood=gaussian", "objective.sigma=optimal", *o
    ),
    "vae, mixture": lambda *o: vae("objective.likelihood=logistic_mixture", *o),
    "dcgan": lambda *o: gan(*o, kind="dcgan"),
    "conditional dcgan": lambda *o: gan("objective.conditional=true", *o, kind="dcgan"),
    "spectral norm, lazy R1, augmentation": lambda *o: gan(
        "networks.discriminator.spectral_norm=true",
        "objective.r1_weight=1",
        "objective.r1_every=2",
        "objective.augment=[color,translation,cutout]",
        *o,
        kind="dcgan",
    ),
    "adaptive augmentation": lambda *o: gan(
        "objective.augment={kind: ada, ada_images: 96, target: -0.5}",
        "objective.r1_weight=1",
        "objective.consistency_weight=10",
        *o,
        kind="dcgan",
    ),
    "hinge, two steps, micro-batches": lambda *o: gan(
        "objective.loss=hinge",
        "objective.discriminator_steps=2",
        "training.micro_batch_size=6",
        *o,
        kind="dcgan",
    ),
    "resnet with a classifier": lambda *o: gan(
        "objective.conditional=true",
        "objective.classifier_weight=1",
        "objective.generator_classifier_weight=0.1",
        "networks.generator={kind: resnet, width: 2, labels: conditional_batch_norm}",
        "networks.discriminator={kind: resnet, channels: [4, 4], labels: projection, "
        "attention: [4], spectral_norm: true}",
        *o,
    ),
    "vae-gan": lambda *o: larsen(*o, kind="dcgan"),
    "own vae-gan": vae_gan,
    "relativistic": relativistic,
}


DOUBLE_BACKWARD = {
    "adaptive augmentation",
    "relativistic",
    "spectral norm, lazy R1, augmentation",
    "vae, importance-weighted",
    "vae-gan",
}


@cache
def traces_double_backward() -> bool:
    """Whether torch can trace `requires_grad_()` and the gradient of a gradient, which R1 needs."""
    import torch._dynamo

    def of_a_penalty(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((x @ weight).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    x, weight = torch.ones(2, 3), torch.ones(3, requires_grad=True)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        try:
            traced = torch.compile(of_a_penalty, fullgraph=True, backend="aot_eager")(x, weight)
        except torch._dynamo.exc.TorchDynamoException:
            return False
    return torch.allclose(traced, of_a_penalty(x, weight))


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph of forward and backward passes, run by torch's own kernels."""
    compile_ = torch.compile

    def traced(function, **options):
        assert options["fullgraph"]
        return compile_(function, fullgraph=True, dynamic=False, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)


@pytest.mark.usefixtures("without_code")
@pytest.mark.parametrize("model", some_of(MODELS, "vae", *DOUBLE_BACKWARD - {"vae-gan"}))
def test_a_step_as_one_graph_equals_the_eager_step(store_8, model: str) -> None:
    if model in DOUBLE_BACKWARD and not traces_double_backward():
        pytest.skip(f"torch {torch.__version__} cannot trace the gradient of a gradient")
    eager, eager_reports = trained(MODELS[model]("training.precision=fp64", FEW), store_8)
    graph, reports = trained(
        MODELS[model]("training.precision=fp64", FEW, "training.compile=true"), store_8
    )
    assert relative_difference(weights(graph), weights(eager)) < 1e-9
    for ours, theirs in zip(reports, eager_reports, strict=True):
        for tag, value in theirs.metrics.items():
            if not tag.startswith(("speed/", "memory/")):
                assert ours.metrics[tag] == pytest.approx(value, rel=1e-9), tag


def test_generated_code_equals_the_eager_step(store_8) -> None:
    """Through the real compiler: some 20 s where its cache is cold."""
    eager, _ = trained(vae(FEW), store_8)
    graph, _ = trained(vae(FEW, "training.compile=true"), store_8)
    assert relative_difference(weights(graph), weights(eager)) < 1e-4


@pytest.mark.usefixtures("without_code")
def test_what_cannot_be_one_graph_is_refused(store_8, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_gen import losses

    real = losses.gaussian_kl

    def reads_back(mean, log_variance):
        return real(mean, log_variance) if mean.sum() > -1e9 else log_variance.sum(1)

    monkeypatch.setattr(losses, "gaussian_kl", reads_back)
    with pytest.raises(Refused, match=r"^training\.compile: .* false"):
        trained(vae(FEW, "training.compile=true"), store_8)


def test_a_compiler_that_traces_no_gradients_is_refused(
    store_8, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo

    monkeypatch.delattr(torch._dynamo.config, "trace_autograd_ops")
    with pytest.raises(Refused, match="newer torch"):
        trained(vae(FEW, "training.compile=true"), store_8)


class Shared(torch.nn.Module):
    """Two parameters that are only ever added: they have one gradient."""

    def __init__(self, signature) -> None:
        super().__init__()
        self.body = torch.nn.Linear(64, signature.vector_size)
        self.first = torch.nn.Parameter(torch.zeros(signature.vector_size))
        self.second = torch.nn.Parameter(torch.zeros(signature.vector_size))

    def forward(self, images, labels=None):
        return self.body(images.flatten(1)) + (self.first + self.second)


@pytest.mark.usefixtures("without_code")
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_parameters_that_share_a_gradient_are_clipped_and_summed_apart(
    store_8, compiled: str
) -> None:
    given = [
        "networks.encoder={kind: custom, target: tests.test_compile:Shared}",
        "optimizers.autoencoder={kind: sgd, learning_rate: 0.001, clip_norm: 0.01}",
        f"training.compile={compiled}",
        "training.precision=fp64",
        FEW,
    ]
    whole, _ = trained(vae(*given), store_8)
    parts, _ = trained(vae(*given, "training.micro_batch_size=6"), store_8)
    assert relative_difference(weights(parts), weights(whole)) < 1e-9
    encoder = weights(whole)["encoder"]
    assert torch.equal(encoder["first"], encoder["second"])
    assert encoder["first"].abs().max() > 0
