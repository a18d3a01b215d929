# SPDX-License-Identifier: MIT
"""A guest with the receiver from contrib, and units that load credentials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import recipe
from .build import root
from .overlay import OverlayFile, OverlayLink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .overlay import OverlayEntry
    from .recipe import Variant

_CONTRIB = Path(__file__).parents[3] / "contrib/guest"
_UNITS = "/etc/systemd/system"
_SCRIPTS = "/usr/lib/credferry-guest"
_MODULES = " ".join(Path(module).name for module in recipe.DEVICE_MODULES if "vsock" in module)

# The image has no modprobe configuration: a system's own kernel loads these when the socket is made.
_VSOCK_UNIT = f"""\
[Unit]
Description=Makes vsock known to the kernel
DefaultDependencies=no
Before=credferry-receive.socket

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'for each in {_MODULES}; do insmod {_SCRIPTS}/$$each; done'
"""

# A unit is up once it has read its credential, and does not come up where that has "bad" in it.
_LOADER = """\
set -eu
sum=$(sha256sum <"$CREDENTIALS_DIRECTORY/$2")
printf '\\ncredferry-guest: %s %s\\n' "$1" "${sum%"${sum#????????????????}"}" >/dev/console
case $(cat "$CREDENTIALS_DIRECTORY/$2") in *bad*) exit 1 ;; esac
systemd-notify --ready
exec sleep infinity
"""


def receiver(units: Mapping[str, tuple[str, Sequence[str]]]) -> dict[str, OverlayEntry]:
    """The receiver as its how-to says, and services that run for ever.

    ``units`` has for each service the file in its credential directory that it reads, and its lines. At each
    start it prints ``credferry-guest: NAME DIGEST``, 16 hex digits of its credential's SHA-256.
    """
    wants = f"{_UNITS}/credferry-guest.target.wants"
    # A busy machine's emulated guest takes many seconds for what takes a guest with KVM a fraction of one.
    script = (_CONTRIB / "credferry-receive").read_bytes().replace(b"sleep 30 ", b"sleep 120 ")
    overlay: dict[str, OverlayEntry] = {
        "/usr/lib/credferry/credferry-receive": OverlayFile(script, 0o755),
        f"{_SCRIPTS}/load": OverlayFile(_LOADER.encode()),
        f"{_UNITS}/credferry-guest-vsock.service": OverlayFile(_VSOCK_UNIT.encode()),
        f"{_UNITS}/credferry-receive.socket.d/vsock.conf": OverlayFile(
            b"[Unit]\nRequires=credferry-guest-vsock.service\n"
        ),
        f"{_UNITS}/sockets.target.wants/credferry-receive.socket": OverlayLink(
            "../credferry-receive.socket"
        ),
    }
    overlay[f"{_UNITS}/credferry-receive@.service.d/slow.conf"] = OverlayFile(
        b"[Service]\nRuntimeMaxSec=600\nEnvironment=CREDFERRY_RECEIVE_UNIT_SECONDS=120\n"
    )
    for name in ("credferry-receive.socket", "credferry-receive@.service"):
        overlay[f"{_UNITS}/{name}"] = OverlayFile((_CONTRIB / name).read_bytes())
    for name, (file, lines) in units.items():
        service = [
            "[Service]",
            "Type=notify",
            "NotifyAccess=all",
            "TimeoutStartSec=infinity",  # a test may hold a start up
            f"ExecStart=/bin/sh {_SCRIPTS}/load {name} {file}",
            *lines,
            "",
        ]
        overlay[f"{_UNITS}/{name}.service"] = OverlayFile("\n".join(service).encode())
        overlay[f"{wants}/{name}.service"] = OverlayLink(f"../{name}.service")
    after = " ".join(f"{name}.service" for name in units)
    overlay[f"{_UNITS}/credferry-guest-done.service.d/after-receiver.conf"] = OverlayFile(
        f"[Unit]\nAfter={after}\n".encode()
    )
    return overlay


SHELL_PORT: Final = 902


def shell() -> dict[str, OverlayEntry]:
    """A shell of root's on vsock port 902, for tests that act inside the guest. It needs `receiver`, too."""
    socket = (
        "[Unit]\nRequires=credferry-guest-vsock.service\nAfter=credferry-guest-vsock.service\n"
        f"[Socket]\nListenStream=vsock::{SHELL_PORT}\nAccept=yes\n"
    )
    service = (
        "[Service]\nExecStart=/bin/sh\nStandardInput=socket\nStandardOutput=socket\nStandardError=socket\n"
    )
    return {
        f"{_UNITS}/credferry-guest-shell.socket": OverlayFile(socket.encode()),
        f"{_UNITS}/credferry-guest-shell@.service": OverlayFile(service.encode()),
        f"{_UNITS}/sockets.target.wants/credferry-guest-shell.socket": OverlayLink(
            "../credferry-guest-shell.socket"
        ),
    }


def vsock_client(variant: Variant) -> dict[str, OverlayEntry]:
    """What `connect_inside` needs: no program of the image can make a vsock connection, and Perl can."""
    return {"/usr/bin/perl": OverlayFile((root(variant) / "usr/bin/perl").read_bytes(), 0o755)}


def connect_inside(cid: int, port: int = 900) -> str:
    """A script that connects to a vsock port from inside the guest, and prints all that comes from there."""
    loopback = f"{_SCRIPTS}/{Path(recipe.LOOPBACK_MODULE).name}"
    program = (
        f'socket S, 40, 1, 0 or die $!; connect S, pack "SSLLx4", 40, 0, {port}, {cid} or die $!; print <S>'
    )
    return f"[ -e /sys/module/vsock_loopback ] || insmod {loopback}; LC_ALL=C perl -e '{program}' 2>&1"
