"""The experiment: round trips, assignments, and refusals that name the field and the remedy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_gen import recipes
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, ExperimentError, differences
from ray_gen.settings import Settings, absolute_path
from tests.helpers import gan, vae

VAE = """
data: mnist5k
networks:
  encoder: {kind: mlp}
  decoder: {kind: mlp}
objective: {kind: vae}
optimizers:
  autoencoder: {kind: adam, learning_rate: 1e-3}
training: {images: 1000, global_batch_size: 64, group_size: 16}
"""
GAN = """
data: {kind: folder, path: pictures, image_size: 32, channels: 3}
networks:
  generator: {kind: dcgan}
  discriminator: {kind: dcgan}
objective: {kind: gan}
optimizers:
  generator: {kind: adam, learning_rate: 2e-4}
  discriminator: {kind: adam, learning_rate: 2e-4}
training: {images: 1000, global_batch_size: 64, group_size: 16}
"""


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_survives_its_yaml(name: str) -> None:
    experiment = recipes.recipe(name)
    text = experiment.to_yaml()
    assert Experiment.from_yaml(text) == experiment
    assert Experiment.from_yaml(text).to_yaml() == text
    assert yaml.safe_load(text)["training"]["ema_every_steps"] > 0  # defaults are written out
    assert experiment.name == name
    assert recipes.claim(name)


@pytest.mark.parametrize(
    "experiment",
    [
        vae("objective.likelihood=gaussian", "objective.sigma=0.3"),
        gan("objective.augment=[color, cutout]", "training.micro_batch_size=12"),
        Experiment.from_yaml(GAN, ["data=torchvision:CIFAR10", "data.options={split: byclass}"]),
        Experiment.from_yaml(GAN, ["data=parquet:s3://bucket/images", "data.image_size=[32, 32]"]),
        Experiment.from_yaml(VAE, ["checkpoints.best={metric: elbo, mode: max}"]),
        # Strings that look like something else.
        Experiment.from_yaml(VAE, ["name='1e3'", "data.classes=['1e-4', '.5E3', 'no', '1', '~']"]),
        Experiment.from_yaml(
            VAE, ["name=ﬀß数", "storage='a: b #c'", "data.classes=['', ' x', '\n']"]
        ),
    ],
)
def test_experiments_survive_their_yaml(experiment: Experiment) -> None:
    assert Experiment.from_yaml(experiment.to_yaml()) == experiment


def test_a_resolved_experiment_resolves_to_itself() -> None:
    resolved = vae()
    assert resolved.resolved((1, 8, 8), resolved.data.classes) == resolved


@pytest.mark.parametrize(("channels", "opacity"), [(1, False), (2, True), (3, False), (4, True)])
def test_of_a_run_without_the_field_2_and_4_channels_have_opacity(
    channels: int, opacity: bool
) -> None:
    """As before the field. What begins now takes what its data say."""
    given = vae().with_fields(data__channels=channels, data__digest="abc").model_dump(mode="json")
    del given["data"]["opacity"]
    before = Experiment.of(given)
    assert before.data.has_opacity() == opacity
    begun = Experiment.from_yaml(VAE, [f"data.channels={channels}", "data.rules=2"])
    assert begun.data.opacity == "auto"
    assert begun.resolved((channels, 28, 28), None, opacity=False).data.opacity is False
    # The command that began the run continues it, whatever its data say today.
    again = begun.with_rules_of(before).resolved((channels, 28, 28), None, opacity=not opacity)
    assert again.data.has_opacity() == opacity


def test_opacity_needs_2_or_4_channels() -> None:
    for channels in ("2", "4", "auto", "null"):
        Experiment.from_yaml(VAE, ["data.opacity=true", f"data.channels={channels}"])
    with pytest.raises(ExperimentError, match=r"data\.opacity: true needs 2 or 4 channels"):
        Experiment.from_yaml(VAE, ["data.opacity=true", "data.channels=3"])


def test_the_digest_is_always_that_of_the_data_at_hand() -> None:
    """A copied experiment can be trained on other data. It then has another identity."""
    copied = Experiment.from_yaml(VAE, ["data.digest=other"])
    resolved = copied.resolved((1, 28, 28), None, "this")
    assert resolved.data.digest == "this"
    assert Experiment.from_yaml(resolved.to_yaml()) == resolved
    assert "digest" not in resolved.data.arguments()
    assert list(differences(resolved, copied.resolved((1, 28, 28), None, "that"))) == [
        "data.digest: 'this' here, 'that' there"
    ]


def test_nothing_changes_after_it_is_made() -> None:
    experiment = Experiment.from_yaml(VAE)
    with pytest.raises(ValidationError):
        experiment.seed = 3
    with pytest.raises(ValidationError):
        experiment.training.images = 3


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("training.images=100_000", "training.images", 100_000),
        ("optimizers.autoencoder.learning_rate=1e-4", "optimizers.autoencoder.learning_rate", 1e-4),
        (
            "optimizers.autoencoder.learning_rate=2E-04",
            "optimizers.autoencoder.learning_rate",
            2e-4,
        ),
        (
            "optimizers.autoencoder.learning_rate=.5e-3",
            "optimizers.autoencoder.learning_rate",
            5e-4,
        ),
        ("optimizers.autoencoder.learning_rate=1", "optimizers.autoencoder.learning_rate", 1.0),
        ("optimizers.autoencoder.betas=[0.5, 0.9]", "optimizers.autoencoder.betas", (0.5, 0.9)),
        (
            "optimizers.autoencoder.schedule.warmup_images=10",
            "optimizers.autoencoder.schedule",
            None,
        ),
        ("networks.encoder.hidden_sizes=[10, 20]", "networks.encoder.hidden_sizes", (10, 20)),
        ("objective.conditional=true", "objective.conditional", True),
        ("objective.sigma=0.1", "objective.sigma", 0.1),
        ("workers.count=2", "workers.count", 2),
        ("workers.count=auto", "workers.count", "auto"),
        ("workers.gpu=false", "workers.gpu", False),
        ("checkpoints.best={metric: elbo, mode: max}", "checkpoints.best.metric", "elbo"),
        ("storage=s3://bucket/a=b", "storage", "s3://bucket/a=b"),
        ("storage=null", "storage", None),
        ("name=a=b", "name", "a=b"),
        ("data.flip=true", "data.flip", True),
        ("data.kind=mnist5k", "data.kind", "mnist5k"),
        ("data=folder:/somewhere/else", "data.path", "/somewhere/else"),
        ("data=parquet:hdfs://node/x.parquet", "data.path", "hdfs://node/x.parquet"),
        ("data=torchvision:CIFAR10", "data.dataset", "CIFAR10"),
    ],
)
def test_any_field_can_be_assigned_by_its_dotted_path(override: str, path: str, value) -> None:
    here = Experiment.from_yaml(VAE, [override])
    for part in path.split("."):
        here = here[part] if isinstance(here, dict) else getattr(here, part)
    if isinstance(here, Settings):
        assert here.warmup_images == 10
    else:
        assert here == value
        assert type(here) is type(value)


@given(st.floats(1e-30, 1e30), st.sampled_from(["{:e}", "{:g}", "{!r}", "{:.3E}"]))
def test_every_way_to_write_a_number_is_read_as_one(number: float, how: str) -> None:
    text = how.format(number)
    experiment = Experiment.from_yaml(VAE, [f"optimizers.autoencoder.learning_rate={text}"])
    assert experiment.optimizers["autoencoder"].learning_rate == float(text)


def test_assignments_are_made_in_their_order() -> None:
    experiment = Experiment.from_yaml(
        VAE, ["seed=1", "data=folder:x", "data.flip=true", "data.path=y", "seed=2"]
    )
    assert (experiment.seed, experiment.data.path, experiment.data.flip) == (2, "y", True)
    assert Experiment.from_yaml(VAE, ["data=folder", "data.path=z"]).data.path == "z"


def test_what_aliases_share_is_assigned_apart() -> None:
    text = GAN.replace("generator: {kind: dcgan}", "generator: &same {kind: dcgan}", 1)
    text = text.replace("discriminator: {kind: dcgan}", "discriminator: *same", 1)
    experiment = Experiment.from_yaml(text, ["networks.discriminator.width=16"])
    assert experiment.networks["discriminator"].width == 16
    assert experiment.networks["generator"].width == 64


@pytest.mark.parametrize(
    ("text", "overrides", "path", "left"),
    [
        # Both kinds have latent_size and likelihood.
        (
            VAE,
            [
                "objective={kind: vae, latent_size: 3, likelihood: gaussian, sigma: 0.1, beta: 2}",
                "objective.kind=autoencoder",
            ],
            "objective",
            {"latent_size": 3, "likelihood": "gaussian"},
        ),
        (
            VAE,
            [
                "networks.encoder={kind: mlp, hidden_sizes: [3], label_size: 5}",
                "networks.encoder.kind=conv",
                "networks.encoder.width=7",
            ],
            "networks.encoder",
            {"label_size": 5, "width": 7},
        ),
        (
            VAE,
            [
                "optimizers.autoencoder={kind: adamw, learning_rate: 1, weight_decay: 2, eps: 3}",
                "optimizers.autoencoder.kind=sgd",
            ],
            "optimizers.autoencoder",
            {"learning_rate": 1, "weight_decay": 2},
        ),
        (
            GAN,
            ["data={kind: parquet, path: x, image_column: a, flip: true}", "data.kind=folder"],
            "data",
            {"path": "x", "flip": True},
        ),
        (
            GAN,
            ["data=torchvision:CIFAR10", "data.kind=folder", "data.path=x"],
            "data",
            {"path": "x"},
        ),
        # A network whose name is also the name of a kind.
        (
            VAE.replace("encoder:", "conv:").replace("{kind: vae}", "{kind: custom, target: a:B}"),
            ["networks.conv.hidden_sizes=[3]", "networks.conv.kind=dcgan"],
            "networks.conv",
            {},
        ),
        # The schedule has a kind, too, but is one class: nothing of it is dropped.
        (
            VAE,
            [
                "optimizers.autoencoder.schedule={kind: linear, horizon_images: 5}",
                "optimizers.autoencoder.schedule.kind=constant",
            ],
            "optimizers.autoencoder.schedule",
            {"horizon_images": 5},
        ),
    ],
)
def test_another_kind_drops_the_fields_that_it_does_not_have(
    text: str, overrides: list[str], path: str, left: dict
) -> None:
    here = Experiment.from_yaml(text, overrides)
    for part in path.split("."):
        here = here[part] if isinstance(here, dict) else getattr(here, part)
    assert isinstance(here, Settings)
    assert here.model_dump(exclude_unset=True, exclude={"kind"}) == left


def test_the_kind_of_a_recipes_objective_can_be_changed() -> None:
    text = recipes.recipe("vae-mnist5k").to_yaml()  # defaults included
    overrides = ["objective.kind=autoencoder", "checkpoints.best=null"]
    assert Experiment.from_yaml(text, overrides).objective.kind == "autoencoder"


# overrides of an experiment -> what the refusal must say: the dotted path, what is wrong, a remedy
REFUSALS = [
    (VAE, ["objectiv.beta=2"], r"objectiv: there is no such field; did you mean objective\?"),
    (VAE, ["objective.betta=2"], r"objective\.betta: .*did you mean objective\.beta\?"),
    (
        VAE,
        ["optimizers.autoencoder.learningrate=1"],
        r"optimizers\.autoencoder\.learningrate: .*mean optimizers\.autoencoder\.learning_rate\?",
    ),
    (VAE, ["networks.encoder.widths=3"], r"networks\.encoder\.widths: there is no such field"),
    (VAE, ["training.batch_size=3"], r"training\.batch_size: .*mean training\.global_batch_size\?"),
    (GAN, ["data.pth=x"], r"data\.pth: there is no such field; did you mean data\.path\?"),
    (
        VAE,
        ["optimizers.autoencoder.schedule.warmup=3"],
        r"schedule\.warmup: .*mean optimizers\.autoencoder\.schedule\.warmup_images\?",
    ),
    (VAE, ["training.images=many"], r"training\.images: .*valid integer.* not 'many'"),
    (VAE, ["training.images=0"], r"training\.images: .*greater than 0, not 0"),
    (VAE, ["training.images=1.5"], r"training\.images: .*integer.* not 1\.5"),
    (VAE, ["training.images=null"], r"training\.images: .*integer.* not None"),
    (VAE, ["seed=-1"], r"seed: .*greater than or equal to 0, not -1"),
    (VAE, ["training={}"], r"training\.images: is required"),
    (VAE, ["training.precision=fp16"], r"training\.precision: .*'fp32', 'bf16' or 'fp64'.*'fp16'"),
    (VAE, ["objective.beta=.nan"], r"objective\.beta: .*finite number"),
    (VAE, ["optimizers.autoencoder.learning_rate=.inf"], r"learning_rate: .*finite number"),
    (VAE, ["optimizers.autoencoder.learning_rate=0"], r"learning_rate: .*greater than 0"),
    (VAE, ["objective.sigma=0"], r"objective\.sigma: .*0"),
    (VAE, ["networks=3"], r"networks: .*dictionary.*3"),
    (VAE, ["networks.encoder=3"], r"networks\.encoder: .*mlp"),
    (
        VAE,
        ["networks.encoder.kind=unet"],
        r"networks\.encoder\.kind: 'unet' is not one of mlp, conv",
    ),
    (VAE, ["networks.encoder.kind=mpl"], r"networks\.encoder\.kind: .*did you mean mlp\?"),
    (VAE, ["networks.encoder={}"], r"networks\.encoder\.kind: is required"),
    (VAE, ["objective.kind=vea"], r"objective\.kind: 'vea' .*did you mean vae\?"),
    (VAE, ["optimizers.autoencoder.kind=adm"], r"optimizers\.autoencoder\.kind: .*mean adam\?"),
    (VAE, ["data=mnist5"], r"data: 'mnist5' is no kind of data .*did you mean mnist5k\?"),
    (VAE, ["data=floder:x"], r"data\.kind: 'floder' is not one of .*did you mean folder\?"),
    (VAE, ["data=folder:"], r"data: folder needs its path right after .* data=folder:PATH"),
    (VAE, ["data=folder"], r"data: folder needs its path right after .* data=folder:PATH"),
    (VAE, ["data='parquet:'"], r"data: parquet needs its path right after .*: data=parquet:PATH"),
    (VAE, ["data=parquet: x"], r"data: parquet needs its path .*: data=parquet:PATH"),
    (VAE, ["data=torchvision:"], r"data: torchvision needs its dataset .*:DATASET"),
    (VAE, ["data=folder:", "data.flip=true"], r"data: folder needs its path"),
    (VAE, ["data='folder:'", "data.flip=true"], r"data\.path: is required"),
    # When a kind changes, only fields of the old kind are dropped.
    (VAE, ["objective.betta=2", "objective.kind=autoencoder"], r"objective\.betta: there is no"),
    (VAE, ["objective.beta=2", "objective.kind=vea"], r"objective\.kind: 'vea' .*mean vae\?"),
    (VAE, ["objective.kind=autoencoder", "objective.beta=2"], r"objective\.beta: there is no"),
    (VAE, ["objective.kind=[1]"], r"objective\.kind: .*1.* is not one of"),
    (VAE, ["data.image_size=0"], r"data\.image_size: .*0"),
    (VAE, ["data.channels=17"], r"^data\.channels: 17 is not 1 \(grey\), 3 \(RGB\)"),
    (VAE, ["data.image_size=64x"], r"^data\.image_size: '64x' is no size in pixels"),
    (VAE, ["data.image_size=60000"], r"^data\.image_size: 60000 is not in 1 to 8,192 pixels"),
    (VAE, ["data.value_range=[1, 0]"], r"^data\.value_range: .*must be less"),
    (VAE, ["data.value_range=12"], r"^data\.value_range: 12 is not auto, full or"),
    (VAE, ["data.pad=white"], r"^data\.pad: 'white' is not edge, a number"),
    (VAE, ["data.held_out_fraction=1"], r"data\.held_out_fraction: .*less than 1"),
    (GAN, ["data.image_size=30"], r"networks\.generator: dcgan .* 30 x 30; .* 28 x 28 or 32 x 32"),
    (GAN, ["data.image_size=[32, 60]"], r"networks\.discriminator: dcgan .* 32 x 60; .* 32 x 56"),
    (
        GAN,
        ["objective.conditional=true", "data.classes=[]"],
        r"objective\.conditional: .*no labels",
    ),
    (
        VAE,
        ["training.group_size=24"],
        r"training\.group_size: 24 does not divide training\.global_batch_size 64; .*16, 32",
    ),
    (VAE, ["training.micro_batch_size=24"], r"training\.micro_batch_size: 24 .*group_size 16"),
    (
        VAE,
        ["workers.count=5"],
        r"workers\.count: 5 workers cannot share 4 groups .*at most 4 workers",
    ),
    (VAE, ["workers.count=0"], r"workers\.count: .*0"),
    (VAE, ["optimizers={}"], r"optimizers\.autoencoder: is required by the objective"),
    (
        GAN,
        ["optimizers.encoder={kind: sgd, learning_rate: 1}"],
        r"optimizers\.encoder: the objective gan has no such part; .* optimizers\.generator",
    ),
    (
        GAN,
        ["networks.encoder={kind: mlp}"],
        r"networks\.encoder: the objective gan has no such part",
    ),
    (
        VAE,
        ["optimizers.autoencoder.schedule={kind: cosine}"],
        r"optimizers\.autoencoder\.schedule\.horizon_images: a cosine schedule needs it",
    ),
    (
        VAE,
        ["optimizers.autoencoder.schedule={kind: linear, horizon_images: 5, warmup_images: 5}"],
        r"schedule\.horizon_images: 5 .* warmup_images 5",
    ),
    (
        GAN,
        ["objective.loss=hinge", "objective.label_smoothing=0.1"],
        r"objective: label_smoothing .* hinge .*set label_smoothing to 0",
    ),
    (
        GAN,
        ["objective.loss=wasserstein", "objective.label_smoothing=0.1"],
        r"objective: label_smoothing .* wasserstein .*set label_smoothing to 0",
    ),
    (
        GAN,
        ["objective.gradient_penalty_weight=10", "networks.discriminator={kind: dcgan}"],
        r"gradient_penalty_weight: .* BatchNorm .*set networks\.discriminator\.batch_norm=false",
    ),
    (
        VAE,
        ["objective.binarize=true", "objective.likelihood=gaussian"],
        r"objective: binarize .* gaussian .*set binarize to false or likelihood to bernoulli",
    ),
    (
        GAN,
        ["checkpoints.best={metric: elbo, mode: max}"],
        r"checkpoints\.best\.metric: .*gan .*'elbo'; .*none: leave the field out",
    ),
    (
        VAE,
        ["checkpoints.best={metric: fid, mode: min}"],
        r"checkpoints\.best\.metric: .*'fid'; it has one of elbo, reconstruction, kl",
    ),
    (VAE, ["checkpoints.keep=1"], r"checkpoints\.keep: .*greater than or equal to 2, not 1"),
    (
        VAE,
        ["training.stop_at_equilibrium={}"],
        r"training\.stop_at_equilibrium: a vae objective .*; set it to null",
    ),
    (
        GAN,
        ["training.stop_at_equilibrium={}", "objective.loss=hinge"],
        r"training\.stop_at_equilibrium: .*set it to null",
    ),
    (
        GAN,
        ["training.freeze={discriminator:2}"],
        r"^training\.freeze: 'discriminator:2' is a name without a value, because YAML needs a "
        r"space after a colon; write {discriminator: 2}$",
    ),
    (GAN, ["objective.r1_weight={kind:linear}"], r"objective\.r1_weight: .*write {kind: linear}"),
    (GAN, ["objective.augment={kind:ada}"], r"objective\.augment: .*write {kind: ada}"),
    (GAN, ["training.freeze.discriminator=null"], r"training\.freeze\.discriminator: .*'all'"),
    (VAE, ["seed"], r"'seed' is not of the form path=value"),
    (VAE, ["=3"], r"'=3' is not of the form path=value"),
    (VAE, ["seed.x=3"], r"seed\.x: .*has no fields|seed: .*"),
    (VAE, ["training.images.x=3"], r"training\.images\.x: training\.images is 1000 and has no"),
    (VAE, ["training.images=[1"], r"^training\.images=\[1: is not YAML: .*line 1"),
    (
        GAN,
        ["objective={kind: custom, target: nothing}", "optimizers={}"],
        r"objective\.target: .*nothing",
    ),
]


@pytest.mark.parametrize(("text", "overrides", "expected"), REFUSALS)
def test_every_refusal_names_the_field_and_a_remedy(
    text: str, overrides: list[str], expected: str
) -> None:
    Experiment.from_yaml(text)
    with pytest.raises(ExperimentError, match=expected) as refused:
        Experiment.from_yaml(text, overrides)
    for problem in refused.value.problems:
        assert "\n" not in problem
        assert "pydantic" not in problem
        assert "function-" not in problem
        assert "constrained-" not in problem and "literal[" not in problem


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ExperimentError) as refused:
        Experiment.from_yaml(VAE, ["training.images=0", "objective.betta=1", "seed=x"])
    assert len(refused.value.problems) == 3
    with pytest.raises(ExperimentError) as refused:
        Experiment.from_yaml(GAN, ["training.group_size=24", "networks={}", "optimizers={}"])
    assert len(refused.value.problems) == 5


@pytest.mark.parametrize(
    ("text", "line"),
    [("seed: 0\ndata: {kind: mnist5k\nnetworks: {}\n", 3), ("seed: 0\n\tdata: x\n", 2)],
)
def test_malformed_yaml_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ExperimentError, match=rf"not YAML: .* in line {line}, column \d+"):
        Experiment.from_yaml(text)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words", "3"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ExperimentError, match="an experiment is a mapping"):
        Experiment.from_yaml(text)
    with pytest.raises(ExperimentError):
        Experiment.from_yaml(text, ["seed=1"])


def test_yaml_cannot_build_objects() -> None:
    with pytest.raises(ExperimentError, match="not YAML"):
        Experiment.from_yaml("seed: !!python/object/apply:os.getcwd []")


def test_classes_that_differ_from_the_datas_are_refused() -> None:
    experiment = Experiment.from_yaml(VAE, ["data.classes=[a, b]"])
    with pytest.raises(ExperimentError, match=r"data\.classes: .* leave the field out"):
        experiment.resolved((1, 28, 28), ["b", "a"])


def test_labels_that_the_data_does_not_have_are_refused() -> None:
    experiment = Experiment.from_yaml(GAN, ["objective.conditional=true"])
    with pytest.raises(ExperimentError, match=r"objective\.conditional: .*no labels"):
        experiment.resolved((3, 32, 32), None)


def test_a_size_that_only_the_data_knows_is_checked_against_the_networks() -> None:
    experiment = Experiment.from_yaml(GAN, ["data.image_size=null"])
    assert experiment.resolved((3, 64, 64), None).image_shape == (3, 64, 64)
    with pytest.raises(ExperimentError, match=r"networks\.generator: dcgan .* 50 x 50"):
        experiment.resolved((3, 50, 50), None)


@pytest.mark.parametrize(
    ("batch", "group"), [(1, 1), (7, 7), (16, 16), (17, 1), (24, 12), (64, 16), (100, 10)]
)
def test_the_automatic_group_is_the_largest_divisor_up_to_sixteen(batch: int, group: int) -> None:
    overrides = [f"training.global_batch_size={batch}", "training.group_size=auto"]
    assert Experiment.from_yaml(VAE, overrides).group_size == group


@pytest.mark.parametrize(("images", "steps"), [(1, 1), (64, 1), (65, 2), (6400, 100)])
def test_images_are_rounded_up_to_whole_batches(images: int, steps: int) -> None:
    assert Experiment.from_yaml(VAE, [f"training.images={images}"]).steps == steps


IDENTITY = [
    "seed=1",
    "data.flip=true",
    "data.image_size=14",
    "data.held_out_fraction=0.2",
    "data.digest=abc",
    "data.opacity=false",
    "networks.encoder.hidden_sizes=[3]",
    "networks.encoder.kind=conv",
    "objective.beta=2",
    "objective.conditional=true",
    "optimizers.autoencoder.learning_rate=0.1",
    "optimizers.autoencoder.schedule.warmup_images=5",
    "training.global_batch_size=128",
    "training.group_size=8",
    "training.ema_half_life_images=5",
    "training.ema_every_steps=1",
    "training.precision=bf16",
]
FREE = [
    "name=other",
    "training.images=5",
    "training.micro_batch_size=16",
    "training.report_every_images=5",
    "training.checkpoint_every_images=5",
    "workers.count=2",
    "workers.gpu=true",
    "workers.cpus=2",
    "workers.max_restarts=0",
    "checkpoints.keep=3",
    "checkpoints.best={metric: elbo, mode: max}",
    "storage=elsewhere",
    "data.placement=host",
]


@pytest.mark.parametrize("override", IDENTITY)
def test_identity_fields_are_told_as_differences(override: str) -> None:
    rules = ["data.rules=2", "data.opacity=auto"]  # a digest without these is of a run of before
    ours, theirs = Experiment.from_yaml(VAE, [*rules, override]), Experiment.from_yaml(VAE)
    (found,) = differences(ours, theirs)
    assert found.startswith(override.split("=")[0].removesuffix(".kind"))
    assert " here, " in found


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_data_may_move(kind: str) -> None:
    here, there = (Experiment.from_yaml(GAN, [f"data={kind}:/{place}"]) for place in "ab")
    assert here != there
    assert list(differences(here, there)) == []


@pytest.mark.parametrize("override", FREE)
def test_free_fields_are_no_differences(override: str) -> None:
    ours, theirs = Experiment.from_yaml(VAE, [override]), Experiment.from_yaml(VAE)
    assert ours != theirs
    assert list(differences(ours, theirs)) == []


def test_differences_show_both_values() -> None:
    ours = Experiment.from_yaml(VAE, ["seed=1", "objective.beta=2"])
    assert list(differences(ours, Experiment.from_yaml(VAE))) == [
        "seed: 1 here, 0 there",
        "objective.beta: 2.0 here, 1.0 there",
    ]


def test_another_objective_differs_by_its_kind() -> None:
    found = list(differences(Experiment.from_yaml(VAE), Experiment.from_yaml(GAN)))
    assert "objective: vae here, gan there" in found


def test_relative_paths_are_made_absolute_and_uris_are_left(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    experiment = Experiment.from_yaml(GAN, ["storage=runs"]).absolute()
    assert experiment.data.path == str(tmp_path / "pictures")
    assert experiment.storage == str(tmp_path / "runs")
    assert absolute_path("~/x") == str(tmp_path / "home" / "x")
    uri = Experiment.from_yaml(GAN, ["data=parquet:s3://b/x", "storage=gs://b/y"]).absolute()
    assert (uri.data.path, uri.storage) == ("s3://b/x", "gs://b/y")


@pytest.mark.parametrize(
    "code",
    [
        "import ray_gen",
        "import ray_gen.experiment, ray_gen.recipes; ray_gen.recipes.recipe('vae-mnist5k')",
        "import ray_gen.cli",
        "from ray_gen.recipes import recipe\n"
        "try: recipe('dcgan-mnist5k', 'data.image_size=30', 'objective.betta=3')\n"
        "except ValueError: pass\n"
        "else: raise SystemExit('was not refused')",
    ],
)
def test_settings_and_refusals_import_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'ray', 'numpy', 'pyarrow', 'PIL', 'tensorboard'}"
    code += f"\nimport sys; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_field_that_is_named_like_its_kind_keeps_its_path() -> None:
    with pytest.raises(ExperimentError) as refused:
        Experiment.from_yaml(GAN, ["evaluation.features={kind: run, rnu: ./a}"])
    assert sorted(problem.partition(": ")[0] for problem in refused.value.problems) == [
        "evaluation.features.rnu",
        "evaluation.features.run",
    ]


@pytest.mark.parametrize(
    ("family", "field"),
    [("latent-small", "perceptual"), ("fastgan", "reconstruction_distance")],
)
def test_the_run_of_a_distance_is_refused_by_its_field(family: str, field: str) -> None:
    changes = (
        "data=folder:/x",
        "data.image_size=64",
        f"objective.{field}={{kind: run, run: nope}}",
    )
    with pytest.raises(Refused, match=rf"^objective\.{field}\.run: no run 'nope'"):
        recipes.recipe(family, *changes).absolute()
