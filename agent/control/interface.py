# SPDX-License-Identifier: MIT
"""The agent's D-Bus interface: its names, its errors, and the introspection data of its objects."""

from __future__ import annotations

from credferry.agent.bus.names import MANAGER_INTERFACE, label
from credferry.agent.errors import (
    BusError,
    ConfigurationError,
    CredferryError,
    KeyFileError,
    SourceError,
    StoreError,
    UnknownVmError,
)

NAME = "org.credferry.Agent1"
PATH = "/org/credferry/Agent1"
AGENT_INTERFACE = "org.credferry.Agent1"
VM_INTERFACE = "org.credferry.VM1"
ERRORS: dict[str, type[CredferryError]] = {
    "UnknownVm": UnknownVmError,
    "Configuration": ConfigurationError,
    "Key": KeyFileError,
    "NoSource": SourceError,
    "Store": StoreError,
    "Systemd": BusError,
}
"""Names after the prefix, for errors without a ``kind`` attribute; an `OrderError` has one."""
INTERNAL = "Internal"
"""The name after the prefix for an unexpected error."""

_CONSTANT = '<annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/>'


def _method(name: str, takes: str = "", gives: str = "") -> str:
    arguments = "".join(
        f'<arg name="{each.partition(":")[0]}" type="{each.partition(":")[2]}" direction="{direction}"/>'
        for direction, said in (("in", takes), ("out", gives))
        for each in said.split()
    )
    return f'<method name="{name}">{arguments}</method>'


def _signal(name: str, *arguments: str) -> str:
    inner = "".join(
        f'<arg name="{each.partition(":")[0]}" type="{each.partition(":")[2]}"/>' for each in arguments
    )
    return f'<signal name="{name}">{inner}</signal>'


def _properties(types: dict[str, str], constant: set[str]) -> str:
    return "".join(
        f'<property name="{name}" type="{kind}" access="read">'
        f"{_CONSTANT if name in constant else ''}</property>"
        for name, kind in types.items()
    )


AGENT_PROPERTIES = {"Version": "s", "Configuration": "s", "ConfigurationId": "s", "VMs": "a{ss}"}
VM_PROPERTIES = {
    "Name": "s",
    "Unit": "s",
    "UnitState": "s",
    "State": "s",
    "Reasons": "as",
    "Since": "t",
    "Sealed": "u",
    "Running": "u",
    "Held": "b",
    "LastResult": "s",
    "System": "s",
    "Arrived": "s",
    "Next": "s",
    "NextReason": "s",
    "Order": "s",
    "OrderResult": "s",
}
SIGNALS = {
    "Published": ("vm:s", "run:s"),
    "Sealed": ("vm:s", "generation:u", "run:s"),
    "Restarted": ("vm:s", "generation:u", "run:s"),
    "RestartFailed": ("vm:s", "generation:u", "run:s"),
    "Pushed": ("vm:s", "generation:u", "run:s"),
    "PushFailed": ("vm:s", "generation:u", "run:s"),
    "RolledBack": ("vm:s", "generation:u", "run:s"),
    "Refused": ("vm:s",),
}

AGENT_XML = (
    f'<node><interface name="{AGENT_INTERFACE}">'
    + _method("Sync")
    + _method("Reload")
    + _method("Plan", gives="steps:a(ssasas)")
    + _method("Order", "order:s vm:s reason:s", "run:s")
    + _method("OrderWithoutSlot", "order:s vm:s reason:s", "run:s")
    + _method("Approve", "vm:s change:s reason:s", "run:s")
    + "".join(_method(name, "vm:s") for name in ("Rotate", "Rollback", "Hold", "Release", "Retry"))
    + "".join(_signal(name, *arguments) for name, arguments in SIGNALS.items())
    + _properties(AGENT_PROPERTIES, {"Version"})
    + f'</interface><interface name="{MANAGER_INTERFACE}">'
    + _method("GetManagedObjects", gives="objects:a{oa{sa{sv}}}")
    + _signal("InterfacesAdded", "object:o", "interfaces:a{sa{sv}}")
    + _signal("InterfacesRemoved", "object:o", "interfaces:as")
    + "</interface></node>"
)
VM_XML = f'<node><interface name="{VM_INTERFACE}">{_properties(VM_PROPERTIES, {"Name"})}</interface></node>'


def vm_path(name: str) -> str:
    """The object path of a VM."""
    return f"{PATH}/vm/{label(name)}"
