# SPDX-License-Identifier: MIT
"""credferry at work inside a throwaway host: VMs under microvm.nix's layout, configuration, agent."""

from __future__ import annotations

import base64
import json
import os
import shlex
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from credferry.launcher.handoff import PUSHED_PARENT, Stamp
from tests.support.boot import HostError
from tests.support.guest import COMMAND_LINE
from tests.support.host import POLL_SECONDS, Deadline, patience
from tests.support.installation import CHECKOUT, HYPERVISOR
from tests.support.kernel import kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.support.guest import Guest, OverlayEntry
    from tests.support.host import Host

CONFIG = "/etc/credferry/config.toml"
UNIT_STARTED = "39f53479d3a045ac8e11786248231fbf"
"""PID 1's own MESSAGE_ID for a unit that was started: counts restarts without asking us."""
LIGHT_KERNEL = "/usr/lib/credferry-test/kernel"
_PLAIN = "io.systemd.credential.binary:"
_SEALED = "io.systemd.credential:"


@dataclass(frozen=True, slots=True)
class VmFiles:
    """What a VM is made of: cloud-hypervisor's arguments, and variables of its unit.

    A light VM, the default, has a hypervisor process with all of its API, and no guest: the stand-in boots
    nothing, and a real cloud-hypervisor boots a kernel that halts.
    """

    arguments: Sequence[str] = ("--kernel", LIGHT_KERNEL, "--memory", "size=64M")
    environment: Mapping[str, str] = field(default_factory=lambda: {"CREDFERRY_STANDIN_BOOT": "0"})
    cpus: str = "boot=1"
    before: str = ""
    """Shell lines of the run script before the hypervisor is started."""
    launcher: bool = True


def broken_by_bad(credential: str) -> VmFiles:
    """A light VM whose program ends at once where the value of a credential has ``bad`` in it."""
    return VmFiles(before=f'! grep -q bad "$CREDENTIALS_DIRECTORY/credferry_value.{credential}" || exit 1')


class Deployment:
    """VMs of one host, served by credferry. ``close`` leaves the host as it was found."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.write(LIGHT_KERNEL, kernel())
        self._vms: list[str] = []
        self._started_before: dict[str, int] = {}

    def configure(self, text: str) -> None:
        """Write the configuration, with delays that suit tests unless ``text`` has tables of its own."""
        tables = "[source]\nquiet_seconds = 0.2\nresync_seconds = 1.0\n" if "[source]" not in text else ""
        # A start that has not been reported by then counts as one that worked, however slow the machine is.
        tables += "[rollout]\nretry_seconds = 0.2\nstamp_seconds = 60.0\n" if "[rollout]" not in text else ""
        self.host.write(CONFIG, tables + text)

    def add_vm(self, name: str, files: VmFiles | None = None) -> None:
        """Lay a VM out as microvm.nix does, wired to the launcher by the drop-in from contrib."""
        files = files or VmFiles()
        home = f"/var/lib/microvms/{name}"
        command = ["--cpus", files.cpus, *files.arguments, "--api-socket", f"{name}.sock"]
        wrapped = ["credferry-launch", "--real", HYPERVISOR, "--"] if files.launcher else [HYPERVISOR]
        script = f"#!/bin/bash\n{files.before}\nexec -a microvm@{name} {shlex.join([*wrapped, *command])}\n"
        self.host.write(f"{home}/current/bin/microvm-run", script, 0o755)
        drop_in = f"/etc/systemd/system/microvm@{name}.service.d"
        conf = (CHECKOUT / "contrib/systemd/credferry-vm.conf").read_text()
        if not files.launcher:
            conf = "[Service]\n"
        environment = "".join(f"Environment={key}={value}\n" for key, value in files.environment.items())
        self.host.write(f"{drop_in}/50-credferry.conf", conf + "RestartSec=200ms\n" + environment)
        self.host.run("systemctl", "daemon-reload")
        self._vms.append(name)
        self._started_before[name] = self._all_starts(name)

    def credferry(self, *arguments: str, check: bool = True) -> str:
        """Run the operator's command; its standard output. Raises `CommandError` for a bad status."""
        return self.host.run("credferry", *arguments, check=check).stdout

    def status(self) -> dict[str, Any]:
        """What ``credferry status --json`` says, by VM."""
        return {row["vm"]: row for row in json.loads(self.credferry("status", "--json", check=False))}

    def start_agent(self) -> None:
        """Start the daemon, and wait until it is ready."""
        self.host.run("systemctl", "reset-failed", "credferry.service", check=False)
        self.host.run("systemctl", "start", "credferry.service")

    def kill_agent(self) -> None:
        """Send SIGKILL to the daemon, and wait until systemd sees its end; an earlier start does nothing.

        systemd itself starts the daemon again 5 s later.
        """
        killed = self.host.unit("credferry.service")["MainPID"]
        self.host.kill("credferry.service")
        self.host.wait(
            lambda: self.host.unit("credferry.service")["MainPID"] != killed, 10, "the agent's end"
        )

    def start_vm(self, *names: str) -> None:
        """Start VMs, and wait until each runs with a stamp of its own."""
        for name in names:
            self.host.run("systemctl", "start", f"microvm@{name}.service")
        for name in names:
            self.host.wait(lambda name=name: self.stamp(name), 20, f"stamp of {name}")  # type: ignore[misc]  # a default binds the name

    def unit(self, name: str) -> dict[str, str]:
        """Properties of a VM's unit."""
        return self.host.unit(f"microvm@{name}.service")

    def stamp(self, name: str) -> Stamp | None:
        """The stamp of the VM's present invocation; None while there is none."""
        try:
            stamp = Stamp.from_bytes(self.host.path(f"/run/credferry-vms/{name}/stamp.json").read_bytes())
        except OSError:
            return None
        return stamp if stamp.invocation_id == self.unit(name)["InvocationID"] else None

    def delivered(self, name: str) -> dict[str, bytes]:
        """What the running VM's SMBIOS table holds, as the hypervisor's own API tells it."""
        info = self.vm_info(name)
        strings = info["config"]["platform"]["oem_strings"]
        plain = (each.removeprefix(_PLAIN).partition("=") for each in strings if each.startswith(_PLAIN))
        sealed = (each.removeprefix(_SEALED).partition("=") for each in strings if each.startswith(_SEALED))
        return {key: base64.b64decode(value) for key, _, value in plain} | {
            key: value.encode() for key, _, value in sealed
        }

    def vm_info(self, name: str) -> dict[str, Any]:
        """The hypervisor's ``vm.info``. A VM that has just been started is given time to be created."""
        path = self.host.path(f"/var/lib/microvms/{name}/work/{name}.sock")
        found: list[dict[str, Any]] = []

        def ask() -> bool:
            found[:] = _vm_info(path)
            return bool(found)

        self.host.wait(ask, 10, f"{name}: its vm.info")
        return found[0]

    def starts(self, name: str) -> int:
        """How often the VM's unit was started since it was added, by PID 1's own account."""
        return self._all_starts(name) - self._started_before[name]

    def wait_in_step(self, name: str, deadline: float = 20.0) -> None:
        """Wait until a VM runs what is published."""
        end = Deadline(deadline)
        seen, is_last = self._traces(name), False
        while not self._in_step(name):
            if is_last:
                raise HostError(f"{name} in step: not within {end.seconds:.0f} s")
            # Each question takes a processor for half a second, which the rotation needs: it is asked again
            # once something has moved and the VM is not known to be behind, or a second has passed.
            again = time.monotonic() + 1
            while (self._traces(name) == seen or self._is_behind(name)) and time.monotonic() < again:
                time.sleep(POLL_SECONDS)
            seen, is_last = self._traces(name), not end.left

    def wait_noted(self, name: str) -> None:
        """Wait until the agent has noted that a VM's restart went well: the VM is in step before that."""
        attempt = f"/var/lib/credferry/vms/{name}/rollout.json"
        self.host.wait(lambda: not self.host.path(attempt).exists(), 20, f"{name}'s restart noted")

    def wait_printed(self, name: str, text: str, deadline: float = 120.0) -> str:
        """Wait until a VM's guest has printed a line with this text; the line."""
        entry = self.host.wait_journal(
            lambda entry: text in entry.get("MESSAGE", ""), deadline, _SYSTEMD_UNIT=f"microvm@{name}.service"
        )
        return entry["MESSAGE"].strip()

    def close(self) -> None:
        """Stop everything and remove what was laid out, and what the journal has of it."""
        # The first sealing stays active once it was wanted, and would not run again.
        units = [f"microvm@{name}.service" for name in self._vms]
        units += ["credferry.service", "credferry-seal.service"]
        self.host.run("systemctl", "stop", *units, check=False)
        self.host.run("systemctl", "reset-failed", check=False)
        paths = [f"/etc/systemd/system/microvm@{name}.service.d" for name in self._vms]
        paths += [f"/var/lib/microvms/{name}" for name in self._vms]
        self.host.run("rm", "-rf", "/var/lib/credferry", "/etc/credferry", *paths)
        self.host.run("systemctl", "daemon-reload")
        # The next test may have a VM of the same name, and must not take these entries for its own.
        self.host.run("journalctl", "--sync")  # a rotation may come before what journald has yet to read
        self.host.run("journalctl", "--rotate", "--vacuum-size=1")
        self._vms.clear()

    def _all_starts(self, name: str) -> int:
        return len(self.host.journal(MESSAGE_ID=UNIT_STARTED, UNIT=f"microvm@{name}.service", _PID="1"))

    def _traces(self, name: str) -> list[tuple[int, int] | None]:
        """What moves when a VM is sealed for, is started, and is judged."""
        paths = (
            f"/var/lib/credferry/vms/{name}/current",
            f"/run/credferry-vms/{name}/stamp.json",
            "/var/lib/credferry/audit.json",
        )
        return [_identity(self.host.path(path, follow=False)) for path in paths]

    def _is_behind(self, name: str) -> bool:
        """Whether the VM was started on another generation than the sealed one, and nothing was pushed."""
        try:
            sealed = self.host.path(f"/var/lib/credferry/vms/{name}/current", follow=False).readlink().name
            stamp = Stamp.from_bytes(self.host.path(f"/run/credferry-vms/{name}/stamp.json").read_bytes())
        except (OSError, ValueError):
            return False
        is_pushed = self.host.path(f"/run/{PUSHED_PARENT}/{name}").exists()
        return sealed != str(stamp.generation) and not is_pushed

    def _in_step(self, name: str) -> bool:
        row = self.status().get(name)
        return row is not None and row["state"] == "in step" and row["running"] is not None


def guest_files(
    deployment: Deployment,
    name: str,
    image: Guest,
    overlay: Mapping[str, OverlayEntry],
    *,
    cpus: int = 1,
    memory: str = "512M",
) -> VmFiles:
    """A VM that boots a real guest, with the arguments that microvm.nix would give."""
    home = f"/var/lib/microvms/{name}"
    with tempfile.TemporaryDirectory() as directory:
        initramfs = image.initramfs(overlay, Path(directory))
        deployment.host.write(f"{home}/initrd", initramfs.read_bytes())
    deployment.host.write(f"{home}/vmlinux", image.kernel.read_bytes())
    arguments = ["--watchdog", "--kernel", f"{home}/vmlinux", "--initramfs", f"{home}/initrd"]
    arguments += ["--cmdline", COMMAND_LINE, "--seccomp", "true"]
    arguments += ["--memory", f"mergeable=on,shared=off,size={memory}", "--platform", ""]
    arguments += ["--console", "null", "--serial", "tty"]
    return VmFiles(arguments, {}, f"boot={cpus}")


def _vm_info(path: Path) -> list[dict[str, Any]]:
    """One hypervisor's ``vm.info``, by its socket; none while it does not listen or has no VM yet."""
    request = b"GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(10 * patience())
        try:
            # Through a descriptor of its directory: the whole path is longer than a socket's may be.
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, directory)
            client.connect(f"/proc/self/fd/{directory}/{path.name}")
            client.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < _length(answer):
                if not (chunk := client.recv(65536)):
                    return []
                answer += chunk
        except (FileNotFoundError, ConnectionError, BlockingIOError, TimeoutError):
            return []  # without an answer yet: who asks has a deadline
    status, body = answer.split()[1], answer.partition(b"\r\n\r\n")[2]
    return [json.loads(body)] if status == b"200" else []


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _length(answer: bytes) -> int:
    for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.lower() == b"content-length":
            return int(value)
    return 0
