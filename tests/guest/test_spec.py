# SPDX-License-Identifier: MIT
"""A VM without microvm.nix: a guest boots from a spec, with volume, share, network, secret and key."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.support.deployment import Deployment, guest_files
from tests.support.guest import COMMAND_LINE, Variant, credential_printer, device_user, guest, key_taker
from tests.support.installation import HYPERVISOR, serve
from tests.support.wiring import SERVER_PORT, Wiring, listen

if TYPE_CHECKING:
    from tests.support.host import Host
    from tests.support.producer import SopsNix

HOME = "/var/lib/microvms/from-spec"
MACHINE_ID = "5ea1ed00c0ffee00c0ffee0000000252"
CONFIG = f"""
[vms.from-spec]
guest_key = true
guest_machine_id = "{MACHINE_ID}"
[vms.from-spec.credentials]
K = {{ secret = "api-key", seal = false }}
S = {{ secret = "api-key" }}
"""
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

[guest_key]
machine_id = "{MACHINE_ID}"
"""
KEY = "/run/credferry-guest-keys/from-spec/credential.secret"
SCRIPT = f"""
volume data /dev/vda
echo "credferry-guest: volume $(cat /run/data/in)"
share files files
echo "credferry-guest: share $(cat /run/files/in)"
network eth0 10.92.0.2/24
echo "credferry-guest: network $(cat /run/files/in | busybox nc -w 10 10.92.0.1 {SERVER_PORT})"
"""


def test_a_guest_boots_from_a_spec(host: Host, sops: SopsNix) -> None:
    """The units bring up the tap with its address and serve the share, and again after a rotation.

    The host makes the guest's key, and the guest opens with it what is sealed for it: before the key is
    rotated by one command, and afterwards. No other user of the host can reach the key.
    """
    deployment = Deployment(host)
    overlay = credential_printer(plain=["K"], sealed=["S"]) | device_user(SCRIPT) | key_taker()
    guest_files(deployment, "from-spec", guest(Variant.BOOKWORM), overlay)
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
        deployment.wait_printed("from-spec", f"S sha256={hashlib.sha256(b'first').hexdigest()[:16]}")
        given = host.path(KEY)
        handed = given.read_bytes()
        status = given.stat()
        assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o400)
        as_vm = ("setpriv", "--reuid=microvm", "--regid=kvm", "--clear-groups")
        assert host.run(*as_vm, "cat", KEY, check=False).returncode != 0
        deployment.credferry("guest-key", "rotate", "from-spec")
        assert given.read_bytes() == handed, "a running guest keeps the key with which it was started"
        deployment.start_agent()
        host.write("/srv/spec/in", "a rotation\n")
        sops.publish({"api-key": b"second"})
        deployment.wait_printed("from-spec", f"K sha256={hashlib.sha256(b'second').hexdigest()[:16]}")
        deployment.wait_printed("from-spec", f"S sha256={hashlib.sha256(b'second').hexdigest()[:16]}")
        assert given.read_bytes() != handed
        for line in ("volume a volume", "share a rotation", "network the host heard a rotation"):
            deployment.wait_printed("from-spec", line)
        deployment.wait_in_step("from-spec")
        host.run("systemctl", "stop", "credferry.service", unit)
        assert not given.exists()
    finally:
        host.run("systemctl", "stop", "credferry.service", unit, check=False)
        deployment.close()
        host.run("rm", "-rf", HOME, "/srv/spec", f"/etc/systemd/system/{unit}.d")
        host.run("systemctl", "daemon-reload")
