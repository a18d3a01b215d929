# SPDX-License-Identifier: MIT
"""The daemon's loop with a real software TPM that cannot be used for a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.reconcile.decision import State
from credferry.agent.sealing.keys import create_key
from credferry.agent.sealing.kinds import TPM2, kind_of
from credferry.agent.sealing.systemd_creds import SystemdCreds
from tests.support.loop import Loop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence

    from tests.support.tpm import SoftwareTpm

UNIT = "microvm@a.service"
VM = '[vms.a.credentials]\nX = { secret = "x" }\n'


def switched_off(tpm: SoftwareTpm) -> Callable[[], None]:
    """It does not answer."""
    tpm.stop()
    return tpm.start


def locked(tpm: SoftwareTpm) -> Callable[[], None]:
    """It answers, and opens nothing."""
    tpm.lock()
    return tpm.unlock


def bound_to_tpm(top: Path, vms: str = VM) -> Loop:
    """A service with VMs. systemd knows this machine's identity only, so that is the host's here."""
    loop = Loop(top, vms)
    lines = [each for each in loop.file.read_text().splitlines() if "machine_id_file" not in each]
    loop.file.write_text("\n".join(['seal_key = "tpm2"', *lines]))
    loop.key.unlink()
    create_key(loop.key, machine_id=Path("/etc/machine-id").read_text())
    return loop


@pytest.mark.parametrize(
    ("lose", "reason", "remedy"),
    [(switched_off, "does not answer", "a cold start"), (locked, "is locked", "--clear-lockout")],
)
def test_a_tpm_that_cannot_be_used_holds_a_rotation_back(
    tmp_path: Path,
    tpm: SoftwareTpm,
    lose: Callable[[SoftwareTpm], Callable[[], None]],
    reason: str,
    remedy: str,
) -> None:
    """The VM keeps running, and the condition lasts as long as the TPM cannot be used. Then the rotation
    arrives.
    """
    loop = bound_to_tpm(tmp_path)
    loop.publish(x="one")
    with loop.running() as service:
        loop.turn()
        loop.start_vm("a")
        loop.turn()
        assert loop.decision("a").state is State.IN_STEP
        assert kind_of((tmp_path / "state/vms/a/current/value.X").read_bytes()) is TPM2
        give_back = lose(tpm)
        loop.publish(x="two")
        loop.turn(lambda: "tpm" in service._conditions.keys)
        loop.turn()
        decision = loop.decision("a")
        assert decision.state is State.REFUSED
        assert reason in decision.reasons[0]
        assert remedy in decision.reasons[0]
        assert loop.units.restarts == []
        give_back()
        loop.turn(lambda: loop.units.restarts)
        assert "tpm" not in service._conditions.keys
        assert loop.units.restarts == [UNIT]
        assert loop.decision("a").state is State.IN_STEP


@pytest.mark.usefixtures("tpm")
def test_operations_of_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check opens no value. A rotation of ten values seals and opens each once, whatever else the
    store has.
    """
    used: list[str] = []
    real = SystemdCreds._run

    def run(
        self: SystemdCreds, arguments: Sequence[str], given: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        if "value." in arguments[1]:  # and not the text that shows whether the TPM is the same
            used.append(arguments[0])
        return real(self, arguments, given)

    names = [f"x{number}" for number in range(10)]
    lines = "".join(f'{name.upper()} = {{ secret = "{name}" }}\n' for name in names)
    loop = bound_to_tpm(
        tmp_path, f'[vms.a.credentials]\n{lines}[vms.b.credentials]\nY = {{ secret = "y" }}\n'
    )
    values = dict.fromkeys(names, "one")
    loop.publish(**values, y="one")
    with loop.running():
        loop.turn()
        for vm in ("a", "b"):
            loop.start_vm(vm)
        loop.turn()
        monkeypatch.setattr(SystemdCreds, "_run", run)
        loop.turn()
        assert used == []
        loop.publish(**dict.fromkeys(names, "two"), y="one")
        loop.turn(lambda: loop.units.restarts)
        assert loop.units.restarts == [UNIT]
    assert Counter(used) == {"encrypt": 10, "decrypt": 10}
