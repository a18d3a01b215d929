# SPDX-License-Identifier: MIT
"""The main job on a real systemd: each rotation reaches the right VMs, and only those, once."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from tests.support.deployment import CONFIG, Deployment
from tests.support.nightly import times
from tests.support.producer import Agenix, MountedSource, SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

pytestmark = pytest.mark.host

VMS = """
[vms.web.credentials]
API_KEY = { secret = "api-key" }
SHARED = { secret = "shared" }
ENVIRONMENT = { text = "test" }

[vms.db.credentials]
PASSWORD = { secret = "db/password" }
SHARED = { secret = "shared" }

[vms.idle.credentials]
PASSWORD = { secret = "db/password" }
"""
USED_BY = {"api-key": {"web"}, "db/password": {"db"}, "shared": {"web", "db"}}


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """Three light VMs laid out; nothing published, configured or started."""
    made = Deployment(host)
    for name in ("web", "db", "idle"):
        made.add_vm(name)
    yield made
    made.close()


def values(number: int) -> dict[str, bytes]:
    """A whole set of secrets, each with a value of its own."""
    return {name: f"{name}-{number}".encode() for name in ("api-key", "db/password", "shared", "unused")}


def start_all(deployment: Deployment) -> None:
    """Configure, seal, and start the agent and two of the three VMs."""
    deployment.configure(VMS)
    deployment.credferry("agent", "--once")
    deployment.start_vm("web", "db")
    deployment.start_agent()


def test_each_rotation_restarts_once(deployment: Deployment, sops: SopsNix) -> None:
    """Each rotation in sops-nix's own order reaches the VMs that use the secret, one restart each.

    Between them: generations with identical bytes, generations that are never published, and changes of
    a secret that no VM uses; none of these restarts anything. The stopped VM stays stopped, and starts on
    the newest values.
    """
    secrets = values(0)
    sops.publish(secrets)
    start_all(deployment)
    failures = len(deployment.host.journal(MESSAGE_ID=Event.RESTART_FAILED.value))
    starts = {"web": deployment.starts("web"), "db": deployment.starts("db")}
    assert starts == {"web": 1, "db": 1}
    rotations = times(9, 20)
    for number in range(1, rotations + 1):
        name = ("api-key", "db/password", "shared")[number % 3]
        sops.dry_activate(values(1000 + number))
        sops.publish(secrets)
        secrets |= {name: f"{name}-{number}".encode(), "unused": str(number).encode()}
        sops.publish(secrets)
        for vm in ("web", "db"):
            deployment.wait_in_step(vm)
            starts[vm] += vm in USED_BY[name]
        assert {vm: deployment.starts(vm) for vm in starts} == starts, f"rotation {number} of {name}"
        assert deployment.delivered("web") == {
            "API_KEY": secrets["api-key"],
            "SHARED": secrets["shared"],
            "ENVIRONMENT": b"test",
        }
        assert deployment.delivered("db") == {
            "PASSWORD": secrets["db/password"],
            "SHARED": secrets["shared"],
        }
    assert deployment.starts("idle") == 0
    deployment.start_vm("idle")
    assert deployment.delivered("idle") == {"PASSWORD": secrets["db/password"]}
    assert sum(starts.values()) == 2 + rotations + (rotations + 1) // 3  # the third secret has two VMs
    assert len(deployment.host.journal(MESSAGE_ID=Event.RESTART_FAILED.value)) == failures


def test_many_secrets_at_once_restart_once(deployment: Deployment, sops: SopsNix) -> None:
    """However many of a VM's secrets change in one generation, it restarts once."""
    sops.publish(values(0))
    start_all(deployment)
    sops.publish(values(1))
    for vm in ("web", "db"):
        deployment.host.wait(lambda vm=vm: deployment.starts(vm) == 2, 20, vm)  # type: ignore[misc]  # a default binds the name
        deployment.wait_in_step(vm)
        assert deployment.starts(vm) == 2
    assert deployment.delivered("web")["API_KEY"] == b"api-key-1"


def test_a_write_in_place_is_found(deployment: Deployment, sops: SopsNix) -> None:
    """A secret written in place, not published as a generation, is noticed by inotify and settles."""
    sops.publish(values(0))
    start_all(deployment)
    sops.write_in_place("api-key", b"edited")
    deployment.host.wait(lambda: deployment.starts("web") == 2, 20, "restart of web")
    deployment.wait_in_step("web")
    assert deployment.delivered("web")["API_KEY"] == b"edited"
    assert deployment.starts("db") == 1


def test_a_mount_over_the_source_is_found(deployment: Deployment, host: Host) -> None:
    """Clan's backends mount a new source over the old: the table of mounts tells, with no resync near."""
    producer = MountedSource(host)
    producer.publish(values(0))
    try:
        deployment.configure("[source]\nquiet_seconds = 0.2\nresync_seconds = 3600\n" + VMS)
        deployment.credferry("agent", "--once")
        deployment.start_vm("web", "db")
        deployment.start_agent()
        producer.publish(values(0) | {"api-key": b"mounted"})
        deployment.host.wait(lambda: deployment.starts("web") == 2, 20, "restart of web")
        deployment.wait_in_step("web")
        assert deployment.delivered("web")["API_KEY"] == b"mounted"
        assert deployment.starts("db") == 1
    finally:
        producer.remove()


def test_agenix(deployment: Deployment, host: Host) -> None:
    """Agenix's swap, a link made beside and renamed over, is seen as well."""
    producer = Agenix(host)
    producer.publish(values(0))
    try:
        table = '[source]\npath = "/run/agenix"\nresync_seconds = 3600\n'
        deployment.configure(table + VMS)
        deployment.credferry("agent", "--once")
        deployment.start_vm("web", "db")
        deployment.start_agent()
        producer.publish(values(0) | {"api-key": b"from agenix"})
        deployment.host.wait(lambda: deployment.starts("web") == 2, 20, "restart of web")
        assert deployment.starts("db") == 1
    finally:
        producer.remove()


def test_inotify_alone_suffices_for_swaps(deployment: Deployment, sops: SopsNix) -> None:
    """With the resync an hour away, swap after swap is seen: the watch does not die with the first."""
    sops.publish(values(0))
    deployment.configure("[source]\nresync_seconds = 3600\n" + VMS)
    deployment.credferry("agent", "--once")
    deployment.start_vm("web")
    deployment.start_agent()
    for number in range(1, 5):
        sops.publish(values(0) | {"api-key": str(number).encode()})
        deployment.host.wait(lambda n=number: deployment.starts("web") == 1 + n, 20, f"swap {number}")  # type: ignore[misc]  # a default binds the number
        deployment.wait_in_step("web")
        assert deployment.delivered("web")["API_KEY"] == str(number).encode()


@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("where", ["below the link", "links that lead out"])
def test_a_swap_beside_the_source_is_noticed_each_time(host: Host, where: str, keep: int) -> None:
    """Clan's vars are below the swapped link, or links lead there: no swap needs the resync."""
    deployment, sops = Deployment(host), SopsNix(host, keep=keep)
    sops.publish({"vars/app/key": b"0"})
    source, name = "/run/secrets/vars", "app/key"
    if where == "links that lead out":
        host.run("mkdir", "/run/x")
        host.run("ln", "-s", "/run/secrets/vars/app/key", "/run/x/env")
        source, name = "/run/x", "env"
    try:
        deployment.add_vm("web")
        table = f'[source]\npath = "{source}"\nfollow_links = true\n'
        vm = f'[vms.web.credentials]\nK = {{ secret = "{name}" }}\n'
        deployment.configure(table + vm)
        deployment.credferry("agent", "--once")
        deployment.start_vm("web")
        # What was to settle, or had to wait for the resync, would not come within the test.
        slow = "quiet_seconds = 3600\nquiet_max_seconds = 3600\nresync_seconds = 3600\n"
        deployment.configure(table + slow + vm)
        deployment.start_agent()
        for number in range(1, 4):
            sops.publish({"vars/app/key": str(number).encode()})
            host.wait(lambda n=number: deployment.starts("web") == 1 + n, 20, f"swap {number}")  # type: ignore[misc]  # a default binds the number
            deployment.wait_in_step("web")
            assert deployment.delivered("web") == {"K": str(number).encode()}
    finally:
        deployment.close()
        sops.remove()
        host.run("rm", "-rf", "/run/x")


def test_a_missing_secret_keeps_the_vm_running(deployment: Deployment, sops: SopsNix) -> None:
    """Without a required secret, or with an empty one, the VM is refused: no restart into absence."""
    sops.publish(values(0))
    start_all(deployment)
    invocation = deployment.unit("web")["InvocationID"]
    for broken in ({"shared": b"1", "db/password": b"1"}, {**values(1), "api-key": b""}):
        sops.publish(broken)
        deployment.host.wait(lambda: deployment.status()["web"]["state"] == "refused", 20, "refusal")
        assert "api-key" in deployment.status()["web"]["reasons"][0]
    deployment.wait_in_step("db")
    assert deployment.unit("web")["InvocationID"] == invocation
    sops.publish(values(2))
    deployment.host.wait(lambda: deployment.starts("web") == 2, 20, "restart of web")
    deployment.wait_in_step("web")
    assert deployment.delivered("web")["API_KEY"] == b"api-key-2"


def test_without_an_agent_sync_has_the_seal_unit_seal(deployment: Deployment, sops: SopsNix) -> None:
    """credferry-seal.service seals, nothing is restarted, and `sync` says so; plan tells it beforehand."""
    sops.publish(values(0))
    deployment.configure(VMS)
    (row,) = json.loads(deployment.credferry("sync", "--json", "--vm", "web"))
    assert (row["sealed"], row["state"]) == (True, "stopped")
    deployment.start_vm("web", "db")
    sops.publish(values(0) | {"api-key": b"new"})
    plan = deployment.credferry("plan")
    assert "seal API_KEY, ENVIRONMENT, SHARED, then restart microvm@web.service" in plan
    assert deployment.starts("web") == 1
    rows = {row["vm"]: row for row in json.loads(deployment.credferry("sync", "--json"))}
    assert (rows["web"]["sealed"], rows["web"]["state"]) == (True, "restart due")
    assert (rows["db"]["sealed"], rows["db"]["state"]) == (False, "in step")
    assert "systemctl start credferry.service" in rows["web"]["reason"]
    assert (deployment.starts("web"), deployment.starts("db")) == (1, 1)
    generation = str(deployment.status()["web"]["sealed"]["generation"])
    (sealed,) = deployment.host.journal(
        MESSAGE_ID=Event.SEALED.value,
        CREDFERRY_VM="web",
        CREDFERRY_GENERATION=generation,
        _SYSTEMD_INVOCATION_ID=deployment.host.unit("credferry-seal.service")["InvocationID"],
    )
    assert sealed["_SYSTEMD_UNIT"] == "credferry-seal.service"
    deployment.start_agent()
    deployment.wait_in_step("web")
    assert (deployment.starts("web"), deployment.starts("db")) == (2, 1)
    assert deployment.delivered("web")["API_KEY"] == b"new"


def test_sync_ends_as_the_seal_unit_does(deployment: Deployment, sops: SopsNix) -> None:
    """Where the unit fails, sync names the unit, its status and its journal, and ends with that status."""
    sops.publish(values(0))
    deployment.configure(VMS)
    host = deployment.host
    drop_in = "/etc/systemd/system/credferry-seal.service.d"
    host.write(f"{drop_in}/fails.conf", "[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit 73'\n")
    host.run("systemctl", "daemon-reload")
    try:
        failed = host.run("credferry", "sync", check=False)
        assert (failed.returncode, failed.stdout) == (73, "")
        assert failed.stderr == (
            "credferry: credferry-seal.service failed: exit status 73: "
            "see: journalctl -u credferry-seal.service -n 20\n"
        )
        elsewhere = "/etc/credferry/elsewhere.toml"
        host.run("cp", CONFIG, elsewhere)
        refused = host.run("credferry", "sync", "--config", elsewhere, check=False)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"credferry agent --once --config {elsewhere}" in refused.stderr
    finally:
        host.run("rm", "-r", drop_in)
        host.run("systemctl", "daemon-reload")


def test_the_audit_tells_the_story(deployment: Deployment, sops: SopsNix) -> None:
    """Each rotation is one story under one correlation id, from the journal alone, and without values."""
    here = ("audit", "--since", f"@{time.time():.3f}")  # others had a VM of this name, and a generation 2
    sops.publish(values(0))
    start_all(deployment)
    sops.publish(values(0) | {"api-key": b"canary-value-3141"})
    deployment.host.wait(lambda: deployment.starts("web") == 2, 20, "restart of web")
    deployment.wait_in_step("web")
    records: list[dict[str, str]] = []
    story: list[str] = []

    def is_told() -> bool:
        records[:] = json.loads(deployment.credferry(*here, "--records", "--vm", "web", "--json"))
        runs = [record["run"] for record in records if "runs generation 2" in record["message"]]
        story[:] = [record["event"] for record in records if record["run"] in runs]
        return "launched" in story  # the launcher reports to the agent first

    deployment.host.wait(is_told, 10, "the whole story")
    assert sorted(story[2:]) == ["launched", "restart asked", "restarted"]
    assert story[:3] == ["published", "sealed", "restart asked"]
    assert "canary" not in json.dumps(records)
    of_unit = deployment.host.run(
        "journalctl", "-u", "microvm@web.service", "-o", "cat", "--no-pager"
    ).stdout
    assert "web: generation 2 is sealed" in of_unit
