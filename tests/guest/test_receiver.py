# SPDX-License-Identifier: MIT
"""The receiver in booted guests, with real systemd, systemd-creds and vsock; a small client pushes to it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from credferry.agent.sealing.credential import seal
from credferry.agent.sealing.keys import CredentialKey, create_key, read_key
from tests.support import hypervisor
from tests.support.guest import (
    COMMAND_LINE,
    DONE,
    Variant,
    guest,
    receiver,
    sealing_identity,
    vsock_device,
)
from tests.support.host import patience
from tests.support.hypervisor.harness import Hypervisor
from tests.support.receiver import MANIFEST, Block, answer, manifest, push

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_BOOT_SECONDS: Final = 180.0
_FREE_SECONDS: Final = 100.0
"""A receiver ends after 90 s at the latest."""
_MACHINE_ID: Final = "5eed5eed5eed5eed5eed5eed5eed5eed"
_FIRST: Final = {"API_KEY": b"first", "TOKEN": b"token", "OTHER": b"same"}


def _receipt(generation: int) -> str:
    return f"{generation:032x}"


@dataclass(slots=True)
class Running:
    """A booted guest, its console, and the host's side of its vsock."""

    console: Hypervisor
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

    def connect(self) -> socket.socket:
        """A connection to the receiver, as cloud-hypervisor's socket gives it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(os.fspath(self.vsock))
        connection.sendall(b"CONNECT 900\n")
        said = b""
        while not said.endswith(b"\n"):
            byte = connection.recv(1)
            assert byte, "nobody listens on port 900"
            said += byte
        assert re.fullmatch(rb"OK [0-9]+\n", said)
        return connection

    def rotate(self, **changed: bytes) -> list[str]:
        """Push the next generation with these values in it; what the guest holds then is remembered."""
        values = {**self.values, **changed}
        lines = self.push(self.held + 1, values)
        if lines and lines[-1].startswith("done "):
            self.values, self.held = values, self.held + 1
        return lines

    def push(self, generation: int, values: Mapping[str, bytes]) -> list[str]:
        """What the guest says to a whole push, its hello included; the boot ID is left out."""
        lines = answer(self.connect(), push(self.text(generation, values), self.blocks(values)))
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


@pytest.fixture(scope="module", params=list(Variant))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One guest of each systemd: 252 gets its manifest and a token sealed, 257 gets all plain."""
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
                "app": ("api", ["LoadCredential=api:API_KEY"]),
                "token": ("TOKEN", [token]),
                "other": ("OTHER", ["LoadCredential=OTHER"]),
            }
        ),
        **sealing_identity(_MACHINE_ID, (directory / "secret").read_bytes()),
    }
    made = Running(None, directory / "vsock", key, sealed)  # type: ignore[arg-type]  # set below
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


@pytest.mark.parametrize("running", [Variant.BOOKWORM], indirect=True)
def test_a_unit_that_fails_gets_its_old_value_back(running: Running) -> None:
    """The receiver restores all old values, also those of other units. The next good push works."""
    before = dict(running.values)
    starts = {name: len(running.starts(name)) for name in ("app", "token")}
    assert running.rotate(API_KEY=b"bad", TOKEN=b"never")[1:] == ["failed unit app.service"]
    running.wait_started("app", before["API_KEY"], starts["app"] + 2)
    running.wait_started("token", before["TOKEN"], starts["token"] + 2)
    assert running.rotate(API_KEY=b"good")[-1] == f"done {_receipt(running.held)}"
    running.wait_started("app", b"good", starts["app"] + 3)


@pytest.mark.parametrize("running", [Variant.BOOKWORM], indirect=True)
def test_many_pushes_in_a_row_never_hit_the_start_limit(running: Running) -> None:
    """By default systemd allows five starts in ten seconds; the receiver's own restarts do not count."""
    before = len(running.starts("app"))
    for number in range(1, 7):
        assert running.rotate(API_KEY=b"rotation %d" % number)[1] == "unit app.service restarted"
    running.wait_started("app", b"rotation 6", before + 6)


@pytest.mark.parametrize("running", [Variant.BOOKWORM], indirect=True)
def test_refusals_touch_nothing(running: Running) -> None:
    """Garbage, an older generation and a second push at once are refused; a good push works then."""
    starts = len(running.starts("app"))
    assert running.push(running.held - 1, {**running.values, "API_KEY": b"replayed"})[1:] == ["failed older"]
    garbage = os.urandom(4096) + b"\n"
    lines = _once_free(lambda: answer(running.connect(), garbage))
    assert lines[1:] == ["failed protocol"]
    with running.connect() as first:
        assert first.recv(4096).startswith(b"credferry 1 ")
        assert running.rotate(API_KEY=b"busy") == ["failed busy"]
    assert len(running.starts("app")) == starts
    lines = _once_free(lambda: running.rotate(API_KEY=b"afterwards"))
    assert lines[1:] == ["unit app.service restarted", f"done {_receipt(running.held)}"]
    running.wait_started("app", b"afterwards", starts + 1)


def _once_free(ask: Callable[[], list[str]]) -> list[str]:
    """The first answer that is not ``busy``: the receiver before may not have ended yet."""
    deadline = time.monotonic() + _FREE_SECONDS * patience()
    while (lines := ask()) in ([], ["failed busy"]):
        assert time.monotonic() < deadline, f"still busy after {_FREE_SECONDS} s"
    return lines
