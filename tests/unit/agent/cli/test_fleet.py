# SPDX-License-Identifier: MIT
"""``credferry fleet`` on a real etcd: what it shows, what it changes, and what it writes to the audit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from typer.testing import CliRunner

from credferry.agent.audit.events import Event
from credferry.agent.audit.writer import Audit, kept_head
from credferry.agent.cli import fleet_engine, fleet_views
from credferry.agent.cli.application import application
from credferry.agent.cli.documents import FleetGroupRow, FleetHaltRow, FleetSlotRow
from credferry.agent.errors import (
    ConfigurationError,
    CredferryError,
    ExitStatus,
    FleetError,
    KeyFileError,
    UsageError,
)
from credferry.agent.fleet import keys, opening
from credferry.agent.fleet.model import Applied, Granted, Halted, Holder
from credferry.agent.fleet.presence import Presence
from credferry.agent.journald import Sender
from credferry.agent.sealing.keys import create_key
from credferry.agent.store.fleet_cluster import FleetCluster
from tests.support.etcd import RealEtcd, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NUMBERS = count()
MACHINE = "0123456789abcdef0123456789abcdef"
DEAD = Holder("h-dead", "web", "d" * 32)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """An etcd for all tests here. Each test has a group of its own."""
    made = RealEtcd(tmp_path_factory.mktemp("etcd"))
    yield made
    made.kill()


@dataclass
class Desk:
    """A host with a configuration, at which an operator gives orders."""

    etcd: RealEtcd
    directory: Path
    group: str

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "config.toml"

    def configure(self, fleet: str) -> None:
        """Write the configuration."""
        self.config.write_text(
            f'state_directory = "{self.directory}/state"\nhost_key = "{self.directory}/key"\n'
            f'machine_id_file = "{self.directory}/machine-id"\n[fleet]\n{fleet}\n'
        )

    def run(self, *words: str) -> str:
        """What a verb prints. Raises the verb's error."""
        first = ["fleet", words[0], "--config", str(self.config)]
        done = CliRunner().invoke(application("fleet"), [*first, *words[1:]])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    def recorded(self) -> list[str]:
        """The fields of the audit's last record."""
        head = kept_head(self.directory / "state")
        return [] if head is None else head.fields


@pytest.fixture
def desk(etcd: RealEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A host of the fleet. Its audit does not reach this machine's journal."""
    (tmp_path / "machine-id").write_text(f"{MACHINE}\n")
    create_key(tmp_path / "key", machine_id=MACHINE)
    monkeypatch.setattr(fleet_engine, "Audit", partial(Audit, sender=Sender(str(tmp_path / "journal"))))
    monkeypatch.setattr(opening, "UNIT_CREDENTIALS", tmp_path / "credentials")
    made = Desk(etcd, tmp_path, f"desk-{next(_NUMBERS)}")
    made.configure(f'endpoints = ["{etcd.url}"]\nhost = "h-me"\ngroup = "{made.group}"')
    return made


def test_limit(desk: Desk) -> None:
    """The limit is set, and the audit says who set it, for which group, and why."""
    said = desk.run("limit", desk.group, "3", "--reason", "more hosts")
    assert said == f"{desk.group}: the limit is 3\n"
    group: Any = desk.etcd.engine().state(desk.group)
    assert group.limit.number == 3
    fields = desk.recorded()
    assert f"MESSAGE_ID={Event.FLEET_ORDERED.value}" in fields
    assert "CREDFERRY_ORDER=fleet limit" in fields
    assert f"CREDFERRY_FLEET_GROUP={desk.group}" in fields
    assert "CREDFERRY_REASON=more hosts" in fields
    assert any(each.startswith("CREDFERRY_CALLER_UID=") for each in fields)
    assert any(f"fleet limit {desk.group} 3: ordered by" in each for each in fields)


@pytest.mark.parametrize("number", ["0", "1001", "-1"])
def test_a_limit_that_is_none(desk: Desk, number: str) -> None:
    """Nothing is asked, and nothing recorded, for a number that no limit can be."""
    with pytest.raises(UsageError, match="not a limit"):
        desk.run("limit", desk.group, "--", number)
    assert desk.recorded() == []


def test_halt_and_resume(desk: Desk) -> None:
    """An operator's halt stops each host, with the reason. A second halt keeps the first."""
    engine = desk.etcd.engine()
    assert "halted until: credferry fleet resume" in desk.run("halt", desk.group, "--reason", "a test")
    found = engine.acquire(desk.group, DEAD, "r")
    assert isinstance(found, Halted)
    assert found.halt.text == "an operator on h-me: a test"
    assert "nothing: was halted already" in desk.run("halt", desk.group)
    with pytest.raises(CredferryError, match="is halted: a test") as caught:
        desk.run("status", desk.group)
    assert caught.value.status is ExitStatus.FAILED
    assert desk.run("resume", desk.group) == f"{desk.group}: resumed\n"
    assert "nothing: was not halted" in desk.run("resume", desk.group)
    assert isinstance(engine.acquire(desk.group, DEAD, "r"), Granted)


def test_a_group_that_nobody_uses(desk: Desk) -> None:
    """A mistyped group is refused, with the nearest names: a halt of it would halt nobody."""
    for words in (("halt", "wbe"), ("limit", "wbe", "2"), ("resume", "wbe"), ("status", "wbe")):
        with pytest.raises(UsageError, match="there is no group 'wbe'") as caught:
            desk.run(*words)
        assert "use " in caught.value.hint
    with pytest.raises(UsageError, match="not the name of a group"):
        desk.run("halt", "a/b")
    new = f"{desk.group}-new"
    assert desk.run("limit", new, "2", "--new") == f"{new}: the limit is 2\n"


def test_release_of_a_dead_host(desk: Desk) -> None:
    """The slots of a dead host are freed, those of others stay, and a mistyped host is named."""
    engine = desk.etcd.engine()
    desk.run("limit", desk.group, "2")
    assert isinstance(engine.acquire(desk.group, DEAD, "r"), Granted)
    assert isinstance(engine.acquire(desk.group, Holder("h-live", "web", "a" * 32), "r"), Granted)
    with pytest.raises(UsageError, match="h-daed: no host of this name") as caught:
        desk.run("release", "h-daed")
    assert "h-dead" in caught.value.hint
    assert f"freed 1 slot of {desk.group}" in desk.run("release", "h-dead", "--group", desk.group)
    assert any(f"fleet release {desk.group} h-dead" in each for each in desk.recorded())
    group: Any = engine.state(desk.group)
    assert [each.holder.host for each in group.slots] == ["h-live"]


def test_release_of_a_host_that_lives(desk: Desk) -> None:
    """A host that has reported lately keeps its slots, unless the operator insists."""
    engine = desk.etcd.engine()
    assert isinstance(engine.acquire(desk.group, DEAD, "r"), Granted)
    presence = Presence([desk.etcd.member()])
    assert presence.tell("h-dead", "0.3", {desk.group: {"in step": 1}}, 1.0) == Applied(1)
    with pytest.raises(FleetError, match="has reported within the last 3 minutes"):
        desk.run("release", "h-dead", "--group", desk.group)
    words = ("--group", desk.group, "--force", "--vm", "web")
    assert "freed 1 slot" in desk.run("release", "h-dead", *words)


def test_release_of_garbage(desk: Desk) -> None:
    """A slot that cannot be read ends status with 1, names the remedy, and is freed by it."""
    desk.etcd.put(keys.slots(desk.group) + "0", b"garbage")
    with pytest.raises(CredferryError, match="a slot cannot be read") as caught:
        desk.run("status", desk.group)
    assert f"--unreadable --group {desk.group}" in caught.value.hint
    assert "freed 1 slot" in desk.run("release", "--unreadable", "--group", desk.group)
    desk.run("status", desk.group)
    for words in (("release",), ("release", "--unreadable"), ("release", "h", "--unreadable")):
        with pytest.raises(UsageError, match="release needs a host"):
            desk.run(*words)


def test_forget_cluster(desk: Desk) -> None:
    """The record of the cluster is removed, with an entry in the audit; a second time there is nothing."""
    record = FleetCluster(desk.directory / "state")
    record.write("7", 1)
    assert "forgotten" in desk.run("forget-cluster", "--reason", "etcd was restored")
    assert record.read() is None
    assert any("fleet forget-cluster: ordered by" in each for each in desk.recorded())
    assert any("etcd was restored" in each for each in desk.recorded())
    assert not any("CREDFERRY_FLEET_GROUP" in each for each in desk.recorded())
    assert "nothing" in desk.run("forget-cluster")


def test_status_as_json(desk: Desk) -> None:
    """The document has limit, slots with their holders, the halt and the hosts."""
    engine = desk.etcd.engine()
    assert isinstance(engine.acquire(desk.group, DEAD, "abc"), Granted)
    Presence([desk.etcd.member()]).tell("h-dead", "0.3", {desk.group: {"in step": 2}}, 86400.0)
    printed = desk.run("status", desk.group, "--json")
    assert msgspec.json.decode(printed, type=list[FleetGroupRow]), "as its schema says"
    (row,) = json.loads(printed)
    assert row["limit"] == 1
    (slot,) = row["held"]
    assert (slot["host"], slot["vm"], slot["change"]) == ("h-dead", "web", "abc")
    assert row["hosts"] == [
        {"host": "h-dead", "version": "0.3", "vms": {"in step": 2}, "since": "1970-01-02T00:00:00Z"}
    ]
    assert row["halt"] is None


def test_a_limit_that_cannot_be_read(desk: Desk) -> None:
    """A limit that somebody has broken is null, and ends status with 1."""
    desk.etcd.put(keys.limit_key(desk.group), b"many")
    with pytest.raises(CredferryError, match="its limit cannot be read"):
        desk.run("status", desk.group)


def test_tables_fit_a_terminal() -> None:
    """With 80 columns, no line is longer, and names are whole."""
    rows = [
        FleetGroupRow(
            group="production-web",
            limit=2,
            held=[
                FleetSlotRow(
                    slot=1,
                    host="a-host-with-a-long-name",
                    vm="machine",
                    change="a" * 32,
                    since="2026-11-28T01:00:00Z",
                ),
                FleetSlotRow(slot=None, host=None, vm=None, change="", since=None),
            ],
            halt=FleetHaltRow(
                host="a-host-with-a-long-name",
                vm="machine",
                why="the health check failed on generation 7 of this VM",
                change="b",
                since="2026-11-28T01:00:00Z",
            ),
            hosts=[],
        )
    ]
    now = datetime(2026, 11, 28, 2, tzinfo=UTC)
    shown = [line for line, _ in fleet_views.lines(rows, 80, UTC, now)]
    assert max(map(len, shown)) <= 80
    text = "\n".join(shown)
    for part in ("production-web", "halted", "a-host-with-a-long-name", "1 h", "cannot be read"):
        assert part in text


def test_an_engine_that_is_away(desk: Desk) -> None:
    """Without etcd, a verb ends with status 69 and says what did not answer. No traceback, no hang."""
    desk.configure(f'endpoints = ["http://127.0.0.1:{free_port()}"]')
    with pytest.raises(FleetError, match="the connection failed") as caught:
        desk.run("status")
    assert caught.value.status is ExitStatus.UNAVAILABLE


def test_what_a_fleetlock_server_cannot_do(desk: Desk) -> None:
    """A FleetLock server has no status, limit or halt: the verb says so."""
    desk.configure(f'fleetlock = "http://127.0.0.1:{free_port()}"')
    for words in (("status",), ("limit", "default", "2"), ("halt", "default"), ("release", "h")):
        with pytest.raises(FleetError, match="FleetLock cannot"):
            desk.run(*words)


def test_a_host_without_a_fleet(desk: Desk) -> None:
    """The verb says that there is no table [fleet]."""
    desk.config.write_text("")
    with pytest.raises(ConfigurationError, match="belongs to no fleet"):
        desk.run("status")


def test_credentials_of_the_agents_unit(desk: Desk, tmp_path: Path) -> None:
    """Names of credentials are found while the agent's unit runs. Else the verb says what to start."""
    desk.configure(f'endpoints = ["{desk.etcd.url}"]\nuser = "agent"\npassword_file = "etcd-password"')
    with pytest.raises(FleetError, match="the agent's unit does not run"):
        desk.run("status")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/etcd-password").write_text("x")
    with pytest.raises(FleetError, match="has no authentication"):
        desk.run("status")


def test_no_order_without_an_audit(desk: Desk, tmp_path: Path) -> None:
    """Where the audit cannot be written, nothing is changed."""
    (tmp_path / "key").unlink()
    with pytest.raises(KeyFileError, match="no key for the audit"):
        desk.run("limit", desk.group, "4")
    group: Any = desk.etcd.engine().state(desk.group)
    assert group.limit.number == 1
