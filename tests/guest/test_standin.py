# SPDX-License-Identifier: MIT
"""The stand-in hypervisor boots real guests, and they read their credentials."""

from __future__ import annotations

import base64
import hashlib
import os
import select
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import hypervisor
from tests.support.guest import (
    COMMAND_LINE,
    DONE,
    STABLE,
    Guest,
    Variant,
    chroot_run,
    credential_printer,
    guest,
    reboots,
    sealing_identity,
)
from tests.support.host import patience
from tests.support.hypervisor.harness import Hypervisor

_BOOT_SECONDS = 120.0
_MACHINE_ID = "5eed5eed5eed5eed5eed5eed5eed5eed"
_API_KEY = b'not-a-secret\0with a NUL, a comma and a "quote"\n'
_TOKEN = b"sealed for one guest\n"


@pytest.fixture(scope="module", params=STABLE)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Each of the systemd versions that must work."""
    chosen: Variant = request.param
    return chosen


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The stand-in's command."""
    return hypervisor.install(tmp_path / "cloud-hypervisor")


def _line(name: str, value: bytes, systemd: int) -> str:
    return f"credferry-guest: {name} sha256={hashlib.sha256(value).hexdigest()[:16]} systemd={systemd}"


def _plain(name: str, value: bytes) -> str:
    return f"io.systemd.credential.binary:{name}={base64.b64encode(value).decode()}"


def _seal(variant: Variant, name: str, value: bytes, share: Path) -> str:
    """Seal with a key that systemd makes for a guest of this identity; the key stays in the directory."""
    sealed = chroot_run(
        variant,
        ["systemd-creds", "encrypt", "--with-key=host", f"--name={name}", "-", "-"],
        share=share,
        machine_id=_MACHINE_ID,
        stdin=value,
        environment={"SYSTEMD_CREDENTIAL_SECRET": "/share/secret"},
    )
    assert sealed.returncode == 0, sealed.stderr.decode()
    return f"io.systemd.credential:{name}={''.join(sealed.stdout.decode().split())}"


def _command(chosen: Guest, initramfs: Path, strings: list[str]) -> list[str]:
    # fmt: off
    return [
        "--cpus", "boot=2", "--memory", "size=512M", "--console", "null", "--serial", "tty",
        "--kernel", str(chosen.kernel), "--initramfs", str(initramfs), "--cmdline", COMMAND_LINE,
        "--platform", f"oem_strings=[{','.join(strings)}]",
    ]
    # fmt: on


def _document(chosen: Guest, initramfs: Path, strings: list[str]) -> dict[str, object]:
    return {
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "memory": {"size": 512 << 20},
        "payload": {
            "kernel": str(chosen.kernel),
            "initramfs": str(initramfs),
            "cmdline": COMMAND_LINE,
        },
        "console": {"mode": "Null"},
        "serial": {"mode": "Tty"},
        "platform": {"oem_strings": strings},
    }


def test_guests_read_plain_and_sealed_credentials_either_way(
    variant: Variant, program: Path, tmp_path: Path
) -> None:
    """Handed over on the command line and through the API, plain and sealed values arrive byte for byte, a
    missing one is told, and the power button ends guest and hypervisor with 0.
    """
    chosen = guest(variant)
    strings = [_plain("API_KEY", _API_KEY), _seal(variant, "TOKEN", _TOKEN, tmp_path)]
    # OEM strings of 64, 128 and 256 bytes, and one of 68: where QEMU does not end them itself, it shows.
    exact = {"LA": b"x" * 24, "LB": b"x" * 72, "LC": b"x" * 168, "LD": b"x" * 25}
    strings += [_plain(name, value) for name, value in exact.items()]
    overlay = {
        **credential_printer(plain=["API_KEY", "ABSENT", *exact], sealed=["TOKEN"]),
        **sealing_identity(_MACHINE_ID, (tmp_path / "secret").read_bytes()),
    }
    initramfs = chosen.initramfs(overlay, tmp_path)
    with ExitStack() as stack:
        by_command = Hypervisor(program, _command(chosen, initramfs, strings), tmp_path, label="command")
        stack.enter_context(by_command)
        by_api = stack.enter_context(Hypervisor(program, [], tmp_path, label="api"))
        assert by_api.request("PUT", "vm.create", _document(chosen, initramfs, strings)).status == 204
        assert by_api.request("PUT", "vm.boot").status == 204
        for running in (by_command, by_api):
            running.wait_for_line(DONE, _BOOT_SECONDS)
            told = [line for line in running.console if line.startswith("credferry-guest: ")]
            assert told == [
                _line("API_KEY", _API_KEY, variant.systemd),
                "credferry-guest: ABSENT missing",
                *(_line(name, value, variant.systemd) for name, value in exact.items()),
                _line("TOKEN", _TOKEN, variant.systemd),
                DONE,
            ]
            assert running.request("PUT", "vm.power-button").status == 204
        for running in (by_command, by_api):
            assert running.wait_for_end(_BOOT_SECONDS) == 0
            assert running.events[-3:] == ["vm/shutdown", "vm/deleted", "vmm/shutdown"]


def test_a_guest_reboot_keeps_the_old_strings(program: Path, tmp_path: Path) -> None:
    """A guest that reboots gets the same OEM strings again, in the same process, and events tell of it."""
    chosen = guest(Variant.TRIXIE)
    initramfs = chosen.initramfs({**credential_printer(plain=["API_KEY"]), **reboots()}, tmp_path)
    command = _command(chosen, initramfs, [_plain("API_KEY", _API_KEY)])
    with Hypervisor(program, command, tmp_path) as running:
        wanted = _line("API_KEY", _API_KEY, 257)
        assert running.wait_for_line(wanted, 2 * _BOOT_SECONDS, times=2) == [wanted, wanted]
        assert running.request("GET", "vmm.ping").body["pid"] == running.process.pid
        begun = ["vmm/starting", "vm/booting", "vm/booted", "vm/rebooting", "vm/rebooted"]
        assert running.events[:5] == begun
        assert running.request("PUT", "vmm.shutdown").status == 200
        assert running.wait_for_end() == 0


def test_a_guest_without_the_key_tells_that_a_sealed_value_stays_shut(program: Path, tmp_path: Path) -> None:
    """A sealed value that this guest cannot open keeps the unit from starting; no credential is printed."""
    chosen = guest(Variant.BOOKWORM)
    strings = [_plain("API_KEY", _API_KEY), _seal(Variant.BOOKWORM, "TOKEN", _TOKEN, tmp_path)]
    initramfs = chosen.initramfs(credential_printer(plain=["API_KEY"], sealed=["TOKEN"]), tmp_path)
    with Hypervisor(program, _command(chosen, initramfs, strings), tmp_path) as running:
        running.wait_for_line(DONE, _BOOT_SECONDS)
        told = [line for line in running.console if line.startswith("credferry-guest: ")]
        assert told == ["credferry-guest: API_KEY unopened", "credferry-guest: TOKEN unopened", DONE]


def test_a_killed_hypervisor_takes_its_guest_along_and_shows_no_string(
    program: Path, tmp_path: Path
) -> None:
    """QEMU's arguments and environment hold no OEM string, and it does not outlive a killed VMM."""
    chosen = guest(Variant.TRIXIE)
    canary = "io.systemd.credential:CANARY=canary-41d7"
    document = _document(chosen, chosen.base, [canary])
    with Hypervisor(program, [], tmp_path) as running:
        assert running.request("PUT", "vm.create", document).status == 204
        assert running.request("PUT", "vm.boot").status == 204
        (child,) = (
            Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
        )
        process = Path("/proc") / child
        assert process.joinpath("comm").read_text().startswith("qemu-system")
        for place in ("cmdline", "environ"):
            assert b"canary-41d7" not in process.joinpath(place).read_bytes()
        handle = os.pidfd_open(int(child))
        running.process.kill()
        ended, _, _ = select.select([handle], [], [], 20 * patience())
        os.close(handle)
        assert ended
