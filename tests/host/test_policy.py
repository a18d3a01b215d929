# SPDX-License-Identifier: MIT
"""When a VM is restarted: windows, rates, quiet periods, canaries, turns, slots, NixOS switches, health."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.control.interface import NAME
from tests.support.boot import HostError
from tests.support.deployment import CONFIG, Deployment
from tests.support.gate import Gate, Holder
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

pytestmark = pytest.mark.host

FAST = """
[source]
quiet_seconds = 0.2
resync_seconds = 1.0
[rollout]
retry_seconds = 0.1
stamp_seconds = 60.0
"""
VMS = ("pace-a", "pace-b")
ONE, BOTH = VMS[:1], VMS
LOCK = "/run/nixos/switch-to-configuration.lock"
WAIT = 30.0


class Pace:
    """Two light VMs of one secret, under a policy that each test chooses; the agent runs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.deployment = Deployment(host)
        self.sops = SopsNix(host)
        self.gate = Gate(host, "pace")
        self.holders: list[Holder] = []
        self.count = 0
        self.value = b""
        for vm in VMS:
            self.deployment.add_vm(vm)

    def begin(self, rollout: str = "", table: str = "", vms: tuple[str, ...] = ONE) -> None:
        """Have these VMs run what is published, then the agent, with this policy."""
        self.host.run("systemctl", "stop", "credferry.service")
        self.publish(wait=False)
        self.deployment.configure(FAST + self._tables("", vms))
        self.deployment.credferry("agent", "--once")
        for vm in vms:
            if not self.runs(vm):
                self.host.run("systemctl", "restart", f"microvm@{vm}.service")
            self.host.wait(lambda vm=vm: self.runs(vm), WAIT, f"{vm} at its start")  # type: ignore[misc]  # a default binds the name
        self.deployment.configure(FAST + rollout + self._tables(table, vms))
        self.deployment.start_agent()

    def reconfigure(self, old: str, new: str) -> None:
        """Change the configuration, and put it in force."""
        text = self.host.path(CONFIG).read_text()
        assert old in text
        self.host.write(CONFIG, text.replace(old, new))
        self.host.run("systemctl", "reload", "credferry.service")

    def publish(self, value: str = "", *, wait: bool = True) -> None:
        """Publish a value that has never been, and wait until it is sealed."""
        self.count += 1
        self.value = (value or f"pace {self.count}").encode()
        self.sops.publish({"pace": self.value})
        if wait:
            self.host.wait(self._is_sealed, WAIT, "sealing")

    def runs(self, vm: str) -> bool:
        """Whether a VM's present invocation was given what is published."""
        with suppress(OSError, HostError):  # it goes down between the one question and the other
            return self.deployment.stamp(vm) is not None and self.deployment.delivered(vm) == {
                "K": self.value
            }
        return False

    def wait_runs(self, vm: str) -> None:
        """Wait until it does."""
        self.host.wait(lambda: self.runs(vm), WAIT, f"{self.value!r} in {vm}")

    def wait_state(self, vm: str, state: str) -> str:
        """Wait until ``credferry status`` says so; the first reason that it gives."""
        seen: list[dict[str, Any]] = []

        def is_said() -> bool:
            seen.append(self.deployment.status()[vm])
            return bool(seen[-1]["state"] == state)

        self.host.wait(is_said, WAIT, f"{vm} {state}")
        return str(seen[-1]["reasons"][0])

    def told(self, event: Event, vm: str) -> int:
        """How many such facts of a VM the journal holds."""
        return len(self.host.journal(MESSAGE_ID=event.value, CREDFERRY_VM=vm))

    def is_on_the_bus(self) -> bool:
        """Whether the agent has its name."""
        return not self.host.run("busctl", "status", NAME, check=False).returncode

    def threads(self) -> int:
        """How many threads the agent has."""
        pid = self.host.unit("credferry.service")["MainPID"]
        return len(list(self.host.path(f"/proc/{pid}/task").iterdir()))

    def hold(self, what: Gate | str) -> Holder:
        """Somebody who holds a gate, or a lock on a file, until he lets go or the test ends."""
        self.holders.append(what.hold() if isinstance(what, Gate) else Holder(self.host, what))
        return self.holders[-1]

    def close(self) -> None:
        """Leave the host as it was."""
        self.deployment.close()
        self.sops.remove()
        self.open_gates()

    def open_gates(self) -> None:
        """Starts wait for nobody any more."""
        self.host.run("sh", "-c", "rm -rf /run/systemd/system/microvm@pace-*")
        self.gate.remove()

    def _is_sealed(self) -> bool:
        return all(
            row["sealed"] is not None and row["sealed"]["digest"] == row["published"]["digest"]
            for row in self.deployment.status().values()
        )

    @staticmethod
    def _tables(table: str, vms: tuple[str, ...]) -> str:
        return "".join(
            f'[vms.{vm}]\n{table}\n[vms.{vm}.credentials]\nK = {{ secret = "pace" }}\n' for vm in vms
        )


@pytest.fixture(scope="module")
def both(host: Host) -> Iterator[Pace]:
    """The VMs, for all tests of this module."""
    made = Pace(host)
    yield made
    made.close()


@pytest.fixture
def pace(both: Pace) -> Iterator[Pace]:
    """The same, with no gate left shut."""
    yield both
    for holder in both.holders:
        if holder.holds:
            holder.let_go()
    both.open_gates()


def test_a_window_that_opens(pace: Pace) -> None:
    """The VM is sealed for at once, and restarted when its window opens; that it waits is told once."""
    pace.begin()
    starts, told = pace.deployment.starts("pace-a"), pace.told(Event.WAITING, "pace-a")
    far = _moment(int(time.time()) + 86_400)
    pace.reconfigure("[vms.pace-a]", f'[vms.pace-a]\nwindows = [{{ starts = "{far}", minutes = 5 }}]')
    pace.publish()
    pace.wait_state("pace-a", "waiting")
    for _ in range(2):
        pace.deployment.credferry("sync")
    assert pace.told(Event.WAITING, "pace-a") == told + 1
    opens = int(time.time()) + 3
    pace.reconfigure(far, _moment(opens))
    pace.wait_runs("pace-a")
    assert time.time() >= opens
    assert pace.deployment.starts("pace-a") == starts + 1


def _moment(seconds: int) -> str:
    """A moment as systemd's calendar has it, of seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def test_a_window_that_stays_shut(pace: Pace) -> None:
    """Outside of its windows a VM is not restarted, nor by hand with sync; its own table overrides."""
    pace.begin('windows = [{ starts = "1999-12-31", minutes = 1 }]\n')
    starts = pace.deployment.starts("pace-a")
    pace.publish()
    assert "ever open again" in pace.wait_state("pace-a", "waiting")
    pace.deployment.credferry("sync", check=False)
    assert pace.deployment.starts("pace-a") == starts
    pace.reconfigure("[vms.pace-a]", "[vms.pace-a]\nwindows = []")
    pace.wait_runs("pace-a")


def test_a_window_that_is_none(pace: Pace) -> None:
    """What systemd cannot read as a calendar event is refused with file and key, before anything happens."""
    table = '[vms.pace-a]\nwindows = [{ starts = "Sut 25:00", minutes = 1 }]\n'
    pace.deployment.configure(FAST + table + '[vms.pace-a.credentials]\nK = { text = "k" }\n')
    error = pace.host.run("credferry", "check", check=False).stderr
    assert "vms.pace-a.windows: the window 'Sut 25:00'" in error


def test_a_rate(pace: Pace) -> None:
    """No more restarts than allowed within an hour, also when the agent is started anew in between."""
    pace.begin("restarts_per_hour = 2\n")
    for _ in range(2):
        pace.publish()
        pace.wait_runs("pace-a")
    starts = pace.deployment.starts("pace-a")
    pace.publish()
    assert "fewer than 2 restarts in the last hour" in pace.wait_state("pace-a", "waiting")
    pace.host.run("systemctl", "restart", "credferry.service")
    pace.wait_state("pace-a", "waiting")
    assert pace.deployment.starts("pace-a") == starts


def test_publications_that_fall_quiet(pace: Pace) -> None:
    """Several publications within the quiet period are one restart, onto the last of them."""
    pace.begin("quiet_seconds = 3.0\n")
    starts = pace.deployment.starts("pace-a")
    began = time.monotonic()
    pace.host.run("/usr/bin/python3", "-IS", "-c", _BURST)
    pace.value = b"burst 3"
    pace.wait_runs("pace-a")
    assert time.monotonic() - began >= 3
    assert pace.deployment.starts("pace-a") == starts + 1


# By one process: four of them may take so long that the publications fall quiet in between.
_BURST = """
import os
for number in range(4):
    generation = f"/run/secrets.d/burst-{number}"
    os.mkdir(generation)
    with open(f"{generation}/pace", "w") as file:
        file.write(f"burst {number}")
    os.symlink(generation, "/run/secrets.new")
    os.rename("/run/secrets.new", "/run/secrets")
"""


def test_publications_that_do_not(pace: Pace) -> None:
    """After the maximum the VM is restarted though something new is published all the time."""
    pace.begin("quiet_seconds = 60.0\nquiet_max_seconds = 4.0\n")
    starts, began = pace.deployment.starts("pace-a"), time.monotonic()

    def is_restarted() -> bool:
        pace.publish(wait=False)
        return pace.deployment.starts("pace-a") > starts

    pace.host.wait(is_restarted, WAIT, "the restart, whatever is published")
    assert time.monotonic() - began >= 4


def test_a_canary_goes_first(pace: Pace) -> None:
    """Others follow when it has run well for a while; where it fails they keep what they have."""
    pace.begin('canaries = ["pace-b"]\ncanary_seconds = 2.0\n', vms=BOTH)
    pace.publish()
    for vm in BOTH:
        pace.wait_runs(vm)
    first, second = (
        pace.deployment.unit(vm)["ActiveEnterTimestampMonotonic"] for vm in ("pace-b", "pace-a")
    )
    assert int(second) - int(first) >= 2_000_000
    pace.host.write(
        "/run/systemd/system/microvm@pace-b.service.d/90-fails.conf", "[Service]\nExecStartPre=/bin/false\n"
    )
    pace.host.run("systemctl", "daemon-reload")
    starts = pace.deployment.starts("pace-a")
    pace.publish(wait=False)
    assert "pace-b" in pace.wait_state("pace-a", "halted")
    assert pace.deployment.starts("pace-a") == starts
    pace.open_gates()
    pace.deployment.credferry("retry", "pace-b", "pace-a")
    for vm in BOTH:
        pace.wait_runs(vm)


def test_a_pause_between_vms(pace: Pace) -> None:
    """The second VM waits after the first one; status says until when, also once the agent was killed."""
    pace.begin("pause_seconds = 3600.0\n", vms=BOTH)
    pace.publish(wait=False)
    pace.wait_runs("pace-a")
    pace.deployment.wait_noted("pace-a")
    pace.wait_state("pace-b", "waiting")
    starts = pace.deployment.starts("pace-b")
    pace.deployment.kill_agent()
    # Not before: the pause was counted from the restart's beginning until a moment ago.
    reason = pace.wait_state("pace-b", "waiting")
    assert reason.startswith("until the pause after pace-a is over, ")
    pace.deployment.start_agent()
    assert pace.wait_state("pace-b", "waiting") == reason
    plan = pace.deployment.credferry("plan", check=False)
    assert " ".join(reason.split()) in " ".join(plan.split())
    assert pace.deployment.starts("pace-b") == starts
    pace.reconfigure("pause_seconds = 3600.0", "pause_seconds = 0.0")
    pace.wait_runs("pace-b")


def test_a_change_that_waits_for_approval(pace: Pace) -> None:
    """Nothing restarts until an operator approves the run that status names, and the audit has who."""
    pace.begin('policy = "approve"\n', vms=BOTH)
    starts = [pace.deployment.starts(vm) for vm in BOTH]
    pace.publish()
    said = pace.wait_state("pace-a", "waiting for approval")
    assert said.startswith("approve it with: credferry approve pace-a --run ")
    run = said.rpartition(" ")[2]
    refused = pace.host.run("credferry", "approve", "--run", "0123456789abcdef", check=False)
    assert "no VM waits for this approval" in refused.stderr
    assert [pace.deployment.starts(vm) for vm in BOTH] == starts
    pace.deployment.credferry("approve", "--run", run, "--reason", "looked at it")
    for vm in BOTH:
        pace.wait_runs(vm)
        ordered = pace.host.journal(MESSAGE_ID=Event.ORDERED.value, CREDFERRY_VM=vm)[-1]
        assert (
            f"approve of generation {pace.deployment.status()[vm]['sealed']['generation']}, run {run}"
            in (ordered["MESSAGE"])
        )
        assert ordered["CREDFERRY_CALLER"] == "root"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_how_many_at_a_time(pace: Pace, concurrency: int) -> None:
    """As many VMs are on their way at a time as the configuration says."""
    pace.begin(f"concurrency = {concurrency}\n", vms=BOTH)
    for vm in BOTH:
        pace.gate.put_before(vm)
    holder = pace.hold(pace.gate)
    pace.publish()

    def on_the_way() -> list[str]:
        return [vm for vm in BOTH if pace.deployment.unit(vm)["SubState"] == "start-pre"]

    pace.host.wait(lambda: len(on_the_way()) == concurrency, WAIT, "VMs on their way")
    pace.deployment.credferry("plan", check=False)
    assert len(on_the_way()) == concurrency
    holder.let_go()
    for vm in BOTH:
        pace.wait_runs(vm)


def test_a_start_without_end_keeps_nobody_waiting(pace: Pace) -> None:
    """A VM whose start never ends gives up its slot, and the next VM is restarted meanwhile."""
    pace.begin("slot_seconds = 1.0\n", vms=BOTH)
    # Its connection to the bus has a thread, and is not waited for where an agent starts.
    pace.host.wait(pace.is_on_the_bus, WAIT, "the agent on the bus")
    threads = pace.threads()
    pace.gate.put_before("pace-a")
    holder = pace.hold(pace.gate)
    pace.publish()
    pace.wait_runs("pace-b")
    assert pace.deployment.unit("pace-a")["SubState"] == "start-pre"
    pace.publish()
    pace.wait_runs("pace-b")
    holder.let_go()
    pace.wait_runs("pace-a")
    pace.publish()
    for vm in BOTH:
        pace.wait_runs(vm)
    # A thread that was about to end may have been counted before.
    pace.host.wait(lambda: pace.threads() <= threads, WAIT, f"{threads} threads, as before")


def test_a_switch_is_waited_for(pace: Pace) -> None:
    """While a NixOS switch holds its lock nothing is restarted; when it lets go, all that is due is."""
    pace.host.write(LOCK, "")
    pace.begin()
    starts, told = pace.deployment.starts("pace-a"), pace.told(Event.WAITING, "pace-a")
    switch = pace.hold(LOCK)
    pace.publish()
    pace.host.wait(lambda: pace.told(Event.WAITING, "pace-a") > told, WAIT, "the wait told of")
    assert "NixOS switch" in pace.wait_state("pace-a", "waiting")
    assert pace.deployment.starts("pace-a") == starts
    switch.let_go()
    pace.wait_runs("pace-a")


def test_a_switch_that_does_not_end(pace: Pace) -> None:
    """It is waited for so long and no longer."""
    pace.host.write(LOCK, "")
    pace.begin("switch_seconds = 3.0\n")
    switch = pace.hold(LOCK)
    began = time.monotonic()
    pace.publish()
    pace.wait_runs("pace-a")
    assert time.monotonic() - began >= 3
    switch.let_go()


def test_a_sick_vm_is_put_back(pace: Pace) -> None:
    """A VM that starts and is not healthy goes back to what it ran, and is not tried again by itself."""
    sick = "/run/pace.sick"
    pace.begin(table=f'health = ["/bin/sh", "-c", "test $CREDFERRY_VM = pace-a && ! test -e {sick}"]')
    good, told = pace.value, pace.told(Event.ROLLED_BACK, "pace-a")
    pace.host.write(sick, "")
    pace.publish(wait=False)  # after the rollback, the sealed value differs from the published one again
    assert "credferry-health@pace-a.service" in pace.wait_state("pace-a", "failed")
    pace.host.wait(lambda: pace.told(Event.ROLLED_BACK, "pace-a") > told, WAIT, "the rollback")
    pace.host.wait(lambda: pace.deployment.stamp("pace-a"), WAIT, "the old generation's start")
    assert pace.deployment.delivered("pace-a") == {"K": good}
    pace.host.path(sick).unlink()
    starts = pace.deployment.starts("pace-a")
    pace.deployment.credferry("sync", check=False)
    assert pace.deployment.starts("pace-a") == starts
    pace.deployment.credferry("retry", "pace-a")
    pace.wait_runs("pace-a")
