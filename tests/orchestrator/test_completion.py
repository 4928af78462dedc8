from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedveil.orchestrator.cli import main, parser
from fedveil.orchestrator.completion import SHELLS, completion

NAMES = {"defenses": ["latent", "latent_noise", "none"], "attacks": ["dlg"], "data": ["mnist", "npz:PATH"]}
ASK = """
source {script}
COMP_WORDS=({words})
COMP_CWORD={at}
_fedveil
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(folder: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of the words after ``fedveil``."""
    script = folder / "completion"
    script.write_text(completion("bash", parser(), NAMES), encoding="utf-8")
    typed = " ".join(f"'{word}'" for word in ("fedveil", *words))
    asked = ASK.format(script=script, words=typed, at=len(words))
    found = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, check=True)
    assert not found.stderr
    return found.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["s"], ["sweep", "schema"]),
        (["list", "def"], ["defenses"]),
        (["list", "defenses", ""], ["latent", "latent_noise", "none"]),
        (["list", "--plugin", "./own.py", "defenses", "latent_"], ["latent_noise"]),
        (["list", "attacks", "d"], ["dlg"]),
        (["data", ""], ["list", "get"]),
        (["data", "get", ""], ["mnist"]),
        (["data", "get", "--s"], ["--size"]),
        (["init", "--data", ""], ["mnist"]),
        (["sweep", "some.yaml", "--r"], ["--runs-dir", "--ray", "--resume"]),
        (["run", "some.yaml", "--r"], ["--runs-dir", "--ray", "--resume"]),
        (["doctor", "--kind", "de"], ["delta"]),
        (["run", ""], []),  # the shell offers files
        (["run", "some.yaml", "--json", "l"], []),
    ],
)
def test_what_is_offered_fits_what_stands_before_it(tmp_path: Path, words: Sequence[str], offered: list[str]) -> None:
    assert completed(tmp_path, *words) == offered


def test_zsh_reads_the_same_through_its_own_emulation() -> None:
    own, other = (completion(shell, parser(), NAMES).splitlines() for shell in SHELLS)
    begin = own.index("_fedveil() {")
    assert own[begin:] == other[-len(own) + begin :]
    assert "bashcompinit" in other
    assert "bashcompinit" not in own


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(completion("zsh", parser(), NAMES), encoding="utf-8")
    # As zsh's own emulation calls it, which leaves it to zsh to keep what fits the word that was begun.
    asked = f"""
    source {script}
    COMP_WORDS=(fedveil list defenses latent_) COMP_CWORD=3
    () {{ emulate -L sh; setopt kshglob noshglob braceexpand; _fedveil; print -l "${{COMPREPLY[@]}}"; }}
    """
    found = subprocess.run(["zsh", "-f", "-c", asked], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert {"latent", "latent_noise", "none"} >= set(found.stdout.split()) >= {"latent_noise"}


def test_the_command_names_what_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert "_fedveil" in script
    assert " pixel_noise " in script
    assert " pneumoniamnist " in script
