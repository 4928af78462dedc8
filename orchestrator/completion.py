"""``fedveil completion``: what a shell completes after ``fedveil``: commands, options, and names where names are wanted."""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SHELLS = ("bash", "zsh")

_SCRIPT = """\
# Completion of fedveil for {shell}. Made by: fedveil completion {shell}
{before}_fedveil() {{
    local at=1 line="" word words="" current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    COMPREPLY=()
    # The command so far, without its options and what belongs to them.
    while [ "$at" -lt "$COMP_CWORD" ]; do
        word="${{COMP_WORDS[at]}}"
        case "$word" in
            {valued}) at=$((at + 1)) ;;
            -*) ;;
            *) line="${{line:+$line }}$word" ;;
        esac
        at=$((at + 1))
    done
    case "$before" in
{values}
        *)
            case "$current" in
                -*)
                    case "$line" in
{options}
                    esac ;;
                *)
                    case "$line" in
{words}
                    esac ;;
            esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _fedveil fedveil
"""
_ZSH = """\
autoload -U +X compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""


@dataclass
class _Grammar:
    """What may be written.

    Attributes:
        options: by command, ``data get`` for example, those that it takes.
        words: by what is written so far, what may come next. Where there is nothing a file may.
        values: by option, what may be its value; empty where that can be anything.
    """

    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, line: str, parser: argparse.ArgumentParser) -> None:
        """Add a command and those below it."""
        flags: list[str] = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                self.words[line] = tuple(action.choices)
                for name, below in action.choices.items():
                    self.add(f"{line} {name}".strip(), below)
            elif action.option_strings:
                flags += [flag for flag in action.option_strings if flag.startswith("--")]
                if action.nargs != 0:
                    self.values.update(dict.fromkeys(action.option_strings, tuple(map(str, action.choices or ()))))
            elif action.choices:
                self.words.setdefault(line, tuple(map(str, action.choices)))
        self.options[line] = tuple(flags)


def completion(shell: str, parser: argparse.ArgumentParser, names: Mapping[str, Sequence[str]]) -> str:
    """Return the script that a shell reads to complete the command line.

    Args:
        shell: of `SHELLS`.
        parser: of the command line.
        names: by kind, as ``fedveil list`` has it, what has a name of it.
    """
    grammar = _Grammar()
    grammar.add("", parser)
    # What stands for a path is no name: npz:PATH.
    known = {kind: tuple(name for name in own if ":" not in name) for kind, own in names.items()}
    grammar.words |= {f"list {kind}": own for kind, own in known.items()}
    grammar.words["data get"] = grammar.values["--data"] = known["data"]
    return _SCRIPT.format(
        shell=shell,
        before=_ZSH if shell == "zsh" else "",
        valued="|".join(sorted(grammar.values)),
        values="\n".join(_cases({k: own for own, k in sorted((own, k) for k, own in grammar.values.items())}, 8)),
        options="\n".join(_cases(_with_what_follows(grammar.options), 24)),
        words="\n".join(_cases(grammar.words, 24)),
    )


def _with_what_follows(options: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The same by pattern: a command's options are its own whatever was written after it."""
    return {f"{line}*" if line else line: flags for line, flags in sorted(options.items(), reverse=True)}


def _cases(table: Mapping[str, Sequence[str]], indent: int) -> Iterator[str]:
    """Yield the cases in which words may come next; neighbours with the same words are one."""
    for found, keys in itertools.groupby(table, key=lambda key: table[key]):
        yield f"{' ' * indent}{'|'.join(map(_pattern, keys))}) words={shlex.quote(' '.join(found))} ;;"


def _pattern(key: str) -> str:
    return f"{shlex.quote(key[:-1])}*" if key.endswith("*") else shlex.quote(key)
