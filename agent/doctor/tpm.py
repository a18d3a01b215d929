# SPDX-License-Identifier: MIT
"""The host's TPM2: whether systemd and the agent can use it, what seals what, and how long that takes."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Final

from credferry.agent.config.model import SealKey
from credferry.agent.doctor import probe
from credferry.agent.doctor.chain import AGENT, SEAL
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.errors import SealError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding
    from credferry.agent.sealing.policy import OpeningPolicy

DEVICE: Final = "/dev/tpmrm0"
_ALLOWED: Final = {DEVICE, "char-tpm"}
"""How a unit's DeviceAllow= can name it."""
_DROP_IN: Final = "/usr/share/doc/credferry/examples/credferry-tpm.conf"
_SLOW: Final = 2.0
"""Seconds for an operation from which on it is worth a hint: each value of a VM costs one at each start."""


def check(chain: Chain) -> Iterator[Finding]:
    """What new values are sealed with. Nothing, if that is the host's key without systemd."""
    if chain.error is not None or chain.config.seal_key is SealKey.HOST:
        return
    if not probe.is_root():
        raise UnseenError("what systemd seals with")
    sealing, began = chain.store.sealing, time.monotonic()
    try:
        policy = sealing.tried()
    except SealError as error:
        yield problem(
            "key.tpm",
            str(error),
            why="the agent seals and restarts nothing, and VMs whose values need the TPM cannot start",
            remedy=error.hint,
        )
        return
    seconds = (time.monotonic() - began) / 2
    said = f"new values are sealed with {_said(policy)}; the TPM takes {seconds:.1f} s for an operation"
    if policy is None or not policy.kind.tpm:
        yield ok("key.tpm", f'seal_key = "{chain.config.seal_key}": systemd seals with {_said(policy)}')
        return
    if seconds > _SLOW:
        yield hint(
            "key.tpm",
            said,
            why="each value of a VM costs one operation at each start of the VM",
            remedy="give VMs fewer and larger credentials, such as one file with all",
        )
    else:
        yield ok("key.tpm", said)
    if sealing.opens_witness() is False:
        yield problem(
            "key.tpm.other",
            "the TPM does not open what it sealed: it was cleared, is another one, or its PCRs changed",
            why="VMs cannot start until the agent has sealed everything again",
            remedy="start the agent, and make sure that secrets are published",
            commands=[f"systemctl restart {AGENT}"],
        )


def check_units(chain: Chain) -> Iterator[Finding]:
    """Whether the agent's units let it use the TPM's device."""
    if chain.error is not None or chain.config.seal_key is SealKey.HOST:
        return
    for name in (AGENT, SEAL):
        unit = probe.unit(name)
        if unit["LoadState"] != "loaded":
            continue
        allowed = {path for path, _ in unit.get("DeviceAllow", [])}
        is_allowed = unit.get("DevicePolicy") == "auto" or not allowed.isdisjoint(_ALLOWED)
        hidden = unit.get("PrivateDevices") or not is_allowed
        if not hidden:
            yield ok("key.tpm.device", f"{name} may use {DEVICE}")
            continue
        remedy, commands = _way_to_device(name)
        yield problem(
            "key.tpm.device",
            f"{name} hides {DEVICE} from the agent",
            why="the agent can seal nothing with the TPM",
            remedy=remedy,
            commands=commands,
        )


def _way_to_device(name: str) -> tuple[str, Sequence[str]]:
    """How a unit gets the TPM's device: in words, and as commands."""
    if probe.is_nixos():
        return "set services.credferry.settings.seal_key, and rebuild", ()
    return "add contrib/systemd/credferry-tpm.conf, which the package has among its examples", [
        f"install -D -m 0644 {_DROP_IN} /etc/systemd/system/{name}.d/60-tpm.conf",
        "systemctl daemon-reload",
        f"systemctl restart {shlex.quote(name)}",
    ]


def sealed_with(chain: Chain, vm: VmConfig) -> str:
    """What the current generation of a VM is sealed with, in words; empty for the host's key."""
    policies = chain.store.policies(vm.name, chain.store.current_number(vm.name))
    words = sorted({_said(each) for each in policies if each is None or each.kind.tpm})
    return " and ".join(words)


def _said(policy: OpeningPolicy | None) -> str:
    if policy is None:
        return "a kind of key that this release does not know"
    bound = f", bound to PCR {'+'.join(map(str, policy.pcrs))}" if policy.pcrs else ""
    signed = f", with signed values of PCR {'+'.join(map(str, policy.signed))}" if policy.signed else ""
    return f"{policy.kind.words}{bound}{signed}"
