# SPDX-License-Identifier: MIT
"""The plan of a start: all decisions and checks, made before the launcher changes anything."""

from __future__ import annotations

import json
import os

from credferry.launcher import initrd, oem
from credferry.launcher.errors import Exit, LaunchError, usage
from credferry.launcher.handoff import (
    RUNTIME_PARENT,
    SYSTEMD_READS_ALL_OEM_STRINGS,
    Channel,
    Delivery,
    Kind,
    Secret,
    oem_size,
)
from credferry.launcher.hypervisor import cmdline
from credferry.launcher.hypervisor.options import (
    Grammar,
    OptionError,
    merge_oem_strings,
    oem_strings,
    parse,
    plain,
)
from credferry.launcher.record import FrozenRecord, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from credferry.launcher.credentials import Credential, Delivered
    from credferry.launcher.hypervisor.cmdline import Option
    from credferry.launcher.hypervisor.vmconfig import AddNet, ConvertedCommandLine

PROCESS_PREFIX: Final = "microvm@"
_API_SOCKET: Final = "api.sock"
_UNKNOWN_VM: Final = "VM"
_NO_CREDENTIALS: Final = "no credential directory: this is the VM without credentials, in the api channel"
_NOTHING_DELIVERED: Final = Delivery(guest_systemd=SYSTEMD_READS_ALL_OEM_STRINGS)
_DESCRIPTOR_MAX: Final = (1 << 31) - 1
_LANDLOCK: Final = (
    "--landlock confines less in the api channel: it binds the threads that run the VM, and not "
    "cloud-hypervisor's API server, event monitor and main thread. Seal the values for the guest and use "
    "the command channel, where it binds the whole process, or confine the VM's unit"
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


class Endpoint(FrozenRecord):
    """``path=…`` or ``fd=N``, as ``--api-socket`` and ``--event-monitor`` take it."""

    path: str | None
    fd: int | None


class Start(FrozenRecord):
    """How one channel starts the VM. ``words`` follow argv[0]; ``shown`` are the same words, redacted.

    They do not contain ``--event-monitor`` yet: its descriptor is known only at the start.
    """

    words: tuple[str, ...] = field(repr=False)
    shown: tuple[str, ...] = field(repr=False)
    api: Endpoint | None
    document: dict[str, Any] | None = field(default=None, repr=False)
    body: Secret | None = None
    add_net: tuple[AddNet, ...] = ()
    private_api: bool = False


class Initrd(FrozenRecord):
    """The initramfs to copy, and the credentials to append. The command line names the copy already."""

    initramfs: str
    credentials: tuple[Credential, ...]


class Plan(FrozenRecord):
    """A complete start. ``events`` is the event monitor that the given command line names."""

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
    existing = _existing(_value(options, "platform") or "", grammar)
    if delivered:
        oem.check_machine(request.machine)
        _check_disclosure(delivered, options)
    oem.check(credentials, existing, delivery)
    events = _endpoint(_value(options, "event-monitor"), grammar, "--event-monitor")
    kept = [option for option in options if option.name != "event-monitor"]
    extended, kept = _initrd(kept, credentials, delivery)
    strings = [credential for credential in credentials if delivery.is_oem(credential.kind)]
    is_igvm = _value(options, "igvm") is not None
    oem.check_trusted(strings, _value(options, "platform") or "", grammar, is_igvm=is_igvm)
    if delivery.channel is Channel.COMMAND:
        start = _by_command(kept, strings, grammar)
    else:
        start = _by_api(kept, strings, request, vm)
    notes = [] if delivered else [_NO_CREDENTIALS]
    if start.document and start.document.get("landlock_enable"):
        notes.append(_LANDLOCK)
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
    )


def _initrd(
    options: list[Option], credentials: Sequence[Credential], delivery: Delivery
) -> tuple[Initrd | None, list[Option]]:
    """The credentials for the initrd, and the options with ``--initramfs`` changed to the extended copy."""
    sealed = tuple(credential for credential in credentials if not delivery.is_oem(credential.kind))
    if not sealed:
        return None, options
    initrd.check(sealed)
    initramfs = _value(options, "initramfs")
    # With firmware or an IGVM file, cloud-hypervisor loads no initramfs.
    if initramfs is None or any(option.name in {"firmware", "igvm"} for option in options):
        raise usage(
            f"there is no --initramfs that credential {sealed[0].name} could travel in",
            "boot the guest with --kernel and an initrd that runs systemd, or say initrd = false",
        )
    named = cmdline.Option("initramfs", (initrd.PATH,), ("--initramfs", initrd.PATH))
    return Initrd(initramfs, sealed), [named if option.name == "initramfs" else option for option in options]


def _by_command(options: Sequence[Option], credentials: Sequence[Credential], grammar: Grammar) -> Start:
    strings = [credential.string.reveal().decode() for credential in credentials]
    words = _merged(options, strings, grammar)
    oem.check_arguments(words)
    return Start(
        words=words,
        shown=_merged(options, [credential.redacted for credential in credentials], grammar),
        api=_api_socket(options, grammar),
    )


def _by_api(
    options: Sequence[Option], credentials: Sequence[Credential], request: Request, vm: str | None
) -> Start:
    from credferry.launcher.hypervisor import (  # noqa: PLC0415 (the command channel does not need it)
        vmconfig,
    )

    config = vmconfig.convert(options, request.major)
    strings = [credential.string.reveal().decode() for credential in credentials]
    body = Secret(json.dumps(_document(config, strings), ensure_ascii=False, separators=(",", ":")).encode())
    oem.check_body(len(body.reveal()), credentials, request.major)
    words = config.vmm
    api = _api_socket(options, Grammar.of(request.major))
    private = api is None
    if api is None:
        runtime = request.runtime or os.path.join("/run", RUNTIME_PARENT, vm or _UNKNOWN_VM)
        api = Endpoint(os.path.join(runtime, _API_SOCKET), None)
        words = (*words, "--api-socket", f"path={api.path}")
    return Start(
        words=words,
        shown=words,
        api=api,
        document=_document(config, [credential.redacted for credential in credentials]),
        body=body,
        add_net=config.add_net,
        private_api=private,
    )


def _document(config: ConvertedCommandLine, strings: Sequence[str]) -> dict[str, Any]:
    if not strings:
        return config.document
    platform = config.document.get("platform", {})
    merged = {**platform, "oem_strings": [*platform.get("oem_strings", ()), *strings]}
    return {**config.document, "platform": merged}


def _merged(options: Sequence[Option], strings: Sequence[str], grammar: Grammar) -> tuple[str, ...]:
    """The command line with these strings added to its ``--platform``. Nothing else changes."""
    if not strings:
        return tuple(word for option in options for word in option.words)
    words: list[str] = []
    platform: str | None = None
    for option in options:
        if option.name == "platform":
            platform = _merge(option.values[0], strings, grammar)
            words += ["--platform", platform]
        else:
            words += option.words
    if platform is None:
        words += ["--platform", _merge("", strings, grammar)]
    return tuple(words)


def _merge(platform: str, strings: Sequence[str], grammar: Grammar) -> str:
    try:
        return merge_oem_strings(platform, strings, grammar)
    except OptionError as error:
        raise usage(f"--platform cannot take credentials: {error}", "use the api channel") from None


def _existing(platform: str, grammar: Grammar) -> list[str]:
    try:
        return oem_strings(platform, grammar)
    except OptionError as error:
        raise usage(f"--platform cannot be read: {error}", "write it as cloud-hypervisor wants it") from None


def _check_disclosure(delivered: Delivered, options: Sequence[Option]) -> None:
    """Refuse options that would show a plaintext secret in arguments, in a log or on D-Bus."""
    secret = next((c.name for c in delivered.credentials if c.kind is Kind.PLAIN), None)
    if secret is None:
        return
    delivery = delivered.manifest.delivery
    if delivery.channel is Channel.COMMAND and not delivery.plaintext_in_argv:
        raise LaunchError(
            f"credential {secret} would be readable by everyone in /proc/PID/cmdline",
            hint="seal it for the guest, use the api channel, or set plaintext_in_argv if that is wanted",
            status=Exit.CREDENTIALS,
        )
    if any(option.is_verbose for option in options):
        raise usage(
            f"-v would make cloud-hypervisor log credential {secret}",
            "drop -v, or seal the credential for the guest",
        )
    bus = next((option for option in options if option.name.startswith("dbus-")), None)
    if bus is not None:
        raise usage(
            f"{bus.shown} would show credential {secret} to whoever may call cloud-hypervisor on D-Bus",
            "drop it, or seal the credential for the guest",
        )


def _check_text(argv: Sequence[str]) -> None:
    try:
        for word in argv:
            word.encode()
    except UnicodeEncodeError:
        raise usage(
            "a word of cloud-hypervisor's command line is not UTF-8", "it takes nothing else"
        ) from None


def _vm(request: Request, delivered: Delivered | None) -> str | None:
    named = request.vm
    if delivered is None:
        own = request.argv0 or ""
        return named or (own.removeprefix(PROCESS_PREFIX) if own.startswith(PROCESS_PREFIX) else None)
    if named is not None and named != delivered.manifest.vm:
        raise LaunchError(
            f"the credentials are those of VM {delivered.manifest.vm}, not of {named}",
            hint="correct --vm, or the unit's LoadCredentialEncrypted=",
            status=Exit.CREDENTIALS,
        )
    return delivered.manifest.vm


def _value(options: Sequence[Option], name: str) -> str | None:
    return next((option.values[0] for option in options if option.name == name), None)


def _api_socket(options: Sequence[Option], grammar: Grammar) -> Endpoint | None:
    value = _value(options, "api-socket")
    try:
        return _endpoint(value, grammar, "--api-socket")
    except LaunchError:
        # A value without path= and fd= is a bare path (cloud-hypervisor main.rs, parse_api_socket).
        return Endpoint(value, None)


def _endpoint(value: str | None, grammar: Grammar, option: str) -> Endpoint | None:
    if value is None:
        return None
    try:
        found = parse(value, {"path", "fd"}, grammar)
        if found.get("fd"):
            return Endpoint(None, _descriptor(plain(found["fd"], grammar)))
        if found.get("path"):
            return Endpoint(plain(found["path"], grammar), None)
    except ValueError:
        pass
    raise usage(f"{option} has neither path= nor fd=", "give it one")


def _descriptor(digits: str) -> int:
    """A descriptor's number, or -1 for text that cannot be one. The start refuses -1."""
    number = int(digits) if digits.isascii() and digits.isdigit() else -1
    return number if number <= _DESCRIPTOR_MAX else -1
