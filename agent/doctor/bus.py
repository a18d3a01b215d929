# SPDX-License-Identifier: MIT
"""D-Bus: whether systemd can be reached, and whether the agent may ask it for restarts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.bus.names import BUS
from credferry.agent.control.interface import NAME
from credferry.agent.doctor import probe
from credferry.agent.doctor.chain import AGENT
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.errors import BusError
from credferry.agent.systemd.polkit import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

RULE: Final = "/etc/polkit-1/rules.d/50-credferry.rules"
_POLICIES: Final = ("/etc/dbus-1/system.d", "/usr/share/dbus-1/system.d")
_RULES: Final = ("/etc/polkit-1/rules.d", "/run/polkit-1/rules.d", "/usr/share/polkit-1/rules.d")


def check(_chain: Chain) -> Iterator[Finding]:
    """Whether systemd answers."""
    from credferry.agent.systemd.manager import (  # noqa: PLC0415 (GObject's introspection takes long to load)
        SystemBus,
    )

    try:
        SystemBus().close()
    except BusError as error:
        yield problem(
            "bus",
            str(error),
            why="the agent seals what is published, but can restart no VM",
            remedy=error.hint,
            commands=["systemctl start dbus.socket dbus.service"],
        )
    else:
        yield ok("bus", "systemd answers on the system bus")


def check_name(_chain: Chain) -> Iterator[Finding]:
    """Whether a running agent owns its name on the bus."""
    if probe.unit(AGENT)["ActiveState"] != "active":
        return
    ask = ("call", *BUS, BUS[0], "NameHasOwner", "s", NAME)
    answer = probe.quiet_lines("busctl", *ask)
    if not answer:
        raise UnseenError(f"who has the name {NAME}")
    if answer[0] == "b true":
        yield ok("bus.name", f"the agent is {NAME} on the bus")
        return
    is_there = any((Path(each) / f"{NAME}.conf").exists() for each in _POLICIES)
    again = ["systemctl reload dbus.service", f"systemctl restart {AGENT}"]
    yield hint(
        "bus.name",
        f"the agent runs, but it does not own the name {NAME} on the bus",
        why="the agent seals and restarts, but nobody can control or follow it over the bus",
        remedy="make the bus read its policy again (it names the agent's user); then restart the agent"
        if is_there
        else "import credferry's host module, and switch"
        if probe.is_nixos()
        else f"install {NAME}.conf, from contrib/dbus, into /usr/share/dbus-1/system.d",
        commands=again if is_there else (),
    )


def check_polkit(chain: Chain) -> Iterator[Finding]:
    """Whether polkit lets an agent that is not root restart the configured VMs, and push to live ones."""
    user = chain.agent_user
    if user == "root":
        yield ok("bus.polkit", "the agent is root: systemd does what it asks")
        return
    if chain.error is not None:
        raise UnseenError("which units polkit's rule must name")
    wanted = _body(rule(chain.config, user))
    found = [_body(text) for text in _texts()]
    if wanted in found:
        pushes = " and push to the live ones" if any(vm.live for vm in chain.config.vms.values()) else ""
        yield ok("bus.polkit", f"polkit lets {user} restart the configured VMs{pushes}")
        return
    is_old = any(f'subject.user !== "{user}"' in text for text in found)
    file = shlex.quote(str(chain.file))
    made = f"credferry polkit-rule --config {file} --user {user}"
    yield problem(
        "bus.polkit",
        f"the polkit rule for {user} does not match the present configuration"
        if is_old
        else f"there is no polkit rule for {user}, the agent's user",
        why="polkit refuses restarts of some or all VMs, or pushes to them: Interactive authentication "
        "required, or Access denied",
        remedy="set services.credferry.unprivileged = true, which makes the rule; then switch"
        if probe.is_nixos()
        else f"write the rule again and make polkit read it; {AGENT} then retries without further action",
        commands=()
        if probe.is_nixos()
        else [
            f"{made} >{RULE}.new",
            f"chmod 0644 {RULE}.new",
            f"mv {RULE}.new {RULE}",
            "systemctl try-restart polkit.service",
        ],
    )


def _texts() -> Iterator[str]:
    for directory in _RULES:
        try:
            paths = sorted(Path(directory).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise UnseenError(directory) from None
        for path in paths:
            if path.suffix == ".rules":
                yield probe.text_of(path) or ""


def _body(text: str) -> str:
    """A rule without its first line, which names the configuration file."""
    return text.partition("\n")[2]
