# SPDX-License-Identifier: MIT
"""Guests to boot: Debian roots with systemd 252 and 257, as initramfs images, and the kernel they run on.

``python -m tests.support.guest`` builds what is missing. It takes about a minute and needs root, mmdebstrap
and a Debian mirror; what is built stays in the cache until its recipe changes.
"""

from __future__ import annotations

from .build import vsock_device
from .chroot import chroot_command, chroot_run
from .image import COMMAND_LINE, Guest, guest
from .overlay import (
    OverlayEntry,
    OverlayFile,
    OverlayLink,
    credential_printer,
    device_user,
    key_taker,
    reboots,
    sealing_identity,
)
from .receiving import SHELL_PORT, connect_inside, receiver, shell, vsock_client
from .recipe import DONE, STABLE, Variant

__all__ = [
    "COMMAND_LINE",
    "DONE",
    "SHELL_PORT",
    "STABLE",
    "Guest",
    "OverlayEntry",
    "OverlayFile",
    "OverlayLink",
    "Variant",
    "chroot_command",
    "chroot_run",
    "connect_inside",
    "credential_printer",
    "device_user",
    "guest",
    "key_taker",
    "reboots",
    "receiver",
    "sealing_identity",
    "shell",
    "vsock_client",
    "vsock_device",
]
