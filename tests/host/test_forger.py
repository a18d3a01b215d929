# SPDX-License-Identifier: MIT
"""A process of the user that all VMs run as, as microvm.nix has it, that forges what it can write."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.reconcile.observed import NOT_REPORTED
from credferry.launcher.handoff import OEM_TOTAL_MAX, Channel, Manifest, Stamp
from tests.support.deployment import Deployment, broken_by_bad
from tests.support.installation import VM_USER
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

CONFIG = """
[source]
quiet_seconds = 0.2
resync_seconds = 0.5
[rollout]
retry_seconds = 0.2
stamp_seconds = 3.0
[vms.web.credentials]
WEB_KEY = { secret = "web-key" }
[vms.db.credentials]
DB_KEY = { secret = "db-key" }
"""
STAMP = "/run/credferry-vms/db/stamp.json"
EVIDENCE = "/run/credferry-evidence"
OLDER = "older"
"""Stands for the digest of a generation that the VM ran before."""


class Site:
    """Two VMs of one user, the agent, and who forges."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.deployment, self.sops = Deployment(host), SopsNix(host)
        self.values = {"web-key": b"web 1", "db-key": b"db 1"}
        self.known: dict[str, object] | None = None
        self.deployment.configure(CONFIG)
        self.deployment.add_vm("web")
        self.deployment.add_vm("db", broken_by_bad("DB_KEY"))
        self.sops.publish(self.values)
        self.deployment.start_agent()
        self.deployment.start_vm("web", "db")
        stamp = self.deployment.stamp("db")
        assert stamp is not None
        self.first = stamp.digest
        for value in (b"db 2", b"db 3"):
            self.rotate("db", value)

    def rotate(self, vm: str, value: bytes) -> None:
        """Publish another value for a VM, and see that it gets there."""
        self.older, self.known = self.manifest(), None
        self.values[f"{vm}-key"] = value
        self.sops.publish(self.values)
        self.deployment.wait_in_step(vm)
        self.deployment.wait_noted(vm)
        assert self.deployment.delivered(vm) == {f"{vm.upper()}_KEY": value}

    def forge(self, script: str) -> str:
        """Run a script as the VMs' user; what it prints."""
        return self.host.run("sh", "-c", script, user=VM_USER, check=False).stdout

    def looks(self) -> None:
        """Have the agent look once more, and again as one that has never seen a launcher's own report."""
        self.deployment.credferry("sync")
        self.host.run("systemctl", "stop", "credferry.service")
        self.host.run("sh", "-c", "rm -f /var/lib/credferry/vms/*/reported.json")
        self.host.run("systemctl", "start", "credferry.service")
        self.deployment.credferry("sync")

    def facts(self) -> dict[str, object]:
        """What must not change for what is forged."""
        rows = self.deployment.status()
        assert [each for row in rows.values() for each in row["reasons"] if each != NOT_REPORTED] == []
        told = (Event.RESTART_ASKED, Event.RESTART_FAILED, Event.ROLLED_BACK, Event.REFUSED, Event.SEALED)
        return {
            "invocations": [self.deployment.unit(vm)["InvocationID"] for vm in ("web", "db")],
            "audit": [len(self.host.journal(MESSAGE_ID=event.value)) for event in told],
            "status": {
                vm: {key: row[key] for key in ("state", "sealed", "running", "last_result")}
                for vm, row in rows.items()
            },
        }

    def settled(self) -> dict[str, object]:
        """The facts as they were last found; only a rotation may change them."""
        if self.known is None:
            self.known = self.facts()
        return self.known

    def manifest(self) -> Manifest:
        """What db runs, by evidence."""
        invocation = self.deployment.unit("db")["InvocationID"]
        return Manifest.from_bytes(self.host.path(f"{EVIDENCE}/db@{invocation}").read_bytes())

    def stamp(self, **forged: object) -> str:
        """A script that puts a stamp of the present invocation there, with some fields forged."""
        invocation, manifest = self.deployment.unit("db")["InvocationID"], self.manifest()
        true = Stamp(
            *(manifest.vm, manifest.generation, manifest.digest, manifest.run, invocation), Channel.API, 0
        )
        text = json.dumps({**json.loads(true.to_bytes()), **forged}).replace(OLDER, self.first)
        return f"printf %s {shlex.quote(text)} >{STAMP}.new && mv -f {STAMP}.new {STAMP}"


@pytest.fixture(scope="module")
def site(host: Host) -> Iterator[Site]:
    """Both in step: db has had three values."""
    made = Site(host)
    yield made
    made.deployment.close()


@pytest.mark.parametrize(
    "forged",
    [
        {"digest": "f" * 64},
        {"generation": 1, "digest": OLDER},
        {"generation": 2**40},
        {"generation": -1},
        {"generation": 2**31 - 1, "digest": "f" * 64},
        {"other_oem_bytes": OEM_TOTAL_MAX},
        {"other_oem_bytes": 2**70},
        {"other_oem_bytes": -1},
        {"room": 1},
        {"invocation_id": "0" * 32},
        {"vm": "web"},
    ],
    ids=repr,
)
def test_a_forged_stamp_changes_nothing(site: Site, forged: dict[str, object]) -> None:
    """Nothing is restarted, sealed, refused or rolled back, and all that is told stays true."""
    before = site.settled()
    site.forge(site.stamp(**forged))
    site.looks()
    assert site.facts() == before


@pytest.mark.parametrize(
    "script",
    [
        f"rm -f {STAMP}; mkfifo {STAMP}",
        f"rm -f {STAMP}; ln -s /etc/shadow {STAMP}",
        f"rm -f {STAMP}; ln -s /dev/zero {STAMP}",
        f"rm -f {STAMP}; truncate -s 4G {STAMP}",
        f"rm -f {STAMP}; mkdir {STAMP}",
        f"rm -f {STAMP}",
        f"printf '\\377[[[[' >{STAMP}",
    ],
)
def test_what_is_no_stamp_changes_nothing(site: Site, script: str) -> None:
    """Neither is it waited for, followed, or read without end."""
    before = site.settled()
    site.forge(script)
    site.looks()
    assert site.facts() == before
    site.host.run("rm", "-rf", STAMP)
    site.forge(site.stamp())


@pytest.mark.parametrize(
    "script",
    [
        f"echo forged >{EVIDENCE}/db@$(systemctl show -P InvocationID microvm@db.service)",
        f"rm -rf {EVIDENCE}/*",
        f"mv {EVIDENCE} /tmp/evidence",
        "mv /run/credferry-vms/db /run/credferry-vms/web2",
        "rm -rf /run/credferry-vms && mkdir /run/credferry-vms",
        f"cat {EVIDENCE}/*",
        f"ln {EVIDENCE}/* /tmp/",
    ],
)
def test_evidence_is_out_of_reach(site: Site, script: str) -> None:
    """It cannot be written, removed, replaced or read, and the directories above cannot be replaced."""
    before, listed = site.settled(), site.host.run("ls", "-lR", EVIDENCE).stdout
    assert site.forge(script) == ""
    site.looks()
    assert site.facts() == before
    assert site.host.run("ls", "-lR", EVIDENCE).stdout == listed


def test_rotations_go_on_under_a_forger(site: Site) -> None:
    """One that forges all the time delays its neighbour at most, and others not at all."""
    forging = site.stamp(digest=OLDER, generation=1, invocation_id="LATEST").replace(
        "LATEST", """'"$(systemctl show -P InvocationID microvm@db.service)"'"""
    )
    forger = site.host.spawn("sh", "-c", f"while :; do {forging}; done", user=VM_USER)
    try:
        site.rotate("web", b"web 2")
        site.rotate("db", b"db 4")
    finally:
        forger.kill()


def test_a_forged_size_holds_no_rotation_back(site: Site) -> None:
    """The launcher's own report came first and is kept: no later one counts, not in a new run either."""
    site.rotate("db", b"db 5")
    site.deployment.credferry("sync")
    site.forge(site.stamp(other_oem_bytes=OEM_TOTAL_MAX))
    site.host.run("systemctl", "restart", "credferry.service")
    site.rotate("db", b"db 6")


def test_a_rollback_goes_by_evidence(site: Site) -> None:
    """A forged older generation is not gone back to, though it is kept: its values were revoked.

    The agent sees the forged report before the launcher's own, and together with the next change.
    """
    site.rotate("db", b"db 7")
    before, good = site.deployment.status()["db"]["running"], site.deployment.delivered("db")
    site.host.run("systemctl", "stop", "credferry.service")
    site.host.run("rm", "/var/lib/credferry/vms/db/reported.json")
    site.forge(site.stamp(generation=site.older.generation, digest=site.older.digest))
    site.sops.publish({**site.values, "db-key": b"bad"})
    site.host.run("systemctl", "start", "credferry.service")
    site.host.wait_journal(lambda _entry: True, 60, MESSAGE_ID=Event.ROLLED_BACK.value)
    site.host.wait(
        lambda: site.deployment.status()["db"]["running"] == before, 20, "the last good generation"
    )
    assert site.deployment.delivered("db") == good
