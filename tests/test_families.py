"""Families: recipes whose numbers follow from the data."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ray_gen.cli import main
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.augment import AdaSettings
from ray_gen.experiment.networks import StyleGan2Network
from ray_gen.perceptual import LpipsDistance
from ray_gen.recipes import recipe, to_copy
from ray_gen.recipes.families import FAMILIES, chosen, family_text
from ray_gen.training.build import build_networks, build_objective

SHAPES = [
    *((32, 3), (64, 1)),
    *(pytest.param(*of, marks=pytest.mark.slow) for of in ((64, 4), (128, 3), (256, 1))),
    ("[96, 160]", 3),
]
"""image_size and channels"""
CLASSES = ("a", "b", "c")
LATENT_SIZES = [("latent-kl-f8", 100, 96), ("latent-vq", 60, 64), ("latent-fsq", 30, 32)]
LATENT_SIZES += [("latent-kl-f4", 98, 96), ("latent-small", 50, 48)]
OF_GANS = [name for name in FAMILIES if not name.startswith("latent-")]


def of(name: str, size: object, *changes: str) -> Experiment:
    return recipe(name, "data=folder:/images", f"data.image_size={size}", *changes)


@pytest.mark.parametrize(("size", "channels"), SHAPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_builds_for_any_data(monkeypatch, name: str, size: object, channels: int) -> None:
    """With labels and without; on tensors without numbers, for which torch has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: contextlib.nullcontext())
    monkeypatch.setattr(LpipsDistance, "load", lambda distance: None)  # its weights are not here
    for conditional in ("true", "false") if name in OF_GANS else ("false",):
        this = of(name, size, f"objective.conditional={conditional}")
        height, width = this.data.height_and_width() or (0, 0)
        this = this.resolved((channels, height, width), CLASSES)
        objective = build_objective(this)
        with torch.device("meta"):
            networks = build_networks(this, objective)
        assert sum(p.numel() for p in networks.parameters()) > 100_000
        assert objective.phases()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_of_one_image_is_a_run(name: str) -> None:
    """Shares of its length are at least one step."""
    assert of(name, 32, "training.images=1").training.images == 1


@pytest.mark.parametrize(("name", "size", "other"), LATENT_SIZES)
def test_sides_are_multiples_of_what_one_number_of_a_latent_stands_for(
    name: str, size: int, other: int
) -> None:
    with pytest.raises(
        ExperimentError, match=rf"data\.image_size: .* the nearest that work: .*{other} x {other}"
    ):
        of(name, size)
    of(name, other)


@pytest.mark.parametrize("name", OF_GANS)
def test_a_size_that_networks_cannot_have_is_refused_with_one_that_works(name: str) -> None:
    with pytest.raises(ExperimentError, match=r"data\.image_size: .* 96 x 96 or 112 x 112"):
        of(name, 100)
    of(name, 96)
    of(name, 112)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_data_or_their_size_the_command_is_told(name: str) -> None:
    command = rf"ray-gen train {name} data=\S+ data\.image_size=64"
    with pytest.raises(ExperimentError, match=rf"^data: .*{command}$"):
        recipe(name)
    with pytest.raises(ExperimentError, match=rf"^data\.image_size: .*{command}$") as error:
        recipe(name, "data=folder:/images")
    words = str(error.value).rpartition("ray-gen train ")[2].split()
    recipe(words[0], *words[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_later_change_wins(name: str) -> None:
    field = "latent_size" if name in OF_GANS else "start_images"
    given = 36 if name in OF_GANS else 1_999_000
    changes = ("training.ema_half_life_images=77", f"objective.{field}={given}", "seed=4")
    this = of(name, 32, *changes)
    assert (this.training.ema_half_life_images, this.seed) == (77, 4)
    assert this.value_at(f"objective.{field}") == given
    from_python = recipe(name, {"data": {"kind": "folder", "path": "/images", "image_size": 32}})
    assert from_python == of(name, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_printed_with_its_reasons_as_the_same_experiment(name: str) -> None:
    changes = ("data=folder:/images", "data.image_size=64", "training.images=300000", "seed=3")
    text = to_copy(name, changes=changes)
    assert Experiment.from_yaml(text) == recipe(name, *changes)
    assert text.count("\n") > 30
    claim = " ".join(text.replace("# ", "").split())
    assert " ".join(FAMILIES[name].claim.split()) in claim
    assert all(len(line) <= 140 for line in text.splitlines()[1:])
    changed = to_copy(name, changes=(*changes, "training.ema_half_life_images=5"))
    assert re.search(r"# As given\.\n  ema_half_life_images: 5", changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_counts_images_follows_the_amount_of_training(name: str) -> None:
    few, many = (of(name, 32, f"training.images={n}") for n in (1_000_000, 10_000_000))
    for field in ("report_every_images", "checkpoint_every_images"):
        assert 10 * few.value_at(f"training.{field}") == many.value_at(f"training.{field}")
    assert few.training.report_every_images == 10_000


def test_the_command_lists_families_and_prints_one() -> None:
    listed = CliRunner().invoke(main, ["recipes"]).stdout
    assert all(f"\n{name}\n" in listed for name in FAMILIES)
    done = CliRunner().invoke(main, ["recipes", "dcgan", "data.image_size=64"])
    assert done.exit_code == 0 and "r1_weight: 2.0" in done.stdout
    done = CliRunner().invoke(main, ["recipes", "vae-mnist5k", "seed=1"])
    assert done.exit_code == 2 and "is a complete recipe" in done.stderr


def test_widths_scale_a_family() -> None:
    """A small laptop: `networks.generator.width`, or what the network calls it."""
    for name in FAMILIES:
        head = FAMILIES[name].claim
        knob = re.search(r"networks\.(?:generator|encoder|\*)\.(\w+)", head)
        assert knob is not None, f"{name} does not say how to make it smaller"


def test_the_command_says_what_a_family_chose() -> None:
    given = ["data=mnist5k", "objective.latent_size=7", "training.images=64"]
    done = CliRunner().invoke(main, ["train", "dcgan", *given, "--check"])
    assert done.exit_code == 0, done.stderr
    line = done.stdout.splitlines()[0]
    assert line.startswith("family      networks.generator.width=64, ")
    assert "objective.r1_weight=0.5, " in line
    assert "latent_size" not in line and "training.images" not in line
    assert line.endswith("; reasons: ray-gen recipes dcgan data.image_size=28")


def test_no_reason_is_told_for_a_field_that_another_kind_does_not_have() -> None:
    line = chosen("dcgan", ["data=mnist5k", "networks.generator={kind: stylegan2}"])
    assert "null" not in line
    assert "networks.generator.width" not in line
    line = chosen("dcgan", ["data=mnist5k", "networks.generator.kind=stylegan2"])
    assert "null" not in line
    assert "networks.generator.width" not in line and "objective.r1_weight=0.5" in line


@pytest.mark.parametrize(
    ("size", "conditional", "counts", "gamma"),
    [
        (32, True, (20.8, 21.3), 0.05),  # CIFAR-10
        (64, False, (22.4, 22.4), 2.0),  # FFHQ
        (256, False, (23.1, 23.0), 150.0),  # FFHQ
    ],
)
def test_r3gan_has_the_published_numbers(
    size: int, conditional: bool, counts: tuple[float, float], gamma: float
) -> None:
    """Millions of parameters, and γ at the start and at the end."""
    this = of("r3gan", size, f"objective.conditional={str(conditional).lower()}")
    this = this.resolved((3, size, size), [str(n) for n in range(10)])
    with torch.device("meta"):
        networks = build_networks(this, build_objective(this))
    for name, count in zip(("generator", "discriminator"), counts, strict=True):
        found = sum(p.numel() for p in networks[name].parameters()) / 1e6
        assert found == pytest.approx(count, abs=0.06)
    for network in this.networks.values():
        assert getattr(network, "bf16_from") == (32 if size == 256 else 8)  # noqa: B009
    for field in ("r1_weight", "r2_weight"):
        schedule = this.value_at(f"objective.{field}")
        assert (schedule["start"], schedule["end"]) == pytest.approx((gamma, gamma / 10))
        assert schedule["until_images"] == 0.8 * this.training.images


@pytest.mark.parametrize(
    ("size", "preset", "batch", "gamma", "half_life"),
    [
        (32, "cifar", 64, 0.01, 500_000),
        (64, "auto", 32, 0.0256, 10_000),
        (256, "auto", 16, 0.819, 5000),
    ],
)
def test_stylegan2_ada_has_the_published_numbers(
    size: int, preset: Any, batch: int, gamma: float, half_life: int
) -> None:
    this = of("stylegan2-ada", size)
    generator, discriminator = StyleGan2Network.published(preset, size)
    same = ("channel_base", "channel_max", "mapping_layers", "mixing")
    for ours, theirs, fields in (
        ("generator", generator, same),
        ("discriminator", discriminator, ("channel_base", "residual", "deviation_group")),
    ):
        for field in fields:
            assert getattr(this.networks[ours], field) == getattr(theirs, field), field
    assert this.training.global_batch_size == batch
    assert this.value_at("objective.r1_weight") == pytest.approx(gamma, rel=1e-3)
    assert this.training.ema_half_life_images == half_life
    assert this.value_at("objective.path_length_weight") == (0 if preset == "cifar" else 2)


@pytest.mark.parametrize("size", [80, 96, 112, 160, 192, 224, 320, 384, 512, 1024, "[96, 160]"])
def test_the_discriminator_of_stylegan2_sees_the_deviation_of_4_images(size: object) -> None:
    """At every size, and with a batch of the user's own."""
    for changes, group in (((), 4), (("training.global_batch_size=20",), 4)):
        this = of("stylegan2-ada", size, *changes)
        assert getattr(this.networks["discriminator"], "deviation_group") == group  # noqa: B009
        assert this.training.global_batch_size % this.group_size == this.group_size % group == 0


def test_a_batch_that_4_does_not_divide_has_another_deviation() -> None:
    changes = ("data.image_size=64", "training.global_batch_size=18")
    text = family_text("stylegan2-ada", changes, data_needed=False)
    told = r"# Published: 4\. It must divide the batch\.\n +deviation_group: 3"
    assert re.search(told, text)


@pytest.mark.parametrize(("name", "size", "steps"), [("sngan", 32, 5), ("wgan-gp", 32, 5)])
def test_an_average_spans_as_many_generator_steps_in_any_batch(
    name: str, size: int, steps: int
) -> None:
    for batch in (64, 128):
        this = of(name, size, f"training.global_batch_size={batch}", "training.images=9000000")
        assert this.training.ema_half_life_images == 312.5 * batch * steps


@pytest.mark.parametrize(
    ("images", "changes", "told"),
    [
        (50, [], "training.start_from=RUN"),
        (500, [], "for more variety from 500 images"),
        (500, ["objective.augment=[]"], "set objective.augment=[color,translation]"),
        (5_000, ["objective.augment=[]"], None),
        (5_000, [], None),
        (200_000, [], "objective.augment=[] turns it off"),
        (200_000, ["objective.augment=[]"], None),
    ],
)
def test_advice_for_few_and_many_images(images: int, changes: list[str], told: str | None) -> None:
    objective = of("dcgan", 32, *changes).objective
    found = list(objective.advice(images, starts_from_a_run=False))
    assert len(found) == (told is not None)
    assert told is None or told in found[0]
    if images < 1_000 and not changes:
        assert not list(objective.advice(images, starts_from_a_run=True))


@pytest.mark.parametrize("name", ["dcgan", "sngan", "wgan-gp"])
def test_advice_for_few_latents_names_no_colours(name: str) -> None:
    objective = of(name, 32, "objective.augment=[]").objective
    (told,) = objective.advice(500, starts_from_a_run=False, of_latents=True)
    assert "set objective.augment=[translation]" in told


def write_manifest(folder: Path, shape_CHW: list[int]) -> None:
    """What `ray-gen encode` says of latents of this shape."""
    statistics = {name: [1.0] * shape_CHW[0] for name in ("mean", "std")}
    told = {"format": 1, "shape_CHW": shape_CHW, "moments": ["mean"], "statistics": statistics}
    (folder / "_manifest.json").write_text(json.dumps({"latents": told}))


def test_latents_say_how_large_they_are(tmp_path: Path) -> None:
    write_manifest(tmp_path, [4, 16, 32])
    this = recipe("r3gan", f"data=latents:{tmp_path}")
    assert this.name == "r3gan-16x32"


def test_a_place_without_latents_says_so(tmp_path: Path) -> None:
    lacks = {
        tmp_path: r"has no _manifest\.json",
        tmp_path / "lattents": "does not exist on the machine that reads it",
    }
    for place, why in lacks.items():
        told = rf"^data\.path: {place} {why}; give a folder that ray-gen encode"
        with pytest.raises(ExperimentError, match=told):
            recipe("dcgan", f"data=latents:{place}")
    assert recipe("dcgan", f"data=latents:{tmp_path}", "data.image_size=32").name == "dcgan-32"


def test_a_kind_alone_says_how_to_name_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def told(*changes: str) -> str:
        with pytest.raises(ExperimentError) as refused:
            recipe(*changes)
        return str(refused.value)

    missing = "data.path: is required and was not given; write data=latents:"
    assert told("dcgan", "data=latents") == f"{missing}PATH"
    assert told("vae-mnist5k", "data=latents").endswith("without a space: data=latents:PATH")
    (tmp_path / "latents").mkdir()
    assert told("dcgan", "data=latents") == f"{missing}latents"
    assert told("dcgan", "data=latents", "data.flip=true") == f"{missing}latents"
    assert told("vae-mnist5k", "data=latents").endswith("data=latents:latents")


COLOURS = (
    "brightness",
    "contrast",
    "luma_flip",
    "hue",
    "saturation",
    "flip",
    "rotate_90",
    "rotate",
)


@pytest.mark.parametrize("name", OF_GANS)
def test_latents_are_augmented_as_maps_and_not_as_pictures(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, [4, 64, 64])
    augment: Any = recipe(name, f"data=latents:{tmp_path}").objective.augment  # pyright: ignore
    of_images: Any = of(name, 64).objective.augment  # pyright: ignore
    if isinstance(augment, AdaSettings):
        kept = augment.multipliers()
        assert not any(kept[colour] for colour in COLOURS)
        assert {**of_images.multipliers(), **dict.fromkeys(COLOURS, 0.0)} == kept
        assert kept["shift"] == 1.0
        assert (augment.p, augment.ada_images) == (of_images.p, of_images.ada_images)
    else:
        assert augment == tuple(one for one in of_images if one != "color")
