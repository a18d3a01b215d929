# SPDX-License-Identifier: MIT
"""The facts that the audit holds, each with a fixed MESSAGE_ID, which the journal's catalogue explains."""

from __future__ import annotations

import enum
import syslog

from credferry.launcher.handoff import (
    MESSAGE_ID_GUEST_REBOOT,
    MESSAGE_ID_LAUNCH_REFUSED,
    MESSAGE_ID_LAUNCH_WARNING,
    MESSAGE_ID_LAUNCHED,
)


class Event(enum.Enum):
    """A kind of fact. The value is its MESSAGE_ID, which never changes."""

    AGENT_STARTED = "2dd81042df244fed8c8abccff1c07e84"
    AGENT_STOPPED = "990a8db22b7b4ac69d65ba6d746225db"
    CONFIGURATION = "efe135d978f84e3280cc0513a60c2b51"
    SOURCE_LOST = "cd42da9f45b140f3844f41f2be2d0cce"
    SOURCE_BACK = "d4ea00e8f0be4990b7877fb1851f9878"
    HOST_KEY = "2734ba8d83d14d99825b641f8cf177ed"
    PUBLISHED = "007fb617e36d4469af80831a20b706d9"
    SEALED = "21b441b55c074bce9c848be83f4f2f52"
    REFUSED = "6083fe10359e46a78d25b4dad432d3e2"
    WAITING = "f979b25d9ee14f3e88e2e0c725722622"
    REFUSAL_OVER = "ce500167a17d4e8c9d21cc9e1c3bbae7"
    RESTART_ASKED = "818bb249dd58407286f28ad7123d5c1b"
    RESTARTED = "db001a038d8b4a0584d28a46c6469559"
    RESTART_FAILED = "965f8815862c4afabbdc41fc2febce98"
    PUSH_ASKED = "771daad096d94cbd8832b1334cd4683b"
    PUSHED = "30bc93bbe8274de3b52867ded576f7dd"
    PUSH_FAILED = "af46ad5c40104b05b1d75a5bbdb8c898"
    HALTED = "b5e06340c3a5435b864a12cbd61ce8dd"
    ROLLED_BACK = "0f8fb849bee54e919990b05f2d85583e"
    ROLLBACK_FAILED = "1bee5d8ea37c4545a3260c979db5ad69"
    HELD = "7d9c98c7da4348d4b33410d6491df0df"
    RELEASED = "f1c62453978a4db2807d2f6fd48fa401"
    ORDERED = "76b3c7d6a8144658b5ea6119ed64bb72"
    ORDER_DROPPED = "8dda6df7e83447d4912641f3d60b57d9"
    FLEET_ORDERED = "4a9f48660d3640aa87ef5c77b391883f"
    LAUNCHED = MESSAGE_ID_LAUNCHED
    LAUNCH_REFUSED = MESSAGE_ID_LAUNCH_REFUSED
    LAUNCH_WARNING = MESSAGE_ID_LAUNCH_WARNING
    GUEST_REBOOT = MESSAGE_ID_GUEST_REBOOT

    @property
    def priority(self) -> int:
        """The syslog priority of its records."""
        return _PRIORITIES.get(self, syslog.LOG_NOTICE)

    @property
    def label(self) -> str:
        """The event's name for people."""
        return self.name.lower().replace("_", " ")


_PRIORITIES = {
    Event.AGENT_STARTED: syslog.LOG_INFO,
    Event.AGENT_STOPPED: syslog.LOG_INFO,
    Event.CONFIGURATION: syslog.LOG_INFO,
    Event.WAITING: syslog.LOG_INFO,
    Event.SOURCE_LOST: syslog.LOG_ERR,
    Event.HOST_KEY: syslog.LOG_WARNING,
    Event.REFUSED: syslog.LOG_WARNING,
    Event.RESTART_FAILED: syslog.LOG_ERR,
    Event.PUSH_FAILED: syslog.LOG_WARNING,
    Event.HALTED: syslog.LOG_WARNING,
    Event.ROLLED_BACK: syslog.LOG_WARNING,
    Event.ROLLBACK_FAILED: syslog.LOG_ERR,
    Event.ORDER_DROPPED: syslog.LOG_WARNING,
    Event.LAUNCH_REFUSED: syslog.LOG_ERR,
    Event.LAUNCH_WARNING: syslog.LOG_WARNING,
}


class Order(enum.StrEnum):
    """What an operator may order for a VM; the values are the verbs of the command."""

    ROTATE = "rotate"
    """What is sealed, by a push to a live VM, else by a restart."""
    RESTART = "restart"
    """What is sealed, by a restart."""
    ROLL_BACK = "rollback"
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    APPROVE = "approve"
    """What is sealed for a VM whose policy wants that."""
