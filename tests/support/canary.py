# SPDX-License-Identifier: MIT
"""A site on which a distinctive value travels, while all that is said there is kept for a search."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, VmFiles
from tests.support.host import Host
from tests.support.installation import HYPERVISOR, install
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    import signal
    import subprocess
    from collections.abc import Iterator, Mapping
    from contextlib import ExitStack

MARKER = secrets.token_hex(8).encode()
"""What all values of this run have in common, and nothing else in the world has."""
ODD = b"%s{0}$(id)`id`\"\\ '\n\r\t\x00\x1b[31m\xc3\xa9\xff&<,=[]"
"""What spoils quoting, in one way or another."""
AGENT = "credferry.service"
MACHINE_ID = "5ea1ed00c0ffee00c0ffee000000ca4a"
RUDE = "/usr/lib/credferry-test/rude_vmm.py"
BREAKS = '! grep -q BREAKS "$CREDENTIALS_DIRECTORY/credferry_value.KEY" || exit 1'
TABLES = """
[source]
quiet_seconds = 0.1
resync_seconds = 1.0
[rollout]
attempts = 1
retry_seconds = 0.1
stamp_seconds = 20.0
"""
VMS = """
[vms.plain.credentials]
KEY = { secret = "plain" }
NOTE = { text = "no secret" }
[vms.sealed]
channel = "command"
guest_key = true
[vms.sealed.credentials]
KEY = { secret = "sealed/key" }
[vms.both]
guest_key = true
[vms.both.credentials]
KEY = { secret = "sealed/key" }
PLAIN = { secret = "both", seal = false }
[vms.breaks.credentials]
KEY = { secret = "breaks" }
[vms.later]
after = ["breaks"]
[vms.later.credentials]
KEY = { secret = "breaks" }
[vms.rude.credentials]
KEY = { secret = "rude" }
"""


ALLOWED = re.compile(
    r"/run/secrets\.d/"
    r"|/run/credentials/microvm@(plain|breaks|later|rude)\.service/credferry_value\.(KEY|NOTE)\Z"
    r"|/run/credentials/microvm@both\.service/credferry_value\.PLAIN\Z"
)
"""Where values are meant to be: the source, and the credentials of units whose VMs get them in plain."""


class RecordedHost(Host):
    """A host that keeps what every command in it has printed, but for what searches print."""

    def __init__(self, cache: Path) -> None:
        super().__init__(cache)
        self.said = bytearray()

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 (as `Host.run`)
        """As `Host.run`."""
        ended = super().run(*arguments, **options)
        if arguments[0] != "journalctl":
            for stream in (ended.stdout, ended.stderr):
                self.said += stream.encode(errors="surrogateescape") + b"\n"
        return ended


@dataclass(slots=True)
class Site:
    """VMs of every kind, an agent, a producer, and what is published."""

    host: RecordedHost
    deployment: Deployment
    sops: SopsNix
    published: dict[str, bytes] = field(default_factory=dict)
    _number: int = 0
    _since: int = 0

    def fresh(self, note: str = "") -> bytes:
        """A value that there has never been; it begins and ends with the marker."""
        self._number += 1
        return b"".join((MARKER, note.encode(), ODD, str(self._number).encode(), MARKER))

    def publish(self, **changes: bytes) -> None:
        """Publish some new values beside what is published. ``__`` in a name stands for a slash."""
        self.published |= {name.replace("__", "/"): value for name, value in changes.items()}
        self.sops.publish(self.published)

    def generation(self, vm: str) -> int:
        """The generation that a VM's present invocation runs; 0 for none."""
        stamp = self.deployment.stamp(vm)
        return stamp.generation if stamp is not None else 0

    def arrives(self, vm: str, secret: str, value: bytes | None = None) -> None:
        """Publish a new value of a secret; the VM runs it, and where it gets it in plain, that is it."""
        before, value = self.generation(vm), value or self.fresh()
        self.publish(**{secret: value})
        self.runs_newer(vm, before)
        if vm == "plain":
            assert self.deployment.delivered(vm)["KEY"] == value

    def runs_newer(self, vm: str, generation: int) -> None:
        """Wait until a VM runs a generation after this one."""
        self.host.wait(lambda: self.generation(vm) > generation, 30, f"{vm} on a newer generation")

    def told(self, text: str, **matches: str) -> str:
        """Wait for a journal record since the last `mark` whose message has this text; the message."""
        return self.host.wait_journal(
            lambda entry: (
                text in entry.get("MESSAGE", "") and int(entry["__REALTIME_TIMESTAMP"]) > self._since
            ),
            30,
            **matches,
        )["MESSAGE"]

    def mark(self) -> None:
        """Forget what the journal has had so far."""
        self.host.run("journalctl", "--sync")
        newest = super(RecordedHost, self.host).run("journalctl", "-n1", "-ojson", "--quiet").stdout
        self._since = int(json.loads(newest)["__REALTIME_TIMESTAMP"]) if newest.strip() else 0

    def refuses(
        self, *command: str, status: int, naming: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        """Run a command that must end so, with these words on its standard error."""
        ended = self.host.run(*command, check=False, env=env)
        assert ended.returncode == status, f"{command}: {ended.returncode}: {ended.stderr}"
        assert naming in ended.stderr, f"{command}: {ended.stderr}"

    def configure(self, more: str = "") -> None:
        """Write the configuration, and let the agent read it, where it runs."""
        self.deployment.configure(TABLES + VMS + more)
        self.host.run("systemctl", "try-reload-or-restart", AGENT)

    def put(self, vm: str, endpoint: str) -> None:
        """A request without a body to a VM's hypervisor."""
        directory = os.open(self.host.path(f"/var/lib/microvms/{vm}/work"), os.O_PATH | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(f"/proc/self/fd/{directory}/{vm}.sock")
                client.sendall(f"PUT /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                client.recv(4096)
        finally:
            os.close(directory)

    @contextmanager
    def spoiled(self, module: str, lines: str) -> Iterator[None]:
        """For a while, a module of the installation ends with some more lines."""
        path = f"/usr/lib/credferry/credferry/{module}"
        before = self.host.path(path).read_text()
        self.host.write(path, f"{before}\n\n{lines}\n")
        try:
            yield
        finally:
            self.host.write(path, before)

    def agent(self, *, runs: bool) -> None:
        """Have the agent run, or stopped; nothing happens where it is so."""
        if runs is (self.host.unit(AGENT)["ActiveState"] == "active"):
            return
        # One that waits to be started again would make us wait, too.
        self.host.run("systemctl", "stop", AGENT)
        if runs:
            self.deployment.start_agent()

    @contextmanager
    def rude(self, how: str) -> Iterator[None]:
        """For a while, the rude VM's hypervisor behaves so; the VM is started by hand."""
        self.host.run("systemctl", "stop", "microvm@rude.service")
        self.host.write("/run/canary-rude", how)
        self.host.run("systemctl", "start", "microvm@rude.service")
        try:
            yield
        finally:
            self.host.run("systemctl", "stop", "microvm@rude.service")
            self.host.run("systemctl", "reset-failed", "microvm@rude.service", check=False)
            self.host.write("/run/canary-rude", "polite")
            self.deployment.start_vm("rude")

    def ends(self, unit: str, number: signal.Signals) -> None:
        """Signal a unit's main process, which must not be one that leaves a core; wait for its end."""
        pid = self.host.unit(unit)["MainPID"]
        self.signal(int(pid), number)
        self.host.wait(lambda: self.host.unit(unit)["MainPID"] != pid, 20, f"the end of {unit}")

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Signal a process of the host, by the number that it has there."""
        limits = self.host.path(f"/proc/{pid}/limits").read_text().splitlines()
        core = next(line for line in limits if line.startswith("Max core file size"))
        assert core.split()[4] == "0", f"the soft limit of a core file: {core}"
        self.host.run("kill", f"-{number.value}", str(pid))


def lay_out(stack: ExitStack) -> Site:
    """A host with an agent and VMs that all run what is published; it ends with the stack."""
    host = stack.enter_context(RecordedHost(cache_directory()))
    install(host)
    deployment = Deployment(host)
    site = Site(host, deployment, SopsNix(host))
    host.write(RUDE, Path(__file__).with_name("rude_vmm.py").read_bytes(), 0o755)
    host.write("/run/canary-rude", "polite")
    for vm in ("plain", "sealed", "both", "later", "rude"):
        deployment.add_vm(vm)
    deployment.add_vm("breaks", VmFiles(before=BREAKS))
    # A unit that systemd starts over and over takes the agent longest to give up.
    host.write("/etc/systemd/system/microvm@breaks.service.d/60-once.conf", "[Service]\nRestart=no\n")
    host.run("systemctl", "daemon-reload")
    script = "/var/lib/microvms/rude/current/bin/microvm-run"
    host.write(script, host.path(script).read_text().replace(HYPERVISOR, RUDE), 0o755)
    site.configure()
    for vm in ("sealed", "both"):
        deployment.credferry("guest-key", "create", vm, "--machine-id", MACHINE_ID)
    names = ("plain", "sealed__key", "both", "breaks", "rude")
    site.publish(**{name: site.fresh() for name in names})
    deployment.credferry("agent", "--once")
    deployment.start_vm("plain", "sealed", "both", "breaks", "later", "rude")
    deployment.start_agent()
    return site
