# SPDX-License-Identifier: MIT
"""The agent killed at any of its steps, then started: the rotation arrives all the same, and once.

Nothing in the agent helps here. It runs as its own unit; once it is ready, strace takes hold of one of its
threads, and sends SIGKILL at the entry of a chosen system call: what came before has happened, the call
itself has not. strace counts ``when=`` per thread and per system call, from when it takes hold, and with a
path only the calls about it. How many messages come before one depends on how many looks there are, and so
on the machine's speed: strace holds each of them back for a while, and the test kills the agent at the one
that it means. Which calls have an effect, and how many come before each, is read off one whole rotation that
is let through.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.reconcile.status import UNDER_WAY
from credferry.agent.store.retention import KEEP
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, VmFiles
from tests.support.gate import Gate
from tests.support.host import Host, patience
from tests.support.installation import install
from tests.support.nightly import IS_NIGHT, times
from tests.support.numbers import Number, note
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytestmark = pytest.mark.host

AGENT = "credferry.service"
STORE = "/var/lib/credferry"
HELD_SECONDS = 0.5
"""How long a message is held back where one is to be struck: many times what the test's look takes.

It is the same on a busy machine: the agent waits for an answer for 20 s, and has several messages to send.
"""
TRACE = "/tmp/crash.trace"
ASK, RESTART, JUDGE = "ask systemd", "ask systemd for the restart or push", "ask systemd how it went"
# No resync: a look comes from its hint alone, so that counts are the same in each rotation.
TABLES = """
[source]
quiet_seconds = 0.2
resync_seconds = 3600
[rollout]
retry_seconds = 0.1
stamp_seconds = 60.0
"""
VM = """
[vms.web.credentials]
API_KEY = { secret = "api-key" }
"""
# Some machines have only the calls that end in "at".
TRACED = (
    *("openat", "write", "sendmsg", "?mkdir", "mkdirat", "?symlink", "symlinkat"),
    *("?rename", "?renameat", "renameat2", "?unlink", "unlinkat", "?rmdir"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One effect of a rotation by one of the agent's threads: the nth about a path, or nth such message."""

    thread: str
    """Which of the agent's threads: its name, and the how manyeth of that name it is."""
    call: str
    number: int
    what: str
    """The call's arguments, without what differs from one rotation to the next."""
    path: str = ""
    """What it is about, in the store: ``{N}`` stands for the generation that is N before the newest."""

    def __str__(self) -> str:
        return f"thread {self.thread}, {self.call} {self.number}: {self.what}"


@dataclass(slots=True)
class Site:
    """A VM, a producer, and how often the VM must have been started by now."""

    host: Host
    deployment: Deployment
    sops: SopsNix
    starts: int = 1
    value: bytes = b""
    began: int = field(default_factory=lambda: time.time_ns() // 1000)
    """Microseconds since 1970, as the journal counts."""

    def publish(self) -> None:
        """Publish a value that has never been."""
        self.starts += 1
        self.value = f"value {self.starts}".encode()
        self.sops.publish({"api-key": self.value})

    def restart_agent(self) -> int:
        """Start the agent, or start it again; its PID once it is ready."""
        self.host.run("systemctl", "reset-failed", AGENT, check=False)
        self.host.run("systemctl", "restart", AGENT)
        return int(self.host.unit(AGENT)["MainPID"])

    def arrived(self) -> bool:
        """Whether the VM's present invocation was given what is published."""
        if self.deployment.stamp("web") is None:
            return False
        return self.deployment.delivered("web") == {"API_KEY": self.value}

    def assert_arrives(self, when: object) -> None:
        """What is published reaches the VM, and no more than one start did it."""
        self.host.wait(lambda: self.deployment.starts("web") >= self.starts, 20, f"{when}: the restart")
        self.host.wait(self.arrived, 20, f"{when}: {self.value!r} in the VM")
        assert self.deployment.starts("web") == self.starts, when

    def kill_at_once(self, pid: int) -> None:
        """Send SIGKILL to a process of the host; it takes no program to do so, and no time."""
        # A directory of /proc stands for its process (pidfd_send_signal(2)). Its PID outside is another one.
        descriptor = os.open(self.host.path(f"/proc/{pid}"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)

    def threads(self, pid: int) -> dict[str, int]:
        """The agent's threads, by name and by the order of their making among those of that name."""
        found: dict[str, int] = {}
        tasks = self.host.path(f"/proc/{pid}/task")
        for task in sorted(int(task.name) for task in tasks.iterdir()):
            try:
                name = (tasks / str(task) / "comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended since
            number = sum(each.startswith(f"{name} ") for each in found)
            found[f"{name} {number}"] = task
        return found

    def newest(self) -> int:
        """The number of the VM's newest generation."""
        return max(int(path.name) for path in self.host.path(f"{STORE}/vms/web/generations").iterdir())

    def trace(self, *options: str) -> subprocess.Popen[str]:
        """Let strace take hold of threads of the agent; it ends with them."""
        tracer = self.host.spawn("strace", "-y", "-s", "400", "-o", TRACE, *options)
        assert tracer.stderr
        assert "attached" in tracer.stderr.readline()
        return tracer


@pytest.fixture(scope="module")
def crash_host() -> Iterator[Host]:
    """A host of its own, whose journal holds one agent's records and no others."""
    with Host(cache_directory()) as host:
        # systemd would start it by itself 5 s after its end, and that would be taken for the test's start.
        host.write(f"/etc/systemd/system/{AGENT}.d/90-once.conf", "[Service]\nRestart=no\n")
        install(host)
        yield host


@pytest.fixture
def site(crash_host: Host) -> Iterator[Site]:
    """One light VM in step with what is published; no agent yet."""
    deployment, sops = Deployment(crash_host), SopsNix(crash_host)
    deployment.add_vm("web")
    made = Site(crash_host, deployment, sops, value=b"value 1")
    sops.publish({"api-key": made.value})
    deployment.configure(TABLES + VM)
    for _ in range(3):  # old generations, for the pruning to have something to prune
        sops.publish({"api-key": str(_).encode()})
        deployment.credferry("agent", "--once")
    sops.publish({"api-key": made.value})
    deployment.credferry("agent", "--once")
    deployment.start_vm("web")
    yield made
    deployment.close()
    sops.remove()


@pytest.mark.timeout(900)
def test_killed_at_every_step(site: Site) -> None:
    """SIGKILL right before any effect of a rotation: started again, the agent finishes it, once.

    `make test` strikes every fifth effect, `make nightly` each.

    The audit's chain stays whole, nothing half-made is left in the store, and the steps that were struck
    are all that a rotation has.
    """
    steps = steps_of_a_rotation(site)
    kinds = {step.what for step in steps}
    for part in (
        "audit.json",
        "/current",
        "generations/N",
        RESTART,
        JUDGE,
        "journal/socket",
        "rollout.json",
    ):
        assert [what for what in kinds if part in what], f"{part}: {sorted(kinds)}"
    for step in steps[:: times(5, 1)]:
        assert strike(site, step), f"never struck: {step}"
    site.restart_agent()
    site.publish()
    site.assert_arrives("the last rotation")
    site.deployment.wait_in_step("web")
    assert_store_is_clean(site)
    assert_chain_is_whole(site)
    if IS_NIGHT:
        note(Number.CRASH_POINTS, len(steps))


def test_killed_at_random_moments(site: Site) -> None:
    """Rotations, each with a SIGKILL of the unhindered agent at some moment: each arrives, once."""
    chance = random.Random(20260)  # noqa: S311 (the same moments in each run)
    site.restart_agent()
    kills = times(10, 30)
    for number in range(kills):
        delay = chance.uniform(0, 0.8)
        site.publish()
        time.sleep(delay)  # not waiting for anything: this is the moment
        site.deployment.kill_agent()
        assert site.host.unit(AGENT)["Result"] == "signal"
        site.restart_agent()
        site.assert_arrives(f"rotation {number}, killed after {delay:.3f} s")
    site.deployment.wait_in_step("web")
    assert site.deployment.starts("web") == site.starts
    assert_store_is_clean(site)
    assert_chain_is_whole(site)
    if IS_NIGHT:
        note(Number.RANDOM_KILLS, kills)


def test_killed_while_the_vm_restarts(site: Site) -> None:
    """Killed while systemd is at the restart that it asked for, the agent does not ask for another."""
    gate = Gate(site.host, "crash")
    gate.put_before("web")
    site.restart_agent()
    with gate.shut():
        site.publish()
        site.host.wait(
            lambda: site.deployment.unit("web")["SubState"] == "start-pre", 20, "the restart's middle"
        )
        site.deployment.kill_agent()
        site.restart_agent()
        site.host.wait(
            lambda: site.deployment.status()["web"]["state"] == "changing", 20, "the agent's look"
        )
    site.assert_arrives("killed during the VM's restart")
    site.deployment.wait_in_step("web")
    assert site.deployment.starts("web") == site.starts


def test_killed_before_it_asks_and_the_change_is_taken_back(site: Site) -> None:
    """What the VM runs is published again while no agent runs: nothing is under way, or restarted."""
    step = next(step for step in steps_of_a_rotation(site) if step.what == RESTART)
    before = site.value
    while not kill_at_message(site, step):
        site.restart_agent()
        site.assert_arrives("not struck before the restart")
        before = site.value
    site.sops.publish({"api-key": before})
    site.value, site.starts = before, site.starts - 1
    site.restart_agent()
    site.deployment.wait_noted("web")
    site.deployment.wait_in_step("web")
    assert UNDER_WAY not in json.dumps(site.deployment.status()["web"])
    assert site.deployment.starts("web") == site.starts
    site.publish()
    site.assert_arrives("a rotation afterwards")


def test_starting_restarts_nothing(site: Site) -> None:
    """However often the agent starts, and even when its state is gone, a VM in step is left alone."""
    invocation = site.deployment.unit("web")["InvocationID"]
    for _ in range(3):
        site.restart_agent()
        site.deployment.wait_in_step("web")
    site.host.run("systemctl", "stop", AGENT)
    site.host.run("rm", "-rf", STORE)
    site.restart_agent()
    site.deployment.wait_in_step("web")
    assert site.deployment.unit("web")["InvocationID"] == invocation
    site.publish()
    site.assert_arrives("a rotation afterwards")


def test_vms_that_were_there_before(crash_host: Host) -> None:
    """A VM started before credferry was known is left alone by any number of starts of the agent.

    So is it at a later change: its unit keeps no evidence of a start, and the remedy is told.
    """
    deployment, sops = Deployment(crash_host), SopsNix(crash_host)
    deployment.add_vm("old", VmFiles(launcher=False))
    crash_host.run("systemctl", "start", "microvm@old.service")
    site = Site(crash_host, deployment, sops)
    try:
        sops.publish({"api-key": b"before"})
        deployment.configure(TABLES.replace("60.0", "0.5") + VM.replace("web", "old"))
        invocation = deployment.unit("old")["InvocationID"]
        for _ in range(3):
            site.restart_agent()
            crash_host.wait(lambda: deployment.status()["old"]["state"] == "in step", 20, "in step")
        assert deployment.unit("old")["InvocationID"] == invocation
        sops.publish({"api-key": b"after"})
        crash_host.wait(lambda: deployment.status()["old"]["state"] == "refused", 30, "the refusal")
        assert "keeps no evidence" in deployment.status()["old"]["reasons"][0]
        crash_host.wait_journal(
            lambda entry: "credferry doctor" in entry["MESSAGE"],
            MESSAGE_ID=Event.REFUSED.value,
            CREDFERRY_VM="old",
        )
        for _ in range(2):
            site.restart_agent()
            crash_host.wait(lambda: deployment.status()["old"]["state"] == "refused", 20, "the refusal")
        assert deployment.unit("old")["InvocationID"] == invocation
    finally:
        deployment.close()
        sops.remove()


def steps_of_a_rotation(site: Site) -> list[Step]:
    """All effects of one rotation that is let through, in their order within each thread."""
    site.restart_agent()
    # What was sealed before the agent ran is pruned at once: later rotations prune one generation each.
    for number in range(2):
        site.publish()
        site.assert_arrives(f"rotation {number} before the one that is watched")
        site.deployment.wait_noted("web")
    pid = site.restart_agent()
    threads = {task: name for name, task in site.threads(pid).items()}
    tracer = site.trace("-f", "-e", f"trace={','.join(TRACED)}", "-p", str(pid))
    site.publish()
    site.assert_arrives("the rotation that is watched")
    site.deployment.wait_in_step("web")
    site.host.wait(
        lambda: 'unlink("/var/lib/credferry/vms/web/rollout.json"' in site.host.path(TRACE).read_text(),
        10,
        "the rotation's last step",
    )
    site.host.run("systemctl", "stop", AGENT)
    tracer.communicate()
    counts: Counter[tuple[int, str, str | None]] = Counter()
    steps: list[Step] = []
    newest = site.newest()
    for thread, call, what in effects(site.host.path(TRACE).read_text().splitlines()):
        path = store_path(what or "", newest)
        counted = (thread, call, what if call == "sendmsg" else path)
        counts[counted] += 1
        if what is None or thread not in threads or what == ASK:
            continue
        struck = {step.what for step in steps}
        if (what == JUDGE and JUDGE in struck) or (RESTART in struck and call in {"openat", "write"}):
            continue  # how many there are depends on how often the stamp is looked for
        steps.append(Step(threads[thread], call, counts[counted], without_numbers(what), path))
        if call.startswith("unlink") and "/rollout.json" in what:
            break
    return steps


def store_path(what: str, newest: int) -> str:
    """What in the store a call is about, by how far each generation is from the newest; or nothing."""
    path = next((word for word in what.split() if word.startswith(f"{STORE}/")), "")
    return re.sub(r"(?<=generations/)\d+", lambda match: f"{{{newest - int(match[0])}}}", path)


def without_numbers(what: str) -> str:
    """An effect without what differs between rotations."""
    return re.sub(r"\d+", "N", what)


def effects(lines: Iterable[str]) -> Iterator[tuple[int, str, str | None]]:
    """The system calls in strace's output, each where it was entered: thread, name, and what it changes."""
    asked = False
    for line in lines:
        if match := re.match(r"(\d+) +(\w+)\((.*)", line):
            what = effect(match[2], match[3])
            if what == ASK and asked:
                what = JUDGE
            asked = asked or what == RESTART
            yield int(match[1]), match[2], what


def effect(call: str, arguments: str) -> str | None:
    """What a call changes outside the agent; None for nothing."""
    # With -y a descriptor shows its path as well; what is after " = " is the result.
    paths = " ".join(re.findall(r'[<"]([^>"]*)[>"]', re.split(r"\) += | <unf", arguments)[0]))
    socket = re.search(r'sun_path="([^"]*)"', arguments)
    if call == "sendmsg" and socket is None:
        is_rollout = "TryRestartUnit" in arguments or re.search(r"StartUnit.*credferry-push@", arguments)
        return RESTART if is_rollout else ASK
    if call == "sendmsg" and socket is not None:
        what = f"send to {socket[1]}" if "notify" not in socket[1] else ""
    elif call == "openat":
        what = f"create {paths}" if "O_CREAT" in arguments and not paths.endswith("lock") else ""
    elif call == "write":
        what = f"write {paths.split()[0]}" if f"<{STORE}/" in arguments else ""
    else:
        # A directory that is there already is not made; what is taken away first is seldom there.
        no_effect = "EEXIST" in arguments or (call.startswith("unlink") and paths.endswith(".new"))
        what = "" if no_effect else f"{call} {paths}"
    return what or None


def strike(site: Site, step: Step) -> bool:
    """Rotations with a SIGKILL each, until one has struck that very step; whether one has."""
    strike_once = strike_message if step.call == "sendmsg" else strike_call
    return any(strike_once(site, step) for _ in range(12))


def strike_call(site: Site, step: Step) -> bool:
    """One rotation with a SIGKILL at the nth call about the step's path; whether it struck the step."""
    tracer, calls = hold(site, step, f"signal=KILL:when={step.number}")
    site.publish()
    try:
        tracer.communicate(timeout=10 * patience())
    except subprocess.TimeoutExpired:  # there were not that many calls
        tracer.kill()
        tracer.communicate()
        site.assert_arrives(f"not killed at {step}")
        return False
    # The thread has ended; the process a moment later.
    site.host.wait(lambda: site.host.unit(AGENT)["Result"] == "signal", 10, f"{step}: the agent's end")
    assert_killed_then_arrives(site, step)
    return calls()[-1] == step.what


def strike_message(site: Site, step: Step) -> bool:
    """One rotation with a SIGKILL before the step's message; whether it struck the step."""
    was_struck = kill_at_message(site, step)
    assert_killed_then_arrives(site, step)
    return was_struck


def kill_at_message(site: Site, step: Step) -> bool:
    """Publish, and kill the agent while the step's message is held back. Returns whether it was."""
    tracer, calls = hold(site, step, f"delay_enter={int(HELD_SECONDS * 1e6)}")
    pid = int(site.host.unit(AGENT)["MainPID"])
    site.publish()
    site.host.wait(lambda: calls().count(step.what) >= step.number, 60, f"{step}: its message")
    site.kill_at_once(pid)
    tracer.communicate()
    site.host.wait(lambda: site.host.unit(AGENT)["Result"] == "signal", 10, f"{step}: the agent's end")
    *_, last = (line for line in site.host.path(TRACE).read_text().splitlines() if "sendmsg(" in line)
    was_held = last.endswith("= ?")  # strace's sign for a call that has not ended
    return was_held and calls()[-1] == step.what and calls().count(step.what) == step.number


def hold(site: Site, step: Step, injected: str) -> tuple[subprocess.Popen[str], Callable[[], list[str]]]:
    """Start the agent anew, and have strace change what becomes of one thread's calls of the step's kind.

    Returns strace, and what tells for what each of those calls was until now.
    """
    site.deployment.wait_noted("web")  # or the next agent has that to do, too
    pid = site.restart_agent()
    # Some are made by others, which the agent's readiness does not wait for.
    site.host.wait(lambda: step.thread in site.threads(pid), 20, f"{step}: its thread")
    thread = site.threads(pid)[step.thread]
    assert site.deployment.starts("web") == site.starts, f"the start before {step}"
    path = re.sub(r"\{(-?\d+)\}", lambda match: str(site.newest() + 1 - int(match[1])), step.path)
    tracer = site.trace(
        *("-e", f"trace={step.call}", "-e", f"inject={step.call}:{injected}"),
        *(("-P", path) if path else ()),
        *("-p", str(thread)),
    )

    def calls() -> list[str]:
        lines = (f"{thread} {line}" for line in site.host.path(TRACE).read_text().splitlines())
        return [without_numbers(what or "") for _, _, what in effects(lines)]

    return tracer, calls


def assert_killed_then_arrives(site: Site, step: Step) -> None:
    """The agent has ended by SIGKILL; started again, it has the rotation arrive."""
    assert site.host.unit(AGENT)["ExecMainStatus"] == "9"
    assert "killed by SIGKILL" in site.host.path(TRACE).read_text()
    site.restart_agent()
    site.assert_arrives(f"killed at {step}")


def assert_store_is_clean(site: Site) -> None:
    """The agent leaves no more generations than are kept, and nothing that was to be renamed into place."""
    site.deployment.wait_noted("web")  # or the agent is at it
    generations = site.host.path(f"{STORE}/vms/web/generations")
    # The agent prunes after the restart's end, and looks for that again only after an hour.
    site.host.wait(lambda: len(list(generations.iterdir())) <= KEEP, 20, "the pruning")
    assert not list(site.host.path(STORE).rglob(".*"))


def assert_chain_is_whole(site: Site) -> None:
    """Every record of the audit is in the journal under its number; what came twice is the same."""
    records: dict[int, set[str]] = {}
    for entry in site.host.journal(SYSLOG_IDENTIFIER="credferry"):
        if "CREDFERRY_SEQUENCE" in entry and int(entry["__REALTIME_TIMESTAMP"]) >= site.began:
            records.setdefault(int(entry["CREDFERRY_SEQUENCE"]), set()).add(entry["CREDFERRY_HASH"])
    assert sorted(records) == list(range(1, len(records) + 1))
    assert {len(hashes) for hashes in records.values()} == {1}
    verdict = json.loads(site.deployment.credferry("audit", "--verify", "--json", check=False))
    # Every test before this one has ended by removing the state directory.
    assert not [finding for finding in verdict["findings"] if "a new chain begins" not in finding]
    assert verdict["checked"] >= len(records)
