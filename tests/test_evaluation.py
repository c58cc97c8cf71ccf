"""Evaluation of runs and pictures, after training and during it."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import ray_gen
from ray_gen.cli import main
from ray_gen.data import Split, Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.evaluator import Evaluator, subject_of
from ray_gen.evaluation.metrics import METRICS
from ray_gen.evaluation.request import Request
from ray_gen.evaluation.scores import Scores
from ray_gen.evaluation.subject import SampledImages, Subject
from ray_gen.evaluation.table import table
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.data import DataSettings, PixelFields
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.pipeline import experiment_of
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.state import State
from tests.helpers import ADAM, experiment, gan, trained, vae, weights
from tests.runs import saved

SOME = ("fid", "kid", "precision", "sliced_wasserstein", "nearest_neighbour")
TINY = {"kind": "custom", "target": "tests.evaluation.helpers:Tiny"}


def settings(**given: Any) -> Evaluation:
    return Evaluation.model_validate({"features": TINY, "kid_subset_size": 10, **given})


def model_of(this: Experiment, state: State) -> Subject:
    return subject_of(this, build_objective(this), state.ema, {"weights": "ema"})


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network."""

    def downloaded(url: str, field: str) -> Path:
        raise Refused(f"{field}: {url} could not be downloaded")

    monkeypatch.setattr("ray_gen.evaluation.extractors.inception.downloaded", downloaded)


@pytest.mark.parametrize("make", [vae, lambda *o: gan(*o, kind="dcgan")])
def test_a_run_that_evaluates_is_the_run_that_does_not(store_8, make) -> None:
    plain, _ = trained(make(), store_8)
    this = make("evaluation.every_images=100")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    evaluator = Evaluator(
        settings(metrics=(*SOME, "likelihood")[: 5 + (make is vae)]), store_8, "random", World()
    )
    reports = list(
        train(
            this,
            objective,
            state,
            store_8,
            World(),
            evaluate=lambda: evaluator.scores(model_of(this, state)).as_metrics(),
        )
    )
    for name, tensors in weights(plain).items():
        for key, value in tensors.items():
            assert torch.equal(weights(state)[name][key], value), (name, key)
    for key, value in plain.moments().items():
        assert torch.equal(state.moments()[key], value), key
    evaluated = [report for report in reports if "evaluation/fid" in report.metrics]
    assert [report.images for report in evaluated] == [120, 216, 312, 408, 480]
    assert all(report.save and report.evaluate for report in evaluated)
    assert len({report.metrics["evaluation/fid"] for report in evaluated}) == len(evaluated)
    assert (make is vae) == ("evaluation/log_likelihood_bound" in evaluated[0].metrics)


def test_samples_have_the_labels_of_the_reference(store_8) -> None:
    this = gan("objective.conditional=true")
    state, _ = trained(this, store_8)
    few = torch.tensor([3] * 50 + [7] * 22)
    store = replace(store_8, train=Split(store_8.train.images_NHWC, few))
    made: list[torch.Tensor] = []

    class Watched(type(build_objective(this))):  # type: ignore[misc]
        def sample(self, networks, latents, labels, noise):
            made.append(labels)
            return super().sample(networks, latents, labels, noise)

    model = model_of(this, state)
    model.objective.__class__ = Watched
    Evaluator(settings(metrics=["fid"], count=36), store, "random", World()).scores(model)
    drawn = torch.cat(made)[-36:]
    assert sorted(set(drawn.tolist())) == [3, 7]
    assert abs(int((drawn == 3).sum()) - 25) <= 1


def test_a_sample_does_not_depend_on_the_count_or_the_batch(store_8) -> None:
    this = gan(kind="dcgan")
    model = model_of(this, trained(this, store_8)[0])
    all_of_them = SampledImages(model, 50, None, 3).take(range(50))
    assert torch.equal(SampledImages(model, 9, None, 3).take([8, 4]), all_of_them[[8, 4]])
    assert not torch.equal(SampledImages(model, 50, None, 4).take(range(50)), all_of_them)


@pytest.mark.usefixtures("offline")
def test_without_weights_only_metrics_that_need_none_are_measured_and_the_reason_is_told(
    store_8,
) -> None:
    this = gan()
    model = model_of(this, trained(this, store_8)[0])
    scores = Evaluator(Evaluation(), store_8, "random", World()).scores(model)
    assert [score.name for score in scores] == ["sliced_wasserstein", "nearest_neighbour"]
    (why,) = scores.without
    assert "could not be downloaded" in why
    assert f"left out: {why}" in table([("run", scores)])


REFUSALS: list[tuple[Any, dict[str, Any], str]] = [
    (
        gan,
        {"metrics": ["likelihood"]},
        "evaluation.metrics: likelihood: the objective gan has no likelihood",
    ),
    (gan, {"metrics": ["fid"], "count": 73}, "evaluation.count: 73 .* there are 72 .*at most 72"),
    (gan, {"metrics": ["kid"], "kid_subset_size": 999}, "evaluation.kid_subset_size"),
    (
        gan,
        {"metrics": ["fid"], "features": {"kind": "inception", "weights": "/nowhere/a.pth"}},
        "evaluation.features.weights: there is no file /nowhere/a.pth; .*evaluation.metrics to "
        "sliced_wasserstein and nearest_neighbour only",
    ),
    (
        lambda: vae("objective.kind=autoencoder"),
        {"metrics": ["fid"]},
        "evaluation.metrics: fid: the objective autoencoder has no prior",
    ),
    (
        gan,
        {"metrics": ["fid"], "features": {"kind": "custom", "target": "no.such.module:Name"}},
        r"evaluation\.features\.target: no\.such\.module:Name cannot be imported",
    ),
    (
        gan,
        {"metrics": ["fid"], "features": {"kind": "custom", "target": "tests.helpers:Nothing"}},
        r"evaluation\.features\.target: the module tests\.helpers has no Nothing",
    ),
]


@pytest.mark.parametrize(("make", "given", "sentence"), REFUSALS)
def test_what_cannot_be_measured_is_refused(store_8, make, given, sentence: str) -> None:
    this = make()
    state, _ = trained(this, store_8)
    with pytest.raises(Refused, match=sentence):
        Evaluator(settings(**given), store_8, "random", World()).scores(model_of(this, state))


@pytest.mark.parametrize("metrics", ["auto", ["kid"]])
def test_kid_takes_smaller_subsets_of_small_sets_and_says_so(store_8, metrics: Any) -> None:
    this = gan()
    model = model_of(this, trained(this, store_8)[0])

    def kid(**given: Any) -> dict[str, Any]:
        asked = settings(metrics=metrics, count=20, **given)
        return dict(Evaluator(asked, store_8, "random", World()).scores(model)["kid"].protocol)

    small = kid(kid_subset_size=1000)  # the default
    assert small["subset_size"] == 20
    assert small["warning"].startswith("subsets of 20 images instead of 1,000")
    enough = kid(kid_subset_size=20)
    assert enough["subset_size"] == 20 and "warning" not in enough


def test_a_reference_without_images_is_refused(store_8) -> None:
    this = gan()
    state, _ = trained(this, store_8)
    nothing = Split(store_8.held_out.images_NHWC[:0], None)
    evaluator = Evaluator(
        settings(metrics=["fid"], reference="held_out"),
        replace(store_8, held_out=nothing),
        "random",
        World(),
    )
    with pytest.raises(Refused, match=r"evaluation\.reference: random has no held_out images"):
        evaluator.scores(model_of(this, state))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("evaluation.metrics=[fidd]", r"evaluation\.metrics: .*'fidd'; did you mean fid\?"),
        ("evaluation.every_images=0", r"evaluation\.every_images"),
        *(
            (
                f"evaluation.features={{kind: custom, target: '{target}'}}",
                rf"evaluation\.features\.target: '{target}' names no class; write its module",
            )
            for target in ("my_features", "my-module:Name", "a..b:Name", ":Name", "a:b:c")
        ),
        ("checkpoints.best={metric: fid, mode: min}", r"checkpoints\.best\.metric: .*every_images"),
    ],
)
def test_settings_are_checked_at_once(override: str, sentence: str) -> None:
    with pytest.raises(ExperimentError, match=sentence):
        gan(override)


def test_the_best_checkpoint_may_follow_a_metric() -> None:
    this = gan("evaluation.every_images=100", "checkpoints.best={metric: fid, mode: min}")
    assert this.checkpoints.best is not None


def test_a_request_survives_json() -> None:
    this = experiment(
        {
            "networks": {"generator": {"kind": "mlp"}, "discriminator": {"kind": "mlp"}},
            "objective": {"kind": "gan"},
            "optimizers": {"generator": ADAM, "discriminator": ADAM},
            "training": {"images": 8, "global_batch_size": 8},
        }
    )
    request = Request("/runs/a", None, this.data, settings(metrics=["fid"], count=3))
    assert Request.from_json(request.to_json()) == request


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on the built-in digits. An evaluation opens them again."""
    this = gan("training.images=48", f"evaluation.features={json.dumps(TINY)}")
    from ray_gen.training.sources import open_data

    store: Store = open_data(this)
    return saved(this, store, tmp_path_factory.mktemp("runs") / "a" / "checkpoint_000000000048")


def test_one_call_evaluates_a_run(run: Path) -> None:
    scores = ray_gen.evaluate(run, metrics=["fid", "nearest_neighbour"], count=200)
    assert scores["fid"].value > 0
    assert scores["fid"].protocol["generated"]["images seen"] == 48
    assert scores["fid"].protocol["reference"]["images"] == 200
    again = Scores.from_json(json.loads(json.dumps(scores.as_json())))
    assert again["fid"].value == scores["fid"].value
    with pytest.raises(KeyError, match="there are fid, nearest_neighbour"):
        scores["kid"]


def test_the_command_prints_a_table_and_writes_every_protocol(run: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(run), "--metrics", "fid,sliced_wasserstein", "--count", "100"]
    ended = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "found.json")])
    assert ended.exit_code == 0, ended.output
    assert "| fid ↓" in ended.output and "| sliced_wasserstein ↓ (10^-3)" in ended.output
    assert "biased" in ended.output  # far below 10,000 images
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert [score["name"] for score in found["scores"]] == ["fid", "sliced_wasserstein"]


def test_the_split_can_be_named(run: Path) -> None:
    arguments = ["evaluate", str(run), "--metrics", "sliced_wasserstein", "--count", "50"]
    ended = CliRunner().invoke(main, [*arguments, "--split", "held_out"])
    assert ended.exit_code == 0, ended.output
    assert "split held_out" in ended.output


def test_a_bad_path_is_refused_before_anything_is_measured(run: Path, tmp_path: Path) -> None:
    for arguments in ([str(run), "/no/such/run"], [str(run), "--output", str(tmp_path)]):
        ended = CliRunner().invoke(main, ["evaluate", *arguments])
        assert ended.exit_code == 2, ended.output
        assert "images" not in ended.output
    ended = CliRunner().invoke(
        main,
        [
            "evaluate",
            str(run),
            "--metrics",
            "sliced_wasserstein",
            "--count",
            "50",
            "--output",
            str(tmp_path / "no" / "such" / "x.json"),
        ],
    )
    assert ended.exit_code == 2, ended.output
    assert "cannot be written" in ended.output


def _pictures(folder: Path, count: int, seed: int) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        pixels = torch.randint(0, 256, (12, 12, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


def test_pictures_of_any_tool_are_compared(tmp_path: Path) -> None:
    _pictures(tmp_path / "made", 30, 1)
    _pictures(tmp_path / "real", 30, 2)
    arguments = ["evaluate", "--generated", str(tmp_path / "made"), "--count", "30"]
    ended = CliRunner().invoke(
        main,
        [
            *arguments,
            *("--reference", str(tmp_path / "real"), "--metrics", "fid,sliced_wasserstein"),
            *("--features", "custom:tests.evaluation.helpers:Tiny"),
        ],
    )
    assert ended.exit_code == 0, ended.output
    assert f"folder:{tmp_path}/made" in ended.output
    with zipfile.ZipFile(tmp_path / "real.zip", "w") as archive:
        for file in (tmp_path / "real").iterdir():
            archive.write(file, file.name)
    same = ray_gen.evaluate(
        generated=str(tmp_path / "real"),
        reference=str(tmp_path / "real.zip"),
        features=TINY,
        metrics=["fid", "sliced_wasserstein"],
    )
    assert abs(same["fid"].value) < 1e-6
    assert same["sliced_wasserstein"].value == 0


BAD: list[tuple[list[str], str]] = [
    (["/no/such/run"], "/no/such/run"),
    ([], "name either a run, or pictures"),
    (["--generated", "/tmp"], "--reference: pictures are compared with real images"),
    (["RUN", "--metrics", "fdi"], " --metrics: there is no metric 'fdi'; did you mean fid"),
    (["RUN", "--metrics", "elbo"], " --metrics: elbo is part of likelihood; set --metrics to"),
    (["RUN", "--count", "5000"], " --count: 5000 images were asked for"),
    (["RUN", "--split", "held_out", "--count", "1001"], " --count: 1001 images were asked for"),
    (["RUN", "--reference", "/no/such/folder"], " --reference: /no/such/folder does not exist"),
    (["--generated", "/no/such/folder", "--reference", "mnist5k"],
     " --generated: /no/such/folder does not exist"),
    (["RUN", "--features", "torchvision:resnet"], " --features: torchvision has no"),
    (["RUN", "--features", "torchvision"], " --features: 'torchvision' is incomplete"),
    (["RUN", "--features", "inception:v3"], " --features: 'inception:v3' is incomplete or has too"),
    (["RUN", "--features", "vgg"], " --features: 'vgg' is not one of inception, torchvision, run"),
    (["RUN", "--features", "custom:Name"], " --features: 'Name' names no class; write its module"),
    (["RUN", "--features", "custom:a:B", "--features-weights", "w"], " --features-weights: custom"),
    (["RUN", "--features", "inception", "--features-weights", "/no/w.pth", "--metrics", "fid"],
     " --features-weights: there is no file /no/w.pth"),
    (["RUN", "--metrics", "kid", "--kid-subset-size", "3000", "--count", "50"],
     " --kid-subset-size: 3000 images cannot be drawn"),
    (["RUN", "--image-size", "32"], " --image-size: a reference always gets the run's own"),
    (["RUN", "--reference", "mnist5k", "--channels", "3"], " --channels: a reference always gets"),
    (["RUN", "--on-corrupt", "skip"], " --on-corrupt: the run's own data is read"),
    (["RUN", "--image-size", "0"], "--image-size': '0' is neither a number of pixels nor"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_input_ends_in_a_sentence(run: Path, arguments: list[str], sentence: str) -> None:
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    ended = CliRunner().invoke(main, ["evaluate", *given])
    assert ended.exit_code == 2, ended.output
    assert sentence in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(("make", "given", "sentence"), REFUSALS)
def test_what_cannot_be_measured_is_refused_before_training(store_8, make, given, sentence) -> None:
    this = make()
    state = State.build(this, build_objective(this), World())
    with pytest.raises(Refused, match=sentence):
        evaluator = Evaluator(settings(**given), store_8, "random", World())
        evaluator.checked(model_of(this, state))


def test_a_check_measures_nothing(store_8) -> None:
    this = vae()
    state = State.build(this, build_objective(this), World())
    evaluator = Evaluator(settings(metrics=(*SOME, "likelihood")), store_8, "random", World())
    subject = model_of(this, state)
    made: list[int] = []
    sample = subject.objective.sample

    def counted(networks, latents, labels, noise):
        made.append(len(latents["z"]))
        return sample(networks, latents, labels, noise)

    subject.objective.sample = counted  # type: ignore[method-assign]
    assert evaluator.checked(subject).names == (*SOME, "likelihood")
    assert made == [1]  # one image, for the shape


def _of_a_folder(folder: Path) -> Path:
    """A run on 12 x 12 pictures in `data`, resized to 8 x 8."""
    from ray_gen.training.sources import class_names, open_data

    _pictures(folder / "data", 40, 1)
    changes = [f"data=folder:{folder}/data", "data.channels=3", "data.image_size=8"]
    given = Experiment.from_yaml(gan().to_yaml(), changes)
    store = open_data(given)
    this = given.resolved(store.image_shape, class_names(store), store.digest)
    return saved(this, store, folder / "run" / "checkpoint_000000000480")


def test_data_that_have_moved_are_named_and_must_be_the_same(tmp_path: Path) -> None:
    run = _of_a_folder(tmp_path)
    settings: dict[str, Any] = {"metrics": ["sliced_wasserstein"], "count": 4, "split": "train"}
    before = ray_gen.evaluate(run, **settings)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(Refused, match=r"data\.path: .*/data does not exist"):
        ray_gen.evaluate(run, **settings)
    after = ray_gen.evaluate(run, data=f"folder:{tmp_path / 'moved'}", **settings)
    assert [score.value for score in after] == [score.value for score in before]
    _pictures(tmp_path / "others", 12, seed=5)
    with pytest.raises(Refused, match=r"is not what .* was trained on"):
        ray_gen.evaluate(run, data=f"folder:{tmp_path / 'others'}", **settings)
    with pytest.raises(Refused, match=r"--data: .*leave it out"):
        ray_gen.evaluate(run, data=f"folder:{tmp_path / 'moved'}", reference="mnist5k", **settings)


def test_data_that_changed_since_is_refused(tmp_path: Path) -> None:
    made = _of_a_folder(tmp_path)
    asked = {"metrics": ["sliced_wasserstein"], "count": 10}
    assert len(ray_gen.evaluate(made, **asked)) == 1
    (tmp_path / "data" / "0.png").unlink()
    with pytest.raises(Refused, match=r"data: folder:.* is not what .* was trained on"):
        ray_gen.evaluate(made, **asked)
    scores = ray_gen.evaluate(made, reference=str(tmp_path / "data"), count=10)
    assert any("not what the run was trained on" in why for why in scores.without)


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        ("{metric: likelihood, mode: max}", "no held-out score 'likelihood'"),
        (
            "{metric: fid, mode: max}",
            r"checkpoints\.best\.mode: a lower fid is better; use min, not max",
        ),
    ],
)
def test_a_best_checkpoint_by_an_unknown_score_or_mode_is_refused(best: str, sentence: str) -> None:
    with pytest.raises(ExperimentError, match=sentence):
        gan("evaluation.every_images=100", f"checkpoints.best={best}")


def test_the_best_checkpoint_cannot_follow_an_evaluation_beside_the_training() -> None:
    with pytest.raises(ExperimentError, match=r"evaluation\.placement=inline"):
        gan(
            "evaluation.every_images=100",
            "evaluation.placement=beside",
            "checkpoints.best={metric: fid, mode: min}",
        )


def test_every_metric_can_be_asked_for() -> None:
    assert settings(metrics=tuple(METRICS)).metrics


def test_a_likelihood_is_measured_on_count_held_out_images_or_on_all(store_8) -> None:
    this = vae()
    model = model_of(this, trained(this, store_8)[0])

    def seen(count: int | None) -> dict[str, Any]:
        given = settings(metrics=["likelihood"], count=count, importance_samples=2)
        return dict(Evaluator(given, store_8, "random", World()).scores(model)["elbo"].protocol)

    assert (seen(10)["images"], seen(10)["of"]) == (10, 24)
    assert (
        seen(None)["images"] == seen(50)["images"] == 24
    )  # samples can be compared with 50, but only 24 are held out


@pytest.mark.usefixtures("offline")
def test_auto_says_why_a_vae_has_no_likelihood_and_says_nothing_for_a_gan(store_8) -> None:
    store = replace(store_8, held_out=Split(store_8.held_out.images_NHWC[:0], None))
    for this, told in ((vae(), ["likelihood: it is measured on held-out images"]), (gan(), [])):
        model = model_of(this, trained(this, store_8)[0])
        evaluator = Evaluator(Evaluation(count=20), store, "photos", World(), trained_on=False)
        for _ in range(2):  # a run calls it many times, and each time it says so once
            without = evaluator.scores(model).without
        assert [why[: len(told[0])] for why in without if "likelihood" in why] == told
    with pytest.raises(Refused, match=r"held-out images, and photos has none; name other"):
        Evaluator(
            settings(metrics=["likelihood"]), store, "photos", World(), trained_on=False
        ).scores(model_of(vae(), trained(vae(), store_8)[0]))


def test_auto_says_why_an_autoencoder_has_no_samples(store_8) -> None:
    this = vae("objective.kind=autoencoder")
    model = model_of(this, trained(this, store_8)[0])
    scores = Evaluator(settings(), store_8, "random", World()).scores(model)
    assert {"psnr", "ssim", "latent_std"} <= {score.name for score in scores}
    assert not {"fid", "sliced_wasserstein"} & {score.name for score in scores}
    assert "the objective autoencoder has no prior to sample from" in scores.without[0]


def test_an_exported_model_has_the_scores_of_its_run(run: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "metrics": ["fid", "nearest_neighbour"],
        "count": 100,
        "features": TINY,
    }
    for weights_of in ("ema", "raw"):
        folder = tmp_path / weights_of
        ray_gen.export(run, folder, weights=weights_of, formats=["safetensors"])
        ours = ray_gen.evaluate(folder, **asked)
        theirs = ray_gen.evaluate(run, **asked, weights=weights_of)
        assert [score.value for score in ours] == [score.value for score in theirs]
        described = ours["fid"].protocol["generated"]
        assert (described["weights"], described["images seen"]) == (weights_of, 48)
    arguments = ["--metrics", "sliced_wasserstein", "--count", "50"]
    ended = CliRunner().invoke(main, ["evaluate", str(run), str(tmp_path / "ema"), *arguments])
    assert ended.exit_code == 0, ended.output
    assert " ema |" in ended.output


def test_an_export_finds_its_data_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds only the name of the folder, not the path."""
    run, folder = _of_a_folder(tmp_path), tmp_path / "exported"
    ray_gen.export(run, folder, formats=["safetensors"])
    asked: dict[str, Any] = {"metrics": ["sliced_wasserstein", "nearest_neighbour"], "count": 10}
    monkeypatch.chdir("/")
    with pytest.raises(Refused, match=r"--reference: .* trained on folder:data, and an export "):
        ray_gen.evaluate(folder, **asked)
    named = ray_gen.evaluate(folder, reference=str(tmp_path / "data"), count=10)
    assert named["sliced_wasserstein"].value > 0
    monkeypatch.chdir(tmp_path)
    found = ray_gen.evaluate(folder, **asked)
    assert [s.value for s in found] == [s.value for s in ray_gen.evaluate(run, **asked)]
    (tmp_path / "data" / "0.png").unlink()
    with pytest.raises(Refused, match=r"data: folder:.* is not what .* was trained on"):
        ray_gen.evaluate(folder, **asked)


def test_pictures_of_all_sizes_and_modes_get_one_size_and_mode(tmp_path: Path) -> None:
    _pictures(tmp_path / "made", 12, 1)
    _pictures(tmp_path / "real", 12, 2)
    Image.new("L", (20, 14)).save(tmp_path / "real" / "0.png")
    arguments = [
        "evaluate",
        "--metrics",
        "sliced_wasserstein",
        "--generated",
        str(tmp_path / "made"),
    ]
    arguments += ["--reference", str(tmp_path / "real")]

    def ended(*more: str) -> str:
        done = CliRunner().invoke(main, [*arguments, *more])
        assert done.exit_code == (0 if "|" in done.stdout else 2), done.output
        return done.output

    assert "--image-size: images differ in size" in ended()
    assert " made |" in ended("--image-size", "10")  # the reference has colour: not all is grey
    (tmp_path / "grey").mkdir()
    for number in range(12):
        Image.new("L", (20, 14), number).save(tmp_path / "grey" / f"{number}.png")
    assert "have 3 and the reference images 1 channels; set --channels to 3" in ended(
        "--image-size", "10", "--reference", str(tmp_path / "grey")
    )
    assert " made |" in ended("--image-size", "10x9", "--channels", "3")
    (tmp_path / "real" / "b.png").write_bytes(b"no picture")
    brought = ("--image-size", "10", "--channels", "1")
    assert "b.png cannot be decoded" in (said := ended(*brought))
    assert "set --on-corrupt=skip" in said
    assert " made |" in ended(*brought, "--on-corrupt", "skip")
    scores = ray_gen.evaluate(
        generated=str(tmp_path / "made"),
        reference=str(tmp_path / "real"),
        image_size=(10, 9),
        channels=1,
        on_corrupt="skip",
        metrics=["sliced_wasserstein"],
    )
    assert scores["sliced_wasserstein"].protocol["reference"]["images"] == 12
    for wrong in ({"image_size": 0}, {"channels": 17}, {"on_corrupt": "ignore"}):
        with pytest.raises(Refused, match=rf"data\.{next(iter(wrong))}: "):
            ray_gen.evaluate(generated=str(tmp_path / "made"), reference="mnist5k", **wrong)


def test_a_size_other_than_the_references_is_refused_in_the_options_words(tmp_path: Path) -> None:
    _pictures(tmp_path / "made", 5, 1)
    (tmp_path / "real").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 14)).save(tmp_path / "real" / f"{number}.png")
    arguments = ["--generated", str(tmp_path / "made"), "--reference", str(tmp_path / "real")]
    ended = CliRunner().invoke(main, ["evaluate", *arguments])
    assert ended.exit_code == 2, ended.output
    assert (
        "12x12, the reference images 14x20 (height x width); set --image-size to 12" in ended.output
    )


CHANGED: dict[str, Any] = {
    "image_size": (8, 8),
    "random_crop_from": 9,
    "center_crop": 10,
    "channels": 4,
    "opacity": True,
    "bits": 16,
    "value_range": (0.0, 4095.0),
    "fit": "pad",
    "pad": 7,
    "max_pixels": 1000,
    "jpeg_scaling": True,
    "rules": 1,
}
"""Another value than the default, for every field that says which pixels come of an image."""


def _with_pixels(run: Path, folder: Path, **pixels: Any) -> Path:
    """A copy of a run whose data have these fields."""
    shutil.copytree(run, folder)
    file = folder / "experiment.yaml"
    this = Experiment.from_yaml(file.read_text())
    changed = this.with_fields(**{f"data__{name}": value for name, value in pixels.items()})
    file.write_text(changed.to_yaml())
    return folder


def test_a_reference_gets_every_field_of_pixels_of_the_run(run: Path, tmp_path: Path) -> None:
    assert {*CHANGED} == {*PixelFields.model_fields}
    first = {"rules": 1, "image_size": (8, 8), "channels": 1, "center_crop": 10}
    second = {**CHANGED, "rules": 2}
    for number, pixels in enumerate((first, second)):
        changed = _with_pixels(run, tmp_path / str(number), **pixels)
        (tmp_path / "real").mkdir(exist_ok=True)
        reference = Request.of(changed, reference=str(tmp_path / "real")).reference
        assert reference is not None
        assert reference.pixel_fields() == experiment_of(changed).data.pixel_fields()
        assert {name: getattr(reference, name) for name in pixels} == pixels


def test_every_field_of_all_data_is_one_of_pixels_or_is_known_to_be_none() -> None:
    assert {*DataSettings.model_fields} - {*PixelFields.model_fields} == {
        *("flip", "held_out_fraction", "on_corrupt", "placement"),
        *("classes", "condition_statistics", "digest"),
    }


MOVED: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("folder:A", {"splits": "none", "frames": "all"}, "zip:B.zip", {}),
    ("folder:A", {"labels": "folders", "label_column": "kind"}, "tar:B.tar", {}),
    ("zip:A.zip", {"splits": {"train": "a", "held_out": "b"}}, "folder:B", {}),
    ("list:A.txt", {"frames": "all"}, "folder:B", {}),
    ("parquet:A", {"image_column": "x", "label_column": "y", "labels": "none"}, "arrow:B", {}),
    ("folder:A", {"labels": "none"}, "parquet:B", {}),
    # What `data convert` writes has a column of its own for labels.
    ("folder:A", {"labels": "folders", "label_column": "kind"}, "parquet:B",
     {"labels": "auto", "label_column": None}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "fields", "after", "others"), MOVED)
def test_data_that_have_moved_keep_the_fields_that_both_kinds_have(
    run: Path, tmp_path: Path, before: str, fields: dict[str, Any], after: str, others: Any
) -> None:
    shutil.copytree(run, tmp_path / "run")
    kind, _, path = before.partition(":")
    file = tmp_path / "run" / "experiment.yaml"
    this = experiment_of(tmp_path / "run")
    data = {"kind": kind, "path": path, **fields, "flip": True, "digest": "0" * 32, "rules": 2}
    file.write_text(this.with_fields(data={**data, "classes": list("ab")}).to_yaml())
    moved = Request.of(tmp_path / "run", data=after).reference
    assert moved is not None and moved.short_form.startswith(after.partition(":")[0])
    told = moved.model_dump(mode="json")
    assert told.items() >= {**fields, **others, "flip": True, "digest": "0" * 32}.items()
    assert told["path"].endswith(f"/{after.partition(':')[2]}") and moved.classes == ("a", "b")


@pytest.mark.parametrize("option", ["--data", "--reference"])
def test_what_a_run_of_the_first_rules_cannot_read_is_one_sentence(
    run: Path, tmp_path: Path, option: str
) -> None:
    first = _with_pixels(run, tmp_path / "first", rules=1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    arguments = ["evaluate", str(first), option, f"zip:{tmp_path}/a.zip"]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 2 and isinstance(ended.exception, SystemExit), ended.output
    told = ended.output.strip().splitlines()[-1]
    assert f"{option}: zip:{tmp_path}/a.zip cannot be read as the run reads its own images" in told


def test_the_checkpoint_that_is_taken_instead_of_the_newest_is_told(
    run: Path, tmp_path: Path
) -> None:
    whole, damaged, cut = tmp_path / "whole", tmp_path / "damaged", tmp_path / "cut"
    for folder, names in ((whole, (run.name, "best")), (damaged, (run.name, "best"))):
        for name in names:
            shutil.copytree(run, folder / name)
    shutil.copytree(damaged, cut)
    (cut / "best").rename(cut / "checkpoint_000000000024")
    for folder in (damaged, cut):
        (folder / run.name / "manifest.json").unlink()

    def told(*folders: Path) -> str:
        few = ["--metrics", "sliced_wasserstein", "--count", "20"]
        ended = CliRunner().invoke(main, ["evaluate", *map(str, folders), *few])
        assert ended.exit_code == 0, ended.output
        return ended.stderr

    assert "not whole" not in told(whole, run)
    sentence = f"; {run.name} has no manifest.json, so it is not whole)"
    said = told(damaged, cut)
    assert f"damaged: checkpoint of 48 images (best{sentence}" in said
    assert f"cut: checkpoint of 48 images (newest{sentence}" in said
    shutil.rmtree(damaged / run.name)
    assert "damaged: checkpoint of 48 images (best)" in told(damaged)


def test_the_progress_of_several_runs_names_the_run(run: Path, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(run, tmp_path / name)
    few = ["--metrics", "sliced_wasserstein", "--count", "20"]
    alone = CliRunner().invoke(main, ["evaluate", str(tmp_path / "a"), *few])
    assert "generated images" in alone.stderr.splitlines()
    ended = CliRunner().invoke(main, ["evaluate", *(str(tmp_path / n) for n in "ab"), *few])
    lines = ended.stderr.splitlines()
    assert {"a: generated images", "b: generated images"} <= {*lines}


def test_paths_below_the_current_folder_and_the_storage_are_short(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "runs" / "a")
    shutil.copytree(run, tmp_path / "here" / "b")
    _pictures(tmp_path / "here" / "real", 20, 1)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RAY_GEN_STORAGE", str(tmp_path / "runs"))
    few = ["--metrics", "sliced_wasserstein", "--count", "20"]
    ended = CliRunner().invoke(main, ["evaluate", "b", str(tmp_path / "runs" / "a"), *few])
    assert "- b: generated run b\n" in ended.stdout and "- a: generated run a\n" in ended.stdout
    few = ["--generated", "real", "--reference", "real", *few]
    ended = CliRunner().invoke(main, ["evaluate", *few])
    assert "generated (data folder:real, " in ended.stdout


def test_what_cannot_be_measured_is_refused_before_ray_starts(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray_gen.launch.evaluate_workers.connected", started)
    for given, sentence in (
        ({"metrics": ["fid"], "count": 5000}, r"evaluation\.count: 5000 images"),
        ({"features": {"kind": "run", "run": "/no/run"}}, r"evaluation\.features\.run: /no/run"),
        ({"metrics": ["kid"], "kid_subset_size": 999, "count": 9}, r"kid_subset_size: 999 images"),
        ({"reference": "/no/such/folder"}, r"--reference: /no/such/folder does not exist"),
    ):
        with pytest.raises(Refused, match=sentence):
            ray_gen.evaluate(run, workers=2, **given)


@pytest.fixture
def halfway(run: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """Arguments with three runs and a file for the scores. The second run is damaged."""
    runs = [tmp_path / name for name in "abc"]
    for path in runs:
        shutil.copytree(run, path)
    (runs[1] / "ema.safetensors").write_bytes(b"")
    few = ["--metrics", "sliced_wasserstein", "--count", "20"]
    output = tmp_path / "found.json"
    return ["evaluate", *map(str, runs), *few, "--output", str(output)], output


def test_a_run_that_fails_does_not_stop_the_others(halfway: tuple[list[str], Path]) -> None:
    arguments, output = halfway
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 1
    assert " a |" in ended.stdout and " c |" in ended.stdout and " b |" not in ended.stdout
    assert f"failed: {arguments[2]}: " in ended.stderr and "has 0 bytes" in ended.stderr
    assert "1 of 3 runs could not be measured" in ended.stderr
    told = {Path(entry["of"]).name: entry for entry in json.loads(output.read_text())}
    assert "has 0 bytes" in told["b"]["failed"]
    assert [score["name"] for score in told["c"]["scores"]] == ["sliced_wasserstein"]


def test_after_an_interruption_the_measured_scores_are_kept(
    halfway: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_gen.launch import evaluate as module

    measure = module.measure

    def interrupted(request: Request, *more: Any) -> Scores:
        if str(request.run).endswith("c"):
            raise KeyboardInterrupt
        return measure(request, *more)

    monkeypatch.setattr(module, "measure", interrupted)
    arguments, output = halfway
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 130
    assert " a |" in ended.stdout
    assert len(json.loads(output.read_text())) == 2


def test_the_reason_for_a_metric_left_out_names_options(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def downloaded(url: str, field: str) -> Path:
        raise Refused(f"{field}: {url}; ask evaluation.metrics for others")

    monkeypatch.setattr("ray_gen.evaluation.extractors.inception.downloaded", downloaded)
    arguments = ["evaluate", str(run), "--features", "inception", "--count", "20"]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 0, ended.output
    assert "--features-weights: http" in ended.stdout and "ask --metrics for" in ended.stdout
