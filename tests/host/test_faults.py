# SPDX-License-Identifier: MIT
"""What may happen to a host happens to the agent: a rotation arrives all the same, and once.

The agent is the real one, confined as its unit says. Each test lets one fault of the host strike, and then
publishes: the VM ends on what is published, with one start for it, and the agent is still the same process
where nothing else is said.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import signal
import struct
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from credferry.agent.audit.events import Event
from credferry.agent.control.interface import NAME
from credferry.agent.sealing.credential import one_line
from credferry.agent.sealing.keys import read_key
from credferry.agent.store.locks import SEAL_LOCK, rollout_lock
from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, VmFiles
from tests.support.gate import Gate, Holder
from tests.support.host import Host
from tests.support.installation import install
from tests.support.numbers import Number, note
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.host

AGENT = "credferry.service"
STARTS = "starts"
DROP_IN = f"/etc/systemd/system/{AGENT}.d/90-fault.conf"
HOST_KEY = "/var/lib/systemd/credential.secret"
STORE = "/var/lib/credferry"
CURRENT = f"{STORE}/vms/web/current"
VMS = """
[vms.web.credentials]
API_KEY = { secret = "api-key" }

[vms.db.credentials]
PASSWORD = { secret = "db/password" }
"""
# Each start leaves a line of its own, whatever has become of the journal.
COUNTED = VmFiles(before=f'echo "$INVOCATION_ID" >>{STARTS}')


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process holds: resident memory, in KiB, descriptors and threads."""

    kib: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Site:
    """Two VMs in step with what is published, and how often the first must have been started by now."""

    host: Host
    deployment: Deployment
    sops: SopsNix
    gate: Gate
    """What the first VM's starts go through."""
    survived: set[str]
    starts: int = 1
    value: bytes = b""
    others: int = 1
    """How often the other VM, whose secret never changes, was started."""
    password: bytes = b"never changed"
    """The other VM's secret."""
    agent: int = 0
    began: int = field(default_factory=lambda: time.time_ns() // 1000)
    """Microseconds since 1970, as the journal counts."""

    def publish(self, times: int = 1) -> None:
        """Publish a value that has never been, in a new generation."""
        self.starts += times
        self.value = f"value {time.monotonic_ns()}".encode()
        self.sops.publish({"api-key": self.value, "db/password": self.password})

    def started(self, vm: str) -> int:
        """How often a VM was started, as the VM itself has counted."""
        return len(self.host.path(f"/var/lib/microvms/{vm}/work/{STARTS}").read_text().splitlines())

    def arrived(self) -> bool:
        """Whether the VM's present invocation was given what is published."""
        with suppress(OSError, HostError):  # it goes down, or its hypervisor is not up yet
            return self.deployment.stamp("web") is not None and (
                self.deployment.delivered("web") == {"API_KEY": self.value}
            )
        return False

    def assert_arrives(self, fault: str) -> None:
        """What is published is in the VM, for one start, by an agent that is still the same process."""
        self.host.wait(self.arrived, 30, f"{fault}: {self.value!r} in the VM")
        self.deployment.wait_in_step("web")
        assert self.started("web") == self.starts, fault
        assert self.started("db") == self.others, fault
        assert self.pid() == self.agent, fault
        self.survived.add(fault)

    def pid(self) -> int:
        """The agent's process, as the host numbers it; 0 for none."""
        return int(self.host.unit(AGENT)["MainPID"])

    def restart_agent(self) -> None:
        """Start the agent anew, as one more process from here on."""
        self.host.run("systemctl", "reset-failed", AGENT, check=False)  # and how often it was started lately
        self.host.run("systemctl", "restart", AGENT)
        self.agent = self.pid()

    def stop_agent_at_rest(self) -> None:
        """Send SIGSTOP to the agent at a moment at which it holds no lock that others may need."""
        names = (rollout_lock("web"), rollout_lock("db"), SEAL_LOCK)  # in the agent's own order
        holders = [Holder(self.host, f"{STORE}/{name}") for name in names]
        self.host.kill(AGENT, signal.SIGSTOP)
        tasks = self.host.path(f"/proc/{self.agent}/task")

        def is_stopped() -> bool:
            return all("\nState:\tT" in (task / "status").read_text() for task in tasks.iterdir())

        self.host.wait(is_stopped, 10, "the agent stopped")
        for holder in holders:
            holder.let_go()

    def told(self) -> list[str]:
        """What the agent has complained of since the test began: its warnings and errors."""
        return [
            entry["MESSAGE"]
            for entry in self.host.journal(_SYSTEMD_UNIT=AGENT)
            if int(entry["__REALTIME_TIMESTAMP"]) >= self.began and int(entry["PRIORITY"]) <= 4
        ]

    def resources(self) -> Resources:
        """What the agent holds now."""
        process = self.host.path(f"/proc/{self.agent}")
        resident = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
        assert resident
        descriptors, threads = (len(list((process / part).iterdir())) for part in ("fd", "task"))
        return Resources(int(resident[1]), descriptors, threads)

    def resources_at_rest(self) -> Resources:
        """What the agent holds after a rotation: one that has just started has yet to take some of it."""
        self.publish()
        self.host.wait(self.arrived, 30, "the rotation before what is measured")
        self.deployment.wait_noted("web")
        self.host.wait(self.is_on_the_bus, 30, "the agent on the bus")
        return self.resources()

    def is_on_the_bus(self) -> bool:
        """Whether the agent has its name."""
        return not self.host.run("busctl", "status", NAME, check=False).returncode

    def assert_costs_nothing(self, before: Resources) -> None:
        """The agent holds, or soon does, as much as before: memory's allocators round, by 4 MiB at most."""
        self.host.wait(
            lambda: (
                (now := self.resources()).kib <= before.kib + 4096
                and now.descriptors <= before.descriptors
                and now.threads <= before.threads
            ),
            20,
            f"as little as {before}",
        )

    def chain(self) -> list[dict[str, str]]:
        """The audit's own records since the test began, each once, in their order."""
        records = {
            int(entry["CREDFERRY_SEQUENCE"]): entry
            for entry in self.host.journal(SYSLOG_IDENTIFIER="credferry")
            if "CREDFERRY_SEQUENCE" in entry and int(entry["__REALTIME_TIMESTAMP"]) >= self.began
        }
        return [records[number] for number in sorted(records)]

    def drop_in(self, text: str) -> None:
        """Have the agent's unit say this as well; the next process of the agent is the one that counts."""
        self.host.write(DROP_IN, text)
        self.host.run("systemctl", "daemon-reload")
        self.restart_agent()

    def inside(self, script: str, *arguments: str) -> str:
        """Run a script of Python in the host; its output."""
        return self.host.run("/usr/bin/python3", "-IS", "-c", script, *arguments).stdout

    @contextmanager
    def restart_under_way(self) -> Iterator[None]:
        """Within, the VM's restart that was asked for does not get any further than its beginning."""
        with self.gate.shut():
            self.publish()
            self.host.wait(
                lambda: self.deployment.unit("web")["SubState"] == "start-pre", 20, "the restart's middle"
            )
            yield


@pytest.fixture(scope="module")
def survived(request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """The faults that were survived; their number is noted where every test here is run."""
    faults: set[str] = set()
    yield faults
    here = request.module
    chosen = {item.function for item in request.session.items if isinstance(item, pytest.Function)}
    if chosen >= {value for name, value in vars(here).items() if name.startswith("test_")}:
        note(Number.FAULTS, len(faults))


@pytest.fixture(scope="module")
def running(survived: set[str]) -> Iterator[Site]:
    """A host of its own, as others should not have to survive this: two light VMs in step, and the agent."""
    with Host(cache_directory()) as host:
        install(host)
        deployment, sops = Deployment(host), SopsNix(host)
        made = Site(host, deployment, sops, Gate(host, "faults"), survived)
        for name in ("web", "db"):
            deployment.add_vm(name, COUNTED)
        made.gate.put_before("web")
        made.publish(0)
        deployment.configure(VMS)
        deployment.credferry("agent", "--once")
        deployment.start_vm("web", "db")
        made.restart_agent()
        yield made


@pytest.fixture
def site(running: Site) -> Site:
    """The site as a test is to find it: in step, however the test before has left it."""
    if not (running.arrived() and running.pid() == running.agent):
        running.host.run("systemctl", "stop", AGENT)
        running.host.run("sh", "-c", f"rm -f {STORE}/vms/*/rollout.json")
        running.host.run("systemctl", "start", "dbus.socket", "systemd-journald.socket")
        running.deployment.configure(VMS)
        running.publish(0)
        running.restart_agent()
        running.deployment.start_vm("web", "db")
        running.deployment.wait_in_step("web")
    # In step comes before the end is noted, whose record would be taken for one of this test's.
    for vm in ("web", "db"):
        running.deployment.wait_noted(vm)
    running.began = time.time_ns() // 1000
    running.starts, running.others = running.started("web"), running.started("db")
    return running


@pytest.mark.parametrize("number", ["SEGV", "TRAP"])
def test_a_crash_leaves_its_stack(site: Site, number: str) -> None:
    """If a library ends the agent by a signal, the journal shows where, and the next agent goes on."""
    site.host.run("systemctl", "kill", "--kill-whom=main", f"--signal={number}", AGENT)
    site.host.wait_journal(
        lambda entry: 'daemon/service.py", line' in entry["MESSAGE"], 20, _PID=str(site.agent)
    )
    site.host.wait(lambda: site.pid() != site.agent, 20, "systemd sees its end")
    site.restart_agent()
    site.publish()
    site.assert_arrives("the agent crashed")


def test_the_bus_is_killed(site: Site) -> None:
    """dbus-daemon killed while nothing is to be done: the agent connects to the next one."""
    site.host.kill("dbus.service")
    site.publish()
    site.assert_arrives("dbus-daemon killed")


def test_the_bus_is_killed_during_a_restart(site: Site) -> None:
    """dbus-daemon killed while a restart is under way: it is not asked for again."""
    with site.restart_under_way():
        site.host.kill("dbus.service")
        site.host.wait(lambda: "no restarts until" in "\n".join(site.told()), 20, "the loss is noticed")
    site.assert_arrives("dbus-daemon killed during a restart")
    site.publish()
    site.assert_arrives("dbus-daemon killed during a restart")


@pytest.mark.parametrize("how", ["daemon-reexec", "daemon-reload"])
def test_systemd_begins_anew(site: Site, how: str) -> None:
    """Systemd executes itself anew, or reads its units anew, with a restart under way and without."""
    with site.restart_under_way():
        site.host.run("systemctl", how)
    site.assert_arrives(f"{how} during a restart")
    site.host.run("systemctl", how)
    site.publish()
    site.assert_arrives(how)


def test_no_signal_of_a_job_arrives(site: Site) -> None:
    """That a restart's job has ended is found out also where systemd's signal of it is lost."""
    policy = "/etc/dbus-1/system.d/faults.conf"
    site.host.write(policy, _DEAF)
    site.host.run("systemctl", "reload", "dbus.service")
    try:
        site.publish()
        site.assert_arrives("a job's signal lost")
        asked, restarted = Event.RESTART_ASKED.value, Event.RESTARTED.value

        def moments() -> dict[str, float]:
            return {
                entry["MESSAGE_ID"]: int(entry["__REALTIME_TIMESTAMP"]) / 1e6
                for entry in site.chain()
                if entry["MESSAGE_ID"] in {asked, restarted}
            }

        # The VM is in step before: nobody has to be told of a job for that.
        site.host.wait(lambda: restarted in moments(), 30, "the job's end found out")
        assert moments()[restarted] - moments()[asked] > 4, "it was not told, but asked after 5 s"
    finally:
        site.host.run("rm", policy)
        site.host.run("systemctl", "reload", "dbus.service")


_DEAF = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <policy user="root">
    <deny receive_sender="org.freedesktop.systemd1" receive_interface="org.freedesktop.systemd1.Manager"
      receive_member="JobRemoved"/>
  </policy>
</busconfig>
"""


JOURNALD = "systemd-journald.service"
JOURNALD_SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket")


def assert_is_chained(records: list[dict[str, str]]) -> None:
    """None is missing, and each names the one before it."""
    for before, after in itertools.pairwise(records):
        assert int(after["CREDFERRY_SEQUENCE"]) == int(before["CREDFERRY_SEQUENCE"]) + 1
        assert after["CREDFERRY_PREVIOUS"] == before["CREDFERRY_HASH"]


def test_the_journal_is_killed(site: Site) -> None:
    """Journald killed while a restart is under way: its sockets outlive it, and no record is lost."""
    with site.restart_under_way():
        site.host.run("journalctl", "--sync")  # what it has read and not yet written would be lost with it
        site.host.kill(JOURNALD)
    site.assert_arrives("journald killed")
    assert_is_chained(site.chain())
    assert site.told() == []


def test_the_journal_is_stopped(site: Site) -> None:
    """Without a journal the agent does its work; when one is back, the audit and the messages go on."""
    site.host.run("systemctl", "stop", JOURNALD, *JOURNALD_SOCKETS)
    site.publish()
    site.host.wait(site.arrived, 30, "the rotation without a journal")
    site.host.run("systemctl", "start", *JOURNALD_SOCKETS, JOURNALD)
    site.publish()
    site.assert_arrives("journald stopped")
    assert_is_chained(site.chain())

    def last_message() -> str:
        return site.host.journal(_SYSTEMD_UNIT=AGENT, _TRANSPORT="stdout")[-1]["MESSAGE"]

    site.host.wait(lambda: "rollout" in last_message(), 20, "the agent's own messages")


_FILL = """
import socket
senders = []
try:
    while True:  # each sender has room for so many: it is the receiver's queue that is to be full
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.setblocking(False)
        sender.connect("/run/systemd/journal/socket")
        sender.send(b"MESSAGE=one of too many")
        senders.append(sender)
        if len(senders) > 500:
            senders.clear()
except BlockingIOError:
    print("full")
"""


def test_the_journal_hangs(site: Site) -> None:
    """A journald that hangs with its socket full, until systemd's watchdog kills it, loses no rotation."""
    site.host.kill(JOURNALD, signal.SIGSTOP)
    assert site.inside(_FILL) == "full\n"
    site.publish()
    site.host.wait(site.arrived, 30, "the rotation while journald hangs")
    site.host.kill(JOURNALD)
    site.assert_arrives("journald hangs")
    assert_is_chained(site.chain())


def test_the_journal_hangs_while_many_vms_are_sealed(site: Site) -> None:
    """However many records wait for a journald that hangs, a look ends long before the agent's watchdog."""
    many = [f"many-{number}" for number in range(20)]
    site.drop_in("[Service]\nWatchdogSec=20s\n")
    site.deployment.configure(
        VMS + "".join(f'[vms.{vm}.credentials]\nKEY = {{ secret = "api-key" }}\n' for vm in many)
    )
    site.restart_agent()
    try:
        currents = [site.host.path(f"{STORE}/vms/{vm}/current", follow=False) for vm in many]

        def all_sealed(number: int) -> bool:
            return all(each.is_symlink() and each.readlink().name == str(number) for each in currents)

        site.host.wait(lambda: all_sealed(1), 20, "the first generation of each")
        site.host.kill(JOURNALD, signal.SIGSTOP)
        assert site.inside(_FILL) == "full\n"
        site.publish()
        site.host.wait(lambda: all_sealed(2), 60, "the second generation of each")
        site.host.wait(site.arrived, 30, "the rotation while journald hangs")
        site.host.kill(JOURNALD)
        site.assert_arrives("journald hangs while many are sealed")
        assert_is_chained(site.chain())
    finally:
        site.host.run("rm", DROP_IN)
        site.host.run("systemctl", "daemon-reload")
        site.deployment.configure(VMS)
        site.restart_agent()
        site.host.run("rm", "-rf", *(f"{STORE}/vms/{vm}" for vm in many))


_MANY_EVENTS = """
import os
with open("/proc/sys/fs/inotify/max_queued_events") as file:
    limit = int(file.read())
for _ in range(limit):  # two events each
    os.mkdir("/run/faults.event")
    os.rmdir("/run/faults.event")
"""


def test_the_inotify_queue_overflows(site: Site) -> None:
    """The event of a swap is lost, as the kernel's queue is full: the resync finds the swap."""
    site.host.kill(AGENT, signal.SIGSTOP)
    site.inside(_MANY_EVENTS)
    site.publish()
    site.host.kill(AGENT, signal.SIGCONT)
    site.assert_arrives("inotify's queue overflown")
    assert site.told() == []


def test_no_inotify_watch_is_left(site: Site) -> None:
    """Without watches, of which a user may have so many, the resync finds each change; it is told once.

    The limit is the agent's own: it runs in a user namespace for this.
    """
    site.drop_in("[Service]\nPrivateUsers=yes\n")
    try:
        namespace = site.host.path(f"/proc/{site.agent}/ns").parent / "ns" / "user"
        set_watches(namespace, 0)
        site.began = time.time_ns() // 1000
        site.host.run("systemctl", "reload", AGENT)
        for _ in range(3):
            site.publish()
            site.assert_arrives("no inotify watch is left")
        assert watches(site) == 0
        (told,) = site.told()
        assert "fs.inotify.max_user_watches" in told
        set_watches(namespace, 64)
        site.host.wait(lambda: watches(site) >= 2, 20, "watching again")
        site.publish()
        site.assert_arrives("no inotify watch is left")
        assert site.told() == [told]
    finally:
        site.host.run("rm", DROP_IN)
        site.drop_in("")


def set_watches(namespace: Path, number: int) -> None:
    """Set how many inotify watches a user may have within a user namespace."""
    # Not in the host's mount namespace: systemd-nspawn makes these files read-only there.
    script = f"echo {number} >/proc/sys/user/max_inotify_watches"
    subprocess.run(["nsenter", f"--user={namespace}", "--", "sh", "-c", script], check=True)


def watches(site: Site) -> int:
    """How many inotify watches the agent has."""
    found = 0
    for entry in site.host.path(f"/proc/{site.agent}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # the agent has closed it meanwhile
            found += entry.read_text().count("inotify wd:")
    return found


def test_the_clock_jumps(site: Site) -> None:
    """Ten years back and ten years on: nothing is restarted for it, and rotations arrive as ever.

    Time's other measure, that only goes on, is left as it is. The machine's clock is everybody's: this one
    is the agent's alone.
    """
    library = next(site.host.path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    clock = "/run/faults.clock"
    site.host.write(clock, "+0")
    site.drop_in(
        "[Service]\n"
        f"Environment=LD_PRELOAD=/usr/lib/{library.relative_to(site.host.path('/usr/lib'))}\n"
        f"Environment=FAKETIME_TIMESTAMP_FILE={clock} FAKETIME_NO_CACHE=1 NO_FAKE_STAT=1\n"
        "Environment=DONT_FAKE_MONOTONIC=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n"
    )
    try:
        for years in (-10, 10):
            site.host.write(clock, f"{years:+}y")
            site.publish()
            site.assert_arrives(f"the clock jumps to {years:+} years")
            assert abs(sealed_at(site) - time.time() - years * 365 * 86_400) < 86_400
        # A file written in place has to settle, which takes time. It is empty for a moment, which may be a
        # long one on a busy machine: the agent would refuse that.
        site.host.kill(AGENT, signal.SIGSTOP)
        site.sops.write_in_place("api-key", b"in place")
        site.host.kill(AGENT, signal.SIGCONT)
        site.value = b"in place"
        site.starts += 1
        site.assert_arrives("the clock jumps to +10 years")
        assert site.told() == []
    finally:
        site.host.run("rm", DROP_IN)
        site.drop_in("")


def sealed_at(site: Site) -> float:
    """The time inside of the VM's sealed secret, in seconds since 1970."""
    key = read_key(site.host.path(HOST_KEY), machine_id=None)
    blob = site.host.path(f"{CURRENT}/value.API_KEY").read_bytes()
    data = base64.b64decode(one_line(blob))
    plaintext = AESGCM(key.aes_key).decrypt(data[32:44], data[48:], data[:48])
    (microseconds,) = struct.unpack_from("<Q", plaintext)
    return float(microseconds / 1e6)


def test_the_source_goes_and_comes_back(site: Site) -> None:
    """Removed, and made again: told once, nothing restarted in between, and then what is published."""
    site.sops.remove()
    lost = site.host.wait_journal(
        lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= site.began, MESSAGE_ID=Event.SOURCE_LOST.value
    )
    site.host.run("systemctl", "reload", AGENT)
    assert site.arrived()
    site.publish()
    site.assert_arrives("the source removed")
    assert site.told() == [lost["MESSAGE"]]


def test_the_source_is_unmounted(site: Site) -> None:
    """Its file system lazily unmounted below the agent, and mounted again."""
    site.host.run("umount", "--lazy", "/run/secrets.d")
    site.host.wait_journal(
        lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= site.began, MESSAGE_ID=Event.SOURCE_LOST.value
    )
    site.publish()
    site.assert_arrives("the source unmounted")
    site.publish()
    site.assert_arrives("the source unmounted")


def test_another_source_is_mounted_over(site: Site) -> None:
    """Another file system over the published generation is what is published; taken away, it was not."""
    site.host.run("mount", "-t", "tmpfs", "-o", "mode=0751", "tmpfs", "/run/secrets/")
    below = site.value
    site.value = b"mounted over"
    site.starts += 1
    for name, value in (("db/password", "never changed"), ("api-key", site.value.decode())):
        site.host.write(f"/run/secrets/{name}", value, 0o400)
    site.assert_arrives("another source mounted over")
    site.host.run("umount", "--lazy", "/run/secrets/")
    site.value = below
    site.starts += 1
    site.assert_arrives("another source mounted over")


@pytest.fixture
def small_store(site: Site) -> Iterator[Site]:
    """The same with a file system of its own for the store, of 256 KiB."""
    copy = "/run/faults.store"
    site.host.run("systemctl", "stop", AGENT)
    site.host.run("mkdir", copy)
    site.host.run("mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", copy)
    site.host.run("cp", "-a", f"{STORE}/.", copy)
    site.host.run("mount", "--bind", copy, STORE)
    site.restart_agent()
    site.began = time.time_ns() // 1000
    yield site
    site.host.run("systemctl", "stop", AGENT)
    site.host.run("mount", "-o", "remount,rw", copy)
    site.host.run("rm", "-f", f"{copy}/filler")
    site.host.run("umount", STORE)
    site.host.run("rm", "-rf", STORE)
    site.host.run("cp", "-a", copy, STORE)
    site.host.run("umount", copy)
    site.host.run("rmdir", copy)
    site.restart_agent()


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("! head -c 1M /dev/zero >{STORE}/filler", "rm {STORE}/filler"),
        # Refused while the agent has a file open.
        ("mount -o remount,ro {STORE}", "mount -o remount,rw {STORE}"),
    ],
    ids=["full", "read-only"],
)
def test_nothing_can_be_written(small_store: Site, broken: str, mended: str) -> None:
    """With a store that cannot be written, the VM starts on the last good generation; it is told once.

    Once it can be, what is published arrives.
    """
    site, before = small_store, small_store.value
    site.host.wait(
        lambda: not site.host.run("sh", "-c", broken.format(STORE=STORE), check=False).returncode, 20, broken
    )
    for _ in range(3):
        site.publish(0)
        site.host.wait(lambda: len(site.told()) == 1, 20, "it is told")
    published, site.value = site.value, before
    site.host.run("systemctl", "restart", "microvm@web.service")
    site.host.wait(site.arrived, 20, "the last good generation")
    site.host.run("sh", "-c", mended.format(STORE=STORE))
    site.value = published
    site.starts += 2
    site.assert_arrives(broken)
    assert len(site.told()) == 1
    assert_is_chained(site.chain())


def test_a_reload_on_a_full_disk(small_store: Site) -> None:
    """The configuration stays, the agent goes on and says so; a later reload is as good as any."""
    site = small_store
    site.host.run("sh", "-c", f"head -c 1M /dev/zero >{STORE}/filler", check=False)
    site.deployment.configure(VMS + '[vms.more.credentials]\nKEY = { secret = "api-key" }\n')
    site.host.run("systemctl", "reload", AGENT, check=False)
    site.host.wait(lambda: "keeping the previous configuration" in "\n".join(site.told()), 20, "it is told")
    assert site.pid() == site.agent
    site.host.run("rm", f"{STORE}/filler")
    site.publish()
    site.assert_arrives("a reload on a full disk")
    assert not site.host.path(f"{STORE}/vms/more").exists()
    site.host.run("systemctl", "reload", AGENT)
    site.host.wait(lambda: site.host.path(f"{STORE}/vms/more/current").exists(), 20, "the reload")
    assert site.pid() == site.agent
    assert_is_chained(site.chain())
    site.deployment.configure(VMS)
    site.host.run("rm", "-rf", f"{STORE}/vms/more")


_STORM = """
import os, shutil, sys, time
seconds, least, directory, link = float(sys.argv[1]), int(sys.argv[2]), "/run/secrets.d", "/run/secrets"
number, begin = 0, time.monotonic()
while number < least or time.monotonic() < begin + seconds:
    number += 1
    generation = f"{directory}/storm-{number}"
    os.mkdir(generation, 0o751)
    os.mkdir(f"{generation}/db", 0o751)
    for name, value in (("api-key", f"storm {number}"), ("db/password", "never changed")):
        with open(f"{generation}/{name}", "w") as file:
            file.write(value)
    os.symlink(generation, f"{link}.new")
    os.rename(f"{link}.new", link)
    if number > 50:
        shutil.rmtree(f"{directory}/storm-{number - 50}")
    time.sleep(max(0, begin + number / 1000 - time.monotonic()))
print(number, time.monotonic() - begin)
"""


def test_a_swap_per_millisecond(site: Site) -> None:
    """A storm of swaps ends on its last value, with restarts that time bounds, and costs nothing."""
    seconds = float(os.environ.get("CREDFERRY_STORM_SECONDS", "5"))
    before = site.resources_at_rest()
    number, lasted = site.inside(_STORM, str(seconds), str(round(seconds * 100))).split()
    site.value = f"storm {number}".encode()
    site.host.wait(site.arrived, 30, "the last of them")
    site.deployment.wait_in_step("web")
    restarts, site.starts = site.started("web") - site.starts, site.started("web")
    assert 1 <= restarts <= 3 * float(lasted)
    site.publish()
    site.assert_arrives("a swap per millisecond")
    site.assert_costs_nothing(before)
    # On a slow machine no reading is done between two swaps: the agent reports that, and tries again.
    assert [each for each in site.told() if "while it was being read" not in each] == []


@pytest.mark.parametrize("ready", [False, True], ids=["before it is up", "after it is up"])
def test_somebody_stops_the_vm_meanwhile(site: Site, *, ready: bool) -> None:
    """A stop during the one attempt is no failure: the VM stays stopped, and starts on what is published."""
    limits = "[rollout]\nattempts = 1\nretry_seconds = 0.2\nstamp_seconds = 30.0\n"
    site.deployment.configure(limits + VMS)
    site.host.run("systemctl", "reload", AGENT)
    if ready:
        before = site.deployment.unit("web")["InvocationID"]
        site.publish()

        def is_up_anew() -> bool:
            unit = site.deployment.unit("web")
            return unit["InvocationID"] != before and unit["SubState"] == "running"

        site.host.wait(is_up_anew, 20, "the VM up")
        site.host.run("systemctl", "stop", "microvm@web.service")
    else:
        with site.restart_under_way():
            site.host.run("systemctl", "stop", "--no-block", "microvm@web.service")
            site.host.wait(lambda: site.deployment.unit("web")["SubState"] != "start-pre", 20, "the stop")
    site.deployment.wait_noted("web")
    assert site.deployment.unit("web")["ActiveState"] in {"inactive", "failed"}
    assert site.deployment.status()["web"]["state"] == "stopped"
    facts = {entry["MESSAGE_ID"] for entry in site.chain()}
    assert not facts & {Event.RESTART_FAILED.value, Event.ROLLED_BACK.value, Event.ROLLBACK_FAILED.value}
    site.starts = site.started("web") + 1
    site.deployment.start_vm("web")
    site.assert_arrives("a stop during a restart")
    site.deployment.configure(VMS)
    site.host.run("systemctl", "reload", AGENT)


def test_somebody_restarts_the_vm_meanwhile(site: Site) -> None:
    """Restarts by hand while values rotate: each arrives, and none is restarted that has it already."""
    for delay in (0.0, 0.1, 0.2, 0.4, 0.8):
        site.publish()
        time.sleep(delay)  # not waiting for anything: this is the moment
        site.host.run("systemctl", "restart", "microvm@web.service")
        site.host.wait(site.arrived, 30, "a rotation beside a restart by hand")
    site.deployment.wait_in_step("web")
    assert site.started("web") <= site.starts + 5  # each publication has counted one already
    site.starts = site.started("web")
    # He comes first: the agent finds nothing left to do.
    site.stop_agent_at_rest()
    site.publish()
    site.deployment.credferry("agent", "--once")
    site.host.run("systemctl", "restart", "microvm@web.service")
    site.host.wait(site.arrived, 20, "the restart by hand")
    site.host.kill(AGENT, signal.SIGCONT)
    site.host.run("systemctl", "reload", AGENT)
    site.assert_arrives("a VM restarted by hand")


def test_somebody_restarts_the_vm_during_a_restart(site: Site) -> None:
    """A restart by hand in the middle of the agent's own is as good: none is asked for again."""
    with site.restart_under_way():
        site.host.run("systemctl", "--no-block", "restart", "microvm@web.service")
        site.host.wait(lambda: site.deployment.status()["web"]["state"] == "changing", 20, "a look")
    site.assert_arrives("a VM restarted by hand during its restart")
    events = [entry["MESSAGE_ID"] for entry in site.chain()]
    assert events.count(Event.RESTART_ASKED.value) == 1
    assert Event.RESTART_FAILED.value not in events


_QUICK = """
import os, sys, time
link, current = "/run/secrets", "/var/lib/credferry/vms/web/current"
first, last = int(sys.argv[1]), int(sys.argv[2])
for number in range(first, last):
    generation = f"/run/secrets.d/quick-{number}"
    os.mkdir(generation)
    os.mkdir(f"{generation}/db")
    for name, value in (("api-key", f"quick {number}"), ("db/password", "never changed")):
        with open(f"{generation}/{name}", "w") as file:
            file.write(value)
    before = os.readlink(current)
    os.symlink(generation, f"{link}.new")
    os.rename(f"{link}.new", link)
    end = time.monotonic() + 30
    while os.readlink(current) == before:
        if time.monotonic() > end:
            sys.exit(f"rotation {number} is not sealed")
        time.sleep(0.001)
"""


def test_rotations_cost_nothing_for_good(site: Site) -> None:
    """After 200 more rotations the agent holds no more memory, descriptors and threads than after 20."""
    site.deployment.configure(f'[vms.web]\npolicy = "ignore"\n{VMS}')
    site.host.run("systemctl", "reload", AGENT)
    try:
        site.inside(_QUICK, "0", "20")
        before = site.resources()
        for first in range(20, 220, 20):  # each has the time that a program is given
            site.inside(_QUICK, str(first), str(first + 20))
        site.assert_costs_nothing(before)
        site.publish()  # before restarts are allowed again, or what is published now had one of its own
    finally:
        site.deployment.configure(VMS)
        site.host.run("systemctl", "reload", AGENT)
    site.assert_arrives("200 rotations on end")


@pytest.fixture
def kept_key(site: Site) -> Iterator[Site]:
    """The same; afterwards the host has the key that it had, and the agent uses it."""
    site.host.run("cp", "-p", HOST_KEY, f"{HOST_KEY}.kept")
    yield site
    site.host.run("mv", f"{HOST_KEY}.kept", HOST_KEY)
    site.restart_agent()
    for vm in ("web", "db"):
        site.deployment.wait_in_step(vm)
    site.starts = site.started("web")


# Made beside the key: with a fresh key in its place the agent could seal before the test looks.
_REPLACE = "SYSTEMD_CREDENTIAL_SECRET={KEY}.fresh systemd-creds setup && mv {KEY}.fresh {KEY}"


@pytest.mark.parametrize("how", [_REPLACE, "rm {KEY}"], ids=["replaced", "deleted"])
def test_the_host_has_another_key(kept_key: Site, how: str) -> None:
    """With another key of the host all is sealed anew, as PID 1 opens it no more; nothing is restarted.

    A key that is gone is made anew, as systemd would make it.
    """
    site = kept_key
    before = site.deployment.unit("web")["InvocationID"]
    manifest = site.host.path(f"{CURRENT}/manifest")
    sealed = manifest.read_bytes()
    site.host.run("sh", "-c", how.format(KEY=HOST_KEY))
    site.host.wait(lambda: manifest.read_bytes() != sealed, 20, "everything sealed anew")
    site.deployment.wait_in_step("web")
    assert site.deployment.unit("web")["InvocationID"] == before
    site.host.run("systemctl", "restart", "microvm@web.service")
    site.host.wait(site.arrived, 20, "a start by hand")
    site.starts += 1
    site.publish()
    site.assert_arrives(f"the host's key: {how}")


_HOSTILE = """
import os, socket, sys
link, generation = "/run/secrets", f"/run/secrets.d/hostile-{sys.argv[1]}"
os.makedirs(f"{generation}/db")
os.chdir(generation)
with open("db/password", "w") as file:
    file.write("never changed")
with open(b"not UTF-8: \\xff\\xfe", "w") as file:
    file.write("junk")
os.symlink("loop", "loop")
for number in range(5000):
    os.mkdir(f"directory-{number}")
match sys.argv[1]:
    case "huge":
        with open("api-key", "wb") as file:
            file.truncate(10 << 30)
    case "fifo":
        os.mkfifo("api-key")
    case "device":
        os.mknod("api-key", 0o20666, os.makedev(1, 5))  # /dev/zero
    case "socket":
        socket.socket(socket.AF_UNIX).bind("api-key")
    case "loop":
        os.symlink("loop", "api-key")
os.symlink(generation, f"{link}.new")
os.rename(f"{link}.new", link)
"""


def test_a_hostile_source(site: Site) -> None:
    """Whatever stands under a secret's name, and beside it: refused, told once, and it costs nothing."""
    before = site.resources_at_rest()
    # A device is not even opened where the source is mounted as sops-nix does it.
    expected = {
        "huge": "is over the limit",
        "fifo": "is not a regular file",
        "device": "cannot be read",
        "socket": "is not a regular file",
        "loop": "leads out of the source",
    }
    for number, what in enumerate(expected, 1):
        site.inside(_HOSTILE, what)
        site.host.wait(lambda n=number: len(site.told()) >= n, 20, f"{what}: told")  # type: ignore[misc]  # a default binds the number
    assert site.arrived(), "the VM keeps what it has"
    for message, said in zip(site.told(), expected.values(), strict=True):
        assert f"'api-key' {said}" in message
    site.publish()
    site.assert_arrives("a hostile source")
    site.assert_costs_nothing(before)
    site.host.run("sh", "-c", "rm -rf /run/secrets.d/hostile-*")


def test_another_vm_starts_for_ever(site: Site) -> None:
    """A VM whose start never ends keeps no other waiting; where it does end, it was started once."""
    endless, name = "/run/faults.endless", "/etc/systemd/system/microvm@db.service.d/90-endless.conf"
    loop = f"ExecStartPre=+/bin/sh -c 'while [ -e {endless} ]; do sleep 0.1; done'"
    site.host.write(name, f"[Service]\nTimeoutStartSec=infinity\n{loop}\n")
    site.host.write(endless, "")
    site.host.run("systemctl", "daemon-reload")
    site.deployment.configure(
        "[source]\nquiet_seconds = 0.2\nresync_seconds = 1.0\n"
        "[rollout]\nretry_seconds = 0.2\nstamp_seconds = 60.0\nslot_seconds = 1.0\n" + VMS
    )
    site.host.run("systemctl", "reload", AGENT)
    try:
        site.password = b"changed for once"
        site.publish()
        site.host.wait(
            lambda: site.deployment.unit("db")["SubState"] == "start-pre", 20, "the endless start"
        )
        # Where its restart takes longer than the other's slot, a later value would overtake this one.
        site.assert_arrives("another VM starts for ever")
        for _ in range(2):
            site.publish()
            site.assert_arrives("another VM starts for ever")
        site.host.run("rm", endless)
        site.others += 1
        site.deployment.wait_in_step("db")
        assert site.deployment.delivered("db") == {"PASSWORD": site.password}
        site.assert_arrives("another VM starts for ever")
    finally:
        site.host.run("rm", "-f", endless, name)
        site.host.run("systemctl", "daemon-reload")
        site.deployment.configure(VMS)
        site.host.run("systemctl", "reload", AGENT)
