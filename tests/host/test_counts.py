# SPDX-License-Identifier: MIT
"""What the agent and the launcher ask of the kernel and the bus, counted: a guard against growing slower.

Counts are the same on any machine, loaded or idle; times are `make bench`'s. Each bound is a formula in the
number of secrets and VMs. A bound that is exceeded tells of a slow-down, or of what a new thing costs: then
who adds it raises the bound.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from benchmarks.bed import AGENT, Bed, World
from benchmarks.contenders import Credferry
from benchmarks.idle import wake_ups
from credferry.launcher.handoff import (
    LAUNCHED,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    unit_credential,
    value_file,
)
from tests.support.host import patience
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.host

SIZES = ((10, 2), (100, 2), (100, 10))
TRACE = "/tmp/counts.trace"

# Between two stat() of a name that tells which part it is, only what is to be counted happens.
_PARTS = """
import os, sys, tempfile
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from credferry.agent.reconcile.observer import Observer
from credferry.agent.reconcile.sealer import Sealer
from credferry.agent.store.generations import Store
from benchmarks.look import Silent, fill, place

def mark(name):
    try:
        os.stat(f"/count/{name}")
    except OSError:
        pass

for size in sys.argv[3:]:
    secrets, vms = map(int, size.split("x"))
    made = place(Path(tempfile.mkdtemp(dir=sys.argv[2])), secrets, vms)
    fill(made)
    made.change_one()
    look = made.look()
    look()
    mark(f"look {size}")
    look()
    mark("end")
    store = Store(made.top / "state", made.key)
    observer = Observer(made.config, store)
    found = observer.look(made.config.vms.values(), None)
    mark(f"seal {size}")
    Sealer(store, observer, Silent()).seal_due(found)
    mark("end")
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that was made, as strace writes it."""

    name: str
    text: str


def packages(directory: Path, slow: Mapping[str, str]) -> Path:
    """A copy of the packages below a directory, with lines put at the end of some files."""
    for package, place in (("agent", "credferry"), ("launcher", "credferry"), ("benchmarks", ".")):
        shutil.copytree(
            CHECKOUT / package, directory / place / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file, lines in slow.items():
        with (directory / file).open("a", encoding="utf-8") as text:
            text.write(lines)
    return directory


def parts(top: Path, modules: Path, *sizes: tuple[int, int]) -> dict[str, list[Call]]:
    """The system calls of a look, and of the sealing of one VM after it, by what and secrets x VMs."""
    world = top / "world"
    world.mkdir()
    trace = top / "trace"
    command = [sys.executable, "-I", "-c", _PARTS, str(modules), str(world)]
    command += [f"{secrets}x{vms}" for secrets, vms in sizes]
    subprocess.run(["strace", "-f", "-o", str(trace), "-e", "signal=none", *command], check=True)
    found: dict[str, list[Call]] = {}
    part = ""
    for line in trace.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)", line)
        if not match:
            continue
        if marked := re.search(r'"/count/([^"]*)"', match[2]):
            part = marked[1]
        elif part != "end":
            found.setdefault(part, []).append(Call(match[1], match[2]))
    return found


def within(bounds: Mapping[str, int], counted: Mapping[str, int]) -> dict[str, str]:
    """What is counted over its bound; empty where all is well."""
    return {
        name: f"{counted.get(name, 0)} > {most}"
        for name, most in bounds.items()
        if counted.get(name, 0) > most
    }


def look_bounds(secrets: int, vms: int) -> dict[str, int]:
    """How often a look may ask the kernel for what, where one VM is due for a restart.

    A secret is asked about before and after it is read, or a file that is being written goes unnoticed. Each
    file of the due VM's generation is asked about once, to see whether a start can open it. Fifty calls are
    for the steps and links of the way to the source; ten of them are opens.
    """
    files = secrets // vms + 1
    return {
        "openat": secrets + 3 * vms + 15,
        "read": secrets + vms + 3,
        "stat": 2 * secrets + 5 * vms + files + 12,
        "all": 5 * secrets + 11 * vms + files + 70,
    }


def seal_bounds(secrets: int, vms: int) -> dict[str, int]:
    """The same for the sealing of one VM, whose manifest is one more.

    A store that is new makes sure once that each older generation which it keeps is whole: ten calls each.
    The ages of the values are one file more, which is not synced.
    """
    files = secrets // vms + 1
    return {
        "fsync": files + 5,
        "openat": files + 17,
        "rename": 2,
        "write": files + 1,
        "all": 9 * files + 70,
    }


def count(calls: list[Call]) -> Counter[str]:
    """How often each was made; the C library has one name or another for stat()."""
    names = Counter("stat" if "stat" in call.name else call.name for call in calls)
    names["all"] = len(calls)
    return names


def test_a_look_reads_each_secret_once_and_a_generation_is_synced_once(tmp_path: Path) -> None:
    """A look opens and reads each secret once, each VM costs a few calls; sealing syncs each file once."""
    found = parts(tmp_path, packages(tmp_path / "modules", {}), *SIZES)
    for secrets, vms in SIZES:
        looked, sealed = count(found[f"look {secrets}x{vms}"]), count(found[f"seal {secrets}x{vms}"])
        assert within(look_bounds(secrets, vms), looked) == {}, looked
        assert within(seal_bounds(secrets, vms), sealed) == {}, sealed


def test_a_second_read_is_noticed(tmp_path: Path) -> None:
    """Were each file read twice, the bounds above would say so."""
    twice = "_once = take\ndef take(*a, **k):\n    _once(*a, **k)\n    return _once(*a, **k)\n"
    secrets, vms = SIZES[1]
    found = parts(
        tmp_path,
        packages(tmp_path / "modules", {"credferry/agent/source/snapshot.py": twice}),
        (secrets, vms),
    )
    over = within(look_bounds(secrets, vms), count(found[f"look {secrets}x{vms}"]))
    assert over.keys() == {"openat", "read", "stat", "all"}


@dataclass(frozen=True, slots=True)
class Imported:
    """What a VM's start imports until the launcher becomes the hypervisor, and what its child does then.

    What an interpreter imports for nothing at all is not among them.
    """

    before: frozenset[str]
    child: frozenset[str]


_START = """
import os
if sys.argv[1] == "before":  # the child is not to tell what it imports
    os.register_at_fork(after_in_child=lambda: os.dup2(os.open("/dev/null", os.O_WRONLY), 2))
del sys.argv[1]
from credferry.launcher.__main__ import main
main()
"""


def imported(top: Path, modules: Path, channel: Channel) -> Imported:
    """What the launcher imports: its own modules, and others."""
    credentials, runtime = top / "credentials", top / "credferry-vms/web"
    for directory in (credentials, runtime):
        directory.mkdir(parents=True)
    manifest = Manifest(
        *("web", 1, "0" * 64, "0" * 32, Delivery(channel)), (ManifestEntry("SITE", Kind.TEXT, "0" * 16),)
    ).bound({"SITE": Secret(b"here")}, "0" * 64)
    (credentials / unit_credential("manifest")).write_bytes(manifest.to_bytes())
    (credentials / unit_credential(value_file("SITE"))).write_bytes(b"here")
    words = ["--hypervisor-version", "53.0", "--real", "/bin/true", "--", "--kernel", "/vmlinux"]
    environment = {
        **os.environ,
        "CREDENTIALS_DIRECTORY": str(credentials),
        "RUNTIME_DIRECTORY": str(runtime),
    }
    nothing = _imports(modules, "pass", [], environment)
    before = _imports(modules, _START, ["before", *words], environment)
    whole = _imports(modules, _START, ["whole", *words], environment)
    return Imported(before - nothing, whole - before)


def _imports(modules: Path, code: str, words: list[str], environment: Mapping[str, str]) -> frozenset[str]:
    code = f"import sys; sys.path[:0] = [{str(modules)!r}]\n{code}"
    command = ["/usr/bin/python3", "-IS", "-X", "importtime", "-c", code, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return frozenset(
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time")
    )


def module_bounds(channel: Channel) -> dict[str, int]:
    """How many modules may be imported for a VM's start: before the hypervisor's exec, and by the child."""
    # Two of the launcher's are packages that hold no code: `credferry` and `credferry.launcher.hypervisor`.
    return {"launcher": 26 if channel is Channel.API else 21, "others": 26, "child": 15}


def count_modules(top: Path, modules: Path, channel: Channel) -> dict[str, int]:
    """How many modules of the launcher's, and how many others, its start imports."""
    found = imported(top, modules, channel)
    own = {name for name in found.before if name.partition(".")[0] == "credferry"}
    return {"launcher": len(own), "others": len(found.before - own), "child": len(found.child)}


@pytest.mark.parametrize("channel", LAUNCHED)
def test_the_launcher_imports_little(tmp_path: Path, channel: Channel) -> None:
    """A VM's start imports no more modules than it did."""
    counted = count_modules(tmp_path, packages(tmp_path / "modules", {}), channel)
    assert within(module_bounds(channel), counted) == {}, counted


@pytest.mark.parametrize(
    ("file", "module", "where"),
    [
        ("credferry/launcher/plan.py", "http.client", "others"),
        ("credferry/launcher/supervise.py", "http.client", "child"),
    ],
)
def test_an_import_is_noticed(tmp_path: Path, file: str, module: str, where: str) -> None:
    """Were a module of the standard library imported that has others, the bounds above would say so."""
    slow = packages(tmp_path / "modules", {file: f"import {module}\n"})
    counted = count_modules(tmp_path, slow, Channel.API)
    assert within(module_bounds(Channel.API), counted).keys() == {where}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the agent did for one rotation: looks at everything, and D-Bus methods called, by name.

    ``early`` counts how often it found that the launcher had not reported yet, within ``waited`` seconds.
    """

    looks: int
    methods: Counter[str]
    early: int = 0
    waited: float = 0.0


EARLY_SECONDS = 0.05
"""The agent asks this often whether the launcher has reported, and in each look."""
NO_RESYNC = "[source]\nresync_seconds = 3600\n"
"""A look comes from a hint alone: on a slow machine, a resync would fall into what is counted."""
LOOKS_A_ROTATION = 6
"""One that finds it, one right before the restart, and those that the job's end and its verdict cause."""
CALLS_FOR_A_UNIT = 2
"""The properties of the unit and of its service. A look or a wait for the launcher asks at most once."""
THREADS = 16
"""One of them for each directory that is watched on the way to the source."""
RESTS = 30
"""So often the agent is seen to rest for a little while."""
PACKAGES = {
    *("credferry", "systemd", "watchdog"),
    "structlog",  # without rich, which it would load if it is installed: 4 MiB
    *("cryptography", "_cffi_backend", "_openssl", "typing_extensions"),
    *("msgspec", "pydbus", "gi", "gio", "glib", "gobject", "gtk"),  # gi has stand-ins for its former names
    *("__main__", "_distutils_hack", "sitecustomize", "usercustomize"),  # any Python's
}
"""What the agent has in memory. typer is for verbs; prometheus-client is for metrics."""
MODULES = "/run/credferry/modules"
LATE = "late: "
OPENSSL = {"_hashlib", "_ssl"}
"""Python's own modules that load an OpenSSL."""

_TELLING = f"""
import os, signal, sys

def made():
    import gi.module
    spaces = gi.module._introspection_modules  # nothing public tells it
    return {{f"{LATE}{{space}}.{{name}}" for space, module in spaces.items() for name in vars(module)}}

def tell(*_):
    with open("{MODULES}.new", "w") as file:
        file.write("\\n".join(name for name, module in sys.modules.items() if module is not None))
        file.write("\\n" + "\\n".join(made() - loaded))
    os.rename("{MODULES}.new", "{MODULES}")

signal.signal(signal.SIGUSR1, tell)
sys.path.insert(0, "/usr/lib/credferry")
from credferry.agent.cli import main
from credferry.agent.daemon import main as daemon
loaded = made()
main()
"""


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    """A host of its own, with the benchmark's light VMs."""
    with Bed() as made:
        yield made


def asked(bed: Bed, world: World, change: int) -> Asked:
    """What the agent does for one rotation with so many secrets changed, seen by strace."""
    tracer = bed.host.spawn(
        *("strace", "-f", "-ttt", "-s", "256", "-e", "trace=sendmsg,openat", "-e", "signal=none"),
        *("-o", TRACE, "-p", bed.host.unit(AGENT)["MainPID"]),
    )
    assert tracer.stderr
    assert "attached" in tracer.stderr.readline()
    trace = bed.host.path(TRACE)
    if change:
        assert bed.rotate(world, change, 30.0 * patience()).accepted
    else:
        bed.drive("rotate", change=0, vms=[], unit=world.unit, seconds=0)
    bed.host.wait(lambda: "WATCHDOG=1" in trace.read_text(encoding="utf-8"), 20, "a look")
    Credferry().rest(bed, world)
    tracer.terminate()
    tracer.wait(20)
    # The last step of the way to the source tells of a look.
    looks, methods, early = 0, Counter[str](), list[float]()
    for line in trace.read_text(encoding="utf-8").splitlines():
        looks += re.search(r'openat\(\d+, "\.", O_RDONLY\|\w*\|?O_DIRECTORY', line) is not None
        if re.search(r'openat\(\d+, "(stamp\.json|v\d+)", .* = -1 ENOENT', line):
            early.append(float(line.split()[1]))
        # Of the message's header fields: the type of a method call, and the member's name.
        if method := re.search(r'iov_base="l\\1.*?\\3\\1s\\0.{4,16}?([A-Z]\w+)\\0', line):
            methods[method[1]] += 1
    return Asked(looks, methods, len(early), early[-1] - early[0] if early else 0.0)


@pytest.mark.parametrize("vms", [2, 12])
def test_systemd_is_asked_once_a_look_and_a_few_times_a_restart(bed: Bed, vms: int) -> None:
    """However many VMs there are: one call of D-Bus a look; a restart of one has no more looks and calls.

    A new generation with the same values is read twice: once more after its directory is watched.
    """
    world = World(2 * vms, vms)
    bed.lay_out(world, NO_RESYNC)
    contender = Credferry()
    contender.begin(bed, world)

    same = asked(bed, world, 0)
    assert same == Asked(2, Counter({"ListUnitsByNames": 1}))

    changed = asked(bed, world, 1)
    assert changed.looks <= LOOKS_A_ROTATION
    assert changed.methods["TryRestartUnit"] == 1
    assert changed.methods["ListUnitsByNames"] <= changed.looks
    assert changed.early <= changed.looks + changed.waited / EARLY_SECONDS + 1, changed
    # On a slow machine, more looks fall into the restart, and each may find the one unit in another state.
    assert changed.methods["GetAll"] <= CALLS_FOR_A_UNIT * (changed.looks + changed.early), changed
    assert set(changed.methods) == {"TryRestartUnit", "ListUnitsByNames", "GetAll"}

    pid = bed.host.unit(AGENT)["MainPID"]
    assert len(list(bed.host.path(f"/proc/{pid}/task").iterdir())) <= THREADS
    contender.end(bed)


@pytest.fixture
def installed(bed: Bed) -> Iterator[Callable[[str, str], None]]:
    """Changes the installed `daemon/main.py`: one text for another. It is as it was afterwards."""
    file = "/usr/lib/credferry/credferry/agent/daemon/main.py"
    text = bed.host.path(file).read_text(encoding="utf-8")
    yield lambda one, other: bed.host.write(file, text.replace(one, other, 1))
    bed.host.write(file, text)


def woken(bed: Bed) -> Counter[str]:
    """How often which threads of the agent wake while nothing happens, and no look is due.

    A thread that wakes regularly does so in each of up to three measurements.
    """
    world = World(4, 2)
    bed.lay_out(world, NO_RESYNC)
    contender = Credferry()
    contender.begin(bed, world)
    pid = bed.host.unit(AGENT)["MainPID"]
    found: Counter[str] = Counter()
    for _ in range(3):  # a thread may still be at what the agent's start has set going
        before = wake_ups(bed, pid)
        for _ in range(RESTS):
            bed.rest(AGENT)
        found = Counter(wake_ups(bed, pid)) - Counter(before)
        if not found:
            break
    contender.end(bed)
    return found


def test_nothing_wakes_between_looks(bed: Bed) -> None:
    """An agent that has nothing to do waits for a hint or the resync's moment, in all of its threads."""
    assert woken(bed) == Counter()


def test_a_thread_that_wakes_is_noticed(bed: Bed, installed: Callable[[str, str], None]) -> None:
    """Were there a thread that looks after something twice a second, the test above would say so."""
    thread = "threading.Thread(target=lambda: [time.sleep(0.5) for _ in range(100)], daemon=True).start()"
    installed("    log.configure()", f"    import threading, time; {thread}\n    log.configure()")
    assert any(times > 1 for times in woken(bed).values())


def told(bed: Bed, *verbs: str) -> list[str]:
    """What an agent tells of itself after a rotation, and after these verbs for a VM."""
    world = World(4, 2)
    bed.lay_out(world)
    contender = Credferry()
    contender.begin(bed, world)
    assert bed.rotate(world, 1, 30.0 * patience()).accepted
    contender.rest(bed, world)
    for verb in verbs:
        bed.host.run("credferry", verb, "v0")
    if verbs:
        bed.host.run("systemctl", "reload", AGENT)
    bed.host.run("systemctl", "kill", "--kill-whom=main", "--signal=SIGUSR1", AGENT)
    bed.host.wait(bed.host.path(MODULES).exists, 20, "the modules' names")
    names = bed.host.path(MODULES).read_text(encoding="utf-8").splitlines()
    contender.end(bed)
    return names


def loaded(bed: Bed) -> set[str]:
    """The packages that a running agent has loaded after a rotation, the standard library's left out."""
    return {name.partition(".")[0] for name in modules(bed)} - sys.stdlib_module_names


def modules(bed: Bed) -> set[str]:
    """The modules that a running agent has loaded after a rotation."""
    names = [name for name in told(bed) if not name.startswith(LATE)]
    # What the machine's site packages load into any Python, such as certifi for an authority of its own.
    bare = bed.host.run(sys.executable, "-I", "-c", "import sys; print(*sys.modules)").stdout.split()
    return {*names} - {*bare}


@pytest.fixture
def telling(bed: Bed) -> Iterator[Bed]:
    """A host whose agent tells what it has loaded."""
    drop_in = f"/etc/systemd/system/{AGENT}.d/60-modules.conf"
    bed.host.write("/usr/lib/credferry-telling.py", _TELLING)
    command = f"{sys.executable} -I /usr/lib/credferry-telling.py agent"
    bed.host.write(drop_in, f"[Service]\nExecStart=\nExecStart={command}\n")
    bed.host.run("systemctl", "daemon-reload")
    yield bed
    bed.host.path(drop_in).unlink()
    bed.host.run("systemctl", "daemon-reload")


def test_the_agent_loads_what_it_needs(telling: Bed) -> None:
    """Of packages that are not Python's own, the agent keeps in memory those that it uses, and no others."""
    assert loaded(telling) - PACKAGES == set()


def test_the_agent_loads_one_openssl(telling: Bed) -> None:
    """The library that seals also hashes: `hashlib` and `ssl` would load another OpenSSL beside it."""
    assert OPENSSL & modules(telling) == set()


def test_another_openssl_is_noticed(telling: Bed, installed: Callable[[str, str], None]) -> None:
    """If the agent hashed with Python's own library, the test above would fail."""
    installed("from credferry.agent import", "import hashlib\nfrom credferry.agent import")
    assert OPENSSL & modules(telling) == {"_hashlib"}


def test_a_package_too_many_is_noticed(telling: Bed, installed: Callable[[str, str], None]) -> None:
    """If the agent loaded what only metrics need, the test above would fail."""
    installed("from credferry.agent import", "import prometheus_client\nfrom credferry.agent import")
    assert loaded(telling) - PACKAGES == {"prometheus_client"}


def test_no_class_of_glib_is_made_late(telling: Bed) -> None:
    """All that the agent uses of GLib is made before its threads, which would break each other's classes."""
    names = told(telling, "rotate", "hold", "release", "status", "show")
    assert [name for name in names if name.startswith(LATE)] == []


def test_a_class_that_is_made_late_is_noticed(telling: Bed, installed: Callable[[str, str], None]) -> None:
    """If the agent made a class of GLib only when it runs, the test above would fail."""
    installed("    log.configure()", "    from gi.repository import Gio; Gio.FileType\n    log.configure()")
    assert f"{LATE}Gio.FileType" in told(telling)
