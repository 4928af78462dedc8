"""Plug-ins: a user's own modules, which register defences, attacks, models, data sets or strategies when imported.

One is a Python file (``./my_attack.py``), a module or package (``my_defense``), or an installed package's entry point of
the group ``fedveil.plugins``. What is registered in one process is unknown in the next, so a `Plugin` carries the text of
its files: trial processes and workers, on other machines too, `install` what the driver has read, before they unpickle
anything that may be an instance of a class in it.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from fedveil.fl.errors import FedveilError, brief

GROUP = "fedveil.plugins"
PREFIX = "fedveil_plugin_"
"""Before the name of a file, so that ``./random.py`` hides no module of that name."""

_INSTALLED = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")]


@dataclass(frozen=True)
class Source:
    """One module's text.

    Attributes:
        module: its dotted name.
        path: where it was read, for tracebacks; other processes need not have it.
        text: what stands there.
        package: it holds other modules.
    """

    module: str
    path: str
    text: str
    package: bool = False


@dataclass(frozen=True)
class Plugin:
    """What any process needs to import a plug-in. It can be pickled.

    Attributes:
        given: as the user named it, for messages.
        module: what to import.
        sources: all of its modules; empty where each process finds them installed.
        folder: where the user keeps it: what it imports from beside itself is found wherever that folder exists.
    """

    given: str
    module: str
    sources: tuple[Source, ...] = ()
    folder: str | None = None


class _Carried(MetaPathFinder, ExecutionLoader):
    """Imports modules from texts that came with plug-ins, and no other."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name in self.sources else None

    def is_package(self, name: str) -> bool:
        return self.sources[name].package

    def get_filename(self, name: str) -> str:
        return self.sources[name].path

    def get_source(self, name: str) -> str:
        return self.sources[name].text


_carried = _Carried()
_installed: dict[Plugin, None] = {}


def loaded() -> tuple[Plugin, ...]:
    """Return the plug-ins of this process, in the order in which they were installed."""
    return tuple(_installed)


def load_plugins(specs: Iterable[str], base: Path) -> tuple[Plugin, ...]:
    """Find plug-ins, those that installed packages bring included, and import them here.

    Args:
        specs: files or modules.
        base: the folder in which to look, before the working folder.

    Returns:
        They, for `install` in other processes.

    Raises:
        FedveilError: one is missing or fails while it is imported; the line begins with its name.
    """
    folders = list(dict.fromkeys((base.absolute(), Path.cwd())))
    entries = [Plugin(f"entry point {entry.name}", entry.module) for entry in metadata.entry_points(group=GROUP)]
    plugins = (*entries, *(_found(spec, folders) for spec in specs))
    install(plugins)
    return plugins


def install(plugins: Iterable[Plugin]) -> None:
    """Import plug-ins in this process; what is installed already stays as it is.

    Raises:
        FedveilError: one fails while it is imported, or another of its name is there.
    """
    if _carried not in sys.meta_path:
        sys.meta_path.insert(0, _carried)
    for plugin in plugins:
        if plugin in _installed:
            continue
        fresh = [source for source in plugin.sources if source.module not in _carried.sources]
        for source in plugin.sources:
            if source not in fresh and _carried.sources[source.module].text != source.text:
                raise FedveilError(
                    f"{plugin.given}: {source.module} is here already, with another text; rename one of two, or start Python"
                    " anew if the file was changed"
                )
        if plugin.folder is not None and plugin.folder not in sys.path and Path(plugin.folder).is_dir():
            sys.path.append(plugin.folder)
        _carried.sources |= {source.module: source for source in fresh}
        try:
            import_module(plugin.module)
        except (Exception, SystemExit) as error:
            for source in fresh:
                del _carried.sources[source.module]
                sys.modules.pop(source.module, None)
            raise FedveilError(f"{plugin.given}: {_reason(error, plugin)}") from error
        _installed[plugin] = None


def _reason(error: BaseException, plugin: Plugin) -> str:
    """Return in one line why an import failed, with the plug-in's own line that led there."""
    text = " ".join(str(error).split())
    if not isinstance(error, FedveilError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    own = {source.path for source in plugin.sources}
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f"{text} (line {lines[-1]})" if lines else text


def _found(spec: str, folders: Sequence[Path]) -> Plugin:
    if spec.endswith(".py") or "/" in spec or "\\" in spec:
        return _file(spec, folders)
    if not re.fullmatch(r"\w+(\.\w+)*", spec):
        raise FedveilError(f"{brief(repr(spec))}: neither a module's name nor a Python file such as ./my_attack.py")
    top = spec.partition(".")[0]
    # Last, so that a file of the user's hides no module of that name that something else imports.
    where = PathFinder.find_spec(top, [*sys.path, *map(str, folders)]) or find_spec(top)
    if where is None:
        raise FedveilError(
            f"{brief(spec)}: there is no module {brief(repr(top))}; looked in {_listed(folders)} and where Python looks"
        )
    path = Path(next(iter(where.submodule_search_locations or [where.origin or ""])))
    if any(path.is_relative_to(place) for place in _INSTALLED):
        return Plugin(spec, spec)
    if path.is_dir():
        return Plugin(spec, spec, tuple(_package(spec, top, path)), str(path.parent))
    return Plugin(spec, spec, (Source(top, str(path), _text(spec, path)),), str(path.parent))


def _package(spec: str, name: str, root: Path) -> Iterable[Source]:
    """Yield the modules of a package, whose folders need no ``__init__.py``."""
    files = {path.relative_to(root): _text(spec, path) for path in sorted(root.rglob("*.py"))}
    for folder in sorted({parent for path in files for parent in path.parents}):
        start = folder / "__init__.py"
        yield Source(".".join((name, *folder.parts)), str(root / start), files.pop(start, ""), package=True)
    for path, text in files.items():
        yield Source(".".join((name, *path.with_suffix("").parts)), str(root / path), text)


def _file(spec: str, folders: Sequence[Path]) -> Plugin:
    try:
        path = next((found for folder in folders if (found := folder / Path(spec).expanduser()).is_file()), None)
    except (OSError, RuntimeError) as error:  # too long, or of a home folder that is not known
        raise FedveilError(f"{brief(spec)}: this path cannot be looked up ({_cause(error)})") from None
    if path is None:
        raise FedveilError(f"{brief(spec)}: there is no such file in {_listed(folders)}")
    path = path.resolve()
    module = _imported_as(path) or PREFIX + re.sub(r"\W", "_", path.stem)
    return Plugin(spec, module, (Source(module, str(path), _text(spec, path)),), str(path.parent))


def _cause(error: OSError | RuntimeError) -> str:
    return getattr(error, "strerror", None) or brief(error)


def _imported_as(path: Path) -> str | None:
    """Return the name under which a program has imported this very file before it named it as a plug-in."""
    names = [name for name, module in sys.modules.copy().items() if getattr(module, "__file__", None) == str(path)]
    return next((name for name in names if name != "__main__"), None)


def _text(spec: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FedveilError(f"{spec}: {path} cannot be read ({error})") from None


def _listed(folders: Sequence[Path]) -> str:
    return " or ".join(map(str, folders))
