# SPDX-License-Identifier: MIT
"""A sealed value's file, copied over another one of the same name: nobody gets what is not theirs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from credferry.launcher.errors import Exit
from tests.support.deployment import Deployment
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

CONFIG = """
[vms.web.credentials]
API_KEY = { secret = "web-key" }
[vms.db.credentials]
API_KEY = { secret = "db-key" }
"""
VMS = "/var/lib/credferry/vms"


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Two tenants with a credential of one name each; web has had an older value."""
    deployment = Deployment(host)
    deployment.configure(CONFIG)
    sops = SopsNix(host)
    for name in ("web", "db"):
        deployment.add_vm(name)
    sops.publish({"web-key": b"revoked", "db-key": b"another tenant's"})
    deployment.start_agent()
    deployment.start_vm("web", "db")
    sops.publish({"web-key": b"right", "db-key": b"another tenant's"})
    deployment.wait_in_step("web")
    deployment.wait_noted("web")  # until then, a VM that is down is the agent's to bring up
    yield deployment
    deployment.close()
    sops.remove()


@pytest.mark.parametrize("source", ["db/generations/1", "web/generations/1"])
def test_a_swapped_value_reaches_no_guest(deployment: Deployment, host: Host, source: str) -> None:
    """The launcher refuses the start and names the credential; what doctor prints mends it."""
    host.run("systemctl", "stop", "microvm@web.service")
    host.run("cp", f"{VMS}/{source}/value.API_KEY", f"{VMS}/web/current/value.API_KEY")
    host.run("systemctl", "start", "microvm@web.service")
    host.wait(lambda: deployment.unit("web")["ActiveState"] == "failed", 20, "the launcher's refusal")
    assert deployment.unit("web")["ExecMainStatus"] == str(int(Exit.CREDENTIALS))
    said = "credential API_KEY is not the value that was sealed for generation 2 of VM web"
    host.wait_journal(lambda entry: said in entry.get("MESSAGE", ""), 20)
    found = json.loads(deployment.credferry("doctor", "--json", "--vm", "web", check=False))["findings"]
    [finding] = [each for each in found if each["check"] == "vm.generation"]
    assert finding["severity"] == "problem"
    for command in finding["commands"]:
        host.run("sh", "-c", command)
    deployment.start_vm("web")
    deployment.wait_in_step("web")
    assert deployment.delivered("web") == {"API_KEY": b"right"}
    assert deployment.delivered("db") == {"API_KEY": b"another tenant's"}
