# SPDX-License-Identifier: MIT
"""A push, from the credentials that PID 1 opened to the guest's answer, over real sockets."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from credferry.launcher import hardening, pushing
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import PUSH_MANIFEST, Delivery, Kind, Secret, push_receipt
from credferry.launcher.push import peer, protocol, vsock
from tests.support.modules import MODULES
from tests.support.push_guest import BOOT_ID, PushGuest
from tests.unit.launcher.conftest import CANARY, VM, Vm, credentials, light_vm, sealed, tmp_path

if TYPE_CHECKING:
    from pathlib import Path

    from credferry.launcher.handoff import Manifest

__all__ = ["light_vm", "tmp_path"]  # fixtures

UNIT = "microvm@web.service"
VALUES = {"TOKEN": (Kind.PLAIN, CANARY.encode()), "KEY": (Kind.SEALED, sealed())}


@pytest.fixture(autouse=True)
def readable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own process stays as it is: pytest needs it to be dumpable, and its core limit."""
    monkeypatch.setattr(hardening, "hide", lambda: None)
    monkeypatch.setattr(hardening, "forbid_core_dumps", lambda: None)


def believe(_connection: socket.socket, _unit: str) -> None:
    """Takes any listener for the VM's, as the tests' guest is in no unit."""


def generation(directory: Path) -> Manifest:
    """A generation of a live VM, as PID 1 would open it. Its guest's manifest is short."""
    manifest = credentials(directory / "creds", VALUES, Delivery())
    text = f"receipt {push_receipt(manifest)}\n".encode()
    return credentials(directory / "creds", {**VALUES, PUSH_MANIFEST: (Kind.PLAIN, text)}, Delivery())


def asked(directory: Path, **changes: object) -> pushing.Push:
    """A push to the guest of `directory`, whose socket the launcher has noted."""
    runtime = directory / "run/credferry-vms" / VM
    runtime.mkdir(parents=True, exist_ok=True)
    vsock.note(str(directory / "v.sock"), runtime)
    push = pushing.Push(VM, UNIT, str(directory / "creds"), str(directory / "run"), believe)
    return push.but(**changes)


def refused(directory: Path, mode: str, hello: str | None = None) -> LaunchError:
    """How a push ends at a guest that misbehaves."""
    generation(directory)
    guest = PushGuest(directory / "v.sock", mode)
    guest.hello = hello or guest.hello
    with guest, pytest.raises(LaunchError) as caught:
        pushing.push(asked(directory))
    assert CANARY not in str(caught.value)
    return caught.value


def test_a_generation_reaches_the_guest_whole(tmp_path: Path) -> None:
    """Each credential is sent as its OEM string has it, the manifest first, and the line names the units."""
    manifest = generation(tmp_path)
    with PushGuest(tmp_path / "v.sock") as guest:
        said = pushing.push(asked(tmp_path))
    assert said == f"VM web holds generation {manifest.generation} now: app.service restarted"
    (pushed,) = guest.pushes
    assert pushed["kind"] == "plain"
    assert pushed["credentials"] == {
        "TOKEN": ["plain", base64.b64encode(CANARY.encode()).decode()],
        "KEY": ["sealed", sealed().decode()],
    }


def test_a_guest_that_is_silent_after_the_push_leaves_it_open() -> None:
    """Before it, nothing is sent, so another push may succeed; after it, what the guest holds is unknown."""
    hello, done = protocol.NoReceiverError("silent"), protocol.GuestRefusedError("internal", "")
    statuses = [pushing._failure(VM, hello, is_sent=is_sent).status for is_sent in (False, True)]
    assert statuses == [Exit.LATER, Exit.UNKNOWN]
    assert pushing._failure(VM, done, is_sent=True).status is Exit.UNKNOWN
    assert pushing._failure(VM, protocol.GuestRefusedError("key", ""), is_sent=True).status is Exit.GUEST


def test_a_large_generation_arrives_though_the_guest_is_slow(tmp_path: Path) -> None:
    """What does not fit into the socket's buffer is sent as the guest reads it."""
    large = b"x" * 900_000
    values = {"BIG": (Kind.PLAIN, large)}
    manifest = credentials(tmp_path / "creds", values, Delivery())
    text = f"receipt {push_receipt(manifest)}\n".encode()
    credentials(tmp_path / "creds", {**values, PUSH_MANIFEST: (Kind.PLAIN, text)}, Delivery())
    with PushGuest(tmp_path / "v.sock") as guest:
        pushing.push(asked(tmp_path))
    assert base64.b64decode(guest.pushes[0]["credentials"]["BIG"][1]) == large


def test_a_made_up_receipt_proves_nothing(tmp_path: Path) -> None:
    """Whoever answers without the generation's receipt is not believed."""
    error = refused(tmp_path, "forger")
    assert (error.status, "receipt that is not that of generation 7" in str(error)) == (Exit.UNKNOWN, True)


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("no-receiver", Exit.LATER, "nobody in the guest listens on vsock port 900"),
        ("full", Exit.LATER, "it handles another push"),
        ("endless", Exit.GUEST, "a line of more than 512 bytes"),
        ("units", Exit.UNKNOWN, "none of the protocol's"),
        ("gone", Exit.UNKNOWN, "closed the connection before it said how the push ended"),
        ("early", Exit.GUEST, "over a limit of the guest"),
        ("failed unit app.service", Exit.UNDONE, "the old ones are back (app.service)"),
        ("failed digest TOKEN", Exit.GUEST, "not the one in the manifest (TOKEN)"),
        ("failed some-new-reason", Exit.UNKNOWN, "refused the push: some-new-reason"),
        ("failed \x1b[2J", Exit.UNKNOWN, "not printable ASCII"),
        ("failed NOT a reason", Exit.UNKNOWN, "not in the protocol's words"),
        ("said done short", Exit.UNKNOWN, "none of the protocol's"),
        ("said unit app.service exploded", Exit.UNKNOWN, "none of the protocol's"),
    ],
)
def test_a_push_that_fails_says_why(tmp_path: Path, mode: str, status: Exit, words: str) -> None:
    """Each bad answer ends the push with one line and a status. Nothing that the guest says is unbounded.

    The status says whether the guest holds what it held, or whether nothing proves what it holds.
    """
    error = refused(tmp_path, mode)
    assert words in str(error)
    assert error.status is status
    assert error.hint


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (f"credferry 1 {BOOT_ID} 8 system-directory", "it holds a newer generation"),
        (f"credferry 1 {BOOT_ID} 6 -", "credential directory cannot be written"),
        (f"credferry 2 {BOOT_ID} 6 system-directory", "speaks version 2, and this host 1"),
        (f"credferry 1 {BOOT_ID} -6 system-directory", "not that of a receiver"),
        (f"credferry 1 {BOOT_ID} 99999999999 system-directory", "not that of a receiver"),
        (f"credferry 1 {BOOT_ID[1:]} 6 system-directory", "not that of a receiver"),
        ("SSH-2.0-OpenSSH_9.2", "not that of a receiver"),
        ("failed busy", "it handles another push"),
    ],
)
def test_nothing_is_sent_to_a_guest_that_cannot_take_it(tmp_path: Path, hello: str, words: str) -> None:
    """A guest that says the wrong thing first gets no credential."""
    generation(tmp_path)
    guest = PushGuest(tmp_path / "v.sock", hello=hello)
    with guest, pytest.raises(LaunchError, match=words):
        pushing.push(asked(tmp_path))
    assert guest.heard == b"CONNECT 900\n"


def test_a_guest_that_says_nothing_does_not_hold_the_push(tmp_path: Path) -> None:
    """The deadline ends it, as something that another push may find better."""
    with PushGuest(tmp_path / "v.sock", "silent"):
        connection = vsock.connect(str(tmp_path / "v.sock"), VM, 2)
        with connection, pytest.raises(protocol.NoReceiverError, match="did not answer in time"):
            protocol.Conversation(connection).open(hello=0.1)


def test_a_guest_that_stops_reading_does_not_hold_the_push() -> None:
    """The deadline of the whole push holds for what is sent, too."""
    ours, theirs = socket.socketpair()
    item = protocol.Item("BIG", Kind.PLAIN, Secret(b"x" * (4 << 20)))
    with ours, theirs, pytest.raises(protocol.NoReceiverError, match="did not answer in time"):
        protocol.Conversation(ours, seconds=0.2).deliver(item, [])


def test_a_neighbour_that_listens_gets_nothing(tmp_path: Path) -> None:
    """The listener is this test's process, which is in no VM's unit: not one byte is sent."""
    generation(tmp_path)
    guest = PushGuest(tmp_path / "v.sock")
    with guest, pytest.raises(LaunchError, match=f"does not belong to {UNIT}") as caught:
        pushing.push(asked(tmp_path, check=peer.check))
    assert caught.value.status is Exit.HYPERVISOR
    assert (guest.heard, guest.pushes) == (b"", [])


@pytest.mark.parametrize(
    ("cgroup", "is_own"),
    [
        ("/system.slice/system-microvm.slice/microvm@web.service", True),
        ("/microvm@web.service", True),
        ("/system.slice/microvm@web.service/vmm", True),
        ("/system.slice/microvm@webb.service", False),
        ("/system.slice/microvm@web2.service", False),
        ("/system.slice/microvm@far.service/microvm@web.service", False),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/microvm@web.service", False),
        ("/system.slice/other.service", False),
        ("/../microvm@web.service", False),
        ("/", False),
        ("", False),
    ],
)
def test_only_the_units_own_cgroup_counts(cgroup: str, is_own: bool) -> None:
    """A cgroup of this name below another unit, or below a user's manager, is somebody else's."""
    assert peer.is_in_unit(cgroup, UNIT) is is_own


def test_a_listener_that_has_ended_is_refused(tmp_path: Path) -> None:
    """Its PID may belong to another process by now: where the kernel can tell, that is found."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "v.sock"))
    script = f"import socket; socket.socket(fileno={listener.fileno()}).listen()"
    subprocess.run([sys.executable, "-c", script], pass_fds=[listener.fileno()], check=True)
    connection = vsock.connect(str(tmp_path / "v.sock"), VM, 2)
    with listener, connection, pytest.raises(LaunchError, match="does not belong to"):
        peer.check(connection, UNIT)


@pytest.mark.parametrize(
    ("content", "words", "status"),
    [
        (None, "does not run, or it was started without a vsock device", Exit.LATER),
        (b"relative/v.sock", "holds no path", Exit.HYPERVISOR),
        (b"/" + b"x" * 5000, "holds no path", Exit.HYPERVISOR),
        (b"", "holds no path", Exit.HYPERVISOR),
        (b"/a\0b", "holds no path", Exit.HYPERVISOR),
        (b"/nowhere/v.sock", "cannot be reached at its vsock socket /nowhere/v.sock", Exit.LATER),
    ],
)
def test_a_bad_note_ends_the_push(tmp_path: Path, content: bytes | None, words: str, status: Exit) -> None:
    """No note, or one that somebody else left, ends in a line that says what to do."""
    generation(tmp_path)
    push = asked(tmp_path)
    note = tmp_path / "run/credferry-vms" / VM / "vsock"
    note.unlink()
    if content is not None:
        note.write_bytes(content)
    with pytest.raises(LaunchError, match=words) as caught:
        pushing.push(push)
    assert caught.value.status is status


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_note_that_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    """A neighbour's link leads nowhere, and its pipe does not hold the push."""
    push = asked(tmp_path)
    note = tmp_path / "run/credferry-vms" / VM / "vsock"
    note.rename(tmp_path / "other")
    note.symlink_to(tmp_path / "other") if kind == "link" else os.mkfifo(note)
    generation(tmp_path)
    with pytest.raises(LaunchError, match=f"{note} "):
        pushing.push(push)


def test_a_socket_with_a_long_path_is_reached(tmp_path: Path) -> None:
    """A relative path may be short for cloud-hypervisor, and too long for a socket's address when whole."""
    generation(tmp_path)
    with PushGuest(tmp_path / "v.sock"):
        deep = tmp_path / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        push = asked(tmp_path)
        (tmp_path / "v.sock").rename(deep / "v.sock")
        vsock.note(str(deep / "v.sock"), tmp_path / "run/credferry-vms" / VM)
        assert "holds generation 7" in pushing.push(push)


def test_a_vm_that_is_not_live_gets_no_push(tmp_path: Path) -> None:
    """A generation without a manifest for the guest cannot be proved, so it is not sent."""
    credentials(tmp_path / "creds", VALUES, Delivery())
    with pytest.raises(LaunchError, match="VM web is not live") as caught:
        pushing.push(asked(tmp_path))
    assert caught.value.status is Exit.CREDENTIALS


def test_another_vms_generation_is_not_pushed(tmp_path: Path) -> None:
    """The push names its VM, and the credentials must be that one's."""
    generation(tmp_path)
    with pytest.raises(LaunchError, match="those of VM web, not of far"):
        pushing.push(asked(tmp_path, vm="far"))


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The launcher as a process of its own."""
    command = [sys.executable, "-m", "credferry.launcher", *words]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(MODULES), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (("--push",), "--push needs --vm", Exit.USAGE),
        (("--push", "--vm", "../x"), "--push needs --vm", Exit.USAGE),
        (("--push", "--vm"), "not known, or has no value", Exit.USAGE),
        (("--push", "--real", "x"), "not known, or has no value", Exit.USAGE),
        (("--push", "--vm=web"), "systemctl start credferry-push@web.service", Exit.CREDENTIALS),
    ],
)
def test_the_command_line_of_a_push(words: tuple[str, ...], said: str, status: Exit) -> None:
    """What cannot be done ends with one line and the status of its kind."""
    ended = run(*words)
    assert (ended.returncode, said in ended.stderr, ended.stderr.count("\n")) == (status, True, 1)


def test_the_command_checks_who_listens(tmp_path: Path) -> None:
    """The real command, with its real check, has no way around it. The VM it asks for does not run."""
    generation(tmp_path)
    ended = run("--push", "--vm", "web", CREDENTIALS_DIRECTORY=str(tmp_path / "creds"))
    assert ended.returncode == Exit.LATER
    assert "VM web does not run" in ended.stderr


def test_a_start_notes_the_vms_vsock_socket(light_vm: Vm) -> None:
    """Beside the stamp, as a whole path, whatever the command line calls it; none without a vsock."""
    light_vm.credentials(TOKEN=VALUES["TOKEN"])
    light_vm.start(*light_vm.argv("--vsock", "cid=5,socket=notify.vsock"))
    light_vm.wait_stamp()
    note = light_vm.runtime / "vsock"
    assert note.read_text() == str(light_vm.directory.resolve() / "notify.vsock")
    assert note.stat().st_mode & 0o777 == 0o644
