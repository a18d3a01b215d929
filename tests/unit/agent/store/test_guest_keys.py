# SPDX-License-Identifier: MIT
"""Guests' keys that the host makes: made once, handed over to fit the generation, replaced on order."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from credferry.agent.cli import guest_key
from credferry.agent.config.loading import parse
from credferry.agent.errors import KeyFileError
from credferry.agent.sealing.credential import one_line, seal
from credferry.agent.sealing.keys import create_key, hashed_machine_id, read_key
from credferry.agent.store import guest_keys
from credferry.agent.store.opening import guest_key_path
from credferry.launcher.handoff import Delivery, Kind, Manifest, ManifestEntry, Secret

if TYPE_CHECKING:
    from pathlib import Path

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.sealing.keys import CredentialKey

MACHINE = "5ea1ed00-c0ff-ee00-c0ff-ee0000000252"


class Host:
    """A host that makes the key of one VM's guest. ``unit`` is the credentials directory of its unit."""

    def __init__(self, top: Path) -> None:
        self.config: Config = parse(
            f'state_directory = "{top}/state"\nruntime_directory = "{top}/run"\n'
            f'[vms.web]\nguest_key = true\nguest_machine_id = "{MACHINE}"\n'
            '[vms.web.credentials]\nK = { secret = "k" }\n'.encode(),
            top / "config.toml",
        )
        self.vm: VmConfig = self.config.vm("web")
        self.unit = top / "unit"
        self.unit.mkdir()
        self.given = top / "run/credferry-guest-keys/web"
        self.given.mkdir(0o700, parents=True)
        self.given.parent.chmod(0o700)

    @property
    def path(self) -> Path:
        """The master copy of the guest's key."""
        return guest_key_path(self.config, "web")

    def key(self) -> CredentialKey:
        """The guest's present key."""
        return read_key(self.path, machine_id=MACHINE)

    def start(self, number: int, key: CredentialKey | None) -> tuple[Manifest, dict[str, Secret]]:
        """Have PID 1 open a generation for the VM's unit: sealed with a key, or with nothing sealed."""
        kind = Kind.PLAIN if key is None else Kind.SEALED
        value = b"plain" if key is None else one_line(seal(b"value", name="K", key=key))
        entry, values = ManifestEntry("K", kind, "0" * 16), {"K": Secret(value)}
        manifest = Manifest("web", number, "0" * 64, "0" * 32, Delivery(), (entry,)).bound(values, "0" * 64)
        (self.unit / "credferry_manifest").write_bytes(manifest.to_bytes())
        (self.unit / "credferry_value.K").write_bytes(value)
        return manifest, values

    def hand_over(self, machine_id: str = MACHINE) -> Path:
        """Do what root does when the VM starts."""
        manifest, values = guest_keys.starting(self.unit)
        key = guest_keys.key_that_opens(self.config, self.vm, manifest, values)
        return guest_keys.give(self.config, self.vm, key, machine_id)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host without a key for the guest."""
    return Host(tmp_path)


def test_a_key_is_made_once(host: Host) -> None:
    """The first need makes it, with mode 0400 and for the guest's machine id. It stays at later needs."""
    assert guest_keys.make_missing(host.config, host.vm)
    first = host.path.read_bytes()
    assert host.path.stat().st_mode & 0o7777 == 0o400
    assert first[:16] == hashed_machine_id(MACHINE)
    assert not guest_keys.make_missing(host.config, host.vm)
    assert host.path.read_bytes() == first


def test_no_key_is_made_for_a_guest_that_has_its_own(host: Host) -> None:
    """Without a machine id, an operator makes the key: a new one would not fit the guest's copy."""
    by_hand = parse(
        f'state_directory = "{host.path.parents[1]}"\n[vms.web]\nguest_key = true\n'
        '[vms.web.credentials]\nK = { secret = "k" }\n'.encode(),
        host.config.file,
    )
    assert not guest_keys.make_missing(by_hand, by_hand.vm("web"))
    assert not host.path.exists()


def test_a_guest_gets_its_key_as_its_systemd_wants_it(host: Host) -> None:
    """Mode 0400, with the header of its machine id, also if the key was made for another machine id."""
    guest_keys.make_missing(host.config, host.vm)
    host.start(1, host.key())
    given = host.hand_over("1" * 32)
    assert given == host.given / "credential.secret"
    assert given.stat().st_mode & 0o7777 == 0o400
    assert read_key(given, machine_id="1" * 32) == host.key()
    assert [each.name for each in host.given.iterdir()] == ["credential.secret"]


def test_the_key_is_that_of_the_generation(host: Host) -> None:
    """A start after a rotation gets the new key. A rollback gets the previous one."""
    guest_keys.make_missing(host.config, host.vm)
    before = host.key()
    sealed = host.start(1, before)
    guest_keys.rotate(host.config, host.vm, MACHINE, sealed)
    assert read_key(host.hand_over(), machine_id=MACHINE) == before
    host.start(2, host.key())
    assert read_key(host.hand_over(), machine_id=MACHINE) == host.key() != before
    host.start(1, before)
    assert read_key(host.hand_over(), machine_id=MACHINE) == before


def test_a_generation_without_sealed_values_gets_the_present_key(host: Host) -> None:
    """The guest can then open what it gets by a push."""
    guest_keys.make_missing(host.config, host.vm)
    host.start(1, None)
    assert read_key(host.hand_over(), machine_id=MACHINE) == host.key()


def test_no_key_is_handed_over_that_opens_nothing(host: Host) -> None:
    """The start fails and says what to do, instead of a guest whose units cannot start."""
    guest_keys.make_missing(host.config, host.vm)
    old = host.key()
    host.path.unlink()
    guest_keys.make_missing(host.config, host.vm)
    host.start(1, old)
    with pytest.raises(KeyFileError, match="no key opens generation 1 of VM web") as caught:
        host.hand_over()
    assert caught.value.hint == "seal a new generation: credferry sync web"
    assert not (host.given / "credential.secret").exists()


def test_a_second_rotation_waits_for_the_first(host: Host) -> None:
    """Until a generation is sealed with the present key, the previous one is needed, and is not removed."""
    guest_keys.make_missing(host.config, host.vm)
    first = host.start(1, host.key())
    guest_keys.rotate(host.config, host.vm, MACHINE, first)
    present, previous = (each.read_bytes() for each in (host.path, host.path.with_name("web.previous")))
    with pytest.raises(KeyFileError, match="nothing was changed"):
        guest_keys.rotate(host.config, host.vm, MACHINE, first)
    assert (host.path.read_bytes(), host.path.with_name("web.previous").read_bytes()) == (present, previous)
    guest_keys.rotate(host.config, host.vm, MACHINE, host.start(2, host.key()))
    assert host.path.with_name("web.previous").read_bytes() == present


def test_a_rotation_that_died_in_the_middle_is_made_up_for(host: Host) -> None:
    """Between its two steps there is no present key. The next need makes it; the VM can start meanwhile."""
    guest_keys.make_missing(host.config, host.vm)
    before = host.key()
    host.path.rename(host.path.with_name("web.previous"))
    host.start(1, before)
    assert read_key(host.hand_over(), machine_id=MACHINE) == before
    assert guest_keys.make_missing(host.config, host.vm)
    assert host.key() != before


def test_nothing_is_put_where_another_user_can_write(host: Host) -> None:
    """A directory that others can change could have been swapped, or be read by a VM's user."""
    guest_keys.make_missing(host.config, host.vm)
    host.start(1, host.key())
    for directory in (host.given, host.given.parent):
        directory.chmod(0o770)
        with pytest.raises(KeyFileError, match="another user can write to this directory"):
            host.hand_over()
        directory.chmod(0o700)
    host.given.rmdir()
    elsewhere = host.given.with_name("elsewhere")
    elsewhere.mkdir(0o700)
    host.given.symlink_to(elsewhere)
    with pytest.raises(KeyFileError, match="cannot be written"):
        host.hand_over()
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("planted", ["a link", "a hard link", "another mode"])
def test_what_the_agents_user_plants_reaches_no_guest(host: Host, planted: str) -> None:
    """The agent's user can write to the directory of the keys. Root takes a plain key file alone."""
    guest_keys.make_missing(host.config, host.vm)
    host.start(1, host.key())
    other = host.path.with_name("other")
    host.path.rename(other)
    match planted:
        case "a link":
            host.path.symlink_to(other)
        case "a hard link":
            os.link(other, host.path)
        case _:
            other.rename(host.path)
            host.path.chmod(0o600)
    with pytest.raises(KeyFileError):
        host.hand_over()
    assert not (host.given / "credential.secret").exists()


def test_a_spec_of_another_machine_is_refused(host: Host) -> None:
    """Its guest's systemd would refuse the key. The message names both settings."""
    guest_keys.make_missing(host.config, host.vm)
    host.start(1, host.key())
    (host.given / "machine-id").write_text(f"{MACHINE.replace('-', '')}\n")
    host.hand_over()
    (host.given / "machine-id").write_text(f"{'2' * 32}\n")
    with pytest.raises(KeyFileError, match="another machine id than the configuration") as caught:
        host.hand_over()
    assert caught.value.hint is not None
    assert "vm.toml" in caught.value.hint
    assert "guest_machine_id" in caught.value.hint


def test_a_key_made_by_hand_is_not_copied_from_elsewhere(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's user could put a link in the place of the keys' directory before root copies the key."""
    roots = tmp_path / "roots"
    roots.mkdir()
    create_key(roots / "web.secret", machine_id=MACHINE)
    file, output = tmp_path / "config.toml", tmp_path / "copy"
    file.write_text(
        f'state_directory = "{tmp_path}/state"\n[vms.web]\nguest_key = true\n'
        '[vms.web.credentials]\nK = { secret = "k" }\n'
    )

    def create(path: Path, *, machine_id: str) -> None:
        create_key(path, machine_id=machine_id)
        path.parent.rename(path.parent.with_name("away"))
        path.parent.symlink_to(roots)

    verbs = typer.Typer()
    guest_key.register(verbs)
    words = ["guest-key", "create", "web", "--machine-id", MACHINE, "--config", str(file), "--output"]
    monkeypatch.setattr(guest_key, "create_key", create)
    refused = CliRunner().invoke(verbs, [*words, str(output)])
    assert isinstance(refused.exception, KeyFileError)
    assert not output.exists()
    monkeypatch.undo()
    host.path.parent.unlink()
    assert CliRunner().invoke(verbs, [*words, str(output)]).exception is None
    assert output.read_bytes() == host.path.read_bytes()
