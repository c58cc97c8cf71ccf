"""Real Ray: what a user's command does, and what it survives. A fit of Ray Train starts some eight
processes. Their imports take 10 to 15 s of CPU time, so the tests share few fits."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from ray_gen.launch.processes import Process, start_of, with_descendants
from tests.helpers import PATIENCE_SECONDS, started, wait_until
from tests.integration.conftest import CORES
from tests.integration.test_signals import RAY_GEN, hiding

pytestmark = pytest.mark.ray

# Long enough to be hit in its middle, short enough to wait for.
OVERRIDES = (
    "training.images=60000",
    "training.report_every_images=5000",
    "training.checkpoint_every_images=10000",
    "checkpoints.keep=100",
    "networks.encoder.hidden_sizes=[32]",
    "networks.decoder.hidden_sizes=[32]",
    "workers.cpus=1",
)
TWO_WORKERS = "workers.count=2"


def recipe(*overrides: str):
    from ray_gen.recipes import recipe

    return recipe("vae-mnist5k", *OVERRIDES, *overrides)


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def digits(cluster, tmp_path_factory) -> list[str]:
    """The built-in digits as Parquet that is streamed."""
    from ray_gen.experiment import data_settings
    from ray_gen.launch.convert import convert

    to = tmp_path_factory.mktemp("data") / "digits"
    pixels = data_settings("mnist5k").model_copy(update={"image_size": (28, 28)})
    manifest = convert(pixels, str(to), shard_images=500, group_images=100)
    assert manifest["images"] == {"train": 4000, "validation": 1000}
    return [f"data=parquet:{to}", "data.placement=stream"]


@pytest.fixture(scope="module")
def undisturbed(digits: list[str], storage: Path) -> Path:
    """A whole run of two workers on streamed images."""
    import ray_gen

    run = ray_gen.train(recipe(TWO_WORKERS, *digits), storage=str(storage), name="a")
    assert run.stop == "all images seen"
    return Path(run.location)


def evaluating(placement: str) -> list[str]:
    """Metrics that need no weights, a few images each."""
    return [
        "evaluation.every_images=20000",
        "evaluation.metrics=[sliced_wasserstein,likelihood]",
        "evaluation.count=100",
        "evaluation.importance_samples=5",
        f"evaluation.placement={placement}",
    ]


@pytest.mark.slow
def test_workers_evaluate_together_what_one_process_does(undisturbed: Path) -> None:
    import ray_gen

    asked = {"metrics": ["sliced_wasserstein", "likelihood"], "count": 200, "importance_samples": 5}
    one = ray_gen.evaluate(undisturbed, **asked)
    two = ray_gen.evaluate(undisturbed, workers=2, **asked)
    assert [score.name for score in two] == [score.name for score in one]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-6), ours.name


def final(run: Path) -> dict:
    """Every tensor of the last checkpoint."""
    newest = sorted(run.glob("checkpoint_0*"))[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    tensors = {}
    for file in newest.glob("*.safetensors"):
        tensors |= {f"{file.name}/{key}": value for key, value in load_file(file).items()}
    return {"step": manifest["step"], **tensors}


def same(ours: dict, theirs: dict) -> bool:
    """Bit for bit."""
    if ours.keys() != theirs.keys() or ours["step"] != theirs["step"]:
        return False
    return all((ours[key] == theirs[key]).all() for key in ours if key != "step")


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def ours_named(title: str, root: int) -> list[int]:
    """Descendants of a process whose title holds a text."""
    named = []
    for pid in descendants(root):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.encode() in line:
            named.append(pid)
    return named


def wait_for_images(run: Path, images: int) -> None:
    """Until a checkpoint of so many images is committed."""

    def is_committed() -> bool:
        found = sorted(run.glob("checkpoint_*/manifest.json"))
        return bool(found) and int(found[-1].parent.name.partition("_")[2]) >= images

    wait_until(is_committed, f"a checkpoint of {images} images in {run}")


def test_the_run_folder_is_complete(undisturbed: Path) -> None:
    names = {entry.name for entry in undisturbed.iterdir()}
    assert {"experiment.yaml", "environment.json", "metrics.jsonl", "samples", "best"} <= names
    assert not {"writer.json", "stop"} & names
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == sorted(line["images"] for line in lines)
    assert len(lines) == 12
    assert list((undisturbed / "tensorboard").glob("events*"))
    assert (undisturbed / "samples" / "real.png").exists()
    environment = json.loads((undisturbed / "environment.json").read_text())
    assert environment["workers"] == 2
    scores = [line["held_out/elbo"] for line in lines if "held_out/elbo" in line]
    best = json.loads((undisturbed / "best" / "manifest.json").read_text())
    assert best["metrics"]["held_out/elbo"] == max(scores)


def test_two_workers_trained_what_one_process_trains(undisturbed: Path, tmp_path: Path) -> None:
    from ray_gen.experiment import Experiment
    from ray_gen.launch.worker import reports
    from ray_gen.storage import Folder

    this = Experiment.from_yaml((undisturbed / "experiment.yaml").read_text())
    alone = reports(this, Folder(str(tmp_path)), torch.device("cpu"))
    first, _ = next(alone)
    alone.close()
    # Equal up to rounding: 1e-8 in the first 40 steps. Training amplifies it step by step, so later
    # reports say less; tests/test_invariance.py has the weights, in float64.
    two = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[0])
    assert first.images == two["images"]
    for loss in ("loss/reconstruction", "loss/kl"):
        assert first.metrics[loss] == pytest.approx(two[loss], rel=1e-5)


def test_killed_processes_change_nothing(
    undisturbed: Path, storage: Path, digits: list[str]
) -> None:
    """A worker, and later Ray Train's controller."""
    import ray

    import ray_gen

    killed: list[str] = []

    def kill() -> None:
        for title, images in (("RayTrainWorker", 20_000), ("TrainController", 40_000)):
            wait_for_images(storage / "killed", images)
            os.kill(ours_named(title, os.getpid())[-1], signal.SIGKILL)
            killed.append(title)

    thread = threading.Thread(target=kill)
    thread.start()
    run = ray_gen.train(recipe(TWO_WORKERS, *digits), storage=str(storage), name="killed")
    thread.join()
    assert killed == ["RayTrainWorker", "TrainController"]
    # Without a dashboard Ray 2.60 keeps what the workers of a killed controller had.
    wait_until(lambda: ray.available_resources().get("CPU") == CORES, "the cores")
    assert same(final(Path(run.location)), final(undisturbed))
    images = [json.loads(line)["images"] for line in (storage / "killed/metrics.jsonl").open()]
    assert images == sorted(set(images)), "reports beyond the checkpoint were not cut"


@pytest.mark.slow
def test_a_signal_to_all_processes_saves_and_a_second_command_goes_on(
    undisturbed: Path, storage: Path, digits: list[str], apart: dict[str, str], tmp_path: Path
) -> None:
    """With a Ray of its own, then on a cluster; with both ways to evaluate, which change nothing;
    with other numbers of images and of checkpoints to keep. In a working directory whose files have
    the names of modules."""
    from ray_gen.cli import main

    def command(*more: str) -> list[str]:
        given = ["train", "vae-mnist5k", *OVERRIDES, TWO_WORKERS, *digits, *more]
        return [*given, "--storage", str(storage), "--name", "interrupted"]

    first = command("training.images=90000", *evaluating("inline"))
    here = hiding(tmp_path / "here")
    process = started([str(RAY_GEN), *first], env=apart, cwd=here, start_new_session=True)
    wait_for_images(storage / "interrupted", 20_000)
    processes = with_descendants([Process(process.pid, start_of(process.pid) or "")])
    for one in processes:
        os.kill(one.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert len(processes) > 10 and not any(one.lives for one in processes)
    assert "saving and stopping" in err
    assert "asked to stop" in out
    stopped = 128 * final(storage / "interrupted")["step"]
    assert stopped < 60_000

    done = CliRunner().invoke(main, command("checkpoints.keep=2", *evaluating("beside")))
    assert done.exit_code == 0, done.output
    assert "Traceback" not in done.stderr
    assert same(final(storage / "interrupted"), final(undisturbed))
    assert len(list((storage / "interrupted").glob("checkpoint_0*"))) == 2

    found = {
        int(file.stem.removeprefix("images_")): json.loads(file.read_text())
        for file in (storage / "interrupted" / "evaluations").glob("*.json")
    }
    assert {20096, 60032} <= found.keys()
    for evaluation in found.values():
        names = [score["name"] for score in evaluation["scores"]]
        assert names[0] == "sliced_wasserstein"
        assert "log_likelihood_bound" in names
    lines = [json.loads(line) for line in (storage / "interrupted" / "metrics.jsonl").open()]
    inline = [line["images"] for line in lines if "evaluation/elbo" in line]
    beside = found.keys() - set(inline)
    assert inline[0] == 20096 and max(inline) <= stopped < min(beside)
    # Training takes only a second or two. Later evaluation tasks find checkpoints kept for them.
    assert min(beside) < 60032
    written = list((storage / "interrupted" / "tensorboard").glob("events*beside*"))
    assert len(written) == len(beside)


def test_an_exception_in_a_users_class_ends_the_run_at_once(
    cluster, storage: Path, tmp_path: Path
) -> None:
    """Ray does not try again: the exception would come again."""
    import ray_gen
    from ray_gen.errors import Failed

    raised = tmp_path / "raised"
    broken = recipe(
        "networks.encoder={kind: custom, target: 'tests.integration.broken:BreaksAtStep', "
        f"options: {{step: 3, raised: '{raised}'}}}}"
    )
    with pytest.raises(Failed, match="this network breaks"):
        ray_gen.train(broken, storage=str(storage), name="broken")
    assert raised.read_text() == "once\n"
    assert not (storage / "broken" / "writer.json").exists()


def test_more_than_the_cluster_has_is_refused(cluster, storage: Path) -> None:
    import ray_gen

    for override, told in {
        "workers.gpu=true": r"workers\.count: .* the cluster has no GPUs",
        "workers.cpus=100": rf"workers\.cpus: .* the cluster has {CORES}",
    }.items():
        with pytest.raises(ray_gen.ExperimentError, match=told):
            ray_gen.train(recipe(override), storage=str(storage), name="too-much")
