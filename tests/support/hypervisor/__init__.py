# SPDX-License-Identifier: MIT
"""A stand-in for cloud-hypervisor v53, over QEMU, for machines where KVM cannot boot a guest.

It has the real one's option grammar, HTTP API, event monitor, limits and vices (it prints values that it
cannot parse, shows OEM strings in ``vm.info``, keeps old strings across a guest's reboot, and acts on no
request and no signal while it creates the VM again). It boots a guest with software emulation: CPUs,
memory, kernel, initramfs, command line, serial console, SMBIOS UUID, serial number and OEM strings, power
button, disks, tap devices by name and by descriptor, virtiofs shares, and vsock where a
``vhost-device-vsock`` is installed. All other devices are accepted and shown in ``vm.info``, but not
emulated; neither are landlock and seccomp.

Environment: ``CREDFERRY_STANDIN_BOOT=0`` starts no QEMU (the VM "runs" until it is told to end);
``CREDFERRY_STANDIN_RECREATES=5`` works five seconds when a guest reboots;
``CREDFERRY_STANDIN_VERSION=46.0`` speaks as that version, with the option grammar of its time.

Standard library only, and independent of what it helps to test: the directory can be copied anywhere and
run by path.
"""

from __future__ import annotations

import shlex
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
PYTHON = "/usr/bin/python3"
BOOT_VARIABLE = "CREDFERRY_STANDIN_BOOT"
VERSION_VARIABLE = "CREDFERRY_STANDIN_VERSION"


def wrapper_script(directory: Path = DIRECTORY, *, boot: bool = True) -> str:
    """Text of a script that stands where cloud-hypervisor's binary would.

    ``directory`` is where the stand-in lies when the script runs; the script's process becomes it.
    """
    setting = "" if boot else f"{BOOT_VARIABLE}=0 "
    program = shlex.quote(str(directory / "__main__.py"))
    return f'#!/bin/sh\n{setting}exec {PYTHON} -IS {program} "$@"\n'


def install(path: Path, *, directory: Path = DIRECTORY, boot: bool = True) -> Path:
    """Write `wrapper_script` to a path, executable, and return the path."""
    path.write_text(wrapper_script(directory, boot=boot), encoding="utf-8")
    path.chmod(0o755)
    return path
