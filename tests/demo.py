# SPDX-License-Identifier: MIT
"""The main job, shown: a secret rotates on a host, and the running guest that uses it has the new value.

A throwaway systemd stands for the host, Debian guests boot in QEMU behind a stand-in for cloud-hypervisor.
Run by ``make demo``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING

from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, guest_files
from tests.support.guest import Variant, credential_printer, guest, sealing_identity
from tests.support.host import Host
from tests.support.installation import install
from tests.support.leaks import leaks
from tests.support.live import live_printer, with_vsock
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

MACHINE_ID = "5ea1ed00c0ffee00c0ffee00c0ffee00"
CONFIG = """
[vms.test-vm]
guest_systemd = 257
live = true
[vms.test-vm.credentials]
API_KEY = { secret = "api-key" }
ENVIRONMENT = { text = "test" }
CLUSTER = { text = "britton-desktop" }

[vms.sealed-vm]
channel = "command"
guest_key = true
[vms.sealed-vm.credentials]
DB_PASSWORD = { secret = "db/password" }
"""
BOOT_SECONDS = 180.0
PRINTED = "credferry-guest: "
ROTATIONS = 2


def main() -> None:
    """Show the main job; the exit status is 0 when every step was seen."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        say("A host: systemd as PID 1, its own bus and journal, sops-nix's order of operations")
        images = {each: guest(each) for each in (Variant.TRIXIE, Variant.BOOKWORM)}
        host = stack.enter_context(Host(cache_directory()))
        install(host)
        producer = SopsNix(host)
        deployment = Deployment(host)
        values = {"api-key": fresh(), "db/password": fresh()}
        generation = producer.publish(values)
        note(f"/run/secrets -> /run/secrets.d/{generation}: {', '.join(values)}")

        say("Two VMs: test-vm takes its secrets live; sealed-vm gets its own sealed, in the command itself")
        deployment.configure(CONFIG)
        note(CONFIG.strip())
        note(deployment.credferry("guest-key", "create", "sealed-vm", "--machine-id", MACHINE_ID))
        key = host.path("/var/lib/credferry/guest-keys/sealed-vm.secret").read_bytes()
        plain = live_printer(["API_KEY", "ENVIRONMENT", "CLUSTER"])
        sealed = credential_printer(sealed=["DB_PASSWORD"]) | sealing_identity(MACHINE_ID, key)
        live = guest_files(deployment, "test-vm", images[Variant.TRIXIE], plain)
        deployment.add_vm("test-vm", with_vsock(deployment, live))
        deployment.add_vm(
            "sealed-vm", guest_files(deployment, "sealed-vm", images[Variant.BOOKWORM], sealed)
        )

        say("Sealed, then started: credferry-seal.service, microvm@test-vm, microvm@sealed-vm, credferry")
        units = ["microvm@test-vm.service", "microvm@sealed-vm.service"]
        host.run("systemctl", "start", "credferry-seal.service", *units)
        deployment.start_agent()
        expect(deployment, "test-vm", {"API_KEY": values["api-key"], "ENVIRONMENT": b"test"})
        expect(deployment, "sealed-vm", {"DB_PASSWORD": values["db/password"]})
        note(deployment.credferry("status"))

        rotate_live(deployment, producer, values)
        rotate_sealed(deployment, producer, values)

        say("What a look into /proc, the journal and the store finds of the values")
        require(
            not leaks(host, [*values.values()]), "no argument vector, environment, journal or file holds one"
        )

        say("Status and audit")
        note(deployment.credferry("status"))
        note(deployment.credferry("audit"))
        require(json.loads(deployment.credferry("audit", "--json")), "the journal alone tells the story")
        deployment.close()
    say(f"Done in {time.monotonic() - began:.0f} s; nothing is left behind")


def rotate_live(deployment: Deployment, producer: SopsNix, values: dict[str, bytes]) -> None:
    """Rotate test-vm's secret twice: its guest's unit has each new value, and the guest boots no more."""
    invocations = {name: deployment.unit(name)["InvocationID"] for name in ("test-vm", "sealed-vm")}
    booted = deployment.wait_printed("test-vm", f"{PRINTED}boot ").removeprefix(PRINTED)
    note(f"test-vm: invocation {invocations['test-vm']}, {booted}")
    for time_of_it in ("first", "second"):
        say(f"API_KEY is rotated a {time_of_it} time; nothing else is done by hand")
        values["api-key"] = fresh()
        rotated = time.monotonic()
        producer.publish(values)
        expect(deployment, "test-vm", {"API_KEY": values["api-key"]})
        note(f"the guest's unit runs with it {time.monotonic() - rotated:.1f} s after its publication")
        deployment.wait_in_step("test-vm", 60)
    deployment.host.wait(lambda: len(boot_ids(deployment)) == ROTATIONS + 1, 30, "the boot's ID")
    boots = boot_ids(deployment)
    after = {name: deployment.unit(name)["InvocationID"] for name in invocations}
    note(f"test-vm: invocation {after['test-vm']}, {boots[-1]}")
    require(set(boots) == {booted}, "the guest of test-vm has not booted again")
    require(after == invocations, "no VM was restarted; sealed-vm was left alone")


def rotate_sealed(deployment: Deployment, producer: SopsNix, values: dict[str, bytes]) -> None:
    """Rotate the secret of sealed-vm, which is not live; then publish what is published already."""
    say("DB_PASSWORD is rotated: sealed-vm is not live, so it restarts")
    values["db/password"] = fresh()
    producer.publish(values)
    deployment.host.wait(lambda: deployment.starts("sealed-vm") > 1, 30, "restart of sealed-vm")
    expect(deployment, "sealed-vm", {"DB_PASSWORD": values["db/password"]})

    say("An identical generation is published: nothing happens")
    generation, boots = producer.publish(values), boot_ids(deployment)
    deployment.credferry("sync")
    require(
        deployment.starts("test-vm") + deployment.starts("sealed-vm") == 1 + 2,
        f"generation {generation} restarts nothing",
    )
    require(boot_ids(deployment) == boots, "it touches nothing in the guest of test-vm")


def boot_ids(deployment: Deployment) -> list[str]:
    """What test-vm's guest printed at each start of its unit: ``boot``, and the ID of the guest's boot."""
    entries = deployment.host.journal(_SYSTEMD_UNIT="microvm@test-vm.service")
    lines = (line for entry in entries for line in entry.get("MESSAGE", "").splitlines())
    return [line.strip().removeprefix(PRINTED) for line in lines if f"{PRINTED}boot " in line]


def expect(deployment: Deployment, name: str, values: Mapping[str, bytes]) -> None:
    """Wait until a VM's guest has printed the fingerprint of each value, and show what it printed."""
    for credential, value in values.items():
        digest = hashlib.sha256(value).hexdigest()[:16]
        line = deployment.wait_printed(name, f"{PRINTED}{credential} sha256={digest}", BOOT_SECONDS)
        require(line, f"guest of {name}: {line.removeprefix(PRINTED)}")


def fresh() -> bytes:
    """A new secret value."""
    return secrets.token_hex(16).encode()


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n── {text}", flush=True)  # noqa: T201 (this program prints)


def note(text: str) -> None:
    """Print something below a heading."""
    for line in text.rstrip().splitlines():
        print(f"   {line.rstrip()}", flush=True)  # noqa: T201 (this program prints)


def require(seen: object, text: str) -> None:
    """Print what was seen; end with status 1 if it was not."""
    if not seen:
        sys.exit(f"   NOT SEEN: {text}")
    note(f"✓ {text}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End with what the first signal interrupts. The clean-up then runs to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except KeyboardInterrupt:
        say("Interrupted; nothing is left behind")
        sys.exit(130)
