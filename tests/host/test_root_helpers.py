# SPDX-License-Identifier: MIT
"""A process of the VM's user has nothing run by root, and nothing given away by root's helpers."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import LIGHT_KERNEL, Deployment
from tests.support.installation import HYPERVISOR, VM_USER, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

HOME = "/var/lib/microvms/web"
UNIT = "microvm@web.service"
TAPS, SHARES = "microvm-tap-interfaces@web.service", "microvm-virtiofsd@web.service"
OWNED = "/run/owned"
"""What the attacker's program leaves where root has run it."""
PROGRAM = f"#!/bin/sh\nid -u >{OWNED}\n"
SPEC = f"""
name = "web"
hypervisor = "{HYPERVISOR}"
kernel = "{LIGHT_KERNEL}"
memory = 64
"""
SHARED = '[[shares]]\ntag = "files"\nsource = "/srv/files"\n'


def told(host: Host, unit: str) -> str:
    """What the programs of a unit have said; `Host.journal` has journald take in what is on its way."""
    return "\n".join(entry.get("MESSAGE", "") for entry in host.journal(_SYSTEMD_UNIT=unit))


def is_starting(host: Host, unit: str) -> bool:
    """Whether a unit is being started, or is about to be."""
    now = host.unit(unit)
    return now["ActiveState"] == "activating" or now.get("Job", "0") not in {"", "0"}


def as_the_user(host: Host, script: str) -> int:
    """Run a script as the VM's user; its exit status."""
    return host.run("sh", "-c", script, check=False, user=VM_USER).returncode


@pytest.fixture
def deployment(host: Host, sops: SopsNix) -> Iterator[Deployment]:
    """One VM with a published secret, its files laid out by each test."""
    made = Deployment(host)
    made.configure('[vms.web.credentials]\nK = { secret = "api-key" }\n')
    sops.publish({"api-key": b"first"})
    yield made
    host.run("systemctl", "stop", "credferry.service", UNIT, TAPS, SHARES, check=False)
    host.run("systemctl", "reset-failed", check=False)
    made.close()
    host.run("rm", "-rf", HOME, OWNED, "/run/taps", f"/etc/systemd/system/{UNIT}.d", "/srv/files")
    host.run("systemctl", "daemon-reload")


def from_spec(deployment: Deployment, more: str = "") -> None:
    """Lay the VM out from a spec, as the tutorial does."""
    host = deployment.host
    host.write(f"{HOME}/current/vm.toml", SPEC + more)
    serve(host, "web")
    host.write(
        f"/etc/systemd/system/{UNIT}.d/60-light.conf",
        "[Service]\nEnvironment=CREDFERRY_STANDIN_BOOT=0\nTimeoutStopSec=5s\n",
    )
    host.run("systemctl", "daemon-reload")
    deployment.credferry("agent", "--once")


def test_the_users_own_directory_decides_nothing(deployment: Deployment, sops: SopsNix) -> None:
    """The VM's user cannot replace what root's helpers take; they take nothing from its own directory.

    A rotation, which restarts the helpers as well, goes on as ever.
    """
    host = deployment.host
    deployment.add_vm("web")
    host.write(f"{HOME}/current/bin/tap-up", "#!/bin/sh\necho up >>/run/taps\n", 0o755)
    deployment.credferry("agent", "--once")
    deployment.start_vm("web")
    theirs = f"mkdir -p bin && printf %s {shlex.quote(PROGRAM)} >bin/tap-up && chmod 755 bin/tap-up"
    # The VM itself runs what its user likes. Without this it would not come up, and would be tried again.
    theirs += f" && ln -s {HOME}/current/bin/microvm-run bin"
    for attack in (
        f"mv {HOME}/current {HOME}/old",
        f"mkdir {HOME}/new",
        f"rm -rf {HOME}/current/bin/tap-up || true; [ ! -e {HOME}/current/bin/tap-up ]",
        f"echo x >>{HOME}/current/bin/tap-up",
    ):
        assert as_the_user(host, attack) != 0, attack
    assert as_the_user(host, f"cd {HOME}/work && rm current && mkdir current && cd current && {theirs}") == 0
    deployment.start_agent()
    sops.publish({"api-key": b"second"})
    deployment.wait_in_step("web", 30)
    assert host.path("/run/taps").read_text() == "up\nup\n"
    assert not host.path(OWNED).exists()


@pytest.mark.parametrize("way", ["tap-up", "vm.toml", "link"])
def test_a_directory_that_the_user_can_change_is_refused(deployment: Deployment, way: str) -> None:
    """Where the VM's directory belongs to its user, root's helpers do not start, and say what mends it."""
    host = deployment.host
    from_spec(deployment)
    host.run("chown", VM_USER, HOME)
    evil = {
        "tap-up": f"mkdir -p current/bin && printf %s {shlex.quote(PROGRAM)} >current/bin/tap-up"
        " && chmod 755 current/bin/tap-up",
        "vm.toml": f"mkdir current && printf %s {shlex.quote(SPEC + SHARED)} >current/vm.toml",
        "link": f"mkdir theirs && printf %s {shlex.quote(SPEC)} >theirs/vm.toml && ln -s theirs current",
    }[way]
    assert as_the_user(host, f"cd {HOME} && mv current old && {evil}") == 0
    for unit in (TAPS, SHARES) if way != "tap-up" else (TAPS,):
        assert host.run("systemctl", "start", unit, check=False).returncode != 0
        said = told(host, unit)
        assert f"{HOME} belongs to uid" in said
        assert f"chown root:root {HOME}" in said
    assert not host.path(OWNED).exists()


def test_the_remedy_mends_it(deployment: Deployment) -> None:
    """After the command of the refusal the VM starts, with a working directory of its user's own."""
    host = deployment.host
    from_spec(deployment)
    host.run("chown", VM_USER, HOME)
    assert host.run("systemctl", "start", UNIT, check=False).returncode != 0
    # One helper that fails ends the VM's start. The other may still be at it, and fail after the remedy.
    host.wait(lambda: not any(is_starting(host, unit) for unit in (TAPS, SHARES)), 20, "both helpers' ends")
    host.run("chown", "root:root", HOME)
    deployment.start_vm("web")
    assert host.run("stat", "-c", "%U", HOME, f"{HOME}/work").stdout.split() == ["root", VM_USER]


def test_a_link_in_the_place_of_the_working_directory_is_refused(deployment: Deployment) -> None:
    """A link that the VM's user left while the directory was its own gives it nothing of root's.

    The VM's start is refused before systemd makes the working directory: newer versions than this host's
    would give the user all that the link leads to.
    """
    host = deployment.host
    from_spec(deployment)
    host.run("mkdir", "-p", "/srv/files/deep")
    host.run("rm", "-rf", f"{HOME}/work")
    host.run("chown", VM_USER, HOME)
    assert as_the_user(host, f"ln -s /srv/files {HOME}/work") == 0
    host.run("chown", "root:root", HOME)
    assert "Assertion failed" in host.run("systemctl", "start", UNIT, check=False).stderr
    assert host.unit(UNIT)["ActiveState"] == "inactive"
    owners = host.run("stat", "-c", "%U %a", "/srv/files", "/srv/files/deep").stdout.splitlines()
    assert owners == ["root 755", "root 755"]
    host.run("rm", f"{HOME}/work")
    deployment.start_vm("web")


def test_shares_are_served_from_a_directory_of_roots(deployment: Deployment) -> None:
    """The VM's user cannot replace the sockets that root makes and gives to a group; it can connect."""
    host = deployment.host
    from_spec(deployment, SHARED)
    host.run("mkdir", "-p", "/srv/files")
    host.run("systemctl", "start", SHARES)
    directory = "/run/credferry-shares/web"
    assert host.run("stat", "-c", "%U %a", directory, f"{directory}/..").stdout == "root 755\nroot 755\n"
    assert host.run("stat", "-c", "%U:%G", f"{directory}/files.sock").stdout == "root:kvm\n"
    for attack in (
        f"ln -s /etc/shadow {directory}/files.sock.new",
        f"rm {directory}/files.sock",
        f"mv {directory}/files.sock {directory}/other",
        f"mv {directory} /run/elsewhere",
    ):
        assert as_the_user(host, attack) != 0, attack
    assert as_the_user(host, f"test -w {directory}/files.sock") == 0


def test_a_socket_elsewhere_is_refused(deployment: Deployment) -> None:
    """A spec is refused that wants a share's socket in a directory of the VM's user."""
    host = deployment.host
    from_spec(deployment, f'{SHARED}socket = "{HOME}/work/files.sock"\n')
    host.run("mkdir", "-p", f"{HOME}/work", "/srv/files")
    host.run("chown", VM_USER, f"{HOME}/work")
    assert host.run("systemctl", "start", SHARES, check=False).returncode != 0
    assert f"{HOME}/work belongs to uid" in told(host, SHARES)
