# SPDX-License-Identifier: MIT
"""Several sources on a real systemd: one of sops-nix, and one that a client of ACME writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

pytestmark = pytest.mark.host

ACME = "/var/lib/acme/example.org"
CONFIG = f"""
[sources.acme]
path = "{ACME}"
quiet_seconds = 0.5

[vms.web.credentials]
API_KEY = {{ secret = "api-key" }}
TLS_KEY = {{ secret = "key.pem", source = "acme" }}

[vms.db.credentials]
API_KEY = {{ secret = "api-key" }}
"""


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Two light VMs, of which one takes a key from a second source."""
    made = Deployment(host)
    for name in ("web", "db"):
        made.add_vm(name)
    made.configure(CONFIG)
    yield made
    made.close()
    host.run("rm", "-rf", "/var/lib/acme")


def write_key(host: Host, value: str) -> None:
    """Write the key as its owner, who is not root and lets no other user read it."""
    host.run("install", "-d", "-m", "0750", "-o", "daemon", ACME)
    host.run(
        *("runuser", "-u", "daemon", "--", "sh", "-c"),
        f"umask 077; printf %s {value} >{ACME}/key.pem",
    )


def findings(deployment: Deployment, check: str) -> list[str]:
    """What doctor finds about something."""
    found = json.loads(deployment.credferry("doctor", "--json", check=False))["findings"]
    return [each["what"] for each in found if each["check"] == check]


def test_each_source_serves_its_own_vms(deployment: Deployment, host: Host, sops: SopsNix) -> None:
    """A source that is missing concerns its VM alone; once it is there, its changes arrive like others'."""
    sops.publish({"api-key": b"one"})
    write_key(host, "first")
    deployment.credferry("agent", "--once")
    deployment.start_vm("web", "db")
    deployment.start_agent()
    assert deployment.delivered("web") == {"API_KEY": b"one", "TLS_KEY": b"first"}
    assert "secret key.pem of acme is published, for web" in findings(deployment, "source.secret")
    host.run("mv", ACME, f"{ACME}.old")
    lost = host.wait_journal(
        lambda entry: "source acme" in entry["MESSAGE"], MESSAGE_ID=Event.SOURCE_LOST.value
    )
    assert "(web)" in lost["MESSAGE"]
    sops.publish({"api-key": b"two"})
    host.wait(lambda: deployment.starts("db") == 2, 20, "restart of db")
    assert deployment.status()["web"]["state"] == "refused"
    assert findings(deployment, "source")[1:] == [f"source acme: {ACME}: No such file or directory"]
    assert deployment.starts("web") == 1
    write_key(host, "second")
    host.wait(lambda: deployment.starts("web") == 2, 20, "restart of web")
    deployment.wait_in_step("web")
    assert deployment.delivered("web") == {"API_KEY": b"two", "TLS_KEY": b"second"}
    assert deployment.starts("db") == 2
    assert "key.pem of acme" in deployment.credferry("show", "web")
