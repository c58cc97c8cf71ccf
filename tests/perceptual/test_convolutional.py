"""Distances of reconstructions against torchvision's own VGG16 and closed forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg

from ray_gen.errors import Refused
from ray_gen.launch.plan import plan_of
from ray_gen.perceptual import L1Distance, Vgg16Distance
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import gan


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    """VGG16 without its classifier, as torchvision builds it, with weights that keep variance."""
    torch.manual_seed(0)
    layers = vgg.make_layers(vgg.cfgs["D"])
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, 0.0, 0.1)
    return layers


@pytest.fixture(scope="module")
def trunk(features: nn.Sequential, tmp_path_factory) -> Path:
    """A file in torchvision's format, with a layer of the classifier."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    named = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save({**named, "classifier.6.bias": torch.zeros(1000)}, path)
    return path


def distance(trunk: Path, channels: int = 3, opacity: bool = False, **more) -> Vgg16Distance:
    found = Vgg16Distance(channels=channels, opacity=opacity, weights=str(trunk), **more)
    found.load()
    return found


def images(*shape: int, seed: int = 1) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def test_it_is_the_distance_of_unit_features_of_torchvisions_vgg16(features, trunk: Path) -> None:
    x, y = images(2, 3, 32, 48), images(2, 3, 32, 48, seed=2)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = torch.zeros(2)
    a, b = (((image + 1) / 2 - mean) / std for image in (x, y))
    with torch.no_grad():
        for number, layer in enumerate(features):
            a, b = layer(a), layer(b)
            if number in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                one, other = (m / m.norm(dim=1, keepdim=True).clamp(min=1e-6) for m in (a, b))
                expected += ((one - other) ** 2).sum(1).mean((1, 2))
        found = distance(trunk)(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert expected.min() > 0.1


def test_gradients_reach_only_the_reconstruction_and_are_those_of_differences(trunk: Path) -> None:
    measure = distance(trunk).double()
    x = images(1, 3, 16, 16).double().requires_grad_()
    y = images(1, 3, 16, 16, seed=2).double().requires_grad_()
    measure(x, y).sum().backward()
    assert x.grad is None and y.grad is not None
    way = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        step = 1e-6
        slope = (measure(x, y + step * way) - measure(x, y - step * way)) / (2 * step)
    torch.testing.assert_close((y.grad * way).sum(), slope[0], rtol=1e-4, atol=1e-8)


def test_equal_and_black_images_have_finite_gradients(trunk: Path) -> None:
    measure = distance(trunk)
    for x in (images(1, 3, 16, 16), torch.full((1, 3, 16, 16), -1.0)):
        y = x.clone().requires_grad_()
        found = measure(x, y)
        found.sum().backward()
        assert float(found.detach()) == 0.0 and bool(y.grad.isfinite().all())


def test_grey_is_repeated_and_opacity_lies_on_white(trunk: Path) -> None:
    grey, other = images(2, 1, 16, 16), images(2, 1, 16, 16, seed=2)
    as_rgb = distance(trunk)(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    torch.testing.assert_close(distance(trunk, 1)(grey, other), as_rgb)
    opaque, clear = (torch.cat([grey, torch.full_like(grey, a)], 1) for a in (1.0, -1.0))
    white = distance(trunk, 1)(grey, torch.ones_like(grey))
    torch.testing.assert_close(distance(trunk, 2, True)(opaque, clear), white)
    for channels, opacity in ((5, False), (2, False), (4, False)):
        with pytest.raises(Refused, match=r"set objective\.reconstruction_distance\.kind to l1"):
            Vgg16Distance(channels=channels, opacity=opacity)


def test_weights_are_checked_and_told(trunk: Path, tmp_path: Path) -> None:
    told = distance(trunk).description
    digest = told.rpartition(" ")[2]
    assert distance(trunk, digest=digest).description == told
    with pytest.raises(Refused, match=r"reconstruction_distance\.digest: .*" + digest):
        distance(trunk, digest="0" * 32)
    held = torch.load(trunk)
    for name, tensor in (
        ("features.28.bias", None),
        ("features.0.weight", torch.zeros(64, 1, 3, 3)),
    ):
        changed = {**held, name: tensor}
        torch.save({k: v for k, v in changed.items() if v is not None}, tmp_path / "other.pth")
        with pytest.raises(Refused, match=rf"reconstruction_distance\.weights: .*{name}"):
            distance(tmp_path / "other.pth")
    with pytest.raises(Refused, match="there is no file"):
        distance(tmp_path / "none.pth")
    with pytest.raises(Refused, match="at least 16 pixels"):
        distance(trunk)(images(1, 3, 8, 8), images(1, 3, 8, 8))


def test_the_trunk_is_in_no_checkpoint_and_is_read_only_for_training(trunk: Path) -> None:
    this = gan(
        "objective.reconstruction_weight=8",
        f"objective.reconstruction_distance={{kind: vgg16, weights: '{trunk}'}}",
        kind="fastgan",
    )
    objective = build_objective(this)
    networks = build_networks(this, objective)
    assert not networks["distance"].state_dict() and not list(networks["distance"].parameters())
    assert "digest" in networks["distance"].description
    missing = this.with_fields(objective__reconstruction_distance__weights="/none.pth")
    assert build_networks(missing, build_objective(missing), ["generator"])
    with pytest.raises(Refused, match=r"/none\.pth"):
        build_networks(missing, build_objective(missing))


def test_l1_is_the_mean_absolute_difference() -> None:
    x, y = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[0.5, 0.0]]]], requires_grad=True)
    found = L1Distance()(x, y)
    assert found.tolist() == [0.75]
    found.sum().backward()
    assert y.grad.tolist() == [[[[-0.5, 0.5]]]]


def test_check_says_which_distance_and_which_weights(store_8, trunk: Path) -> None:
    for distance_, words in (("l1", "l1, the mean"), ("vgg16", "vgg16, its features have the")):
        more = f", weights: '{trunk}'" if distance_ == "vgg16" else ""
        this = gan(
            "objective.reconstruction_weight=8",
            f"objective.reconstruction_distance={{kind: {distance_}{more}}}",
            kind="fastgan",
        )
        objective = build_objective(this)
        networks = build_networks(this, objective)
        plan = plan_of(
            this, "runs/a", store_8, objective, networks, data=("",), from_images=None, ray=None
        )
        for text in (str(plan), "\n".join(plan.lines())):
            assert f"\ndistance    {words}" in text
