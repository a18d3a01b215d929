# SPDX-License-Identifier: MIT
"""The receiver in booted guests, with real systemd, systemd-creds and vsock; a small client pushes to it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from credferry.agent.sealing.credential import seal
from credferry.agent.sealing.keys import CredentialKey, create_key, read_key
from tests.support import hypervisor
from tests.support.guest import (
    COMMAND_LINE,
    DONE,
    SHELL_PORT,
    OverlayFile,
    Variant,
    connect_inside,
    guest,
    receiver,
    sealing_identity,
    shell,
    vsock_client,
    vsock_device,
)
from tests.support.host import patience
from tests.support.hypervisor.harness import Hypervisor
from tests.support.nightly import variants
from tests.support.receiver import MANIFEST, Block, answer, manifest, push

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_BOOT_SECONDS: Final = 180.0
_FREE_SECONDS: Final = 100.0
"""A receiver ends after 90 s at the latest."""
_MACHINE_ID: Final = "5eed5eed5eed5eed5eed5eed5eed5eed"
_FIRST: Final = {
    "API_KEY": b"first",
    "TOKEN": b"token",
    "OTHER": b"same",
    "PAIR": b"pair",
    "SLOW": b"slow",
    "FRESH": b"fresh",
}
# By default it is five starts in ten seconds, which an emulated guest is too slow for.
_START_LIMIT: Final = ("[Unit]", "StartLimitIntervalSec=1h", "StartLimitBurst=2")
_RECEIVER: Final = "credferry-receive@*.service"
_NOTES_RELOADS: Final = """/bin/sh -c 'cat "$CREDENTIALS_DIRECTORY/FRESH" >>/run/reloads'"""
_HOLD: Final = "/bin/sh -c 'if [ -p /run/hold ]; then echo >/run/held; read x </run/hold; fi'"


def _receipt(generation: int) -> str:
    return f"{generation:032x}"


@dataclass(slots=True)
class Running:
    """A booted guest, its console, and the host's side of its vsock."""

    console: Hypervisor
    variant: Variant
    vsock: Path
    key: CredentialKey
    sealed: frozenset[str]
    held: int = 1
    values: dict[str, bytes] = field(default_factory=lambda: dict(_FIRST))

    def blocks(self, values: Mapping[str, bytes]) -> dict[str, Block]:
        """Each value in the form in which this guest gets it."""
        return {name: self.block(name, value) for name, value in values.items()}

    def block(self, name: str, value: bytes) -> Block:
        """One value, sealed if this guest gets it sealed."""
        if name in self.sealed:
            return Block.sealed(value, seal(value, name=name, key=self.key))
        return Block.plain(value)

    def text(self, generation: int, values: Mapping[str, bytes]) -> Block:
        """The manifest of a generation."""
        key = "guest" if MANIFEST in self.sealed else "none"
        text = manifest(generation, self.blocks(values), key=key, receipt=_receipt(generation))
        return self.block(MANIFEST, text)

    def connect(self, port: int = 900) -> socket.socket:
        """A connection to a port of the guest, the receiver's by default, as cloud-hypervisor gives it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60 * patience())
        connection.connect(os.fspath(self.vsock))
        connection.sendall(b"CONNECT %d\n" % port)
        said = b""
        while not said.endswith(b"\n"):
            byte = connection.recv(1)
            assert byte, f"nobody listens on port {port}"
            said += byte
        assert re.fullmatch(rb"OK [0-9]+\n", said)
        return connection

    def greeted(self) -> socket.socket:
        """A connection to the receiver that has said hello; systemd refuses one while others are ending."""
        deadline = time.monotonic() + _FREE_SECONDS * patience()
        while True:
            connection = self.connect()
            with suppress(ConnectionResetError):  # which is how systemd refuses it
                if connection.recv(4096).startswith(b"credferry 1 "):
                    return connection
            connection.close()
            assert time.monotonic() < deadline, f"no hello after {_FREE_SECONDS} s"

    def run(self, script: str) -> str:
        """What a script prints that a shell of root's runs in the guest."""
        with self.connect(SHELL_PORT) as connection:
            connection.settimeout(_BOOT_SECONDS * patience())
            connection.sendall(f"{script}\nexit\n".encode())
            said = b""
            while data := connection.recv(65_536):
                said += data
        return said.decode()

    def sent(self, generation: int, values: Mapping[str, bytes]) -> bytes:
        """A whole push, as the host sends it."""
        return push(self.text(generation, values), self.blocks(values))

    def rotate(self, **changed: bytes) -> list[str]:
        """Push the next generation with these values in it; what the guest holds then is remembered."""
        values = {**self.values, **changed}
        lines = self.push(self.held + 1, values)
        if lines and lines[-1].startswith("done "):
            self.values, self.held = values, self.held + 1
        return lines

    def push(self, generation: int, values: Mapping[str, bytes]) -> list[str]:
        """What the guest says to a whole push once it takes one, its hello included, without the boot ID."""
        lines = _once_free(lambda: answer(self.connect(), self.sent(generation, values)))
        return [re.sub(r"^credferry 1 [0-9a-f]{32} ", "credferry 1 ", line) for line in lines]

    def starts(self, unit: str) -> list[str]:
        """The values that a unit has printed at its starts, as digests; the newest is last."""
        pattern = re.compile(rf"credferry-guest: {unit} ([0-9a-f]{{16}})")
        return [found[1] for line in self.console.console if (found := pattern.search(line))]

    def wait_started(self, unit: str, value: bytes, times: int) -> None:
        """Wait until a unit has printed this value, and has started so often in all."""
        self.console.wait_for_line(f"credferry-guest: {unit} ", 60, times=times)
        assert self.starts(unit)[-1] == hashlib.sha256(value).hexdigest()[:16]
        assert len(self.starts(unit)) == times


def _oem_string(name: str, block: Block) -> str:
    binary = ".binary" if block.kind == "plain" else ""
    return f"io.systemd.credential{binary}:{name}={block.content.decode()}"


@pytest.fixture(scope="module", params=[Variant.BOOKWORM, *variants(Variant.TRIXIE, Variant.TESTING)])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One guest of each systemd: 252 gets its manifest and a token sealed, the others get all plain."""
    variant: Variant = request.param
    directory = tmp_path_factory.mktemp("receiver")
    create_key(directory / "secret", machine_id=_MACHINE_ID)
    key = read_key(directory / "secret", machine_id=_MACHINE_ID)
    sealed = frozenset({MANIFEST, "TOKEN"} if variant is Variant.BOOKWORM else ())
    token = (
        "LoadCredentialEncrypted=TOKEN:/run/credentials/@system/TOKEN" if sealed else "ImportCredential=TOK*"
    )
    overlay = {
        **receiver(
            {
                "app": ("api", ["LoadCredential=api:API_KEY", *_START_LIMIT]),
                "token": ("TOKEN", [token]),
                "other": ("OTHER", ["LoadCredential=OTHER"]),
                "a-second": (
                    "PAIR",
                    ["LoadCredential=PAIR", "[Unit]", "Requires=b-first.service", "After=b-first.service"],
                ),
                "b-first": ("PAIR", ["LoadCredential=PAIR"]),
                "fresh": (
                    "FRESH",
                    ["LoadCredential=FRESH", "RefreshOnReload=credentials", f"ExecReload={_NOTES_RELOADS}"],
                ),
                "slow": ("SLOW", ["LoadCredential=SLOW", f"ExecStartPre={_HOLD}"]),
            }
        ),
        **shell(),
        "/etc/systemd/system/credferry-receive@.service.d/log.conf": OverlayFile(
            b"[Service]\nStandardError=append:/run/receiver.log\n"
        ),
        **sealing_identity(_MACHINE_ID, (directory / "secret").read_bytes()),
        **vsock_client(variant),
    }
    made = Running(None, variant, directory / "vsock", key, sealed)  # type: ignore[arg-type]  # set below
    first = {**made.blocks(_FIRST), MANIFEST: made.text(1, _FIRST)}
    strings = [_oem_string(name, block) for name, block in first.items()]
    chosen = guest(variant)
    shutil.copy(vsock_device(), directory / "vhost-device-vsock")
    # fmt: off
    command = [
        "--cpus", "boot=1", "--memory", "shared=on,size=512M", "--console", "null", "--serial", "tty",
        "--kernel", str(chosen.kernel), "--initramfs", str(chosen.initramfs(overlay, directory)),
        "--cmdline", COMMAND_LINE, "--platform", f"oem_strings=[{','.join(strings)}]",
        "--vsock", f"cid=5,socket={made.vsock}",
    ]
    # fmt: on
    program = hypervisor.install(directory / "cloud-hypervisor")
    path = {"PATH": f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"}
    with Hypervisor(program, command, directory, environment=path) as made.console:
        made.console.wait_for_line(DONE, _BOOT_SECONDS)
        yield made


def test_a_value_arrives_and_no_other_unit_is_touched(running: Running) -> None:
    """The unit that loads the new value restarts; the others go on, and a repeated push touches none."""
    before = {name: len(running.starts(name)) for name in ("app", "token", "other")}
    held = running.held
    assert running.rotate(API_KEY=b"second") == [
        f"credferry 1 {held} system-directory",
        "unit app.service restarted",
        f"done {_receipt(held + 1)}",
    ]
    running.wait_started("app", b"second", before["app"] + 1)
    assert running.push(running.held, running.values) == [
        f"credferry 1 {held + 1} system-directory",
        f"done {_receipt(held + 1)}",
    ]
    assert [len(running.starts(name)) for name in before] == [
        before["app"] + 1,
        before["token"],
        before["other"],
    ]


def test_a_sealed_or_imported_value_arrives(running: Running) -> None:
    """So does a value that the guest's own key opens, or that a unit imports by a pattern."""
    before = len(running.starts("token"))
    assert running.rotate(TOKEN=b"another token")[1:] == [
        "unit token.service restarted",
        f"done {_receipt(running.held)}",
    ]
    running.wait_started("token", b"another token", before + 1)


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_a_unit_reloads_if_systemd_refreshes_its_credentials(running: Running) -> None:
    """From systemd 260 on it has the new value then, and goes on. An older systemd restarts it."""
    before = len(running.starts("fresh"))
    can_reload = running.variant.systemd >= 260
    assert running.rotate(FRESH=b"refreshed")[1:] == [
        f"unit fresh.service {'reloaded' if can_reload else 'restarted'}",
        f"done {_receipt(running.held)}",
    ]
    assert running.run("cat /run/credentials/fresh.service/FRESH") == "refreshed"
    assert running.run("cat /run/reloads 2>/dev/null") == ("refreshed" if can_reload else "")
    running.wait_started("fresh", b"fresh" if can_reload else b"refreshed", before + (not can_reload))


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_a_process_in_the_guest_is_no_host(running: Running) -> None:
    """It reaches the receiver's port by the loopback of vsock, and is refused; the host is not."""
    before = len(running.starts("app"))
    assert running.run(connect_inside(1)) == "failed peer\n"
    assert running.run(connect_inside(5)) == "failed peer\n"
    lines = running.rotate(API_KEY=b"from the host")
    assert lines[1:] == ["unit app.service restarted", f"done {_receipt(running.held)}"]
    running.wait_started("app", b"from the host", before + 1)


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_a_unit_that_fails_gets_its_old_value_back(running: Running) -> None:
    """The receiver restores all old values, also those of other units. The next good push works."""
    before = dict(running.values)
    starts = {name: len(running.starts(name)) for name in ("app", "token")}
    assert running.rotate(API_KEY=b"bad", TOKEN=b"never")[1:] == ["failed unit app.service"]
    running.wait_started("app", before["API_KEY"], starts["app"] + 2)
    running.wait_started("token", before["TOKEN"], starts["token"] + 2)
    assert running.rotate(API_KEY=b"good")[-1] == f"done {_receipt(running.held)}"
    running.wait_started("app", b"good", starts["app"] + 3)


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_many_pushes_in_a_row_never_hit_the_start_limit(running: Running) -> None:
    """The receiver's own restarts do not count: more of them succeed than systemd allows starts."""
    before = len(running.starts("app"))
    for number in range(1, 4):
        assert running.rotate(API_KEY=b"rotation %d" % number)[1] == "unit app.service restarted"
    running.wait_started("app", b"rotation 3", before + 3)


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_refusals_touch_nothing(running: Running) -> None:
    """Garbage, an older generation and a second push at once are refused; a good push works then."""
    starts = len(running.starts("app"))
    assert running.push(running.held - 1, {**running.values, "API_KEY": b"replayed"})[1:] == ["failed older"]
    garbage = os.urandom(4096) + b"\n"
    lines = _once_free(lambda: answer(running.connect(), garbage))
    assert lines[1:] == ["failed protocol"]
    with running.greeted():
        sent = running.sent(running.held + 1, {**running.values, "API_KEY": b"busy"})
        assert _once_free(lambda: answer(running.connect(), sent), not_yet=([],)) == ["failed busy"]
    assert len(running.starts("app")) == starts
    lines = running.rotate(API_KEY=b"afterwards")
    assert lines[1:] == ["unit app.service restarted", f"done {_receipt(running.held)}"]
    running.wait_started("app", b"afterwards", starts + 1)


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_units_that_order_each_other_start_once(running: Running) -> None:
    """Both load what changed: each starts once, and the one that needs the other starts after it."""
    before = len(running.starts("a-second"))
    lines = running.rotate(PAIR=b"both")
    assert lines[1:] == [
        "unit a-second.service restarted",
        "unit b-first.service restarted",
        f"done {_receipt(running.held)}",
    ]
    running.wait_started("b-first", b"both", before + 1)
    running.wait_started("a-second", b"both", before + 1)
    order = [line for line in running.console.console if "a-second" in line or "b-first" in line]
    assert "a-second" in order[-1]


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_a_masked_unit_fails_the_push(running: Running) -> None:
    """It goes on with its old value, and is not in the way of a push that it has no part in."""
    before, units = len(running.starts("other")), "/etc/systemd/system"
    away = f"mv {units}/other.service /root-other; ln -s /dev/null {units}/other.service"
    assert running.run(f"{away}; systemctl daemon-reload") == ""
    assert running.rotate(OTHER=b"masked")[1:] == ["failed unit other.service"]
    assert running.rotate(API_KEY=b"not masked")[1:] == [
        "unit app.service restarted",
        f"done {_receipt(running.held)}",
    ]
    assert running.run(f"mv /root-other {units}/other.service; systemctl daemon-reload") == ""
    assert running.run("systemctl is-active other.service") == "active\n"
    assert len(running.starts("other")) == before


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_a_receiver_killed_while_a_unit_restarts(running: Running) -> None:
    """PID 1 goes on with the restart; the next push waits for it, and starts the unit no second time."""
    before, values = len(running.starts("slow")), {**running.values, "SLOW": b"killed"}
    sent = running.sent(running.held + 1, values)
    assert running.run("mkfifo /run/hold /run/held") == ""
    with running.greeted() as first:
        first.sendall(sent)
        assert running.run(f"read x </run/held; systemctl kill --signal=KILL '{_RECEIVER}'") == ""
    with running.greeted() as second:
        second.sendall(sent)
        assert running.run("echo >/run/hold; rm /run/hold /run/held") == ""
        with second.makefile("r", encoding="ascii") as reader:
            assert [line.rstrip() for line in reader] == [
                "unit slow.service restarted",
                f"done {_receipt(running.held + 1)}",
            ]
    running.values, running.held = values, running.held + 1
    running.wait_started("slow", b"killed", before + 1)


_LOOK: Final = """
read x </run/held
cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | grep -aFf /dev/shm/canary && echo 'it is shown'
echo >/run/hold
rm /run/hold /run/held
"""
_SEARCH: Final = """
while read -r _ place type _; do
    case $type$place in */dev/shm) ;; rootfs* | tmpfs* | ramfs* | devtmpfs*)
        find "$place" -xdev -type f -exec grep -aFlf /dev/shm/canary {} + ;;
    esac
done </proc/self/mounts
systemctl show '*' | grep -aFf /dev/shm/canary && echo 'a unit shows it'
rm /dev/shm/canary
"""


@pytest.mark.parametrize("running", variants(*Variant), indirect=True)
def test_a_value_is_nowhere_in_the_guest_but_in_its_credentials(running: Running) -> None:
    """A push shows it in no argument and no environment, and leaves it in no file, unit or console."""
    names = ("API_KEY", "TOKEN", "SLOW")
    # The guest's units do not come up with "bad" in a value.
    values = {name: secrets.token_hex(24).replace("b", "x").encode() for name in names}
    forms = [form.decode() for value in values.values() for form in (value, base64.b64encode(value))]
    running.run(f"mkfifo /run/hold /run/held; cat >/dev/shm/canary <<END\n{chr(10).join(forms)}\nEND")
    sent = running.sent(running.held + 1, {**running.values, **values})
    with running.greeted() as connection:
        connection.sendall(sent)
        assert running.run(_LOOK) == ""  # while the receiver waits for slow.service
        with connection.makefile("r", encoding="ascii") as reader:
            assert list(reader)[-1] == f"done {_receipt(running.held + 1)}\n"
    running.values, running.held = {**running.values, **values}, running.held + 1
    found = running.run(_SEARCH).splitlines()
    assert [line for line in found if not line.startswith("/run/credentials/")] == []
    assert {"/run/credentials/app.service/api", "/run/credentials/token.service/TOKEN"} <= set(found)
    assert not any(form in line for form in forms for line in running.console.console)


def _once_free(
    ask: Callable[[], list[str]], not_yet: Sequence[list[str]] = ([], ["failed busy"])
) -> list[str]:
    """The first other answer: the receiver before, or systemd's count of it, may not be over yet."""
    deadline = time.monotonic() + _FREE_SECONDS * patience()
    while (lines := ask()) in not_yet:
        assert time.monotonic() < deadline, f"still {lines} after {_FREE_SECONDS} s"
    return lines
