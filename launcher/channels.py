# SPDX-License-Identifier: MIT
"""How each channel starts a VM: by cloud-hypervisor's command line, or by a document over its API."""

from __future__ import annotations

import os
from itertools import pairwise

from credferry.launcher import oem, plainjson
from credferry.launcher.errors import LaunchError, usage
from credferry.launcher.handoff import Channel, Secret, oem_size
from credferry.launcher.hypervisor.options import (
    Grammar,
    OptionError,
    merge_oem_strings,
    parse,
    plain,
)
from credferry.launcher.hypervisor.options import (
    words as words_of,
)
from credferry.launcher.record import FrozenRecord, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from credferry.launcher.credentials import Credential
    from credferry.launcher.hypervisor.cmdline import Option
    from credferry.launcher.hypervisor.vmconfig import AddNet, ConvertedCommandLine

_API_SOCKET: Final = "api.sock"
_NEW_LIST: Final = len('"platform":{"oem_strings":[]},')
"""The most bytes that the first string takes besides itself."""
_DESCRIPTOR_MAX: Final = (1 << 31) - 1


class Endpoint(FrozenRecord):
    """``path=…`` or ``fd=N``, as ``--api-socket`` and ``--event-monitor`` take it."""

    path: str | None
    fd: int | None


class Start(FrozenRecord):
    """How one channel starts the VM. ``words`` follow argv[0]; ``shown`` are the same words, redacted.

    ``room`` are the bytes that this start has for credferry's strings (`Stamp.room`).

    They do not contain ``--event-monitor`` yet: its descriptor is known only at the start.
    """

    words: tuple[str, ...] = field(repr=False)
    shown: tuple[str, ...] = field(repr=False)
    api: Endpoint | None
    document: dict[str, Any] | None = field(default=None, repr=False)
    body: Secret | None = None
    add_net: tuple[AddNet, ...] = ()
    private_api: bool = False
    room: int = 0


def by_command(options: Sequence[Option], credentials: Sequence[Credential], grammar: Grammar) -> Start:
    """The start by the command line, with the credentials in it. Raises `LaunchError`."""
    strings = [credential.string.reveal().decode() for credential in credentials]
    words = _merged(options, strings, grammar)
    oem.check_arguments(words)
    return Start(
        words=words,
        shown=_merged(options, [credential.redacted for credential in credentials], grammar),
        api=_api_socket(options, grammar),
        room=_room(Channel.COMMAND, oem.ARGUMENT_MAX, max(_sizes(words)), strings),
    )


def by_api(
    options: Sequence[Option],
    credentials: Sequence[Credential],
    major: int,
    runtime: str | os.PathLike[str],
) -> Start:
    """The start over the API of a cloud-hypervisor of this major version. Raises `LaunchError`.

    ``runtime`` is the directory for an API socket of the launcher's own, if the command line names none.
    """
    from credferry.launcher.hypervisor import (  # noqa: PLC0415 (the command channel does not need it)
        vmconfig,
    )

    config = vmconfig.convert(options, major)
    strings = [credential.string.reveal().decode() for credential in credentials]
    body = Secret(plainjson.dumps(_document(config, strings)).encode())
    oem.check_body(len(body.reveal()), credentials, major)
    words = config.vmm
    api = _api_socket(options, Grammar.of(major))
    private = api is None
    if api is None:
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
        room=_room(Channel.API, oem.body_max(major), len(body.reveal()), strings),
    )


def _sizes(words: Sequence[str]) -> list[int]:
    """Bytes of each ``--platform`` value with its NUL; 1 if there is none."""
    return [1, *(len(os.fsencode(value)) + 1 for name, value in pairwise(words) if name == "--platform")]


def _room(channel: Channel, limit: int, used: int, strings: Sequence[str]) -> int:
    """Bytes that credferry's strings may take, if a start that has ``strings`` uses so many bytes."""
    taken = channel.room_taken(oem_size(string.encode() for string in strings), len(strings))
    return max(1, limit - used + taken - (0 if strings else _NEW_LIST))


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
        raise usage(f"cannot add credentials to --platform: {error}", "use the api channel") from None


def value_of(options: Sequence[Option], name: str) -> str | None:
    """The first value of an option, or None if the command line does not have the option."""
    return next((option.values[0] for option in options if option.name == name), None)


def vsock_path(options: Sequence[Option], grammar: Grammar) -> str | None:
    """The socket that ``--vsock`` names; None if it names none, which cloud-hypervisor itself refuses."""
    try:
        found = dict(words_of(value_of(options, "vsock") or "", grammar)).get("socket")
    except ValueError:
        return None
    return plain(found, grammar) if found else None


def _api_socket(options: Sequence[Option], grammar: Grammar) -> Endpoint | None:
    value = value_of(options, "api-socket")
    try:
        return endpoint(value, grammar, "--api-socket")
    except LaunchError:
        # A value without path= and fd= is a bare path (cloud-hypervisor main.rs, parse_api_socket).
        return Endpoint(value, None)


def endpoint(value: str | None, grammar: Grammar, option: str) -> Endpoint | None:
    """What the value of ``option`` names; None for no value. Raises `LaunchError` (USAGE)."""
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
    raise usage(f"{option} has no path= and no fd=", "give one of them")


def _descriptor(digits: str) -> int:
    """A descriptor's number, or -1 for text that cannot be one. The start refuses -1."""
    number = int(digits) if digits.isascii() and digits.isdigit() else -1
    return number if number <= _DESCRIPTOR_MAX else -1
