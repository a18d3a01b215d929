# SPDX-License-Identifier: MIT
"""What a machine is made of: Debian's packages and kernel."""

from __future__ import annotations

from typing import Final

from tests.support.guest.recipe import Variant

KERNEL_SUITE: Final = Variant.TRIXIE
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
"""It has the drivers of TPMs, NVMe disks and virtio consoles built in, unlike that of Debian 12."""
FIRMWARE_PACKAGE: Final = "ovmf"
FIRMWARE_SUITE: Final = Variant.TRIXIE

PACKAGES: Final = (
    *("systemd-sysv", "udev", "kmod", "mount", "usr-is-merged", "dbus", "procps"),
    # What the Debian package of credferry depends on.
    *("python3", "python3-gi", "gir1.2-glib-2.0", "python3-systemd"),
)
LIBRARIES_OF_TPM: Final = {
    Variant.BOOKWORM: ("libtss2-esys-3.0.2-0", "libtss2-mu0", "libtss2-rc0"),
    Variant.TRIXIE: ("libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64"),
}
"""What docs/tpm.md installs. Recommended packages come along, as on an operator's host."""
PYTHON: Final = {Variant.BOOKWORM: "3.11", Variant.TRIXIE: "3.13"}
LEFT_OUT: Final = ("doc", "man", "info", "locale")
