"""Latent autoencoders as folders of diffusers, and runs that start from such a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import ray_gen
from ray_gen.bottlenecks.codebook import Codebook
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.experiment.start import Start
from ray_gen.launch.start import begin_from, read
from ray_gen.pipeline.export import Exported
from ray_gen.runs.manifest import CheckpointError
from ray_gen.storage import Folder
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.state import State
from tests.data.pictures import noise, write
from tests.helpers import latent_autoencoder, random_store, stepped
from tests.runs import saved

diffusers = pytest.importorskip("diffusers")

NETWORK = (
    "{kind: autoencoder_kl, width: 8, multipliers: [1, 2], blocks: 1, groups: 4, attention: [4]}"
)


def of(*overrides: str) -> Experiment:
    """A latent autoencoder with the networks of diffusers."""
    return latent_autoencoder(
        f"networks.encoder={NETWORK}",
        f"networks.decoder={NETWORK}",
        "training.images=96",
        "objective.adversarial_weight=0",
        *overrides,
    )


@pytest.mark.parametrize(
    ("bottleneck", "kind"),
    [("{kind: kl}", "AutoencoderKL"), ("{kind: vq, codes: 16}", "VQModel")],
)
def test_diffusers_loads_the_folder_and_gives_the_same(
    store_8, tmp_path: Path, monkeypatch, bottleneck: str, kind: str
) -> None:
    monkeypatch.setattr("ray_gen.pipeline.export.open_source", lambda data: store_8)
    this = of(f"objective.bottleneck={bottleneck}")
    run = saved(this, store_8, tmp_path / "run")
    written = ray_gen.export(run, tmp_path / "out", to="diffusers")
    assert written.files[1].difference < 1e-5

    module = getattr(diffusers, kind).from_pretrained(tmp_path / "out")
    pipeline = ray_gen.load(run)
    images = store_8.train.images_NHWC.permute(0, 3, 1, 2).float() / 255
    encoded = module.encode(images * 2 - 1)
    if kind == "AutoencoderKL":
        mean = encoded.latent_dist.mean.detach().double()
        variance = encoded.latent_dist.var.detach().double()
        scaled = (mean - module.config.shift_factor) * module.config.scaling_factor
        assert float(scaled.mean()) == pytest.approx(0, abs=1e-5)
        spread = scaled.square() + variance * module.config.scaling_factor**2
        assert float(spread.mean()) == pytest.approx(1, abs=1e-5)
    else:
        mean = encoded.latents
    torch.testing.assert_close(
        (module.decode(mean.float()).sample / 2 + 0.5).clamp(0, 1).detach(),
        pipeline.reconstruct(images),
        atol=1e-5,
        rtol=0,
    )

    # And back: a new run begins with exactly these weights.
    origin = read(Start(source=str(tmp_path / "out")))
    networks = build_networks(this, build_objective(this))
    for name in ("encoder", "decoder"):
        for key, tensor in networks[name].state_dict().items():
            if "measured" not in key:
                trained = pipeline.networks[name].state_dict()[key]
                assert torch.equal(origin.tensors[f"{name}.{key}"], trained), key
                assert tensor.shape == trained.shape
    assert "VQModel" in origin.told or "AutoencoderKL" in origin.told


def exported(this: Experiment, store_8, tmp_path: Path, monkeypatch) -> Exported:
    """What is written of a run of few steps."""
    monkeypatch.setattr("ray_gen.pipeline.export.open_source", lambda data: store_8)
    run = saved(this, store_8, tmp_path / "run")
    return ray_gen.export(run, tmp_path / "out", to="diffusers")


def test_other_images_are_read_as_the_run_reads_its_own(tmp_path: Path, monkeypatch) -> None:
    """Named by their path, they give what the run's own data give, also of an exported model."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    for index in range(40):
        write(tmp_path / "pictures" / f"{index}.png", noise(16, 8, 1, seed=index))
    this = of(
        f"data=folder:{tmp_path / 'pictures'}",
        *("data.image_size=8", "data.channels=1", "data.held_out_fraction=0.25"),
        *("data.fit=pad", "data.pad=0"),
    )
    run = saved(this, random_store(8), tmp_path / "run")
    ray_gen.export(run, tmp_path / "model", formats=["safetensors"])
    own = ray_gen.export(run, tmp_path / "own", to="diffusers")
    for number, source in enumerate((run, tmp_path / "model")):
        named = {"to": "diffusers", "data": str(tmp_path / "pictures")}
        assert ray_gen.export(source, tmp_path / f"{number}", **named).notes == own.notes
    with pytest.raises(Refused, match=r"pictures does not exist .* name them with --data"):
        ray_gen.export(tmp_path / "model", tmp_path / "out", to="diffusers")
    for name, told in (("missing", "--data: .*missing does not exist"), ("latents:x", "--data: ")):
        with pytest.raises(Refused, match=told):
            ray_gen.export(run, tmp_path / "out", to="diffusers", data=name)


def test_a_model_in_double_precision_is_written_in_single(
    store_8, tmp_path: Path, monkeypatch
) -> None:
    written = exported(of("training.precision=fp64"), store_8, tmp_path, monkeypatch)
    assert written.files[1].difference < 1e-5
    module = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out")
    assert module.dtype == torch.float32


def test_notes_tell_the_shift_of_what_has_one(store_8, tmp_path: Path, monkeypatch) -> None:
    for bottleneck, has_shift in (("{kind: kl}", True), ("{kind: vq, codes: 16}", False)):
        folder = tmp_path / str(has_shift)
        this = of(f"objective.bottleneck={bottleneck}")
        (told,) = exported(this, store_8, folder, monkeypatch).notes
        config = json.loads((folder / "out" / "config.json").read_text())
        assert f"scaling {config['scaling_factor']:.5g}" in told
        assert ("shift_factor" in config) == ("shift" in told) == has_shift


def test_what_is_written_is_for_others_to_read(store_8, tmp_path: Path, monkeypatch) -> None:
    before = os.umask(0o022)
    try:
        written = exported(of(), store_8, tmp_path, monkeypatch)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in written.path.iterdir()} == {0o644}


def test_a_full_disk_leaves_nothing(store_8, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = saved(of(), store_8, tmp_path / "run")
    monkeypatch.setattr("ray_gen.pipeline.export.open_source", lambda data: store_8)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Refused, match=r"out: .*No space left on device"):
        ray_gen.export(run, tmp_path / "out", to="diffusers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("given", [{"formats": ["onnx"]}, {"truncation": 0.5}])
def test_options_of_other_formats_are_refused(store_8, tmp_path: Path, given) -> None:
    run = saved(of(), store_8, tmp_path / "run")
    with pytest.raises(Refused, match=f"--{next(iter(given))}: --to diffusers"):
        ray_gen.export(run, tmp_path / "out", to="diffusers", **given)


def vq_model(folder: Path, codes: int) -> torch.Tensor:
    """Saves a VQModel of diffusers with the networks of `of`. Returns its codes: (K, 2)."""
    module = diffusers.VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        block_out_channels=[8, 16],
        layers_per_block=1,
        latent_channels=2,
        sample_size=8,
        num_vq_embeddings=codes,
        norm_num_groups=4,
    )
    table = module.quantize.embedding.weight.data
    table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))
    module.save_pretrained(folder)
    return table.clone()


@pytest.mark.parametrize("half", [False, True])
def test_a_run_begins_with_the_codes_of_a_vqmodel(store_8, tmp_path: Path, half: bool) -> None:
    codes = vq_model(tmp_path / "model", 16)
    if half:
        diffusers.VQModel.from_pretrained(tmp_path / "model").half().save_pretrained(
            tmp_path / "model"
        )
        codes = codes.half().float()
    this = of(
        "objective.bottleneck={kind: vq, codes: 16}",
        f"training.start_from.source={tmp_path / 'model'}",
    )
    objective = build_objective(this)
    state = State.build(this, objective, World())
    begin_from(this, objective, state, Folder(str(tmp_path / "run")))
    for networks in (state.networks, state.ema):
        codebook = networks["quantiser"]
        assert isinstance(codebook, Codebook)
        assert torch.equal(codebook.codes, codes)
        found, indices = codebook.quantised(codes.t()[None, :, :, None])
        assert torch.equal(indices.flatten(), torch.arange(16))
        assert torch.equal(found[0, :, :, 0].t(), codes)

    stepped(this, objective, store_8, 8, state)
    codebook = state.networks["quantiser"]
    assert isinstance(codebook, Codebook)
    assert bool((codebook.counts > 0).all())  # also those that these images do not use
    assert int((codebook.codes != codes).any(1).sum()) > 0
    apart = torch.cdist(codes, codes).fill_diagonal_(torch.inf).min(1).values
    assert bool(((codebook.codes - codes).norm(dim=1) < apart).all())


def test_the_remedy_for_a_missing_discriminator_keeps_the_codebook(tmp_path: Path) -> None:
    vq_model(tmp_path / "model", 16)
    this = of(
        "objective.bottleneck={kind: vq, codes: 16}",
        "objective.adversarial_weight=0.1",
        "networks.discriminator={kind: patch, width: 4, layers: 1}",
        "optimizers.discriminator={kind: adam, learning_rate: 0.001}",
        f"training.start_from.source={tmp_path / 'model'}",
    )
    objective = build_objective(this)
    with pytest.raises(Refused, match=r"has no discriminator; .*networks=\[") as refused:
        begin_from(
            this,
            objective,
            State.build(this, objective, World()),
            Folder(str(tmp_path / "run")),
        )
    assert "encoder,decoder,quantiser] to begin it anew" in str(refused.value)


def test_what_diffusers_does_not_have_is_refused(store_8, tmp_path: Path) -> None:
    run = saved(latent_autoencoder(), store_8, tmp_path / "conv")
    with pytest.raises(Refused, match="autoencoder_kl only"):
        ray_gen.export(run, tmp_path / "a", to="diffusers")
    run = saved(of("objective.bottleneck={kind: fsq, levels: [5, 5]}"), store_8, tmp_path / "fsq")
    with pytest.raises(Refused, match="has no fsq"):
        ray_gen.export(run, tmp_path / "b", to="diffusers")


def test_another_class_of_diffusers_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="UNet2DModel"):
        read(Start(source=str(tmp_path)))
