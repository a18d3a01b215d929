# SPDX-License-Identifier: MIT
"""polkit's rule for an agent that is not root: it may restart the configured VMs.

systemd tells polkit the unit and the verb, and not the job's mode: SECURITY.md says what that leaves.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from credferry.agent.systemd.units import HEALTH_UNIT, restart_unit

if TYPE_CHECKING:
    from credferry.agent.config.model import Config

_RESTARTS = ("try-restart",)
"""What the agent asks of a VM's unit, in polkit's words (systemd, src/core/dbus-manager.c, ``verb``).

Not ``restart``, which starts what an operator has stopped: `restart_unit` does that for what has failed.
"""
_STARTS = ("start",)

# ECMAScript 5 is what both of polkit's interpreters take, mozjs and duktape. A call may come without a unit
# (StartTransientUnit does). It says NO, as a rule that comes later could say YES.
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
    """The rule by which a user may restart the units of a configuration's VMs, and check their health."""
    granted: dict[str, tuple[str, ...]] = {vm.unit: _RESTARTS for vm in config.vms.values()}
    granted |= {restart_unit(vm.unit): _STARTS for vm in config.vms.values()}
    granted |= {HEALTH_UNIT.format(vm=vm.name): _STARTS for vm in config.vms.values() if vm.health}
    # A path is the one thing here that may hold anything, an end of line included.
    return _RULE.format(
        file=ascii(str(config.file))[1:-1],
        granted=json.dumps(granted, indent=8).replace("\n}", "\n    }"),
        user=json.dumps(user),
    )
