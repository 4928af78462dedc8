"""What ``fedveil list`` shows: everything that has a name in a registry, with its settings and its paper.

All of it is read from the classes: their fields, and what their docstrings say of these under ``Attributes:``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedveil.attacks import ATTACKS, MODEL_INVERSIONS, Attack
from fedveil.defense import DEFENSES
from fedveil.fl.data.fitting import DEFAULT
from fedveil.fl.data.source import Source, named, prefixed
from fedveil.fl.errors import FedveilError, unknown_name
from fedveil.fl.models import MODELS
from fedveil.fl.optimizers import OPTIMIZERS
from fedveil.fl.partition import PARTITIONS
from fedveil.fl.registry import Registry
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.config.options import is_attack, is_section, options_of, types_of

_AUTHOR = r"(?:[A-Z]\. ?)*[A-Z][\w-]+"
_PAPER = re.compile(
    rf"(?P<who>{_AUTHOR}(?:, {_AUTHOR})*(?: et al\.| (?:and|&) {_AUTHOR})|(?<=\(){_AUTHOR})"
    r",? (?:[A-Z][\w ]+, (?:\d+, )?)?(?P<year>(?:19|20)\d\d)\b(?:,? \(?(?P<where>arXiv \d{4}\.\d{4,5}))?"
)
"""``Reddi et al. 2021, arXiv 2003.00295``, ``(A. Krizhevsky, 2009)``, ``Zhu, Yao and Blaschko 2023`` and the like."""
_WORDS: Mapping[Any, str] = {
    bool: "true | false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "null",
}


@dataclass(frozen=True)
class Setting:
    """One line of an entry: a setting, or a fact that has the form of one.

    Attributes:
        key: as an experiment file names it; dotted where it is part of a section.
        kind: its type in words, or the choices.
        default: in YAML.
        meaning: what the docstring says, the range among it.
    """

    key: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """What has a name.

    Attributes:
        name: as an experiment file names it.
        text: its docstring without the sections, paragraphs apart; the first line is the summary.
        papers: cited by the class, then by its module: authors and year, and where it is found.
        settings: in their order.
    """

    name: str
    text: str
    papers: tuple[tuple[str, str], ...]
    settings: tuple[Setting, ...]

    @property
    def summary(self) -> str:
        """The first line of its text."""
        return self.text.partition("\n")[0]


def _class_entry(name: str, cls: type[Any]) -> Entry:
    return Entry(name, _prose(cls), _papers(cls), tuple(_settings(cls)))


def _attack_entry(name: str, cls: type[Any]) -> Entry:
    entry = _class_entry(name, cls)
    granted = [grant for grant, holds in dataclasses.asdict(cls.needs).items() if holds is True and grant != "labels"]
    return dataclasses.replace(
        entry, text=f"{entry.text}\n\nIs granted, beside the update: {', '.join(granted) or 'nothing'}."
    )


def _inversion_entry(name: str, cls: type[Any]) -> Entry:
    entry = _class_entry(name, cls)
    return dataclasses.replace(entry, text=f"{entry.text}\n\nIs granted: {cls.access.name.lower()}.")


def _model_entry(name: str, cls: type[Any]) -> Entry:
    settings = []
    norms: tuple[str, ...] = getattr(cls, "norms", ())
    if norms:
        settings.append(Setting("norm", " | ".join(norms), norms[0], "normalisation layers"))
    if hasattr(cls, "default_width"):
        settings.append(Setting("width", "whole number", str(cls.default_width), "channels of the first layer"))
    return Entry(name, _prose(cls), _papers(cls), tuple(settings))


def _data_entry(name: str, source: Source) -> Entry:
    about = source.entry()
    sizes = Setting("size", about.size_text(), _yaml(about.default_size), "pixels a side")
    facts = f"Channels: {about.channels or 'as in the file'}; classes: {about.classes or 'as in the file'}"
    place = f"it is here: {about.found[0]}" if about.present else "it is not here yet, see fedveil data get"
    cls = type(source)
    text = f"{about.origin}.\n\n{_prose(cls)}\n\n{facts}; {place}."
    return Entry(name, text, _papers(cls, about.origin), (sizes,))


@dataclass(frozen=True)
class Kind:
    """One of the things that can be listed.

    Attributes:
        registry: who holds them.
        where: how an experiment file names one; ``NAME`` stands for it.
        entry: reads one.
    """

    registry: Registry[Any]
    where: str
    entry: Callable[[str, Any], Entry] = _class_entry

    def entries(self) -> list[Entry]:
        """Return all, by name."""
        return [self.entry(name, self.registry[name]) for name in self.registry]

    def find(self, name: str) -> Entry:
        """Return the one of a name.

        Raises:
            FedveilError: there is none.
        """
        entries = {entry.name: entry for entry in self.entries()}
        if name not in entries:
            raise unknown_name(self.registry.what, name, entries)
        return entries[name]


class _DataKind(Kind):
    def entries(self) -> list[Entry]:
        ways = {f"{prefix}:PATH": prefixed[prefix] for prefix in prefixed}
        return super().entries() + [Entry(name, _prose(source), _papers(source), ()) for name, source in ways.items()]

    def find(self, name: str) -> Entry:
        prefix, colon, path = name.partition(":")
        own = colon and prefix in prefixed and path not in ("", "PATH")
        return _data_entry(name, prefixed[prefix](path, DEFAULT)) if own else super().find(name)


KINDS: Mapping[str, Kind] = {
    "defenses": Kind(DEFENSES, "defense: {name: NAME}"),
    "attacks": Kind(ATTACKS, "audit: {attacks: [{name: NAME}]}", _attack_entry),
    "model_inversions": Kind(MODEL_INVERSIONS, "audit: {model_inversion: [{name: NAME}]}", _inversion_entry),
    "models": Kind(MODELS, "model: {name: NAME}", _model_entry),
    "data": _DataKind(named, "data: {name: NAME}", _data_entry),
    "strategies": Kind(STRATEGIES, "fl: {strategy: {name: NAME}}"),
    "optimizers": Kind(OPTIMIZERS, "fl: {optimizer: {name: NAME}}"),
    "partitions": Kind(PARTITIONS, "data: {partition: {kind: NAME}}"),
}


def show_all(kind: Kind, console: Console) -> None:
    """Print what there is of a kind: name, summary and paper."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("what it is")
    table.add_column("paper", no_wrap=True)
    for entry in kind.entries():
        table.add_row(Text(entry.name), Text(entry.summary), Text(entry.papers[0][0] if entry.papers else ""))
    console.print(table)


def show_one(kind: Kind, name: str, console: Console) -> None:
    """Print one entry: what it is, its papers, and each setting with type, default and meaning.

    Raises:
        FedveilError: there is none of that name.
    """
    entry = kind.find(name)
    console.print(Text(entry.name, style="bold"), Text(f"   {kind.where.replace('NAME', name)}", style="dim"), sep="")
    for paragraph in entry.text.split("\n\n"):
        console.print()
        console.print(Text(" ".join(paragraph.split())))
    if entry.papers:
        console.print()
        console.print(Text("\n".join(f"Paper: {', '.join(filter(None, paper))}" for paper in entry.papers)))
    if not entry.settings:
        console.print("\nIt has no settings.")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("setting", no_wrap=True, style="bold")
    table.add_column("type", max_width=16)
    table.add_column("default", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for setting in entry.settings:
        table.add_row(*map(Text, dataclasses.astuple(setting)))
    console.print()
    console.print(table)


def _settings(cls: type[Any], prefix: str = "") -> list[Setting]:
    try:
        types, defaults = types_of(cls), options_of(cls)
    except FedveilError as error:  # a plug-in's class that can't be configured is still worth its line
        return [Setting("", "", "", str(error))]
    said = said_of(cls)
    settings = []
    for key, hint in types.items():
        section = next((kind for kind in (hint, *get_args(hint)) if is_section(kind)), None)
        if section is None:
            settings.append(Setting(prefix + key, _type(hint), _yaml(defaults[key]), said.get(key, "")))
        else:
            settings += _settings(section, f"{prefix}{key}.")
    return settings


def summary_of(cls: type[Any]) -> str:
    """Return the first line of a class's own docstring."""
    return _prose(cls).partition("\n")[0]


def said_of(cls: type[Any]) -> dict[str, str]:
    """Return what a class and its parents say of its attributes, by name; its own word counts."""
    return {key: text for parent in reversed(cls.__mro__) for key, text in attributes(parent).items()}


def attributes(cls: type[Any]) -> dict[str, str]:
    """Return what a class's own docstring says under ``Attributes:``, by name.

    >>> class Blur:
    ...     '''Blur.
    ...
    ...     Attributes:
    ...         width: of the blur,
    ...             in pixels.
    ...         low, high: the ends.
    ...     '''
    >>> attributes(Blur)
    {'width': 'of the blur, in pixels.', 'low': 'the ends.', 'high': 'the ends.'}
    """
    _, _, section = _documentation(cls).partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^    (\w+(?:, \w+)*):(.*(?:\n(?:     .*)?)*)", section, re.MULTILINE)
    return {key: _plain(" ".join(text.split())) for keys, text in found for key in keys.split(", ")}


def _documentation(cls: Any) -> str:
    return inspect.cleandoc(vars(cls).get("__doc__") or "")


def _prose(cls: Any) -> str:
    """Return a class's docstring up to its first section, without its examples in Python."""
    prose = re.split(r"\n+(?:Attributes|Args|Raises|Returns):\n", _documentation(cls))[0]
    return _plain("\n\n".join(part for part in prose.split("\n\n") if not part.startswith(">>> ")))


def _plain(text: str) -> str:
    """Return text without the marks of reStructuredText."""
    return re.sub(r"`+", "", text)


def _papers(cls: Any, *more: str) -> tuple[tuple[str, str], ...]:
    texts = (_documentation(cls), *more, sys.modules[cls.__module__].__doc__ or "")
    places: dict[str, str] = {}
    for match in (match for text in texts for match in _PAPER.finditer(" ".join(text.split()))):
        paper = f"{match['who']} {match['year']}"
        places[paper] = places.get(paper) or match["where"] or ""
    return tuple(places.items())


def _type(hint: Any) -> str:
    """Return a type in words: ``whole number | null``, ``client | public``."""
    if is_attack(hint):
        return "attack"
    if hint in _WORDS:
        return _WORDS[hint]
    if get_origin(hint) is Literal:
        return " | ".join(map(_yaml, get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(str(choice.value) for choice in hint)
    inner = [_type(part) for part in get_args(hint) if part is not Ellipsis]
    if get_origin(hint) in (list, tuple):
        return f"list of {', '.join(inner)}"
    return " | ".join(inner) if inner else str(getattr(hint, "__name__", hint))


def _yaml(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, Attack):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)
