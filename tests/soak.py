# SPDX-License-Identifier: MIT
"""The soak: thousands of rotations over dozens of VMs on one host, and whether each arrived, once, in time.

``python -m tests.soak [--rotations 10000] [--vms 50] [--minutes M]``, as root. The agent, systemd and the
producer's order of system calls are the real ones. The VMs are light: `tests/support/light_vm.sh` reads its
credentials and leaves a stamp as the launcher does, and no hypervisor is started, which would take most of
the time and is none of the agent's business. Every fifth VM is live: the real push unit brings what is
published to its guest, which is `tests/support/soak_guest.py`. The host's files are on tmpfs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cache import cache_directory
from tests.support.deployment import CONFIG
from tests.support.host import Host, wait_until
from tests.support.installation import CHECKOUT, install
from tests.support.numbers import Number, note
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Sequence

LATE_SECONDS = 10.0
"""From the publishing to the last VM that runs what was published; more is late, on any machine."""
LOST_SECONDS = 120.0
"""After so long a rotation counts as lost, for the VMs that it has not reached."""
RESYNC_SECONDS = 2.0
_SUPPORT = Path(__file__).parent / "support"
_INSIDE = "/usr/lib/credferry-test"
_VMS_PER_SHARED = 5
_LIVE_EACH = 5
_BURSTS = (1, 1, 1, 2, 3, 5, 8)
"""How many generations come one right after the other."""
_PRODUCE = f"""
import json, os, sys
sys.path.insert(0, "{_INSIDE}")
import producer_inside
os.umask(0o022)
for line in sys.stdin:
    files = {{name: value.encode() for name, value in json.loads(line).items()}}
    print(producer_inside.sops_nix("/run/secrets", files, swap=True, keep=2), flush=True)
"""
_UNIT = f"""
[Service]
ExecStart={_INSIDE}/light_vm.sh
Restart=always
"""
AGENT = "credferry.service"
_PUSH_UNIT = "credferry-push@.service"
_FULL = 10_000
_AGENT_UNIT = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\n"
_TABLES = f"""
[source]
resync_seconds = {RESYNC_SECONDS}
[rollout]
retry_seconds = 0.1
concurrency = 4
"""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the agent's process holds at one moment: KiB of memory, descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return f"{self.memory / 1024:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads"


@dataclass(slots=True)
class Tally:
    """What became of the rotations."""

    rotations: int = 0
    restarts: int = 0
    pushes: int = 0
    identical: int = 0
    killed: int = 0
    by_hand: int = 0
    lost: int = 0
    doubled: int = 0
    late: int = 0
    slowest: float = 0.0
    resources: dict[str, Resources] = field(default_factory=dict)


class Soak:
    """A host with light VMs, an agent, and a producer that stays; from `__enter__` to the stack's end."""

    def __init__(self, stack: ExitStack, vms: int, seed: int, *, lost_seconds: float = LOST_SECONDS) -> None:
        self._lost_seconds = lost_seconds
        self.tally = Tally()
        self._chance = random.Random(seed)  # noqa: S311 (the same rotations in each run)
        self._vms = [f"soak-{number}" for number in range(vms)]
        self._live = set(self._vms[_LIVE_EACH - 1 :: _LIVE_EACH])
        self.host = stack.enter_context(Host(cache_directory()))
        install(self.host)
        SopsNix(self.host)  # for what it needs inside
        self._published = {"unused": "0"}
        for vm in self._vms:
            self._published |= {f"own/{vm}": "0", self._shared(vm): "0"}
        self._lay_out()
        self._producer = self.host.spawn("/usr/bin/python3", "-IS", "-c", _PRODUCE)
        self._publish()
        self.host.run("credferry", "agent", "--once")
        self.host.run("systemctl", "start", *(f"{vm}.service" for vm in self._units()))
        self._starts = dict.fromkeys(self._vms, 1)
        self._spare = dict.fromkeys(self._vms, 0)
        self._pushes = dict.fromkeys(self._live, 0)
        self._run = self.host.path("/run/credferry-vms")
        self._counts = self.host.path("/run/soak")
        wait_until(lambda: not self._behind(self._vms), 60, "all VMs")
        self.host.run("systemctl", "start", AGENT)

    def rotate(self, *, kill: bool, most: int = 1) -> None:
        """A burst of rotations, of VMs that differ, until all have arrived or count as lost.

        There are at most so many of them. With ``kill`` the agent dies in it.
        """
        if kill:
            self.host.run("systemctl", "start", AGENT)  # it may be on its way up from the kill before
        hand = self._chance.choice(self._vms) if self._chance.random() < 0.02 else ""
        touched: list[str] = []
        began = time.monotonic()
        for _ in range(min(most, self._chance.choice(_BURSTS))):
            self.tally.rotations += 1
            touched += self._change(touched)
            self._publish()
        if kill:
            time.sleep(self._chance.uniform(0, 0.3))  # not waiting for anything: this is the moment
            self.host.kill(AGENT)
            self.tally.killed += 1
        if hand:
            self.host.run("systemctl", "restart", f"soak@{hand}.service")
            self.tally.by_hand += 1
        try:
            wait_until(lambda: not self._behind(touched), self._lost_seconds, "the rotation")
        except Exception:  # noqa: BLE001 (counted)
            self.tally.lost += len(self._behind(touched))
        took = time.monotonic() - began
        self.tally.slowest = max(self.tally.slowest, took)
        self.tally.late += took > LATE_SECONDS
        self._count(touched, hand)

    def settle(self) -> None:
        """Let the agent look once more, then look at all VMs."""
        time.sleep(2 * RESYNC_SECONDS)  # for what must not happen
        self.tally.lost += len(self._behind(self._vms))
        self._count([], "")

    def sample(self, when: str) -> None:
        """Note what the agent holds now."""
        self.host.run("systemctl", "start", AGENT)  # it may be on its way up
        pid = self.host.unit(AGENT)["MainPID"]
        process = self.host.path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        self.tally.resources[when] = Resources(
            int(status["VmRSS"].split()[0]), len(list((process / "fd").iterdir())), int(status["Threads"])
        )

    def _change(self, spared: Sequence[str]) -> list[str]:
        """Change some secrets; the VMs that use them, none of which is to be spared."""
        value, draw = str(self.tally.rotations), self._chance.random()
        if draw < 0.1:
            self.tally.identical += 1
            if draw < 0.05:
                self._published["unused"] = value
            return []
        shared = self._shared(self._chance.choice(self._vms))
        sharing = [vm for vm in self._vms if self._shared(vm) == shared]
        if draw < 0.13 and not set(sharing) & set(spared):
            self._published[shared] = value
            return sharing
        left = [vm for vm in self._vms if vm not in spared]
        touched = self._chance.sample(left, min(len(left), self._chance.choice((1, 1, 1, 2, 3))))
        self._published |= {f"own/{vm}": value for vm in touched}
        return touched

    def _behind(self, vms: Sequence[str]) -> list[str]:
        """VMs that do not run what is published."""
        return [vm for vm in vms if self._delivered(vm) != self._expected(vm)]

    def _delivered(self, vm: str) -> str:
        try:
            (self._run / vm / "stamp.json").stat()
            return (self._run / vm / "delivered").read_text()
        except OSError:
            return ""

    def _expected(self, vm: str) -> str:
        return f"{self._published[f'own/{vm}']} {self._published[self._shared(vm)]}\n"

    def _count(self, touched: Sequence[str], hand: str) -> None:
        """Compare how often each VM was started, or got a push, with how often it had to."""
        for vm in self._vms:
            starts = (self._counts / f"{vm}.starts").stat().st_size // len("start\n")
            is_restarted = vm in touched and vm not in self._live
            least = self._starts[vm] + (is_restarted or vm == hand)
            most = self._starts[vm] + self._spare[vm] + is_restarted + (vm == hand)
            self.tally.restarts += starts - self._starts[vm]
            self.tally.doubled += max(0, starts - most)
            self._starts[vm] = max(starts, least)
            # If the start by hand brought the new value, the agent may have asked for its own right before,
            # and that one may come only after this count.
            self._spare[vm] = max(0, most - self._starts[vm]) if vm == hand else 0
        for vm in self._live:
            pushes = self._loads(vm)
            self.tally.pushes += pushes - self._pushes[vm]
            self.tally.doubled += max(0, pushes - self._pushes[vm] - (vm in touched))
            self._pushes[vm] = pushes

    def _loads(self, vm: str) -> int:
        """How many values the guest of a live VM has taken."""
        try:
            return len((self._counts / f"{vm}.loads").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def _publish(self) -> None:
        assert self._producer.stdin
        assert self._producer.stdout
        self._producer.stdin.write(json.dumps(self._published) + "\n")
        self._producer.stdin.flush()
        assert self._producer.stdout.readline()

    def _shared(self, vm: str) -> str:
        return f"shared-{self._vms.index(vm) // _VMS_PER_SHARED}"

    def _units(self) -> list[str]:
        return [f"soak@{vm}" for vm in self._vms]

    def _lay_out(self) -> None:
        host = self.host
        host.write(f"{_INSIDE}/light_vm.sh", (_SUPPORT / "light_vm.sh").read_bytes(), 0o755)
        for program in ("push_guest.py", "soak_guest.py"):
            host.write(f"{_INSIDE}/{program}", (_SUPPORT / program).read_bytes())
        host.write("/etc/systemd/system/soak@.service", _UNIT)
        push = (CHECKOUT / "contrib/systemd" / _PUSH_UNIT).read_text()
        for theirs, own in {"microvm@": "soak@", "=microvm": "=root", "=kvm": "=root"}.items():
            assert theirs in push
            push = push.replace(theirs, own)
        host.write(f"/etc/systemd/system/{_PUSH_UNIT}", push)
        drop_in = (CHECKOUT / "contrib/systemd/credferry-vm.conf").read_bytes()
        host.write("/etc/systemd/system/soak@.service.d/50-credferry.conf", drop_in)
        host.write(f"/etc/systemd/system/{AGENT}.d/50-soak.conf", _AGENT_UNIT)
        host.run("mkdir", "/run/soak")
        host.run("systemctl", "daemon-reload")
        vms = (
            f'[vms.{vm}]\nunit = "soak@{vm}.service"\nlive = {str(vm in self._live).lower()}\n'
            f"[vms.{vm}.credentials]\n"
            f'OWN = {{ secret = "own/{vm}" }}\nSHARED = {{ secret = "{self._shared(vm)}" }}\n'
            for vm in self._vms
        )
        host.write(CONFIG, _TABLES + "".join(vms))


def soak(
    rotations: int,
    vms: int,
    *,
    seed: int = 1,
    minutes: float = 1e9,
    kill: float = 0.02,
    progress: int = 0,
) -> Tally:
    """Run a soak; it ends early, in order, when the minutes are over.

    ``kill`` is how likely the agent is killed in a rotation of the first third. The process that is left
    does the other two thirds: what it holds is sampled at their start, middle and end.
    """
    with ExitStack() as stack:
        run = Soak(stack, vms, seed)
        chance = random.Random(seed)  # noqa: S311 (the same moments in each run)
        began = time.monotonic()
        told = 0
        while (
            share := max(run.tally.rotations / rotations, (time.monotonic() - began) / (60 * minutes))
        ) < 1:
            run.rotate(kill=share < 1 / 3 and chance.random() < kill, most=rotations - run.tally.rotations)
            for when, least in (("start", 1 / 3), ("middle", 2 / 3)):
                if share >= least and when not in run.tally.resources:
                    run.sample(when)
            if progress and run.tally.rotations - told >= progress:
                told = run.tally.rotations
                speed = run.tally.rotations / (time.monotonic() - began)
                print(f"{run.tally.rotations} rotations, {speed:.2f} a second", file=sys.stderr, flush=True)  # noqa: T201 (its output)
        run.settle()
        run.sample("end")
        return run.tally


def main() -> int:
    """The command. 0 where nothing was lost or doubled."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rotations", type=int, default=_FULL)
    parser.add_argument("--vms", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=1e9, help="end earlier, after so long")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    tally = soak(asked.rotations, asked.vms, seed=asked.seed, minutes=asked.minutes, progress=100)
    seconds = time.monotonic() - began
    if tally.rotations >= _FULL:  # the page is of the last run of full length
        note(Number.SOAK_ROTATIONS, tally.rotations)
        note(Number.SOAK_LOST, tally.lost)
        note(Number.SOAK_DOUBLED, tally.doubled)
        note(Number.SOAK_LATE, tally.late)
    lines = [
        f"{tally.rotations} rotations over {asked.vms} light VMs in {seconds:.0f} s",
        f"{tally.restarts} restarts, {tally.pushes} pushes",
        f"{tally.identical} rotations without a change for any VM",
        f"{tally.killed} kills of the agent, {tally.by_hand} restarts by hand",
        f"lost {tally.lost}, doubled {tally.doubled}, late {tally.late} (over {LATE_SECONDS:.0f} s)",
        f"slowest {tally.slowest:.1f} s",
        *(f"agent, {when}: {held}" for when, held in tally.resources.items()),
    ]
    print("\n".join(lines))  # noqa: T201 (its output)
    return int(bool(tally.lost or tally.doubled))


if __name__ == "__main__":
    sys.exit(main())
