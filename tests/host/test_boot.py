# SPDX-License-Identifier: MIT
"""What a VM's start gets: the first sealing of a boot comes before it; it is never of two generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.nix import Nix
    from tests.support.producer import SopsNix

ONE_VM = '[vms.web.credentials]\nAPI_KEY = { secret = "api-key" }\n'
SEAL = "credferry-seal.service"
CATALOG = "/usr/lib/systemd/catalog/credferry.catalog"
FIRST = "credferry-seal@.service"
ADDED = 2
PROCESS_ENDED = "98e322203f7a4ed290d09fe03c09fe15"
"""PID 1's own MESSAGE_ID for a process of a unit that has ended with a failure."""
SHORT_WAIT = """[Service]
ExecStart=
ExecStart=/usr/bin/credferry agent --once --wait 1
"""
# Flips `current` between generations 1 and 2 as fast as it can, by rename, as the store does.
FLIP = """
import os
os.chdir("/var/lib/credferry/vms/web")
while True:
    for number in (1, 2):
        os.symlink(f"generations/{number}", ".flip")
        os.rename(".flip", "current")
"""


@pytest.fixture
def deployment(host: Host) -> Iterator[Deployment]:
    """One light VM, configured, and nothing published."""
    made = Deployment(host)
    made.add_vm("web")
    made.configure(ONE_VM)
    yield made
    host.run("rm", "-rf", f"/etc/systemd/system/{SEAL}.d", f"/etc/systemd/system/{FIRST}.d")
    made.close()


def test_the_first_sealing_waits_for_the_producer(deployment: Deployment, sops: SopsNix) -> None:
    """Started together, the VM waits for the sealing, and the sealing for the secret to be published."""
    deployment.host.run("systemctl", "start", "--no-block", SEAL, "microvm@web.service")
    deployment.host.wait(lambda: deployment.host.unit(SEAL)["ActiveState"] == "activating", 10, SEAL)
    assert deployment.unit("web")["ActiveState"] == "inactive"
    sops.publish({"api-key": b"published late"})
    deployment.host.wait(lambda: deployment.stamp("web"), 20, "stamp of web")
    assert deployment.delivered("web") == {"API_KEY": b"published late"}
    assert deployment.starts("web") == 1


def test_the_last_good_generation_serves(deployment: Deployment, sops: SopsNix) -> None:
    """Where the producer is not ready in time, the VM starts on what it last had."""
    sops.publish({"api-key": b"last good"})
    deployment.credferry("agent", "--once")
    sops.remove()
    deployment.host.write(f"/etc/systemd/system/{SEAL}.d/wait.conf", SHORT_WAIT)
    deployment.host.run("systemctl", "daemon-reload")
    deployment.host.run("systemctl", "start", "--no-block", SEAL, "microvm@web.service")
    deployment.host.wait(lambda: deployment.stamp("web"), 20, "stamp of web")
    assert deployment.host.unit(SEAL)["ExecMainStatus"] == "66"
    assert deployment.delivered("web") == {"API_KEY": b"last good"}


def test_a_vm_is_added_while_all_runs(deployment: Deployment, sops: SopsNix) -> None:
    """As a switch does: the agent reloads while the new VM starts. Its first start has its credentials."""
    host = deployment.host
    sops.publish({"api-key": b"value"})
    deployment.start_agent()
    host.wait(lambda: deployment.status()["web"]["sealed"], 10, "a sealed generation")
    names = [f"new{number}" for number in range(ADDED)]
    tables = ONE_VM
    for name in names:
        tables += ONE_VM.replace("web", name)
        deployment.add_vm(name)
        deployment.configure(tables)
        host.run("systemctl", "--no-block", "reload", "credferry.service")
        host.run("systemctl", "start", f"microvm@{name}.service")
        host.wait(lambda name=name: deployment.stamp(name), 20, f"stamp of {name}")  # type: ignore[misc]  # a default binds the name
    for name in names:
        assert deployment.delivered(name) == {"API_KEY": b"value"}
        assert deployment.unit(name)["NRestarts"] == "0", "its first start failed"
        assert host.run("ls", f"/var/lib/credferry/vms/{name}/generations").stdout == "1\n"
    host.wait(
        lambda: {row["state"] for row in deployment.status().values()} <= {"in step", "stopped"},
        20,
        "in step",
    )
    assert {deployment.starts(name) for name in names} == {1}


def test_later_starts_seal_nothing_and_wait_for_nothing(deployment: Deployment, sops: SopsNix) -> None:
    """A VM that has a generation starts at once, without a source too, and no process seals for it."""
    sops.publish({"api-key": b"last good"})
    deployment.credferry("agent", "--once")
    sops.remove()
    deployment.start_vm("web")
    first = deployment.host.unit("credferry-seal@web.service")
    deployment.host.run("systemctl", "restart", "microvm@web.service")
    deployment.host.wait(lambda: deployment.starts("web") == 2 and deployment.stamp("web"), 20, "a restart")
    for unit in (first, deployment.host.unit("credferry-seal@web.service")):
        assert (unit["ConditionResult"], unit["ExecMainStartTimestampMonotonic"]) == ("no", "0")


def test_a_first_sealing_that_fails_does_not_fail_the_start(deployment: Deployment, sops: SopsNix) -> None:
    """Without a source nothing can be sealed. systemd starts the VM's unit nevertheless, and again later."""
    host = deployment.host
    host.run("install", "-d", "-m", "0700", "/var/lib/credferry")
    host.write(
        f"/etc/systemd/system/{FIRST}.d/wait.conf", SHORT_WAIT.replace("--wait 1", "--wait 0.1 --vm %i")
    )
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "--no-block", "microvm@web.service")
    # In the unit's properties it stands for a moment only: the VM's next try starts the sealing again.
    ended = {"MESSAGE_ID": PROCESS_ENDED, "UNIT": "credferry-seal@web.service", "_PID": "1"}
    host.wait_journal(lambda entry: entry["EXIT_STATUS"] == "66", 20, **ended)
    host.wait(lambda: int(deployment.unit("web")["NRestarts"]) > 0, 20, "another try of the VM")
    sops.publish({"api-key": b"late"})
    host.wait(lambda: deployment.stamp("web"), 20, "stamp of web")
    assert deployment.delivered("web") == {"API_KEY": b"late"}


def test_a_start_never_mixes_two_generations(deployment: Deployment, sops: SopsNix) -> None:
    """PID 1 opens the directory once: whatever is renamed meanwhile, all of a start's values are of one."""
    names = [f"K{number:02}" for number in range(40)]
    table = "\n".join(f'{name} = {{ secret = "{name}" }}' for name in names)
    deployment.configure(f"[vms.web.credentials]\n{table}\n")
    for value in (b"1", b"2"):
        sops.publish(dict.fromkeys(names, value))
        deployment.credferry("agent", "--once")
    flipping = deployment.host.spawn("python3", "-c", FLIP)
    seen = set()
    try:
        for _ in range(30):
            unit = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect"]
            load = ["-p", "LoadCredentialEncrypted=credferry:/var/lib/credferry/vms/web/current"]
            show = ["sh", "-c", 'cat "$CREDENTIALS_DIRECTORY"/credferry_value.*']
            values = deployment.host.run(*unit, *load, *show).stdout
            assert values in {"1" * 40, "2" * 40}
            seen.add(values)
    finally:
        flipping.kill()
        flipping.wait()
    assert len(seen) == 2


def test_the_journal_explains_itself(deployment: Deployment, sops: SopsNix) -> None:
    """Journalctl -x shows, beside a message of the audit, what it means."""
    sops.publish({"api-key": b"value"})
    deployment.credferry("agent", "--once")
    deployment.host.run("journalctl", "--sync")
    explained = deployment.host.run("journalctl", "-x", "-t", "credferry", "-n", "1", "-o", "short").stdout
    assert "Generation 1 is sealed for VM web" in explained
    assert "the VM's next" in explained


def test_the_journal_explains_itself_on_nixos(deployment: Deployment, sops: SopsNix, nix: Nix) -> None:
    """`journalctl` finds the catalogue where the NixOS module's tmpfiles line puts it."""
    host = deployment.host
    rules = nix.evaluate("(t.report (t.sopsHost t.example)).tmpfiles")
    [rule] = [each for each in rules if "catalog" in each]
    link, source = rule.split()[1], rule.split()[-1]
    assert source.endswith("credferry.catalog")
    text = host.path(CATALOG).read_text()
    host.run("rm", CATALOG)
    host.run("journalctl", "--update-catalog")
    sops.publish({"api-key": b"value"})
    deployment.credferry("agent", "--once")
    host.run("journalctl", "--sync")
    show = ("journalctl", "-x", "-t", "credferry", "-n", "1", "-o", "short")
    try:
        unexplained = host.run(*show).stdout
        assert "generation 1 is sealed" in unexplained
        assert "the VM's next" not in unexplained
        host.write("/usr/share/store/credferry.catalog", text)
        host.write(
            "/etc/tmpfiles.d/test.conf", rule.replace(source, "/usr/share/store/credferry.catalog") + "\n"
        )
        host.run("systemd-tmpfiles", "--create", "test.conf")
        host.run("journalctl", "--update-catalog")
        assert "the VM's next" in host.run(*show).stdout
    finally:
        host.run("rm", "-rf", "/etc/tmpfiles.d/test.conf", link, "/usr/share/store")
        host.write(CATALOG, text)
        host.run("journalctl", "--update-catalog")


def test_the_agent_is_confined(deployment: Deployment, sops: SopsNix) -> None:
    """systemd-analyze scores the agent's exposure at 1.0 or less, and it works under that confinement."""
    sops.publish({"api-key": b"value"})
    deployment.start_agent()
    overall = deployment.host.run("systemd-analyze", "security", "--no-pager").stdout
    line = next(line for line in overall.splitlines() if line.startswith("credferry.service"))
    assert float(line.split()[1]) <= 1.0
    deployment.host.wait(lambda: deployment.status()["web"]["sealed"], 10, "a sealed generation")
