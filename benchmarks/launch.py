# SPDX-License-Identifier: MIT
"""What stands before the hypervisor adds to a VM's start: the launcher, a shell's wrapper, or nothing.

In the command channel the hypervisor is ``/bin/true``: the time ends when it does. In the api channel it is
`inside/vmm.py`, which ends when it is told to boot the VM; bare, when it listens.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from benchmarks.bed import INSIDE
from benchmarks.results import CREDFERRY, Row, row
from credferry.launcher.handoff import (
    LAUNCHED,
    MANIFEST_FILE,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    unit_credential,
    value_file,
)

if TYPE_CHECKING:
    from benchmarks.bed import Bed

BARE = "bare exec"
WRAPPER = "shell wrapper"
EMPTY = "python3 -I -S -c pass"

_TOP = "/run/bench/launch"
_ARGUMENTS = ["--cpus", "boot=1", "--kernel", "/usr/lib/credferry-test/kernel", "--memory", "size=64M"]


def measure_name(channel: Channel) -> str:
    """How tables name it."""
    return f"start of a VM, {channel.value} channel"


def measure(bed: Bed, *, quick: bool) -> list[Row]:
    """Measure both channels with 1, 10 and 100 credentials, all commands in turn."""
    rows = []
    for channel in LAUNCHED:
        for count in (10,) if quick else (1, 10, 100):
            case = f"{count} credential{'s' if count > 1 else ''}"
            _lay_out(bed, channel, count)
            taken = _run(bed, _commands(channel), 10 if quick else 40)
            for name, values in taken.items():
                rows.append(row(measure_name(channel), case, name, "ms", [values[::2], values[1::2]]))
                sys.stderr.write(f"{channel.value}, {case}: {name}: {rows[-1].middle:.1f} ms\n")
    return rows


def _lay_out(bed: Bed, channel: Channel, count: int) -> None:
    """Two directories, as PID 1 lays them out for a unit: for the launcher, and for the wrapper."""
    bed.host.run("rm", "-rf", _TOP)
    values = {f"SECRET_{number}": f"value-{number:026}".encode() for number in range(count)}
    entries = tuple(ManifestEntry(name, Kind.PLAIN, "0" * 16) for name in sorted(values))
    delivery = Delivery(channel, 257, plaintext_in_argv=channel is Channel.COMMAND)
    manifest = Manifest("v0", 1, "0" * 64, "0" * 32, delivery, entries)
    manifest = manifest.bound({name: Secret(value) for name, value in values.items()}, "0" * 64)
    bed.host.write(f"{_TOP}/ours/{unit_credential(MANIFEST_FILE)}", manifest.to_bytes())
    for name, value in values.items():
        bed.host.write(f"{_TOP}/ours/{unit_credential(value_file(name))}", value)
        bed.host.write(f"{_TOP}/theirs/shell_{name}", value)
    bed.host.run("mkdir", "-p", f"{_TOP}/credferry-vms/v0")


def _commands(channel: Channel) -> dict[str, list[str]]:
    launch = ["/usr/bin/credferry-launch", "--hypervisor-version", "53.0", "--real"]
    wrapper = f"CREDENTIALS_DIRECTORY={_TOP}/theirs"
    empty = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
    if channel is Channel.COMMAND:
        return {
            CREDFERRY: [*launch, "/bin/true", "--", *_ARGUMENTS],
            BARE: ["/bin/true", *_ARGUMENTS],
            WRAPPER: ["/usr/bin/env", wrapper, f"{INSIDE}/wrapper.sh", "command", "/bin/true", *_ARGUMENTS],
            EMPTY: empty,
        }
    vmm, socket = f"{INSIDE}/vmm", ["--api-socket", "api.sock"]
    return {
        CREDFERRY: [*launch, vmm, "--", *_ARGUMENTS, *socket],
        BARE: [vmm, *_ARGUMENTS, *socket, "--listen"],
        WRAPPER: ["/usr/bin/env", wrapper, f"{INSIDE}/wrapper.sh", "api", vmm],
        EMPTY: empty,
    }


def _run(bed: Bed, commands: dict[str, list[str]], times: int) -> dict[str, list[float]]:
    bed.host.write(f"{INSIDE}/vmm", f'#!/bin/sh\nexec /usr/bin/python3 -IS {INSIDE}/vmm.py "$@"\n', 0o755)
    environment = {
        "CREDENTIALS_DIRECTORY": f"{_TOP}/ours",
        "RUNTIME_DIRECTORY": f"{_TOP}/credferry-vms/v0",
        "INVOCATION_ID": "1" * 32,
    }
    asked = {"commands": commands, "environment": environment, "directory": _TOP, "times": times}
    done = bed.host.run(
        "/usr/bin/python3", "-IS", f"{INSIDE}/starts.py", stdin=json.dumps(asked), timeout=300
    )
    taken: dict[str, list[float]] = json.loads(done.stdout)
    return taken
