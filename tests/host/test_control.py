# SPDX-License-Identifier: MIT
"""The agent on the system bus, under the real dbus-daemon and its policy, as busctl and others see it."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from credferry.agent.audit.events import Event
from credferry.agent.bus.names import PROPERTIES_INTERFACE
from credferry.agent.cli.documents import DOCUMENTS, ShowRow
from credferry.agent.control.interface import AGENT_INTERFACE, NAME, PATH, VM_INTERFACE, vm_path
from credferry.agent.errors import ExitStatus
from credferry.agent.store.locks import rollout_lock
from credferry.launcher.handoff import MANIFEST_FILE, unit_credential
from tests.support import readable
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment
from tests.support.dictionary import LIKELY, guesses, matches
from tests.support.gate import Holder
from tests.support.host import CommandError, Host, patience
from tests.support.installation import CHECKOUT, VM_USER, install, install_users
from tests.support.leaks import Search
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator


pytestmark = pytest.mark.host

AGENT = "credferry.service"
CONFIG_FILE = "/etc/credferry/config.toml"
HOST_KEY = "/var/lib/systemd/credential.secret"
TERMINAL = ("script", "--quiet", "--return", "--command")
MEMBER, STRANGER = "reader", "stranger"
CONFIG = """
[metrics]
textfile = "/run/credferry/metrics.prom"

[vms.web.credentials]
API_KEY = { secret = "api-key" }

[vms.db-1.credentials]
PASSWORD = { secret = "db/password" }
"""
ORDERS = ("restart", "rollback", "hold", "release", "retry")
DENIED = "Access denied"
NAME_SECONDS = 90.0
"""An agent without its name tries again after a pause of up to 60 s."""
ONLY_ROOT = "this user may not ask the agent for that: only root may"


DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


@dataclass(slots=True)
class Listener:
    """Signals of the agent that reach a user, by a match of his own, as a program would ask for them."""

    process: subprocess.Popen[str]

    @classmethod
    def of(cls, host: Host, user: str) -> Listener:
        """Begin to listen; returns once everything from here on is heard."""
        process = host.spawn("/usr/bin/python3", "-I", "-c", _LISTEN, NAME, user=user)
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        return cls(process)

    def until(self, member: str) -> list[dict[str, Any]]:
        """Everything up to a signal of this name."""
        assert self.process.stdout
        told = []
        for line in self.process.stdout:
            told.append(json.loads(line))
            if told[-1]["member"] == member:
                return told
        raise AssertionError(f"no {member}: {told}")

    def so_far(self) -> list[dict[str, Any]]:
        """Everything that has come by now."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.stdout
        return [json.loads(line) for line in self.process.stdout]


_LISTEN = """
import json, sys
from gi.repository import Gio, GLib
loop = GLib.MainLoop()
bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
def heard(_bus, _sender, path, interface, member, arguments):
    told = {"path": path, "interface": interface, "member": member, "data": arguments.unpack()}
    print(json.dumps(told), flush=True)
bus.signal_subscribe(sys.argv[1], None, None, None, None, 0, heard)
# A reply to a call that comes after the matches: they are in force.
name, path = "org.freedesktop.DBus", "/org/freedesktop/DBus"
call = (name, path, name, "GetId", None, None, 0, -1, None)
bus.call_sync(*call)
print("listening", flush=True)
def ended(*_):
    bus.call_sync(*call)
    while GLib.MainContext.default().iteration(False):
        pass
    loop.quit()
    return False
GLib.io_add_watch(0, GLib.IO_HUP | GLib.IO_IN, ended)
loop.run()
"""


POLICY = "/usr/share/dbus-1/system.d/org.credferry.Agent1.conf"
_SQUAT = """
import sys
from gi.repository import Gio, GLib
bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
name, path = "org.freedesktop.DBus", "/org/freedesktop/DBus"
asked = GLib.Variant("(su)", (sys.argv[1], 4))
bus.call_sync(name, path, name, "RequestName", asked, None, 0, -1, None)
print("taken", flush=True)
sys.stdin.read()
"""


_CALL = """
import sys
from gi.repository import Gio, GLib
name, path, interface, method, *arguments = sys.argv[1:]
bus, said = Gio.bus_get_sync(Gio.BusType.SYSTEM), GLib.Variant(f"({'s' * len(arguments)})", tuple(arguments))
try:
    bus.call_sync(name, path, interface, method, said, None, 0, -1, None)
except GLib.Error as error:
    print(Gio.DBusError.get_remote_error(error))
"""


_FLOOD = """
import sys
from gi.repository import Gio, GLib
name, path, interface, method, connections, calls, *arguments = sys.argv[1:]
connections, calls = int(connections), int(calls)
loop, counts = GLib.MainLoop(), {}
address = Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM)
flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
asked = GLib.Variant(f"({'s' * len(arguments)})", tuple(arguments))
def ask(bus):
    bus.call(name, path, interface, method, asked, None, 0, -1, None, answered)
def answered(bus, result):
    try:
        bus.call_finish(result)
        said = "answered"
    except GLib.Error as error:
        said = Gio.DBusError.get_remote_error(error)
    counts[said] = counts.get(said, 0) + 1
    if sum(counts.values()) == 4 * connections * calls:
        print("flooding", flush=True)
    ask(bus)
buses = [Gio.DBusConnection.new_for_address_sync(address, flags, None, None) for _ in range(connections)]
for bus in buses:
    for _ in range(calls):
        ask(bus)
def ended(*_):
    print(counts)
    loop.quit()
    return False
GLib.io_add_watch(0, GLib.IO_HUP | GLib.IO_IN, ended)
loop.run()
"""


def error_name(bus: Bus, method: str, *arguments: str) -> str:
    """The D-Bus name of the error that a call of the agent ends with; nothing for none."""
    command = ("/usr/bin/python3", "-I", "-c", _CALL, NAME, PATH, AGENT_INTERFACE, method, *arguments)
    return bus.host.run(*command).stdout.strip()


@dataclass(slots=True)
class Bus:
    """Two VMs in step, and the agent on the bus."""

    host: Host
    deployment: Deployment
    sops: SopsNix
    values: dict[str, bytes]

    def publish(self, **values: bytes) -> None:
        """Publish other values."""
        names = {"api_key": "api-key", "password": "db/password"}
        self.values |= {names[name]: value for name, value in values.items()}
        self.sops.publish(self.values)

    def call(self, method: str, *arguments: str, user: str | None = None) -> str:
        """Call a method of the agent; its error, or nothing."""
        signature = ("s" * len(arguments),) if arguments else ()
        command = ("busctl", "call", NAME, PATH, AGENT_INTERFACE, method, *signature, *arguments)
        done = self.host.run(*command, check=False, user=user)
        return done.stderr.strip() if done.returncode else ""

    def vm(self, name: str, user: str | None = None) -> dict[str, Any]:
        """The properties of a VM's object."""
        command = ("busctl", "--json=short", "call", NAME, vm_path(name))
        call = ("org.freedesktop.DBus.Properties", "GetAll", "s", VM_INTERFACE)
        answer = json.loads(self.host.run(*command, *call, user=user).stdout)
        return {key: value["data"] for key, value in answer["data"][0].items()}

    def vms(self) -> set[str]:
        """The VMs that have an object."""
        call = ("call", NAME, PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        answer = json.loads(self.host.run("busctl", "--json=short", *call).stdout)
        return {each[VM_INTERFACE]["Name"]["data"] for each in answer["data"][0].values()}

    def wait_vm(self, name: str, **properties: object) -> dict[str, Any]:
        """Wait until a VM's object has these properties; all of them."""
        seen: list[dict[str, Any]] = []

        def has_them() -> bool:
            if not self.is_there():
                return False
            try:
                seen.append(self.vm(name))
            except CommandError:  # it has left the bus since
                return False
            return properties.items() <= seen[-1].items()

        self.host.wait(has_them, 30, f"{properties}")
        return seen[-1]

    def is_there(self) -> bool:
        """Whether the agent has its name, and shows both VMs."""
        listed = self.host.run("busctl", "--list", "tree", NAME, check=False).stdout.split()
        return vm_path("web") in listed and vm_path("db-1") in listed

    def starts(self) -> int:
        """How often the first VM was started."""
        return self.deployment.starts("web")


@pytest.fixture(scope="module")
def running() -> Iterator[Bus]:
    """A host of its own, whose bus may be ill-treated, with a member of the group and somebody else."""
    with Host(cache_directory()) as host:
        install_users(host)
        host.run("useradd", "--no-create-home", "--groups", "credferry", MEMBER)
        host.run("useradd", "--no-create-home", STRANGER)
        install(host)
        host.run("systemctl", "reload", "dbus.service")
        deployment, sops = Deployment(host), SopsNix(host)
        made = Bus(host, deployment, sops, {"api-key": b"value 0", "db/password": b"value 0"})
        for name in ("web", "db-1"):
            deployment.add_vm(name)
        made.publish()
        deployment.configure(CONFIG)
        deployment.credferry("agent", "--once")
        deployment.start_vm("web", "db-1")
        deployment.start_agent()
        host.wait(made.is_there, 20, "the agent on the bus")
        yield made


@pytest.fixture
def bus(running: Bus) -> Bus:
    """The same, in step, and with nothing of the test before under way."""
    if running.host.run("systemctl", "is-active", AGENT, check=False).returncode:
        running.deployment.start_agent()
    for name in ("web", "db-1"):
        # In step comes before the end of a restart is noted, and that before it is shown.
        now = running.wait_vm(name, State="in step", Order="", Held=False)
        running.wait_vm(
            name,
            State="in step",
            Order="",
            Held=False,
            LastResult=f"started on generation {now['Running']}",
        )
    return running


def test_it_reads_well(bus: Bus) -> None:
    """What busctl shows: methods and signals, and an object for each VM with where it stands, and why."""
    shown = bus.host.run("busctl", "introspect", NAME, PATH).stdout
    for member in (".Sync", ".Plan", ".Rotate", ".Rollback", ".Hold", ".Release", ".Retry"):
        assert f"\n{member} " in shown
    for member in (".Published", ".Sealed", ".Restarted", ".RolledBack", ".Refused"):
        assert f"\n{member} " in shown
    web = bus.vm("web")
    assert web["Name"] == "web"
    assert web["Unit"] == "microvm@web.service"
    assert web["UnitState"] == "active (running)"
    assert web["Sealed"] == web["Running"] > 0
    assert web["LastResult"] == f"started on generation {web['Running']}"
    assert abs(web["Since"] - int(bus.host.run("date", "+%s").stdout)) < 3600
    assert bus.vm("db-1")["State"] == "in step"


def test_a_group_reads_and_root_rules(bus: Bus) -> None:
    """A member of the group sees states, plans and signals, and can change nothing; others see nothing."""
    assert bus.vm("web", user=MEMBER)["State"] == "in step"
    assert bus.call("Plan", user=MEMBER) == ""
    assert "State" in bus.host.run("busctl", "introspect", NAME, vm_path("web"), user=MEMBER).stdout
    for method in ("Rotate", "Rollback", "Hold", "Release", "Retry"):
        assert DENIED in bus.call(method, "web", user=MEMBER), method
    for order in (("Order", "restart", "web", ""), ("Approve", "web", "", ""), ("Sync",), ("Reload",)):
        assert DENIED in bus.call(*order, user=MEMBER), order
    for method in ("Plan", "Sync"):
        assert DENIED in bus.call(method, user=STRANGER), method
    assert "denied" in bus.host.run("busctl", "introspect", NAME, PATH, check=False, user=STRANGER).stderr
    took = ("busctl", "call", *DBUS, "RequestName", "su", NAME, "4")
    assert DENIED in bus.host.run(*took, check=False, user=MEMBER).stderr
    starts = bus.starts()
    bus.wait_vm("web", State="in step")
    assert bus.starts() == starts


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("restart", "web"), ONLY_ROOT),
        (("sync",), ONLY_ROOT),
        (("hold", "web"), ONLY_ROOT),
        (("audit",), "this user may not read the system's journal"),
        (("audit", "--periods"), "this user may not read the system's journal"),
    ],
    ids=str,
)
def test_a_member_learns_what_is_not_allowed(bus: Bus, arguments: tuple[str, ...], answer: str) -> None:
    """A member of the group gets one line that says what only root may do, and no silence."""
    refused = bus.host.run("credferry", *arguments, check=False, user=MEMBER)
    assert (refused.returncode, refused.stdout) == (ExitStatus.UNAVAILABLE, "")
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stderr.startswith(f"credferry: {answer}")


def test_a_verb_that_is_interrupted(bus: Bus) -> None:
    """Ctrl-C is answered in one line, which says what goes on; the verb ends as by SIGINT."""
    lock = Holder(bus.host, f"/var/lib/credferry/{rollout_lock('web')}")
    try:
        waiting = bus.host.spawn("env", "--default-signal=INT", "credferry", "restart", "web")
        bus.wait_vm("web", Order="restart")
        waiting.send_signal(signal.SIGINT)
        printed, said = waiting.communicate(timeout=30 * patience())
    finally:
        lock.let_go()
    assert waiting.returncode in {-signal.SIGINT, 128 + signal.SIGINT}
    assert printed == ""
    assert said == (
        "credferry: interrupted: the agent goes on with what it was asked for: see credferry status\n"
    )
    bus.wait_vm("web", State="in step", Order="")


def test_a_word_says_what_it_changed(bus: Bus) -> None:
    """`hold`, `release` and `retry` tell what they did for each VM, or that they changed nothing."""

    def did(verb: str) -> str:
        lines = bus.deployment.credferry(verb, "db-1").splitlines()
        return lines[1].removeprefix("db-1").strip()

    assert did("hold").startswith("held; no restart")
    assert did("hold") == "was held already"
    assert did("release").startswith("released ")
    assert did("release").startswith("nothing: was not held ")
    assert did("retry").startswith("nothing: had not failed ")
    assert (
        json.loads(bus.deployment.credferry("retry", "db-1", "--json"))[0]["did"]
        == "nothing: had not failed"
    )
    assert json.loads(bus.deployment.credferry("sync", "db-1", "--json"))[0]["did"] is None


def test_rotate_restarts_a_vm_that_is_not_live(bus: Bus) -> None:
    """As `restart` does."""
    for verb in ("restart", "rotate"):
        starts = bus.starts()
        row = json.loads(bus.deployment.credferry(verb, "w*", "--json"))[0]
        assert (row["vm"], row["state"], bus.starts()) == ("web", "in step", starts + 1)


def test_the_audit_is_never_silent(bus: Bus) -> None:
    """An unknown credential is an error with a like one; where nothing matches, the audit says so."""
    refused = bus.host.run("credferry", "audit", "--credential", "API_KEX", check=False)
    assert (refused.returncode, refused.stdout) == (ExitStatus.CONFIGURATION, "")
    assert "API_KEX" in refused.stderr
    assert "use API_KEY" in refused.stderr
    none = bus.host.run("credferry", "audit", "web", "--vm", "db*", "--until", "1990-01-01")
    assert (none.stdout, len(none.stderr.splitlines())) == ("", 1)
    shown = bus.deployment.credferry("audit", "web", "--records").splitlines()[-1]
    moment = " ".join(shown.split()[:3])
    assert shown in bus.deployment.credferry("audit", "--records", "--since", moment).splitlines()


@pytest.mark.parametrize(
    ("interface", "method", "arguments"),
    [
        (AGENT_INTERFACE, "Plan", ()),
        (PROPERTIES_INTERFACE, "GetAll", (AGENT_INTERFACE,)),
        (PROPERTIES_INTERFACE, "Get", (AGENT_INTERFACE, "ConfigurationId")),
    ],
    ids=["Plan", "GetAll", "Get"],
)
def test_a_member_cannot_lock_root_out(
    bus: Bus, interface: str, method: str, arguments: tuple[str, ...]
) -> None:
    """While a member of the group keeps 64 calls under way, each of root's calls is served."""
    command = ("/usr/bin/python3", "-I", "-c", _FLOOD, NAME, PATH, interface, method, "4", "16", *arguments)
    hostile = bus.host.spawn(*command, user=MEMBER)
    assert hostile.stdout
    assert hostile.stdout.readline() == "flooding\n"
    for _ in range(10):
        for call in (("Plan",), ("Sync",), ("Hold", "db-1"), ("Release", "db-1")):
            assert bus.call(*call) == "", call
    row = json.loads(bus.deployment.credferry("restart", "web", "--json"))[0]
    assert row["state"] == "in step"
    assert hostile.poll() is None
    assert hostile.stdin
    hostile.stdin.close()
    told = hostile.stdout.readline()
    assert "LimitsExceeded" in told
    assert "answered" in told, "the member is served as well, within the limit"


def test_signals_tell_a_rotation(bus: Bus) -> None:
    """A rotation is told to the group as published, sealed and restarted, of one run; to nobody else."""
    listeners = {user: Listener.of(bus.host, user) for user in (MEMBER, STRANGER)}
    secret, sealed = b"as-told-to-nobody", bus.vm("web")["Sealed"]
    bus.publish(api_key=secret)
    now = bus.wait_vm("web", State="in step", Sealed=sealed + 1)
    told = listeners[MEMBER].until("Restarted")
    signals = [each for each in told if each["interface"] == AGENT_INTERFACE]
    runs = {each["data"][-1] for each in signals}
    assert [each["member"] for each in signals] == ["Published", "Sealed", "Restarted"]
    assert [each["data"][0] for each in signals] == ["web"] * 3
    assert signals[2]["data"][1] == now["Running"] == now["Sealed"]
    assert len(runs) == 1
    changes = [each for each in told if each["member"] == "PropertiesChanged"]
    assert any(each["data"][1].get("State") for each in changes)
    assert secret.decode() not in json.dumps(told)
    assert listeners[STRANGER].so_far() == []


def test_no_guess_is_confirmed_by_what_others_read(bus: Bus) -> None:
    """Nothing that others read shows a likely value, or a digest of it that somebody without a key can make.

    Read are files, answers and signals of the bus, the journal, metrics, and what root's commands print.
    """
    values = (LIKELY[0], LIKELY[-1])
    listener, sealed = Listener.of(bus.host, MEMBER), bus.vm("web")["Sealed"]
    for number, value in enumerate(values, start=1):
        bus.publish(api_key=value)
        bus.wait_vm("web", State="in step", Sealed=sealed + number)
        bus.deployment.wait_noted("web")
    texts = readable.printed(bus.host) | readable.answered(bus.host, MEMBER, ("web", "db-1"))
    texts |= {f"files of {user}": readable.files(bus.host, user) for user in (MEMBER, STRANGER, VM_USER)}
    texts["signals"] = json.dumps(listener.so_far())
    fingerprint = json.loads(texts["credferry status --json"])[0]["published"]["credentials"]["API_KEY"]
    assert fingerprint in texts["journalctl --all --output=export"], "what is searched has digests"
    assert "credferry/metrics.prom" in texts[f"files of {STRANGER}"]
    assert f"microvm@web.service/{unit_credential(MANIFEST_FILE)}" in texts[f"files of {VM_USER}"]
    assert '"Restarted"' in texts["signals"]
    names = ("web", "db-1", "api-key", "API_KEY", "secret/api-key", "web/API_KEY")
    guessed, search = guesses(names, values), Search.of(values)
    unkeyed = hashlib.sha256(b"secret/api-key\0" + values[0]).hexdigest()
    assert matches(f"{unkeyed[:12]} {unkeyed}", guessed) == [unkeyed[:12], unkeyed]
    for name, text in texts.items():
        assert text, name
        assert not search.in_text(text.encode(errors="surrogateescape")), name
        assert matches(text, guessed) == [], name


def test_rotate_and_hold(bus: Bus) -> None:
    """A VM is restarted onto what it has by a word; a held one is not, and the error says what to do."""
    starts, generation, sealed = bus.starts(), bus.vm("web")["Running"], bus.vm("web")["Sealed"]
    row = json.loads(bus.deployment.credferry("restart", "web", "--json"))[0]
    assert row == {"vm": "web", "state": "in step", "generation": generation, "reason": ""}
    assert bus.starts() == starts + 1
    bus.deployment.credferry("hold", "web")
    bus.wait_vm("web", Held=True)
    assert bus.call("Rotate", "web") == "Call failed: web: is held: release it first: credferry release web"
    refused = bus.host.run("credferry", "rollback", "web", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "credferry: web: is held: release it first: credferry release web\n"
    bus.publish(api_key=b"while it is held")
    bus.wait_vm("web", State="held", Reasons=["by an operator"], Sealed=sealed + 1)
    rows = json.loads(bus.deployment.credferry("release", "web", "--json"))
    released = {"vm": "web", "sealed": False, "state": "in step", "reason": "", "did": "released"}
    assert rows == [released]
    assert bus.starts() == starts + 2
    assert error_name(bus, "Rotate", "wbe") == "org.credferry.Error.UnknownVm"
    assert error_name(bus, "Hold", "web") == ""
    assert error_name(bus, "Rotate", "web") == "org.credferry.Error.Held"
    bus.call("Release", "web")


def test_one_vm_that_refuses_keeps_no_other_from_an_order(bus: Bus) -> None:
    """Of a pattern's VMs each that can take the order is restarted; the others are told of, in one line."""
    starts = bus.starts()
    bus.deployment.credferry("hold", "db-1")
    done = bus.host.run("credferry", "restart", "*", "--json", check=False)
    assert done.returncode == 1
    assert [row["vm"] for row in json.loads(done.stdout)] == ["web"]
    assert done.stderr == "credferry: db-1: is held: release it first: credferry release db-1\n"
    assert bus.starts() == starts + 1
    bus.deployment.credferry("release", "db-1")


def test_without_an_agent_an_order_changes_nothing(bus: Bus) -> None:
    """While the agent is stopped, a verb says so and how to start it; no VM, record or file changes."""

    def traces() -> tuple[object, ...]:
        return (
            bus.starts(),
            bus.deployment.starts("db-1"),
            bus.host.run("find", "/var/lib/credferry", "-printf", "%p %i %T@\n").stdout,
            bus.deployment.credferry("audit", "--records"),
        )

    bus.publish(api_key=b"before the orders")
    bus.deployment.wait_in_step("web")
    bus.deployment.wait_noted("web")
    bus.host.run("systemctl", "stop", AGENT)
    before = traces()
    for verb in ORDERS:
        refused = bus.host.run("credferry", verb, "web", "db-1", check=False)
        assert (refused.returncode, refused.stdout) == (ExitStatus.UNAVAILABLE, "")
        assert refused.stderr == (
            f"credferry: {verb} was not done for web, db-1: the agent does not run: "
            "start it with: systemctl start credferry.service; then give the order again\n"
        )
    assert traces() == before


@pytest.mark.parametrize("verb", ORDERS)
def test_an_order_right_after_the_start(bus: Bus, verb: str) -> None:
    """The agent is on the bus when its unit has started, and takes each order at once."""
    if verb == "rollback":  # it needs a generation to go back to
        bus.publish(api_key=b"to be rolled back")
        bus.deployment.wait_in_step("web")
        bus.deployment.wait_noted("web")
    bus.host.run("systemctl", "restart", AGENT)
    bus.deployment.credferry(verb, "web")
    bus.deployment.credferry("retry", "web")
    bus.deployment.credferry("release", "web")


def test_rollback_stays_until_a_change_or_a_retry(bus: Bus) -> None:
    """An operator's rollback gives the VM its former values; the next change, or a retry, ends that."""
    bus.publish(api_key=b"former")
    bus.deployment.credferry("sync")
    bus.publish(api_key=b"unloved")
    assert json.loads(bus.deployment.credferry("sync", "--json", "--vm", "web"))[0]["state"] == "in step"
    generation, others = bus.vm("web")["Running"], bus.vm("db-1")["Running"]
    row = json.loads(bus.deployment.credferry("rollback", "web", "--json"))[0]
    assert (row["state"], row["generation"]) == ("rolled back", generation - 1)
    assert "by an operator; it stays there until its secrets change" in row["reason"]
    assert bus.deployment.delivered("web") == {"API_KEY": b"former"}
    starts = bus.starts()
    bus.publish()  # the same once more
    bus.deployment.credferry("sync")
    assert (bus.starts(), bus.vm("web")["State"]) == (starts, "rolled back")
    assert error_name(bus, "Rotate", "web") == "org.credferry.Error.RolledBack"
    bus.deployment.credferry("retry", "web")
    assert bus.deployment.delivered("web") == {"API_KEY": b"unloved"}
    bus.deployment.credferry("rollback", "web")
    bus.publish(api_key=b"loved")
    bus.wait_vm("web", State="in step")
    assert bus.deployment.delivered("web") == {"API_KEY": b"loved"}
    assert bus.vm("db-1")["Running"] == others


@pytest.mark.parametrize("verb", ["status", "plan", "sync", "check"])
def test_json_is_as_its_schema_says(bus: Bus, verb: str) -> None:
    """What a verb prints has exactly the fields that its schema is made from, each of its type."""
    kind: Any = list[DOCUMENTS[verb]]  # type: ignore[valid-type]  # mypy takes no type from a table
    rows = msgspec.json.decode(bus.deployment.credferry(verb, "--json"), type=kind)
    assert [row.vm for row in rows] == ["web", "db-1"]


def test_all_about_a_vm(bus: Bus) -> None:
    """`show` has settings, credentials, wiring, the last rotation and the next step, and no value."""
    sealed = bus.vm("web")["Sealed"]
    bus.publish(api_key=b"as-shown-to-nobody")
    bus.wait_vm("web", State="in step", Sealed=sealed + 1)
    bus.deployment.wait_noted("web")
    printed = bus.deployment.credferry("show", "w*", "--json")
    (row,) = msgspec.json.decode(printed, type=list[ShowRow])
    assert (row.status.vm, row.status.state, row.status.agent) == ("web", "in step", True)
    assert row.settings["policy"] == "restart"
    (secret,) = row.credentials
    assert (secret.credential, secret.origin) == ("API_KEY", "api-key")
    assert secret.published == secret.running == row.status.published.credentials["API_KEY"]
    assert secret.changed == row.rotations[0].began
    assert row.rotations[0].outcome == "restarted"
    assert row.wiring is not None
    assert (row.wiring.launcher, len(row.wiring.drop_ins)) == (True, 1)
    text = bus.deployment.credferry("show", "web")
    assert secret.published[:12] in text
    assert "as-shown-to-nobody" not in printed + text
    assert bus.host.run("credferry", "show", "web", user=MEMBER).stdout.startswith("web: in step")


def test_a_changed_configuration(bus: Bus) -> None:
    """Until the agent has read it, `plan` reads it, and orders are refused; then its VMs are on the bus."""
    bus.deployment.configure(CONFIG + '[vms.new.credentials]\nAPI_KEY = { secret = "api-key" }\n')
    try:
        planned = json.loads(bus.deployment.credferry("plan", "--json", check=False))
        assert [row["vm"] for row in planned] == ["web", "db-1", "new"]
        assert "new" not in bus.vms()
        for verb in (("hold", "web"),):
            refused = bus.host.run("credferry", *verb, check=False)
            assert (refused.returncode, refused.stdout) == (ExitStatus.UNAVAILABLE, "")
            assert "has changed since the agent read it" in refused.stderr
            assert "systemctl reload credferry.service" in refused.stderr
        bus.host.run("systemctl", "reload", AGENT)
        bus.host.wait(lambda: "new" in bus.vms(), 20, "the added VM")
    finally:
        bus.deployment.configure(CONFIG)
        bus.host.run("systemctl", "reload", AGENT)
    bus.host.wait(lambda: bus.vms() == {"web", "db-1"}, 20, "the removed VM's end")


def test_a_reload_ends_when_the_file_is_in_force(bus: Bus) -> None:
    """Right after `systemctl reload`, a verb finds the agent with the changed file, and all of its VMs."""
    added = CONFIG + '[vms.new.credentials]\nAPI_KEY = { secret = "api-key" }\n'
    try:
        for number in range(6):
            bus.deployment.configure(CONFIG if number % 2 else added)
            bus.host.run("systemctl", "reload", AGENT)
            rows = json.loads(bus.deployment.credferry("sync", "--json", check=False))
            assert {row["vm"] for row in rows} == {"web", "db-1", *(() if number % 2 else ("new",))}
    finally:
        bus.deployment.configure(CONFIG)
        bus.host.run("systemctl", "reload", AGENT)


def test_a_reload_of_a_broken_file_fails(bus: Bus) -> None:
    """`systemctl reload` and `credferry reload` end with an error; the agent keeps the former file."""
    try:
        bus.deployment.configure(CONFIG + "[nonsense]\n")
        assert bus.host.run("systemctl", "reload", AGENT, check=False).returncode != 0
        refused = bus.host.run("credferry", "reload", check=False)
        assert (refused.returncode, refused.stdout) == (ExitStatus.CONFIGURATION, "")
        assert "config.toml" in refused.stderr
        # Until the agent has said that its reload is over, it is reloading.
        bus.host.wait(
            lambda: bus.host.run("systemctl", "is-active", AGENT).stdout == "active\n", 20, "active"
        )
        assert error_name(bus, "Reload") == "org.credferry.Error.Configuration"
        assert bus.vms() == {"web", "db-1"}
    finally:
        bus.deployment.configure(CONFIG)
        bus.host.run("systemctl", "reload", AGENT)


def test_a_member_may_not_reload(bus: Bus) -> None:
    """Only root makes the agent read its file, and the agent's own user, for `ExecReload=`."""
    refused = bus.host.run("credferry", "reload", check=False, user=MEMBER)
    assert refused.returncode == ExitStatus.UNAVAILABLE
    assert "only root may" in refused.stderr


@pytest.mark.parametrize("blocked", ["web", "db-1"])
def test_a_reload_that_removes_a_vm_drops_its_order(bus: Bus, blocked: str) -> None:
    """The order is not carried out when the VM comes back; the audit and the waiting caller are told.

    The lock of the first VM keeps the second's order waiting for its turn, its own lock right before the
    restart.
    """
    starts = bus.deployment.starts("db-1")
    lock = Holder(bus.host, f"/var/lib/credferry/{rollout_lock(blocked)}")
    if blocked == "web":
        assert bus.call("Rotate", "web") == ""
    waiting = bus.host.spawn("credferry", "restart", "db-1")
    bus.wait_vm("db-1", Order="restart")
    run = orders(bus, CREDFERRY_VM="db-1")[-1]["CREDFERRY_RUN"]
    bus.deployment.configure(CONFIG[: CONFIG.index("[vms.db-1")])
    bus.host.run("systemctl", "reload", AGENT)
    try:
        bus.host.wait(lambda: bus.vms() == {"web"}, 20, "the removed VM's end")
        told = bus.host.wait_journal(
            lambda entry: "the configuration no longer has this VM" in entry["MESSAGE"],
            20,
            MESSAGE_ID=Event.ORDER_DROPPED.value,
            CREDFERRY_RUN=run,
        )
        assert told["MESSAGE"].startswith("db-1: restart is dropped: ")
        _, said = waiting.communicate(timeout=30 * patience())
        assert waiting.returncode == 1
        assert said.startswith("credferry: db-1: the agent's configuration no longer has this VM")
    finally:
        bus.deployment.configure(CONFIG)
        bus.host.run("systemctl", "reload", AGENT)
        lock.let_go()
    bus.wait_vm("web", State="in step", Order="")
    bus.wait_vm("db-1", State="in step", Order="", OrderResult="")
    assert bus.call("Sync") == ""
    assert bus.deployment.starts("db-1") == starts


def orders(bus: Bus, **fields: str) -> list[dict[str, Any]]:
    """The audit's records of orders."""
    bus.host.run("journalctl", "--sync")
    return list(bus.host.journal(MESSAGE_ID=Event.ORDERED.value, **fields))


def launched_story(bus: Bus, reason: str, outcome: str) -> dict[str, Any]:
    """The story of the order with this reason, once it has this outcome and the launcher's record.

    The launcher reports to the agent first, and the VM is in step before the restart's end is recorded.
    """
    found: list[dict[str, Any]] = []

    def is_told() -> bool:
        told = json.loads(bus.deployment.credferry("audit", "--json", "--vm", "web"))
        found[:] = [each for each in told if each["ordered"] and each["ordered"]["reason"] == reason]
        return any(
            story["outcome"] == outcome and "launched" in {step["event"] for step in story["steps"]}
            for story in found
        )

    bus.host.wait(is_told, 20, f"the story of {reason!r}, {outcome}")
    (story,) = found
    return story


def test_orders_are_records_of_their_own(bus: Bus) -> None:
    """The audit has who ordered what for which VM, and why; a story begins there, not at the VM's start."""
    reason = "spare\x1b[31m key\nleaked"
    bus.deployment.credferry("restart", "web", "--reason", reason)
    order = orders(bus, CREDFERRY_VM="web")[-1]
    assert order["CREDFERRY_ORDER"] == "restart"
    assert (order["CREDFERRY_CALLER_UID"], order["CREDFERRY_CALLER"]) == ("0", "root")
    assert order["CREDFERRY_REASON"] == r"spare\x1b[31m key\nleaked"
    assert order["MESSAGE"] == rf"web: restart ordered by root (user 0): {order['CREDFERRY_REASON']}"
    story = launched_story(bus, order["CREDFERRY_REASON"], "restarted")
    assert story["run"] == order["CREDFERRY_RUN"]
    assert [step["event"] for step in story["steps"]][:2] == ["ordered", "restart asked"]
    assert "restarted" in {step["event"] for step in story["steps"]}
    assert story["later"] == []
    assert story["ordered"] == {
        "order": "restart",
        "caller": "root",
        "caller_uid": 0,
        "reason": order["CREDFERRY_REASON"],
    }
    bus.publish(api_key=b"to be put back")
    bus.deployment.credferry("sync")
    for verb, label in (("rollback", "rolled back"), ("retry", "restarted")):
        bus.deployment.credferry(verb, "web", "--reason", f"to {verb}")
        story = launched_story(bus, f"to {verb}", label)
        assert story["ordered"]["order"] == verb
        assert story["steps"][0]["event"] == "ordered"
    for verb, fact in (("hold", Event.HELD), ("release", Event.RELEASED)):
        bus.deployment.credferry(verb, "db-1", "--reason", f"to {verb}")
        order = orders(bus, CREDFERRY_REASON=f"to {verb}")[-1]
        assert bus.host.journal(MESSAGE_ID=fact.value, CREDFERRY_RUN=order["CREDFERRY_RUN"])
    assert bus.deployment.credferry("audit", "--verify").startswith("ok: ")


def test_the_bus_says_who_orders(bus: Bus) -> None:
    """Where the bus's policy lets another user order, the record has that user, whatever the user claims."""
    host, grant = bus.host, "/etc/dbus-1/system.d/test-orders.conf"
    host.write(
        grant,
        f'<busconfig><policy user="{MEMBER}"><allow send_destination="{NAME}"/></policy></busconfig>',
    )
    host.run("systemctl", "reload", "dbus.service")
    try:
        for method, *words in (
            ("Order", "hold", "db-1", "by root (user 0)"),
            ("Hold", "db-1"),
            ("Release", "db-1"),
        ):
            signature = "s" * len(words)
            command = ("busctl", "call", NAME, PATH, AGENT_INTERFACE, method, signature, *words)
            host.run(*command, user=MEMBER)
            order = orders(bus, CREDFERRY_VM="db-1")[-1]
            assert order["CREDFERRY_CALLER"] == MEMBER
            assert order["CREDFERRY_CALLER_UID"] == host.run("id", "-u", MEMBER).stdout.strip()
    finally:
        host.run("rm", grant)
        host.run("systemctl", "reload", "dbus.service")
    assert DENIED in bus.call("Hold", "db-1", user=MEMBER)


def test_an_order_that_is_refused_is_none(bus: Bus) -> None:
    """An unknown order, one on a VM that cannot take it, and a long reason leave nothing behind."""
    before, starts = len(orders(bus)), bus.starts()
    assert error_name(bus, "Order", "reboot", "web", "") == "org.credferry.Error.UnknownOrder"
    assert error_name(bus, "Order", "rotate", "wbe", "") == "org.credferry.Error.UnknownVm"
    assert error_name(bus, "Order", "rotate", "web", "x" * 201) == "org.credferry.Error.Reason"
    refused = bus.host.run("credferry", "hold", "web", "--reason", "x" * 201, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "the reason is longer than 200 characters" in refused.stderr
    assert (len(orders(bus)), bus.starts(), bus.vm("web")["Held"]) == (before, starts, False)


def test_status_for_members_of_the_group(bus: Bus) -> None:
    """Members see what the agent saw last, and no fingerprint. Others get one line that says why not."""
    mine = {row["vm"]: row for row in bus.deployment.status().values()}
    command = ("credferry", "status", "--json")
    shown = bus.host.run(*command, user=MEMBER).stdout
    theirs = {row["vm"]: row for row in json.loads(shown)}
    objects = ("call", NAME, PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    shown += bus.host.run("busctl", *objects, user=MEMBER).stdout
    for row in mine.values():
        for digest in (row["sealed"]["digest"], *row["published"]["credentials"].values()):
            assert digest
            assert digest not in shown
    for name, row in theirs.items():
        assert row["published"] == {"digest": None, "credentials": {}}
        for key in ("unit", "unit_state", "state", "since", "held", "last_result", "system", "reasons"):
            assert row[key] == mine[name][key], key
        assert row["running"]["generation"] == mine[name]["running"]["generation"]
    refused = bus.host.run(*command, check=False, user=STRANGER)
    assert (refused.returncode, refused.stdout) == (77, "")
    assert len(refused.stderr.splitlines()) == 1


def test_status_of_some_vms(bus: Bus) -> None:
    """Names, patterns and states choose rows; a held VM says so although nothing is due."""
    credferry = bus.deployment.credferry
    assert [row["vm"] for row in json.loads(credferry("status", "w*", "--json"))] == ["web"]
    assert len(json.loads(credferry("status", "web", "--vm", "db-1", "--json"))) == 2
    assert credferry("status", "--state", "failed").splitlines()[1:] == []
    credferry("hold", "db-1")
    try:
        assert [row["vm"] for row in json.loads(credferry("status", "--state", "held", "--json"))] == [
            "db-1"
        ]
        assert "in step, held" in credferry("status", "db-1")
    finally:
        credferry("release", "db-1")
    refused = bus.host.run("credferry", "status", "wbe", check=False)
    assert refused.returncode == ExitStatus.CONFIGURATION
    assert "web" in refused.stderr


@pytest.mark.parametrize(
    ("spoil", "status", "warning"),
    [
        (
            f"echo '[vms.web' >>{CONFIG_FILE}",
            ExitStatus.CONFIGURATION,
            "this is what the running agent says",
        ),
        (f"chmod 0644 {HOST_KEY}", ExitStatus.KEY, "this is what the running agent says"),
        (f"systemctl stop {AGENT}", ExitStatus.OK, "the agent does not run"),
        (f"systemctl stop {AGENT} && chmod 0644 {HOST_KEY}", ExitStatus.KEY, "the agent does not run"),
    ],
)
def test_status_shows_what_it_can(bus: Bus, spoil: str, status: ExitStatus, warning: str) -> None:
    """With a broken file, a bad key, or no agent, the rows are there, after a line about what is wrong."""
    bus.host.run("sh", "-c", spoil)
    try:
        shown = bus.host.run("credferry", "status", "w*", check=False)
        assert shown.returncode == status
        assert warning in shown.stderr.splitlines()[0]
        assert [line.split()[0] for line in shown.stdout.splitlines()] == ["VM", "web"]
    finally:
        bus.deployment.configure(CONFIG)
        bus.host.run("chmod", "0400", HOST_KEY)


def test_nothing_is_due_without_an_agent(bus: Bus) -> None:
    """What waits for an agent is shown as `no agent`; in JSON its state is as ever, beside the agent's."""
    bus.host.run("systemctl", "stop", AGENT)
    bus.publish(api_key=b"while no agent runs")
    row = bus.deployment.status()["web"]
    assert (row["state"], row["agent"]) == ("restart due", False)
    line = bus.host.run("credferry", "status", "web", check=False).stdout.splitlines()[1]
    assert "no agent" in line
    assert "restart due, once an agent runs" in line


def test_the_system_that_a_vm_was_booted_from(bus: Bus) -> None:
    """Of a VM of microvm.nix, status tells whether it was booted from its current system."""
    home = "/var/lib/microvms/web"
    bus.host.run(
        "sh", "-c", f"cd {home} && mv current build-1 && ln -s build-1 current && ln -s build-1 booted"
    )
    assert bus.deployment.status()["web"]["system"] == "current"
    bus.host.run("ln", "-sfn", "build-0", f"{home}/booted")
    assert bus.deployment.status()["web"]["system"] == "older"
    assert bus.deployment.status()["db-1"]["system"] is None
    bus.call("Sync")
    assert (bus.vm("web")["System"], bus.vm("db-1")["System"]) == ("older", "")


def test_watching(bus: Bus) -> None:
    """On a terminal status goes on, and shows what changes; elsewhere it refuses, in one line."""
    refused = bus.host.run("credferry", "status", "--watch", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("credferry: --watch is for a terminal: ")
    assert len(refused.stderr.splitlines()) == 1
    once = bus.host.run(*TERMINAL, "credferry status", "/dev/null", env={"TERM": "xterm", "COLUMNS": "80"})
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", once.stdout).splitlines()
    assert printed[0] == "2 VMs: 2 in step"
    assert "in step" in next(line for line in printed if line.startswith("db-1"))
    shown = bus.host.spawn(
        *(*TERMINAL, "credferry status --watch", "/dev/null"), env={"TERM": "xterm", "COLUMNS": "80"}
    )
    assert shown.stdout
    generation = bus.vm("web")["Running"]
    for number in (generation, generation + 1):
        row = re.compile(rf"web +in step.* {number} +{number}\s")
        lines = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in shown.stdout)
        assert any(row.search(line) for line in lines), f"generation {number} is shown"
        if number == generation:
            bus.publish(api_key=b"while it is watched")
    shown.kill()


def test_an_agent_without_root(bus: Bus) -> None:
    """As a user of its own, the agent owns the name, and does as root says over the bus."""
    drop_ins = [
        f"/etc/systemd/system/{unit}.d"
        for unit in (AGENT, "credferry-seal.service", "credferry-seal@.service")
    ]
    for path in drop_ins:
        text = (CHECKOUT / "contrib/systemd/credferry-user.conf").read_text()
        bus.host.write(f"{path}/50-user.conf", text)
    rule = bus.deployment.credferry("polkit-rule")
    bus.host.write("/etc/polkit-1/rules.d/50-credferry.rules", rule)
    bus.host.run("systemctl", "daemon-reload")
    bus.host.run("systemctl", "restart", "polkit.service", AGENT)
    try:
        bus.wait_vm("web", State="in step")
        owner = bus.host.run("busctl", "call", *DBUS, "GetConnectionUnixUser", "s", NAME).stdout.split()
        assert owner == ["u", bus.host.run("id", "-u", "credferry").stdout.strip()]
        starts = bus.starts()
        assert json.loads(bus.deployment.credferry("restart", "web", "--json"))[0]["state"] == "in step"
        assert bus.starts() == starts + 1
        bus.deployment.credferry("hold", "web")
        assert bus.vm("web")["Held"] or bus.wait_vm("web", Held=True)
        bus.deployment.credferry("release", "web")
    finally:
        bus.host.run("rm", "-rf", *drop_ins)
        bus.host.run("systemctl", "daemon-reload")
        bus.host.run("systemctl", "restart", AGENT)


def test_another_owner_of_the_name(bus: Bus) -> None:
    """Where the name is taken, the agent tells so once, does its work, and takes it when it is free."""
    bus.host.run("systemctl", "stop", AGENT)
    squatter = bus.host.spawn("/usr/bin/python3", "-I", "-c", _SQUAT, NAME)
    assert squatter.stdout
    assert squatter.stdin
    assert squatter.stdout.readline() == "taken\n"
    bus.deployment.start_agent()
    bus.publish(api_key=b"without a name")
    bus.deployment.wait_in_step("web")
    assert bus.deployment.delivered("web") == {"API_KEY": b"without a name"}
    began = bus.host.unit(AGENT)["InvocationID"]

    def told() -> list[str]:
        entries = bus.host.journal(_SYSTEMD_INVOCATION_ID=began)
        return [entry["MESSAGE"] for entry in entries if "cannot be controlled" in entry["MESSAGE"]]

    bus.host.wait(told, 20, "the lack of the name told")
    assert len(told()) == 1
    assert "belongs to another process" in told()[0]
    squatter.stdin.close()
    bus.host.wait(bus.is_there, NAME_SECONDS, "the name taken over")


def test_without_a_policy(bus: Bus) -> None:
    """Where the bus lets nobody own the name, the agent works and reloads; verbs say why they cannot."""
    bus.host.run("mv", POLICY, f"{POLICY}.away")
    bus.host.run("systemctl", "reload", "dbus.service")
    bus.deployment.host.run("systemctl", "restart", AGENT)
    began = bus.host.unit(AGENT)["InvocationID"]
    try:
        told = bus.host.wait_journal(
            lambda entry: "cannot be controlled" in entry["MESSAGE"], 20, _SYSTEMD_INVOCATION_ID=began
        )
        assert "policy" in told["MESSAGE"]
        starts = bus.starts()
        for verb in ("restart", "rollback", "retry"):
            refused = bus.host.run("credferry", verb, "web", check=False)
            assert refused.returncode == ExitStatus.UNAVAILABLE
            assert refused.stderr == (
                f"credferry: {verb} was not done for web: the agent runs, but it is not on the bus: "
                "see why with: credferry doctor\n"
            )
        assert bus.starts() == starts
        bus.publish(api_key=b"without a policy")
        bus.deployment.wait_in_step("web")
        assert bus.deployment.delivered("web") == {"API_KEY": b"without a policy"}
        bus.host.run("systemctl", "reload", AGENT)
        for part in ("sent SIGHUP to the agent", "credferry now uses"):
            bus.host.wait_journal(
                lambda entry, part=part: part in entry["MESSAGE"],  # type: ignore[misc]  # a default binds the part
                20,
                _SYSTEMD_INVOCATION_ID=began,
            )
    finally:
        bus.host.run("mv", f"{POLICY}.away", POLICY)
        bus.host.run("systemctl", "reload", "dbus.service")
    bus.host.wait(bus.is_there, NAME_SECONDS, "the policy is noticed")


def test_a_bus_that_hangs(bus: Bus) -> None:
    """A dbus-daemon that is stopped, not dead, keeps the agent neither from ending nor from starting.

    What is published meanwhile is sealed; once the bus goes on, so does the rotation, and the name is back.
    """
    starts = bus.starts()
    bus.host.kill("dbus.service", signal.SIGSTOP)
    try:
        bus.host.run("systemctl", "restart", AGENT, timeout=30)
        pid = bus.host.unit(AGENT)["MainPID"]
        current = bus.host.path("/var/lib/credferry/vms/web/current", follow=False)
        sealed = current.readlink()
        bus.publish(api_key=b"while the bus hangs")
        bus.host.wait(lambda: current.readlink() != sealed, 30, "what is published is sealed")
    finally:
        bus.host.kill("dbus.service", signal.SIGCONT)
    # Without systemd nobody knew what the unit was; what was seen before is no answer.
    bus.wait_vm("web", State="in step", UnitState="active (running)")
    assert bus.deployment.delivered("web") == {"API_KEY": b"while the bus hangs"}
    assert bus.starts() == starts + 1
    assert bus.host.unit(AGENT)["MainPID"] == pid


def test_the_bus_is_lost(bus: Bus) -> None:
    """With another dbus-daemon the agent owns its name again."""
    daemon = bus.host.unit("dbus.service")["MainPID"]
    bus.host.kill("dbus.service")
    bus.host.wait(
        lambda: bus.host.unit("dbus.service")["MainPID"] not in {daemon, "0"}, 30, "another dbus-daemon"
    )
    bus.host.wait(bus.is_there, 30, "the name owned again")
    assert bus.call("Sync") == ""
