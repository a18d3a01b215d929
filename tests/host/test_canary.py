# SPDX-License-Identifier: MIT
"""The canary: a distinctive value travels every path there is, and is then looked for everywhere.

It may be in the source, in the credentials of the unit of a VM that gets it in plain, and in the memory of
that VM's hypervisor; README.md's table says so. Nowhere else, on no path, and in no form.
"""

from __future__ import annotations

import base64
import os
import re
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

import pytest

from tests.support.canary import AGENT, ALLOWED, MARKER, RUDE, TABLES, VMS, Site, lay_out
from tests.support.installation import HYPERVISOR
from tests.support.leaks import Search, Vigil, leaks
from tests.support.numbers import Number, note

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.support.host import Host

pytestmark = pytest.mark.host

ELSEWHERE = "/etc/credferry/canary.toml"
CAPTURE = "/run/canary.pcap"
LAUNCH = ("credferry-launch", "--hypervisor-version", "53.0", "--real", RUDE)
RAISES_FOR_VALUES = """
_whole = seal


def seal(plaintext, **more):
    if not plaintext.startswith(b"{"):  # a manifest
        raise ValueError(plaintext)
    return _whole(plaintext, **more)
"""


@dataclass(frozen=True, slots=True)
class Way:
    """One way on which values travel; ``travel`` raises where they did not get as far as they should."""

    name: str
    travel: Callable[[Site], object]
    agent: bool = True
    """Whether the agent runs meanwhile."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A host with VMs of every kind, all in step."""
    with ExitStack() as stack:
        yield lay_out(stack)


def starts_by_hand(site: Site) -> None:
    """Sealed for a VM that is down, and handed over when somebody starts it."""
    unit, value = "microvm@plain.service", site.fresh()
    site.host.run("systemctl", "stop", unit)
    site.publish(plain=value)
    site.told("plain: generation", MESSAGE_ID="21b441b55c074bce9c848be83f4f2f52")
    site.deployment.start_vm("plain")
    assert site.deployment.delivered("plain")["KEY"] == value


def written_in_place(site: Site) -> None:
    """Not published as a generation, but written into the published one."""
    before, value = site.generation("plain"), site.fresh()
    site.published["plain"] = value
    site.sops.write_in_place("plain", value)
    site.runs_newer("plain", before)
    assert site.deployment.delivered("plain")["KEY"] == value


def guest_reboots(site: Site) -> None:
    """The hypervisor is ended by the launcher's child, and started with the newest value."""
    value, before = site.fresh(), site.generation("plain")
    site.publish(plain=value)
    site.deployment.credferry("agent", "--once")
    site.put("plain", "vm.reboot")
    site.runs_newer("plain", before)
    assert site.deployment.delivered("plain")["KEY"] == value


def sync(site: Site, **environment: str) -> None:
    """Sealed by the unit, and by hand, without the agent; handed over when somebody restarts the VM."""
    before = site.generation("plain")
    for command in (("sync",), ("agent", "--once")):
        site.publish(plain=site.fresh())
        site.host.run("credferry", *command, env=environment)
    site.host.run("systemctl", "restart", "microvm@plain.service")
    site.runs_newer("plain", before)


def put_back(site: Site) -> None:
    """A value that breaks its VM: rolled back, the next VM spared, tried again in vain, then mended."""
    site.publish(breaks=site.fresh("BREAKS"))
    site.told("halted", CREDFERRY_VM="later")
    site.host.run("credferry", "retry", "breaks", check=False)  # which the agent may be quicker to do
    rolled_back = lambda: "rolled back" in " ".join(site.deployment.status()["breaks"]["reasons"])  # noqa: E731 (used once)
    site.host.wait(rolled_back, 60, "the second rollback")
    before = site.generation("later")
    site.publish(breaks=site.fresh())
    site.runs_newer("later", before)


def nothing_starts(site: Site) -> None:
    """Neither a new generation nor the one before it is taken by the hypervisor, which quotes it all."""
    site.host.write("/run/canary-rude", "echo")
    site.publish(rude=site.fresh())
    site.told("does not start either", CREDFERRY_VM="rude")
    site.host.write("/run/canary-rude", "polite")
    site.publish(rude=site.fresh())
    site.host.wait(lambda: site.generation("rude"), 30, "the rude VM")


def held(site: Site) -> None:
    """Sealed while held, restarted when released."""
    site.deployment.credferry("hold", "plain")
    before = site.generation("plain")
    site.publish(plain=site.fresh())
    site.told("plain: generation", MESSAGE_ID="21b441b55c074bce9c848be83f4f2f52")
    site.deployment.credferry("release", "plain")
    site.runs_newer("plain", before)


def refused(secret: str, value: Callable[[Site], bytes | None], naming: str) -> Callable[[Site], None]:
    """A value that is not taken, with the remedy; all verbs tell, and so does the agent."""

    def travel(site: Site) -> None:
        good, bad = site.published[secret], value(site)
        site.published.pop(secret)
        site.publish(both=site.fresh(), **({secret: bad} if bad is not None else {}))
        site.told(naming, MESSAGE_ID="6083fe10359e46a78d25b4dad432d3e2")
        site.refuses("credferry", "sync", "--vm", "plain", status=1, naming=naming)
        before = site.generation("plain")
        site.publish(**{secret: good})
        site.host.wait(lambda: site.deployment.status()["plain"]["state"] == "in step", 20, "plain")
        assert site.generation("plain") == before

    return travel


def a_directory(site: Site) -> None:
    """What should be a file is a directory, with values in it."""
    good = site.published.pop("plain")
    site.publish(plain__inner=site.fresh())
    site.told("is not a regular file")
    del site.published["plain/inner"]
    site.publish(plain=good)


def guest_key(content: bytes | None) -> Callable[[Site], None]:
    """A guest's key that is spoiled or, with None, gone: its VM is refused."""

    def travel(site: Site) -> None:
        path = "/var/lib/credferry/guest-keys/sealed.secret"
        site.host.run("mv", path, f"{path}.away")
        if content is not None:
            site.host.write(path, content, 0o400)
        before = site.generation("sealed")
        site.publish(sealed__key=site.fresh())
        site.told("guest" if content is None else "sealed.secret", CREDFERRY_VM="sealed")
        site.refuses("credferry", "sync", "--vm", "sealed", status=1, naming="vms.sealed: refused")
        site.host.run("mv", f"{path}.away", path)
        site.runs_newer("sealed", before)

    return travel


def no_stamp(site: Site) -> None:
    """A VM that somebody starts without the launcher: nothing reports its start, which is told."""
    script = "/var/lib/microvms/plain/current/bin/microvm-run"
    before = site.host.path(script).read_text()
    site.host.write(script, before.replace(f"credferry-launch --real {HYPERVISOR} --", HYPERVISOR), 0o755)
    site.deployment.configure(TABLES.replace("20.0", "0.3") + VMS)
    site.host.run("systemctl", "reload", AGENT)
    site.publish(plain=site.fresh())
    site.told("its launcher has not reported this start", CREDFERRY_VM="plain")
    site.host.write(script, before, 0o755)
    site.publish(plain=site.fresh())
    site.host.wait(lambda: site.generation("plain") > 0, 30, "plain with the launcher")
    site.configure()


def store_is_read_only(site: Site) -> None:
    """Nothing can be sealed."""
    store, before = "/var/lib/credferry", site.generation("plain")
    site.host.run("mount", "--bind", store, store)
    site.host.run("mount", "-o", "remount,bind,ro", store)
    try:
        site.publish(plain=site.fresh())
        site.refuses("credferry", "agent", "--once", status=73, naming="Read-only file system")
    finally:
        site.host.run("umount", "--lazy", store)  # a process that ends may still have it open
    site.agent(runs=True)
    site.runs_newer("plain", before)


def no_source(site: Site) -> None:
    """There is no source."""
    site.host.run("mv", "/run/secrets", "/run/secrets.away")
    site.refuses("credferry", "sync", status=66, naming="source.path")
    site.host.run("mv", "/run/secrets.away", "/run/secrets")


def no_bus(site: Site) -> None:
    """There is no bus."""
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}
    site.refuses("credferry", "sync", status=69, naming="bus", env=environment)


def misplaced(lines: str, naming: str) -> Callable[[Site], None]:
    """A value at a wrong place of the configuration, which is refused without quoting it."""

    def travel(site: Site) -> None:
        value = f"{MARKER.decode()} value {MARKER.decode()}"
        site.host.write(ELSEWHERE, VMS + lines.replace("VALUE", value))
        try:
            site.refuses("credferry", "agent", "--config", ELSEWHERE, status=78, naming=naming)
        finally:
            site.host.path(ELSEWHERE).unlink()

    return travel


def text_is_a_value(site: Site) -> None:
    """A value as ``text``, which counts as no secret: the configuration has it, and nobody shows it."""
    before = site.generation("plain")
    text = f"{MARKER.decode()} text {MARKER.decode()}"
    site.deployment.configure(TABLES + VMS.replace("no secret", text))
    site.host.run("systemctl", "reload", AGENT)
    site.runs_newer("plain", before)
    assert site.deployment.delivered("plain")["NOTE"] == text.encode()
    before = site.generation("plain")
    site.configure()
    site.runs_newer("plain", before)


def rude(how: str, naming: str) -> Callable[[Site], None]:
    """A hypervisor that does not take its VM."""

    def travel(site: Site) -> None:
        with site.rude(how):
            site.told(naming, _SYSTEMD_UNIT="microvm@rude.service")

    return travel


def by_hand(*argv: str, status: int, naming: str) -> Callable[[Site], None]:
    """The launcher, in a VM's surroundings, refuses or explains what it would do."""

    def travel(site: Site) -> None:
        for vm in ("plain", "sealed") if status == 0 else ("plain",):
            environment = launcher_environment(vm)
            socket_path = ("--api-socket", "/run/canary.sock", "--kernel", "/nowhere")
            words = argv if "--" in argv else (*argv, "--")
            site.refuses(*LAUNCH, *words, *socket_path, status=status, naming=naming, env=environment)

    return travel


def launcher_environment(vm: str) -> dict[str, str]:
    """What systemd tells a VM's unit of its directories."""
    return {
        "CREDENTIALS_DIRECTORY": f"/run/credentials/microvm@{vm}.service",
        "RUNTIME_DIRECTORY": f"/run/credferry-vms/{vm}",
    }


def without_a_value(site: Site) -> None:
    """The manifest names a credential that is not there."""
    site.host.run("mkdir", "/run/canary-copy")
    manifest = "/run/credentials/microvm@plain.service/credferry_manifest"
    site.host.run("cp", manifest, "/run/canary-copy/")
    environment = launcher_environment("plain") | {"CREDENTIALS_DIRECTORY": "/run/canary-copy"}
    site.refuses(*LAUNCH, "--", status=65, naming="is not in the unit's credentials", env=environment)
    site.host.run("rm", "-r", "/run/canary-copy")


def raises_in_the_agent(site: Site) -> None:
    """An exception that quotes the value, in a command, on a terminal, and in the daemon."""
    with site.spoiled("agent/sealing/credential.py", RAISES_FOR_VALUES):
        site.host.run("systemctl", "restart", AGENT)
        site.publish(plain=site.fresh())
        site.told("internal error: ValueError", _SYSTEMD_UNIT=AGENT)
        site.refuses("credferry", "agent", "--once", status=70, naming="internal error: ValueError")
        shown = site.host.run("script", "-qec", "credferry agent --once", "/dev/null", check=False)
        assert "internal error: ValueError" in shown.stdout
    before = site.generation("plain")
    site.agent(runs=True)
    site.runs_newer("plain", before)


def raises_in_the_launcher(site: Site) -> None:
    """The same in the launcher before it becomes the hypervisor."""
    lines = (
        "def check(credentials, *_):\n    raise ValueError([each.value.reveal() for each in credentials])"
    )
    with site.spoiled("launcher/oem.py", lines):
        by_hand(status=70, naming="internal error: ValueError")(site)


def raises_in_the_child(site: Site) -> None:
    """The same in the launcher's child, with the whole request in hand."""
    unit = "microvm@rude.service"
    site.host.run("systemctl", "stop", unit)
    with site.spoiled(
        "launcher/hypervisor/api.py", "def put(*_, body=b'', **__):\n    raise ValueError(body)"
    ):
        site.host.run("systemctl", "start", unit)
        site.told("internal error: ValueError", _SYSTEMD_UNIT=unit)
    site.deployment.start_vm("rude")


def dies(number: signal.Signals) -> Callable[[Site], None]:
    """The agent ends by a signal that would leave a core."""

    def travel(site: Site) -> None:
        site.arrives("plain", "plain")
        site.ends(AGENT, number)
        assert site.host.unit(AGENT)["ExecMainCode"] in {"0", str(os.CLD_KILLED)}, "no core was dumped"

    return travel


def hypervisor_dies(site: Site) -> None:
    """The hypervisor ends so, with plain values in its memory."""
    site.ends("microvm@plain.service", signal.SIGSEGV)
    site.host.wait(lambda: site.generation("plain"), 20, "the VM's next start")


def launcher_dies(site: Site) -> None:
    """The launcher ends so, before it has become the hypervisor and after it has read its credentials."""
    with site.rude("mute"):
        unit = "microvm@rude.service"
        site.host.wait(lambda: children(site, unit), 20, "the question for a version")
        site.ends(unit, signal.SIGABRT)


def child_dies(site: Site) -> None:
    """The launcher's child ends so, in the middle of its request."""
    socket_path = site.host.path("/var/lib/microvms/rude/work/rude.sock")
    socket_path.unlink(missing_ok=True)  # an earlier start's: the launcher still asks for the version then
    with site.rude("hang"):
        unit = "microvm@rude.service"
        site.host.wait(lambda: socket_path.exists() and children(site, unit), 20, "the request")
        for pid in children(site, unit):
            site.signal(pid, signal.SIGABRT)


def children(site: Site, unit: str) -> list[int]:
    """Child processes of a unit's main process; none where that has ended."""
    pid = site.host.unit(unit)["MainPID"]
    with suppress(OSError):
        return list(map(int, site.host.path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


def verb(*words: str) -> Callable[[Site], None]:
    """What an operator's command shows, as a table and as JSON."""

    def travel(site: Site) -> None:
        for options in ((), ("--json",)):
            assert site.host.run("credferry", *words, *options).stdout

    return travel


def on_a_terminal(site: Site) -> None:
    """What is shown where somebody looks on."""
    assert "in step" in site.host.run("script", "-qec", "credferry status", "/dev/null").stdout


def bus_tells(site: Site) -> None:
    """What anybody may ask on the bus about the units."""
    manager = "org.freedesktop.systemd1"
    for unit in ("microvm_40plain_2eservice", "credferry_2eservice"):
        path = f"/org/freedesktop/systemd1/unit/{unit}"
        assert "ExecStart" in site.host.run("busctl", "--full", "introspect", manager, path).stdout
    site.host.run("systemctl", "status", "--full", "--lines=100", "microvm@*", AGENT)


def libraries_are_talkative(site: Site) -> None:
    """GLib and systemd's libraries print all that they can."""
    sync(site, G_MESSAGES_DEBUG="all", G_DBUS_DEBUG="all", SYSTEMD_LOG_LEVEL="debug")


def systemd_is_talkative(site: Site) -> None:
    """PID 1 logs all that it can."""
    site.host.run("systemctl", "log-level", "debug")
    site.arrives("plain", "plain")
    site.host.run("systemctl", "log-level", "info")


PATHS = (
    Way("plain, over the API", lambda site: site.arrives("plain", "plain")),
    Way("sealed for the guest, in the command", lambda site: site.arrives("sealed", "sealed__key")),
    Way("sealed and plain, over the API", lambda site: site.arrives("both", "both")),
    Way("written in place", written_in_place),
    Way("started by hand", starts_by_hand),
    Way("held and released", held),
    Way("a VM that does not start", put_back),
    Way("a VM that does not start at all", nothing_starts),
    Way("a secret that is missing", refused("plain", lambda _: None, "is not published")),
    Way("a secret that is empty", refused("plain", lambda _: b"", "is empty")),
    Way("a value over the budget", refused("plain", lambda site: site.fresh() * 80, "4091 bytes")),
    Way("a value over 1 MiB", refused("plain", lambda site: site.fresh() * 20_000, "1048576 bytes")),
    Way("a directory for a secret", a_directory),
    Way("no guest key", guest_key(None)),
    Way("a spoiled guest key", guest_key(b"spoiled")),
    Way("a name that is not allowed", misplaced('"ssh.x" = { secret = "plain" }', "power over the guest")),
    Way("a value for a table", misplaced('OTHER = "VALUE"', "vms.rude.credentials.OTHER")),
    Way("a value under a key of its own", misplaced('OTHER = { value = "VALUE" }', "unknown field")),
    Way("a value in broken TOML", misplaced('OTHER = { secret = "VALUE', "not TOML")),
    Way("a value for a number", misplaced('[source]\nquiet_seconds = "VALUE"', "source.quiet_seconds")),
    Way("a value as text", text_is_a_value),
    Way("vm.create refused, and quoted", rude("echo", "refused vm.create with status 500")),
    Way("vm.boot refused, and quoted", rude("boot", "refused vm.boot with status 500")),
    Way("a hypervisor that hangs up", rude("gone", "did not answer")),
    Way("a hypervisor that dies", rude("die", "ended before the VM was started")),
    Way("a guest's reboot", guest_reboots, agent=False),
    Way("sync", sync, agent=False),
    Way("talkative libraries", libraries_are_talkative, agent=False),
    Way("no stamp", no_stamp),
    Way("a store that is read-only", store_is_read_only, agent=False),
    Way("no source", no_source, agent=False),
    Way("no bus", no_bus, agent=False),
    Way("launcher: explains", by_hand("--explain", status=0, naming="")),
    Way("launcher: an unknown option", by_hand("--", "--nonsense", "1", status=64, naming="--nonsense")),
    Way("launcher: -v", by_hand("--", "-v", status=64, naming="-v would make cloud-hypervisor log")),
    Way("launcher: D-Bus", by_hand("--", "--dbus-service-name", "a.b", status=64, naming="on D-Bus")),
    Way("launcher: another VM's", by_hand("--vm", "both", status=65, naming="not for both")),
    Way("launcher: a value is missing", without_a_value),
    Way(
        "launcher: over the budget",
        by_hand("--", "--platform", f"oem_strings=[{'x' * 4000}]", status=65, naming="4091"),
    ),
    Way(
        "launcher: no hypervisor", by_hand("--real", "/nowhere", status=69, naming="is not at /nowhere")
    ),
    Way("an exception in the agent", raises_in_the_agent),
    Way("an exception in the launcher", raises_in_the_launcher),
    Way("an exception in the launcher's child", raises_in_the_child),
    Way("SIGABRT to the agent", dies(signal.SIGABRT)),
    Way("SIGSEGV to the agent", dies(signal.SIGSEGV)),
    Way("SIGSEGV to the hypervisor", hypervisor_dies),
    Way("SIGABRT to the launcher", launcher_dies),
    Way("SIGABRT to the launcher's child", child_dies),
    Way("status", verb("status")),
    Way("plan", verb("plan")),
    Way("check", verb("check")),
    Way("audit", verb("audit")),
    Way("a terminal", on_a_terminal),
    Way("the bus, asked", bus_tells),
    Way("a talkative systemd", systemd_is_talkative),
)  # fmt: skip


@pytest.mark.timeout(900)
def test_no_path_leaks(site: Site) -> None:
    """On none of the paths is a value seen anywhere, while it happens or afterwards."""
    search, found = Search.of([MARKER], ALLOWED), dict[str, set[str]]()
    known: set[str] = set()
    capture = recorder(site.host)
    with Vigil(site.host, search) as vigil:
        for way in PATHS:
            site.mark()
            looks = vigil.looks
            try:
                site.agent(runs=way.agent)
                way.travel(site)
            except Exception as error:
                error.add_note(f"on the path: {way.name}")
                raise
            site.host.wait(lambda looks=looks: vigil.looks > looks, 10, "a look at the processes")  # type: ignore[misc]  # a default binds the number
            seen = {*vigil.found, *search.in_volatile_files(site.host), *search.in_written_files(site.host)}
            if seen - known:
                found[way.name] = seen - known
            known |= seen
    capture.send_signal(signal.SIGTERM)
    capture.wait()
    recorded = site.host.path(CAPTURE).read_bytes()
    assert recorded.count(b"RestartUnit") > len(PATHS) / 4, "the recording of the bus holds its traffic"
    texts = {"the bus": recorded, "what commands printed": bytes(site.host.said)}
    rest = set(leaks(site.host, [MARKER], texts=texts, allowed=ALLOWED)) - known
    if rest:
        found["any of them"] = rest
    note(Number.LEAK_PATHS, len(PATHS))
    note(Number.LEAKS, sum(map(len, found.values())))
    assert found == {}


def test_each_place_is_searched(site: Site) -> None:
    """A value planted in any of the places, in whatever form, is found there; so is one in a core file."""
    host = site.host
    value = b"planted'" + os.urandom(12).hex().encode() + b"\n\xff" + os.urandom(12).hex().encode()
    telling = value[8:32].decode()
    capture = recorder(host)
    programs = [
        host.spawn("sleep", "1000", env={"LEAK": base64.b64encode(value).decode()}),
        host.spawn("python3", "-c", "import time; time.sleep(1000)", value.hex()),
    ]
    files = {
        "/run/leak": value,
        "/tmp/leak": repr(value).encode(),
        "/dev/shm/leak": b"..." + base64.b64encode(b"." + value),
        "/var/lib/leak": b"x" * ((1 << 20) - 5) + value,
        "/etc/leak": quote_from_bytes(value).encode(),
    }
    for path, content in files.items():
        host.write(path, content)
    host.run("touch", f"/run/{telling}")
    host.run("ln", "-s", telling, "/run/leaking-link")
    # So long that journald compresses it: its files need not show anything.
    host.run("logger", "-t", "leak", "--size", "8192", stdin=telling + "." * 4000)
    host.run("systemd-run", "--quiet", "--unit=leak", f"--description={telling}", "sleep", "1000")
    abort = "import os, resource; value = bytes.fromhex(input()); os.abort()"
    in_core = f'mkdir -p /run/cores; cd /run/cores; ulimit -c unlimited; exec python3 -c "{abort}"'
    # Else the kernel hands a core to a program of this machine, and no file of the host shows it.
    has_cores = not Path("/proc/sys/kernel/core_pattern").read_text().startswith("|")

    def has_core() -> bool:
        """Whether a core has the value. The kernel may cut one short, as on a busy machine."""
        host.run("sh", "-c", in_core, stdin=value.hex(), check=False)
        return any(value in core.read_bytes() for core in host.path("/run/cores").iterdir())

    if has_cores:
        host.wait(has_core, 20, "a core with the value")
    name_has_owner = ("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "NameHasOwner", "s", telling)
    host.run("busctl", "call", *name_has_owner, check=False)
    host.wait(lambda: telling.encode() in host.path(CAPTURE).read_bytes(), 10, "the call in the recording")
    places = {
        *files,
        *(
            f"/proc/{pid}/{part}"
            for pid, part in zip(map(inside, programs), ("environ", "cmdline"), strict=True)
        ),
        f"the name or target of '/run/{telling}'",
        "the name or target of '/run/leaking-link'",
        "the journal",
        "systemd's properties",
        CAPTURE,
        "what was said",
    }
    try:
        found = set(leaks(host, [value], texts={"what was said": f"{telling[:12]}…".encode()}))
    finally:
        for program in (*programs, capture):
            program.kill()
        host.run("systemctl", "stop", "leak.service")
        host.run("rm", "-r", *files, f"/run/{telling}", "/run/leaking-link", CAPTURE)
        host.run("rm", "-rf", "/run/cores")
    assert places - found == set()
    if has_cores:
        assert [place for place in found if place.startswith("/run/cores/")]


def recorder(host: Host) -> subprocess.Popen[str]:
    """Starts to record the bus into a new file, and waits until a call on the bus is in it."""
    host.run("rm", "-f", CAPTURE)
    capture = host.spawn("sh", "-c", f"exec busctl capture --size=1000000 > {CAPTURE}")
    call = ("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId")

    def records() -> bool:
        host.run("busctl", "call", *call)
        return host.path(CAPTURE).exists() and b"GetId" in host.path(CAPTURE).read_bytes()

    host.wait(records, 20, "the recorder")
    return capture


def inside(process: subprocess.Popen[str]) -> str:
    """The PID that a spawned command has in the host."""
    child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    status = Path(f"/proc/{child}/status").read_text()
    return next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))


def test_what_is_allowed_is_searched(site: Site) -> None:
    """Where values may be, they are: the search finds them there as soon as it is not allowed."""
    nowhere = re.compile("(?!)")
    found = leaks(site.host, [MARKER], allowed=nowhere)
    assert "/run/credentials/microvm@plain.service/credferry_value.KEY" in found
    assert "/run/credentials/microvm@sealed.service/credferry_value.KEY" not in found, "sealed for its guest"
    assert [place for place in found if place.startswith("/run/secrets.d/")]
    assert {place.split("/")[2] for place in found} == {"credentials", "secrets.d"}
