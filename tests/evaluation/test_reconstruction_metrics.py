"""Metrics of reconstructions and latents, against the model's own functions and closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_gen.core import Networks, Posterior
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.comparison import Comparison
from ray_gen.evaluation.evaluator import Evaluator, subject_of
from ray_gen.evaluation.metrics.codebook import of_counts
from ray_gen.evaluation.metrics.fid import frechet_distance
from ray_gen.evaluation.metrics.kid import kernel_distance
from ray_gen.evaluation.metrics.latents import moments_of
from ray_gen.evaluation.metrics.psnr import signal_to_noise
from ray_gen.evaluation.metrics.rkid import paired_kernel_distance
from ray_gen.evaluation.moments import Moments
from ray_gen.evaluation.patches import Pictures, sliced_wasserstein
from ray_gen.evaluation.progress import silent
from ray_gen.evaluation.scores import Scores
from ray_gen.evaluation.subject import Subject
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.pixels import quantised
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.evaluation.helpers import Tiny, by_workers
from tests.helpers import CLASSES, latent_autoencoder, random_store, vae

PIXELS = ("psnr", "ssim", "codebook", "latents")


class Coded:
    """A VAE whose latent is also seven codes: each number's place among the quarters of [-3, 3]."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective
        self.code_count = 9

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def reconstruct(self, *given: Any) -> Tensor:
        return self._objective.reconstruct(*given)

    def encode(self, *given: Any) -> Any:
        return self._objective.encode(*given)

    def codes(self, networks: Networks, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        mean = self.encode(networks, images, labels)["z"].mean
        return {"z": (mean * 40 + 4).long().clamp(0, 6)}


def subject(codes: bool = True) -> Subject:
    this = vae("training.precision=fp64")
    objective = build_objective(this)
    networks = State.build(this, objective, World()).ema.eval()
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.mul_(2.0)
    made: Any = Coded(objective) if codes else objective
    return subject_of(this, made, networks, {"run": "a"})


def evaluator(world: World, metrics: Any, **settings: Any) -> Evaluator:
    given = Evaluation.model_validate({"metrics": metrics, "batch_size": 8, **settings})
    store = random_store(8, 30, 35)
    made = Evaluator(replace_features(given), store, "random", world)
    made._extractor, made._no_extractor = Tiny(), None
    return made


def replace_features(given: Evaluation) -> Evaluation:
    """Features that need no weights to be built; `Tiny` then takes their place."""
    custom = {"kind": "custom", "target": "tests.evaluation.helpers:Tiny"}
    return Evaluation.model_validate({**given.model_dump(), "features": custom})


def scores(metrics: Any, of: Subject, world: World | None = None, **settings: Any) -> Scores:
    return evaluator(world or World(), metrics, **settings).scores(of)


def pairs(of: Subject) -> tuple[np.ndarray, np.ndarray]:
    """The held-out images and the reconstructions of their posteriors' means, in 255 levels."""
    images = random_store(8, 30, 35).held_out.images_NHWC.permute(0, 3, 1, 2)
    with torch.no_grad():
        made = of.objective.reconstruct(of.networks, images.double() / 255, None, {})
    return images.numpy(), quantised(made).numpy()


def test_pixels_are_compared_image_by_image_in_255_levels() -> None:
    of = subject(codes=False)
    found = scores(("psnr", "ssim"), of)
    x, y = (images.astype(np.float64) for images in pairs(of))
    each = 10 * np.log10(255**2 / ((x - y) ** 2).mean((1, 2, 3)))
    assert found["psnr"].value == pytest.approx(each.mean(), rel=1e-12)
    assert found["psnr"].spread == pytest.approx(each.std(ddof=1) / 35**0.5, rel=1e-10)
    assert 0 < found["ssim"].value < 1
    protocol = found["psnr"].protocol
    assert protocol["originals"]["images"] == 35 and protocol["originals"]["split"] == "held_out"
    made = protocol["reconstructions"]
    assert (made["made from"], made["rounded"]) == ("the posterior's mean", "to 256 levels")
    assert protocol["originals"]["size"] == "8x8" and protocol["seed"] == 0
    assert found["ssim"].protocol["window"].startswith("7 x 7")
    some = scores(("psnr",), of, count=20)["psnr"].protocol["originals"]
    assert some["images"] == 20 and "20 of 35" in some["chosen"]


def test_equal_images_have_a_hundred_decibels() -> None:
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    y = x.clone()
    y[1] += 0.1
    torch.testing.assert_close(signal_to_noise(x, y), torch.tensor([100.0, 20.0]).double())


def test_features_are_compared_with_the_same_crops() -> None:
    of, tiny = subject(), Tiny()
    found = scores(("rfid", "rkid"), of)
    x, y = (tiny(torch.from_numpy(images).expand(-1, 3, -1, -1)).vectors for images in pairs(of))
    expected = frechet_distance(Moments.of(y), Moments.of(x))
    assert found["rfid"].value == pytest.approx(expected, rel=1e-6) and expected > 1e-4
    assert "35" in found["rfid"].protocol["warning"] and found["rkid"].value > 0
    assert found["rfid"].protocol["extractor"].endswith("tiny")


def test_kid_of_pairs_leaves_out_each_image_with_itself() -> None:
    torch.manual_seed(3)
    x = torch.randn(40, 7)
    y = x + 0.3 * torch.randn(40, 7)
    settings: dict[str, Any] = {"subsets": 3, "subset_size": 40, "seed": 1}
    kernel = (torch.cat([x, y]).double() @ torch.cat([x, y]).double().T / 7 + 1) ** 3
    others = [(i, j) for i in range(40) for j in range(40) if i != j]
    each = [kernel[i, j] + kernel[40 + i, 40 + j] - 2 * kernel[i, 40 + j] for i, j in others]
    expected = float(torch.stack(each).mean())
    found, spread = paired_kernel_distance(x, y, **settings)
    assert found == pytest.approx(expected, rel=1e-9) and spread == 0.0
    assert paired_kernel_distance(x, x, **settings)[0] == pytest.approx(0.0, abs=1e-12)
    some = [paired_kernel_distance(x, y, **{**settings, "subset_size": 20, "seed": n})
            for n in (1, 1, 2)]  # fmt: skip
    assert some[0] == some[1] != some[2] and some[0][1] > 0


def test_kid_of_pairs_is_unbiased_where_that_of_two_sets_is_not() -> None:
    """The expected distance is that of large independent sets."""
    torch.manual_seed(4)

    def sets(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 16)
        return x, 1.1 * x + 0.1

    large = kernel_distance(sets(2000)[0], sets(2000)[1], subsets=4, subset_size=2000, seed=0)[0]
    rounds = [sets(20) for _ in range(200)]
    paired = torch.tensor(
        [paired_kernel_distance(x, y, subsets=1, subset_size=20, seed=0)[0] for x, y in rounds]
    )
    error = float(paired.std() / 200**0.5)
    assert abs(float(paired.mean()) - large) < 4 * error + 0.003
    of_sets = [kernel_distance(x, y, subsets=1, subset_size=20, seed=0)[0] for x, y in rounds]
    assert sum(of_sets) / 200 < large - 20 * error


def test_patches_are_compared_with_the_same_crops() -> None:
    of = subject()
    sides = []
    for images in pairs(of):
        kept = Pictures((1, 8, 8), 35, 35, range(35))
        kept.see(0, torch.from_numpy(images))
        sides.append(kept)
    originals, made = sides
    expected = sliced_wasserstein(made, originals, 3, World(), silent)["8x8"]
    found = scores(("rsliced_wasserstein",), of, seed=3)["rsliced_wasserstein"]
    assert found.value == pytest.approx(expected) and expected > 1
    assert found.protocol["originals"]["split"] == "held_out"


def test_draws_from_the_posterior_are_a_function_of_the_seed() -> None:
    of = subject(codes=False)
    drawn = [scores(("psnr",), of, reconstructions="sample", seed=seed) for seed in (0, 0, 1)]
    first, second, third = (found["psnr"].value for found in drawn)
    assert first == second != third and first < scores(("psnr",), of)["psnr"].value
    assert "one draw" in drawn[0]["psnr"].protocol["reconstructions"]["made from"]


def test_codes_are_counted_over_all_images() -> None:
    of = subject()
    images = random_store(8, 30, 35).held_out.images_NHWC.permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        codes = of.objective.codes(of.networks, images, None)["z"].numpy()  # pyright: ignore
    found = scores(("codebook",), of)
    shares = np.bincount(codes.ravel(), minlength=9) / codes.size
    used = shares[shares > 0]
    assert 2 <= len(used) < 8
    assert found["codebook_usage"].value == pytest.approx(len(used) / 9)
    expected = math.exp(-(used * np.log(used)).sum())
    assert found["codebook_perplexity"].value == pytest.approx(expected)
    assert found["codebook_usage"].protocol["codes_of_all_images"] == codes.size
    assert of_counts(torch.tensor([4, 0, 4, 4])) == pytest.approx((0.75, 3.0))


def test_latents_are_described_as_draws_would_be() -> None:
    of = subject()
    images = random_store(8, 30, 35).held_out.images_NHWC.permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        mean, log_variance = of.objective.encode(of.networks, images, None)["z"]  # pyright: ignore
    noise = torch.randn(20_000, *mean.shape, dtype=torch.float64)
    z = mean + (0.5 * log_variance).exp() * noise
    found = scores(("latents",), of)
    assert found["latent_std"].value == pytest.approx(z.std().item(), rel=2e-3)
    assert found["latent_scaling"].value == 1 / found["latent_std"].value
    protocol = found["latent_std"].protocol
    np.testing.assert_allclose(protocol["mean_of_channels"], z.mean((0, 1)), atol=5e-3)
    np.testing.assert_allclose(protocol["std_of_channels"], z.std((0, 1)), rtol=5e-3)


def test_channels_of_maps_are_means_over_positions() -> None:
    mean = torch.randn(3, 2, 4, 5)
    log_variance = torch.randn(3, 2, 4, 5)
    found = moments_of(*Posterior(mean, log_variance))
    squares = (mean.double() ** 2 + log_variance.double().exp()).mean((2, 3))
    torch.testing.assert_close(found, torch.cat([mean.double().mean((2, 3)), squares], 1))
    torch.testing.assert_close(moments_of(mean, None)[:, 2:], mean.double().square().mean((2, 3)))


def on_a_worker(world: World) -> list[float]:
    found = scores((*PIXELS, "rkid"), subject(), world)
    return [score.value for score in found]


@pytest.mark.slow  # 13 s, for processes that import torch-fidelity
def test_the_bits_are_those_of_one_worker(tmp_path: Path) -> None:
    alone = on_a_worker(World())
    for found in by_workers(2, on_a_worker, tmp_path):
        assert found == alone


def test_what_cannot_be_measured_is_refused_and_auto_leaves_it_out() -> None:
    of = subject(codes=False)
    with pytest.raises(Refused, match=r"evaluation\.metrics: codebook: .* has no codes"):
        scores(("codebook",), of)
    with pytest.raises(Refused, match=r"evaluation\.lpips_net: alex needs .* at least 31 pixels"):
        scores(("lpips",), of)
    made = evaluator(World(), ("psnr",))
    made._store = random_store(8, 30, 0)
    with pytest.raises(Refused, match=r"psnr: it needs held-out images"):
        made.scores(of)
    auto = evaluator(World(), "auto")
    assert not {"psnr", "rfid", "latents"} & {*auto.checked(of).names}


def test_a_large_codebook_is_not_counted_and_few_codes_are_told() -> None:
    of = subject()
    assert "few beside the 9" not in str(scores(("codebook",), of)["codebook_usage"].protocol)
    of.objective.code_count = 10**6  # pyright: ignore
    warned = scores(("codebook",), of)["codebook_usage"].protocol["warning"]
    assert "few beside the 1,000,000" in warned
    of.objective.code_count = 2**30  # pyright: ignore
    with pytest.raises(Refused, match=r"codebook: the model has 1,073,741,824 codes"):
        scores(("codebook",), of)


def test_models_of_codes_have_no_posterior() -> None:
    of = subject()
    assert scores(("psnr",), of)["psnr"].protocol["reconstructions"]["made from"] == "codes"
    assert scores(("latents",), of)["latent_std"].protocol["of"] == "codes"
    with pytest.raises(Refused, match=r"evaluation\.reconstructions: sample draws from"):
        scores(("psnr",), of, reconstructions="sample")


def test_auto_measures_reconstructions_of_a_model_without_a_prior() -> None:
    of = subject()
    of.objective.has_prior = False  # pyright: ignore
    found: Comparison = evaluator(World(), "auto").checked(of)
    assert found.names == (
        "likelihood",
        *("rfid", "rkid", "rsliced_wasserstein"),
        *("psnr", "ssim", "codebook", "latents"),
    )
    assert "31 pixels" in found.without["lpips"]


@pytest.mark.parametrize(
    ("channels", "given", "told"),
    [
        (1, {"lpips_trunk": "no.pth"}, r"^evaluation\.lpips_trunk: there is no file no\.pth$"),
        (1, {"lpips_lins": "no.pth"}, r"^evaluation\.lpips_lins: there is no file no\.pth$"),
        (1, {}, r"^evaluation\.lpips_lins: .*perceptual.*set evaluation\.lpips_lins to a file"),
        (5, {}, r"^evaluation\.metrics: lpips sees grey or RGB images.* 5 channels; leave it out"),
    ],
)
def test_lpips_names_its_own_settings(
    channels: int, given: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_gen.evaluation.metrics.lpips import Lpips, LpipsSettings
    from ray_gen.perceptual import convolutional

    if not given:
        monkeypatch.setattr(convolutional.importlib.util, "find_spec", lambda package: None)
    shape = (channels, 32, 32)
    of: Any = SimpleNamespace(
        shape_of=lambda name: shape, opacity=False, automatic=False, world=World()
    )
    with pytest.raises(Refused, match=told):
        Lpips(LpipsSettings(lpips_net="squeeze", **given), of).check()  # pyright: ignore


def test_lpips_is_the_distance_of_the_levels(tmp_path: Path) -> None:
    from ray_gen.perceptual import LpipsDistance
    from ray_gen.perceptual.trunks import TRUNKS

    torch.manual_seed(0)
    network = TRUNKS["squeeze"].network().to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    this = vae("training.precision=fp64", "data.image_size=20").resolved((1, 20, 20), CLASSES)
    objective = build_objective(this)
    networks = State.build(this, objective, World()).ema.eval()
    of = subject_of(this, objective, networks, {})
    store = random_store(20, 8, 6)
    trunk = str(tmp_path / "net.pth")
    settings = Evaluation(metrics=("lpips",), lpips_net="squeeze", lpips_trunk=trunk)
    found = Evaluator(settings, store, "random", World()).scores(of)["lpips"]
    images = store.held_out.images_NHWC.permute(0, 3, 1, 2)
    made = quantised(objective.reconstruct(networks, images.double() / 255, None, {}))
    distance = LpipsDistance(channels=1, opacity=False, net="squeeze", trunk=trunk)
    distance.load()
    x, y = (2 * levels.float() / 255 - 1 for levels in (images, made))
    assert found.value == pytest.approx(distance(x, y).double().mean().item(), rel=1e-6)
    assert found.value > 0.01 and "lpips squeeze 0.1" in found.protocol["network"]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (latent_autoencoder, "rsliced_wasserstein, psnr, ssim and latents"),
        (
            lambda: latent_autoencoder("objective.bottleneck={kind: vq, codes: 8}"),
            "rsliced_wasserstein, psnr, ssim, codebook and latents",
        ),
        (vae, "nearest_neighbour, rsliced_wasserstein, psnr, ssim and latents"),
    ],
)
def test_without_weights_the_remedy_names_what_the_model_can_have(make: Any, named: str) -> None:
    this = make()
    objective = build_objective(this)
    of = subject_of(this, objective, State.build(this, objective, World()).ema.eval(), {})
    features = {"kind": "inception", "weights": "/nowhere/a.pth"}
    given = Evaluation.model_validate({"metrics": ["psnr", "rfid"], "features": features})
    evaluator = Evaluator(given, random_store(8, 30, 35), "random", World())
    with pytest.raises(Refused, match=f"{named} only$") as refused:
        evaluator.scores(of)
    assert ("to sliced" in str(refused.value)) == objective.has_prior
