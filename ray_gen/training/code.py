"""The source files of users' own classes: found, stored with a run, and run again if trusted.

A run folder and an exported folder hold them as `code/ID/FILE`. The experiment of a checkpoint has
the SHA-256 of each file. A folder may come from anybody, so nothing in it is imported, unless its
user trusts it: then only files with these digests run, from the bytes that were checked.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.experiment.data import LatentsData
from ray_gen.experiment.distances import CustomDistance, distances_in
from ray_gen.experiment.networks import CustomNetwork
from ray_gen.experiment.objectives import CustomObjective
from ray_gen.storage import Folder

CODE = "code"
"""Folder of the source files, in a run folder or an exported folder."""


@dataclass(frozen=True)
class Source:
    """A source file."""

    file: str
    """Its path below the folder from which it is imported: "my_model.py", "parts/blocks.py"."""
    place: str
    """The path or URI where it lies."""
    data: bytes = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """In hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__.py` of a package."""
        return self.file.rpartition("/")[2] == "__init__.py"

    @property
    def module(self) -> str:
        """The name by which it is imported."""
        return _module_of(self.file)


def _module_of(file: str) -> str:
    """The name by which a source file is imported."""
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def autoencoder_of(experiment: Experiment) -> Experiment | None:
    """The experiment of the autoencoder that decodes samples. None: samples are images."""
    data = experiment.data
    if not isinstance(data, LatentsData) or data.autoencoder is None:
        return None
    return Experiment.of(data.autoencoder)


def custom_targets(experiment: Experiment) -> list[str]:
    """The "module:Name" of each class that is not ray_gen's. Building the model imports them. Among
    them are those of the autoencoder that decodes samples."""
    decodes = autoencoder_of(experiment)
    all_of_them = [experiment] if decodes is None else [experiment, decodes]
    parts = [part for one in all_of_them for part in (one.objective, *one.networks.values())]
    targets = [part.target for part in parts if isinstance(part, (CustomObjective, CustomNetwork))]
    return list(dict.fromkeys(targets))


def _of_training(experiment: Experiment) -> list[str]:
    """The "module:Name" of classes that are not ray_gen's and that only training imports."""
    distances = distances_in(experiment.objective).values()
    return [one.target for one in distances if isinstance(one, CustomDistance)]


# Found: which files an experiment's own classes come from. Nothing is imported for it.


def spec_of(module: str) -> ModuleSpec | None:
    """Where an import would find a module, without importing anything, not even its package. None:
    it would not find it."""
    return next((spec for spec in specs_to(module) if spec.name == module), None)


def specs_to(module: str) -> Iterator[ModuleSpec]:
    """The specs of the packages around a module, and its own, as far as they are found."""
    name, within = "", None
    for part in module.split(".") if all(module.split(".")) else ():
        name = f"{name}.{part}" if name else part
        specs = (_spec_by(finder, name, within) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return
        yield spec
        if spec.submodule_search_locations is None:
            return
        within = [*spec.submodule_search_locations]


def _spec_by(finder: Any, name: str, within: list[str] | None) -> ModuleSpec | None:
    try:
        return finder.find_spec(name, within)
    except KeyError:
        # Python asks the package around one without __init__.py for its path, and it is not
        # imported. By the last part of its name alone it is found.
        spec = finder.find_spec(name.rpartition(".")[2], within)
        if spec is not None:
            spec.name = name
        return spec


def collected(experiment: Experiment) -> list[Source]:
    """The source files of an experiment's own classes: of their modules, and of the modules below
    the same folder that these import. Not of installed packages, and not of ray_gen."""
    found: dict[str, Source] = {}
    for target in (*custom_targets(experiment), *_of_training(experiment)):
        module = target.partition(":")[0]
        spec = spec_of(module)
        if spec is None:
            continue
        if isinstance(spec.loader, _Loader):
            sources = spec.loader.together
        else:
            root = _root(spec)
            sources = [] if root is None else _below(root, module)
        found |= {source.file: source for source in sources}
    return [found[file] for file in sorted(found)]


def _root(spec: ModuleSpec) -> Path | None:
    """The folder from which a user's own module is imported. None: the module is installed, or no
    Python file."""
    if not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin).absolute()
    root = file.parents[spec.name.count(".") + (file.name == "__init__.py")]
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    if root in installed or root.name in ("site-packages", "dist-packages"):
        return None
    return None if spec.name.partition(".")[0] == __name__.partition(".")[0] else root


def _below(root: Path, module: str) -> list[Source]:
    """The source of a module, and of all modules below the same folder that it imports."""
    found: dict[str, Source] = {}
    waiting = [module]
    own = {module.partition(".")[0]: True}
    while waiting:
        parts = waiting.pop().split(".")
        top = parts[0]
        if top not in own:
            own[top] = top not in sys.stdlib_module_names and _lies_in(root, top)
        for length in range(1, len(parts) + 1) if own[top] else ():
            base = "/".join(parts[:length])
            for file in (f"{base}/__init__.py", f"{base}.py"):
                if file not in found and (root / file).is_file():
                    source = Source(file, str(root / file), (root / file).read_bytes())
                    found[file] = source
                    waiting += _imported(source)
    return list(found.values())


def _lies_in(root: Path, top: str) -> bool:
    """Whether an import of this name would find it in this folder. ray_gen does not count."""
    spec = None if top == __name__.partition(".")[0] else spec_of(top)
    if spec is None or isinstance(spec.loader, _Loader):
        return False
    places = [spec.origin] if spec.origin else [*(spec.submodule_search_locations or ())]
    own = {root / f"{top}.py", root / top / "__init__.py", root / top}
    return any(Path(place).absolute() in own for place in places)


def _imported(source: Source) -> Iterator[str]:
    """The names of all modules that a file imports anywhere. Some may be names in modules."""
    package = source.module if source.is_package else source.module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source.data)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                name = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(name, package) if node.level else name
            except ImportError:  # too many dots
                continue
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def with_code(experiment: Experiment, sources: Iterable[Source] | None = None) -> Experiment:
    """The experiment, with the digests of these sources; None: of those that an import finds."""
    sources = collected(experiment) if sources is None else sources
    code = {source.file: source.sha256 for source in sources}
    return experiment if code == experiment.code else experiment.with_fields(code=code)


# Stored: in a run folder, by a name that their digests give, so that older checkpoints keep theirs.


def folder_of(code: Mapping[str, str]) -> str:
    """The folder of these files, below the run folder. code: SHA-256 by file."""
    lines = "".join(f"{sha256}  {file}\n" for file, sha256 in sorted(code.items()))
    return f"{CODE}/{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


def store(run: Folder, sources: Iterable[Source]) -> None:
    """Write the sources into a run folder. Files that are there already stay."""
    sources = list(sources)
    folder = run / folder_of({source.file: source.sha256 for source in sources})
    for source in sources:
        if _bytes_in(folder, source.file) != source.data:
            path, _, name = source.file.rpartition("/")
            (folder / path if path else folder).write_bytes(name, source.data)


def stored(run: Folder, experiment: Experiment) -> list[Source]:
    """The sources of an experiment that its run folder holds, or its export. Raises Refused if one
    is missing or has another digest than the experiment says."""
    folder = run / folder_of(experiment.code)
    found: list[Source] = []
    for file, sha256 in experiment.code.items():
        place, data = (folder / file).location, _bytes_in(folder, file)
        if data is None:
            raise Refused(
                f"{place}: is missing, so the model's own classes cannot be loaded; name the whole "
                "run folder or export, or put their module on PYTHONPATH"
            )
        source = Source(file, place, data)
        if source.sha256 != sha256:
            raise Refused(
                f"{place}: was changed after the training (its SHA-256 is {source.sha256}, and the "
                f"experiment's {sha256}); put the old file back"
            )
        found.append(source)
    return found


def held(run: Folder, experiment: Experiment) -> tuple[Source, ...]:
    """As `stored`, but nothing if a file is missing or changed."""
    try:
        return tuple(stored(run, experiment))
    except Refused:
        return ()


def _bytes_in(folder: Folder, file: str) -> bytes | None:
    """The content of a file. None: there is none."""
    try:
        return folder.read_bytes(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def check_importable(run: Folder, experiment: Experiment, beside: Sequence[str] = ()) -> None:
    """Raises Refused if the module of an own class is not found. The message says where the folder
    of the run or export has it. beside: files there that hold the model without its classes."""
    for target in custom_targets(experiment):
        module = target.partition(":")[0]
        if not all(module.split(".")) or spec_of(module) is not None:
            continue  # `build` refuses what is no name
        copies = [file for file in experiment.code if _module_of(file) == module]
        ways = [f"start in the folder of {module.replace('.', '/')}.py, or put it on PYTHONPATH"]
        for file in copies:
            place = (run / folder_of(experiment.code) / file).location
            ways.append(
                f"read its copy {place} and, if you trust that, give --trust-code (in Python "
                "trust_code=True)"
            )
        if beside:
            ways.append(f"use {' and '.join(beside)}, which need no class")
        raise Refused(
            f"{run.location}: needs the class {target}, and the module {module} is not found here; "
            + "; or ".join(ways)
        )


def changed(run: Folder, experiment: Experiment, sources: Iterable[Source]) -> str | None:
    """A sentence if the sources that are imported here differ from those of a run. None: they are
    equal, or the run has none."""
    for source in sources:
        before = experiment.code.get(source.file)
        if before is not None and before != source.sha256:
            place = (run / folder_of(experiment.code) / source.file).location
            return (
                f"{source.place} is taken, which differs from the run's own ({place}); "
                "--trust-code takes that one"
            )
    return None


# Trusted: imported by the names that the files had, from the bytes whose digests were checked.


class _Loader(ExecutionLoader):
    """Loads one trusted source."""

    def __init__(self, source: Source, together: list[Source]) -> None:
        self.source, self.together = source, together

    def get_filename(self, fullname: str) -> str:
        return self.source.place

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.source.data)

    def is_package(self, fullname: str) -> bool:
        return self.source.is_package


class _Finder(MetaPathFinder):
    """Finds the trusted sources, before any other module of their names."""

    def __init__(self) -> None:
        self.loaders: dict[str, _Loader] = {}

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        loader = self.loaders.get(fullname)
        if loader is not None:
            spec = importlib.util.spec_from_loader(fullname, loader)
            assert spec is not None
            if loader.source.is_package:
                spec.submodule_search_locations = []  # no file beside those that were checked
            return spec
        if any(name.startswith(f"{fullname}.") for name in self.loaders):
            return ModuleSpec(fullname, None, is_package=True)  # a package without __init__.py
        return None


_finder = _Finder()


def is_trusted(spec: ModuleSpec) -> bool:
    """Whether the module is a trusted source."""
    return isinstance(spec.loader, _Loader)


def trust(sources: Sequence[Source]) -> None:
    """From now on this process imports these sources by their names. Raises Refused if another
    version of a module is already imported."""
    new = {source.module: _Loader(source, [*sources]) for source in sources}
    other = [name for name, loader in new.items() if _is_other(name, loader.source)]
    for name in other:
        if name not in _finder.loaders:
            place = getattr(sys.modules[name], "__file__", None)
            raise Refused(
                f"{new[name].source.place}: this process has already imported another {name} "
                f"({place}); load the run in a new process"
            )
    for name in other:  # of another run that is trusted; its objects stay
        del sys.modules[name]
    _finder.loaders |= new
    if sources and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _is_other(name: str, source: Source) -> bool:
    """Whether another version of the source is imported by this name."""
    module = sys.modules.get(name)
    return module is not None and _source_of(module) != source.data


def _source_of(module: Any) -> bytes | None:
    """The source from which a module was imported."""
    spec = getattr(module, "__spec__", None)
    if spec is not None and isinstance(spec.loader, _Loader):
        return spec.loader.source.data
    try:
        return Path(str(getattr(module, "__file__", ""))).read_bytes()
    except OSError:
        return None


def carried() -> list[list[str]]:
    """What this process trusts, in a form that travels as JSON to a process that `take`s it."""
    sources = [loader.source for loader in _finder.loaders.values()]
    # Latin-1 has a character for every byte.
    return [[source.file, source.place, source.data.decode("latin-1")] for source in sources]


def take(given: Iterable[Sequence[str]]) -> None:
    """Trust what the process that sent this trusts."""
    trust([Source(file, place, text.encode("latin-1")) for file, place, text in given])


def in_a_sentence(error: Exception) -> str:
    """An exception of a user's code: its kind, its text, and the line of this code that raised it
    or called what raised it."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_OF_OTHERS, "<"))]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


_OF_OTHERS = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))
