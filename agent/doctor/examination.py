# SPDX-License-Identifier: MIT
"""Examines the whole chain on this host, from the published secrets to the guests. It changes nothing.

Each check is isolated: if a check fails, that is a finding, and the other checks continue.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import (
    arguments,
    bus,
    configuration,
    fleet,
    fleet_engine,
    guest,
    host,
    hypervisor,
    key,
    landlock,
    launcher,
    restarters,
    source,
    store,
    tpm,
    units,
    vm_age,
    vm_directory,
    vm_environment,
    vm_pairs,
    vm_push,
    vm_state,
    vm_unit,
    vm_units,
)
from credferry.agent.doctor.ahead import ask_launchers
from credferry.agent.doctor.chain import Chain
from credferry.agent.doctor.finding import Finding, UnseenError, hint, unseen
from credferry.agent.errors import CredferryError, place
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from credferry.agent.config.model import VmConfig

Check = tuple[str, "Callable[[Chain], Iterable[Finding]]"]
VmCheck = tuple[str, "Callable[[Chain, VmConfig], Iterable[Finding]]"]

_THREADS = 2 * (os.cpu_count() or 1)

HOST_CHECKS: tuple[Check, ...] = (
    ("configuration", configuration.check),
    ("source", source.check),
    # Before the checks of the agent's units: systemd 252 notices a new drop-in directory only after it has
    # looked for a unit that does not exist, and the doctor asks about each unit only once.
    ("source.producer", source.check_producer),
    ("source.seen", source.check_seen),
    ("key", key.check),
    ("key.tpm", tpm.check),
    ("store", store.check),
    ("bus", bus.check),
    ("bus.name", bus.check_name),
    ("bus.polkit", bus.check_polkit),
    ("agent", units.check_agent),
    ("key.tpm.device", tpm.check_units),
    ("agent.configuration", units.check_configuration_in_force),
    ("agent.process", units.check_process),
    ("agent.journal", units.check_journal),
    ("seal", units.check_seal),
    ("fleet.network", fleet.check_network),
    ("fleet.certificate", fleet.check_certificate),
    ("fleet.member", fleet_engine.check_members),
    ("fleet.group", fleet_engine.check_groups),
    ("host.machine", host.check),
    ("host.journal", host.check_journal),
    ("host.swap", host.check_swap),
)
"""Checks of the host, in the chain's order. A check's findings have its name, or names below it."""

VM_CHECKS: tuple[VmCheck, ...] = (
    ("vm.generation", store.check_vm),
    ("vm.unit", vm_unit.check),
    ("vm.settings", vm_unit.check_settings),
    ("vm.directory", vm_directory.check),
    ("vm.environment", vm_environment.check),
    ("vm.launcher", launcher.check),
    ("vm.hypervisor", hypervisor.check),
    ("vm.arguments", arguments.check),
    ("vm.landlock", landlock.check),
    ("vm.invocation", launcher.check_invocation),
    ("vm.budget", guest.check_budget),
    ("vm.pairs", vm_pairs.check),
    ("vm.age", vm_age.check),
    ("vm.guest-key", guest.check_key),
    ("vm.kernel", guest.check_kernel),
    ("vm.restarters", restarters.check),
    ("vm.health", vm_unit.check_health),
    ("vm.units", vm_units.check),
    ("vm.push", vm_push.check),
    ("vm.state", vm_state.check),
)
"""Checks of each VM."""

_OF_LAUNCHER: Final = frozenset({"vm.launcher", "vm.hypervisor", "vm.arguments", "vm.landlock", "vm.kernel"})
"""Checks that concern only VMs with a launcher, and their guests."""


def examine(file: Path, names: Sequence[str] = ()) -> Iterator[Finding]:
    """All findings, in the chain's order, about the named VMs, or about all VMs if none is named.

    Raises only `ConfigurationError`, for a named VM that is not configured.
    """
    chain = Chain(file, names)
    for name, check in HOST_CHECKS:
        yield from isolated(name, functools.partial(check, chain))
    with suppress(UnseenError):
        chain.observed  # noqa: B018 (once, before several threads need it)
    ask_launchers(chain.vms, chain.unit)
    with ThreadPoolExecutor(_THREADS) as pool:  # they wait for short programs, such as each VM's launcher
        try:
            for found in pool.map(functools.partial(_of_vm, chain), chain.vms):
                yield from found
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _of_vm(chain: Chain, vm: VmConfig) -> list[Finding]:
    """All findings about a VM."""
    return [
        finding
        for name, check in VM_CHECKS
        if vm.channel is not Channel.DIRECTORY or name not in _OF_LAUNCHER
        for finding in isolated(name, functools.partial(check, chain, vm), vm.name)
    ]


def isolated(name: str, check: Callable[[], Iterable[Finding]], vm: str = "") -> Iterator[Finding]:
    """A check's findings. An exception of the check becomes a finding."""
    try:
        yield from check()
    except UnseenError as error:
        yield unseen(name, str(error), vm)
    except CredferryError as error:
        yield hint(name, f"not checked: {error}", vm=vm, remedy=error.hint)
    except PermissionError as error:
        yield unseen(name, f"{error.filename}: {error.strerror}", vm)
    except Exception as error:  # noqa: BLE001 (the host may be broken in any way; the exception's own text may quote a value)
        yield hint(
            name, f"not checked: this check failed at {place(error)}", vm=vm, remedy="please report it"
        )
