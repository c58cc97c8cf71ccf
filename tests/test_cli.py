"""What answers at once, and how a refusal looks."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ray_gen.cli import main
from ray_gen.recipes import names

HEAVY = ("torch", "torchvision", "ray", "numpy", "pyarrow", "tensorboard")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["recipes"], ["train", "vae-mnist5k", "training.imags=1"], ["train", "--help"]],
    ids=["help", "recipes", "refused", "train help"],
)
def test_nothing_heavy_is_imported_for_an_answer(arguments: list[str]) -> None:
    code = f"""
import sys
from click.testing import CliRunner
from ray_gen.cli import main
CliRunner().invoke(main, {arguments!r})
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_refusal_is_one_message_without_a_traceback() -> None:
    done = CliRunner().invoke(main, ["train", "vae-mnist5k", "training.imags=1"])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: training.imags: there is no such field; did you mean training.images?\n"
    )


def test_recipes_are_listed_with_their_claims_and_printed_to_copy() -> None:
    listed = CliRunner().invoke(main, ["recipes"]).stdout
    for name in names():
        assert name in listed
        printed = CliRunner().invoke(main, ["recipes", name]).stdout
        assert printed.startswith("# ")
        assert f"name: {name}" in printed
    assert "Unmeasured" not in listed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "vae"], "neither a file nor a recipe"),
        (["train", "vae-mnist5k", "--name", "a/b"], "--name: 'a/b'"),
        (["train", "vae-mnist5k", "--storage", "/proc/x"], "storage: /proc/x/.* cannot be written"),
        (["train", "vae-mnist5k", "--storage", "x://y"], "x://y.* cannot be reached"),
        (["sample", "/no/such/run"], "/no/such/run: there is no such run"),
        (["sample", "/no/such/run", "--output", "a.jpg"], "--output: a.jpg is neither"),
    ],
)
def test_bad_input_ends_in_a_sentence(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert re.search(sentence, done.stderr)
    assert "Traceback" not in done.stderr
