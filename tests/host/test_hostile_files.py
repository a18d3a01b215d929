# SPDX-License-Identifier: MIT
"""Root's verbs are led nowhere by what a VM's user, or the agent's own user, puts in files' places."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment
from tests.support.installation import HYPERVISOR, VM_USER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

HOME = "/var/lib/microvms/web"
STORE = "/var/lib/credferry"
SECONDS = 30.0
"""Far more than any of the verbs takes, and far less than a FIFO would keep it."""
VERBS = (("status",), ("plan",), ("check",), ("audit",), ("audit", "--verify"), ("doctor",))


@pytest.fixture
def deployment(host: Host, sops: SopsNix) -> Iterator[Deployment]:
    """One VM that runs, with what is published."""
    made = Deployment(host)
    made.configure('[vms.web.credentials]\nK = { secret = "api-key" }\n')
    sops.publish({"api-key": b"first"})
    made.add_vm("web")
    made.credferry("agent", "--once")
    made.start_vm("web")
    yield made
    made.close()


def ends(deployment: Deployment, *verb: str) -> str:
    """A verb's output. Raises `subprocess.TimeoutExpired` where it does not end in time."""
    said = deployment.host.run("credferry", *verb, check=False, timeout=SECONDS)
    assert "internal error" not in said.stderr, said.stderr
    return said.stdout + said.stderr


@pytest.mark.parametrize("what", ["mkfifo {}", "ln -s /etc/shadow {}", "ln -s /dev/zero {}", "mkdir {}"])
def test_the_store_keeps_no_verb_waiting(deployment: Deployment, what: str) -> None:
    """Every verb ends, whether a FIFO, a link, a device or a directory takes a small file's place."""
    host = deployment.host
    for name in ("vms/web/rollout.json", "vms/web/assumed.json", "vms/web/reported.json", "audit.sent"):
        path = f"{STORE}/{name}"
        host.run("sh", "-c", f"rm -rf {path}; {what.format(path)}")
    secret = host.run("head", "-n", "1", "/etc/shadow").stdout.strip()
    for verb in VERBS:
        assert secret not in ends(deployment, *verb)


def test_the_doctor_opens_nothing_for_a_vm_s_user(deployment: Deployment) -> None:
    """Where the VM's user can change its files, doctor waits for nothing, and opens nothing to others.

    A FIFO is named as the hypervisor, and a link to a file of root's stands for the script. Doctor does not
    read one that the VM's user may not read. None of them is in a command that doctor prints.
    """
    host = deployment.host
    host.run("chown", VM_USER, HOME)
    fifo = f"{HOME}/cloud-hypervisor"
    script = f"#!/bin/sh\\nexec {fifo} --kernel x\\n"
    theirs = f"cd {HOME} && mv current old && mkdir -p current/bin && mkfifo {fifo}"
    host.run("sh", "-c", f"{theirs} && printf '{script}' >current/bin/microvm-run", user=VM_USER)
    ends(deployment, "doctor")
    for target in ("/etc/shadow", "/etc/passwd"):
        host.run("sh", "-c", f"cd {HOME}/current/bin && ln -sf {target} microvm-run", user=VM_USER)
        found = json.loads(ends(deployment, "doctor", "--json"))["findings"]
        commands = [command for finding in found for command in finding["commands"]]
        assert not any(target in command for command in commands), commands
        is_unread = any("not read, because other users" in finding["what"] for finding in found)
        assert is_unread is (target == "/etc/shadow"), found
    assert host.run("stat", "-c", "%a", "/etc/shadow").stdout.strip() in {"640", "600", "0"}


def test_the_doctor_runs_no_program_that_is_not_root_s(deployment: Deployment) -> None:
    """A launcher or a hypervisor that the VM's script names is run only where root alone can change it."""
    host = deployment.host
    for program in ("credferry-launch", "cloud-hypervisor"):
        host.write(f"/srv/theirs/{program}", "#!/bin/sh\necho ran >/tmp/ran-by-doctor\n", 0o755)
    host.run("chown", "-R", VM_USER, "/srv/theirs")
    for launcher, real in (
        ("/srv/theirs/credferry-launch", HYPERVISOR),
        ("/usr/bin/credferry-launch", "/srv/theirs/cloud-hypervisor"),
    ):
        host.write(
            f"{HOME}/current/bin/microvm-run",
            f"#!/bin/sh\nexec {launcher} --real {real} -- --kernel x\n",
            0o755,
        )
        said = ends(deployment, "doctor", "--vm", "web")
        assert f"{VM_USER} can change /srv/theirs" in said
        assert not host.path("/tmp/ran-by-doctor").exists()
    host.run("rm", "-rf", "/srv/theirs")
