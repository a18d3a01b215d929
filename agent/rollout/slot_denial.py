# SPDX-License-Identifier: MIT
"""Why a VM got no slot of its fleet, in words: a pure function of the engine's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from credferry.agent.fleet.model import Full, Halted, Slot, Unavailable

if TYPE_CHECKING:
    from credferry.agent.fleet.model import Acquired

_HELD_MAX: Final = 5
"""Of how many VMs a message says that they hold slots."""


def denial(group: str, found: Acquired) -> tuple[str, str]:
    """What stays the same while the VM waits, and what may change; both are empty if there is a slot."""
    match found:
        case Full(held=held, limit=limit, said=said):
            names = [each.holder.name if isinstance(each, Slot) else "an unreadable slot" for each in held]
            more = f" and {len(held) - _HELD_MAX} more" if len(held) > _HELD_MAX else ""
            holders = f"{', '.join(names[:_HELD_MAX])}{more}"
            detail = f"{len(held)} of {limit} slots are held: {holders}" if limit is not None else said
            return f"until group {group} of its fleet has a free slot", detail
        case Halted(halt):
            return (
                f"until group {group} of its fleet is resumed; it was halted for {halt.text}",
                f"once that is corrected: credferry fleet resume {group}",
            )
        case Unavailable(reason, hint):
            return "until its fleet's engine can be used", f"{reason}: {hint}"
        case _:
            return "", ""
