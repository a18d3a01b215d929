# SPDX-License-Identifier: MIT
"""Whether the guest can take its credentials: its systemd's limit, its own key, and its kernel."""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.doctor.launcher import wiring
from credferry.agent.reconcile.desired import Desired, Excess, over_limit
from credferry.agent.sealing.keys import KEY_MODE
from credferry.agent.store.opening import guest_key_path
from credferry.launcher.handoff import OEM_COUNT_MAX, Kind

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
    other = observed.hint.other_oem_bytes if observed.hint is not None else 0
    most = wanted.delivery.oem_total_max
    why = "what does not fit is refused, and the VM keeps what it has"
    limit = over_limit(vm, wanted, other)
    strings = sum(wanted.delivery.is_oem(vm.kind(name)) for name in wanted.values)
    if strings > OEM_COUNT_MAX:
        limit = Excess(f"{strings} OEM strings, and SMBIOS takes {OEM_COUNT_MAX}", "pass fewer")
    if limit is not None:
        yield problem("vm.budget", limit.message, vm=vm.name, why=why, remedy=limit.hint)
    elif over_limit(vm, wanted, other + most // 10) is not None:
        yield hint(
            "vm.budget",
            f"over nine tenths of the {most} bytes of OEM strings that the guest reads are used",
            vm=vm.name,
            why=why,
            remedy="guest_systemd = 257 if it is that new; or values sealed for the guest, in its initrd",
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
            f"there is no {path}",
            vm=vm.name,
            why="nothing can be sealed for the guest: the VM is refused",
            remedy=f"credferry guest-key create {vm.name} --machine-id ID; then give it to the guest",
        )
        return
    if stat.S_IMODE(status.st_mode) != KEY_MODE:
        yield problem(
            "vm.guest-key.mode",
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}",
            vm=vm.name,
            why="it is not used unless its mode is 0400: the VM is refused",
            remedy="see who could read it, and close it",
            commands=[f"chmod 0400 {shlex.quote(str(path))}"],
        )
    else:
        yield ok("vm.guest-key", f"{path} is there; whether the guest has it only the guest knows", vm.name)


def check_kernel(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether the guest's kernel shows OEM strings, if its configuration lies beside it."""
    wired = wiring(chain.unit(vm))
    kernel = re.search(r"--kernel[ =]'?(/[^\s']+)|^kernel\s*=\s*\"(/[^\"]+)", wired.text, re.MULTILINE)
    path = Path(kernel[1] or kernel[2]) if kernel else None
    text = _config_of(path) if path is not None else None
    if path is None or text is None:
        yield ok("vm.kernel", f"not to be seen from here; in the guest, as root: {_IN_GUEST}", vm.name)
        return
    missing = [option for option in _OPTIONS if not re.search(rf"^{option}=[ym]$", text, re.MULTILINE)]
    if missing:
        yield problem(
            "vm.kernel",
            f"{path} is built without {' and '.join(missing)}",
            vm=vm.name,
            why="the guest's systemd sees no OEM strings, and so no credentials",
            remedy="use a kernel that has them, or where systemd can load dmi-sysfs",
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
