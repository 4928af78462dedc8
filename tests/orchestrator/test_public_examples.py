"""Every public name is explained by an example that runs; `run` and `sweep` play theirs on the tests' own cluster."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import fedveil as fv


@pytest.mark.parametrize("name", ["fedveil", *fv.__all__])
def test_every_public_name_has_an_example_that_runs(
    name: str, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    named = fv if name == "fedveil" else getattr(fv, name)
    found = doctest.DocTestFinder(recurse=False).find(named, name, module=False)
    runner = doctest.DocTestRunner()
    assert any(test.examples for test in found), "no example"
    for test in found:
        runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out
