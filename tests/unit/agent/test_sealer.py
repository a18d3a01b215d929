# SPDX-License-Identifier: MIT
"""Sealing what is due, with a real store, real keys and a real source."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from credferry.agent.audit.events import Event
from credferry.agent.config.loading import parse
from credferry.agent.errors import StoreError, UnsyncedStoreError
from credferry.agent.reconcile.observer import Observer
from credferry.agent.reconcile.pruning import needed
from credferry.agent.reconcile.rekey import renew
from credferry.agent.reconcile.sealer import Sealer
from credferry.agent.sealing.credential import unseal
from credferry.agent.sealing.keys import CredentialKey, create_key, read_key
from credferry.agent.store.evidence import Evidence
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import guest_key_path
from credferry.agent.store.records import Assumed, Attempt, Outcome
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import (
    PUSH_MANIFEST,
    Channel,
    Kind,
    Stamp,
    push_receipt,
    value_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.config.model import Config
    from credferry.agent.reconcile.observer import Look

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

    def rotate(self, value: str) -> None:
        """Publish another value."""
        (Path(self.config.source.path) / "token").write_text(value)

    def become(self, *, live: bool) -> None:
        """Have the VMs be live, or no longer so."""
        vms = {name: structs.replace(vm, live=live) for name, vm in self.config.vms.items()}
        self.config = structs.replace(self.config, vms=vms)
        self.observer = Observer(self.config, self.store)
        self.sealer = Sealer(self.store, self.observer, Silent())  # type: ignore[arg-type]  # silent

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


def test_a_live_vm_gets_a_manifest_for_its_guest(host: Host) -> None:
    """Its guest alone can open it, and it has the receipt of the generation that it is in.

    When the VM is no longer live, the same values are sealed once more without it.
    """
    host.become(live=True)
    assert host.look_then(lambda: None) == ["db", "web"]
    first = host.store.current("db")
    assert first is not None
    assert first.is_live
    guest = read_key(host.path("db"), machine_id=GUEST)
    text = unseal(host.delivered("db", PUSH_MANIFEST), name=PUSH_MANIFEST, key=guest).decode()
    assert text.splitlines()[:5] == [
        "credferry-push 1",
        "vm db",
        "generation 1",
        "key guest",
        f"receipt {push_receipt(first)}",
    ]
    assert [line.split()[1:3] for line in text.splitlines()[5:]] == [
        ["OPEN", "plain"],
        ["T", "plain"],
        ["TOKEN", "sealed"],
    ]
    assert host.look_then(lambda: None) == []
    host.become(live=False)
    assert host.look_then(lambda: None) == ["db", "web"]
    second = host.store.current("db")
    assert second is not None
    assert (second.is_live, second.digest, second.generation) == (False, first.digest, 2)


def test_a_live_generation_outlives_the_host_key(host: Host) -> None:
    """With another host key it is sealed again, with the receipt that its guest already has."""
    host.become(live=True)
    host.look_then(lambda: None)
    first = host.store.current("db")
    pushed = host.store.values("db")[PUSH_MANIFEST]
    host.store = Store(host.state, CredentialKey(b"another key"))
    renew([host.config], [Store(host.state, host.key)], host.store)
    second = host.store.current("db")
    assert first is not None
    assert second is not None
    assert push_receipt(second) == push_receipt(first)
    assert host.store.values("db")[PUSH_MANIFEST] == pushed
    host.become(live=True)
    assert host.look_then(lambda: None) == []


def test_a_live_vm_whose_guest_key_is_gone_is_refused(host: Host) -> None:
    """Even if only its manifest would be sealed: it would otherwise be readable without a word."""
    host.become(live=True)
    host.path("db").unlink()
    assert host.look_then(lambda: None) == ["web"]


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


class Recorded:
    """An audit whose records are kept; one of them fails where a test says so."""

    def __init__(self) -> None:
        self.records: list[tuple[Event, str, dict[str, Any]]] = []
        self.fails_on: Event | None = None

    def record(self, event: Event, message: str, **fields: Any) -> None:  # noqa: ANN401 (whatever it holds)
        """Keep it, unless it is to fail."""
        if event is self.fails_on:
            raise StoreError("the disk is full", hint="make room")
        self.records.append((event, message, fields))


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Host, Recorded]:
    """A host whose audit's records are seen."""
    host, audit = Host(tmp_path), Recorded()
    host.sealer = Sealer(host.store, host.observer, audit)  # type: ignore[arg-type]  # its one method
    return host, audit


def look_at(host: Host, vm: str) -> Look:
    """A look at one VM, without a bus."""
    return host.observer.look_or_refuse([host.config.vm(vm)], None)


def test_each_sealing_is_recorded_with_what_has_changed(recorded: tuple[Host, Recorded]) -> None:
    """What is published, with the fingerprints that differ, and then the generation, under one run."""
    host, audit = recorded
    unit = "microvm@web.service"
    assert host.sealer.seal_due(look_at(host, "web"), "f" * 32) == ["web"]
    manifest = host.store.current("web")
    assert manifest is not None
    assert manifest.run == "f" * 32
    assert manifest.delivery == host.config.vm("web").delivery
    prints = {each.name: each.fingerprint for each in manifest.credentials}
    assert set(prints) == {"TOKEN", "OPEN", "T"}
    of_it = {"run": "f" * 32, "vm": "web", "unit": unit, "fingerprints": prints}
    assert [(event, fields) for event, _, fields in audit.records] == [
        (Event.PUBLISHED, of_it),
        (Event.SEALED, {**of_it, "generation": 1}),
    ]
    assert all("web: " in message for _, message, _ in audit.records)
    assert all(name in audit.records[0][1] for name in prints)
    host.rotate("another")
    audit.records.clear()
    host.sealer.seal_due(look_at(host, "web"))
    manifest = host.store.current("web")
    assert manifest is not None
    assert len(manifest.run) == 32
    changed = {each.name: each.fingerprint for each in manifest.credentials if each.name != "T"}
    (_, said, published), (_, _, sealed) = audit.records
    assert (published["run"], published["fingerprints"]) == (manifest.run, changed)
    assert "T," not in said
    assert (sealed["generation"], set(sealed["fingerprints"])) == (2, {"TOKEN", "OPEN", "T"})


def test_a_record_that_could_not_be_written_is_owed(recorded: tuple[Host, Recorded]) -> None:
    """The generation is sealed. The next look writes its record, once, and tells no news again."""
    host, audit = recorded
    audit.fails_on = Event.SEALED
    with pytest.raises(StoreError):
        host.sealer.seal_due(look_at(host, "web"))
    audit.fails_on = None
    for _ in range(2):
        assert host.sealer.seal_due(look_at(host, "web")) == []
    assert [event for event, *_ in audit.records] == [Event.PUBLISHED, Event.SEALED]


def test_what_cannot_be_written_is_told_once(
    recorded: tuple[Host, Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no news at each look; once there is room, the next change is told again."""
    host, audit = recorded

    def full(*_: object) -> None:
        raise StoreError("the disk is full", hint="make room")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        for _ in range(2):
            with pytest.raises(StoreError):
                host.sealer.seal_due(look_at(host, "web"))
    assert [event for event, *_ in audit.records] == [Event.PUBLISHED]
    host.sealer.seal_due(look_at(host, "web"))
    for value in ("two", CANARY):
        host.rotate(value)
        host.sealer.seal_due(look_at(host, "web"))
    assert [event for event, *_ in audit.records] == [
        *(Event.PUBLISHED, Event.SEALED),
        *(Event.PUBLISHED, Event.SEALED),
        *(Event.PUBLISHED, Event.SEALED),
    ]


def test_what_a_look_found_out_is_written_down(recorded: tuple[Host, Recorded]) -> None:
    """What a start is assumed to run, and what its launcher reported first, of each VM by its name."""
    host, _ = recorded
    look = look_at(host, "web")
    assumed = Assumed("a" * 32, "b" * 64, 3)
    report = Stamp("web", 3, "b" * 64, "c" * 32, "a" * 32, Channel.API, 0)
    look = dataclasses.replace(
        look,
        decisions=(dataclasses.replace(look.decisions[0], assume=assumed, seal=None),),
        observed=(dataclasses.replace(look.observed[0], hint=report),),
    )
    assert host.sealer.seal_due(look) == []
    assert host.store.assumed("web") == assumed
    assert host.store.reported("web", "a" * 32) == report
    assert host.store.current("web") is None
    with pytest.raises(ValueError, match="zip"):
        host.sealer.seal_due(dataclasses.replace(look, observed=()))


def test_generations_that_a_rollback_may_need_are_kept(recorded: tuple[Host, Recorded]) -> None:
    """What the VM runs, and what its last restart would go back to.

    If what the VM runs is gone, the newest generation with the same values takes its place.
    """
    host, _ = recorded
    for number in (1, 2, 3, 2):
        host.rotate(f"value {number}")
        host.sealer.seal_due(look_at(host, "web"))
    (now,) = look_at(host, "web").observed
    unit = UnitState("microvm@web.service", "loaded", "active", "running", "a" * 32)
    second = host.store.generation("web", 2)
    assert second is not None
    cases: list[tuple[dict[str, Any], set[int]]] = [
        ({}, set()),
        ({"evidence": Evidence("a" * 32, 2, second.digest, "")}, {2}),
        ({"evidence": Evidence("a" * 32, 7, second.digest, "")}, {7, 4}),
        ({"evidence": Evidence("b" * 32, 2, second.digest, "")}, set()),
        ({"attempt": Attempt("c" * 64, Outcome.FAILED, previous=1)}, {0, 1}),
        (
            {
                "attempt": Attempt("c" * 64, Outcome.FAILED, previous=1, ran=3),
                "evidence": Evidence("a" * 32, 2, second.digest, ""),
            },
            {1, 2, 3},
        ),
    ]
    for fields, kept in cases:
        assert needed(host.store, dataclasses.replace(now, unit=unit, **fields)) == kept


def test_a_sealing_keeps_what_a_rollback_may_need(recorded: tuple[Host, Recorded]) -> None:
    """While systemd cannot be asked, no sealing removes a generation, however many there are."""
    host, _ = recorded
    for number in range(1, 8):
        host.rotate(f"value {number}")
        look = look_at(host, "web")
        host.sealer.seal_due(look)
        host.sealer.prune(look)
    assert all(host.store.generation("web", number) is not None for number in range(1, 8))


def test_a_sealing_keeps_the_generation_that_the_vm_runs(recorded: tuple[Host, Recorded]) -> None:
    """However many generations are sealed while a VM runs on, a rollback finds what it runs; others go."""
    host, _ = recorded
    host.sealer.seal_due(look_at(host, "web"))
    first = host.store.generation("web", 1)
    assert first is not None
    unit = UnitState("microvm@web.service", "loaded", "active", "running", "a" * 32)
    evidence = Evidence("a" * 32, 1, first.digest, "")
    for number in range(2, 8):
        host.rotate(f"value {number}")
        look = look_at(host, "web")
        running = dataclasses.replace(look.observed[0], unit=unit, evidence=evidence)
        assert host.sealer.seal_due(dataclasses.replace(look, observed=(running,))) == ["web"]
        host.sealer.prune(dataclasses.replace(look, observed=(running,)))
    assert sorted(host.store.numbers("web")) == [1, 5, 6, 7]


def test_a_generation_sealed_again_is_news_again(
    recorded: tuple[Host, Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values whose generation is gone are published anew, and the error of a sync is raised each time."""
    host, audit = recorded
    real = Store.write

    def unsynced(*arguments: Any) -> None:  # noqa: ANN401 (as it was called)
        real(*arguments)
        raise UnsyncedStoreError("it is written", hint="see the file system")

    monkeypatch.setattr(Store, "write", unsynced)
    for _ in range(2):
        with pytest.raises(UnsyncedStoreError, match="it is written"):
            host.sealer.seal_due(look_at(host, "web"))
        (host.store.vm_directory("web") / "current").unlink()
    assert [event for event, *_ in audit.records] == [Event.PUBLISHED, Event.SEALED] * 2


def test_what_another_process_sealed_meanwhile_is_not_sealed_again(recorded: tuple[Host, Recorded]) -> None:
    """Of two processes that look at the same time, the second to get the lock finds the work done."""
    host, audit = recorded
    first, second = look_at(host, "web"), look_at(host, "web")
    assert host.sealer.seal_due(first) == ["web"]
    assert host.sealer.seal_due(second) == ["web"]
    assert list(host.store.numbers("web")) == [1]
    assert [event for event, *_ in audit.records] == [Event.PUBLISHED, Event.SEALED]
    host.rotate("another")
    old = look_at(host, "web")
    host.rotate("one more")
    host.sealer.seal_due(look_at(host, "web"))
    host.sealer.seal_due(old)
    assert sorted(host.store.numbers("web")) == [1, 2, 3], "what differs is sealed"
