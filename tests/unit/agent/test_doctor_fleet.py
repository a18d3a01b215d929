# SPDX-License-Identifier: MIT
"""What the doctor says of [fleet]: the unit's network, certificates, servers, limits, halts and slots."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.doctor import fleet, fleet_engine, probe
from credferry.agent.doctor.chain import Chain
from credferry.agent.doctor.finding import Finding, Severity
from credferry.agent.fleet import keys
from credferry.agent.fleet.model import Granted, Group, Holder
from credferry.agent.fleet.opening import holder
from credferry.agent.store.fleet_cluster import FleetCluster
from tests.support.certificates import Authority
from tests.support.etcd import RealEtcd, free_port
from tests.support.rude_http import Script, reply, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

MACHINE = "0123456789abcdef0123456789abcdef"
INET = (2, [192, 0, 2, 1], 32)
GOOD: dict[str, Any] = {
    "LoadState": "loaded",
    "PrivateNetwork": False,
    "RestrictAddressFamilies": [True, ["AF_INET", "AF_INET6", "AF_UNIX"]],
    "LoadCredential": [["etcd.key", "/etc/k"], ["etcd.pem", "/etc/c"]],
    "IPAddressAllow": [INET],
    "IPAddressDeny": [(2, [0, 0, 0, 0], 0), (10, [0] * 16, 0)],
}
FLEET = 'endpoints = ["https://192.0.2.1"]\ncertificate = "etcd.pem"\nkey = "etcd.key"\n'


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """An etcd for all tests here."""
    made = RealEtcd(tmp_path_factory.mktemp("etcd"))
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor may look at all."""
    monkeypatch.setattr(probe, "is_root", lambda: True)
    monkeypatch.setattr(probe, "changeable", lambda _: None)


def chain(directory: Path, table: str) -> Chain:
    """A host with a VM, and this table [fleet]."""
    (directory / "machine-id").write_text(f"{MACHINE}\n")
    file = directory / "config.toml"
    file.write_text(
        f'machine_id_file = "{directory}/machine-id"\nstate_directory = "{directory}/state"\n'
        f"[fleet]\n{table}\n"
        '[vms.web.credentials]\nK = { text = "k" }\n'
    )
    made = Chain(file)
    assert made.error is None, made.error
    return made


def found(findings: Iterator[Finding]) -> dict[str, Finding]:
    """What is not well, by check."""
    return {each.check: each for each in findings if each.severity is not Severity.OK}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"PrivateNetwork": True}, "has no network: the drop-in credferry-fleet.conf is not in force"),
        ({"RestrictAddressFamilies": [True, ["AF_UNIX"]]}, "may not use AF_INET and AF_INET6"),
        ({"RestrictAddressFamilies": [False, []]}, ""),
        ({"RestrictAddressFamilies": [False, ["AF_INET6"]]}, "may not use AF_INET6"),
        ({"LoadCredential": []}, "fleet.certificate: credferry.service has no credential etcd.pem"),
        ({"LoadCredentialEncrypted": [["etcd.key", "x"]], "LoadCredential": [["etcd.pem", "x"]]}, ""),
        ({"IPAddressAllow": []}, "may not send to 192.0.2.1"),
        ({"IPAddressAllow": [(10, [0] * 16, 0)]}, "may not send to 192.0.2.1"),
        ({"IPAddressAllow": [], "IPAddressDeny": []}, ""),
        ({"IPAddressAllow": [(2, [192, 0, 2, 0], 24)]}, ""),
    ],
)
def test_the_units_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], said: str
) -> None:
    """A unit without the drop-in, or with one that lacks something, is named with what it lacks."""
    monkeypatch.setattr(probe, "unit", lambda _: GOOD | changed)
    (finding,) = fleet.check_network(chain(tmp_path, FLEET))
    assert finding.severity is (Severity.PROBLEM if said else Severity.OK)
    assert said in finding.what
    assert bool(finding.remedy) is bool(said)


def test_a_network_without_a_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drop-in on a host without [fleet] is a hint. Without either, nothing is said."""
    monkeypatch.setattr(probe, "unit", lambda _: GOOD)
    (tmp_path / "c").write_text("")
    (finding,) = fleet.check_network(Chain(tmp_path / "c"))
    assert finding.severity is Severity.HINT
    monkeypatch.setattr(probe, "unit", lambda _: GOOD | {"PrivateNetwork": True})
    assert list(fleet.check_network(Chain(tmp_path / "c"))) == []
    assert list(fleet_engine.check_members(Chain(tmp_path / "c"))) == []
    assert list(fleet_engine.check_groups(Chain(tmp_path / "c"))) == []


@pytest.mark.parametrize(
    ("days", "severity"), [(30, Severity.OK), (5, Severity.HINT), (-1, Severity.PROBLEM)]
)
def test_the_end_of_the_clients_certificate(tmp_path: Path, days: float, severity: Severity) -> None:
    """A certificate that ends within two weeks is a hint, and one that has ended a problem."""
    certificate, key = Authority.make(tmp_path / "ca").issue("client", days=days)
    table = f'endpoints = ["https://192.0.2.1"]\ncertificate = "{certificate}"\nkey = "{key}"'
    (finding,) = fleet.check_certificate(chain(tmp_path, table))
    assert finding.severity is severity
    assert finding.check == "fleet.certificate"


def test_a_common_name(tmp_path: Path) -> None:
    """With a user, a certificate with a CommonName is a problem; without one, it is not."""
    certificate, key = Authority.make(tmp_path / "ca").issue("named", days=90)
    table = f'endpoints = ["https://192.0.2.1"]\ncertificate = "{certificate}"\nkey = "{key}"'
    assert found(fleet.check_certificate(chain(tmp_path, table))) == {}
    table += '\nuser = "agent"\npassword_file = "/etc/p"'
    (name,) = found(fleet.check_certificate(chain(tmp_path, table)))
    assert name == "fleet.certificate.name"


@pytest.mark.parametrize(("content", "said"), [(None, "does not exist"), ("x", "not a certificate")])
def test_a_certificate_that_is_none(tmp_path: Path, content: str | None, said: str) -> None:
    """A missing file, and one that is no certificate, are named."""
    if content is not None:
        (tmp_path / "c.pem").write_text(content)
    table = f'endpoints = ["https://192.0.2.1"]\ncertificate = "{tmp_path}/c.pem"\nkey = "/etc/k"'
    (finding,) = fleet.check_certificate(chain(tmp_path, table))
    assert said in finding.what
    assert str(tmp_path / "c.pem") in finding.what


def test_each_member_is_asked(etcd: RealEtcd, tmp_path: Path) -> None:
    """Of two members, the one that does not answer is named, with what that means."""
    away = f"http://127.0.0.1:{free_port()}"
    made = chain(tmp_path, f'endpoints = ["{etcd.url}", "{away}"]')
    good, bad = fleet_engine.check_members(made)
    assert (good.severity, bad.severity) == (Severity.OK, Severity.PROBLEM)
    assert away in bad.what
    assert "other members" in bad.why


def test_a_member_of_another_cluster(etcd: RealEtcd, tmp_path: Path) -> None:
    """A member that the agent refuses is a problem, and so is a record that it cannot read."""
    made = chain(tmp_path, f'endpoints = ["{etcd.url}"]')
    record = FleetCluster(tmp_path / "state")
    engine = etcd.engine()
    engine.known.record = record
    assert isinstance(engine.state("default"), Group)
    assert found(fleet_engine.check_members(made)) == {}
    record.write("1", 1)
    (finding,) = found(fleet_engine.check_members(made)).values()
    assert finding.check == "fleet.member.cluster"
    assert finding.what == f"{etcd.url}: it belongs to another cluster than this host has used so far"
    assert "credferry fleet forget-cluster" in finding.remedy
    record.path.write_text("garbage")
    (finding,) = found(fleet_engine.check_members(made)).values()
    assert "cannot be read" in finding.what


def test_a_clock_that_is_off(tmp_path: Path) -> None:
    """A server whose clock is an hour off is a hint; an answer without a date is none."""
    for offset, is_hint in ((3600, True), (5, False)):
        date = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=offset)
        text = date.strftime("%a, %d %b %Y %H:%M:%S GMT")

        def answer(handler: BaseHTTPRequestHandler, _: object, text: str = text) -> None:
            handler.date_time_string = lambda *_: text  # type: ignore[method-assign]  # a server that lies
            reply(handler, 500, b"{}")

        with serve(Script(answer)) as script:
            seen = found(fleet_engine.check_members(chain(tmp_path, f'endpoints = ["{script.url}"]')))
        assert ("fleet.member.clock" in seen) is is_hint
        if is_hint:
            assert "differ by 3" in seen["fleet.member.clock"].what


def test_limit_halt_and_slots(etcd: RealEtcd, tmp_path: Path) -> None:
    """A broken limit, a halt, garbage, and slots of this host that it does not need are found."""
    made = chain(tmp_path, f'endpoints = ["{etcd.url}"]\ngroup = "g"\nhost = "h-me"')
    assert found(fleet_engine.check_groups(made)) == {}
    assert made.config.fleet is not None
    engine = etcd.engine()
    assert engine.acquire("g", holder(made.config.fleet, "gone", MACHINE), "r") == Granted(0)
    etcd.put(keys.slots("g") + "7", b"garbage")
    engine.halt("g", Holder("h-other", "db", "2" * 32), "r", "the health check failed")
    etcd.put(keys.limit_key("g"), b"0")
    seen = found(fleet_engine.check_groups(made))
    assert set(seen) == {f"fleet.group.{name}" for name in ("limit", "halt", "slot", "stray")}
    assert "db on h-other: the health check failed" in seen["fleet.group.halt"].what
    assert "gone" in seen["fleet.group.stray"].what


def test_two_hosts_of_one_name(etcd: RealEtcd, tmp_path: Path) -> None:
    """A slot that another machine holds under this host's name is a problem."""
    made = chain(tmp_path, f'endpoints = ["{etcd.url}"]\ngroup = "twins"\nhost = "h-me"')
    assert etcd.engine().acquire("twins", Holder("h-me", "web", "9" * 32), "r") == Granted(0)
    (name,) = found(fleet_engine.check_groups(made))
    assert name == "fleet.group.host"


def test_a_fleetlock_server(tmp_path: Path) -> None:
    """The doctor takes no slot to find out whether a FleetLock server gives one."""
    with serve(Script(lambda handler, _: reply(handler, 200))) as script:
        made = chain(tmp_path, f'fleetlock = "{script.url}"')
        findings = [*fleet_engine.check_members(made), *fleet_engine.check_groups(made)]
        assert script.requests == []
    assert [each.severity for each in findings] == [Severity.OK]
