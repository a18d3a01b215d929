# SPDX-License-Identifier: MIT
"""services.credferry.fleet: the table [fleet], the agent's network, and the example of three hosts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.config.loading import parse
from tests.support.installation import CHECKOUT
from tests.support.nix import NixError, to_toml

if TYPE_CHECKING:
    from credferry.agent.config.model import Config
    from tests.support.nix import Nix

HOST = '{ services.credferry = { enable = true; vms.web.credentials.A.text = "a"; }; }'


def host(fleet: str, more: str = "") -> str:
    """A host with these settings of the fleet."""
    return f"t.report (t.sopsHost [ {HOST} {{ services.credferry.fleet = {{ {fleet} }}; {more} }} ])"


def config_of(report: Any) -> Config:  # noqa: ANN401 (a report is JSON)
    """What the agent makes of a host's settings."""
    return parse(to_toml(report["settings"]).encode(), Path("/etc/credferry/config.toml"))


def test_three_hosts(nix: Nix) -> None:
    """Each host of the example is refused nothing, names all members, and may send to them alone."""
    for name in ("h1", "h2", "h3"):
        module = f'(import (t.root + "/contrib/examples/three-hosts/host.nix") "{name}")'
        report = nix.evaluate(f"t.report (t.sopsHost [ {module} ])")
        assert report["failed"] == []
        fleet = config_of(report).fleet
        assert fleet is not None
        assert fleet.endpoints == tuple(f"https://192.0.2.{number}:2379" for number in (1, 2, 3))
        assert (fleet.group, fleet.certificate, fleet.key) == ("web", "fleet.certificate", "fleet.key")
        service = report["services"]["credferry"]["serviceConfig"]
        assert service["IPAddressAllow"] == ["localhost", "192.0.2.1", "192.0.2.2", "192.0.2.3"]
        assert service["LoadCredential"] == [
            "fleet.certificate:/var/lib/etcd-pki/client.pem",
            "fleet.key:/var/lib/etcd-pki/client.key",
        ]


def test_the_drop_in_is_contribs(nix: Nix) -> None:
    """The unit gets each setting of contrib's drop-in. Without a fleet, it gets none."""
    text = (CHECKOUT / "contrib/systemd/credferry-fleet.conf").read_text()
    report = nix.evaluate(host('endpoints = [ "https://192.0.2.1" ];'))
    service = report["services"]["credferry"]["serviceConfig"]
    for key, value in re.findall("^(?!#)(.+?)=(.*)$", text, re.MULTILINE):
        assert service[key] == value or value in service[key]
    assert nix.evaluate(f"t.report (t.sopsHost [ {HOST} ])")["services"]["credferry"]["serviceConfig"] == {}


def test_all_options(nix: Nix) -> None:
    """Each option becomes its key. A VM may be of another group."""
    report = nix.evaluate(
        host(
            'endpoints = [ "https://[2001:db8::1]:2379" "https://etcd-2" ]; addresses = [ "2001:db8::/32" ];'
            ' host = "h9"; ca = "/ca.pem"; user = "agent"; passwordFile = "/p"; timeoutSeconds = 2;'
            " staleSeconds = 7200;",
            'services.credferry.vms.web.fleetGroup = "front";',
        )
    )
    assert report["failed"] == []
    config = config_of(report)
    fleet = config.fleet
    assert fleet is not None
    assert (fleet.host, fleet.ca, fleet.user, fleet.password_file) == (
        "h9",
        "/ca.pem",
        "agent",
        "fleet.password",
    )
    assert (fleet.timeout_seconds, fleet.stale_seconds) == (2, 7200)
    assert config.vm("web").fleet_group == "front"
    assert report["services"]["credferry"]["serviceConfig"]["IPAddressAllow"] == [
        "localhost",
        "2001:db8::/32",
    ]


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        ("", "set either endpoints or fleetlock"),
        ('endpoints = [ "https://192.0.2.1" ]; fleetlock = "https://192.0.2.9";', "set either"),
        ('endpoints = [ "https://etcd-1" ];', "https://etcd-1 is a name"),
    ],
)
def test_what_is_refused(nix: Nix, fleet: str, said: str) -> None:
    """A fleet without an engine, with two, and servers that the agent could not reach are refused."""
    (failure,) = nix.evaluate(host(fleet))["failed"]
    assert said in failure


@pytest.mark.parametrize(
    "fleet", ['group = "a/b";', 'fleetlock = "etcd-1:2379";', "timeoutSeconds = 0;", 'keyFile = "relative";']
)
def test_types(nix: Nix, fleet: str) -> None:
    """A value of a wrong form is refused with its option's name."""
    with pytest.raises(NixError, match=r"services\.credferry\.fleet"):
        nix.evaluate(host(f'endpoints = [ "https://192.0.2.1" ]; {fleet}'))
