# SPDX-License-Identifier: MIT
"""The process that holds a throwaway host: all of the host dies with it, and it with whoever started it.

Run by path, standard library only: ``warden.py hold STAGE BIND…`` under a pipe as standard input. The
pipe's end means that the owner is gone, however it went. Layers, from the outside:

* ``hold`` keeps the host's control groups, as those outlive their processes;
* ``unshare`` makes a PID and a mount namespace: the one kills every process, the other drops every mount;
* ``boot`` stacks an overlay over ``/`` on a tmpfs, makes it a machine of its own, becomes systemd-nspawn.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "credferry-host-"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

# A directory of its own in each hierarchy that systemd-nspawn writes to: two hosts would otherwise share
# its fixed names "payload" and "supervisor".
_HIERARCHIES = ("systemd", "unified")

# What the outer machine has set up for itself and a fresh one has not.
_FORGOTTEN = (
    "etc/credferry",
    "etc/credstore",
    "etc/credstore.encrypted",
    "etc/systemd/journald.conf.d",
    "etc/systemd/system",
    "etc/systemd/system.conf.d",
    "etc/systemd/system.control",
    "etc/tmpfiles.d",
    "var/lib/credferry",
    "var/lib/microvms",
    "var/lib/systemd/credential.secret",
    "var/log/journal",
)

# Part of every Debian, and no use here. What the administrator has enabled is gone with /etc already.
_MASKED = (
    "getty.target",
    "ldconfig.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-hwdb-update.service",
    "systemd-initctl.socket",
    "systemd-logind.service",
    "systemd-networkd.socket",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
    "tmp.mount",
)

# Nothing is lost or held back that a test may look for.
_JOURNALD = """[Journal]
Storage=persistent
RateLimitIntervalSec=0
ForwardToConsole=no
ForwardToSyslog=no
ForwardToWall=no
Audit=no
"""


def hold(stage: Path, binds: list[str]) -> int:
    """Boot a host and keep it until standard input ends or the host does; then leave nothing of it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _remove_stale_cgroups()
    cgroups = [_own_cgroup(hierarchy) / f"{CGROUP_PREFIX}{os.getpid()}" for hierarchy in _hierarchies()]
    for cgroup in cgroups:
        cgroup.mkdir()
    command = [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *(sys.executable, "-I", __file__, "boot", str(stage), ":".join(map(str, cgroups)), *binds),
    ]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        lifeline = sys.stdin.fileno()
        with os.fdopen(os.pidfd_open(child.pid), "rb") as ended:
            select.select([lifeline, ended], [], [])
    finally:
        child.kill()
        # As the reaper of its descendants it sees the last one go: a PID namespace's first process is
        # reaped only when all the others are dead.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        for cgroup in cgroups:
            _remove_cgroup(cgroup)
    return 0


def boot(stage: Path, cgroups: list[Path], binds: list[str]) -> None:
    """Become systemd-nspawn over an overlay of ``/``, in namespaces that are private already."""
    for cgroup in cgroups:
        (cgroup / "cgroup.procs").write_text("0")
    root = _overlay(stage)
    # systemd-nspawn leaves locks and directories in /run/systemd; the machine's own /run is not its place.
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    _make_fresh(root)
    arguments = [
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--settings=no", "--link-journal=no"),
        *("--directory", str(root), "--machine=credferry-host", "--private-network"),
        *("--resolv-conf=off", "--timezone=off", "--console=pipe", "--notify-ready=yes"),
        *binds,
        "--boot",
    ]
    os.execvpe(arguments[0], arguments, {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})  # noqa: S606 (none is wanted)


def _overlay(stage: Path) -> Path:
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(stage))
    root = stage / "root"
    root.mkdir()
    # An overlay shows one file system: where the system is spread over several, each gets its own.
    tops = [Path("/"), *(top for top in map(Path, ("/usr", "/etc", "/var", "/opt")) if top.is_mount())]
    for number, top in enumerate(tops):
        upper, work = stage / f"upper{number}", stage / f"work{number}"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir={top},upperdir={upper},workdir={work}"
        _mount("-t", "overlay", "-o", layers, "overlay", str(root / top.relative_to("/")))
    return root


def _make_fresh(root: Path) -> None:
    for name in _FORGOTTEN:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    units = root / "etc/systemd/system"
    generators = root / "etc/systemd/system-generators"
    for directory in (units, generators, root / "etc/systemd/journald.conf.d", root / "var/log/journal"):
        directory.mkdir(parents=True, exist_ok=True)
    for name in _MASKED:
        (units / name).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    # Generators would bring the outer machine back: its init scripts, file systems and database clusters.
    for generator in (root / "usr/lib/systemd/system-generators").iterdir():
        mask = generators / generator.name
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")
    (root / "etc/systemd/journald.conf.d/credferry-test.conf").write_text(_JOURNALD)
    (root / "etc/machine-id").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (root / "etc/hostname").write_text("credferry-host\n")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _hierarchies() -> list[Path]:
    """The places of control group v1's systemd hierarchy and of v2, as far as they are mounted."""
    found = [CGROUP_ROOT / name for name in _HIERARCHIES if (CGROUP_ROOT / name).is_dir()]
    return found or [CGROUP_ROOT]


def _own_cgroup(hierarchy: Path) -> Path:
    """The control group of this process: below it is the place where a scope has delegated to us."""
    wanted = "name=systemd" if hierarchy.name == "systemd" else ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == wanted:
            return hierarchy / path.lstrip("/")
    return hierarchy


def _remove_stale_cgroups() -> None:
    """Remove what a warden left that was itself killed."""
    for hierarchy in _hierarchies():
        for cgroup in _own_cgroup(hierarchy).glob(f"{CGROUP_PREFIX}*"):
            if not Path("/proc", cgroup.name.removeprefix(CGROUP_PREFIX)).exists():
                _remove_cgroup(cgroup)


def _remove_cgroup(cgroup: Path) -> None:
    directories = [Path(parent) for parent, _, _ in os.walk(cgroup, topdown=False)]
    for directory in directories:
        with contextlib.suppress(OSError):  # one that is busy after all is taken by the next warden
            directory.rmdir()


def main(arguments: list[str]) -> int:
    """``hold STAGE BIND…``, or ``boot STAGE CGROUP:… BIND…`` as ``hold`` calls it."""
    match arguments:
        case ["hold", stage, *binds]:
            return hold(Path(stage), binds)
        case ["boot", stage, cgroups, *binds]:
            boot(Path(stage), [Path(cgroup) for cgroup in cgroups.split(":")], binds)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
