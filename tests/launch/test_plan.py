"""`--check`: what a run would be. The numbers are those of the run that then trains."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import ray_gen
from ray_gen import losses
from ray_gen.cli import main
from ray_gen.data import Store
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.experiment.manual import brief_yaml
from ray_gen.launch import alone
from ray_gen.launch.plan import Plan, plan_of
from ray_gen.recipes import names, recipe
from ray_gen.training import memory
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.memory import memory_of
from tests.data.pictures import write_classes
from tests.helpers import STYLEGAN2, gan, latent_autoencoder, relativistic, trained, vae, vae_gan
from tests.launch.test_driver import Here, finished


def plan(this: Experiment, store: Store, ray: str | None = None, **more: Any) -> Plan:
    objective = build_objective(this)
    networks = build_networks(this, objective)
    given = {"data": ("images",), "from_images": None, "ray": ray, **more}
    return plan_of(this, "/runs/a", store, objective, networks, **given)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("training.report_every_images=100", "training.checkpoint_every_images=250"),
        ("training.report_every_images=7", "training.checkpoint_every_images=100000"),
        ("evaluation.every_images=130", "training.images=481"),
    ],
)
def test_counts_are_those_of_the_run(store_8: Store, changes: tuple[str, ...]) -> None:
    this = vae(*changes)
    found = "\n".join(plan(this, store_8).lines())
    _, reports = trained(this, store_8)
    training, batch = this.training, this.training.global_batch_size

    def times(every: int) -> list[int]:
        """The reports in which a multiple of `every` images lies, and the last."""
        return [
            report.images
            for report in reports
            if report.images % every < batch or report.stop is not None
        ]

    for what, every, of in (
        ("report", training.report_every_images, times(training.report_every_images)),
        ("checkpoint", training.checkpoint_every_images, times(training.checkpoint_every_images)),
    ):
        assert f"{len(of)} {what}" in found, (what, every)
    evaluations = [report for report in reports if report.evaluate]
    assert f"{len(evaluations) or 'no'} evaluation" in found
    assert f"{this.steps} of 24 images: {this.steps * batch} images" in found


@pytest.mark.parametrize("this", [vae(), gan(kind="dcgan"), vae_gan()], ids=["vae", "gan", "own"])
def test_memory_of_weights_and_moments_is_that_of_the_state(
    store_8: Store, this: Experiment
) -> None:
    state, _ = trained(this.with_fields(training__images=24), store_8)
    memory = plan(this, store_8, measured=True).memory
    assert memory is not None
    tensors = [*state.networks.parameters(), *state.networks.buffers()]
    assert memory.weights == sum(tensor.nbytes for tensor in tensors)
    assert memory.optimizers == sum(moment.nbytes for moment in state.moments().values())
    assert memory.ema == sum(t.nbytes for t in (*state.ema.parameters(), *state.ema.buffers()))
    assert 0 < memory.gradients <= sum(p.nbytes for p in state.networks.parameters())
    assert memory.total > memory.weights + memory.optimizers + memory.ema


def activations(this: Experiment, micro_batch: int = 24) -> int:
    return memory_of(this, build_objective(this), micro_batch=micro_batch).activations


def test_memory_is_that_of_the_step_in_which_all_losses_are_due() -> None:
    """Also of those that begin in mid-run."""
    late = latent_autoencoder(
        "objective.discriminator_start_images=120", "objective.start_images=240"
    )
    never = latent_autoencoder("objective.start_images=4800")
    once = latent_autoencoder("objective.adversarial_weight=0")
    whole = activations(latent_autoencoder(), 6)
    assert activations(late, 6) == whole > activations(once, 6)
    assert activations(never, 6) < whole


def test_activations_grow_with_the_micro_batch_and_the_networks() -> None:
    this = gan(kind="dcgan")
    once, twice, thrice = (activations(this, count) for count in (24, 48, 72))
    assert twice - once == pytest.approx(thrice - twice, abs=1) and twice > 1.8 * once
    whole = activations(this.with_fields(training__group_size=24))
    assert activations(this) == pytest.approx(whole, rel=0.05)
    wide = gan("networks.discriminator.width=16", kind="dcgan")
    assert activations(wide) > 1.2 * activations(this)


WEIGHTS_ARE_KEPT: dict[str, Experiment] = {
    "equalised weights": gan(*STYLEGAN2, "training.group_size=24"),
    "weights in bf16": gan("training.precision=bf16", "training.group_size=24", kind="dcgan"),
    "a group of its own": gan(
        *STYLEGAN2, "training.group_size=24", "networks.discriminator.deviation_group=12"
    ),
    "R3GAN": gan(
        "networks.generator={kind: r3gan, width: 16}",
        "networks.discriminator={kind: r3gan, width: 16}",
        "training.group_size=24",
    ),
}
"""Copies of weights are kept once, whatever the number of images."""


@pytest.mark.parametrize("this", WEIGHTS_ARE_KEPT.values(), ids=WEIGHTS_ARE_KEPT)
def test_few_images_tell_what_many_keep(this: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    found = activations(this)
    monkeypatch.setattr(memory, "FEW", 24)  # no smaller group: the whole one is measured
    assert found == pytest.approx(activations(this), rel=0.03)


def test_users_classes_get_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = memory.labels_in_turn
    monkeypatch.setattr(
        memory, "labels_in_turn", lambda this, n: seen.append(len(n)) or real(this, n)
    )
    activations(vae("training.group_size=24"))
    activations(vae_gan("training.group_size=24"))  # of the tests' own
    assert seen == [4, 6, 24]


def test_what_a_rare_penalty_keeps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """R1 is computed every 16th update of a discriminator with two updates a step."""
    seen: list[int] = []
    real = losses.squared_gradient_norm

    def counted(logits: Tensor, images: Tensor) -> Tensor:
        seen.append(len(images))
        return real(logits, images)

    monkeypatch.setattr(losses, "squared_gradient_norm", counted)
    rare = ("objective.r1_weight=1", "objective.r1_every=16", "objective.discriminator_steps=2")
    activations(gan(*rare, kind="dcgan"))
    assert seen == [6]  # one group


def test_activations_of_a_chain_of_layers_are_their_inputs() -> None:
    """A plain autoencoder of linear layers and ReLU: by hand."""
    sizes = "hidden_sizes: [128, 128]"
    this = vae(
        "objective={kind: autoencoder, latent_size: 16}",
        f"networks={{encoder: {{kind: mlp, {sizes}}}, decoder: {{kind: mlp, {sizes}}}}}",
    )
    # Inputs of the six linear layers (ReLU keeps its output, which is the next input), and the two
    # arguments of the loss.
    by_hand = 4 * (64 + 128 + 128 + 16 + 128 + 128 + 64 + 64) * 24
    assert activations(this) == pytest.approx(by_hand, rel=0.25)


def test_measuring_changes_nothing(store_8: Store) -> None:
    this = relativistic()
    before = torch.random.get_rng_state()
    first, again = (memory_of(this, build_objective(this), micro_batch=24) for _ in range(2))
    assert first == again
    assert torch.equal(torch.random.get_rng_state(), before)
    fields = this.model_dump()
    plan(this, store_8, measured=True)
    assert this.model_dump() == fields


def test_where_and_on_how_many_workers(store_8: Store) -> None:
    for changes, ray, told in (
        ((), None, "without Ray, on the CPU with"),
        (("workers.count=2",), "workers.count=2", "on Ray (workers.count=2), 2 workers"),
        (("workers.count={max: 3}",), "elastic", "on Ray (elastic), up to 3 workers"),
        ((), "--ray", "on Ray (--ray), a worker on each GPU, else one"),
    ):
        assert told in str(plan(vae(*changes), store_8, ray))
    found = str(plan(vae("workers.count=4", "training.micro_batch_size=6"), store_8, "many"))
    assert "6 on each of 4 workers" in found
    found = str(plan(vae("workers.count=3", "training.micro_batch_size=6"), store_8, "many"))
    assert "12 on each of 3 workers, 6 at once" in found  # the largest share


@pytest.mark.parametrize("name", names())
def test_the_brief_yaml_of_a_recipe_is_the_same_experiment(name: str) -> None:
    this = recipe(name)
    assert Experiment.from_yaml(brief_yaml(this)) == this
    assert len(brief_yaml(this)) < 0.5 * len(this.to_yaml())


@pytest.mark.parametrize(
    "this",
    [
        vae_gan(),
        gan("objective.r1_weight={kind: cosine, start: 2, end: 1, until_images: 900}"),
        vae("loggers=[csv, {kind: mlflow, experiment: a}]", "workers.count={max: 3}"),
        vae("optimizers.autoencoder={kind: sgd, learning_rate: 1e-3}", "data.value_range=[0, 4]"),
        vae("search.space.objective.beta={uniform: [0.1, 1]}"),
    ],
)
def test_the_brief_yaml_is_the_same_experiment(this: Experiment) -> None:
    assert Experiment.from_yaml(brief_yaml(this)) == this


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A file and assignments of an experiment on images in folders. No runs yet."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_GEN_STORAGE", str(tmp_path / "runs"))
    images = write_classes(tmp_path / "images", {"a": 20, "b": 20})
    file = tmp_path / "my.yaml"
    file.write_text(vae().to_yaml())
    return file, [f"data=folder:{images}"]


def test_nothing_is_started_or_written(
    given: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "WorkerProcess", None)
    found = ray_gen.check(*given, name="a")
    assert not (tmp_path / "runs").exists()
    assert (found.location, found.from_images) == (str(tmp_path / "runs" / "a"), None)
    assert found.experiment.data.classes == ("a", "b")
    assert found.data[0].startswith("40 images")
    text = str(found)
    for told in (f"{tmp_path}/runs/a, from the beginning", "about", "tensorboard", *found.lines()):
        assert told.partition(": ")[0] in text
    assert "\n" not in repr(found)
    assert Experiment.from_yaml(text.partition("# experiment")[2].partition("\n")[2]) == (
        found.experiment
    )


def test_a_likelihood_that_does_not_suit_the_pixels_is_told(given: tuple[Path, list[str]]) -> None:
    """RGB noise: most values are neither black nor white."""
    file, assignments = given
    told, quiet = (
        "\n".join(ray_gen.check(file, [*assignments, *more], name="a").data)
        for more in ([], ["objective.likelihood=logistic_mixture"])
    )
    assert "a Bernoulli likelihood is of black and white pixels, and 9" in told
    assert "set objective.likelihood to gaussian" in told
    assert "Bernoulli" not in quiet


def test_training_says_the_same_before_it_starts(
    given: tuple[Path, list[str]], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "WorkerProcess", Here)
    found = ray_gen.check(*given, local=True, show=False)
    ray_gen.train(*given, local=True, show=True)
    told = capfd.readouterr().err.splitlines()
    expected = [found.data[0], *found.lines()]
    assert [line for line in told if line in expected] == expected
    assert len(expected) == 4


def test_a_run_that_is_there_goes_on_or_is_refused(
    given: tuple[Path, list[str]], tmp_path: Path
) -> None:
    this = recipe(*(str(given[0]), *given[1]))
    run = finished(this, tmp_path / "runs", 240)
    shutil.rmtree(run / "checkpoint_000000000480", ignore_errors=True)
    before = sorted(path.name for path in run.iterdir())
    found = ray_gen.check(*given, name="a")
    assert found.from_images in (240, 480)
    assert f"goes on from {found.from_images} images" in str(found)
    assert sorted(path.name for path in run.iterdir()) == before
    with pytest.raises(Refused, match="leave out --fresh"):
        ray_gen.check(*given, name="a", fresh=True)
    with pytest.raises(Refused, match="another experiment"):
        ray_gen.check(given[0], [*given[1], "seed=3"], name="a")


def test_the_command(given: tuple[Path, list[str]], tmp_path: Path) -> None:
    file, assignments = given
    command = ["train", str(file), *assignments, "--local"]
    done = CliRunner().invoke(main, [*command, "--check"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "max_restarts" not in done.stdout
    assert "networks    encoder" in done.stdout
    done = CliRunner().invoke(main, [*command, "--check", "--full"], catch_exceptions=False)
    assert "max_restarts" in done.stdout
    done = CliRunner().invoke(main, [*command, "--full"])
    assert done.exit_code == 2 and "belongs to --check" in done.stderr
    done = CliRunner().invoke(main, [*command, "--check", "workers.count=2"])
    assert done.exit_code == 2 and "needs Ray" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_snapshots_of_profiles_are_told_with_their_size(
    store_8: Store, tmp_path: Path, precision: str
) -> None:
    assert "snapshots" not in plan(gan(), store_8).text()
    this = gan(
        "training.ema_profiles=[0.05, 0.1]",
        "training.ema_snapshot_images=100",
        f"training.ema_snapshot_precision={precision}",
        "networks.generator.hidden_sizes=[300]",
    )
    said = plan(this, store_8).text()
    state, _ = trained(this, store_8)
    state.save_snapshot(tmp_path, this)
    size = sum(file.stat().st_size for file in tmp_path.glob("profile-*"))
    match = re.search(r"snapshots +5 of the averages of widths 0.05 and 0.1: (\d+) KiB", said)
    assert match is not None
    assert int(match[1]) * 2**10 == pytest.approx(5 * size, rel=0.02)
