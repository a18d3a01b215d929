# SPDX-License-Identifier: MIT
"""The textfile for Prometheus: what it says, when it is written, and what it never says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from credferry.agent.audit.events import Event
from credferry.agent.audit.writer import Fact
from credferry.agent.config.loading import parse
from credferry.agent.config.model import MetricsConfig
from credferry.agent.daemon.metrics import Metrics
from credferry.agent.daemon.textfile import Textfile, replace
from credferry.agent.reconcile.decision import State, decide
from credferry.agent.reconcile.desired import Desired, Refused
from credferry.agent.reconcile.observed import Observed
from credferry.agent.reconcile.observer import Look
from credferry.agent.rollout.slots import AwaitedSlot, FleetView, HeldSlot
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.source.published import NOTHING
from credferry.agent.store.evidence import Evidence
from credferry.agent.store.generations import Store
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import Channel, Manifest, Stamp

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = parse(
    b"""
    [vms.web.credentials]
    API_KEY = { secret = "api-key" }
    [vms.db.credentials]
    PASSWORD = { secret = "db" }
    """,
    Path("config.toml"),
)
SECONDS = 1_000_000.0
NEW, OLD = "b" * 64, "a" * 56 + "b" * 8


@dataclass(slots=True)
class Clock:
    """A clock that stands still until it is moved."""

    now: float = SECONDS

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@dataclass(slots=True)
class World:
    """Metrics with clocks, a store, and a textfile."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    textfile: Textfile = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.textfile = Textfile(self.clock, Metrics(self.clock, self.clock))
        self.store = Store(self.directory, CredentialKey(bytes(32)))

    @property
    def file(self) -> Path:
        """The textfile."""
        return self.directory / "credferry.prom"

    def look(self, *, running: str = NEW, refused: bool = False, held: bool = False) -> None:
        """Look at both VMs: web as is said, db in step."""
        self.look_at(_observed("web", running, refused=refused, held=held), _observed("db", NEW))

    def look_at(self, *observed: Observed) -> None:
        """Look at these VMs."""
        look = Look(NOTHING, observed, tuple(decide(each) for each in observed))
        self.textfile.looked(look, self.store, with_source=True)

    def tell(self, event: Event, run: str = "r", sequence: int = 1) -> None:
        """Tell of a record about web."""
        self.textfile.hear(Fact(event, "web", run, 7, sequence))

    def write(self, *lacks: str, period: float = 60.0) -> None:
        """Write the file where it is due."""
        self.textfile.write_if_due(MetricsConfig(textfile=str(self.file)), lacks, period)

    def samples(self) -> dict[tuple[str, ...], float]:
        """All samples of the file, by name and the values of their labels in the order of these."""
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.file.read_text())
            for sample in family.samples
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of its own."""
    return World(tmp_path)


def _observed(vm: str, running: str = NEW, *, refused: bool = False, held: bool = False) -> Observed:
    configured = CONFIG.vm(vm)
    delivery = configured.delivery
    return Observed(
        vm=configured,
        desired=Refused(("API_KEY is absent",)) if refused else Desired(NEW, (), {}, delivery),
        sealed=Manifest(vm, 7, NEW, "r", delivery, ()),
        unit=UnitState(configured.unit, "loaded", "active", "running", "i"),
        evidence=Evidence("i", 7, running, "r"),
        hint=Stamp(vm, 7, running, "r", "i", Channel.API, 0),
        assumed=None,
        attempt=None,
        held=held,
    )


def test_states(world: World) -> None:
    """Each VM has 1 at the state that `credferry status` names, and VMs are counted by state."""
    world.look(running=OLD, held=True)
    world.write()
    samples = world.samples()
    assert samples["credferry_vm_state", "held", "web"] == 1
    assert samples["credferry_vm_state", "in step", "web"] == 0
    assert samples["credferry_vms", "held"] == samples["credferry_vms", "in step"] == 1
    assert sum(samples["credferry_vms", state.value] for state in State) == 2


@pytest.mark.parametrize(
    ("look", "seconds"),
    [
        (lambda world: world.look(), 0),
        (lambda world: world.look(running=OLD), 30),
        (lambda world: world.look(running=OLD, held=True), 30),
        (lambda world: world.look(refused=True), 30),
    ],
    ids=["in step", "due", "held", "refused"],
)
def test_seconds_out_of_step(world: World, look: Callable[[World], None], seconds: float) -> None:
    """Counted from the first look that found a VM behind, until one that does not."""
    look(world)
    world.clock.now += 30
    look(world)
    world.write()
    assert world.samples()["credferry_vm_out_of_step_seconds", "web"] == seconds
    world.look()
    world.write()
    assert world.samples()["credferry_vm_out_of_step_seconds", "web"] == 0


def test_seconds_out_of_step_outlast_the_agent(world: World) -> None:
    """Of a VM that was behind before the agent's start, since its generation was sealed."""
    generation = world.store.vm_directory("web") / "generations" / "7"
    generation.mkdir(parents=True)
    os.utime(generation, (SECONDS - 3600, SECONDS - 3600))
    world.look(running=OLD)
    world.write()
    assert world.samples()["credferry_vm_out_of_step_seconds", "web"] == 3600


def test_a_rotation(world: World) -> None:
    """A restart is counted by its result, and the time since the change was seen goes into the histogram."""
    world.look(running=OLD)
    world.tell(Event.PUBLISHED)
    world.clock.now += 4
    world.tell(Event.RESTART_FAILED, sequence=2)
    world.tell(Event.RESTARTED, sequence=3)
    world.tell(Event.RESTARTED, run="that of an earlier change", sequence=4)
    world.write()
    samples = world.samples()
    assert samples["credferry_restarts_total", "done", "web"] == 2
    assert samples["credferry_restarts_total", "failed", "web"] == 1
    assert samples["credferry_restarts_total", "done", "db"] == 0
    assert samples["credferry_rotation_seconds_bucket", "2.5"] == 0
    assert samples["credferry_rotation_seconds_bucket", "5.0"] == 1
    assert samples["credferry_rotation_seconds_bucket", "+Inf"] == 1
    assert samples["credferry_rotation_seconds_sum",] == 4
    assert samples["credferry_audit_sequence",] == 4


def test_a_rotation_by_a_push(world: World) -> None:
    """A push is counted by its result, and ends a rotation as a restart does."""
    world.look(running=OLD)
    world.tell(Event.PUBLISHED)
    world.clock.now += 4
    world.tell(Event.PUSH_FAILED, sequence=2)
    world.tell(Event.PUSHED, sequence=3)
    world.write()
    samples = world.samples()
    assert samples["credferry_pushes_total", "done", "web"] == 1
    assert samples["credferry_pushes_total", "failed", "web"] == 1
    assert samples["credferry_pushes_total", "done", "db"] == 0
    assert samples["credferry_restarts_total", "done", "web"] == 0
    assert samples["credferry_rotation_seconds_sum",] == 4


def test_a_vm_that_is_configured_no_more(world: World) -> None:
    """No series names a VM that the configuration does not name, and its counters begin at 0 afterwards."""
    world.look()
    world.tell(Event.SEALED)
    world.tell(Event.RESTARTED)
    world.write()
    assert world.samples()["credferry_generations_sealed_total", "web"] == 1
    world.look_at(_observed("db", NEW))
    world.write()
    assert not [key for key in world.samples() if "web" in key]
    world.look()
    world.write()
    assert world.samples()["credferry_generations_sealed_total", "web"] == 0
    assert world.samples()["credferry_restarts_total", "done", "web"] == 0


def test_no_series_about_series(world: World) -> None:
    """The file has the series that are documented, and not prometheus-client's times of their making."""
    world.look()
    world.write()
    assert not [name for name, *_ in world.samples() if name.endswith("_created")]


def test_metrics_begin_when_they_are_asked_for(tmp_path: Path) -> None:
    """Without a file in the configuration there are no metrics; with one, they begin, and go on after it."""
    textfile, file = Textfile(), tmp_path / "credferry.prom"
    wanted = MetricsConfig(textfile=str(file))
    textfile.use(MetricsConfig())
    textfile.hear(Fact(Event.SEALED, "web", "r", 7, 1))
    textfile.write_if_due(wanted, (), 60)
    assert not file.exists()
    textfile.use(wanted)
    textfile.hear(Fact(Event.SEALED, "web", "r", 8, 2))
    textfile.use(MetricsConfig())
    textfile.hear(Fact(Event.SEALED, "web", "r", 9, 3))
    textfile.use(wanted)
    textfile.write_if_due(wanted, (), 60)
    assert 'credferry_generations_sealed_total{vm="web"} 2.0' in file.read_text().splitlines()


def test_what_is_lacking(world: World) -> None:
    """A source, bus, store or key that the agent must do without shows, and the last good look's time."""
    world.look()
    world.clock.now += 10
    world.write("source", "of no interest")
    samples = world.samples()
    assert samples["credferry_unavailable", "source"] == 1
    assert samples["credferry_unavailable", "bus"] == 0
    assert samples["credferry_last_reconcile_timestamp_seconds",] == SECONDS


def test_when_it_is_written(world: World) -> None:
    """At a change at once, and else once a period."""
    world.look()
    world.write()
    first = world.file.stat().st_ino
    world.look()
    world.write()
    assert world.file.stat().st_ino == first
    world.clock.now += 60
    world.write()
    second = world.file.stat().st_ino
    assert second != first
    world.look(running=OLD)
    world.write()
    assert world.file.stat().st_ino != second


def test_no_names_or_digests_of_secrets(world: World) -> None:
    """Of a VM only its name is told."""
    world.look(refused=True)
    world.tell(Event.SEALED)
    world.write()
    text = world.file.read_text()
    assert not [name for name in ("API_KEY", "api-key", "PASSWORD", NEW[:12], OLD[:12]) if name in text]
    assert not re.search(r"[0-9a-f]{12,}", text)


def test_the_file(tmp_path: Path) -> None:
    """It is replaced whole, readable by all whatever the umask, and a symlink beside it is not followed."""
    file, elsewhere = tmp_path / "x.prom", tmp_path / "elsewhere"
    (tmp_path / ".x.prom.new").symlink_to(elsewhere)
    before = os.umask(0o077)
    try:
        replace(file, b"first")
        replace(file, b"second")
    finally:
        os.umask(before)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"second", 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["x.prom"]
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "missing" / "x.prom", b"")


def test_its_library_is_loaded_when_it_is_needed() -> None:
    """An agent without metrics does not load what makes them."""
    code = "import sys, credferry.agent.daemon.main; sys.exit('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 0


def test_a_fleet(world: World) -> None:
    """Slots, VMs that wait, and halts are told by group, and stay at 0. A host without a fleet has none."""
    world.look()
    world.write()
    assert not [name for name, *_ in world.samples() if "fleet" in name]
    awaited = [AwaitedSlot(vm, "web", SECONDS - age, "why", "who") for vm, age in (("a", 5), ("b", 50))]
    world.textfile.see_fleet(
        FleetView((HeldSlot("web", "db", SECONDS),), tuple(awaited), halted={"front": "why"})
    )
    world.write("fleet")
    samples = world.samples()
    assert samples["credferry_unavailable", "fleet"] == 1
    assert samples["credferry_fleet_slots_held", "db"] == 1
    assert samples["credferry_fleet_vms_waiting", "web"] == 2
    assert samples["credferry_fleet_waiting_seconds", "web"] == 50
    assert samples["credferry_fleet_halted", "front"] == 1
    world.textfile.see_fleet(FleetView())
    world.write()
    samples = world.samples()
    assert samples["credferry_unavailable", "fleet"] == 0
    for name, group in (
        ("slots_held", "db"),
        ("vms_waiting", "web"),
        ("waiting_seconds", "web"),
        ("halted", "front"),
    ):
        assert samples[f"credferry_fleet_{name}", group] == 0
