"""Extractors: bit for bit torch-fidelity's Inception, torchvision's layers, users' classes."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.embedding import extracted
from ray_gen.evaluation.extractors import custom as documented
from ray_gen.evaluation.extractors.custom import Custom
from ray_gen.evaluation.extractors.inception import Inception
from ray_gen.evaluation.extractors.torchvision import TorchvisionClassifier
from ray_gen.training.build import class_of
from tests.evaluation import custom_extractors
from tests.evaluation.helpers import Made, inception_weights, measured, pictures

CPU = torch.device("cpu")
HERE = "tests.evaluation.custom_extractors"


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_weights(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_is_torch_fidelitys(inception_file: Path, channels: int) -> None:
    from torch_fidelity.utils import create_feature_extractor

    theirs = create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        feature_extractor_weights_path=str(inception_file),
        verbose=False,
    )
    images = pictures(2, 1, (channels, 40, 24))
    state = torch.random.get_rng_state()
    ours = extracted(Inception(weights=str(inception_file), device=CPU), images)
    assert torch.equal(torch.random.get_rng_state(), state)
    vectors, logits = theirs(images.expand(-1, 3, -1, -1))
    assert torch.equal(ours.vectors, vectors) and ours.vectors.shape == (2, 2048)
    assert ours.logits is not None and torch.equal(ours.logits, logits)


def test_inception_refuses_another_networks_weights(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "net.pth")
    with pytest.raises(Refused, match=r"features\.weights: the file does not fit .*InceptionV3"):
        Inception(weights=str(tmp_path / "net.pth"), device=CPU)


def backbone_weights(path: Path, backbone: str, classes: int = 7) -> Path:
    from torchvision import models

    torch.save(models.get_model(backbone, weights=None, num_classes=classes).state_dict(), path)
    return path


def normalised(images: Tensor, side: int) -> Tensor:
    """Images prepared for ImageNet's classifiers by torchvision's own functions."""
    from torchvision.transforms.v2 import functional

    large = functional.resize(images.float() / 255, [side, side], antialias=True)
    return functional.normalize(large, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_a_torchvision_backbone_gives_the_inputs_of_its_last_layer(tmp_path: Path) -> None:
    from torchvision import models

    path = backbone_weights(tmp_path / "net.pth", "shufflenet_v2_x0_5")
    ours = TorchvisionClassifier(backbone="shufflenet_v2_x0_5", weights=str(path), device=CPU)
    images = pictures(3, 1, (3, 32, 24))
    found = extracted(ours, images)
    theirs = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=7).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        logits = theirs(normalised(images, 224))
        vectors = found.vectors @ theirs.fc.weight.T + theirs.fc.bias
    assert found.vectors.shape == (3, 1024) and found.logits is not None
    assert torch.allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    assert torch.allclose(vectors, logits, rtol=1e-4, atol=1e-5)
    assert "shufflenet_v2_x0_5 from a file" in ours.name and "224x224" in ours.resizing


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mnasnet_and_old_names_of_densenet_load_too(tmp_path: Path, suffix: str) -> None:
    from torchvision import models

    for backbone in ("mnasnet0_5", "densenet121"):
        network = models.get_model(backbone, weights=None)
        state = network.state_dict()
        for name in list(state):
            old = re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", name)
            state[old] = state.pop(name)
        path = tmp_path / f"{backbone}{suffix}"
        torch.save(state, path) if suffix == ".pth" else save_file(dict(state), path)
        ours = TorchvisionClassifier(backbone=backbone, weights=str(path), device=CPU)
        images = pictures(1, 1, (3, 224, 224))
        with torch.no_grad():
            logits = network.eval()(normalised(images, 224))
        found = extracted(ours, images)
        assert found.logits is not None
        assert torch.allclose(found.logits, logits, rtol=1e-4, atol=1e-5)


def test_the_example_of_a_users_class_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.search(r" +import torch\n.*?\n\n(?= +ray-gen)", documented.__doc__ or "", re.DOTALL)
    assert text is not None
    made = ModuleType("my_features")
    exec(textwrap.dedent(text[0]), made.__dict__)
    monkeypatch.setitem(sys.modules, "my_features", made)
    factory = class_of("my_features:MyFeatures", "evaluation.features.target", "__call__")
    mine = Custom(target="my_features:MyFeatures", factory=factory, device=CPU)
    assert extracted(mine, pictures(3, 1)).vectors.shape == (3, 64)
    assert mine.resizing == "none: any size is taken"


def test_unknown_backbones_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"features\.backbone: .*did you mean resnet50"):
        TorchvisionClassifier(backbone="resnet_50", device=CPU)
    path = backbone_weights(tmp_path / "net.pth", "shufflenet_v2_x0_5")
    with pytest.raises(
        Refused,
        match=r"^evaluation\.features\.weights: the file does not fit torchvision's resnet18: "
        r'Missing key\(s\) in state_dict: "[\w.]+", "[\w.]+", "[\w.]+" and \d+ more; '
        r"give the file of its weights$",
    ):
        TorchvisionClassifier(backbone="resnet18", weights=str(path), device=CPU)
    squeezed = backbone_weights(tmp_path / "other.pth", "squeezenet1_1")
    with pytest.raises(Refused, match="ends in no linear layer"):
        TorchvisionClassifier(backbone="squeezenet1_1", weights=str(squeezed), device=CPU)


def custom(name: str, **options: object) -> Custom:
    target = f"{HERE}:{name}"
    factory = getattr(custom_extractors, name)
    return Custom(target=target, factory=factory, options=options, device=CPU)


def test_a_users_class_needs_no_base_class() -> None:
    images = pictures(5, 1)
    module, function = custom("Mean", size=6), custom("Function")
    found = extracted(module, images)
    assert found.vectors.shape == (5, 6) and found.logits is None
    assert not found.vectors.requires_grad
    assert extracted(function, images).logits is not None
    assert function.digest == "version 1" and function.resizing == "mean over pixels"
    assert module.digest is not None and custom("Unknown").digest is None


def test_grey_images_are_repeated_to_rgb() -> None:
    grey = pictures(4, 1, (1, 8, 8))
    found = extracted(custom("Unknown"), grey).vectors
    assert torch.equal(found, F.interpolate(grey.float(), 1, mode="area")[:, :, 0, 0].expand(4, 3))


@pytest.mark.parametrize(
    "what", ["a batch's mean", "one row less", "maps", "float64", "a list", "infinite"]
)
def test_wrong_features_of_a_users_class_are_refused(what: str) -> None:
    with pytest.raises(Refused, match=r"evaluation\.features: tests.*:Wrong"):
        measured(
            ["fid"],
            Made(pictures(20, 1)),
            Made(pictures(20, 2)),
            extractor=custom("Wrong", what=what),
            world=World(),
        )


def test_a_class_with_other_options_or_without_call_is_refused() -> None:
    with pytest.raises(Refused, match=r"features\.options: .*Mean"):
        custom("Mean", width=3)
    with pytest.raises(Refused, match="cannot be called"):
        custom("NotCallable")
