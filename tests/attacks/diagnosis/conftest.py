from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from fedveil.attacks.diagnosis import Finding, diagnose

Findings = dict[str, Finding]
Look = Callable[..., Findings]


@pytest.fixture
def look() -> Look:
    """Diagnose, and return the findings by what they are about; no two are about the same."""

    def findings(model: nn.Module, update: Any, **given: Any) -> Findings:
        found = diagnose(model, update, **given).findings
        named = {finding.what: finding for finding in found}
        assert len(named) == len(found)
        return named

    return findings
