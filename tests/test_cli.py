"""What answers at once, and how a refusal looks."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import ray_gen
from ray_gen.cli import main
from ray_gen.errors import Refused
from ray_gen.recipes import names
from ray_gen.runs.captions import line_height
from tests.helpers import gan, vae
from tests.runs import SHORT, saved

HEAVY = ("torch", "torchvision", "ray", "numpy", "pyarrow", "tensorboard")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recipes"],
        ["runs", "tests/old_runs/v0_1"],
        ["train", "vae-mnist5k", "training.imags=1"],
        ["interpolate", "run", "--from", "3"],
        *([name, "--help"] for name in sorted(main.commands)),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_for_an_answer(arguments: list[str]) -> None:
    code = f"""
import sys
from click.testing import CliRunner
from ray_gen.cli import main
from ray_gen.errors import Refused
done = CliRunner().invoke(main, {arguments!r})
assert done.output and (done.exception is None or isinstance(done.exception, SystemExit)), done
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_ray_gen_has_not_is_told_with_the_nearest_one() -> None:
    code = "import ray_gen; ray_gen.lod"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("has no attribute 'lod'. Did you mean: 'load'?\n")


def commands_of(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """All commands below a group, by what a user types."""
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{path} {name}")


@pytest.mark.parametrize(
    ("typed", "command"), [("ray-gen", main), *commands_of(main, "ray-gen")], ids=str
)
def test_help_begins_with_a_sentence_and_an_example(typed: str, command: click.Command) -> None:
    """An example that click would run: its words are arguments and options of the command."""
    first, second, *_ = (command.help or "").split("\n\n")
    assert first.endswith(".")
    assert ". " not in first
    mark, *lines = second.strip().splitlines()
    assert mark == "\b"
    assert any(line.strip().startswith(typed) for line in lines)
    for line in lines:
        words = shlex.split(line.partition(">")[0])[1:]
        here: click.Command = main
        while isinstance(here, click.Group):
            here = here.commands[words.pop(0)]
        with here.make_context(typed, words, resilient_parsing=False):
            pass


def test_the_list_of_commands_has_groups_and_whole_sentences() -> None:
    for given, group in (([], main), (["data"], main.commands["data"])):
        told = " ".join(CliRunner().invoke(main, [*given, "--help"]).stdout.split())
        assert isinstance(group, click.Group)
        for name, command in group.commands.items():
            sentence = " ".join((command.help or "").partition("\n\n")[0].split())
            assert f" {name} {sentence.removesuffix('.')}" in told
    lines = CliRunner().invoke(main, ["--help"]).stdout.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Train:", "Look:", "Use:", "Measure:", "Share:", "Data:"]


def test_a_refusal_is_one_message_without_a_traceback() -> None:
    done = CliRunner().invoke(main, ["train", "vae-mnist5k", "training.imags=1"])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: training.imags: there is no such field; did you mean training.images?\n"
    )


def test_recipes_are_listed_with_their_claims_and_printed_to_copy() -> None:
    listed = CliRunner().invoke(main, ["recipes"]).stdout
    unmeasured: set[str] = set()
    for name in names():
        assert name in listed
        printed = CliRunner().invoke(main, ["recipes", name]).stdout
        assert printed.startswith("# ")
        assert f"name: {name}" in printed
        unmeasured |= {name} if "Unmeasured" in printed else set()
    assert unmeasured <= {"iwae-mnist5k", "vae-gan-mnist5k"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "vae"], "neither a file nor a recipe"),
        (["train", "vae-mnist5k", "--name", "a/b"], "--name: 'a/b'"),
        (["train", "vae-mnist5k", "--storage", "/proc/x"], "storage: /proc/x/.* cannot be written"),
        (["train", "vae-mnist5k", "--storage", "x://y"], "x://y.* cannot be reached"),
        (["sample", "/no/such/run"], "/no/such/run: there is no such run"),
        (["sample", "/no/such/run", "--output", "a.jpg"], "--output: a.jpg is neither a .png, a"),
        (["arithmetic", "run", "--output", "a.gif"], "--output: a.gif is not a .png"),
        (["mixture", "run", "--output", "a.pt"], "--output: a.pt is not a .safetensors"),
        (["mixture", "run", "--output", "a"], "--output: a is not a .safetensors"),
        (["mixture", "run", "--output", "/proc/1/status/a.safetensors"], "Not a directory"),
        (["discriminate", "run", "a.png", "--output", "a.txt"], "--output: a.txt is not a .csv"),
        (["discriminate", "run"], "IMAGES: name image files or folders of them"),
        (["discriminate", "/no/such/run", "a.png"], "/no/such/run: there is no such run"),
        (["arithmetic", "run"], "--plus: name at least one group"),
        (["arithmetic", "run", "--plus", "0,x"], "--plus: 'x' is neither a sample number"),
        (["interpolate", "run", "--to", "3"], "--from, --to: give both or neither"),
        (["interpolate", "run", "--from", "7-3", "--to", "1"], "--from: 7-3 is not a valid range"),
        (
            ["interpolate", "run", "--from", "1,2", "--to", "3-5"],
            "2 first and 3 last samples for 3 rows",
        ),
        (["traverse", "run", "--dimensions", "a"], "--dimensions: 'a' is neither a number"),
        (["traverse", "run", "--base", "1,2"], "--base: 1,2 names 2 images; name one"),
    ],
)
def test_bad_input_ends_in_a_sentence(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert re.search(sentence, done.stderr)
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def runs(store_8, tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of a VAE, a GAN and conditional ones."""
    folder = tmp_path_factory.mktemp("runs")
    conditional = "objective.conditional=true"
    return {
        name: saved(this, store_8, folder / name)
        for name, this in (
            ("vae", vae(SHORT)),
            ("gan", gan(SHORT)),
            ("hinge", gan(SHORT, "objective.loss=hinge")),
            ("cvae", vae(SHORT, conditional)),
            ("cgan", gan(SHORT, conditional)),
        )
    }


@pytest.fixture(scope="module")
def images(runs, tmp_path_factory) -> str:
    """A folder of images."""
    folder = tmp_path_factory.mktemp("images")
    use(folder, "sample", runs["vae"], "--count", "4", output="images")
    return str(folder / "images")


def use(folder: Path, command: str, run: Path, *arguments: str, output: str) -> str:
    """What a command says; it writes `output` in a folder."""
    given = [command, str(run), *arguments, "--output", str(folder / output)]
    done = CliRunner().invoke(main, given, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert (folder / output).exists()
    return done.stdout


def refused(command: str, run: Path, *arguments: str) -> str:
    """The sentence that a command ends in."""
    done = CliRunner().invoke(main, [command, str(run), *arguments], catch_exceptions=False)
    assert done.exit_code == 2
    return done.stderr


def tile(path: Path, row: int, column: int, *, above: int = 0) -> np.ndarray:
    """An 8 x 8 image out of a grid. above: pixels of the caption above each image."""
    picture = np.asarray(Image.open(path))
    top, left = 2 + (10 + above) * row + above, 2 + 10 * column
    return picture[top : top + 8, left : left + 8]


def array(path: Path) -> np.ndarray:
    """The images of a .npz, without channels."""
    return np.load(path)["images"][..., 0]


def near(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Within one grey level: another batch size rounds otherwise."""
    return bool((np.abs(ours.astype(int) - theirs) <= 1).all())


@pytest.mark.parametrize("name", ["vae", "gan", "cgan"])
def test_numbers_name_the_samples_of_the_grid(runs, tmp_path: Path, name: str) -> None:
    """Also with labels and with truncation: a number picks the sample that the grid shows there."""
    labels = ["--labels", "3"] if name == "cgan" else []
    same = ["--seed", "5", "--truncation", "0.9", *labels]
    use(tmp_path, "sample", runs[name], *same, "--count", "9", output="all.npz")
    samples = array(tmp_path / "all.npz")
    said = use(
        tmp_path, "interpolate", runs[name], *same, "--from", "3", "--to", "7", "--rows", "2",
        "--steps", "4", output="way.npz",
    )  # fmt: skip
    assert "2 rows of 4 steps" in said or "(2, 4, 8, 8, 1)" in said
    way = array(tmp_path / "way.npz")
    assert near(way[:, 0], samples[3:5])
    assert near(way[:, 3], samples[7:9])
    use(
        tmp_path, "arithmetic", runs[name], *same, "--plus", "0,1,2", "--plus", "6-8", "--minus",
        "3,5", "--zoom", "1", output="sum.png",
    )  # fmt: skip
    for row in range(3):
        assert near(tile(tmp_path / "sum.png", row, 0, above=line_height(8)), samples[row])
    use(tmp_path, "traverse", runs[name], *same, "--base", "4", "--steps", "3", output="t.npz")
    assert near(array(tmp_path / "t.npz")[:, 1], samples[[4] * 5])  # of five dimensions
    for annotated in ([], ["--annotate"]):
        given = [*same, "--count", "9", "--zoom", "1", *annotated]
        use(tmp_path, "sample", runs[name], *given, output="grid.png")
        above = line_height(8) if annotated else 0
        for number, sample in enumerate(samples):
            found = tile(tmp_path / "grid.png", *divmod(number, 3), above=above)
            assert near(found, sample)


def test_a_conditional_row_keeps_the_class_of_its_first_sample(runs, tmp_path: Path) -> None:
    use(tmp_path, "sample", runs["cgan"], "--count", "16", output="all.npz")
    use(tmp_path, "interpolate", runs["cgan"], "--from", "3", "--to", "13", output="same.npz")
    use(tmp_path, "interpolate", runs["cgan"], "--from", "3", "--to", "4", output="other.npz")
    samples = array(tmp_path / "all.npz")
    assert near(array(tmp_path / "same.npz")[0, 8], samples[13])
    assert not near(array(tmp_path / "other.npz")[0, 8], samples[4])
    said = refused("arithmetic", runs["cgan"], "--plus", "0,1")
    assert "--labels: the samples have 2 classes and the result needs one" in said
    use(tmp_path, "arithmetic", runs["cgan"], "--plus", "0,10", "--minus", "20", output="s.png")
    use(tmp_path, "traverse", runs["cgan"], "--dimensions", "0,2-3", output="t.png")
    assert "there is no class 'cat'" in refused("traverse", runs["cgan"], "--labels", "cat")
    assert "not conditional" in refused("interpolate", runs["gan"], "--labels", "3")


@pytest.mark.parametrize("command", ["interpolate", "traverse"])
@pytest.mark.parametrize("output", ["a.gif", "a.mp4", "a.npz", "folder"])
def test_rows_are_written_in_every_format(runs, tmp_path: Path, command: str, output: str) -> None:
    steps = ["--steps", "3", *(["--range", "2"] if command == "traverse" else ["--straight"])]
    use(tmp_path, command, runs["gan"], *steps, "--weights", "raw", output=output)


def test_image_files_stand_beside_numbers_where_there_is_an_encoder(runs, tmp_path: Path) -> None:
    use(tmp_path, "sample", runs["vae"], "--count", "4", output="images")
    first, second = (str(tmp_path / "images" / f"00000{index}.png") for index in (0, 1))
    folder = str(tmp_path / "images")
    use(tmp_path, "interpolate", runs["vae"], "--from", first, "--to", "7", output="i.png")
    both = f"{first},{second}"
    sums = ["--plus", both, "--minus", "3", "--zoom", "1"]
    use(tmp_path, "arithmetic", runs["vae"], *sums, output="a.png")
    found = tile(tmp_path / "a.png", 1, 0, above=line_height(8))
    assert near(found, np.asarray(Image.open(second)))
    use(tmp_path, "traverse", runs["vae"], "--base", first, output="t.png")

    said = use(tmp_path, "reconstruct", runs["vae"], folder, "--count", "3", output="r.png")
    assert "3 images, each above its reconstruction" in said
    assert "1 more not used: --count 4 takes all" in said
    use(tmp_path, "reconstruct", runs["vae"], first, second, "--seed", "1", output="r.npz")
    written = np.load(tmp_path / "r.npz")
    assert written["images"].shape == written["reconstructions"].shape == (2, 8, 8, 1)
    assert np.array_equal(written["images"][1, ..., 0], np.asarray(Image.open(second)))
    use(tmp_path, "reconstruct", runs["cvae"], first, "--labels", "3", output="r")

    assert "has no encoder" in refused("reconstruct", runs["gan"], first)
    for name in ("gan", "cgan"):  # nobody gave the files' class, and a class would not help
        assert "has no encoder" in refused("interpolate", runs[name], "--from", first, "--to", "1")
        assert "has no encoder" in refused("arithmetic", runs[name], "--plus", first)
        assert "has no encoder" in refused("traverse", runs[name], "--base", first)
        assert "has no encoder" in refused("mixture", runs[name], folder)
    assert "labels: this run is conditional; give" in refused("reconstruct", runs["cvae"], first)
    said = refused("reconstruct", runs["cvae"], folder, "--labels", "1,2")
    assert "labels: 2 given for 4 images" in said
    said = refused("interpolate", runs["cvae"], "--from", first, "--to", "1")
    assert "the class of" in said
    assert "IMAGES: name image files" in refused("reconstruct", runs["vae"])
    assert "--data: has its own images" in refused("reconstruct", runs["vae"], first, "--data")


def test_the_runs_own_data_is_reconstructed_and_fitted(runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    for name in ("vae", "cvae"):
        use(tmp_path, "reconstruct", runs[name], "--data", "--count", "9", output="r.png")
    fit = ["--data", "--components", "2"]
    said = use(tmp_path, "mixture", runs["vae"], *fit, output="m.safetensors")
    assert "Mixture(components=2, latent_size=5)" in said
    mixture = str(tmp_path / "m.safetensors")
    use(tmp_path, "sample", runs["vae"], "--prior", mixture, "--truncation", "1", output="s.png")
    earlier = [str(runs["vae"]), "--mixture", mixture, "--truncation", "1", "--output"]
    done = CliRunner().invoke(main, ["sample", *earlier, str(tmp_path / "t.png")])
    assert "--mixture: is now called --prior" in done.stderr
    assert (tmp_path / "t.png").read_bytes() == (tmp_path / "s.png").read_bytes()
    assert "leave it out" in refused("sample", *earlier[:-1], "--prior", mixture)
    assert "no.safetensors: there is no such file" in refused(
        "sample", runs["vae"], "--prior", "no.safetensors"
    )
    said = use(tmp_path, "mixture", runs["vae"], *fit, "--weights", "raw", output="r.safetensors")
    assert said.endswith(f"--prior {tmp_path / 'r.safetensors'} --weights raw\n")
    said = refused("sample", runs["vae"], "--prior", str(tmp_path / "r.safetensors"))
    assert "prior: the mixture was fitted to other weights of vae than these" in said


@pytest.mark.parametrize(
    ("name", "options", "arguments"),
    [
        ("vae", [], {}),
        ("gan", ["--count", "5", "--zoom", "3", "--annotate"], {"zoom": 3, "numbered": True}),
        ("cgan", ["--seed", "4", "--truncation", "1"], {"seed": 4, "truncation": 1}),
        ("cgan", ["--count", "5", "--labels", "3,7"], {"labels": ["3", 7]}),
        ("cgan", ["--count", "5", "--labels", "3"], {"labels": 3}),
    ],
)
def test_a_grid_in_python_is_that_of_the_command(
    runs, tmp_path: Path, name: str, options: list[str], arguments: dict[str, Any]
) -> None:
    use(tmp_path, "sample", runs[name], *options, output="grid.png")
    count = 5 if "--count" in options else None
    grid = ray_gen.load(runs[name]).grid(count, **arguments)
    written = (tmp_path / "grid.png").read_bytes()
    assert grid._repr_png_() == written
    assert grid.save(tmp_path / "new" / "same.png").read_bytes() == written
    assert "\n" not in repr(grid) and f"samples of {name}" in repr(grid)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"zoom": 0}, "zoom: 0 is not 1 to 64"),
        ({"zoom": 1.5}, "zoom: 1.5 is not a whole number"),
        ({"labels": []}, "labels: is empty"),
        ({"labels": "cat"}, "labels: "),
        ({"count": 0}, "count: "),
    ],
)
def test_a_grid_that_cannot_be_is_refused(runs, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told):
        ray_gen.load(runs["cgan"]).grid(**arguments)


def test_a_grid_is_a_png(runs, tmp_path: Path) -> None:
    grid = ray_gen.load(runs["vae"]).grid(4)
    with pytest.raises(Refused, match=r"a\.jpg is not a \.png"):
        grid.save(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["gan", "cgan", "hinge"])
def test_the_discriminators_view_of_each_image_is_printed(runs, tmp_path: Path, name: str) -> None:
    labels = ["--labels", "3"] if name == "cgan" else []
    use(tmp_path, "sample", runs[name], "--count", "3", output="images")
    other = tmp_path / "z.png"
    shutil.copy(tmp_path / "images" / "000001.png", other)
    given = [str(tmp_path / "images"), str(other), *labels]
    printed = use(tmp_path, "discriminate", runs[name], *given, output="new/d.csv").splitlines()
    pipeline = ray_gen.load(runs[name])
    images = pipeline.read(tmp_path / "images", other)
    logits = pipeline.discriminate(images, 3 if labels else None)
    scores = logits if name == "hinge" else logits.sigmoid()
    files = [*(str(tmp_path / "images" / f"00000{index}.png") for index in range(3)), str(other)]
    form = "+.4f" if name == "hinge" else ".4f"
    rows = zip(files, scores.tolist(), strict=True)
    assert printed == [f"{file:<{len(files[0])}}  {score:{form}}" for file, score in rows]
    with (tmp_path / "new" / "d.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["path"] for row in written] == files
    assert list(written[0]) == ["path", *([] if name == "hinge" else ["D(x)"]), "logit"]
    for column, expected in (("D(x)", scores), ("logit", logits)):
        if column in written[0]:
            found = torch.tensor([float(row[column]) for row in written])
            torch.testing.assert_close(found, expected)


def test_a_conditional_run_takes_the_classes_of_folders(runs, tmp_path: Path) -> None:
    for name in ("3", "7"):
        use(
            tmp_path, "sample", runs["cgan"], "--count", "2", "--labels", name, output=f"all/{name}"
        )
    pipeline = ray_gen.load(runs["cgan"])
    images = pipeline.read(tmp_path / "all")
    expected = pipeline.discriminate(images, [3, 3, 7, 7]).sigmoid()
    inner = tmp_path / "all" / "7" / "deep"
    inner.mkdir()
    (tmp_path / "all" / "7" / "000001.png").rename(inner / "z.png")
    printed = use(tmp_path, "discriminate", runs["cgan"], str(tmp_path / "all"), output="d.csv")
    found = [float(line.split()[-1]) for line in printed.splitlines()]
    assert found == [pytest.approx(float(value), abs=1e-4) for value in expected]
    one = use(tmp_path, "discriminate", runs["cgan"], str(inner.parent), output="e.csv")
    assert one.splitlines()[0].split()[-1] == printed.splitlines()[2].split()[-1]
    (tmp_path / "all" / "other.png").write_bytes((inner / "z.png").read_bytes())
    told = refused("discriminate", runs["cgan"], str(tmp_path / "all"))
    assert "other.png: lies in no folder with the name of a class" in told


def test_what_cannot_be_discriminated_is_refused(runs, tmp_path: Path) -> None:
    use(tmp_path, "sample", runs["gan"], "--count", "2", output="images")
    folder = str(tmp_path / "images")
    assert "has no discriminator; take a run" in refused("discriminate", runs["vae"], "no.png")
    assert "no.png: there is no such image" in refused("discriminate", runs["gan"], "no.png")
    assert "give the class" in refused("discriminate", runs["cgan"], folder)
    assert "not conditional" in refused("discriminate", runs["gan"], folder, "--labels", "3")
    exported = ray_gen.load(runs["gan"]).save_pretrained(tmp_path / "out")
    assert "not loaded from a run" in refused("discriminate", exported, folder)


WRITES = {
    "sample": ["a.png", "a.npz", "folder"],
    "interpolate": ["a.png", "a.gif", "a.mp4", "a.npz", "folder"],
    "arithmetic": ["a.png"],
    "traverse": ["a.png", "a.gif", "a.npz", "folder"],
    "reconstruct": ["a.png", "a.npz", "folder"],
    "mixture": ["a.safetensors"],
    "discriminate": ["a.csv"],
}


@pytest.mark.parametrize(("command", "name"), [(c, name) for c in WRITES for name in WRITES[c]])
def test_a_place_that_cannot_be_written_ends_in_a_sentence(
    runs, images: str, tmp_path: Path, command: str, name: str
) -> None:
    run = runs["vae" if command in ("reconstruct", "mixture") else "gan"]
    given = [images] if command in ("reconstruct", "mixture", "discriminate") else []
    given += {"arithmetic": ["--plus", "0,1"], "mixture": ["--components", "2"]}.get(command, [])
    (tmp_path / "file").write_text("mine")
    if name != "folder":
        (tmp_path / name).mkdir()
    for place in (
        f"/proc/{name}",  # there, and nobody may write in it
        f"/proc/x/{name}",
        tmp_path / "file" / name,
        tmp_path / ("file" if name == "folder" else name),  # a file for a folder, or the reverse
        tmp_path / ("a" * 300 + name),
    ):
        said = refused(command, run, *given, "--output", str(place))
        assert said.splitlines()[-1].startswith(f"error: --output: {place} cannot be written: ")
    here = ["file"] if name == "folder" else [name, "file"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == here
    assert (tmp_path / "file").read_text() == "mine"
