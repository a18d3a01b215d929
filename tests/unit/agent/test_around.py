# SPDX-License-Identifier: MIT
"""Units of the operator before and after restarts, and for failures."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event, Order
from credferry.agent.config.loading import parse
from credferry.agent.errors import BusError, ConfigurationError, OrderError, SourceError
from credferry.agent.reconcile.decision import Decision, State
from credferry.agent.reconcile.desired import Desired, Refused
from credferry.agent.reconcile.observed import Observed
from credferry.agent.rollout.around import Around
from credferry.agent.rollout.clock import Clock
from credferry.agent.rollout.operators import Operator
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.agent.store.records import Attempt, Outcome, Owed
from credferry.agent.systemd.polkit import rule
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import Channel, Delivery
from tests.support.host import wait_until
from tests.support.loop import Loop
from tests.support.world.process import CrashError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CREDENTIALS = '[vms.web.credentials]\nK = { secret = "k" }\n'
UNITS = 'before = "drain@%i.service", after = "undrain@%i.service", on_failure = "page@%i.service"'


def table(more: str = "", units: str = UNITS) -> str:
    """A VM with units around its restarts."""
    return f"[vms.web]\nunits = {{ {units}{more} }}\n{CREDENTIALS}"


class Site:
    """A loop whose VM runs what is published; what is started is noted, and ends as a test says."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.ran: list[str] = []
        self.results: dict[str, str] = {}
        """systemd's result by the first part of a unit's name; else done."""
        self.do: Callable[[str], None] = lambda _name: None
        loop.units.health = self._start
        job = loop.units.job

        def restart(name: str) -> str:
            self.ran.append("restart")
            return job(name)

        loop.units.job = restart
        loop.publish(k="1")
        with loop.made():
            loop.turn()
        loop.start_vm("web")

    def _start(self, name: str) -> str:
        self.do(name)
        self.ran.append(name.partition("@")[0])
        return self.results.get(self.ran[-1], "done")

    def ends(self, what: str) -> Callable[[], bool]:
        """Whether this ran last."""
        return lambda: bool(self.ran) and self.ran[-1] == what

    def state(self) -> State:
        """Of the VM, paced."""
        service = self.loop.service
        look = service._session.observer.look_or_refuse([service._session.config.vm("web")], self.loop.units)
        return service._session.pacer.hold_back(look).decisions[0].state


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with all three units."""
    return Site(Loop(tmp_path, table()))


def test_the_order(site: Site) -> None:
    """Before, the restart, after: once each, and no unit for failures."""
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        assert site.ran == ["drain", "restart", "undrain"]
        assert site.loop.store.owed("web") is None
        site.loop.turn()
        assert site.ran == ["drain", "restart", "undrain"]


def test_a_failure_before_puts_the_restart_off(site: Site) -> None:
    """The VM keeps what it runs and returns to service. It waits, and one record says so."""
    site.results["drain"] = "failed"
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        assert site.ran == ["drain", "page", "undrain"]
        assert site.state() is State.WAITING
        site.loop.turn(until=lambda: Event.WAITING in site.loop.events())
        said = [message for event, message in site.loop.told() if event is Event.WAITING]
        drain = "drain@web.service"
        assert said == [f"web: its rotation waits until {drain} succeeds: {drain} ended with 'failed'"]
        assert site.loop.units.restarts == []
        site.results.clear()
        site.loop.publish(k="3")  # other secrets do not wait for the retry
        site.loop.turn(until=lambda: site.ran[-3:] == ["drain", "restart", "undrain"])


def test_a_failure_before_that_stops_nothing(tmp_path: Path) -> None:
    """With `before_fails = "restart"` the restart follows all the same."""
    site = Site(Loop(tmp_path, table(', before_fails = "restart"')))
    site.results["drain"] = "failed"
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        assert site.ran == ["drain", "restart", "undrain"]


def test_a_failure_after_is_a_warning(site: Site) -> None:
    """The restart counts, its record names the failure, and the unit is still to run."""
    site.results["undrain"] = "failed"
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        message = next(message for event, message in site.loop.told() if event is Event.RESTARTED)
        assert message.endswith("; undrain@web.service ended with 'failed'")
        owed = site.loop.store.owed("web")
        assert owed is not None
        assert owed.unit == "undrain@web.service"
        site.loop.turn()
        assert site.ran == ["drain", "restart", "undrain"]


def test_a_failure_after_rolls_back(tmp_path: Path) -> None:
    """With `after_fails = "rollback"`, as a failed health check: the VM goes back and is shown failed."""
    site = Site(Loop(tmp_path, table(', after_fails = "rollback"')))
    site.results["undrain"] = "failed"
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=lambda: Event.ROLLED_BACK in site.loop.events())
        assert site.ran[:5] == ["drain", "restart", "undrain", "page", "restart"]
        assert site.state() is State.FAILED


@pytest.mark.parametrize("result", ["failed", "timeout"])
def test_a_restart_that_fails(site: Site, result: str) -> None:
    """The unit for failures runs. The agent rolls the VM back, and the VM returns to service."""
    job = site.loop.units.job

    def fail_once(name: str) -> str:
        if len(site.loop.units.restarts) > 2:
            return job(name)
        site.ran.append("restart")
        site.loop.units.set(name, active="failed", sub="failed", result="exit-code")
        return result

    site.loop.units.job = fail_once
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
    assert site.ran == ["drain", "restart", "restart", "page", "restart", "undrain"]


@pytest.mark.parametrize("moment", ["drain", "restart", "undrain"])
def test_a_crash_loses_no_unit_after(site: Site, moment: str) -> None:
    """Wherever the agent dies, the next one puts the VM back into service, on what is published."""

    def die(name: str) -> None:
        if name.partition("@")[0] == moment:
            raise CrashError

    job = site.loop.units.job

    def restart(name: str) -> str:
        done = job(name)
        die("restart")
        return done

    site.do, site.loop.units.job = die, restart
    site.loop.publish(k="2")
    with site.loop.running(), pytest.raises(CrashError):
        site.loop.turn(until=lambda: False)
    site.do, site.loop.units.job = lambda _name: None, job
    with site.loop.running():
        site.loop.turn(until=lambda: not site.loop.store.owed("web"))
        assert site.state() is State.IN_STEP
    assert site.ran[-1] == "undrain"
    assert site.ran.count("restart") == 1


def test_a_producer_that_withdraws_everything_keeps_no_vm_out_of_service(site: Site) -> None:
    """A unit after a restart that did not follow runs also while no source can be read."""

    def withdraw(name: str) -> None:
        if name.startswith("drain"):
            (site.loop.top / "secrets").unlink()

    site.do = withdraw
    site.results["drain"] = "failed"
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        assert isinstance(site.loop.turned.failure, SourceError)
    assert site.ran == ["drain", "page", "undrain"]


@pytest.mark.parametrize("which", ["drain", "undrain"])
def test_a_unit_that_is_active_already_has_not_run(site: Site, which: str) -> None:
    """To start it does nothing (RemainAfterExit=yes): that is a failure, with what to change."""
    said = f"{which}@web.service is active already, so a start runs nothing: set RemainAfterExit=no in it"
    site.loop.units.set(f"{which}@web.service", active="active")
    site.loop.publish(k="2")
    with site.loop.running():
        if which == "drain":
            site.loop.turn(until=site.ends("undrain"))
            assert site.ran == ["page", "undrain"]
            wait = [message for event, message in site.loop.told() if event is Event.WAITING]
            assert wait == [f"web: its rotation waits until {which}@web.service succeeds: {said}"]
        else:
            site.loop.turn(until=lambda: Event.RESTARTED in site.loop.events())
            assert site.ran == ["drain", "restart"]
            owed = site.loop.store.owed("web")
            assert owed is not None
            assert owed.reason == said


def test_a_vm_that_cannot_be_made_healthy_returns_to_service(tmp_path: Path) -> None:
    """If there is nothing to roll back to, it is shown as failed, and is not kept out of service."""
    site = Site(Loop(tmp_path, table().replace("[vms.web]", '[vms.web]\nhealth = ["true"]')))
    site.results["credferry-health"] = "failed"
    with site.loop.running() as service:
        site.loop.turn()
        service._orders.give("web", Order.RESTART, Operator(os.getuid()))
        site.loop.turn(until=site.ends("undrain"))
        assert site.ran == ["drain", "restart", "credferry-health", "page", "undrain"]
        assert site.state() is State.FAILED


def test_a_vm_that_is_stopped_meanwhile_stays_stopped(site: Site) -> None:
    """Before may take minutes: the agent looks again, and starts no VM that somebody has stopped."""

    def stop(name: str) -> None:
        if name.startswith("drain"):
            site.loop.stop_vm("web")

    site.do = stop
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=lambda: "drain" in site.ran)
        assert site.loop.units.restarts == []
        assert site.state() is State.STOPPED
        assert site.ran == ["drain"], "nobody is put into service that is down"
        site.do = lambda _name: None
        site.loop.start_vm("web")
        site.loop.turn(until=site.ends("undrain"))
        assert site.loop.units.restarts == []


def test_a_vm_that_is_down_is_not_drained(tmp_path: Path) -> None:
    """Nobody uses it."""
    site = Site(Loop(tmp_path, table()))
    store = Store(tmp_path / "elsewhere", CredentialKey(b"k" * 4096))
    vm = parse(table().encode(), tmp_path / "c").vm("web")
    unit = UnitState(vm.unit, "loaded", "failed", "failed", "")
    assert Around(store, Clock()).before(vm, unit, site.loop.units) == ""
    assert site.ran == []
    assert store.owed("web") is None


def test_an_order_that_a_failure_puts_off(site: Site) -> None:
    """The operator gets the reason, and the restart is tried again by itself."""
    site.results["drain"] = "failed"
    with site.loop.running() as service:
        site.loop.turn()
        service._orders.give("web", Order.RESTART, Operator(os.getuid()))
        site.loop.turn()
        # Without a turn: a look may clear the record from which the order takes its reason.
        wait_until(lambda: service._orders.given("web") is None, 20, "the end of the order")
        assert "until drain@web.service succeeds" in service._orders.result("web")
        site.loop.turn(until=site.ends("undrain"))
        assert site.loop.units.restarts == []


def test_a_rollback_by_an_operator(site: Site) -> None:
    """The units run around it as around a restart."""
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        site.ran.clear()
        site.loop.service._session.rollout.roll_back("web", site.loop.units, "r" * 32)
        site.loop.turn(until=site.ends("undrain"))
    assert site.ran == ["drain", "restart", "undrain"]


def test_a_failure_before_refuses_a_rollback(site: Site) -> None:
    """The operator gets the reason and the journal to look into. The VM stays up and the unit after runs."""
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        site.ran.clear()
        site.results["drain"] = "failed"
        with pytest.raises(OrderError) as refusal:
            site.loop.service._session.rollout.roll_back("web", site.loop.units, "r" * 32)
        assert site.ran == ["drain", "page"]
        site.loop.turn(until=site.ends("undrain"))
    assert str(refusal.value) == "web: not rolled back: drain@web.service ended with 'failed'"
    assert refusal.value.hint == "see: journalctl -u drain@web.service"


def test_without_units_there_is_nothing_to_say(tmp_path: Path) -> None:
    """Neither before nor after a restart."""
    loop = Loop(tmp_path, table(units=""))
    vm = parse(table(units="").encode(), tmp_path / "c").vm("web")
    around = Around(Store(tmp_path / "elsewhere", CredentialKey(b"k" * 4096)), Clock())
    unit = UnitState(vm.unit, "loaded", "active", "running", "1" * 32)
    assert (around.before(vm, unit, loop.units), around.after(vm, loop.units)) == ("", "")


def test_a_unit_that_systemd_refuses(site: Site) -> None:
    """The reason is systemd's, and systemd was asked whether it still answers."""

    def refuse(name: str) -> None:
        if name.startswith("drain"):
            raise BusError(f"Unit {name} is masked.", hint="none")

    site.do = refuse
    site.loop.publish(k="2")
    with site.loop.running():
        site.loop.turn(until=site.ends("undrain"))
        said = [message for event, message in site.loop.told() if event is Event.WAITING]
        assert said == [
            "web: its rotation waits until drain@web.service succeeds: Unit drain@web.service is masked."
        ]


@pytest.mark.parametrize(
    ("ago", "left"), [(0.0, 60.0), (59.0, 1.0), (60.0, None), (-1.0, None)], ids=["0", "59", "60", "boot"]
)
def test_when_a_unit_is_tried_again(tmp_path: Path, ago: float, left: float | None) -> None:
    """After `retry_seconds`, by the time since the host's boot; at once after a reboot."""
    vm = parse(table(", retry_seconds = 60").encode(), tmp_path / "c").vm("web")
    wanted = Desired("1", (), {}, Delivery(Channel.API, 252))
    unit = UnitState(vm.unit, "loaded", "active", "running", "1" * 32)
    attempt = Attempt("1", Outcome.PUT_OFF, "until it succeeds", moment=1000 - ago)
    owed = Owed("undrain@web.service", 1000 - ago, "it failed")
    now = replace(Observed(vm, wanted, None, unit, None, None, attempt), owed=owed)
    around = Around(Store(tmp_path, CredentialKey(b"k" * 4096)), Clock(boot=lambda: 1000.0))
    decision, put_off = around.hold_back(Decision(vm, State.RESTART_DUE), now)
    assert put_off == (None if left is None else ("until it succeeds", left))
    assert (decision.run_after, decision.wait_seconds) == (left is None, left or 0.0)
    assert decision.reasons == ("after its restart: it failed",)


def test_a_unit_that_has_not_run_yet_is_due(tmp_path: Path) -> None:
    """It runs at once, and there is no reason to name."""
    vm = parse(table(", retry_seconds = 60").encode(), tmp_path / "c").vm("web")
    unit = UnitState(vm.unit, "loaded", "active", "running", "1" * 32)
    owed = Owed("undrain@web.service", 999.0)
    now = replace(Observed(vm, Refused(("gone",)), None, unit, None, None, None), owed=owed)
    around = Around(Store(tmp_path, CredentialKey(b"k" * 4096)), Clock(boot=lambda: 1000.0))
    decision, put_off = around.hold_back(Decision(vm, State.IN_STEP, reasons=("as published",)), now)
    assert (decision.run_after, decision.wait_seconds, decision.reasons) == (True, 0.0, ("as published",))
    assert put_off is None


def test_what_is_refused_has_no_restart_to_put_off(tmp_path: Path) -> None:
    """An attempt of other secrets holds nothing back."""
    vm = parse(table(", retry_seconds = 60").encode(), tmp_path / "c").vm("web")
    around = Around(Store(tmp_path, CredentialKey(b"k" * 4096)), Clock(boot=lambda: 1000.0))
    decision = Decision(vm, State.REFUSED)
    attempt = Attempt("1", Outcome.PUT_OFF, "until it succeeds", moment=1000.0)
    now = Observed(vm, Refused(("gone",)), None, None, None, None, attempt)
    assert around.hold_back(decision, now) == (decision, None)


@pytest.mark.parametrize(
    "name",
    [
        *("drain", "drain@.service", "../x.service", "a b.service", "drain@%n.service", "drain.timer"),
        *("microvm@web.service", "microvm@%i.service", "credferry.service", "credferry-push@%i.service"),
        "a" * 260 + ".service",
    ],
)
def test_what_is_no_unit_of_the_operator(tmp_path: Path, name: str) -> None:
    """It is refused with its key: a name that systemd would refuse, and credferry's and VMs' units."""
    with pytest.raises(ConfigurationError, match=r"vms\.web\.units"):
        parse(table(units=f'before = "{name}"').encode(), tmp_path / "c")


def test_the_unit_of_another_vm_is_none(tmp_path: Path) -> None:
    """Polkit's rule must not let the agent start a VM that is stopped."""
    other = '[vms.db]\nunit = "db.service"\n[vms.db.credentials]\nK = { secret = "k" }\n'
    with pytest.raises(ConfigurationError, match="is the unit of VM 'db'"):
        parse((table(units='after = "db.service"') + other).encode(), tmp_path / "c")


def test_what_polkit_grants(tmp_path: Path) -> None:
    """The units may be started, each for its VM, and nothing else of them is granted."""
    text = rule(parse(table().encode(), tmp_path / "c"), "credferry")
    for name in ("drain", "undrain", "page"):
        assert f'"{name}@web.service": [\n                "start"' in text


def test_units_for_all_vms(tmp_path: Path) -> None:
    """They are inherited as one table; a VM with a table of its own takes nothing of it."""
    rollout = f"[rollout]\nunits = {{ {UNITS} }}\n"
    other = '[vms.db]\nunits = { after = "warm.service" }\n[vms.db.credentials]\nK = { secret = "k" }\n'
    config = parse((rollout + f"[vms.web]\n{CREDENTIALS}{other}").encode(), tmp_path / "c")
    assert [config.vm("web").unit_of(each) for each in config.vm("web").units.templates] == [
        *("drain@web.service", "undrain@web.service", "page@web.service")
    ]
    assert config.vm("db").units.templates == ("warm.service",)
