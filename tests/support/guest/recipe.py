# SPDX-License-Identifier: MIT
"""What a guest is made of: Debian packages, what is left out of the image, and the units that remain.

Everything here aims at a fast boot under software emulation: no journal, no udev, no terminal, no clean-up.
What stays is systemd as PID 1, which imports credentials and hands them to units as on any other machine.
"""

from __future__ import annotations

import enum
import fnmatch
from typing import Final


class Variant(enum.StrEnum):
    """A Debian release, for its systemd."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"
    TESTING = "testing"
    """It has systemd 260 or later. Only tests at night boot it."""

    @property
    def systemd(self) -> int:
        """Major version of its systemd; of a release that changes, the least that tests need."""
        return {Variant.BOOKWORM: 252, Variant.TRIXIE: 257, Variant.TESTING: 260}[self]


STABLE: Final = (Variant.BOOKWORM, Variant.TRIXIE)
"""The releases whose guests boot in each run of the tests."""
KERNEL_SUITE: Final = Variant.TRIXIE
"""Both guests run on this release's kernel."""
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
BUTTON_MODULES: Final = ("drivers/input/evdev.ko", "drivers/acpi/button.ko")
"""Without these no guest notices its power button."""
DEVICE_MODULES: Final = (
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
)
"""What the kernel has not built in of disks, networks and vsock, each after what it needs."""
LOOPBACK_MODULE: Final = "net/vmw_vsock/vsock_loopback.ko"
"""With it, a process in a guest reaches that guest's own vsock ports. Only a test of that loads it."""
KERNEL_MODULES: Final = (*BUTTON_MODULES, *DEVICE_MODULES, LOOPBACK_MODULE)

VSOCK_SUITE: Final = Variant.TESTING
VSOCK_PACKAGE: Final = "vhost-device-vsock"
"""Debian 13 has none yet. It asks for libc 2.34, so that one for any newer release runs on all of them."""

PACKAGES: Final = ("systemd-sysv", "kmod", "mount", "usr-is-merged", "busybox")
"""Busybox is there for its ip and nc; since Debian 14 nothing else brings mount along."""
TPM_PACKAGES: Final = {
    Variant.TRIXIE: (
        *("libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64"),
        "libtss2-tcti-mssim0t64",
    ),
}
"""With these, systemd-creds in a root can use a TPM. They stay out of the image, as no guest has one."""
LEFT_OUT_OF_ROOT: Final = ("doc", "man", "info", "locale")
"""Directories of /usr/share that are not even installed."""

COMMAND_LINE: Final = "console=ttyS0 reboot=t panic=-1 quiet"
"""What microvm.nix gives a guest, without its early console."""
DONE: Final = "credferry-guest: done"
"""The line that every guest prints once it is up and its credentials are printed, if they are to be."""

_LEFT_OUT: Final = (
    "boot/*",
    "dev/*",
    "proc/*",
    "run/*",
    "sys/*",
    "tmp/*",
    "etc/systemd/system/*",
    "usr/bin/apt*",
    "usr/bin/bash",
    "usr/bin/dpkg*",
    "usr/bin/gencat",
    "usr/bin/iconv",
    "usr/bin/localedef",
    "usr/bin/openssl",
    "usr/bin/perl*",
    "usr/games/*",
    "usr/include/*",
    "usr/lib/apt/*",
    "usr/lib/dpkg/*",
    "usr/lib/init/*",
    "usr/lib/locale/*",
    "usr/lib/modules/*",
    "usr/lib/systemd/boot/*",
    "usr/lib/systemd/catalog/*",
    "usr/lib/systemd/system-environment-generators/*",
    "usr/lib/systemd/system-generators/*",
    "usr/lib/systemd/systemd-coredump",
    "usr/lib/systemd/systemd-cryptsetup",
    "usr/lib/systemd/systemd-export",
    "usr/lib/systemd/systemd-homed",
    "usr/lib/systemd/systemd-hostnamed",
    "usr/lib/systemd/systemd-import*",
    "usr/lib/systemd/systemd-journal*",
    "usr/lib/systemd/systemd-localed",
    "usr/lib/systemd/systemd-logind",
    "usr/lib/systemd/systemd-machined",
    "usr/lib/systemd/systemd-networkd*",
    "usr/lib/systemd/systemd-portabled",
    "usr/lib/systemd/systemd-pull",
    "usr/lib/systemd/systemd-resolved",
    "usr/lib/systemd/systemd-sysupdate*",
    "usr/lib/systemd/systemd-timedated",
    "usr/lib/systemd/systemd-timesyncd",
    "usr/lib/systemd/user*",
    "usr/lib/sysusers.d/*",
    "usr/lib/tmpfiles.d/*",
    "usr/lib/udev/*",
    "usr/lib/x86_64-linux-gnu/gconv/*",
    "usr/lib/x86_64-linux-gnu/libdb-5*",
    "usr/lib/x86_64-linux-gnu/libsemanage*",
    "usr/lib/x86_64-linux-gnu/libsepol*",
    "usr/lib/x86_64-linux-gnu/libsqlite3*",
    "usr/lib/x86_64-linux-gnu/libtss2*",
    "usr/lib/x86_64-linux-gnu/perl*",
    "usr/sbin/fsck*",
    "usr/sbin/iconvconfig",
    "usr/sbin/ldconfig",
    "usr/sbin/mkfs*",
    "usr/share/*",
    "usr/src/*",
    "var/cache/*",
    "var/lib/apt/*",
    "var/lib/dpkg/*",
    "var/log/*",
)

_MASKED: Final = (
    "cryptsetup.target",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty.target",
    "integritysetup.target",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "local-fs.target",
    "proc-sys-fs-binfmt_misc.automount",
    "remote-fs.target",
    "swap.target",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-boot-random-seed.service",
    "systemd-creds.socket",
    "systemd-firstboot.service",
    "systemd-hostnamed.socket",
    "systemd-hwdb-update.service",
    "systemd-initctl.socket",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-journald-audit.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-pcrextend.socket",
    "systemd-pcrlock.socket",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-sysext.socket",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup.service",
    "systemd-update-done.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
    "tmp.mount",
    "veritysetup.target",
)

_TARGET = """\
[Unit]
Description=A guest that is up
Requires=basic.target
After=basic.target
AllowIsolate=yes
Wants=credferry-guest-done.service
"""

_DONE_UNIT = f"""\
[Unit]
Description=Tells that the guest is up
Wants=credferry-guest-power-button.service
After=credferry-guest-power-button.service

[Service]
Type=oneshot
StandardOutput=file:/dev/console
ExecStart=/bin/echo "{DONE}"
"""

# logind would need a system bus. The event device is open before the unit counts as started, so no press of
# the button is lost after that.
_POWER_BUTTON_UNIT = """\
[Unit]
Description=Powers off when the power button is pressed

[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh /usr/lib/credferry-guest/power-button
"""

_POWER_BUTTON_SCRIPT = """\
set -eu
for module in evdev button; do
    insmod "/usr/lib/credferry-guest/$module.ko"
done
for input in /sys/class/input/event*; do
    if grep -qx 'Power Button' "$input/device/name"; then
        exec 3<"/dev/input/${input##*/}"
    fi
done
systemd-notify --ready
head -c 24 <&3 >/dev/null
exec systemctl poweroff
"""

FILES: Final[dict[str, str]] = {
    "etc/systemd/system/credferry-guest.target": _TARGET,
    "etc/systemd/system/credferry-guest-done.service": _DONE_UNIT,
    "etc/systemd/system/credferry-guest-power-button.service": _POWER_BUTTON_UNIT,
    "usr/lib/credferry-guest/power-button": _POWER_BUTTON_SCRIPT,
    # Never asked on a first boot; tests that seal for a guest bring their own.
    "etc/machine-id": "c0ffee00c0ffee00c0ffee00c0ffee00\n",
}
LINKS: Final[dict[str, str]] = {
    "init": "usr/lib/systemd/systemd",
    "etc/mtab": "../proc/self/mounts",
    "etc/systemd/system/default.target": "credferry-guest.target",
    **{f"etc/systemd/system/{unit}": "/dev/null" for unit in _MASKED},
}


def is_left_out(name: str) -> bool:
    """Whether a path of the root, without its leading slash, stays out of the image."""
    return name in FILES or name in LINKS or any(fnmatch.fnmatchcase(name, each) for each in _LEFT_OUT)
