# SPDX-License-Identifier: MIT
"""The plan of a start: all decisions and checks, made before the launcher changes anything."""

from __future__ import annotations

import os

from credferry.launcher import oem
from credferry.launcher.channels import Endpoint, Start, by_api, by_command, endpoint, value_of, vsock_path
from credferry.launcher.errors import Exit, LaunchError, usage
from credferry.launcher.handoff import (
    HYPERVISOR_PUSHES_SINCE,
    RUNTIME_PARENT,
    SYSTEMD_READS_ALL_OEM_STRINGS,
    Channel,
    Delivery,
    Kind,
    oem_size,
)
from credferry.launcher.hypervisor import cmdline
from credferry.launcher.hypervisor.options import (
    Grammar,
    OptionError,
    oem_strings,
)
from credferry.launcher.record import FrozenRecord, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from credferry.launcher.credentials import Credential, Delivered
    from credferry.launcher.hypervisor.cmdline import Option

PROCESS_PREFIX: Final = "microvm@"
_UNKNOWN_VM: Final = "VM"
_NO_CREDENTIALS: Final = (
    "there is no credential directory, so this plan is for the VM without credentials, in the api channel"
)
_NOTHING_DELIVERED: Final = Delivery(guest_systemd=SYSTEMD_READS_ALL_OEM_STRINGS)
_LANDLOCK: Final = (
    "--landlock confines less in the api channel: it confines the threads that run the VM, but not "
    "cloud-hypervisor's API server, event monitor and main thread. Seal the values for the guest and "
    "use the command channel, where it confines the whole process, or confine the VM's unit"
)


class Request(FrozenRecord):
    """The requested start: cloud-hypervisor's arguments without its name, and their context.

    For VMs from a spec, ``notify`` is the socket for messages of the guest's systemd, and ``sockets`` are
    those that an earlier run may have left. microvm.nix's runner handles both by itself.
    """

    real: str
    argv: tuple[str, ...] = field(repr=False)
    major: int
    machine: str
    vm: str | None = None
    argv0: str | None = None
    runtime: str | os.PathLike[str] | None = None
    notify: str | None = None
    sockets: tuple[str, ...] = ()


class Initrd(FrozenRecord):
    """The initramfs to copy, and the credentials to append. The command line names the copy already."""

    initramfs: str
    credentials: tuple[Credential, ...]


class Plan(FrozenRecord):
    """A complete start. ``events`` is the event monitor that the given command line names.

    ``vsock`` is the path of the VM's vsock socket.
    """

    channel: Channel
    vm: str | None
    argv0: str
    start: Start
    events: Endpoint | None
    delivered: Delivered | None
    other_oem_bytes: int
    notes: tuple[str, ...]
    initrd: Initrd | None = None
    notify: str | None = None
    sockets: tuple[str, ...] = ()
    vsock: str | None = None


def make(request: Request, delivered: Delivered | None) -> Plan:
    """The plan, with every limit checked. Raises `LaunchError`.

    Without credentials, the plan is for the api channel.
    """
    _check_text(request.argv)
    options = cmdline.parse(request.argv)
    grammar = Grammar.of(request.major)
    vm = _vm(request, delivered)
    delivery = delivered.manifest.delivery if delivered else _NOTHING_DELIVERED
    credentials = delivered.credentials if delivered else ()
    existing = _existing(value_of(options, "platform") or "", grammar)
    if delivered:
        _check_channel(delivered)
        oem.check_machine(request.machine)
        _check_disclosure(delivered, options)
    oem.check(credentials, existing, delivery)
    events = endpoint(value_of(options, "event-monitor"), grammar, "--event-monitor")
    kept = [option for option in options if option.name != "event-monitor"]
    extended, kept = _initrd(kept, credentials, delivery)
    strings = [credential for credential in credentials if delivery.is_oem(credential.kind)]
    is_igvm = value_of(options, "igvm") is not None
    oem.check_trusted(strings, value_of(options, "platform") or "", grammar, is_igvm=is_igvm)
    if delivery.channel is Channel.COMMAND:
        start = by_command(kept, strings, grammar)
    else:
        runtime = request.runtime or os.path.join("/run", RUNTIME_PARENT, vm or _UNKNOWN_VM)
        start = by_api(kept, strings, request.major, runtime)
    notes = [] if delivered else [_NO_CREDENTIALS]
    if start.document and start.document.get("landlock_enable"):
        notes.append(_LANDLOCK)
    if delivered and delivered.manifest.is_live and request.major < HYPERVISOR_PUSHES_SINCE:
        notes.append(
            f"the VM is live, but cloud-hypervisor {request.major} takes no pushes: install "
            f"{HYPERVISOR_PUSHES_SINCE} or later, or set live = false"
        )
    return Plan(
        channel=delivery.channel,
        vm=vm,
        argv0=request.argv0 or (PROCESS_PREFIX + vm if vm else os.path.basename(request.real)),
        start=start,
        events=events,
        delivered=delivered,
        other_oem_bytes=oem_size(string.encode() for string in existing),
        notes=tuple(notes),
        initrd=extended,
        notify=request.notify,
        sockets=request.sockets,
        vsock=vsock_path(options, grammar),
    )


def _initrd(
    options: list[Option], credentials: Sequence[Credential], delivery: Delivery
) -> tuple[Initrd | None, list[Option]]:
    """The credentials for the initrd, and the options with ``--initramfs`` changed to the extended copy."""
    sealed = tuple(credential for credential in credentials if not delivery.is_oem(credential.kind))
    if not sealed:
        return None, options
    from credferry.launcher import initrd  # noqa: PLC0415 (few VMs need it)

    initrd.check(sealed)
    initramfs = value_of(options, "initramfs")
    # With firmware or an IGVM file, cloud-hypervisor loads no initramfs.
    if initramfs is None or any(option.name in {"firmware", "igvm"} for option in options):
        raise usage(
            f"there is no --initramfs that could carry credential {sealed[0].name}",
            "boot the guest with --kernel and an initrd that runs systemd, or set initrd = false",
        )
    named = cmdline.Option("initramfs", (initrd.PATH,), ("--initramfs", initrd.PATH))
    return Initrd(initramfs, sealed), [named if option.name == "initramfs" else option for option in options]


def _existing(platform: str, grammar: Grammar) -> list[str]:
    try:
        return oem_strings(platform, grammar)
    except OptionError as error:
        raise usage(f"--platform cannot be read: {error}", "write it in cloud-hypervisor's syntax") from None


def _check_channel(delivered: Delivered) -> None:
    """Refuse credentials that the configuration leaves to the unit's own program."""
    if delivered.manifest.delivery.channel is Channel.DIRECTORY:
        vm = delivered.manifest.vm
        raise LaunchError(
            f'VM {vm} has channel = "directory", so the launcher passes no credentials on',
            hint=f'set channel = "api" in [vms.{vm}], or start the hypervisor without the launcher',
            status=Exit.CREDENTIALS,
        )


def _check_disclosure(delivered: Delivered, options: Sequence[Option]) -> None:
    """Refuse options that would show a plaintext secret in arguments, in a log or on D-Bus."""
    secret = next((c.name for c in delivered.credentials if c.kind is Kind.PLAIN), None)
    if secret is None:
        return
    delivery = delivered.manifest.delivery
    if delivery.channel is Channel.COMMAND and not delivery.plaintext_in_argv:
        raise LaunchError(
            f"every user could read credential {secret} in /proc/PID/cmdline",
            hint="seal it for the guest or use the api channel; to allow it anyway, set plaintext_in_argv",
            status=Exit.CREDENTIALS,
        )
    if any(option.is_verbose for option in options):
        raise usage(
            f"-v would make cloud-hypervisor log credential {secret}",
            "remove -v, or seal the credential for the guest",
        )
    bus = next((option for option in options if option.name.startswith("dbus-")), None)
    if bus is not None:
        raise usage(
            f"{bus.shown} would show credential {secret} to each user that may call cloud-hypervisor "
            "on D-Bus",
            "remove it, or seal the credential for the guest",
        )


def _check_text(argv: Sequence[str]) -> None:
    try:
        for word in argv:
            word.encode()
    except UnicodeEncodeError:
        raise usage(
            "a word of cloud-hypervisor's command line is not UTF-8",
            "use only UTF-8: cloud-hypervisor accepts nothing else",
        ) from None


def _vm(request: Request, delivered: Delivered | None) -> str | None:
    named = request.vm
    if delivered is None:
        own = request.argv0 or ""
        return named or (own.removeprefix(PROCESS_PREFIX) if own.startswith(PROCESS_PREFIX) else None)
    if named is not None and named != delivered.manifest.vm:
        raise LaunchError(
            f"the credentials are for VM {delivered.manifest.vm}, not for {named}",
            hint="correct --vm, or the unit's LoadCredentialEncrypted=",
            status=Exit.CREDENTIALS,
        )
    return delivered.manifest.vm
