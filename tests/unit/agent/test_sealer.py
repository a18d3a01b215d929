# SPDX-License-Identifier: MIT
"""Sealing what is due, with a real store, real keys and a real source."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from agent.config import parse
from agent.keys import CredentialKey, create_key, read_key
from agent.observe import Observer, guest_key_path
from agent.sealer import Sealer
from agent.sealing import unseal
from agent.store import Store
from launcher.handoff import Kind, value_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import Config

CANARY = "canary-7c1d20"
GUEST = "22223333444455556666777788889999"
VMS = ("db", "web")


class Silent:
    """An audit that nobody reads: what the records say is not what is shown here."""

    def record(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 (whatever a record holds)
        """Nothing."""


class Host:
    """Two VMs with guest keys, each with a sealed secret, a readable one and a text."""

    def __init__(self, top: Path) -> None:
        text = f'state_directory = "{top}/state"\n[source]\npath = "{top}/secrets"\n'
        for vm in VMS:
            text += f"[vms.{vm}]\nguest_key = true\nguest_systemd = 257\n[vms.{vm}.credentials]\n"
            text += 'TOKEN = { secret = "token" }\nOPEN = { secret = "token", seal = false }\n'
            text += 'T = { text = "t" }\n'
        self.config: Config = parse(text.encode(), top / "config.toml")
        (top / "secrets").mkdir()
        (top / "secrets/token").write_text(CANARY)
        self.state = top / "state"
        self.key = CredentialKey(bytes(range(256)) * 16)
        self.store = Store(self.state, self.key)
        self.observer = Observer(self.config, self.store)
        self.sealer = Sealer(self.store, self.observer, Silent())  # type: ignore[arg-type]  # silent
        for vm in VMS:
            self.path(vm).parent.mkdir(parents=True, exist_ok=True)
            create_key(self.path(vm), machine_id=GUEST)

    def path(self, vm: str) -> Path:
        """Where a VM's guest key is."""
        return guest_key_path(self.config, vm)

    def delivered(self, vm: str, name: str) -> bytes:
        """What PID 1 would unseal for a VM's launcher."""
        file = self.state / "vms" / vm / "current" / value_file(name)
        return unseal(file.read_bytes(), name=None, key=self.key)

    def look_then(self, change: Callable[[], object]) -> list[str]:
        """Look, have something change, and seal what the look found due."""
        look = self.observer.look(self.config.vms.values(), None)
        change()
        return self.sealer.seal_due(look)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with nothing sealed yet."""
    return Host(tmp_path)


def test_the_bytes_are_what_the_manifest_says(host: Host) -> None:
    """What counts as sealed opens with the guest's key alone, and the rest is as published."""
    assert host.look_then(lambda: None) == ["db", "web"]
    manifest = host.store.current("db")
    assert manifest is not None
    kinds = {entry.name: entry.kind for entry in manifest.credentials}
    assert kinds == {"OPEN": Kind.PLAIN, "T": Kind.TEXT, "TOKEN": Kind.SEALED}
    guest = read_key(host.path("db"), machine_id=GUEST)
    assert unseal(host.delivered("db", "TOKEN"), name="TOKEN", key=guest) == CANARY.encode()
    assert (host.delivered("db", "OPEN"), host.delivered("db", "T")) == (CANARY.encode(), b"t")


def replace(path: Path) -> None:
    """Another key in a file's place."""
    path.unlink()
    create_key(path, machine_id=GUEST)


def directory(path: Path) -> None:
    """A directory in a file's place."""
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: path.unlink(),
    "another": replace,
    "open to others": lambda path: path.chmod(0o644),
    "a directory": directory,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_guest_key_that_changes_before_the_sealing_lets_nothing_through(host: Host, change: str) -> None:
    """No generation is written for that VM, so nothing readable by a sealed name; the other VM is served."""
    with capture_logs() as logs:
        assert host.look_then(lambda: CHANGES[change](host.path("db"))) == ["web"]
    assert host.store.current("db") is None
    assert not any(value_file("TOKEN") in str(path) for path in (host.state / "vms/db").rglob("*"))
    assert host.store.current("web") is not None
    assert [(each["vm"], each["log_level"]) for each in logs] == [("db", "error")]
    assert CANARY not in str(logs)


def test_the_next_look_says_what_is_lacking_and_takes_another_key(host: Host) -> None:
    """Without a key the VM is refused with the remedy; with another one everything is sealed for that."""
    host.look_then(lambda: CHANGES["gone"](host.path("db")))
    look = host.observer.look(host.config.vms.values(), None)
    assert "credferry guest-key create db" in str(look.decisions[0].reasons)
    create_key(host.path("db"), machine_id=GUEST)
    assert host.look_then(lambda: None) == ["db"]
    guest = read_key(host.path("db"), machine_id=GUEST)
    assert unseal(host.delivered("db", "TOKEN"), name="TOKEN", key=guest) == CANARY.encode()


def test_a_generation_from_before_stays_current(host: Host) -> None:
    """What was sealed last is what the VM's next start gets, while nothing new can be sealed."""
    host.look_then(lambda: None)
    before = host.delivered("db", "TOKEN")
    (host.state.parent / "secrets/token").write_text("other")
    assert host.look_then(lambda: shutil.rmtree(host.path("db").parent)) == []
    assert host.delivered("db", "TOKEN") == before
