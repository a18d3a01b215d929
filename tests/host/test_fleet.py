# SPDX-License-Identifier: MIT
"""A fleet of whole hosts: each with its systemd, its agent in the unit's sandbox, and one real etcd."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.cache import cache_directory
from tests.support.deployment import Deployment, broken_by_bad
from tests.support.host import Host
from tests.support.installation import CHECKOUT, install
from tests.support.nightly import variants
from tests.support.producer import SopsNix
from tests.support.tunnel import tunnel

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.host

_PORT: Final = 2379
_PLACE: Final = "/etc/systemd/system/credferry.service.d/60-fleet.conf"
_CONFIG: Final = """
[source]
quiet_seconds = 0.2
resync_seconds = 1.0

[fleet]
endpoints = ["http://127.0.0.1:2379"]
group = "web"
host = "{host}"

[rollout]
retry_seconds = 0.2
stamp_seconds = 5.0
attempts = 1

[vms.web.credentials]
SHARED = {{ secret = "shared" }}
"""
_STOPPED: Final = "9d1aaa27d60140bd96365438aad20286"
_STARTED: Final = "39f53479d3a045ac8e11786248231fbf"
"""PID 1's own message IDs for a unit that was stopped, and one that was started."""


@dataclass(slots=True)
class Site:
    """The hosts of a fleet, each with one VM of the same group."""

    deployments: dict[str, Deployment] = field(default_factory=dict)
    producers: dict[str, SopsNix] = field(default_factory=dict)

    def publish(self, value: bytes) -> None:
        """The same secret arrives on each host."""
        for producer in self.producers.values():
            producer.publish({"shared": value})

    def group(self) -> dict[str, Any]:
        """The group, as the first host's operator sees it; waits until etcd answers and knows the group."""
        made, found = next(iter(self.deployments.values())), list[dict[str, Any]]()

        def ask() -> bool:
            said = made.credferry("fleet", "status", "--json", check=False)
            found[:] = [each for each in json.loads(said or "[]") if each["group"] == "web"]
            return bool(found)

        made.host.wait(ask, 30, "the group in etcd")
        return found[0]

    def downtimes(self, since: float) -> list[tuple[int, int]]:
        """When VMs were down since a moment, in order: from each stop to the next start, as PID 1 says."""
        found = []
        for made in self.deployments.values():
            moments = [
                sorted(
                    int(entry["__REALTIME_TIMESTAMP"])
                    for entry in made.host.journal(MESSAGE_ID=each, UNIT="microvm@web.service", _PID="1")
                )
                for each in (_STOPPED, _STARTED)
            ]
            for stopped in (each for each in moments[0] if each >= since * 1e6):
                started = next((each for each in moments[1] if each > stopped), None)
                if started is not None:
                    found.append((stopped, started))
        return sorted(found)


@pytest.fixture(params=variants(("one",), ("one", "two")), ids=" and ".join)
def site(request: pytest.FixtureRequest, host: Host) -> Iterator[Site]:
    """Hosts whose VMs run what is published, with an etcd on the first one."""
    with ExitStack() as stack:
        made = Site()
        host.run("systemd-run", "--unit=etcd-test", "/usr/bin/etcd", "--data-dir=/run/etcd-test")
        stack.callback(host.run, "systemctl", "stop", "etcd-test.service")
        for name in request.param:
            here = host
            if made.deployments:
                here = stack.enter_context(Host(cache_directory()))
                install(here)
                stack.enter_context(tunnel(here, host, _PORT))
            deployment = Deployment(here)
            stack.callback(deployment.close)
            deployment.add_vm("web", broken_by_bad("SHARED"))
            here.write(_PLACE, (CHECKOUT / "contrib/systemd/credferry-fleet.conf").read_text())
            stack.callback(here.run, "rm", "-f", _PLACE)
            here.run("systemctl", "daemon-reload")
            deployment.configure(_CONFIG.format(host=name))
            made.deployments[name], made.producers[name] = deployment, SopsNix(here)
            stack.callback(made.producers[name].remove)
        host.wait(lambda: "2379" in host.run("ss", "-ltn").stdout, 30, "etcd")
        made.publish(b"one")
        for deployment in made.deployments.values():
            deployment.credferry("agent", "--once")
            deployment.start_vm("web")
            deployment.start_agent()
        yield made


def test_a_secret_goes_through_a_fleet(site: Site) -> None:
    """Each VM gets it, no two are down at the same time, and a value that breaks one is tried on no other.

    A newer value that works ends the halt, and no slot is left.
    """
    made = list(site.deployments.values())
    since = time.time()
    site.publish(b"two")
    for each in made:
        each.wait_in_step("web", 60)
    downtimes = site.downtimes(since)
    assert len(downtimes) == len(made)
    assert all(one[1] <= other[0] for one, other in pairwise(downtimes))
    made[0].host.wait(lambda: not site.group()["held"], 30, "all slots given back")

    before = [each.starts("web") for each in made]
    site.publish(b"bad")
    made[0].host.wait(lambda: site.group()["halt"], 60, "the group halted")
    shown = ["failed", "waiting"][: len(made)]
    made[0].host.wait(
        lambda: sorted(each.status()["web"]["state"] for each in made) == shown, 60, "the failure shown"
    )
    tried = [each.starts("web") - count for each, count in zip(made, before, strict=True)]
    assert sum(count > 0 for count in tried) == 1, "it is tried on one host alone"
    for each in (each for each in made if each.status()["web"]["state"] == "waiting"):
        # It learns of the halt when it asks again.
        each.host.wait(
            lambda each=each: "its fleet is resumed" in str(each.status()["web"]["reasons"]),  # type: ignore[misc]  # a default binds the name
            60,
            "the halt shown",
        )
    assert len(site.group()["held"]) == 1

    site.publish(b"three")
    for each in made:
        each.wait_in_step("web", 90)
    made[0].host.wait(lambda: not site.group()["held"] and not site.group()["halt"], 60, "a group at rest")
