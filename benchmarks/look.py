# SPDX-License-Identifier: MIT
"""One look of the agent in a process of its own, beside a loop that reads and HMACs the same files.

``python -m benchmarks.look SECRETS VMS BYTES TIMES`` prints JSON: milliseconds of each, and memory. Files
are on tmpfs. systemd is not asked: its answers are made up. One secret has changed since all was sealed.
"""

from __future__ import annotations

import hmac
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.config.loading import parse
from credferry.agent.reconcile.observer import Observer
from credferry.agent.reconcile.sealer import Sealer
from credferry.agent.rollout.pacing import RestartPolicyGate
from credferry.agent.sealing.keys import CredentialKey, hashed_machine_id
from credferry.agent.store.generations import Store
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import (
    EVIDENCE_PARENT,
    Channel,
    Stamp,
    evidence_name,
    stamp_path,
    write_stamp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from credferry.agent.config.model import Config

_INVOCATION = "1" * 32


class Silent:
    """An audit that keeps nothing: the journal is none of a look's."""

    def record(self, *_: object, **__: object) -> None:
        """Nothing."""


class Units:
    """A systemd whose units all run, as `credferry.agent.systemd.units.SystemManager`."""

    def unit(self, name: str) -> UnitState:
        """An active unit."""
        return UnitState(name, "loaded", "active", "running", _INVOCATION, active_seconds=3600.0)

    def units(self, names: Iterable[str]) -> dict[str, UnitState]:
        """All of them."""
        return {name: self.unit(name) for name in names}

    def try_restart(self, name: str) -> str:
        """Not in a look."""
        raise NotImplementedError(name)

    restart_failed = start = try_restart

    def ended(self, name: str) -> str:
        """Not in a look: all of them run."""
        raise NotImplementedError(name)

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True)
class Place:
    """A source, a store and stamps below one directory: all sealed, all running with it."""

    top: Path
    config: Config
    key: CredentialKey

    @property
    def source(self) -> Path:
        """Where the secrets are."""
        return self.top / "secrets"

    def change_one(self) -> None:
        """Have one secret differ from what is sealed."""
        (self.source / "s0").write_bytes(os.urandom(16).hex().encode())

    def look(self) -> Callable[[], int]:
        """A function that looks, and tells how many VMs it would restart."""
        store = Store(self.top / "state", self.key)
        observer, pacer, manager = (
            Observer(self.config, store),
            RestartPolicyGate(self.config, store),
            Units(),
        )

        def look() -> int:
            found = pacer.hold_back(observer.look(self.config.vms.values(), manager))
            return sum(decision.restart for decision in found.decisions)

        return look


def place(top: Path, secrets: int, vms: int) -> Place:
    """A place that is still empty; each VM is to have as many secrets of its own."""
    each = max(1, secrets // vms)
    machine_id, key = os.urandom(16).hex(), os.urandom(4096)
    (top / "machine-id").write_text(machine_id)
    (top / "key").write_bytes(hashed_machine_id(machine_id) + key)
    (top / "key").chmod(0o400)
    text = f'state_directory="{top}/state"\nruntime_directory="{top}/run"\n'
    text += f'host_key="{top}/key"\nmachine_id_file="{top}/machine-id"\n[source]\npath="{top}/secrets"\n'
    for vm in range(vms):
        text += f"[vms.v{vm}]\nguest_systemd=257\n[vms.v{vm}.credentials]\n"
        text += "".join(f'C{at}={{secret="s{(vm * each + at) % secrets}"}}\n' for at in range(each))
    return Place(top, parse(text.encode(), top / "config.toml"), CredentialKey(key))


def fill(empty: Place, size: int = 32) -> None:
    """Publish secrets of so many bytes, seal them, and have each VM's evidence say that it has them."""
    empty.source.mkdir()
    for name in empty.config.secrets[""]:
        (empty.source / name).write_bytes(os.urandom(size // 2).hex().encode())
    store = Store(empty.top / "state", empty.key)
    observer = Observer(empty.config, store)
    look = observer.look(empty.config.vms.values(), None)
    Sealer(store, observer, Silent()).seal_due(look)  # type: ignore[arg-type]  # what it does with an audit
    for name in empty.config.vms:
        manifest = store.current(name)
        assert manifest is not None  # noqa: S101 (it was just sealed)
        evidence = empty.top / "run" / EVIDENCE_PARENT / evidence_name(name, _INVOCATION)
        evidence.parent.mkdir(parents=True, exist_ok=True)
        evidence.write_bytes(manifest.to_bytes())
        directory = stamp_path(name, empty.top / "run").parent
        directory.mkdir(parents=True)
        write_stamp(directory, Stamp(name, 1, manifest.digest, manifest.run, _INVOCATION, Channel.API, 0))


def _fill_aside(empty: Place, size: int) -> None:
    """The same in a process whose memory is gone afterwards."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            fill(empty, size)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("nothing to look at")


def read_alone(source: Path, count: int) -> None:
    """The least that has to be done to know what is published: read each file, and HMAC it."""
    key, digests = b"k" * 32, []
    top = os.open(source, os.O_RDONLY)
    for number in range(count):
        file = os.open(f"s{number}", os.O_RDONLY, dir_fd=top)
        digests.append(hmac.digest(key, os.read(file, 4096), "sha256"))
        os.close(file)
    os.close(top)


def _warm_up(top: Path) -> None:
    """Look at one VM: what any first look loads is no growth."""
    top.mkdir()
    least = place(top, 1, 1)
    fill(least)
    least.change_one()
    least.look()()


def _memory() -> int:
    """The most bytes of memory that the process had since `_forget_memory`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def _forget_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _took(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Entry point."""
    secrets, vms, size, times = map(int, sys.argv[1:])
    top = Path(tempfile.mkdtemp(prefix="credferry-bench.", dir="/dev/shm"))
    try:
        _warm_up(top / "warm")
        measured = place(top, secrets, vms)
        _fill_aside(measured, size)
        measured.change_one()
        look = measured.look()
        _forget_memory()
        before = _memory()
        first = _took(look)
        grown = _memory() - before
        looks, floors = [], []
        for _ in range(times):
            floors.append(_took(lambda: read_alone(measured.source, secrets)))
            looks.append(_took(look))
        restarts = look()
        if restarts != 1:
            raise SystemExit(f"{restarts} VMs would be restarted, and not one")
    finally:
        shutil.rmtree(top)
    found = {"first": first, "look": looks, "floor": floors, "grown": grown, "bytes": secrets * size}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
