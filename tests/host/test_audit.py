# SPDX-License-Identifier: MIT
"""The audit in a real journal: who is believed, and that its chain holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent.events import Event
from agent.journal import chain_hash
from agent.keys import CredentialKey
from tests.support.deployment import LIGHT_KERNEL, Deployment, VmFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

ONE_VM = '[vms.web.credentials]\nAPI_KEY = { secret = "api-key" }\n'


@pytest.fixture
def deployment(host: Host, sops: SopsNix) -> Iterator[Deployment]:
    """One light VM, and a secret for it."""
    made = Deployment(host)
    made.add_vm("web")
    made.configure(ONE_VM)
    sops.publish({"api-key": b"value"})
    yield made
    made.close()


CHAINED = {"MESSAGE", "MESSAGE_ID", "PRIORITY", "OBJECT_SYSTEMD_UNIT"}


def events(deployment: Deployment) -> list[tuple[str, str]]:
    """Kinds and messages of what the audit tells, oldest first."""
    records = json.loads(deployment.credferry("audit", "--records", "--json"))
    return [(record["event"], record["message"]) for record in records]


def forge(host: Host, event: Event, user: str | None, unit: str | None = None) -> None:
    """Send a record with one of our ids, as a user, from within a unit of its own or of a given name."""
    fields = f"MESSAGE_ID={event.value}\nMESSAGE=forged by {user} in {unit}\nCREDFERRY_VM=web\n"
    command = ["logger", "--journald"]
    if unit is not None:
        command = ["systemd-run", "--quiet", "--pipe", "--wait", f"--unit={unit}", *command]
        command[1:1] = [f"--uid={user}"] if user else []
        host.run(*command, stdin=fields)
    else:
        host.run(*command, stdin=fields, user=user)


def test_only_who_may_say_so_is_believed(deployment: Deployment, host: Host) -> None:
    """Anybody can send our message ids; the audit goes by what journald itself says of the sender."""
    forge(host, Event.SEALED, "nobody")
    forge(host, Event.LAUNCHED, "nobody", "somebodys.service")
    forge(host, Event.LAUNCHED, None)
    host.run("journalctl", "--sync")
    assert not [each for each in events(deployment) if "forged" in each[1]]


def test_a_launcher_is_believed_by_its_unit(deployment: Deployment, host: Host) -> None:
    """What the VM's own unit says of its launch is in the audit, whatever name the unit has."""
    deployment.configure('[vms.web]\nunit = "renamed.service"\n' + ONE_VM)
    deployment.credferry("sync", "--no-restart")
    forge(host, Event.LAUNCHED, "nobody", "renamed.service")
    forge(host, Event.LAUNCHED, "nobody", "another.service")
    host.run("journalctl", "--sync")
    launched = [each for each in events(deployment) if "forged" in each[1]]
    assert launched == [("launched", "forged by nobody in renamed.service")]


def test_the_chain_holds(deployment: Deployment, host: Host, sops: SopsNix) -> None:
    """Each record follows the one before, its hash is right, and a repeated one counts once."""
    deployment.credferry("sync", "--no-restart")
    deployment.start_vm("web")
    for number in range(3):
        sops.publish({"api-key": str(number).encode()})
        deployment.credferry("sync")
        deployment.start_agent()
        deployment.host.run("systemctl", "stop", "credferry.service")
    key = CredentialKey.from_file_content(host.path("/var/lib/systemd/credential.secret").read_bytes())
    entries = [
        entry for entry in host.journal(SYSLOG_IDENTIFIER="credferry", _UID="0") if "CREDFERRY_HASH" in entry
    ]
    chain = {int(entry["CREDFERRY_SEQUENCE"]): entry for entry in entries[-8:]}
    for entry in chain.values():
        fields = [
            f"{name}={value}"
            for name, values in entry.items()
            if name in {"MESSAGE", "MESSAGE_ID", "PRIORITY", "OBJECT_SYSTEMD_UNIT"}
            or name.startswith("CREDFERRY_")
            for value in values.split("\n")
            if name != "CREDFERRY_HASH"
        ]
        assert chain_hash(key.derive("audit"), fields) == entry["CREDFERRY_HASH"], entry
    numbers = sorted(chain)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    for number in numbers[1:]:
        assert chain[number]["CREDFERRY_PREVIOUS"] == chain[number - 1]["CREDFERRY_HASH"]
    assert len(events(deployment)) == len(
        set(map(str, json.loads(deployment.credferry("audit", "--records", "--json"))))
    )


def test_a_launch_refused_is_told(deployment: Deployment, host: Host) -> None:
    """A VM that the launcher refuses to start fails at once, for good, with the reason in the journal."""
    deployment.credferry("sync", "--no-restart")
    deployment.add_vm("web", VmFiles(("--kernel", LIGHT_KERNEL, "-v")))
    host.run("systemctl", "start", "microvm@web.service")
    host.wait(lambda: deployment.unit("web")["ActiveState"] == "failed", 10, "refusal")
    assert deployment.unit("web")["NRestarts"] == "0"
    refused = [message for event, message in events(deployment) if event == "launch refused"]
    assert refused
    assert "-v" in refused[-1]
