"""The fields of an experiment, as readers and editors see them, and what a wrong name suggests."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as some

from ray_gen import recipes
from ray_gen.cli import main
from ray_gen.experiment import Experiment, ExperimentError, manual
from ray_gen.experiment.elsewhere import ELSEWHERE
from ray_gen.recipes import family_text
from ray_gen.settings import Settings
from tests.experiment.test_experiment import GAN, VAE

EXPERIMENT = Path(manual.__file__).parent


LATENT = family_text("latent-small", ["data=folder:/x", "data.image_size=64"])


def said(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["fields", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ExperimentError) as refused:
        Experiment.from_yaml(text, overrides)
    return str(refused.value)


@pytest.mark.parametrize(
    ("family", "path", "kind", "field"),
    [
        ("latent-small", "objective.perceptual", "ssim", None),
        ("latent-small", "objective.perceptual", "lpips", "net=alex"),
        ("latent-small", "objective.bottleneck", "vq", "codes=16"),
        ("fastgan", "objective.reconstruction_distance", "l1", None),
        ("dcgan", "networks.generator", "resnet", "width=8"),
        ("dcgan", "optimizers.generator", "adam", "learning_rate=0.1"),
        ("dcgan", "evaluation.features", "clip", None),
    ],
)
def test_a_kind_alone_is_enough(family: str, path: str, kind: str, field: str | None) -> None:
    data = ("data=folder:/x", "data.image_size=64")
    more = [] if field is None else [f"{path}.{field}"]
    alone, whole = (
        recipes.recipe(family, *data, f"{path}={value}", *more)
        for value in (kind, f"{{kind: {kind}, {(field or '').replace('=', ': ')}}}")
    )
    assert alone == whole


def test_what_is_no_kind_is_told_with_the_kinds() -> None:
    text = recipes.recipe_text("vae-mnist5k")
    told = refusal(text, "networks.encoder=ml")
    assert told.startswith("networks.encoder.kind: 'ml' is not one of mlp, conv, dcgan, ")
    assert told.endswith("; did you mean mlp?")
    assert refusal(text, "optimizers.autoencoder=null") == (
        "optimizers.autoencoder: is one of adam, adamw, sgd, not None"
    )


def classes(kind: type[Settings] = Settings) -> Iterator[type[Settings]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("ray_gen."):
            if not child.__name__.startswith("_"):
                yield child
            yield from classes(child)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield f"{path}{key}", value
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")


PATHS = [
    (name, path, value)
    for name in recipes.names()
    for path, value in leaves(yaml.safe_load(recipes.recipe(name).to_yaml()))
]


# Descriptions


@pytest.mark.parametrize("model", classes(), ids=lambda model: model.__name__)
def test_the_first_sentence_below_each_field_says_what_it_is(model: type[Settings]) -> None:
    from ray_gen.experiment.fields import fields_of

    for field in fields_of(model):
        assert re.match(r"[A-Z]", field.meaning), f"{model.__name__}.{field.path}: {field.text!r}"
        assert field.meaning.endswith("."), field.meaning
        assert len(field.meaning.split()) > 2, field.meaning
        # Not what one of its values does, nor where else one must look.
        assert not re.match(r"(None|null|auto|See |The same)", field.meaning), field.meaning


def test_every_field_of_every_recipe_is_listed_with_its_mark() -> None:
    listed = {
        line.partition(": ")[0]
        for line in said().splitlines()
        if re.search(r"; (identity|free|live)(, but not from or to stream)?$", line)
    }
    for _, path, _ in PATHS:
        named = re.sub(r"^(networks|optimizers)\.\w+", r"\1.NAME", path)
        assert named in listed or named in ("networks.NAME", "optimizers.NAME")


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("training.images", ["training.images: whole number > 0 [images]; required; free"]),
        ("training", ["training.ema_ramp: number ≥ 0 or a schedule; default 0.05; live"]),
        ("data.placement", ["default auto; free, but not from or to stream"]),
        ("data.image_size", ["64 or 96x160 or null [pixels", "default null", "default 28"]),
        ("objective.vae", ["objective.beta: number ≥ 0 or a schedule; default 1.0; live"]),
        ("objective.beta", ["Weight of the KL term (Higgins et al. 2017)", "beta: {kind: cosine}"]),
        ("networks", ["networks: {name:", "networks.NAME.hidden_sizes: list of whole number > 0"]),
        ("networks.mlp", ["networks.NAME.activation: relu, leaky_relu or tanh; default relu"]),
        ("optimizers.generator.sgd", ["optimizers.generator.momentum: number ≥ 0 and < 1"]),
        ("optimizers.any.betas", ["optimizers.any.betas: [number ≥ 0 and < 1, number"]),
        ("evaluation.features", ["evaluation.features.run: path or URI; required; free"]),
        ("workers.count", ["workers.count.max: whole number > 0; required; free", "{min: 1, max:"]),
        ("search.space", ["search.space.NAME.choice: list of any value or null; default null"]),
        ("loggers", ["loggers.N.mode: online, offline or null", "[{kind: tensorboard}]"]),
        ("lineage.0.images", ["lineage.0.images: whole number > 0 [images]; required"]),
    ],
)
def test_a_path_lists_what_is_below_it(path: str, lines: list[str]) -> None:
    printed = " ".join(said(path).split())
    for line in lines:
        assert line in printed


def test_a_kind_is_listed_without_the_other_kinds() -> None:
    assert "weight_decay" in said("optimizers.adamw")
    assert "momentum" not in said("optimizers.adamw")


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("trainig", "did you mean training?"),
        ("training.batch_size", "did you mean training.global_batch_size?"),
        ("objective.nothing", "there are: "),
        ("lr", "did you mean optimizers.NAME.learning_rate?"),
        ("nz", "did you mean objective.latent_size?"),
    ],
)
def test_a_path_to_no_field_is_refused_with_a_remedy(path: str, remedy: str) -> None:
    done = CliRunner().invoke(main, ["fields", path])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path}: there is no such field")
    assert remedy in done.stderr


def test_the_readme_shows_what_is_printed() -> None:
    readme = (EXPERIMENT.parents[1] / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"    \$ ray-gen fields (\S+)\n((?:    .+\n)+)", readme)
    assert shown
    assert said(shown[1]) == textwrap.dedent(shown[2])


# Files that are made


def test_the_page_of_fields_is_what_the_command_prints() -> None:
    remedy = "run: ray-gen fields --markdown > ray_gen/experiment/FIELDS.md"
    assert (EXPERIMENT / "FIELDS.md").read_text(encoding="utf-8") == said("--markdown"), remedy


def test_the_schema_is_what_the_command_prints() -> None:
    remedy = "run: ray-gen fields --schema > ray_gen/experiment/schema.json"
    assert json.loads(manual.SCHEMA.read_text(encoding="utf-8")) == json.loads(said("--schema")), (
        remedy
    )


SCHEMA = json.loads(manual.SCHEMA.read_text(encoding="utf-8"))
VALID = jsonschema.Draft202012Validator(SCHEMA)


def test_every_field_of_the_schema_has_a_description() -> None:
    found = [SCHEMA, *SCHEMA["$defs"].values()]
    fields = [(name, field) for part in found for name, field in part["properties"].items()]
    assert len(fields) > 200
    for name, field in fields:
        assert field["description"], name


@pytest.mark.parametrize("name", recipes.names())
def test_the_schema_takes_every_recipe(name: str) -> None:
    VALID.validate(yaml.safe_load(recipes.recipe_text(name)))
    VALID.validate(yaml.safe_load(recipes.recipe(name).to_yaml()))
    # YAML 1.2, which editors read, takes 400_000 for a text.
    assert not re.search(r"^[^#]*\d_\d", recipes.recipe_text(name), re.MULTILINE)


@pytest.mark.parametrize(
    "override",
    [
        "data=folder:pictures",
        "data={kind: folder, path: pictures, image_size: 96x160, label_column: [a, b]}",
        "data={kind: joined, sources: [mnist5k, {kind: zip, path: a.zip}], weights: [1, 2]}",
        "data.pad=edge",
        "objective.beta={kind: linear, start: 0, end: 1, until_images: 1000}",
        "optimizers.autoencoder.betas=[0.9, {kind: steps, values: [[0, 0.9], [10, 0.99]]}]",
        "workers.count={min: 1, max: 2}",
        "checkpoints.best={metric: elbo, mode: max}",
        "search={space: {objective.latent_size: {choice: [2, 4]}}}",
        "evaluation.features={weights: file}",
        "loggers=[csv, {kind: wandb, mode: offline}]",
        "networks.encoder={kind: custom, target: 'a:B', options: {x: 1}}",
    ],
)
def test_the_schema_takes_what_an_experiment_takes(override: str) -> None:
    given = yaml.safe_load(VAE.replace("1e-3", "0.001"))
    path, _, value = override.partition("=")
    here: Any = given
    *parents, last = path.split(".")
    if here["data"] == "mnist5k" and parents == ["data"]:
        here["data"] = {"kind": "mnist5k"}
    for part in parents:
        here = here.setdefault(part, {})
    here[last] = yaml.safe_load(value)
    Experiment.of(given)
    VALID.validate(given)


@pytest.mark.parametrize(
    "override", ["training.imags=3", "training.images=x", "objective.kind=vea", "nothing=1"]
)
def test_the_schema_refuses_what_an_experiment_refuses(override: str) -> None:
    given = yaml.safe_load(VAE)
    path, _, value = override.partition("=")
    *parents, last = path.split(".")
    here: Any = given
    for part in parents:
        here = here[part]
    here[last] = yaml.safe_load(value)
    refusal(yaml.safe_dump(given))
    assert list(VALID.iter_errors(given))


# The complete YAML with comments


@pytest.mark.parametrize("name", recipes.names())
def test_a_full_recipe_is_the_same_experiment_with_a_comment_on_each_field(name: str) -> None:
    text = CliRunner().invoke(main, ["recipes", name, "--full"]).output
    assert Experiment.from_yaml(text) == recipes.recipe(name)
    assert recipes.claim(name).splitlines()[0] in text.splitlines()[1]
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        key = re.match(r" *(\w+):", line)
        if key and key[1] not in (
            "encoder",
            "decoder",
            "generator",
            "discriminator",
            "autoencoder",
        ):
            assert before.lstrip().startswith("# "), line


@pytest.mark.parametrize(
    "overrides",
    [
        ["name='1e3'", "data.classes=['1e-4', '.5E3', 'no', '1', '~', '', ' x', '\n', 'a: b #c']"],
        ["storage='a: b #c'", "data={kind: joined, sources: [mnist5k, folder:x], weights: [1, 2]}"],
        ["search={space: {objective.beta: {loguniform: [1, 2]}, seed: {choice: [1, 2]}}}"],
        ["objective.beta={kind: steps, values: [[0, 0.1], [50, 1]]}", "workers.count={max: 3}"],
        ["networks.encoder={kind: custom, target: 'a:B', options: {size: [1e-5, {y: '1e5'}]}}"],
        ["loggers=[csv, {kind: wandb, mode: offline}]"],
        ["lineage=[{images: 500, values: {objective.beta: 2.0}, source: '7'}]"],
    ],
)
def test_any_experiment_survives_its_commented_yaml(overrides: list[str]) -> None:
    experiment = Experiment.from_yaml(VAE, overrides)
    assert Experiment.from_yaml(manual.commented(experiment)) == experiment


def test_what_recipes_print_names_a_schema_that_is_there() -> None:
    for more in ([], ["--full"]):
        text = CliRunner().invoke(main, ["recipes", "vae-mnist5k", *more]).output
        line = re.match(r"# yaml-language-server: \$schema=file://(\S+)\n", text)
        assert line and Path(line[1]).is_file()
        assert text.count("yaml-language-server") == 1


# What a wrong name suggests


@settings(max_examples=300, deadline=None)
@given(field=some.sampled_from(PATHS), random=some.randoms(use_true_random=False))
def test_one_wrong_letter_in_a_path_suggests_the_right_path(field: Any, random: Any) -> None:
    name, path, value = field
    parts = path.split(".")
    number = random.randrange(len(parts))
    part = parts[number]
    at = random.randrange(len(part))
    letter = random.choice("abcdefghijklmnopqrstuvwxyz_")
    wrong = random.choice(
        [
            part[:at] + part[at + 1 :],
            part[:at] + letter + part[at:],
            part[:at] + letter + part[at + 1 :],
        ]
    )
    at_once = ".".join((*parts[:number], wrong))
    if not wrong or any(p == at_once for n, p, _ in PATHS if n == name):
        return  # the wrong letter makes the name of another field
    whole = ".".join((*parts[:number], wrong, *parts[number + 1 :]))
    told = refusal(recipes.recipe_text(name), f"{whole}={json.dumps(value)}")
    suggested = re.search(rf"^{re.escape(at_once)}: .*did you mean (.*)\?", told, re.MULTILINE)
    assert suggested, told
    assert ".".join(parts[: number + 1]) in re.split(", | or ", suggested[1]), told


@pytest.mark.parametrize(
    ("text", "override", "told"),
    [
        (VAE, "batch_size=3", "did you mean training.global_batch_size?"),
        (VAE, "training.batch_size=3", "did you mean training.global_batch_size?"),
        (VAE, "lr=0.1", "did you mean optimizers.autoencoder.learning_rate?"),
        (VAE, "training.lr=0.1", "did you mean optimizers.autoencoder.learning_rate?"),
        (VAE, "training.learning_rate=0.1", "did you mean optimizers.autoencoder.learning_rate?"),
        (
            GAN,
            "learning_rate=0.1",
            "did you mean optimizers.generator.learning_rate or"
            " optimizers.discriminator.learning_rate?",
        ),
        (GAN, "glr=0.1", "did you mean optimizers.generator.learning_rate?"),
        (VAE, "epochs=3", "training.images? It counts images: epochs × the number of training"),
        (VAE, "training.max_epochs=3", "training.images? It counts images: epochs ×"),
        (VAE, "steps=100", "did you mean training.images?"),
        (VAE, "training.max_steps=100", "here training.images=6400"),
        (GAN, "kimg=25", "It counts images: kimg × 1000; here training.images=25000"),
        (VAE, "ema=0.999", "did you mean training.ema_half_life_images?"),
        (VAE, "training.ema_decay=0.999", "here training.ema_half_life_images=44339"),
        (VAE, "training.ema_decay=1", "did you mean training.ema_half_life_images?"),
        (VAE, "size=64", "did you mean data.image_size?"),
        (GAN, "data.resolution=64", "did you mean data.image_size?"),
        (VAE, "training.image_size=64", "did you mean data.image_size?"),
        (VAE, "gpus=2", "did you mean workers.count?"),
        (VAE, "training.num_gpus=2", "did you mean workers.count?"),
        (VAE, "workers.devices=2", "did you mean workers.count?"),
        (VAE, "num_workers=4", "did you mean workers.count?"),
        (VAE, "training.device=cuda", "did you mean workers.gpu?"),
        (VAE, "resume=true", "`ray-gen resume RUN`"),
        (GAN, "truncation_psi=0.7", "`ray-gen sample RUN --truncation 1`"),
        (VAE, "nz=4", "did you mean objective.latent_size?"),
        (GAN, "objective.z_dim=4", "did you mean objective.latent_size?"),
        (GAN, "objective.latent_dim=4", "did you mean objective.latent_size?"),
        (GAN, "ngf=64", "did you mean networks.generator.width?"),
        (GAN, "ndf=64", "did you mean networks.discriminator.width?"),
        (GAN, "objective.gamma=10", "did you mean objective.r1_weight?"),
        (GAN, "gp_weight=10", "did you mean objective.gradient_penalty_weight?"),
        (GAN, "training.lambda_gp=10", "did you mean objective.gradient_penalty_weight?"),
        (GAN, "r1_gamma=10", "did you mean objective.r1_weight?"),
        (VAE, "beta=4", "did you mean objective.beta?"),
        (VAE, "optimizers.autoencoder.beta1=0.5", "did you mean optimizers.autoencoder.betas?"),
        (GAN, "beta1=0.5", "It is the first of two numbers"),
        (VAE, "training.seed=1", "did you mean seed"),
        (VAE, "manual_seed=1", "did you mean seed?"),
        (VAE, "fp16=true", "did you mean training.precision? Set it to bf16"),
        (VAE, "training.amp=true", "did you mean training.precision?"),
        (
            VAE,
            "training.precision=fp16",
            "'fp32', 'bf16' or 'fp64', not 'fp16'",
        ),
        (VAE, "wandb=true", "did you mean loggers? Write e.g. loggers=[tensorboard, wandb]"),
        (VAE, "log_dir=x", "did you mean storage?"),
        (VAE, "output_dir=x", "did you mean storage?"),
        (VAE, "dataset=x", "did you mean data? Write data=PATH"),
        (VAE, "path=x", "did you mean data? Write data=PATH"),
        (GAN, "networks.generator.output=tanh", "there is no such field; there are: "),
        (LATENT, "objective.kl_weight=1", "did you mean objective.bottleneck.weight? It is"),
        (VAE, "objective.kl_weight=1", "did you mean objective.beta?"),
        (LATENT, "objective.reconstruction=mse", "write objective.reconstruction=l2"),
        (LATENT, "objective.reconstruction=MAE", "write objective.reconstruction=l1"),
        (VAE, "networks.encoder.dropout=0.1", "no network of the package has dropout"),
        (VAE, "checkpoints.every_images=5", "did you mean training.checkpoint_every_images?"),
        # A value for a whole part.
        (VAE, "workers=2", "workers: takes no value; set its fields: workers.count, workers.gpu,"),
        (VAE, "training=1000", "training: takes no value; set its fields: training.images,"),
        # Fields of other kinds.
        (VAE.replace("mnist5k", "{kind: mnist5k}"), "data.path=x", "in kind mnist5k; these kinds"),
        (VAE, "optimizers.autoencoder.weight_decay=1", "these kinds have it: adamw, sgd"),
        (VAE, "objective.r1_weight=1", "these kinds have it: gan"),
        # Siblings, where nothing is near.
        (VAE, "checkpoints.whatever=1", "there are: best, every_minutes, keep"),
        (GAN, "data.whatever=1", "see `ray-gen fields data`"),
    ],
)
def test_names_from_elsewhere_and_from_other_levels(text: str, override: str, told: str) -> None:
    assert told in refusal(text, override)


def test_what_names_from_elsewhere_lead_to_exists() -> None:
    known = [path for _, path, _ in PATHS] + ["optimizers.NAME.weight_decay"]
    known.append("objective.bottleneck.weight")
    for called in ELSEWHERE:
        if called.here is not None:
            assert any(f".{path}".endswith(f".{called.here}") for path in known), called
        assert not called.note.endswith(".")


@pytest.mark.parametrize(
    ("text", "override", "told"),
    [
        (
            GAN,
            "optimizers.genrator.learning_rate=1e-4",
            "optimizers.genrator: the objective gan has no such part; did you mean"
            " optimizers.generator?",
        ),
        (
            VAE,
            "optimizers.generator.learning_rate=1",
            "optimizers.generator: the objective vae has no such part; it has"
            " optimizers.autoencoder",
        ),
        (
            VAE,
            "networks.encodr.width=3",
            "networks.encodr: the objective vae has no such part; did you mean networks.encoder?",
        ),
    ],
)
def test_names_of_networks_and_optimisers_are_checked_first(
    text: str, override: str, told: str
) -> None:
    assert refusal(text, override) == told


def test_a_missing_space_of_a_search_says_where_it_goes() -> None:
    told = refusal(VAE, "search={trials: 4}")
    example = told.partition("e.g. ")[2]
    assert told.startswith("search.space: is required and was not given; e.g. search.space=")
    assert Experiment.from_yaml(VAE, ["search={trials: 4}", example]).search is not None


# Where a mistake in YAML is


def test_a_mistake_in_a_file_names_the_file_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("seed: 0\ndata: {kind: mnist5k\nnetworks: {}\n")
    with pytest.raises(ExperimentError) as refused:
        recipes.recipe(str(file))
    told = str(refused.value)
    assert told.startswith(f"{file}: is not YAML: ")
    assert re.search(r" in line 3, column \d+$", told)
    assert "\n" not in told


def test_a_mistake_in_an_assignment_names_the_assignment() -> None:
    told = refusal(VAE, "objective.beta={kind: linear, start: 0")
    assert told.startswith("objective.beta={kind: linear, start: 0: is not YAML: ")


def test_the_list_of_fields_comes_at_once() -> None:
    """Without torch and the like, whose import takes seconds."""
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom ray_gen.cli import main\n"
        "assert CliRunner().invoke(main, ['fields']).exit_code == 0\n"
        "assert not {'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("objective.kind=wgan", "write objective.kind=gan objective.loss=wasserstein, or train"),
        ("objective.kind=R3GAN", "write objective.kind=gan objective.loss=relativistic"),
        ("objective.kind=beta-vae", "write objective.kind=vae objective.beta=4"),
        ("objective.loss=LSGAN", "write objective.loss=least_squares"),
        ("networks.generator.kind=sngan", "write networks.generator.kind=resnet"),
        ("gan.kind=r3gan", "did you mean objective.kind?"),
    ],
)
def test_models_of_other_programs_lead_to_ours(override: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(told)):
        recipes.recipe("dcgan-mnist5k", override)


def test_the_families_that_they_lead_to_exist() -> None:
    from ray_gen.experiment import elsewhere
    from ray_gen.recipes.families import FAMILIES

    led = re.findall(r"family ([\w-]+)", " ".join(elsewhere._OBJECTIVES.values()))
    assert led and {*led} <= {*FAMILIES}
