# SPDX-License-Identifier: MIT
"""Converts a cloud-hypervisor command line to the ``vm.create`` document and an idle VMM's own options.

The document holds the keys that the command line sets. It also holds the keys that JSON requires and for
which the command line's parser has a default. All other keys have the same default in both. This module
refuses an unknown option by name: without the option, the VM would be a different one.
"""

from __future__ import annotations

from credferry.launcher.errors import usage
from credferry.launcher.hypervisor import releases, schema
from credferry.launcher.hypervisor.vmobject import WAY_OUT, build, check_known
from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from credferry.launcher.hypervisor.cmdline import Option

    Document = dict[str, Any]

_ZONES_INHERIT_SINCE: Final = 52


class AddNet(FrozenRecord):
    """A network device to add with ``vm.add-net``, as ``vm.create`` drops descriptors."""

    config: Document
    fds: tuple[int, ...]


class ConvertedCommandLine(FrozenRecord):
    """A converted command line: the document, the networks to add after it, the idle VMM's own words."""

    document: Document
    add_net: tuple[AddNet, ...]
    vmm: tuple[str, ...]


class _Parts:
    def __init__(self) -> None:
        self.document: Document = {}
        self.payload: Document = {}
        self.nets: list[Document] = []
        self.zones: list[Document] = []


def convert(options: Sequence[Option], major: int) -> ConvertedCommandLine:
    """The same VM for a cloud-hypervisor of this major version. Raises `LaunchError` (USAGE)."""
    if major < releases.OLDEST:
        raise usage(
            f"cloud-hypervisor {major} is older than {releases.OLDEST}",
            "use a newer one, or seal the values for the guest and use the command channel",
        )
    parts = _Parts()
    vmm: list[str] = []
    seen: set[str] = set()
    for option in options:
        if option.name in seen and major < releases.LISTS_REPEAT_SINCE and not option.is_verbose:
            raise usage(
                f"{option.shown} is given more than once",
                f"cloud-hypervisor {major} takes it only once: write all values after one {option.shown}",
            )
        seen.add(option.name)
        check_known(option.name, "", major)
        if option.name in schema.VMM_OWNED or option.is_verbose:
            vmm.extend(option.words)
        else:
            _take(parts, option, major)
    if parts.payload:
        parts.document["payload"] = parts.payload
    _add_zones(parts, major)
    _validate(parts.document, major)
    # To keep the devices' order, all networks from the first with a descriptor on are added later.
    first = next((index for index, net in enumerate(parts.nets) if "fds" in net), len(parts.nets))
    if parts.nets[:first]:
        parts.document["net"] = parts.nets[:first]
    added = tuple(AddNet(net, tuple(net.pop("fds", ()))) for net in parts.nets[first:])
    return ConvertedCommandLine(parts.document, added, tuple(vmm))


def _take(parts: _Parts, option: Option, major: int) -> None:
    name = option.name
    if name in schema.PAYLOAD:
        parts.payload[name] = option.values[0]
    elif name in schema.SWITCHES:
        parts.document[schema.SWITCHES[name]] = True
    elif name in schema.SECTIONS:
        value = option.values[0] if option.values else ""
        parts.document[schema.SECTIONS[name]] = build(name, value, major)
    elif name in schema.OPTIONS:
        objects = [build(name, value, major) for value in option.values]
        match name:
            case "net":
                parts.nets += objects
            case "memory-zone":
                parts.zones += objects
            case _:
                parts.document.setdefault(schema.LISTS[name], []).extend(objects)
    else:
        raise usage(f"{option.shown} is not known to the api channel", WAY_OUT)


def _add_zones(parts: _Parts, major: int) -> None:
    if not parts.zones:
        return
    memory = parts.document.setdefault("memory", dict(schema.FORCED["memory"]))
    memory["zones"] = parts.zones
    if memory.get("mergeable") and major >= _ZONES_INHERIT_SINCE:
        for zone in parts.zones:
            zone.setdefault("mergeable", True)


def _validate(document: Document, major: int) -> None:
    """Refuse what the command line refuses at once, and what over the API only ``vm.boot`` would refuse."""
    payload = document.get("payload", {})
    if "firmware" in payload:
        if "kernel" in payload:
            raise usage(
                "--firmware and --kernel are both given",
                "cloud-hypervisor boots only one of them: remove the other",
            )
        payload.pop("cmdline", None)
        payload.pop("initramfs", None)
    elif "kernel" not in payload:
        raise usage("neither --kernel nor --firmware is given", "there is nothing to boot: give one")
    memory = document.get("memory", {})
    if major >= _ZONES_INHERIT_SINCE:
        for option, part in (("--memory", memory), *(("--memory-zone", z) for z in memory.get("zones", ()))):
            if part.get("mergeable") and part.get("shared"):
                raise usage(f"{option} is both mergeable and shared", "set mergeable=off or shared=off")
