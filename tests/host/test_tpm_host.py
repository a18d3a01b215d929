# SPDX-License-Identifier: MIT
"""Debian 12 and 13 as hosts with UEFI and a TPM of the kernel's. At night only.

`test_tpm` uses a software TPM with a real PID 1, but without the kernel's device. Here the TPM is the
kernel's device, with its rights. The firmware reports it, which systemd asks for before it chooses a TPM.
"""

from __future__ import annotations

import base64
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from credferry.agent.sealing.kinds import HOST_TPM2, KeyKind, kind_of
from tests.support.guest import STABLE
from tests.support.installation import CHECKOUT
from tests.support.machine import Machine, built, install

if TYPE_CHECKING:
    from collections.abc import Iterator

VM = "web.service"
CURRENT = "/var/lib/credferry/vms/web/current/value.KEY"
ROLLOUT = "/var/lib/credferry/vms/web/rollout.json"
SEEN = "/run/seen"
CONFIG = """
seal_key = "{seal_key}"
[source]
quiet_seconds = 0.2
resync_seconds = 5.0
[rollout]
retry_seconds = 1.0
stamp_seconds = 600.0
[vms.web]
unit = "web.service"
channel = "directory"
[vms.web.credentials]
KEY = {{ secret = "key" }}
"""
# A VM without a launcher: Python and a hypervisor take minutes to start here.
UNIT = f"""[Service]
Type=exec
ExecStart=/bin/sh -ec 'cat "$CREDENTIALS_DIRECTORY/credferry_value.KEY" >{SEEN}; exec sleep infinity'
[Install]
WantedBy=multi-user.target
"""
# sops-nix publishes at each boot, before the agent starts. This unit publishes what a test left on the disk.
PRODUCER = "/usr/lib/credferry-test/producer_inside.py"
PUBLISHING = f"""[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -IS {PRODUCER}
StandardInput=file:/root/publish.json
[Install]
WantedBy=multi-user.target
"""
# The emulated processor is a hundred times slower than a host's.
SLOW = "[Service]\nTimeoutStartSec=15min\nWatchdogSec=0\n"
# TPM2_Clear by the lockout hierarchy, whose password is empty: what tpm2_clear sends.
CLEAR = """
import os
tpm = os.open("/dev/tpmrm0", os.O_RDWR)
os.write(tpm, bytes.fromhex("8002 0000001b 00000126 4000000a 00000009 40000009 0000 00 0000"))
answer = os.read(tpm, 4096)
raise SystemExit(answer[6:10].hex() if any(answer[6:10]) else 0)
"""


class Site:
    """A machine with a light VM and the agent."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.value = machine, ""

    def configure(self, seal_key: str) -> None:
        """Write the configuration."""
        self.machine.write("/etc/credferry/config.toml", CONFIG.format(seal_key=seal_key))

    def publish(self) -> None:
        """Publish a value that has never been, now and at each boot from now on."""
        self.value = f"value-{time.monotonic_ns()}"
        files = {"key": base64.b64encode(self.value.encode()).decode()}
        call = {"do": "sops_nix", "link": "/run/secrets", "files": files, "swap": True, "keep": 1}
        self.machine.write("/root/publish.json", json.dumps(call))
        self.machine.run("systemctl", "restart", "sops-install-secrets.service")

    def wait_arrived(self) -> None:
        """Wait until the VM runs what is published, as PID 1 gave it, and the agent is done with it."""
        condition = f"grep -qx {self.value} {SEEN} && ! [ -e {ROLLOUT} ] && systemctl is-active {VM}"
        self.machine.wait_for(condition, "the value in the VM", 90)

    def kind(self) -> KeyKind | None:
        """What the current value is sealed with."""
        return kind_of(self.machine.run("cat", CURRENT).stdout.encode())

    def opens(self, blob: str) -> bool:
        """Whether the host opens a file of the store that was the value of KEY."""
        name = "--name=credferry_value.KEY"
        return self.machine.run("systemd-creds", "decrypt", name, blob, "-", check=False).returncode == 0

    def invocation(self) -> str:
        """The VM's invocation, of which each start makes a new one; empty while it does not run."""
        state = self.machine.unit(VM)
        return state["InvocationID"] if state["ActiveState"] == "active" else ""

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within, the VM is not started again, and keeps running."""
        before = self.invocation()
        assert before
        yield
        assert self.invocation() == before


@pytest.fixture(scope="module", params=STABLE, ids=str)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A VM in step with what is published, on a host whose systemd chooses what to seal with."""
    made = built(request.param)
    with Machine(made, tmp_path_factory.mktemp("machine")) as machine:
        machine.switch_on("one")
        install(machine, made)
        yield _set_up(machine)


def _set_up(machine: Machine) -> Site:
    drop_in = (CHECKOUT / "contrib/systemd/credferry-tpm.conf").read_text()
    for unit in ("credferry", "credferry-seal", "credferry-seal@"):
        machine.write(f"/etc/systemd/system/{unit}.service.d/60-tpm.conf", drop_in)
    for unit in ("credferry", "credferry-seal", "credferry-seal@"):
        machine.write(f"/etc/systemd/system/{unit}.service.d/90-slow.conf", SLOW)
    wiring = (CHECKOUT / "contrib/systemd/credferry-unit.conf").read_text()
    machine.write(f"/etc/systemd/system/{VM}.d/50-credferry.conf", wiring)
    machine.write("/etc/systemd/system/sops-install-secrets.service", PUBLISHING)
    machine.write(PRODUCER, (CHECKOUT / "tests/support/producer_inside.py").read_bytes())
    machine.write(f"/etc/systemd/system/{VM}", UNIT)
    site = Site(machine)
    site.configure("auto")
    units = (
        "credferry.service",
        "credferry-seal.service",
        VM,
        "sops-install-secrets.service",
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", *units)
    site.publish()
    machine.run("systemctl", "start", "credferry.service", VM)
    return site


def test_systemd_chooses_host_and_tpm_and_a_rotation_arrives(site: Site) -> None:
    """With "auto", values need the host's key and the TPM. PID 1 opens them, after a rotation as well."""
    site.wait_arrived()
    assert site.kind() is HOST_TPM2
    said = site.machine.run("credferry", "check").stderr
    assert "new values are sealed with the host's key and a TPM2" in said
    site.publish()
    site.wait_arrived()


def test_a_tpm_that_is_cleared_has_all_sealed_again(site: Site) -> None:
    """What was sealed opens nothing any more. The agent seals all again while the VM keeps running."""
    site.machine.run("cp", CURRENT, "/root/before")
    assert site.opens("/root/before")
    with site.untouched():
        site.machine.run("python3", "-c", CLEAR)
        assert not site.opens("/root/before")
        site.machine.wait(lambda: site.opens(CURRENT), 20, "what is sealed again")
    site.machine.run("systemctl", "restart", VM)
    site.wait_arrived()


def test_in_another_machine_the_disk_is_sealed_again_before_vms_start(site: Site) -> None:
    """As in another machine, nothing of the store opens. The first sealing of the boot seals it again."""
    site.machine.run("cp", CURRENT, "/root/before")
    site.machine.switch_off()
    site.machine.switch_on("two")
    site.wait_arrived()
    assert not site.opens("/root/before")
    assert site.kind() is HOST_TPM2
    with site.untouched():
        site.machine.wait_for("systemctl is-active credferry.service", "the agent")
    assert site.machine.unit(VM)["NRestarts"] == "0"
