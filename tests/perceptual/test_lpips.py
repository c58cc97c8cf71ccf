"""LPIPS against its authors' package, on random trunks with the published weights of channels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.perceptual import LpipsDistance, convolutional, distance_of
from ray_gen.perceptual.trunks import TRUNKS

lpips = pytest.importorskip("lpips")

NETS = ("vgg", "alex", "squeeze")


@pytest.fixture(scope="module")
def theirs() -> dict[str, nn.Module]:
    """The package's networks, with trunks that keep variance."""
    torch.manual_seed(0)
    found = {net: lpips.LPIPS(net=net, pnet_rand=True, verbose=False).double() for net in NETS}
    for network in found.values():
        for layer in network.net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, 0.0, 0.1)
    return found


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory) -> dict[str, Path]:
    """Their trunks as torchvision's state dicts."""
    folder = tmp_path_factory.mktemp("trunks")
    for net, network in theirs.items():
        named = network.net.state_dict()
        renamed = {re.sub(r"^slice\d\.", "features.", name): w for name, w in named.items()}
        torch.save(renamed, folder / f"{net}.pth")
    return {net: folder / f"{net}.pth" for net in NETS}


def loaded(file: Path, net: str, **more) -> LpipsDistance:
    found = LpipsDistance(channels=3, opacity=False, net=net, trunk=str(file), **more)
    found.load()
    return found


def images(*shape: int, seed: int = 1) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 2 * values - 1


@pytest.mark.parametrize("net", NETS)
def test_values_and_gradients_are_those_of_the_package(theirs, files, net: str) -> None:
    x, y = images(2, 3, 40, 48), images(2, 3, 40, 48, seed=2)
    ours, other = y.clone().requires_grad_(), y.clone().requires_grad_()
    found = loaded(files[net], net).double()(x, ours)
    expected = theirs[net](x, other).flatten()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float(expected.detach().min()) > 0.05
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_side_is_the_smallest_that_the_network_can_see(files, net: str) -> None:
    measure, least = loaded(files[net], net), TRUNKS[net].least_side
    x, y = images(1, 3, least, least).float(), images(1, 3, least, least, seed=2).float()
    assert measure(x, y).isfinite().all()
    with pytest.raises(Refused, match=rf"lpips {net} needs images of at least {least} pixels"):
        measure(x[..., 1:], y[..., 1:])
    with pytest.raises(RuntimeError, match=r"too small|[Kk]ernel size"):
        measure.network(x[..., 1:])


def test_its_tensors_are_in_no_checkpoint_and_its_digest_is_of_trunk_and_lins(
    files, theirs, tmp_path: Path
) -> None:
    measure = loaded(files["squeeze"], "squeeze")
    assert not measure.state_dict() and not list(measure.parameters())
    assert measure.description.startswith("lpips squeeze 0.1, ")
    assert "of other weights, " in measure.description
    digest = measure.description.rpartition(" ")[2]
    assert loaded(files["squeeze"], "squeeze", digest=digest).description == measure.description
    lins = {name: w for name, w in theirs["squeeze"].state_dict().items() if "lin" in name}
    torch.save({**lins, "lin2.model.1.weight": 2 * lins["lin2.model.1.weight"]}, tmp_path / "a.pth")
    other = loaded(files["squeeze"], "squeeze", lins=str(tmp_path / "a.pth"))
    assert "with other lins" in other.description
    with pytest.raises(Refused, match=rf"reconstruction_distance\.digest: .* {digest}"):
        loaded(files["squeeze"], "squeeze", lins=str(tmp_path / "a.pth"), digest=digest)
    torch.save({**lins, "lin2.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(Refused, match=r"distance\.lins: .*lin2\.model\.1\.weight has shape"):
        loaded(files["squeeze"], "squeeze", lins=str(tmp_path / "a.pth"))


def test_the_shipped_lins_are_checked_and_missing_ones_have_a_remedy(
    files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alex.pth").write_bytes(convolutional.shipped_lins("alex", "f").read_bytes()[:-1])
    monkeypatch.setattr(convolutional, "shipped_lins", lambda *given: tmp_path / "alex.pth")
    with pytest.raises(Refused, match=r"distance\.lins: .*alex\.pth"):
        loaded(files["alex"], "alex")
    monkeypatch.undo()
    monkeypatch.setattr(convolutional.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(Refused, match=r"a\.b\.lins: .*pip install 'ray_gen\[perceptual\]'"):
        distance = distance_of(
            "lpips", channels=3, opacity=False, field="a.b", trunk=str(files["vgg"])
        )
        distance.load()


def test_a_file_in_the_cache_that_is_damaged_is_not_taken(
    files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = TRUNKS["squeeze"].url.rpartition("/")[2]
    (tmp_path / "checkpoints" / name).write_bytes(files["squeeze"].read_bytes())
    distance = LpipsDistance(channels=3, opacity=False, net="squeeze")
    with pytest.raises(Refused, match=r"distance\.trunk: .*is not the file that https"):
        distance.load()
