"""A trained run as files: each gives what the run gives, holds no pickle, and is there whole."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import onnx
import onnxruntime
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor, nn

import ray_gen
from ray_gen.cli import main
from ray_gen.core import Encodes, ImageToVector, VectorToImage
from ray_gen.errors import Failed, Refused
from ray_gen.experiment import Experiment
from ray_gen.pipeline import Pipeline
from ray_gen.pipeline import export as exporting
from ray_gen.pipeline.export import Exported, export, programs, push_to_hub, save_pretrained
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import read_config
from ray_gen.runs.manifest import CheckpointError
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import gan, latent_autoencoder, relativistic, some_of, trained, vae, vae_gan

SHORT = "training.images=48"
MODELS = {
    "gan-mlp": gan(SHORT, "networks.generator.spectral_norm=true"),
    "gan-dcgan": gan(
        SHORT,
        "objective.conditional=true",
        "objective.latent_distribution=uniform",
        "networks.generator.spectral_norm=true",
        kind="dcgan",
    ),
    "gan-conv": gan(SHORT, kind="conv"),
    "gan-r3gan": gan(
        SHORT, "objective.conditional=true", "networks.discriminator.blocks=1", kind="r3gan"
    ),
    "gan-resnet": gan(
        SHORT,
        "objective.conditional=true",
        "networks.generator={kind: resnet, width: 2, labels: conditional_batch_norm, attention: "
        "[8], spectral_norm: true, shared_embedding: 4}",
        "networks.discriminator={kind: resnet, width: 2, labels: projection}",
    ),
    "vae-mlp": vae(SHORT, "objective.conditional=true"),
    "vae-conv": vae(SHORT, "objective.conditional=true", kind="conv"),
    "vae-dcgan": vae(
        SHORT, "objective.likelihood=gaussian", "networks.encoder.spectral_norm=true", kind="dcgan"
    ),
    "vae-fp64": vae(SHORT, "training.precision=fp64"),
    "autoencoder": vae(SHORT, "objective={kind: autoencoder, latent_size: 3}"),
    "custom": relativistic(SHORT),
}
QUICK = ("gan-dcgan", "vae-conv", "vae-dcgan", "autoencoder", "custom")

QUANTISERS = (
    "{kind: vq, codes: 16}",
    "{kind: vq, codes: 16, normalised: true}",
    "{kind: fsq, levels: [3, 5]}",
    "{kind: lfq, bits: 4}",
)


class Branches(nn.Module):
    """A generator that no tracer can follow: which way it goes depends on numbers."""

    def __init__(self, signature: VectorToImage) -> None:
        super().__init__()
        self.layer = nn.Linear(signature.vector_size, 64)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        image = self.layer(z) if float(z.sum()) > 0 else -self.layer(z)
        return image.view(-1, 1, 8, 8).tanh()


class Squares(nn.Module):
    """A discriminator for it."""

    def __init__(self, signature: ImageToVector) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layer(images.flatten(1))


@pytest.fixture(scope="module")
def run_of(store_8, tmp_path_factory):
    """A checkpoint of a model, by its experiment; trained once."""
    made: dict[str, Path] = {}

    def of(experiment: Experiment) -> Path:
        text = experiment.to_yaml()
        if text not in made:
            made[text] = tmp_path_factory.mktemp("run")
            state, reports = trained(experiment, store_8)
            state.save(made[text], experiment, reports[-1].metrics)
        return made[text]

    return of


@pytest.fixture(scope="module")
def exported(run_of, tmp_path_factory):
    """A whole export of one of MODELS, to look at; made once."""

    @cache
    def of(model: str) -> Exported:
        return export(run_of(MODELS[model]), tmp_path_factory.mktemp("exported") / model)

    return of


@pytest.fixture
def run(run_of) -> Path:
    """A checkpoint of a small GAN."""
    return run_of(MODELS["gan-mlp"])


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def onnx_outputs(path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    named = zip(session.get_inputs(), inputs, strict=True)
    given = {of.name: tensor.numpy() for of, tensor in named}
    return [torch.from_numpy(output) for output in session.run(None, given)]


@pytest.mark.parametrize("model", some_of(MODELS, *QUICK))
def test_every_program_gives_what_the_run_gives_at_any_batch_size(
    model: str, run_of, exported
) -> None:
    written = exported(model)
    pipeline = ray_gen.load(run_of(MODELS[model]), device="cpu")
    experiment, objective, networks = pipeline.experiment, pipeline.objective, pipeline.networks
    dtype = next(networks.parameters()).dtype
    generator = torch.Generator().manual_seed(3)
    latent_size = 3 if model == "autoencoder" else 5
    name = "decoder" if "decoder" in networks else "generator"
    for count in (1, 3, 33):
        labels = torch.randint(0, 10, (count,), generator=generator)
        given = (labels,) if experiment.label_count else ()
        label = labels if experiment.label_count else None
        z = torch.randn(count, latent_size, generator=generator)
        (images,) = onnx_outputs(written.path / f"{name}.onnx", (z, *given))
        again = torch.export.load(written.path / f"{name}.pt2").module()(z, *given)
        expected = objective.sample(networks, {"z": z.to(dtype)}, label, {}).float()
        for found in (images, again):
            assert found.dtype == torch.float32
            assert found.shape == (count, 1, 8, 8)
            assert 0.0 <= float(found.min()) <= float(found.max()) <= 1.0
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)
        if not isinstance(objective, Encodes):
            continue
        images = torch.rand(count, 1, 8, 8, generator=generator)
        (encoded,) = objective.encode(networks, images.to(dtype), label).values()
        expected = [out.float() for out in encoded if out is not None]
        again = torch.export.load(written.path / "encoder.pt2").module()(images, *given)
        outputs = onnx_outputs(written.path / "encoder.onnx", (images, *given))
        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=0.0)
        both = [again] if isinstance(again, Tensor) else list(again)
        torch.testing.assert_close(both, expected, atol=1e-5, rtol=0.0)
    assert (written.path / "encoder.onnx").exists() == ("encoder" in networks)
    differences = [file.difference for file in written.files if file.difference is not None]
    sources = [file for file in written.files if file.name.endswith(".py")]
    assert bool(sources) == (model == "custom")
    # config.json, README.md and sources are not run.
    assert len(differences) == len(written.files) - 2 - len(sources)
    assert max(differences) < 1e-6
    assert written.notes == ()


@pytest.mark.parametrize("bottleneck", some_of(QUANTISERS, QUANTISERS[0]))
def test_programs_with_a_quantiser_take_any_number_of_images(
    bottleneck: str, run_of, tmp_path: Path
) -> None:
    run = run_of(latent_autoencoder(f"objective.bottleneck={bottleneck}", SHORT))
    written = export(run, tmp_path / "out")
    pipeline = ray_gen.load(run, device="cpu")
    program = torch.export.load(written.path / "decoder.pt2").module()
    generator = torch.Generator().manual_seed(3)
    (shape,) = pipeline.latent_shapes.values()
    for count in (1, 5, 16):
        z = torch.randn(count, *shape, generator=generator)
        (images,) = onnx_outputs(written.path / "decoder.onnx", (z,))
        for found in (images, program(z)):
            torch.testing.assert_close(found, pipeline.decode(z), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("model", some_of(MODELS, *QUICK))
def test_an_exported_folder_is_the_run_bit_for_bit(model: str, run_of, tmp_path: Path) -> None:
    this = MODELS[model]
    for weights in ("ema", "raw"):
        folder = tmp_path / weights
        export(run_of(this), folder, weights=weights, formats=["safetensors"])
        code = ["code"] if model == "custom" else []
        assert names(folder) == sorted(["README.md", "config.json", "model.safetensors", *code])
        pipeline, expected = (
            Pipeline.from_pretrained(folder),
            ray_gen.load(run_of(this), weights=weights),
        )
        again = this.with_fields(code=pipeline.experiment.code)
        assert pipeline.experiment == again
        tensors = pipeline.networks.state_dict()
        torch.testing.assert_close(tensors, expected.networks.state_dict(), rtol=0.0, atol=0.0)
        if pipeline.objective.has_prior:
            assert torch.equal(pipeline.sample(5, seed=1), expected.sample(5, seed=1))
    assert Pipeline.from_pretrained(tmp_path / "raw", weights="raw").experiment == again
    with pytest.raises(CheckpointError, match="holds averaged weights"):
        Pipeline.from_pretrained(tmp_path / "ema", weights="raw")


def test_a_model_without_encode_is_exported_without_its_encoder_and_says_so(
    run_of, tmp_path: Path
) -> None:
    written = export(run_of(vae_gan(SHORT)), tmp_path / "out", formats=["torch"])
    assert [file.name for file in written.files] == ["decoder.pt2", "README.md"]
    assert written.notes == (
        "encoder: not written, the objective has no `encode` (ray_gen.core.Encodes)",
    )


class Mixin(nn.Module, huggingface_hub.PyTorchModelHubMixin):
    """What a user of the hub's mixin writes to read an exported folder."""

    def __init__(self, experiment: dict[str, Any]) -> None:
        super().__init__()
        built = Experiment.of(experiment)
        self.objective = build_objective(built)
        networks = build_networks(built, self.objective, self.objective.sampled_from)
        for name, network in networks.items():
            self.add_module(name, network)


def test_the_mixin_of_the_hub_reads_the_folder_and_writes_one_that_is_read(
    run_of, tmp_path: Path
) -> None:
    export(run_of(MODELS["gan-dcgan"]), tmp_path / "ours", formats=["safetensors"])
    model = Mixin.from_pretrained(tmp_path / "ours", strict=True)
    ours = Pipeline.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(model.state_dict(), ours.networks.state_dict(), rtol=0.0, atol=0.0)
    with torch.no_grad():
        model.get_parameter("generator.label.table.weight").add_(1.0)
    model.save_pretrained(tmp_path / "theirs")
    theirs = Pipeline.from_pretrained(tmp_path / "theirs").networks.state_dict()
    torch.testing.assert_close(theirs, model.state_dict(), rtol=0.0, atol=0.0)


def test_nothing_is_unpickled_and_no_file_holds_a_pickle(
    exported, tmp_path: Path, monkeypatch
) -> None:
    written = Path(shutil.copytree(exported("vae-conv").path, tmp_path / "out"))
    for name in ("encoder.pt2", "decoder.pt2"):
        archive = zipfile.ZipFile(written / name)
        inside = archive.namelist()
        assert archive.read(next(name for name in inside if "sample_inputs" in name)) == b""
        payloads = [name for name in inside if name.endswith("_config.json")]
        assert len(payloads) == 2
        for name in payloads:
            config = json.loads(archive.read(name))["config"]
            assert not any(payload["use_pickle"] for payload in config.values())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, refuse)
    assert Pipeline.from_pretrained(written).sample(2, seed=0).shape == (2, 1, 8, 8)
    (written / "model.safetensors").rename(written / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        Pipeline.from_pretrained(written)


def test_no_file_tells_where_the_run_was_or_what_only_its_machine_knows(
    run_of, tmp_path: Path
) -> None:
    secret = "s3://bucket/runs?endpoint_override=opossum"
    for path, kept, formats in (
        ("/home/ivory/faces", "faces", None),
        (secret, "s3://bucket/runs", ["safetensors"]),
    ):
        data = f"data={{kind: parquet, path: '{path}', image_size: 8, channels: 1}}"
        this = vae(SHORT, data, f"storage={secret}", "objective.conditional=true")
        written = export(run_of(this), tmp_path / kept.rpartition("/")[2], formats=formats)
        for file in written.path.iterdir():
            content = file.read_bytes()
            for word in ("opossum", "ivory", "/tmp", "site-packages", str(Path.cwd())):
                assert word.encode() not in content, (file, word)
        experiment = Pipeline.from_pretrained(written.path).experiment
        assert experiment == this.with_fields(storage=None, data__path=kept)


def test_spectral_norm_is_baked_into_programs_and_the_model_keeps_it(
    run_of, tmp_path: Path
) -> None:
    pipeline = ray_gen.load(run_of(MODELS["gan-dcgan"]), device="cpu")
    before = pipeline.networks.state_dict()
    images = pipeline.sample(4, seed=0)
    for name in ("first", "second"):  # the classes of parametrised layers are shared by copies
        export(pipeline, tmp_path / name, formats=["safetensors", "torch"])
    assert any("parametrizations" in name for name in before)
    torch.testing.assert_close(pipeline.networks.state_dict(), before, rtol=0.0, atol=0.0)
    assert torch.equal(pipeline.sample(4, seed=0), images)
    tensors = torch.export.load(tmp_path / "first" / "generator.pt2").state_dict
    assert not any("parametrizations" in name for name in tensors)


def test_a_decoder_has_no_encoder_in_it(exported) -> None:
    written = exported("vae-dcgan")
    for of, other in (("encoder", "decoder"), ("decoder", "encoder")):
        tensors = torch.export.load(written.path / f"{of}.pt2").state_dict
        assert {name.split(".")[1] for name in tensors} == {of}
        weights = onnx.load(written.path / f"{of}.onnx").graph.initializer
        assert not any(f".{other}." in weight.name for weight in weights)


def test_an_onnx_file_says_what_goes_in_and_comes_out(exported) -> None:
    def shapes(values: Any) -> dict[str, list[Any]]:
        return {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in values
        }

    folder = exported("vae-conv").path
    graph = onnx.load(folder / "decoder.onnx").graph
    assert shapes(graph.input) == {"z": ["batch", 5], "labels": ["batch"]}
    assert shapes(graph.output) == {"images": ["batch", 1, 8, 8]}
    graph = onnx.load(folder / "encoder.onnx").graph
    assert shapes(graph.input) == {"images": ["batch", 1, 8, 8], "labels": ["batch"]}
    assert shapes(graph.output) == {"mean": ["batch", 5], "log_variance": ["batch", 5]}
    graph = onnx.load(exported("autoencoder").path / "encoder.onnx").graph
    assert shapes(graph.output) == {"z": ["batch", 3]}


# What cannot be, and what is left then


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_file_that_differs_from_the_run_is_an_error_and_nothing_is_left(
    kind: str, run: Path, tmp_path: Path, monkeypatch
) -> None:
    baked = programs.baked

    def wrong(networks: nn.ModuleDict) -> nn.ModuleDict:
        copied = baked(networks)
        copied.get_parameter("generator.layers.2.bias").add_(0.001)
        return copied

    monkeypatch.setattr(programs, "baked", wrong)
    with pytest.raises(Failed, match=rf"generator.{'pt2' if kind == 'torch' else kind}: differs"):
        export(run, tmp_path / "out", formats=["safetensors", kind])
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_no_agreement() -> None:
    nan = torch.full((2, 1), float("nan"))
    with pytest.raises(Failed, match=r"by nan .* 2 images"):
        programs.check("a.onnx", [[torch.zeros(2, 1)]], [[nan]])
    with pytest.raises(Failed, match=r"\(2, 1\) .* \(2,\)"):
        programs.check("a.onnx", [[torch.zeros(2)]], [[nan]])
    assert programs.check("a", [[torch.full((1,), 1e3)]], [[torch.full((1,), 1e3 + 0.05)]]) > 0.04


def test_a_program_that_chooses_codes_may_choose_another_of_two_that_are_equally_near() -> None:
    ours = [[torch.zeros(count, 3, 8, 8)] for count in (1, 2, 5)]
    one_code = [[images[0].clone()] for images in ours]
    one_code[0][0][0, :, 2:4, 2:4] = 0.3
    all_codes = [[images[0] + 0.01] for images in ours]
    with pytest.raises(Failed, match=r"by 0\.3 with 1 images"):
        programs.check("a.onnx", ours, one_code)
    assert programs.check("a.onnx", ours, one_code, chooses=True) == 0.0
    with pytest.raises(Failed, match=r"by 0\.01 with 8 images"):
        programs.check("a.onnx", ours, all_codes, chooses=True)
    this = latent_autoencoder("objective.bottleneck={kind: vq, codes: 16}", SHORT)
    for experiment, chooses in ((this, True), (MODELS["vae-mlp"], False)):
        objective = build_objective(experiment)
        model = Model(experiment, objective, build_networks(experiment, objective).eval())
        made, _ = programs.programs_of(model, None)
        assert {program.name: program.chooses for program in made}["decoder"] is chooses


def test_a_network_that_cannot_be_traced_is_said_and_its_weights_are_exported_all_the_same(
    run_of, tmp_path: Path
) -> None:
    custom = {"kind": "custom", "target": "tests.test_export:Branches"}
    squares = {"kind": "custom", "target": "tests.test_export:Squares"}
    networks = yaml.safe_dump({"generator": custom, "discriminator": squares})
    this = run_of(gan(SHORT, f"networks={networks.strip()}"))
    with pytest.raises(Failed, match=r"^generator: .*--formats"):
        export(this, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    written = export(this, tmp_path / "out", formats=["safetensors"])
    assert len([file for file in written.files if not file.name.endswith(".py")]) == 3
    text = (written.path / "README.md").read_text()
    assert "`tests.test_export:Branches`" in text
    assert "custom_classes=True" in text


def test_a_folder_is_new_or_empty(run: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for folder, sentence in (
        ("full", "full: has notes.txt in it; give a new or empty folder"),
        ("file", "file: is a file"),
        (".", "is the working directory; give .* new folder"),
        ("s3://bucket/model", "s3://bucket/model: is not a local folder"),
        ("file/below", "file/below: cannot be written: (Not a directory|File exists)"),
    ):
        with pytest.raises(Refused, match=sentence):
            export(run, folder, formats=["safetensors"])
    assert names(tmp_path) == ["file", "full"]
    assert names(tmp_path / "full") == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new/deep"):
        assert export(run, folder, formats=["safetensors"]).path == tmp_path / folder
        assert len(names(Path(folder))) == 3
    with pytest.raises(Refused, match=r"empty: has README.md in it"):
        export(run, "empty", formats=["safetensors"])


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Refused, match=r"out: .*No space left on device"):
        export(run, tmp_path / "out", formats=["safetensors"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_exported_is_for_others_to_read(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        written = export(run, tmp_path / "out")
    finally:
        os.umask(before)
    assert written.path.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in written.path.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda config: "[1]", "has no `experiment`, .*another program's model"),
        (lambda config: '{"model_type": "bert"}', "another program's model"),
        (lambda config: config[:100], r"config.json: cannot be read \("),
        (lambda config: config.replace('"format": 1', '"format": 2'), "has format 2 of ray_gen"),
        (lambda config: config.replace('"latent_size": 5', '"latent_size": 6'), "size mismatch"),
        (lambda config: config.replace('"kind": "gan"', '"kind": "gam"'), "did you mean gan"),
    ],
)
def test_a_damaged_or_foreign_config_is_refused(
    run: Path, tmp_path: Path, change: Any, sentence: str
) -> None:
    folder = export(run, tmp_path / "out", formats=["safetensors"]).path
    config = folder / "config.json"
    config.write_text(change(config.read_text()))
    with pytest.raises(Refused, match=sentence):
        Pipeline.from_pretrained(folder)


def test_damaged_weights_and_folders_that_are_none_are_refused(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", formats=["safetensors"]).path
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read"):
        Pipeline.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"^/no/such/folder: "):
        Pipeline.from_pretrained("/no/such/folder")


# What need not be installed


def test_without_onnx_the_other_files_are_written_and_a_sentence_says_what_is_missing(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    written = export(run, tmp_path / "out")
    assert not list(written.path.glob("*.onnx"))
    assert len(written.files) == 4
    sentence = "onnx: not written, onnxscript is missing: pip install 'ray_gen[export]'"
    assert written.notes == (sentence,)
    with pytest.raises(Refused, match=re.escape(f"--formats: {sentence}")):
        export(run, tmp_path / "asked", formats=["onnx"])
    assert not (tmp_path / "asked").exists()


def test_without_onnxruntime_it_is_said_that_a_file_was_not_run(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    written = export(run, tmp_path / "out", formats=["onnx"])
    assert written.files[0].difference is None
    assert written.notes == ("generator.onnx: was not run, onnxruntime is not installed",)


def test_a_folder_needs_neither_the_hub_nor_onnx_nor_ray_nor_the_data(
    run: Path, tmp_path: Path
) -> None:
    code = f"""
import sys
for name in ("ray", "torchvision", "tensorboard", "pyarrow", "onnx", "onnxscript", "onnxruntime",
             "huggingface_hub"):
    sys.modules[name] = None
from ray_gen.pipeline import Pipeline
from ray_gen.pipeline.export import export
from ray_gen.errors import Refused
folder = export({str(run)!r}, {str(tmp_path / "out")!r}).path
assert Pipeline.from_pretrained(folder).sample(4, seed=0).shape == (4, 1, 8, 8)
try:
    Pipeline.from_pretrained("somebody/model")
except Refused as refused:
    print(refused)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("somebody/model: the Hugging Face hub needs huggingface_hub: pip")


# The hub, without a network


def test_a_repository_of_the_hub_is_loaded_from_its_two_files(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = export(run, tmp_path / "out", formats=["safetensors"]).path
    asked: list[Any] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    pipeline = Pipeline.from_pretrained("somebody/model", revision="v1")
    assert torch.equal(pipeline.sample(2, seed=0), ray_gen.load(run).sample(2, seed=0))
    files = ["config.json", "model.safetensors"]
    assert asked == [("somebody/model", {"revision": "v1", "allow_patterns": files})]

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"somebody/model.*no route"):
        Pipeline.from_pretrained("somebody/model")


def test_classes_that_a_strangers_config_names_are_not_imported_unasked(
    run_of, tmp_path: Path, monkeypatch
) -> None:
    """`torch.hub:load` is importable everywhere, and takes a repository to run as an option."""
    folder = export(run_of(MODELS["custom"]), tmp_path / "out", formats=["safetensors"]).path
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(CheckpointError, match=r"\(tests.custom_objectives:RelativisticGan\)"):
        Pipeline.from_pretrained("somebody/model")
    assert Pipeline.from_pretrained("somebody/model", custom_classes=True).sample(1).shape == (
        1,
        1,
        8,
        8,
    )
    assert Pipeline.from_pretrained(folder).sample(1).shape == (1, 1, 8, 8)


def test_a_model_is_pushed_in_one_commit(run: Path, monkeypatch) -> None:
    done: list[Any] = []

    class Api:
        def __init__(self, **options: Any) -> None:
            done.append(options)

        def create_repo(self, repository: str, **options: Any) -> None:
            done.append((repository, options))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
            done.append((repo_id, names(folder_path), commit_message))
            assert torch.equal(
                Pipeline.from_pretrained(folder_path).sample(2, seed=0),
                ray_gen.load(run).sample(2, seed=0),
            )
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push_to_hub(run, "me/model", private=True) == "https://hub/commit"
    files = ["README.md", "config.json", "model.safetensors"]
    assert done == [
        {"token": None, "library_name": "ray_gen"},
        ("me/model", {"private": True, "exist_ok": True}),
        ("me/model", files, "Export from ray_gen"),
    ]

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("401")

    monkeypatch.setattr(Api, "create_repo", denied)
    with pytest.raises(Refused, match=r"^me/model: .* 401"):
        push_to_hub(run, "me/model")


# What is said of it


def test_the_card_says_what_it_is_and_its_two_lines_load_it(run_of, tmp_path: Path) -> None:
    for model in ("gan-dcgan", "autoencoder"):
        written = export(run_of(MODELS[model]), tmp_path / model, formats=["safetensors", "torch"])
        text = (written.path / "README.md").read_text(encoding="utf-8")
        _, head, body = text.split("---\n", 2)
        assert yaml.safe_load(head)["library_name"] == "ray_gen"
        assert "trained on 48 images" in body
        assert re.search(r"\| `loss/\w+` \| [\d.]+ \|", body)
        recipe = re.findall(r"```yaml\n(.*?)```", body, re.DOTALL)[0]
        assert Experiment.from_yaml(recipe) == MODELS[model]
        (code,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
        found: dict[str, Any] = {"images": torch.zeros(2, 1, 8, 8)}
        exec(code.replace("FOLDER_OR_REPOSITORY", str(written.path)), found)
        assert found["images" if model == "gan-dcgan" else "again"].shape[1:] == (1, 8, 8)
        listed = dict(re.findall(r"\| `(\S+)` \| .* \| (\S+) \|", body))
        assert listed.keys() == {file.name for file in written.files} - {"README.md"}


def test_a_metric_that_is_no_number_is_left_out(run_of, store_8, tmp_path: Path) -> None:
    state, _ = trained(MODELS["gan-mlp"], store_8)
    (tmp_path / "run").mkdir()
    state.save(tmp_path / "run", MODELS["gan-mlp"], {"a": 0.5, "b": float("inf")})
    written = export(tmp_path / "run", tmp_path / "out", formats=["safetensors"])
    assert json.loads((written.path / "config.json").read_text())["ray_gen"] == {
        "format": 1,
        "version": ray_gen.__version__,
        "name": "run",
        "weights": "ema",
        "images": 48,
        "metrics": {"a": 0.5},
    }
    again = export(written.path, tmp_path / "again", formats=["safetensors", "torch"])
    assert read_config(again.path) == read_config(written.path)
    assert (tmp_path / "again" / "generator.pt2").is_file()


def test_a_pipeline_is_saved_as_it_is(run: Path, tmp_path: Path) -> None:
    raw = ray_gen.load(run, weights="raw")
    assert save_pretrained(raw, tmp_path / "out") == tmp_path / "out"
    again = Pipeline.from_pretrained(tmp_path / "out", weights="raw")
    assert torch.equal(again.sample(3, seed=0), raw.sample(3, seed=0))


def test_a_pipeline_writes_and_reads_its_own_folder(run: Path, tmp_path: Path) -> None:
    ours = ray_gen.load(run)
    ours.save_pretrained(tmp_path / "out")
    for again in (
        ray_gen.load(tmp_path / "out"),
        ray_gen.Pipeline.from_pretrained(tmp_path / "out"),
    ):
        assert torch.equal(again.sample(3, seed=0), ours.sample(3, seed=0))


def test_a_pipeline_is_pushed_with_what_was_asked(monkeypatch) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr(
        exporting, "push_to_hub", lambda *given, **named: pushed.append((given, named))
    )
    pipeline = ray_gen.Pipeline.__new__(ray_gen.Pipeline)
    pipeline.push_to_hub("me/model", private=True)
    named = {"formats": ("safetensors",), "private": True, "token": None}
    assert pushed == [((pipeline, "me/model"), named)]


def test_export_stays_a_function_once_its_room_is_imported(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert ray_gen.export(run, tmp_path / name, formats=["safetensors"]).path == tmp_path / name


def test_the_command_prints_each_file_and_its_difference(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(run), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert re.search(r"^generator.onnx +12 kB  largest difference \d", done.stdout, re.MULTILINE)
    assert done.stdout.endswith(f"{tmp_path / 'out'}\n")
    for arguments, sentence in (
        (["--formats", "safetensors,onx"], "--formats: 'onx' is not one of safetensors, torch"),
        (["--formats", ""], "--formats: '' is not one of"),
    ):
        done = CliRunner().invoke(main, ["export", str(run), str(tmp_path / "x"), *arguments])
        assert done.exit_code == 2
        assert sentence in done.stderr
    done = CliRunner().invoke(main, ["export", "/no/run", str(tmp_path / "x")])
    assert done.exit_code == 2
    assert "/no/run: there is no such run" in done.stderr
    assert not (tmp_path / "x").exists()


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from click.testing import CliRunner
from ray_gen.cli.export import export
print(CliRunner().invoke(export, ["--help"]).output)
print([name for name in ("torch", "onnx", "ray", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "model.safetensors" in done.stdout
    assert done.stdout.rstrip().endswith("[]")
