# SPDX-License-Identifier: MIT
"""The host that everything is measured on: light VMs, a producer that stays, one contender at a time."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.deployment import CONFIG
from tests.support.host import Host
from tests.support.installation import install

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INSIDE = "/usr/lib/credferry-bench"
PROGRAMS = Path(__file__).with_name("inside")
AGENT = "credferry.service"
CONTENDER = "bench-contender.service"

LIGHT = "bench-light@{}.service"
"""A VM that runs `inside/vm.sh`, which leaves a process, as each VM has one.

Without a process, the moment when systemd begins would come after it has started ExecStopPost=.
"""
IDLE = "bench-idle@{}.service"
"""A VM without any process, of which only the job counts."""
HYPERVISOR = "bench-vmm@{}.service"
"""A VM that is started by the launcher, or what stands for it, and is the stand-in hypervisor."""

_LIGHT = f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
Type=forking
RuntimeDirectory=credferry-vms/%i
ExecStart={INSIDE}/vm.sh %i
"""
# A service without ExecStart= must have an ExecStop=.
_IDLE = """\
[Unit]
StartLimitIntervalSec=0
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStop=/bin/true
"""
_HYPERVISOR = f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
WorkingDirectory=/run/bench/%i
RuntimeDirectory=credferry-vms/%i
RestartPreventExitStatus=64 65 69 SIGUSR2
Environment=CREDFERRY_STANDIN_BOOT=0
ExecStart={INSIDE}/start
"""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What became of one: milliseconds from the rename, by VM; and how many starts had the former value."""

    accepted: dict[str, float]
    executed: dict[str, float]
    stale: int


@dataclass(frozen=True, slots=True)
class World:
    """What is published and who uses it. The first ``light`` VMs run something; the rest only count.

    Each VM uses as many secrets of its own; a secret is used by one VM.
    """

    secrets: int
    vms: int
    light: int = 1
    unit: str = LIGHT

    @property
    def each(self) -> int:
        """How many secrets a VM uses."""
        return self.secrets // self.vms

    @property
    def idle(self) -> dict[str, str]:
        """The VMs that only count, each with its unit."""
        return {f"v{number}": IDLE.format(f"v{number}") for number in range(self.light, self.vms)}

    @property
    def names(self) -> list[str]:
        """The VMs that run something."""
        return [f"v{number}" for number in range(self.light)]

    def config(self, rollout: str = "") -> str:
        """The agent's configuration."""
        text = f"[rollout]\n{rollout}\n"
        for number in range(self.vms):
            unit = (self.unit if number < self.light else IDLE).format(f"v{number}")
            text += f'[vms.v{number}]\nunit="{unit}"\nguest_systemd=257\n[vms.v{number}.credentials]\n'
            text += "".join(f'C{each}={{secret="v{number}.{each}"}}\n' for each in range(self.each))
        return text


class Bed:
    """One throwaway host, from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.host = stack.enter_context(Host(cache_directory()))
            install(self.host)
            # As a distribution's package has it; within its sandbox the agent could not.
            for python in (sys.executable, "/usr/bin/python3"):
                self.host.run(python, "-I", "-m", "compileall", "-q", "/usr/lib/credferry", check=False)
            for file in PROGRAMS.iterdir():
                if file.is_file():
                    self.host.write(f"{INSIDE}/{file.name}", file.read_bytes(), 0o755)
            self.host.run("systemd-creds", "setup")
            for unit, text in ((LIGHT, _LIGHT), (IDLE, _IDLE), (HYPERVISOR, _HYPERVISOR)):
                self.host.write(f"/etc/systemd/system/{unit.format('')}", text)
            self._driver = self.host.spawn("/usr/bin/python3", "-IS", f"{INSIDE}/driver.py")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def drive(self, do: str, **arguments: Any) -> Any:  # noqa: ANN401 (JSON)
        """Have the driver inside do something. Raises `HostError`."""
        assert self._driver.stdin  # noqa: S101 (spawned with pipes)
        assert self._driver.stdout  # noqa: S101 (spawned with pipes)
        self._driver.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._driver.stdin.flush()
        answer = self._driver.stdout.readline()
        if not answer:
            assert self._driver.stderr  # noqa: S101 (spawned with pipes)
            raise HostError(f"the driver ended: {self._driver.stderr.read()}")
        return json.loads(answer)

    def lay_out(self, world: World, rollout: str = "") -> None:
        """Publish a world's secrets, and start its VMs that only count."""
        stop = (AGENT, "credferry-seal.service", "bench-*@*.service")
        self.host.run("systemctl", "stop", *stop, check=False)
        self.host.run("rm", "-rf", "/var/lib/credferry", "/var/lib/bench-shell")
        self.host.write(CONFIG, world.config(rollout))
        self.drive("populate", vms=world.vms, each=world.each)
        idle = list(world.idle.values())
        for at in range(0, len(idle), 500):
            self.host.run("systemctl", "start", *idle[at : at + 500])

    def wire(self, world: World, drop_in: str) -> None:
        """Give the VMs that run something a drop-in, in place of the one before it."""
        self.host.write(f"/etc/systemd/system/{world.unit.format('')}.d/50-contender.conf", drop_in)
        self.host.run("systemctl", "daemon-reload")

    def restart(self, world: World) -> None:
        """Start the VMs that run something, afresh."""
        self.host.run("systemctl", "restart", *(world.unit.format(name) for name in world.names))

    def rest(self, unit: str, status: str | None = None) -> None:
        """Wait until a unit says this of itself, if anything, and its processes rest."""
        self.drive("rest", unit=unit, status=status)

    def rotate(self, world: World, change: int, seconds: float = 10.0) -> Rotation:
        """Publish with so many secrets changed, and see what the VMs that use them do."""
        vms = world.names[: max(1, -(-change // world.each))]
        said = self.drive("rotate", change=change, vms=vms, unit=world.unit, seconds=seconds)
        seen: Mapping[str, Mapping[str, int]] = said["vms"]
        return Rotation(
            {vm: (each["accepted"] - said["at"]) / 1e6 for vm, each in seen.items()},
            {vm: (each["exec"] - said["wall"]) / 1e6 for vm, each in seen.items()},
            said["stale"],
        )

    def start_contender(self, *command: str) -> None:
        """Have a program run as a unit, and wait until it rests."""
        name = CONTENDER.removesuffix(".service")
        self.host.run("systemd-run", "--quiet", f"--unit={name}", "--collect", "--", *command)
        self.rest(CONTENDER)

    def stop(self, *units: str) -> None:
        """Stop units that may not be there."""
        self.host.run("systemctl", "stop", *units, check=False)


def words(values: Sequence[float]) -> str:
    """Values for a line of progress."""
    return " ".join(f"{value:.1f}" for value in values)
