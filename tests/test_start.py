"""`training.start_from`: what a new run takes of a trained model, and what it says of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import yaml

import ray_gen
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.start import Start
from ray_gen.launch.driver import experiment_before
from ray_gen.launch.search.checks import check_search
from ray_gen.launch.start import begin_from, begun, read, with_kept
from ray_gen.launch.worker import reports
from ray_gen.pipeline.pretrained import published
from ray_gen.runs.checkpoints import checkpoint_name, commit
from ray_gen.storage import Folder
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.sources import open_data, resolved_by
from ray_gen.training.start import Table, table_of
from ray_gen.training.state import State
from tests.data.pictures import write_classes
from tests.helpers import (
    STYLEGAN2,
    gan,
    largest_difference,
    latent_autoencoder,
    stepped,
    trained,
    vae,
    weights,
)

NEW = "new, other shape"
OLD = Path(__file__).parent / "old_runs" / "v0_1"


def saved(this: Experiment, store, folder: Path, steps: int = 3) -> Path:
    """A run folder with a checkpoint after some steps."""
    state, _ = stepped(this, build_objective(this), store, steps)
    images = steps * this.training.global_batch_size
    (folder / checkpoint_name(images)).mkdir(parents=True)
    state.save(folder / checkpoint_name(images), this)
    (folder / "experiment.yaml").write_text(this.to_yaml())
    return folder


def started(this: Experiment, source: object, run: Path, **more: Any) -> State:
    """The state of a new run before its first step."""
    given = {"source": str(source), **more}
    this = this.with_fields(training__start_from=given)
    objective = build_objective(this)
    state = State.build(this, objective, World())
    begin_from(this, objective, state, Folder(str(run)))
    return state


def table(this: Experiment, source: object, **more: Any) -> Table:
    this = this.with_fields(training__start_from={"source": str(source), **more})
    objective = build_objective(this)
    origin = read(Start(source=str(source), **more))
    return table_of(this, objective, build_networks(this, objective), origin)


def counts(found: Table) -> dict[str, tuple[int, int, int]]:
    return {p.name: (len(p.taken), len(p.new), len(p.left)) for p in found.parts}


@pytest.fixture(scope="module")
def source(store_8, tmp_path_factory) -> Path:
    """A conditional DCGAN after three steps."""
    this = gan("objective.conditional=true", kind="dcgan")
    return saved(this, store_8, tmp_path_factory.mktemp("runs") / "source")


def conditional(*more: str) -> Experiment:
    return gan("objective.conditional=true", *more, kind="dcgan")


def in_source(source: Path) -> dict[str, dict[str, torch.Tensor]]:
    this = conditional()
    state = State.build(this, build_objective(this), World())
    state.load(next(source.glob("checkpoint_*")))
    return weights(state)


def test_the_generator_begins_with_its_average_and_the_discriminator_as_it_was(
    source: Path, tmp_path: Path
) -> None:
    theirs, this = in_source(source), conditional("seed=5")
    ema, raw = (weights(started(this, source, tmp_path, weights=w)) for w in ("ema", "raw"))
    for found, of_generator in ((ema, "ema generator"), (raw, "generator")):
        for network, wanted in (
            *(("generator", of_generator), ("ema generator", of_generator)),
            ("discriminator", "discriminator"),
        ):
            for name, tensor in theirs[wanted].items():
                assert torch.equal(found[network][name], tensor)
    assert not torch.equal(ema["generator"]["layers.0.weight"], raw["generator"]["layers.0.weight"])


def test_the_same_experiment_and_source_give_the_same_bits(
    source: Path, store_8, tmp_path: Path
) -> None:
    """Also from what the run keeps, when the source is gone. Steps without a source differ."""
    this = conditional("seed=5", "training.images=96")
    gone = tmp_path / "gone"
    shutil.copytree(source, gone)
    run = Folder(str(tmp_path / "run"))
    given, origin = begun(this.with_fields(training__start_from=str(gone)), None, run)
    assert origin is not None
    objective = build_objective(given)
    origin.write(run, table_of(given, objective, build_networks(given, objective), origin))
    results = [trained(this, store_8, state=started(this, source, tmp_path / "other"))]
    shutil.rmtree(gone)
    again, kept = begun(given, None, run)
    assert again == given and kept is not None and kept.digest() == origin.digest()
    state = State.build(given, objective, World())
    begin_from(given, objective, state, run)
    results.append(trained(given, store_8, state=state))
    (ours, _), (theirs, _) = results
    for network, tensors in weights(ours).items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, weights(theirs)[network][name])
    without, _ = trained(this, store_8)
    assert not torch.equal(
        weights(without)["generator"]["layers.0.weight"],
        weights(ours)["generator"]["layers.0.weight"],
    )


def test_rows_of_classes_are_taken_by_name(source: Path, tmp_path: Path) -> None:
    """The source has 0..9. Here 7 and 3 are known, and x is new."""
    this = conditional("seed=5").with_fields(data__classes=["7", "x", "3"])
    theirs = in_source(source)
    fresh = weights(State.build(this, build_objective(this), World()))
    found = weights(started(this, source, tmp_path))
    for network, of_source in (("generator", "ema generator"), ("discriminator",) * 2):
        rows, were = (
            w[name]["label.table.weight"]
            for w, name in (
                (found, network),
                (theirs, of_source),
            )
        )
        assert torch.equal(rows[[0, 2]], were[[7, 3]])
        assert torch.equal(rows[1], fresh[network]["label.table.weight"][1])
    told = [*table(this, source).lines()]
    assert "generator.label.table: 2 of 3 classes taken, by name" in told
    assert counts(table(this, source))["generator"][1:] == (0, 0)


def test_the_same_number_of_other_classes_takes_no_row(source: Path, tmp_path: Path) -> None:
    this = conditional().with_fields(data__classes=[*"abcdefghij"])
    part = table(this, source).parts[0]
    assert part.new == {"label.table.weight": "new, no class of the source has a name of one here"}


def test_the_table_says_what_is_taken_what_is_new_and_why(source: Path) -> None:
    """Here without labels: the first layers have other shapes, and the tables are left."""
    found = table(gan(kind="dcgan"), source)
    lines = [*found.lines()]
    assert lines[0] == "source, 72 images, EMA of generator"
    assert lines[1].split() == ["tensors", "taken", "new", "left"]
    networks = {line.split()[0]: line.split()[1:4] for line in lines[2:4]}
    assert networks == {"generator": ["5", "1", "2"], "discriminator": ["1", "1", "2"]}
    assert lines[4:] == [
        f"generator.layers.0: {NEW} (37 x 8 x 4 x 4 in the source, 5 x 8 x 4 x 4 here)",
        "generator.label.table: left, nothing takes it",
        "generator.layers.0: left, nothing takes it",
        f"discriminator.layers.0: {NEW} (8 x 2 x 4 x 4 in the source, 8 x 1 x 4 x 4 here)",
        "discriminator.label.table: left, nothing takes it",
        "discriminator.layers.0: left, nothing takes it",
    ]


def test_a_layer_is_taken_whole_or_not_at_all(store_8, tmp_path: Path) -> None:
    """A bias or a singular vector that fits does not go without its weight."""
    norm = "networks.encoder.spectral_norm=true"
    run = saved(vae(norm), store_8, tmp_path / "a")
    wider = vae(norm, "objective.latent_size=6", "networks.encoder.hidden_sizes=[32]")
    encoder = next(p for p in table(wider, run).parts if p.name == "encoder")
    assert {name.split(".")[1] for name in encoder.taken} == {"0"}
    assert {name.split(".")[1] for name in encoder.new} == {"2"}
    assert "layers.2.parametrizations.weight.0.right" in encoder.new  # of the same shape


@pytest.mark.parametrize(
    ("side", "width", "generator", "discriminator"),
    [
        (16, 8, (), (0,)),  # the same channels at the image: D by its distance from it
        (16, 4, (0, 1, 2), ()),  # the same channels at 4 pixels: G by its distance from z
    ],
)
def test_layers_of_a_dcgan_for_larger_images(
    store_8, tmp_path: Path, side: int, width: int, generator, discriminator
) -> None:
    run = saved(gan(kind="dcgan"), store_8, tmp_path / "a")
    larger = gan(kind="dcgan").with_fields(
        data__image_size=[side, side],
        networks__generator__width=width,
        networks__discriminator__width=width,
    )
    names = [n for n, part in (("generator", generator), ("discriminator", discriminator)) if part]
    found = {part.name: part for part in table(larger, run, networks=names).parts}
    taken = {n: {int(t.split(".")[1]) for t in found[n].taken if "weight" in t} for n in names}
    wanted = {"generator": {*generator[:2]}, "discriminator": {*discriminator}}
    assert taken == {name: wanted[name] for name in names}


def test_layers_of_a_stylegan2_for_larger_images_match_by_resolution(
    store_8, tmp_path: Path
) -> None:
    """4 channels at 4 and 8 pixels, 2 at 16."""
    small = gan(*STYLEGAN2)
    run = saved(small, store_8, tmp_path / "a", steps=1)
    larger = small.with_fields(data__image_size=[16, 16])
    new = {
        part.name: {name.removesuffix(".scales.weight") for name in part.new if "weight" in name}
        for part in table(larger, run).parts
    }
    assert new == {
        "generator": {
            *("first.1", "first.1.weight", "second.2", "second.2.weight"),
            *("to_image.2", "to_image.2.weight"),
        },
        "discriminator": {
            "from_image.weight",
            *(f"blocks.b16.{layer}.weight" for layer in ("first", "second", "skip")),
        },
    }


def test_layers_of_an_r3gan_match_by_resolution_and_without_the_classes(
    store_8, tmp_path: Path
) -> None:
    """What depends on the number of classes is new, and no other layer."""
    kinds = [
        f"networks.{name}={{kind: r3gan, width: 8}}" for name in ("generator", "discriminator")
    ]
    small = gan("objective.conditional=true", *kinds)
    run = saved(small, store_8, tmp_path / "a", steps=1)
    fewer = small.with_fields(data__classes=["a", "b"])
    parts = table(fewer, run).parts
    assert [[*part.new] for part in parts] == [["from_labels"], ["from_labels"]]
    larger = small.with_fields(data__image_size=[16, 16])
    for part in table(larger, run).parts:
        layers = {name.rpartition(".")[0] if "." in name else name for name in part.new}
        assert all(layer.startswith("stages.2.") for layer in layers) and part.left == ()


def test_what_only_training_uses_begins_anew_and_what_samples_use_is_taken(
    store_8, tmp_path: Path
) -> None:
    lecam = gan("objective.lecam_weight=1", "objective.loss=hinge")
    gaussian = vae("objective.likelihood=gaussian", "objective.sigma=learned")
    for this, own, is_taken in ((lecam, "anchors", False), (gaussian, "likelihood", True)):
        run = saved(this, store_8, tmp_path / own)
        state = weights(started(this, run, tmp_path))[own]
        fresh = weights(State.build(this, build_objective(this), World()))[own]
        same = all(torch.equal(state[name], fresh[name]) for name in fresh)
        assert same != is_taken
        part = next(p for p in table(this, run).parts if p.name == own)
        assert bool(part.taken) == is_taken
        assert part.remark == ("" if is_taken else "begins anew: it is the state of a training")


def test_a_codebook_is_taken_whole_or_not_at_all(store_8, tmp_path: Path) -> None:
    """The counts of codes of 2 numbers mean nothing for codes of 3."""
    vq = "objective.bottleneck={kind: vq, codes: 16}"
    run = saved(latent_autoencoder(vq), store_8, tmp_path / "source")
    for channels in (2, 3):
        this = latent_autoencoder(vq, f"objective.latent_channels={channels}")
        state = weights(started(this, run, tmp_path / f"{channels}"))["quantiser"]
        fresh = weights(State.build(this, build_objective(this), World()))["quantiser"]
        same = {name for name in fresh if torch.equal(state[name], fresh[name])}
        assert same == (set() if channels == 2 else set(fresh))


def test_the_optimisers_begin_anew(source: Path, tmp_path: Path) -> None:
    state = started(conditional(), source, tmp_path)
    assert state.step == 0 and not any(tensor.any() for tensor in state.moments().values())


@pytest.mark.parametrize(
    ("this", "told"),
    [
        (
            conditional("networks.discriminator={kind: mlp}"),
            r"nothing of discriminator fits source, 72 .*\(dcgan in the source, mlp here\); set "
            r"training.start_from.networks=\[generator\] to begin it anew",
        ),
        (
            vae(),
            r"source, 72 images, EMA of generator has no encoder; it has discriminator, generator;"
            r" choose another model",
        ),
        (
            conditional("networks.generator.width=5", "networks.discriminator.width=6"),
            r"nothing of generator fits .*other shape \(37 x 8 x 4 x 4 in the source, 37 x 5",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(source: Path, this: Experiment, told: str) -> None:
    with pytest.raises(Refused, match=r"training\.start_from: " + told):
        table(this, source)


def test_a_network_may_begin_anew(source: Path) -> None:
    this = conditional("networks.discriminator={kind: mlp}")
    found = counts(table(this, source, networks=["generator"]))
    assert found["generator"][1:] == (0, 0) and found["discriminator"][0] == 0
    with pytest.raises(Refused, match=r"start_from\.networks: the model has no network judge; it"):
        table(this, source, networks=["judge"])


def test_a_source_that_has_changed_is_refused_until_the_run_has_a_checkpoint(
    source: Path, store_8, tmp_path: Path
) -> None:
    moving = tmp_path / "moving"
    shutil.copytree(source, moving)
    run = Folder(str(tmp_path / "run"))
    asked = conditional().with_fields(training__start_from=str(moving))
    given, _ = begun(asked, None, run)
    trained_on = next(moving.glob("checkpoint_*"))
    shutil.rmtree(trained_on)
    saved(conditional("seed=9"), store_8, moving)
    with pytest.raises(Refused, match=r"start_from\.digest: moving, 72 images.* another model"):
        begun(given, None, run)
    assert begun(given, given, run) == (given, None)
    assert begun(asked, given, run) == (given, None)  # the command that began it


def test_a_name_in_the_storage_and_a_path_are_the_same_source(
    source: Path, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_GEN_STORAGE", str(source.parent))
    asked = conditional().with_fields(training__start_from="source")
    given, _ = begun(asked, None, Folder(str(tmp_path)))
    start = given.training.start_from
    assert start is not None and start.source == str(source)
    assert begun(asked, given, Folder(str(tmp_path)))[0] == given


def test_an_exported_folder_starts_the_networks_that_it_has(source: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    ray_gen.load(source).save_pretrained(exported)
    told = r"exported \(exported\), 72 images.* has no discriminator; it has generator; set"
    with pytest.raises(Refused, match=told):
        table(conditional(), exported)
    state = weights(started(conditional("seed=5"), exported, tmp_path, networks=["generator"]))
    theirs = in_source(source)["ema generator"]
    assert all(torch.equal(state["generator"][name], theirs[name]) for name in theirs)
    with pytest.raises(Refused, match=r"start_from\.weights: .* holds averages \(EMA\) and no raw"):
        table(conditional(), exported, networks=["generator"], weights="raw")


@pytest.mark.parametrize("name", ["vae", "cdcgan"])
def test_a_run_of_0_1_starts_a_run(name: str, tmp_path: Path) -> None:
    before = experiment_before(Folder(str(OLD / name)))
    assert before is not None
    for source, networks in ((OLD / name, "auto"), (OLD / f"{name}-export", None)):
        more = {} if networks else {"networks": [*build_objective(before).sampled_from]}
        found = table(before, source, **more)
        wanted = set(more.get("networks", before.networks))
        assert all(part.taken and not part.new for part in found.parts if part.name in wanted)


def test_trials_of_a_search_start_from_what_the_search_keeps(
    source: Path, tmp_path: Path, store_8
) -> None:
    asked = conditional("search={space: {networks.generator.width: {choice: [8, 5]}}, trials: 2}")
    search = Folder(str(tmp_path / "search"))
    experiment, origin = begun(asked.with_fields(training__start_from=str(source)), None, search)
    assert origin is not None and experiment.training.start_from is not None
    origin.write(search)
    trial = with_kept(experiment, search).training.start_from
    assert trial is not None and trial.source == str(tmp_path / "search" / "start")
    given = started(conditional("seed=5"), trial.source, tmp_path, digest=trial.digest)
    theirs = started(conditional("seed=5"), source, tmp_path)
    assert largest_difference(weights(given), weights(theirs)) == 0
    with pytest.raises(ExperimentError, match=r"width: 5: training\.start_from: nothing of gen"):
        check_search(experiment, store_8, origin)


def test_no_code_of_the_source_runs(source: Path, tmp_path: Path) -> None:
    """Classes that are not there are no matter: only tensors are read."""
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    (checkpoint,) = copy.glob("checkpoint_*")
    given = yaml.safe_load((checkpoint / "experiment.yaml").read_text())
    given["networks"]["generator"] = {"kind": "custom", "target": "not_there:Generator"}
    text = yaml.safe_dump(given)
    (checkpoint / "experiment.yaml").write_text(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["experiment.yaml"]["bytes"] = len(text)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    found = table(conditional(), copy)
    assert counts(found)["generator"][1:] == (0, 0)
    assert found.parts[0].remark == "not_there:Generator in the source, dcgan here"


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"training\.start_from: no run 'nowhere'"):
        read(Start(source="nowhere"))
    with pytest.raises(Refused, match=r"training\.start_from: .*no such run"):
        read(Start(source=str(tmp_path / "none")))


def test_fields_read_as_they_are_written() -> None:
    short = vae("training.start_from=digits", "training.start_from.weights=raw")
    assert short.training.start_from == Start(source="digits", weights="raw")
    with pytest.raises(ExperimentError, match=r"training\.start_from\.weights"):
        vae("training.start_from={source: a, weights: best}")
    secret = vae("training.start_from=/home/me/runs/digits")
    assert published(secret).training.start_from == Start(source="digits")


def test_a_run_begins_with_another_and_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    images = write_classes(tmp_path / "images", {"a": 20, "b": 20})
    short = {"training.images": 48, "data": f"folder:{images}", "workers.cpus": 1}
    place: dict[str, Any] = {"storage": str(tmp_path), "local": True}
    first = ray_gen.train(given(short), name="a", **place)
    follow = given({**short, "training.start_from": first.location})
    plan = ray_gen.check(follow, name="b", **place)
    assert "start       a, 48 images, EMA of decoder and encoder" in plan.text()
    assert not (tmp_path / "b").exists()
    second = ray_gen.train(follow, name="b", show=True, **place)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["encoder", "4", "0", "0"] in lines
    told = json.loads((tmp_path / "b" / "start" / "start.json").read_text())
    assert told["source"] == first.location
    shutil.rmtree(tmp_path / "a")
    this = Experiment.from_yaml((tmp_path / "b" / "experiment.yaml").read_text())
    objective = build_objective(this)
    ours, theirs = (State.build(this, objective, World()) for _ in range(2))
    begin_from(this, objective, ours, Folder(second.location))
    trained(this, open_data(this), state=ours)
    theirs.load(tmp_path / "b" / checkpoint_name(48))
    assert largest_difference(weights(ours), weights(theirs)) == 0
    again = ray_gen.resume(second.location, {"training.images": 96})
    assert again.images == 96


def _rank(rank: int, count: int, port: int, text: str, run: str) -> None:
    """A worker of a run, as Ray Train starts it."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=count)
    this = Experiment.from_yaml(text)
    for report, saved in reports(this, Folder(run), torch.device("cpu")):
        if saved is not None:
            commit(saved, Folder(run), checkpoint_name(report.images))
    if count > 1:
        dist.destroy_process_group()


def test_the_number_of_workers_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    """Each worker reads what the run keeps. On the workers, the source is gone."""
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    images = write_classes(tmp_path / "images", {"a": 20, "b": 20})
    freeze = "training.freeze={discriminator: 1}"
    text = gan(freeze, "training.precision=fp64", kind="dcgan").to_yaml()
    changes = [f"data={{kind: folder, path: {images}, image_size: 8}}", "training.images=96"]
    asked = Experiment.from_yaml(text, changes)
    this = resolved_by(asked, open_data(asked))
    source = saved(this.with_fields(seed=3), open_data(this), tmp_path / "source")
    found: list[Any] = []
    for count in (1, 2):
        run = Folder(str(tmp_path / f"run-{count}"))
        with_source = this.with_fields(training__start_from=str(source))
        experiment, origin = begun(with_source, None, run)
        assert origin is not None
        origin.write(run)
        source.rename(tmp_path / "elsewhere")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = (count, port, experiment.to_yaml(), run.location)
        torch.multiprocessing.spawn(_rank, given, nprocs=count)
        (tmp_path / "elsewhere").rename(source)
        state = State.build(experiment, build_objective(experiment), World())
        state.load(run.path / checkpoint_name(96))
        found.append(weights(state))
    assert largest_difference(*found) < 1e-12
    theirs = State.build(this, build_objective(this), World())
    theirs.load(source / checkpoint_name(72))
    frozen = "layers.0.weight"
    assert torch.equal(found[0]["discriminator"][frozen], weights(theirs)["discriminator"][frozen])


def given(changes: dict[str, Any]) -> Experiment:
    this = Experiment.from_yaml(vae().to_yaml(), [])
    bare = this.with_fields(data={"kind": "mnist5k", "image_size": 8})
    return bare.changed(changes)
