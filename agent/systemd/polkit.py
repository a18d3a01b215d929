# SPDX-License-Identifier: MIT
"""polkit's rule for an agent that is not root: it may restart the configured VMs, and push to live ones.

systemd gives polkit the unit and the verb, but not the job's mode. SECURITY.md says what this allows.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from credferry.agent.systemd.units import HEALTH_UNIT, PUSH_UNIT, restart_unit

if TYPE_CHECKING:
    from credferry.agent.config.model import Config

_RESTARTS = ("try-restart",)
"""The agent's calls on a VM's unit, in polkit's words (systemd, src/core/dbus-manager.c, ``verb``).

Not ``restart``: that would also start a unit that an operator stopped. `restart_unit` starts failed units.
"""
_STARTS = ("start",)

# Both of polkit's interpreters, mozjs and duktape, accept ECMAScript 5. A call may come without a unit
# (StartTransientUnit does). The rule returns NO, because a later rule could return YES.
_RULE = """\
// Made by `credferry polkit-rule` from {file}: make it again when VMs or their units change.
polkit.addRule(function (action, subject) {{
    var granted = {granted};
    if (action.id !== "org.freedesktop.systemd1.manage-units" || subject.user !== {user})
        return polkit.Result.NOT_HANDLED;
    var unit = action.lookup("unit");
    var verbs = Object.prototype.hasOwnProperty.call(granted, unit) ? granted[unit] : [];
    return verbs.indexOf(action.lookup("verb")) < 0 ? polkit.Result.NO : polkit.Result.YES;
}});
"""


def rule(config: Config, user: str) -> str:
    """The rule that lets a user restart the units of a configuration's VMs, check their health, and push.

    It may also start the units that the configuration names before and after restarts.
    """
    granted: dict[str, tuple[str, ...]] = {vm.unit: _RESTARTS for vm in config.vms.values()}
    granted |= {restart_unit(vm.unit): _STARTS for vm in config.vms.values()}
    granted |= {HEALTH_UNIT.format(vm=vm.name): _STARTS for vm in config.vms.values() if vm.health}
    granted |= {PUSH_UNIT.format(vm=vm.name): _STARTS for vm in config.vms.values() if vm.live}
    for vm in config.vms.values():
        granted |= {vm.unit_of(each): _STARTS for each in vm.units.templates}
    # Only the path may contain any character, including a line end.
    return _RULE.format(
        file=ascii(str(config.file))[1:-1],
        granted=json.dumps(granted, indent=8).replace("\n}", "\n    }"),
        user=json.dumps(user),
    )
