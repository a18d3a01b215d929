# SPDX-License-Identifier: MIT
"""The store: whether the agent alone can read and write it, and whether its sealed files can be opened."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.doctor import probe
from credferry.agent.doctor.chain import AGENT, HOST_KEY
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem
from credferry.agent.doctor.tpm import sealed_with
from credferry.agent.errors import SealError, StoreError
from credferry.launcher.handoff import MANIFEST_FILE, unit_credential

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_ROOM_MIN: Final = 16 << 20
_FILES_MIN: Final = 256
_LOOKED_AT_MAX: Final = 100_000


def check(chain: Chain) -> Iterator[Finding]:
    """The state directory as a whole."""
    state, quoted = chain.state, shlex.quote(str(chain.state))
    try:
        status = state.stat()
    except FileNotFoundError:
        yield hint(
            "store",
            f"{state} does not exist yet",
            why="the agent makes it when it first seals something",
            remedy="start the agent",
        )
        return
    if stat.S_IMODE(status.st_mode) & 0o077:
        yield problem(
            "store.mode",
            f"other users than its owner can read {state}",
            why="other users can read the sealed credentials, and the guests' keys, which are not encrypted",
            remedy="restrict its mode",
            commands=[f"chmod 0700 {quoted}"],
        )
    else:
        yield ok("store.mode", f"only its owner can use {state}")
    yield _room(state)
    yield _owner(chain)
    yield from _left_over(chain)


def check_vm(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Whether a VM's current generation is there, and whether credferry and systemd can open it."""
    if not probe.is_root():
        raise UnseenError("sealed generations")
    current = chain.store.vm_directory(vm.name) / "current"
    seal = f"credferry sync --config {shlex.quote(str(chain.file))} --vm {vm.name}"
    manifest = chain.store.current(vm.name)
    if manifest is None:
        what = "cannot be opened" if current.is_symlink() else "does not exist"
        yield problem(
            "vm.generation",
            f"the sealed generation of {vm.name} {what}",
            vm=vm.name,
            why="its unit cannot start",
            remedy="seal again what is published; if that fails, the command's error says why",
            commands=[seal],
        )
        return
    try:
        chain.store.values(vm.name)
    except (StoreError, SealError) as error:
        yield problem(
            "vm.generation",
            str(error),
            vm=vm.name,
            why="the launcher refuses it, so the VM's next start fails",
            remedy="find out who could write there; then remove this generation and seal again",
            commands=[f"rm -r {shlex.quote(str(current.resolve()))}", seal],
        )
        return
    with_what = sealed_with(chain, vm)
    said = f"sealed with {with_what}," if with_what else "sealed"
    yield ok("vm.generation", f"generation {manifest.generation} is {said} and can be opened", vm.name)
    # Only after a check that the key is this machine's, as here: systemd would delete any other key. Of one
    # VM: credferry has opened all of them by systemd's own rules, and they have the same form.
    if Path(chain.config.host_key) == HOST_KEY and vm.name == chain.first_opened:
        yield _opened_by_systemd(vm, current / MANIFEST_FILE)


def _opened_by_systemd(vm: VmConfig, manifest: Path) -> Finding:
    name = unit_credential(MANIFEST_FILE)
    opened = probe.run("systemd-creds", "decrypt", f"--name={name}", str(manifest), "-")
    if opened.returncode == 0:
        return ok("vm.generation.systemd", "systemd can open it too", vm.name)
    return problem(
        "vm.generation.systemd",
        f"systemd cannot open what is sealed for {vm.name}",
        vm=vm.name,
        why="PID 1 cannot start the VM (status 243/CREDENTIALS)",
        remedy=f"see: systemd-creds decrypt --name={name} {manifest} /dev/null",
    )


def _owner(chain: Chain) -> Finding:
    state, user = chain.state, chain.agent_user
    try:
        wanted = pwd.getpwnam(user).pw_uid
    except KeyError:
        return problem(
            "store.owner",
            f"the agent's unit names user {user}, which does not exist",
            why="its unit cannot start",
            remedy="create the user from contrib/sysusers/credferry.conf",
            commands=["systemd-sysusers credferry.conf"],
        )
    wrong = _not_of(state, wanted)
    if wrong is None:
        return ok("store.owner", f"{state} belongs to {user}, the agent's user")
    return problem(
        "store.owner",
        f"{wrong} does not belong to {user}, the agent's user",
        why="the agent may not write other users' files, so it can neither seal nor record what it does",
        remedy="give all files there to that user",
        commands=[f"chown -R {user}: {shlex.quote(str(state))}", f"systemctl restart {AGENT}"],
    )


def _not_of(top: Path, uid: int) -> Path | None:
    """The first file below a directory that belongs to another user. Raises `UnseenError`."""
    if not os.access(top, os.R_OK | os.X_OK):
        raise UnseenError(str(top))
    if top.lstat().st_uid != uid:
        return top
    seen = 0
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            seen += 1
            path = Path(directory) / name
            try:
                owner = path.lstat().st_uid
            except FileNotFoundError:
                continue  # the agent has removed it meanwhile
            if owner != uid:
                return path
        if seen > _LOOKED_AT_MAX:
            break
    return None


def _room(state: Path) -> Finding:
    room = os.statvfs(state)
    if room.f_flag & os.ST_RDONLY:
        return problem(
            "store.room",
            f"{state} is on a file system that is mounted read-only",
            why="the agent can neither seal nor record what it does",
            remedy="see dmesg for the cause; then mount it writable",
            commands=[f'mount -o remount,rw "$(findmnt -n -o TARGET -T {shlex.quote(str(state))})"'],
        )
    if room.f_bavail * room.f_frsize < _ROOM_MIN or (room.f_files and room.f_favail < _FILES_MIN):
        return problem(
            "store.room",
            f"{state} has less than {_ROOM_MIN >> 20} MiB of room, or few files left",
            why="the agent may fail to write the next generation; VMs then keep their previous secrets",
            remedy="free space on its file system",
        )
    return ok("store.room", f"{state} has room")


def _left_over(chain: Chain) -> Iterator[Finding]:
    try:
        paths = sorted((chain.state / "vms").iterdir())
    except FileNotFoundError:
        return
    left = [path for path in paths if chain.error is None and path.name not in chain.config.vms]
    if left and chain.is_of_all:
        names = ", ".join(path.name for path in left)
        yield hint(
            "store.left-over",
            f"{paths[0].parent} has directories of VMs that are not configured ({len(left)}): {names}",
            why="a VM's last secrets stay there, sealed with this host's key",
            remedy="remove what belongs to VMs that no longer exist",
            commands=[f"rm -r {' '.join(shlex.quote(str(path)) for path in left)}"],
        )
