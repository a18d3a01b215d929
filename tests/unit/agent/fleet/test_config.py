# SPDX-License-Identifier: MIT
"""The fleet in the configuration, and the engine that is made of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.config.loading import parse
from credferry.agent.errors import ConfigurationError
from credferry.agent.fleet import keys
from credferry.agent.fleet.etcd import Etcd
from credferry.agent.fleet.fleetlock import FleetLock
from credferry.agent.fleet.model import Holder, Unavailable, machine_of
from credferry.agent.fleet.opening import holder, open_engine

if TYPE_CHECKING:
    from credferry.agent.config.fleet import FleetConfig

FILE = Path("/etc/credferry/config.toml")
VM = '[vms.web.credentials]\nK = { text = "k" }\n'
ETCD = 'endpoints = ["https://etcd-1:2379", "https://[::1]:2379"]\n'
MACHINE_ID = "0123456789abcdef0123456789abcdef"


def fleet(text: str) -> FleetConfig:
    """The table of a text."""
    found = parse(f"[fleet]\n{text}\n{VM}".encode(), FILE).fleet
    assert found is not None
    return found


def test_without_a_fleet() -> None:
    """A configuration without the table has no fleet."""
    assert parse(VM.encode(), FILE).fleet is None


def test_a_fleet() -> None:
    """The table needs the engine only. A VM may name another group."""
    made = fleet(ETCD)
    assert (made.group, made.host, made.fleetlock) == ("default", "", None)
    config = parse(f'[fleet]\n{ETCD}\n[vms.web]\nfleet_group = "db"\n{VM}'.encode(), FILE)
    assert config.vm("web").fleet_group == "db"
    assert fleet('fleetlock = "https://lock.example.org/fleet"').endpoints == ()
    assert fleet('endpoints = ["http://127.0.0.1:2379"]').endpoints == ("http://127.0.0.1:2379",)


BAD = {
    "": "either endpoints or fleetlock",
    ETCD + 'fleetlock = "https://x"': "either endpoints or fleetlock",
    "endpoints = []": "either endpoints or fleetlock",
    'endpoints = ["etcd-1:2379"]': "fleet.endpoints[0]: not a URL",
    'endpoints = ["https://a", "https://"]': "fleet.endpoints[1]: not a URL",
    'endpoints = ["https://a:99999"]': "not a URL",
    'endpoints = ["https://a:0"]': "not a URL",
    'endpoints = ["https://[::1"]': "not a URL",
    'endpoints = ["https://a b"]': "not a URL",
    'endpoints = ["https://a\\u001b"]': "not a URL",
    'endpoints = ["ftp://a"]': "not a URL",
    'endpoints = ["https://me:sesame@a"]': "a URL with a user or password",
    'endpoints = ["https://sesame@a"]': "a URL with a user or password",
    'endpoints = ["https://a/v3"]': "more than a host and port",
    'endpoints = ["https://a?x=sesame"]': "more than a host and port",
    'endpoints = ["http://etcd-1:2379"]': "http is allowed for 127.0.0.1 and ::1 only",
    'endpoints = ["http://localhost.example.org:2379"]': "http is allowed for 127.0.0.1 and ::1 only",
    'endpoints = ["https://a", "https://a/"]': "is named twice",
    'fleetlock = "http://lock"': "http is allowed",
    'fleetlock = "https://lock/?x=1"': "more than a host",
    'fleetlock = "https://lock"\nuser = "u"\npassword_file = "p"': "a FleetLock server has no users",
    ETCD + 'certificate = "c"': "certificate and key belong together",
    ETCD + 'key = "k"': "certificate and key belong together",
    ETCD + 'user = "u"': "user and password_file belong together",
    ETCD + 'password_file = "p"': "user and password_file belong together",
    ETCD + 'user = "u"\npassword_file = "../p"': "or the name of a credential",
    ETCD + 'password = "sesame"': "unknown field",
    ETCD + 'group = "a_b"': "fleet.group: expected a name",
    ETCD + 'group = ""': "fleet.group: expected a name",
    ETCD + 'host = "a b"': "fleet.host: expected a name",
    ETCD + 'ca = "ca.pem"': "fleet.ca: expected an absolute path",
    ETCD + "timeout_seconds = 0": "fleet.timeout_seconds",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_refused(text: str) -> None:
    """Each refusal names the key and the remedy, and never a password that stands in a URL."""
    with pytest.raises(ConfigurationError) as caught:
        fleet(text)
    assert BAD[text] in str(caught.value)
    assert caught.value.hint
    assert "sesame" not in f"{caught.value}{caught.value.hint}"


def test_a_group_without_a_fleet() -> None:
    """A VM that names a group on a host without a fleet is refused: it would be restarted unasked."""
    with pytest.raises(ConfigurationError, match=r"vms\.web\.fleet_group: there is no fleet"):
        parse(f'[vms.web]\nfleet_group = "db"\n{VM}'.encode(), FILE)


@given(st.from_regex(keys.GROUP, fullmatch=True))
def test_each_group_of_a_key_can_be_configured(group: str) -> None:
    """The configuration allows the groups that the keys allow."""
    assert fleet(f'{ETCD}group = "{group}"').group == group


def test_the_engine_of_a_configuration(tmp_path: Path) -> None:
    """The engine has its members and the files of the agent's credentials. It does not connect yet."""
    engine = open_engine(fleet(ETCD + 'user = "u"\npassword_file = "etcd.password"'), tmp_path)
    assert isinstance(engine, Etcd)
    assert [each.url for each in engine.members] == ["https://etcd-1:2379", "https://[::1]:2379"]
    login = engine.members[0].login
    assert login is not None
    assert login.password_file == tmp_path / "etcd.password"
    assert isinstance(open_engine(fleet('fleetlock = "https://lock"'), None), FleetLock)


def test_a_credential_without_credentials() -> None:
    """A name of a credential is refused where the agent's unit has none, with the line for the unit."""
    with pytest.raises(ConfigurationError, match=r"fleet\.key") as caught:
        open_engine(fleet(ETCD + 'certificate = "/c.pem"\nkey = "etcd.key"'), None)
    assert "LoadCredential=etcd.key:" in caught.value.hint


def test_an_engine_that_is_not_there() -> None:
    """A first call to an engine that is not there is an answer, not an exception."""
    engine = open_engine(fleet('endpoints = ["http://127.0.0.1:1"]'), None)
    found = engine.acquire("web", Holder("h", "web", "0" * 32), "r")
    assert isinstance(found, Unavailable)
    assert "http://127.0.0.1:1" in found.reason


def test_the_name_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own name is the default. A name that all hosts have is refused."""
    machine = machine_of(MACHINE_ID.encode())
    assert holder(fleet(f'{ETCD}host = "h1"'), "web", MACHINE_ID) == Holder("h1", "web", machine)
    monkeypatch.setattr("socket.gethostname", lambda: "h2")
    assert holder(fleet(ETCD), "web", MACHINE_ID).host == "h2"
    for bad in ("localhost", "", "a b"):
        monkeypatch.setattr("socket.gethostname", lambda bad=bad: bad)
        with pytest.raises(ConfigurationError, match=r"fleet\.host"):
            holder(fleet(ETCD), "web", MACHINE_ID)


def test_a_host_without_a_fleet_loads_nothing_for_it() -> None:
    """The daemon and the opening of an engine load none of the libraries that only an engine needs."""
    script = (
        "import sys, credferry.agent.daemon.main, credferry.agent.fleet.opening; "
        "print(sorted(sys.modules.keys() & {'requests', 'urllib3'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_host_without_a_fleet_loads_no_module_of_it() -> None:
    """The daemon loads nothing of the room for a fleet, and not the part of the rollout that uses it."""
    script = (
        "import sys, credferry.agent.daemon.main; "
        "print([name for name in sys.modules if name.startswith('credferry.agent.fleet')"
        " or name == 'credferry.agent.rollout.fleet'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
