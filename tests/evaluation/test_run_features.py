"""A trained run's encoder or discriminator as extractor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ray_gen
from ray_gen.errors import Refused
from ray_gen.evaluation.extractors.run import TrainedRun
from ray_gen.experiment.evaluation import Evaluation
from tests.evaluation.helpers import pictures
from tests.helpers import gan, vae
from tests.runs import saved

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, store_8) -> dict[str, Path]:
    made = {
        "vae": vae("training.images=48"),
        "mlp": gan("training.images=48"),
        "dcgan": gan("training.images=48", kind="dcgan"),
        "conditional": gan("training.images=48", "objective.conditional=true"),
    }
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: saved(this, store_8, folder / name / "checkpoint_000000000048")
        for name, this in made.items()
    }


def test_an_encoder_gives_the_posterior_means(runs: dict[str, Path]) -> None:
    images = pictures(5, 1, (1, 8, 8))
    model = ray_gen.load(runs["vae"], device="cpu")
    extractor = TrainedRun(run=str(runs["vae"]), part="auto", device=CPU)
    expected = model.encode(images.float() / 255)
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(extractor(images).vectors, expected)
    assert extractor.channels == 1
    assert extractor.name.startswith("encoder of the run ")


@pytest.mark.parametrize("name", ["mlp", "dcgan"])
def test_a_discriminators_features_give_its_logits(runs: dict[str, Path], name: str) -> None:
    """The last layer is linear, so an MLP's logits are a product with its features. For a
    convolution only the sizes are checked."""
    images = pictures(6, 1, (1, 8, 8))
    model = ray_gen.load(runs[name], device="cpu")
    extractor = TrainedRun(run=str(runs[name]), part="auto", device=CPU)
    vectors = extractor(images).vectors
    (last,) = [
        module
        for module in model.discriminators.modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    ][-1:]
    assert len(vectors) == 6 and vectors.shape[1] == last.weight.shape[1]
    if isinstance(last, torch.nn.Linear):
        logits = torch.nn.functional.linear(vectors, last.weight, last.bias).flatten()
        torch.testing.assert_close(logits, model.discriminate(images.float() / 255))


def test_other_sizes_are_resized(runs: dict[str, Path]) -> None:
    extractor = TrainedRun(run=str(runs["vae"]), part="encoder", device=CPU)
    flat = torch.full((2, 1, 20, 30), 51, dtype=torch.uint8)
    small = torch.full((2, 1, 8, 8), 51, dtype=torch.uint8)
    torch.testing.assert_close(extractor(flat).vectors, extractor(small).vectors)
    assert extractor.resizing.startswith("8x8")


def test_the_digest_is_of_the_weights(runs: dict[str, Path]) -> None:
    found = {
        name: TrainedRun(run=str(runs[name]), part="auto", device=CPU).digest
        for name in ("vae", "mlp", "dcgan")
    }
    assert len(set(found.values())) == 3
    assert TrainedRun(run=str(runs["vae"]), part="encoder", device=CPU).digest == found["vae"]


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("conditional", "auto", "is conditional.*name a run without labels"),
        ("mlp", "encoder", "has no encoder"),
        ("vae", "discriminator", "has no discriminator"),
        ("none", "auto", "there is no such run"),
    ],
)
def test_what_gives_no_features_is_refused(
    runs: dict[str, Path], tmp_path: Path, name: str, part, words: str
) -> None:
    with pytest.raises(Refused, match=rf"evaluation\.features\.run: .*{words}"):
        TrainedRun(run=str(runs.get(name, tmp_path / "none")), part=part, device=CPU)


def test_a_run_is_evaluated_by_the_features_of_another(runs: dict[str, Path]) -> None:
    """Grey images stay grey: the extractor takes one channel."""
    scores = ray_gen.evaluate(
        runs["dcgan"],
        features={"kind": "run", "run": str(runs["vae"])},
        metrics=["fid", "mmd_rbf", "precision"],
        reference="mnist5k",
        count=60,
    )
    assert all(score.value >= 0 for score in scores)
    protocol = scores["fid"].protocol
    assert "encoder of the run vae" in protocol["extractor"]
    assert protocol["extractor_weights"]


def test_images_of_other_channels_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"evaluation\.features: .*sees 1 channel,.*have 3"):
        ray_gen.evaluate(
            generated="mnist5k",
            reference="mnist5k",
            channels=3,
            image_size=8,
            features={"kind": "run", "run": str(runs["vae"])},
            metrics=["fid"],
            count=10,
        )


def test_a_relative_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    this = vae("evaluation.features={kind: run, run: a/b}").absolute()
    assert this.evaluation == Evaluation.model_validate(
        {**this.evaluation.model_dump(), "features": {"kind": "run", "run": f"{tmp_path}/a/b"}}
    )
