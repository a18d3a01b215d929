# SPDX-License-Identifier: MIT
"""What a test adds to a guest: units, keys, an identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import newc, recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_UNITS = "/etc/systemd/system"
_SCRIPTS = "/usr/lib/credferry-guest"
_GUEST = Path(__file__).resolve().parents[3] / "contrib/guest"


@dataclass(frozen=True, slots=True)
class OverlayFile:
    """A regular file of root's."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class OverlayLink:
    """A symbolic link."""

    target: str


OverlayEntry = OverlayFile | OverlayLink


def entries(overlay: Mapping[str, OverlayEntry]) -> Iterator[newc.Entry]:
    """The archive entries of an overlay: absolute paths, and their parents with mode 0755."""
    parents: set[str] = set()
    for path, content in overlay.items():
        name = path.removeprefix("/")
        above = name.split("/")[:-1]
        for depth in range(1, len(above) + 1):
            parent = "/".join(above[:depth])
            if parent not in parents:
                parents.add(parent)
                yield newc.directory(parent)
        match content:
            case OverlayFile(data, mode):
                yield newc.file(name, data, mode)
            case OverlayLink(target):
                yield newc.link(name, target)


def credential_printer(plain: Iterable[str] = (), sealed: Iterable[str] = ()) -> dict[str, OverlayEntry]:
    """Units that print what became of each credential, and never a value.

    ``demo-oem-credentials.service`` loads plain ones by name and sealed ones from where the guest's PID 1
    puts what came over SMBIOS, and prints ``credferry-guest: NAME sha256=<16 digits> systemd=<version>`` or
    ``credferry-guest: NAME missing`` for each. A sealed one that is absent, or that this guest cannot open,
    keeps the whole unit from starting: then ``credferry-guest: NAME missing`` is printed for those that are
    absent and ``credferry-guest: NAME unopened`` for all others. `recipe.DONE` comes last in any case.
    """
    plain, sealed = tuple(plain), tuple(sealed)
    loads = [f"LoadCredential={name}" for name in plain]
    loads += [f"LoadCredentialEncrypted={name}:/run/credentials/@system/{name}" for name in sealed]
    names = " ".join((*plain, *sealed))
    # systemd 257 writes a terminal reset to the console without ending the line: hence the empty line.
    printer = f"""\
echo
set -- $(systemctl --version)
cd "$CREDENTIALS_DIRECTORY" || cd /
for name in {names}; do
    if [ -f "$name" ]; then
        sum=$(sha256sum "$name")
        echo "credferry-guest: $name sha256=${{sum%"${{sum#????????????????}}"}} systemd=$2"
    else
        echo "credferry-guest: $name missing"
    fi
done
"""
    failed = f"""\
echo
for name in {names}; do
    if [ -f "/run/credentials/@system/$name" ]; then
        echo "credferry-guest: $name unopened"
    else
        echo "credferry-guest: $name missing"
    fi
done
"""
    failure_unit = "credferry-guest-failed.service"
    unit = _oneshot(
        "Prints credentials", f"{_SCRIPTS}/print", service=loads, unit=[f"OnFailure={failure_unit}"]
    )
    return {
        f"{_SCRIPTS}/print": OverlayFile(printer.encode()),
        f"{_SCRIPTS}/failed": OverlayFile(failed.encode()),
        f"{_UNITS}/demo-oem-credentials.service": OverlayFile(unit),
        f"{_UNITS}/{failure_unit}": OverlayFile(_oneshot("Prints what is missing", f"{_SCRIPTS}/failed")),
        f"{_UNITS}/credferry-guest-done.service.d/after.conf": OverlayFile(
            f"[Unit]\nAfter=demo-oem-credentials.service {failure_unit}\n".encode()
        ),
        f"{_UNITS}/credferry-guest.target.wants/demo-oem-credentials.service": OverlayLink(
            "../demo-oem-credentials.service"
        ),
    }


def reboots() -> dict[str, OverlayEntry]:
    """A unit that reboots the guest, at once, each time that it has come up."""
    unit = _oneshot(
        "Reboots", "-c 'systemctl reboot --force --force'", unit=["After=credferry-guest-done.service"]
    )
    return {
        f"{_UNITS}/credferry-guest-reboot.service": OverlayFile(unit),
        f"{_UNITS}/credferry-guest.target.wants/credferry-guest-reboot.service": OverlayLink(
            "../credferry-guest-reboot.service"
        ),
    }


def device_user(script: str) -> dict[str, OverlayEntry]:
    """A unit that makes disks, networks and vsock known to the kernel, then runs lines of shell.

    What they print is on the console, before `recipe.DONE`; the first that fails ends them, and
    ``credferry-guest: devices failed`` is printed. There are mounts at ``/run/NAME`` to be made by ``share
    NAME TAG`` and ``volume NAME DEVICE``, and ``network NAME ADDRESS/BITS`` brings an interface up.
    """
    names = " ".join(Path(module).name for module in recipe.DEVICE_MODULES)
    lines = f"""\
echo
trap '[ $? -eq 0 ] || echo "credferry-guest: devices failed"' EXIT
set -eu
for module in {names}; do
    insmod "{_SCRIPTS}/$module"
done
volume() {{
    mkdir "/run/$1"
    mount -t ext4 -o ro "$2" "/run/$1"
}}
share() {{
    mkdir "/run/$1"
    mount -t virtiofs "$2" "/run/$1"
}}
network() {{
    busybox ip link set "$1" up
    busybox ip addr add "$2" dev "$1"
}}
{script}
"""
    unit = "credferry-guest-devices.service"
    return {
        f"{_SCRIPTS}/devices": OverlayFile(lines.encode()),
        f"{_UNITS}/{unit}": OverlayFile(_oneshot("Uses its devices", f"{_SCRIPTS}/devices")),
        f"{_UNITS}/credferry-guest-done.service.d/after-devices.conf": OverlayFile(
            f"[Unit]\nAfter={unit}\n".encode()
        ),
        f"{_UNITS}/credferry-guest.target.wants/{unit}": OverlayLink(f"../{unit}"),
    }


def sealing_identity(machine_id: str, secret: bytes) -> dict[str, OverlayEntry]:
    """The guest's machine ID and the key file that opens what is sealed for it, as systemd wants them."""
    return {
        "/etc/machine-id": OverlayFile(f"{machine_id}\n".encode(), 0o444),
        "/var/lib/systemd/credential.secret": OverlayFile(secret, 0o400),
    }


def key_taker() -> dict[str, OverlayEntry]:
    """The units of contrib/guest that take the guest's key from the host."""
    units = (_GUEST / "run-credferry\\x2dkey.mount", _GUEST / "credferry-key.service")
    return {f"{_UNITS}/{each.name}": OverlayFile(each.read_bytes()) for each in units} | {
        f"{_UNITS}/sysinit.target.wants/credferry-key.service": OverlayLink("../credferry-key.service")
    }


def _oneshot(
    description: str, script: str, *, service: Sequence[str] = (), unit: Sequence[str] = ()
) -> bytes:
    lines = ["[Unit]", f"Description={description}", *unit, "", "[Service]", "Type=oneshot"]
    lines += ["StandardOutput=file:/dev/console", f"ExecStart=/bin/sh {script}", *service, ""]
    return "\n".join(lines).encode()
