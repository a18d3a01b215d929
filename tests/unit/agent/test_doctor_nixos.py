# SPDX-License-Identifier: MIT
"""What the doctor advises on NixOS: options to set, and no change that the next switch would undo."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.doctor import bus, guest, host, probe, restarters, unit_files, units, vm_unit
from credferry.agent.doctor.finding import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from credferry.agent.doctor.finding import Finding

VM = parse(
    b'[vms.web]\nguest_key = true\nguest_machine_id = "11111111111111111111111111111111"\n'
    b'[vms.web.credentials]\nKEY = { secret = "key" }\n',
    Path("config.toml"),
).vms["web"]
LOADED = {"LoadState": "loaded", "ActiveState": "active", "TriggeredBy": ["rotate.path"], "DropInPaths": []}


@pytest.fixture(params=[True, False], ids=["nixos", "debian"])
def is_nixos(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the host's system comes from a NixOS configuration."""
    found: bool = request.param
    monkeypatch.setattr(probe, "is_nixos", lambda: found)
    monkeypatch.setattr(probe, "is_root", lambda: True)
    return found


def chain(tmp_path: Path) -> Any:  # noqa: ANN401 (as much of a chain as these checks use)
    """A host where nothing of credferry is in its place."""
    return SimpleNamespace(
        unit=lambda _vm: LOADED,
        agent_user="credferry",
        file=Path("/etc/credferry/config.toml"),
        error=None,
        config=parse(f'runtime_directory = "{tmp_path}"\n'.encode(), Path("config.toml")),
    )


def journal(monkeypatch: pytest.MonkeyPatch, _chain: Any) -> Iterable[Finding]:  # noqa: ANN401 (see chain)
    """The journal is not kept."""
    monkeypatch.setattr(probe, "quiet_lines", lambda *_: ["Storage=none"])
    return host.check_journal(_chain)


def swap(monkeypatch: pytest.MonkeyPatch, _chain: Any) -> Iterable[Finding]:  # noqa: ANN401 (see chain)
    """There is plain swap."""
    monkeypatch.setattr(probe, "text_of", lambda _: "Filename Type\n/dev/none partition\n")
    monkeypatch.setattr(host, "_is_safe", lambda _: False)
    return host.check_swap(_chain)


def polkit(monkeypatch: pytest.MonkeyPatch, _chain: Any) -> Iterable[Finding]:  # noqa: ANN401 (see chain)
    """There is no rule for the agent's user."""
    monkeypatch.setattr(bus, "_texts", lambda: iter(()))
    return bus.check_polkit(_chain)


def enabled(_: pytest.MonkeyPatch, _chain: Any) -> Iterable[Finding]:  # noqa: ANN401 (see chain)
    """The agent does not start with the host."""
    unit = {"UnitFileState": "disabled", "WantedBy": []}
    return [units._enabled("credferry.service", unit, "agent.enabled", "why")]


def drop_in(_: pytest.MonkeyPatch, _chain: Any) -> Iterable[Finding]:  # noqa: ANN401 (see chain)
    """The VM's unit has no drop-in."""
    return [vm_unit._no_drop_in(Path("/var/lib/credferry"), VM)]


def path_unit(monkeypatch: pytest.MonkeyPatch, chain: Any) -> Iterable[Finding]:  # noqa: ANN401 (see chain)
    """A path unit restarts the VM as well."""
    monkeypatch.setattr(restarters, "_path_units", dict)
    monkeypatch.setattr(restarters, "_sops_restarts", dict)
    return restarters.check(chain, VM)


def guest_key(_: pytest.MonkeyPatch, chain: Any) -> Iterator[Finding]:  # noqa: ANN401 (see chain)
    """The host has not given the guest its key."""
    return guest._check_given(chain, VM)


CASES: dict[str, tuple[Callable[..., Iterable[Finding]], str]] = {
    "host.journal": (journal, 'services.journald.storage = "persistent"'),
    "host.swap": (swap, "swapDevices.*.randomEncryption.enable = true"),
    "bus.polkit": (polkit, "services.credferry.unprivileged = true"),
    "agent.enabled": (enabled, "services.credferry.enable = true"),
    "vm.drop-in": (drop_in, "services.credferry"),
    "vm.restarters.path": (path_unit, "systemd.paths.rotate"),
    "vm.guest-key.given": (guest_key, "credferry.guestKey.enable = true in the VM"),
}


@pytest.mark.parametrize("check", CASES)
def test_advice_on_nixos_names_an_option(
    check: str, is_nixos: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no command, and no path below /etc or /usr. Elsewhere it names no option."""
    plant, option = CASES[check]
    found = [each for each in plant(monkeypatch, chain(tmp_path)) if each.severity is not Severity.OK]
    assert [each.check for each in found] == [check]
    assert (option in found[0].remedy) is is_nixos
    if is_nixos:
        assert not found[0].commands
        assert not any(word.startswith(("/etc", "/usr", "mv")) for word in found[0].remedy.split())


def test_no_unit_is_extended_on_nixos(is_nixos: bool) -> None:
    """The module sets what is missing; a drop-in in /etc would be gone at the next switch."""
    assert bool(unit_files.extend("credferry.service", "Service", ["LimitCORE=0"])) is not is_nixos
