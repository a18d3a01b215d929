# SPDX-License-Identifier: MIT
"""A value that breaks a VM: it is put back on what it ran, others are spared, nothing is tried for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from tests.support.deployment import Deployment, broken_by_bad

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

CONFIG = """
[source]
quiet_seconds = 0.2
resync_seconds = 1.0
[rollout]
retry_seconds = 0.1
# A VM that is up for this long counts as one that works: on a slow machine one that fails might be, too.
stamp_seconds = 60.0
[vms.web]
after = ["db"]
[vms.web.credentials]
KEY = { secret = "key" }
[vms.db.credentials]
KEY = { secret = "key" }
"""
BREAKS = broken_by_bad("KEY")


@pytest.fixture
def deployment(host: Host, sops: SopsNix) -> Iterator[Deployment]:
    """Two VMs of one secret, the one that restarts first with a program that a bad value breaks; all run."""
    made = Deployment(host)
    made.add_vm("db", BREAKS)
    made.add_vm("web")
    made.configure(CONFIG)
    sops.publish({"key": b"good"})
    made.credferry("agent", "--once")
    made.start_vm("db", "web")
    made.start_agent()
    yield made
    made.close()


def state(deployment: Deployment, vm: str) -> str:
    """What ``credferry status`` says of a VM."""
    return str(deployment.status()[vm]["state"])


def wait_rolled_back(deployment: Deployment, vm: str = "db") -> None:
    """Wait until a VM is said to be back on what it ran before."""
    deployment.host.wait(
        lambda: "rolled back to generation" in " ".join(deployment.status()[vm]["reasons"]), 30, "rollback"
    )


def test_a_value_that_breaks_a_vm(deployment: Deployment, sops: SopsNix) -> None:
    """The VM runs its old value again, the next VM is spared, and the next good value reaches both."""
    sops.publish({"key": b"bad value"})
    wait_rolled_back(deployment)
    assert deployment.delivered("db") == {"KEY": b"good"}
    assert deployment.unit("db")["ActiveState"] == "active"
    deployment.host.wait(lambda: state(deployment, "web") == "halted", 10, "halt of web")
    assert (deployment.starts("web"), deployment.delivered("web")) == (1, {"KEY": b"good"})
    audit = deployment.credferry("audit", "--records", "--vm", "db")
    assert "db: back on generation 1" in audit
    starts = deployment.starts("db")
    sops.publish({"key": b"bad value"})
    deployment.credferry("sync", check=False)
    assert deployment.starts("db") == starts
    assert state(deployment, "db") == "failed"
    sops.publish({"key": b"better"})
    for vm in ("db", "web"):
        deployment.wait_in_step(vm)
        assert deployment.delivered(vm) == {"KEY": b"better"}


def test_a_mended_vm_frees_those_that_were_halted_for_it(deployment: Deployment, sops: SopsNix) -> None:
    """A retry of the VM that failed is enough: once it runs well, the halted VM is restarted as well."""
    sops.publish({"key": b"bad value"})
    wait_rolled_back(deployment)
    deployment.host.wait(lambda: state(deployment, "web") == "halted", 10, "halt of web")
    halts = len(deployment.host.journal(MESSAGE_ID=Event.HALTED.value, CREDFERRY_VM="web"))
    mend(deployment, "db")
    deployment.credferry("retry", "db")
    for vm in ("db", "web"):
        deployment.wait_in_step(vm)
        assert deployment.delivered(vm) == {"KEY": b"bad value"}
    assert len(deployment.host.journal(MESSAGE_ID=Event.HALTED.value, CREDFERRY_VM="web")) == halts


def test_a_release_ends_a_halt(deployment: Deployment, sops: SopsNix) -> None:
    """An operator who releases a halted VM has it restarted, though the other VM is not mended."""
    sops.publish({"key": b"bad value"})
    wait_rolled_back(deployment)
    deployment.host.wait(lambda: state(deployment, "web") == "halted", 10, "halt of web")
    deployment.credferry("release", "web")
    assert deployment.delivered("web") == {"KEY": b"bad value"}
    assert state(deployment, "db") == "failed"


def mend(deployment: Deployment, vm: str) -> None:
    """Have a VM's program take every value."""
    run = f"/var/lib/microvms/{vm}/current/bin/microvm-run"
    script = deployment.host.path(run).read_text()
    deployment.host.write(run, script.replace(BREAKS.before, ""), 0o755)


@pytest.mark.parametrize("names", [("--all",), ("*",), ("d?", "[vw]eb")], ids=" ".join)
def test_an_operator_may_try_again(deployment: Deployment, sops: SopsNix, names: tuple[str, ...]) -> None:
    """What failed is left alone until it changes, or until somebody who has mended the VM says so."""
    sops.publish({"key": b"bad value"})
    wait_rolled_back(deployment)
    mend(deployment, "db")
    deployment.credferry("retry", *names)
    for vm in ("db", "web"):
        assert deployment.delivered(vm) == {"KEY": b"bad value"}
        assert state(deployment, vm) == "in step"


def test_a_held_vm(deployment: Deployment, sops: SopsNix) -> None:
    """While held it is sealed for and not restarted; after many rotations it can still go back."""
    deployment.credferry("hold", "db")
    for number in range(5):
        sops.publish({"key": str(number).encode()})
        deployment.host.wait(lambda n=number: deployment.starts("web") == 2 + n, 20, "restart of web")  # type: ignore[misc]  # a default binds the number
        deployment.wait_in_step("web")
    assert (state(deployment, "db"), deployment.starts("db")) == ("held", 1)
    sops.publish({"key": b"bad value"})
    deployment.wait_in_step("web")
    deployment.credferry("release", "db", check=False)
    wait_rolled_back(deployment)
    assert deployment.delivered("db") == {"KEY": b"good"}
    assert deployment.stamp("db") is not None


def test_the_agent_dies_while_a_vm_is_down(deployment: Deployment, sops: SopsNix) -> None:
    """Killed after it has taken the VM down, the agent puts it back when it is started again."""
    # It stays down for the whole of `stamp_seconds`: systemd does not start it again meanwhile.
    deployment.host.write(
        "/etc/systemd/system/microvm@db.service.d/90-slow.conf", "[Service]\nRestartSec=1h\n"
    )
    deployment.host.run("systemctl", "daemon-reload")
    sops.publish({"key": b"bad value"})
    deployment.host.wait(lambda: deployment.unit("db")["SubState"] == "auto-restart", 20, "db down")
    deployment.kill_agent()
    deployment.host.run("systemctl", "stop", "credferry.service")
    deployment.start_agent()
    wait_rolled_back(deployment)
    assert deployment.delivered("db") == {"KEY": b"good"}


def test_the_agent_dies_while_a_required_unit_keeps_a_vm_down(deployment: Deployment, sops: SopsNix) -> None:
    """The agent that comes next starts the VM, as PID 1's journal tells that no operator has stopped it."""
    host = deployment.host
    dropin = "/etc/systemd/system/microvm@db.service.d/90-requires.conf"
    needed = "/run/systemd/system/needed.service"
    host.write(dropin, "[Unit]\nRequires=needed.service\nAfter=needed.service\n")
    # Not done before the agent is gone: it fails once the file is there.
    host.write(
        needed,
        "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'test ! -e /run/breaks || "
        "{ until test -e /run/go; do sleep 0.05; done; exit 1; }'\n",
    )
    host.run("systemctl", "daemon-reload")
    try:
        host.run("touch", "/run/breaks")
        sops.publish({"key": b"new"})
        host.wait(lambda: host.unit("needed.service")["ActiveState"] == "activating", 20, "the start")
        deployment.kill_agent()
        host.run("systemctl", "stop", "credferry.service")
        host.run("touch", "/run/go")
        host.wait(lambda: host.unit("needed.service")["ActiveState"] == "failed", 20, "db down")
        host.run("rm", "/run/breaks", "/run/go")
        deployment.start_agent()
        deployment.wait_in_step("db")
        assert deployment.delivered("db") == {"KEY": b"new"}
        deployment.wait_in_step("web")
        # A stop, however it is told, is another matter.
        host.run("systemctl", "stop", "microvm@db.service")
        sops.publish({"key": b"newer"})
        deployment.wait_in_step("web")
        assert deployment.unit("db")["ActiveState"] == "inactive"
    finally:
        host.run("rm", "-f", dropin, needed, "/run/breaks", "/run/go")
        host.run("systemctl", "daemon-reload")


def test_the_order_is_kept(deployment: Deployment, sops: SopsNix) -> None:
    """A VM that is to be restarted after another is, though both wait for the same change."""
    sops.publish({"key": b"new"})
    for vm in ("db", "web"):
        deployment.host.wait(lambda vm=vm: deployment.starts(vm) == 2, 20, f"restart of {vm}")  # type: ignore[misc]  # a default binds the name
        deployment.wait_in_step(vm)
    first = int(deployment.unit("db")["ActiveEnterTimestampMonotonic"])
    assert first < int(deployment.unit("web")["InactiveExitTimestampMonotonic"])


def test_a_restart_that_systemd_refuses(deployment: Deployment, sops: SopsNix) -> None:
    """A refusal is a failure like any other: tried as often as configured, then told, and left alone."""
    host = deployment.host
    refusing = "/etc/systemd/system/microvm@db.service.d/90-refusing.conf"
    host.write(refusing, "[Unit]\nRefuseManualStop=yes\n")
    host.run("systemctl", "daemon-reload")
    asked = len(host.journal(MESSAGE_ID=Event.RESTART_ASKED.value, CREDFERRY_VM="db"))
    try:
        sops.publish({"key": b"new"})
        host.wait(lambda: state(deployment, "db") == "failed", 20, "failure of db")
        assert "dependency" in deployment.status()["db"]["reasons"][0]
        deployment.credferry("sync", check=False)
        host.run("systemctl", "stop", "credferry.service")
        assert len(host.journal(MESSAGE_ID=Event.RESTART_ASKED.value, CREDFERRY_VM="db")) == asked + 2
        assert (deployment.starts("db"), deployment.delivered("db")) == (1, {"KEY": b"good"})
    finally:
        host.path(refusing).unlink()
        host.run("systemctl", "daemon-reload")
