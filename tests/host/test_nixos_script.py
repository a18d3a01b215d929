# SPDX-License-Identifier: MIT
"""The steps of the project's NixOS test, which cannot be booted here, on a host of the harness."""

from __future__ import annotations

import ast
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.support.deployment import Deployment
from tests.support.nix import CHECKOUT, Nix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

CONFIG = """
[source]
quiet_seconds = 0.2
resync_seconds = 1.0
[rollout]
attempts = 1
retry_seconds = 0.2
stamp_seconds = 5.0
[vms.web]
health = ["/usr/bin/test", "!", "-e", "/run/test/unhealthy"]
[vms.web.credentials]
API_KEY = { secret = "api-key" }
ENVIRONMENT = { text = "test" }
"""


class Machine:
    """Stands in for the test driver's `Machine`, on a host of the harness."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def execute(self, command: str) -> tuple[int, str]:
        """Status and output of a shell command."""
        done = self._host.run("sh", "-c", command, check=False)
        return done.returncode, done.stdout

    def succeed(self, command: str) -> str:
        """The output of a shell command that must succeed."""
        return self._host.run("sh", "-c", command).stdout

    def wait_until_succeeds(self, command: str) -> None:
        """Run a shell command until it succeeds."""
        self._host.wait(lambda: self.execute(command)[0] == 0, 30, command)

    def wait_for_unit(self, unit: str) -> None:
        """Wait until a unit is active."""
        self._host.wait(lambda: self._host.unit(unit)["ActiveState"] == "active", 30, unit)


def test_the_steps_of_the_nixos_test(host: Host, nix: Nix) -> None:
    """Rotation, the same value again, and rollback go as the test for a NixOS host says."""
    steps = nix.evaluate('(import (t.root + "/tests/nixos/script.nix")).steps')
    deployment = Deployment(host)
    host.write("/usr/bin/publish-secrets", (CHECKOUT / "tests/nixos/publish-secrets").read_text(), 0o755)
    try:
        deployment.add_vm("web")
        deployment.configure(CONFIG)
        host.run("publish-secrets", "one")  # without it, the first sealing waits for it
        deployment.start_agent()
        given: dict[str, Any] = {
            "machine": Machine(host),
            "subtest": subtest,
            "retry": lambda fn: host.wait(lambda: fn(_last=False), 30, "what a step waits for"),
        }
        exec(compile(steps, "script.nix", "exec"), given)  # noqa: S102 (a script of this project)
    finally:
        deployment.close()
        # An earlier test's producer may have mounted a file system there.
        host.run("sh", "-c", "! mountpoint -q /run/secrets.d || umount --lazy /run/secrets.d")
        host.run("rm", "-rf", "/usr/bin/publish-secrets", "/run/secrets", "/run/secrets.d", "/run/test")
        host.run("rm", "-rf", "/var/lib/test-secrets")


def test_the_other_scripts_are_python(nix: Nix) -> None:
    """What only a NixOS host can run is at least Python, and calls nothing that the driver does not have."""
    switch = nix.evaluate('(import (t.root + "/tests/nixos/script.nix")).switch')
    guest = nix.evaluate(
        '(import (t.root + "/tests/nixos/microvm.nix") { microvm = { }; credferry = { }; } { }).testScript'
    )
    for script in (switch, guest):
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(script))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "machine"
        }
        assert called <= {"shutdown", "start", "succeed", "wait_for_unit", "wait_until_succeeds"}


@contextmanager
def subtest(_name: str) -> Iterator[None]:
    """The driver's name for a part of a test."""
    yield
