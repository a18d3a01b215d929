# SPDX-License-Identifier: MIT
"""The packages: installed, at work, upgraded, removed, purged; on a host that has nothing else of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent import __version__
from credferry.agent.audit.events import Event
from tests.support.cache import cache_directory
from tests.support.deployment import CONFIG, Deployment
from tests.support.host import Host
from tests.support.installation import CHECKOUT, install_hypervisor
from tests.support.package import debian_package, drop_in_of_form_1, newer, of_form_1, wheel
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AGENT = "credferry.service"
PACKAGE = "/root/credferry.deb"
VMS = """
[vms.packed.credentials]
PACKED_KEY = { secret = "packed-key" }
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[Host]:
    """A host without credferry, on which services may be started."""
    with Host(cache_directory()) as booted:
        booted.run("rm", "-f", "/usr/sbin/policy-rc.d")
        install_hypervisor(booted)
        yield booted


def install(host: Host, package: Path) -> str:
    """Install a package as an administrator does; what dpkg says."""
    host.write(PACKAGE, package.read_bytes())
    done = host.run("dpkg", "-i", PACKAGE, timeout=120, env={"DEBIAN_FRONTEND": "noninteractive"})
    return done.stdout + done.stderr


def test_from_installation_to_purge(bare: Host, tmp_path: Path) -> None:
    """Enabled and idle at first; it rotates; upgrade and removal keep state and VM; nothing in the end."""
    host, package = bare, debian_package()
    _is_installed(host, package)
    deployment, sops = Deployment(host), SopsNix(host)
    _rotates(host, deployment, sops)
    _is_upgraded(host, deployment, newer(package, tmp_path))
    _is_removed(host, deployment)
    _comes_back(host, deployment, package)
    _is_purged(host, deployment)
    deployment.close()


def _is_installed(host: Host, package: Path) -> None:
    """Enabled, and nothing to do without a configuration."""
    install(host, package)
    assert host.run("dpkg-query", "-W", "-f", "${Version}", "credferry").stdout == __version__
    assert host.run("credferry", "--version").stdout == f"credferry {__version__}\n"
    for unit in (AGENT, "credferry-seal.service", "microvms.target"):
        assert host.run("systemctl", "is-enabled", unit).stdout == "enabled\n"
    state = host.unit(AGENT)
    assert (state["ActiveState"], state["ConditionResult"], state["Result"]) == ("inactive", "no", "success")
    assert Event.ROLLED_BACK.value in host.run("journalctl", "--list-catalog").stdout
    assert "credferry.toml" in host.run("man", "-w", "credferry.toml").stdout
    assert host.run("id", "-nG", "credferry").stdout == "credferry\n"
    listed = host.run("dpkg", "-L", "credferry").stdout.splitlines()
    assert [path for path in listed if path.startswith("/lib/")] == []
    assert {
        "/usr/lib/systemd/system/credferry.service",
        "/usr/share/bash-completion/completions/credferry",
        "/usr/share/zsh/vendor-completions/_credferry",
        "/usr/share/fish/vendor_completions.d/credferry.fish",
        "/usr/share/dbus-1/system.d/org.credferry.Agent1.conf",
        "/usr/share/doc/credferry/examples/credferry-vm.conf",
        "/usr/share/doc/credferry/examples/credferry-fleet.conf",
    } <= set(listed)
    modules = [path for path in listed if path.endswith(".py")]
    assert len(modules) == len([path for path in listed if path.endswith(".pyc")]) > 500
    # Of its own libraries, not those of this machine's Python.
    where = (
        "import sys; sys.path.insert(0, '/usr/lib/credferry'); import cryptography as c; print(c.__file__)"
    )
    assert host.run("/usr/bin/python3", "-I", "-c", where).stdout.startswith("/usr/lib/credferry/")


def _rotates(host: Host, deployment: Deployment, sops: SopsNix) -> None:
    """With a configuration the agent starts, and ferries."""
    deployment.configure(VMS)
    deployment.add_vm("packed")
    sops.publish({"packed-key": b"first"})
    host.run("systemctl", "start", AGENT)
    # An agent that does not get onto the bus at once is ready all the same.
    on_bus = ("busctl", "status", "org.credferry.Agent1")
    host.wait(lambda: host.run(*on_bus, check=False).returncode == 0, 20, "the agent on the bus")
    deployment.start_vm("packed")
    sops.publish({"packed-key": b"second"})
    deployment.wait_in_step("packed")
    host.wait(lambda: deployment.delivered("packed") == {"PACKED_KEY": b"second"}, 20, "the second value")


def _is_upgraded(host: Host, deployment: Deployment, package: Path) -> None:
    """The agent is a new one, the VM is not, and what was sealed is what it was."""
    agent, vm = host.unit(AGENT)["InvocationID"], deployment.unit("packed")["InvocationID"]
    sealed = deployment.status()["packed"]["sealed"]
    install(host, package)
    assert host.run("dpkg-query", "-W", "-f", "${Version}", "credferry").stdout == f"{__version__}+next"
    state = host.unit(AGENT)
    assert state["ActiveState"] == "active"
    assert state["InvocationID"] != agent
    deployment.wait_in_step("packed")
    assert deployment.unit("packed")["InvocationID"] == vm
    assert deployment.status()["packed"]["sealed"] == sealed


def _is_removed(host: Host, deployment: Deployment) -> None:
    """The agent is gone, its state and the VM are there."""
    vm = deployment.unit("packed")["InvocationID"]
    host.run("dpkg", "--remove", "credferry")
    assert host.unit(AGENT)["LoadState"] in {"not-found", "masked"}
    assert host.run("pgrep", "-f", "credferry agent", check=False).stdout == ""
    assert host.path("/var/lib/credferry/vms/packed/current/manifest").exists()
    assert host.path(CONFIG).exists()
    assert not host.path("/usr/lib/credferry").exists()
    assert not host.path("/usr/bin/credferry").exists()
    assert deployment.unit("packed")["InvocationID"] == vm


def _comes_back(host: Host, deployment: Deployment, package: Path) -> None:
    """Installed again, the agent goes on where it was."""
    vm = deployment.unit("packed")["InvocationID"]
    install(host, package)
    host.wait(lambda: host.unit(AGENT)["ActiveState"] == "active", 20, "the agent")
    deployment.wait_in_step("packed")
    assert deployment.unit("packed")["InvocationID"] == vm


def _is_purged(host: Host, deployment: Deployment) -> None:
    """Nothing of the package's own is left; host key, published secrets and VM are others', and stay."""
    vm = deployment.unit("packed")["InvocationID"]
    host.run("dpkg", "--purge", "credferry")
    left = ("/etc/credferry", "/var/lib/credferry", "/usr/lib/credferry", "/run/credferry")
    assert [path for path in left if host.path(path).exists()] == []
    found = host.run("find", "/etc/systemd/system", "-name", "credferry*.service").stdout
    assert found == ""
    assert host.path("/var/lib/systemd/credential.secret").exists()
    assert host.path("/run/secrets/packed-key").exists()
    assert deployment.unit("packed")["InvocationID"] == vm


UPGRADED = """
[vms.plain.credentials]
PLAIN_KEY = { secret = "plain-key" }
[vms.behind]
policy = "hold"
[vms.behind.credentials]
BEHIND_KEY = { secret = "behind-key" }
[vms.edited.credentials]
EDITED_KEY = { secret = "edited-key" }
"""
VALUES = ("plain", "behind", "edited")


def test_an_upgrade_from_the_first_form(bare: Host, tmp_path: Path) -> None:
    """A store and VMs of the first form are taken over; no VM is restarted for it, and rotations go on."""
    host, package = bare, debian_package()
    older = of_form_1(package, tmp_path)
    deployment, sops = Deployment(host), SopsNix(host)
    install(host, older)
    _runs_on_the_first_form(host, deployment, sops)
    before = {name: deployment.unit(name)["InvocationID"] for name in VALUES}
    host.run("mkdir", "/srv/roots")
    host.run("ln", "-s", "/srv/roots", "/var/lib/microvms/plain/work", user="microvm")
    shown = {name: _shown(row) for name, row in deployment.status().items()}
    assert shown["behind"]["running"] != shown["behind"]["sealed"]
    assert "renewed /etc/systemd/system/microvm@plain.service.d" in install(host, package)
    for name in VALUES:  # their files are root's now, before anything of theirs is started again
        home = f"/var/lib/microvms/{name}"
        owners = host.run("stat", "-c", "%U %F", home, f"{home}/work").stdout.splitlines()
        assert owners == ["root directory", "microvm directory"], "a link of the VM's user is not kept"
    host.wait(lambda: all(row["running"] for row in deployment.status().values()), 20, "the agent's look")
    assert {name: _shown(row) for name, row in deployment.status().items()} == shown
    assert {name: deployment.unit(name)["InvocationID"] for name in VALUES} == before
    _rotates_after_it(host, deployment, sops)
    assert host.run("stat", "-c", "%U", "/srv/roots").stdout == "root\n"
    _is_not_downgraded(host, deployment, sops, older, package)
    host.run("dpkg", "--purge", "credferry")
    deployment.close()


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """What is told of a VM's secrets."""
    return {key: row[key] for key in ("state", "published", "sealed", "running", "held")}


def _wait_sealed(host: Host, deployment: Deployment) -> None:
    """Wait until what is published is sealed for each VM: one of them may be restarted before that."""

    def is_sealed() -> bool:
        rows = deployment.status().values()
        return all(row["sealed"]["digest"] == row["published"]["digest"] for row in rows)

    host.wait(is_sealed, 20, "what is published, sealed for all VMs")


def _runs_on_the_first_form(host: Host, deployment: Deployment, sops: SopsNix) -> None:
    """Three VMs under drop-ins of then: one in step, one behind, and one whose drop-in was edited."""
    deployment.configure(UPGRADED)
    for name in VALUES:
        deployment.add_vm(name)
        directory = f"/etc/systemd/system/microvm@{name}.service.d"
        edited = "# as the operator likes it\n" if name == "edited" else ""
        host.run("mv", f"{directory}/50-credferry.conf", f"{directory}/60-test.conf")
        text = host.path(f"{directory}/60-test.conf").read_text()
        # What the tests themselves add to the drop-in, which is here that of then.
        host.write(f"{directory}/60-test.conf", "[Service]\n" + text[text.rindex("\nRestartSec=") :])
        host.write(f"{directory}/50-credferry.conf", edited + drop_in_of_form_1())
        host.run("chown", "microvm:", f"/var/lib/microvms/{name}")  # as the tutorial said then
    host.run("systemctl", "daemon-reload")
    sops.publish({f"{name}-key": b"first" for name in VALUES})
    host.run("systemctl", "start", AGENT)
    deployment.start_vm(*VALUES)
    for name in VALUES:
        deployment.wait_in_step(name)
    sops.publish({f"{name}-key": b"second" for name in VALUES})
    for name in ("plain", "edited"):
        deployment.wait_in_step(name)
        deployment.wait_noted(name)
    host.wait(lambda: deployment.status()["behind"]["state"] == "held", 20, "the VM that is behind")


def _rotates_after_it(host: Host, deployment: Deployment, sops: SopsNix) -> None:
    """What has evidence is restarted; what would have none is refused until its drop-in is renewed."""
    edited = deployment.unit("edited")["InvocationID"]
    sops.publish({f"{name}-key": b"third" for name in VALUES})
    deployment.wait_in_step("plain")
    assert deployment.delivered("plain") == {"PLAIN_KEY": b"third"}
    invocation = deployment.unit("plain")["InvocationID"]
    kept = host.run("stat", "-c", "%U %a", f"/run/credferry-evidence/plain@{invocation}").stdout
    assert kept == "root 600\n"
    host.wait(lambda: deployment.status()["edited"]["state"] == "refused", 20, "the VM without evidence")
    assert "credferry doctor" in deployment.status()["edited"]["reasons"][0]
    _wait_sealed(host, deployment)
    assert deployment.unit("edited")["InvocationID"] == edited
    found = json.loads(deployment.credferry("doctor", "--json", check=False))
    commands = [
        command
        for finding in found["findings"]
        if finding["check"].startswith("vm.evidence") and finding["vm"] == "edited"
        for command in finding["commands"]
    ]
    for command in commands:
        host.run("sh", "-c", command)
    deployment.wait_in_step("edited")
    assert deployment.delivered("edited") == {"EDITED_KEY": b"third"}
    assert deployment.delivered("behind") == {"BEHIND_KEY": b"first"}


def _is_not_downgraded(
    host: Host, deployment: Deployment, sops: SopsNix, older: Path, package: Path
) -> None:
    """A release of the first form leaves the store alone, in one line; the present one goes on."""
    before = {name: deployment.unit(name)["InvocationID"] for name in VALUES}
    sealed = {name: row["sealed"] for name, row in deployment.status().items()}
    install(host, older)
    host.wait_journal(
        lambda entry: "/var/lib/credferry/lock: Is a directory" in entry.get("MESSAGE", ""),
        20,
        _SYSTEMD_UNIT=AGENT,
    )
    sops.publish({f"{name}-key": b"fourth" for name in VALUES})
    done = host.run("credferry", "sync", "--no-restart", check=False)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "lock: Is a directory" in done.stderr
    install(host, package)
    deployment.wait_in_step("plain")
    assert deployment.delivered("plain") == {"PLAIN_KEY": b"fourth"}
    _wait_sealed(host, deployment)
    generations = {name: row["sealed"]["generation"] for name, row in deployment.status().items()}
    assert generations == {name: each["generation"] + 1 for name, each in sealed.items()}
    assert deployment.unit("behind")["InvocationID"] == before["behind"]


def test_what_pip_installs(tmp_path: Path) -> None:
    """The wheel's two commands work from an environment, which has the units and all else that they need."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    # The libraries are those that this runs with: nothing is fetched.
    libraries = [sysconfig.get_path("purelib"), "/usr/lib/python3/dist-packages"]
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text("\n".join(libraries))
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(environment / "bin/python")]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel())], check=True)

    def said(command: str, *arguments: str) -> str:
        done = subprocess.run(
            [environment / "bin" / command, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert said("credferry", "--version") == f"credferry {__version__}\n"
    assert "test-vm" in said(
        "credferry", "check", "--config", str(CHECKOUT / "contrib/examples/config.toml")
    )
    assert said("credferry-launch", "--help").startswith("usage: credferry-launch")
    shipped = environment / "share/credferry"
    for path in ("systemd/credferry.service", "systemd/credferry-vm.conf", "catalog/credferry.catalog"):
        assert (shipped / path).read_bytes() == (CHECKOUT / "contrib" / path).read_bytes()
    assert (environment / "share/man/man8/credferry.8").exists()
