"""Every code block of README and the documentation is tried: Python is run, YAML is loaded, commands are parsed.

A block whose first line names a file is that file, for the blocks and commands of the page. The tutorial's commands are
run in truth by `tests/orchestrator/test_tutorial.py`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import PAGES, ROOT, TUTORIAL, Block, blocks_of, write_files

import fedveil as fv
from fedveil.attacks.audit import api
from fedveil.attacks.scoring import scorer, train_judge
from fedveil.orchestrator.cli import parser
from fedveil.orchestrator.config import Experiment, load_experiment
from fedveil.orchestrator.config.yaml import parse
from fedveil.orchestrator.run.setup import check_setups

WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]
WITH_YAML = [page for page in PAGES if any(block.language == "yaml" for block in blocks_of(page))]
WITH_COMMANDS = [page for page in PAGES if any(block.commands() for block in blocks_of(page))]
ELSEWHERE = {"docker", "kubectl", "mlflow", "pip", "pre-commit", "ray"}
"""Programs that need a cluster, a registry or a server; `tests/orchestrator/test_recipes.py` tries what can be tried."""


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, in which judges and default attacks are quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    chosen = api.chosen_attacks
    plain = fv.InvertingGradients(steps=2)
    inverse = fv.InverseTraining(steps=2, batch_size=8, width=8)
    short = {"steps": 2, "inversion": plain, "inverse": inverse, "calibration": 0}

    def shortened(attack: Any) -> Any:
        """The same attack after two steps."""
        if not is_dataclass(attack) or isinstance(attack, type):
            return attack
        return replace(attack, **{one.name: short[one.name] for one in fields(attack) if one.name in short})

    def quick(attacks: Any, *arguments: Any, **grants: Any) -> tuple[fv.Attack, ...]:
        asked = [plain, fv.Adaptive()] if attacks is None else attacks
        return chosen([shortened(attack) for attack in asked], *arguments, **grants)

    def judge(images: fv.Images, *, classes: int, seed: int, **_: Any) -> Any:
        return train_judge(images, classes=classes, seed=seed, steps=2)

    monkeypatch.setattr(api, "chosen_attacks", quick)
    monkeypatch.setattr(scorer, "cached_judge", judge)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def given(page: Path) -> dict[str, Any]:
    """Return what a page's Python takes for granted: README speaks of a model, an update and images without making them."""
    if page.name != "README.md":
        return {}
    data = fv.load_data("mni152", size=28)
    x, y = data.train.floats()[:1], data.train.labels[:1]
    model = fv.build_model("lenet", image_shape=(1, 28, 28), classes=3)
    update, _ = fv.client_update(model, x, y)
    held = {"other_images": data.val.floats(), "other_labels": data.val.labels}
    return {"model": model, "update": update, "x": x, "y": y, **held}


def test_blocks_are_of_known_kinds() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in {"", "python", "yaml", "text"}, (
                f"{page_id(page)}:{block.line}: ```{block.language}"
            )
        marks = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
        assert len(marks) == 2 * len(blocks_of(page)), f"{page_id(page)}: a fence that is not at the line's beginning"


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_python_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = blocks_of(page)
    files = write_files(blocks)
    used = {words[1] for block in blocks for words in block.commands() if words[0] == "python"}
    used |= {spec.removeprefix("./") for block in blocks for spec in _plugins(block)}
    unused = {name for name in files if name.endswith(".py")} - used
    assert not unused, f"{page_id(page)}: nothing on the page runs {unused}"
    names: dict[str, Any] = {"__name__": "page", **given(page)}
    torch.manual_seed(0)
    for block in blocks:
        if block.language == "python" and block.file is None:
            code = "\n" * block.line + block.text  # so that a traceback names the page's line
            exec(compile(code, str(page), "exec", dont_inherit=True), names)


def _plugins(block: Block) -> list[str]:
    return list(parse(block.text).get("plugins", [])) if block.language == "yaml" else []


@pytest.mark.parametrize("page", WITH_YAML, ids=page_id)
def test_yaml_is_an_experiment_or_a_part_of_one(page: Path) -> None:
    write_files(blocks_of(page))
    for block in blocks_of(page):
        if block.language == "yaml":
            loaded = load_experiment({"experiment": "e", **parse(block.text)})
            check(*loaded)


def check(experiment: Experiment, raw: dict[str, Any]) -> None:
    """Make what a run would make of an experiment first, where its images are at hand anywhere."""
    if experiment.data.name == "mni152" and experiment.resources.gpus_per_worker == 0:
        check_setups(experiment, raw)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=page_id)
def test_commands_are_commands(page: Path) -> None:
    files = write_files(blocks_of(page))
    made = {"first.yaml"} if page == TUTORIAL else set()
    for block in blocks_of(page):
        for words in block.commands():
            _try(words, {*files, *made}, f"{page_id(page)}:{block.line}: {shlex.join(words)}")


def _try(words: list[str], files: set[str], where: str) -> None:
    program = Path(words[0]).name
    if program == "export":
        assert "=" in words[1], where
    elif program == "make":
        targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(f"\n{target}:" in makefile for target in targets), where
    elif program == "fedveil":
        _parse(words[1:], files, where)
    elif words[:2] == ["ray", "job"] and "--" in words:
        submitted = words[words.index("--") + 1 :]
        assert submitted[:3] == ["python", "-m", "orchestrator"], where
        _parse(submitted[3:], files, where)
    elif program == "sh" or (program == "python" and words[1].startswith("examples/")):
        assert (ROOT / words[1]).is_file(), where
    elif program.startswith("python"):
        module = words[2] if words[1] == "-m" else None
        assert find_spec(module) if module else words[1] in files, where
    else:
        assert program in ELSEWHERE or words[:2] == [".", ".venv/bin/activate"], where


def _parse(words: list[str], files: set[str], where: str) -> None:
    asked = parser().parse_args(words)
    file = getattr(asked, "file", None)
    if words[0] not in ("run", "sweep"):
        return
    if str(file) in files:
        assert not Path(file).exists() or load_experiment(Path(file), asked.set), where
    else:
        experiment, _ = load_experiment(ROOT / file, asked.set)
        assert (experiment.search is not None) == (words[0] == "sweep"), where
