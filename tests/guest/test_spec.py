# SPDX-License-Identifier: MIT
"""A VM without microvm.nix: a guest boots from a spec, with its volume, share, network and secret."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.support.deployment import Deployment, guest_files
from tests.support.guest import COMMAND_LINE, Variant, credential_printer, device_user, guest
from tests.support.installation import HYPERVISOR, serve
from tests.support.wiring import SERVER_PORT, Wiring, listen

if TYPE_CHECKING:
    from tests.support.host import Host
    from tests.support.producer import SopsNix

HOME = "/var/lib/microvms/from-spec"
CONFIG = '[vms.from-spec.credentials]\nK = { secret = "api-key" }\n'
SPEC = f"""
name = "from-spec"
hypervisor = "{HYPERVISOR}"
kernel = "{HOME}/vmlinux"
initrd = "{HOME}/initrd"
cmdline = "{COMMAND_LINE}"
memory = 512

[[disks]]
path = "{HOME}/volume.img"
image_type = "raw"
readonly = true

[[networks]]
tap = "tap-spec"
mac = "02:00:00:00:00:0c"
addresses = ["10.92.0.1/24"]

[[shares]]
tag = "files"
source = "/srv/spec"
"""
SCRIPT = f"""
volume data /dev/vda
echo "credferry-guest: volume $(cat /run/data/in)"
share files files
echo "credferry-guest: share $(cat /run/files/in)"
network eth0 10.92.0.2/24
echo "credferry-guest: network $(cat /run/files/in | busybox nc -w 10 10.92.0.1 {SERVER_PORT})"
"""


def test_a_guest_boots_from_a_spec(host: Host, sops: SopsNix) -> None:
    """The units bring up the tap with its address and serve the share, and again after a rotation."""
    deployment = Deployment(host)
    overlay = credential_printer(plain=["K"]) | device_user(SCRIPT)
    guest_files(deployment, "from-spec", guest(Variant.TRIXIE), overlay)
    Wiring(host, "from-spec").volume({"in": b"a volume"})
    host.run("chmod", "0666", "/dev/net/tun")  # udev would
    host.write(f"{HOME}/current/vm.toml", SPEC)
    serve(host, "from-spec")
    deployment.configure(CONFIG)
    unit = "microvm@from-spec.service"
    try:
        sops.publish({"api-key": b"first"})
        deployment.credferry("agent", "--once")
        host.run("systemctl", "start", "microvm-tap-interfaces@from-spec.service")
        listen(host, "the host")
        host.write("/srv/spec/in", "nothing yet\n")
        deployment.start_vm("from-spec")
        deployment.wait_printed("from-spec", "network the host heard nothing yet")
        deployment.start_agent()
        host.write("/srv/spec/in", "a rotation\n")
        sops.publish({"api-key": b"second"})
        deployment.wait_printed("from-spec", f"K sha256={hashlib.sha256(b'second').hexdigest()[:16]}")
        for line in ("volume a volume", "share a rotation", "network the host heard a rotation"):
            deployment.wait_printed("from-spec", line)
        deployment.wait_in_step("from-spec")
    finally:
        host.run("systemctl", "stop", "credferry.service", unit, check=False)
        deployment.close()
        host.run("rm", "-rf", HOME, "/srv/spec", f"/etc/systemd/system/{unit}.d")
        host.run("systemctl", "daemon-reload")
