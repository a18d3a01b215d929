# SPDX-License-Identifier: MIT
"""The throwaway host is a real system of its own, producers are true to theirs, and nothing outlives it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, VmFiles
from tests.support.host import CommandError, Host, patience, wait_until
from tests.support.modules import MODULES
from tests.support.producer import Agenix, MountedSource, SopsNix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHECKOUT = Path(__file__).parents[2]
_IN_CREATE, _IN_DELETE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_ISDIR = 0x100, 0x200, 0x40, 0x80, 0x40000000
_P = TypeVar("_P", SopsNix, Agenix, MountedSource)
_NAMES = {_IN_CREATE: "create", _IN_DELETE: "delete", _IN_MOVED_FROM: "from", _IN_MOVED_TO: "to"}


class TestHost:
    """What is inside is whole, private and fresh."""

    def test_runs_systemd_as_pid_1(self) -> None:
        """PID 1 is systemd, and it has brought the system up with no unit failed."""
        with Host(cache_directory()) as host:  # where others have been, a unit of theirs may have failed
            assert host.run("cat", "/proc/1/comm").stdout == "systemd\n"
            assert host.run("systemctl", "is-system-running").stdout == "running\n"

    def test_has_a_bus_of_its_own(self, host: Host) -> None:
        """The PID 1 answers on the host's own system bus, whose identity is not this machine's."""
        call = ("busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId")
        outside = subprocess.run(call, check=False, capture_output=True, text=True)
        assert host.run(*call).stdout not in {"", outside.stdout}
        assert "org.freedesktop.systemd1" in host.run("busctl", "list").stdout

    def test_has_a_journal_of_its_own(self, host: Host) -> None:
        """What is logged inside is found in the host's journal, on its file system, and nowhere else."""
        host.run("systemd-cat", "--identifier=harness", stdin="only here\n")
        entry = host.wait_journal(lambda entry: entry["MESSAGE"] == "only here", SYSLOG_IDENTIFIER="harness")
        machine = host.path("/etc/machine-id").read_text().strip()
        assert entry["_MACHINE_ID"] == machine
        assert entry in host.journal(SYSLOG_IDENTIFIER="harness")
        assert list(host.path(f"/var/log/journal/{machine}").glob("*.journal"))
        assert not Path(f"/var/log/journal/{machine}").exists()

    def test_has_credentials_of_its_own(self, host: Host) -> None:
        """systemd-creds makes a key inside, which this machine does not get; units get what it sealed."""
        before = _stat("/var/lib/systemd/credential.secret")
        sealed = host.run("systemd-creds", "encrypt", "--with-key=host", "--name=x", "-", "-", stdin="hello")
        host.write("/run/credferry-harness/x", sealed.stdout)
        shown = host.run(
            *("systemd-run", "--quiet", "--wait", "--pipe", "--property=DynamicUser=yes"),
            "--property=LoadCredentialEncrypted=x:/run/credferry-harness/x",
            *("sh", "-c", 'cat "$CREDENTIALS_DIRECTORY/x"'),
        )
        assert shown.stdout == "hello"
        assert host.path("/var/lib/systemd/credential.secret").stat().st_mode & 0o7777 == 0o400
        assert _stat("/var/lib/systemd/credential.secret") == before

    def test_names_and_network_are_private(self, host: Host) -> None:
        """The host has its own machine id and host name, and its network is a loopback only."""
        assert host.path("/etc/machine-id").read_text() != Path("/etc/machine-id").read_text()
        assert host.run("hostname").stdout == "credferry-host\n"
        assert host.run("ls", "/sys/class/net").stdout.split() == ["lo"]

    def test_writes_stay_inside(self, host: Host) -> None:
        """A file written inside is not on this machine, and the cache is read-only there."""
        host.write("/usr/lib/credferry-harness", "x", 0o600)
        assert host.run("stat", "--format=%a %U", "/usr/lib/credferry-harness").stdout == "600 root\n"
        assert not Path("/usr/lib/credferry-harness").exists()
        with pytest.raises(CommandError, match="Read-only"):
            host.run("touch", str(cache_directory() / "x"))

    def test_commands(self, host: Host) -> None:
        """Commands get an input, a user and an environment; one that fails raises with what it said."""
        assert host.run("cat", stdin="in").stdout == "in"
        assert host.run("id", "-un", user="microvm").stdout == "microvm\n"
        assert host.run("sh", "-c", "echo $A", env={"A": "b"}).stdout == "b\n"
        assert host.run("false", check=False).returncode == 1
        with pytest.raises(CommandError, match="status 3: oh"):
            host.run("sh", "-c", "echo oh >&2; exit 3")
        with pytest.raises(subprocess.TimeoutExpired):
            host.run("sleep", "60", timeout=0.1)
        host.wait(lambda: not host.run("pgrep", "-x", "sleep", check=False).stdout, 5, "the command's end")

    def test_spawned_command_is_killed(self, host: Host) -> None:
        """A command that was started inside talks by pipes, and killing it leaves nothing of it."""
        process = host.spawn("sh", "-c", "echo $$; exec cat")
        assert process.stdout
        pid = process.stdout.readline().strip()
        process.kill()
        assert process.wait(5 * patience()) == -signal.SIGKILL
        assert not host.path(f"/proc/{pid}").exists()

    def test_paths_are_followed_as_inside(self, host: Host) -> None:
        """An absolute symlink leads to the host's file and not to this machine's of the same name."""
        host.write("/run/harness.d/1/name", "inside")
        host.path("/run/harness", follow=False).symlink_to("/run/harness.d/1")
        assert host.path("/run/harness/name").read_text() == "inside"
        assert host.path("/run/harness", follow=False).readlink() == Path("/run/harness.d/1")
        assert host.path("/run/harness/../1/../../x").parts[-2:] == ("run", "x")

    def test_kills_a_unit(self, host: Host) -> None:
        """A unit's main process can be killed, and the unit's properties tell how it ended."""
        host.run("systemd-run", "--unit=harness-sleep", "sleep", "infinity")
        host.kill("harness-sleep.service", signal.SIGKILL)
        failed = lambda: host.unit("harness-sleep.service")["ActiveState"] == "failed"  # noqa: E731 (a condition)
        host.wait(failed, 5, "the unit's failure")
        assert host.unit("harness-sleep.service")["Result"] == "signal"
        host.run("systemctl", "reset-failed", "harness-sleep.service")


class TestSopsNix:
    """The producer publishes as sops-nix does."""

    def test_publishes_generations(self, host: Host) -> None:
        """Generations count up on a ramfs, the link names the last, and all others but it are pruned."""
        with _clean(SopsNix(host)) as producer:
            assert producer.publish({"key": b"one"}) == 1
            assert producer.publish({"key": b"two", "db/password": b"three\n"}) == 2
            assert host.path("/run/secrets", follow=False).readlink() == Path("/run/secrets.d/2")
            assert host.path("/run/secrets/key").read_bytes() == b"two"
            assert host.path("/run/secrets/db/password").read_bytes() == b"three\n"
            assert _names(host, "/run/secrets.d") == {"2"}
            shown = host.run("stat", "--format=%a %U %G", *_of_generation("2")).stdout.splitlines()
            assert shown == ["751 root keys", "751 root keys", "751 root keys", "400 root root"]
            assert host.run("stat", "--file-system", "--format=%T", "/run/secrets.d").stdout == "ramfs\n"

    def test_swap_as_inotify_sees_it(self, host: Host) -> None:
        """On /run a first publication is one creation, and a later one a move between a directory's ends."""
        with _clean(SopsNix(host)) as producer, _watch(host.path("/run"), "secrets") as events:
            producer.publish({"key": b"one"})
            assert [event for event in events() if event[1] != "secrets.d"] == [("create", "secrets")]
            producer.publish({"key": b"two"})
            (made, beside), moved, (gone, same) = events()
            assert (made, gone) == ("create dir", "delete dir")
            assert beside == same
            assert beside.startswith(".secrets")
            assert moved == ("to", "secrets")

    def test_keeps_generations(self, host: Host) -> None:
        """As many generations stay as the configuration says."""
        with _clean(SopsNix(host, keep=2)) as producer:
            for _ in range(4):
                producer.publish({"key": b"value"})
            assert _names(host, "/run/secrets.d") == {"3", "4"}

    def test_dry_activation_publishes_nothing(self, host: Host) -> None:
        """A dry activation leaves the next generation on disk; the next publication takes its number."""
        with _clean(SopsNix(host)) as producer:
            producer.publish({"key": b"one"})
            with _watch(host.path("/run"), "secrets") as events:
                assert producer.dry_activate({"key": b"two", "more": b""}) == 2
                assert events() == []
            assert _names(host, "/run/secrets.d") == {"1", "2"}
            assert host.path("/run/secrets/key").read_bytes() == b"one"
            assert producer.publish({"key": b"three"}) == 2
            assert _names(host, "/run/secrets") == {"key"}

    def test_write_in_place(self, host: Host) -> None:
        """A value can be overwritten in the published generation."""
        with _clean(SopsNix(host)) as producer:
            producer.publish({"key": b"a longer one"})
            producer.write_in_place("key", b"short")
            assert host.path("/run/secrets/key").read_bytes() == b"short"

    def test_remove(self, host: Host) -> None:
        """What was published can go, and numbers then start again."""
        producer = SopsNix(host)
        producer.publish({"key": b"one"})
        producer.publish({"key": b"two"})
        producer.remove()
        assert not host.path("/run/secrets", follow=False).is_symlink()
        assert not host.path("/run/secrets.d").exists()
        assert producer.publish({"key": b"three"}) == 1
        producer.remove()


def test_agenix(host: Host) -> None:
    """A link is made beside /run/agenix and renamed over it, and the generation before is removed."""
    with _clean(Agenix(host)) as producer:
        assert producer.publish({"key": b"one"}) == 1
        with _watch(host.path("/run")) as events:
            assert producer.publish({"key": b"two"}) == 2
            seen = events()
            [beside] = [name for kind, name in seen if kind == "from"]
            assert [kind for kind, name in seen if name in {beside, "agenix"}] == ["create", "from", "to"]
        assert host.path("/run/agenix/key").read_bytes() == b"two"
        assert _names(host, "/run/agenix.d") == {"2"}


def test_mounted_source(host: Host) -> None:
    """A mount replaces the mount at /run/secrets, and a watch on /run hears nothing of it."""
    with _clean(MountedSource(host)) as producer:
        assert producer.publish({"key": b"one"}) == "first"
        assert host.path("/run/secrets/key").read_bytes() == b"one"
        with _watch(host.path("/run"), "secrets") as events:
            assert producer.publish({"key": b"two"}) in {"beneath", "over"}
            assert events() == []
        assert host.path("/run/secrets/key").read_bytes() == b"two"


def test_a_deployment_leaves_nothing_in_the_journal(host: Host) -> None:
    """The next test does not find what the journal had of a VM with the same name."""
    deployment = Deployment(host)
    deployment.add_vm("web", VmFiles(launcher=False))
    host.run("systemctl", "start", "microvm@web.service")
    assert deployment.starts("web") == 1
    deployment.close()
    assert not host.journal(UNIT="microvm@web.service")


@pytest.mark.parametrize("end", ["in order", "owner killed", "warden killed"])
def test_nothing_is_left(end: str) -> None:
    """However a host ends, no process, mount, control group or file of it is left."""
    program = (
        "import sys; from pathlib import Path; from tests.support.host import Host\n"
        f"with Host(Path({str(cache_directory())!r})) as host:\n"
        "    host.spawn('sleep', 'infinity'); print(host.leader, flush=True); sys.stdin.read()\n"
    )
    with _mount_namespace() as place:
        before = _mounts(place)
        owner = subprocess.Popen(
            ["nsenter", f"--target={place}", "--mount", "--wd", "--", sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_CHECKOUT,
            env={**os.environ, "PYTHONPATH": f"{_CHECKOUT}:{MODULES}"},
        )
        assert owner.stdin
        assert owner.stdout
        leader = int(owner.stdout.readline())
        warden = _children(owner.pid)[0]
        all_of_it = _below(owner.pid)
        assert {leader, warden} < set(all_of_it)
        assert _cgroups_of(warden)
        ended = [os.pidfd_open(pid) for pid in (leader, warden)]
        try:
            if end == "in order":
                owner.stdin.close()
            else:
                os.kill(owner.pid if end == "owner killed" else warden, signal.SIGKILL)
            for descriptor in ended:
                assert select.select([descriptor], [], [], 20 * patience())[0], "still alive"
        finally:
            owner.kill()
            owner.wait()
            owner.stdout.close()
            for descriptor in ended:
                os.close(descriptor)
        # A killed warden's orphans stay as zombies until this machine's init has noticed.
        wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in all_of_it), 20, "the processes' end"
        )
        assert _mounts(place) == before
    if end == "warden killed":  # empty control groups are all that it could not remove; the next one does
        with Host(cache_directory()):
            pass
    assert _cgroups_of(warden) == []
    assert list((cache_directory() / "host").iterdir()) == []
    assert not list(Path("/run/systemd/nspawn").rglob("credferry-host*"))


@contextmanager
def _mount_namespace() -> Iterator[int]:
    """A process with mounts of its own: this machine's may change meanwhile, as others boot hosts, too."""
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        try:
            yield holder.pid
        finally:
            holder.stdin.close()


def _mounts(process: int) -> str:
    return Path(f"/proc/{process}/mountinfo").read_text()


def _cgroups_of(warden: int) -> list[str]:
    # Not by rglob(): it fails where a directory goes while it looks, as other hosts' units end at any time.
    name = f"credferry-host-{warden}"
    return [place for place, directories, _ in os.walk("/sys/fs/cgroup") if name in directories]


def _below(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    for child in _children(pid):
        with suppress(OSError):  # one that has ended meanwhile
            found += [child, *_below(child)]
    return found


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stat(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _names(host: Host, directory: str) -> set[str]:
    return {path.name for path in host.path(directory).iterdir()}


def _of_generation(number: str) -> list[str]:
    directory = f"/run/secrets.d/{number}"
    return ["/run/secrets.d", directory, f"{directory}/db", f"{directory}/db/password"]


@contextmanager
def _clean(producer: _P) -> Iterator[_P]:
    try:
        yield producer
    finally:
        producer.remove()


@contextmanager
def _watch(directory: Path, name: str = "") -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Watch a directory from outside; the function returns what has happened in it since it was last called.

    Only entries with ``name`` in their own count: a unit of the host may start or end at any time, and make
    or remove a directory there. inotify queues an event before the system call that causes it returns, so
    there is nothing to wait for.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    mask = _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO
    assert libc.inotify_add_watch(descriptor, os.fsencode(directory), mask) > 0

    def events() -> list[tuple[str, str]]:
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return []
        found = []
        while data:
            _, bits, _, length = struct.unpack_from("iIII", data)
            entry = data[16 : 16 + length].rstrip(b"\0").decode()
            kind = _NAMES[bits & ~_IN_ISDIR] + (" dir" if bits & _IN_ISDIR else "")
            if name in entry:
                found.append((kind, entry))
            data = data[16 + length :]
        return found

    try:
        yield events
    finally:
        os.close(descriptor)
