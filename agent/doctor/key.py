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

_WHY = "PID 1 opens a VM's credentials with it: without, no VM starts"


def check(chain: Chain) -> Iterator[Finding]:
    """The machine id, and the key's path, its mode, and the machine that it belongs to."""
    try:
        machine_id = read_machine_id(Path(chain.config.machine_id_file))
        hashed_machine_id(machine_id)
    except KeyFileError as error:
        yield problem(
            "key.machine-id",
            str(error),
            why="the host's credential key belongs to a machine id: without one there is no key",
            remedy="give the host a machine id",
            commands=["systemd-machine-id-setup"],
        )
        return
    path = Path(chain.config.host_key)
    if path != HOST_KEY:
        yield problem(
            "key.place",
            f"host_key is {path}",
            why=f"PID 1 opens credentials with {HOST_KEY}, and with no other",
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
                "key", str(error), why=_WHY, remedy=f"{error.hint}; systemd follows no links here"
            )
        if stat.S_IMODE(status.st_mode) != KEY_MODE:
            return problem(
                "key.mode",
                str(error),
                why=_WHY,
                remedy="see who could read it, and close it",
                commands=[f"chmod 0400 {shlex.quote(str(path))}"],
            )
        return _foreign(path, machine_id, error)
    return ok("key", f"{path} is this machine's, mode 0400")


def _missing(chain: Chain, path: Path) -> Finding:
    try:
        is_root = chain.agent_user == "root"
    except UnseenError:
        is_root = True
    if not is_root:
        return problem(
            "key",
            f"there is no {path}",
            why=f"the agent, as user {chain.agent_user}, cannot make it",
            remedy="make it, and start the agent",
            commands=["systemd-creds setup", f"systemctl restart {AGENT}"],
        )
    return hint(
        "key",
        f"there is no {path} yet",
        why="it is made when something is sealed first",
        remedy="make it now",
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
        why=f"{_WHY}; and systemd deletes such a file, even when it only opens something",
        remedy="restore this host's own file from a backup; or have a new one made, and all sealed anew",
        commands=[f"mv {quoted} {quoted}.of-another-machine", f"systemctl restart {AGENT}"],
    )
