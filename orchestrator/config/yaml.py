"""YAML 1.2, in which a key twice is an error, ``1e-3`` a number, ``yes`` a word and ``010`` ten. No tag runs code."""

from __future__ import annotations

import io
import json
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError

__all__ = ["YAMLError", "dump", "fault", "parse"]


class _Constructor(SafeConstructor):
    """Says where it stands if a value does not fit its type: ``!!bool maybe``, or more digits than Python reads."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ConstructorError(None, None, "this value does not fit its type", node.start_mark) from None

    def construct_number(self, node: Any) -> Any:
        """Return a number; one with ``_`` between its digits is text, as in YAML's core schema."""
        if "_" in node.value:
            return self.construct_yaml_str(node)
        integer = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)


for _kind in ("timestamp", "value"):  # nothing in an experiment is a date, and "=" is a word
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.construct_yaml_str)
for _kind in ("int", "float"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.construct_number)


def parse(text: str) -> Any:
    """Return what a YAML document says, as plain values.

    Raises:
        YAMLError: it is not YAML, or a mapping has a key twice, or a value holds itself.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        read = reader.load(text)
    except RecursionError:
        raise YAMLError("nested too deeply") from None
    try:
        json.dumps(read, default=str, skipkeys=True)
    except ValueError:
        raise YAMLError("an anchor stands within itself") from None
    return read


def dump(value: Any) -> str:
    """Return plain values as YAML that `parse` reads back, keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # typed by its default, None
    text = io.StringIO()
    writer.dump(value, text)
    return text.getvalue().removesuffix("...\n")


def fault(error: YAMLError) -> tuple[str, str]:
    """Return what is wrong, and ``, line N`` where that is known."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error) or "bad syntax"
    # Of a key that stands twice both values are quoted, however long they are.
    return str(reason).partition(" with value")[0], f", line {mark.line + 1}" if isinstance(mark, StringMark) else ""
