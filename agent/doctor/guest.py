# SPDX-License-Identifier: MIT
"""Whether the guest can take its credentials: its systemd's limit, its own key, and its kernel."""

from __future__ import annotations

import re
import shlex
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.doctor.launcher import wiring
from credferry.agent.reconcile.desired import Desired
from credferry.agent.reconcile.limits import over_limit
from credferry.agent.sealing.keys import KEY_MODE
from credferry.agent.store.opening import guest_key_path
from credferry.launcher.handoff import GUEST_KEY_FILE, GUEST_KEYS_PARENT, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_OPTIONS: Final = ("CONFIG_DMI", "CONFIG_DMI_SYSFS")
_IN_GUEST: Final = "test -r /sys/firmware/dmi/entries/11-0/raw"


def check_budget(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the published secrets fit into what the guest's systemd reads. Reports no secret's size."""
    observed, _ = chain.seen(vm)
    wanted = observed.desired
    if not isinstance(wanted, Desired):
        return  # `vm.state` reports why
    room = observed.room
    most = wanted.delivery.oem_total_max
    why = "credentials that do not fit are refused, and the VM keeps its previous ones"
    limit = over_limit(vm, wanted, room)
    strings = sum(wanted.delivery.is_oem(vm.kind(name)) for name in wanted.values)
    if limit is not None:
        yield problem("vm.budget", limit.message, vm=vm.name, why=why, remedy=limit.hint)
    elif (
        over_limit(vm, wanted, replace(room, other_oem_bytes=room.other_oem_bytes + most // 10)) is not None
    ):
        yield hint(
            "vm.budget",
            f"the OEM strings use over nine tenths of the {most} bytes that the guest reads",
            vm=vm.name,
            why=why,
            remedy="set guest_systemd = 257 if the guest's systemd is that new; or seal values for "
            "the guest and use its initrd",
        )
    else:
        yield ok(
            "vm.budget", f"{strings} OEM string(s) fit into the {most} bytes that the guest reads", vm.name
        )


def check_key(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the master copy of the guest's own key is there, and only its owner can read it."""
    if not any(vm.kind(name) is Kind.SEALED for name in vm.credentials):
        return
    path = guest_key_path(chain.config, vm.name)
    try:
        status = path.stat()
    except FileNotFoundError:
        yield problem(
            "vm.guest-key",
            f"{path} does not exist",
            vm=vm.name,
            why="the agent cannot seal for the guest, so it refuses the VM",
            remedy=f"run credferry guest-key create {vm.name} --machine-id ID; then give the key to "
            "the guest"
            if vm.guest_machine_id is None
            else "start the agent, which makes it: systemctl start credferry.service",
        )
        return
    if stat.S_IMODE(status.st_mode) != KEY_MODE:
        yield problem(
            "vm.guest-key.mode",
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}",
            vm=vm.name,
            why="the agent uses the key only with mode 0400: until then it refuses the VM",
            remedy="find out who could read it, then restrict its mode",
            commands=[f"chmod 0400 {shlex.quote(str(path))}"],
        )
    elif vm.guest_machine_id is not None:
        yield ok("vm.guest-key", f"{path} exists", vm.name)
        yield from _check_given(chain, vm)
    else:
        yield ok(
            "vm.guest-key", f"{path} exists; doctor cannot see whether the guest has the same key", vm.name
        )


def _check_given(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the guest of a running VM got its key from the host. Raises `UnseenError`."""
    path = Path(chain.config.runtime_directory) / GUEST_KEYS_PARENT / vm.name / GUEST_KEY_FILE
    if chain.unit(vm)["ActiveState"] != "active":
        return
    if not probe.is_root():
        raise UnseenError(str(path))
    if path.exists():
        yield ok("vm.guest-key.given", "the guest was given its key when the VM started", vm.name)
        return
    yield problem(
        "vm.guest-key.given",
        f"{path} does not exist, so the guest was given no key",
        vm=vm.name,
        why="the guest cannot open what is sealed for it",
        remedy="set credferry.guestKey.enable = true in the VM"
        if probe.is_nixos()
        else "add [guest_key] with its machine_id to the VM's vm.toml; then restart the VM",
    )


def check_kernel(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the guest's kernel shows OEM strings, if its configuration lies beside it."""
    wired = wiring(chain.unit(vm))
    kernel = re.search(r"--kernel[ =]'?(/[^\s']+)|^kernel\s*=\s*\"(/[^\"]+)", wired.text, re.MULTILINE)
    path = Path(kernel[1] or kernel[2]) if kernel else None
    text = _config_of(path) if path is not None else None
    if path is None or text is None:
        yield ok(
            "vm.kernel",
            f"cannot be checked from the host; check in the guest, as root: {_IN_GUEST}",
            vm.name,
        )
        return
    missing = [option for option in _OPTIONS if not re.search(rf"^{option}=[ym]$", text, re.MULTILINE)]
    if missing:
        yield problem(
            "vm.kernel",
            f"{path} is built without {' and '.join(missing)}",
            vm=vm.name,
            why="the guest's systemd sees no OEM strings, so it gets no credentials",
            remedy="use a kernel with these options, or one where systemd can load dmi-sysfs",
        )
    else:
        yield ok("vm.kernel", f"{path} shows OEM strings", vm.name)


def _config_of(kernel: Path) -> str | None:
    version = re.sub(r"\A(vmlinuz|vmlinux|bzImage)-", "", kernel.name)
    for candidate in (
        kernel.with_name(f"config-{version}"),
        kernel.with_name(f"{kernel.name}.config"),
        kernel.with_name("config"),
    ):
        try:
            text = probe.text_of(candidate)
        except UnseenError:
            continue
        if text is not None:
            return text
    return None
