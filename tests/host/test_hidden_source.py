# SPDX-License-Identifier: MIT
"""A source that the agent's real units hide from it: refused by all, and seen once it is shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.audit.events import Event
from tests.support.boot import HostError
from tests.support.deployment import Deployment
from tests.support.host import CommandError

if TYPE_CHECKING:
    from tests.support.host import Host

pytestmark = pytest.mark.host

UNITS = ("credferry-seal.service", "credferry.service")


def seen(deployment: Deployment) -> list[dict[str, Any]]:
    """What doctor finds about whether the agent sees the source."""
    findings = json.loads(deployment.credferry("doctor", "--json", check=False))["findings"]
    return [each for each in findings if each["check"] == "source.seen"]


@pytest.mark.parametrize(
    ("directory", "link", "setting"),
    [
        ("/tmp/v", "", "PrivateTmp=yes"),
        ("/home/v", "", "ProtectHome=yes"),
        ("/tmp/x", "/run/hidden", "PrivateTmp=yes"),
    ],
)
def test_a_hidden_source_is_refused_until_it_is_shown(
    host: Host, directory: str, link: str, setting: str
) -> None:
    """`check`, doctor and the agent say what hides it; doctor's commands show it, and rotations arrive."""
    deployment = Deployment(host)
    host.write(f"{directory}/key", "one", 0o400)
    if link:
        host.run("ln", "-s", directory, link)
    try:
        deployment.add_vm("web")
        table = f'[source]\npath = "{link or directory}"\nquiet_seconds = 0.2\n'
        deployment.configure(f'{table}[vms.web.credentials]\nK = {{ secret = "key" }}\n')
        with pytest.raises(CommandError, match=f"status 78: .*{setting}"):
            deployment.credferry("check")
        deployment.start_agent()
        lost = host.wait_journal(
            lambda entry: f"{directory} is hidden" in entry["MESSAGE"], MESSAGE_ID=Event.SOURCE_LOST.value
        )
        assert setting in lost["MESSAGE"]
        assert f"BindReadOnlyPaths=-{directory}" in lost["MESSAGE"]
        found = seen(deployment)
        assert [unit in each["what"] for unit, each in zip(UNITS, found, strict=True)] == [True, True]
        for command in (command for each in found for command in each["commands"]):
            host.run("sh", "-c", command)
        deployment.credferry("check")
        assert seen(deployment) == []
        host.wait(lambda: _is_sealed(deployment), 20, "what is published to be sealed")
        deployment.start_vm("web")
        host.write(f"{directory}/key", "two", 0o400)
        host.wait(lambda: deployment.starts("web") == 2, 20, "restart of web")
        deployment.wait_in_step("web")
        assert deployment.delivered("web") == {"K": b"two"}
    finally:
        deployment.close()
        for unit in UNITS:
            host.run(
                "rm", "-rf", f"/etc/systemd/system/{unit}.d/zz-credferry.conf", directory, link or directory
            )
        host.run("systemctl", "daemon-reload")


def _is_sealed(deployment: Deployment) -> bool:
    try:
        return deployment.host.path("/var/lib/credferry/vms/web/current").exists()
    except HostError:
        return False
