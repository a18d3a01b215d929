# SPDX-License-Identifier: MIT
"""A store is sealed as its setting says, with a real software TPM2, and stays readable when that changes."""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.errors import SealError, StoreError, TpmError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.ground import HostGround
from credferry.agent.reconcile.observer import Observer
from credferry.agent.reconcile.rekey import renew
from credferry.agent.reconcile.reseal import Resealing
from credferry.agent.reconcile.sealer import Sealer
from credferry.agent.sealing.keys import create_key
from credferry.agent.sealing.kinds import HOST, HOST_TPM2, KINDS, NULL, TPM2, KeyKind
from credferry.agent.sealing.systemd_creds import Options
from credferry.agent.store.at_rest import WITNESS_FILE, AtRest
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import open_store
from credferry.launcher.handoff import Secret

if TYPE_CHECKING:
    from credferry.agent.reconcile.decision import Decision
    from tests.support.tpm import SoftwareTpm

CANARY = "canary-in-a-tpm"
VMS = ("db", "web")


class Silent:
    """An audit that records nothing."""

    def record(self, *_: object, **__: object) -> None:
        """Nothing is said."""


class Host:
    """A store whose setting changes, and what the agent does with it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.now = 1000.0
        (top / "secrets").mkdir()
        self.publish(CANARY)
        create_key(top / "credential.secret", machine_id=Path("/etc/machine-id").read_text())
        self.use("host")

    def publish(self, value: str) -> None:
        """Publish a value for both VMs."""
        (self.top / "secrets/token").write_text(value)

    def use(self, seal_key: str, settings: str = "") -> None:
        """Start the agent with a setting."""
        text = f'seal_key = "{seal_key}"\n{settings}\nhost_key = "{self.top}/credential.secret"\n'
        text += f'state_directory = "{self.top}/state"\n[source]\npath = "{self.top}/secrets"\n'
        for vm in VMS:
            text += f'[vms.{vm}.credentials]\nTOKEN = {{ secret = "token" }}\n'
        config = parse(text.encode(), self.top / "config.toml")
        self.store: Store = open_store(config)
        self.observer = Observer(config, self.store)
        self.sealer = Sealer(self.store, self.observer, Silent())  # type: ignore[arg-type]  # silent
        self.resealing = Resealing(self.store, lambda: self.now)

    def keep(self) -> bool:
        """As the agent does a minute later."""
        self.now += 61
        return self.resealing.keep(VMS)

    def turn(self) -> tuple[Decision, ...]:
        """Seal what is due; the decisions."""
        look = self.observer.look(self.observer.config.vms.values(), None)
        self.sealer.seal_due(look)
        return look.decisions

    def kinds(self, number: int = 0) -> set[KeyKind]:
        """What the current generations, or those of a number, are sealed with."""
        found = [self.store.policies(vm, number or self.store.current_number(vm)) for vm in VMS]
        return {each.kind for policies in found for each in policies if each is not None}

    def all_open(self) -> bool:
        """Whether each current generation opens to what is published."""
        published = Secret((self.top / "secrets/token").read_bytes())
        return all(self.store.values(vm) == {"TOKEN": published} for vm in VMS)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with nothing sealed yet."""
    return Host(tmp_path)


@pytest.mark.usefixtures("tpm")
def test_a_change_of_the_setting_seals_anew(host: Host) -> None:
    """Each change seals all generations anew. Numbers and digests stay, so no VM is due for a restart."""
    host.turn()
    host.publish("the second")
    host.turn()
    before = [host.store.current(vm) for vm in VMS]
    for setting, kind in (("tpm2", TPM2), ("host+tpm2", HOST_TPM2), ("host", HOST)):
        host.use(setting)
        assert host.keep()
        assert host.kinds() == host.kinds(1) == {kind}
        assert host.all_open()
        assert [host.store.current(vm) for vm in VMS] == before
        assert {each.state for each in host.turn()} == {State.IN_STEP}
        assert not host.keep()
    assert not (host.top / "state" / WITNESS_FILE).exists()


@pytest.mark.usefixtures("tpm")
def test_another_policy_seals_anew(host: Host) -> None:
    """Other PCRs are another setting, though the kind of key stays."""
    host.use("tpm2", 'tpm2_pcrs = "7"')
    host.keep()
    host.turn()
    host.use("tpm2", 'tpm2_pcrs = "0+7"')
    assert host.keep()
    assert {each.pcrs for each in host.store.policies("web", 1) if each} == {(0, 7)}
    assert not host.keep()


def test_without_a_tpm_nothing_is_sealed_and_nothing_is_lost(host: Host, tpm: SoftwareTpm) -> None:
    """A VM whose secrets change is refused with the remedy, and keeps what it has until the TPM is back."""
    host.use("tpm2")
    host.keep()
    host.turn()
    tpm.stop()
    with pytest.raises(TpmError):
        host.keep()
    host.publish("the second")
    decisions = host.turn()
    assert {each.state for each in decisions} == {State.REFUSED}
    assert all("does not answer" in each.reasons[0] for each in decisions)
    assert [host.store.current_number(vm) for vm in VMS] == [1, 1]
    tpm.start()
    assert not host.keep()
    host.turn()
    assert [host.store.current_number(vm) for vm in VMS] == [2, 2]
    assert host.all_open()


def test_a_tpm_that_goes_away_while_something_is_sealed(host: Host, tpm: SoftwareTpm) -> None:
    """The generation before it stays current, and from then on the VM is refused."""
    host.use("tpm2")
    host.keep()
    tpm.stop()
    host.turn()
    assert host.store.current("web") is None
    assert {each.state for each in host.turn()} == {State.REFUSED}


def test_another_tpm_has_all_sealed_anew_from_what_is_published(host: Host, tpm: SoftwareTpm) -> None:
    """What a cleared TPM had sealed does not open. The agent seals it again, with the same digest."""
    host.use("tpm2")
    host.keep()
    host.turn()
    before = {vm: host.store.current(vm) for vm in VMS}
    tpm.clear()
    host.keep()
    assert {each.state for each in host.turn()} == {State.SEAL_DUE}
    assert host.all_open()
    for vm in VMS:
        now, old = host.store.current(vm), before[vm]
        assert now is not None
        assert old is not None
        assert (now.generation, now.digest) == (old.generation + 1, old.digest)
    assert not host.keep()
    assert host.store.sealing.is_settled


def test_other_firmware_has_all_sealed_anew(host: Host, tpm: SoftwareTpm) -> None:
    """After an update of the firmware PCR 7 is another, and a new process of the agent notices that."""
    host.use("tpm2", 'tpm2_pcrs = "7"')
    host.keep()
    host.turn()
    tpm.extend(7)
    host.use("tpm2", 'tpm2_pcrs = "7"')
    host.keep()
    host.turn()
    assert host.all_open()


def test_what_does_not_open_stays_remembered_until_it_is_sealed_anew(host: Host, tpm: SoftwareTpm) -> None:
    """While the source is away, each new process of the agent finds out again that nothing opens."""
    host.use("tpm2")
    host.keep()
    host.turn()
    tpm.clear()
    for _ in range(2):
        host.use("tpm2")
        host.keep()
        assert host.store.current("web") is None
        assert not host.store.sealing.is_settled
    host.turn()
    host.keep()
    assert host.store.sealing.is_settled


def test_a_broken_tpm_can_be_given_up(host: Host, tpm: SoftwareTpm) -> None:
    """With the host's key as the new setting, all is sealed anew from what is published, without the TPM."""
    host.use("tpm2")
    host.keep()
    host.turn()
    tpm.stop()
    host.use("host")
    host.keep()
    host.turn()
    assert host.kinds() == {HOST}
    assert host.all_open()


def test_no_rollback_to_what_does_not_open(host: Host, tpm: SoftwareTpm) -> None:
    """A generation that another TPM sealed never becomes current again."""
    host.use("tpm2")
    host.keep()
    host.turn()
    tpm.clear()
    host.keep()
    host.turn()
    assert host.store.revert("web", 1) is None
    assert host.store.current_number("web") == 2
    assert host.store.revert("web", 2) is not None


@pytest.mark.usefixtures("tpm")
def test_options_that_open_nothing(host: Host) -> None:
    """Systemd 252 seals without PCRs what it does not open. The agent finds that out before it seals."""
    host.use("tpm2", 'tpm2_pcrs = ""')
    with suppress(SealError):  # systemd 257 opens it
        host.keep()
    decisions = host.turn()
    if host.store.sealing.obstacle is None:
        assert host.all_open()
    else:
        said = "does not open what it seals with --with-key=tpm2 --tpm2-pcrs="
        assert all(said in each.reasons[0] for each in decisions)
        assert host.store.current("web") is None


def test_auto_is_what_systemd_decides(host: Host) -> None:
    """On a host without a TPM, systemd decides for the host's key, and the agent seals with it."""
    host.use("auto")
    host.keep()
    host.turn()
    assert host.kinds() == {HOST}
    assert host.all_open()


@pytest.mark.usefixtures("tpm")
def test_the_tpm_is_asked_once_a_minute(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns and looks within a minute cost no operation of the TPM."""
    host.use("tpm2")
    host.keep()
    host.turn()
    host.keep()
    monkeypatch.setenv("SYSTEMD_TPM2_DEVICE", "device:/dev/there-is-none")
    host.store.sealing.examine(within=600)
    host.now += 59
    assert not host.resealing.keep(VMS)
    assert {each.state for each in host.turn()} == {State.IN_STEP}
    host.now += 2
    with pytest.raises(TpmError):
        host.resealing.keep(VMS)


def test_a_witness_that_cannot_be_written(host: Host) -> None:
    """That is an error of the store, as for any of its files."""
    host.use("auto")
    (host.top / "state").write_text("no directory")
    with pytest.raises(StoreError):
        host.keep()


@pytest.mark.usefixtures("tpm")
def test_another_key_of_the_host(host: Host) -> None:
    """With host+tpm2, nothing opens with another key of the host. All is sealed from what is published."""
    host.use("host+tpm2")
    host.keep()
    host.turn()
    config, before = host.observer.config, host.store
    path = Path(config.host_key)
    path.unlink()
    create_key(path, machine_id=Path("/etc/machine-id").read_text())
    host.use("host+tpm2")
    renew([config], [before], host.store)
    host.keep()
    host.turn()
    assert host.all_open()
    assert host.kinds() == {HOST_TPM2}
    host.keep()
    assert host.store.sealing.is_settled


def test_a_start_needs_the_tpm_only_for_what_it_has_sealed(host: Host, tpm: SoftwareTpm) -> None:
    """Where all is still sealed with the host's key, a TPM that is missing prevents no start."""
    host.turn()
    tpm.stop()
    host.use("tpm2")
    for is_bound in (False, True):
        ground = HostGround(host.observer.config, host.store)
        with pytest.raises(TpmError):
            host.keep()
        assert bool(ground.lacks_tpm()) is is_bound
        if is_bound:
            with pytest.raises(TpmError):
                ground.unopened("web", ground.key())
        else:
            assert not ground.unopened("web", ground.key())
        tpm.start()
        assert host.keep() is not is_bound
        assert not ground.lacks_tpm()
        assert not ground.unopened("web", ground.key())
        tpm.stop()


class Later:
    """A systemd of the future, which has ids of its own. There is none yet, so this one only pretends."""

    def seal(self, value: bytes, *, name: str, options: Options) -> bytes:  # noqa: ARG002 (see Program)
        """Seal, as nobody should."""
        return base64.b64encode(bytes(range(16)) + name.encode() + b":" + value)

    def unseal(self, blob: bytes, *, name: str) -> bytes:
        """Open what it sealed."""
        raw = base64.b64decode(blob)
        if raw[:16] != bytes(range(16)):
            raise SealError("unknown encryption format", hint="")
        return raw[16:].removeprefix(name.encode() + b":")


class Null(Later):
    """A systemd that seals with the null key instead of what it is asked for."""

    def seal(self, value: bytes, *, name: str, options: Options) -> bytes:  # noqa: ARG002 (see Program)
        """Seal with a key that everybody knows."""
        return base64.b64encode(next(each for each, kind in KINDS.items() if kind is NULL) + value)


def test_ids_of_a_later_systemd(host: Host) -> None:
    """What only a later systemd can read, it seals and opens. After a downgrade all is sealed anew."""
    host.turn()
    state, key = host.store.state, host.store.key
    later = Store(state, key, at_rest=AtRest(state, Options("tpm2"), Later()))
    assert Resealing(later, lambda: 1.0).keep(VMS)
    assert later.policies("web", 1) == {None}
    assert later.values("web") == {"TOKEN": Secret(CANARY.encode())}
    assert later.sealing.is_settled
    with pytest.raises(SealError, match="a kind that this release knows"):
        host.store.values("web")
    host.use("auto")
    host.keep()
    host.turn()
    assert host.kinds() == {HOST}
    assert host.all_open()


def test_another_public_key_of_the_same_file(tmp_path: Path) -> None:
    """It is noticed by its content: files of an image, or of a Nix store, all have the same time."""
    key, link = tmp_path / "key.pem", tmp_path / "link.pem"
    link.symlink_to(key)
    key.write_text("one key\n")
    os.utime(key, (1, 1))
    options = Options("tpm2", public_key=str(link))
    first = AtRest(tmp_path, options, Later()).examine()
    assert AtRest(tmp_path, options, Later()).examine() == first
    key.write_text("another\n")
    os.utime(key, (1, 1))
    assert AtRest(tmp_path, options, Later()).examine().options != first.options


def test_a_systemd_that_does_not_seal_as_it_is_asked_to(tmp_path: Path) -> None:
    """An agent without root gets another kind of key than it asked for. Nothing is sealed with that."""
    with pytest.raises(SealError, match="was asked to seal with tpm2, and sealed with the null key"):
        AtRest(tmp_path, Options("tpm2"), Null()).examine()
