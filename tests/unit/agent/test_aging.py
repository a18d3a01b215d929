# SPDX-License-Identifier: MIT
"""How old secrets are, when they end, and the warnings about both."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.config.loading import load
from credferry.agent.daemon.metrics import Metrics
from credferry.agent.daemon.once import seal_once
from credferry.agent.reconcile import aging
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import standing
from tests.support.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86_400
VMS = """
[vms.a.credentials]
X = { secret = "x", max_age_days = 30 }
TOKEN = { secret = "token", max_age_days = 90 }
T = { text = "t" }
"""


def token(end: float) -> str:
    """A JSON web token that ends then."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": end}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def end_of_token(loop: Loop) -> int:
    """When the published token ends."""
    claims = (loop.top / "secrets/token").read_text().split(".")[1]
    return int(json.loads(base64.urlsafe_b64decode(claims + "==="))["exp"])


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A VM that runs in step; its token ends in ten days."""
    made = Loop(tmp_path, VMS)
    made.publish(x="one", token=token(int(time.time()) + 10 * DAY))
    seal_once(load(made.file))
    made.start_vm("a")
    with made.running():
        made.turn(lambda: made.decision("a").state is State.IN_STEP)
        yield made


def told(loop: Loop, days: float = 0.0) -> tuple[str, ...]:
    """The warnings about the VM's secrets so many days from now."""
    session = loop.service._session
    (observed,) = session.observer.look(session.config.vms.values(), None).observed
    now = time.time() + days * DAY
    return aging.warnings(observed.vm, aging.since(observed, session.store), aging.ends(observed), now)


def backdate(loop: Loop, days: float) -> None:
    """Have all that is sealed be older."""
    store = loop.store
    store.note_ages("a", dict.fromkeys(("X", "TOKEN"), time.time() - days * DAY))
    store._known_ages.clear()


def test_what_ends_and_what_is_overdue_is_told(loop: Loop) -> None:
    """From three days before a secret's end, and once it is older than it should be; texts have no age."""
    end = time.strftime("%Y-%m-%d", time.gmtime(end_of_token(loop)))
    assert told(loop) == told(loop, 6.9) == ()
    assert told(loop, 7.1) == (f"TOKEN expires on {end} (UTC)",)
    assert told(loop, 10.1) == (f"TOKEN has expired on {end} (UTC)",)
    assert told(loop, 30.1)[1:] == ("X is older than its max_age_days, 30",)


def test_the_status_tells_it_though_the_vm_is_in_step(loop: Loop) -> None:
    """The state stays what it is."""
    backdate(loop, 31)
    session = loop.service._session
    look = session.observer.look(session.config.vms.values(), loop.units)
    status = standing(look.observed[0], look.decisions[0], session.store)
    assert (status.state, status.reasons) == (State.IN_STEP, ("X is older than its max_age_days, 30",))


def test_a_secret_is_as_old_as_its_value(loop: Loop) -> None:
    """A change of another secret, and of nothing, leaves its age; its own change ends it."""
    backdate(loop, 40)
    loop.publish(x="one", token="other")
    loop.turn(lambda: loop.units.restarts)
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert told(loop) == ("X is older than its max_age_days, 30",)
    loop.publish(x="two", token="other")
    loop.turn(lambda: len(loop.units.restarts) == 2)
    assert told(loop) == ()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"since": {"X": "y"}}'])
def test_without_a_record_a_value_is_as_old_as_the_generation(loop: Loop, content: bytes | None) -> None:
    """A store of before, or a record that a power failure has spoiled, still has an age."""
    store = loop.store
    record = store.vm_directory("a") / "ages.json"
    if content is not None:
        record.write_bytes(content)
    store._known_ages.clear()
    generation = (store.vm_directory("a") / "current").resolve()
    os.utime(generation, (time.time() - 31 * DAY, time.time() - 31 * DAY))
    assert told(loop) == ("X is older than its max_age_days, 30",)


def test_a_change_of_the_host_s_key_makes_no_secret_younger(loop: Loop) -> None:
    """All is sealed anew with the new key, and the values are as old as before."""
    backdate(loop, 31)
    loop.new_key()
    loop.turn(lambda: Event.HOST_KEY in loop.events() and loop.decision("a").state is State.IN_STEP)
    assert told(loop) == ("X is older than its max_age_days, 30",)


def test_metrics(loop: Loop) -> None:
    """By VM: the first end, the greatest age, and how many are overdue; no name of a credential is there."""
    before = time.time()
    backdate(loop, 31)
    session = loop.service._session
    metrics = Metrics()
    metrics.looked(session.observer.look(session.config.vms.values(), None), session.store, with_source=True)
    text = metrics.render(()).decode()
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['credferry_secret_expires_timestamp_seconds{vm="a"}']) == end_of_token(loop)
    age = float(samples['credferry_secret_age_seconds{vm="a"}'])
    assert 31 * DAY - 1 <= age <= 31 * DAY + 1 + time.time() - before
    assert float(samples['credferry_secrets_overdue{vm="a"}']) == 1
    assert "TOKEN" not in text
