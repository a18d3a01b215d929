# SPDX-License-Identifier: MIT
"""Hosts report to a real etcd on a lease, for display; what others write there harms nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from credferry.agent.fleet import keys
from credferry.agent.fleet.model import Applied, Granted, Holder, Present, Unavailable
from credferry.agent.fleet.presence import LEASE_SECONDS, Presence
from tests.support.etcd import NO_TLS, RealEtcd, call
from tests.support.rude_http import Script, reply, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

from credferry.agent.fleet.gateway import Member


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """An etcd for all tests here."""
    made = RealEtcd(tmp_path_factory.mktemp("etcd"))
    yield made
    made.kill()


def test_a_host_reports(etcd: RealEtcd) -> None:
    """A report is written once, kept without a new revision, and written again if it differs."""
    presence = Presence([etcd.member()])
    vms = {"one": {"in step": 2}, "two": {"failed": 1}}
    assert presence.tell("h1", "0.3.0", vms, 5.0) == Applied(2)
    before = call(etcd.member(), "/kv/range", key="AA==")["header"]["revision"]
    assert presence.tell("h1", "0.3.0", vms, 9.0) == Applied(0)
    assert call(etcd.member(), "/kv/range", key="AA==")["header"]["revision"] == before
    assert presence.hosts("one") == (Present("h1", "0.3.0", {"in step": 2}, 5.0),)
    assert presence.tell("h1", "0.3.0", {"one": {"in step": 1, "held": 1}}, 10.0) == Applied(2)
    assert presence.hosts("two") == ()
    leases = call(etcd.member(), "/lease/leases")["leases"]
    assert len(leases) == 1
    left = call(etcd.member(), "/lease/timetolive", ID=leases[0]["ID"])
    assert int(left["grantedTTL"]) == LEASE_SECONDS


def test_a_lease_that_has_ended(etcd: RealEtcd) -> None:
    """After a pause, in which the lease ended and the host went, the host reports anew."""
    presence = Presence([etcd.member()])
    assert presence.tell("h2", "0.3.0", {"late": {"in step": 1}}, 5.0) == Applied(1)
    call(etcd.member(), "/lease/revoke", ID=presence._lease)
    assert presence.hosts("late") == ()
    assert presence.tell("h2", "0.3.0", {"late": {"in step": 1}}, 5.0) == Applied(1)
    assert len(presence.hosts("late")) == 1  # type: ignore[arg-type]  # Unavailable would fail the test


def test_garbage_of_others(etcd: RealEtcd) -> None:
    """A report of another form is left out, and no report has a part in who gets a slot."""
    for name, content in (
        ("a", b"\xff"),
        ("b", b"[]"),
        ("c", b'{"version":"1","vms":{"x":-1},"since":0}'),
        ("d", b'{"version":"\\u001b[2J","vms":{},"since":0}'),
        ("e/f", b'{"version":"1","vms":{},"since":0}'),
        ("g", b"{" * 100_000),
    ):
        etcd.put(keys.hosts("bad") + name, content)
    found = Presence([etcd.member()]).hosts("bad")
    assert isinstance(found, tuple)
    assert [each.host for each in found] == ["d"]
    assert "\x1b" not in found[0].version
    engine = etcd.engine()
    assert engine.acquire("bad", Holder("h1", "web", "1" * 32), "r") == Granted(0)
    assert "bad" in engine.groups()  # type: ignore[operator]  # Unavailable would fail the test


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"ID":"x"}',
        b'{"ID":"-1"}',
        b'{"ID":"%d"}' % 2**63,
        b'{"ID":"%s"}' % (b"9" * 5000),
        b'{"kvs":[1,{"key":3}]}',
    ],
)
def test_a_server_that_is_no_etcd(body: bytes) -> None:
    """Other answers give no lease and no host; nothing is raised."""
    with serve(Script(lambda handler, _: reply(handler, 200, body))) as script:
        presence = Presence([Member(script.url, NO_TLS, None, 20.0)])
        assert isinstance(presence.tell("h", "1", {"g": {}}, 0.0), Unavailable)
        assert presence.hosts("g") == ()
