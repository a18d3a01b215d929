# SPDX-License-Identifier: MIT
"""Several sources on a real systemd: one of sops-nix, and one that a client of ACME writes."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


PAIR = f"""
[sources.acme]
path = "{ACME}"
quiet_seconds = 0.2

[vms.web]
pairs = [["TLS_CERT", "TLS_KEY"]]
guest_systemd = 257
[vms.web.credentials]
TLS_CERT = {{ secret = "fullchain.pem", source = "acme" }}
TLS_KEY = {{ secret = "key.pem", source = "acme" }}
"""


def renewed(kind: str, directory: Path) -> dict[str, bytes]:
    """A certificate and its key, as openssl writes them."""
    key, certificate = directory / f"{kind}.key", directory / f"{kind}.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", *kind.split(), "-nodes", "-subj", "/CN=example.org"),
            *("-days", "9", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return {"fullchain.pem": certificate.read_bytes(), "key.pem": key.read_bytes()}


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


def test_a_renewal_is_one_restart(deployment: Deployment, host: Host, tmp_path: Path) -> None:
    """A client such as lego writes the certificate first, other clients the key. Nothing half goes out.

    Between the two writes the VM is shown as waiting, so any time may pass there.
    """
    deployment.configure(PAIR)
    old, new, last = (renewed(kind, tmp_path) for kind in ("rsa:2048", "ed25519", "rsa:3072"))
    for name, value in old.items():
        host.write(f"{ACME}/{name}", value, 0o600)
    deployment.credferry("agent", "--once")
    deployment.start_vm("web")
    deployment.start_agent()
    for number, (pair, order) in enumerate(
        ((new, ("fullchain.pem", "key.pem")), (last, ("key.pem", "fullchain.pem")))
    ):
        host.write(f"{ACME}/{order[0]}", pair[order[0]], 0o600)
        host.wait(
            lambda: deployment.status()["web"]["state"] == "waiting", 20, "the VM to wait for its pair"
        )
        assert deployment.status()["web"]["reasons"] == [
            "for its pair: TLS_CERT is of another key than TLS_KEY"
        ]
        assert findings(deployment, "vm.pairs") == [
            "waits for its pair: TLS_CERT is of another key than TLS_KEY"
        ]
        assert deployment.starts("web") == 1 + number
        host.write(f"{ACME}/{order[1]}", pair[order[1]], 0o600)
        host.wait(lambda number=number: deployment.starts("web") == 2 + number, 20, "restart of web")  # type: ignore[misc]  # a default binds the number
        deployment.wait_in_step("web")
        assert deployment.delivered("web") == {"TLS_CERT": pair["fullchain.pem"], "TLS_KEY": pair["key.pem"]}
    assert deployment.status()["web"]["sealed"]["generation"] == 3
