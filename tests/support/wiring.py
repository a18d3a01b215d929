# SPDX-License-Identifier: MIT
"""What a VM's devices need of its host, laid out as microvm.nix does it: scripts below ``current/bin``.

Taps are made by ``tap-up``, and unmade by ``tap-down``; ``virtiofsd-run`` serves the shares. The units of
contrib call them. Addresses, which a host's own network configuration would give, are given there, too.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.guest import vsock_device
from tests.support.installation import VM_USER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.host import Host

NOTIFY = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:8888"
"""The OEM string that microvm.nix adds for VMs with a vsock."""

# The VM's unit gets what the guest's PID 1 says. microvm.nix has socat do this, with a process for each
# message that may be gone before the host's PID 1 looks whose it was; this one stays. As there, a guest that
# waits for us to hang up is not waited for (microvm.nix issue 474), once it has said something. Until then a
# slow one may take any time.
_RELAY = """\
import contextlib, os, socket, sys, threading

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
address = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unit:
    unit.connect("\\0" + address[1:] if address.startswith("@") else address)
    def relay(stream):
        with stream, contextlib.suppress(TimeoutError):
            while said := stream.recv(4096):
                unit.send(said)
                stream.settimeout(0.2)
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=relay, args=(stream,), daemon=True).start()
"""
_RELAY_FILE = "/usr/lib/credferry-test/notify-relay"

# One line in, one line out, for whoever connects.
_SERVER = """\
import socket, sys

with socket.create_server(("0.0.0.0", 7777)) as listener:
    print("listening", flush=True)
    while True:
        stream, _ = listener.accept()
        with stream, stream.makefile("rw") as text:
            text.write(f"{sys.argv[1]} heard {text.readline()}")
"""
SERVER_PORT = 7777


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap device with an address on the host's side, and as many queues as its user opens."""

    name: str
    address: str
    multi_queue: bool = False

    def up(self) -> str:
        """Commands that make it."""
        flags = "vnet_hdr multi_queue" if self.multi_queue else "vnet_hdr"
        return (
            f"ip tuntap add name {self.name} mode tap user {VM_USER} {flags}\n"
            f"ip addr add {self.address} dev {self.name}\n"
            f"ip link set {self.name} up\n"
        )

    def down(self) -> str:
        """Commands that unmake it."""
        return f"ip link delete {self.name}\n"


@dataclass(frozen=True, slots=True)
class Macvtap:
    """A macvtap on top of a link of the host; udev, which makes its node elsewhere, is not in this one."""

    name: str
    link: str
    mac: str

    def up(self) -> str:
        """Commands that make it."""
        system = f"/sys/class/net/{self.name}"
        return (
            f"ip link add link {self.link} name {self.name} address {self.mac} type macvtap mode bridge\n"
            f"ip link set {self.name} up\n"
            f"node=/dev/tap$(<{system}/ifindex)\n"
            f"IFS=: read -r major minor <{system}/macvtap/*/dev\n"
            'rm -f "$node"\n'
            'mknod "$node" c "$major" "$minor"\n'
            f'chown {VM_USER} "$node"\n'
        )

    def down(self) -> str:
        """Commands that unmake it."""
        return f"rm -f /dev/tap$(</sys/class/net/{self.name}/ifindex)\nip link delete {self.name}\n"

    def opened_as(self, *numbers: int) -> str:
        """The lines of microvm-run that open it, once for each queue."""
        node = f"/dev/tap$(</sys/class/net/{self.name}/ifindex)"
        return "".join(f"exec {number}<>{node}\n" for number in numbers)


class Wiring:
    """The devices of one VM on one host. To be laid out before the VM starts; removed with its directory."""

    def __init__(self, host: Host, vm: str) -> None:
        self._host = host
        self._vm = vm
        self.home = f"/var/lib/microvms/{vm}"

    def taps(self, *taps: Tap | Macvtap) -> None:
        """Have taps made when the VM starts, and unmade when it stops."""
        # udev would let everybody open it.
        self._host.run("chmod", "0666", "/dev/net/tun")
        self._script("tap-up", "".join(tap.up() for tap in taps))
        self._script("tap-down", "".join(tap.down() for tap in taps))

    def share(self, directory: str) -> str:
        """Have a directory of the host's served; returns the socket's path."""
        self._host.run("mkdir", "-p", directory)
        name = f"/run/credferry-shares/{self._vm}/files.sock"
        programs = "/usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd"
        options = f"--socket-path={name} --socket-group=kvm -o source={shlex.quote(directory)}"
        # Our own unit serves specs alone; a VM with a program of its own for it brings a unit as well.
        drop_in = f"/etc/systemd/system/microvm-virtiofsd@{self._vm}.service.d/60-program.conf"
        program = f"{self.home}/current/bin/virtiofsd-run"
        self._host.write(
            drop_in, f"[Unit]\nConditionPathExists=\n[Service]\nExecStart=\nExecStart={program}\n"
        )
        self._script(
            "virtiofsd-run",
            f"rm -f {name}\n"
            f'"$(ls {programs} 2>/dev/null | head -n 1)" {options} -o sandbox=chroot &\n'
            f"until [ -S {name} ]; do kill -0 $!; sleep 0.02; done\n"
            "systemd-notify --ready\nwait $!\n",
        )
        return name

    def volume(self, files: Mapping[str, bytes]) -> str:
        """Make a volume, ext4, that holds some files; returns its image's path."""
        content, image = f"{self.home}/volume.d", f"{self.home}/volume.img"
        for name, data in files.items():
            self._host.write(f"{content}/{name}", data)
        self._host.run("mke2fs", "-q", "-t", "ext4", "-d", content, image, "4M")
        self._host.run("chown", VM_USER, image)
        return image

    def vsock(self) -> str:
        """Have the VM's unit wait for the guest to be ready; returns lines for microvm-run.

        The VM is to have ``--vsock cid=N,socket=notify.vsock`` and the string `NOTIFY`.
        """
        self._host.write("/usr/bin/vhost-device-vsock", vsock_device().read_bytes(), 0o755)
        self._host.write(_RELAY_FILE, _RELAY)
        drop_in = f"/etc/systemd/system/microvm@{self._vm}.service.d/60-notify.conf"
        self._host.write(drop_in, "[Service]\nType=notify\nTimeoutStartSec=infinity\n")
        return (
            f"rm -f notify.vsock notify.vsock_8888\n/usr/bin/python3 -IS {_RELAY_FILE} notify.vsock_8888 &\n"
        )

    def _script(self, name: str, text: str) -> None:
        self._host.write(f"{self.home}/current/bin/{name}", f"#!/bin/bash\nset -eu\n{text}", 0o755)


def other_network(host: Host, name: str, link: str, address: str) -> None:
    """Make a network namespace with an address, at the other end of a new link of the host."""
    host.run("ip", "netns", "add", name)
    host.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
    host.run("ip", "link", "set", link, "up")
    host.run("ip", "-n", name, "addr", "add", address, "dev", "eth0")
    host.run("ip", "-n", name, "link", "set", "eth0", "up")


def listen(host: Host, name: str, *inside: str) -> None:
    """Answer on the host at `SERVER_PORT` until it ends; ``inside`` is a command to run the server by."""
    server = host.spawn(*inside, "/usr/bin/python3", "-IS", "-c", _SERVER, name)
    if server.stdout is None or server.stdout.readline() != "listening\n":
        raise AssertionError("the server does not come up")
