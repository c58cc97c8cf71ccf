"""A GAN in the latents of an autoencoder: it trains on maps, and everything that comes of it is
images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ray_gen
from ray_gen.core import Batch, Decodes
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.request import Request, measure
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.data import LatentsData
from ray_gen.launch.encode import encode
from ray_gen.launch.worker import commit_and_prune, reports
from ray_gen.pipeline.export import export
from ray_gen.runs.captions import line_height
from ray_gen.runs.checkpoints import checkpoint_name
from ray_gen.runs.pictures import zoom_of
from ray_gen.storage import Folder
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.code import custom_targets
from ray_gen.training.sources import open_data, resolved_by
from tests.data.pictures import write_classes
from tests.helpers import (
    ADAM,
    TRAINING,
    batches,
    largest_difference,
    latent_autoencoder,
    random_store,
    trained,
    trained_by_workers,
    weights,
)
from tests.programs import eager, replayed, runs_on_meta
from tests.proofs import latent_autoencoder as proof
from tests.runs import SHORT, saved

NETWORK = {"kind": "mlp", "hidden_sizes": [32]}
GAN: dict[str, Any] = {
    "networks": {"generator": NETWORK, "discriminator": NETWORK},
    "objective": {"kind": "gan", "latent_size": 5},
    "optimizers": {"generator": ADAM, "discriminator": ADAM},
    "training": {**TRAINING, "images": 240},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, an autoencoder, its latents of them, and a run of a GAN on these."""
    place = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_GEN_CACHE", str(place / "cache"))
        saved(proof.experiment(SHORT), random_store(8), place / "autoencoder")
        pictures = str(write_classes(place / "pictures", {"cat": 30, "dog": 30}))
        encode(place / "autoencoder", str(place / "latents"), pictures, flips=True, local=True)
        train(experiment_on(place, "data.flip=true"), place / "run")
        yield place


def experiment_on(place: Path, *overrides: str, **parts: Any) -> Experiment:
    import yaml

    data = {"kind": "latents", "path": str(place / "latents")}
    text = yaml.safe_dump({"data": data, **GAN, **parts})
    asked = Experiment.from_yaml(text, overrides)
    return resolved_by(asked, open_data(asked))


def train(experiment: Experiment, folder: Path) -> None:
    run = Folder(str(folder))
    for report, checkpoint in reports(experiment, run, torch.device("cpu")):
        if checkpoint is not None:
            commit_and_prune(checkpoint, run, checkpoint_name(report.images), 3)


def own_latents(place: Path, z: Tensor) -> Tensor:
    """The latents of the run's samples, as the autoencoder knows them."""
    import json

    pipeline = ray_gen.load(place / "run")
    statistics = json.loads((place / "latents" / "_manifest.json").read_text())["latents"]
    mean, std = (torch.tensor(statistics["statistics"][name]) for name in ("mean", "std"))
    with torch.no_grad():
        standardised = pipeline.networks["generator"](z)
    return standardised * 2 * std[:, None, None] + mean[:, None, None]


def test_samples_are_the_autoencoders_images_of_what_the_generator_makes(place: Path) -> None:
    pipeline = ray_gen.load(place / "run")
    assert pipeline.experiment.image_shape == (2, 4, 4)
    images = pipeline.sample(6, seed=0)
    assert images.shape == (6, 1, 8, 8) and images.min() >= 0 and images.max() <= 1
    z = pipeline.latents(6, seed=0)
    assert isinstance(z, Tensor)
    made = own_latents(place, z)
    assert made.abs().max() > 0.0
    expected = ray_gen.load(place / "autoencoder").decode(made)
    assert torch.allclose(images, expected, atol=1e-5)


def test_a_generator_of_latents_has_no_bounds(place: Path) -> None:
    experiment = experiment_on(place)
    networks = build_networks(experiment, build_objective(experiment))
    with torch.no_grad():
        networks["generator"].requires_grad_(False)
        for parameter in networks["generator"].parameters():
            parameter.mul_(20.0)
        made = networks["generator"](torch.randn(8, 5))
    assert made.abs().max() > 1.5


def test_the_autoencoder_does_not_train_and_is_in_the_checkpoint(place: Path) -> None:
    own = ray_gen.load(place / "autoencoder").networks["decoder"].state_dict()
    for kind in ("ema", "raw"):
        kept = ray_gen.load(place / "run", weights=kind).networks["autoencoder"]
        found = kept.networks["decoder"].state_dict()  # pyright: ignore
        assert found.keys() == own.keys()
        assert all(torch.equal(found[name], own[name]) for name in own)


def test_a_run_and_its_export_need_nothing_else(place: Path, tmp_path: Path) -> None:
    expected = ray_gen.load(place / "run").sample(4, seed=1)
    shutil.copytree(place / "run", tmp_path / "run")
    hidden = place.with_name(f"{place.name}-away")
    place.rename(hidden)
    try:
        pipeline = ray_gen.load(tmp_path / "run")
        assert torch.equal(pipeline.sample(4, seed=1), expected)
        export(tmp_path / "run", tmp_path / "out", formats=["safetensors", "torch"])
        again = ray_gen.Pipeline.from_pretrained(tmp_path / "out")
        assert torch.equal(again.sample(4, seed=1), expected)
        z = pipeline.latents(4, seed=1)
        assert isinstance(z, Tensor)
        program = torch.export.load(tmp_path / "out" / "generator.pt2").module()
        assert torch.allclose(program(z), expected, atol=1e-5)
        assert pipeline.interpolate(z[:1], z[1:2], steps=3).shape[-3:] == (1, 8, 8)
    finally:
        hidden.rename(place)


def test_a_plan_and_a_card_name_the_autoencoder_and_leave_out_its_experiment(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(place / "cache"))
    experiment = experiment_on(place, "data.flip=true")
    data = experiment.data
    assert isinstance(data, LatentsData) and data.autoencoder is not None
    named = f"the autoencoder {data.autoencoder['name']} (digest {data.autoencoder_digest})"
    plan = ray_gen.check(experiment, storage=tmp_path, local=True)
    assert f"decodes     {named}, of folder:{place}/pictures" in plan.text()
    assert "encoded:" not in plan.text() and "autoencoder:" not in plan.text()
    assert "encoded:" in plan.text(full=True) and "autoencoder:" in plan.text(full=True)
    export(place / "run", tmp_path / "out", formats=["safetensors"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"The model draws latents, which {named} decodes." in card
    assert "\n  encoded: null\n" in card and "\n  autoencoder: null\n" in card


def test_real_images_are_captioned_as_what_they_are(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The autoencoder's images of the latents, with white and words above them."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(place / "cache"))
    with Image.open(place / "run" / "samples" / "real.png") as real:
        high, down = real.size[1], 10 * zoom_of(8, 8)  # of a row, with white between two
        pixels = np.asarray(real.convert("L"))
    head = line_height(8 * zoom_of(8, 8))
    assert (high - head) % down == 2 * zoom_of(8, 8)
    assert (pixels[:head] < 128).any()


def test_metrics_compare_with_the_images_that_were_encoded(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(place / "cache"))
    request = Request.of(place / "run", metrics=["sliced_wasserstein"], count=20)
    scores = measure(request, World.joined(torch.device("cpu"))).as_json()
    assert str(place / "pictures") in str(scores)


def test_a_resumed_run_makes_the_same_images(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(place / "cache"))
    half = experiment_on(place, "data.flip=true", "training.checkpoint_every_images=120")
    run = Folder(str(tmp_path / "run"))
    for report, checkpoint in reports(half, run, torch.device("cpu")):
        if checkpoint is not None:
            commit_and_prune(checkpoint, run, checkpoint_name(report.images), 3)
            break
    train(half, tmp_path / "run")
    assert torch.equal(
        ray_gen.load(tmp_path / "run").sample(4, seed=1),
        ray_gen.load(place / "run").sample(4, seed=1),
    )


@pytest.fixture
def latents(place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Experiment, Store]:
    """An experiment in float64 on the latents, and these."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(place / "cache"))
    this = experiment_on(place, "data.flip=true", "training.precision=fp64")
    return this, open_data(this)


def test_workers_and_micro_batches_do_not_change_the_result(
    latents: tuple[Experiment, Store], tmp_path: Path
) -> None:
    this, store = latents
    alone = weights(trained(this, store)[0])
    (two,) = trained_by_workers(2, [this], store, tmp_path)
    assert largest_difference(two, alone) < 1e-9
    quarter, _ = trained(this.with_fields(training__micro_batch_size=6), store)
    assert largest_difference(weights(quarter), alone) < 1e-9
    other, _ = trained(this.with_fields(seed=1), store)
    assert largest_difference(weights(other), alone) > 1e-3


def test_its_step_is_a_program(latents: tuple[Experiment, Store]) -> None:
    """A replayed step is the step, bit for bit, and it reads no number."""
    this, store = latents
    data = batches(this, build_objective(this), store, 0, 8)
    (ours, reported), (theirs, expected) = replayed(this, data), eager(this, data)
    assert largest_difference(weights(ours), weights(theirs)) == 0
    assert reported == expected
    runs_on_meta(this, steps=6)


def test_held_out_latents_have_no_bounds(latents: tuple[Experiment, Store], place: Path) -> None:
    """A VAE-GAN's error of reconstruction is that of the decoder's numbers, not clamped."""
    _, store = latents
    this = experiment_on(
        place,
        "training.precision=fp64",
        networks=dict.fromkeys(("encoder", "decoder", "discriminator"), NETWORK),
        objective={"kind": "vae_gan", "latent_size": 5},
        optimizers={"autoencoder": ADAM, "discriminator": ADAM},
    )
    objective = build_objective(this)
    networks = build_networks(this, objective).double()
    ((images, _),) = batches(this, objective, store, 0, 1)
    with torch.no_grad():
        for parameter in networks["decoder"].parameters():
            parameter.mul_(10.0)
        batch = Batch(images, None, {}, images.new_zeros(()), {}, group_size=6)
        found = objective.evaluate(networks, batch)  # pyright: ignore
        mean, _ = networks["encoder"](images).chunk(2, dim=1)
        made = networks["decoder"](mean)
    expected = ((made - images) / 2).square().flatten(1).mean(1)
    assert made.abs().max() > 1.5
    # Samples pass through float32.
    torch.testing.assert_close(found["reconstruction_mse"], expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    "bottleneck",
    ["{kind: kl, weight: 0.01}", "{kind: vq, codes: 16}", "{kind: fsq, levels: [3, 5]}"],
)
def test_every_kind_of_latent_autoencoder_decodes(
    bottleneck: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents before quantisation are data; decoding quantises."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    this = latent_autoencoder(f"objective.bottleneck={bottleneck}", SHORT)
    saved(this, random_store(8), tmp_path / "autoencoder")
    pictures = str(write_classes(tmp_path / "pictures", {"all": 40}))
    told = encode(tmp_path / "autoencoder", str(tmp_path / "latents"), pictures, local=True)
    assert told["latents"]["moments"] == (["mean", "std"] if "kl" in bottleneck else ["mean"])
    train(experiment_on(tmp_path, "training.images=48"), tmp_path / "run")
    z = ray_gen.load(tmp_path / "run").latents(6, seed=0)
    assert isinstance(z, Tensor)
    expected = ray_gen.load(tmp_path / "autoencoder").decode(own_latents(tmp_path, z))
    images = ray_gen.load(tmp_path / "run").sample(6, seed=0)
    assert images.shape == (6, 1, 8, 8)
    assert (images - expected).abs().mean() < 1e-5
    written = export(tmp_path / "run", tmp_path / "out")  # one program from z to pixels
    assert {"generator.pt2", "generator.onnx"} <= {file.name for file in written.files}
    program = torch.export.load(tmp_path / "out" / "generator.pt2").module()
    for count in (1, 5):
        assert (program(z[:count]) - images[:count]).abs().mean() < 1e-5


def test_classes_of_the_autoencoders_own_are_told_as_any_others(place: Path) -> None:
    targets = custom_targets(experiment_on(place))
    assert "tests.proofs.latent_autoencoder:LatentAutoencoder" in targets


def test_latents_are_not_encoded_again(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"was trained on latents itself; encode with the autoencod"):
        encode(place / "run", str(tmp_path / "to"), str(place / "pictures"))


def test_what_cannot_make_latents_is_refused(place: Path) -> None:
    with pytest.raises(ExperimentError, match=r"objective.likelihood: bernoulli describes pixels"):
        experiment_on(
            place,
            networks={"encoder": NETWORK, "decoder": NETWORK},
            objective={"kind": "vae", "latent_size": 5},
            optimizers={"autoencoder": ADAM},
        )
    patches = {"kind": "conv", "width": 8}
    for objective, network in (
        ({"kind": "autoencoder", "likelihood": "gaussian"}, NETWORK),
        ({"kind": "latent_autoencoder", "downsampling": 2, "latent_channels": 2}, patches),
    ):
        with pytest.raises(ExperimentError, match=rf"kind: {objective['kind']} makes no samples"):
            experiment_on(
                place,
                networks={"encoder": network, "decoder": network},
                objective=objective,
                optimizers={"autoencoder": ADAM},
            )
    pipeline = ray_gen.load(place / "run")
    assert isinstance(pipeline.objective, Decodes)
    with pytest.raises(Refused, match="a discriminator, but it judges latents, not images; take a"):
        pipeline.discriminate(torch.zeros(1, 1, 8, 8))
    with pytest.raises(Refused, match="keeps the decoder of their autoencoder, not its encoder"):
        pipeline.encode(torch.zeros(1, 1, 8, 8))
