from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from fedveil.attacks import ATTACKS
from fedveil.defense import DEFENSES
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import MODELS
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.config import ConfigError, check, load_experiment, plugins
from fedveil.orchestrator.config.plugins import Plugin, load_plugins, loaded

BLUR = '''
from __future__ import annotations
from dataclasses import dataclass
import fedveil as fv

@fv.register_defense("test_blur")
@dataclass(frozen=True, kw_only=True)
class Blur(fv.Defense):
    """Blur the images.

    Attributes:
        width: of the blur.
    """

    width: int = 3
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty working folder; what the test registers and imports is forgotten."""
    for registry in (ATTACKS, DEFENSES, MODELS, STRATEGIES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(plugins, "_installed", {})
    monkeypatch.setattr(plugins._carried, "sources", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def test_a_file_beside_the_experiment(tmp_path: Path) -> None:
    write(tmp_path / "mine", blur=BLUR)
    (tmp_path / "mine" / "e.yaml").write_text(
        "experiment: x\nplugins: [./blur.py]\ndefense: {name: test_blur, width: 5}\n", encoding="utf-8"
    )
    experiment, raw = load_experiment(tmp_path / "mine" / "e.yaml")
    assert repr(experiment.build_defense()) == "Blur(width=5)"
    assert check(raw) == experiment


INSTALL = """
import pickle, sys
from fedveil.orchestrator.config.plugins import install
plugins, rest = pickle.loads(sys.stdin.buffer.read())
install(plugins)
install(plugins)
print(*pickle.loads(rest))
print(sys.modules["kit"].__path__, "kit2.blur" in sys.modules)
"""


def test_a_process_in_another_folder_that_has_none_of_the_files_knows_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {name: BLUR.replace("test_blur", name) for name in ("a", "b", "c", "d")}
    mine = write(tmp_path / "mine", file=texts["a"], imported_before=texts["b"])
    write(mine / "kit", __init__="from .deep.blur import Blur", size="WIDTH = 7")
    sized = texts["c"].replace("= 3", "= WIDTH").replace("import fedveil", "from ..size import WIDTH\nimport fedveil")
    write(mine / "kit" / "deep", blur=sized)
    write(mine / "kit2", blur=texts["d"])
    monkeypatch.syspath_prepend(mine)
    __import__("imported_before")
    found = load_plugins(["file.py", "imported_before.py", "kit", "kit2.blur"], mine)
    assert [[source.module for source in plugin.sources] for plugin in found] == [
        ["fedveil_plugin_file"],
        # The program's own import stands; a second one would register everything twice.
        ["imported_before"],
        ["kit", "kit.deep", "kit.deep.blur", "kit.size"],
        ["kit2", "kit2.blur"],
    ]
    carried = pickle.dumps((found, pickle.dumps([DEFENSES[name]() for name in texts])))
    mine.rename(tmp_path / "gone")
    (tmp_path / "other").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", INSTALL], cwd=tmp_path / "other", input=carried, capture_output=True, check=False
    )
    assert ended.stdout.decode().splitlines() == [
        "Blur(width=3) Blur(width=3) Blur(width=7) Blur(width=3)",
        f"['{mine / 'kit'}'] True",
    ], ended.stderr.decode()


def test_the_command_lines_plug_ins_lie_in_the_working_folder_and_are_written_down(tmp_path: Path) -> None:
    write(tmp_path / "mine", blur="raise RuntimeError('the wrong one')")
    write(tmp_path, blur=BLUR)
    (tmp_path / "mine" / "e.yaml").write_text("experiment: x\ndefense: test_blur\n", encoding="utf-8")
    for _ in range(2):
        experiment, raw = load_experiment(tmp_path / "mine" / "e.yaml", plugins=["blur.py"])
        assert experiment.plugins == raw["plugins"] == ["blur.py"]
    assert [plugin.given for plugin in loaded()] == ["blur.py"]


def test_a_mapping_names_them_too(tmp_path: Path) -> None:
    write(tmp_path, blur=BLUR)
    experiment, _ = load_experiment({"experiment": "x", "plugins": ["blur"], "defense": "test_blur"})
    assert repr(experiment.build_defense()) == "Blur(width=3)"


def test_a_file_may_import_what_lies_beside_it_and_hides_no_module_of_its_name(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "mine", random="import helper_of_random\nimport random\nassert random.randint", helper_of_random=""
    )
    (found,) = load_plugins(["./random.py"], folder)
    assert found.module == "fedveil_plugin_random"
    assert Path(sys.modules["random"].__file__ or "") != folder / "random.py"


def test_what_is_installed_is_imported_by_name() -> None:
    assert load_plugins(["colorsys"], Path()) == (Plugin("colorsys", "colorsys"),)


def test_entry_points_are_always_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, test_entry=BLUR)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("mine", "test_entry", "fedveil.plugins")
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [point] if group == "fedveil.plugins" else [])
    assert load_experiment({"experiment": "x", "defense": "test_blur"})[0].defense == [{"name": "test_blur"}]
    assert loaded() == (Plugin("entry point mine", "test_entry"),)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import no_such_module", "./bad.py: ModuleNotFoundError: No module named 'no_such_module' (line 1)"),
        ("\n\nx = 1 / 0", "./bad.py: ZeroDivisionError: division by zero (line 3)"),
        ("raise ValueError", "./bad.py: ValueError (line 1)"),
        ("raise ValueError('two\\nlines')", "./bad.py: ValueError: two lines (line 1)"),
        ("import sys\nsys.exit(3)", "./bad.py: SystemExit: 3 (line 2)"),
        ("def f(:", "./bad.py: SyntaxError: invalid syntax (bad.py, line 1)"),
        (
            BLUR.replace("test_blur", "latent_autoencoder"),
            "./bad.py: defense 'latent_autoencoder' is registered twice (line 6)",
        ),
    ],
)
def test_one_that_fails_is_one_line_and_leaves_nothing_behind(text: str, line: str, tmp_path: Path) -> None:
    write(tmp_path, bad=text)
    for _ in range(2):
        with pytest.raises(ConfigError) as refusal:
            load_experiment({"experiment": "x", "plugins": ["./bad.py"]})
        assert str(refusal.value) == f"plugins: {line}"
    with pytest.raises(ConfigError, match=r"--plugin: \./bad\.py: "):
        load_experiment({"experiment": "x"}, plugins=["./bad.py"])
    assert loaded() == ()
    write(tmp_path, bad=BLUR)
    load_experiment({"experiment": "x", "plugins": ["./bad.py"]})


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("./none.py", "./none.py: there is no such file in FOLDER/base or FOLDER"),
        ("no_such_module", "no_such_module: there is no module 'no_such_module'; looked in FOLDER/base or FOLDER and"),
        ("a b", "'a b': neither a module's name nor a Python file such as ./my_attack.py"),
        ("", "'': neither a module's name nor"),
        ("latin.py", "latin.py: FOLDER/latin.py cannot be read ('utf-8' codec"),
    ],
)
def test_one_that_is_not_there(spec: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    with pytest.raises(FedveilError) as refusal:
        load_plugins([spec], tmp_path / "base")
    assert str(refusal.value).replace(str(tmp_path), "FOLDER").startswith(line)


def test_two_of_one_name_and_one_that_changed_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", blur=BLUR)
    write(tmp_path / "b", blur="")
    load_plugins(["a/blur.py"], tmp_path)
    with pytest.raises(FedveilError, match=r"^b/blur\.py: fedveil_plugin_blur is here already, with another text"):
        load_plugins(["b/blur.py"], tmp_path)
    write(tmp_path / "b", blur=BLUR)
    load_plugins(["b/blur.py"], tmp_path)  # one text, so the same plug-in
    write(tmp_path / "a", blur=BLUR + "\n")
    with pytest.raises(FedveilError, match="start Python anew if the file was changed"):
        load_plugins(["a/blur.py"], tmp_path)


def test_a_class_that_is_no_dataclass_is_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, blur=BLUR.replace("@dataclass(frozen=True, kw_only=True)\n", ""))
    with pytest.raises(ConfigError) as refusal:
        load_experiment({"experiment": "x", "plugins": ["blur"], "defense": "test_blur"})
    assert (
        str(refusal.value)
        == "defense: class Blur is no dataclass; decorate it with @dataclass(frozen=True, kw_only=True)"
    )


def test_a_type_that_its_module_does_not_hold_is_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, blur=BLUR.replace("width: int", "width: Whole"))
    with pytest.raises(ConfigError, match="class Blur: a type cannot be read"):
        load_experiment({"experiment": "x", "plugins": ["blur"], "defense": "test_blur"})


def test_options_may_be_tuples_and_nested_sections(tmp_path: Path) -> None:
    extra = "\n@dataclass(frozen=True)\nclass Part:\n    a: int = 1\n"
    text = BLUR.replace("\n@fv", extra + "\n@fv").replace(
        "width: int = 3", "width: tuple[int, ...] = (3,)\n    part: Part | None = None"
    )
    write(tmp_path, blur=text)

    def built(**options: Any) -> str:
        raw = {"experiment": "x", "plugins": ["blur"], "defense": {"name": "test_blur", **options}}
        return repr(load_experiment(raw)[0].build_defense())

    assert built() == "Blur(width=(3,), part=None)"
    assert built(width=[1, 2], part={"a": 4}) == "Blur(width=(1, 2), part=Part(a=4))"
    with pytest.raises(ConfigError, match=r"^defense\.part\.b: unknown key; allowed: a$"):
        built(part={"b": 1})
