# SPDX-License-Identifier: MIT
"""Who restarts VMs when a secret changes: credferry, what people would do instead, and the limit."""

from __future__ import annotations

import random
import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from benchmarks.bed import AGENT, CONTENDER, IDLE, INSIDE
from benchmarks.results import CREDFERRY, LIMIT, PATH_UNIT, POLLING, SHELL

if TYPE_CHECKING:
    from benchmarks.bed import Bed, World

POLL_SECONDS = 1.0
_SHELL_STORE = "/var/lib/bench-shell"
_EVIDENCE = """\
ExecStartPre=-+/usr/bin/install -D -m 0600 ${CREDENTIALS_DIRECTORY}/credferry_manifest \
/run/credferry-evidence/%i@${INVOCATION_ID}
ExecStopPost=-+/usr/bin/rm -f /run/credferry-evidence/%i@${INVOCATION_ID}
"""
"""As in contrib's drop-in for a VM."""


class Contender(ABC):
    """One way to do it. ``unit`` is what its processes are in."""

    name: ClassVar[str]
    unit: ClassVar[str] = CONTENDER
    patience: ClassVar[float] = 10.0
    """Seconds after which a change counts as missed."""
    drop_in: ClassVar[str] = "[Service]\nLoadCredential=plain:/run/secrets/%i.0\n"
    """How a VM gets what it is started with."""

    def begin(self, bed: Bed, world: World) -> None:
        """Take over: start, and the VMs with it."""
        bed.wire(world, self.drop_in + self.command(world))
        self.prepare(bed, world)
        bed.restart(world)
        self.start(bed, world)
        self.rest(bed, world)

    def command(self, world: World) -> str:  # noqa: ARG002 (for those whose VMs are started another way)
        """What else the VMs' unit needs."""
        return ""

    def prepare(self, bed: Bed, world: World) -> None:  # noqa: B027 (most need nothing)
        """What must be done before the VMs can start."""

    @abstractmethod
    def start(self, bed: Bed, world: World) -> None:
        """Begin to watch."""

    def rest(self, bed: Bed, world: World) -> None:  # noqa: ARG002 (for those that have more to wait for)
        """Wait until what the last change has caused is over."""
        bed.rest(self.unit)

    def end(self, bed: Bed) -> None:
        """Stop."""
        bed.stop(self.unit)

    def wait(self) -> None:  # noqa: B027 (an event comes when it comes)
        """Before a change: what the next look is not in step with."""


class Credferry(Contender):
    """The agent, as its unit runs it."""

    name = CREDFERRY
    unit = AGENT
    drop_in = "[Service]\nLoadCredentialEncrypted=credferry:/var/lib/credferry/vms/%i/current\n" + _EVIDENCE

    def prepare(self, bed: Bed, world: World) -> None:
        """Seal, and have all VMs run with it."""
        # Another contender's drop-in leaves records. A VM with two of its starts is always asked about.
        bed.host.run("rm", "-rf", "/run/credferry-evidence")
        # The agent asks systemd more about units that keep no evidence.
        bed.host.write(
            f"/etc/systemd/system/{IDLE.format('')}.d/50-evidence.conf", "[Service]\n" + _EVIDENCE
        )
        bed.host.run("systemctl", "daemon-reload")
        bed.host.run("credferry", "agent", "--once")
        lines = "".join(f"{vm} {unit}\n" for vm, unit in world.idle.items())
        bed.host.run(sys.executable, "-I", f"{INSIDE}/stamps.py", stdin=lines)

    def start(self, bed: Bed, world: World) -> None:  # noqa: ARG002 (the base's)
        """Start the agent; it is ready after its first look."""
        bed.host.run("systemctl", "start", AGENT)

    def rest(self, bed: Bed, world: World) -> None:
        """Wait until the restart is judged, too: as long as anything changes, it looks at random moments."""
        bed.rest(self.unit, f"{world.vms} in step")


class ShellAgent(Contender):
    """`inside/shell_agent.sh`: the same, by a competent person."""

    name = SHELL
    drop_in = "[Service]\nLoadCredentialEncrypted=shell:/var/lib/bench-shell/%i\n"
    patience = 180.0

    def prepare(self, bed: Bed, world: World) -> None:
        """Have it seal, for the VMs that run something: a process for each of all secrets takes minutes."""
        patterns = "".join(f" -e ' {name}[.]'" for name in world.names)
        known = f"sha256sum -- * | grep -v{patterns} >{_SHELL_STORE}/sums || :"
        bed.host.run("bash", "-c", f"mkdir -p {_SHELL_STORE} && cd /run/secrets/. && {known}")
        bed.start_contender(f"{INSIDE}/shell_agent.sh", world.unit)
        last = bed.host.path(f"{_SHELL_STORE}/{world.names[-1]}")
        bed.host.wait(
            lambda: last.is_dir() and len(list(last.iterdir())) == world.each, 120, "the first look"
        )
        bed.rest(self.unit)

    def start(self, bed: Bed, world: World) -> None:
        """Nothing: it runs."""


class PathUnit(Contender):
    """A .path unit on the source's parent, as PathModified= of the link itself does not fire at all.

    It cannot tell what has changed, so all VMs are restarted.
    """

    name = PATH_UNIT
    patience = 3.0

    def start(self, bed: Bed, world: World) -> None:  # noqa: ARG002 (the base's)
        """Have systemd watch."""
        service = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\n"
        service += "ExecStart=systemctl --no-block try-restart bench-light@* bench-idle@* bench-vmm@*\n"
        bed.host.write("/etc/systemd/system/bench-path.service", service)
        bed.host.write("/etc/systemd/system/bench-path.path", "[Path]\nPathModified=/run\n")
        bed.host.run("systemctl", "daemon-reload")
        bed.host.run("systemctl", "start", "bench-path.path")

    def end(self, bed: Bed) -> None:
        """Stop."""
        bed.stop("bench-path.path", "bench-path.service")


class Polling(Contender):
    """`inside/polling.sh`, once a second."""

    name = POLLING

    def start(self, bed: Bed, world: World) -> None:
        """Start the loop."""
        bed.start_contender(f"{INSIDE}/polling.sh", world.unit, str(POLL_SECONDS))

    def wait(self) -> None:
        """Anywhere within its period."""
        time.sleep(random.uniform(0, POLL_SECONDS))  # noqa: S311 (guards nothing)


class Limit(Contender):
    """`inside/limit.py`: an event, a call."""

    name = LIMIT

    def start(self, bed: Bed, world: World) -> None:
        """Start it, for the first VM."""
        unit = world.unit.format("v0")
        bed.start_contender("/usr/bin/python3", "-IS", f"{INSIDE}/limit.py", "/run", "secrets", unit)
