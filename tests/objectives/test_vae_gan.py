"""VAE-GAN: which network has which gradient (Larsen et al. 2016, algorithm 1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ray_gen.core import Batch, Featured, Signature
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import ExperimentError
from ray_gen.objectives.vae_gan import VaeGan
from ray_gen.training.build import build_networks, build_objective, import_target
from ray_gen.training.state import State
from tests.helpers import batches, larsen, stepped, trained

FP64 = "training.precision=fp64"


def total(parts: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """The sum of gradients that are computed one by one."""
    found = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for part in parts:
        gradients = torch.autograd.grad(
            part.sum(), parameters, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        found += torch.cat([gradient.flatten() for gradient in gradients])
    return found


@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_each_network_has_the_sum_of_the_gradients_of_its_losses(
    store_8, kind: str, loss: str
) -> None:
    gamma = 0.3
    this = larsen(FP64, f"objective.feature_weight={gamma}", f"objective.loss={loss}", kind=kind)
    objective = build_objective(this)
    networks = build_networks(this, objective)
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    epsilon, prior = torch.randn(2, 24, 5, dtype=torch.float64)
    noise = {"epsilon": epsilon, "z": prior}
    numbers = {"feature_weight": torch.tensor(gamma, dtype=torch.float64)}
    batch = Batch(images, None, noise, images.new_zeros(()), numbers, group_size=6)

    encoder, decoder, discriminator = (
        networks[name] for name in ("encoder", "decoder", "discriminator")
    )
    mean, log_variance = encoder(images).chunk(2, dim=1)
    z = mean + (0.5 * log_variance).exp() * epsilon
    reconstructed, sampled = decoder(z), decoder(prior)
    assert isinstance(discriminator, Featured)
    logit, features = discriminator.features(reconstructed)
    real, expected = discriminator.features(images)
    kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1)
    like = 0.5 * (features - expected) ** 2
    of_sample = discriminator(sampled)
    if loss == "minimax":
        fooling = [logsigmoid(-logit), logsigmoid(-of_sample)]
    else:
        fooling = [-logsigmoid(logit), -logsigmoid(of_sample)]
    wanted = {
        "encoder": [kl, like],
        "decoder": [gamma * like, *fooling],
        "discriminator": [-logsigmoid(real), -logsigmoid(-logit), -logsigmoid(-of_sample)],
    }
    found: dict[str, Tensor] = {}
    for phase in objective.phases():
        for name, network in networks.items():
            network.requires_grad_(name in phase.updates)
        (term,) = phase.terms
        minimised = term.loss(networks, batch).minimised
        for name in phase.updates:
            found[name] = total([sum(minimised.values())], list(networks[name].parameters()))
        if phase.name == "autoencoder":
            torch.testing.assert_close(minimised["features"], like.flatten(1).sum(1))
            torch.testing.assert_close(minimised["kl"], kl.sum(1))
            torch.testing.assert_close(minimised["decoder"], sum(fooling).flatten())
        else:
            losses = sum(wanted["discriminator"]).flatten()
            torch.testing.assert_close(minimised["discriminator"], losses)
    networks.requires_grad_(True)
    for name, losses in wanted.items():
        expected = total(losses, list(networks[name].parameters()))
        assert float(expected.abs().max()) > 1e-6
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


DISCRIMINATORS = {
    "mlp": "{kind: mlp, hidden_sizes: [7, 6]}",
    "conv": "{kind: conv, width: 3}",
    "dcgan": "{kind: dcgan, width: 3, labels: projection}",
    "resnet": "{kind: resnet, width: 2, labels: projection}",
    "patch": "{kind: patch, width: 3, layers: 1}",
}


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_features_come_from_the_pass_that_gives_the_logit(kind: str) -> None:
    """That of each block, by the blocks themselves."""
    this = larsen(f"networks.discriminator={DISCRIMINATORS[kind]}", "objective.conditional=true")
    settings = this.networks["discriminator"]
    signature = Signature((1, 32, 32), (1,), 3, several_logits=True)
    target = import_target(settings.target_for(signature.form), "networks.discriminator")
    network = target(signature, **settings.arguments()).eval()
    images, labels = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, given, out: seen.append(out.clone()))
        for block in (network.blocks if kind == "resnet" else network.layers)
    ]
    expected = network(images, labels)
    for hook in hooks:
        hook.remove()
    count = len(network.blocks_from_image()) - 1
    for layer in (*range(1, count + 1), None):
        logit, features = network.features(images, labels, layer=layer)
        torch.testing.assert_close(logit, expected)
        (place,) = {n for n, out in enumerate(seen) if torch.equal(features, out)}
        assert layer is None or place >= layer - 1
    last = network.features(images, labels, layer=count)[1]
    assert torch.equal(last, network.features(images, labels)[1])
    with pytest.raises(Refused, match=f"objective.feature_layer: 9, .* set it to 1 to {count}"):
        network.features(images, labels, layer=9)


def test_a_run_reports_all_parts_and_makes_images(store_8) -> None:
    this = larsen("objective.feature_layer=1", kind="dcgan")
    state, reports = trained(this, store_8)
    metrics = reports[-1].metrics
    names = ["loss/discriminator", "loss/kl", "loss/features", "loss/decoder"]
    names += [f"discriminator/{of}" for of in ("real", "reconstructed", "fake")]
    names += ["held_out/reconstruction_mse", "held_out/kl"]
    assert set(names) <= metrics.keys()
    assert 0 < metrics["held_out/reconstruction_mse"] < 0.5
    objective = build_objective(this)
    assert isinstance(objective, VaeGan)
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    latents = {"z": torch.randn(24, 5)}
    for made in (
        objective.sample(state.ema, latents, None, {}),
        objective.reconstruct(state.ema, images, None, {}),
    ):
        assert made.shape == images.shape
        assert 0 <= float(made.min()) < float(made.max()) <= 1
    assert objective.discriminate(state.networks, images, None).shape == (24,)
    assert objective.encode(state.ema, images, None)["z"].mean.shape == (24, 5)


def test_the_encoder_s_gradient_does_not_know_gamma(store_8) -> None:
    """The encoder of a run with γ = 0 learns; its decoder only plays."""
    moved = []
    for gamma in (0.0, 5.0):
        this = larsen(FP64, f"objective.feature_weight={gamma}", "optimizers.autoencoder.kind=sgd")
        state, _ = stepped(this, build_objective(this), store_8, 1)
        moved.append(state.networks)
    for name, same in (("encoder", True), ("decoder", False)):
        ours, theirs = (
            torch.cat([p.flatten() for p in networks[name].parameters()]) for networks in moved
        )
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12) == same, name


@pytest.mark.parametrize("kind", ["r3gan", "stylegan2", "fastgan"])
def test_a_discriminator_without_features_is_refused(kind: str) -> None:
    with pytest.raises(ExperimentError, match=rf"networks.discriminator.kind: {kind} gives no"):
        larsen(f"networks.discriminator={{kind: {kind}}}")


def test_a_discriminator_that_has_won_is_told() -> None:
    objective = build_objective(larsen())
    memory: dict[str, float] = {}
    for images in (0, 30_000):
        objective.note(memory, {"discriminator/real": 1.0, "discriminator/fake": 0.0}, images)
    assert objective.failure(memory, 40_000) is None
    assert "optimizers.discriminator.learning_rate" in objective.failure(memory, 60_000)
    objective.note(memory, {"discriminator/real": 0.9, "discriminator/fake": 0.0}, 60_000)
    assert objective.failure(memory, 90_000) is None


def test_state_holds_all_three_networks() -> None:
    this = larsen()
    state = State.build(this, build_objective(this), World())
    assert set(state.networks) == {"encoder", "decoder", "discriminator"}
    assert set(state.ema) == {"encoder", "decoder"}
