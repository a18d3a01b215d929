# SPDX-License-Identifier: MIT
"""Values that a software TPM2 sealed reach a VM through the real PID 1. Without the TPM no VM is taken down.

PID 1, systemd-creds and the agent use the same TPM: systemd's variable SYSTEMD_TPM2_DEVICE names it.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.sealing.kinds import HOST, HOST_TPM2, KeyKind, kind_of
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment
from tests.support.host import Host
from tests.support.installation import CHECKOUT, install
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.host

PORT = 2321
VARIABLE, DEVICE = "SYSTEMD_TPM2_DEVICE", f"mssim:host=127.0.0.1,port={PORT}"
PROGRAM = "/usr/lib/credferry-test/tpm.py"
TABLES = """
[source]
quiet_seconds = 0.2
resync_seconds = 1.0
[rollout]
retry_seconds = 0.2
stamp_seconds = 5.0
[vms.web.credentials]
KEY = { secret = "key" }
"""
CONFIG = 'seal_key = "host+tpm2"' + TABLES
# What contrib's drop-in does for the kernel's TPM, this does for one that is reached over TCP.
REACH = f"""[Service]
PrivateNetwork=no
IPAddressAllow=localhost
RestrictAddressFamilies=AF_INET
Environment={VARIABLE}={DEVICE}
"""
TPM = """[Service]
Type=notify
ExecStart=/usr/bin/python3 -I {program} /var/lib/{state} {port}
"""


class Site:
    """A light VM, the agent, and a TPM that can be switched off or exchanged."""

    def __init__(self, host: Host) -> None:
        self.host, self.deployment, self.sops = host, Deployment(host), SopsNix(host)
        self.value = b""
        host.write(PROGRAM, (CHECKOUT / "tests/support/tpm.py").read_text())
        self.put("one")
        for unit in ("credferry", "credferry-seal", "credferry-seal@"):
            place = f"/etc/systemd/system/{unit}.service.d"
            host.write(f"{place}/60-tpm.conf", (CHECKOUT / "contrib/systemd/credferry-tpm.conf").read_text())
            host.write(f"{place}/70-reach.conf", REACH)
        self.deployment.add_vm("web")

    def put(self, state: str) -> None:
        """Put another TPM into the machine, and switch it on."""
        text = TPM.format(program=PROGRAM, state=state, port=PORT)
        self.host.write("/etc/systemd/system/tpm.service", text)
        self.host.run("systemctl", "daemon-reload")
        self.host.run("systemctl", "restart", "tpm.service")

    def publish(self) -> None:
        """Publish a value that has never been."""
        self.value = f"value {time.monotonic_ns()}".encode()
        self.sops.publish({"key": self.value})

    def findings(self) -> dict[str, str]:
        """What the doctor finds about the TPM and the VM's generation, by check."""
        done = self.host.run("credferry", "doctor", "--json", check=False, env={VARIABLE: DEVICE})
        found = {
            each["check"]: f"{each['severity']}: {each['what']}"
            for each in json.loads(done.stdout)["findings"]
        }
        return {name: what for name, what in found.items() if name.startswith(("key.tpm", "vm.generation"))}

    def kind(self) -> KeyKind | None:
        """What the current value is sealed with."""
        return kind_of(self.host.path("/var/lib/credferry/vms/web/current/value.KEY").read_bytes())

    def wait_arrived(self) -> None:
        """Wait until the VM runs what is published."""
        self.deployment.wait_in_step("web")
        assert self.deployment.delivered("web") == {"KEY": self.value}

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within, the VM is not started again, and keeps running."""
        before = self.deployment.starts("web")
        yield
        assert self.deployment.starts("web") == before
        assert self.deployment.unit("web")["ActiveState"] == "active"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A VM in step with what is published, and sealed with the host's key and the TPM."""
    with Host(cache_directory(), {VARIABLE: DEVICE}) as host:
        install(host)
        made = Site(host)
        made.publish()
        made.deployment.configure(CONFIG)
        made.deployment.start_agent()
        made.deployment.start_vm("web")
        yield made


def test_pid_1_opens_what_the_tpm_sealed(site: Site) -> None:
    """A start and a rotation deliver values that need the host's key and the TPM."""
    site.wait_arrived()
    assert site.kind() is HOST_TPM2
    found = site.findings()
    assert found["key.tpm"].startswith(
        "ok: new values are sealed with the host's key and a TPM2, bound to PCR 7;"
    )
    assert found["key.tpm.device"].startswith("ok: ")
    assert "sealed with the host's key and a TPM2" in found["vm.generation"]
    assert found["vm.generation.systemd"].startswith("ok: ")
    said = site.host.run("credferry", "check", env={VARIABLE: DEVICE}).stderr
    assert "new values are sealed with the host's key and a TPM2" in said
    site.publish()
    site.wait_arrived()


def test_without_the_tpm_nothing_is_taken_down(site: Site) -> None:
    """A rotation while the TPM is off is refused, and arrives once the TPM is on again."""
    site.host.run("systemctl", "stop", "tpm.service")
    with site.untouched():
        began = time.time() * 1e6
        site.publish()
        site.host.wait_journal(
            lambda entry: "TPM2" in entry["MESSAGE"] and int(entry["__REALTIME_TIMESTAMP"]) >= began,
            MESSAGE_ID=Event.REFUSED.value,
            CREDFERRY_VM="web",
        )
    site.host.run("systemctl", "start", "tpm.service")
    site.wait_arrived()


def test_another_tpm_has_all_sealed_again(site: Site) -> None:
    """As in another machine, nothing opens. The agent seals again and restarts nothing; the VM can start."""
    with site.untouched():
        site.host.run("systemctl", "stop", "credferry.service")
        site.put("two")
        assert site.findings()["key.tpm.other"].startswith("problem: the TPM does not open what it sealed")
        site.deployment.start_agent()
        site.deployment.wait_in_step("web")
    site.host.run("systemctl", "restart", "microvm@web.service")
    site.wait_arrived()


def test_a_change_of_the_setting_restarts_nothing(site: Site) -> None:
    """Back with the host's key, the VM runs on, and starts without the TPM."""
    with site.untouched():
        site.deployment.configure(TABLES)
        site.host.run("systemctl", "reload", "credferry.service")
        site.host.wait(lambda: site.kind() is HOST, 20, "values that are sealed with the host's key")
        site.deployment.wait_in_step("web")
    site.host.run("systemctl", "stop", "tpm.service")
    site.host.run("systemctl", "restart", "microvm@web.service")
    site.wait_arrived()
