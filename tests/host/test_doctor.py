# SPDX-License-Identifier: MIT
"""`credferry doctor`: each planted fault is found, and what it says to do, done literally, mends it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.control.interface import NAME
from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.deployment import CONFIG, LIGHT_KERNEL, Deployment
from tests.support.host import Host
from tests.support.installation import CHECKOUT, HYPERVISOR, install, install_users
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SYSTEM = "/etc/systemd/system"
STORE = "/var/lib/credferry"
KEY = "/var/lib/systemd/credential.secret"
PRODUCER = "sops-install-secrets.service"
MANIFEST = "/etc/sops-manifest.json"
CANARY = b"doctor canary 6f1d"
SETTINGS = """
[source]
quiet_seconds = 0.2
resync_seconds = 1.0
[rollout]
retry_seconds = 0.2
stamp_seconds = 30.0
[vms.web]
health = ["/bin/true"]
[vms.web.credentials]
KEY = { secret = "key" }
[vms.db.credentials]
PASSWORD = { secret = "password" }
"""
# Fails once for each time that it is told to; what it publishes is there already.
PRODUCER_UNIT = f"""[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'test ! -e /run/broken || {{ rm /run/broken; exit 1; }}' sops-install-secrets {MANIFEST}
"""
RESTARTER = """
cd /etc/systemd/system
printf '[Service]\\nType=oneshot\\nExecStart=/bin/systemctl restart microvm@web.service\\n' >again.service
printf '[Path]\\nPathChanged=/run/secrets/other\\n[Install]\\nWantedBy=multi-user.target\\n' >again.path
systemctl daemon-reload
systemctl enable --now again.path
"""
FAILING_SEAL = f"""
mkdir -p {SYSTEM}/credferry-seal.service.d
printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >{SYSTEM}/credferry-seal.service.d/90-failing.conf
systemctl daemon-reload
systemctl restart credferry-seal.service
rm -r {SYSTEM}/credferry-seal.service.d
systemctl daemon-reload
"""
# The bus passes over a user in its policy who is not there when it reads it.
UNKNOWN_USER = """
userdel credferry
systemctl reload dbus.service
systemd-sysusers credferry.conf
"""
WITHOUT_ROOT = f"""
for unit in credferry credferry-seal credferry-seal@; do
    mkdir -p {SYSTEM}/$unit.service.d
    cp /usr/lib/credferry-test/user.conf {SYSTEM}/$unit.service.d/50-user.conf
done
systemctl daemon-reload
systemctl restart credferry.service
"""


@dataclass(frozen=True)
class Fault:
    """A fault: the finding that it must become, and a shell's lines that plant it."""

    check: str
    plant: str
    vm: str | None = None
    severity: str = "problem"


def extended(vm: str, name: str, setting: str) -> str:
    """Add a setting to a VM's unit, in a drop-in behind credferry's own."""
    path = f"{SYSTEM}/microvm@{vm}.service.d/{name}.conf"
    return f"printf '{setting}\\n' >{path}; systemctl daemon-reload"


# Those of one round are independent of one another.
ROUNDS = {
    # First: the agent takes no order while some of the other faults are there.
    "a held VM": (Fault("vm.held", "credferry hold web", "web", severity="hint"),),
    "files and settings": (
        Fault("configuration.mode", f"chmod 0666 {CONFIG}"),
        Fault("source.secret", "chmod 0444 /run/secrets/key", severity="hint"),
        Fault("key.mode", f"chmod 0600 {KEY}"),
        Fault("store.mode", f"chmod 0755 {STORE}"),
        Fault("store.owner", f"chown -R nobody {STORE}/vms/db"),
        Fault("agent.enabled", "systemctl disable credferry.service"),
        Fault("seal.enabled", "systemctl disable credferry-seal.service"),
        Fault(
            "host.journal",
            "printf '[Journal]\\nStorage=volatile\\n' >/etc/systemd/journald.conf.d/x-volatile.conf",
            severity="hint",
        ),
        Fault("vm.unit", "systemctl mask microvm@db.service", "db"),
        Fault(
            "vm.restart-prevention",
            extended("web", "90-a", "[Service]\\nRestartPreventExitStatus="),
            "web",
        ),
        Fault("vm.start-limit", extended("web", "90-b", "[Unit]\\nStartLimitIntervalSec=60"), "web"),
        Fault("vm.restart", extended("web", "90-c", "[Service]\\nRestart=on-failure"), "web"),
        Fault("vm.evidence", extended("web", "90-d", "[Service]\\nExecStartPre="), "web"),
        Fault(
            "vm.evidence.removal",
            extended("web", "90-e", "[Service]\\nExecStopPost="),
            "web",
            severity="hint",
        ),
        Fault("vm.health", "systemctl mask credferry-health@.service", "web"),
        Fault("vm.directory", "chown microvm /var/lib/microvms/web", "web"),
        Fault("vm.restarters.path", RESTARTER, "web"),
    ),
    "services and wiring": (
        Fault("source.producer", f"touch /run/broken; systemctl restart {PRODUCER}"),
        Fault("seal", FAILING_SEAL),
        Fault("agent", "systemctl stop credferry.service"),
        Fault("vm.generation", f"rm {STORE}/vms/db/current", "db"),
        Fault(
            "vm.drop-in",
            f"rm {SYSTEM}/microvm@web.service.d/50-credferry.conf; systemctl daemon-reload",
            "web",
        ),
        Fault(
            "vm.credentials",
            extended("db", "90-a", f"[Service]\\nLoadCredentialEncrypted=credferry:{STORE}/vms/web/current"),
            "db",
        ),
        Fault(
            "vm.launcher",
            f"sed -i 's|credferry-launch --real {HYPERVISOR} -- |{HYPERVISOR} |' "
            "/var/lib/microvms/db/current/bin/microvm-run",
            "db",
        ),
        Fault(
            "seal.reload",
            f"mkdir {SYSTEM}/credferry-seal.service.d; touch {SYSTEM}/credferry-seal.service.d/a.conf",
        ),
    ),
    "another machine's key": (
        Fault(
            "key.machine",
            f"chmod 0600 {KEY}; printf 'another machine.' | dd of={KEY} conv=notrunc; chmod 0400 {KEY}",
        ),
    ),
    "an agent without root": (
        Fault("bus.name", UNKNOWN_USER, severity="hint"),
        Fault("bus.polkit", WITHOUT_ROOT),
        Fault("agent.configuration", f"touch {CONFIG}"),
        Fault("vm.launcher.mode", "chmod 0644 /var/lib/microvms/db/current/bin/microvm-run", "db"),
    ),
    "no bus": (Fault("bus", "systemctl stop dbus.socket dbus.service"),),
}


ARGUMENTS = {
    "-v": "-v would make cloud-hypervisor log credential KEY",
    "--gpu x": "--gpu",
    "--dbus-service-name a.b": "--dbus-service-name would show credential KEY",
}


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """Two light VMs that run, in step, on a host of their own."""
    with Host(cache_directory()) as host:
        install(host)
        install_users(host)
        host.write(
            "/usr/lib/credferry-test/user.conf",
            (CHECKOUT / "contrib/systemd/credferry-user.conf").read_text(),
        )
        host.write(MANIFEST, json.dumps({"secrets": [{"name": "key", "restartUnits": []}]}))
        host.write(f"{SYSTEM}/{PRODUCER}", PRODUCER_UNIT)
        made, sops = Deployment(host), SopsNix(host)
        for vm in ("web", "db"):
            made.add_vm(vm)
            # Apart from credferry's own, which comes and goes here.
            host.write(
                f"{SYSTEM}/microvm@{vm}.service.d/40-light.conf",
                "[Service]\nRestartSec=200ms\nEnvironment=CREDFERRY_STANDIN_BOOT=0\n",
            )
        made.configure(SETTINGS)
        sops.publish({"key": CANARY, "password": CANARY})
        host.run("systemctl", "daemon-reload")
        host.run(
            "systemctl",
            "enable",
            "--now",
            PRODUCER,
            "credferry-seal.service",
            "credferry.service",
            check=False,
        )
        made.start_vm("web", "db")
        on_the_bus = ("busctl", "status", NAME)
        host.wait(lambda: not host.run(*on_the_bus, check=False).returncode, 20, "the agent on the bus")
        yield made
        made.close()
        sops.remove()


def doctor(deployment: Deployment) -> list[dict[str, Any]]:
    """All findings. Whatever was planted, no check stumbled, and no value is told."""
    done = deployment.host.run("credferry", "doctor", "--json", check=False)
    document = json.loads(done.stdout)
    findings: list[dict[str, Any]] = document["findings"]
    assert CANARY.decode() not in done.stdout + done.stderr
    assert [each for each in findings if each["remedy"] == "please report it"] == []
    assert done.returncode == (1 if document["counts"]["problem"] else 0)
    return findings


def problems(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are to be mended."""
    return [each for each in findings if each["severity"] == "problem"]


def finding_of(findings: list[dict[str, Any]], fault: Fault) -> dict[str, Any] | None:
    """The finding that a fault has become."""
    return next((each for each in findings if _is_of(each, [fault])), None)


def _is_of(finding: dict[str, Any], faults: Sequence[Fault]) -> bool:
    return (finding["check"], finding["vm"], finding["severity"]) in {
        (fault.check, fault.vm, fault.severity) for fault in faults
    }


def wait_until_mended(deployment: Deployment, faults: Sequence[Fault] = ()) -> None:
    """Look again until there is nothing to be mended, and nothing left of what was planted."""
    left: list[str] = []

    def is_mended() -> bool:
        after = doctor(deployment)
        left[:] = [each["what"] for each in after if each in problems(after) or _is_of(each, faults)]
        return not left

    with suppress(HostError):  # the agent, and VMs that were started again, need a moment
        deployment.host.wait(is_mended, 30)
    assert left == []


def test_a_healthy_deployment(deployment: Deployment) -> None:
    """Nothing is to be mended, every link is looked at, and the status says so."""
    findings = doctor(deployment)
    assert problems(findings) == []
    well = {each["check"] for each in findings if each["severity"] == "ok"}
    links = {
        "configuration",
        "source",
        "source.producer",
        "key",
        "store.room",
        "bus",
        "bus.name",
        "agent",
        "seal",
    }
    of_vms = {
        "generation",
        "unit",
        "settings",
        "launcher",
        "hypervisor",
        "arguments",
        "invocation",
        "budget",
    }
    assert links | {f"vm.{each}" for each in (*of_vms, "state")} <= well
    assert {each["vm"] for each in findings} == {None, "web", "db"}


def test_one_vm_and_what_it_depends_on(deployment: Deployment) -> None:
    """For a VM, or a pattern, only its own secrets and its own links are examined, beside the host."""
    for words in (("web",), ("w*",), ("--vm", "web")):
        found = json.loads(deployment.credferry("doctor", *words, "--json", check=False))["findings"]
        assert {each["vm"] for each in found} == {None, "web"}
    secrets = [each["what"] for each in found if each["check"] == "source.secret"]
    everything = [each["what"] for each in doctor(deployment) if each["check"] == "source.secret"]
    assert 0 < len(secrets) < len(everything)


def test_left_overs_are_one_finding(deployment: Deployment) -> None:
    """However many VMs are no longer configured, one hint names them all, with one command."""
    old = [f"/var/lib/credferry/vms/old-{number}" for number in range(3)]
    deployment.host.run("mkdir", *old)
    (finding,) = [each for each in doctor(deployment) if each["check"] == "store.left-over"]
    assert all(path.rpartition("/")[2] in finding["what"] for path in old)
    assert finding["commands"] == [f"rm -r {' '.join(old)}"]
    deployment.host.run("sh", "-c", finding["commands"][0])
    assert not [each for each in doctor(deployment) if each["check"] == "store.left-over"]


def test_what_is_not_roots_to_see(deployment: Deployment) -> None:
    """As anybody, it tells what it could not see, and ends well."""
    done = deployment.host.run("credferry", "doctor", user="nobody")
    assert done.stdout.count("run credferry doctor as root") == 1
    assert "please report it" not in done.stdout


@pytest.mark.parametrize("name", ROUNDS)
def test_each_planted_fault_is_found_and_its_advice_mends_it(deployment: Deployment, name: str) -> None:
    """Faults are planted, and found; the commands are run as printed; nothing is left to be mended."""
    host, faults = deployment.host, ROUNDS[name]
    for fault in faults:
        host.run("sh", "-c", fault.plant, check=False)
    findings = doctor(deployment)
    found = {fault: finding_of(findings, fault) for fault in faults}
    assert [fault.check for fault, finding in found.items() if finding is None] == [], problems(findings)
    for finding in found.values():
        assert finding is not None
        assert finding["why"]
        assert finding["remedy"]
        assert finding["commands"]
        for command in finding["commands"]:
            host.run("sh", "-c", command)
    wait_until_mended(deployment, faults)


def test_advice_in_words(deployment: Deployment) -> None:
    """Where no command can know what is wanted, words say it: done, they mend what was found, too."""
    host, sops = deployment.host, SopsNix(deployment.host)
    manifest = {"secrets": [{"name": "key", "restartUnits": ["microvm@web.service"]}]}
    host.write(MANIFEST, json.dumps(manifest))
    host.write("/boot/config-kernel", "CONFIG_DMI=y\n# CONFIG_DMI_SYSFS is not set\n")
    host.write("/boot/vmlinuz-kernel", host.path(LIGHT_KERNEL).read_bytes())
    run = "/var/lib/microvms/db/current/bin/microvm-run"
    script = host.path(run).read_text()
    old = f"{HYPERVISOR}-45"
    host.write(old, "#!/bin/sh\necho cloud-hypervisor v45.0\n", 0o755)
    script_of_old = script.replace(f"--real {HYPERVISOR} ", f"--real {old} ")
    host.write(run, script_of_old.replace(LIGHT_KERNEL, "/boot/vmlinuz-kernel"), 0o755)
    sops.publish({"key": b"k" * 4000})
    findings = {(each["check"], each["vm"]): each for each in problems(doctor(deployment))}
    assert findings["source.secret", None]["what"] == "secret password is not published"
    assert findings["source.secret", None]["remedy"].startswith("publish it, or ")
    assert "guest_systemd = 257 if it is that new" in findings["vm.budget", "web"]["remedy"]
    assert "cloud-hypervisor 45 is older than 46" in findings["vm.hypervisor", "db"]["what"]
    assert "without CONFIG_DMI_SYSFS" in findings["vm.kernel", "db"]["what"]
    assert 'remove "microvm@web.service" from' in findings["vm.restarters.sops", "web"]["remedy"]
    sops.publish({"key": b"k" * 4000, "password": CANARY})
    deployment.configure(SETTINGS.replace("[vms.web]\n", "[vms.web]\nguest_systemd = 257\n"))
    host.run("systemctl", "reload", "credferry.service")
    host.write(run, script, 0o755)
    host.write(MANIFEST, json.dumps({"secrets": [{"name": "key", "restartUnits": []}]}))
    wait_until_mended(deployment)


def test_arguments_that_the_next_start_would_refuse(deployment: Deployment) -> None:
    """They are found while the VM runs, in the launcher's own words, by `check` as well."""
    host = deployment.host
    for vm in ("web", "db"):  # a restart that is still due would be one with these arguments
        deployment.wait_in_step(vm, 60)
        deployment.wait_noted(vm)
    run = "/var/lib/microvms/web/current/bin/microvm-run"
    script = host.path(run).read_text()
    for words, said in ARGUMENTS.items():
        host.write(run, script.replace(" --api-socket ", f" {words} --api-socket "), 0o755)
        (finding,) = [each for each in problems(doctor(deployment)) if each["check"] == "vm.arguments"]
        assert (finding["vm"], said in finding["what"]) == ("web", True), finding
        assert finding["remedy"]
        checked = host.run("credferry", "check", check=False)
        assert (checked.returncode, said in checked.stderr) == (1, True), checked.stderr
    host.write(run, script, 0o755)
    wait_until_mended(deployment)
    assert host.run("credferry", "check").stderr == ""


def test_the_judgement_runs_nothing_that_a_vms_user_could_have_written(deployment: Deployment) -> None:
    """Neither a launcher nor a hypervisor, as root or not: it says that it cannot tell, and who could."""
    host = deployment.host
    run = "/var/lib/microvms/web/current/bin/microvm-run"
    script = host.path(run).read_text()
    theirs = "/srv/theirs"
    for name in ("credferry-launch", "cloud-hypervisor"):
        host.write(f"{theirs}/{name}", f"#!/bin/sh\ntouch {theirs}/ran\n", 0o755)
    host.run("chown", "-R", "microvm", theirs)
    host.run("chmod", "0777", theirs)
    try:
        for old, new in (
            (" credferry-launch ", f" {theirs}/credferry-launch "),
            (f" --real {HYPERVISOR} ", f" --real {theirs}/cloud-hypervisor "),
        ):
            host.write(run, script.replace(old, new), 0o755)
            for user in (None, "nobody"):
                said = host.run("credferry", "check", user=user).stderr
                assert "VM web: cannot tell whether the launcher accepts its arguments: " in said
                assert f"{theirs} can be changed by microvm" in said
        assert not host.path(f"{theirs}/ran").exists()
        # In a sticky directory, as /nix/store is, root's entries stay root's.
        host.run("sh", "-c", "mkdir -m 1777 /srv/store; cp /usr/bin/credferry-launch /srv/store")
        host.write(run, script.replace(" credferry-launch ", " /srv/store/credferry-launch "), 0o755)
        assert host.run("credferry", "check").stderr == ""
    finally:
        host.write(run, script, 0o755)
    assert host.run("credferry", "check").stderr == ""


def test_where_the_vms_user_owns_the_directory_the_scripts_own_place_counts(deployment: Deployment) -> None:
    """As microvm.nix has it: `current` is a link to a script that is root's, which is judged."""
    host = deployment.host
    home, store = "/var/lib/microvms/db", "/srv/runner"
    host.run("sh", "-c", f"mv {home}/current {store}; ln -s {store} {home}/current; chown microvm {home}")
    script = host.path(f"{store}/bin/microvm-run").read_text()
    try:
        assert host.run("credferry", "check").stderr == ""
        host.write(f"{store}/bin/microvm-run", script.replace(" --api-socket ", " -v --api-socket "), 0o755)
        checked = host.run("credferry", "check", check=False)
        assert (checked.returncode, "VM db: its next start would fail" in checked.stderr) == (1, True)
        assert "-v would make cloud-hypervisor log credential PASSWORD" in checked.stderr
        (finding,) = [each for each in problems(doctor(deployment)) if each["check"] == "vm.arguments"]
        assert finding["vm"] == "db"
    finally:
        host.write(f"{store}/bin/microvm-run", script, 0o755)
        host.run("sh", "-c", f"chown root {home}; rm {home}/current; mv {store} {home}/current")


def test_rotations_work_after_all_of_it(deployment: Deployment) -> None:
    """What was mended serves: a new value reaches both VMs."""
    SopsNix(deployment.host).publish({"key": b"after", "password": b"after"})
    for vm in ("web", "db"):
        deployment.host.wait(lambda vm=vm: _delivered(deployment, vm) == {b"after"}, 30, f"rotation of {vm}")  # type: ignore[misc]  # a default binds the name


def _delivered(deployment: Deployment, vm: str) -> set[bytes]:
    """The values that a VM was started with; none while it is restarted."""
    with suppress(
        OSError, HostError, TypeError
    ):  # its API answers with a list of errors before there is a VM
        return set(deployment.delivered(vm).values())
    return set()
