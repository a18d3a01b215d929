# SPDX-License-Identifier: MIT
"""What a machine's disk has that no package brings: the way in for tests, and less to do at a boot."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DISK_MEGABYTES: Final = 1024
COMMAND_LINE: Final = (
    "root=/dev/nvme0n1 rootwait rw console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests "
    "8250.nr_uarts=1 systemd.show_status=no"
)
PORT: Final = "credferry.test"
"""The name of the virtio port over which tests act inside."""
_INSIDE: Final = "usr/lib/credferry-test/inside.py"
_UNITS: Final = "etc/systemd/system"
_DEVICE: Final = "dev-virtio\\x2dports-credferry.test.device"
_UNIT: Final = f"""\
[Unit]
Description=Does what tests ask for
Requires={_DEVICE}
After={_DEVICE}

[Service]
ExecStart=/usr/bin/python3 -IS /{_INSIDE} /dev/virtio-ports/{PORT}
Restart=always

[Install]
WantedBy=multi-user.target
"""
# Of all devices, a machine here needs few. Each event of another one costs udev a fraction of a second.
_COLDPLUG: Final = """\
[Service]
ExecStart=
ExecStart=udevadm trigger --action=add --subsystem-match=tpm* --subsystem-match=virtio-ports
"""
# The one that waits for a TPM stays.
_GENERATORS: Final = (
    *("systemd-cryptsetup", "systemd-debug", "systemd-fstab", "systemd-getty", "systemd-gpt-auto"),
    *(
        "systemd-hibernate-resume",
        "systemd-integritysetup",
        "systemd-rc-local",
        "systemd-run",
        "systemd-ssh",
    ),
    *("systemd-system-update", "systemd-sysv", "systemd-veritysetup", "systemd-bless-boot"),
)
_MASKED: Final = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "e2scrub_reap.service", "fstrim.timer", "getty.target"),
    *("modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service"),
    *("modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@loop.service", "run-lock.mount"),
    *("proc-sys-fs-binfmt_misc.automount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-ask-password-console.path"),
    *("systemd-ask-password-wall.path", "systemd-binfmt.service", "systemd-hwdb-update.service"),
    *("systemd-journal-catalog-update.service", "systemd-journal-flush.service", "systemd-logind.service"),
    *("systemd-modules-load.service", "systemd-pstore.service", "systemd-random-seed.service"),
    *("systemd-remount-fs.service", "systemd-sysctl.service", "systemd-sysext.socket"),
    *("systemd-sysusers.service", "systemd-timesyncd.service", "systemd-tmpfiles-clean.timer"),
    *("systemd-tmpfiles-setup-dev-early.service", "systemd-udev-load-credentials.service"),
    *("systemd-update-done.service", "systemd-update-utmp.service", "systemd-user-sessions.service"),
    *("tmp.mount", "ldconfig.service", "systemd-hostnamed.socket", "systemd-update-utmp-runlevel.service"),
)
_FILES: Final = {
    "etc/machine-id": "c0ffee00c0ffee00c0ffee00c0ffee11\n",
    "etc/hostname": "machine\n",
    "etc/systemd/journald.conf.d/test.conf": "[Journal]\nStorage=volatile\nRateLimitBurst=0\n",
    f"{_UNITS}/credferry-inside.service": _UNIT,
    f"{_UNITS}/systemd-udev-trigger.service.d/few.conf": _COLDPLUG,
}
_LINKS: Final = {
    f"{_UNITS}/default.target": "/usr/lib/systemd/system/multi-user.target",
    f"{_UNITS}/multi-user.target.wants/credferry-inside.service": "../credferry-inside.service",
    **{f"{_UNITS}/{unit}": "/dev/null" for unit in _MASKED},
    **{f"etc/systemd/system-generators/{name}-generator": "/dev/null" for name in _GENERATORS},
}


def add(root: Path) -> None:
    """Write all of it below a root."""
    inside = Path(__file__).with_name("inside.py").read_text()
    for name, text in (_FILES | {_INSIDE: inside}).items():
        path = _place(root, name)
        path.write_text(text)
    for name, target in _LINKS.items():
        _place(root, name).symlink_to(target)


def _place(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path
