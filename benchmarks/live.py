# SPDX-License-Identifier: MIT
"""What users feel: from a publication to a guest's service that answers with the value, and its silence.

The service is asked every ten milliseconds. It is silent from its last answer before its connection breaks
to its first one afterwards.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final

from benchmarks import guests
from benchmarks.bed import INSIDE, words
from benchmarks.guests import LAUNCHED, WRAPPED, Asked, Guests
from benchmarks.results import CREDFERRY, PATH_UNIT, SHELL, row
from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.host import Host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.guests import Outage, Service
    from benchmarks.results import Row

LIVE: Final = "publication to the guest's service answering with the new value"
SILENT: Final = "the guest's service does not answer"
BY_HAND: Final = "a push by hand"
RESTART: Final = "credferry, which restarts the VM"
BOOT: Final = "a restart of the VM alone"
CASE: Final = "1 secret, 1 VM with an emulated guest"

_HAND: Final = "bench-hand.service"
_READS_THE_SOURCE: Final = (
    "[Service]\nLoadCredential=shell_plain.K:/run/secrets/plain.K\nStartLimitIntervalSec=0\n"
)


class Way(ABC):
    """One way to bring a new value to a service in a guest."""

    name: ClassVar[str]
    service: ClassVar[Service] = guests.APP
    patience: ClassVar[float] = guests.SECONDS

    @abstractmethod
    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:
        """Take over; the service answers at the end. What is put on the stack is undone after the series."""

    def rotate(self, bed: Guests, asked: Asked, number: int) -> Outage:  # noqa: ARG002 (for pulls)
        """Publish a value, and wait until the service answers with it."""
        began, says = bed.publish(self.service)
        self.published(bed)
        return asked.wait(began, says, self.patience)

    def published(self, bed: Guests) -> None:  # noqa: B027 (most need nothing)
        """Right after the publication."""

    def rest(self, bed: Guests) -> None:  # noqa: B027 (most need nothing)
        """Wait until all that belongs to the last change is over."""


class Live(Way):
    """The agent pushes."""

    name = CREDFERRY
    live: ClassVar[bool] = True

    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:
        """Start the agent, and wait until the VM has what is published."""
        bed.configure(live=self.live)
        stack.callback(bed.host.run, "systemctl", "stop", "credferry.service")
        bed.deployment.start_agent()
        self.rest(bed)
        if self.live:  # the first push is not as the others
            self.rotate(bed, asked, 0)
            self.rest(bed)

    def rest(self, bed: Guests) -> None:
        """Wait until the change is judged."""
        bed.deployment.wait_in_step(LAUNCHED, guests.SECONDS)


class Restart(Live):
    """The agent restarts the VM."""

    name = RESTART
    live = False


class Boot(Way):
    """Nobody rotates anything: an operator restarts the VM's unit."""

    name = BOOT

    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:
        """Nothing: the VM runs."""

    def rotate(self, bed: Guests, asked: Asked, number: int) -> Outage:  # noqa: ARG002 (the base's)
        """Restart the unit, and wait until the service answers again."""
        began = time.time() * 1000
        bed.host.run("systemctl", "restart", f"microvm@{LAUNCHED}.service", timeout=guests.SECONDS)
        return asked.wait(began, None)


class ByHand(Way):
    """`inside/hand_push.sh`."""

    name = BY_HAND
    service = guests.HAND

    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:
        """Start the script, and wait for its first push."""
        stack.callback(bed.host.run, "systemctl", "stop", _HAND)
        socket = guests.socket_of(LAUNCHED)
        began, says = bed.publish(self.service)
        bed.host.run("systemd-run", f"--unit={_HAND}", f"{INSIDE}/hand_push.sh", "bench.k", socket)
        asked.wait(began, says)
        self.rotate(bed, asked, 0)


class Pull(Way):
    """`inside/pull.sh`: Vault Agent's way. The publications lie 10, 30 and 50 s before the next pull."""

    name = "a pull in the guest every 60 s"
    service = guests.PULLED
    before: ClassVar[Sequence[int]] = (10, 30, 50)

    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:  # noqa: ARG002 (the base's)
        """Have a program of the host answer what the guest asks."""
        listener = f"UNIX-LISTEN:{guests.socket_of(LAUNCHED)}_909,fork,mode=0666,unlink-early"
        serving = bed.host.spawn("socat", "-U", listener, "OPEN:/run/secrets/bench.k,rdonly")
        stack.callback(serving.wait, 20)
        stack.callback(serving.terminate)
        stack.callback(bed.tell, "systemctl stop 'pull@*.service' pulled.service")

    def rotate(self, bed: Guests, asked: Asked, number: int) -> Outage:
        """Start to pull so that the next one is so many seconds away."""
        pull = f"pull@{self.before[number % len(self.before)]}.service"
        began, says = bed.publish(self.service)
        bed.tell(f"systemctl stop 'pull@*.service'; systemctl start {pull}")
        asked.wait(began, says)
        return super().rotate(bed, asked, number)


class ShellAgent(Way):
    """`inside/shell_agent.sh`, and `inside/wrapper.sh` in place of the launcher."""

    name = f"{SHELL} + wrapper"
    service = guests.PLAIN

    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:
        """Have it seal, then start the VM with that."""
        stack.callback(bed.host.run, "systemctl", "stop", "bench-shell.service")
        bed.host.run("systemctl", "stop", f"microvm@{WRAPPED}.service", check=False, timeout=guests.SECONDS)
        began, says = bed.publish(self.service)
        bed.host.run("rm", "-rf", "/var/lib/bench-shell")
        program = (f"{INSIDE}/shell_agent.sh", "microvm@{}.service")
        bed.host.run("systemd-run", "--unit=bench-shell.service", *program)
        sums = bed.host.path("/var/lib/bench-shell/sums")
        bed.host.wait(lambda: sums.exists() and sums.stat().st_size, 60, "the first look")
        bed.wire(
            "[Service]\nLoadCredentialEncrypted=shell:/var/lib/bench-shell/%i\nStartLimitIntervalSec=0\n"
        )
        asked.wait(began, says)


class PathUnit(Way):
    """A .path unit on the source's parent."""

    name = PATH_UNIT
    service = guests.PLAIN
    patience = 60.0

    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:
        """Have systemd watch."""
        service = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\n"
        service += f"ExecStart=systemctl --no-block try-restart microvm@{WRAPPED}.service\n"
        bed.host.write("/etc/systemd/system/bench-path.service", service)
        bed.host.write("/etc/systemd/system/bench-path.path", "[Path]\nPathModified=/run\n")
        began, says = bed.publish(self.service)
        bed.wire(_READS_THE_SOURCE)
        asked.wait(began, says)
        stack.callback(bed.host.run, "systemctl", "stop", "bench-path.path", "bench-path.service")
        bed.host.run("systemctl", "start", "bench-path.path")


class RestartUnits(Way):
    """sops-nix's restartUnits, in an activation."""

    name = "sops-nix restartUnits"
    service = guests.PLAIN

    def begin(self, bed: Guests, asked: Asked, stack: ExitStack) -> None:  # noqa: ARG002 (the base's)
        """Have the VM read the source."""
        began, says = bed.publish(self.service)
        bed.wire(_READS_THE_SOURCE)
        asked.wait(began, says)

    def published(self, bed: Guests) -> None:
        """The activation goes on."""
        activation = (f"{INSIDE}/activation.sh", "changed", "microvm@{}.service")
        bed.host.run(*activation, timeout=guests.SECONDS)


# How many rotations a series has: each of those that restart a VM takes as long as its boot.
WAYS: Final[dict[Way, int]] = {
    Live(): 4,
    ByHand(): 4,
    Restart(): 3,
    Boot(): 3,
    ShellAgent(): 2,
    PathUnit(): 2,
    RestartUnits(): 2,
}
_ONCE: Final[dict[Way, int]] = {Pull(): 3}
"""What waits by design would fill the run with waiting."""
_ROUNDS: Final = 2


def measure(*, quick: bool) -> list[Row]:
    """All ways in turn, twice, with two guests under emulation."""
    every = {**WAYS, **_ONCE}
    taken: dict[str, list[list[Outage]]] = {each.name: [] for each in every}
    missed = dict.fromkeys(taken, 0)
    with Host(cache_directory()) as host:
        bed = Guests(host)
        for number in range(1 if quick else _ROUNDS):
            for way, times in WAYS.items() if number else every.items():
                series = _series(bed, way, 1 if quick else times)
                taken[way.name].append([each for each in series if each])
                missed[way.name] += series.count(None)
        bed.deployment.close()
    rows = []
    for measure_name, part in ((LIVE, "reached"), (SILENT, "silent")):
        for name, rounds in taken.items():
            values = [[getattr(each, part) for each in series] for series in rounds]
            rows.append(row(measure_name, CASE, name, "ms", values, missed=missed[name]))
    return rows


def _series(bed: Guests, way: Way, times: int) -> list[Outage | None]:
    found: list[Outage | None] = []
    with ExitStack() as stack:
        asked = stack.enter_context(Asked(bed.host, way.service))
        way.begin(bed, asked, stack)
        for number in range(times):
            try:
                found.append(way.rotate(bed, asked, number))
            except HostError:
                if not isinstance(way, PathUnit):
                    raise
                found.append(None)
            way.rest(bed)
    seen = [each for each in found if each]
    reached, silent = words([each.reached for each in seen]), words([each.silent for each in seen])
    sys.stderr.write(f"live: {way.name}: {reached}, silent {silent}\n")
    return found
