# SPDX-License-Identifier: MIT
"""Looking at VMs: what is wrong with one says nothing of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from credferry.agent.config.loading import parse
from credferry.agent.errors import SourceError
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.observer import Observer
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import guest_key_path

if TYPE_CHECKING:
    from pathlib import Path

    from credferry.agent.config.model import Config

CONFIG = b"""
[vms.sealed]
guest_key = true
[vms.sealed.credentials]
K = { secret = "k" }
[vms.plain.credentials]
K = { secret = "k" }
"""


@pytest.fixture
def observer(tmp_path: Path) -> Observer:
    """Two VMs of one secret, the one with a guest key; nothing is sealed, and systemd is not asked."""
    config: Config = parse(CONFIG, tmp_path / "config.toml")
    source = msgspec.structs.replace(config.source, path=str(tmp_path / "secrets"))
    config = msgspec.structs.replace(config, source=source, state_directory=str(tmp_path / "state"))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/k").write_bytes(b"value")
    return Observer(config, Store(tmp_path / "state", CredentialKey(b"k" * 4096)))


def test_a_spoiled_guest_key_refuses_its_own_vm_alone(observer: Observer) -> None:
    """The VM whose key cannot be used is refused with the key's file; the other is sealed for."""
    path = guest_key_path(observer.config, "sealed")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 100)
    path.chmod(0o644)
    sealed, plain = observer.look(observer.config.vms.values(), None).decisions
    assert (sealed.state, plain.state) == (State.REFUSED, State.SEAL_DUE)
    assert str(path) in sealed.reasons[0]
    assert "0400" in sealed.reasons[0]


def test_without_a_source_every_vm_is_refused_or_the_look_fails(observer: Observer, tmp_path: Path) -> None:
    """Either way nothing is decided that would need one."""
    (tmp_path / "secrets").rename(tmp_path / "gone")
    with pytest.raises(SourceError, match="No such file"):
        observer.look(observer.config.vms.values(), None)
    look = observer.look_or_refuse(observer.config.vms.values(), None)
    assert {decision.state for decision in look.decisions} == {State.REFUSED}
    assert not any(decision.seal or decision.needs_rollout for decision in look.decisions)
