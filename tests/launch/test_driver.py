"""What is refused or answered before Ray is started."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ray_gen.distributed import World
from ray_gen.errors import Failed, GpuMemoryError, Refused
from ray_gen.experiment import Experiment
from ray_gen.launch import alone, driver, train
from ray_gen.launch.driver import experiment_before, goes_on_from
from ray_gen.launch.memory import with_half_the_images
from ray_gen.launch.worker import Work, check_agreement, restore
from ray_gen.networks.mlp import Mlp
from ray_gen.objectives import equilibrium
from ray_gen.runs.checkpoints import DUE, checkpoint_name, checkpoints
from ray_gen.runs.manifest import CheckpointError
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.sources import as_begun, cache_folder, class_names, open_data
from ray_gen.training.state import State
from tests.data.pictures import noise, write, write_classes
from tests.helpers import gan, vae


@pytest.fixture
def images(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    return write_classes(tmp_path / "images", {"a": 20, "b": 20})


def given(images: Path, *overrides: str) -> Experiment:
    """An experiment as a user writes it."""
    text = vae().to_yaml()
    return Experiment.from_yaml(text, [f"data=folder:{images}", *overrides])


def finished(experiment: Experiment, storage: Path, *more: int) -> Path:
    """The run "a", which has seen all its images; with further checkpoints after so many images."""
    store = open_data(experiment)
    resolved = experiment.resolved(store.image_shape, class_names(store), store.digest)
    state = State.build(resolved, build_objective(resolved), World())
    batch = resolved.training.global_batch_size
    for images in (*more, resolved.steps * batch):
        folder = storage / "a" / checkpoint_name(images)
        folder.mkdir(parents=True)
        state.step = images // batch
        state.save(folder, resolved)
    (storage / "a" / "experiment.yaml").write_text(resolved.to_yaml())
    return storage / "a"


def test_a_finished_run_is_answered_at_once(images: Path, tmp_path: Path) -> None:
    finished(given(images), tmp_path)
    again = train(given(images), storage=str(tmp_path), name="a")
    assert again.stop == "had seen all images before"


def test_a_run_that_settled_at_its_equilibrium_is_answered_at_once(
    images: Path, tmp_path: Path
) -> None:
    stop = "training.stop_at_equilibrium={tolerance: 0.49, window_images: 48}"
    experiment = Experiment.from_yaml(gan().to_yaml(), [f"data=folder:{images}", stop])
    run = finished(experiment, tmp_path, 240)
    shutil.rmtree(run / checkpoint_name(480))
    manifest = run / checkpoint_name(240) / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"settled": {"stopped": 240.0}}))
    again = train(experiment, storage=str(tmp_path), name="a")
    assert again.images == 240
    assert again.stop == f"had ended before: {experiment.objective.at_rest}"


def test_a_run_goes_on_by_what_its_newest_checkpoint_says(images: Path, tmp_path: Path) -> None:
    """`experiment.yaml` beside the checkpoints is for people: it may be edited or deleted."""
    run = finished(given(images), tmp_path)
    (run / "experiment.yaml").unlink()
    assert train(given(images), storage=str(tmp_path), name="a").images == 480
    with pytest.raises(Refused, match=r"another experiment(.|\n)*seed: 3 here, 0 there"):
        train(given(images, "seed=3"), storage=str(tmp_path), name="a")
    with pytest.raises(Refused, match="--fresh"):
        train(given(images), storage=str(tmp_path), name="a", fresh=True)


def damage(file: Path, how: str) -> None:
    """Damages a file of a checkpoint."""
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("how", ["gone", "truncated", "one bit"])
@pytest.mark.parametrize(
    "file", ["experiment.yaml", "networks.safetensors", "optimizers.safetensors"]
)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    images: Path, tmp_path: Path, file: str, how: str
) -> None:
    run = finished(given(images), tmp_path, 240)
    damage(run / checkpoint_name(480) / file, how)
    said: list[str] = []
    experiment = Experiment.from_yaml((run / checkpoint_name(240) / "experiment.yaml").read_text())
    manifest = goes_on_from(Folder(str(run)), experiment, said.append)
    assert manifest is not None
    assert manifest.images == 240
    assert said[0].startswith(str(run / checkpoint_name(480) / file))
    assert said[0].endswith(f"going on from {checkpoint_name(240)}")
    if file != "experiment.yaml":  # workers get it from the driver
        state = State.build(experiment, build_objective(experiment), World())
        said_again = restore(state, Folder(str(run)), World())
        assert state.step == 10
        assert said_again == said


class Second(World):
    """The second of two workers, of which the first has chosen a checkpoint."""

    def __init__(self, chosen: int) -> None:
        super().__init__(rank=1, size=2)
        object.__setattr__(self, "chosen", chosen)

    def maxima(self, values: Sequence[int]) -> list[int]:
        assert list(values) == [-1]
        return [self.chosen]


def test_the_first_worker_chooses_the_checkpoint(images: Path, tmp_path: Path) -> None:
    """A worker that died may finish its last checkpoint between the looks of two others."""
    run = finished(given(images), tmp_path, 240)
    experiment = Experiment.from_yaml((run / checkpoint_name(240) / "experiment.yaml").read_text())
    state = State.build(experiment, build_objective(experiment), World())
    assert restore(state, Folder(str(run)), Second(240)) == []
    assert state.step == 10
    beginning = State.build(experiment, build_objective(experiment), World())
    assert restore(beginning, Folder(str(run)), Second(-1)) == []
    assert beginning.step == 0
    with pytest.raises(Failed, match=r"checkpoint.* nodes"):
        restore(state, Folder(str(run)), Second(360))


def test_where_no_checkpoint_is_whole_a_run_does_not_begin_anew(
    images: Path, tmp_path: Path
) -> None:
    run = finished(given(images), tmp_path, 240)
    for images_seen in (240, 480):
        damage(run / checkpoint_name(images_seen) / "networks.safetensors", "truncated")
    told = r"has \d+ bytes instead of \d+; .* from the beginning, delete .*_0*240"
    with pytest.raises(CheckpointError, match=told):
        train(given(images), storage=str(tmp_path), name="a")


def test_a_checkpoint_of_another_version_is_not_blamed_on_the_user(
    images: Path, tmp_path: Path
) -> None:
    experiment = finished(given(images), tmp_path) / checkpoint_name(480) / "experiment.yaml"
    text = experiment.read_text()
    experiment.write_text(text.replace("beta_warmup_images", "beta_warm_up_imges"))
    manifest = experiment.with_name("manifest.json")
    told = json.loads(manifest.read_text())
    data = experiment.read_bytes()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(told | {"files": told["files"] | {experiment.name: facts}}))
    told = r"480/experiment\.yaml is of another version .*\n.*beta_warm_up_imges: there is no"
    with pytest.raises(Refused, match=told):
        train(given(images), storage=str(tmp_path), name="a")


def test_a_run_goes_on_where_its_data_has_moved(images: Path, tmp_path: Path) -> None:
    finished(given(images), tmp_path)
    moved = Path(shutil.copytree(images, tmp_path / "moved", copy_function=shutil.copyfile))
    shutil.rmtree(images)
    again = train(given(moved), storage=str(tmp_path), name="a")
    assert again.stop == "had seen all images before"


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write(root / "a" / "new.png", noise(8, 8, 3, seed=99)),
        lambda root: write(root / "a" / "007.png", noise(8, 8, 3, seed=99)),
        lambda root: (root / "a" / "007.png").unlink(),
    ],
    ids=["added", "changed", "removed"],
)
def test_a_run_does_not_go_on_with_other_images(images: Path, tmp_path: Path, change) -> None:
    finished(given(images), tmp_path)
    change(images)
    with pytest.raises(Refused) as refused:
        train(given(images), storage=str(tmp_path), name="a")
    (sentence,) = str(refused.value).splitlines()
    assert sentence.startswith(
        f"data: its images differ from those that the run {tmp_path}/a began"
    )
    assert sentence.endswith("choose another --name, or put the old data back")


def test_settings_that_make_other_pixels_are_told_instead_of_the_pixels(
    images: Path, tmp_path: Path
) -> None:
    finished(given(images), tmp_path)
    with pytest.raises(Refused) as refused:
        train(given(images, "data.image_size=4", "seed=1"), storage=str(tmp_path), name="a")
    _, *different = str(refused.value).splitlines()
    assert [line.strip().partition(":")[0] for line in different] == ["seed", "data.image_size"]


def test_an_experiment_copied_from_a_run_can_be_trained_on_other_data(
    images: Path, tmp_path: Path
) -> None:
    copied = (finished(given(images), tmp_path) / "experiment.yaml").read_text()
    other = write_classes(tmp_path / "other", {"a": 30, "b": 30})
    experiment = Experiment.from_yaml(copied, [f"data.path={other}"])
    finished(experiment, tmp_path / "others")
    again = train(experiment, storage=str(tmp_path / "others"), name="a")
    assert again.stop == "had seen all images before"


@pytest.mark.parametrize("differs", ["data", "labels", "step", "driver"])
def test_workers_that_begin_from_different_things_are_refused(images: Path, differs: str) -> None:
    """Every worker refuses: each of the two learns of the other's difference."""
    experiment = given(images)
    store = open_data(experiment)
    experiment = experiment.resolved(store.image_shape, class_names(store), store.digest)
    state = State.build(experiment, build_objective(experiment), World())
    facts: list[list[int]] = []

    class Rank(World):
        def maxima(self, values) -> list[int]:
            facts.append(list(values))
            return [max(column) for column in zip(*facts, strict=True)]

    check_agreement(experiment, state, store, Rank())
    check_agreement(experiment, state, store, Rank())
    expected = "^data: "
    if differs == "data":
        write(images / "a" / "007.png", noise(8, 8, 3, seed=99))
    elif differs == "labels":
        (images / "a" / "019.png").rename(images / "b" / "!.png")
    elif differs == "driver":
        experiment = experiment.with_fields(data__digest="another")
    else:
        state.step, expected = 1, "checkpoint"
    with pytest.raises(Failed, match=expected):
        check_agreement(experiment, state, open_data(experiment), Rank())
    with pytest.raises(Failed, match=expected):
        check_agreement(experiment, state, store, Rank())


class Here(alone.WorkerProcess):
    """Trains in this process."""

    def __init__(self, say: Callable[[str], None]) -> None:
        pass

    def train(self, work: Work, device: str, look: Callable[[], None]) -> dict[str, Any] | None:
        answer = alone.answered(work, torch.device(device))
        look()
        return alone.ended_of(answer)

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one worker is this process."""
    monkeypatch.setattr(alone, "WorkerProcess", Here)


@pytest.mark.usefixtures("here")
def test_a_non_finite_loss_ends_the_run_with_its_name(images: Path, tmp_path: Path) -> None:
    wild = given(images, "optimizers.autoencoder={kind: sgd, learning_rate: 1e30}")
    told = (
        r"^loss/\w+ is not a finite number since step (\d+) \((\d+) images\); nothing was saved; "
        r"try a lower optimizers\.autoencoder\.learning_rate, or .*\.clip_norm=1$"
    )
    with pytest.raises(Failed, match=told) as failed:
        train(wild, storage=str(tmp_path), name="a")
    found = re.search(told, str(failed.value))
    assert found is not None and int(found[2]) == 24 * int(found[1])
    assert (tmp_path / "a" / "experiment.yaml").exists()
    assert not list((tmp_path / "a").glob("checkpoint_0*"))


@pytest.mark.usefixtures("here")
def test_what_was_saved_before_a_non_finite_loss_is_told(images: Path, tmp_path: Path) -> None:
    rates = "{kind: steps, values: [[0, 0.001], [300, 1.0e30]]}"
    wild = given(images, f"optimizers.autoencoder={{kind: sgd, learning_rate: {rates}}}")
    with pytest.raises(Failed, match=rf"; what was saved is in {tmp_path}/a; try a lower "):
        train(wild, storage=str(tmp_path), name="a")
    assert [c.name for c in checkpoints(Folder(str(tmp_path / "a")))] == [checkpoint_name(240)]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("images_seen", [480, 960])
def test_a_discriminator_that_has_won_is_told_and_is_no_success(
    images: Path, tmp_path: Path, monkeypatch, capsys, images_seen: int
) -> None:
    """In the last line and by the exit code, now and when the ended run is asked for again."""
    monkeypatch.setattr(equilibrium, "WON", 1.0)  # any pair
    monkeypatch.setattr(equilibrium, "WON_IMAGES", images_seen)
    experiment = Experiment.from_yaml(gan().to_yaml(), [f"data=folder:{images}"])
    for _ in range(2):
        run = train(experiment, storage=str(tmp_path), name="a", show=True)
        told = "D(x) is 1 and D(G(z)) is 0" in capsys.readouterr().out.splitlines()[0]
        assert told == (run.failure is not None) == (images_seen == 480)
        assert run.exit_code == int(told)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a/b", "no slash"),
        (".a", "does not begin with a dot"),
        ("", "is empty"),
        ("a\nb", "cannot be printed"),
        ("\udcff", "cannot be printed"),
        ("é" * 101, "has 202 bytes, and file systems take 200"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused_at_once(
    images: Path, tmp_path: Path, name: str, told: str
) -> None:
    with pytest.raises(Refused, match=rf"^--name: .*{told}"):
        driver.folder_of(given(images), str(tmp_path), name)


@pytest.mark.parametrize("name", ["имя-猫", "e\u0301", "a b", "50 %", "é" * 100])
def test_names_are_not_only_ascii(images: Path, tmp_path: Path, name: str) -> None:
    finished(given(images), tmp_path).rename(tmp_path / name)
    again = train(given(images), storage=str(tmp_path), name=name)
    assert again.stop == "had seen all images before"
    assert again.location == str(tmp_path / name)


def test_a_home_that_cannot_be_written_is_told_with_all_that_lies_there(
    images: Path, tmp_path: Path, monkeypatch
) -> None:
    home = tmp_path / "home"
    home.touch()  # root may write everywhere, but not in a file
    monkeypatch.setenv("HOME", str(home))
    for name in ("RAY_GEN_CACHE", "RAY_GEN_STORAGE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    help_with = {
        "RAY_GEN_STORAGE": str(tmp_path / "runs"),
        "RAY_GEN_CACHE": str(tmp_path / "cache"),
        "RAY_AUTH_TOKEN": "a secret",
    }
    for name, value in help_with.items():
        with pytest.raises(Refused) as refused:
            driver.folder_of(given(images), None, "a")
        (sentence,) = str(refused.value).splitlines()
        assert sentence.startswith(f"HOME: {home} cannot be written (Not a directory), and ")
        left = list(help_with)[list(help_with).index(name) :]
        assert [word for word in help_with if f"${word}" in sentence] == left
        monkeypatch.setenv(name, value)
    assert driver.folder_of(given(images), None, "a").location == str(tmp_path / "runs" / "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in help_with:
        monkeypatch.delenv(name)
    assert driver.folder_of(given(images), None, "a").location == str(tmp_path / "ray_gen_runs/a")
    assert not {".ray", ".cache"} & {path.name for path in tmp_path.iterdir()}
    assert str(cache_folder()) == str(tmp_path / ".cache/ray_gen")


def test_a_user_without_a_home_is_told_the_same(images: Path, tmp_path: Path, monkeypatch) -> None:
    """As in a container that runs under a user id of its own."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("RAY_GEN_STORAGE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a secret")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(Refused, match=r"^HOME: .*no home folder.*\$RAY_GEN_STORAGE"):
        driver.folder_of(given(images), None, "a")
    assert driver.folder_of(given(images), str(tmp_path), "a").location == str(tmp_path / "a")


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_an_ended_run_whose_last_checkpoint_is_damaged_says_so(
    images: Path, tmp_path: Path, where: str, request
) -> None:
    run = Folder(str(finished(given(images), tmp_path, 240)))
    damage(run.path / checkpoint_name(480) / "networks.safetensors", "one bit")
    if where == "s3":
        behind = Folder(request.getfixturevalue("s3").new_bucket()) / "a"
        behind.put(run.path, "")
        run = behind
    said: list[str] = []
    text = (run / checkpoint_name(240)).read_text("experiment.yaml")
    manifest = goes_on_from(run, Experiment.from_yaml(text), said.append)
    assert manifest is not None and manifest.images == 240
    (sentence,) = said
    assert sentence.startswith(f"{run.location}/{checkpoint_name(480)}/networks.safetensors: is da")
    assert sentence.endswith(f"going on from {checkpoint_name(240)}")


GREEDY = (
    "networks.encoder={kind: custom, target: 'tests.launch.test_driver:Greedy', options: "
    "{hidden_sizes: [32], activation: relu, initial_weights: glorot, label_size: 0, "
    "spectral_norm: false}}"
)


class Greedy(Mlp):
    """Trains as many images at once as there is memory for."""

    room = 0

    def forward(self, inputs: torch.Tensor, *more: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training and len(inputs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().forward(inputs, *more)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("room", "sizes"), [(12, [12]), (6, [12, 6])])
def test_a_gpu_with_too_little_memory_gets_fewer_images_at_once(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    room: int,
    sizes: list[int],
) -> None:
    found: list[Any] = []
    for name, memory in (("plenty", 1000), ("little", room)):
        monkeypatch.setattr(Greedy, "room", memory)
        train(given(images, GREEDY), storage=str(tmp_path), name=name, show=True)
        checkpoint = tmp_path / name / checkpoint_name(480)
        found.append(load_file(checkpoint / "networks.safetensors"))
        told = capsys.readouterr().err
    for size in sizes:
        assert f"with {2 * size} images at a time; going on from the last checkpoint with " in told
    experiment = Experiment.from_yaml((checkpoint / "experiment.yaml").read_text())
    assert experiment.training.micro_batch_size == sizes[-1]
    plenty, little = found
    assert all(torch.allclose(plenty[name], little[name], atol=1e-5) for name in plenty)


@pytest.mark.usefixtures("here")
def test_a_gpu_without_room_for_one_group_ends_the_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Failed, match=r"^a GPU ran .* 20\.00 GiB\), even with one group of 6 images"
    ):
        train(given(images, GREEDY), storage=str(tmp_path), name="a")


def test_the_micro_batch_is_halved_in_whole_groups_of_a_workers_part() -> None:
    error, seen = GpuMemoryError("a GPU ran out of memory"), list[int]()
    experiment = vae("training.global_batch_size=600", "training.micro_batch_size=480")
    for workers, sizes in ((1, [240, 120, 60, 30, 18, 12, 6]), (4, [78, 42, 24, 12, 6])):
        seen, smaller = [], experiment
        with pytest.raises(Failed, match="even with one group of 6"):
            while True:
                smaller, _ = with_half_the_images(smaller, error, workers)
                seen.append(smaller.training.micro_batch_size or 0)
        assert seen == sizes


class RunsOutOfMemory(torch.nn.Module):
    """Raises what a GPU raises when a batch is too large for it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("features={kind: run, run: /no/run}", r"evaluation\.features\.run: /no/run"),
        ("count=5000", r"evaluation\.count: 5000 images were asked for"),
        ("placement=beside", r"evaluation\.kid_subset_size: 999 images cannot be drawn"),
    ],
)
def test_an_evaluation_that_cannot_be_measured_is_refused_before_ray_starts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, sentence: str
) -> None:
    def fit(*given: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(driver, "_fit_on_ray", fit)
    tiny = "{kind: custom, target: 'tests.evaluation.helpers:Tiny'}"
    asked = (
        "every_images=100",
        "metrics=[kid]",
        "kid_subset_size=999",
        f"features={tiny}",
        setting,
    )
    with pytest.raises(Refused, match=sentence):
        train(
            given(images, *(f"evaluation.{one}" for one in asked)),
            storage=str(tmp_path),
            local=False,
        )


@pytest.mark.usefixtures("here")
def test_an_evaluation_that_runs_out_of_memory_costs_no_training(
    images: Path, tmp_path: Path
) -> None:
    greedy = given(
        images,
        "evaluation.every_images=100",
        "evaluation.metrics=[fid]",
        "evaluation.count=20",
        "evaluation.features={kind: custom, target: 'tests.launch.test_driver:RunsOutOfMemory'}",
        "training.report_every_images=480",
        "training.checkpoint_every_images=480",
    )
    with pytest.raises(Failed, match=r"evaluation\.batch_size"):
        train(greedy, storage=str(tmp_path), name="a")
    # The first evaluation was due after the fifth step of 24 images.
    assert [c.name for c in checkpoints(Folder(str(tmp_path / "a")))] == [checkpoint_name(120)]
    assert not (tmp_path / "a" / DUE).exists()


def test_a_run_of_0_1_goes_on_by_the_command_that_began_it() -> None:
    """The command names no rules of reading, and new runs have others."""
    old = Path(__file__).parents[1] / "old_runs" / "v0_1" / "vae"
    given = yaml.safe_load((old / "experiment.yaml").read_text())
    for name in ("digest", "classes"):
        del given["data"][name]
    command = Experiment.of(given)
    assert command.data.rules == 2
    assert as_begun(command, experiment_before(Folder(str(old))), print).data.rules == 1
    assert experiment_before(Folder("/there/is/no/run")) is None
    assert as_begun(command, None, print) == command


@pytest.mark.usefixtures("here")
def test_reports_reach_the_caller_once_also_of_a_run_that_goes_on(
    images: Path, tmp_path: Path
) -> None:
    reports: list[tuple[int, dict[str, float]]] = []
    each = "training.report_every_images=120"
    for until in (240, 480):
        this = given(images, each, f"training.images={until}")
        train(this, storage=str(tmp_path), name="a", on_report=lambda *told: reports.append(told))
    assert [seen for seen, _ in reports] == [120, 240, 360, 480]
    assert all("loss/kl" in metrics for _, metrics in reports)


@pytest.mark.usefixtures("here")
def test_what_on_report_raises_ends_the_run_and_keeps_what_was_saved(
    images: Path, tmp_path: Path
) -> None:
    def enough(seen: int, metrics: dict[str, float]) -> None:
        raise StopIteration(seen)

    with pytest.raises(StopIteration):
        train(given(images), storage=str(tmp_path), name="a", on_report=enough)
    assert checkpoints(Folder(str(tmp_path / "a")))


def test_a_logger_that_cannot_be_built_is_refused_before_anything_starts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Refused, match=r"loggers: wandb .*pip install 'ray_gen\[wandb\]'"):
        train(given(images, "loggers=[wandb]"), storage=str(tmp_path), name="a")
