"""`training.freeze`: what is frozen is a fixed function, and all else trains as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_gen.core import InBlocks, Signature
from ray_gen.distributed import World
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.networks.conv import ConvDecoder, ConvEncoder
from ray_gen.networks.dcgan import DcganDiscriminator, DcganGenerator
from ray_gen.networks.mlp import Mlp
from ray_gen.networks.resnet import ResnetDiscriminator, ResnetGenerator
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.state import State
from tests.helpers import gan, random_store, stepped, vae, vae_gan, weights
from tests.networks.test_resnet import OPTIONS
from tests.test_program import FAMILIES


def networks_of(this: Experiment) -> list[nn.Module]:
    return [*build_networks(this, build_objective(this), this.networks).values()]


SGD = "{kind: sgd, learning_rate: 0.01}"
WITHOUT_NORM = ("networks.discriminator.batch_norm=false", "training.precision=fp64")


def after(this: Experiment, store, steps: int = 4):
    """Weights before the first step and after some steps, and the names of the moments."""
    objective = build_objective(this)
    before = weights(stepped(this, objective, store, 0)[0])
    state, _ = stepped(this, objective, store, steps)
    return before, weights(state), state.moments()


def moved(before, now, network: str) -> set[str]:
    return {k for k, v in now[network].items() if not torch.equal(v, before[network][k])}


@pytest.mark.parametrize("decay", ["", "optimizers.discriminator.kind=adamw"])
def test_only_what_is_not_frozen_moves(store_8, decay: str) -> None:
    this = gan("training.freeze={discriminator: 1}", *filter(None, [decay]), kind="dcgan")
    before, now, moments = after(this, store_8)
    everything = set(now["discriminator"])
    frozen = {"layers.0.weight"}
    assert moved(before, now, "discriminator") == everything - frozen
    assert moved(before, now, "generator") == set(now["generator"])
    trained = {name.split("/")[1] for name in moments if name.startswith("discriminator/")}
    assert trained == {"discriminator.layers.2.weight"}  # at 8 pixels, two convolutions


def test_a_frozen_weight_gets_no_gradient(store_8) -> None:
    this = vae("training.freeze={decoder: 1}", kind="conv")
    state, _ = stepped(this, build_objective(this), store_8, 2)
    first = [*state.networks["decoder"].layers[-1].parameters()]
    assert len(first) == 2
    for network in state.networks.values():
        for parameter in network.parameters():
            frozen = any(parameter is one for one in first)
            assert parameter.requires_grad != frozen and parameter.grad is None


def test_statistics_and_power_iterations_of_a_frozen_block_stand_still() -> None:
    given = ("training.freeze={discriminator: 2}", "networks.discriminator.spectral_norm=true")
    this = gan(*given, kind="dcgan").with_fields(data__image_size=[16, 16])
    before, now, _ = after(this, random_store(16))
    still = set(now["discriminator"]) - moved(before, now, "discriminator")
    assert {name for name in still if name.startswith("layers.3.")} == {
        *(f"layers.3.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
    }
    assert {name for name in still if "layers.2." in name} == {
        f"layers.2.parametrizations.weight.{part}" for part in ("original", "0.left", "0.right")
    }


def test_a_frozen_block_normalises_an_image_by_the_statistics_that_it_began_with() -> None:
    this = gan("training.freeze={discriminator: 2}", kind="dcgan")
    this = this.with_fields(data__image_size=[16, 16])
    state, _ = stepped(this, build_objective(this), random_store(16), 2)
    blocks = state.networks["discriminator"].blocks_from_image()
    images = torch.rand(6, 1, 16, 16)
    together, alone = (blocks[1](blocks[0](some)) for some in (images, images[:1]))
    torch.testing.assert_close(together[:1], alone)


def test_a_whole_network_stays_the_function_that_it_was(store_8) -> None:
    this = vae("training.freeze={encoder: all}", kind="conv")
    before, now, moments = after(this, store_8)
    assert not moved(before, now, "encoder") and not moved(before, now, "ema encoder")
    assert moved(before, now, "decoder") == set(now["decoder"])
    assert not any("/encoder." in name for name in moments)


@pytest.mark.parametrize("penalty", ["r1_weight", "r2_weight", "gradient_penalty_weight"])
def test_the_rest_gets_the_gradients_that_it_has_without_a_frozen_part(
    store_8, penalty: str
) -> None:
    """Also through the double backward pass of a penalty, which goes through frozen weights."""
    given = [f"optimizers.discriminator={SGD}", f"objective.{penalty}=5", *WITHOUT_NORM]
    free, frozen = (
        after(gan(*given, *more, kind="dcgan"), store_8, steps=1)
        for more in ([], ["training.freeze={discriminator: 1}"])
    )
    second = {name for name in free[1]["discriminator"] if name.startswith("layers.2.")}
    assert second <= moved(*free[:2], "discriminator")
    assert moved(*frozen[:2], "discriminator") == second
    for name in second:
        assert torch.equal(frozen[1]["discriminator"][name], free[1]["discriminator"][name])


def test_tables_of_classes_are_in_no_block() -> None:
    options = {**RESNET, "labels": "conditional_batch_norm"}
    dcgan = {**DCGAN, "labels": "conditional_batch_norm"}
    for network in (
        ResnetGenerator(Signature(VECTOR, IMAGE, 4), **options),
        DcganGenerator(Signature(VECTOR, IMAGE, 4), **dcgan),
    ):
        inside = {p for block in network.blocks_from_image() for p in block.parameters()}
        outside = {name for name, p in network.named_parameters() if p not in inside}
        tables = [name for name in outside if name.endswith(("gain.weight", "bias.weight"))]
        assert len(tables) == len(outside) > 3


IMAGE, VECTOR = (3, 16, 16), (7,)
CONV = {"width": 4, "label_size": 3}
DCGAN = {**CONV, "batch_norm": True, "spectral_norm": False}
RESNET = {**OPTIONS, "width": 2}
MLP = {
    **{"hidden_sizes": (5, 6), "activation": "relu", "initial_weights": "default"},
    **{"label_size": 3, "spectral_norm": False},
}


@pytest.mark.parametrize(
    ("kind", "options", "is_generator", "count"),
    [
        (DcganDiscriminator, DCGAN, False, 3),
        (DcganGenerator, DCGAN, True, 3),
        (ConvEncoder, CONV, False, 3),
        (ConvDecoder, CONV, True, 3),
        (Mlp, MLP, False, 3),
        (Mlp, MLP, True, 3),
        (ResnetDiscriminator, RESNET, False, 5),
        (ResnetGenerator, RESNET, True, 4),
    ],
)
def test_blocks_are_all_layers_and_begin_at_the_images(
    kind, options, is_generator: bool, count: int
) -> None:
    signature = Signature(VECTOR, IMAGE, 4) if is_generator else Signature(IMAGE, VECTOR, 4)
    network = kind(signature, **options).eval()
    assert isinstance(network, InBlocks)
    blocks = network.blocks_from_image()
    assert len(blocks) == count
    called: list[nn.Module] = []
    for module in network.modules():
        if not [*module.children()]:
            module.register_forward_hook(lambda module, *_: called.append(module))
    x = torch.zeros(2, *signature.input)
    network(x, torch.tensor([0, 3]))
    weighted = [module for module in called if [*module.parameters()]]
    inside = [m for block in blocks for m in block.modules() if m in weighted]
    order = weighted[1:]  # the first is the table of labels
    assert {*inside} == {*order}
    firsts = [next(m for m in block.modules() if m in order) for block in blocks]
    places = [order.index(module) for module in firsts]
    assert places == sorted(places, reverse=is_generator)


FAMILY_OF = {type(of).__name__: name for name, this in FAMILIES.items() for of in networks_of(this)}


@pytest.mark.parametrize("kind", FAMILY_OF)
def test_the_blocks_of_every_network_begin_at_the_images(kind: str) -> None:
    """Where maps are largest. All are in a block once, except for what belongs to labels."""
    this = FAMILIES[FAMILY_OF[kind]]
    side = this.image_shape[1]
    objective = build_objective(this)
    state = State.build(this, objective, World())
    heights: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: object, out: object) -> None:
        if isinstance(out, torch.Tensor):
            heights[module] = max(heights.get(module, 0), out.shape[2] if out.ndim == 4 else 1)

    for network in state.networks.values():
        for module in network.modules():
            module.register_forward_hook(note)
    stepped(this, objective, random_store(side), 1, state)
    for network in state.networks.values():
        if type(network).__name__ != kind or not isinstance(network, InBlocks):
            continue
        blocks = network.blocks_from_image()
        inside = [module for block in blocks for module in block.modules()]
        assert blocks and len(inside) == len({*inside})
        found = [max(heights.get(m, 0) for m in block.modules()) for block in blocks]
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("freeze", "told"),
    [
        (
            "{discriminator: 3}",
            "training.freeze.discriminator: DcganDiscriminator has 2 blocks, so",
        ),
        ("{judge: all}", "training.freeze.judge: the model has no network judge; it has gen"),
        ("{generator: all}", "training.freeze: leaves the phase generator nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(store_8, freeze: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        after(gan(f"training.freeze={freeze}", kind="dcgan"), store_8)


def test_a_network_without_blocks_is_frozen_whole_or_not_at_all(store_8) -> None:
    with pytest.raises(
        ExperimentError, match=r"does not say what its blocks are .*; set it to all"
    ):
        after(vae_gan("training.freeze={discriminator: 1}"), store_8)


@pytest.mark.parametrize("count", [0, -1, "some"])
def test_a_count_is_positive_or_all(count) -> None:
    with pytest.raises(ExperimentError, match=r"training\.freeze\.encoder"):
        vae(f"training.freeze={{encoder: {count}}}")
