"""A failed import in a worker process is told in one sentence, with module and file."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError

from ray_gen.errors import Failed
from ray_gen.launch.failures import in_words, is_of_the_controller
from ray_gen.launch.imports import import_failure

USER = 'Traceback (most recent call last):\n  File "/app/user.py", line 1, in <module>\n'


def failing(text: str, folder: Path, statement: str) -> str:
    """The traceback of a statement that imports a file with this text."""
    (folder / "fractions.py").write_text(text)
    hidden = sys.modules.pop("fractions", None)
    sys.path.insert(0, str(folder))
    try:
        exec(compile(statement, "/app/user.py", "exec"))
    except Exception:
        return traceback.format_exc()
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("fractions", None)
        if hidden is not None:
            sys.modules["fractions"] = hidden
    raise AssertionError("it was imported")


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("", "from fractions import Fraction"),
        ("", "import fractions.more"),
        ("", "import fractions\nfractions.Fraction"),
        ("raise RuntimeError('hidden')", "import fractions"),
        ("raise ImportError('hidden')", "import fractions"),
        ("def (", "import fractions"),
    ],
)
def test_a_file_that_hides_a_module_is_named(
    text: str, statement: str, tmp_path: Path, monkeypatch
) -> None:
    told = failing(text, tmp_path, statement)
    monkeypatch.chdir(tmp_path)
    sentence = import_failure(told)
    assert sentence is not None and "\n" not in sentence
    file = tmp_path / "fractions.py"
    assert f"found {file} instead of the module fractions" in sentence
    assert "rename fractions.py" in sentence


def test_the_first_failure_counts_where_a_library_raises_another(
    tmp_path: Path, monkeypatch
) -> None:
    """Ray says that dependencies are missing, where a file hides one."""
    first = failing("raise ImportError('hidden')", tmp_path, "import fractions")
    monkeypatch.chdir(tmp_path)
    more = "\nDuring handling of the above exception, another exception occurred:\n\n"
    sentence = import_failure(f"{first}{more}{USER}ImportError: dependencies are missing\n")
    assert sentence is not None
    assert f"found {tmp_path / 'fractions.py'} instead" in sentence


def test_a_module_in_c_that_finds_another_file_is_an_import_too(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fractions.py").touch()
    frame = '  File "pyarrow/lib.pyx", line 41, in init pyarrow.lib\n'
    sentence = import_failure(
        f"{USER}{frame}AttributeError: module 'fractions' has no attribute 'a'"
    )
    assert sentence is not None
    assert f"found {tmp_path / 'fractions.py'} instead of the module fractions" in sentence


def test_an_import_that_was_tried_in_vain_is_not_blamed() -> None:
    tried = f"{USER}ModuleNotFoundError: No module named 'faster'\n"
    text = f'{tried}\n  File "/app/user.py", line 7, in forward\nValueError: no number\n'
    assert import_failure(text) is None


def test_a_module_that_is_missing_is_named_with_the_file_that_needs_it() -> None:
    sentence = import_failure(f"{USER}ModuleNotFoundError: No module named 'nowhere.else'\n")
    assert sentence is not None
    assert "cannot import nowhere, which /app/user.py needs" in sentence


@pytest.mark.parametrize(
    "text",
    [
        "",
        'File "/app/user.py", line 7, in forward\nValueError: no number\n',
        "File \"/app/user.py\", line 7, in forward\nAttributeError: module 'a' has no attribute\n",
    ],
)
def test_other_failures_are_not_taken_for_it(text: str) -> None:
    assert import_failure(text) is None


def test_a_controller_that_cannot_begin_is_not_tried_again() -> None:
    cause = ModuleNotFoundError("No module named 'nowhere'")
    text = f"{USER}ModuleNotFoundError: No module named 'nowhere'\n"
    died = ActorDiedError(RayTaskError("__init__", text, cause))
    assert not is_of_the_controller(died)
    assert is_of_the_controller(ActorDiedError())
    for error in (died, ControllerError(RuntimeError(text))):
        found = in_words(error)
        assert isinstance(found, Failed)
        assert "cannot import nowhere, which /app/user.py needs" in str(found)
        assert "\n" not in str(found)
