"""Real Ray: what a user's command does, and what it survives. A fit costs some 20 s before its
first step, so the tests share one Ray and few fits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

# Long enough to be hit in its middle, short enough to wait for.
OVERRIDES = (
    "training.images=60000",
    "training.report_every_images=5000",
    "training.checkpoint_every_images=10000",
    "checkpoints.keep=100",
)


def recipe(*overrides: str):
    from ray_gen.recipes import recipe

    return recipe("vae-mnist5k", *OVERRIDES, *overrides)


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this module."""
    import ray

    import ray_gen.launch  # noqa: F401  (its settings come before Ray starts)

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(cluster, storage: Path) -> Path:
    """A whole run of two workers."""
    import ray_gen

    run = ray_gen.train(recipe("workers.count=2", "workers.cpus=1"), storage=str(storage), name="a")
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


def test_workers_evaluate_together_what_one_process_does(undisturbed: Path) -> None:
    import ray_gen

    asked = {"metrics": ["sliced_wasserstein", "likelihood"], "count": 200, "importance_samples": 5}
    one = ray_gen.evaluate(undisturbed, **asked)
    two = ray_gen.evaluate(undisturbed, workers=2, **asked)
    assert [score.name for score in two] == [score.name for score in one]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-6), ours.name
    with pytest.raises(ValueError, match=r"evaluation\.count: 5000 images were asked for"):
        ray_gen.evaluate(undisturbed, workers=2, metrics=["sliced_wasserstein"], count=5000)


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
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        found = sorted(run.glob("checkpoint_*/manifest.json"))
        if found and int(found[-1].parent.name.partition("_")[2]) >= images:
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} came to no checkpoint of {images} images")


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


def test_two_workers_trained_the_run_of_one(undisturbed: Path, storage: Path) -> None:
    import ray_gen

    run = ray_gen.train(recipe("workers.cpus=2"), storage=str(storage), name="one")
    assert final(Path(run.location)).keys() == final(undisturbed).keys()
    # Equal up to rounding: 1e-8 in the first 40 steps. Training amplifies it step by step, so later
    # reports say less; tests/test_invariance.py has the weights, in float64.
    one, two = (
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        for folder in (Path(run.location), undisturbed)
    )
    assert one["images"] == two["images"]
    for loss in ("loss/reconstruction", "loss/kl"):
        assert one[loss] == pytest.approx(two[loss], rel=1e-5)


@pytest.mark.parametrize("victim", ["worker", "controller"])
def test_killed_processes_change_nothing(undisturbed: Path, storage: Path, victim: str) -> None:
    import ray_gen

    name = f"killed-{victim}"
    killed: list[int] = []

    def kill() -> None:
        wait_for_images(storage / name, 20_000)
        title = "RayTrainWorker" if victim == "worker" else "TrainController"
        killed.extend(ours_named(title, os.getpid())[-1:])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    run = ray_gen.train(
        recipe("workers.count=2", "workers.cpus=1"), storage=str(storage), name=name
    )
    thread.join()
    assert killed
    assert same(final(Path(run.location)), final(undisturbed))
    images = [json.loads(line)["images"] for line in (storage / name / "metrics.jsonl").open()]
    assert images == sorted(set(images)), "reports beyond the checkpoint were not cut"


def test_the_same_name_trains_longer(undisturbed: Path, storage: Path) -> None:
    import ray_gen

    # Both ways to evaluate while training, neither of which changes it.
    shorter = recipe(
        "workers.count=2", "workers.cpus=1", "training.images=25000", *evaluating("inline")
    )
    ray_gen.train(shorter, storage=str(storage), name="longer")
    whole = recipe("workers.count=2", "workers.cpus=1", "checkpoints.keep=2", *evaluating("beside"))
    run = ray_gen.train(whole, storage=str(storage), name="longer")
    assert same(final(Path(run.location)), final(undisturbed))
    found = {
        int(file.stem.removeprefix("images_")): json.loads(file.read_text())
        for file in (storage / "longer" / "evaluations").glob("*.json")
    }
    assert {25088, 60032} <= found.keys()
    for evaluation in found.values():
        names = [score["name"] for score in evaluation["scores"]]
        assert names[0] == "sliced_wasserstein"
        assert "log_likelihood_bound" in names
    lines = [json.loads(line) for line in (storage / "longer" / "metrics.jsonl").open()]
    assert [line["images"] for line in lines if "evaluation/elbo" in line] == [20096, 25088]
    # Trained in a second or two: a task that comes later finds a checkpoint that was kept for it.
    assert any(25088 < images < 60032 for images in found)
    assert len(list((storage / "longer").glob("checkpoint_0*"))) == 2
    written = list((storage / "longer" / "tensorboard").glob("events*beside*"))
    assert len(written) == sum(images > 25088 for images in found)
    begun = time.monotonic()
    again = ray_gen.train(whole, storage=str(storage), name="longer")
    assert again.stop == "had seen all images before"
    assert time.monotonic() - begun < 5
    with pytest.raises(ray_gen.ExperimentError, match=r"objective\.latent_size: 3 here, 10 there"):
        ray_gen.train(recipe("objective.latent_size=3"), storage=str(storage), name="longer")
    with pytest.raises(ValueError, match="--fresh"):
        ray_gen.train(whole, storage=str(storage), name="longer", fresh=True)


def test_a_non_finite_loss_ends_the_run_with_its_name(cluster, storage: Path) -> None:
    import ray_gen
    from ray_gen.errors import Failed

    wild = recipe("optimizers.autoencoder={kind: sgd, learning_rate: 1000}", "workers.cpus=2")
    with pytest.raises(Failed, match=r"is not a finite number since step \d+"):
        ray_gen.train(wild, storage=str(storage), name="wild")
    assert not list((storage / "wild").glob("checkpoint_0*"))


def test_an_exception_in_a_users_class_ends_the_run_at_once(cluster, storage: Path) -> None:
    import ray_gen
    from ray_gen.errors import Failed

    broken = recipe(
        "networks.encoder={kind: custom, target: 'tests.integration.broken:BreaksAtStep', "
        "options: {step: 100}}",
        "workers.cpus=2",
    )
    begun = time.monotonic()
    with pytest.raises(Failed, match="this network breaks at step 100"):
        ray_gen.train(broken, storage=str(storage), name="broken")
    assert time.monotonic() - begun < 90
    assert not (storage / "broken" / "writer.json").exists()


def test_an_evaluation_that_runs_out_of_memory_costs_no_training(cluster, storage: Path) -> None:
    import ray_gen
    from ray_gen.errors import Failed

    greedy = recipe(
        "evaluation.every_images=10000",
        "evaluation.metrics=[fid]",
        "evaluation.features={kind: custom, target: 'tests.integration.broken:RunsOutOfMemory'}",
        "training.checkpoint_every_images=50000",
        "workers.count=2",
        "workers.cpus=1",
    )
    with pytest.raises(Failed, match=r"in an evaluation: lower evaluation\.batch_size"):
        ray_gen.train(greedy, storage=str(storage), name="greedy")
    assert final(storage / "greedy")["step"] == 79  # when the first one was due
    assert not (storage / "greedy" / ".due").exists()


def test_more_than_the_cluster_has_is_refused(cluster, storage: Path) -> None:
    import ray_gen

    for override, sentence in {
        "workers.gpu=true": r"workers\.count: .* the cluster has no GPUs",
        "workers.cpus=100": r"workers\.cpus: .* the cluster has 4",
    }.items():
        with pytest.raises(ray_gen.ExperimentError, match=sentence):
            ray_gen.train(recipe(override), storage=str(storage), name="too-much")


def test_the_first_interrupt_saves_and_a_second_command_goes_on(
    undisturbed: Path, storage: Path
) -> None:
    command = [
        *(sys.executable, "-m", "ray_gen", "train", "vae-mnist5k"),
        *(*OVERRIDES, "workers.count=2", "workers.cpus=1"),
        *("--storage", str(storage), "--name", "interrupted"),
    ]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_images(storage / "interrupted", 10_000)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "saving and stopping" in err
    assert "asked to stop" in out
    stopped = final(storage / "interrupted")
    assert stopped["step"] < final(undisturbed)["step"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert same(final(storage / "interrupted"), final(undisturbed))


def test_a_data_set_is_converted_and_streamed(cluster, storage: Path, tmp_path: Path) -> None:
    """Two workers on a run that is cut in two train what one process does in one go."""
    import ray_gen
    from ray_gen.experiment import data_settings
    from ray_gen.launch.convert import convert
    from ray_gen.training.sources import class_names, open_data
    from tests.helpers import relative_difference, trained, weights

    to = tmp_path / "digits"
    manifest = convert(data_settings("mnist5k"), str(to), shard_images=500, group_images=100)
    assert manifest["images"] == {"train": 4000, "validation": 1000}
    streamed = (f"data=parquet:{to}", "data.placement=stream", "training.precision=fp64")
    short = (*streamed, "training.images=6400", "workers.count=2", "workers.cpus=1")
    ray_gen.train(recipe(*short, "training.images=3200"), storage=str(storage), name="streamed")
    run = ray_gen.train(recipe(*short), storage=str(storage), name="streamed")
    this = recipe(*short)
    store = open_data(this)
    this = this.resolved(store.image_shape, class_names(store), store.digest)
    state, _ = trained(this, store)
    (newest,) = Path(run.location).glob("checkpoint_*6400")
    ours = load_file(newest / "networks.safetensors")
    theirs = weights(state)
    named = {n: {k: ours[f"{n}.{k}"] for k in theirs[n]} for n in ("encoder", "decoder")}
    assert relative_difference(named, {n: theirs[n] for n in named}) < 1e-9
