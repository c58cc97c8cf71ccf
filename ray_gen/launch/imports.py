"""Where worker processes look for modules, and why one could not import a module."""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

_FRAME = re.compile(r'File "(?P<file>.+?)", line \d+(, in (?P<where>\S+))?')
_ERROR = re.compile(r"^(?:\w+\.)*(?P<kind>\w*(?:Error|Exception)): (?P<text>.*)", re.MULTILINE)
_OF_MODULES = ("<module>", "init")
"""What a frame is called that runs a module. Cython says "init"."""
_OF_SYNTAX = ("SyntaxError", "IndentationError", "TabError")
_NAMED = re.compile(
    r"; '(?P<package>\w+)' is not a package"
    r"|from (?:partially initialized module )?'(?P<source>\w+)[.\w]*' .*?\((?P<file>[^()]+\.\w+)\)$"
    r"|module '(?P<empty>\w+)[.\w]*' has no attribute"
    r"|No module named '(?P<missing>\w+)"
)


def import_failure(traceback: str) -> str | None:
    """One sentence that names the module and the file. None if the traceback does not end in an
    import.

    A file of the module's name in another folder hides the module: a `torch.py` hides torch. A
    library may raise another ImportError then, so the first one of a file that hides counts.
    """
    last: tuple[str, str, str] | None = None
    end = 0
    for error in _ERROR.finditer(traceback):
        frames = list(_FRAME.finditer(traceback, end, error.start()))
        end, text, last = error.end(), error["text"].strip(), None
        is_import = error["kind"] in ("ImportError", "ModuleNotFoundError", *_OF_SYNTAX)
        if not is_import and not (frames and frames[-1]["where"] in _OF_MODULES):
            continue
        file = frames[-1]["file"] if frames else "a file"
        named = _NAMED.search(text)
        groups = ("package", "source", "empty", "missing")
        module = next((named[group] for group in groups if named and named[group]), None)
        found = (named and named["file"]) or (None if module else file)
        module = module or _module_of(file)
        own = _origin(module)
        other = _hiding(module, own) if found is None or found == own else found
        if other is not None and own is not None and Path(other) != Path(own):
            return (
                f"a worker process found {other} instead of the module {module} ({text}); rename "
                f"{Path(other).name}, or start in another folder"
            )
        last = module, file, text
    if last is None:
        return None
    module, file, text = last
    return (
        f"a worker process cannot import {module}, which {file} needs ({text}); install the same "
        "packages on every node"
    )


def searched_first() -> list[str]:
    """The folders in which this process looks for modules before the standard library: the folder
    of its script, $PYTHONPATH."""
    standard = Path(sysconfig.get_path("stdlib")).parent
    before: list[str] = []
    for folder in sys.path:
        if Path(folder).parent == standard:
            break
        before.append(str(Path(folder).absolute()))
    return before


def _module_of(file: str) -> str:
    """The name of the module in a file, without its package."""
    path = Path(file)
    return path.parent.name if path.name == "__init__.py" else path.stem


def _origin(module: str) -> str | None:
    """The file of the module in this process."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


def _hiding(module: str, own: str | None) -> str | None:
    """A file of this module's name in the working directory, or in a folder where this process
    looks for modules. Not the file that this process imports."""
    for folder in (str(Path.cwd()), *sys.path):
        spec = PathFinder.find_spec(module, [folder])
        if spec is not None and spec.origin not in (None, own):
            return spec.origin
    return None
