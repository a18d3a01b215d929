# SPDX-License-Identifier: MIT
"""Runs a program of a guest's root on this machine, for what needs no boot: another systemd-creds, say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from . import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .recipe import Variant

# All mounts are in a namespace of this script's own, and go with it. The root stays untouched: it is the
# lower layer of an overlay whose upper one is on a tmpfs.
_SCRIPT = """\
set -eu
root=$1 share=$2 machine_id=$3
shift 3
mount -t tmpfs -o mode=0755 tmpfs /mnt
mkdir /mnt/upper /mnt/scratch /mnt/root
mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/scratch" overlay /mnt/root
mount -t proc proc /mnt/root/proc
mount --rbind /dev /mnt/root/dev
mkdir /mnt/root/share
[ -z "$share" ] || mount --bind "$share" /mnt/root/share
[ -z "$machine_id" ] || printf '%s\\n' "$machine_id" >/mnt/root/etc/machine-id
exec chroot /mnt/root "$@"
"""


def chroot_command(
    where: Variant | Path, argv: Sequence[str], *, share: Path | None = None, machine_id: str = ""
) -> list[str]:
    """The command that runs a program in a variant's root, or in another one, which is fresh each time.

    It needs root. ``share`` is a directory of the caller's that the program sees as ``/share`` and may write
    to. What the program leaves elsewhere, a systemd key file for one, is gone when it ends. No mount is left
    behind.
    """
    place = where if isinstance(where, Path) else build.root(where)
    command = ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", _SCRIPT, "sh"]
    return [*command, str(place), str(share or ""), machine_id, *argv]


def chroot_run(
    where: Variant | Path,
    argv: Sequence[str],
    *,
    share: Path | None = None,
    machine_id: str = "",
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program as `chroot_command` says. Never raises for its status."""
    return subprocess.run(
        chroot_command(where, argv, share=share, machine_id=machine_id),
        check=False,
        input=stdin,
        capture_output=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **(environment or {})},
    )
