# SPDX-License-Identifier: MIT
"""What the doctor says of the operator's units around a VM's restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.doctor import probe, vm_units
from credferry.agent.doctor.chain import Chain
from credferry.agent.doctor.finding import Severity

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
[vms.web]
units = { before = "drain@%i.service" }
[vms.web.credentials]
K = { text = "k" }
"""
GOOD = {"LoadState": "loaded", "Type": "oneshot", "TimeoutStartUSec": 60_000_000}


@pytest.mark.parametrize(
    ("changed", "severity", "said"),
    [
        ({}, Severity.OK, "can be started"),
        ({"LoadState": "not-found"}, Severity.PROBLEM, "not-found"),
        ({"LoadState": "masked"}, Severity.PROBLEM, "masked"),
        ({"Type": "simple"}, Severity.HINT, "Type=oneshot"),
        ({"RemainAfterExit": True}, Severity.PROBLEM, "RemainAfterExit=yes"),
        ({"TimeoutStartUSec": 2**64 - 1}, Severity.HINT, "TimeoutStartSec="),
    ],
)
def test_a_unit_around_restarts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    severity: Severity,
    said: str,
) -> None:
    """It must be there, not be masked, be waited for to its end, and end within a time."""
    asked: list[str] = []

    def unit(name: str) -> dict[str, Any]:
        asked.append(name)
        return {**GOOD, **changed}

    monkeypatch.setattr(probe, "unit", unit)
    vm = parse(TEXT.encode(), tmp_path / "c").vm("web")
    (found,) = vm_units.check(Chain(tmp_path / "c", ()), vm)
    assert asked == ["drain@web.service"]
    assert (found.severity, found.check, found.vm) == (severity, "vm.units", "web")
    assert said in found.what
