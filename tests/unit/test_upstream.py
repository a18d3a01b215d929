# SPDX-License-Identifier: MIT
"""The stand-alone wrapper for microvm.nix: it gives what cloud-hypervisor's own parser gives, or refuses."""

from __future__ import annotations

import base64
import contextlib
import json
import runpy
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.host import patience, wait_until
from tests.support.kernel import kernel
from tests.support.nix import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = CHECKOUT / "contrib/upstream/oem-secrets-files.py"
WRAPPER: dict[str, Any] = runpy.run_path(str(PROGRAM))
CASES = json.loads((CHECKOUT / "tests/data/microvm-nix-commands.json").read_text())["cases"]
RECORDED = [case for case in CASES if case.get("vm_config") is not None]
HYPERVISOR = CHECKOUT / "tests/support/hypervisor/__main__.py"


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_a_recorded_command_line(case: dict[str, Any]) -> None:
    """Gives the recorded document and leaves the recorded arguments, or is refused as a whole."""
    try:
        vm, stay = WRAPPER["document"](case["argv"][1:])
    except WRAPPER["RefusedError"]:
        return
    assert not case.get("add_net")
    assert vm == case["vm_config"]
    assert stay == case["vmm_argv"][1:]


def test_what_microvm_nix_writes_by_itself_is_understood() -> None:
    """Shares, volumes, taps, huge pages and a balloon are not among what is refused."""
    understood = set()
    for case in RECORDED:
        try:
            WRAPPER["document"](case["argv"][1:])
        except WRAPPER["RefusedError"]:
            continue
        understood.add(case["name"])
    assert {
        "two CPUs, 1 GiB, vsock 3 (README style)",
        "store from virtiofs share, no disk at all",
        "eight CPUs multi-queue tap and disks",
        "balloon with deflate on oom (default) and 0 initial",
        "huge pages",
        "one raw volume",
        "two credentials without vsock",
    } <= understood


def test_a_vm_starts_with_its_files(tmp_path: Path) -> None:
    """The stand-in boots the VM with the file's value, which is in no argument, and SIGTERM ends both."""
    (tmp_path / "kernel").write_bytes(kernel())
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "oem-secret.API_KEY").write_bytes(b"the value\n")
    (credentials / "another").write_bytes(b"not for the guest")
    real = tmp_path / "cloud-hypervisor"
    real.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/argv\nexec {sys.executable} -I {HYPERVISOR} "$@"\n')
    real.chmod(0o755)
    api = tmp_path / "api.sock"
    given = ["--cpus", "boot=1", "--memory", "size=64M", "--kernel", f"{tmp_path}/kernel"]
    started = subprocess.Popen(
        [sys.executable, "-I", str(PROGRAM), "--real", str(real), *given, "--api-socket", str(api)],
        env={
            "CREDENTIALS_DIRECTORY": str(credentials),
            "CREDFERRY_STANDIN_BOOT": "0",
            "PATH": "/usr/bin:/bin",
        },
    )
    try:
        wait_until(lambda: asked(api).get("state") == "Running", 30, "the VM runs")
        info = asked(api)
        assert info["config"]["platform"]["oem_strings"] == [
            "io.systemd.credential.binary:API_KEY=" + base64.b64encode(b"the value\n").decode()
        ]
        assert "API_KEY" not in (tmp_path / "argv").read_text()
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(30 * patience())


def asked(api: Path) -> dict[str, Any]:
    """What the API says of the VM; nothing while it cannot."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(30 * patience())
        connection.connect(str(api))
        connection.sendall(b"GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    found: dict[str, Any] = json.loads(body) if b" 200 " in head else {}
    return found
