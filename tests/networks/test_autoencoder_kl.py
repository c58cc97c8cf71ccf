"""The autoencoder of latent diffusion against diffusers' own, its arithmetic in bf16, and what it
refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_gen.core import Balances, Signature
from ray_gen.experiment import ExperimentError
from ray_gen.experiment.networks import AutoencoderKlNetwork
from ray_gen.networks.autoencoder_kl import AutoencoderKlDecoder, Norm, encoder_or_decoder
from ray_gen.networks.autoencoder_kl_names import diffusers_name, diffusers_names, name_here
from tests.helpers import gan, latent_autoencoder

SMALL: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4}
IMAGE, LATENT = (2, 16, 24), (3, 8, 12)
DISCRETE = {"quantiser": ["codes", "counts"]}


def pair(emitted: int = 6, **options: Any) -> nn.ModuleDict:
    """Encoder and decoder of LATENT. emitted: channels of the encoder's output."""
    settings = AutoencoderKlNetwork(**{**SMALL, **options}).arguments()
    signatures = {
        "encoder": Signature(IMAGE, (emitted, *LATENT[1:])),
        "decoder": Signature(LATENT, IMAGE),
    }
    return nn.ModuleDict({n: encoder_or_decoder(s, **settings) for n, s in signatures.items()})


def theirs(kind: str = "AutoencoderKL", attention: tuple[int, ...] = (), **options: Any) -> Any:
    """diffusers' model of the same shape. attention: levels that have it, from the image on."""
    import diffusers

    levels = [("Attn" if n in attention else "") for n in range(2)]
    return getattr(diffusers, kind)(
        in_channels=2,
        out_channels=2,
        down_block_types=[f"{attends}DownEncoderBlock2D" for attends in levels],
        up_block_types=[f"{attends}UpDecoderBlock2D" for attends in reversed(levels)],
        block_out_channels=[8, 16],
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
        **options,
    )


def drawn(model: nn.Module) -> None:
    """Norms and biases begin with 1 and 0, which would hide a wrong name."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def copied_to_theirs(networks: nn.ModuleDict, model: nn.Module, **more: Tensor) -> None:
    states = {name: network.state_dict() for name, network in networks.items()}
    names = diffusers_names(states)
    model.load_state_dict({name: states[of][ours] for name, (of, ours) in names.items()} | more)


def copied_from_theirs(networks: nn.ModuleDict, model: nn.Module) -> None:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        network, ours = name_here(name) or ("", "")
        parts.setdefault(network, {})[ours] = tensor
    for name, network in networks.items():
        missing, unexpected = network.load_state_dict(parts[name], strict=False)
        assert not unexpected
        assert missing == (["conv_out.measured.norms"] if name == "decoder" else [])


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "published": ({}, {}),
    "attention": ({"attention": (8, 16)}, {"attention": (0, 1)}),
    "attention at one size": ({"attention": (16,)}, {"attention": (0,)}),
    "bare": (
        {"middle_attention": False, "quant_conv": False},
        {
            "mid_block_add_attention": False,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_is_that_of_diffusers(case: str) -> None:
    """Weights copied both ways: outputs are equal."""
    ours, published = CASES[case]
    images, z = torch.randn(2, *IMAGE), torch.randn(2, *LATENT)
    for to_theirs in (True, False):
        networks, model = pair(**ours), theirs(**published)
        drawn(networks if to_theirs else model)
        (copied_to_theirs if to_theirs else copied_from_theirs)(networks, model)
        moments = model.encode(images).latent_dist.parameters
        torch.testing.assert_close(networks["encoder"](images), moments, atol=1e-5, rtol=1e-5)
        again = model.decode(z).sample
        torch.testing.assert_close(networks["decoder"](z), again, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_that_of_their_vq_model() -> None:
    networks, model = pair(3), theirs("VQModel", num_vq_embeddings=5)
    drawn(networks)
    codes = torch.randn(5, 3)
    names = diffusers_names(DISCRETE)
    assert names == {"quantize.embedding.weight": ("quantiser", "codes")}
    copied_to_theirs(networks, model, **dict.fromkeys(names, codes))
    images, z = torch.randn(2, *IMAGE), torch.randn(2, *LATENT)
    torch.testing.assert_close(networks["encoder"](images), model.encode(images).latents)
    again = model.decode(z, force_not_quantize=True).sample
    torch.testing.assert_close(networks["decoder"](z), again)


def test_the_published_one_has_as_many_weights() -> None:
    import diffusers

    channels = [128, 256, 512, 512]
    with torch.device("meta"):
        settings = AutoencoderKlNetwork().arguments()
        ours = nn.ModuleDict(
            {
                "encoder": encoder_or_decoder(Signature((3, 256, 256), (8, 32, 32)), **settings),
                "decoder": encoder_or_decoder(Signature((4, 32, 32), (3, 256, 256)), **settings),
            }
        )
        model = diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=channels,
            layers_per_block=2,
        )
    published = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = diffusers_names({n: network.state_dict() for n, network in ours.items()})
    found = {name: tuple(ours[of].state_dict()[own].shape) for name, (of, own) in names.items()}
    assert found == published
    assert len(found) == 248
    for one in (ours, model):
        assert sum(parameter.numel() for parameter in one.parameters()) == 83_653_863


def test_names_go_both_ways() -> None:
    states = {n: network.state_dict() for n, network in pair(attention=(8,)).items()} | DISCRETE
    there = diffusers_names(states)
    assert all(name_here(theirs) == ours for theirs, ours in there.items())
    left = {(n, name) for n, names in states.items() for name in names} - {*there.values()}
    assert left == {("quantiser", "counts"), ("decoder", "conv_out.measured.norms")}
    assert diffusers_name("discriminator", "layers.0.weight") is None
    assert name_here("loss.logvar") is None


def test_names_of_old_files_are_known() -> None:
    """Those of stabilityai/sd-vae-ft-mse."""
    for old, new in (("query", "to_q"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        found = name_here(f"encoder.mid_block.attentions.0.{old}.bias")
        assert found == ("encoder", f"mid_block.attentions.0.{new}.bias")


def test_the_norm_keeps_statistics_in_float32() -> None:
    """The error is that of rounding the result to bfloat16, at most half of 2^-7, although the mean
    is 30 times the deviation. A mean in bfloat16 would be wrong by up to 12 % of the deviation."""
    x = (30.0 + torch.randn(2, 8, 6, 6)).to(torch.bfloat16)
    norm = Norm(8, 4)
    exact = Norm(8, 4).double()(x.double())
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = norm(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)


@torch.no_grad()
def test_bf16_is_within_3_percent_of_float64() -> None:
    """Some 20 layers in a row round inputs, weights and outputs to 8 bits: by 0.4 % at most, by
    0.16 % in the mean square. As squares these add up to 1.2 %; measured 1.1 and 1.7 %."""
    torch.manual_seed(0)
    networks = pair(attention=(8,))
    drawn(networks)
    given = {"encoder": torch.randn(4, *IMAGE), "decoder": torch.randn(4, *LATENT)}
    with torch.autocast("cpu", torch.bfloat16):
        found = {name: network(given[name]) for name, network in networks.items()}
    networks.double()
    for name, network in networks.items():
        exact = network(given[name].double())
        assert found[name].dtype == torch.bfloat16
        error = float((found[name] - exact).norm() / exact.norm())
        assert 1e-3 < error < 0.03, (name, error)


def test_maps_of_channels_last_stay_so() -> None:
    for network, shape in zip(pair(attention=(8,)).values(), (IMAGE, LATENT), strict=True):
        network.to(memory_format=torch.channels_last)
        x = torch.randn(2, *shape).contiguous(memory_format=torch.channels_last)
        assert network(x).is_contiguous(memory_format=torch.channels_last)


def test_the_decoder_gives_the_adaptive_weight() -> None:
    decoder = pair()["decoder"]
    assert isinstance(decoder, AutoencoderKlDecoder) and isinstance(decoder, Balances)
    assert float(decoder.adaptive_weight(torch.ones(2), torch.ones(2))) == 0.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"width": 24, "groups": 32},
            "groups is 32, which does not divide the 24 channels of a level: set groups to 24, or "
            "width to a multiple of 32",
        ),
        ({"width": 6, "multipliers": (2, 4)}, "set groups to 12, or width to a multiple of 16"),
        ({"multipliers": (1,)}, "multipliers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AutoencoderKlNetwork(**options)
    remedy = AutoencoderKlNetwork(width=24, groups=24)
    assert remedy.groups == 24


@pytest.mark.parametrize(
    ("image", "latent", "options", "told"),
    [
        ((3, 16, 16), (4, 4, 4), {}, "multipliers: 2 levels halve a side 1 times, .*give 3 n"),
        ((3, 16, 16), (4, 8, 8), {"attention": (4,)}, "attention: no level has maps of height 4; "),
        ((3, 16, 8), (4, 8, 8), {}, "16 x 8 is not 8 x 8 times"),
    ],
)
def test_maps_that_do_not_fit_are_refused(
    image: Any, latent: Any, options: dict[str, Any], told: str
) -> None:
    settings = AutoencoderKlNetwork(**{**SMALL, **options}).arguments()
    for signature in (Signature(image, latent), Signature(latent, image)):
        with pytest.raises(ValueError, match=told):
            encoder_or_decoder(signature, **settings)


def test_levels_that_do_not_fit_the_objective_are_told_with_their_field() -> None:
    told = r"networks\.decoder\.multipliers: its levels make one number of 4 pixels of a side"
    with pytest.raises(ExperimentError, match=told):
        latent_autoencoder("networks.decoder={kind: autoencoder_kl, multipliers: [1, 2, 4]}")


def test_labels_are_refused() -> None:
    settings = AutoencoderKlNetwork(**SMALL).arguments()
    with pytest.raises(ValueError, match=r"takes no labels; set objective\.conditional to false"):
        encoder_or_decoder(Signature(IMAGE, LATENT, 3), **settings)


def test_sizes_that_cannot_be_halved_are_refused_with_the_nearest() -> None:
    network = AutoencoderKlNetwork()
    assert network.downsampling == 8 and network.size_problem(40, 104) is None
    problem = network.size_problem(100, 96)
    assert problem is not None and problem.endswith("the nearest that work: 96 x 96 or 104 x 96")
    with pytest.raises(ExperimentError, match=r"networks\.generator: autoencoder_kl needs sides"):
        gan("networks.generator.kind=autoencoder_kl", "data.image_size=12")
