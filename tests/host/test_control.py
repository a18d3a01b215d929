# SPDX-License-Identifier: MIT
"""The agent on the system bus, under the real dbus-daemon and its policy, as busctl and others see it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from agent.interface import AGENT_INTERFACE, NAME, PATH, VM_INTERFACE, vm_path
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment
from tests.support.host import Host
from tests.support.installation import CHECKOUT, install
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.host

AGENT = "credferry.service"
MEMBER, STRANGER = "reader", "stranger"
CONFIG = """
[vms.web.credentials]
API_KEY = { secret = "api-key" }

[vms.db-1.credentials]
PASSWORD = { secret = "db/password" }
"""
DENIED = "Access denied"


@dataclass(slots=True)
class Bus:
    """Two VMs in step, and the agent on the bus."""

    host: Host
    deployment: Deployment
    sops: SopsNix
    values: dict[str, bytes]

    def publish(self, **values: bytes) -> None:
        """Publish other values."""
        names = {"api_key": "api-key", "password": "db/password"}
        self.values |= {names[name]: value for name, value in values.items()}
        self.sops.publish(self.values)

    def call(self, method: str, *arguments: str, user: str | None = None) -> str:
        """Call a method of the agent; its error, or nothing."""
        signature = ("s",) if arguments else ()
        command = ("busctl", "call", NAME, PATH, AGENT_INTERFACE, method, *signature, *arguments)
        done = self.host.run(*command, check=False, user=user)
        return done.stderr.strip() if done.returncode else ""

    def vm(self, name: str, user: str | None = None) -> dict[str, Any]:
        """The properties of a VM's object."""
        command = ("busctl", "--json=short", "call", NAME, vm_path(name))
        call = ("org.freedesktop.DBus.Properties", "GetAll", "s", VM_INTERFACE)
        answer = json.loads(self.host.run(*command, *call, user=user).stdout)
        return {key: value["data"] for key, value in answer["data"][0].items()}

    def wait_vm(self, name: str, **properties: object) -> dict[str, Any]:
        """Wait until a VM's object has these properties; all of them."""
        self.host.wait(
            lambda: self.is_there() and properties.items() <= self.vm(name).items(), 30, f"{properties}"
        )
        return self.vm(name)

    def is_there(self) -> bool:
        """Whether the agent has its name, and shows both VMs."""
        listed = self.host.run("busctl", "--list", "tree", NAME, check=False).stdout.split()
        return vm_path("web") in listed and vm_path("db-1") in listed

    def starts(self) -> int:
        """How often the first VM was started."""
        return self.deployment.starts("web")


@pytest.fixture(scope="module")
def running() -> Iterator[Bus]:
    """A host of its own, whose bus may be ill-treated, with a member of the group and somebody else."""
    with Host(cache_directory()) as host:
        users = (CHECKOUT / "contrib/sysusers/credferry.conf").read_text()
        host.write("/usr/lib/sysusers.d/credferry.conf", users)
        host.run("systemd-sysusers", "credferry.conf")
        host.run("useradd", "--no-create-home", "--groups", "credferry", MEMBER)
        host.run("useradd", "--no-create-home", STRANGER)
        install(host)
        host.run("systemctl", "reload", "dbus.service")
        deployment, sops = Deployment(host), SopsNix(host)
        made = Bus(host, deployment, sops, {"api-key": b"value 0", "db/password": b"value 0"})
        for name in ("web", "db-1"):
            deployment.add_vm(name)
        made.publish()
        deployment.configure(CONFIG)
        deployment.credferry("sync", "--no-restart")
        deployment.start_vm("web", "db-1")
        deployment.start_agent()
        host.wait(made.is_there, 20, "the agent on the bus")
        yield made


@pytest.fixture
def bus(running: Bus) -> Bus:
    """The same, in step."""
    if running.host.run("systemctl", "is-active", AGENT, check=False).returncode:
        running.deployment.start_agent()
    for name in ("web", "db-1"):
        running.wait_vm(name, State="in step", Order="", Held=False)
    return running


def test_it_reads_well(bus: Bus) -> None:
    """What busctl shows: methods and signals, and an object for each VM with where it stands, and why."""
    shown = bus.host.run("busctl", "introspect", NAME, PATH).stdout
    for member in (".Sync", ".Plan", ".Rotate", ".Rollback", ".Hold", ".Release", ".Retry"):
        assert f"\n{member} " in shown
    for member in (".Published", ".Sealed", ".Restarted", ".RolledBack", ".Refused"):
        assert f"\n{member} " in shown
    web = bus.vm("web")
    assert web["Name"] == "web"
    assert web["Unit"] == "microvm@web.service"
    assert web["UnitState"] == "active (running)"
    assert web["Sealed"] == web["Running"] > 0
    assert web["LastResult"] == f"started on generation {web['Running']}"
    assert abs(web["Since"] - int(bus.host.run("date", "+%s").stdout)) < 3600
    assert bus.vm("db-1")["State"] == "in step"
