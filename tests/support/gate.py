# SPDX-License-Identifier: MIT
"""Locks that a test holds, and VMs whose start waits for one: what is under way then stays under way."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.host import patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

_SECONDS = 30.0


class Holder:
    """Somebody who holds a lock on a file of a host, until he lets go or the host ends."""

    def __init__(self, host: Host, file: str) -> None:
        """Waits for whoever has it now; the agent tries a lock for a moment, too."""
        self._process = host.spawn("flock", file, "sh", "-c", "echo held; read line")
        assert self._process.stdout
        assert self._process.stdout.readline() == "held\n"

    @property
    def holds(self) -> bool:
        """Whether he has it still."""
        return self._process.poll() is None

    def let_go(self) -> None:
        """Have him, who holds it still, let go."""
        assert self.holds
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(_SECONDS * patience())


class Gate:
    """What starts of some VMs go through, and cannot while somebody holds it."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self._file = f"/run/{name}.gate"
        self._drop_ins: list[str] = []

    def put_before(self, vm: str) -> None:
        """From now on a start of the VM goes through it, and waits there for ever."""
        drop_in = f"/etc/systemd/system/microvm@{vm}.service.d/90-gate.conf"
        self._host.write(self._file, "")
        self._host.write(
            drop_in,
            f"[Service]\nTimeoutStartSec=infinity\nExecStartPre=+/usr/bin/flock {self._file} /bin/true\n",
        )
        self._host.run("systemctl", "daemon-reload")
        self._drop_ins.append(drop_in)

    def hold(self) -> Holder:
        """Somebody who holds it."""
        return Holder(self._host, self._file)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Within, nobody gets through."""
        holder = self.hold()
        try:
            yield
        finally:
            holder.let_go()

    def is_waited_at(self) -> bool:
        """Whether a start waits here."""
        waiting = ("pgrep", "--exact", "--full", f"/usr/bin/flock {self._file} /bin/true")
        return self._host.run(*waiting, check=False).returncode == 0

    def remove(self) -> None:
        """Starts wait for nobody any more."""
        self._host.run("rm", "-f", *self._drop_ins)
        self._host.run("systemctl", "daemon-reload")
        self._drop_ins.clear()
