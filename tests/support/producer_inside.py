# SPDX-License-Identifier: MIT
"""The part of `tests.support.producer` that runs inside the host: the producers' own order of system calls.

Standard library only, run by path. Standard input is one JSON object: ``do`` (a function's name below),
and its arguments; secrets come as Base64, by name. Standard output is what the function returns, as JSON.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import grp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# linux/mount.h and asm-generic/unistd.h; the C library of Debian 12 has wrappers for neither call's flag.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_OPEN_TREE_CLONE, _AT_FDCWD = 1, -100
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_BENEATH = 0x4, 0x200
_MNT_DETACH = 2


def sops_nix(link: str, files: dict[str, bytes], *, swap: bool, keep: int) -> int:
    """As sops-install-secrets does (sops-nix pkgs/sops-install-secrets/main.go, installSecrets)."""
    parent, group = Path(f"{link}.d"), grp.getgrnam("keys").gr_gid
    if not parent.is_mount():
        parent.mkdir(mode=0o751, exist_ok=True)
        _mount("-t", "ramfs", "-o", "nodev,nosuid,noexec,mode=0751", "none", str(parent))
    os.chown(parent, 0, group)
    # Everything is decrypted by now: a failure would have changed nothing on disk.
    generation = _current(link) + 1
    directory = parent / str(generation)
    shutil.rmtree(directory, ignore_errors=True)  # a dry activation may have left one of this number
    directory.mkdir(0o751)
    os.chown(directory, 0, group)
    for name, value in files.items():
        _make_parents(directory, name, group)
        path = directory / name
        _write(path, value, os.O_EXCL)
        os.chown(path, 0, 0)
    if not swap:
        return generation
    _swap(link, directory)
    for old in parent.iterdir():
        if old.name.isdecimal() and keep > 0 and int(old.name) <= generation - keep:
            shutil.rmtree(old)
    return generation


def agenix(link: str, files: dict[str, bytes]) -> int:
    """As agenix's activation script does (agenix modules/age.nix)."""
    parent, generation = Path(f"{link}.d"), _current(link) + 1
    parent.mkdir(exist_ok=True)
    parent.chmod(0o751)
    if not parent.is_mount():
        _mount("-t", "ramfs", "-o", "nodev,nosuid,mode=0751", "none", str(parent))
    directory = parent / str(generation)
    directory.mkdir(exist_ok=True)
    directory.chmod(0o751)
    for name, value in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        _write(temporary, value, os.O_TRUNC)
        temporary.rename(path)
    _run("ln", "-sfT", str(directory), link)
    if generation > 1:
        _run("rm", "-rf", str(parent / str(generation - 1)))
    for name in files:  # ownership comes last, when the users exist
        os.chown(directory / name, 0, 0)
    return generation


def mounted(target: str, files: dict[str, bytes]) -> str:
    """Replace the mount at the target by a new one, as clan's age and password-store backends do.

    Returns "first", "beneath" (the new one slipped under the old one, which then went), or "over" where the
    kernel has no such thing yet (before 6.5).
    """
    Path(target).mkdir(mode=0o751, exist_ok=True)
    fresh = tempfile.mkdtemp(prefix="credferry-mounted.", dir="/run")
    _mount("-t", "ramfs", "-o", "nodev,nosuid,noexec,mode=0751", "none", fresh)
    for name, value in files.items():
        path = Path(fresh, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, value, os.O_EXCL)
    how = "first"
    if Path(target).is_mount():
        how = "beneath" if _mount_beneath(fresh, target) else "over"
    if how == "beneath":
        _umount(target)
    else:
        _mount("--bind", fresh, target)
    _umount(fresh)
    Path(fresh).rmdir()
    return how


def write_in_place(source: str, files: dict[str, bytes]) -> None:
    """Overwrite files of the published generation, as an impatient person does."""
    for name, value in files.items():
        _write(Path(source, name), value, os.O_TRUNC)


def remove(source: str) -> None:
    """Take everything away that a producer has published."""
    path, parent = Path(source), Path(f"{source}.d")
    if path.is_symlink():
        path.unlink()
    while path.is_mount():
        _umount(source)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
    if parent.is_mount():
        _umount(str(parent))
    with contextlib.suppress(FileNotFoundError):
        parent.rmdir()


def _current(link: str) -> int:
    """The published generation's number; numbers start again where the link is missing."""
    try:
        return int(Path(link).readlink().name)
    except (FileNotFoundError, OSError, ValueError):
        return 0


def _make_parents(directory: Path, name: str, group: int) -> None:
    for parent in reversed(Path(name).parents[:-1]):
        if not (directory / parent).is_dir():
            (directory / parent).mkdir(0o751)
            os.chown(directory / parent, 0, group)


def _swap(link: str, directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        Path(link).symlink_to(directory)
        return
    beside = Path(tempfile.mkdtemp(prefix=f".{Path(link).name}", dir=Path(link).parent))
    (beside / "tmp.symlink").symlink_to(directory)
    (beside / "tmp.symlink").rename(link)
    beside.rmdir()


def _write(path: Path, value: bytes, flag: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flag, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        file.write(value)


def _mount_beneath(fresh: str, target: str) -> bool:
    call = ctypes.CDLL(None, use_errno=True).syscall
    tree = call(_SYS_OPEN_TREE, _AT_FDCWD, fresh.encode(), _OPEN_TREE_CLONE)
    if tree < 0:
        return False
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_BENEATH
    done: int = call(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), flags)
    os.close(tree)
    return done == 0


def _umount(target: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(target.encode(), _MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), "umount2", target)


def _mount(*arguments: str) -> None:
    _run("mount", *arguments)


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True)


def main() -> None:
    """One call, as standard input says."""
    os.umask(0o022)
    call = json.load(sys.stdin)
    function = {f.__name__: f for f in (sops_nix, agenix, mounted, write_in_place, remove)}[call.pop("do")]
    if "files" in call:
        call["files"] = {name: base64.b64decode(value) for name, value in call["files"].items()}
    json.dump(function(**call), sys.stdout)


if __name__ == "__main__":
    main()
