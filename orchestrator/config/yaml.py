"""YAML as it is meant: a key twice is an error, ``1e-3`` is a number, ``yes`` is a word and ``010`` is ten.

PyYAML follows YAML 1.1, which keeps the last of two equal keys without a word and reads those three as text, true and
eight. Scalars are resolved here by the core schema of YAML 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    pass


_Loader.yaml_implicit_resolvers = {}


def parse(text: str) -> Any:
    """Return what a YAML document says, as plain values.

    Raises:
        yaml.YAMLError: it is not YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (LookupError, TypeError, ValueError, AttributeError):
        # PyYAML's constructors for tags such as !!bool take it for granted that the value fits.
        raise yaml.YAMLError("a tag does not fit its value") from None


def fault(error: yaml.YAMLError) -> tuple[str, str]:
    """Return what is wrong, and ``, line N`` where that is known."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error) or "bad syntax"
    return str(reason), f", line {mark.line + 1}" if mark else ""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        # Merged keys ("<<") may be overridden, that is what they are for.
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _construct_map(loader: _Loader, node: yaml.MappingNode) -> Any:
    mapping: dict[Any, Any] = {}
    yield mapping  # first, so that an alias inside can refer to it
    mapping.update(_construct_mapping(loader, node))


def _numeric(convert: Callable[[str], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        try:
            return convert(str(loader.construct_scalar(node)))
        except ValueError:
            problem = "this is not a number, or too long for one"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    return construct


def _float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)$", r"\1", text, flags=re.IGNORECASE))


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)
_Loader.add_constructor("tag:yaml.org,2002:int", _numeric(int))
_Loader.add_constructor("tag:yaml.org,2002:float", _numeric(_float))
