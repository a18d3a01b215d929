# SPDX-License-Identifier: MIT
"""Examines the host without a change to it: reads small files and units' properties, runs short programs.

Some of the files belong to the VMs' user, who can put anything there. A file that could block or is large is
not read. If that user could have made a link, a file is read only if every user may read it. The doctor runs
only programs that root alone can change.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.doctor.finding import UnseenError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from credferry.agent.doctor.unit_properties import UnitReader

_SECONDS: Final = 20.0
_FILE_MAX: Final = 1 << 20
_KEPT: Final = ("PATH", "DBUS_SYSTEM_BUS_ADDRESS")


def is_root() -> bool:
    """Whether this process can examine everything."""
    return os.geteuid() == 0


def is_nixos() -> bool:
    """Whether units and drop-ins come from the system's configuration, and cannot be edited."""
    return Path("/etc/NIXOS").exists()


def text_of(path: Path) -> str | None:
    """The text of a small regular file; None if the file does not exist.

    Raises `UnseenError` if it may not be read, or is not a small regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnseenError(f"{path}: {os.strerror(error.errno or 0)}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not status.st_mode & stat.S_IROTH and changeable(path) is not None:
            raise UnseenError(
                f"{path}: not read, because other users than root can replace it and doctor runs as root"
            )
        # Files in /proc report size 0.
        if not stat.S_ISREG(status.st_mode) or status.st_size > _FILE_MAX:
            raise UnseenError(f"{path}: not a small regular file")
        return file.read(_FILE_MAX).decode(errors="replace")


def changeable(path: Path) -> tuple[Path, str] | None:
    """The first component of a path, or of its target, that another user can change, and that user.

    None if root alone can change them, or if a component cannot be examined.
    """
    for start in (path, Path(os.path.realpath(path))):
        for component in (*reversed(start.parents), start):
            try:
                status = component.lstat()
            except OSError:
                return None
            if status.st_uid != 0:
                return component, _user_name(status.st_uid)
            # In a sticky directory such as /nix/store, only root may replace root's entries.
            is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_sticky
            if writable and not stat.S_ISLNK(status.st_mode):
                return component, "other users than root"
    return None


def run(
    *argv: str, user: str = "", directory: Path = Path("/"), seconds: float = _SECONDS, said: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program that changes nothing. If this process is root, ``user`` names the user to run it as.

    ``said`` is its standard input. Raises `UnseenError` if the program cannot be run, or does not end in
    time.
    """
    identity: dict[str, Any] = {}
    if user and is_root():
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise UnseenError(f"user {user} does not exist") from None
        identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        return subprocess.run(
            argv,
            input=said,
            capture_output=True,
            check=False,
            timeout=seconds,
            cwd=directory,
            env={
                "PATH": os.defpath,
                **environment,
                "LC_ALL": "C",
                "SYSTEMD_PAGER": "",
                "SYSTEMD_COLORS": "0",
            },
            encoding="utf-8",
            errors="replace",
            **identity,
        )
    except subprocess.TimeoutExpired:
        raise UnseenError(f"{argv[0]} did not end in time") from None
    except OSError as error:
        raise UnseenError(f"{argv[0]}: {os.strerror(error.errno or 0)}") from None


@cache
def unit(name: str) -> Mapping[str, Any]:
    """All of systemd's properties of a unit, as D-Bus types them (org.freedesktop.systemd1(5)).

    A unit that does not exist has a ``LoadState`` of ``not-found``. The answer is cached for each name.
    Raises `UnseenError`.
    """
    return units().properties(name)


@cache
def units() -> UnitReader:
    """The connection through which this process asks about units."""
    from credferry.agent.doctor.unit_properties import (  # noqa: PLC0415 (GObject's introspection takes long to load)
        UnitReader,
    )

    return UnitReader()


def command_lines(properties: Mapping[str, Any], name: str = "ExecStart") -> list[list[str]]:
    """The argument vectors of a unit's ``ExecStart=`` or another such setting."""
    return [list(each[1]) for each in properties.get(name, [])]


def quiet_lines(*argv: str) -> Sequence[str]:
    """The lines that a program prints; none if it fails. Raises `UnseenError`."""
    done = run(*argv)
    return done.stdout.splitlines() if done.returncode == 0 else ()


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
