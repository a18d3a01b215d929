# SPDX-License-Identifier: MIT
"""A VM without microvm.nix: its spec, its units, and a rotation."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import LIGHT_KERNEL, Deployment
from tests.support.installation import CHECKOUT, HYPERVISOR, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

HOME = "/var/lib/microvms/test-vm"
UNIT = "microvm@test-vm.service"
IS_REAL = bool(os.environ.get("CLOUD_HYPERVISOR"))
"""Whether a real hypervisor boots the kernel, which halts, and so hears of no power button."""
SPEC = f"""
name = "test-vm"
hypervisor = "{HYPERVISOR}"
kernel = "{LIGHT_KERNEL}"
cpus = 2
memory = 1024
"""


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """The example's VM, without its disk and its network, as a light one."""
    made = Deployment(host)
    host.write(f"{HOME}/current/vm.toml", SPEC)
    serve(host, "test-vm")
    light = "[Service]\nEnvironment=CREDFERRY_STANDIN_BOOT=0\n"
    if IS_REAL:
        light += "TimeoutStopSec=5s\n"
    host.write(f"/etc/systemd/system/{UNIT}.d/60-light.conf", light)
    host.run("systemctl", "daemon-reload")
    yield made
    host.run("systemctl", "stop", UNIT, "microvm-virtiofsd@test-vm.service", check=False)
    made.close()
    host.run("rm", "-rf", HOME, f"/etc/systemd/system/{UNIT}.d")
    host.run("systemctl", "daemon-reload")


def test_the_units_start_restart_and_end_a_vm_from_its_spec(deployment: Deployment, sops: SopsNix) -> None:
    """With the example's configuration: started by its unit, restarted for a rotation, ended by its unit."""
    host = deployment.host
    example = (CHECKOUT / "contrib/examples/config.toml").read_text()
    deployment.configure(example[example.index("[vms") :])
    sops.publish({"api-key": b"first"})
    deployment.credferry("agent", "--once")
    deployment.start_vm("test-vm")
    assert deployment.delivered("test-vm") == {
        "API_KEY": b"first",
        "CLUSTER": b"britton-desktop",
        "ENVIRONMENT": b"test",
    }
    assert deployment.vm_info("test-vm")["config"]["cpus"]["boot_vcpus"] == 2
    pid = deployment.unit("test-vm")["MainPID"]
    assert "--api-socket\0test-vm.sock\0" in host.run("cat", f"/proc/{pid}/cmdline").stdout
    for unit in ("microvm-virtiofsd@test-vm.service", "microvm-tap-interfaces@test-vm.service"):
        assert host.unit(unit)["ActiveState"] == "active"
    deployment.start_agent()
    sops.publish({"api-key": b"second"})
    deployment.wait_in_step("test-vm")
    host.wait(lambda: deployment.delivered("test-vm")["API_KEY"] == b"second", 20, "the second value")
    host.run("systemctl", "stop", UNIT)
    assert deployment.unit("test-vm")["Result"] == ("timeout" if IS_REAL else "success")
    for unit in ("microvm-virtiofsd@test-vm.service", "microvm-tap-interfaces@test-vm.service"):
        host.wait(lambda unit=unit: host.unit(unit)["ActiveState"] == "inactive", 20, f"the end of {unit}")  # type: ignore[misc]  # a default binds the name


def test_a_spec_that_the_launcher_would_refuse_is_found_before_the_first_start(
    deployment: Deployment, sops: SopsNix
) -> None:
    """By doctor and check, as root. A spec that the VM's user can change is not judged."""
    host = deployment.host
    example = (CHECKOUT / "contrib/examples/config.toml").read_text()
    deployment.configure(example[example.index("[vms") :])
    sops.publish({"api-key": b"first"})
    assert "vm.arguments" in deployment.credferry("doctor", "--all", check=False)
    assert host.run("credferry", "check").stderr == ""
    for options, said in (('["-v"]', "-v would make"), ('["--gpu", "x"]', "--gpu")):
        host.write(f"{HOME}/current/vm.toml", f"{SPEC}options = {options}\n")
        findings = json.loads(deployment.credferry("doctor", "--json", check=False))["findings"]
        (about,) = [each for each in findings if each["check"] == "vm.arguments"]
        assert (about["severity"], said in about["what"]) == ("problem", True), about
        checked = host.run("credferry", "check", check=False)
        assert (checked.returncode, said in checked.stderr) == (1, True), checked.stderr
    host.run("chown", "microvm", f"{HOME}/current/vm.toml")
    checked = host.run("credferry", "check")
    assert (
        f"cannot tell whether the launcher accepts its arguments: {HOME}/current/vm.toml" in checked.stderr
    )
