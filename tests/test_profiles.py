"""Averages by power functions: their equations, in training, and what their snapshots give."""

from __future__ import annotations

import filecmp
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

import ray_gen
from ray_gen.cli import main
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.start import Start
from ray_gen.launch.search.trial import adopt
from ray_gen.launch.start import read
from ray_gen.launch.worker import reports
from ray_gen.pipeline.averages import averages
from ray_gen.runs.checkpoints import checkpoint_name, commit
from ray_gen.runs.manifest import MANIFEST, CheckpointError
from ray_gen.runs.snapshots import SNAPSHOTS, commit_snapshot, snapshot_name, snapshots
from ray_gen.storage import Folder
from ray_gen.training.build import build_objective
from ray_gen.training.loop import count_snapshots, train
from ray_gen.training.profiles import (
    Profile,
    combination,
    exponent_of,
    inner_products,
    profile_decay,
)
from ray_gen.training.state import State
from tests.helpers import gan, largest_difference, stepped, trained, vae, weights

FP64 = "training.precision=fp64"
WIDTHS = "training.ema_profiles=[0.05, 0.1]"


@pytest.mark.parametrize(
    ("sigma", "exponent"),
    [(0.01, 97.0), (0.05, 16.97), (0.10, 6.94), (0.15, 3.56), (0.20, 1.83), (0.25, 0.72)],
)
def test_exponents_are_those_of_the_paper(sigma: float, exponent: float) -> None:
    found = exponent_of(sigma)
    assert found == pytest.approx(exponent, abs=0.05 if exponent == 97.0 else 0.006)
    width = math.sqrt((found + 1) / ((found + 2) ** 2 * (found + 3)))
    assert width == pytest.approx(sigma, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.25])
def test_updates_multiply_to_the_profile(sigma: float) -> None:
    """Whose width is then σ, and the start has no weight."""
    exponent, count, every = exponent_of(sigma), 2000, 8 * 64
    weight = np.zeros(count + 1)
    weight[0] = 1.0  # of the start
    for update in range(1, count + 1):
        decay = profile_decay(update * every, every, exponent)
        weight *= decay
        weight[update] = 1 - decay
    times = np.arange(count + 1) / count
    power = times ** (exponent + 1)
    np.testing.assert_allclose(weight[1:], np.diff(power), rtol=1e-9, atol=1e-15)
    assert weight[0] == 0
    mean = (weight * (times - 0.5 / count)).sum()
    spread = math.sqrt((weight * (times - 0.5 / count - mean) ** 2).sum())
    assert spread == pytest.approx(sigma, rel=2e-3)


def test_inner_products_are_integrals() -> None:
    profiles = [Profile(s, t) for s in (0.05, 0.1, 0.22) for t in (300, 700, 1000)]
    points, share = np.polynomial.legendre.leggauss(400)
    found = inner_products(profiles, profiles[::2])
    for row, p in enumerate(profiles):
        for column, q in enumerate(profiles[::2]):
            end = min(p.images, q.images)
            times = end * (points + 1) / 2
            of_p, of_q = (
                (exponent_of(one.sigma) + 1)
                * (times / one.images) ** exponent_of(one.sigma)
                / one.images
                for one in (p, q)
            )
            expected = (of_p * of_q * share).sum() * end / 2
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-7)


def test_a_combination_is_the_nearest_one_with_sum_1() -> None:
    """Any other sum with the same total is farther away. The error is that of the functions."""
    known = [Profile(s, 100 * i) for i in range(1, 9) for s in (0.05, 0.1)]
    wanted = Profile(0.15, 800)
    found = combination(known, wanted)
    assert sum(found.weights) == pytest.approx(1, abs=1e-12)
    points, share = np.polynomial.legendre.leggauss(2000)
    times = 400 * (points + 1)

    def function(of: Profile) -> np.ndarray:
        exponent = exponent_of(of.sigma)
        values = (exponent + 1) * (times / of.images) ** exponent / of.images
        return np.where(times <= of.images, values, 0.0)

    columns = np.stack([function(of) for of in known], 1)

    def distance(weights: np.ndarray) -> float:
        square = (columns @ weights - function(wanted)) ** 2
        return math.sqrt((square * share).sum() / (function(wanted) ** 2 * share).sum())

    best = np.array(found.weights)
    assert distance(best) == pytest.approx(found.error, rel=1e-2)
    generator = np.random.default_rng(0)
    for _ in range(20):
        other = generator.normal(size=len(known)) * 1e-2
        assert distance(best + other - other.mean()) > distance(best)


def test_what_was_kept_is_found_without_an_error() -> None:
    known = [Profile(s, 100 * i) for i in range(1, 65) for s in (0.05, 0.1)]
    found = combination(known, Profile(0.1, 6400))
    assert found.error < 1e-7
    assert found.weights[-1] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("every", [1, 3])
def test_a_profile_is_the_sum_of_the_weights_that_were(store_8: Store, every: int) -> None:
    """Weights are averaged; running statistics are those of the last update."""
    this = gan(FP64, WIDTHS, f"training.ema_every_steps={every}", kind="dcgan")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    past: list[dict[str, Tensor]] = []
    for step in range(1, 11):
        stepped(this, objective, store_8, 1, state)
        if step % every == 0:
            now = state.networks["generator"].state_dict().items()
            past.append({key: value.detach().clone() for key, value in now})
    for sigma in (0.05, 0.1):
        power = np.linspace(0, 1, len(past) + 1) ** (exponent_of(sigma) + 1)
        share = np.diff(power)
        generator = state.profiles[str(sigma)]["generator"]
        parameters = dict(generator.named_parameters())
        for key, value in generator.state_dict().items():
            if key in parameters:
                expected = sum(float(s) * then[key] for s, then in zip(share, past, strict=True))
                torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
            else:
                assert torch.equal(value, past[-1][key])
    assert set(state.profiles["0.1"]) == {"generator"}


def test_profiles_change_nothing_else(store_8: Store) -> None:
    plain, kept = (weights(trained(gan(*o), store_8)[0]) for o in ((), (WIDTHS,)))
    assert largest_difference({name: kept[name] for name in plain}, plain) == 0
    assert {"profile 0.05 generator", "profile 0.1 generator"} <= kept.keys()


def written(this: Experiment, store: Store, run: Folder, folder: Path) -> State:
    """Trains a run in this process, with its snapshots and its last checkpoint."""
    objective = build_objective(this)
    state = State.build(this, objective, World())
    count = iter(range(10_000))

    def snapshot() -> None:
        work = folder / f"snapshot-{next(count)}"
        work.mkdir(parents=True)
        state.save_snapshot(work, this)
        commit_snapshot(work, run)

    for _ in train(this, objective, state, store, World(), snapshot=snapshot):
        pass
    last = folder / "last"
    last.mkdir(parents=True)
    state.save(last, this)
    commit(last, run, checkpoint_name(state.step * this.training.global_batch_size))
    return state


LONG = (
    "training.images=3072",  # 128 steps
    "training.ema_every_steps=1",
    "training.ema_snapshot_precision=fp32",
)


@pytest.fixture(scope="module")
def run(store_8: Store, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A GAN with 64 snapshots."""
    folder = tmp_path_factory.mktemp("long")
    run = Folder(str(folder / "digits"))
    written(gan(FP64, WIDTHS, *LONG, kind="dcgan"), store_8, run, folder / "work")
    return run


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor], keys: list[str]) -> float:
    return math.sqrt(sum(float((ours[k].double() - theirs[k]).square().sum()) for k in keys))


@pytest.fixture(scope="module")
def direct(store_8: Store) -> State:
    """The same training with other profiles, which snapshots of the first are to give."""
    return trained(gan(FP64, "training.ema_profiles=[0.07, 0.15]", *LONG, kind="dcgan"), store_8)[0]


@pytest.mark.parametrize("sigma", [0.07, 0.15])
def test_a_combination_is_the_profile_that_was_not_kept(
    run: Folder, direct: State, sigma: float
) -> None:
    """Three digits of its distance to the last weights; buffers bit for bit."""
    (made,) = averages(run.location, [sigma])
    assert (made.images, made.snapshots) == (3072, 64)
    assert made.error < 1e-3
    found = load_file(Path(made.location) / "ema.safetensors")
    expected = direct.profiles[str(sigma)].state_dict()
    last = direct.networks.state_dict()
    parameters = [name for name, _ in direct.profiles[str(sigma)].named_parameters()]
    assert distance(found, expected, parameters) < 1e-3 * distance(expected, last, parameters)
    assert found.keys() == expected.keys()
    buffers = expected.keys() - set(parameters)
    assert any("running_var" in name for name in buffers)
    assert all(torch.equal(found[name], expected[name]) for name in buffers)


def test_a_combination_until_an_earlier_snapshot(run: Folder, store_8: Store) -> None:
    made = ray_gen.ema(run.location, 0.07, at=1536)
    assert made.checkpoint == "ema-0.07-1536"
    assert made.snapshots == 32
    shorter = gan(FP64, "training.ema_profiles=[0.07]", *LONG, "training.images=1536", kind="dcgan")
    state, _ = trained(shorter, store_8)
    found = load_file(Path(made.location) / "ema.safetensors")
    expected, last = state.profiles["0.07"].state_dict(), state.networks.state_dict()
    parameters = [name for name, _ in state.profiles["0.07"].named_parameters()]
    assert distance(found, expected, parameters) < 3e-3 * distance(expected, last, parameters)


def test_every_command_takes_what_was_made(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_GEN_STORAGE", run.parent.location)
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> str:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    said = typed("ema", "digits", "--sigma", "0.05,0.120")
    assert "ema-0.12: averages of width 0.12 after 3,072 images, from 64 snapshots" in said
    typed("sample", "digits", "--checkpoint", "ema-0.12", "--count", "4", "--output", "a.npz")
    typed("sample", "digits/checkpoint_ema-0.12", "--count", "4", "--output", "b.npz")
    assert filecmp.cmp("a.npz", "b.npz", shallow=False)
    typed("export", "digits", "out", "--checkpoint", "ema-0.120", "--formats", "safetensors")
    ours = ray_gen.load("digits", checkpoint="ema-0.12")
    assert str(ours.facts) == "checkpoint of 3,072 images (ema-0.12), EMA"
    assert torch.equal(ray_gen.load("out").sample(4, seed=0), ours.sample(4, seed=0))
    # The average that the run has kept is what it is made of.
    kept = ray_gen.load("digits", checkpoint="ema-0.05").networks.state_dict()
    snapshot = load_file(snapshots(run)[-1].path / "profile-0.05.safetensors")
    for name, tensor in snapshot.items():
        torch.testing.assert_close(kept[name], tensor.double(), rtol=1e-5, atol=1e-8)
    assert ray_gen.load("digits").facts.source == "checkpoint (newest)"  # as before


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda run: averages(run, [0.3]), "--sigma: 0.3 is not from 0.001 to below 0.2887"),
        (lambda run: averages(run, [0.0]), "--sigma: 0.0 is not"),
        (lambda run: averages(run, [0.1], at=1000), "no snapshot of 1000 .* 960, 1008, 1056"),
        (lambda run: averages(run, [0.2], at=96), r"0.2 cannot be made from 2 .* error is \d\d %"),
        (lambda run: averages(f"{run}/{checkpoint_name(3072)}", [0.1]), "name its run"),
        (lambda run: ray_gen.load(run, checkpoint="ema-0.19"), "`ray-gen ema digits --sigma 0.19`"),
        (lambda run: ray_gen.load(run, checkpoint="ema"), "neither newest, best, ema-SIGMA nor"),
    ],
)
def test_refusals(run: Folder, act: Callable[[str], object], told: str) -> None:
    with pytest.raises(Refused, match=told):
        act(run.location)


def test_only_averages_are_in_what_was_made(run: Folder) -> None:
    averages(run.location, [0.11])
    with pytest.raises(CheckpointError, match=r"holds no networks.safetensors.* may be one of: 30"):
        ray_gen.load(run.location, checkpoint="ema-0.11", weights="raw")
    pipeline = ray_gen.load(run.location, checkpoint="ema-0.11")
    with pytest.raises(CheckpointError, match=r"holds no networks.safetensors"):
        pipeline.discriminate(pipeline.sample(2))


def test_a_run_may_start_from_what_was_made(run: Folder) -> None:
    made = averages(run.location, [0.13])[0]
    origin = read(Start(source=made.location))
    expected = load_file(Path(made.location) / "ema.safetensors")
    assert origin.tensors.keys() == expected.keys()
    assert all(torch.equal(origin.tensors[name], tensor) for name, tensor in expected.items())
    with pytest.raises(CheckpointError, match=r"holds no networks.safetensors"):
        read(Start(source=made.location, weights="raw"))


def test_a_run_without_snapshots_is_told_how_to_get_them(store_8: Store, tmp_path: Path) -> None:
    plain = Folder(str(tmp_path / "plain"))
    written(gan("training.images=48"), store_8, plain, tmp_path / "work")
    assert not (plain / SNAPSHOTS).exists()
    with pytest.raises(Refused, match=r"has no snapshots .*training.ema_profiles=\[0.05,0.1\]"):
        averages(plain.location, [0.1])


def test_a_snapshot_that_was_changed_is_refused(store_8: Store, tmp_path: Path) -> None:
    run = Folder(str(tmp_path / "run"))
    written(gan(WIDTHS, "training.ema_snapshot_images=96"), store_8, run, tmp_path / "work")
    file = snapshots(run)[2].path / "profile-0.1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged \(its SHA-256"):
        averages(run.location, [0.1])


def test_weights_too_large_for_half_precision_are_refused(store_8: Store, tmp_path: Path) -> None:
    run = Folder(str(tmp_path / "run"))
    this = gan(WIDTHS, "training.ema_snapshot_images=96")
    state = written(this, store_8, run, tmp_path / "work")
    with torch.no_grad():
        next(iter(state.profiles["0.1"].parameters())).fill_(1e5)
    (tmp_path / "more").mkdir()
    state.save_snapshot(tmp_path / "more", this)
    (run / SNAPSHOTS).remove(snapshot_name(480))
    commit_snapshot(tmp_path / "more", run)
    with pytest.raises(CheckpointError, match=r"not finite.*ema_snapshot_precision=fp32"):
        averages(run.location, [0.1])


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("interval", [10, 100, 130, 10**6])
def test_snapshots_come_with_updates_and_at_the_end(
    store_8: Store, tmp_path: Path, every: int, interval: int
) -> None:
    this = vae(
        "training.images=500",  # 21 steps
        f"training.ema_every_steps={every}",
        f"training.ema_snapshot_images={interval}",
        WIDTHS,
    )
    run = Folder(str(tmp_path / "run"))
    written(this, store_8, run, tmp_path / "work")
    updates = [24 * step for step in range(every, 22, every)]
    expected = {i for i in updates if i // interval > (i - 24 * every) // interval}
    expected |= {updates[-1]}
    assert [found.name for found in snapshots(run)] == [snapshot_name(i) for i in sorted(expected)]
    assert count_snapshots(this.training, this.steps) == len(expected)
    for found in snapshots(run):
        manifest = json.loads(found.read_text(MANIFEST))
        assert manifest["images"] == int(found.name.rpartition("_")[2])


def test_half_precision_is_the_default_and_copies_keep_their_type(
    store_8: Store, tmp_path: Path
) -> None:
    run = Folder(str(tmp_path / "run"))
    state = written(gan(WIDTHS, kind="dcgan"), store_8, run, tmp_path / "work")
    last = snapshots(run)[-1].path
    found = load_file(last / "profile-0.1.safetensors")
    expected = dict(state.profiles["0.1"].named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].half()) for name in found)
    copies = load_file(last / "copies.safetensors")
    assert copies.keys() == state.profiles["0.1"].state_dict().keys() - found.keys()
    last_ones = state.networks.state_dict()  # an update comes with the last step
    assert all(torch.equal(copy, last_ones[name]) for name, copy in copies.items())


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path / "run"))
    return Folder(request.getfixturevalue("s3").new_bucket()) / "run"


def contents(run: Folder) -> dict[str, bytes]:
    there = run / SNAPSHOTS
    return {f"{name}/{file}": (there / name).read_bytes(file) for name in there.names() for file in
            (there / name).names()}  # fmt: skip


def test_a_run_that_goes_on_makes_the_same_snapshots(
    store_8: Store, place: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the writer of run folders. It dies after a snapshot that its checkpoint does not
    know, and leaves half of another one."""
    monkeypatch.setattr("ray_gen.launch.worker.open_data", lambda experiment: store_8)
    this = gan(WIDTHS, "training.ema_snapshot_images=48", "training.images=480").with_fields(
        training__ema_every_steps=3, training__checkpoint_every_images=96
    )

    def go_on(run: Folder, *, die_after: int | None = None) -> None:
        for report, saved in reports(this, run, torch.device("cpu")):
            if saved is not None:
                if die_after is not None and report.images > die_after:
                    return
                commit(saved, run, checkpoint_name(report.images))

    straight = Folder(str(tmp_path / "straight"))
    go_on(straight)
    assert len(snapshots(straight)) == 6
    go_on(place, die_after=240)
    there = place / SNAPSHOTS
    before = there.names()
    assert before[-1] == snapshot_name(288)
    kept = (there / snapshot_name(144)).read_bytes("profile-0.1.safetensors")
    (there / snapshot_name(288)).write_bytes("profile-0.1.safetensors", b"other")
    (there / snapshot_name(360)).write_bytes("profile-0.1.safetensors", b"half")
    go_on(place)
    assert contents(place) == contents(straight)
    assert (there / snapshot_name(144)).read_bytes("profile-0.1.safetensors") == kept
    made = averages(place.location, [0.08])[0]
    ours = ray_gen.load(place.location, checkpoint="ema-0.08").networks
    theirs = ray_gen.load(averages(straight.location, [0.08])[0].location).networks
    assert made.snapshots == 6
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_resumed_run_has_the_same_profiles(store_8: Store, tmp_path: Path) -> None:
    """Bit for bit, also from between two updates of them."""
    this = gan(WIDTHS, "training.ema_every_steps=4", kind="dcgan")
    objective = build_objective(this)
    state, _ = stepped(this, objective, store_8, 10)
    state.save(tmp_path, this)
    again = State.build(this, objective, World())
    again.load(tmp_path)
    straight, _ = stepped(this, objective, store_8, 6, state)
    resumed, _ = stepped(this, objective, store_8, 6, again)
    assert largest_difference(weights(resumed), weights(straight)) == 0


def test_a_trial_that_takes_over_gives_its_snapshots_up(store_8: Store, tmp_path: Path) -> None:
    """They average the weights that it gives up."""
    runs = [Folder(str(tmp_path / name)) for name in "ab"]
    for run in runs:
        this = gan(WIDTHS, "training.ema_snapshot_images=96")
        written(this, store_8, run, tmp_path / f"work-{run.name}")
        run.write_text("experiment.yaml", this.to_yaml())
    donor, ours = runs
    adopt(ours, (donor / checkpoint_name(480)).path, "a", {"objective.label_smoothing": 0.1})
    assert snapshots(donor)
    assert not snapshots(ours)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("[0.1, 0.1]", "0.1 stands there twice"),
        ("[0.29]", "less than or equal to 0.28"),
        ("[0.0]", "greater than or equal to 0.001"),
        ("[0.05, 0.1, 0.2]", "at most 2"),
    ],
)
def test_widths_that_cannot_be_are_refused(given: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=rf"(?i)training\.ema_profiles.*{re.escape(told)}"):
        gan(f"training.ema_profiles={given}")
