"""Every public name is explained by an example that runs; `run` and `sweep` play theirs on the tests' own cluster."""

from __future__ import annotations

import doctest
import tempfile
from pathlib import Path

import pytest
from tiny import share_cache

import fedveil as fv
from fedveil.attacks import ATTACKS, MODEL_INVERSIONS
from fedveil.defense import DEFENSES
from fedveil.fl.data.source import named
from fedveil.fl.models.base import MODELS
from fedveil.fl.strategies.base import STRATEGIES


@pytest.mark.parametrize(
    "name",
    ["fedveil", *(pytest.param(one, marks=[pytest.mark.long] if one == "sweep" else []) for one in fv.__all__)],
)
def test_every_public_name_has_an_example_that_runs(
    name: str,
    ray_cluster: None,
    tmp_path: Path,
    modules: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Other tests may have brought plug-ins with the names that examples register.
    for registry in (ATTACKS, DEFENSES, MODEL_INVERSIONS, MODELS, STRATEGIES, named):
        monkeypatch.setattr(registry, "_entries", {n: e for n, e in registry._entries.items() if _ships(e)})
    monkeypatch.chdir(tmp_path)
    own, other = share_cache(tmp_path / "own", modules), tempfile.mkdtemp
    # Those that begin in a folder of their own ask for it without a word.
    monkeypatch.setattr(
        tempfile, "mkdtemp", lambda *asked, **more: other(*asked, **more) if asked or more else str(own)
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    explained = fv if name == "fedveil" else getattr(fv, name)
    found = doctest.DocTestFinder(recurse=False).find(explained, name, module=False)
    runner = doctest.DocTestRunner()
    assert any(test.examples for test in found), "no example"
    for test in found:
        runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out


def _ships(entry: object) -> bool:
    return (entry if isinstance(entry, type) else type(entry)).__module__.startswith("fedveil.")
