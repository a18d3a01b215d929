# SPDX-License-Identifier: MIT
"""Units that read their credentials themselves: no launcher reports, and root's evidence says all.

Store, source, key, evidence, decisions and records are real. systemd is a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from credferry.agent.reconcile.decision import State
from credferry.launcher.handoff import EVIDENCE_PARENT, evidence_name, stamp_path
from tests.unit.agent.test_rollout import A, Host, hosted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VMS = "".join(
    f'[vms.{vm}]\nchannel = "directory"\n[vms.{vm}.credentials]\nX = {{ secret = "x" }}\n' for vm in "ab"
)


def start(host: Host) -> str:
    """Unit a starts: PID 1 opens its credentials, root keeps evidence, and nobody reports."""
    host.loop.start_vm("a")
    stamp_path("a", host.loop.top / "run").unlink()
    return "done"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Two units that are due for a change, each without a launcher."""
    for made in hosted(tmp_path, VMS):
        made.units.job = lambda _unit, made=made: start(made)  # type: ignore[misc]  # a default binds the host
        yield made


def test_a_start_counts_by_its_evidence_alone(host: Host) -> None:
    """A restart succeeds without a report, and its record does not miss one."""
    assert host.rollout.restart("a", host.units) is State.IN_STEP
    said = host.messages()
    assert "a: runs generation 2" in said
    assert "launcher" not in said
    decision = host.look("a").decisions[0]
    assert (decision.state, decision.reasons) == (State.IN_STEP, ())


def test_a_program_has_a_second_to_reject_its_credentials(host: Host) -> None:
    """Systemd calls a unit active before its program has read anything. Until then the look is repeated."""
    host.rollout.restart("a", host.units)
    host.units.set(A, active_seconds=0.9)
    decision = host.look("a").decisions[0]
    assert (decision.state, decision.look_again) == (State.CHANGING, True)
    host.units.set(A, active_seconds=1.0)
    assert host.look("a").decisions[0].state is State.IN_STEP


def test_a_unit_that_fails_on_a_new_value_is_rolled_back(host: Host) -> None:
    """As a VM is: it runs the generation before, and the new one is not tried again."""
    first = host.store.generation("a", 1)
    assert first is not None

    def restart(unit: str) -> str:
        if host.current().generation != 1:
            host.units.set(unit, active="failed", sub="failed", result="exit-code", invocation_id="f" * 32)
            return "failed"
        return start(host)

    host.units.job = restart
    assert host.rollout.restart("a", host.units) is State.FAILED
    runs = host.look("a").observed[0].runs
    assert runs is not None
    assert runs.digest == first.digest
    assert host.look("a").decisions[0].state is State.FAILED


def test_a_start_without_evidence_is_told(host: Host) -> None:
    """The remedy is the unit's journal, and no launcher."""
    host.rollout.restart("a", host.units)
    (host.loop.top / "run" / EVIDENCE_PARENT / evidence_name("a", host.units.unit(A).invocation_id)).unlink()
    host.loop.service._reload()
    decision = host.look("a").decisions[0]
    assert decision.reasons == (f"there is no evidence of this start: see journalctl -u {A}",)
