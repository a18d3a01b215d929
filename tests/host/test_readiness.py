# SPDX-License-Identifier: MIT
"""No rotation takes down a VM that would not start again; the VM is restarted once it can be."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.errors import ExitStatus
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment
from tests.support.host import Host
from tests.support.installation import VM_USER, install
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.host

HOST_KEY = "/var/lib/systemd/credential.secret"
VMS = ("web", "db")
CONFIG = "".join(f'[vms.{vm}.credentials]\nKEY = {{ secret = "key" }}\n' for vm in VMS)


@dataclass(slots=True)
class Site:
    """Two light VMs that share a secret, and the agent."""

    host: Host
    deployment: Deployment
    sops: SopsNix
    value: bytes = b""

    def publish(self) -> None:
        """Publish a value that has never been."""
        self.value = f"value {time.monotonic_ns()}".encode()
        self.sops.publish({"key": self.value})

    def starts(self) -> list[int]:
        """How often each VM was started."""
        return [self.deployment.starts(vm) for vm in VMS]

    def wait_refused(self, naming: str, since: float) -> None:
        """Wait until the audit says of both VMs that they are left running, and why."""
        for vm in VMS:
            self.host.wait_journal(
                lambda entry: naming in entry["MESSAGE"] and int(entry["__REALTIME_TIMESTAMP"]) >= since,
                MESSAGE_ID=Event.REFUSED.value,
                CREDFERRY_VM=vm,
            )

    def wait_arrived(self) -> None:
        """Wait until both VMs run what is published."""
        for vm in VMS:
            self.deployment.wait_in_step(vm)
            assert self.deployment.delivered(vm) == {"KEY": self.value}

    @contextmanager
    def unready(self, naming: str) -> Iterator[None]:
        """Within, a rotation is due that takes no VM down; after that, both are restarted, once."""
        before, began = self.starts(), time.time() * 1e6
        self.publish()
        self.wait_refused(naming, began)
        assert [each["state"] for each in self.status()] == ["refused", "refused"]
        assert self.starts() == before
        assert all(self.deployment.unit(vm)["ActiveState"] == "active" for vm in VMS)
        yield
        self.wait_arrived()
        assert self.starts() == [number + 1 for number in before]
        for vm in VMS:
            self.deployment.wait_noted(vm)

    def status(self) -> list[dict[str, str]]:
        """What ``credferry status`` says."""
        rows: list[dict[str, str]] = json.loads(self.deployment.credferry("status", "--json", check=False))
        return rows


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Both VMs in step with what is published."""
    with Host(cache_directory()) as host:
        install(host)
        made = Site(host, Deployment(host), SopsNix(host))
        for vm in VMS:
            made.deployment.add_vm(vm)
        made.publish()
        made.deployment.configure(CONFIG)
        made.deployment.credferry("agent", "--once")
        made.deployment.start_vm(*VMS)
        made.deployment.start_agent()
        made.wait_arrived()
        yield made


def test_a_key_that_systemd_would_not_take(site: Site) -> None:
    """With mode 0600 on the host's key neither VM is restarted; with 0400 again, both are."""
    site.host.run("chmod", "0600", HOST_KEY)
    with site.unready("chmod 0400"):
        ended = site.host.run("credferry", "status", check=False)
        assert ended.returncode == ExitStatus.KEY
        assert "mode is 0600" in ended.stderr
        for vm in VMS:
            assert [line for line in ended.stdout.splitlines() if line.split()[:1] == [vm]], ended.stdout
        site.host.run("chmod", "0400", HOST_KEY)


def test_a_key_of_another_user(site: Site) -> None:
    """Whoever owns the host's key could replace it between two looks."""
    site.host.run("chown", "nobody", HOST_KEY)
    with site.unready("chown root:root"):
        site.host.run("chown", "root:root", HOST_KEY)


def test_a_drop_in_that_is_gone_and_one_that_is_not_read(site: Site) -> None:
    """What counts is the unit as systemd has loaded it, and that it is what the files say."""
    paths = [f"/etc/systemd/system/microvm@{vm}.service.d/50-credferry.conf" for vm in VMS]
    for path in paths:
        site.host.run("sed", "-i", "/^LoadCredentialEncrypted=/s/^/#/", path)
    site.host.run("systemctl", "daemon-reload")
    with site.unready("does not load"):
        began = time.time() * 1e6
        for path in paths:
            site.host.run("sed", "-i", "/^#LoadCredentialEncrypted=/s/^#//", path)
        site.wait_refused("daemon-reload", began)
        site.host.run("systemctl", "daemon-reload")


_FILL = """
import os, sys
made = []
try:
    while True:
        os.mkdir(f"{sys.argv[1]}/{len(made)}")
        made.append(f"{sys.argv[1]}/{len(made)}")
except OSError:
    print("full", flush=True)
sys.stdin.read()
for each in made:
    os.rmdir(each)
"""


def test_a_runtime_directory_that_a_vms_user_has_filled(site: Site) -> None:
    """A start could make no directory: neither VM is restarted until there is room again."""
    host = site.host
    used = int(host.run("df", "--output=iused", "/run").stdout.split()[-1])
    # The host has 800,000, which would take longer.
    host.run("mount", "-o", f"remount,nr_inodes={used + 200}", "/run")
    site.deployment.credferry("hold", "web", "db")
    before, began = site.starts(), time.time() * 1e6
    site.publish()  # the producer needs room as well
    for vm in VMS:
        host.wait_journal(
            lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= began,
            MESSAGE_ID=Event.SEALED.value,
            CREDFERRY_VM=vm,
        )
    filling = host.spawn("/usr/bin/python3", "-I", "-c", _FILL, "/run/credferry-vms/web", user=VM_USER)
    assert filling.stdin
    assert filling.stdout
    assert filling.stdout.readline() == "full\n"
    host.run("credferry", "release", "web", "db", check=False)
    site.wait_refused("more files", began)
    assert site.starts() == before
    assert all(site.deployment.unit(vm)["ActiveState"] == "active" for vm in VMS)
    filling.stdin.close()
    filling.wait()
    site.wait_arrived()
    assert site.starts() == [number + 1 for number in before]
    for vm in VMS:
        site.deployment.wait_noted(vm)


def test_an_order_says_what_is_in_the_way(site: Site) -> None:
    """``credferry rotate`` restarts no VM that would not start again, either."""
    before = site.starts()
    site.host.run("chmod", "0600", HOST_KEY)
    ended = site.host.run("credferry", "rotate", "web", check=False)
    site.host.run("chmod", "0400", HOST_KEY)
    assert ended.returncode != ExitStatus.OK
    assert "chmod 0400" in ended.stdout + ended.stderr
    assert site.starts() == before


def test_status_without_a_key_and_without_an_agent(site: Site) -> None:
    """The table is there, with what can be seen without the key, and the exit status says what is wrong."""
    site.host.run("systemctl", "stop", "credferry.service")
    site.host.run("mv", HOST_KEY, f"{HOST_KEY}.away")
    try:
        ended = site.host.run("credferry", "status", "--json", check=False)
        assert ended.returncode == ExitStatus.KEY
        assert "does not exist" in ended.stderr
        rows = json.loads(ended.stdout)
        assert [row["vm"] for row in rows] == list(VMS)
        assert all(row["unit_state"] == "active (running)" for row in rows)
        assert all(row["sealed"]["generation"] == row["running"]["generation"] for row in rows)
        assert not site.host.path(HOST_KEY).exists()
    finally:
        site.host.run("mv", f"{HOST_KEY}.away", HOST_KEY)
        site.deployment.start_agent()
