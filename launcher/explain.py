# SPDX-License-Identifier: MIT
"""``--explain``: a plan as JSON, with every credential's value redacted."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from credferry.launcher.plan import Plan


def render(plan: Plan, *, real: str, version: str, events_fd: int) -> str:
    """What the launcher would execute and send. Shows the OEM strings that the command line already has."""
    credentials = plan.delivered.credentials if plan.delivered else ()
    return json.dumps(
        {
            "channel": plan.channel.value,
            "argv0": plan.argv0,
            "vmm": [real, *plan.start.shown, "--event-monitor", f"fd={events_fd}"],
            "vm_create": plan.start.document,
            "add_net": [{"config": net.config, "fds": list(net.fds)} for net in plan.start.add_net],
            "hypervisor_version": version,
            "credentials": [{"name": c.name, "kind": c.kind.value} for c in credentials],
            "initrd": plan.initrd
            and {"initramfs": plan.initrd.initramfs, "adds": [c.name for c in plan.initrd.credentials]},
            "notes": list(plan.notes),
        },
        indent=2,
        ensure_ascii=False,
    )
