# SPDX-License-Identifier: MIT
"""The agent without root, under a real polkit: what it can do, and that it can do no more.

Both variants, root and not, are confined, and their memory is out of reach.
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.config.loading import parse
from credferry.agent.systemd.polkit import rule
from credferry.agent.systemd.units import restart_unit
from tests.host.test_push import GUEST, start_vm
from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.certificates import Authority
from tests.support.deployment import CONFIG, UNIT_STARTED, Deployment, broken_by_bad
from tests.support.gate import Gate
from tests.support.host import Host
from tests.support.installation import CHECKOUT, install, install_users
from tests.support.numbers import Number, note
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT, SEAL = "credferry.service", "credferry-seal.service"
USER = "credferry"
RULE = "/etc/polkit-1/rules.d/50-credferry.rules"
STORE = "/var/lib/credferry"
HOST_KEY = "/var/lib/systemd/credential.secret"
DROP_IN = "50-user.conf"
ONE_VM = """
[vms.web.credentials]
API_KEY = { secret = "api-key" }
"""
TWO_VMS = (
    ONE_VM
    + """
[vms.db]
guest_key = true
[vms.db.credentials]
API_KEY = { secret = "api-key" }
"""
)
MAKE_KEY = ("guest-key", "create", "db", "--machine-id", "5ea1ed00c0ffee00c0ffee00c0ffee00")
CAP_DAC_READ_SEARCH = 1 << 2
MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
WEB = "microvm@web.service"
DENIED, UNASKED = "denied", "interactive authentication"
# Of the configured units, too: what the agent never does.
REFUSED = (
    ("StartUnit", "ss", WEB, "replace"),
    ("RestartUnit", "ss", WEB, "replace"),
    ("ReloadOrRestartUnit", "ss", WEB, "replace"),
    ("ResetFailedUnit", "s", WEB),
    ("StopUnit", "ss", WEB, "replace"),
    ("ReloadUnit", "ss", WEB, "replace"),
    ("KillUnit", "ssi", WEB, "all", "9"),
    ("FreezeUnit", "s", WEB),
    ("SetUnitProperties", "sba(sv)", WEB, "true", "1", "MemoryMax", "t", "1048576"),
    ("StartTransientUnit", "ssa(sv)a(sa(sv))", "new.service", "replace", "0", "0"),
)
UNGRANTED = (
    ("Reload", ""),
    ("EnableUnitFiles", "asbb", "1", "other.service", "false", "false"),
    ("SetEnvironment", "as", "1", "A=b"),
    ("PowerOff", ""),
)
STORE_STATUS = 73
KEY_STATUS = 77
GENERATIONS_KEPT = 3
CLD_KILLED = 2  # and 3 for one that dumped core: bits/siginfo-consts.h


@pytest.fixture(scope="module")
def guarded_host() -> Iterator[Host]:
    """A host of its own, with the user of the agent without root, and with a key."""
    with Host(cache_directory()) as host:
        install(host)
        install_users(host)
        host.run("systemctl", "reload", "dbus.service")  # it looks the users up when it reads its policies
        yield host


@pytest.fixture
def deployment(guarded_host: Host) -> Iterator[Deployment]:
    """A light VM, and a secret for it."""
    made, sops = Deployment(guarded_host), SopsNix(guarded_host)
    made.add_vm("web")
    made.configure(ONE_VM)
    guarded_host.run("systemd-creds", "setup")
    sops.publish({"api-key": b"value 1"})
    yield made
    made.close()
    guarded_host.run("rm", "-rf", RULE, *drop_ins())
    guarded_host.run("systemctl", "daemon-reload")
    sops.remove()


@pytest.fixture
def unprivileged(deployment: Deployment) -> Deployment:
    """The same, with the agent's units as a user of its own, and polkit told what that user may."""
    host = deployment.host
    for path in drop_ins():
        host.write(f"{path}/{DROP_IN}", (CHECKOUT / "contrib/systemd/credferry-user.conf").read_text())
    host.run("systemctl", "daemon-reload")
    give_rule(host, rule(parse(ONE_VM.encode(), Path(CONFIG)), USER))
    return deployment


def give_rule(host: Host, text: str) -> None:
    """Give polkit a rule."""
    host.write(RULE, text)
    host.run("systemctl", "restart", "polkit.service")  # it notices by itself, at some time


def add_sealed_vm(deployment: Deployment) -> None:
    """Another VM with the same secret, sealed for its guest."""
    deployment.add_vm("db")
    deployment.configure(TWO_VMS)
    deployment.credferry(*MAKE_KEY)


def drop_ins() -> list[str]:
    """Where the agent's units are extended."""
    return [f"/etc/systemd/system/{unit}.d" for unit in (AGENT, SEAL, "credferry-seal@.service")]


def main_pid(host: Host) -> str:
    """The agent's PID inside the host."""
    return host.unit(AGENT)["MainPID"]


def process_status(host: Host, pid: str) -> dict[str, str]:
    """/proc/PID/status."""
    lines = host.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def uid_of(host: Host, user: str) -> str:
    """A user's id."""
    return host.run("id", "-u", user).stdout.strip()


def told(deployment: Deployment) -> set[str]:
    """The kinds of facts that the audit tells."""
    return {record["event"] for record in json.loads(deployment.credferry("audit", "--records", "--json"))}


def hosts_of_fleet(deployment: Deployment) -> list[str]:
    """The hosts that etcd knows of: none while it does not answer, and before the agent has reported."""
    said = deployment.credferry("fleet", "status", "--json", check=False)
    return [each["host"] for group in json.loads(said or "[]") for each in group["hosts"]]


def call(host: Host, user: str, method: str, signature: str, *arguments: str) -> str:
    """Ask systemd for something over D-Bus, as a user; what it refuses with, or nothing.

    That is what each version's message has: `DENIED` for polkit's no, `UNASKED` where nobody could be asked.
    """
    asked = host.run("busctl", "call", *MANAGER, method, signature, *arguments, user=user, check=False)
    said = asked.stderr.strip().lower()
    return "" if asked.returncode == 0 else next((each for each in (UNASKED, DENIED) if each in said), said)


def test_the_whole_way_without_root(unprivileged: Deployment) -> None:
    """As a user with one capability the agent seals, restarts, checks, reloads, and is believed."""
    host = unprivileged.host
    add_sealed_vm(unprivileged)
    unprivileged.configure(TWO_VMS.replace("[vms.web.", '[vms.web]\nhealth = ["/bin/true"]\n[vms.web.'))
    give_rule(host, unprivileged.credferry("polkit-rule"))
    host.run("systemctl", "start", SEAL)
    assert host.unit(SEAL)["Result"] == "success"
    unprivileged.start_vm("web", "db")
    unprivileged.start_agent()
    status = process_status(host, main_pid(host))
    assert set(status["Uid"].split()) == {uid_of(host, USER)}
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == CAP_DAC_READ_SEARCH, kind
    SopsNix(host).publish({"api-key": b"value 2"})
    host.wait(lambda: unprivileged.starts("web") == 2 and unprivileged.starts("db") == 2, 30, "restarts")
    unprivileged.wait_in_step("web")
    unprivileged.wait_in_step("db")
    assert unprivileged.delivered("web") == {"API_KEY": b"value 2"}
    assert host.unit(AGENT)["WatchdogTimestampMonotonic"] != "0"
    host.run("systemctl", "reload", AGENT)
    said = [entry["MESSAGE"] for entry in host.journal(_SYSTEMD_UNIT=AGENT)]
    sighup = [line for line in said if "SIGHUP" in line]
    assert not sighup, sighup
    health = {"MESSAGE_ID": UNIT_STARTED, "UNIT": "credferry-health@web.service", "_PID": "1"}
    # The VM is in step before that. Polkit lets it be started.
    host.wait_journal(lambda _: True, 20, **health)
    wanted = {"agent started", "published", "sealed", "restarted", "launched", "configuration"}
    host.wait(lambda: wanted <= told(unprivileged), 20, "the audit")
    assert host.unit(AGENT)["NRestarts"] == "0"


def test_polkit_grants_no_more(unprivileged: Deployment) -> None:
    """The agent's user may do to the configured units what the agent does, and only that; others nothing."""
    host = unprivileged.host
    host.write("/etc/systemd/system/other.service", "[Service]\nExecStart=/bin/sleep infinity\n")
    host.run("systemctl", "start", "other.service")
    unprivileged.credferry("sync")
    unprivileged.start_vm("web")
    asked = ("TryRestartUnit", "ss")
    assert call(host, USER, *asked, WEB, "replace") == ""
    assert call(host, USER, *asked, "microvm@mail.service", "replace") == DENIED
    assert call(host, USER, *asked, "other.service", "replace") == DENIED
    assert call(host, "nobody", *asked, WEB, "replace") == UNASKED
    assert "isolate" in call(host, USER, *asked, WEB, "isolate")
    for unit in ("microvm@mail.service", "other.service"):
        assert call(host, USER, "StartUnit", "ss", restart_unit(unit), "replace") == DENIED, unit
    assert call(host, "nobody", "StartUnit", "ss", restart_unit(WEB), "replace") == UNASKED
    for method, signature, *arguments in REFUSED:
        assert call(host, USER, method, signature, *arguments) == DENIED, method
    for method, signature, *arguments in UNGRANTED:
        assert call(host, USER, method, signature, *arguments) in {DENIED, UNASKED}, method
    assert host.unit("other.service")["ActiveState"] == "active"
    host.wait(lambda: unprivileged.unit("web")["ActiveState"] == "active", 30, "the last of web's restarts")
    host.run("systemctl", "stop", "other.service")
    host.run("rm", "/etc/systemd/system/other.service")


def test_a_stopped_vm_stays_stopped(unprivileged: Deployment) -> None:
    """Whatever the agent's user may ask for, in any mode, a VM that an operator stopped is not started."""
    host, beside = unprivileged.host, "/etc/systemd/system/beside.service"
    unprivileged.credferry("sync")
    unprivileged.start_vm("web")
    # Because of this one systemd has the VM's unit loaded, stopped or not.
    host.write(beside, f"[Unit]\nAfter={WEB}\n[Service]\nExecStart=/bin/sleep infinity\n")
    host.run("systemctl", "start", "beside.service")
    host.run("systemctl", "stop", WEB)
    starts = unprivileged.starts("web")
    try:
        for mode in ("replace", "fail", "flush", "replace-irreversibly", "ignore-dependencies"):
            for method in ("TryRestartUnit", "RestartUnit", "ReloadOrRestartUnit", "StartUnit"):
                call(host, USER, method, "ss", WEB, mode)
            assert call(host, USER, "StartUnit", "ss", restart_unit(WEB), mode) == "", mode
            host.wait(lambda: "Job" not in host.unit(restart_unit(WEB)), 20, "the end of its job")
            assert unprivileged.unit("web")["ActiveState"] == "inactive", mode
        assert unprivileged.starts("web") == starts
    finally:
        host.run("systemctl", "stop", "beside.service")
        host.run("rm", beside)


def test_what_polkit_cannot_narrow(unprivileged: Deployment) -> None:
    """Polkit is not told the job's mode: the agent's user can cancel queued jobs, and keep a restart going.

    SECURITY.md says so. Where this fails, systemd tells more, and the rule can be narrowed.
    """
    host = unprivileged.host
    unprivileged.credferry("sync")
    gate = Gate(host, "narrow")
    gate.put_before("web")
    waiting = "/etc/systemd/system/waiting.service"
    host.write(waiting, f"[Unit]\nAfter={WEB}\n[Service]\nExecStart=/bin/sleep infinity\n")
    host.run("systemctl", "daemon-reload")
    unprivileged.start_vm("web")

    def at_the_gate() -> bool:
        """Whether a new start has come so far: between a stop and a start nothing is restarted.

        systemd 252 goes on with the next command where a stop ends one whose failure it ignores.
        """
        unit = unprivileged.unit("web")
        if unit["SubState"] != "start-pre" or unit["InvocationID"] in seen or not gate.is_waited_at():
            return False
        seen.add(unit["InvocationID"])
        return True

    seen: set[str] = set()

    try:
        with gate.shut():
            host.run("systemctl", "restart", "--no-block", WEB)
            host.wait(at_the_gate, 20, "the restart")
            host.run("systemctl", "start", "--no-block", "waiting.service")
            assert "Job" in host.unit("waiting.service")
            assert call(host, USER, "TryRestartUnit", "ss", WEB, "flush") == ""
            assert "Job" not in host.unit("waiting.service"), "an unrelated unit's job is cancelled"
            try:
                host.wait(at_the_gate, 20, "the restart that flushed")
            except HostError as error:
                error.add_note(host.run("systemctl", "list-jobs").stdout)
                error.add_note(host.run("systemctl", "status", "--no-pager", WEB, check=False).stdout)
                raise
            assert call(host, USER, "TryRestartUnit", "ss", WEB, "replace-irreversibly") == ""
            stop = host.run("systemctl", "stop", WEB, check=False)
            assert "destructive" in stop.stderr, "the VM cannot be stopped until its restart is done"
            host.run("systemctl", "cancel")  # all jobs: those of its helpers are as irreversible
            host.run("systemctl", "stop", "--no-block", WEB)
        ended = {"inactive", "failed"}
        host.wait(lambda: unprivileged.unit("web")["ActiveState"] in ended, 30, "the VM's stop")
    finally:
        gate.remove()
        host.run("rm", waiting)
        host.run("systemctl", "daemon-reload")


def test_a_vm_that_its_restart_left_failed(unprivileged: Deployment) -> None:
    """Without root, too, such a VM is started again on what it ran: a unit of root's does that."""
    host = unprivileged.host
    unprivileged.add_vm("web", broken_by_bad("API_KEY"))
    host.write(f"/etc/systemd/system/{WEB}.d/60-once.conf", "[Service]\nRestart=no\n")
    host.run("systemctl", "daemon-reload")
    unprivileged.start_agent()
    unprivileged.start_vm("web")
    SopsNix(host).publish({"api-key": b"a bad value"})
    host.wait(
        lambda: "rolled back to generation" in " ".join(unprivileged.status()["web"]["reasons"]),
        30,
        "rollback",
    )
    assert unprivileged.delivered("web") == {"API_KEY": b"value 1"}
    done = {"MESSAGE_ID": UNIT_STARTED, "UNIT": restart_unit(WEB), "_PID": "1"}
    assert host.journal(**done), "root's unit has started it"


def test_a_health_check_may_be_started_where_there_is_one(unprivileged: Deployment) -> None:
    """Starting is granted for the health check of a VM that has one, and for nothing else."""
    host = unprivileged.host
    text = TWO_VMS.replace("[vms.db]\n", '[vms.db]\nhealth = ["/bin/true"]\n')
    unprivileged.configure(text)
    give_rule(host, rule(parse(text.encode(), Path(CONFIG)), USER))
    assert call(host, USER, "StartUnit", "ss", "credferry-health@db.service", "replace") == ""
    assert call(host, USER, "StartUnit", "ss", "credferry-health@web.service", "replace") == DENIED
    assert call(host, USER, "StartUnit", "ss", "microvm@db.service", "replace") == DENIED


def test_units_around_restarts_may_be_started(unprivileged: Deployment) -> None:
    """Without root, too, the agent runs them around a restart, each for its VM. Nothing else is granted."""
    host = unprivileged.host
    for name in ("drain", "undrain"):
        unit = "[Service]\nType=oneshot\nTimeoutStartSec=60s\nExecStart=/bin/true\n"
        host.write(f"/run/systemd/system/{name}@.service", unit)
    host.run("systemctl", "daemon-reload")
    units = 'units = { before = "drain@%i.service", after = "undrain@%i.service" }\n'
    text = ONE_VM.replace("[vms.web.", f"[vms.web]\n{units}[vms.web.")
    unprivileged.configure(text)
    give_rule(host, rule(parse(text.encode(), Path(CONFIG)), USER))
    assert call(host, USER, "StartUnit", "ss", "drain@db.service", "replace") == DENIED
    assert call(host, USER, "StopUnit", "ss", "drain@web.service", "replace") == DENIED
    host.run("systemctl", "start", SEAL)
    unprivileged.start_vm("web")
    unprivileged.start_agent()
    SopsNix(host).publish({"api-key": b"a value after drain"})
    ran = {"MESSAGE_ID": UNIT_STARTED, "UNIT": "undrain@web.service", "_PID": "1"}
    host.wait(lambda: bool(host.journal(**ran)), 30, "the unit after the restart")
    assert host.journal(**{**ran, "UNIT": "drain@web.service"})
    assert unprivileged.delivered("web") == {"API_KEY": b"a value after drain"}


def test_a_push_may_be_started_where_a_vm_is_live(unprivileged: Deployment) -> None:
    """Without root, too, the agent pushes and sees root's proof; pushes to other VMs are not granted."""
    host = unprivileged.host
    text = ONE_VM.replace("[vms.web.", "[vms.web]\nlive = true\n[vms.web.")
    unprivileged.configure(text)
    give_rule(host, rule(parse(text.encode(), Path(CONFIG)), USER))
    host.write(GUEST, (CHECKOUT / "tests/support/push_guest.py").read_bytes())
    host.run("systemctl", "start", SEAL)
    start_vm(unprivileged, is_sealed=True)
    unprivileged.start_agent()
    SopsNix(host).publish({"api-key": b"value 2"})
    host.wait(lambda: "pushed" in told(unprivileged), 60, "a push")
    unprivileged.wait_in_step("web")
    assert unprivileged.starts("web") == 1
    assert call(host, USER, "StartUnit", "ss", "credferry-push@db.service", "replace") == DENIED
    assert call(host, USER, "StopUnit", "ss", "credferry-push@web.service", "replace") == DENIED


def test_without_the_rule_nothing_is_restarted(unprivileged: Deployment) -> None:
    """Where polkit was told nothing, the VM keeps running, and what was refused is told with the way out."""
    host = unprivileged.host
    host.run("rm", RULE)
    host.run("systemctl", "restart", "polkit.service")
    unprivileged.credferry("sync")
    unprivileged.start_vm("web")
    unprivileged.start_agent()
    SopsNix(host).publish({"api-key": b"value 2"})
    host.wait_journal(lambda entry: UNASKED in entry["MESSAGE"].lower(), 30, _SYSTEMD_UNIT=AGENT)
    assert unprivileged.starts("web") == 1


def test_the_unit_is_believed_and_not_its_user(unprivileged: Deployment) -> None:
    """What the agent's user says from elsewhere than the agent's unit is not in the audit."""
    host = unprivileged.host
    before = host.run("credferry", "audit").stdout
    fields = f"MESSAGE_ID={Event.SEALED.value}\nMESSAGE=forged\nCREDFERRY_VM=web\n"
    host.run("logger", "--journald", stdin=fields, user=USER)
    elsewhere = ("systemd-run", "--quiet", "--pipe", "--wait", f"--uid={USER}", "--unit=elsewhere.service")
    host.run(*elsewhere, "logger", "--journald", stdin=fields)
    assert len(host.journal(MESSAGE="forged")) == 2
    assert host.run("credferry", "audit").stdout == before


def test_the_launcher_s_child_is_out_of_reach(deployment: Deployment) -> None:
    """It has handed the values over, and stays: nobody of the VM's user reads its memory."""
    host = deployment.host
    deployment.credferry("sync")
    deployment.start_vm("web")
    main = deployment.unit("web")["MainPID"]
    children = host.run("cat", f"/proc/{main}/task/{main}/children").stdout.split()
    launchers = [pid for pid in children if "launch" in host.run("cat", f"/proc/{pid}/cmdline").stdout]
    assert launchers
    for pid in launchers:
        assert process_status(host, pid)["Uid"].split()[0] == uid_of(host, "microvm")
        peek = host.run("head", "--bytes=1", f"/proc/{pid}/maps", user="microvm", check=False)
        assert "Permission denied" in peek.stderr


@pytest.mark.parametrize("lifted", ["", "ProtectProc=default", "PrivateMounts=no"])
def test_a_vmm_sees_no_neighbour_s_credentials(deployment: Deployment, lifted: str) -> None:
    """A VMM's file system shows its own credentials alone, and no process of another user.

    Each of the two settings gives the unit a view of its own. So each has to hide the credentials while the
    other is lifted.
    """
    host = deployment.host
    add_sealed_vm(deployment)
    deployment.credferry("sync")
    host.write(f"/etc/systemd/system/{WEB}.d/60-lifted.conf", f"[Service]\n{lifted}\n")
    host.run("systemctl", "daemon-reload")
    deployment.start_vm("web", "db")
    enter = ["nsenter", f"--target={deployment.unit('web')['MainPID']}", "--mount", "--", "setpriv"]
    enter += ["--reuid=microvm", "--regid=kvm", "--clear-groups", "--"]
    assert host.run(*enter, "ls", "/run/credentials").stdout.split() == [WEB]
    assert host.run(*enter, "cat", f"/run/credentials/{WEB}/credferry_value.API_KEY").stdout == "value 1"
    if "ProtectProc" not in lifted:
        assert host.run(*enter, "test", "-e", "/proc/1", check=False).returncode != 0


def test_root_works_beside_it(unprivileged: Deployment) -> None:
    """What root's verbs have made in the store is the agent's: it opens locks and prunes generations."""
    host, sops = unprivileged.host, SopsNix(unprivileged.host)
    add_sealed_vm(unprivileged)
    unprivileged.configure(TWO_VMS.replace("[vms.db]\n", '[vms.db]\npolicy = "ignore"\n'))
    unprivileged.start_agent()
    unprivileged.start_vm("web", "db")
    host.run("systemctl", "stop", AGENT)
    # A lock of root's would be the end of the agent; so these are made anew, each of them.
    host.run("sh", "-c", f"rm -rf {STORE}/*lock {STORE}/guest-keys/*")
    unprivileged.credferry(*MAKE_KEY)
    sops.publish({"api-key": b"by root"})
    unprivileged.credferry("sync")
    assert host.run("find", STORE, "!", "-user", USER).stdout == ""
    unprivileged.start_agent()
    unprivileged.wait_in_step("web")
    assert unprivileged.delivered("web") == {"API_KEY": b"by root"}
    for number in range(2):
        starts = unprivileged.starts("web")
        sops.publish({"api-key": f"by the agent {number}".encode()})
        host.wait(lambda starts=starts: unprivileged.starts("web") > starts, 30, "a restart")  # type: ignore[misc]  # a default binds the number
        unprivileged.wait_in_step("web")
        assert unprivileged.delivered("web") == {"API_KEY": f"by the agent {number}".encode()}
    # The look after the one that has sealed prunes.
    generations = host.path(f"{STORE}/vms/web/generations")
    host.wait(lambda: len(list(generations.iterdir())) == GENERATIONS_KEPT, 20, "the pruning")
    unprivileged.credferry("status")
    host.run("systemctl", "stop", AGENT)  # or files come and go while they are looked at
    assert host.run("find", STORE, "!", "-user", USER).stdout == ""


def test_root_is_not_led_astray(unprivileged: Deployment) -> None:
    """Links that the agent's user leaves in the store lead root's verbs to nothing but that user's."""
    host = unprivileged.host
    unprivileged.start_agent()
    host.run("systemctl", "stop", AGENT)
    host.run("sh", "-c", f"rm -rf {STORE}/vms && ln -s /etc {STORE}/vms", user=USER)
    host.run("sh", "-c", f"rm {STORE}/seal.lock && ln -s /etc/lock-of-root {STORE}/seal.lock", user=USER)
    host.run("sh", "-c", f"ln -s /etc {STORE}/guest-keys", user=USER)
    for name in ("audit.lock", "audit.json"):
        host.run("sh", "-c", f"rm -f {STORE}/{name} && ln -s /etc/{name}-of-root {STORE}/{name}", user=USER)
    unprivileged.configure('[fleet]\nendpoints = ["http://127.0.0.1:9"]\n' + ONE_VM)
    before = host.run("find", "/etc", "-newer", RULE).stdout
    refused = host.run("credferry", "agent", "--once", check=False)
    assert refused.returncode == STORE_STATUS
    assert f"{STORE}: belongs to user " in refused.stderr
    assert host.run("credferry", "sync", check=False).returncode == STORE_STATUS
    assert (
        host.run("credferry", *(word.replace("db", "web") for word in MAKE_KEY), check=False).returncode
        == KEY_STATUS
    )
    order = ("credferry", "fleet", "limit", "web", "2", "--new")
    assert host.run(*order, check=False).returncode == STORE_STATUS
    assert host.run("find", "/etc", "-newer", RULE).stdout == before


def test_the_store_is_root_s_and_the_agent_s(unprivileged: Deployment) -> None:
    """Nobody else can list the store or read a sealed value; PID 1 can, as the VM's start shows."""
    host = unprivileged.host
    unprivileged.start_agent()
    unprivileged.start_vm("web")
    sealed = f"{STORE}/vms/web/current/value.API_KEY"
    for user in ("nobody", "microvm"):
        for command in (("cat", sealed), ("ls", STORE), ("ls", f"{STORE}/vms")):
            assert host.run(*command, user=user, check=False).returncode != 0, (user, command)
    assert host.run("cat", sealed, user=USER).stdout == host.run("cat", sealed).stdout != ""
    host.run("systemctl", "stop", AGENT)  # or files come and go while they are looked at
    modes = host.run("find", STORE, "!", "-type", "l", "-perm", "/077").stdout
    assert modes == ""


def test_a_missing_host_key_is_told_with_its_remedy(unprivileged: Deployment) -> None:
    """Without root the agent cannot make the host's key; it says who can, and how, and does not loop."""
    host = unprivileged.host
    key = host.path(HOST_KEY)
    content = key.read_bytes()
    key.unlink()
    host.run("systemctl", "start", AGENT, check=False)
    assert host.unit(AGENT)["ExecMainStatus"] == "77"
    assert host.unit(AGENT)["NRestarts"] == "0"
    host.wait_journal(
        lambda entry: HOST_KEY in entry["MESSAGE"] and "systemd-creds setup" in entry["MESSAGE"],
        10,
        _SYSTEMD_UNIT=AGENT,
    )
    host.write(HOST_KEY, content, 0o400)


@pytest.mark.parametrize("variant", ["deployment", "unprivileged"])
def test_exposure(request: pytest.FixtureRequest, variant: str) -> None:
    """systemd-analyze scores both units at 1.0 or less, as root and without.

    They have no network, no devices, no new privileges and no core.
    """
    host = request.getfixturevalue(variant).host
    for unit in (AGENT, SEAL):
        said = host.run("systemd-analyze", "security", "--no-pager", unit).stdout
        score = re.search(rf"Overall exposure level for {unit}: ([0-9.]+)", said)
        assert score
        assert float(score[1]) <= 1.0, unit
        settings = host.unit(unit)
        for setting in ("PrivateNetwork", "PrivateDevices", "NoNewPrivileges"):
            assert settings[setting] == "yes", (unit, setting)
        assert settings["LimitCORE"] == "0", unit
        if (unit, variant) == (AGENT, "deployment"):
            note(Number.SECURITY_SCORE, float(score[1]))


def test_exposure_with_a_tpm(deployment: Deployment) -> None:
    """With the drop-in for a TPM, both units may use this device and no other, at an exposure of 1.1."""
    host = deployment.host
    drop_in = (CHECKOUT / "contrib/systemd/credferry-tpm.conf").read_text()
    places = {unit: f"/etc/systemd/system/{unit}.d/60-tpm.conf" for unit in (AGENT, SEAL)}
    try:
        for place in places.values():
            host.write(place, drop_in)
        host.run("systemctl", "daemon-reload")
        for unit in places:
            said = host.run("systemd-analyze", "security", "--no-pager", unit).stdout
            score = re.search(rf"Overall exposure level for {unit}: ([0-9.]+)", said)
            assert score
            assert float(score[1]) <= 1.1, unit
            settings = host.unit(unit)
            assert settings["DevicePolicy"] == "closed", unit
            assert settings["DeviceAllow"] == "char-tpm rw", unit
    finally:
        host.run("rm", "-f", *places.values())
        host.run("systemctl", "daemon-reload")


def test_a_network_for_the_fleet_alone(deployment: Deployment, tmp_path: Path) -> None:
    """With the drop-in for [fleet], the unit reaches etcd with its own credentials, at an exposure of 1.9.

    Without it, the unit reaches nothing, and `check` says what to install. Root's verbs and the doctor find
    the credentials while the agent runs.
    """
    host = deployment.host
    place, files = f"/etc/systemd/system/{AGENT}.d", "/etc/credferry-etcd"
    authority = Authority.make(tmp_path / "ca")
    for name, path in (
        ("ca.pem", authority.ca),
        *zip(("server.pem", "server.key"), authority.issue("server", days=90), strict=True),
        *zip(("etcd.pem", "etcd.key"), authority.issue("client", days=90), strict=True),
    ):
        host.write(f"{files}/{name}", Path(path).read_bytes(), 0o600)
    url = "https://127.0.0.1:8379"
    options = ["--data-dir=/run/etcd", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
    options += [f"--cert-file={files}/server.pem", f"--key-file={files}/server.key", "--client-cert-auth"]
    options += [f"--trusted-ca-file={files}/ca.pem", "--listen-peer-urls=http://127.0.0.1:8380"]
    host.run("systemd-run", "--unit=server", "etcd", *options)
    table = f'[fleet]\nendpoints = ["{url}"]\nca = "{files}/ca.pem"\ncertificate = "{{0}}etcd.pem"\n'
    table += 'key = "{0}etcd.key"\n'
    drop_in = (CHECKOUT / "contrib/systemd/credferry-fleet.conf").read_text()
    for name in ("etcd.pem", "etcd.key"):
        line = f"LoadCredential={name}:/etc/credferry/{name}"
        assert f"#{line}" in drop_in
        drop_in = drop_in.replace(f"#{line}", line.replace("/etc/credferry", files))
    try:
        host.wait(lambda: "8379" in host.run("ss", "-ltn").stdout, 20, "etcd")
        for is_open in (False, True):
            deployment.configure(table.format("" if is_open else f"{files}/") + ONE_VM)
            if is_open:
                host.write(f"{place}/60-fleet.conf", drop_in)
            host.run("systemctl", "daemon-reload")
            warned = "credferry-fleet.conf is not in force" in host.run("credferry", "check").stderr
            assert warned is not is_open
            host.run("systemctl", "restart", AGENT)
            if not is_open:
                host.wait_journal(lambda entry: "engine cannot be used" in entry.get("MESSAGE", ""), 20)
        host.wait(lambda: hosts_of_fleet(deployment), 20, "the host in etcd")
        assert host.run("credferry", "fleet", "limit", "default", "2").stdout == "default: the limit is 2\n"
        found = json.loads(host.run("credferry", "doctor", "--json", check=False).stdout)["findings"]
        fleet = {each["check"]: each["severity"] for each in found if each["check"].startswith("fleet.")}
        assert set(fleet) == {
            *("fleet.network", "fleet.certificate", "fleet.member"),
            *("fleet.member.certificate", "fleet.group.limit"),
        }
        assert set(fleet.values()) == {"ok"}
        analysed = host.run("systemd-analyze", "security", "--no-pager", AGENT).stdout
        score = re.search(rf"Overall exposure level for {AGENT}: ([0-9.]+)", analysed)
        assert score
        assert 1.0 < float(score[1]) <= 1.9
    finally:
        host.run("systemctl", "stop", "server.service", AGENT)
        host.run("rm", "-rf", f"{place}/60-fleet.conf", files, "/run/etcd")


@pytest.mark.parametrize("variant", ["deployment", "unprivileged"])
def test_memory_is_out_of_reach(request: pytest.FixtureRequest, variant: str) -> None:
    """No process of the agent's own user reads its memory; it is locked, where the unit may."""
    made = request.getfixturevalue(variant)
    host = made.host
    made.start_agent()
    pid = main_pid(host)
    assert host.run("stat", "--format=%u", f"/proc/{pid}/mem").stdout == "0\n"
    if variant == "unprivileged":
        for name in ("mem", "environ", "maps"):
            peek = host.run("head", "--bytes=1", f"/proc/{pid}/{name}", user=USER, check=False)
            assert "Permission denied" in peek.stderr, name
    limits = host.run("cat", f"/proc/{pid}/limits").stdout
    unlimited = re.search(r"^Max locked memory +unlimited", limits, re.MULTILINE) is not None
    locked = int(process_status(host, pid)["VmLck"].split()[0])
    assert (locked > 0) is unlimited
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


@pytest.mark.parametrize(
    ("variant", "number"),
    [
        ("deployment", signal.SIGSEGV),
        ("unprivileged", signal.SIGSEGV),
        ("unprivileged", signal.SIGABRT),
    ],
)
def test_a_crash_leaves_no_core(
    request: pytest.FixtureRequest, variant: str, number: signal.Signals
) -> None:
    """Even where the unit allows a core, and one could be written, an agent that crashes leaves none."""
    made = request.getfixturevalue(variant)
    host = made.host
    # The unit shows how it has ended until it is started again.
    settings = f"[Service]\nLimitCORE=infinity\nWorkingDirectory={STORE}\nRestart=no\n"
    for path in drop_ins():
        host.write(f"{path}/90-core.conf", settings)
    host.run("systemctl", "daemon-reload")
    made.start_agent()
    host.kill(AGENT, number)
    host.wait(lambda: host.unit(AGENT)["Result"] != "success", 20, "the crash")
    state = host.unit(AGENT)
    assert (state["Result"], state["ExecMainCode"]) == ("signal", str(CLD_KILLED))
    assert host.run("find", STORE, "-name", "core*").stdout == ""
