"""Distances of classifiers, of DINO's tokens, of a run's features, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ray_gen
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.networks.batch_norm import with_group_batch_norm
from ray_gen.perceptual import DinoDistance, OwnDistance, TorchvisionDistance
from ray_gen.perceptual.frozen import Frozen
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.code import collected
from tests.helpers import gan, vae
from tests.runs import saved

FIELD = "objective.reconstruction_distance"


def images(*shape: int, seed: int = 1) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def is_no_part_of_a_checkpoint(distance: nn.Module) -> bool:
    return not distance.state_dict() and not list(distance.parameters())


def test_a_frozen_network_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    nn.init.normal_(network[1].weight)
    x = images(4, 3, 8, 8)
    expected = network.eval()(x).detach()
    around = nn.ModuleDict({"distance": Frozen(network)})
    around = with_group_batch_norm(around, 2).train()
    torch.testing.assert_close(around["distance"](x), expected)
    assert is_no_part_of_a_checkpoint(around)
    assert around.double()["distance"](x.double()).dtype == torch.float64


@pytest.mark.parametrize("of", ["logits", "features"])
def test_a_classifier_is_torchvisions(tmp_path: Path, of: str) -> None:
    from torchvision import models
    from torchvision.transforms.v2 import functional

    torch.manual_seed(0)
    theirs = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=7).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    distance = TorchvisionDistance(
        channels=3,
        opacity=False,
        backbone="shufflenet_v2_x0_5",
        of=of,
        weights=str(tmp_path / "net.pth"),
    )
    assert "not loaded" in distance.description
    distance.load()
    x, y = images(2, 3, 40, 32), images(2, 3, 40, 32, seed=2).requires_grad_()
    found = distance.train()(x, y)
    if of == "features":
        theirs.fc = nn.Identity()
    with torch.no_grad():
        a, b = (
            theirs(
                functional.normalize(
                    functional.resize(z / 2 + 0.5, [224, 224], antialias=True),
                    [0.485, 0.456, 0.406],
                    [0.229, 0.224, 0.225],
                )
            )
            for z in (x, y)
        )
    torch.testing.assert_close(found, ((a - b) ** 2).mean(1), rtol=1e-3, atol=1e-7)
    found.sum().backward()
    assert float(y.grad.abs().max()) > 0 and is_no_part_of_a_checkpoint(distance)
    digest = distance.description.rpartition(" ")[2]
    wrong = TorchvisionDistance(
        channels=3,
        opacity=False,
        backbone="shufflenet_v2_x0_5",
        weights=str(tmp_path / "net.pth"),
        digest="0" * 32,
    )
    with pytest.raises(Refused, match=rf"distance\.digest: .* {digest}"):
        wrong.load()


def dino_file(path: Path, width: int = 64) -> Path:
    """A small random network with the names of DINOv2's tensors."""
    torch.manual_seed(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + 9, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in ("blocks.0", "blocks.1"):
        shapes |= {
            f"{block}.norm1.weight": (width,),
            f"{block}.norm1.bias": (width,),
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.qkv.bias": (3 * width,),
            f"{block}.attn.proj.weight": (width, width),
            f"{block}.attn.proj.bias": (width,),
            f"{block}.ls1.gamma": (width,),
            f"{block}.norm2.weight": (width,),
            f"{block}.norm2.bias": (width,),
            f"{block}.mlp.fc1.weight": (4 * width, width),
            f"{block}.mlp.fc1.bias": (4 * width,),
            f"{block}.mlp.fc2.weight": (width, 4 * width),
            f"{block}.mlp.fc2.bias": (width,),
            f"{block}.ls2.gamma": (width,),
        }
    torch.save({name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}, path)
    return path


def test_dino_compares_unit_tokens_of_all_blocks(tmp_path: Path) -> None:
    file = dino_file(tmp_path / "dino.pth")
    distance = DinoDistance(channels=3, opacity=False, weights=str(file))
    distance.load()
    assert is_no_part_of_a_checkpoint(distance) and "2 blocks" in distance.description
    x, y = images(2, 3, 42, 42), images(2, 3, 42, 42, seed=2)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    tokens = [distance.network.network.tokens((z / 2 + 0.5 - mean) / std) for z in (x, y)]
    a, b = (torch.nn.functional.normalize(torch.stack(z), dim=-1) for z in tokens)
    assert a.shape == (2, 2, 10, 64)
    torch.testing.assert_close(distance(x, y), ((a - b) ** 2).mean((0, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("size", "side", "grid"),
    [
        ((42, 42), None, (3, 3)),
        ((32, 48), None, (2, 3)),
        ((8, 8), None, (1, 1)),
        ((600, 300), None, (37, 18)),
        ((32, 16), 84, (6, 3)),
    ],
)
def test_dino_sees_whole_patches(tmp_path: Path, size, side, grid) -> None:
    distance = DinoDistance(
        channels=3, opacity=False, side=side, weights=str(dino_file(tmp_path / "dino.pth"))
    )
    distance.load()
    tokens = distance.features(images(1, 3, *size))
    assert tokens[0].shape == (1, 1 + grid[0] * grid[1], 64)


def built(*overrides: str) -> tuple[Experiment, nn.Module]:
    """An experiment with this distance, and the distance."""
    this = gan("objective.reconstruction_weight=8", *overrides, kind="fastgan")
    return this, build_networks(this, build_objective(this))["distance"]


def test_the_features_of_a_run_are_compared(store_8, tmp_path: Path) -> None:
    run = saved(vae("training.images=48"), store_8, tmp_path / "vae" / "checkpoint_000000000048")
    _, distance = built(f"{FIELD}={{kind: run, run: '{run}'}}")
    assert isinstance(distance, OwnDistance) and is_no_part_of_a_checkpoint(distance)
    x, y = images(3, 1, 8, 8), images(3, 1, 8, 8, seed=2).requires_grad_()
    model = ray_gen.load(run, device="cpu")
    a, b = (model.encode(z.detach() / 2 + 0.5) for z in (x, y))
    found = distance(x, y)
    torch.testing.assert_close(found, ((a - b) ** 2).mean(1), rtol=1e-5, atol=1e-8)
    found.sum().backward()
    assert float(y.grad.abs().max()) > 0
    assert distance.double()(x.double(), y.double()).dtype == torch.float64
    digest = distance.description.rpartition(" ")[2]
    assert "the encoder of the run vae after 48 images" in distance.description
    built(f"{FIELD}={{kind: run, run: '{run}', digest: {digest}}}")
    for changes, words in (
        (f"digest: '{'0' * 32}'", rf"distance\.digest: .*{digest}"),
        ("part: discriminator", r"distance\.run: .*has no discriminator"),
    ):
        with pytest.raises(Refused, match=words):
            built(f"{FIELD}={{kind: run, run: '{run}', {changes}}}")
    with pytest.raises(Refused, match=r"distance\.digest: input should be a valid string"):
        built(f"{FIELD}={{kind: run, run: '{run}', digest: 0}}")
    with pytest.raises(Refused, match=r"distance\.run: .* sees images of 1 channels"):
        distance(images(1, 3, 8, 8).double(), images(1, 3, 8, 8).double())


def test_the_input_of_a_discriminators_last_layer_is_compared(store_8, tmp_path: Path) -> None:
    of = gan("training.images=48", "networks.discriminator.spectral_norm=true", kind="dcgan")
    run = saved(of, store_8, tmp_path / "gan" / "checkpoint_000000000048")
    _, distance = built(f"{FIELD}={{kind: run, run: '{run}'}}")
    x, y = images(3, 1, 8, 8), images(3, 1, 8, 8, seed=2)
    model = ray_gen.load(run, device="cpu")
    a, b = (model.features(z / 2 + 0.5) for z in (x, y))
    torch.testing.assert_close(distance.train()(x, y), ((a - b) ** 2).mean(1), rtol=1e-4, atol=1e-8)


def test_a_run_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    this = gan(f"{FIELD}={{kind: run, run: a/b}}", kind="fastgan").absolute()
    assert this.objective.reconstruction_distance.run == f"{tmp_path}/a/b"
    this = gan(f"{FIELD}={{kind: lpips, trunk: c.pth}}", kind="fastgan").absolute()
    assert this.objective.reconstruction_distance.trunk == f"{tmp_path}/c.pth"


def test_a_users_own_is_made_when_training_begins() -> None:
    target = "tests.perceptual.own:Projected"
    this, distance = built(f"{FIELD}={{kind: custom, target: '{target}', options: {{value: 2}}}}")
    x, y = images(3, 1, 8, 8), images(3, 1, 8, 8, seed=2)
    twice = (2 * (x - y)).unfold(2, 3, 1).unfold(3, 3, 1).sum((-2, -1)) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(distance.train()(x, y), twice.square().mean((1, 2, 3)))
    assert is_no_part_of_a_checkpoint(distance) and distance.description == target
    assert "tests/perceptual/own.py" in [source.file for source in collected(this)]
    for changes, words in (
        (f"target: '{target}', options: {{values: 1}}", r"options\.values: Projected has no such"),
        ("target: 'tests.perceptual.own:Nobody'", r"distance\.target: .* has no Nobody"),
        ("target: 'no_such_module:Nobody'", r"distance\.target: .*is not found"),
    ):
        given = f"{FIELD}={{kind: custom, {changes}}}"
        with pytest.raises(Refused, match=words):
            built(given)
        this = gan("objective.reconstruction_weight=8", given, kind="fastgan")
        assert build_networks(this, build_objective(this), ["generator"])  # sampling needs none
    _, distance = built(f"{FIELD}={{kind: custom, target: 'tests.perceptual.own:Whole'}}")
    with pytest.raises(Refused, match=r"gave the shape \(\) for 3 images"):
        distance(x, y)
