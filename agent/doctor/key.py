# SPDX-License-Identifier: MIT
"""The host's credential key: whether it meets systemd's conditions, some of which are traps."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.doctor.chain import AGENT, HOST_KEY
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.errors import KeyFileError
from credferry.agent.sealing.keys import (
    HEADER_SIZE,
    KEY_MODE,
    hashed_machine_id,
    read_key,
    read_machine_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_WHY = "PID 1 opens a VM's credentials with this key: without it no VM starts"


def check(chain: Chain) -> Iterator[Finding]:
    """The machine id, and the key's path, its mode, and the machine that it belongs to."""
    try:
        machine_id = read_machine_id(Path(chain.config.machine_id_file))
        hashed_machine_id(machine_id)
    except KeyFileError as error:
        yield problem(
            "key.machine-id",
            str(error),
            why="the host has no machine id, to which its credential key belongs",
            remedy="give the host a machine id",
            commands=["systemd-machine-id-setup"],
        )
        return
    path = Path(chain.config.host_key)
    if path != HOST_KEY:
        yield problem(
            "key.place",
            f"host_key is {path}",
            why=f"PID 1 opens credentials with {HOST_KEY} only",
            remedy=f"remove host_key from {chain.file}",
        )
    yield _file(chain, path, machine_id)


def _file(chain: Chain, path: Path, machine_id: str) -> Finding:
    try:
        read_key(path, machine_id=machine_id)
    except FileNotFoundError:
        return _missing(chain, path)
    except KeyFileError as error:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return problem(
                "key", str(error), why=_WHY, remedy=f"{error.hint}; systemd does not follow links here"
            )
        if stat.S_IMODE(status.st_mode) != KEY_MODE:
            return problem(
                "key.mode",
                str(error),
                why=_WHY,
                remedy="find out who could read it, then restrict its mode",
                commands=[f"chmod 0400 {shlex.quote(str(path))}"],
            )
        return _foreign(path, machine_id, error)
    return ok("key", f"{path} belongs to this machine and has mode 0400")


def _missing(chain: Chain, path: Path) -> Finding:
    try:
        is_root = chain.agent_user == "root"
    except UnseenError:
        is_root = True
    if not is_root:
        return problem(
            "key",
            f"{path} does not exist",
            why=f"the agent runs as user {chain.agent_user} and cannot make the key",
            remedy="make the key, then start the agent",
            commands=["systemd-creds setup", f"systemctl restart {AGENT}"],
        )
    return hint(
        "key",
        f"{path} does not exist yet",
        why="systemd makes it when something is first sealed",
        remedy="make the key now",
        commands=["systemd-creds setup"],
    )


def _foreign(path: Path, machine_id: str, error: KeyFileError) -> Finding:
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_SIZE)
    except PermissionError:
        raise UnseenError(str(path)) from None
    if header == hashed_machine_id(machine_id):
        return problem("key", str(error), why=_WHY, remedy=error.hint)
    quoted = shlex.quote(str(path))
    return problem(
        "key.machine",
        str(error),
        why=f"{_WHY}; systemd deletes such a file even when it only opens a credential",
        remedy="restore this host's own key from a backup; or make a new one, and the agent seals "
        "everything again",
        commands=[f"mv {quoted} {quoted}.of-another-machine", f"systemctl restart {AGENT}"],
    )
