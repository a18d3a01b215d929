# SPDX-License-Identifier: MIT
"""What may happen to a host happens to the agent: a rotation arrives all the same, and once.

The agent is the real one, confined as its unit says. Each test lets one fault of the host strike, and then
publishes: the VM ends on what is published, with one start for it, and the agent is still the same process
where nothing else is said.
"""

from __future__ import annotations

import base64
import itertools
import signal
import struct
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agent.events import Event
from agent.keys import read_key
from agent.sealing import one_line
from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, VmFiles
from tests.support.host import Host
from tests.support.installation import install
from tests.support.numbers import Number, note
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.host

AGENT = "credferry.service"
GATE = "/run/faults.gate"
STARTS = "starts"
DROP_IN = f"/etc/systemd/system/{AGENT}.d/90-fault.conf"
HOST_KEY = "/var/lib/systemd/credential.secret"
CURRENT = "/var/lib/credferry/vms/web/current"
VMS = """
[vms.web.credentials]
API_KEY = { secret = "api-key" }

[vms.db.credentials]
PASSWORD = { secret = "db/password" }
"""
# Each start leaves a line of its own, whatever has become of the journal.
COUNTED = VmFiles(before=f'echo "$INVOCATION_ID" >>{STARTS}')


@dataclass(slots=True)
class Site:
    """Two VMs in step with what is published, and how often the first must have been started by now."""

    host: Host
    deployment: Deployment
    sops: SopsNix
    survived: set[str]
    starts: int = 1
    value: bytes = b""
    others: int = 1
    """How often the other VM, whose secret never changes, was started."""
    agent: int = 0
    began: int = field(default_factory=lambda: time.time_ns() // 1000)
    """Microseconds since 1970, as the journal counts."""

    def publish(self, times: int = 1) -> None:
        """Publish a value that has never been, in a new generation."""
        self.starts += times
        self.value = f"value {time.monotonic_ns()}".encode()
        self.sops.publish({"api-key": self.value, "db/password": b"never changed"})

    def started(self, vm: str) -> int:
        """How often a VM was started, as the VM itself has counted."""
        return len(self.host.path(f"/var/lib/microvms/{vm}/{STARTS}").read_text().splitlines())

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
        self.host.run("systemctl", "restart", AGENT)
        self.agent = self.pid()

    def told(self) -> list[str]:
        """What the agent has complained of since the test began: its warnings and errors."""
        return [
            entry["MESSAGE"]
            for entry in self.host.journal(_SYSTEMD_UNIT=AGENT)
            if int(entry["__REALTIME_TIMESTAMP"]) >= self.began and int(entry["PRIORITY"]) <= 4
        ]

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
        with self.host.spawn("flock", GATE, "sh", "-c", "echo held; read line") as holder:
            assert holder.stdout
            assert holder.stdin
            assert holder.stdout.readline() == "held\n"
            self.publish()
            self.host.wait(
                lambda: self.deployment.unit("web")["SubState"] == "start-pre", 20, "the restart's middle"
            )
            yield
            holder.stdin.close()


@pytest.fixture(scope="module")
def survived() -> Iterator[set[str]]:
    """The faults that were survived; their number is noted."""
    faults: set[str] = set()
    yield faults
    note(Number.FAULTS, len(faults))


@pytest.fixture(scope="module")
def running(survived: set[str]) -> Iterator[Site]:
    """A host of its own, as others should not have to survive this: two light VMs in step, and the agent."""
    with Host(cache_directory()) as host:
        install(host)
        deployment, sops = Deployment(host), SopsNix(host)
        made = Site(host, deployment, sops, survived)
        for name in ("web", "db"):
            deployment.add_vm(name, COUNTED)
        host.write(
            "/etc/systemd/system/microvm@web.service.d/90-gate.conf",
            f"[Service]\nExecStartPre=+/usr/bin/flock {GATE} /bin/true\n",
        )
        host.run("systemctl", "daemon-reload")
        made.publish(0)
        deployment.configure(VMS)
        deployment.credferry("sync", "--no-restart")
        deployment.start_vm("web", "db")
        made.restart_agent()
        yield made


@pytest.fixture
def site(running: Site) -> Site:
    """The site as a test is to find it: in step, however the test before has left it."""
    running.began = time.time_ns() // 1000
    if not (running.arrived() and running.pid() == running.agent):
        running.host.run("systemctl", "start", "dbus.socket", "systemd-journald.socket")
        running.deployment.configure(VMS)
        running.publish(0)
        running.restart_agent()
        running.deployment.start_vm("web", "db")
        running.deployment.wait_in_step("web")
    running.starts, running.others = running.started("web"), running.started("db")
    return running


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
    messages = [entry["MESSAGE"] for entry in site.host.journal(_SYSTEMD_UNIT=AGENT, _TRANSPORT="stdout")]
    assert "rollout" in messages[-1]


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
    entries = site.host.path(f"/proc/{site.agent}/fdinfo").iterdir()
    return sum(entry.read_text().count("inotify wd:") for entry in entries)


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
        # A file written in place has to settle, which takes time.
        site.sops.write_in_place("api-key", b"in place")
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
