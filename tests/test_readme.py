"""What README.md says to type can be typed: commands, Python and experiments, in the order in which
they stand there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import ray_gen
from ray_gen import recipes
from ray_gen.cli import main
from tests.helpers import wait_until
from tests.s3 import S3

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

LONG = ("train", "resume", "search")
"""Commands that would take minutes. The test appends `training.images` to them."""
SEARCHED = ("search.trials=2", "training.images=4096", "search.every_images=2048")
"""After fewer images a GAN's samples are all alike, which fails a trial."""
METAVARIABLES = re.compile(r"RUN\b|NAME\b|FILE\b|PATH\b|SOURCE\b")


@dataclass(frozen=True)
class Block:
    """Something that a reader copies."""

    line: int
    language: str
    """shell, python, yaml or text."""
    text: str
    is_output_below: bool = False

    @property
    def words(self) -> list[str]:
        """The words of a command, without variables before it and comments."""
        words = shlex.split(self.text, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        return words


def blocks(text: str = TEXT) -> Iterator[Block]:
    """All blocks in their order. A shell block is one command."""
    fence: tuple[int, str] | None = None
    kept: list[str] = []
    command: tuple[int, str] | None = None
    shown = False  # the lines below a command with a prompt are its output
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.fullmatch(r"```(\w*)", line):
            if fence is None:
                fence, kept = (number, found[1]), []
            else:
                yield Block(*fence, "\n".join(kept) + "\n")
                fence = None
        elif fence is not None:
            kept.append(line)
        elif command is not None:
            command = (command[0], command[1] + " " + line.strip().removesuffix("\\"))
        elif line.startswith("    ") and not shown:
            shown = line.startswith("    $ ")
            code = line.strip().removeprefix("$ ")
            if re.match(r"(ray-gen|ray|pip|export|python|[A-Z_]+=\S+) ?", code):
                command = (number, code.removesuffix("\\"))
        elif not line.startswith("    "):
            shown = False
        if command is not None and not line.endswith("\\"):
            yield Block(command[0], "shell", command[1])
            command = None


def of(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"line {block.line}")
        for block in blocks()
        if block.language == language
    ]


def in_text() -> list[object]:
    """Commands inside of sentences and tables."""
    plain = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    found = re.findall(r"`(ray-gen [^`]+|python jobs/[^`]+)`", plain)
    return list(dict.fromkeys(found))


# Fast: everything parses


def parse(words: list[str]) -> None:
    """Of `ray-gen`: the command exists and takes the options; fields and recipes exist."""
    command: click.Command = main
    name = "ray-gen"
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    if "--help" in words or words == ["--version"]:
        return
    with click.Context(command, resilient_parsing=True) as context:
        values, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest
    arguments: list[str] = []
    for parameter in command.params:
        value = values.get(parameter.name) if isinstance(parameter, click.Argument) else None
        if isinstance(value, str):
            arguments.append(value)
        elif isinstance(value, tuple):
            arguments += value
    if any(METAVARIABLES.search(word) for word in arguments):
        return
    if name in ("train", "search") and arguments and arguments[0] in recipes.names():
        recipes.recipe(*arguments)
    if name == "fields" and arguments:
        done = CliRunner().invoke(main, ["fields", *arguments])
        assert done.exit_code == 0, done.stderr


def words_of_ours(words: list[str]) -> list[str] | None:
    """The arguments of `ray-gen`, also of its twins in jobs/; None for other commands."""
    if words[:1] == ["ray-gen"]:
        return list(_until_redirection(words[1:]))
    for index, word in enumerate(words):
        if found := re.fullmatch(r"jobs/(train|search|evaluate)\.py", word):
            assert (ROOT / word).is_file()
            return [found[1], *words[index + 1 :]]
        if word.startswith("jobs/"):
            assert (ROOT / word).is_file(), word
    return None


def _until_redirection(words: list[str]) -> Iterator[str]:
    for word in words:
        if word in (">", "|", "&&"):
            return
        yield word


@pytest.mark.parametrize("block", of("shell"))
def test_a_command_parses(block: Block) -> None:
    if (words := words_of_ours(block.words)) is not None:
        parse(words)


@pytest.mark.parametrize("command", in_text())
def test_a_command_in_a_sentence_parses(command: str) -> None:
    command = re.sub(r"\[--", "--", command).replace("]", "").replace("…", " ").replace("...", "")
    if (words := words_of_ours(shlex.split(command))) is not None:
        parse([word for word in words if word])


@pytest.mark.parametrize("block", of("python"))
def test_a_block_of_python_parses(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "ray_gen"
        ):
            assert node.attr in ray_gen.__all__


@pytest.mark.parametrize("block", of("yaml"))
def test_a_block_of_yaml_is_a_part_of_an_experiment(block: Block) -> None:
    assert set(yaml.safe_load(block.text)) <= set(ray_gen.Experiment.model_fields)


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)
    }
    plain = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", plain):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target


def test_it_is_read_as_blocks() -> None:
    shell = "    $ ray-gen runs\n    ray-gen output\n\n    A=1 ray job \\\n        stop\n\n"
    text = shell + "```python\nx\n```"
    assert [(b.line, b.language, b.text) for b in blocks(text)] == [
        (1, "shell", "ray-gen runs"),
        (4, "shell", "A=1 ray job  stop"),
        (7, "python", "x\n"),
    ]


# Slow: everything runs


def shortened(block: Block) -> str:
    """The command with few training images, if it trains."""
    words = words_of_ours(block.words)
    if words and words[0] in LONG and "--check" not in words:
        number = 512 if words[0] == "resume" else 256
        if "ema_profiles" in block.text:
            number = 65_536  # enough for all snapshots
        assignments = SEARCHED if words[0] == "search" else (f"training.images={number}",)
        return f"{block.text.partition(' #')[0]} {' '.join(assignments)}"
    return block.text


def make_images(folder: Path) -> None:
    """Two classes of 40 small pictures."""
    draw = np.random.default_rng(0)
    for name, colour in (("apples", (180, 40, 40)), ("limes", (60, 170, 50))):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            noise = draw.integers(-40, 40, (48, 64, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything_runs_as_printed(tmp_path: Path) -> None:
    """In a copy of the repository, with a home of its own.

    What differs from the page: trainings see few images, and searches have two trials. `pip` is
    left out, since the package is here. `ray start` stays in the foreground, so that it can be
    ended; `ray stop` would also end clusters of others."""
    here = tmp_path / "repository"
    shutil.copytree(ROOT / "ray_gen", here / "ray_gen")
    shutil.copytree(ROOT / "jobs", here / "jobs")
    for name in ("images", "cats"):
        make_images(tmp_path / "home" / name)
    shutil.copyfile(tmp_path / "home/images/limes/1.png", tmp_path / "home/me.png")
    failed: list[str] = []
    with S3() as s3:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_GEN")},
            **s3.environment,
            "HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(here),
            "WANDB_MODE": "offline",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3.environment.items():
                patch.setenv(name, value)
            import boto3

            boto3.client("s3").create_bucket(Bucket="bucket")
        cluster: subprocess.Popen[bytes] | None = None
        try:
            for block in blocks():
                began = time.monotonic()
                if block.language == "shell" and block.words[0] == "export":
                    name, _, value = block.words[1].partition("=")
                    environment[name] = value
                    continue
                if (script := script_of(block, here)) is None:
                    continue
                if block.words[:2] == ["ray", "start"]:
                    cluster = subprocess.Popen(
                        [*shlex.split(script), "--block"], cwd=here, env=environment
                    )
                    wait_for_dashboard()
                    continue
                done = subprocess.run(
                    ["bash", "-euc", script],
                    cwd=here,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                )
                seconds = time.monotonic() - began
                print(
                    f"line {block.line}, {seconds:.0f} s, exit {done.returncode}: {script}",
                    flush=True,
                )
                if done.returncode:
                    print(done.stdout[-2000:])
                    failed.append(f"line {block.line}: {script}\n{done.stdout[-2000:]}")
        finally:
            if cluster is not None:
                cluster.terminate()
                cluster.wait(60)
    assert not failed, "\n\n".join(failed)


def script_of(block: Block, here: Path) -> str | None:
    """What bash runs; None if nothing is to run. Writes the files that the page shows."""
    first, _, rest = block.text.partition("\n")
    if found := re.fullmatch(r"# (?:add to )?(\S+\.(?:py|yaml))", first):
        with (here / found[1]).open("a" if "add to" in first else "w", encoding="utf-8") as file:
            file.write(rest)
        return None
    if block.language == "python":
        (here / "block.py").write_text(few_images(block.text), encoding="utf-8")
        return f"{shlex.quote(sys.executable)} block.py"
    if block.language != "shell" or block.words[0] == "pip":
        return None
    if block.text.startswith("ray stop") or "tensorboard" in block.words:
        return None  # the first would end clusters of others, the second runs until Ctrl-C
    return shortened(block)


def few_images(text: str) -> str:
    """The same Python with few training images."""
    text = re.sub(r"(\"training\.images\": )[\d_]+", r"\g<1>256", text)
    return text.replace('"search.trials=32"', ", ".join(f'"{text}"' for text in SEARCHED))


def wait_for_dashboard() -> None:
    """Until jobs can be submitted."""

    def answers() -> bool:
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", 8265)) == 0

    wait_until(answers, "the dashboard of Ray")
