# SPDX-License-Identifier: MIT
"""What a live VM of the tests needs besides its guest's receiver: a vsock, and what stands behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.guest import OverlayFile, credential_printer, receiver, vsock_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.deployment import Deployment, VmFiles
    from tests.support.guest import OverlayEntry

_STAYS = """\
[Service]
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo "credferry-guest: boot $(cat /proc/sys/kernel/random/boot_id)"'
"""


def with_vsock(deployment: Deployment, files: VmFiles, cid: int = 5) -> VmFiles:
    """The VM with a vsock, as cloud-hypervisor gives it; the host gets the program that stands behind it."""
    deployment.host.write("/usr/bin/vhost-device-vsock", vsock_device().read_bytes(), 0o755)
    arguments = [*files.arguments, "--vsock", f"cid={cid},socket=notify.vsock"]
    size = arguments.index("--memory") + 1
    arguments[size] = arguments[size].replace("mergeable=on,shared=off", "shared=on")
    return replace(files, arguments=arguments)


def live_printer(plain: Sequence[str]) -> dict[str, OverlayEntry]:
    """`credential_printer` in a guest with the receiver; its unit stays up and prints the boot's ID, too."""
    drop_in = "/etc/systemd/system/demo-oem-credentials.service.d/stays.conf"
    return {**receiver({}), **credential_printer(plain=plain), drop_in: OverlayFile(_STAYS.encode())}
