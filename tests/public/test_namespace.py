"""What an installed fedveil is to its users: one import package, light to import; its examples are run with a cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import fedveil as fv

ROOT = Path(__file__).parents[2]
SOURCES = ("attacks", "defense", "fedveil", "fl", "orchestrator", "pyproject.toml", "README.md", "LICENSE")


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_one_import_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fedveil"}
    modules = {
        str(path.relative_to(ROOT))
        for f in ("fl", "defense", "attacks", "orchestrator")
        for path in (ROOT / f).rglob("*.py")
    }
    assert {f"fedveil/{module}" for module in modules} <= set(names)
    assert "fedveil/py.typed" in names


def test_importing_the_package_loads_nothing_else(tmp_path: Path) -> None:
    heavy = ("torch", "numpy", "ray", "mlflow", "pydantic", "rich", "matplotlib")
    done = python(f"import sys, fedveil; print([name for name in {heavy} if name in sys.modules])", tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_folder_of_the_users_own_with_our_folders_names_is_left_alone(tmp_path: Path) -> None:
    for name in ("fl", "defense", "attacks", "orchestrator"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this is the user\\'s own')\n")
    done = python("import fedveil.orchestrator.cli, fedveil.attacks as a; print(a.__name__)", tmp_path)
    assert done.stdout.strip() == "fedveil.attacks", done.stderr


def test_what_is_not_there_is_an_attribute_error() -> None:
    assert set(fv.__all__) <= set(dir(fv))
    with pytest.raises(AttributeError, match="no attribute 'blur'"):
        fv.blur  # noqa: B018
